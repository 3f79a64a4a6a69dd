import json
import os
import re
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfmetarec.meta import MAML
from tfmetarec.models import TwoTower
from tfmetarec.tasks import Episode, Support


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"inner_steps": 0}, "`inner_steps` must be at least 1. Received: inner_steps=0"),
        (
            {"inner_learning_rate": 0.0},
            "`inner_learning_rate` must be greater than 0 and finite. Received: inner_learning_rate=0.0",
        ),
        ({"inner_learning_rate": float("nan")}, "`inner_learning_rate` must be greater than 0"),
        ({"shrinkage": -1.0}, "`shrinkage` must be at least 0. Received: shrinkage=-1.0"),
        ({"contrast": 0}, "`contrast` must be at least 1. Received: contrast=0"),
    ],
)
def test_options_out_of_range_are_refused(explicit, options, message):
    with pytest.raises(ValueError, match=message):
        MAML(TwoTower(explicit.vocabulary, 3), **options)


def test_shrinkage_makes_a_short_support_move_less(explicit, first_batch):
    model, support = TwoTower(explicit.vocabulary, 3), first_batch(explicit.episodes).support
    moves = {}
    for shrinkage in (0.0, 4.0):
        learner = MAML(model, inner_learning_rate=0.1, shrinkage=shrinkage)
        moved = zip(learner.adapt(support).weights, learner.starting_weights(1), strict=True)
        moves[shrinkage] = [np.asarray(w - s).reshape(6, -1) for w, s in moved]
    # One step on n rows: the mean gradient times n / (n + shrinkage).
    shares = np.array([[n / (n + 4)] for n in support.length])
    for plain, shrunk in zip(moves[0.0], moves[4.0], strict=True):
        np.testing.assert_allclose(shrunk, plain * shares, rtol=1e-3, atol=1e-6)
        assert plain[1:5].any()


# -- by hand, on a linear model ----------------------------------------------------------------------------------------------

X, LABEL = np.array([[1.0, 0.5, -1.0], [0.2, -0.3, 0.8]]), np.array([1.0, -0.5])
START = np.array([0.3, -0.2, 0.5])


def linear_learner(algorithm=MAML, **options):
    """A learner whose model is three weights, and the support of one task: the two rows above."""
    inputs = {"x": keras.Input((3,), name="x")}
    model = keras.Model(inputs, keras.layers.Dense(1, use_bias=False, name="linear")(inputs["x"]))
    model.set_weights([START[:, None]])
    item = {"item_id": np.zeros((1, 2), np.int32), "x": X[None]}
    support = Support({"user_id": np.zeros(1, np.int32)}, item, LABEL[None], np.array([2], np.int32))
    return algorithm(model, **options), support


def descended(rates):
    """The weights after a step at each rate: d mean (x w - y)^2 / dw = 2/2 x'(x w - y)."""
    weights = START
    for rate in rates:
        weights = weights - rate * X.T @ (X @ weights - LABEL)
    return weights


def weights_of(learner, support):
    return learner.adapt(support).weights[0].numpy()[0, :, 0]


@pytest.mark.usefixtures("float64")
def test_adapting_takes_its_own_number_of_steps():
    learner, support = linear_learner(inner_steps=1, adaptation_steps=3, inner_learning_rate=0.1)
    np.testing.assert_allclose(weights_of(learner, support), descended([0.1] * 3), rtol=1e-12)
    episode = tf.nest.map_structure(tf.constant, Episode(support, support, {}, {}))
    loss = np.mean((X @ descended([0.1]) - LABEL) ** 2)  # Training takes the one.
    assert float(learner.meta_gradients(episode)[0]) == pytest.approx(loss, rel=1e-12)
    loss = np.mean((X @ descended([0.1] * 3) - LABEL) ** 2)
    assert float(learner.query_loss(episode)[0]) == pytest.approx(loss, rel=1e-12)


@pytest.mark.usefixtures("float64")
def test_each_step_takes_its_own_rate_and_later_ones_the_last():
    options = {"inner_steps": 2, "adaptation_steps": 4, "learned_rate": "scalar", "rate_per_step": True}
    learner, support = linear_learner(**options)
    for (rate,), value in zip(learner._log_rates, (0.3, 0.05), strict=True):
        rate.assign(np.log(value))
    np.testing.assert_allclose(weights_of(learner, support), descended([0.3, 0.05, 0.05, 0.05]), rtol=1e-12)


