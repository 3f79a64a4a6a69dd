import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfmetarec.meta import MAML, paths
from tfmetarec.meta.meta_sgd import MetaSGD
from tfmetarec.meta.paths import LowRank, Step
from tfmetarec.models import Ranker, TwoTower

ENGINES = ("low_rank", "formed", "auto", "vectorized")


def functional(vocabulary, units=5, activation="tanh", use_bias=True, shared=False, deeper=False):
    """User and item through Dense layers of their own, or through one that both share, and then through more."""
    sizes = {spec.name: spec.size for spec in (*vocabulary.specs.user, *vocabulary.specs.item)}
    inputs = {name: keras.Input((), dtype="int32", name=name) for name in ("segment", "item_id")}
    sides = [keras.layers.Embedding(sizes[name], 3, name=f"{name}_table")(inputs[name]) for name in inputs]

    def dense(name, width=units, activation=activation):
        return keras.layers.Dense(width, activation, use_bias=use_bias, name=name)

    if shared:
        both = dense("both", 4)
        sides = [both(side) for side in sides]
    hidden = dense("hidden")(keras.layers.Concatenate()(sides))
    hidden = dense("deeper")(hidden) if deeper else hidden
    return keras.Model(inputs, dense("score", 1, None)(hidden))


MODELS = {
    "ranker": lambda vocabulary: Ranker(vocabulary, 3, hidden=(4, 5), dropout=0.0, id_dropout=0.0),
    "two_tower": lambda vocabulary: TwoTower(vocabulary, 3, user_hidden=(5,), dropout=0.0, id_dropout=0.0),
    "tanh": functional,
    "relu": lambda vocabulary: functional(vocabulary, activation="relu"),
    "gelu": lambda vocabulary: functional(vocabulary, activation="gelu"),
    "softmax": lambda vocabulary: functional(vocabulary, activation="softmax"),
    "no bias": lambda vocabulary: functional(vocabulary, use_bias=False),
    "shared": lambda vocabulary: functional(vocabulary, shared=True),
}


def outcome(learner, episode, **changes):
    """The query loss of each task after adapting, and the gradient of their mean by every trainable variable."""

    def run():
        with tf.GradientTape() as tape:
            support, query = learner.encode(episode)
            weights = learner.descend(support, training=True, **changes)[-1]
            losses, _ = learner._path.losses(weights, query, learner.task_loss)
            mean = tf.reduce_mean(losses)
        variables = [variable.value for variable in learner.trainable_variables]
        gradients = tape.gradient(mean, variables, unconnected_gradients="zero")
        return losses, [tf.convert_to_tensor(gradient) for gradient in gradients]

    losses, gradients = tf.function(run, autograph=False)()
    return [losses.numpy(), *(gradient.numpy() for gradient in gradients)]


def of_every_engine(model, episode, vocabulary, engines=ENGINES, algorithm=MAML, changes=None, **options):
    """`outcome` by engine, all of one model and with the same options."""
    found = {}
    for engine in engines:
        learner = algorithm(model, vocabulary=vocabulary, engine=engine, **options)
        found[engine] = outcome(learner, episode, **(changes or {}))
    return found


def assert_alike(found, tolerance=1e-9):
    expected = found["vectorized"]
    for engine, values in found.items():
        for a, b in zip(values, expected, strict=True):
            scale = max(np.abs(b).max(), 1.0)
            np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * scale, err_msg=engine)
    assert all(np.isfinite(value).all() for value in expected)
    assert sum(value.any() for value in expected) >= 2


@pytest.fixture
def problem(settings, first_batch, by_the_book):
    """A model with random weights and one batch of episodes, both in the precision that is set."""

    def make(kind, feedback="explicit", scale=0.4):
        setting = settings[feedback]
        model = by_the_book.randomise(MODELS[kind](setting.vocabulary), scale=scale)
        episode = first_batch(setting.episodes)
        if keras.config.floatx() == "float64":
            episode = by_the_book.in_float64(episode)
        return model, tf.nest.map_structure(tf.constant, episode), setting.vocabulary

    return make


