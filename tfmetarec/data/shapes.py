"""Brings tables of other shapes to one row for each interaction, and tables of pairs to features.

Published files often list a user's items in one cell, or have a column for each item. Every function takes a polars
frame and returns another; none reads a file.
"""

import re

import polars as pl

from tfmetarec.data.errors import DataError, first_line


def with_times(frame: pl.DataFrame, column: str, time_format: str) -> pl.DataFrame:
    """Returns the frame with `column` read as times.

    Args:
        frame: polars DataFrame.
        column: str. Its strings are times; null stays null.
        time_format: str, as of `strptime`, such as "%m/%d/%Y %I:%M:%S %p".

    Raises:
        DataError: if a string is not written so, or the format is none.

    Example:
    >>> with_times(pl.DataFrame({"seen": ["1/2/2020 3:04:05 PM"]}), "seen", "%m/%d/%Y %I:%M:%S %p")["seen"].to_list()
    [datetime.datetime(2020, 1, 2, 15, 4, 5)]
    """
    texts = frame[column].cast(pl.String)
    try:
        times = texts.str.to_datetime(time_format, time_unit="us", strict=False, ambiguous="earliest")
    except pl.exceptions.PolarsError as error:
        raise DataError(f"`time_format` cannot be used: {first_line(error)}. Received: {time_format!r}") from error
    wrong = texts.filter(times.is_null() & texts.is_not_null())
    if len(wrong):
        raise DataError(
            f"`{column}` must be written as `time_format` {time_format!r} says. Received: {wrong[0]!r}, "
            f"{len(wrong):,} such rows in all"
        )
    return frame.with_columns(times.alias(column))


def one_row_per_entry(
    frame: pl.DataFrame,
    kept: list[pl.Expr],
    columns: list[str],
    separator: str,
    label_separator: str | None = None,
    zeros: bool = True,
) -> pl.DataFrame:
    """Returns a row for each item that the cells of `columns` list.

    Args:
        frame: polars DataFrame, `(R,)` rows.
        kept: expressions of the columns that every row keeps.
        columns: names of the columns with items, in the order in which they count.
        separator: str between two items of a cell.
        label_separator: str between an item and its label, optional. An item without it has label 1.
        zeros: bool. Whether items with label 0 have rows.

    Returns:
        The kept columns, `item_id` (String) and, with `label_separator`, `label` (Float64), in the order of the rows
        and of the items in them. A row whose cells are empty has none.

    Raises:
        DataError: if what follows `label_separator` is no number.

    Example:
    >>> shown = pl.DataFrame({"user": ["ann"], "before": ["N7"], "now": ["N1-1 N2-0"]})
    >>> one_row_per_entry(shown, [pl.col("user").alias("user_id")], ["before", "now"], " ", "-").rows()
    [('ann', 'N7', 1.0), ('ann', 'N1', 1.0), ('ann', 'N2', 0.0)]
    """
    cells = [pl.col(column).cast(pl.String).fill_null("").str.split(separator) for column in columns]
    entry = pl.col("item_id").str.strip_chars()
    rows = frame.select(*kept, item_id=pl.concat_list(cells)).explode("item_id").with_columns(item_id=entry)
    rows = rows.filter(pl.col("item_id") != "")
    if label_separator is None:
        return rows
    parts = f"^(.*){re.escape(label_separator)}(.*)$"  # Greedy: the last separator counts.
    written = pl.col("item_id").str.extract(parts, 2)
    rows = rows.with_columns(
        item_id=pl.col("item_id").str.extract(parts, 1).fill_null(pl.col("item_id")),
        entry="item_id",
        label=pl.when(written.is_null()).then(1.0).otherwise(written.cast(pl.Float64, strict=False)),
    )
    wrong = rows.filter(pl.col("label").is_null())
    if wrong.height:
        raise DataError(
            f"what follows `label_separator` {label_separator!r} must be a number. Received: {wrong['entry'][0]!r}, "
            f"{wrong.height:,} such items in all"
        )
    return rows.filter(_wanted(zeros)).drop("entry")


def one_row_per_cell(frame: pl.DataFrame, kept: list[pl.Expr], columns: list[str], zeros: bool = True) -> pl.DataFrame:
    """Returns a row for each cell of `columns` that is not empty: the column is the item, and the cell its label.

    Args:
        frame: polars DataFrame.
        kept: expressions of the columns that every row keeps.
        columns: names of the columns with labels.
        zeros: bool. Whether cells with 0 have rows.

    Raises:
        DataError: if a cell is no number.

    Example:
    >>> held = pl.DataFrame({"who": [1, 2], "loan": [1, None], "card": [0, 1]})
    >>> one_row_per_cell(held, [pl.col("who").alias("user_id")], ["loan", "card"]).rows()
    [(1, 'loan', 1.0), (1, 'card', 0.0), (2, 'card', 1.0)]
    """
    parts = []
    for column in columns:
        labels = frame[column].cast(pl.Float64, strict=False)
        wrong = frame[column].filter(labels.is_null() & frame[column].is_not_null())
        if len(wrong):
            raise DataError(f"a column of `item_columns` must hold numbers. Received: {wrong[0]!r} in {column!r}")
        place = pl.int_range(pl.len(), dtype=pl.Int64).alias("place")
        part = frame.select(*kept, place, item_id=pl.lit(column), label=labels)
        # Column by column: most cells of a wide table are 0, and all of them at once may not fit into memory.
        parts.append(part.filter(pl.col("label").is_not_null() & _wanted(zeros)))
    return pl.concat(parts).sort("place", maintain_order=True).drop("place")


def _wanted(zeros: bool) -> pl.Expr:
    return pl.lit(True) if zeros else pl.col("label") != 0


def listed(pairs: pl.DataFrame, one: str, feature: str) -> pl.DataFrame:
    """Returns a row for each id of the column `one`, with the list of its `value`s, each once, in their order.

    Example:
    >>> listed(pl.DataFrame({"user_id": [1, 2, 1], "value": ["b", "a", "a"]}), "user_id", "friends").rows()
    [(1, ['b', 'a']), (2, ['a'])]
    """
    values = pl.col("value").drop_nulls().unique(maintain_order=True)
    return pairs.drop_nulls(one).group_by(one, maintain_order=True).agg(values.alias(feature))


def counted(pairs: pl.DataFrame, one: str, feature: str) -> pl.DataFrame:
    """Returns a row for each id of the column `one`, with how many rows it has.

    Example:
    >>> counted(pl.DataFrame({"user_id": [1, 2, 1]}), "user_id", "followers").rows()
    [(1, 2), (2, 1)]
    """
    return pairs.drop_nulls(one).group_by(one, maintain_order=True).agg(pl.len().cast(pl.Int64).alias(feature))
