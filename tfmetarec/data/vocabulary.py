"""Raw values <-> rows: the one place where ids, categories and words become numbers.

The same TensorFlow code encodes whole tables before training and single requests inside an exported graph,
so the two cannot disagree. Row 0 always means "never seen"; nothing is ever an error for being new.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import numpy as np
import polars as pl
import tensorflow as tf

from tfmetarec.data.errors import DataError
from tfmetarec.data.interactions import Interactions
from tfmetarec.data.new_items import read_new_items, typed_new_items
from tfmetarec.data.schema import Schema

LISTS = ("category_list", "text")
NAME, _POPULARITY = "shown as", "times met"  # Own columns of the items table; no feature is called so.
MISSING = ""  # What an absent category or word looks like in raw form.
_SEPARATORS = r"[^\p{L}\p{N}]+"  # Between words; RE2's syntax, which polars's regex engine shares.


@dataclass(frozen=True)
class FeatureSpec:
    """What a model needs to know of one encoded feature.

    Attributes:
        name: the key in the features dict.
        kind: one of `tfmetarec.data.schema.KINDS`.
        size: rows of its embedding table, row 0 included; for a vector its width; for a number 1.
        length: longest list kept (lists and texts), otherwise 1. `NAME_length` says how many are real.
        buckets: the last rows of a text's table, shared by hash among the words that have none of their own.
    """

    name: str
    kind: str
    size: int
    length: int = 1
    buckets: int = 0


@dataclass(frozen=True)
class FeatureSpecs:
    """The plain, JSON-friendly part of a `Vocabulary`: enough to build a model, free of any raw id."""

    user: tuple[FeatureSpec, ...]
    item: tuple[FeatureSpec, ...]
    feedback: str
    label_mean: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> "FeatureSpecs":
        user, item = (tuple(FeatureSpec(**spec) for spec in config[side]) for side in ("user", "item"))
        return cls(user, item, config["feedback"], config["label_mean"])


class Vocabulary:
    """Knows every raw value seen in training, and the catalogue of items that may be recommended.

    Build it with `Vocabulary.fit(split.train)`, never from test data. Raw categories are strings (numbers are
    written as text), ids are int64 or strings as in the data, lists come with a `NAME_length` beside them.

    Attributes:
        specs: `FeatureSpecs`, what models are built from.
        item_ids: array `(I,)` of raw item ids by row; row 0 is a placeholder (0 or ""), and items added by
            `with_items` come last.
        item_names: list of `I` display names by row, the raw id where there is no name.
        catalogue: dict of arrays `(I, ...)`: the encoded features of every catalogue item, row 0 unknown.
        popularity: `(I,)` int64, how many training users met each item.
        tables: lookup tables by "side.feature", for whoever saves a graph that encodes.
    """

    def __init__(self, values: dict[str, dict[str, Any]], items: pl.DataFrame, meta: dict[str, Any]):
        self.specs = FeatureSpecs.from_dict(meta["specs"])
        self._values, self._items, self._meta = values, items, meta
        self._moments = meta["moments"]
        self.tables: dict[str, tf.lookup.StaticHashTable] = {}
        for side in ("user", "item"):
            for spec in getattr(self.specs, side):
                if len(values[side].get(spec.name, ())):  # An empty table is refused.
                    self.tables[f"{side}.{spec.name}"] = _lookup_table(values[side][spec.name])
        placeholder = 0 if self.id_dtype("item") == tf.int64 else MISSING
        # Object arrays of str: NumPy's fixed-width strings would cost the longest id for every row.
        ids = values["item"]["item_id"]
        self.item_ids = np.concatenate([np.asarray([placeholder], ids.dtype), ids])
        self._by_id = np.argsort(ids, kind="stable")  # Added items are out of order.
        self.popularity = np.concatenate([[0], items[_POPULARITY].to_numpy()]).astype(np.int64)
        self.item_names = ["?", *items[NAME].to_list()]
        self.catalogue = self._catalogue()

    # -- building ----------------------------------------------------------------------------------------

    @classmethod
    def fit(
        cls,
        interactions: Interactions,
        *,
        min_item_users: int = 1,
        max_list_length: int = 8,
        max_words: int = 2000,
        word_buckets: int = 0,
        min_category_users: int = 1,
        user_ids: bool = False,
    ) -> "Vocabulary":
        """Learns the rows from training interactions.

        Args:
            interactions: the training part of a split.
            min_item_users: int, at least 1. Items that fewer users met get no row and are not recommended.
            max_list_length: int, at least 1. Longer lists and texts are cut. Defaults to 8.
            max_words: int, at least 1. The most frequent words of a text feature that get a row.
            word_buckets: int, at least 0. Rows that all other words share by hash, words never seen included.
                Defaults to 0: other words say nothing.
            min_category_users: int, at least 1. Values of users' categories that fewer training users have get no
                row. A value that one or two users have, as a postal code, is nearly their name: a model remembers
                them by it instead of learning. Defaults to 1.
            user_ids: bool. Keep a row for every training user. Off by default: a model that adapts does not
                need it, and an exported model then contains no user's id.

        Raises:
            ValueError: for an option out of range.
            DataError: if no item reaches `min_item_users`, or two features would share a name.
        """
        for name, value in (
            ("min_item_users", min_item_users),
            ("max_list_length", max_list_length),
            ("max_words", max_words),
            ("min_category_users", min_category_users),
        ):
            if value < 1:
                raise ValueError(f"`{name}` must be at least 1. Received: {name}={value}")
        schema = interactions.schema
        _check_names(schema)
        counts = interactions.table.group_by("item_id").agg(pl.col("user_id").n_unique().alias(_POPULARITY))
        kept = counts.filter(pl.col(_POPULARITY) >= min_item_users).sort("item_id")
        if kept.is_empty():
            most = int(counts[_POPULARITY].to_numpy().max())
            raise DataError(
                f"`min_item_users` leaves no item: the most popular one was met by {most} users. "
                f"Received: min_item_users={min_item_users}"
            )
        items = kept.join(_features_frame(interactions, "item"), on="item_id", how="left", maintain_order="left")
        shown = schema.item_name
        display = pl.col("item_id").cast(pl.String)
        items = items.with_columns((pl.col(shown).fill_null(display) if shown else display).alias(NAME))
        users = interactions.table.select("user_id").unique().sort("user_id")
        users = users.join(_features_frame(interactions, "user"), on="user_id", how="left", maintain_order="left")

        values: dict[str, dict[str, Any]] = {"user": {}, "item": {}}
        moments: dict[str, list[float]] = {}
        specs: dict[str, list[FeatureSpec]] = {"user": [], "item": []}
        for side, frame in (("user", users), ("item", items)):
            for feature in getattr(schema, side):
                if feature.name == schema.item_name and side == "item":
                    continue  # A name is for people; its words rarely tell more than the categories do.
                spec, known = _fit_feature(
                    feature.name,
                    feature.kind,
                    frame,
                    max_list_length,
                    max_words,
                    word_buckets,
                    least=min_category_users if side == "user" else 1,
                    keep_ids=user_ids or side == "item",
                )
                specs[side].append(spec)
                if spec.kind == "number":
                    moments[f"{side}.{spec.name}"] = known
                elif known is not None:
                    values[side][spec.name] = known
        label = interactions.table["label"].to_numpy()
        level, unseen_level = _levels(interactions, items, users.height)
        specs["item"].append(FeatureSpec("item_level", "number", 1))
        moments["item.item_level"] = [0.0, 1.0]  # Taken as it is.
        feature_specs = FeatureSpecs(tuple(specs["user"]), tuple(specs["item"]), schema.feedback, float(label.mean()))
        meta = {
            "schema": schema.to_dict(),
            "specs": feature_specs.to_dict(),
            "moments": moments,
            "label_range": [float(label.min()), float(label.max())],
            "unseen_level": unseen_level,
            "users": users.height,
            "name": interactions.name,
        }
        items = items.with_columns(pl.Series("item_level", level, pl.Float32))
        return cls(values, items, meta)

    # -- reading -----------------------------------------------------------------------------------------

    @property
    def schema(self) -> Schema:
        return Schema.from_dict(self._meta["schema"])

    @property
    def n_items(self) -> int:
        """Catalogue items, row 0 included."""
        return len(self.item_ids)

    @property
    def label_range(self) -> tuple[float, float]:
        low, high = self._meta["label_range"]
        return low, high

    @property
    def name(self) -> str:
        return self._meta["name"]

    def id_dtype(self, side: str) -> tf.DType:
        """The dtype of raw ids of `side` ("user" or "item"): `tf.int64` or `tf.string`."""
        values = self._values[side].get(f"{side}_id")
        return tf.int64 if values is not None and values.dtype == np.int64 else tf.string

    @property
    def items(self) -> pl.DataFrame:
        """The catalogue in raw form: `item_id` and the item features, in the order of rows from 1."""
        wanted = {feature.name for feature in self.schema.item}
        return self._items.select([column for column in self._items.columns if column in wanted])

    def moments(self, side: str, name: str) -> tuple[float, float]:
        """Mean and standard deviation by which a number of `side` is standardised."""
        mean, deviation = self._moments[f"{side}.{name}"]
        return mean, deviation

    def known_values(self, side: str, name: str) -> np.ndarray | None:
        """Raw values of a feature in the order of their rows from 1, or `None` for numbers and vectors."""
        return self._values[side].get(name)

    def item_rows(self, raw_ids: Any) -> np.ndarray:
        """Rows of raw item ids, 0 where the catalogue has none.

        Args:
            raw_ids: array-like of any shape, or a polars Series.
        """
        raw = _as_array(raw_ids) if isinstance(raw_ids, pl.Series) else np.asarray(raw_ids)
        known = self.item_ids[1:]
        kinds = "iu" if known.dtype.kind == "i" else "UO"
        if raw.size == 0 or raw.dtype.kind not in kinds:  # An id of the other type is one never seen.
            return np.zeros(raw.shape, np.int32)
        raw = raw.astype(known.dtype)
        position = self._by_id[np.minimum(np.searchsorted(known, raw, sorter=self._by_id), len(known) - 1)]
        return np.where(known[position] == raw, position + 1, 0).astype(np.int32)

    def __repr__(self) -> str:
        return f"<Vocabulary of {self.name}: {self.n_items - 1:,} items>"

    # -- adding items ------------------------------------------------------------------------------------

    def with_items(self, items: pl.DataFrame, *, list_separator: str | None = None) -> "Vocabulary":
        """This vocabulary with items that training never saw, at the end of the catalogue.

        To a model they are items without a row, known by their content alone: no weight has to change.

        Args:
            items: polars DataFrame with `item_id` and the item features; those it lacks count as missing, and so
                do values that training never saw.
            list_separator: str, optional. Splits strings into the values of a `category_list`.

        Raises:
            DataError: as `typed_new_items` of `tfmetarec.data.new_items`.

        >>> import tfmetarec as tmr
        >>> vocabulary = Vocabulary.fit(tmr.data.load("synthetic", seed=0))
        >>> new = vocabulary.with_items(pl.DataFrame({"item_id": [999], "price": [2.5]}))
        >>> new.n_items - vocabulary.n_items, new.item_rows([999]).tolist() == [vocabulary.n_items]
        (1, True)
        """
        new = typed_new_items(items, self.schema, self._items, list_separator)
        shown, display = self.schema.item_name, pl.col("item_id").cast(pl.String)
        new = new.with_columns(
            (pl.col(shown).cast(pl.String).fill_null(display) if shown in new.columns else display).alias(NAME),
            pl.lit(0, self._items.schema[_POPULARITY]).alias(_POPULARITY),
            pl.lit(self._meta["unseen_level"], self._items.schema["item_level"]).alias("item_level"),
        )
        together = pl.concat([self._items, new], how="diagonal")
        values = {**self._values, "item": {**self._values["item"], "item_id": _as_array(together["item_id"])}}
        return Vocabulary(values, together, self._meta)

    def read_new_items(self, path: str | Path) -> pl.DataFrame:
        """Items for `with_items` from a file; in CSV, `|` splits the values of a list.

        Raises:
            DataError: if the file cannot be read, or as `typed_new_items` of `tfmetarec.data.new_items`.
        """
        return read_new_items(path, self.schema, self._items)

    # -- encoding ----------------------------------------------------------------------------------------

    def raw_signature(self, side: str) -> dict[str, tf.TensorSpec]:
        """The raw inputs of `side` as a request carries them, one row a user (or item): names, dtypes, shapes.

        The `user_id` is not among them when the vocabulary keeps no user rows.
        """
        signature = {}
        for spec in getattr(self.specs, side):
            if spec.name == "item_level" or (spec.kind == "id" and spec.size == 1):
                continue
            dtype = tf.float32 if spec.kind in ("number", "vector") else tf.string
            shape = {"category_list": [None, None], "vector": [None, spec.size]}.get(spec.kind, [None])
            dtype = self.id_dtype(side) if spec.kind == "id" else dtype
            signature[spec.name] = tf.TensorSpec(shape, dtype, spec.name)
            if spec.kind == "category_list":
                name = f"{spec.name}_length"
                signature[name] = tf.TensorSpec([None], tf.int32, name)
        return signature

    def encode(
        self, side: str, raw: Mapping[str, Any], batch_size: Any = None, only: str | None = None
    ) -> dict[str, tf.Tensor]:
        """Encodes raw values; works eagerly and inside a graph.

        Args:
            side: "user" or "item".
            raw: tensors as `raw_signature` names them, each `(B, ...)`. Without an id: of items never seen.
            batch_size: `B`, needed only where `raw` may be empty or lack the id.
            only: the one feature to encode; `None` for all of the side.

        Returns:
            Features of `B` rows: int32 rows for ids, categories (`(B,)`) and lists (`(B, L)`, with
            `NAME_length`), float32 for numbers (standardised, missing = 0) and vectors.
        """
        features = {}
        for spec in getattr(self.specs, side):
            name = spec.name
            if only not in (None, name):
                continue
            if name == "item_level":
                batch = tf.shape(raw["item_id"]) if "item_id" in raw else [batch_size]
                features[name] = raw.get(name, tf.fill(batch, self._meta["unseen_level"]))
            elif spec.kind == "id" and (spec.size == 1 or name not in raw):
                rows = tf.shape(next(iter(raw.values())))[0] if batch_size is None else batch_size
                features[name] = tf.zeros([rows], tf.int32)
            elif spec.kind in ("id", "category"):
                rows = self.rows(side, name, raw[name])
                # What was added after training has a place in the catalogue, but no row that a model would know.
                features[name] = tf.where(rows < spec.size, rows, 0)
            elif spec.kind == "number":
                mean, deviation = self._moments[f"{side}.{name}"]
                value = (tf.cast(raw[name], tf.float32) - mean) / deviation
                features[name] = tf.where(tf.math.is_finite(value), value, 0.0)
            elif spec.kind == "vector":
                value = tf.cast(raw[name], tf.float32)
                features[name] = tf.where(tf.math.is_finite(value), value, 0.0)
            elif spec.kind == "category_list":
                rows = self.rows(side, name, raw[name])[:, : spec.length]
                rows = tf.pad(rows, [[0, 0], [0, spec.length - tf.shape(rows)[1]]])
                rows.set_shape([None, spec.length])
                # A request may claim more than it sends: what is not there must not thin out the average.
                length = tf.minimum(tf.cast(raw[f"{name}_length"], tf.int32), tf.shape(raw[name])[1])
                length = tf.clip_by_value(length, 0, spec.length)
                features[name] = tf.where(tf.sequence_mask(length, spec.length), rows, 0)
                features[f"{name}_length"] = length
            else:  # text
                words = tf.strings.regex_replace(tf.strings.lower(raw[name], "utf-8"), _SEPARATORS, " ")
                ragged = tf.strings.split(words)
                rows = self.rows(side, name, ragged.flat_values)
                if spec.buckets:
                    bucket = tf.strings.to_hash_bucket_fast(ragged.flat_values, spec.buckets)
                    rows = tf.where(rows > 0, rows, spec.size - spec.buckets + tf.cast(bucket, tf.int32))
                rows = ragged.with_flat_values(rows)
                rows = tf.ragged.boolean_mask(rows, rows > 0)  # Words without a row say nothing.
                features[f"{name}_length"] = tf.cast(tf.minimum(rows.row_lengths(), spec.length), tf.int32)
                features[name] = rows.to_tensor(0, shape=[None, spec.length])
        return features

    def encode_frame(self, side: str, frame: pl.DataFrame) -> dict[str, np.ndarray]:
        """Encodes a table with one row a user (or item); columns it lacks count as missing."""
        raw = {}
        for spec in getattr(self.specs, side):
            if spec.name == "item_level":
                if spec.name in frame.columns:
                    raw[spec.name] = frame[spec.name].to_numpy()
            elif spec.kind != "id" or spec.name in frame.columns:
                raw.update(_raw_columns(frame, spec))
        return {name: np.asarray(value) for name, value in self.encode(side, raw, frame.height).items()}

    def encode_items(self, interactions: Interactions, item_ids: pl.Series) -> dict[str, np.ndarray]:
        """Features of any items by raw id, catalogue or not: what is new has row 0 and its content."""
        frame = pl.DataFrame({"item_id": item_ids}).join(
            _features_frame(interactions, "item"), on="item_id", how="left", maintain_order="left"
        )
        popularity = self._items.select("item_id", "item_level")
        frame = frame.join(popularity, on="item_id", how="left", maintain_order="left")
        unseen = self._meta["unseen_level"]
        return self.encode_frame("item", frame.with_columns(pl.col("item_level").fill_null(unseen)))

    def encode_users(self, interactions: Interactions, user_ids: pl.Series) -> dict[str, np.ndarray]:
        """Features of any users by raw id; users without a row in the feature table are all "never seen"."""
        frame = pl.DataFrame({"user_id": user_ids}).join(
            _features_frame(interactions, "user"), on="user_id", how="left", maintain_order="left"
        )
        return self.encode_frame("user", frame)

    def rows(self, side: str, name: str, raw: Any) -> tf.Tensor:
        """Rows of raw ids, categories or words of any shape, 0 for what was never seen; works inside a graph."""
        table = self.tables.get(f"{side}.{name}")
        if table is None:
            return tf.zeros_like(raw, tf.int32)
        return tf.cast(table.lookup(tf.cast(raw, table.key_dtype)), tf.int32)

    def _catalogue(self) -> dict[str, np.ndarray]:
        known = self.encode_frame("item", self._items)
        features = {name: np.concatenate([np.zeros_like(value[:1]), value]) for name, value in known.items()}
        features["item_level"][0] = self._meta["unseen_level"]
        return features

    # -- saving ------------------------------------------------------------------------------------------

    def save(self, folder: str | Path) -> None:
        """Writes `vocabulary.json`, `items.parquet` and one Parquet file of values per feature."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for side, features in self._values.items():
            for name, values in features.items():
                if name != "item_id":
                    file = f"{side}.{quote(name, safe='')}.parquet"  # A name may hold a slash.
                    pl.DataFrame({name: values.tolist()}).write_parquet(folder / file)
        self._items.write_parquet(folder / "items.parquet")
        (folder / "vocabulary.json").write_text(json.dumps(self._meta, indent=1))

    @classmethod
    def load(cls, folder: str | Path) -> "Vocabulary":
        """Reads what `save` wrote."""
        folder = Path(folder)
        meta = json.loads((folder / "vocabulary.json").read_text())
        items = pl.read_parquet(folder / "items.parquet")
        values: dict[str, dict[str, Any]] = {"user": {}, "item": {"item_id": _as_array(items["item_id"])}}
        for path in folder.glob("*.*.parquet"):
            side, name = unquote(path.name.removesuffix(".parquet")).split(".", 1)
            values[side][name] = _as_array(pl.read_parquet(path)[name])
        return cls(values, items, meta)


