"""JSON as TensorFlow Serving reads and writes it: error texts, number formats and white space.

TensorFlow Serving uses RapidJSON. The standard library does the fast reading here; this module explains a
malformed document in RapidJSON's words and writes values in its layout, because clients compare both.
"""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np

from tfmetarec.server import large_json
from tfmetarec.server.status import StatusError, invalid_argument

INDENT = " " * 4
MAX_EXPLAINED_BYTES = 1 << 17
"""Larger malformed documents get the place of the error only: walking them byte by byte would take too long."""
MAX_SHOWN_VALUES = 1000
"""An error message shows so many values of the request, and so many characters of a text in it."""
_MAX_SHOWN_LEVELS = 50
_WHITE = b" \t\r\n"
_DIGITS = b"0123456789"
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_FAR_EXPONENTS = (re.compile(rb"e\+?[0-9]{3}"), re.compile(rb"E\+?[0-9]{3}"))  # One literal each: ten times as fast.
# Possessive, and without an end a string is one too: else quotes that never close take quadratic time.
_SHORT_SPECIAL = re.compile(r'"(?:[^"\\]|\\.)*+"?|-?Inf(?!inity)|-NaN', re.DOTALL)
_LONG_SPECIAL = {"Inf": "Infinity", "-Inf": "-Infinity", "-NaN": "NaN"}
_MOST_FLOAT32 = 3.4028234e38
_DECODER = json.JSONDecoder()


def parse_object(body: bytes) -> dict[str, Any]:
    """Reads a request's JSON object; text behind it is ignored.

    Bytes that are not UTF-8 survive as surrogates, so that they reach the model unchanged.

    Raises:
        StatusError: INVALID_ARGUMENT, with the place of the first error.

    Example:
    >>> parse_object(b'{"instances": [1, NaN]} and more')
    {'instances': [1, nan]}
    >>> parse_object(b'{"instances": [1, ]}')
    Traceback (most recent call last):
        ...
    tfmetarec.server.status.StatusError: INVALID_ARGUMENT: JSON Parse error: Invalid value. at offset: 18
    """
    if not body:
        raise invalid_argument("JSON Parse error: The document is empty")
    text = body.decode("utf-8", "surrogateescape").removeprefix("\ufeff")
    try:
        value = _decode(text)
    except RecursionError:
        raise invalid_argument("JSON Parse error: The document is nested too deeply.") from None
    except ValueError as error:
        if len(body) > MAX_EXPLAINED_BYTES:
            reason, offset = "Invalid value.", len(text[: getattr(error, "pos", 0)].encode(errors="surrogateescape"))
        else:
            reason, offset = explain(body)
        # What is well-formed and yet cannot be read is an integer of thousands of digits.
        raise _parse_error(reason or _TOO_BIG, offset) from None
    if len(body) <= MAX_EXPLAINED_BYTES and any(p.search(body) for p in (_SURROGATE, *_FAR_EXPONENTS)):
        # Python lets half of a surrogate pair pass, which is no text, and reads 1e400 as infinity.
        reason, offset = explain(body)
        if reason:
            raise _parse_error(reason, offset)
    if not isinstance(value, dict):
        raise invalid_argument(f"JSON Value: {pretty(value)} Is not object")
    return value


_TOO_BIG = "Number too big to be stored in double."


def _parse_error(reason: str, offset: int) -> StatusError:
    return invalid_argument(f"JSON Parse error: {reason} at offset: {offset}")


def _raw_decode(text: str, start: int) -> Any:
    decode = large_json.raw_decode if len(text) > large_json.LARGE_CHARACTERS else _DECODER.raw_decode
    return decode(text, start)[0]


def _decode(text: str) -> Any:
    start = len(text) - len(text.lstrip(" \t\r\n"))
    try:
        return _raw_decode(text, start)
    except ValueError:
        if len(text) > MAX_EXPLAINED_BYTES or ("Inf" not in text and "-NaN" not in text):
            raise
        # RapidJSON takes these shorter words too.
        longer = _SHORT_SPECIAL.sub(lambda found: _LONG_SPECIAL.get(found.group(), found.group()), text)
        return _raw_decode(longer, start)


class _Malformed(Exception):
    pass


def explain(body: bytes) -> tuple[str, int]:
    """Finds the first error of a document: what is wrong, and the byte where reading stopped.

    The reason is empty if there is none.

    Example:
    >>> explain(b'{"a" 1}')
    ('Missing a colon after a name of object member.', 5)
    """
    reader = _Reader(body)
    try:
        reader.document()
    except _Malformed as error:
        return error.args
    except RecursionError:
        return "Invalid value.", reader.at
    return "", 0


