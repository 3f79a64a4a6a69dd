"""Douban books and music: ratings from 1 to 5 by people of whom most rated both, for transfer between domains.

The data may not be passed on, so they come from a folder that the user has.

Reference: [Zhu et al., 2019](https://doi.org/10.1145/3357384.3357992)
"""

import os
from pathlib import Path

import polars as pl

from tfmetarec.data.errors import DataError, first_line
from tfmetarec.data.interactions import Interactions

DOMAINS = ("book", "music")

_COLUMNS = ("user_id", "item_id", "rating")


def load(folder: str | os.PathLike) -> Interactions:
    """Returns who rated which book or piece of music, and how high.

    The column `domain` says "book" or "music". Both domains number their items from their own beginning, so an
    item's id is its domain and its number, such as "book-17"; a user's id is the same person's in both.

    Args:
        folder: path. A folder with `book.parquet` and `music.parquet`, each with the columns `user_id`, `item_id` and
            `rating`.

    Raises:
        DataError: if a file is missing, cannot be read, or lacks a column.
    """
    parts = [_read(Path(folder).expanduser() / f"{domain}.parquet", domain) for domain in DOMAINS]
    try:
        table = pl.concat(parts)
    except pl.exceptions.PolarsError as error:
        raise DataError(f"the files of `folder` must have columns of one type: {first_line(error)}") from error
    return Interactions.from_frames(table, feedback="explicit", name="douban_cdr")


def _read(file: Path, domain: str) -> pl.DataFrame:
    try:
        rows = pl.read_parquet(file, glob=False)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise DataError(f"`folder` must have the file {file.name}: {first_line(error)}: {file.parent}") from error
    missing = [column for column in _COLUMNS if column not in rows.columns]
    if missing:
        raise DataError(f"{file} must have the columns {', '.join(_COLUMNS)}. Received: {', '.join(rows.columns)}")
    return rows.select("user_id", item_id=pl.format(f"{domain}-{{}}", "item_id"), label="rating", domain=pl.lit(domain))
