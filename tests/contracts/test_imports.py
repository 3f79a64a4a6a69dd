"""Imports go one way. The source is read, not run, so that an import inside a function counts too."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import tfmetarec

PACKAGE = Path(tfmetarec.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))

# What each part may import besides itself: everything to its left, where `|` puts two side by side.
BELOW = {
    "data": set(),
    "tasks": {"data"},
    "models": {"data", "tasks"},
    "optimizers": set(),
    "meta": {"data", "tasks", "models", "optimizers"},
    "transfer": {"data", "tasks", "models", "optimizers"},
}
BELOW["evaluation"] = {*BELOW, "meta", "transfer"}
BELOW["export"] = {*BELOW["evaluation"], "evaluation"}
BELOW["tuning"] = {*BELOW["export"], "export"}
BELOW["server"] = BELOW["client"] = BELOW["config"] = set()
# These put the parts together.
STORY = {
    "parts",
    "search_space",
    "experiment",
    "crossing",
    "run_report",
    "console",
    "cli",
    "quickstart",
    "__main__",
    "__init__",
}


def imported(path):
    """Full names of everything that a module imports, wherever in the file: (name, inside a function)."""
    tree = ast.parse(path.read_text())
    inside = {
        id(n) for f in ast.walk(tree) if isinstance(f, ast.FunctionDef | ast.AsyncFunctionDef) for n in ast.walk(f)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide where a name comes from"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            yield name, id(node) in inside


def part_of(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def ours(path):
    """The parts of the package that a module imports, other than its own."""
    return {name.split(".")[1] for name, _ in imported(path) if name.startswith("tfmetarec.")} - {part_of(path)}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_leftward_only(path):
    part = part_of(path)
    if part in STORY:
        return
    assert part in BELOW, f"say in this test what the new part {part!r} may import"
    assert ours(path) <= BELOW[part], f"{path.name} of {part} imports {sorted(ours(path) - BELOW[part])}"


def test_configuration_is_for_the_story_alone():
    users = {part_of(path) for path in MODULES if "config" in ours(path)}
    assert users <= STORY


def test_nothing_below_the_story_imports_it():
    assert not {part_of(path) for path in MODULES if ours(path) & STORY} - STORY
    assert not ours(PACKAGE / "experiment.py") & {"cli", "quickstart", "crossing"}


def test_this_test_reads_imports_inside_functions(tmp_path):
    module = tmp_path / "module.py"
    module.write_text("import a.b\n\ndef f():\n    from tfmetarec.meta import MAML\n")
    assert list(imported(module)) == [("a.b", False), ("tfmetarec.meta.MAML", True)]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_keras_is_keras_3_and_tfrs_waits_until_it_is_needed(path):
    for name, inside in imported(path):
        assert not f"{name}.".startswith(("tensorflow.keras.", "tf_keras.")), f"{path} imports {name}"
        assert inside or not name.startswith("tensorflow_recommenders"), f"{path} imports {name} at its top"
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and node.attr == "keras":
            assert not (isinstance(node.value, ast.Name) and node.value.id in ("tf", "tensorflow")), (
                f"{path}:{node.lineno}"
            )


def run(code, **environment):
    hidden = {name: value for name, value in os.environ.items() if name != "TF_USE_LEGACY_KERAS"}
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**hidden, "TF_CPP_MIN_LOG_LEVEL": "3", **environment},
    )


def test_importing_the_package_alone_is_quick_and_chooses_the_keras_of_tfrs():
    ran = run(
        "import os, sys, tfmetarec; print(os.environ['TF_USE_LEGACY_KERAS'], "
        "[m for m in ('tensorflow', 'keras', 'numpy', 'polars') if m in sys.modules])"
    )
    assert ran.stdout == "1 []\n", ran.stderr


def test_a_keras_3_chosen_before_is_named_with_what_to_do():
    ran = run("import tensorflow as tf; tf.keras.layers; import tfmetarec")
    assert ran.returncode == 1
    last = ran.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: `tf.keras` has already been used as Keras 3")
    assert (
        "Import tfmetarec before anything that uses `tf.keras`, or set the environment variable TF_USE_LEGACY_KERAS=1"
        in last
    )


def test_tensorflow_and_keras_may_come_first_while_nobody_uses_tf_keras():
    first = "import keras; import tensorflow as tf; tf.keras"
    ran = run(f"{first}; import tfmetarec; import tensorflow_recommenders; print(tfmetarec.__version__)")
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip() == tfmetarec.__version__


def test_all_four_libraries_live_in_one_process():
    ran = run(
        "import tfmetarec, tensorflow_recommenders as tfrs, keras, keras_tuner, tensorflow as tf\n"
        "from tensorflow_serving.apis import predict_pb2\n"
        "model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])\n"
        "index = tfrs.layers.factorized_top_k.BruteForce(k=1)\n"
        "index.index(tf.constant([[1.0], [2.0]]))\n"
        "scores, rows = index(tf.constant([[1.0]]))\n"
        "tuned = keras_tuner.HyperParameters().Int('units', 1, 3)\n"
        "request = predict_pb2.PredictRequest()\n"
        "request.inputs['x'].CopyFrom(tf.make_tensor_proto(model(tf.ones((1, 2))).numpy()))\n"
        "print(keras.__version__[0], tfrs.Model.__mro__[1].__module__.split('.')[0], int(rows[0, 0]), tuned)\n"
    )
    assert ran.stdout.split() == ["3", "tf_keras", "1", "1"], ran.stderr
