"""Meta-gradients by the book: one task after the other, with plain tapes, on whole models."""

from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf


@pytest.fixture
def float64():
    """Models and learners made meanwhile compute in float64, where a difference shows what is exact."""
    before = keras.config.floatx(), keras.config.dtype_policy()
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    yield
    keras.config.set_floatx(before[0])
    keras.config.set_dtype_policy(before[1])


def in_float64(episode):
    return tf.nest.map_structure(
        lambda value: tf.constant(value, tf.float64 if value.dtype == np.float32 else None), episode
    )


def randomise(model, seed=0, scale=0.4):
    rng = np.random.default_rng(seed)
    for variable in model.trainable_variables:
        variable.assign(scale * rng.normal(size=variable.shape))
    return model


def _scores(model, weights, user, item):
    features = {**user, **item}
    names = getattr(model, "_inputs_struct", None) or features
    fixed = [variable.value for variable in model.non_trainable_variables]
    return model.stateless_call(weights, fixed, {name: features[name] for name in names})[0][:, 0]


def task_loss(model, weights, part, negatives, task):
    """Mean over the real rows: squared error, or the sampled softmax against the negatives."""
    length = int(part.length[task])
    if length == 0:
        return tf.zeros((), weights[0].dtype)

    def user(rows):
        return {name: tf.repeat(value[task : task + 1], rows, axis=0) for name, value in part.user.items()}

    item = {name: value[task, :length] for name, value in part.item.items()}
    scores = _scores(model, weights, user(length), item)
    if not negatives:
        return tf.reduce_mean((part.label[task, :length] - scores) ** 2)
    kept = np.flatnonzero(np.asarray(negatives.weight[task]) > 0)
    contrast = {name: tf.gather(value, kept) for name, value in negatives.item.items()}
    against = _scores(model, weights, user(len(kept)), contrast)
    against = tf.exp(against) / tf.exp(tf.gather(negatives.log_expected, kept))
    return tf.reduce_mean(-tf.math.log(tf.exp(scores) / (tf.exp(scores) + tf.reduce_sum(against))))


def descend(model, weights, adapted, loss_of, steps, rate, second_order):
    for _ in range(steps):
        with tf.GradientTape() as tape:
            tape.watch(weights)
            loss = loss_of(weights)
        gradients = tape.gradient(loss, weights, unconnected_gradients="zero")
        gradients = [tf.convert_to_tensor(g) for g in gradients]
        if not second_order:
            gradients = [tf.stop_gradient(g) for g in gradients]
        moved = zip(weights, gradients, adapted, strict=True)
        weights = [w - rate * g if moves else w for w, g, moves in moved]
    return weights


def meta_gradient(model, episode, adapted, *, steps=1, rate=0.1, second_order=True):
    """Loss and gradient of every variable; `adapted` says for each whether it moves in the inner loop."""
    start = [tf.convert_to_tensor(variable.value) for variable in model.trainable_variables]
    tasks = len(episode.query.length)
    with tf.GradientTape() as tape:
        tape.watch(start)
        losses = []
        for task in range(tasks):
            moved = descend(
                model,
                start,
                adapted,
                lambda w, task=task: task_loss(model, w, episode.support, episode.support_negatives, task),
                steps if int(episode.support.length[task]) else 0,
                rate,
                second_order,
            )
            losses.append(task_loss(model, moved, episode.query, episode.query_negatives, task))
        loss = tf.add_n(losses) / tasks
    gradients = tape.gradient(loss, start, unconnected_gradients="zero")
    return float(loss), [tf.convert_to_tensor(g).numpy() for g in gradients]


def compiled_meta_gradients(learner, episode):
    """`episode -> loss and gradients` of a learner, traced once."""
    function = tf.function(learner.meta_gradients, autograph=False)

    def run():
        loss, gradients, _ = function(episode)
        return float(loss), [tf.convert_to_tensor(g).numpy() for g in gradients]

    return run


def assert_matches_finite_differences(run, variables, gradients, seed=0, epsilon=1e-6):
    """Central differences of the loss along a random direction in each variable."""
    rng = np.random.default_rng(seed)
    for variable, gradient in zip(variables, gradients, strict=True):
        start, direction = variable.numpy().copy(), rng.normal(size=variable.shape)
        losses = []
        for sign in (1, -1):
            variable.assign(start + sign * epsilon * direction)
            losses.append(run()[0])
        variable.assign(start)
        slope = (losses[0] - losses[1]) / (2 * epsilon)
        np.testing.assert_allclose((gradient * direction).sum(), slope, rtol=1e-5, atol=1e-8, err_msg=variable.path)


def assert_close(found, expected, rtol=1e-8):
    assert found[0] == pytest.approx(expected[0], rel=rtol)
    for a, b in zip(found[1], expected[1], strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-10)


def head_moves(model):
    """For each variable of a two-part model, whether it belongs to the part that adapts."""
    ids = {id(variable) for variable in model.head.trainable_variables}
    return [id(variable) in ids for variable in model.trainable_variables]


@pytest.fixture(scope="session")
def by_the_book():
    return SimpleNamespace(
        in_float64=in_float64,
        randomise=randomise,
        task_loss=task_loss,
        descend=descend,
        meta_gradient=meta_gradient,
        compiled=compiled_meta_gradients,
        assert_matches_finite_differences=assert_matches_finite_differences,
        assert_close=assert_close,
        head_moves=head_moves,
    )
