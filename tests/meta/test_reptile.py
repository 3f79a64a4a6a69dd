import keras
import numpy as np
import pytest
import tensorflow as tf

from tfmetarec.meta import Reptile
from tfmetarec.models import TwoTower
from tfmetarec.tasks import Support

STEPS, RATE, EPS = 3, 0.1, 0.5


def together(episode):
    """Support and query of every task as one support, the real rows of both in front."""
    support, query = episode.support, episode.query
    tasks = len(support.length)
    length = np.asarray(support.length) + np.asarray(query.length)

    def joined(a, b):
        a, b = np.asarray(a), np.asarray(b)
        rows = [
            np.concatenate([a[t, : support.length[t]], b[t, : query.length[t]], a[t, support.length[t] :]])
            for t in range(tasks)
        ]
        width = a.shape[1]
        return tf.constant(np.stack([np.resize(row, (width + 3, *row.shape[1:])) for row in rows]))

    item = {name: joined(value, query.item[name]) for name, value in support.item.items()}
    return Support(support.user, item, joined(support.label, query.label), length)


def by_hand(by_the_book, model, episode, proximal):
    """theta + eps (mean theta_k - theta); what does not adapt takes the same SGD steps along the way."""
    start = [tf.convert_to_tensor(variable.value) for variable in model.trainable_variables]
    moves, part = by_the_book.head_moves(model), together(episode)
    tasks = len(part.length)
    ends = [np.zeros(w.shape) for w in start]
    for task in range(tasks):
        weights, total = start, [np.zeros(w.shape) for w in start]
        for _ in range(STEPS):
            with tf.GradientTape() as tape:
                tape.watch(weights)
                loss = by_the_book.task_loss(model, weights, part, episode.support_negatives, task)
            gradients = tape.gradient(loss, weights, unconnected_gradients="zero")
            gradients = [tf.convert_to_tensor(g).numpy() for g in gradients]
            total = [t + g for t, g in zip(total, gradients, strict=True)]
            weights = [
                w - RATE * (g + proximal * (w - s)) if m else w
                for w, g, s, m in zip(weights, gradients, start, moves, strict=True)
            ]
        for end, w, s, t, m in zip(ends, weights, start, total, moves, strict=True):
            end += (w.numpy() if m else s.numpy() - RATE * t) / tasks
    return [s.numpy() + EPS * (end - s.numpy()) for s, end in zip(start, ends, strict=True)]


@pytest.mark.parametrize(
    ("feedback", "proximal"),
    [("implicit", 0.0), ("explicit", 2.0), pytest.param("explicit", 0.0, marks=pytest.mark.slow)],
)
@pytest.mark.usefixtures("float64")
def test_a_step_of_sgd_is_the_published_update(settings, first_batch, by_the_book, feedback, proximal):
    setting = settings[feedback]
    model = by_the_book.randomise(TwoTower(setting.vocabulary, 3, item_hidden=(), dropout=0.0, id_dropout=0.0))
    episode = by_the_book.in_float64(first_batch(setting.episodes))
    expected = by_hand(by_the_book, model, episode, proximal)
    learner = Reptile(model, inner_steps=STEPS, inner_learning_rate=RATE, proximal=proximal)
    learner.compile(keras.optimizers.SGD(EPS))
    tf.function(learner.train_step, autograph=False)(episode)
    for variable, value in zip(model.trainable_variables, expected, strict=True):
        np.testing.assert_allclose(variable.numpy(), value, rtol=1e-8, atol=1e-10, err_msg=variable.path)


def test_the_proximal_term_keeps_a_task_near_the_start(explicit, first_batch):
    model, support = TwoTower(explicit.vocabulary, 3), first_batch(explicit.episodes).support
    distances = []
    for proximal in (0.0, 2.0):
        learner = Reptile(model, inner_steps=4, inner_learning_rate=0.1, proximal=proximal)
        moved = zip(learner.adapt(support).weights, learner.starting_weights(1), strict=True)
        distances.append(sum(float(tf.reduce_sum((w - s) ** 2)) for w, s in moved))
    assert 0 < distances[1] < distances[0]


def test_a_negative_proximal_term_is_refused(explicit):
    with pytest.raises(ValueError, match="`proximal` must be at least 0. Received: proximal=-1"):
        Reptile(TwoTower(explicit.vocabulary, 3), proximal=-1)
