"""What a request for one user holds, from plain values: ids, labels, raw features and wishes.

Every input has one row, the user's. Nothing goes out as an empty list, which would lose its inner dimensions in
JSON: one padded entry stands for it, with length 0 where there is a length.
"""

import math
import operator
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from tfmetarec.client.arrays import sizes

Infos = Mapping[str, Mapping[str, Any]]
"""The inputs of a signature by name, as its metadata shows them."""

FILTERED = "adapt_and_recommend_filtered"
"""The signature that knows `top_k`, `exclude` and `only`."""

_AS_MANY_AS_EXPORTED = np.iinfo(np.int32).max
"""The model cuts `top_k` to the most that it was exported for."""


def item_ids(argument: str, items: Collection[Any], info: Mapping[str, Any]) -> list[Any]:
    """Ids in the type of the model's: whole numbers, for which their text will do, or text.

    Args:
        argument: what the caller calls them, for the error.
        items: raw ids.
        info: of the input that takes them.

    Raises:
        ValueError: if one is of another type.
    """
    if isinstance(items, str | bytes | Mapping):
        raise ValueError(f"`{argument}` must be a list of ids. Received: {items!r}")
    if info["dtype"] == "DT_STRING":
        for item in items:
            if not isinstance(item, str | bytes):
                raise ValueError(f"`{argument}` must hold text, as the model's ids are. Received: {item!r}")
        return list(items)
    try:
        return [_whole(item) for item in items]
    except (TypeError, ValueError):
        raise ValueError(
            f"`{argument}` must hold whole numbers, as the model's ids are. Received: {list(items)!r}"
        ) from None


def support_inputs(infos: Infos, items: Collection[Any], labels: Sequence[float] | None) -> dict[str, Any]:
    """The interactions that a model adapts to, oldest first; labels are 1 if left out.

    Raises:
        ValueError: if there are not as many labels as items, one is no finite number, or an id is of the wrong type.
    """
    support = item_ids("items", items, infos["support"])
    labels = [1.0] * len(support) if labels is None else list(labels)
    if len(labels) != len(support):
        raise ValueError(f"`labels` must be as many as `items`. Received: {len(labels)} and {len(support)}")
    for label in labels:  # One that is NaN would make every score NaN, and no item would come back.
        if not isinstance(label, int | float | np.number) or not math.isfinite(label):
            raise ValueError(f"`labels` must be finite numbers. Received: {label!r}")
    return {
        "support": [support or [_nothing(infos["support"])]],
        "support_labels": [labels or [0.0]],
        "support_length": [len(support)],
    }


def candidate_inputs(infos: Infos, candidates: Collection[Any]) -> dict[str, Any]:
    """The items to be scored."""
    return {"candidates": [item_ids("candidates", candidates, infos["candidates"])]}


def user_inputs(infos: Infos, user: Mapping[str, Any] | None) -> dict[str, Any]:
    """The raw features of the user; what is left out or `None` is not known.

    Raises:
        ValueError: if the model has no such feature, or a value does not fit its type.
    """
    return _columns("user", {"user": user or {}}, infos, rows=1)


