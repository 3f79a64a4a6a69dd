"""Interactions grouped by task: what samplers draw from, and what evaluation walks through."""

from dataclasses import dataclass

import numpy as np
import polars as pl

from tfmetarec.data.interactions import Interactions
from tfmetarec.data.vocabulary import Vocabulary

KINDS = ("user", "item", "domain")


@dataclass(frozen=True)
class FeatureTable:
    """Encoded features of a set of users or items, one row each; `take` picks rows."""

    features: dict[str, np.ndarray]
    ids: pl.Series

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Features of shape `rows.shape + (...)`."""
        return {name: value[rows] for name, value in self.features.items()}


@dataclass(frozen=True)
class TaskTable:
    """`M` tasks with their interactions side by side, in time order where there are timestamps.

    Task `t` owns the slots `start[t] : start[t + 1]`.

    Attributes:
        kind: "user", "item" or "domain": what one task is.
        keys: `(M,)` raw ids of the tasks.
        start: `(M + 1,)` int64.
        user: `(n,)` int32, row of each interaction in `users`.
        item: `(n,)` int32, row of each interaction in `items`.
        label: `(n,)` float32; for implicit feedback 1, whatever was counted.
        users: features of the users met here.
        items: features of the items met here; for implicit feedback the catalogue of the vocabulary.
        ordered: whether the slots of a task are in time order.
        notes: one sentence for each thing left out.
    """

    kind: str
    keys: pl.Series
    start: np.ndarray
    user: np.ndarray
    item: np.ndarray
    label: np.ndarray
    users: FeatureTable
    items: FeatureTable
    ordered: bool
    notes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def sizes(self) -> np.ndarray:
        """`(M,)` interactions of each task."""
        return np.diff(self.start)

    @classmethod
    def build(
        cls,
        interactions: Interactions,
        vocabulary: Vocabulary,
        *,
        kind: str = "user",
        min_interactions: int = 1,
    ) -> "TaskTable":
        """Groups `interactions` by task and encodes the features they need.

        With implicit feedback an interaction with an item outside the catalogue is left out, since nothing
        could recommend it; with explicit feedback it stays, carried by its content. Both are counted in
        `notes`, as are tasks with fewer than `min_interactions` left. Of a user who met an item several times
        (once a behavior or domain) the first time counts, since an item in support and query alike would be
        known; tasks about domains keep one for each domain.

        Args:
            interactions: any part of a split.
            vocabulary: fitted on the training part.
            kind: "user", "item" or "domain".
            min_interactions: int, at least 1. Smaller tasks are left out.

        Raises:
            ValueError: if `kind` is unknown, the kinds of feedback differ, or no task is left.
        """
        if kind not in KINDS:
            raise ValueError(f"`kind` must be one of {', '.join(KINDS)}. Received: kind={kind!r}")
        key = {"user": "user_id", "item": "item_id", "domain": "domain"}[kind]
        if key not in interactions.table.columns:
            raise ValueError("`kind` 'domain' needs a `domain` column in the interactions, which have none.")
        if interactions.schema.feedback != vocabulary.specs.feedback:
            raise ValueError(
                f"`interactions` must have the feedback that `vocabulary` was fitted on, {vocabulary.specs.feedback}. "
                f"Received: {interactions.schema.feedback}"
            )
        table, notes = interactions.table, []
        if vocabulary.specs.feedback == "implicit":
            known = table.filter(pl.col("item_id").is_in(pl.Series(vocabulary.item_ids[1:].tolist()).implode()))
            if known.height < table.height:
                notes.append(
                    f"{table.height - known.height:,} of {table.height:,} interactions are with items outside "
                    "the catalogue and were left out"
                )
            if known.is_empty():
                raise ValueError("none of the interactions is with an item of the vocabulary's catalogue")
            table = known
        ordered = "timestamp" in table.columns
        table = table.sort([key, "timestamp"] if ordered else [key], maintain_order=True)
        pair = ["user_id", "item_id", *(["domain"] if kind == "domain" else [])]
        first = table.unique(pair, keep="first", maintain_order=True)
        if first.height < table.height:
            notes.append(
                f"{table.height - first.height:,} interactions with an item that the user had already met were left out"
            )
        table = first
        counts = table.group_by(key).len()
        small = counts.filter(pl.col("len") < min_interactions)
        if small.height:
            notes.append(f"{small.height:,} {kind}s with fewer than {min_interactions} interactions were left out")
            table = table.join(small, on=key, how="anti", maintain_order="left")
        if table.is_empty():
            raise ValueError(
                f"no {kind} has `min_interactions` interactions. Received: min_interactions={min_interactions}"
            )
        keys = table[key].unique().sort()
        start = np.searchsorted(table[key].rank("dense").to_numpy(), np.arange(1, len(keys) + 2))

        users = table["user_id"].unique().sort()
        user_table = FeatureTable(vocabulary.encode_users(interactions, users), users)
        if vocabulary.specs.feedback == "implicit":
            items = pl.Series(vocabulary.item_ids.tolist())  # Row 0 included: rows are those of the vocabulary.
            item_table = FeatureTable(vocabulary.catalogue, items)
            item_rows = vocabulary.item_rows(table["item_id"])
        else:
            items = table["item_id"].unique().sort()
            item_table = FeatureTable(vocabulary.encode_items(interactions, items), items)
            item_rows = _positions(items, table["item_id"])
        return cls(
            kind,
            keys,
            start.astype(np.int64),
            _positions(users, table["user_id"]),
            item_rows,
            _labels(table, vocabulary),
            user_table,
            item_table,
            ordered,
            tuple(notes),
        )


def _positions(values: pl.Series, column: pl.Series) -> np.ndarray:
    """Where each entry of `column` stands in the sorted `values`."""
    places = pl.DataFrame({"value": values, "place": np.arange(len(values), dtype=np.int32)})
    return (
        pl.DataFrame({"value": column}).join(places, on="value", how="left", maintain_order="left")["place"].to_numpy()
    )


def _labels(table: pl.DataFrame, vocabulary: Vocabulary) -> np.ndarray:
    if vocabulary.specs.feedback == "implicit":
        return np.ones(table.height, np.float32)
    return table["label"].to_numpy().astype(np.float32)
