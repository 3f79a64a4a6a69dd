"""What is known about users and items: the name and the kind of every feature."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import polars as pl

from tfmetarec.data.errors import DataError, nearest_name

KINDS = ("id", "category", "category_list", "number", "text", "vector")
"""What a feature can be: one value of many (`id`, `category`), several (`category_list`), one number
(`number`), words (`text`), or a fixed number of floats (`vector`)."""

FEEDBACK = ("explicit", "implicit")
"""`explicit`: the label is a rating. `implicit`: the row itself says that the user chose the item."""


@dataclass(frozen=True)
class Feature:
    """One column of what is known about a user or an item.

    Args:
        name: str. The column's name.
        kind: str, one of `KINDS`.

    Raises:
        DataError: if `kind` is not a kind.

    Example:
    >>> Feature("brand", "categorie")
    Traceback (most recent call last):
    tfmetarec.data.errors.DataError: `kind` must be one of 'id', ...; the nearest name is 'category'. ...
    """

    name: str
    kind: str

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise DataError(f"`name` must be a non-empty string. Received: name={self.name!r}")
        if self.kind not in KINDS:
            kinds = ", ".join(map(repr, KINDS))
            raise DataError(
                f"`kind` must be one of {kinds}{nearest_name(self.kind, KINDS)}. "
                f"Received: kind={self.kind!r} for feature {self.name!r}"
            )


@dataclass(frozen=True)
class Schema:
    """The features of users and of items; models and vocabularies are built from it.

    Each side begins with its id, and no other feature has the kind `id`.

    Args:
        user: tuple of `Feature`; the first is `Feature("user_id", "id")`.
        item: tuple of `Feature`; the first is `Feature("item_id", "id")`.
        feedback: str, `"explicit"` or `"implicit"`.
        item_name: str, optional. The item feature shown to people, such as a title.

    Raises:
        DataError: if a side does not begin with its id or repeats a name, or if `item_name` is no item
            feature.

    Example:
    >>> schema = Schema(user=(Feature("user_id", "id"),),
    ...                 item=(Feature("item_id", "id"), Feature("price", "number")), feedback="implicit")
    >>> Schema.from_dict(schema.to_dict()) == schema
    True
    """

    user: tuple[Feature, ...]
    item: tuple[Feature, ...]
    feedback: str
    item_name: str | None = None

    def __post_init__(self) -> None:
        check_feedback(self.feedback)
        for side, features in (("user", self.user), ("item", self.item)):
            names = [feature.name for feature in features]
            ids = [feature.name for feature in features if feature.kind == "id"]
            if ids != [f"{side}_id"] or names[0] != f"{side}_id":
                raise DataError(
                    f"`{side}` must begin with {side}_id, its only feature of kind 'id'. Received: {side}={features!r}"
                )
            repeated = sorted({name for name in names if names.count(name) > 1})
            if repeated:
                raise DataError(f"`{side}` must name each feature once. Received twice: {repeated}")
        names = [feature.name for feature in self.item[1:]]
        if self.item_name is not None and self.item_name not in names:
            raise DataError(
                f"`item_name` must be an item feature{nearest_name(self.item_name, names)}. "
                f"Received: item_name={self.item_name!r}, item features {names}"
            )

    def to_dict(self) -> dict[str, Any]:
        """Returns the schema as plain JSON."""
        return {
            "user": [[feature.name, feature.kind] for feature in self.user],
            "item": [[feature.name, feature.kind] for feature in self.item],
            "feedback": self.feedback,
            "item_name": self.item_name,
        }

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> "Schema":
        """Returns the schema that `to_dict` wrote."""
        expected = {"user", "item", "feedback", "item_name"}
        if not isinstance(config, Mapping) or set(config) != expected:
            received = sorted(config) if isinstance(config, Mapping) else type(config).__name__
            raise DataError(f"`config` must have the keys {sorted(expected)}. Received: {received}")
        return cls(
            user=tuple(Feature(name, kind) for name, kind in config["user"]),
            item=tuple(Feature(name, kind) for name, kind in config["item"]),
            feedback=config["feedback"],
            item_name=config["item_name"],
        )

    @classmethod
    def infer(
        cls,
        users: pl.DataFrame | None,
        items: pl.DataFrame | None,
        feedback: str,
        kinds: Mapping[str, str] | None = None,
        item_name: str | None = None,
    ) -> "Schema":
        """Returns a schema with a kind for each column, guessed from its type unless `kinds` says it.

        Words, whole numbers and true/false become `category`; floats `number`; lists of words or whole
        numbers `category_list`; lists of floats `vector`; `item_name`'s column `text`.

        Args:
            users: polars DataFrame with `user_id` and a column per feature, or `None`.
            items: polars DataFrame with `item_id` and a column per feature, or `None`.
            feedback: str, `"explicit"` or `"implicit"`.
            kinds: dict from feature name to kind. Where users and items share a name, `"user.name"` and
                `"item.name"` tell them apart.
            item_name: str, optional. See `Schema`.

        Raises:
            DataError: if `kinds` names an unknown feature, or a column's type fits no kind.

        Example:
        >>> items = pl.DataFrame({"item_id": [1], "brand": ["A"], "price": [9.5], "year": [1999]})
        >>> Schema.infer(None, items, "implicit", {"year": "number"}).item[3]
        Feature(name='year', kind='number')
        """
        if not isinstance(kinds, Mapping | None):
            raise DataError(f"`kinds` must map feature names to kinds. Received: kinds={kinds!r}")
        kinds = dict(kinds or {})
        columns = {side: _feature_columns(frame, side) for side, frame in (("user", users), ("item", items))}
        names = [name for side in columns for name in columns[side]]
        known = names + [f"{side}.{name}" for side in columns for name in columns[side]]
        for name in kinds:
            if name not in known:
                raise DataError(
                    f"`kinds` must name features that exist{nearest_name(name, names)}. "
                    f"Received: {name!r}, features {names}"
                )
        if item_name in columns["item"]:
            kinds.setdefault(f"item.{item_name}", kinds.get(str(item_name), "text"))
        sides = {
            side: (
                Feature(f"{side}_id", "id"),
                *(
                    Feature(name, kinds.get(f"{side}.{name}") or kinds.get(name) or _kind_of(name, dtype))
                    for name, dtype in columns[side].items()
                ),
            )
            for side in columns
        }
        return cls(sides["user"], sides["item"], feedback, item_name)


def check_feedback(feedback: str) -> None:
    """Raises unless `feedback` is one of `FEEDBACK`."""
    if feedback not in FEEDBACK:
        raise DataError(f"`feedback` must be 'explicit' or 'implicit'. Received: feedback={feedback!r}")


def _feature_columns(frame: pl.DataFrame | None, side: str) -> dict[str, Any]:
    schema = {} if frame is None else frame.schema
    return {name: dtype for name, dtype in schema.items() if name != f"{side}_id"}


def _kind_of(name: str, dtype: Any) -> str:
    inner = dtype.inner if isinstance(dtype, pl.List | pl.Array) else None
    if inner is not None:
        if inner.is_float():
            return "vector"
        if inner.is_integer() or isinstance(inner, pl.String | pl.Categorical | pl.Enum):
            return "category_list"
    elif dtype.is_float() or dtype.is_decimal():
        return "number"
    elif dtype.is_integer() or isinstance(dtype, pl.String | pl.Categorical | pl.Enum | pl.Boolean):
        return "category"
    raise DataError(
        f"Feature {name!r} has the type {dtype}, which fits no kind; convert the column to numbers, words or "
        "lists of them, or leave it out"
    )
