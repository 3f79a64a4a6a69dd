"""The mean of all ratings: what any prediction must beat."""

import numpy as np

from tfmetarec.models.baselines.base import Baseline, Ratings


class GlobalMean(Baseline):
    """Predicts the mean of all training ratings for everyone and everything.

    Example:
    >>> from tfmetarec.tasks.episode import Support
    >>> ratings = Ratings(np.array([1, 1, 2]), np.array([1, 2, 2]), np.array([3.0, 4.0, 5.0]), 3, 3)
    >>> support = Support({}, {"item_id": np.array([[1]])}, np.array([[1.0]]), np.array([1]))
    >>> baseline = GlobalMean().fit(ratings)
    >>> baseline.score(baseline.adapt(support))
    array([[4., 4., 4.]], dtype=float32)
    """

    name = "global mean"
    feedback = "explicit"

    def _fit(self, ratings: Ratings) -> None:
        self.mean = float(ratings.label.mean(dtype=np.float64))

    def _adapt(self, item: np.ndarray, label: np.ndarray, real: np.ndarray) -> np.ndarray:
        return np.full((len(item), 1), self.mean, np.float32)

    def _catalogue(self, state: np.ndarray) -> np.ndarray:
        return np.repeat(state, self.n_items, axis=1)