@pytest.mark.usefixtures("float64")
def test_the_inner_loss_is_used_inside_and_not_outside():
    learner, support = linear_learner(inner_learning_rate=0.1, inner_loss="mean_absolute_error")
    ends = START - 0.1 * X.T @ np.sign(X @ START - LABEL) / 2
    np.testing.assert_allclose(weights_of(learner, support), ends, rtol=1e-12)
    episode = tf.nest.map_structure(tf.constant, Episode(support, support, {}, {}))
    assert float(learner.meta_gradients(episode)[0]) == pytest.approx(np.mean((X @ ends - LABEL) ** 2), rel=1e-12)
    learner.compile("sgd", loss="huber")
    np.testing.assert_allclose(weights_of(learner, support), ends, rtol=1e-12)
    again = type(learner).from_config(json.loads(json.dumps(learner.get_config())))
    assert again.inner_loss.name == learner.inner_loss.name == "mean_absolute_error"


# -- rates -------------------------------------------------------------------------------------------------------------------


def test_rates_may_differ_from_one_variable_to_the_next(explicit, own_model, first_batch):
    model, support = own_model(explicit.vocabulary), first_batch(explicit.episodes).support
    moves = {}
    for name, rate in (("same", 1.0), ("own", {"hidden": 0.5, "score/kernel": 2.0, "score/bias": 0.1})):
        learner = MAML(model, inner_learning_rate=rate)
        moved = zip(learner.adapt(support).weights, learner.starting_weights(1), strict=True)
        moves[name] = [np.asarray(w - s) for w, s in moved]
    for own, same, share in zip(moves["own"], moves["same"], (0.5, 0.5, 2.0, 0.1), strict=True):
        np.testing.assert_allclose(own, share * same, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("rates", "message"),
    [
        (
            {"hidden": 0.1, "scrore": 0.1},
            "`inner_learning_rate` 'scrore' finds none of the variables that adapt: hidden/kernel, .*, score/bias.",
        ),
        ({"hidden": 0.1, "score": 0.1, "kernel": 0.2}, "hidden/kernel is found by 2 of: 'hidden', 'score', 'kernel'."),
        ({"hidden": 0.1, "score/kernel": 0.1}, "must find each variable that adapts once. score/bias is found by 0 of"),
        ({"hidden": 0.1, "score": 0.0}, "`inner_learning_rate` must be greater than 0 and finite."),
        ({}, "hidden/kernel is found by 0 of"),
    ],
)
def test_rates_that_miss_a_variable_or_find_it_twice_are_refused(explicit, own_model, rates, message):
    with pytest.raises(ValueError, match=message):
        MAML(own_model(explicit.vocabulary), inner_learning_rate=rates)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"learned_rate": "row"},
            "`learned_rate` must be 'scalar', 'layer', 'parameter' or None. Received: ",
        ),
        ({"rate_per_step": True}, "`rate_per_step` needs `learned_rate`: fixed rates are the same at every step."),
        ({"adaptation_steps": 0}, "`adaptation_steps` must be at least 1. Received: adaptation_steps=0"),
        ({"inner_clipnorm": 0.0}, "`inner_clipnorm` must be greater than 0. Received: inner_clipnorm=0.0"),
    ],
)
def test_options_that_make_no_sense_are_refused(explicit, options, message):
    with pytest.raises(ValueError, match=message):
        MAML(TwoTower(explicit.vocabulary, 3), **options)


@pytest.mark.parametrize(
    ("options", "number"),
    [
        ({"learned_rate": "scalar"}, [1]),
        ({"learned_rate": "layer"}, [2]),
        ({"learned_rate": "parameter"}, [4]),
        ({"learned_rate": "layer", "rate_per_step": True}, [2, 2, 2]),
        # Variables that start at different rates never share one.
        ({"learned_rate": "scalar", "inner_learning_rate": {"kernel": 0.1, "bias": 0.2}}, [2]),
        ({"learned_rate": "layer", "inner_learning_rate": {"kernel": 0.1, "bias": 0.2}}, [4]),
    ],
)
def test_there_are_as_many_rates_as_asked_for(explicit, own_model, options, number):
    learner = MAML(own_model(explicit.vocabulary), inner_steps=3, **options)
    assert [len({id(rate) for rate in row}) for row in learner._log_rates] == number
    given = options.get("inner_learning_rate", {"": 0.01})
    for rate, variable in zip(learner.inner_rates(0), learner.adapted_variables, strict=True):
        (expected,) = (value for pattern, value in given.items() if pattern in variable.path)
        np.testing.assert_allclose(rate, expected, rtol=1e-6)
        assert rate.shape == (variable.shape if options["learned_rate"] == "parameter" else ())


