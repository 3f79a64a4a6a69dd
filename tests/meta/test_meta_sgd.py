import keras
import numpy as np
import pytest
import tensorflow as tf

from tfmetarec.meta.meta_sgd import MetaSGD
from tfmetarec.models import TwoTower
from tfmetarec.tasks import Episode, Support

RATES = np.array([0.05, 0.2, 0.1])


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
def test_a_linear_model_has_its_closed_form_the_rates_included():
    start = np.array([0.3, -0.2, 0.5])
    episode = made_up_episode([4, 2, 0])
    learner = MetaSGD(linear_model(start))
    ((log_rates,),) = learner._log_rates
    log_rates.assign(np.log(RATES)[:, None])
    loss, gradients, _ = learner.meta_gradients(tf.nest.map_structure(tf.constant, episode))
    losses, of_start, of_rates = [], [], []
    for task, length in enumerate(episode.support.length):
        x, y = episode.support.item["x"][task, :length], episode.support.label[task, :length]
        xq, yq = episode.query.item["x"][task], episode.query.label[task]
        scale = 2 / max(length, 1)
        step = scale * x.T @ (x @ start - y)
        adapted = start - RATES * step
        outer = 2 / 3 * xq.T @ (xq @ adapted - yq)
        losses.append(np.mean((xq @ adapted - yq) ** 2))
        # dw_1/dw_0 = I - diag(rates) 2/S x'x, and dw_1/d log(rate) = -rate * step.
        of_start.append((np.eye(3) - RATES[:, None] * scale * x.T @ x).T @ outer)
        of_rates.append(-RATES * step * outer)
    np.testing.assert_allclose(float(loss), np.mean(losses), rtol=1e-12)
    for variable, gradient in zip(learner.trainable_variables, gradients, strict=True):
        expected = np.mean(of_rates if variable is log_rates else of_start, axis=0)
        np.testing.assert_allclose(gradient[:, 0], expected, rtol=1e-11, err_msg=variable.path)


def test_there_is_a_rate_for_every_number_that_adapts(explicit):
    learner = MetaSGD(TwoTower(explicit.vocabulary, 3, user_hidden=(5,)), inner_learning_rate=0.2)
    rates = learner.inner_rates(0)
    assert [tuple(rate.shape) for rate in rates] == [tuple(variable.shape) for variable in learner.adapted_variables]
    for rate in rates:
        np.testing.assert_allclose(rate, 0.2, rtol=1e-6)


def test_training_tells_the_rates_apart(explicit):
    learner = MetaSGD(TwoTower(explicit.vocabulary, 3), inner_learning_rate=0.1)
    learner.compile(keras.optimizers.Adam(0.05), jit_compile=False)
    learner.fit(explicit.episodes, epochs=3, verbose=0)
    rates = np.concatenate([np.ravel(rate) for rate in learner.inner_rates(0)])
    assert (rates > 0).all()
    assert rates.min() < 0.1 < rates.max()
