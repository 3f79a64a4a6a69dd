import keras
import numpy as np
import pytest
import tensorflow as tf

import tfmetarec as tmr
from tfmetarec.meta import NeuralProcess
from tfmetarec.models import Ranker, TwoTower
from tfmetarec.tasks import user_episodes

SHRINKAGE = 1.5


def mlp(tower, x):
    *hidden, last = tower.dense
    for layer in hidden:
        x = np.maximum(x @ layer.kernel.numpy() + layer.bias.numpy(), 0)
    return x @ last.kernel.numpy() + last.bias.numpy()


def represented(learner, episode, task):
    """What the support says of one task, by hand."""
    model, support, negatives = learner.model, episode.support, episode.support_negatives
    length = int(support.length[task])
    user = model.encode_user({name: value[task : task + 1] for name, value in support.user.items()}).numpy()

    def encoded(item):
        item = model.encode_item(item).numpy()
        score = model.head(np.repeat(user, len(item), axis=0)[:, None], item[:, None]).numpy()[:, 0]
        return np.concatenate([item, np.repeat(user, len(item), axis=0)], 1), score

    x, score = encoded({name: value[task, :length] for name, value in support.item.items()})
    if not negatives:
        residual = 2 * (np.asarray(support.label)[task, :length] - score)
    else:
        kept = np.flatnonzero(np.asarray(negatives.weight[task]) > 0)
        other_x, other = encoded({name: tf.gather(value, kept) for name, value in negatives.item.items()})
        corrected = np.exp(other - np.asarray(negatives.log_expected)[kept])
        total = np.exp(score) + corrected.sum()
        residual = np.concatenate([1 - np.exp(score) / total, -(corrected / total[:, None]).sum(0)])
        x = np.concatenate([x, other_x])
    h = mlp(learner._set_encoder, np.concatenate([residual[:, None], x], 1))
    return (residual[:, None] * h).sum(0) / (length + SHRINKAGE)


@pytest.mark.parametrize("feedback", ["explicit", "implicit"])
@pytest.mark.parametrize("kind", [TwoTower, Ranker])
@pytest.mark.usefixtures("float64")
def test_the_support_modulates_each_layer_as_worked_out_by_hand(settings, first_batch, by_the_book, kind, feedback):
    setting = settings[feedback]
    widths = {"user_hidden": (4,)} if kind is TwoTower else {"hidden": (4,)}
    model = by_the_book.randomise(kind(setting.vocabulary, 3, dropout=0.0, id_dropout=0.0, **widths))
    learner = NeuralProcess(model, representation=3, hidden=(5,), shrinkage=SHRINKAGE)
    shifts = [shift for shift in learner._shifts if shift is not None]
    for place, variable in enumerate((*learner._scales, *shifts, learner._set_encoder.dense[0].bias)):
        variable.assign(0.3 * np.random.default_rng(place).normal(size=variable.shape))
    episode = by_the_book.in_float64(first_batch(setting.episodes))
    adapted = learner.adapt(episode.support, episode.support_negatives or None).weights
    for task in range(6):
        r = represented(learner, episode, task)
        assert (r == 0).all() == (int(episode.support.length[task]) == 0)
        for variable, weight, scale, shift in zip(
            learner.adapted_variables, adapted, learner._scales, learner._shifts, strict=True
        ):
            expected = variable.numpy() * (1 + np.tanh(r @ scale.numpy()))  # Columns of a kernel, entries of a bias.
            assert (shift is None) == (len(variable.shape) == 2)
            if shift is not None:
                expected += r @ shift.numpy()
            np.testing.assert_allclose(weight[task], expected, rtol=1e-6, atol=1e-7, err_msg=variable.path)


@pytest.mark.parametrize(
    ("kind", "feedback"),
    [
        ("two_tower", "implicit"),
        ("own", "explicit"),
        pytest.param("ranker", "implicit", marks=pytest.mark.slow),
        pytest.param("two_tower", "explicit", marks=pytest.mark.slow),
    ],
)
@pytest.mark.usefixtures("float64")
def test_the_meta_gradient_is_exact(settings, own_model, first_batch, by_the_book, kind, feedback):
    setting = settings[feedback]
    options = {"dropout": 0.0, "id_dropout": 0.0}
    model = {
        "two_tower": lambda: TwoTower(setting.vocabulary, 3, item_hidden=(), **options),
        "ranker": lambda: Ranker(setting.vocabulary, 3, hidden=(4,), **options),
        "own": lambda: own_model(setting.vocabulary),
    }[kind]()
    learner = NeuralProcess(model, vocabulary=setting.vocabulary, representation=3, hidden=(4,))
    by_the_book.randomise(learner)
    run = by_the_book.compiled(learner, by_the_book.in_float64(first_batch(setting.episodes)))
    gradients = run()[1]
    own = [not any(v is w for w in model.trainable_variables) for v in learner.trainable_variables]
    assert sum(own) == 5 + len(learner._scales) + sum(shift is not None for shift in learner._shifts)
    by_the_book.assert_matches_finite_differences(run, learner.trainable_variables, gradients)
    still = [v.path for v, g, o in zip(learner.trainable_variables, gradients, own, strict=True) if o and not g.any()]
    assert not still


