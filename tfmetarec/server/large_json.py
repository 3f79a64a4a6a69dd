"""Reading large JSON documents in pieces, so that the other threads get their turns in between.

The standard library reads a document in one call that no other Python thread can interrupt: seconds for 50 MB, in
which nobody is answered. Here Python walks the outer levels and that call gets stretches of a list, a few dozen
kilobytes each. What comes out is the same.
"""

from __future__ import annotations

import json
import re
from typing import Any

LARGE_CHARACTERS = 1 << 18
"""Shorter documents are read in one call."""
_STRETCH = 1 << 16
_WALKED_LEVELS = 16
_SPACE = re.compile(r"[ \t\r\n]*")
_DECODER: Any = json.JSONDecoder()  # Its parts `scan_once` and `parse_string` are in no type description.


def raw_decode(text: str, start: int = 0) -> tuple[Any, int]:
    """The value that begins at `start`, and the place behind it: `json.JSONDecoder.raw_decode` in pieces.

    Raises:
        json.JSONDecodeError: if there is none.
        RecursionError: if it is nested too deeply.

    Example:
    >>> raw_decode('{"a": [1, 2.5, {"b": "c"}]} and more')
    ({'a': [1, 2.5, {'b': 'c'}]}, 27)
    """
    try:
        return _value(text, start, 0)
    except StopIteration as stop:
        raise json.JSONDecodeError("Expecting value", text, stop.value) from None


def _value(text: str, at: int, level: int) -> tuple[Any, int]:
    if level < _WALKED_LEVELS:
        if text.startswith("{", at):
            return _object(text, at + 1, level)
        if text.startswith("[", at):
            return _list(text, at + 1, level)
    return _DECODER.scan_once(text, at)


def _skip(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return match.end() if match else at


def _object(text: str, at: int, level: int) -> tuple[dict[str, Any], int]:
    found: dict[str, Any] = {}
    at = _skip(text, at)
    if text.startswith("}", at):
        return found, at + 1
    while True:
        if not text.startswith('"', at):
            raise json.JSONDecodeError("Expecting property name enclosed in double quotes", text, at)
        name, at = _DECODER.parse_string(text, at + 1, True)
        at = _skip(text, at)
        if not text.startswith(":", at):
            raise json.JSONDecodeError("Expecting ':' delimiter", text, at)
        found[name], at = _value(text, _skip(text, at + 1), level + 1)
        at = _skip(text, at)
        if text.startswith("}", at):
            return found, at + 1
        if not text.startswith(",", at):
            raise json.JSONDecodeError("Expecting ',' delimiter", text, at)
        at = _skip(text, at + 1)


def _list(text: str, at: int, level: int) -> tuple[list[Any], int]:
    found: list[Any] = []
    at = _skip(text, at)
    if text.startswith("]", at):
        return found, at + 1
    one_by_one_to = 0
    while True:
        if at >= one_by_one_to:
            at, one_by_one_to = _stretch(text, at, found)
            if not one_by_one_to:
                continue
        value, at = _value(text, at, level + 1)
        found.append(value)
        at = _skip(text, at)
        if text.startswith("]", at):
            return found, at + 1
        if not text.startswith(",", at):
            raise json.JSONDecodeError("Expecting ',' delimiter", text, at)
        at = _skip(text, at + 1)


def _stretch(text: str, at: int, found: list[Any]) -> tuple[int, int]:
    """Reads whole elements from `at` on, several at once, onto `found`.

    A stretch that ends at a comma and is a list when it stands in brackets holds whole elements of this very list.

    Returns:
        The place behind them and 0; or, where that did not work, `at` and up to where not to try it again.
    """
    before_comma = {"{": "},", "[": "],", '"': '",'}.get(text[at : at + 1], ",")
    end = text.rfind(before_comma, at, at + _STRETCH)
    if end > at:
        end += len(before_comma) - 1
        try:
            found += _DECODER.decode(f"[{text[at:end]}]")
        except ValueError:
            pass
        else:
            return _skip(text, end + 1), 0
    return at, at + _STRETCH
