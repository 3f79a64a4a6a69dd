"""Who met what, when, and what is known about both: the one table that every later step reads."""

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl

from tfmetarec.data.columns import typed_feature, typed_ids, typed_labels, typed_timestamps
from tfmetarec.data.errors import DataError, first_line, nearest_name
from tfmetarec.data.files import read_mapping
from tfmetarec.data.schema import Schema, check_feedback

COLUMNS = ("user_id", "item_id", "label", "timestamp", "behavior", "domain")
"""The columns that an interaction can have, in their order; the last three are optional."""

DUPLICATES = ("error", "first", "last", "sum")

_PAIR = ("user_id", "item_id", "behavior", "domain")


@dataclass(frozen=True, eq=False, repr=False)
class Interactions:
    """Interactions of users with items, in each user's order of time, with the features of both.

    Immutable: every operation returns a new one. Build it with `from_frames`, `from_files` or `from_parquet`,
    which check what they read; this constructor trusts its arguments.

    Attributes:
        table: polars DataFrame, sorted by user, then time, then the order in which the rows came. `user_id`
            and `item_id` (Int64 or String), `label` (Float32) and, where known, `timestamp` (Int64, seconds
            since 1970), `behavior` (String, such as "purchase") and `domain` (String). A user meets an item
            at most once per behavior and domain.
        users: polars DataFrame with `user_id` and a column per user feature, or `None`.
        items: polars DataFrame with `item_id` and a column per item feature, or `None`.
        schema: `Schema`.
        name: str. Shown in reports.

    Example:
    >>> Interactions.from_frames(pl.DataFrame({"user_id": [1, 1, 2], "item_id": [7, 8, 7]}),
    ...                          feedback="implicit", name="shop")
    Interactions('shop': 3 rows, 2 users, 2 items, implicit, no timestamps)
    """

    table: pl.DataFrame
    users: pl.DataFrame | None
    items: pl.DataFrame | None
    schema: Schema
    name: str = "interactions"

    @classmethod
    def from_frames(
        cls,
        table: Any,
        users: Any = None,
        items: Any = None,
        *,
        feedback: str,
        kinds: Mapping[str, str] | None = None,
        item_name: str | None = None,
        duplicates: str = "error",
        list_separator: str | None = None,
        name: str = "interactions",
    ) -> "Interactions":
        """Returns checked interactions from polars or pandas tables.

        Args:
            table: polars or pandas DataFrame with `user_id` and `item_id` (whole numbers or strings),
                `label` (a finite number; may be missing for implicit feedback, where it is then 1) and
                optionally `timestamp` (seconds since 1970, an ISO date or a datetime), `behavior` and
                `domain`.
            users: DataFrame with `user_id`, each once, and a column per user feature; optional. Users
                without a row are allowed, and so are rows without interactions.
            items: the same for items, with `item_id`.
            feedback: str, `"explicit"` or `"implicit"`.
            kinds: dict from feature name to kind, where the guess of `Schema.infer` is not the right one.
            item_name: str, optional. The column of `items` that is shown to people.
            duplicates: str. What becomes of several rows of one user and item (in one behavior and domain):
                `"error"` refuses them, `"first"` and `"last"` keep one by time (by order, without
                timestamps), `"sum"` adds up their labels and keeps the first time, and is for implicit
                feedback alone. Defaults to `"error"`.
            list_separator: str, optional. Splits strings into the values of a `category_list`.
            name: str. Shown in reports.

        Raises:
            DataError: for anything that would make the data mean something else than it seems to.
        """
        check_feedback(feedback)
        if not isinstance(name, str):
            raise DataError(f"`name` must be a string. Received: name={name!r}")
        if duplicates not in DUPLICATES:
            raise DataError(
                f"`duplicates` must be one of {', '.join(map(repr, DUPLICATES))}"
                f"{nearest_name(duplicates, DUPLICATES)}. Received: duplicates={duplicates!r}"
            )
        if duplicates == "sum" and feedback == "explicit":
            raise DataError(
                "`duplicates` must not be 'sum' for explicit feedback, whose ratings do not add up; 'last' "
                "keeps the latest rating"
            )
        table = _typed_table(_polars(table, "table"), feedback)
        table = _without_duplicates(_in_time_order(table), duplicates)
        if feedback == "implicit" and (silent := table.filter(pl.col("label") <= 0).height):
            raise DataError(
                "labels of implicit feedback must be above 0, since every row counts as an interaction; leave out "
                f"returns and dislikes. Received: {silent:,} rows with a label of 0 or less"
            )
        users = _polars(users, "users") if users is not None else None
        items = _polars(items, "items") if items is not None else None
        for side, frame in (("user", users), ("item", items)):
            if frame is not None:
                _require_columns(frame, (f"{side}_id",), f"`{side}s`")
        if item_name is not None and items is None:
            raise DataError(f"`item_name` needs `items`. Received: item_name={item_name!r}, items=None")
        schema = Schema.infer(users, items, feedback, kinds, item_name)
        if users is not None:
            users = _typed_features(users, schema, "user", table, list_separator)
        if items is not None:
            items = _typed_features(items, schema, "item", table, list_separator)
        return cls(table, users, items, schema, name)

    @classmethod
    def from_files(cls, mapping: str | os.PathLike | Mapping[str, Any]) -> "Interactions":
        """Returns interactions from a user's own CSV, TSV, Parquet or JSON-lines files.

        Args:
            mapping: path to a YAML file that says which file and column is what, or the same as a dict. See
                `tfmetarec.data.files` for its keys.

        Raises:
            DataError: if the mapping, a file or its contents cannot be used; the message names the file.
        """
        return cls.from_frames(**read_mapping(mapping))

    @classmethod
    def from_parquet(cls, folder: str | os.PathLike) -> "Interactions":
        """Returns what `to_parquet` wrote.

        Raises:
            DataError: if the folder was not written by `to_parquet`, or a file in it is damaged.
        """
        folder = Path(folder)
        try:
            config = json.loads((folder / "schema.json").read_text(encoding="utf-8"))
            schema, name, parts = Schema.from_dict(config["schema"]), config["name"], config["files"]
        except OSError as error:
            raise DataError(
                f"`folder` must have been written by `to_parquet`, but schema.json cannot be read. "
                f"Received: folder={str(folder)!r}"
            ) from error
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{folder / 'schema.json'} is damaged: {error}") from error
        frames = {}
        for part in ("table", *parts):
            file = folder / f"{part}.parquet"
            try:
                frames[part] = pl.read_parquet(file, glob=False)
            except (OSError, pl.exceptions.PolarsError) as error:
                raise DataError(f"{file} cannot be read: {first_line(error)}") from error
        return cls(frames["table"], frames.get("users"), frames.get("items"), schema, name)

    def to_parquet(self, folder: str | os.PathLike) -> None:
        """Writes everything to a new folder: whole, or not at all.

        Args:
            folder: path that does not exist yet.

        Raises:
            DataError: if `folder` exists.
        """
        folder = Path(folder)
        if folder.exists():
            raise DataError(f"`folder` must not exist yet. Received: folder={str(folder)!r}")
        parts = {"table": self.table, "users": self.users, "items": self.items}
        frames = {part: frame for part, frame in parts.items() if frame is not None}
        config = {
            "name": self.name,
            "schema": self.schema.to_dict(),
            "files": [part for part in frames if part != "table"],
        }
        folder.parent.mkdir(parents=True, exist_ok=True)
        # A reader, or a crash half way, must never meet half a folder: it gets its name when it is complete.
        unfinished = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        try:
            for part, frame in frames.items():
                frame.write_parquet(unfinished / f"{part}.parquet")
            (unfinished / "schema.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
            unfinished.chmod(0o755)  # `mkdtemp` keeps everybody else out.
            unfinished.rename(folder)
        except BaseException:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise

    def filter(self, condition: pl.Expr | pl.Series) -> "Interactions":
        """Returns the rows that meet `condition`, with all features kept.

        Args:
            condition: polars expression over the columns of `table`, or a Series of booleans, one per row.

        Raises:
            DataError: if no row meets it, or it names a column that is not there.

        Example:
        >>> table = pl.DataFrame({"user_id": [1, 1, 2], "item_id": [7, 8, 7]})
        >>> len(Interactions.from_frames(table, feedback="implicit").filter(pl.col("item_id") == 7))
        2
        """
        if isinstance(condition, pl.Series) and len(condition) != len(self):
            raise DataError(
                f"`condition` must have one value for each of the {len(self):,} rows. Received {len(condition):,}"
            )
        try:
            rows = self.table.filter(condition)
        except pl.exceptions.PolarsError as error:
            raise DataError(
                f"`condition` cannot be applied to the columns {self.table.columns}: {first_line(error)}"
            ) from error
        if rows.is_empty():
            shown = condition if isinstance(condition, pl.Expr) else "a Series without any true"
            raise DataError(f"`condition` must leave some of the {len(self):,} rows. Received: {shown}")
        return replace(self, table=rows)

    def with_table(self, table: Any) -> "Interactions":
        """Returns the same users, items and schema with another table, checked as `from_frames` does.

        Args:
            table: polars or pandas DataFrame. See `from_frames`.

        Raises:
            DataError: if the table is not one that `from_frames` takes, or repeats a user and item.
        """
        table = _typed_table(_polars(table, "table"), self.schema.feedback)
        table = _without_duplicates(_in_time_order(table), "error")
        for side, features in (("user", self.users), ("item", self.items)):
            if features is not None:
                _require_id_type(features, side, table)
        return replace(self, table=table)

    @property
    def n_users(self) -> int:
        """How many users have interactions."""
        return self.table["user_id"].n_unique()

    @property
    def n_items(self) -> int:
        """How many items have interactions."""
        return self.table["item_id"].n_unique()

    @property
    def users_without_features(self) -> int:
        """How many users with interactions have no row in `users`."""
        return _without_row(self.table["user_id"], self.users)

    @property
    def items_without_features(self) -> int:
        """How many items with interactions have no row in `items`."""
        return _without_row(self.table["item_id"], self.items)

    def describe(self) -> pl.DataFrame:
        """Returns one row of counts.

        `rows`, `users`, `items`, `density` (the share of all pairs that are there), `first_time`, `last_time`
        (UTC, null without timestamps), `users_without_features` and `items_without_features`.

        Example:
        >>> table = pl.DataFrame({"user_id": [1, 1, 2], "item_id": [7, 8, 7]})
        >>> Interactions.from_frames(table, feedback="implicit").describe()["density"].item()
        0.75
        """
        pairs = self.table.select("user_id", "item_id").n_unique()
        first, last = self._times()
        return pl.DataFrame(
            {
                "rows": [len(self)],
                "users": [self.n_users],
                "items": [self.n_items],
                "density": [pairs / (self.n_users * self.n_items)],
                "first_time": pl.Series([first], dtype=pl.Datetime("us", "UTC")),
                "last_time": pl.Series([last], dtype=pl.Datetime("us", "UTC")),
                "users_without_features": [self.users_without_features],
                "items_without_features": [self.items_without_features],
            }
        )

    def __len__(self) -> int:
        return self.table.height

    def __repr__(self) -> str:
        first, last = self._times()
        times = f"{first:%Y-%m-%d} to {last:%Y-%m-%d}" if first and last else "no timestamps"
        return (
            f"Interactions({self.name!r}: {len(self):,} rows, {self.n_users:,} users, "
            f"{self.n_items:,} items, {self.schema.feedback}, {times})"
        )

    def _times(self) -> tuple[datetime | None, datetime | None]:
        if "timestamp" not in self.table.columns:
            return None, None
        first, last = self.table.select(first=pl.col("timestamp").min(), last=pl.col("timestamp").max()).row(0)
        return datetime.fromtimestamp(first, UTC), datetime.fromtimestamp(last, UTC)


def _polars(frame: Any, argument: str) -> pl.DataFrame:
    if isinstance(frame, pl.LazyFrame):
        frame = frame.collect()
    elif type(frame).__module__.split(".")[0] == "pandas" and hasattr(frame, "columns"):
        try:
            frame = pl.from_pandas(frame)
        except Exception as error:  # pyarrow has an error class for each way to mix types in a column.
            raise DataError(
                f"`{argument}` must hold one type per column, which this pandas table does not: {first_line(error)}"
            ) from error
    if not isinstance(frame, pl.DataFrame):
        raise DataError(f"`{argument}` must be a polars or pandas DataFrame. Received the type {type(frame).__name__}")
    if frame.is_empty():
        raise DataError(f"`{argument}` must have rows. Received a table with the columns {frame.columns}")
    return frame


def _require_columns(frame: pl.DataFrame, required: tuple[str, ...], where: str) -> None:
    free = [column for column in frame.columns if column not in COLUMNS]
    for column in required:
        if column not in frame.columns:
            raise DataError(
                f"{where} must have the column {column!r}{nearest_name(column, free)}. "
                f"Received the columns {frame.columns}"
            )


def _typed_table(table: pl.DataFrame, feedback: str) -> pl.DataFrame:
    required = ("user_id", "item_id", "label")[: 3 if feedback == "explicit" else 2]
    _require_columns(table, required, "`table`")
    for column in table.columns:
        # A column called "rating" beside implicit feedback would otherwise be lost without a word.
        if column not in COLUMNS:
            raise DataError(
                f"`table` must have no other columns than {', '.join(COLUMNS)}"
                f"{nearest_name(column, COLUMNS)}; rename or drop it. Received the column {column!r}"
            )
    if "label" not in table.columns:
        table = table.with_columns(label=pl.lit(1.0, pl.Float32))
    typed = {
        "user_id": typed_ids(table["user_id"], "`table`"),
        "item_id": typed_ids(table["item_id"], "`table`"),
        "label": typed_labels(table["label"]),
    }
    if "timestamp" in table.columns:
        typed["timestamp"] = typed_timestamps(table["timestamp"])
    for column in ("behavior", "domain"):
        if column in table.columns:
            typed[column] = typed_ids(table[column], "`table`").cast(pl.String)
    return pl.DataFrame(typed)


def _in_time_order(table: pl.DataFrame) -> pl.DataFrame:
    keys = [column for column in ("user_id", "timestamp") if column in table.columns]
    before = table.select(keys).head(-1)
    after = table.select(keys).tail(-1)
    # Sorting 20 million rows takes far longer than finding that they are sorted.
    rising = before["user_id"] < after["user_id"]
    level = before["user_id"] == after["user_id"]
    if len(keys) == 2:
        level &= before["timestamp"] <= after["timestamp"]
    if (rising | level).all():
        return table
    return table.sort(keys, maintain_order=True)


def _without_duplicates(table: pl.DataFrame, duplicates: str) -> pl.DataFrame:
    pair = [column for column in _PAIR if column in table.columns]
    repeated = table.height - table.select(pair).n_unique()
    if not repeated:
        return table
    if duplicates == "error":
        example = table.filter(table.select(pair).is_duplicated()).row(0, named=True)
        shown = ", ".join(f"{column} {example[column]!r}" for column in pair)
        raise DataError(
            f"`table` must have each {' and '.join(pair)} once; set `duplicates` to say what to do. "
            f"Received {repeated:,} repeated rows, such as of {shown}"
        )
    if duplicates == "sum":
        others = [column for column in table.columns if column not in (*pair, "label")]
        summed = table.group_by(pair, maintain_order=True).agg(
            pl.col("label").cast(pl.Float64).sum().cast(pl.Float32), pl.col(others).first()
        )
        return summed.select(table.columns)
    return table.unique(subset=pair, keep="first" if duplicates == "first" else "last", maintain_order=True)


def _typed_features(
    frame: pl.DataFrame, schema: Schema, side: str, table: pl.DataFrame, list_separator: str | None
) -> pl.DataFrame:
    features = schema.user if side == "user" else schema.item
    ids = typed_ids(frame[f"{side}_id"], f"`{side}s`")
    repeated = ids.filter(ids.is_duplicated())
    if len(repeated):
        raise DataError(
            f"`{side}s` must have each {side}_id once. Received {repeated[0]!r} more than once, and so for "
            f"{repeated.n_unique():,} ids in all"
        )
    others = [typed_feature(frame[feature.name], feature, list_separator) for feature in features[1:]]
    frame = pl.DataFrame([ids, *others])
    _require_id_type(frame, side, table)
    return frame


def _require_id_type(frame: pl.DataFrame, side: str, table: pl.DataFrame) -> None:
    column = f"{side}_id"
    if frame[column].dtype != table[column].dtype:
        raise DataError(
            f"`{column}` must have one type in all tables; cast one of them. "
            f"Received {table[column].dtype} in `table` and {frame[column].dtype} in `{side}s`"
        )


def _without_row(ids: pl.Series, features: pl.DataFrame | None) -> int:
    ids = ids.unique()
    return len(ids) if features is None else int((~ids.is_in(features[ids.name].implode())).sum())
