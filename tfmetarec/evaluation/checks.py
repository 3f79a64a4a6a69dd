"""What arrays must be before anything is computed from them; each refusal is one sentence."""

from typing import Any

import numpy as np


def two_axes(name: str, values: Any) -> np.ndarray:
    """The values as an array `(T, ...)` of two axes.

    Raises:
        ValueError: if it has others.
    """
    table = np.asarray(values)
    if table.ndim != 2:
        raise ValueError(f"`{name}` must have two axes, users first. Received: shape {table.shape}")
    return table


def check_rows(name: str, rows: np.ndarray, size: int | None = None) -> None:
    """Refuses what is no row of a catalogue of `size` rows, or of any if `None`.

    Raises:
        ValueError: if they are not integers, or out of range.
    """
    if not np.issubdtype(rows.dtype, np.integer):
        raise ValueError(f"`{name}` must hold integers. Received: {rows.dtype}")
    low, high = rows.min(initial=0), rows.max(initial=0)
    if low < 0 or (size is not None and high >= size):
        rule = "at least 0" if size is None else f"between 0 and {size - 1}"
        raise ValueError(f"`{name}` must hold rows that are {rule}. Received: {low} to {high}")


def labelled(labels: Any, values: Any, name: str = "scores") -> tuple[np.ndarray, np.ndarray]:
    """Labels `(n,)` int64 of 0 and 1, and what was said of each, `(n,)` float64.

    Raises:
        ValueError: if they are no vectors of one length or empty, a label is not 0 or 1, or a value not finite.
    """
    labels, values = np.asarray(labels), np.asarray(values, np.float64)
    if labels.ndim != 1 or labels.shape != values.shape or not labels.size:
        raise ValueError(
            f"`labels` and `{name}` must be vectors of one length, at least 1. "
            f"Received: shapes {labels.shape} and {values.shape}"
        )
    if (wrong := ~np.isin(labels, (0, 1))).any():
        raise ValueError(f"`labels` must be 0 or 1. Received: {labels[wrong][0]}")
    if (wrong := ~np.isfinite(values)).any():
        raise ValueError(f"`{name}` must be finite. Received: {values[wrong][0]}")
    return labels.astype(np.int64), values


def check_scores(who: str, scores: np.ndarray, wanted: tuple[int, ...], *, ranking: bool = False) -> None:
    """Refuses what a recommender gave in place of scores; infinite ones put an item first or last in a `ranking`.

    Raises:
        ValueError: if the shape is another one, or a score is NaN or infinite.
    """
    if scores.shape != wanted:
        raise ValueError(f"{who} must score {wanted} items here. Received: shape {scores.shape}")
    if np.isnan(scores).any() or (not ranking and not np.isfinite(scores).all()):
        raise ValueError(f"{who} must give finite scores. Received: NaN or infinity")
