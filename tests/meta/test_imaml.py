import keras
import numpy as np
import pytest
import tensorflow as tf

from tfmetarec.meta import MAML
from tfmetarec.meta.imaml import IMAML
from tfmetarec.models import TwoTower
from tfmetarec.tasks import Episode, Support

PROXIMAL = 5.0  # More than any negative curvature here, so that each task has one minimum near the start.


@pytest.mark.usefixtures("float64")
def test_a_linear_model_has_its_closed_form():
    rng, start = np.random.default_rng(0), np.array([0.3, -0.2, 0.5])

    def part(length):
        item = {"item_id": np.zeros((3, max(length)), np.int32), "x": rng.normal(size=(3, max(length), 3))}
        label = rng.normal(size=(3, max(length)))
        return Support({"user_id": np.zeros(3, np.int32)}, item, label, np.array(length, np.int32))

    episode = Episode(part([4, 2, 0]), part([3, 3, 3]), {}, {})
    inputs = {"x": keras.Input((3,), name="x")}
    model = keras.Model(inputs, keras.layers.Dense(1, use_bias=False)(inputs["x"]))
    model.set_weights([start[:, None]])
    learner = IMAML(model, proximal=PROXIMAL, inner_steps=80, inner_learning_rate=0.1)
    loss, (gradient,), _ = learner.meta_gradients(tf.nest.map_structure(tf.constant, episode))
    losses, gradients = [], []
    for task, length in enumerate(episode.support.length):
        x, y = episode.support.item["x"][task, :length], episode.support.label[task, :length]
        xq, yq = episode.query.item["x"][task], episode.query.label[task]
        scale = 2 / max(length, 1)
        # Where scale x'(x w - y) + proximal (w - start) = 0; dw/dstart = proximal (scale x'x + proximal I)^-1.
        inverse = np.linalg.inv(scale * x.T @ x + PROXIMAL * np.eye(3))
        end = inverse @ (scale * x.T @ y + PROXIMAL * start)
        losses.append(np.mean((xq @ end - yq) ** 2))
        gradients.append(PROXIMAL * inverse @ (2 / 3 * xq.T @ (xq @ end - yq)))
    np.testing.assert_allclose(float(loss), np.mean(losses), rtol=1e-9)
    np.testing.assert_allclose(gradient[:, 0], np.mean(gradients, axis=0), rtol=1e-8)


def unrolled(model, episode, vocabulary, steps, rate):
    """The meta-gradient straight through a long descent on the same proximal problem."""
    learner = MAML(model, vocabulary=vocabulary, inner_steps=steps, inner_learning_rate=rate)
    with tf.GradientTape() as tape:
        support, query = learner.encode(episode)
        end = learner.descend(support, training=True, proximal=PROXIMAL)[-1]
        loss = tf.reduce_mean(learner._path.losses(end, query, learner.task_loss)[0])
    return loss, tape.gradient(loss, [variable.value for variable in model.trainable_variables])


@pytest.mark.parametrize(("feedback", "two_tower"), [("explicit", False), ("implicit", True)])
@pytest.mark.usefixtures("float64")
def test_at_the_minimum_it_is_the_gradient_through_the_whole_descent(
    settings, own_model, first_batch, by_the_book, feedback, two_tower
):
    setting = settings[feedback]
    model = TwoTower(setting.vocabulary, 3, dropout=0.0, id_dropout=0.0) if two_tower else own_model(setting.vocabulary)
    by_the_book.randomise(model, scale=0.3)
    episode = by_the_book.in_float64(first_batch(setting.episodes))
    options = {"inner_steps": 40, "inner_learning_rate": 0.1}
    learner = IMAML(model, vocabulary=setting.vocabulary, proximal=PROXIMAL, solver_steps=10, **options)
    loss, gradients, _ = learner.meta_gradients(episode)
    expected_loss, expected = unrolled(model, episode, setting.vocabulary, steps=40, rate=0.1)
    assert float(loss) == pytest.approx(float(expected_loss), rel=1e-10)
    for variable, a, b in zip(model.trainable_variables, gradients, expected, strict=True):
        a, b = (tf.convert_to_tensor(gradient).numpy() for gradient in (a, b))
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * np.abs(b).max() + 1e-12, err_msg=variable.path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"proximal": 0.0}, "`proximal` must be greater than 0. Received: proximal=0.0"),
        ({"solver_steps": 0}, "`solver_steps` must be at least 1. Received: solver_steps=0"),
        ({"learned_rate": "scalar"}, "IMAML cannot learn inner rates: its outer gradient does not see the steps."),
    ],
)
def test_options_that_make_no_sense_are_refused(explicit, options, message):
    with pytest.raises(ValueError, match=message):
        IMAML(TwoTower(explicit.vocabulary, 3), **options)
