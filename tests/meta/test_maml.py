import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops

from tfmetarec.meta import MAML, FirstOrderMAML
from tfmetarec.models import Ranker, TwoTower
from tfmetarec.tasks import Episode, Support


def tiny(kind, vocabulary, own_model):
    if kind == "two_tower":
        return TwoTower(vocabulary, 3, item_hidden=(3,), dropout=0.0, id_dropout=0.0)
    if kind == "ranker":
        return Ranker(vocabulary, 3, hidden=(4,), dropout=0.0, id_dropout=0.0)
    return own_model(vocabulary)


@pytest.mark.parametrize(
    ("kind", "feedback", "steps"),
    [
        ("two_tower", "explicit", 2),
        ("two_tower", "implicit", 1),
        pytest.param("own", "explicit", 1, marks=pytest.mark.slow),
        ("own", "implicit", 2),
        pytest.param("ranker", "explicit", 1, marks=pytest.mark.slow),
        pytest.param("ranker", "implicit", 2, marks=pytest.mark.slow),
        pytest.param("two_tower", "explicit", 1, marks=pytest.mark.slow),
        pytest.param("two_tower", "implicit", 2, marks=pytest.mark.slow),
    ],
)
@pytest.mark.usefixtures("float64")
def test_the_meta_gradient_is_exact(settings, own_model, first_batch, by_the_book, kind, feedback, steps):
    setting = settings[feedback]
    model = by_the_book.randomise(tiny(kind, setting.vocabulary, own_model))
    episode = by_the_book.in_float64(first_batch(setting.episodes))
    learner = MAML(model, vocabulary=setting.vocabulary, inner_steps=steps, inner_learning_rate=0.2)
    run = by_the_book.compiled(learner, episode)
    found = run()
    if kind == "own":
        moves = ["table" not in variable.path for variable in model.trainable_variables]
        assert moves.count(False) == 2
    else:
        moves = by_the_book.head_moves(model)
    by_the_book.assert_close(found, by_the_book.meta_gradient(model, episode, moves, steps=steps, rate=0.2))
    by_the_book.assert_matches_finite_differences(run, model.trainable_variables, found[1])


def linear_model(start):
    inputs = {"x": keras.Input((3,), name="x")}
    model = keras.Model(inputs, keras.layers.Dense(1, use_bias=False)(inputs["x"]))
    model.set_weights([np.reshape(start, (3, 1))])
    return model


def made_up_episode(lengths, seed=0):
    """Tasks whose items have three numbers and random labels."""
    rng = np.random.default_rng(seed)
    tasks, s, q = len(lengths), 4, 3

    def part(rows, length):
        item = {"item_id": np.zeros((tasks, rows), np.int32), "x": rng.normal(size=(tasks, rows, 3))}
        label = rng.normal(size=(tasks, rows))
        return Support({"user_id": np.zeros(tasks, np.int32)}, item, label, np.array(length, np.int32))

    return Episode(part(s, lengths), part(q, [q] * tasks), {}, {})


@pytest.mark.usefixtures("float64")
def test_a_linear_model_has_its_closed_form():
    start, rate = np.array([0.3, -0.2, 0.5]), 0.1
    episode = made_up_episode([4, 2, 0])
    learner = MAML(linear_model(start), inner_learning_rate=rate)
    loss, (gradient,), _ = learner.meta_gradients(tf.nest.map_structure(tf.constant, episode))
    losses, gradients = [], []
    for task, length in enumerate(episode.support.length):
        x, y = episode.support.item["x"][task, :length], episode.support.label[task, :length]
        xq, yq = episode.query.item["x"][task], episode.query.label[task]
        # d mean (x w - y)^2 / dw = 2/S x'(x w - y), so dw_1/dw_0 = I - 2 rate/S x'x.
        scale = 2 * rate / max(length, 1)
        adapted = start - scale * x.T @ (x @ start - y)
        jacobian = np.eye(3) - scale * x.T @ x
        losses.append(np.mean((xq @ adapted - yq) ** 2))
        gradients.append(jacobian.T @ (2 / 3 * xq.T @ (xq @ adapted - yq)))
    np.testing.assert_allclose(float(loss), np.mean(losses), rtol=1e-12)
    np.testing.assert_allclose(gradient.numpy()[:, 0], np.mean(gradients, axis=0), rtol=1e-12)


@keras.saving.register_keras_serializable(package="tests")
def product(label, score):
    """A loss that is linear in the score."""
    return ops.mean(-label * score, axis=-1)


@pytest.mark.usefixtures("float64")
def test_first_order_is_exact_where_the_inner_loss_is_linear_in_the_weights():
    episode = tf.nest.map_structure(tf.constant, made_up_episode([4, 2, 0]))
    gradients = {}
    for algorithm in (MAML, FirstOrderMAML):
        for loss in (product, "mean_squared_error"):
            learner = algorithm(linear_model([0.3, -0.2, 0.5]), inner_steps=2, inner_learning_rate=0.1)
            learner.compile("sgd", loss)
            gradients[algorithm, loss] = learner.meta_gradients(episode)[1][0].numpy()
    np.testing.assert_allclose(gradients[MAML, product], gradients[FirstOrderMAML, product], rtol=1e-12)
    assert not np.allclose(gradients[MAML, "mean_squared_error"], gradients[FirstOrderMAML, "mean_squared_error"])
