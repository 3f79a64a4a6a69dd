"""The peers solve the problem that they are given, all the same one, and speak as the benchmark expects."""

import importlib
import importlib.util
import io
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
PEERS = [
    ("jax_vmap", "vmap"),
    ("jax_vmap", "scan"),
    ("torch_func", "vmap"),
    # Compiling takes a C++ compiler and a quarter of a minute; torch warns of what it uses itself.
    pytest.param(
        "torch_func", "compiled", marks=[pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning")]
    ),
    ("torch_loop", "loop"),
    ("tfmetarec_maml", "auto"),
    ("tfmetarec_maml", "vectorized"),
]


def imported(name: str) -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [str(ROOT), *sys.path])  # `benchmarks` is not part of the installed package.
        return importlib.import_module(f"benchmarks.peers.{name}")


problem, worker = imported("problem"), imported("worker")
TINY = problem.Shape(width=5, hidden=4, tasks=3, support=4, query=2, inner_steps=2)


def peer(name, way, weights):
    return module_or_skip(name).WAYS[way](weights, TINY)


def module_or_skip(name):
    package = name.split("_")[0]
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed: pip install .[peers]")
    return imported(name)


@pytest.fixture(scope="module")
def weights():
    """With biases that are not zero, so that one left out is seen."""
    rng = np.random.default_rng(7)
    initial = problem.initial_weights(TINY, seed=0)
    return [w + 0.1 * rng.standard_normal(w.shape).astype("float32") for w in initial]


@pytest.fixture(scope="module")
def batch():
    return problem.batch(TINY, seed=1)


# -- the loss in NumPy, in float64 and with gradients worked out by hand ---------------------------------------


def error_and_gradients(weights, x, y):
    """The mean squared error of the MLP, and its gradients by the chain rule."""
    w1, b1, w2, b2, w3, b3 = weights
    first = np.maximum(x @ w1 + b1, 0)
    second = np.maximum(first @ w2 + b2, 0)
    miss = (second @ w3 + b3)[:, 0] - y
    out = 2 * miss[:, None] / len(y)
    back = out @ w3.T * (second > 0)
    further = back @ w2.T * (first > 0)
    gradients = [x.T @ further, further.sum(0), first.T @ back, back.sum(0), second.T @ out, out.sum(0)]
    return np.mean(miss**2), gradients


def meta_loss(weights, batch):
    losses = []
    for support_x, support_y, query_x, query_y in zip(*batch, strict=True):
        adapted = weights
        for _ in range(TINY.inner_steps):
            _, gradients = error_and_gradients(adapted, support_x, support_y)
            adapted = [w - problem.INNER_LEARNING_RATE * g for w, g in zip(adapted, gradients, strict=True)]
        losses.append(error_and_gradients(adapted, query_x, query_y)[0])
    return np.mean(losses)


def meta_gradient(weights, batch, step=1e-6):
    """The loss and its gradients by central differences, which know nothing of second derivatives."""
    weights, batch = ([np.asarray(array, "float64") for array in arrays] for arrays in (weights, batch))
    gradients = []
    for place, weight in enumerate(weights):
        gradient = np.empty_like(weight)
        for index in np.ndindex(weight.shape):
            ends = []
            for move in (step, -step):
                moved = [w.copy() for w in weights]
                moved[place][index] += move
                ends.append(meta_loss(moved, batch))
            gradient[index] = (ends[0] - ends[1]) / (2 * step)
        gradients.append(gradient)
    return meta_loss(weights, batch), gradients


@pytest.fixture(scope="module")
def expected(weights, batch):
    return meta_gradient(weights, batch)


def assert_same(gradients, expected):
    for gradient, other in zip(gradients, expected, strict=True):
        assert gradient.shape == other.shape
        np.testing.assert_allclose(gradient, other, rtol=1e-4, atol=1e-5 * np.abs(other).max())


def test_a_plain_tensorflow_tape_has_the_loss_and_the_meta_gradient_of_the_reference(weights, batch, expected):
    tf = pytest.importorskip("tensorflow", reason="tensorflow is not installed")

    def error(weights, x, y):
        w1, b1, w2, b2, w3, b3 = weights
        hidden = tf.nn.relu(tf.nn.relu(x @ w1 + b1) @ w2 + b2)
        return tf.reduce_mean(((hidden @ w3 + b3)[:, 0] - y) ** 2)

    variables = [tf.Variable(w) for w in weights]
    with tf.GradientTape() as outer:
        losses = []
        for support_x, support_y, query_x, query_y in zip(*batch, strict=True):
            adapted = [tf.convert_to_tensor(variable) for variable in variables]
            for _ in range(TINY.inner_steps):
                with tf.GradientTape() as tape:
                    tape.watch(adapted)
                    loss = error(adapted, support_x, support_y)
                gradients = tape.gradient(loss, adapted)
                adapted = [w - problem.INNER_LEARNING_RATE * g for w, g in zip(adapted, gradients, strict=True)]
            losses.append(error(adapted, query_x, query_y))
        mean = tf.reduce_mean(losses)
    assert float(mean) == pytest.approx(expected[0], rel=1e-4)
    assert_same([gradient.numpy() for gradient in outer.gradient(mean, variables)], expected[1])


