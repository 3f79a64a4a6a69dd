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
Suffixes: .csv, .txt (the same), .tsv, .parquet, .jsonl and .ndjson. Ids in CSV files have no type of their own:
they take that of the other files; where all are CSV they are numbers if every one is written as a plain number, so
that the id 007 stays itself.

How a CSV file is written, in any section:

    separator: ";"                      # one character; a comma, or a tab in .tsv files, where it is left out
    quote: ""                           # one character, or none where quotation marks are text; " if left out
    columns: [user, item, rating]       # names of all columns, for a file without a header
    missing: [NA, "-"]                  # what stands for "not known"; spaces around a value do not count then

Interactions that are not one a row, and times that are not ISO:

    time_format: "%m/%d/%Y %H:%M"       # as of `strptime`
    item_id: [history, shown]           # columns whose cells hold several items, such as "N1 N2"; with
    item_separator: " "                 # what they are split by; all of a row have its time, in this order
    label_separator: "-"                # "N1-1 N2-0": an item's label follows the last of these; without one it is 1
    item_columns: ["has_*"]             # instead of `item_id`: each such column is an item, and its cell the label

Both list what did not happen, too: with implicit feedback, labels of 0 and empty cells are left out.

Features that are not one row a user or item:

    repeated: first                     # or last: which row of an id counts, in the order of the file
    lists:                              # features of a table of pairs; no pair means an empty list
      friends: {path: friends.csv, user_id: who, value: whom}
    counts:                             # how many rows of a table an id has; none is 0
      followers: {path: friends.csv, user_id: whom}

A section with `lists` or `counts` needs no `path`: its users are then those of the tables of pairs.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl
import yaml

from tfmetarec.data import shapes
from tfmetarec.data.errors import DataError, first_line, nearest_name
from tfmetarec.data.reading import READING, files_of, format_of, read, scanner, shown

_PAIRS = ("lists", "counts")
_SECTIONS = {
    "interactions": (
        *("path", "user_id", "item_id", "timestamp", "label", "behavior", "domain"),
        *("time_format", "item_separator", "label_separator", "item_columns", *READING),
    ),
    "users": ("path", "user_id", "features", "repeated", *_PAIRS, *READING),
    "items": ("path", "item_id", "name", "features", "repeated", *_PAIRS, *READING),
}
_SETTINGS = ("name", "feedback", "duplicates", "list_separator")
_ROLES = ("user_id", "item_id", "label", "timestamp", "behavior", "domain")
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
        _check_section(name, section)

    frames: dict[str, pl.DataFrame] = {}
    untyped: set[str] = set()
    for name, section in _tables(sections).items():
        files = files_of(section["path"], folder, name)
        file_format = format_of(files)
        if file_format == "csv":
            untyped.add(name)
        frames[name] = _read_section(name, section, files, file_format, zeros=mapping["feedback"] != "implicit")
    for side in ("user_id", "item_id"):
        frames |= _with_one_id_type(frames, untyped, side)

    arguments: dict[str, Any] = {key: mapping[key] for key in _SETTINGS if mapping.get(key) is not None}
    arguments["table"] = frames["interactions"]
    arguments["kinds"] = {}
    for name in ("users", "items"):
        if name in sections:
            side, section = name[:-1], sections[name]
            arguments[name] = _with_pairs(name, section, frames)
            kinds = dict(section.get("features") or {})
            kinds |= dict.fromkeys(section.get("lists") or (), "category_list")
            kinds |= dict.fromkeys(section.get("counts") or (), "number")
            arguments["kinds"] |= {f"{side}.{feature}": kind for feature, kind in kinds.items()}
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
    files = files_of(path, Path(), "items")
    types = {name: pl.Float64 if kind == "number" else pl.String for name, kind in kinds.items()}
    file_format = format_of(files)
    scan = scanner(file_format, {}, types if file_format == "csv" else {}, "items")
    return pl.concat([read(scan, file, ["item_id"], None) for file in files], how="diagonal_relaxed")


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


