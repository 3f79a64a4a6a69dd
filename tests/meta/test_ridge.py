import keras
import numpy as np
import pytest
import sklearn.linear_model
import tensorflow as tf

import tfmetarec as tmr
from tfmetarec.meta.paths import EncodedNegatives
from tfmetarec.meta.ridge import Ridge, solve
from tfmetarec.models import Ranker, TwoTower
from tfmetarec.tasks import Support, user_episodes

OPTIONS = {"regularization": 0.7, "level_regularization": 0.3, "unobserved": 5.0, "scale": 2.0}


def linear_model(**options):
    """Scores `0.5 x - 1 y + 0.25 z + 2`."""
    inputs = {"x": keras.Input((3,), name="x")}
    model = keras.Model(inputs, keras.layers.Dense(1, name="score", **options)(inputs["x"]))
    if model.get_layer("score").use_bias:
        model.set_weights([np.array([[0.5], [-1.0], [0.25]]), np.array([2.0])])
    return model


def start(x):
    return x @ [0.5, -1.0, 0.25] + 2.0


def linear_ridge(**options):
    """A `Ridge` of that model; the initial values of Keras are single precision even in double."""
    learner = Ridge(linear_model(), **options)
    for name, value in options.items():
        learner._logarithms[name].assign(np.log(value))
    return learner


def made_up_support(lengths, rows, seed=0):
    rng = np.random.default_rng(seed)
    tasks = len(lengths)
    item = {"item_id": np.zeros((tasks, rows), np.int32), "x": rng.normal(size=(tasks, rows, 3))}
    label = rng.normal(size=(tasks, rows))
    label[np.arange(rows) >= np.array(lengths)[:, None]] = np.nan
    return Support({"user_id": np.zeros(tasks, np.int32)}, item, label, np.array(lengths, np.int32))


def with_one(x):
    return np.concatenate([x, np.ones_like(x[..., :1])], -1)


# Three rows are solved for among themselves, eight in the four dimensions.
@pytest.mark.parametrize(("lengths", "rows"), [([3, 1, 2, 0], 3), ([8, 1, 4, 0], 8)])
@pytest.mark.usefixtures("float64")
def test_ratings_are_fitted_as_scikit_learn_fits_them(lengths, rows):
    learner = linear_ridge(regularization=0.7, level_regularization=0.7)
    support = made_up_support(lengths, rows)
    kernel, bias = (weight.numpy() for weight in learner.adapt(support).weights)
    candidates = np.random.default_rng(1).normal(size=(5, 3))
    scores = learner.score(learner.adapt(support), {"item_id": np.zeros(5, np.int32), "x": candidates}).numpy()
    for task, length in enumerate(lengths):
        x, label = support.item["x"][task, :length], support.label[task, :length]
        if length == 0:
            np.testing.assert_array_equal(kernel[task, :, 0], [0.5, -1.0, 0.25])
            np.testing.assert_array_equal(bias[task], [2.0])
            np.testing.assert_allclose(scores[task], start(candidates), rtol=1e-14)
            continue
        fitted = sklearn.linear_model.Ridge(0.7, fit_intercept=False, solver="svd").fit(with_one(x), label - start(x))
        np.testing.assert_allclose(kernel[task, :, 0] - [0.5, -1.0, 0.25], fitted.coef_[:3], rtol=0, atol=1e-12)
        np.testing.assert_allclose(bias[task, 0] - 2.0, fitted.coef_[3], rtol=0, atol=1e-12)
        np.testing.assert_allclose(scores[task], start(candidates) + fitted.predict(with_one(candidates)), atol=1e-12)


@pytest.mark.usefixtures("float64")
def test_one_rating_moves_level_and_vector_by_their_regularization():
    support = Support(
        {"user_id": np.zeros(1, np.int32)},
        {"item_id": np.zeros((1, 1), np.int32), "x": np.array([[[2.0, 0.0, 0.0]]])},
        np.array([[7.0]]),
        np.array([1], np.int32),
    )
    kernel, bias = linear_ridge(regularization=4.0, level_regularization=0.5).adapt(support).weights
    # The residual is 7 - 3 = 4, and change = P^-1 phi 4 / (1 + phi P^-1 phi) with phi P^-1 phi = 2^2 / 4 + 1 / 0.5 = 3.
    np.testing.assert_allclose(kernel[0, :, 0], [0.5 + 2.0 / 4.0 * 4.0 / 4.0, -1.0, 0.25], rtol=1e-14)
    np.testing.assert_allclose(bias[0], [2.0 + 1.0 / 0.5 * 4.0 / 4.0], rtol=1e-14)


