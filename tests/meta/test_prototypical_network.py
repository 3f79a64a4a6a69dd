import keras
import numpy as np
import pytest
import tensorflow as tf

import tfmetarec as tmr
from tfmetarec.meta import PrototypicalNetwork
from tfmetarec.models import Ranker, TwoTower
from tfmetarec.tasks import Support, user_episodes

TEMPERATURE, SHRINKAGE = 0.3, 1.5


def linear_model(**options):
    inputs = {"x": keras.Input((2,), name="x")}
    model = keras.Model(inputs, keras.layers.Dense(1, name="score", **options)(inputs["x"]))
    if model.get_layer("score").use_bias:
        model.set_weights([np.array([[0.5], [-1.0]]), np.array([2.0])])
    return model


def made_up_support():
    """Two tasks of two and no rows; under the model above they score 3 and 1.5."""
    x = np.array([[[2.0, 0.0], [1.0, 1.0], [9.0, 9.0]], [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]])
    label = np.array([[5.0, 1.0, np.nan], [1.0, 1.0, 1.0]])
    item = {"item_id": np.zeros((2, 3), np.int32), "x": x}
    return Support({"user_id": np.zeros(2, np.int32)}, item, label, np.array([2, 0], np.int32))


def moved(phi, liked, disliked, temperature=TEMPERATURE):
    """The change of score as it is defined, from squared distances."""
    distance = [((phi - c) ** 2).sum(-1) for c in (liked, disliked)]
    return temperature / 2 * (distance[1] - distance[0])


def with_one(x):
    return np.concatenate([x, np.ones_like(x[..., :1])], -1)


@pytest.mark.usefixtures("float64")
def test_prototypes_and_scores_are_the_hand_worked_ones():
    learner = PrototypicalNetwork(linear_model(), temperature=TEMPERATURE, shrinkage=SHRINKAGE)
    learner._global.assign([0.1, 0.2, 0.3])
    candidates = np.array([[1.0, 0.0], [0.0, 1.0], [2.0, -3.0]])
    state = learner.adapt(made_up_support())
    scores = learner.score(state, {"item_id": np.zeros(3, np.int32), "x": candidates}).numpy()
    # Residuals 2 (label - score): 2 (5 - 3) = 4 and 2 (1 - 1.5) = -1, beside 1.5 at the global prototype.
    liked = (4 * np.array([2.0, 0.0, 1.0]) + 1.5 * np.array([0.1, 0.2, 0.3])) / 5.5
    disliked = (1 * np.array([1.0, 1.0, 1.0]) + 1.5 * np.array([0.1, 0.2, 0.3])) / 2.5
    start = np.array([2.5, 1.0, 6.0])
    np.testing.assert_allclose(scores[0], start + moved(with_one(candidates), liked, disliked), rtol=1e-7)
    np.testing.assert_array_equal(scores[1], start)
    np.testing.assert_allclose(state.weights[0][0, :, 0], [0.5, -1.0] + TEMPERATURE * (liked - disliked)[:2], rtol=1e-7)


def last_inputs(model, user, item):
    """The inputs of a ranker's last layer, and its scores."""
    x = np.concatenate([np.broadcast_to(user, (*item.shape[:-1], user.shape[-1])), item[..., :-1]], -1)
    *hidden, last = model.head.tower.dense
    for layer in hidden:
        x = np.maximum(x @ layer.kernel.numpy() + layer.bias.numpy(), 0)
    return with_one(x), (x @ last.kernel.numpy() + last.bias.numpy())[..., 0] + item[..., -1]


def by_hand(learner, episode, task, candidates):
    """Scores of candidates of one task, and those of the starting point."""
    model, support, negatives = learner.model, episode.support, episode.support_negatives
    length = int(support.length[task])
    user = model.encode_user({name: value[task : task + 1] for name, value in support.user.items()}).numpy()

    def features(item):
        item = model.encode_item(item).numpy()
        if isinstance(model, Ranker):
            return last_inputs(model, user, item)
        query = model.head(tf.constant(user)).numpy()[0]
        return with_one(item[:, :-2]), item @ query

    phi, score = features({name: value[task, :length] for name, value in support.item.items()})
    if not negatives:
        residual = 2 * (support.label[task, :length].numpy() - score)
    else:
        kept = np.flatnonzero(np.asarray(negatives.weight[task]) > 0)
        other_phi, other = features({name: tf.gather(value, kept) for name, value in negatives.item.items()})
        corrected = np.exp(other - np.asarray(negatives.log_expected)[kept])
        total = np.exp(score) + corrected.sum()
        residual = np.concatenate([1 - np.exp(score) / total, -(corrected / total[:, None]).sum(0)])
        phi = np.concatenate([phi, other_phi])
    prototypes = []
    for weight in (np.maximum(residual, 0), np.maximum(-residual, 0)):
        summed = weight @ phi + SHRINKAGE * learner._global.numpy()
        prototypes.append(summed / (weight.sum() + SHRINKAGE))
    candidate_phi, start = features(candidates)
    return start + moved(candidate_phi, *prototypes), start


