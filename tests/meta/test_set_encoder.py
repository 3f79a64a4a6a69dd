import keras
import numpy as np
import pytest
import tensorflow as tf

import tfmetarec as tmr
from tfmetarec.meta import SetEncoder
from tfmetarec.models import Ranker, TwoTower
from tfmetarec.tasks import user_episodes

SHRINKAGE, LEVEL_SHRINKAGE = 1.5, 2.0


def mlp(tower, x):
    *hidden, last = tower.dense
    for layer in hidden:
        x = np.maximum(x @ layer.kernel.numpy() + layer.bias.numpy(), 0)
    return x @ last.kernel.numpy() + last.bias.numpy()


def change_by_hand(learner, episode, task):
    """What the support changes of one task's vector and level, row by row."""
    model, support = learner.model, episode.support
    length = int(support.length[task])
    user = model.encode_user({name: value[task : task + 1] for name, value in support.user.items()}).numpy()
    item = model.encode_item({name: value[task, :length] for name, value in support.item.items()}).numpy()
    phi = item[:, : model.embedding_dim]
    residual, level = np.ones(length), 0.0
    if learner.feedback == "explicit":
        score = model.head(np.repeat(user, length, axis=0)[:, None], item[:, None]).numpy()[:, 0]
        residual = np.asarray(support.label)[task, :length] - score
        level = residual.sum() / (length + LEVEL_SHRINKAGE)
    said = []
    for vector, e in zip(phi, residual, strict=True):
        said.append(mlp(learner._row_encoder, np.concatenate([vector, (e - level) * vector, [e, e - level]])))
    said = np.array(said).reshape(length, learner.representation + learner.heads)
    width = learner.representation
    if not learner.heads:
        p = said.sum(0) / (length + SHRINKAGE)
    else:
        p = []
        for head in range(learner.heads):
            values = said[:, :width].reshape(length, learner.heads, width // learner.heads)[:, head]
            attention = np.exp(4 * np.tanh(said[:, width + head] / 4))
            p.append((attention[:, None] * values).sum(0) / (attention.sum() + SHRINKAGE))
        p = np.concatenate(p)
    told = np.concatenate([p, np.sqrt(length) * p / 5, [np.log1p(length) / 4, level]])
    change = length / (length + SHRINKAGE) * mlp(learner._set_decoder, told)
    return change[:-1], change[-1] + level


@pytest.mark.parametrize(
    ("feedback", "heads"),
    [("explicit", 0), ("implicit", 2), pytest.param("explicit", 2, marks=pytest.mark.slow)],
)
@pytest.mark.usefixtures("float64")
def test_the_support_moves_the_user_as_worked_out_by_hand(settings, first_batch, by_the_book, feedback, heads):
    setting = settings[feedback]
    model = TwoTower(setting.vocabulary, 3, user_hidden=(4,), dropout=0.0, id_dropout=0.0)
    options = {"shrinkage": SHRINKAGE, "level_shrinkage": LEVEL_SHRINKAGE, "heads": heads}
    learner = SetEncoder(by_the_book.randomise(model), representation=4, hidden=(5,), **options)
    episode = by_the_book.in_float64(first_batch(setting.episodes))
    adapted = learner.adapt(episode.support).weights
    parts = {id(v): w for v, w in zip(learner.adapted_variables, adapted, strict=True)}
    vector, level = model.head.tower.dense[-1].bias, model.head.level.kernel
    for task in range(6):
        of_vector, of_level = change_by_hand(learner, episode, task)
        np.testing.assert_allclose(parts[id(vector)][task], vector.numpy() + of_vector, rtol=1e-6, atol=1e-8)
        np.testing.assert_allclose(parts[id(level)][task], level.numpy() + of_level, rtol=1e-6, atol=1e-8)
        assert (np.abs(of_vector).max() == 0) == (int(episode.support.length[task]) == 0)


@pytest.mark.parametrize("heads", [0, 2])
def test_the_order_of_the_support_does_not_matter(explicit, first_batch, heads):
    support = first_batch(explicit.episodes).support
    support.length[:] = support.label.shape[1]
    turned = support._replace(
        item={name: value[:, ::-1] for name, value in support.item.items()}, label=support.label[:, ::-1]
    )
    learner = SetEncoder(TwoTower(explicit.vocabulary, 3), representation=8, heads=heads)
    for a, b in zip(learner.adapt(support).weights, learner.adapt(turned).weights, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_dropout_is_for_training_alone(explicit, first_batch):
    episode = tf.nest.map_structure(tf.constant, first_batch(explicit.episodes))
    learner = SetEncoder(Ranker(explicit.vocabulary, 3, hidden=(6,)), dropout=0.5, seed=1)
    rows = learner.encode(episode, training=False)[0]
    still = [learner.adapt_rows(rows)[0].numpy() for _ in range(2)]
    moving = [learner.adapt_rows(rows, training=True)[0].numpy() for _ in range(2)]
    np.testing.assert_array_equal(*still)
    assert not np.array_equal(*moving)


@pytest.mark.parametrize(("feedback", "share"), [("explicit", 0.75), ("implicit", 0.95)])
def test_training_makes_adapted_scores_of_new_users_better(feedback, share):
    data = tmr.data.load("synthetic", n_users=200, n_items=80, interactions_per_user=16, feedback=feedback, seed=0)
    split = tmr.data.cold_users(data, seed=0)
    vocabulary = tmr.data.Vocabulary.fit(split.train)
    options = {"query": 6, "negatives": 30 if feedback == "implicit" else 0}
    learner = SetEncoder(TwoTower(vocabulary, 8), dropout=0.1)
    learner.compile(keras.optimizers.Adam(0.01))
    training = user_episodes(split.train, vocabulary, support=(0, 8), steps_per_epoch=60, **options)
    learner.fit(training, epochs=1, verbose=0)
    losses = [learner.evaluate(user_episodes(split.test, vocabulary, support=k, **options), verbose=0) for k in (0, 8)]
    assert losses[1] < share * losses[0]


def test_with_implicit_feedback_nothing_is_contrasted(implicit, first_batch):
    learner = SetEncoder(TwoTower(implicit.vocabulary, 3))
    assert learner._contrast_negatives(first_batch(implicit.episodes).support) is None


def test_it_adapts_under_a_policy_that_computes_in_bfloat16(explicit, first_batch):
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        learner = SetEncoder(TwoTower(explicit.vocabulary, 3), representation=8)
        weights = learner.adapt(first_batch(explicit.episodes).support).weights
    finally:
        keras.config.set_dtype_policy(policy)
    assert all(weight.dtype == tf.float32 for weight in weights)


def test_equal_seeds_give_equal_set_encoders(explicit, values_of):
    model = TwoTower(explicit.vocabulary, 3)
    first, again, other = (values_of(SetEncoder(model, seed=seed)) for seed in (5, 5, 6))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert sum(not np.array_equal(a, b) for a, b in zip(first, other, strict=True)) >= 4


def test_weight_decay_leaves_the_logarithms_alone(explicit):
    learner = SetEncoder(TwoTower(explicit.vocabulary, 3), shrinkage=5.0)
    optimizer = keras.optimizers.AdamW(learning_rate=0.1, weight_decay=0.5)
    learner.compile(optimizer)
    before = learner._logarithms["shrinkage"].numpy(), learner._row_encoder.dense[0].kernel.numpy()
    optimizer.apply_gradients([(tf.zeros_like(v), v) for v in learner.trainable_variables])
    assert learner._logarithms["shrinkage"].numpy() == before[0]
    assert not np.array_equal(learner._row_encoder.dense[0].kernel.numpy(), before[1])


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"representation": 0}, "`representation` must be at least 1. Received: representation=0"),
        ({"hidden": (4, 0)}, r"`hidden` must hold widths of at least 1. Received: hidden=\(4, 0\)"),
        ({"representation": 8, "heads": 3}, "`heads` must be 0 or divide `representation`, 8. Received: heads=3"),
        ({"heads": -1}, "`heads` must be 0 or divide `representation`, 128. Received: heads=-1"),
        ({"dropout": 1.0}, "`dropout` must be at least 0 and less than 1. Received: dropout=1.0"),
        ({"shrinkage": 0.0}, "`shrinkage` must be greater than 0 and finite. Received: shrinkage=0.0"),
        ({"level_shrinkage": float("nan")}, "`level_shrinkage` must be greater than 0 and finite. Received: "),
        ({"adapted": "last"}, "`adapted` cannot be chosen: only the last layer is answered for. Received: "),
    ],
)
def test_options_out_of_range_are_refused(explicit, option, message):
    with pytest.raises(ValueError, match=message):
        SetEncoder(TwoTower(explicit.vocabulary, 3), **option)


def test_a_score_that_is_not_linear_is_refused(explicit):
    with pytest.raises(ValueError, match="`model` must be linear in its last layer"):
        SetEncoder(TwoTower(explicit.vocabulary, 3, activation="sigmoid"))
