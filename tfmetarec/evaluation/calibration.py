"""Whether a probability means what it says: of what was given 30 %, do 30 % happen?

A learner's score is seldom a probability. `Platt` makes it one by a fit on validation users, never on those who are
reported. The order of items stays what it is, unless more of those with a low score happened than of those with a high.
"""

from typing import NamedTuple, Self

import numpy as np
import polars as pl
import scipy.special

from tfmetarec.evaluation.checks import labelled


class Platt(NamedTuple):
    """A probability from a score: sigmoid(`slope` * score + `intercept`).

    Attributes:
        slope: float.
        intercept: float.

    Example:
    >>> found = Platt.fit(np.array([0, 0, 1, 1] * 50), np.array([1.0, 1.0, 2.0, 2.0] * 50))
    >>> found.probability(np.array([1.0, 1.5, 2.0])).round(2).tolist()
    [0.01, 0.5, 0.99]

    Reference: Platt, 1999, as solved in [Lin et al., 2007](https://doi.org/10.1007/s10994-007-5018-6)
    """

    slope: float
    intercept: float

    @classmethod
    def fit(cls, labels: np.ndarray, scores: np.ndarray, *, steps: int = 100) -> Self:
        """Finds the two numbers by Newton's method.

        Platt's targets, a little inside 0 and 1, keep the slope finite where a threshold parts the classes.

        Args:
            labels: `(n,)` of 0 and 1, of validation users.
            scores: `(n,)` float, finite.
            steps: int, at least 1. The most steps. Defaults to 100.

        Raises:
            ValueError: if the vectors disagree in length or are empty, a label is not 0 or 1, a score not finite, or
                `steps` is below 1.
        """
        labels, scores = labelled(labels, scores)
        _at_least_one("steps", steps)
        # What is the same for all has a standard deviation of rounding, which must not become a slope.
        centre, scale = scores.mean(), scores.std() if np.ptp(scores) else 1.0
        positives = labels.sum()
        target = np.where(labels > 0, (positives + 1) / (positives + 2), 1 / (len(labels) - positives + 2))
        rows = np.stack([(scores - centre) / scale, np.ones_like(scores)])
        weights = np.array([0.0, scipy.special.logit(target.mean())])
        for _ in range(steps):
            probability = scipy.special.expit(weights @ rows)
            gradient = rows @ (probability - target)
            hessian = (rows * (probability * (1 - probability))) @ rows.T + 1e-9 * np.eye(2)
            move, loss = np.linalg.solve(hessian, gradient), _log_loss(weights @ rows, target)
            while _log_loss((weights - move) @ rows, target) > loss and np.abs(move).max() > 1e-10:
                move = move / 2
            weights = weights - move
            if np.abs(move).max() < 1e-8:
                break
        slope = weights[0] / scale
        return cls(float(slope), float(weights[1] - slope * centre))

    def probability(self, scores: np.ndarray) -> np.ndarray:
        """Probabilities of scores of any shape."""
        return scipy.special.expit(self.slope * np.asarray(scores, np.float64) + self.intercept)


def reliability(
    labels: np.ndarray, probabilities: np.ndarray, *, bins: int = 10, strategy: str = "mass"
) -> pl.DataFrame:
    """The points of a reliability diagram: what was said and what happened, bin by bin.

    Args:
        labels: `(n,)` of 0 and 1.
        probabilities: `(n,)` float between 0 and 1.
        bins: int, at least 1. Defaults to 10.
        strategy: "mass", bins of about equally many rows, equal probabilities in one of them, or "width", bins as wide
            as each other. Defaults to "mass".

    Returns:
        One row per bin that has rows, in order: `said`, the mean probability; `happened`, the share of positives;
        `rows`.

    Raises:
        ValueError: if the vectors disagree in length or are empty, a label is not 0 or 1, a probability is outside 0
            and 1, or an option out of range.

    Example:
    >>> reliability(np.array([0, 1, 1, 1]), np.array([0.2, 0.2, 0.9, 0.9]), bins=2).rows()
    [(0.2, 0.5, 2), (0.9, 1.0, 2)]
    """
    labels, probabilities = _probabilities(labels, probabilities)
    _at_least_one("bins", bins)
    if strategy not in ("mass", "width"):
        raise ValueError(f"`strategy` must be 'mass' or 'width'. Received: strategy={strategy!r}")
    places = np.linspace(0, 1, bins + 1)
    edges = np.quantile(probabilities, places) if strategy == "mass" else places
    number = np.searchsorted(edges[1:-1], probabilities)  # As scikit-learn's: an edge belongs to the bin below it.
    rows = np.bincount(number, minlength=bins)
    said, happened = (np.bincount(number, values, bins) for values in (probabilities, labels))
    real = rows > 0
    figures = {"said": said[real] / rows[real], "happened": happened[real] / rows[real], "rows": rows[real]}
    return pl.DataFrame(figures)


def ece(labels: np.ndarray, probabilities: np.ndarray, *, bins: int = 10, strategy: str = "mass") -> float:
    """Expected calibration error: how far what happened is from what was said, the mean over rows.

    Args:
        labels: as for `reliability`.
        probabilities: as for `reliability`.
        bins: as for `reliability`. More bins find more of the error, and more of what is chance.
        strategy: as for `reliability`.

    Returns:
        float between 0 and 1.

    Example:
    >>> ece(np.array([0, 1, 1, 1]), np.array([0.2, 0.2, 0.9, 0.9]), bins=2).__round__(6)  # (2 * .3 + 2 * .1) / 4
    0.2

    Reference: [Naeini et al., 2015](https://doi.org/10.1609/aaai.v29i1.9602)
    """
    found = reliability(labels, probabilities, bins=bins, strategy=strategy)
    said, happened, rows = (found[name].to_numpy() for name in ("said", "happened", "rows"))
    return float(np.average(np.abs(said - happened), weights=rows))


def brier(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """The mean squared distance of probabilities from what happened: 0 is perfect, .25 what saying 50 % gives.

    Args:
        labels: as for `reliability`.
        probabilities: as for `reliability`.

    Example:
    >>> brier(np.array([0, 1]), np.array([0.5, 0.9])).__round__(3)
    0.13
    """
    labels, probabilities = _probabilities(labels, probabilities)
    return float(np.square(probabilities - labels).mean())


def _at_least_one(name: str, value: int) -> None:
    if not isinstance(value, int | np.integer) or value < 1:
        raise ValueError(f"`{name}` must be an int, at least 1. Received: {name}={value!r}")


def _log_loss(logits: np.ndarray, target: np.ndarray) -> float:
    return float((np.logaddexp(0, logits) - target * logits).sum())


def _probabilities(labels: np.ndarray, probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    labels, probabilities = labelled(labels, probabilities, "probabilities")
    if probabilities.min() < 0 or probabilities.max() > 1:
        raise ValueError(
            "`probabilities` must lie between 0 and 1. "
            f"Received: {probabilities.min():.4g} to {probabilities.max():.4g}"
        )
    return labels, probabilities
