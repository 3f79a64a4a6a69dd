"""The names of a request's inputs, from the names of features."""

import re
from collections.abc import Iterable


def input_name(prefix: str, feature: str) -> str:
    """The input of a feature: a prefix in front, and what TensorFlow cannot name as `_`.

    >>> input_name("user", "Household Size")
    'user_Household_Size'
    """
    return f"{prefix}_" + re.sub(r"[^A-Za-z0-9_]", "_", feature)


def input_names(prefix: str, features: Iterable[str], what: str) -> dict[str, str]:
    """Feature name -> input name.

    Raises:
        ValueError: if two features would be the same input.
    """
    names = {feature: input_name(prefix, feature) for feature in features}
    if same := sorted({name for name in names.values() if list(names.values()).count(name) > 1}):
        raise ValueError(f"two {what} features would be the same input {same[0]!r} of a request; rename one.")
    return names
