"""Kernel transfer: who did alike in the source will do alike in the target.

A ridge regression of target interactions on source interactions, solved exactly in its dual form, where the unknowns
are as many as the shared users and not as the items.

Reference: [Saunders et al., 1998](https://dl.acm.org/doi/10.5555/645527.657464), ridge regression in dual variables
"""

from typing import Any

import numpy as np
import scipy.sparse

from tfmetarec.models.baselines import Ratings
from tfmetarec.models.baselines.base import at_least
from tfmetarec.tasks.episode import Features, Support
from tfmetarec.transfer.cross_domain import CrossDomainMethod, Domains, Judged

_LEAST = 1e-9
_TOP_K = 20


class KernelTransfer(CrossDomainMethod):
    """Ranks the target's items by how many similar users have them, similar in what they did in the source.

        scores(u) = share + k(u) (K + penalty I)^-1 (Y - share)

    Y says which of the shared users have which target item, `share` is each column's mean, and K and k are cosines of
    source interactions, rare items counting more: an interaction weighs log(users / users of the item) ** `rarity`.
    Somebody without source interactions has a k of 0 and gets the popularity list.

    Args:
        penalties: floats, greater than 0. In units of the mean of K's diagonal, which is 1. The one whose recall of 20
            items is best on validation users is taken, the middle one without them. Defaults to 1, 3 and 10.
        rarity: float, at least 0. Defaults to 0.5.
    """

    name = "kernel transfer"
    kinds = ("implicit",)
    _arrays = ("share", "weight", "coefficients", "candidates", "indices", "indptr", "chosen")

    def __init__(self, penalties: tuple[float, ...] = (1.0, 3.0, 10.0), rarity: float = 0.5):
        if not len(penalties) or not all(penalty > 0 for penalty in penalties):
            raise ValueError(f"`penalties` must be one or more, greater than 0. Received: penalties={penalties}")
        self.penalties, self.rarity = tuple(penalties), at_least("rarity", rarity, 0)
        self.chosen = 0.0  # None yet.

    def get_config(self) -> dict[str, Any]:
        return {"penalties": list(self.penalties), "rarity": self.rarity}

    def _fit(self, domains: Domains, validation: Judged | None) -> None:
        users = domains.shared_users
        if not len(users):
            raise ValueError("a kernel over users needs users whom both domains have. Received: none")
        self.candidates = domains.target_rows
        matrix = _matrix(domains.source_ratings)[users]
        count = np.bincount(matrix.indices, minlength=matrix.shape[1])
        rare = np.log(len(users) / np.maximum(count, 1)) ** self.rarity
        self.weight = np.where(count > 0, rare, 0).astype(np.float32)
        self.indices, self.indptr = matrix.indices, matrix.indptr
        self._users = self._weighed(matrix)
        bought = _matrix(domains.target_ratings)[users][:, self.candidates].toarray()
        self.share = bought.mean(axis=0)
        kernel = (self._users @ self._users.T).toarray()

        def coefficients(penalty: float) -> np.ndarray:
            return np.linalg.solve(kernel + penalty * np.eye(len(users), dtype=np.float32), bought - self.share)

        if validation is None:
            self.coefficients = coefficients(self.chosen or self._middle)
            return
        found, recalls = {}, {}
        for penalty in self.penalties:
            self.coefficients = found[penalty] = coefficients(penalty)
            recalls[penalty] = _recall(self._adapt(validation.support), validation)
        self.chosen = max(recalls, key=lambda penalty: recalls[penalty])
        self.coefficients = found[self.chosen]

    @property
    def _middle(self) -> float:
        return sorted(self.penalties)[len(self.penalties) // 2]

    def _restore(self, folder: Any) -> None:
        super()._restore(folder)
        ones = np.ones(len(self.indices), np.float32)
        shape = (len(self.indptr) - 1, len(self.weight))
        self._users = self._weighed(scipy.sparse.csr_matrix((ones, self.indices, self.indptr), shape))

    def _weighed(self, matrix: scipy.sparse.csr_matrix) -> scipy.sparse.csr_matrix:
        """Rows weighed by how rare items are, of length 1 (or 0)."""
        weighed = matrix @ scipy.sparse.diags(self.weight)
        length = np.sqrt(np.asarray(weighed.multiply(weighed).sum(axis=1)).ravel())
        return (scipy.sparse.diags(1 / np.maximum(length, _LEAST)) @ weighed).tocsr().astype(np.float32)

    def _adapt(self, support: Support) -> np.ndarray:
        """`(T, N)` scores of the target's items."""
        item, length = np.asarray(support.item["item_id"]), np.asarray(support.length)
        task, place = np.nonzero((np.arange(item.shape[1]) < length[:, None]) & (item > 0))
        size = (len(item), len(self.weight))
        matrix = scipy.sparse.csr_matrix((np.ones(len(task), np.float32), (task, item[task, place])), size)
        matrix.data[:] = 1  # An item met twice is met.
        return self.share + (self._weighed(matrix) @ self._users.T) @ self.coefficients

    def _score(self, state: np.ndarray, item: Features) -> np.ndarray:
        rows = np.asarray(item["item_id"])
        place = np.minimum(np.searchsorted(self.candidates, rows), len(self.candidates) - 1)
        known = self.candidates[place] == rows  # What the target does not have, nobody there had.
        scores = state[:, place] if rows.ndim == 1 else np.take_along_axis(state, place, axis=1)
        return np.where(known, scores, 0)


def _matrix(ratings: Ratings) -> scipy.sparse.csr_matrix:
    ones = np.ones(len(ratings.user), np.float32)
    return scipy.sparse.csr_matrix((ones, (ratings.user, ratings.item)), (ratings.n_users, ratings.n_items))


def _recall(scores: np.ndarray, validation: Judged) -> float:
    """Mean recall of each user's best 20 items."""
    size = min(_TOP_K, scores.shape[1])
    top = np.argpartition(-scores, size - 1, axis=1)[:, :size]
    bought = np.zeros(scores.shape, bool)
    task, place = np.nonzero(validation.real)
    bought[task, np.searchsorted(validation.candidates, validation.item[task, place])] = True
    return float((np.take_along_axis(bought, top, axis=1).sum(axis=1) / bought.sum(axis=1)).mean())