def _check_section(name: str, section: Any) -> None:
    if not isinstance(section, Mapping):
        raise DataError(f"`{name}` of the mapping must be a section with keys. Received: {section!r}")
    where = f"`{name}` of the mapping"
    if name == "interactions":
        wide = section.get("item_columns") is not None
        _check_keys(section, _SECTIONS[name], ("path", "user_id") if wide else ("path", "user_id", "item_id"), where)
        return _check_shape(section)
    one = f"{name[:-1]}_id"
    pairs = [kind for kind in _PAIRS if section.get(kind) not in (None, {})]
    _check_keys(section, _SECTIONS[name], (one,) if pairs else ("path", one), where)
    if section.get("repeated") not in (None, "first", "last"):
        raise DataError(f"`repeated` of `{name}` must be first or last. Received: {section['repeated']!r}")
    for kind in pairs:
        if not isinstance(section[kind], Mapping):
            raise DataError(f"`{kind}` of `{name}` must map features to tables. Received: {section[kind]!r}")
        for feature, table in section[kind].items():
            inside = f"`{feature}` in `{kind}` of `{name}`"
            if not isinstance(table, Mapping):
                raise DataError(f"{inside} must be a section with keys. Received: {table!r}")
            needed = ("path", one, "value") if kind == "lists" else ("path", one)
            _check_keys(table, (*needed, *READING), needed, inside)
    return None


def _check_shape(section: Mapping[str, Any]) -> None:
    """The keys of a table whose rows are not one interaction each."""
    item, wide = section.get("item_id"), section.get("item_columns")
    if wide is not None:
        if not isinstance(wide, list) or not wide or not all(isinstance(name, str) for name in wide):
            raise DataError(f"`item_columns` of `interactions` must be a list of names or patterns. Received: {wide!r}")
        for key in ("item_id", "label", "item_separator", "label_separator"):
            if section.get(key) is not None:
                raise DataError(f"`{key}` must be left out where `item_columns` is given. Received: {section[key]!r}")
    if isinstance(item, list):
        if not item or not all(isinstance(column, str) for column in item):
            raise DataError(f"`item_id` of `interactions` must name columns. Received: {item!r}")
        if section.get("item_separator") is None:
            raise DataError(f"`item_separator` must be given where `item_id` names several columns. Received: {item!r}")
    for key in ("item_separator", "label_separator", "time_format"):
        if section.get(key) is not None and (not isinstance(section[key], str) or not section[key]):
            raise DataError(f"`{key}` of `interactions` must be text. Received: {section[key]!r}")
    if section.get("label_separator") is not None:
        if section.get("item_separator") is None:
            raise DataError("`label_separator` needs `item_separator`, which says how items are split")
        if section.get("label") is not None:
            raise DataError(f"`label` must be left out beside `label_separator`. Received: {section['label']!r}")
    if section.get("time_format") is not None and section.get("timestamp") is None:
        raise DataError(f"`time_format` needs `timestamp`. Received: {section['time_format']!r}")