@pytest.mark.parametrize("feedback", ["explicit", "implicit"])
def test_the_order_of_the_support_does_not_matter(settings, first_batch, feedback):
    setting = settings[feedback]
    support = first_batch(setting.episodes).support
    support.length[:] = support.label.shape[1]
    turned = support._replace(
        item={name: value[:, ::-1] for name, value in support.item.items()}, label=support.label[:, ::-1]
    )
    learner = NeuralProcess(TwoTower(setting.vocabulary, 3))
    for a, b in zip(learner.adapt(support).weights, learner.adapt(turned).weights, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("feedback", "share"), [("explicit", 0.6), ("implicit", 0.95)])
def test_training_makes_adapted_scores_of_new_users_better(feedback, share):
    data = tmr.data.load("synthetic", n_users=200, n_items=80, interactions_per_user=16, feedback=feedback, seed=0)
    split = tmr.data.cold_users(data, seed=0)
    vocabulary = tmr.data.Vocabulary.fit(split.train)
    options = {"query": 6, "negatives": 30 if feedback == "implicit" else 0}
    learner = NeuralProcess(TwoTower(vocabulary, 8))
    learner.compile(keras.optimizers.Adam(0.01))
    training = user_episodes(split.train, vocabulary, support=(0, 8), steps_per_epoch=60, **options)
    learner.fit(training, epochs=1, verbose=0)
    losses = [learner.evaluate(user_episodes(split.test, vocabulary, support=k, **options), verbose=0) for k in (0, 8)]
    assert losses[1] < share * losses[0]


def test_equal_seeds_give_equal_set_encoders(explicit, values_of):
    model = TwoTower(explicit.vocabulary, 3)
    first, again, other = (values_of(NeuralProcess(model, seed=seed)) for seed in (5, 5, 6))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert sum(not np.array_equal(a, b) for a, b in zip(first, other, strict=True)) >= 5


def test_ids_that_a_functional_model_looks_up_itself_are_no_numbers(explicit, own_model, first_batch):
    """Where a table adapts, its ids cross the border between the model's parts; the set encoder sees the rest."""
    support = first_batch(explicit.episodes).support
    widths = {}
    for adapted in (None, "item_id_table"):
        learner = NeuralProcess(own_model(explicit.vocabulary), vocabulary=explicit.vocabulary, adapted=adapted)
        widths[adapted] = learner._set_encoder.width
        weights = learner.adapt(support).weights
        for weight, start in zip(weights, learner.starting_weights(6), strict=True):
            np.testing.assert_array_equal(weight[0], start[0])
            assert not np.array_equal(weight[3], start[3])
    assert widths == {None: 8, "item_id_table": 5}  # Residual, segment vector, price, and item vector or none.


def test_weight_decay_leaves_the_logarithm_alone(explicit):
    learner = NeuralProcess(TwoTower(explicit.vocabulary, 3), shrinkage=5.0)
    optimizer = keras.optimizers.AdamW(learning_rate=0.1, weight_decay=0.5)
    learner.compile(optimizer)
    before = learner._log_shrinkage.numpy(), learner._scales[0].numpy()
    optimizer.apply_gradients([(tf.zeros_like(v), v) for v in learner.trainable_variables])
    assert learner._log_shrinkage.numpy() == before[0]
    assert not np.array_equal(learner._scales[0].numpy(), before[1])


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(1)

    def call(self, features):
        return self.dense(features["x"])


def test_a_model_that_runs_whole_is_refused():
    model = Subclassed()
    model({"x": np.ones((1, 2), np.float32)})
    message = "`model` must be in two parts, like a TwoTower or Ranker, or a functional .* Received: Subclassed"
    with pytest.raises(ValueError, match=message):
        NeuralProcess(model)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"representation": 0}, "`representation` must be at least 1. Received: representation=0"),
        ({"hidden": (4, 0)}, r"`hidden` must hold widths of at least 1. Received: hidden=\(4, 0\)"),
        ({"shrinkage": 0.0}, "`shrinkage` must be greater than 0 and finite. Received: shrinkage=0.0"),
        ({"shrinkage": float("nan")}, "`shrinkage` must be greater than 0 and finite. Received: shrinkage=nan"),
    ],
)
def test_options_out_of_range_are_refused(explicit, option, message):
    with pytest.raises(ValueError, match=message):
        NeuralProcess(TwoTower(explicit.vocabulary, 3), **option)