# Each kind of model by default with one set-up, chosen so that all numbers of steps, orders and feedbacks come up.
QUICK = {
    ("ranker", 1, True, "explicit"),
    ("two_tower", 1, True, "implicit"),
    ("no bias", 5, True, "explicit"),
    ("relu", 2, False, "explicit"),
    ("gelu", 1, True, "explicit"),
    ("softmax", 1, True, "implicit"),
    ("tanh", 1, False, "implicit"),
    ("shared", 2, True, "explicit"),
}


def set_ups():
    found = []
    for each in itertools.product(MODELS, (1, 2, 5), (True, False), ("explicit", "implicit")):
        if each[1] == 5 and each[3] == "implicit":
            continue  # Long, and of nothing new.
        name = "-".join([each[0], str(each[1]), "second" if each[2] else "first", each[3]])
        found.append(pytest.param(*each, id=name, marks=[] if each in QUICK else [pytest.mark.slow]))
    return found


@pytest.mark.parametrize(("kind", "steps", "second_order", "feedback"), set_ups())
@pytest.mark.usefixtures("float64")
def test_every_engine_gives_the_same_losses_and_meta_gradients(problem, kind, steps, second_order, feedback):
    options = {"inner_steps": steps, "inner_learning_rate": 0.2}
    assert_alike(of_every_engine(*problem(kind, feedback), changes={"second_order": second_order}, **options))


@pytest.mark.parametrize("kind", ["two_tower", *(pytest.param(kind, marks=pytest.mark.slow) for kind in MODELS)])
def test_engines_agree_in_single_precision(problem, kind):
    assert_alike(of_every_engine(*problem(kind), inner_steps=2, inner_learning_rate=0.1), 1e-5)


@pytest.mark.parametrize(
    ("adapted", "number"), [("hidden/kernel", 1), ("bias", 2), pytest.param("score/bias", 1, marks=pytest.mark.slow)]
)
@pytest.mark.usefixtures("float64")
def test_engines_agree_where_only_a_kernel_or_only_a_bias_adapts(problem, adapted, number):
    given = problem("tanh")
    assert len(MAML(given[0], adapted=adapted).adapted_variables) == number
    assert_alike(of_every_engine(*given, adapted=adapted, inner_steps=2, inner_learning_rate=0.2))


@pytest.mark.usefixtures("float64")
def test_engines_agree_on_a_step_that_is_of_second_order_in_part(problem):
    given = problem("tanh")
    model, episode, vocabulary = given
    options = {"inner_steps": 2, "inner_learning_rate": 0.2}
    changes = {"second_order": tf.constant(0.5, tf.float64)}
    half = of_every_engine(*given, ("auto", "vectorized"), changes=changes, **options)
    assert_alike(half)
    learner = MAML(model, vocabulary=vocabulary, inner_steps=1, inner_learning_rate=0.2)
    # One step: the derivative is linear in how much of the second derivative counts.
    none, some, whole = (
        outcome(learner, episode, second_order=order) for order in (False, tf.constant(0.5, tf.float64), True)
    )
    for a, b, c in zip(none, some, whole, strict=True):
        np.testing.assert_allclose(b, (a + c) / 2, rtol=1e-9, atol=1e-12)
    assert not np.allclose(none[-2], whole[-2])