@pytest.mark.parametrize("feedback", ["explicit", "implicit"])
@pytest.mark.parametrize("kind", [TwoTower, Ranker])
@pytest.mark.usefixtures("float64")
def test_scores_are_those_of_the_definition(settings, first_batch, by_the_book, kind, feedback):
    setting = settings[feedback]
    widths = {"user_hidden": (4,)} if kind is TwoTower else {"hidden": (4,)}
    model = by_the_book.randomise(kind(setting.vocabulary, 3, dropout=0.0, id_dropout=0.0, **widths))
    learner = PrototypicalNetwork(model, temperature=TEMPERATURE, shrinkage=SHRINKAGE)
    learner._global.assign(np.linspace(-0.5, 0.5, learner._global.shape[0]))
    episode = by_the_book.in_float64(first_batch(setting.episodes))
    candidates = setting.vocabulary.catalogue
    scores = learner.score(learner.adapt(episode.support, episode.support_negatives or None), candidates).numpy()
    for task in range(6):
        expected, start = by_hand(learner, episode, task, candidates)
        np.testing.assert_allclose(scores[task], expected, rtol=1e-6, atol=1e-7)  # Features come in single precision.
        assert (int(episode.support.length[task]) == 0) == np.allclose(expected, start, atol=1e-6)


@pytest.mark.usefixtures("float64")
def test_the_change_is_a_direction_in_which_the_loss_falls():
    """`sum r * change = temperature / 2 * M * |c+ - c-|^2`, wherever the global prototype lies."""
    rng = np.random.default_rng(0)
    x, label = rng.normal(size=(5, 4, 2)), rng.normal(size=(5, 4))
    item = {"item_id": np.zeros((5, 4), np.int32), "x": x}
    support = Support({"user_id": np.zeros(5, np.int32)}, item, label, np.full(5, 4, np.int32))
    learner = PrototypicalNetwork(linear_model(), temperature=TEMPERATURE, shrinkage=SHRINKAGE)
    learner._global.assign(rng.normal(size=3))
    start = x @ [0.5, -1.0] + 2
    change = learner.score(learner.adapt(support), item).numpy() - start
    residual, phi = 2 * (label - start), with_one(x)
    for task in range(5):
        weights = np.maximum(residual[task], 0), np.maximum(-residual[task], 0)
        g = SHRINKAGE * learner._global.numpy()
        liked, disliked = ((w @ phi[task] + g) / (w.sum() + SHRINKAGE) for w in weights)
        mass = np.abs(residual[task]).sum() + 2 * SHRINKAGE
        expected = TEMPERATURE / 2 * mass * ((liked - disliked) ** 2).sum()
        assert residual[task] @ change[task] == pytest.approx(expected, rel=1e-7)


