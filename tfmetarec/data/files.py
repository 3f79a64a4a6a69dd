"""Reads a user's own files: a mapping says which file holds what, and which column is which.

    name: my-shop
    feedback: implicit                  # or explicit
    interactions:
      path: purchases/*.csv             # one file, a glob, or a list of them; relative to the YAML file
      user_id: customer
      item_id: sku
      timestamp: bought_at              # optional: seconds since 1970, ISO dates, or datetimes
      label: quantity                   # optional for implicit feedback
      behavior: event                   # optional: view, cart, purchase, ...
      domain: shop                      # optional
      separator: ","                    # CSV only
    users:                              # optional
      path: customers.parquet
      user_id: customer
      features: {age: number, city: category}
    items:                              # optional
      path: products.jsonl
      item_id: sku
      name: title                       # optional: the column shown to people
      features: {brand: category, tags: category_list, price: number}
    duplicates: sum                     # error, first, last or sum; see `Interactions.from_frames`
    list_separator: "|"                 # splits the strings of a category_list

Without `features` every other column of the file is a feature, and its kind is guessed from its type.
Suffixes: .csv, .tsv, .parquet, .jsonl and .ndjson. Ids in CSV files have no type of their own: they take that
of the other files; where all are CSV they are numbers if every one is written as a plain number, so that the
id 007 stays itself.
"""

import os
from collections.abc import Callable, Mapping
from glob import glob
from pathlib import Path
from typing import Any

import polars as pl
import yaml

from tfmetarec.data.errors import DataError, first_line, nearest_name

_SECTIONS = {
    "interactions": ("path", "user_id", "item_id", "timestamp", "label", "behavior", "domain", "separator"),
    "users": ("path", "user_id", "features", "separator"),
    "items": ("path", "item_id", "name", "features", "separator"),
}
_SETTINGS = ("name", "feedback", "duplicates", "list_separator")
_ROLES = ("user_id", "item_id", "label", "timestamp", "behavior", "domain")
_FORMATS = {
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
    ".jsonl": "json lines",
    ".ndjson": "json lines",
}
_WHOLE_NUMBER = r"^(0|-?[1-9]\d{0,17})$"


def read_mapping(mapping: str | os.PathLike | Mapping[str, Any]) -> dict[str, Any]:
    """Reads the files that a mapping names and returns the arguments of `Interactions.from_frames`.

    Args:
        mapping: path to a YAML file, or the same as a dict, whose paths are then relative to where the
            program runs. The module's docstring has every key.

    Raises:
        DataError: if the mapping has an unknown or missing key, or a file cannot be read.
    """
    folder, mapping = _load(mapping)
    _check_keys(mapping, (*_SECTIONS, *_SETTINGS), ("interactions", "feedback"), "The mapping")
    sections = {name: mapping[name] for name in _SECTIONS if mapping.get(name) is not None}
    for name, section in sections.items():
        if not isinstance(section, Mapping):
            raise DataError(f"`{name}` of the mapping must be a section with keys. Received: {section!r}")
        ids = ("user_id", "item_id") if name == "interactions" else (f"{name[:-1]}_id",)
        _check_keys(section, _SECTIONS[name], ("path", *ids), f"`{name}` of the mapping")

    frames: dict[str, pl.DataFrame] = {}
    untyped: set[str] = set()
    for name, section in sections.items():
        files = _files(section["path"], folder, name)
        file_format = _format_of(files)
        if file_format == "csv":
            untyped.add(name)
        frames[name] = _read_section(name, section, files, file_format)
    for side in ("user_id", "item_id"):
        frames |= _with_one_id_type(frames, untyped, side)

    arguments: dict[str, Any] = {key: mapping[key] for key in _SETTINGS if mapping.get(key) is not None}
    arguments["table"] = frames["interactions"]
    arguments["kinds"] = {}
    for name in ("users", "items"):
        if name in frames:
            arguments[name] = frames[name]
            kinds = sections[name].get("features") or {}
            arguments["kinds"] |= {f"{name[:-1]}.{feature}": kind for feature, kind in kinds.items()}
    arguments["item_name"] = sections.get("items", {}).get("name")
    return arguments


def read_items(path: str | os.PathLike, kinds: Mapping[str, str]) -> pl.DataFrame:
    """Reads one file of items, all of its columns.

    Args:
        path: in one of the formats of a mapping.
        kinds: of the features that it may have, "id" of `item_id`: what is no number in a CSV file stays text.

    Raises:
        DataError: if it cannot be read.
    """
    files = _files(path, Path(), "items")
    types = {name: pl.Float64 if kind == "number" else pl.String for name, kind in kinds.items()}
    file_format = _format_of(files)
    scan = _scanner(file_format, None, files, types if file_format == "csv" else {})
    return pl.concat([_read(scan, file, ["item_id"], None) for file in files], how="diagonal_relaxed")


def _load(mapping: str | os.PathLike | Mapping[str, Any]) -> tuple[Path, Mapping[str, Any]]:
    if isinstance(mapping, Mapping):
        return Path(), mapping
    if not isinstance(mapping, str | os.PathLike):
        raise DataError(f"`mapping` must be a path or a dict. Received the type {type(mapping).__name__}")
    path = Path(mapping)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"`mapping` must be a file that can be read. Received: {str(path)!r}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        where = " ".join(str(error).split())
        raise DataError(f"`mapping` must be YAML, but {path} is not: {where}") from error
    if not isinstance(content, Mapping):
        raise DataError(f"`mapping` must be YAML with keys such as `interactions`. Received: {str(path)!r}")
    return path.parent, content