def test_rows_among_themselves_and_dimensions_give_the_same_solution():
    rng = np.random.default_rng(0)
    phi, target = rng.normal(size=(6, 4, 9)), rng.normal(size=(6, 4))
    weight = (np.arange(4) < np.array([4, 3, 2, 1, 0, 4])[:, None]).astype(float)
    weight[5] = [0.5, 2.0, 1.0, 3.0]
    half = rng.normal(size=(9, 9))
    penalty = half @ half.T + 0.1 * np.eye(9)
    few = solve(*map(tf.constant, (phi, target, weight, penalty)))
    padded = [np.pad(value, [(0, 0), (0, 8)] + [(0, 0)] * (value.ndim - 2)) for value in (phi, target, weight)]
    many = solve(*map(tf.constant, (*padded, penalty)))
    each = solve(*map(tf.constant, (phi, target, weight, np.repeat(penalty[None], 6, axis=0))))
    for task in range(6):
        normal = penalty + (phi[task].T * weight[task]) @ phi[task]
        expected = np.linalg.solve(normal, phi[task].T @ (weight[task] * target[task]))
        for found in (few, many, each):
            np.testing.assert_allclose(found[task], expected, rtol=1e-9, atol=1e-12)
    assert (few.numpy()[4] == 0).all()
    assert (many.numpy()[4] == 0).all()