class _Reader:
    """Walks a document byte by byte in RapidJSON's order, keeping only the position."""

    def __init__(self, body: bytes):
        self.body = body
        self.at = 0

    def fail(self, reason: str, at: int | None = None) -> None:
        raise _Malformed(reason, self.at if at is None else at)

    def peek(self) -> bytes:
        return self.body[self.at : self.at + 1]

    def take(self, text: bytes) -> bool:
        """Consumes `text` byte by byte; on the first difference stops right there."""
        for byte in text:
            if self.peek() != bytes([byte]):
                return False
            self.at += 1
        return True

    def skip(self, characters: bytes = _WHITE) -> int:
        start = self.at
        while self.peek() and self.peek() in characters:
            self.at += 1
        return self.at - start

    def document(self) -> None:
        self.take(b"\xef\xbb\xbf")
        self.skip()
        if not self.peek():
            self.fail("The document is empty.")
        self.value()

    def value(self) -> None:
        first = self.peek()
        if first == b"{":
            self.object()
        elif first == b"[":
            self.array()
        elif first == b'"':
            self.string()
        elif first in (b"n", b"t", b"f"):
            if not self.take({b"n": b"null", b"t": b"true", b"f": b"false"}[first]):
                self.fail("Invalid value.")
        else:
            self.number()

    def object(self) -> None:
        self.at += 1
        self.skip()
        if self.take(b"}"):
            return
        while True:
            if self.peek() != b'"':
                self.fail("Missing a name for object member.")
            self.string()
            self.skip()
            if not self.take(b":"):
                self.fail("Missing a colon after a name of object member.")
            self.skip()
            self.value()
            self.skip()
            if self.take(b"}"):
                return
            if not self.take(b","):
                self.fail("Missing a comma or } after an object member.")
            self.skip()

    def array(self) -> None:
        self.at += 1
        self.skip()
        if self.take(b"]"):
            return
        while True:
            self.value()
            self.skip()
            if self.take(b"]"):
                return
            if not self.take(b","):
                self.fail("Missing a comma or ] after an array element.")
            self.skip()

    def string(self) -> None:
        self.at += 1
        while True:
            byte = self.peek()
            if byte == b'"':
                self.at += 1
                return
            if byte in (b"", b"\0"):
                self.fail("Missing a closing quotation mark in string.")
            if byte < b" ":
                self.fail("Invalid encoding in string.")
            if byte == b"\\":
                self.escape()
            else:
                self.at += 1

    def escape(self) -> None:
        start = self.at
        kind = self.body[start + 1 : start + 2]
        if kind and kind in b'"\\/bfnrt':
            self.at += 2
        elif kind == b"u":
            code = self.hex4(start)
            if 0xD800 <= code <= 0xDFFF:
                follows = self.body[self.at : self.at + 2] == b"\\u" and code <= 0xDBFF
                if not follows or not 0xDC00 <= self.hex4(start) <= 0xDFFF:
                    self.fail("The surrogate pair in string is invalid.", start)
        else:
            self.fail("Invalid escape character in string.", start)

    def hex4(self, start: int) -> int:
        digits = self.body[self.at + 2 : self.at + 6]
        if len(digits) < 4 or any(digit not in b"0123456789abcdefABCDEF" for digit in digits):
            self.fail("Incorrect hex digit after \\u escape in string.", start)
        self.at += 6
        return int(digits, 16)

    def number(self) -> None:
        start = self.at
        self.take(b"-")
        if self.peek() == b"N":
            if not self.take(b"NaN"):
                self.fail("Invalid value.")
            return
        if self.peek() == b"I":
            if not self.take(b"Inf") or (self.peek() == b"i" and not self.take(b"inity")):
                self.fail("Invalid value.")
            return
        if not self.take(b"0") and not self.skip(_DIGITS):
            self.fail("Invalid value.")
        if self.take(b".") and not self.skip(_DIGITS):
            self.fail("Miss fraction part in number.")
        if self.peek() in (b"e", b"E"):
            self.at += 1
            if self.peek() in (b"+", b"-"):
                self.at += 1
            if not self.skip(_DIGITS):
                self.fail("Miss exponent in number.")
        if float(self.body[start : self.at]) in (float("inf"), float("-inf")):
            self.fail(_TOO_BIG, start)


def quote(text: str | bytes) -> str:
    """A JSON string; bytes that are not UTF-8 pass through as surrogates."""
    if isinstance(text, bytes):
        text = text.decode("utf-8", "surrogateescape")
    return json.dumps(text, ensure_ascii=False)


