"""The popularity list: what everyone else had."""

import numpy as np

from tfmetarec.models.baselines.base import Baseline, Ratings
from tfmetarec.models.baselines.linear_algebra import popularity, user_item_matrix


class Popularity(Baseline):
    """Ranks the items by how many different users had them: the same list for everyone.

    Example:
    >>> from tfmetarec.tasks.episode import Support
    >>> ratings = Ratings(np.array([1, 1, 1, 2]), np.array([1, 1, 2, 2]), np.ones(4), 3, 3)
    >>> support = Support({}, {"item_id": np.array([[1]])}, np.ones((1, 1)), np.array([1]))
    >>> baseline = Popularity().fit(ratings)
    >>> baseline.score(baseline.adapt(support))
    array([[-inf,   1.,   2.]], dtype=float32)
    """

    name = "popularity"
    feedback = "implicit"

    def _fit(self, ratings: Ratings) -> None:
        self.popularity = popularity(user_item_matrix(ratings))

    def _adapt(self, item: np.ndarray, label: np.ndarray, real: np.ndarray) -> np.ndarray:
        return np.zeros((len(item), 0), np.float32)

    def _catalogue(self, state: np.ndarray) -> np.ndarray:
        return np.tile(self.popularity, (len(state), 1))