@pytest.mark.parametrize(
    ("kind", "feedback"),
    [
        ("two_tower", "explicit"),
        ("own", "implicit"),
        pytest.param("ranker", "explicit", marks=pytest.mark.slow),
        pytest.param("two_tower", "implicit", marks=pytest.mark.slow),
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
    learner = PrototypicalNetwork(by_the_book.randomise(model), vocabulary=setting.vocabulary)
    learner._global.assign(np.linspace(-0.5, 0.5, learner._global.shape[0]))
    run = by_the_book.compiled(learner, by_the_book.in_float64(first_batch(setting.episodes)))
    gradients = run()[1]
    assert all(np.abs(g).max() > 0 for g in gradients[-3:]), "temperature, shrinkage and global prototype must learn"
    by_the_book.assert_matches_finite_differences(run, learner.trainable_variables, gradients)


@pytest.mark.parametrize("feedback", ["explicit", "implicit"])
def test_the_order_of_the_support_does_not_matter(settings, first_batch, feedback):
    setting = settings[feedback]
    support = first_batch(setting.episodes).support
    support.length[:] = support.label.shape[1]
    turned = support._replace(
        item={name: value[:, ::-1] for name, value in support.item.items()}, label=support.label[:, ::-1]
    )
    learner = PrototypicalNetwork(TwoTower(setting.vocabulary, 3))
    for a, b in zip(learner.adapt(support).weights, learner.adapt(turned).weights, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("feedback", "share"), [("explicit", 0.6), ("implicit", 0.95)])
def test_training_makes_adapted_scores_of_new_users_better(feedback, share):
    data = tmr.data.load("synthetic", n_users=200, n_items=80, interactions_per_user=16, feedback=feedback, seed=0)
    split = tmr.data.cold_users(data, seed=0)
    vocabulary = tmr.data.Vocabulary.fit(split.train)
    options = {"query": 6, "negatives": 30 if feedback == "implicit" else 0}
    learner = PrototypicalNetwork(TwoTower(vocabulary, 8))
    learner.compile(keras.optimizers.Adam(0.01))
    training = user_episodes(split.train, vocabulary, support=(0, 8), steps_per_epoch=60, **options)
    learner.fit(training, epochs=1, verbose=0)
    losses = [learner.evaluate(user_episodes(split.test, vocabulary, support=k, **options), verbose=0) for k in (0, 8)]
    assert losses[1] < share * losses[0]


def test_only_the_last_layer_adapts(explicit, own_model, first_batch):
    models = [
        (TwoTower(explicit.vocabulary, 3, user_hidden=(4,)), ["dense_1/bias", "level/kernel"]),
        (Ranker(explicit.vocabulary, 3, hidden=(4,)), ["dense_1/kernel", "dense_1/bias"]),
        (own_model(explicit.vocabulary), ["score/kernel", "score/bias"]),
    ]
    for model, expected in models:
        learner = PrototypicalNetwork(model, vocabulary=explicit.vocabulary)
        assert sorted("/".join(v.path.split("/")[-2:]) for v in learner.adapted_variables) == sorted(expected)


def test_weight_decay_leaves_logarithms_alone(explicit, first_batch):
    learner = PrototypicalNetwork(TwoTower(explicit.vocabulary, 3), temperature=0.2, shrinkage=5.0)
    learner._global.assign(tf.ones_like(learner._global))
    optimizer = keras.optimizers.AdamW(learning_rate=0.1, weight_decay=0.5)
    learner.compile(optimizer)
    before = [v.numpy() for v in (learner._log_temperature, learner._log_shrinkage, learner._global)]
    optimizer.apply_gradients([(tf.zeros_like(v), v) for v in learner.trainable_variables])
    after = [v.numpy() for v in (learner._log_temperature, learner._log_shrinkage, learner._global)]
    np.testing.assert_array_equal(after[:2], before[:2])
    assert (after[2] < before[2]).all()


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(1)

    def call(self, features):
        return self.dense(features["x"])


def subclassed():
    model = Subclassed()
    model({"x": np.ones((1, 2), np.float32)})
    return model


@pytest.mark.parametrize(
    "model",
    [
        lambda v, own: TwoTower(v, 3, activation="sigmoid"),
        lambda v, own: Ranker(v, 3, activation="sigmoid"),
        lambda v, own: own(v, activation="sigmoid"),
        lambda v, own: linear_model(use_bias=False),
        lambda v, own: subclassed(),
    ],
    ids=["two_tower", "ranker", "functional", "no_bias", "subclassed"],
)
def test_a_model_that_is_not_linear_in_its_last_layer_is_refused(explicit, own_model, model):
    message = r"`model` must be linear in its last layer: a TwoTower or Ranker .* Received: \w+"
    with pytest.raises(ValueError, match=message):
        PrototypicalNetwork(model(explicit.vocabulary, own_model))


def test_a_frozen_last_layer_is_refused():
    model = linear_model()
    model.get_layer("score").trainable = False
    with pytest.raises(ValueError, match="the last layer must be trainable. Received: 'score' with trainable=False"):
        PrototypicalNetwork(model)


@pytest.mark.parametrize("wrong", [0, -1.0, float("inf"), float("nan")])
@pytest.mark.parametrize("name", ["temperature", "shrinkage"])
def test_options_out_of_range_are_refused(name, wrong):
    with pytest.raises(ValueError, match=f"`{name}` must be greater than 0 and finite. Received: {name}={wrong}"):
        PrototypicalNetwork(linear_model(), **{name: wrong})


def test_what_adapts_cannot_be_chosen():
    with pytest.raises(ValueError, match="`adapted` cannot be chosen: .* Received: adapted='score'"):
        PrototypicalNetwork(linear_model(), adapted="score")
