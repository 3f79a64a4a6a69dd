import numpy as np
import pytest
import tensorflow as tf

from tfmetarec.meta import MAML, FineTuning
from tfmetarec.models import TwoTower


def plain_gradients(by_the_book, model, episode):
    """Half the unadapted loss on the query and half that on the support, mean over tasks."""
    weights = [tf.convert_to_tensor(variable.value) for variable in model.trainable_variables]
    tasks = range(len(episode.query.length))
    with tf.GradientTape() as tape:
        tape.watch(weights)
        query = [by_the_book.task_loss(model, weights, episode.query, episode.query_negatives, t) for t in tasks]
        support = [by_the_book.task_loss(model, weights, episode.support, episode.support_negatives, t) for t in tasks]
        loss = (tf.add_n(query) + tf.add_n(support)) / (2 * len(query))
    gradients = tape.gradient(loss, weights, unconnected_gradients="zero")
    return float(tf.add_n(query)) / len(query), [tf.convert_to_tensor(g).numpy() for g in gradients]


@pytest.mark.parametrize("feedback", [pytest.param("explicit", marks=pytest.mark.slow), "implicit"])
@pytest.mark.usefixtures("float64")
def test_training_is_plain_training_on_support_and_query(settings, first_batch, by_the_book, feedback):
    setting = settings[feedback]
    model = by_the_book.randomise(TwoTower(setting.vocabulary, 3, item_hidden=(), dropout=0.0, id_dropout=0.0))
    episode = by_the_book.in_float64(first_batch(setting.episodes))
    run = by_the_book.compiled(FineTuning(model, inner_steps=3, inner_learning_rate=0.2), episode)
    by_the_book.assert_close(run(), plain_gradients(by_the_book, model, episode))


def test_it_adapts_exactly_as_maml_does(explicit, first_batch):
    model, support = TwoTower(explicit.vocabulary, 3), first_batch(explicit.episodes).support
    options = {"inner_steps": 2, "inner_learning_rate": 0.2}
    ours, mamls = (algorithm(model, **options).adapt(support).weights for algorithm in (FineTuning, MAML))
    for a, b in zip(ours, mamls, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
        assert not np.allclose(a[1], a[2])
