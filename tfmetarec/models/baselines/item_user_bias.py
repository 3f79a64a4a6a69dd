"""An item's bias and a user's: what is left to explain once both are known is taste."""

import numpy as np

from tfmetarec.models.baselines.base import Baseline, Ratings, at_least
from tfmetarec.models.baselines.linear_algebra import shrunk_means


class ItemUserBias(Baseline):
    """Predicts mean + item bias + user bias; a new user's bias is the shrunk mean residual of the support.

    A bias is a sum of residuals divided by their number plus a shrinkage: a mean that counts so many extra ratings
    without surprise. Items and users are fitted in turns until both agree.

    Args:
        item_shrinkage: float, at least 0. Defaults to 3.
        user_shrinkage: float, at least 0. Defaults to 5.
        iterations: int, at least 1. Turns over items and users. Defaults to 10.

    Example:
    >>> from tfmetarec.tasks.episode import Support
    >>> ratings = Ratings(np.array([1, 1, 2]), np.array([1, 2, 2]), np.array([3.0, 4.0, 5.0]), 3, 3)
    >>> support = Support({}, {"item_id": np.array([[0]])}, np.array([[5.0]]), np.array([1]))
    >>> baseline = ItemUserBias(user_shrinkage=1.0).fit(ratings)
    >>> baseline.score(baseline.adapt(support), {"item_id": np.array([[0]])})  # 4 + (5 - 4) / (1 + 1)
    array([[4.5]], dtype=float32)

    Reference: [Koren, 2010](https://doi.org/10.1145/1644873.1644874), section 2.1
    """

    name = "item+user bias"
    feedback = "explicit"

    def __init__(self, item_shrinkage: float = 3.0, user_shrinkage: float = 5.0, *, iterations: int = 10):
        self.item_shrinkage = at_least("item_shrinkage", item_shrinkage, 0)
        self.user_shrinkage = at_least("user_shrinkage", user_shrinkage, 0)
        self.iterations = at_least("iterations", iterations, 1)

    def _fit(self, ratings: Ratings) -> None:
        self.mean = float(ratings.label.mean(dtype=np.float64))
        rest = ratings.label - self.mean
        user_bias = np.zeros(ratings.n_users)
        for _ in range(self.iterations):
            item_bias = shrunk_means(ratings.item, rest - user_bias[ratings.user], ratings.n_items, self.item_shrinkage)
            user_bias = shrunk_means(ratings.user, rest - item_bias[ratings.item], ratings.n_users, self.user_shrinkage)
        self.item_bias = item_bias

    def _adapt(self, item: np.ndarray, label: np.ndarray, real: np.ndarray) -> np.ndarray:
        residual = np.where(real, label - self.mean - self.item_bias[item], 0)
        # Without ratings and without shrinkage the mean residual is 0 / 0: an unknown user, so no bias.
        count = real.sum(axis=1) + self.user_shrinkage
        return (residual.sum(axis=1) / np.where(count > 0, count, 1))[:, None]

    def _catalogue(self, state: np.ndarray) -> np.ndarray:
        return (self.mean + self.item_bias + state).astype(np.float32)