def _check_names(schema: Schema) -> None:
    """Refuses features that could not stand side by side in one dict of features."""
    owners: dict[str, list[str]] = {"item_level": ["item_level (made here)"]}
    for side in ("user", "item"):
        for feature in getattr(schema, side):
            if side == "item" and feature.name == schema.item_name:
                continue
            names = [feature.name, f"{feature.name}_length"] if feature.kind in LISTS else [feature.name]
            for name in names:
                owners.setdefault(name, []).append(f"{side}.{feature.name}")
    for name, sources in owners.items():
        if len(sources) > 1:
            raise DataError(
                f"every user and item feature needs a name of its own; rename one. "
                f"Received: {' and '.join(sources)}, which would both be called {name!r}"
            )


def _levels(interactions: Interactions, items: pl.DataFrame, n_users: int) -> tuple[np.ndarray, float]:
    """What each catalogue item starts from, and an item that was never seen: `item_level`.

    For implicit feedback the logarithm of the share of users who met it (half a user for an unseen item). For
    explicit feedback 0: the mean of an item's ratings would hold the very rating that training predicts.
    """
    if interactions.schema.feedback == "implicit":
        return np.log(items[_POPULARITY].to_numpy() / n_users), float(np.log(0.5 / n_users))
    return np.zeros(items.height), 0.0


