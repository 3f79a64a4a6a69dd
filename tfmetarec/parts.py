"""What a configuration names: models, learners and their options, found because their files exist."""

import difflib
import importlib
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import keras

from tfmetarec.config import Config, ConfigError
from tfmetarec.meta import GradientLearner

# For learners that take gradient steps: one file of settings serves to compare learners of every kind.
INNER = ("inner_steps", "inner_learning_rate", "shrinkage")
# Arguments that `build_learner` gives itself, so that nobody can give them among the options.
_GIVEN = {
    "model": ("vocabulary", "embedding_dim", "dropout", "id_dropout", "seed"),
    "meta": ("model", "vocabulary", "contrast", "seed"),
}


def check_parts(config: Config) -> None:
    """Finds models, learners and options that are not there, or do not go together."""
    model, meta, training = config.model, config.meta, config.training
    if training.temperature is not None and training.loss not in (None, "sampled_softmax"):
        raise ConfigError(
            f"`training.temperature` is that of the sampled softmax. Received: training.loss={training.loss}"
        )
    _check_options("model", find("models", model.kind), model.options)
    _check_options("meta", find("meta", meta.algorithm), meta.options)
    if meta.rival is not None:
        find("meta", meta.rival)


def find(package: str, name: str) -> Any:
    """The model class of `tfmetarec/PACKAGE/NAME.py`: a new file is found because it exists.

    Raises:
        ValueError: naming the files there are.
    """
    found = _model_in(package, name) if name in _files(package) else None
    if found is None:
        known = [file for file in _files(package) if _model_in(package, file) is not None]
        nearest = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {nearest[0]!r}?" if nearest else f"There are: {', '.join(known)}."
        raise ValueError(f"nothing in `{package}` is called {name!r}; {hint}")
    return found


def _files(package: str) -> list[str]:
    return sorted(path.stem for path in (Path(__file__).parent / package).glob("[a-z]*.py"))


def _model_in(package: str, name: str) -> Any:
    """The Keras model that is called as its file is, but for case and underscores: `MAML` in `maml.py`."""
    module = importlib.import_module(f"tfmetarec.{package}.{name}")
    for value in vars(module).values():
        own = isinstance(value, type) and value.__module__ == module.__name__ and issubclass(value, keras.Model)
        if own and value.__name__.lower() == name.replace("_", ""):
            return value
    return None


@contextmanager
def naming_options(path: str, options: dict[str, Any]) -> Iterator[None]:
    """Says where a value of a wrong type was given. Without options a `TypeError` is a mistake of ours."""
    try:
        yield
    except TypeError as error:
        if not options:
            raise
        raise ConfigError(f"`{path}`: {error}. Received: {options}") from error


def _check_options(section: str, found: Any, options: dict[str, Any]) -> None:
    """Refuses options that a model or learner does not take, or that have a key of their own."""
    given = {*_GIVEN[section], *(INNER if issubclass(found, GradientLearner) else ())}
    known = [name for name in parameters_of(found) if name not in given]
    for option in options:
        if option in known:
            continue
        path, listed = f"{section}.options.{option}", ", ".join(known)
        if option in type(getattr(Config(), section)).model_fields:
            raise ConfigError(f"`{path}` has a key of its own: `{section}.{option}`. Known options: {listed}.")
        nearest = difflib.get_close_matches(option, known, n=1)
        hint = f"did you mean `{section}.options.{nearest[0]}`? " if nearest else ""
        raise ConfigError(f"unknown key `{path}`; {hint}Known: {listed}.")


def parameters_of(found: Any) -> list[str]:
    """Named parameters of a class's `__init__` and of those that it hands the rest to, up to Keras's own."""
    names: dict[str, None] = {}
    for base in found.__mro__:
        if base is keras.Model:
            break
        if "__init__" in vars(base):
            parameters = inspect.signature(base.__init__).parameters.values()
            names.update((p.name, None) for p in parameters if p.kind is not p.VAR_KEYWORD)
            if all(p.kind is not p.VAR_KEYWORD for p in parameters):
                break
    return [name for name in names if name != "self"]