def _check_keys(section: Mapping[str, Any], known: tuple[str, ...], required: tuple[str, ...], where: str) -> None:
    for key in section:
        if key not in known:
            raise DataError(
                f"{where} must have no other keys than {', '.join(known)}{nearest_name(key, known)}. Received: {key!r}"
            )
    for key in required:
        if section.get(key) is None:
            raise DataError(f"{where} must have the key {key!r}. Received the keys {list(section)}")


def _read_section(name: str, section: Mapping[str, Any], files: list[Path], file_format: str) -> pl.DataFrame:
    roles = {role: section[role] for role in _ROLES if section.get(role) is not None}
    for role, column in roles.items():
        if not isinstance(column, str):
            raise DataError(f"`{role}` of `{name}` must be the name of a column. Received: {column!r}")
    features = section.get("features")
    if features is not None and not isinstance(features, Mapping):
        raise DataError(f"`features` of `{name}` must map names to kinds. Received: {features!r}")

    # Without a type here, a file whose first rows are whole numbers fails at its first fraction or word.
    types: dict[str, Any] = {column: pl.Float64 for role, column in roles.items() if role == "label"}
    if file_format == "csv":
        types |= {column: pl.String for role, column in roles.items() if role != "label"}
        types |= {column: pl.Float64 if kind == "number" else pl.String for column, kind in (features or {}).items()}
    scan = _scanner(file_format, section.get("separator"), files, types)

    wanted: list[str] | None = None
    if features is not None or name == "interactions":
        shown = [section["name"]] if section.get("name") else []
        wanted = list(dict.fromkeys([*roles.values(), *shown, *(features or {})]))
    parts = [_read(scan, file, [*roles.values()] if wanted is None else wanted, wanted) for file in files]
    try:
        frame = pl.concat(parts, how="vertical_relaxed")
    except pl.exceptions.PolarsError as error:
        raise DataError(
            f"The files of `{name}` must have the same columns: {first_line(error)}. Received: {_shown(files)}"
        ) from error
    if frame.is_empty():
        raise DataError(f"`{name}` must have rows. Received none in {_shown(files)}")
    columns = [pl.col(column).alias(role) for role, column in roles.items()]
    if name == "interactions":
        return frame.select(columns)
    others = [column for column in frame.columns if column not in roles.values()]
    for role in roles:
        if role in others:
            raise DataError(
                f"`{name}` must not have a feature called {role!r} beside the id {roles[role]!r}; rename it "
                f"in the file, or list the `features` without it. Received: {_shown(files)}"
            )
    return frame.select(*columns, *others)


def _files(path: Any, folder: Path, name: str) -> list[Path]:
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


def _format_of(files: list[Path]) -> str:
    for file in files:
        if file.suffix.lower() not in _FORMATS:
            raise DataError(f"A data file must end in {', '.join(_FORMATS)}. Received: {str(file)!r}")
    formats = {_FORMATS[file.suffix.lower()] for file in files}
    if len(formats) > 1:
        raise DataError(
            f"`path` must match files of one format. Received: {' and '.join(sorted(formats))} in {_shown(files)}"
        )
    return formats.pop()


def _scanner(
    file_format: str, separator: str | None, files: list[Path], types: dict[str, Any]
) -> Callable[[Path], pl.LazyFrame]:
    if separator is not None and file_format != "csv":
        raise DataError(f"`separator` must be left out for {file_format} files. Received: {separator!r}")
    if separator is not None and len(str(separator).encode()) != 1:
        raise DataError(f"`separator` must be one character. Received: separator={separator!r}")
    if file_format == "parquet":
        return lambda file: pl.scan_parquet(file, glob=False)
    if file_format == "json lines":
        return lambda file: pl.scan_ndjson(file, infer_schema_length=None)

    def scan_csv(file: Path) -> pl.LazyFrame:
        tab = file.suffix.lower() == ".tsv"
        return pl.scan_csv(
            file,
            separator=separator or ("\t" if tab else ","),
            schema_overrides=types,
            infer_schema_length=None,
            glob=False,
        )

    return scan_csv


def _read(
    scan: Callable[[Path], pl.LazyFrame], file: Path, required: list[str], wanted: list[str] | None
) -> pl.DataFrame:
    try:
        lazy = scan(file)
        columns = lazy.collect_schema().names()
        for column in required:
            if column not in columns:
                raise DataError(
                    f"{file} must have the column {column!r}{nearest_name(column, columns)}. "
                    f"Received the columns {columns}"
                )
        return lazy.collect() if wanted is None else lazy.select(wanted).collect()
    except (OSError, pl.exceptions.PolarsError) as error:
        raise DataError(f"{file} cannot be read: {first_line(error)}") from error


def _with_one_id_type(frames: Mapping[str, pl.DataFrame], untyped: set[str], column: str) -> dict[str, pl.DataFrame]:
    """Returns the frames that have `column`, where CSV ids have the type that the other files give them."""
    holders = {name: frame for name, frame in frames.items() if column in frame.columns}
    types = {name: frame[column].dtype for name, frame in holders.items() if name not in untyped}
    plain = all(holders[name][column].str.contains(_WHOLE_NUMBER).all() for name in untyped & set(holders))
    if pl.String in types.values():
        return holders
    for name in holders:
        if name in untyped and plain:
            holders[name] = holders[name].with_columns(pl.col(column).cast(pl.Int64))
        elif name in types and types[name].is_integer() and not plain:
            holders[name] = holders[name].with_columns(pl.col(column).cast(pl.String))
    return holders


def _shown(files: list[Path]) -> str:
    return str(files[0]) if len(files) == 1 else f"{files[0]} and {len(files) - 1} more"
