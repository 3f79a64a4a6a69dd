"""A user's own CSV, TSV, Parquet or JSON-lines files, by a mapping of files and columns."""

import os
from collections.abc import Mapping
from typing import Any

from tfmetarec.data.interactions import Interactions


def load(mapping: str | os.PathLike | Mapping[str, Any]) -> Interactions:
    """Returns the interactions that a mapping describes.

    Args:
        mapping: path to a YAML file, or a dict. See `tfmetarec.data.files` for its keys.
    """
    return Interactions.from_files(mapping)