def _tables(sections: Mapping[str, Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Everything with a `path`: the sections, and the tables of pairs by names such as "users.lists.friends"."""
    tables = {name: section for name, section in sections.items() if section.get("path") is not None}
    for name, section in sections.items():
        for kind in _PAIRS:
            tables |= {f"{name}.{kind}.{feature}": table for feature, table in (section.get(kind) or {}).items()}
    return tables


def _read_section(
    name: str, section: Mapping[str, Any], files: list[Path], file_format: str, zeros: bool
) -> pl.DataFrame:
    roles = {role: section[role] for role in (*_ROLES, "value") if section.get(role) is not None}
    several = roles.pop("item_id") if isinstance(roles.get("item_id"), list) else []
    if section.get("item_separator") is not None and not several:
        several = [roles.pop("item_id")]
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
        types |= dict.fromkeys(several, pl.String)
        types |= {column: pl.Float64 if kind == "number" else pl.String for column, kind in (features or {}).items()}
    scan = scanner(file_format, section, types, name)

    wanted: list[str] | None = None
    patterns = section.get("item_columns") or []
    if features is not None or name not in ("users", "items"):
        title = [section["name"]] if section.get("name") else []
        wanted = list(dict.fromkeys([*roles.values(), *several, *title, *(features or {})]))
    parts = [read(scan, file, [*roles.values()] if wanted is None else wanted, wanted, patterns) for file in files]
    try:
        frame = pl.concat(parts, how="vertical_relaxed")
    except pl.exceptions.PolarsError as error:
        raise DataError(
            f"The files of `{name}` must have the same columns: {first_line(error)}. Received: {shown(files)}"
        ) from error
    if frame.is_empty():
        raise DataError(f"`{name}` must have rows. Received none in {shown(files)}")
    columns = [pl.col(column).alias(role) for role, column in roles.items()]
    if name == "interactions":
        if section.get("time_format") is not None:
            frame = shapes.with_times(frame, section["timestamp"], section["time_format"])
        if several:
            separators = section["item_separator"], section.get("label_separator")
            found = shapes.one_row_per_entry(frame, columns, several, *separators, zeros=zeros)
        elif patterns:
            items = [column for column in frame.columns if column not in roles.values()]
            found = shapes.one_row_per_cell(frame, columns, items, zeros=zeros)
        else:
            found = frame.select(columns)
        if found.is_empty():
            raise DataError(f"`{name}` must hold items. Received: empty cells or labels of 0 alone in {shown(files)}")
        return found
    if name not in _SECTIONS:
        return frame.select(columns)
    others = [column for column in frame.columns if column not in roles.values()]
    if features is None and (section.get("columns") or section.get("missing")):
        frame = frame.with_columns(_numbers_where_all_are(frame[column]) for column in others)
    for role in roles:
        if role in others:
            raise DataError(
                f"`{name}` must not have a feature called {role!r} beside the id {roles[role]!r}; rename it "
                f"in the file, or list the `features` without it. Received: {shown(files)}"
            )
    frame = frame.select(*columns, *others)
    if section.get("repeated") is not None:
        frame = frame.unique(subset=[*roles], keep=section["repeated"], maintain_order=True)
    return frame


def _numbers_where_all_are(texts: pl.Series) -> pl.Series:
    """What polars would have read if it had known what is missing."""
    for kind in (pl.Int64, pl.Float64):
        numbers = texts.cast(kind, strict=False)
        if numbers.null_count() == texts.null_count():
            return numbers
    return texts


def _with_pairs(name: str, section: Mapping[str, Any], frames: Mapping[str, pl.DataFrame]) -> pl.DataFrame:
    """The table of users or items with a column for each of its `lists` and `counts`."""
    one = f"{name[:-1]}_id"
    tables = {
        kind: {feature: frames[f"{name}.{kind}.{feature}"] for feature in section.get(kind) or ()} for kind in _PAIRS
    }
    frame = frames.get(name)
    if frame is None:
        ids = [table[one] for kind in _PAIRS for table in tables[kind].values()]
        frame = pl.concat(ids).drop_nulls().unique(maintain_order=True).to_frame()
    for kind in _PAIRS:
        for feature, table in tables[kind].items():
            if feature in frame.columns:
                raise DataError(f"`{name}` must have each feature once. Received {feature!r} in `{kind}`, too")
            found = (shapes.listed if kind == "lists" else shapes.counted)(table, one, feature)
            frame = frame.join(found, on=one, how="left", maintain_order="left")
            empty = pl.lit([], found.schema[feature]) if kind == "lists" else pl.lit(0)
            frame = frame.with_columns(pl.col(feature).fill_null(empty))
    return frame


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
