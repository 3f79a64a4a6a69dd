"""What every meta-learner promises, for every kind of model and feedback. A new file in `meta` joins by existing."""

import importlib
import inspect
import json
import pkgutil
from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfmetarec as tmr
from tfmetarec.export.signatures import DESCRIPTIONS
from tfmetarec.meta.learner import MetaLearner

SHARED = ("learner", "inner_loop")  # What the algorithms have in common is not an algorithm.


def algorithms():
    found = []
    for name in sorted(info.name for info in pkgutil.iter_modules(tmr.meta.__path__)):
        module = importlib.import_module(f"tfmetarec.meta.{name}")
        for member in vars(module).values():
            own = inspect.isclass(member) and member.__module__ == module.__name__
            if own and name not in SHARED and issubclass(member, MetaLearner) and not member.__name__.startswith("_"):
                found.append(member)
    return found


ALGORITHMS = algorithms()
KINDS = [(model, feedback) for model in ("two_tower", "ranker", "own") for feedback in ("explicit", "implicit")]


def combinations(quick):
    """All of them, marked slow but for `quick` kinds of each algorithm, which differ from one to the next."""
    found = []
    for a, algorithm in enumerate(ALGORITHMS):
        chosen = {(a + 3 * place) % len(KINDS) for place in range(quick)}
        for k, (model, feedback) in enumerate(KINDS):
            marks = [] if k in chosen else [pytest.mark.slow]
            name = f"{algorithm.__name__}-{model}-{feedback}"
            found.append(pytest.param((algorithm, model, feedback), id=name, marks=marks))
    return found


def make(combination, settings, own_model, seed=0):
    algorithm, kind, feedback = combination
    vocabulary = settings[feedback].vocabulary
    model = {
        "two_tower": lambda: tmr.models.TwoTower(vocabulary, 4, user_hidden=(8,), seed=seed),
        "ranker": lambda: tmr.models.Ranker(vocabulary, 4, hidden=(5,), seed=seed),
        "own": lambda: own_model(vocabulary, seed),
    }[kind]()
    return algorithm(model, vocabulary=vocabulary)


@pytest.fixture(scope="module", params=combinations(quick=2))
def case(request, settings, own_model):
    """A learner, and `score`: support in, scores of the whole catalogue `(T, I)` after adapting out.

    Always in the same shapes, so that each learner is traced once for all tests.
    """
    setting = settings[request.param[2]]
    learner = make(request.param, settings, own_model)
    if learner.amortised:  # It keeps its promises once it has learned to adapt.
        learner.compile(keras.optimizers.Adam(0.01))
        learner.fit(setting.episodes, epochs=20, verbose=0)

    def score(support):
        return learner.score(learner.adapt(support), setting.vocabulary.catalogue).numpy()

    return SimpleNamespace(learner=learner, score=score, setting=setting, feedback=request.param[2])


@pytest.fixture
def support(case, first_batch):
    """Six tasks with 0, 1, 2, 3, 4 and 0 interactions."""
    return first_batch(case.setting.episodes).support


def changed(support, **parts):
    return support._replace(**{name: np.asarray(value) for name, value in parts.items()})


def support_losses(scores, support, feedback):
    """By hand, per task: squared error, or the softmax of each positive against all items not in the support."""
    losses = []
    for task, length in enumerate(support.length):
        own = support.item["item_id"][task, :length]
        if feedback == "explicit":
            losses.append(((scores[task, own] - support.label[task, :length]) ** 2).mean() if length else 0.0)
        else:
            others = np.setdiff1d(np.arange(1, scores.shape[1]), own)
            total = np.log(np.exp(scores[task, others]).sum())
            losses.append(np.logaddexp(0, total - scores[task, own]).mean() if length else 0.0)
    return np.array(losses)


def test_algorithms_are_found_by_walking_the_files():
    assert {"MAML", "FirstOrderMAML", "ANIL", "Reptile", "FineTuning"} <= {kind.__name__ for kind in ALGORITHMS}


def test_adapting_leaves_the_model_untouched(case, support, values_of):
    before = values_of(case.learner)
    adapted = case.score(support)
    assert not np.array_equal(adapted, case.score(changed(support, length=0 * support.length)))
    for a, b in zip(before, values_of(case.learner), strict=True):
        np.testing.assert_array_equal(a, b)


