"""Data sets by name: each is a file of this folder with a function `load`, imported when asked for."""

import ast
import importlib
import inspect
import pkgutil
from pathlib import Path
from typing import Any

from tfmetarec.data.errors import DataError, nearest_name
from tfmetarec.data.interactions import Interactions


def available() -> dict[str, str]:
    """Returns the names that `load` knows, each with one line about it.

    Example:
    >>> available()["synthetic"]
    'Made-up interactions with a known right answer: users prefer the items of their own group.'
    """
    # The sources are parsed, not imported: a list must not fail for one data set's missing package.
    docstrings = {
        module.name: ast.get_docstring(
            ast.parse(Path(__file__).with_name(f"{module.name}.py").read_text(encoding="utf-8"))
        )
        for module in pkgutil.iter_modules(__path__)
    }
    return {name: (docstring or "").split("\n")[0] for name, docstring in docstrings.items()}


def load(name: str, **options: Any) -> Interactions:
    """Returns the interactions of a data set.

    Args:
        name: str. One of `available()`.
        **options: what the data set's own `load` takes, such as `folder` for `"movielens"`.

    Raises:
        DataError: if there is no such data set, or it takes no such option, or needs one that is missing.

    Example:
    >>> load("synthetic", n_users=3, n_items=8, n_groups=2, interactions_per_user=2)
    Interactions('synthetic': 6 rows, 3 users, ... items, implicit, ...)
    """
    names = [module.name for module in pkgutil.iter_modules(__path__)]
    if name not in names:
        raise DataError(f"`name` must be one of {', '.join(names)}{nearest_name(name, names)}. Received: name={name!r}")
    source = importlib.import_module(f"{__name__}.{name}").load
    _check_options(name, inspect.signature(source), options)
    return source(**options)


def _check_options(name: str, signature: inspect.Signature, options: dict[str, Any]) -> None:
    """A `TypeError` of Python would name a function that the user never called."""
    known = list(signature.parameters)
    for option in options:
        if option not in known:
            raise DataError(
                f"the data set {name!r} has no option {option!r}{nearest_name(option, known)}. "
                f"It takes: {', '.join(known)}"
            )
    for parameter in signature.parameters.values():
        if parameter.default is parameter.empty and parameter.name not in options:
            raise DataError(f"the data set {name!r} needs the option {parameter.name!r}. It takes: {', '.join(known)}")
