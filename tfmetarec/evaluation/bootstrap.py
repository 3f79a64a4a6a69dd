"""How far a mean over users can be trusted, and whether one model beats another by more than chance.

The users are drawn again and again with replacement; how much the mean moves between draws tells how much it would
move with other users. Nothing is assumed about the distribution of the values.

Reference: [Efron and Tibshirani, 1993](https://doi.org/10.1201/9780429246593), chapters 13 and 15
"""

from typing import NamedTuple

import numpy as np

BLOCK_SIZE = 2**22
"""Users drawn at a time, but at least one whole draw: 16 bytes each, so 64 MB up to four million users."""


class Interval(NamedTuple):
    """A mean over users and the interval that it would stay in with other users.

    Attributes:
        mean: float.
        low: float. Lower end of the interval.
        high: float. Upper end of the interval.
    """

    mean: float
    low: float
    high: float


class Difference(NamedTuple):
    """The mean over users of a - b, with its interval.

    Attributes:
        mean: float.
        low: float. Lower end of the interval.
        high: float. Upper end of the interval.
        p_value: float, greater than 0 and at most 1. Two-sided: how surprising the difference would be if there were
            none.
    """

    mean: float
    low: float
    high: float
    p_value: float

    @property
    def significant(self) -> bool:
        """Whether the interval leaves 0 out."""
        return self.low > 0 or self.high < 0

    def verdict(self, a: str = "a", b: str = "b", *, higher_is_better: bool = True) -> str:
        """Says in words which one is better.

        Args:
            a: str. Name of what came first in `paired_bootstrap`.
            b: str. Name of what came second.
            higher_is_better: bool. `False` for errors such as MAE. Defaults to `True`.

        Example:
        >>> Difference(0.012, 0.004, 0.020, 0.002).verdict("MAML", "popularity")
        'MAML is better than popularity by 0.012 [0.004, 0.02]'
        >>> Difference(0.012, -0.001, 0.025, 0.07).verdict("MAML", "popularity")
        'no significant difference between MAML and popularity: 0.012 [-0.001, 0.025]'
        """
        if not self.significant:
            numbers = f"{self.mean:.3g} [{self.low:.3g}, {self.high:.3g}]"
            return f"no significant difference between {a} and {b}: {numbers}"
        winner, loser = (a, b) if (self.mean > 0) == higher_is_better else (b, a)
        low, high = sorted((abs(self.low), abs(self.high)))
        return f"{winner} is better than {loser} by {abs(self.mean):.3g} [{low:.3g}, {high:.3g}]"


def bootstrap_mean(values: np.ndarray, *, samples: int = 1000, confidence: float = 0.95, seed: int = 0) -> Interval:
    """The mean over users with a percentile bootstrap interval.

    Args:
        values: `(T,)` float, finite, one for each user.
        samples: int, at least 1. Draws of T users. Defaults to 1000.
        confidence: float, between 0 and 1. Defaults to 0.95.
        seed: int, at least 0. Defaults to 0.

    Raises:
        ValueError: if `values` is not a vector of finite numbers, or an argument is out of its range.

    Example:
    >>> interval = bootstrap_mean(np.array([0.0, 0.0, 1.0, 1.0]))
    >>> interval.mean, interval.low, interval.high
    (0.5, 0.0, 1.0)
    """
    values = _per_user("values", values)
    low, high = _interval(resampled_means(values, samples, seed), confidence)
    return Interval(float(values.mean()), low, high)


def paired_bootstrap(
    a: np.ndarray, b: np.ndarray, *, samples: int = 1000, confidence: float = 0.95, seed: int = 0
) -> Difference:
    """Compares two models on the same users: the mean of a - b, its interval and how surprising it is.

    Users differ far more than models do, so each draw takes a user's two values together.

    Args:
        a: `(T,)` float, finite, one for each user.
        b: `(T,)` float, finite, of the same users in the same order.
        samples: int, at least 1. Draws of T users. Defaults to 1000.
        confidence: float, between 0 and 1. Defaults to 0.95.
        seed: int, at least 0. Defaults to 0.

    Returns:
        `Difference`, whose `verdict` says it in words. Its p-value is twice the smaller share of draws on either side
        of 0, where one draw on each side is added: it is never below 2 / (`samples` + 1).

    Raises:
        ValueError: as `bootstrap_mean`, or if `a` and `b` differ in length.

    Example:
    >>> mine, theirs = np.array([0.4, 0.5, 0.7]), np.array([0.3, 0.4, 0.6])
    >>> paired_bootstrap(mine, theirs).verdict("mine", "theirs")
    'mine is better than theirs by 0.1 [0.1, 0.1]'
    """
    a, b = _per_user("a", a), _per_user("b", b)
    if a.shape != b.shape:
        raise ValueError(f"`a` and `b` must have one value each for the same users. Received: {len(a)} and {len(b)}")
    means = resampled_means(a - b, samples, seed)
    low, high = _interval(means, confidence)
    smaller = min((means <= 0).sum(), (means >= 0).sum())
    p_value = min(1.0, 2 * (smaller + 1) / (samples + 1))
    return Difference(float((a - b).mean()), low, high, float(p_value))


def resampled_means(values: np.ndarray, samples: int, seed: int) -> np.ndarray:
    """The means `(samples,)` of as many draws of T users with replacement."""
    if samples < 1:
        raise ValueError(f"`samples` must be at least 1. Received: samples={samples}")
    generator = np.random.default_rng(seed)
    size = len(values)
    step = max(1, BLOCK_SIZE // size)
    means = np.empty(samples)
    for start in range(0, samples, step):
        count = min(step, samples - start)
        means[start : start + count] = values[generator.integers(size, size=(count, size))].mean(axis=1)
    return means


def check_confidence(confidence: float) -> None:
    """Refuses what is no share of draws."""
    if not 0 < confidence < 1:
        raise ValueError(f"`confidence` must be between 0 and 1. Received: confidence={confidence}")


def _interval(means: np.ndarray, confidence: float) -> tuple[float, float]:
    check_confidence(confidence)
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)


def _per_user(name: str, values: np.ndarray) -> np.ndarray:
    values = np.asarray(values, np.float64)
    if values.ndim != 1 or not values.size:
        raise ValueError(f"`{name}` must be a vector of at least one value. Received: shape {values.shape}")
    if not np.isfinite(values).all():
        raise ValueError(f"`{name}` must be finite. Received: {(~np.isfinite(values)).sum()} values that are not")
    return values