def test_adapting_lowers_the_support_loss(case, support, first_batch):
    # An amortised learner is taught by queries and never descends on a support: it promises their loss, on the whole.
    judged = first_batch(case.setting.episodes).query if case.learner.amortised else support
    unadapted = case.score(changed(support, length=0 * support.length))
    before = support_losses(unadapted, judged, case.feedback)
    after = support_losses(case.score(support), judged, case.feedback)
    some = support.length > 0
    if case.learner.amortised:
        assert after[some].mean() < before[some].mean()
    else:
        # Equal for a user whose hidden units are all silent: there is no gradient then.
        assert (after[some] <= before[some]).all()
        assert after[some].mean() < before[some].mean()


def test_no_support_gives_exactly_the_starting_point(case, support):
    nothing = changed(support, length=0 * support.length)
    shuffled = nothing._replace(
        item={name: np.roll(value, 1, axis=0) for name, value in support.item.items()}, label=support.label[::-1]
    )
    expected = case.score(nothing)
    np.testing.assert_array_equal(case.score(shuffled), expected)
    np.testing.assert_array_equal(case.score(support)[support.length == 0], expected[support.length == 0])
    catalogue, model = case.setting.vocabulary.catalogue, case.learner.model
    items = len(catalogue["item_id"])
    for task in (0, 3):
        features = {name: np.repeat(value[task : task + 1], items, axis=0) for name, value in support.user.items()}
        features = {**features, **catalogue}
        names = getattr(model, "_inputs_struct", None) or features
        unadapted = model({name: features[name] for name in names})[:, 0]
        np.testing.assert_allclose(expected[task], unadapted, rtol=1e-5, atol=1e-5)


def test_padding_is_inert(case, support):
    past = np.arange(support.label.shape[1]) >= support.length[:, None]
    label = np.where(past, np.nan, support.label)
    garbage = {}
    for name, value in support.item.items():
        other = np.roll(value, 2, axis=0)[:, ::-1]
        garbage[name] = np.where(past.reshape(past.shape + (1,) * (value.ndim - 2)), other, value)
    assert any((garbage[name] != value).any() for name, value in support.item.items())
    np.testing.assert_array_equal(case.score(changed(support, label=label)._replace(item=garbage)), case.score(support))


def test_a_task_does_not_depend_on_its_neighbours(case, support):
    alone = case.score(support)
    order = np.array([4, 2, 0, 3, 5, 1])
    moved = tf.nest.map_structure(lambda value: value[order], support)
    np.testing.assert_allclose(case.score(moved), alone[order], rtol=1e-5, atol=1e-5)
    repeated = tf.nest.map_structure(lambda value: np.repeat(value[3:4], 6, axis=0), support)
    np.testing.assert_allclose(case.score(repeated), np.repeat(alone[3:4], 6, axis=0), rtol=1e-5, atol=1e-5)


def test_embeddings_stay_in_the_inner_loop(case, support):
    moving = case.learner.adapted_variables
    tables = {
        id(variable)
        for layer in case.learner.model._flatten_layers()
        if isinstance(layer, keras.layers.Embedding)
        for variable in layer.variables
    }
    assert tables
    assert not tables & {id(variable) for variable in moving}
    weights = case.learner.adapt(support).weights
    assert [tuple(w.shape[1:]) for w in weights] == [tuple(variable.shape) for variable in moving]


def test_a_learner_comes_back_from_its_config(case):
    config = case.learner.get_config()
    again = type(case.learner).from_config(json.loads(json.dumps(config)))
    assert json.dumps(again.get_config()) == json.dumps(config)


@pytest.mark.parametrize("combination", combinations(quick=1))
def test_equal_seeds_give_equal_weights_after_training(combination, settings, own_model, values_of):
    trained, losses = [], []
    for _ in range(2):
        learner = make(combination, settings, own_model, seed=3)
        start = values_of(learner.model)
        learner.compile(keras.optimizers.Adam(0.01))
        episodes = settings[combination[2]].episodes
        losses.append(learner.fit(episodes, epochs=2, verbose=0).history["loss"])
        trained.append(values_of(learner))
    assert losses[0] == losses[1]
    assert np.isfinite(losses[0]).all()
    for a, b in zip(*trained, strict=True):
        np.testing.assert_array_equal(a, b)
    moved = [not np.array_equal(a, b.numpy()) for a, b in zip(start, learner.model.variables, strict=True)]
    assert sum(moved) >= 4