def test_second_derivatives_matter_at_the_tolerance_of_these_tests(weights, batch, expected):
    first_order = [np.zeros_like(w) for w in weights]
    for support_x, support_y, query_x, query_y in zip(*batch, strict=True):
        adapted = weights
        for _ in range(TINY.inner_steps):
            _, gradients = error_and_gradients(adapted, support_x, support_y)
            adapted = [w - problem.INNER_LEARNING_RATE * g for w, g in zip(adapted, gradients, strict=True)]
        _, gradients = error_and_gradients(adapted, query_x, query_y)
        first_order = [total + g / TINY.tasks for total, g in zip(first_order, gradients, strict=True)]
    with pytest.raises(AssertionError):
        assert_same(first_order, expected[1])


# -- every peer ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "way"), PEERS)
def test_a_peer_has_the_loss_and_the_meta_gradient_of_the_reference(name, way, weights, batch, expected):
    own = peer(name, way, weights)
    loss, gradients = own.meta_gradient(batch)
    assert loss == pytest.approx(expected[0], rel=1e-4)
    assert_same(gradients, expected[1])
    assert all((w == given).all() for w, given in zip(own.weights(), weights, strict=True))


@pytest.mark.parametrize(("name", "way"), PEERS)
def test_a_peer_takes_steps_of_adam_and_leaves_the_given_weights_alone(name, way, weights, batch):
    given = [w.copy() for w in weights]
    own = peer(name, way, given)
    rows = own.put(batch)
    current, first, second = ([np.asarray(w, "float64") * scale for w in weights] for scale in (1, 0, 0))
    for count in (1, 2, 3):
        loss, gradients = own.meta_gradient(batch)  # Checked above; Adam turns a tiny one's rounding into whole steps.
        first = [0.9 * m + 0.1 * g for m, g in zip(first, gradients, strict=True)]
        second = [0.999 * v + 0.001 * g.astype("float64") ** 2 for v, g in zip(second, gradients, strict=True)]
        for w, m, v in zip(current, first, second, strict=True):
            w -= 1e-3 * (m / (1 - 0.9**count)) / (np.sqrt(v / (1 - 0.999**count)) + 1e-8)
        assert own.step(rows) == pytest.approx(loss, rel=1e-5)
    for w, other in zip(own.weights(), current, strict=True):
        assert w.dtype == np.float32
        # Keras adds epsilon before it corrects the moments, which shows where a gradient is tiny.
        np.testing.assert_allclose(w, other, rtol=1e-5, atol=1e-5 if name.startswith("tfmetarec") else 2e-6)
    assert all((w == before).all() for w, before in zip(given, weights, strict=True))


@pytest.mark.parametrize(("name", "way"), PEERS)
def test_a_peer_learns(name, way, weights, batch):
    own = peer(name, way, weights)
    losses = [own.step(batch) for _ in range(30)]
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize(("name", "package"), [("jax_vmap", "jax"), ("torch_func", "torch"), ("torch_loop", "torch")])
def test_a_peer_whose_package_is_missing_says_what_to_install(name, package, monkeypatch):
    monkeypatch.delitem(sys.modules, f"benchmarks.peers.{name}", raising=False)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=r"needs (JAX|PyTorch): pip install \.\[peers\]"):
        imported(name)


# -- the worker ----------------------------------------------------------------------------------------------


class Counting:
    """A peer whose loss is the number of its steps."""

    name, version = "counting", "1"

    def __init__(self, weights, shape):
        self.taken = 0

    def put(self, batch):
        return batch

    def step(self, batch):
        self.taken += 1
        return float(self.taken)


