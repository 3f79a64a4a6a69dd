import keras
import numpy as np
import pytest
import tensorflow as tf

from tfmetarec.meta.maml_plus_plus import MAMLPlusPlus
from tfmetarec.models import TwoTower
from tfmetarec.tasks import Episode, Support

START, RATES = np.array([0.3, -0.2, 0.5]), (0.05, 0.15)


def made_up(lengths=(4, 2), **options):
    """A learner of two steps on a linear model, with other rates at each, and an episode with three numbers an item."""
    rng = np.random.default_rng(0)

    def part(length):
        rows = max(length)
        item = {"item_id": np.zeros((2, rows), np.int32), "x": rng.normal(size=(2, rows, 3))}
        return Support({"user_id": np.zeros(2, np.int32)}, item, rng.normal(size=(2, rows)), np.array(length, np.int32))

    inputs = {"x": keras.Input((3,), name="x")}
    model = keras.Model(inputs, keras.layers.Dense(1, use_bias=False)(inputs["x"]))
    model.set_weights([START[:, None]])
    learner = MAMLPlusPlus(model, inner_steps=2, **options)
    for (log_rate,), rate in zip(learner._log_rates, RATES, strict=True):
        log_rate.assign(np.log(rate))
    return learner, Episode(part(lengths), part((3, 3)), {}, {})


def by_hand(episode, weights, second_order=True):
    """The last loss, and the gradients by the start and the logarithms of both rates of `weights . losses`."""
    last, gradients = [], []
    for task, length in enumerate(episode.support.length):
        x, y = episode.support.item["x"][task, :length], episode.support.label[task, :length]
        xq, yq = episode.query.item["x"][task], episode.query.label[task]
        hessian = 2 / length * x.T @ x
        points = [START]
        for rate in RATES:
            points.append(points[-1] - rate * (hessian @ points[-1] - 2 / length * x.T @ y))
        steps = [points[0] - points[1], points[1] - points[2]]  # rate * gradient, which is minus d point / d log(rate).
        jacobian = [np.eye(3) - rate * hessian if second_order else np.eye(3) for rate in RATES]
        outer = [2 / 3 * xq.T @ (xq @ point - yq) for point in points]
        back = weights[1] * jacobian[1].T @ outer[2] + weights[0] * outer[1]  # By the point after the first step.
        gradients.append([jacobian[0].T @ back, -steps[0] @ back, -steps[1] @ (weights[1] * outer[2])])
        last.append(np.mean((xq @ points[2] - yq) ** 2))
    return np.mean(last), [np.mean(each, axis=0) for each in zip(*gradients, strict=True)]


def assert_is(learner, episode, weights, second_order=True):
    loss, gradients, _ = tf.function(learner.meta_gradients, autograph=False)(
        tf.nest.map_structure(tf.constant, episode)
    )
    expected, by_variable = by_hand(episode, weights, second_order)
    np.testing.assert_allclose(float(loss), expected, rtol=1e-10)
    found = {id(variable): gradient for variable, gradient in zip(learner.trainable_variables, gradients, strict=True)}
    variables = [*learner.adapted_variables, *(rate for row in learner._log_rates for rate in row)]
    for variable, value in zip(variables, by_variable, strict=True):
        np.testing.assert_allclose(np.ravel(found[id(variable)]), np.ravel(value), rtol=1e-9, err_msg=variable.path)


@pytest.mark.parametrize(
    ("outer_step", "weights"), [(0, (0.5, 0.5)), (50, (0.25, 0.75)), (100, (0.0, 1.0)), (1000, (0.0, 1.0))]
)
@pytest.mark.usefixtures("float64")
def test_the_loss_after_every_step_counts_less_and_less(outer_step, weights):
    learner, episode = made_up(annealing_steps=100)
    learner.compile("sgd")
    learner.optimizer.iterations.assign(outer_step)
    np.testing.assert_allclose(learner.step_weights(outer_step), weights)
    assert_is(learner, episode, weights)


@pytest.mark.usefixtures("float64")
def test_without_annealing_only_the_last_step_counts():
    learner, episode = made_up(annealing_steps=0)
    assert_is(learner, episode, (0.0, 1.0))


@pytest.mark.parametrize(("outer_step", "second_order"), [(0, False), (6, False), (7, True)])
@pytest.mark.usefixtures("float64")
def test_second_derivatives_begin_at_the_given_outer_step(outer_step, second_order):
    learner, episode = made_up(annealing_steps=0, first_order_steps=7)
    learner.compile("sgd")
    learner.optimizer.iterations.assign(outer_step)
    assert_is(learner, episode, (0.0, 1.0), second_order)


def test_the_switch_happens_within_one_graph_while_training(explicit):
    learner = MAMLPlusPlus(TwoTower(explicit.vocabulary, 3), inner_steps=2, first_order_steps=2, annealing_steps=3)
    learner.compile(keras.optimizers.Adam(0.01), jit_compile=False)
    history = learner.fit(explicit.episodes, epochs=3, verbose=0).history["loss"]
    assert np.isfinite(history).all()
    assert int(learner.optimizer.iterations) == 6


def test_every_layer_has_a_rate_at_every_step(explicit):
    model = TwoTower(explicit.vocabulary, 3, user_hidden=(5,))
    learner = MAMLPlusPlus(model, inner_steps=3)
    assert [len({id(rate) for rate in row}) for row in learner._log_rates] == [3, 3, 3]  # Two layers and the level.
    assert len({id(rate) for row in learner._log_rates for rate in row}) == 9


@pytest.mark.parametrize("name", ["annealing_steps", "first_order_steps"])
def test_negative_steps_are_refused(explicit, name):
    with pytest.raises(ValueError, match=f"`{name}` must be at least 0. Received: {name}=-1"):
        MAMLPlusPlus(TwoTower(explicit.vocabulary, 3), **{name: -1})