@pytest.mark.parametrize("combination", combinations(quick=1))
def test_a_saved_learner_adapts_equally(combination, settings, own_model, first_batch, tmp_path):
    setting = settings[combination[2]]
    learner = make(combination, settings, own_model, seed=3)
    learner.compile(keras.optimizers.Adam(0.01))
    support = first_batch(setting.episodes).support
    learner.save(tmp_path / "learner.keras")
    loaded = keras.saving.load_model(tmp_path / "learner.keras")
    assert type(loaded) is type(learner)
    assert json.dumps(loaded.get_config()) == json.dumps(learner.get_config())
    catalogue = setting.vocabulary.catalogue
    scores = [model.score(model.adapt(support), catalogue).numpy() for model in (learner, loaded)]
    np.testing.assert_array_equal(*scores)


# An export takes seconds, for the sake of its clean process. `tests/export` has more that run by default.
@pytest.mark.parametrize("combination", [*combinations(quick=0), (tmr.meta.MAML, "own", "implicit")])
def test_the_exported_signatures_answer_as_the_learner_does(combination, settings, own_model, tmp_path):
    learner = make(combination, settings, own_model)
    export = tmr.export.saved_model(learner, tmp_path / "model", top_k=5, warmup_batches=(1,))
    assert set(export.differences) == set(DESCRIPTIONS) - (set() if learner.is_retrieval else {"embed_users"})
    assert max(export.differences.values()) < 1e-5


# -- the gradient that the outer step follows ---------------------------------------------------------------------------

# By design not the gradient of a loss: these have tests of the fact that holds instead, under `tests/meta`.
NOT_THE_GRADIENT_OF_A_LOSS = ("FirstOrderMAML", "IMAML", "Reptile")


@pytest.fixture
def float64():
    before = keras.config.floatx(), keras.config.dtype_policy()
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    yield
    keras.config.set_floatx(before[0])
    keras.config.set_dtype_policy(before[1])


@pytest.mark.parametrize(
    "combination",
    [
        pytest.param((algorithm, kind, feedback), id=f"{algorithm.__name__}-{kind}-{feedback}", marks=marks)
        for algorithm in ALGORITHMS
        for kind, feedback, marks in (("own", "explicit", []), ("ranker", "implicit", [pytest.mark.slow]))
        if algorithm.__name__ not in NOT_THE_GRADIENT_OF_A_LOSS
    ],
)
@pytest.mark.usefixtures("float64")
def test_the_meta_gradient_agrees_with_finite_differences(combination, settings, own_model, first_batch):
    learner = make(combination, settings, own_model)
    if hasattr(learner, "inner_steps"):
        options = {"inner_steps": 2, "inner_learning_rate": 0.2}
        learner = type(learner)(learner.model, vocabulary=learner.vocabulary, **options)
    rng = np.random.default_rng(0)
    for variable in learner.model.trainable_variables:
        variable.assign(0.4 * rng.normal(size=variable.shape))
    for layer in learner._flatten_layers():  # Of masks that differ from call to call there are no differences.
        for option in ("rate", "id_dropout"):
            if getattr(layer, option, None):
                setattr(layer, option, 0.0)
    episode = first_batch(settings[combination[2]].episodes)
    episode = tf.nest.map_structure(
        lambda value: tf.constant(value, tf.float64 if value.dtype == np.float32 else None), episode
    )
    gradients = tf.function(learner.meta_gradients, autograph=False)(episode)[1]
    objective = tf.function(lambda: learner.outer_loss(*learner.encode(episode)).objective, autograph=False)
    nonzero = 0
    for variable, gradient in zip(learner.trainable_variables, gradients, strict=True):
        start, direction = variable.numpy().copy(), rng.normal(size=variable.shape)
        found = []
        for sign in (1, -1):
            variable.assign(start + sign * 1e-6 * direction)
            found.append(float(objective()))
        variable.assign(start)
        slope = (tf.convert_to_tensor(gradient).numpy() * direction).sum()
        np.testing.assert_allclose(slope, (found[0] - found[1]) / 2e-6, rtol=1e-5, atol=1e-7, err_msg=variable.path)
        nonzero += abs(slope) > 1e-6
    assert nonzero >= len(learner.trainable_variables) // 2
