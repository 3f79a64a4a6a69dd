"""Reads files of one table each: CSV as it may be written, Parquet and JSON lines."""

import os
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from glob import glob
from pathlib import Path
from typing import Any

import polars as pl

from tfmetarec.data.errors import DataError, first_line, nearest_name

READING = ("separator", "quote", "columns", "missing")
"""The keys of a mapping that say how a CSV file is written."""

FORMATS = {
    ".csv": "csv",
    ".txt": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
    ".jsonl": "json lines",
    ".ndjson": "json lines",
}


def files_of(path: Any, folder: Path, name: str) -> list[Path]:
    """The files that a path, a glob or a list of them names, each once; relative to `folder`.

    Raises:
        DataError: if one names none.
    """
    patterns = [path] if isinstance(path, str | os.PathLike) else path
    if not isinstance(patterns, list | tuple) or not patterns:
        raise DataError(f"`path` of `{name}` must be a path or a list of paths. Received: {path!r}")
    files = []
    for pattern in patterns:
        full = folder / os.path.expanduser(str(pattern))
        # A file whose own name has brackets is that file, and no pattern.
        matches = [full] if full.is_file() else [Path(m) for m in sorted(glob(str(full), recursive=True))]
        matches = [match for match in matches if match.is_file()]
        if not matches:
            raise DataError(
                f"`path` of `{name}` must match files. Received: {str(pattern)!r}, which matches none in "
                f"{str(folder.resolve())!r}"
            )
        files += matches
    return list(dict.fromkeys(files))


def format_of(files: list[Path]) -> str:
    """The one format of the files, by their suffixes: "csv", "parquet" or "json lines".

    Raises:
        DataError: if a suffix is not known, or they are of several formats.
    """
    for file in files:
        if file.suffix.lower() not in FORMATS:
            raise DataError(f"A data file must end in {', '.join(FORMATS)}. Received: {str(file)!r}")
    formats = {FORMATS[file.suffix.lower()] for file in files}
    if len(formats) > 1:
        raise DataError(
            f"`path` must match files of one format. Received: {' and '.join(sorted(formats))} in {shown(files)}"
        )
    return formats.pop()


def scanner(
    file_format: str, section: Mapping[str, Any], types: dict[str, Any], name: str
) -> Callable[[Path], pl.LazyFrame]:
    """A function that scans a file.

    Args:
        file_format: as of `format_of`.
        section: of a mapping; how a CSV file is written, by the keys of `READING`.
        types: by column, of those that must not be guessed.
        name: of the section, for messages.

    Raises:
        DataError: if a key cannot be used.
    """
    for key in READING:
        if section.get(key) is not None and file_format != "csv":
            raise DataError(f"`{key}` must be left out for {file_format} files. Received: {section[key]!r}")
    separator, quote = section.get("separator"), section.get("quote")
    if separator is not None and len(str(separator).encode()) != 1:
        raise DataError(f"`separator` must be one character. Received: separator={separator!r}")
    if quote is not None and len(str(quote).encode()) > 1:
        raise DataError(f"`quote` must be one character, or empty. Received: quote={quote!r}")
    columns, missing = section.get("columns"), section.get("missing")
    for key, names in (("columns", columns), ("missing", missing)):
        if names is not None and (not isinstance(names, list) or not all(isinstance(text, str) for text in names)):
            raise DataError(f"`{key}` of `{name}` must be a list of texts. Received: {names!r}")
    if columns is not None and len(set(columns)) < len(columns):
        raise DataError(f"`columns` of `{name}` must name each column once. Received: {columns!r}")
    if file_format == "parquet":
        return lambda file: pl.scan_parquet(file, glob=False)
    if file_format == "json lines":
        return lambda file: pl.scan_ndjson(file, infer_schema_length=None)

    def scan_csv(file: Path) -> pl.LazyFrame:
        tab = file.suffix.lower() == ".tsv"
        written: dict[str, Any] = {"separator": separator or ("\t" if tab else ","), "glob": False}
        written["quote_char"] = '"' if quote is None else quote or None
        if columns is None and missing is None:
            return pl.scan_csv(file, schema_overrides=types, infer_schema_length=None, **written)
        # Read as text: a column of numbers with an "NA" in it has no type that polars could begin with.
        lazy = pl.scan_csv(file, infer_schema=False, has_header=columns is None, **written)
        found = lazy.collect_schema().names()
        if columns is not None:
            if len(columns) != len(found):
                raise DataError(
                    f"`columns` of `{name}` must name the {len(found)} columns of {file}. Received: {columns}"
                )
            lazy = lazy.rename(dict(zip(found, columns, strict=True)))
        if missing is not None:
            lazy = lazy.with_columns(pl.all().str.strip_chars())
            lazy = lazy.with_columns(pl.when(~pl.all().is_in([*missing, ""])).then(pl.all()))
        known = {column: kind for column, kind in types.items() if column in (columns or found)}
        return lazy.with_columns(pl.col(column).cast(kind) for column, kind in known.items())

    return scan_csv


def read(
    scan: Callable[[Path], pl.LazyFrame],
    file: Path,
    required: list[str],
    wanted: list[str] | None,
    patterns: list[str] | None = None,
) -> pl.DataFrame:
    """The wanted columns of a file, or all; and those that match the patterns, of which each must match some.

    Raises:
        DataError: if a column is not there, a pattern matches none, or the file cannot be read.
    """
    try:
        lazy = scan(file)
        columns = lazy.collect_schema().names()
        for column in required:
            if column not in columns:
                raise DataError(
                    f"{file} must have the column {column!r}{nearest_name(column, columns)}. "
                    f"Received the columns {columns}"
                )
        for pattern in patterns or ():
            matches = [column for column in columns if fnmatchcase(column, pattern)]
            if not matches:
                raise DataError(f"{file} must have columns that match {pattern!r}. Received the columns {columns}")
            wanted = list(dict.fromkeys([*(wanted or ()), *matches]))
        return lazy.collect() if wanted is None else lazy.select(wanted).collect()
    except (OSError, pl.exceptions.PolarsError) as error:
        raise DataError(f"{file} cannot be read: {first_line(error)}") from error


def shown(files: list[Path]) -> str:
    """The files in words, for messages."""
    return str(files[0]) if len(files) == 1 else f"{files[0]} and {len(files) - 1} more"
