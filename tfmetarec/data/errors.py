"""The one error of this package, and the words it shares."""

import difflib
from collections.abc import Iterable


class DataError(ValueError):
    """Data or a setting that cannot be read as interactions; the message says which, why and what to do."""


def nearest_name(name: str, known: Iterable[str]) -> str:
    """Returns `"; the nearest name is 'x'"` for a slip of the pen, or nothing when no known name is near.

    Example:
    >>> nearest_name("user", ["user_id", "item_id"])
    "; the nearest name is 'user_id'"
    """
    by_lower = {candidate.lower(): candidate for candidate in known}
    matches = difflib.get_close_matches(str(name).lower(), list(by_lower), n=1, cutoff=0.5)
    return f"; the nearest name is {by_lower[matches[0]]!r}" if matches else ""


def first_line(error: Exception) -> str:
    """Returns what an error of another library says, without the pages of advice that may follow."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