def _cut(value: Any, left: list[int], depth: int = 0) -> Any:
    """A copy with at most `left[0]` values, and `"..."` in place of what comes after."""
    left[0] -= 1
    if isinstance(value, str):
        return value if len(value) <= MAX_SHOWN_VALUES else value[:MAX_SHOWN_VALUES] + "..."
    if not isinstance(value, dict | list):
        return value
    if depth > _MAX_SHOWN_LEVELS:
        return "..."
    if isinstance(value, list):
        items: list[Any] = []
        for item in value:
            items.append("..." if left[0] <= 0 else _cut(item, left, depth + 1))
            if left[0] <= 0:
                break
        return items
    members: dict[str, Any] = {}
    for name, item in value.items():
        if left[0] <= 0:
            members["..."] = "..."
            break
        members[_cut(name, left)] = _cut(item, left, depth + 1)
    return members


def pretty(value: Any, depth: int = 0) -> str:
    """Shows a value in an error message: objects over several lines, lists on one; not all of what is very large.

    Example:
    >>> print(pretty({"instances": [1.0, True]}))
    {
        "instances": [1.0, true]
    }
    """
    if depth == 0:
        value = _cut(value, [MAX_SHOWN_VALUES])
    if isinstance(value, dict):
        if not value:
            return "{}"
        members = (f"{INDENT * (depth + 1)}{quote(key)}: {pretty(v, depth + 1)}" for key, v in value.items())
        return "{\n" + ",\n".join(members) + "\n" + INDENT * depth + "}"
    if isinstance(value, list):
        return "[" + ", ".join(pretty(item, depth + 1) for item in value) + "]"
    if isinstance(value, int) and not isinstance(value, bool) and not -(2**63) <= value < 2**64:
        value = double(value)
    if isinstance(value, float):
        return _number_text(value) if depth == 0 else shortest_decimal(value)
    if isinstance(value, str):
        return quote(value)
    return {True: "true", False: "false", None: "null"}[value] if isinstance(value, bool | None) else str(value)


def double(value: int) -> float:
    """A number as 64-bit float.

    Raises:
        StatusError: INVALID_ARGUMENT if it is too large, which RapidJSON finds while it reads.
    """
    try:
        return float(value)
    except OverflowError:
        raise invalid_argument(f"JSON Parse error: {_TOO_BIG}") from None


def _number_text(value: float) -> str:
    """RapidJSON takes a number within the range of float32 for one, so only that many digits are shown."""
    if not -_MOST_FLOAT32 <= value <= _MOST_FLOAT32:
        return decimal(value)
    rounded = np.float32(value)
    text = f"{rounded:.6g}"
    return _with_point(text if np.float32(text) == rounded else f"{rounded:.9g}")


def _with_point(text: str) -> str:
    return text if "." in text or "e" in text else text + ".0"


def special_decimal(value: float) -> str | None:
    if value != value:
        return "NaN"
    return "Infinity" if value == float("inf") else "-Infinity" if value == float("-inf") else None


def decimal(value: float, digits: int = 17) -> str:
    """A number with six digits if they say it all, else all of `digits`; always with a point or an exponent.

    Example:
    >>> decimal(9000000.0), decimal(2.0), decimal(0.1), decimal(1 / 3)
    ('9e+06', '2.0', '0.1', '0.33333333333333331')
    """
    special = special_decimal(value)
    if special:
        return special
    text = f"{value:.6g}"
    if float(text) != value:
        text = f"{value:.{digits}g}"
    return _with_point(text)


def shortest_decimal(value: float) -> str:
    """The fewest digits that say it all; an exponent only outside 1e-6 to 1e21, as JavaScript does.

    Example:
    >>> shortest_decimal(1.0), shortest_decimal(3e-05), shortest_decimal(1e30)
    ('1.0', '0.00003', '1e30')
    """
    special = special_decimal(value)
    if special:
        return special
    mantissa, _, exponent_text = repr(value).partition("e")
    if not exponent_text:
        return mantissa
    sign = "-" if mantissa.startswith("-") else ""
    whole, _, fraction = mantissa.lstrip("-").partition(".")
    fraction = "" if fraction == "0" else fraction
    exponent = int(exponent_text)
    if 0 <= exponent < 21:
        return sign + (whole + fraction).ljust(exponent + 1, "0") + ".0"
    if -7 < exponent < 0:
        return sign + "0." + "0" * (-exponent - 1) + whole + fraction
    return f"{sign}{whole}{'.' + fraction if fraction else ''}e{exponent}"