@pytest.mark.parametrize(
    ("kind", "per_step"),
    [("scalar", True), ("layer", False), ("parameter", False), pytest.param("layer", True, marks=pytest.mark.slow)],
)
@pytest.mark.usefixtures("float64")
def test_the_gradient_of_learned_rates_is_exact(explicit, own_model, first_batch, by_the_book, kind, per_step):
    model = by_the_book.randomise(own_model(explicit.vocabulary))
    episode = by_the_book.in_float64(first_batch(explicit.episodes))
    learner = MAML(
        model,
        vocabulary=explicit.vocabulary,
        inner_steps=2,
        inner_learning_rate=0.2,
        learned_rate=kind,
        rate_per_step=per_step,
    )
    run = by_the_book.compiled(learner, episode)
    gradients = {
        id(variable): gradient for variable, gradient in zip(learner.trainable_variables, run()[1], strict=True)
    }
    rates = list({id(rate): rate for row in learner._log_rates for rate in row}.values())
    of_rates = [gradients[id(rate)] for rate in rates]
    assert all(gradient.any() for gradient in of_rates)
    by_the_book.assert_matches_finite_differences(run, rates, of_rates)


@pytest.mark.parametrize("kind", ["scalar", "layer", pytest.param("parameter", marks=pytest.mark.slow)])
def test_learned_rates_move_in_training_and_stay_positive(explicit, own_model, kind):
    learner = MAML(own_model(explicit.vocabulary), vocabulary=explicit.vocabulary, inner_steps=2, learned_rate=kind)
    learner.compile(keras.optimizers.Adam(0.5), jit_compile=False)  # Steps that would take a plain rate below 0.
    learner.fit(explicit.episodes, epochs=4, verbose=0)
    rates = np.concatenate([np.ravel(rate) for rate in learner.inner_rates(0)])
    assert (rates > 0).all()
    assert np.isfinite(rates).all()
    assert (np.abs(rates - 0.01) > 1e-3).any()


@pytest.mark.parametrize("kind", ["layer", "parameter"])
def test_weight_decay_does_not_touch_learned_rates(explicit, own_model, kind):
    learner = MAML(own_model(explicit.vocabulary), learned_rate=kind, inner_learning_rate=0.2)
    learner.compile(keras.optimizers.AdamW(0.1, weight_decay=2.0))
    kernel = learner.adapted_variables[0].numpy()
    zeros = [tf.zeros_like(variable.value) for variable in learner.trainable_variables]
    learner.optimizer.apply_gradients(zip(zeros, learner.trainable_variables, strict=True))
    for rate in learner.inner_rates(0):
        np.testing.assert_allclose(rate, 0.2, rtol=1e-6)
    np.testing.assert_allclose(learner.adapted_variables[0], 0.8 * kernel, rtol=1e-5)


# -- dropout and recomputing -------------------------------------------------------------------------------------------------


def with_dropout(vocabulary, units=64):
    inputs = {name: keras.Input((), dtype="int32", name=name) for name in ("segment", "item_id")}
    sizes = {spec.name: spec.size for spec in (*vocabulary.specs.user, *vocabulary.specs.item)}
    sides = [keras.layers.Embedding(sizes[name], 3, name=f"{name}_table")(x) for name, x in inputs.items()]
    hidden = keras.layers.Dense(units, "tanh", name="hidden")(keras.layers.Concatenate()(sides))
    return keras.Model(inputs, keras.layers.Dense(1, name="score")(keras.layers.Dropout(0.5, seed=1)(hidden)))


def test_inner_dropout_drops_something_else_for_every_task_and_at_every_call(explicit, first_batch):
    episode = tf.nest.map_structure(
        lambda value: tf.constant(np.repeat(value[3:4], 6, 0)), first_batch(explicit.episodes)
    )
    learner = MAML(with_dropout(explicit.vocabulary), inner_learning_rate=0.1, inner_dropout=True)
    run = tf.function(learner.meta_gradients, autograph=False)
    scores = [run(episode)[2].numpy() for _ in range(2)]
    assert len(np.unique(scores[0].round(5), axis=0)) == 6
    assert not np.allclose(*scores, atol=1e-5)


def test_inner_dropout_changes_training_alone(explicit, first_batch):
    episode = tf.nest.map_structure(tf.constant, first_batch(explicit.episodes))
    model, losses, weights = with_dropout(explicit.vocabulary), [], []
    for dropout in (False, True):
        learner = MAML(model, inner_learning_rate=0.1, inner_dropout=dropout)
        losses.append(float(learner.meta_gradients(episode)[0]))
        weights.append([weight.numpy() for weight in learner.adapt(episode.support).weights])
    assert losses[0] != pytest.approx(losses[1], rel=1e-6)
    for a, b in zip(*weights, strict=True):
        np.testing.assert_array_equal(a, b)


def meta_gradients_with_and_without(model, episode, by_the_book, compile_options=None, seeds=(), **options):
    """Loss and gradients with `recompute` off and on, from the same random state."""
    found, states = [], [seed.numpy() for seed in seeds]
    for recompute in (False, True):
        learner = MAML(model, inner_steps=3, inner_learning_rate=0.2, recompute=recompute, **options)
        if compile_options is not None:
            learner.compile("sgd", **compile_options)
        for seed, state in zip(seeds, states, strict=True):
            seed.assign(state)
        found.append(by_the_book.compiled(learner, episode)())
    return found