# -- clipping ------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("float64")
def test_engines_clip_alike(problem):
    given, options = problem("tanh"), {"inner_steps": 2, "inner_learning_rate": 0.2}
    hitting = of_every_engine(*given, inner_clipnorm=0.3, **options)
    assert_alike(hitting)
    never = of_every_engine(*given, ("auto",), **options)
    assert not np.allclose(hitting["auto"][0], never["auto"][0])


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.usefixtures("float64")
def test_a_clipped_step_has_the_given_length_and_a_shorter_one_is_left_alone(problem, engine):
    model, episode, vocabulary = problem("tanh")
    lengths = {}
    for clipnorm in (None, 1.0):
        learner = MAML(model, vocabulary=vocabulary, engine=engine, inner_learning_rate=0.5, inner_clipnorm=clipnorm)
        moved = zip(learner.adapt(episode.support).weights, learner.starting_weights(1), strict=True)
        lengths[clipnorm] = np.sqrt(sum(np.sum((w - s).numpy().reshape(6, -1) ** 2, 1) for w, s in moved)) / 0.5
    assert (lengths[None] > 1).any()
    assert (lengths[None][1:5] > 0).all()
    np.testing.assert_allclose(lengths[1.0], np.minimum(lengths[None], 1.0), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.usefixtures("float64")
def test_a_clipped_gradient_of_zero_stays_finite_with_its_derivative(problem, engine):
    model, episode, vocabulary = problem("tanh")
    nothing = episode._replace(support=episode.support._replace(length=tf.zeros(6, tf.int32)))
    learner = MAML(model, vocabulary=vocabulary, engine=engine, inner_learning_rate=0.2, inner_clipnorm=0.1)
    plain = MAML(model, vocabulary=vocabulary, engine=engine, inner_learning_rate=0.2)
    for a, b in zip(outcome(learner, nothing), outcome(plain, nothing), strict=True):
        assert np.isfinite(a).all()
        np.testing.assert_allclose(a, b, rtol=1e-12)


# -- rates and the proximal term -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("clipnorm", [None, pytest.param(0.5, marks=pytest.mark.slow)])
@pytest.mark.usefixtures("float64")
def test_engines_agree_on_the_proximal_term(problem, clipnorm):
    options = {"inner_steps": 3, "inner_learning_rate": 0.2, "inner_clipnorm": clipnorm}
    given = problem("tanh")
    found = of_every_engine(*given, changes={"proximal": 1.5}, **options)
    assert_alike(found)
    assert not np.allclose(found["auto"][0], of_every_engine(*given, ("auto",), **options)["auto"][0])


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.usefixtures("float64")
def test_the_proximal_step_is_the_hand_worked_one(problem, engine):
    model, episode, vocabulary = problem("tanh")
    learner = MAML(model, vocabulary=vocabulary, engine=engine)
    support, _ = learner.encode(episode, training=False)
    path, start = learner._path, [variable.numpy() for variable in learner.adapted_variables]
    rates = [tf.constant(0.1, tf.float64)] * len(start)
    how = Step(learner.task_loss, rates)
    points = [path.start()]
    for _ in range(2):
        points.append(path.step(points[-1], support, how))
    held = path.formed(path.step(points[1], support, how._replace(proximal=2.0)), tf.constant(6))
    once, twice = (path.formed(point, tf.constant(6)) for point in points[1:])
    for ours, plain, before, s in zip(held, twice, once, start, strict=True):
        # The plain step, and then rate * proximal of the way that the first step went.
        np.testing.assert_allclose(ours, plain - 0.1 * 2.0 * (before - s), rtol=1e-9, atol=1e-12)
    from_start = path.step(path.start(), support, how._replace(proximal=2.0))  # Where there is nothing to hold to.
    for ours, plain in zip(path.formed(from_start, tf.constant(6)), once, strict=True):
        np.testing.assert_allclose(ours, plain, rtol=1e-12)


@pytest.mark.parametrize(
    ("algorithm", "options"),
    [
        (MAML, {"inner_learning_rate": {"hidden": 0.3, "score/kernel": 0.05, "bias$(?<!hidden/bias)": 0.01}}),
        (MAML, {"learned_rate": "layer", "inner_learning_rate": 0.2}),
        (MetaSGD, {"inner_learning_rate": 0.2}),
        pytest.param(MAML, {"learned_rate": "scalar", "rate_per_step": True}, marks=pytest.mark.slow),
        pytest.param(MetaSGD, {"inner_clipnorm": 0.4, "inner_learning_rate": 0.2}, marks=pytest.mark.slow),
    ],
    ids=["dict", "layer", "parameter", "scalar per step", "parameter clipped"],
)
@pytest.mark.usefixtures("float64")
def test_engines_agree_on_rates_of_every_kind(problem, algorithm, options):
    found = of_every_engine(*problem("tanh"), algorithm=algorithm, inner_steps=2, **options)
    assert_alike(found)
    assert all(value.any() for value in found["auto"][1:])  # Among them the gradients of learned rates.


@pytest.mark.usefixtures("float64")
def test_engines_agree_on_the_proximal_term_under_a_rate_for_every_parameter(problem):
    given = problem("tanh")
    assert_alike(of_every_engine(*given, algorithm=MetaSGD, inner_steps=2, changes={"proximal": 1.5}))


# -- the form of kernels -----------------------------------------------------------------------------------------------------


def ranks(episode, vocabulary, units, steps, engine):
    """After so many steps, the rank of the kernels `(6, units)`, `(units, units)` and `(units, 1)`; 0 if formed."""
    model = functional(vocabulary, units=units, deeper=True)
    learner = MAML(model, vocabulary=vocabulary, engine=engine, inner_steps=steps)
    support, _ = learner.encode(tf.nest.map_structure(tf.constant, episode), training=False)
    weights = learner.descend(support, training=True)[-1]
    kernels = [w for w, v in zip(weights, learner.adapted_variables, strict=True) if v.name == "kernel"]
    return [kernel.left.shape[1] if isinstance(kernel, LowRank) else 0 for kernel in kernels]


def test_low_rank_holds_factors_and_formed_holds_kernels(explicit, first_batch):
    episode = first_batch(explicit.episodes)
    assert episode.support.label.shape[1] == 4
    # The rows that the first layer sees are the same at every step, so its factors add up.
    assert ranks(episode, explicit.vocabulary, 5, 3, "low_rank") == [4, 12, 12]
    assert ranks(episode, explicit.vocabulary, 5, 3, "formed") == [0, 0, 0]


@pytest.mark.parametrize(
    ("units", "steps", "expected"),
    [
        (12, 1, [0, 4, 0]),  # 4 * (6 + 12) = 72 = 6 * 12: equal is not fewer. 4 * (12 + 12) = 96 < 144
        (13, 1, [4, 4, 0]),  # 4 * (6 + 13) = 76 < 78 = 6 * 13
        (13, 2, [4, 0, 0]),  # 8 * (13 + 13) = 208 > 169 = 13 * 13
        (17, 2, [4, 8, 0]),  # 8 * (17 + 17) = 272 < 289 = 17 * 17
        (8, 1, [0, 0, 0]),  # 4 * (8 + 8) = 64 = 8 * 8
    ],
)
def test_auto_takes_whichever_form_multiplies_less(explicit, first_batch, units, steps, expected):
    assert ranks(first_batch(explicit.episodes), explicit.vocabulary, units, steps, "auto") == expected


@pytest.mark.parametrize(("engine", "expected"), [("low_rank", False), ("formed", True), ("vectorized", True)])
def test_low_rank_never_makes_a_kernel_of_each_task(explicit, first_batch, engine, expected):
    """In no operation of its graph, those of functions that it calls among them, nor of the meta-gradient's."""
    episode = tf.nest.map_structure(tf.constant, first_batch(explicit.episodes))
    learner = MAML(
        functional(explicit.vocabulary, units=17), vocabulary=explicit.vocabulary, engine=engine, inner_steps=2
    )
    support, query = learner.encode(episode, training=False)
    graph = tf.function(learner._solve, autograph=False).get_concrete_function(support, query).graph
    shapes, graphs = set(), [graph]
    while graphs:
        graph = graphs.pop()
        graphs += [function.graph for function in graph._functions.values() if function.graph is not None]
        for operation in graph.get_operations():
            shapes |= {tuple(output.shape) for output in operation.outputs if output.shape.rank is not None}
    assert (6, 4, 17) in shapes  # The walk sees something: the rows of six tasks.
    kernels = {shape for shape in shapes if sorted(shape, key=str) == sorted((6, 6, 17), key=str)}
    assert bool(kernels) == expected


# -- tasks side by side ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=[*ENGINES, pytest.param("implicit low_rank", marks=pytest.mark.slow)])
def case(request, settings, first_batch):
    """A learner of each engine with its support, and `score`: support in, scores of the catalogue `(6, I)` out."""
    setting = settings["implicit" if " " in request.param else "explicit"]
    learner = MAML(
        functional(setting.vocabulary), vocabulary=setting.vocabulary, engine=request.param.split()[-1], inner_steps=2
    )

    def score(support):
        return learner.score(learner.adapt(support), setting.vocabulary.catalogue).numpy()

    return learner, first_batch(setting.episodes).support, score


def test_padding_changes_nothing_in_any_engine(case):
    _, support, score = case
    past = np.arange(4) >= support.length[:, None]
    item = {
        name: np.where(past.reshape(past.shape + (1,) * (value.ndim - 2)), np.roll(value, 2, axis=0)[:, ::-1], value)
        for name, value in support.item.items()
    }
    assert (item["item_id"] != support.item["item_id"]).any()
    garbage = support._replace(item=item, label=np.where(past, np.nan, support.label))
    np.testing.assert_array_equal(score(garbage), score(support))


def test_neighbours_change_nothing_in_any_engine(case):
    _, support, score = case
    alone, order = score(support), np.array([4, 2, 0, 3, 5, 1])
    moved = tf.nest.map_structure(lambda value: value[order], support)
    np.testing.assert_allclose(score(moved), alone[order], rtol=1e-5, atol=1e-6)
    repeated = tf.nest.map_structure(lambda value: np.repeat(value[3:4], 6, axis=0), support)
    np.testing.assert_allclose(score(repeated), np.repeat(alone[3:4], 6, axis=0), rtol=1e-5, atol=1e-6)


def test_no_variable_changes_while_any_engine_adapts(case, values_of):
    learner, support, score = case
    before = values_of(learner)
    adapted = score(support)
    assert not np.allclose(adapted[1:5], score(support._replace(length=0 * support.length))[1:5], atol=1e-6)
    for a, b in zip(before, values_of(learner), strict=True):
        np.testing.assert_array_equal(a, b)


def test_labels_that_are_no_numbers_are_refused_by_task_in_any_engine(case):
    learner, support, _ = case
    for task, wrong in ((3, np.nan), (4, np.inf)):
        label = support.label.copy()
        label[task, 0] = wrong
        with pytest.raises(
            ValueError, match=f"support labels must be finite. Received NaN or infinity in task {task}."
        ):
            learner.adapt(support._replace(label=label))


def test_an_engine_that_needs_dense_layers_refuses_others(explicit):
    with pytest.raises(
        ValueError, match="`engine` 'low_rank' needs a model of which only Dense layers adapt. Received: Func"
    ):
        MAML(functional(explicit.vocabulary), adapted="table", engine="low_rank")
    with pytest.raises(
        ValueError, match="`engine` must be one of auto, low_rank, formed, vectorized. Received: engine='fast'"
    ):
        MAML(functional(explicit.vocabulary), engine="fast")


def test_a_layer_over_rows_of_unknown_number_is_differentiated_twice_like_any_other():
    rng = np.random.default_rng(0)
    inputs, kernel, bias = (rng.normal(size=size).astype(np.float32) for size in ((2, 3, 4), (2, 4, 5), (2, 5)))

    def plain(inputs, kernel, bias):
        return tf.matmul(inputs, kernel) + bias[:, None]

    def derivatives(layer):
        def run(*values):
            with tf.GradientTape() as outer:
                outer.watch(values)
                with tf.GradientTape() as inner:
                    inner.watch(values)
                    loss = tf.reduce_sum(tf.nn.tanh(layer(*values)) ** 2)
                first = inner.gradient(loss, values)
                squared = tf.add_n([tf.reduce_sum(gradient**2) for gradient in first])
            return *first, *outer.gradient(squared, values)

        specs = [tf.TensorSpec([None, None, 4]), tf.TensorSpec([None, 4, 5]), tf.TensorSpec([None, 5])]
        return tf.function(run, input_signature=specs)(inputs, kernel, bias)

    for found, expected in zip(derivatives(paths._affine), derivatives(plain), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