def test_equal_rows_under_a_small_penalty_are_solved_in_single_precision():
    phi = np.repeat(np.random.default_rng(0).normal(size=(1, 1, 30)), 6, axis=1).astype(np.float32)
    for rows in (6, 60):
        tiled = tf.constant(np.tile(phi, (1, rows // 6, 1)))
        found = solve(tiled, tf.ones((1, rows)), tf.ones((1, rows)), 1e-6 * tf.eye(30))
        assert found.dtype == tf.float32
        np.testing.assert_allclose(tf.linalg.matvec(tiled, found), np.ones((1, rows)), rtol=1e-5)


# -- implicit feedback --------------------------------------------------------------------------------------------------


def item_features(model, vocabulary, user):
    """`phi` of the whole catalogue but its unknown item, and the starting point's scores, for one user."""
    item = model.encode_item(vocabulary.catalogue).numpy()[1:].astype(np.float64)
    user = model.encode_user({name: value[None] for name, value in user.items()}).numpy()
    if isinstance(model, TwoTower):
        return with_one(item[:, :-2]), item @ model.head(tf.constant(user)).numpy()[0]
    x = np.concatenate([np.repeat(user, len(item), axis=0), item[:, :-1]], -1)
    *hidden, last = model.head.tower.dense
    for layer in hidden:
        x = np.maximum(x @ layer.kernel.numpy() + layer.bias.numpy(), 0)
    return with_one(x), (x @ last.kernel.numpy() + last.bias.numpy())[:, 0] + item[:, -1]


@pytest.mark.parametrize("kind", [TwoTower, Ranker])
@pytest.mark.usefixtures("float64")
def test_purchases_are_folded_in_as_als_folds_them_in(implicit, first_batch, by_the_book, kind):
    """Equation 4 of Hu, Koren & Volinsky over the full catalogue, which is what the contrast items are here."""
    widths = {"user_hidden": (4,)} if kind is TwoTower else {"hidden": (4,)}
    model = by_the_book.randomise(kind(implicit.vocabulary, 3, dropout=0.0, id_dropout=0.0, **widths))
    learner = Ridge(model, **OPTIONS)
    support = first_batch(implicit.episodes).support
    scores = learner.score(learner.adapt(support), implicit.vocabulary.catalogue).numpy()[:, 1:]
    items = scores.shape[1]
    np.testing.assert_array_equal(learner.contrast_items, np.arange(1, items + 1))
    absent = OPTIONS["unobserved"] / items
    for task, length in enumerate(support.length):
        y, before = item_features(model, implicit.vocabulary, {n: v[task] for n, v in support.user.items()})
        bought = support.item["item_id"][task, :length] - 1
        assert len(set(bought)) == length
        confidence, preference = np.full(items, absent), np.zeros(items)
        confidence[bought], preference[bought] = 1 + absent, 1.0
        penalty = np.diag([OPTIONS["regularization"]] * (y.shape[1] - 1) + [OPTIONS["level_regularization"]])
        x = np.linalg.solve((y.T * confidence) @ y + penalty, y.T @ (confidence * preference))
        change = OPTIONS["scale"] / (1 + absent) * y @ x
        np.testing.assert_allclose(scores[task], before + change, rtol=1e-6, atol=1e-6)  # Features are single.
        assert (np.abs(change).max() > 0.1) == (length > 0)


@pytest.mark.parametrize("kind", [TwoTower, Ranker])
def test_what_is_drawn_stands_for_the_whole_catalogue(implicit, kind):
    vocabulary = implicit.vocabulary
    learner = Ridge(kind(vocabulary, 3), vocabulary=vocabulary)
    items = len(vocabulary.popularity) - 1
    catalogue = learner._cut.encode_item(vocabulary.catalogue, training=False)
    user = tf.fill((1, 1, learner.model.user_encoder.width), 0.5)
    known = EncodedNegatives(catalogue[1:], tf.zeros(items), tf.ones((1, items)))
    exact = learner._gram(user, known).numpy()
    if kind is TwoTower:
        assert exact.shape == (4, 4), "one for all tasks"
        phi = with_one(catalogue.numpy()[1:, :3])
        np.testing.assert_allclose(exact, phi.T @ phi / items, rtol=1e-5, atol=1e-7)
    probability = vocabulary.popularity.astype(float) ** 0.75
    probability /= probability.sum()
    rng, draws, count = np.random.default_rng(0), [], 200
    gram = tf.function(lambda n: learner._gram(user, n), autograph=False)
    for _ in range(300):
        drawn = rng.choice(items + 1, count, p=probability)
        log_expected = np.log(count * probability[drawn]).astype(np.float32)
        negatives = EncodedNegatives(tf.gather(catalogue, drawn), tf.constant(log_expected), tf.ones((1, count)))
        draws.append(gram(negatives).numpy())
    error = np.std(draws, axis=0) / np.sqrt(len(draws))
    assert (np.abs(np.mean(draws, axis=0) - exact) <= 4 * error + 1e-6).all()
    assert np.std(draws, axis=0).max() > 0


def test_a_users_own_items_count_in_the_catalogue_as_any_other(implicit, first_batch):
    """What training hides from a task, its query as well, must make no difference to what is served."""
    episode = first_batch(implicit.episodes)
    learner, negatives = Ridge(TwoTower(implicit.vocabulary, 3)), episode.support_negatives
    assert (negatives.weight == 0).any()
    shown = negatives._replace(weight=np.ones_like(negatives.weight))
    for a, b in zip(
        learner.adapt(episode.support, negatives)[0], learner.adapt(episode.support, shown)[0], strict=True
    ):
        np.testing.assert_array_equal(a, b)


def test_implicit_feedback_without_negatives_is_refused(implicit):
    learner = Ridge(TwoTower(implicit.vocabulary, 3))
    learner.compile("adam", "binary_crossentropy")
    episodes = user_episodes(implicit.data, implicit.vocabulary, support=2, query=2, negatives=0)
    with pytest.raises(ValueError, match="implicit feedback needs negatives to estimate what was not bought"):
        learner.meta_gradients(next(iter(episodes.dataset())))


# -- the outer loop -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "feedback", "support"),
    [
        ("two_tower", "explicit", 4),
        ("two_tower", "implicit", 2),
        pytest.param("two_tower", "explicit", 2, marks=pytest.mark.slow),
        pytest.param("two_tower", "implicit", 4, marks=pytest.mark.slow),
        pytest.param("own", "explicit", 4, marks=pytest.mark.slow),
        ("own", "implicit", 4),
        pytest.param("ranker", "explicit", 4, marks=pytest.mark.slow),
        pytest.param("ranker", "implicit", 4, marks=pytest.mark.slow),
    ],
)
@pytest.mark.usefixtures("float64")
def test_the_meta_gradient_is_exact(settings, own_model, first_batch, by_the_book, kind, feedback, support):
    """Four rows against the four dimensions of a `TwoTower` are solved in these, two among themselves."""
    setting = settings[feedback]
    options = {"dropout": 0.0, "id_dropout": 0.0}
    model = {
        "two_tower": lambda: TwoTower(setting.vocabulary, 3, item_hidden=(), **options),
        "ranker": lambda: Ranker(setting.vocabulary, 3, hidden=(4,), **options),
        "own": lambda: own_model(setting.vocabulary),
    }[kind]()
    learner = Ridge(by_the_book.randomise(model), vocabulary=setting.vocabulary, **OPTIONS)
    episode = first_batch(setting.episodes)
    part = episode.support
    episode = episode._replace(
        support=part._replace(
            item={name: value[:, :support] for name, value in part.item.items()},
            label=part.label[:, :support],
            length=np.minimum(part.length, support),
        )
    )
    run = by_the_book.compiled(learner, by_the_book.in_float64(episode))
    gradients = run()[1]
    size = {v.name: np.abs(g).max() for v, g in zip(learner.trainable_variables, gradients, strict=True)}
    learning = {name for name, s in size.items() if name.startswith("log_") and s > 0}
    everywhere, of_purchases = {"log_regularization", "log_level_regularization"}, {"log_unobserved", "log_scale"}
    assert learning == (everywhere | of_purchases if feedback == "implicit" else everywhere)
    by_the_book.assert_matches_finite_differences(run, learner.trainable_variables, gradients)


@pytest.mark.parametrize(("feedback", "share"), [("explicit", 0.5), ("implicit", 0.97)])
def test_training_makes_adapted_scores_of_new_users_better(feedback, share):
    data = tmr.data.load("synthetic", n_users=200, n_items=80, interactions_per_user=16, feedback=feedback, seed=0)
    split = tmr.data.cold_users(data, seed=0)
    vocabulary = tmr.data.Vocabulary.fit(split.train)
    options = {"query": 6, "negatives": 30 if feedback == "implicit" else 0}
    learner = Ridge(TwoTower(vocabulary, 8))
    learner.compile(keras.optimizers.Adam(0.01))
    judged = [user_episodes(split.test, vocabulary, support=k, **options) for k in (0, 8)]
    untrained = [learner.evaluate(episodes, verbose=0) for episodes in judged]
    training = user_episodes(split.train, vocabulary, support=(0, 8), steps_per_epoch=60, **options)
    learner.fit(training, epochs=2, verbose=0)
    losses = [learner.evaluate(episodes, verbose=0) for episodes in judged]
    assert losses[1] < 0.5 * untrained[1]
    assert losses[1] < share * losses[0]


def test_only_the_last_layer_adapts(explicit, own_model):
    models = [
        (TwoTower(explicit.vocabulary, 3, user_hidden=(4,)), ["dense_1/bias", "level/kernel"]),
        (Ranker(explicit.vocabulary, 3, hidden=(4,)), ["dense_1/kernel", "dense_1/bias"]),
        (own_model(explicit.vocabulary), ["score/kernel", "score/bias"]),
    ]
    for model, expected in models:
        learner = Ridge(model, vocabulary=explicit.vocabulary)
        assert sorted("/".join(v.path.split("/")[-2:]) for v in learner.adapted_variables) == sorted(expected)


def test_tasks_about_an_item_are_fitted_too(explicit):
    """All rows of such a task share the item vector, so it and the level move by what the residuals add up to."""
    episodes = tmr.tasks.item_episodes(
        explicit.data, explicit.vocabulary, support=3, query=2, tasks_per_batch=4, seed=0
    )
    support = next(iter(episodes.dataset())).support
    learner = Ridge(TwoTower(explicit.vocabulary, 3))
    changes = [w - v for w, v in zip(learner.adapt(support).weights, learner.adapted_variables, strict=True)]
    level, vector = sorted((change.numpy().reshape(4, -1) for change in changes), key=np.size)
    rows = learner._task_rows(support, False)
    phi = with_one(rows.item.numpy()[:, 0, :3])
    residual = (rows.label - learner.score_rows(learner.starting_weights(4), rows.user, rows.item)).numpy()
    for task, length in enumerate(support.length.numpy()):
        total = residual[task, :length].sum()
        expected = phi[task] * total / (1 + length * phi[task] @ phi[task])  # Both regularizations are 1.
        np.testing.assert_allclose([*vector[task], *level[task]], expected, rtol=1e-4, atol=1e-5)


def test_weight_decay_leaves_logarithms_alone(explicit):
    learner = Ridge(TwoTower(explicit.vocabulary, 3), **OPTIONS)
    optimizer = keras.optimizers.AdamW(learning_rate=0.1, weight_decay=0.5)
    learner.compile(optimizer)
    optimizer.apply_gradients([(tf.zeros_like(v), v) for v in learner.trainable_variables])
    for name, value in OPTIONS.items():
        assert float(learner._value(name)) == pytest.approx(value, rel=1e-6)


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
        lambda v, own: subclassed(),
    ],
    ids=["two_tower", "ranker", "functional", "subclassed"],
)
def test_a_model_that_is_not_linear_in_its_last_layer_is_refused(explicit, own_model, model):
    with pytest.raises(ValueError, match=r"`model` must be linear in its last layer: .* Received: \w+"):
        Ridge(model(explicit.vocabulary, own_model))


@pytest.mark.parametrize("wrong", [0, -1.0, float("inf"), float("nan")])
@pytest.mark.parametrize("name", list(OPTIONS))
def test_options_out_of_range_are_refused(name, wrong):
    with pytest.raises(ValueError, match=f"`{name}` must be greater than 0 and finite. Received: {name}={wrong}"):
        Ridge(linear_model(), **{name: wrong})


def test_what_adapts_cannot_be_chosen():
    with pytest.raises(ValueError, match="`adapted` cannot be chosen: .* Received: adapted='score'"):
        Ridge(linear_model(), adapted="score")