@pytest.mark.parametrize(
    ("engine", "feedback", "options", "compile_options"),
    [
        ("low_rank", "explicit", {"learned_rate": "layer"}, None),
        pytest.param("auto", "implicit", {}, None, marks=pytest.mark.slow),
        ("vectorized", "explicit", {"inner_clipnorm": 0.5}, None),
        pytest.param("auto", "implicit", {"learned_rate": "parameter"}, None, marks=pytest.mark.slow),
        pytest.param("auto", "explicit", {}, {"jit_compile": "auto"}, marks=pytest.mark.slow),
        pytest.param("vectorized", "implicit", {}, None, marks=pytest.mark.slow),
    ],
)
@pytest.mark.usefixtures("float64")
def test_recomputing_gives_the_same_meta_gradients(
    settings, own_model, first_batch, by_the_book, engine, feedback, options, compile_options
):
    setting = settings[feedback]
    model = by_the_book.randomise(own_model(setting.vocabulary))
    episode = by_the_book.in_float64(first_batch(setting.episodes))
    plain, again = meta_gradients_with_and_without(
        model, episode, by_the_book, compile_options, vocabulary=setting.vocabulary, engine=engine, **options
    )
    by_the_book.assert_close(again, plain, rtol=1e-9)
    assert sum(gradient.any() for gradient in plain[1]) >= 4


def test_dropout_that_could_not_be_right_is_refused(explicit, own_model):
    model = with_dropout(explicit.vocabulary)
    with pytest.raises(ValueError, match="`inner_dropout` needs the engine of models of which only Dense layers adapt"):
        MAML(model, inner_dropout=True, engine="vectorized")
    with pytest.raises(ValueError, match="`inner_dropout` and `recompute` exclude each other"):
        MAML(model, inner_dropout=True, recompute=True)


MEMORY = """
import sys
import keras, numpy as np, tensorflow as tf
from tfmetarec.meta import MAML
from tfmetarec.tasks import Episode, Support

def megabytes(key):
    return int(next(line for line in open("/proc/self/status") if line.startswith(key)).split()[1]) / 1024

def part(rows):
    item = {"item_id": np.zeros((32, rows), np.int32), "x": rng.normal(size=(32, rows, 64)).astype(np.float32)}
    label = rng.normal(size=(32, rows)).astype(np.float32)
    return Support({"user_id": np.zeros(32, np.int32)}, item, label, np.full(32, rows, np.int32))

steps, recompute, jit_compile = int(sys.argv[1]), sys.argv[2] == "True", {"False": False, "auto": "auto"}[sys.argv[3]]
rng = np.random.default_rng(0)
inputs = {"x": keras.Input((64,), name="x")}
hidden = keras.layers.Dense(64, "tanh")(keras.layers.Dense(64, "tanh")(inputs["x"]))
learner = MAML(keras.Model(inputs, keras.layers.Dense(1)(hidden)), inner_steps=steps, recompute=recompute)
learner.compile("sgd", jit_compile=jit_compile)
run = tf.function(learner.meta_gradients, autograph=False)
episode = tf.nest.map_structure(tf.constant, Episode(part(512), part(8), {}, {}))  # Rows outweigh weights.
run.get_concrete_function(episode)
before = megabytes("VmRSS")
run(episode)
print(megabytes("VmHWM") - before)
"""


def peak_megabytes(folder, steps, recompute, jit_compile=False):
    """What a meta-gradient adds to the memory of a process of its own, or with XLA the temporary memory it plans."""
    environment = {**os.environ, "TF_ENABLE_ONEDNN_OPTS": "0"}
    dump = folder / f"{steps}-{recompute}"
    if jit_compile:  # Compiling takes more memory than running, so the peak of the process would not tell.
        environment["XLA_FLAGS"] = f"--xla_dump_to={dump} --xla_dump_hlo_as_text"
    command = [sys.executable, "-c", MEMORY, str(steps), str(recompute), str(jit_compile)]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=300)
    if not jit_compile:
        return float(ran.stdout)
    plans = [path.read_text() for path in dump.glob("*buffer-assignment.txt")]
    return max(int(size) for plan in plans for size in re.findall(r"size (\d+), preallocated-temp", plan)) / 2**20


@pytest.mark.slow
@pytest.mark.parametrize("jit_compile", [False, "auto"])
def test_memory_hardly_grows_with_the_steps_where_they_are_recomputed(tmp_path, jit_compile):
    plain, recomputed = (
        peak_megabytes(tmp_path, 16, recompute, jit_compile) - peak_megabytes(tmp_path, 2, recompute, jit_compile)
        for recompute in (False, True)
    )
    assert plain > 150
    assert recomputed < plain / 2
