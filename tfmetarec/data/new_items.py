"""Items that training never saw: read from a file, and checked against the catalogue that they are to join."""

import os
from collections.abc import Mapping
from pathlib import Path

import polars as pl

from tfmetarec.data.columns import typed_feature
from tfmetarec.data.errors import DataError, first_line, nearest_name
from tfmetarec.data.files import read_items
from tfmetarec.data.schema import Schema


def read_new_items(path: str | os.PathLike, schema: Schema, catalogue: pl.DataFrame) -> pl.DataFrame:
    """Reads new items from .csv, .tsv, .parquet, .jsonl or .ndjson; in CSV, `|` splits the values of a list.

    Args:
        path: file with `item_id` and the item features; those it lacks count as missing.
        schema: of the catalogue.
        catalogue: with the columns of `schema.item`, whose types the new items take.

    Raises:
        DataError: if the file cannot be read, or as `typed_new_items`.
    """
    kinds = {feature.name: feature.kind for feature in schema.item}
    separator = "|" if Path(path).suffix.lower() in (".csv", ".tsv") else None
    return typed_new_items(read_items(path, kinds), schema, catalogue, separator)


def typed_new_items(
    items: pl.DataFrame, schema: Schema, catalogue: pl.DataFrame, list_separator: str | None = None
) -> pl.DataFrame:
    """The columns that `items` has of `schema.item`, in the types of `catalogue`.

    Args:
        items: with `item_id`, each id once.
        schema: of the catalogue.
        catalogue: with the columns of `schema.item`.
        list_separator: str, optional. Splits strings into the values of a `category_list`.

    Raises:
        DataError: if there are no content features or no rows, an id is repeated or already in the catalogue, a
            column is no item feature, or a value does not fit its kind.
    """
    features = {feature.name: feature for feature in schema.item}
    if not set(features) - {"item_id", schema.item_name}:
        raise DataError("items can be added to a catalogue with content features, and this one has none")
    for column in items.columns:
        if column not in features:
            raise DataError(
                f"new items must have no other columns than {', '.join(features)}{nearest_name(column, features)}. "
                f"Received: {column!r}"
            )
    if "item_id" not in items.columns or items.is_empty():
        raise DataError(
            "new items must have the column 'item_id', and rows. "
            f"Received: {items.height} rows, columns {items.columns}"
        )
    # What is missing everywhere says nothing, and has no type to be checked.
    items = items.select(column for column in items if column.name == "item_id" or column.null_count() < len(column))
    typed = pl.DataFrame(
        [typed_feature(items[name], feature, list_separator) for name, feature in features.items() if name in items]
    )
    wanted = pl.Schema({name: catalogue.schema[name] for name in typed.columns})
    _check_widths(typed.schema, wanted)
    try:
        typed = typed.cast(wanted)
    except pl.exceptions.PolarsError as error:
        raise DataError(f"new items must have the types of the catalogue: {first_line(error)}") from error
    ids = typed["item_id"]
    if len(repeated := ids.filter(ids.is_duplicated())):
        raise DataError(f"new items must have each item_id once. Received {repeated[0]!r} more than once")
    if len(there := ids.filter(ids.is_in(catalogue["item_id"].implode()))):
        raise DataError(
            f"new items must not be in the catalogue yet. Received {len(there):,} that are, such as {there[0]!r}"
        )
    return typed


def _check_widths(received: Mapping[str, pl.DataType], wanted: Mapping[str, pl.DataType]) -> None:
    for name, dtype in wanted.items():
        if isinstance(dtype, pl.Array) and received[name] != dtype:
            width = getattr(received[name], "size", 0)
            raise DataError(f"feature {name!r} of new items must be of width {dtype.size}. Received: {width}")
