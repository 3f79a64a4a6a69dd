"""Every Keras class of the package comes back from its config, which is plain JSON."""

import importlib
import inspect
import json
import pkgutil
from dataclasses import replace

import keras
import pytest

import tfmetarec as tmr
from tfmetarec.data import FeatureSpec, FeatureSpecs
from tfmetarec.meta.learner import MetaLearner

SPECS = FeatureSpecs(
    (FeatureSpec("user_id", "id", 1), FeatureSpec("likes", "category_list", 4, 3)),
    (FeatureSpec("item_id", "id", 5), FeatureSpec("price", "number", 1), FeatureSpec("item_level", "number", 1)),
    "explicit",
    3.5,
)


def keras_classes():
    """Every class of `models` and `meta` that Keras can save, found by walking the files."""
    found = []
    for package in (tmr.models, tmr.optimizers, tmr.meta):
        for name in sorted(info.name for info in pkgutil.iter_modules(package.__path__, f"{package.__name__}.")):
            module = importlib.import_module(name)
            for member in vars(module).values():
                own = inspect.isclass(member) and member.__module__ == name
                if own and not member.__name__.startswith("_") and hasattr(member, "get_config"):
                    found.append(member)
    return found


def example(kind):
    """An instance of `kind`, its required arguments filled in by name and the others left alone."""
    filled = {
        "vocabulary": replace(SPECS, feedback="implicit") if kind.__name__ == "Sequence" else SPECS,
        "specs": SPECS.item if kind.__name__ == "ItemEncoder" else SPECS.user[1:],
        "input_dim": 5,
        "output_dim": 3,
        "width": 3,
        "units": 2,
        "user_width": 3,
        "item_width": 4,
        "widths": {"image": 2, "text": 3},
        "loss": "mean_squared_error",
    }
    if issubclass(kind, MetaLearner):
        filled["model"] = tmr.models.TwoTower(SPECS, 3, user_hidden=(3,))
    required = {
        name: filled[name]
        for name, parameter in inspect.signature(kind).parameters.items()
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
    }
    return kind(**required)


BASES = ("MetaLearner", "GradientLearner", "RowSparseOptimizer")
CLASSES = [kind for kind in keras_classes() if kind.__name__ not in BASES]


def test_the_walk_finds_layers_models_learners_and_losses():
    assert {"ListPooling", "TwoTower", "UserTower", "Ranker", "MAML", "Reptile", "SampledSoftmax"} <= {
        kind.__name__ for kind in CLASSES
    }


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_a_class_comes_back_from_its_config_as_plain_json(kind):
    made = example(kind)
    config = made.get_config()
    text = json.dumps(config)
    again = kind.from_config(json.loads(text))
    assert json.dumps(again.get_config()) == text
    assert json.dumps(config) == text, "from_config must not change what it is given"


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_a_class_is_registered_under_the_package_name(kind):
    assert keras.saving.get_registered_name(kind) == f"tfmetarec>{kind.__name__}"


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_the_config_holds_every_argument_of_the_constructor(kind):
    config = example(kind).get_config()
    arguments = [
        name
        for ancestor in kind.__mro__
        if ancestor.__module__.startswith("tfmetarec") and "__init__" in vars(ancestor)
        for name, parameter in inspect.signature(ancestor).parameters.items()
        if parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
    ]
    # The vocabulary of a learner travels as an asset beside the config.
    missing = set(arguments) - set(config) - ({"vocabulary"} if issubclass(kind, MetaLearner) else set())
    assert not missing