def spoken(capsys, *arguments, said=""):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdin", io.StringIO(said))
        worker.main({"only": Counting}, ["--shape", "0", *arguments])
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_a_worker_prints_one_line_with_what_it_measured(capsys):
    (line,) = spoken(capsys, "--warmup", "2", "--steps", "5")
    assert list(line) == ["peer", "version", "compile_s", "step_ms", "peak_growth_mb", "losses"]
    assert (line["peer"], line["version"], line["losses"]) == ("counting", "1", [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0])
    assert len(line["step_ms"]) == 5
    assert line["peak_growth_mb"] >= 0


def test_a_serving_worker_answers_each_number_with_so_many_times_and_ends_with_its_input(capsys):
    ready, *turns = spoken(capsys, "--serve", "--warmup", "3", said="2\n4\n")
    assert (len(ready["step_ms"]), ready["losses"]) == (2, [1.0, 2.0, 3.0])
    assert [len(times) for times in turns] == [2, 4]


@pytest.mark.parametrize("line", ["0", "-1", "many", ""])
def test_a_serving_worker_refuses_what_is_no_number_of_steps(line, capsys):
    with pytest.raises(SystemExit):
        spoken(capsys, "--serve", said=f"{line}\n")
    assert f"must be a number of steps, at least 1. Received: {line + chr(10)!r}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--warmup", "1"], "`--warmup` must be at least 2, one step to compile and one not. Received: 1"),
        (["--steps", "0"], "`--steps` must be at least 1. Received: 0"),
        (["--shape", "9"], "argument --shape: invalid choice: 9"),
    ],
)
def test_options_out_of_range_are_refused_in_one_sentence(arguments, sentence, capsys):
    with pytest.raises(SystemExit):
        spoken(capsys, *arguments)
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "way"),
    [("jax_vmap", "scan"), ("torch_func", "vmap"), ("torch_loop", "loop"), ("tfmetarec_maml", "plain")],
)
def test_a_peer_serves_from_a_process_of_its_own(name, way):
    module_or_skip(name)
    command = [sys.executable, "-m", f"benchmarks.peers.{name}", "--shape", "0", "--way", way, "--serve"]
    done = subprocess.run(command, cwd=ROOT, input="1\n2\n", capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    ready, *turns = map(json.loads, done.stdout.splitlines())
    assert ready["peer"] == imported(name).WAYS[way].name
    assert ready["version"] == imported(name).WAYS[way].version
    assert np.isfinite(ready["losses"]).all()
    assert [len(times) for times in turns] == [1, 2]


# -- the problem ---------------------------------------------------------------------------------------------


def test_the_shapes_are_those_of_the_benchmark():
    assert list(map(str, problem.SHAPES)) == [
        "D128 H64, 1 step, 32 tasks",
        "D128 H64, 5 steps, 32 tasks",
        "D512 H512, 1 step, 32 tasks",
        "D512 H512, 3 steps, 32 tasks",
        "D128 H64, 1 step, 256 tasks",
    ]
    assert {(shape.support, shape.query) for shape in problem.SHAPES} == {(20, 10)}


def test_initial_weights_are_he_uniform_with_biases_of_zero():
    shape = problem.SHAPES[0]
    weights = problem.initial_weights(shape, seed=0)
    assert [w.shape for w in weights] == [(128, 64), (64,), (64, 64), (64,), (64, 1), (1,)]
    assert {w.dtype for w in weights} == {np.dtype("float32")}
    for kernel, bias in zip(weights[::2], weights[1::2], strict=True):
        assert not bias.any()
        limit = np.sqrt(6 / len(kernel))
        assert 0.8 * limit < np.abs(kernel).max() <= np.float32(limit)


def test_a_batch_has_rows_of_one_length_and_targets_near_unit_variance():
    shape = problem.SHAPES[0]
    rows = problem.batch(shape, seed=0)
    assert [part.shape for part in rows] == [(32, 20, 128), (32, 20), (32, 10, 128), (32, 10)]
    assert {part.dtype for part in rows} == {np.dtype("float32")}
    assert np.mean(rows.support_x**2) * 128 == pytest.approx(problem.ROW_NORM**2, rel=0.02)
    assert 0.5 < np.var(rows.query_y) < 2


def test_weights_and_batches_repeat_with_their_seed_and_differ_without():
    for made in (problem.initial_weights, problem.batch):
        first, same, other = (made(TINY, seed) for seed in (3, 3, 4))
        assert all((a == b).all() for a, b in zip(first, same, strict=True))
        assert (first[0] != other[0]).any()


@pytest.mark.parametrize("name", ["problem", "worker"])
def test_the_problem_and_the_worker_need_numpy_alone(name):
    forbidden = {"tensorflow", "keras", "jax", "torch", "tfmetarec"}
    code = f"import sys, benchmarks.peers.{name}; print(sorted({forbidden} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