def _features_frame(interactions: Interactions, side: str) -> pl.DataFrame:
    """The feature table of one side, or an empty one with just the id column."""
    frame = interactions.users if side == "user" else interactions.items
    key = f"{side}_id"
    return frame if frame is not None else interactions.table.select(key).clear()


def _fit_feature(
    name: str,
    kind: str,
    frame: pl.DataFrame,
    max_list_length: int,
    max_words: int,
    word_buckets: int,
    *,
    least: int,
    keep_ids: bool,
) -> tuple[FeatureSpec, Any]:
    """The spec of one feature, and its known values (or the mean and deviation of a number).

    Categories that fewer than `least` rows of `frame` have are not among the known ones.
    """
    column = frame[name] if name in frame.columns else pl.Series(name, [None] * frame.height, dtype=pl.String)
    if kind == "id":
        values = _as_array(column) if keep_ids else None
        # Without rows the raw id dtype is forgotten too: nothing of it reaches an export.
        return FeatureSpec(name, kind, 1 + (len(values) if values is not None else 0)), values
    if kind == "number":
        finite = column.cast(pl.Float64).fill_nan(None).drop_nulls().to_numpy()
        mean = float(finite.mean()) if len(finite) else 0.0
        deviation = float(finite.std(ddof=1)) if len(finite) > 1 else 0.0
        return FeatureSpec(name, kind, 1), [mean, deviation if deviation > 0 else 1.0]
    if kind == "vector":
        if isinstance(column.dtype, pl.List):
            width = int(column.list.len().fill_null(0).to_numpy().max(initial=0))
        else:
            width = int(getattr(column.dtype, "size", 0))
        if width == 0:
            raise DataError(f"feature `{name}` is a vector and must hold lists of numbers. Received: {column.dtype}")
        return FeatureSpec(name, kind, width), None
    if kind == "category":
        known = _held_by(_text(column), least)
        return FeatureSpec(name, kind, 1 + len(known)), _as_array(known)
    if kind == "category_list":
        lists = column.cast(pl.List(pl.String))
        known = _held_by(lists.list.unique().explode().drop_nulls(), least)
        length = int(lists.list.len().fill_null(0).to_numpy().max(initial=1))
        return FeatureSpec(name, kind, 1 + len(known), max(1, min(length, max_list_length))), _as_array(known)
    words = _words(column).explode().rename("word")
    counts = words.filter(words != MISSING).value_counts().sort(["count", "word"], descending=[True, False])
    known = counts["word"].head(max_words).sort()
    return FeatureSpec(name, kind, 1 + len(known) + word_buckets, max_list_length, word_buckets), _as_array(known)


