"""Ratings as ordered steps: from a prediction and its uncertainty to a probability for each step.

The mean of a distribution minimises the squared error and its median the absolute one, and ratings are so skewed that
the two differ. One model gives both.

Reference: [McCullagh, 1980](https://doi.org/10.1111/j.2517-6161.1980.tb01109.x)
"""

import numpy as np
from scipy.optimize import minimize
from scipy.special import ndtr

_LEAST = 1e-9
_PULL = 1e-3  # Towards the start: a step that no validation user gave must not run away.
MOST_LEVELS = 20


def probabilities(parameters: np.ndarray, mean: np.ndarray, deviation: np.ndarray) -> np.ndarray:
    """`(..., L)` probabilities of the steps, for means and deviations `(...)`.

    P(step <= l) = Phi((cut_l - mean) / (scale * deviation ** power)).

    Args:
        parameters: `(L + 1,)`: the first cut, the logarithms of the distances to the next ones, the logarithm of the
            scale, and the power.
        mean: `(...)` predicted ratings.
        deviation: `(...)`, above 0.

    Example:
    >>> probabilities(np.array([0.0, 0.0, 0.0]), np.array([0.0]), np.array([1.0]))
    array([[0.5, 0.5]])
    """
    first, gaps, (log_scale, power) = parameters[0], np.exp(parameters[1:-2]), parameters[-2:]
    cuts = first + np.concatenate([[0.0], np.cumsum(gaps)])
    scale = np.exp(log_scale) * deviation**power
    below = ndtr((cuts - mean[..., None]) / scale[..., None])
    edges = np.zeros_like(below[..., :1])
    return np.diff(np.concatenate([edges, below, edges + 1], axis=-1), axis=-1)


def fit(mean: np.ndarray, deviation: np.ndarray, label: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """Parameters of `probabilities` by maximum likelihood.

    Args:
        mean: `(n,)` predictions for ratings that they were not fitted on.
        deviation: `(n,)`, above 0.
        label: `(n,)`, each one of `levels`.
        levels: `(L,)` rising, at least 2.
    """
    step = np.searchsorted(levels, label)
    start = default(levels, float(np.mean(deviation)))

    def loss(parameters: np.ndarray) -> float:
        chance = probabilities(parameters, mean, deviation)[np.arange(len(step)), step]
        return -np.log(np.maximum(chance, _LEAST)).mean() + _PULL * float(np.square(parameters - start).sum())

    return minimize(loss, start, method="L-BFGS-B").x


def default(levels: np.ndarray, deviation: float = 1.0) -> np.ndarray:
    """Parameters with cuts half way between the levels, and the deviations as they are."""
    cuts = (levels[1:] + levels[:-1]) / 2
    return np.concatenate([cuts[:1], np.log(np.diff(cuts)), [0.0, 1.0]])


def median(chances: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """`(...)` the first level at which half of the probability `(..., L)` is reached.

    Example:
    >>> float(median(np.array([0.2, 0.2, 0.6]), np.array([1.0, 2.0, 3.0])))
    3.0
    """
    place = (np.cumsum(chances, axis=-1) < 0.5).sum(axis=-1)
    return levels[np.minimum(place, len(levels) - 1)]


def mean(chances: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """`(...)` the mean of the levels under the probability `(..., L)`."""
    return chances @ levels


__all__ = ["MOST_LEVELS", "default", "fit", "mean", "median", "probabilities"]
