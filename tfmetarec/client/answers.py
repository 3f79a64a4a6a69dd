"""What a model answers for one user, as plain values."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np


class Explanation(NamedTuple):
    """A recommended item and what made it one.

    Attributes:
        item: raw id.
        score: float.
        because: the interactions of the request as `(item, contribution)`, largest contribution first. A
            contribution is the item's score less what it would be had the user never met that other item: below 0
            where the interaction speaks against the item. Contributions need not add up to the score.
    """

    item: Any
    score: float
    because: list[tuple[Any, float]]


def ranked(answer: Mapping[str, np.ndarray]) -> list[tuple[Any, float]]:
    """Items and scores, best first, without the places that hold no item."""
    return [
        (item, float(score))
        for item, score in zip(answer["items"][0].tolist(), answer["scores"][0], strict=True)
        if np.isfinite(score)
    ]


def explained(answer: Mapping[str, np.ndarray], support: Sequence[Any]) -> list[Explanation]:
    """Items, scores and the contributions of `support`, best item first, without the places that hold no item."""
    found = []
    for item, score, row in zip(
        answer["items"][0].tolist(), answer["scores"][0], answer["contributions"][0], strict=True
    ):
        if np.isfinite(score):
            because = list(zip(support, row[: len(support)].tolist(), strict=True))
            found.append(Explanation(item, float(score), sorted(because, key=lambda pair: -pair[1])))
    return found