def new_item_inputs(infos: Infos, new_items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The raw features of items that the model has never seen; what is left out or `None` is not known.

    Raises:
        ValueError: if the model has no such feature, or a value does not fit its type.
    """
    named = {f"new_items[{place}]": item for place, item in enumerate(new_items)}
    return {name: [column] for name, column in _columns("item", named, infos, rows=2).items()}


def option_inputs(
    infos: Infos, top_k: int | None, exclude: Collection[Any], only: Mapping[str, Any] | None
) -> dict[str, Any]:
    """How many items are wanted, and which are not.

    Raises:
        ValueError: if `top_k` is less than 1, or `only` names what is no categorical item feature of the model or
            holds anything but text.
    """
    if top_k is not None and top_k < 1:
        raise ValueError(f"`top_k` must be at least 1. Received: top_k={top_k}")
    unwanted = item_ids("exclude", exclude, infos["exclude"])
    inputs: dict[str, Any] = {
        "exclude": [unwanted or [_nothing(infos["exclude"])]],
        "exclude_length": [len(unwanted)],
        "top_k": [_AS_MANY_AS_EXPORTED if top_k is None else top_k],
    }
    inputs |= {name: [[""]] for name in infos if name.startswith("only_")}
    given = {name: _input_name("only", name) for name in only or {}}
    if unknown := sorted(name for name, wire in given.items() if wire not in inputs):
        known = sorted(name.removeprefix("only_") for name in inputs if name.startswith("only_"))
        raise ValueError(f"`only` must name categorical item features of the model: {known}. Received: {unknown}")
    for name, value in (only or {}).items():
        values = [value] if isinstance(value, str | bytes) else value
        texts = isinstance(values, Collection) and all(isinstance(v, str | bytes) for v in values)
        # Empty text is padding on the wire: it would lift the restriction instead of narrowing it.
        if not texts or len(values) == 0 or not all(values):
            raise ValueError(f"`only[{name!r}]` must be text or a list of texts, none empty. Received: {value!r}")
        inputs[given[name]] = [list(values)]
    return inputs


def _columns(side: str, rows_by_argument: Mapping[str, Mapping[str, Any]], infos: Infos, rows: int) -> dict[str, Any]:
    """Columns by input name, from the features that are known of each row.

    Args:
        side: "user" or "item".
        rows_by_argument: raw features by name of each row, under what the caller calls the row.
        infos: of the signature.
        rows: how many dimensions of an input count rows: 1 for users `(B, ...)`, 2 for items `(B, N, ...)`.
    """
    inner = {name: sizes(info)[rows:] for name, info in infos.items() if name.startswith(f"{side}_")}
    lists = {name for name, widths in inner.items() if widths and infos[name]["dtype"] == "DT_STRING"}
    features = [name for name in inner if name.removesuffix("_length") not in lists or name in lists]
    table = []
    for argument, raw in rows_by_argument.items():
        given = {name: _input_name(side, name) for name in raw}
        if unknown := sorted(name for name, wire in given.items() if wire not in features):
            known = sorted(name.removeprefix(f"{side}_") for name in features)
            raise ValueError(f"`{argument}` must hold features of the model: {known}. Received: {unknown}")
        table.append(
            {
                given[name]: _feature(f"{argument}[{name!r}]", value, infos[given[name]]["dtype"], inner[given[name]])
                for name, value in raw.items()
            }
        )
    columns: dict[str, Any] = {}
    for name in features:
        column, empty = [row.get(name) for row in table], _nothing(infos[name])
        if name in lists:
            entries = [value or [] for value in column]
            width = max(1, *map(len, entries))
            columns[f"{name}_length"] = [len(value) for value in entries]
            columns[name] = [[*value, *[empty] * (width - len(value))] for value in entries]
        else:
            not_known = [empty] * max(inner[name][0], 1) if inner[name] else empty
            columns[name] = [not_known if value is None else value for value in column]
    return columns


def _input_name(side: str, feature: str) -> str:
    """An exported input has `_` for what TensorFlow cannot name, such as the space in "Household Size"."""
    return f"{side}_" + re.sub(r"[^A-Za-z0-9_]", "_", feature)


def _feature(argument: str, value: Any, dtype: str, widths: list[int]) -> Any:
    """A raw feature in the type and rank of its input: a scalar, or a list; `None` is not known."""
    if value is None:
        return None
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if not widths:
        return _entry(argument, value, dtype)
    if isinstance(value, str):
        value = [part.strip() for part in value.split(",")] if value.strip() else []
    elif not isinstance(value, list | tuple):
        value = [value]
    entries = [_entry(argument, entry, dtype) for entry in value]
    if widths[0] >= 0 and len(entries) != widths[0]:
        raise ValueError(f"`{argument}` must be a vector of width {widths[0]}. Received: width {len(entries)}")
    return entries


def _entry(argument: str, value: Any, dtype: str) -> Any:
    if dtype == "DT_STRING":
        if isinstance(value, str | bytes):
            return value
        raise ValueError(f"`{argument}` must hold text. Received: {value!r}")
    whole = "INT" in dtype
    try:
        if isinstance(value, str):
            return int(value) if whole else float(value)
    except ValueError:
        pass  # The same mistake as a value of another type.
    else:
        if isinstance(value, int if whole else int | float) and not isinstance(value, bool):
            return value
    raise ValueError(f"`{argument}` must be a {'whole number' if whole else 'number'}. Received: {value!r}")


def _whole(value: Any) -> int:
    """A whole number, from its text or from a float that is one, as a column with gaps has them."""
    if isinstance(value, str | bytes):
        return int(value)
    if isinstance(value, float | np.floating) and value.is_integer():
        return int(value)
    return operator.index(value)


def _nothing(info: Mapping[str, Any]) -> Any:
    """What an input holds where there is nothing: empty text, no number, id 0."""
    return {"DT_STRING": "", "DT_FLOAT": math.nan}.get(info["dtype"], 0)