def _held_by(values: pl.Series, least: int) -> pl.Series:
    """The different values that occur at least so often, in order, without that for missing."""
    counts = values.filter(values != MISSING).rename("value").value_counts()
    return counts.filter(pl.col("count") >= least)["value"].sort()


def _words(column: pl.Series) -> pl.Series:
    lowered = column.cast(pl.String).fill_null("").str.to_lowercase()
    return lowered.str.replace_all(_SEPARATORS, " ").str.strip_chars(" ").str.split(" ")


def _text(column: pl.Series) -> pl.Series:
    return column.cast(pl.String).fill_null(MISSING)


def _raw_columns(frame: pl.DataFrame, spec: FeatureSpec) -> dict[str, Any]:
    """One column of a table in the raw form that `encode` takes."""
    name, rows = spec.name, frame.height
    absent = name not in frame.columns
    if spec.kind == "number":
        value = np.full(rows, np.nan) if absent else frame[name].cast(pl.Float64).fill_null(np.nan).to_numpy()
        return {name: value.astype(np.float32)}
    if spec.kind == "vector":
        value = np.zeros((rows, spec.size), np.float32)
        for row, vector in enumerate([] if absent else frame[name].to_list()):
            if vector is not None:
                value[row, : len(vector)] = vector
        return {name: value}
    if spec.kind == "category_list":
        if absent:
            return {name: np.full((rows, 1), MISSING, object), f"{name}_length": np.zeros(rows, np.int32)}
        lists = frame[name].cast(pl.List(pl.String)).fill_null([]).list.head(spec.length)
        lengths = lists.list.len().to_numpy().astype(np.int32)
        padded = np.full((rows, spec.length), MISSING, object)
        padded[np.arange(spec.length) < lengths[:, None]] = (
            lists.list.explode(empty_as_null=False).fill_null(MISSING).to_numpy()
        )
        return {name: padded, f"{name}_length": lengths}
    if absent:
        return {name: np.full(rows, MISSING, object)}
    column = frame[name] if spec.kind == "id" else _text(frame[name])
    return {name: _as_array(column)}


def _as_array(column: pl.Series) -> np.ndarray:
    """Integers as int64, everything else as an object array of str."""
    if column.dtype.is_integer():
        return column.cast(pl.Int64).to_numpy()
    return np.asarray(column.cast(pl.String).to_list(), dtype=object)


def _lookup_table(values: np.ndarray) -> tf.lookup.StaticHashTable:
    keys = tf.constant(values, tf.int64 if values.dtype == np.int64 else tf.string)
    rows = tf.range(1, len(values) + 1, dtype=tf.int64)
    return tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer(keys, rows), default_value=0)
