"""Vectors that items bring along from elsewhere: kept by id, joined as a feature, or put into an embedding."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, overload

import numpy as np
import polars as pl

from tfmetarec.data import Interactions, Split, Vocabulary
from tfmetarec.data.errors import DataError, first_line, nearest_name
from tfmetarec.data.schema import Feature, Schema


def unit_length(vectors: np.ndarray) -> np.ndarray:
    """Vectors `(..., D)` scaled to length 1; zeros, which mean "none", stay zeros."""
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.where(lengths > 0, lengths, 1.0).astype(vectors.dtype)


@dataclass(frozen=True, eq=False, repr=False)
class ItemVectors:
    """Vectors of items by raw id: images, sounds, texts, item2vec. Items that have none are not in it.

    Args:
        item_ids: `(N,)` raw ids, whole numbers or strings, each once.
        vectors: `(N, D)` floats. A row of zeros, or with NaN, means that the item has none, and is dropped.

    Raises:
        DataError: if the two differ in length, the vectors are no matrix or none is left, or an id is there twice.

    Example:
    >>> vectors = ItemVectors([3, 8, 9], [[1.0, 0.0], [0.0, 2.0], [0.0, 0.0]])
    >>> vectors
    ItemVectors(2 items, width 2)
    >>> vectors.of([8, 77]).tolist()
    [[0.0, 2.0], [0.0, 0.0]]
    """

    item_ids: np.ndarray
    vectors: np.ndarray

    def __post_init__(self) -> None:
        ids, vectors = _ids(self.item_ids), np.asarray(self.vectors)
        if vectors.dtype.kind not in "fiub" or vectors.ndim != 2 or vectors.shape[1] == 0:
            raise DataError(
                f"`vectors` must be numbers of shape (N, D). Received: shape {vectors.shape}, type {vectors.dtype}"
            )
        if ids.ndim != 1 or len(ids) != len(vectors):
            raise DataError(
                f"`item_ids` and `vectors` must be as many. Received: item_ids {ids.shape}, vectors {vectors.shape}"
            )
        vectors = vectors.astype(np.float32)
        there = np.isfinite(vectors).all(axis=1) & vectors.any(axis=1)
        ids, vectors = ids[there], vectors[there]
        if not len(ids):
            raise DataError(f"`vectors` must have a row that is neither zeros nor NaN. Received {len(there)} others")
        order = np.argsort(ids, kind="stable")
        ids = ids[order]
        twice = ids[1:][ids[1:] == ids[:-1]]
        if len(twice):
            raise DataError(f"`item_ids` must hold each id once. Received {twice.tolist()[0]!r} more than once")
        object.__setattr__(self, "item_ids", ids)
        object.__setattr__(self, "vectors", vectors[order])

    @classmethod
    def from_parquet(
        cls, file: str | Path, *, id_column: str = "item_id", vector_column: str = "vector"
    ) -> "ItemVectors":
        """Reads a Parquet file with an id and a list of `D` numbers a row; null where an item has none.

        Raises:
            DataError: if the file or a column cannot be used; the message names it.
        """
        try:
            frame = pl.read_parquet(file, glob=False)
        except (OSError, pl.exceptions.PolarsError) as error:
            raise DataError(f"{str(file)!r} cannot be read: {first_line(error)}") from error
        for column in (id_column, vector_column):
            if column not in frame.columns:
                raise DataError(
                    f"{str(file)!r} must have the column {column!r}{nearest_name(column, frame.columns)}. "
                    f"Received the columns {frame.columns}"
                )
        frame = frame.filter(pl.col(vector_column).is_not_null())
        dtype = frame[vector_column].dtype
        if not isinstance(dtype, pl.List | pl.Array) or not dtype.inner.is_numeric():
            raise DataError(f"{vector_column!r} of {str(file)!r} must hold lists of numbers. Received the type {dtype}")
        lists = frame[vector_column].cast(pl.List(pl.Float32))
        widths = lists.list.len().unique().sort().to_list()
        if len(widths) != 1:
            raise DataError(f"{vector_column!r} of {str(file)!r} must hold lists of one length. Received {widths}")
        return cls(frame[id_column].to_numpy(), lists.cast(pl.Array(pl.Float32, widths[0])).to_numpy())

    @classmethod
    def from_npy(cls, vectors: str | Path, item_ids: str | Path) -> "ItemVectors":
        """Reads a `.npy` file of vectors `(N, D)` and one of the `N` ids that they belong to.

        Raises:
            DataError: if a file cannot be read, or the two do not fit.
        """
        arrays = []
        for file in (item_ids, vectors):
            try:
                arrays.append(np.load(file, allow_pickle=False))
            except (OSError, ValueError) as error:
                raise DataError(f"{str(file)!r} cannot be read as an array: {first_line(error)}") from error
        return cls(*arrays)

    def to_parquet(self, file: str | Path) -> None:
        """Writes what `from_parquet` reads."""
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        self._frame("vector").write_parquet(file)

    @property
    def width(self) -> int:
        """`D`."""
        return self.vectors.shape[1]

    def of(self, item_ids: Any) -> np.ndarray:
        """Vectors `(M, D)` of raw ids `(M,)`, zeros for an item that has none."""
        places = self._places(item_ids)
        return np.where(places[:, None] >= 0, self.vectors[places], np.float32(0.0))

    def has(self, item_ids: Any) -> np.ndarray:
        """`(M,)` bool: which of the raw ids have a vector."""
        return self._places(item_ids) >= 0

    def normalized(self) -> "ItemVectors":
        """The same directions, each of length 1."""
        return ItemVectors(self.item_ids, unit_length(self.vectors))

    def __len__(self) -> int:
        return len(self.item_ids)

    def __repr__(self) -> str:
        return f"ItemVectors({len(self):,} items, width {self.width})"

    def _places(self, item_ids: Any) -> np.ndarray:
        wanted = np.asarray(item_ids)
        if wanted.size == 0:
            return np.zeros(wanted.shape, np.int64)
        wanted = _same_type(wanted, self.item_ids)
        places = np.minimum(np.searchsorted(self.item_ids, wanted), len(self) - 1)
        return np.where(self.item_ids[places] == wanted, places, -1)

    def _frame(self, name: str) -> pl.DataFrame:
        ids = pl.Series("item_id", self.item_ids.tolist())
        return pl.DataFrame([ids, pl.Series(name, self.vectors, pl.Array(pl.Float32, self.width))])


@overload
def with_vectors(interactions: Interactions, name: str, vectors: ItemVectors) -> Interactions: ...
@overload
def with_vectors(interactions: Split, name: str, vectors: ItemVectors) -> Split: ...
def with_vectors(interactions: Interactions | Split, name: str, vectors: ItemVectors) -> Interactions | Split:
    """Returns the same interactions, or all parts of a split, with a vector feature of items.

    Items without a vector have none (null), which a vocabulary encodes as zeros. Items that have a vector and were
    not in the table of items are added to it.

    Args:
        interactions: `Interactions` or `Split`.
        name: str. What to call the feature.
        vectors: `ItemVectors`.

    Raises:
        DataError: if there is such an item feature already, the ids are of another type, or no item has a vector.

    Example:
    >>> import tfmetarec as tmr
    >>> data = tmr.data.load("synthetic", n_users=20, n_items=12, interactions_per_user=3, seed=0)
    >>> looks = ItemVectors([0, 1, 2], [[0.1, 0.2], [0.3, 0.4], [0.5, 0.6]])
    >>> with_vectors(data, "look", looks).schema.item[-1]
    Feature(name='look', kind='vector')
    """
    if isinstance(interactions, Split):
        parts: Mapping[str, Interactions] = interactions.parts
        return replace(interactions, parts={part: with_vectors(data, name, vectors) for part, data in parts.items()})
    taken = [feature.name for feature in (*interactions.schema.user, *interactions.schema.item)]
    if name in taken:
        raise DataError(f"`name` must not be the name of a feature yet. Received: name={name!r}, features {taken}")
    ids = interactions.table["item_id"].unique()
    items = interactions.items if interactions.items is not None else pl.DataFrame([ids.sort()])
    known = pl.concat([ids, items["item_id"]]).unique()
    if not vectors.has(known.to_numpy()).any():
        raise DataError(
            f"`vectors` must have a vector of some item. Received {len(vectors):,} vectors, such as of "
            f"{vectors.item_ids.tolist()[0]!r}, and {len(known):,} items without one, such as {known.sort()[0]!r}"
        )
    frame = vectors._frame(name)
    joined = items.join(frame, on="item_id", how="left", maintain_order="left")
    others = frame.join(items, on="item_id", how="anti", maintain_order="left")
    items = pl.concat([joined, others], how="diagonal")
    schema = interactions.schema
    features = (*schema.item, Feature(name, "vector"))
    schema = Schema(schema.user, features, schema.feedback, schema.item_name)
    return replace(interactions, items=items, schema=schema)


def vectors_of_catalogue(vectors: ItemVectors, vocabulary: Vocabulary) -> np.ndarray:
    """Vectors `(I, D)` of a vocabulary's items by row; zeros for row 0 and for items that have none.

    Raises:
        DataError: if the ids are of another type, or no item of the catalogue has a vector.
    """
    known = vocabulary.item_ids[1:]
    table = vectors.of(known)
    if not table.any():
        raise DataError(
            f"`vectors` must have a vector of some item of the catalogue. Received {len(vectors):,} vectors and "
            f"{len(known):,} items without one in common"
        )
    return np.concatenate([np.zeros_like(table[:1]), table])


def _ids(item_ids: Any) -> np.ndarray:
    """Ids as int64 or as an object array of str."""
    ids = np.asarray(item_ids)
    if ids.dtype.kind in "iu":
        return ids.astype(np.int64)
    if ids.dtype.kind == "U" or (ids.dtype.kind == "O" and all(isinstance(value, str) for value in ids.flat)):
        return ids.astype(object)
    raise DataError(f"`item_ids` must be whole numbers or strings. Received the type {ids.dtype}")


def _same_type(wanted: np.ndarray, known: np.ndarray) -> np.ndarray:
    wanted = _ids(wanted)
    if wanted.dtype != known.dtype:
        names = {True: "strings", False: "whole numbers"}
        raise DataError(
            f"ids must be of one type; cast one of them. Received {names[wanted.dtype == object]}, and vectors of "
            f"{names[known.dtype == object]}"
        )
    return wanted
