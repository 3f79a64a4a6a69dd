"""The algebra that several baselines share: batched ridge solves, shrunk means, and matrices of who had what."""

import numpy as np
import scipy.sparse
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from tfmetarec.models.baselines.base import Ratings

_TOO_LATE = 1e-3  # The weight below which an early matrix leaves an entry out.


def ridge(features: np.ndarray, weight: np.ndarray, target: np.ndarray, penalty: np.ndarray) -> np.ndarray:
    """Solves (X' diag(weight) X + penalty) w = X' target for each of `T` tasks: `(T, S, D)` ... -> `(T, D)`."""
    transposed = features.swapaxes(1, 2)
    # Thousands of tiny systems: where cores are shared, BLAS threads made this seven times slower than one did.
    with threadpool_limits(1, "blas"):
        system = transposed @ (features * weight[..., None]) + penalty  # (T, D, S) (T, S, D) -> (T, D, D)
        right = transposed @ target[..., None]  # (T, D, S) (T, S, 1) -> (T, D, 1)
        return np.linalg.solve(system, right)[..., 0]


def shrunk_means(index: np.ndarray, values: np.ndarray, size: int, shrinkage: float) -> np.ndarray:
    """Means `(size,)` of `values` by `index`, each with `shrinkage` extra zeros; 0 where there is nothing to count."""
    count = np.bincount(index, minlength=size) + shrinkage
    return np.bincount(index, values, minlength=size) / np.where(count > 0, count, 1)


def user_item_matrix(ratings: Ratings) -> scipy.sparse.csr_matrix:
    """1 where a user had an item at least once, `(n_users, n_items)`."""
    return _ones(ratings.user, ratings.item, (ratings.n_users, ratings.n_items))


def early_matrix(ratings: Ratings, early: float) -> scipy.sparse.csr_matrix:
    """exp(-p / early) where an item came first at place p, from 0, of a user's different items: `(n_users, n_items)`.

    The rows of each user are taken in their order.
    """
    _, first = np.unique(ratings.user.astype(np.int64) * ratings.n_items + ratings.item, return_index=True)
    first.sort()
    user, item = ratings.user[first], ratings.item[first]
    order = np.argsort(user, kind="stable")
    grouped = user[order]
    place = np.arange(len(grouped)) - np.searchsorted(grouped, grouped)
    shape = (ratings.n_users, ratings.n_items)
    # What came too late to count is left out, for a matrix with fewer entries.
    weight = np.exp(-place / early).astype(np.float32)
    counts = weight > _TOO_LATE
    return scipy.sparse.csr_matrix((weight[counts], (grouped[counts], item[order][counts])), shape=shape)


def support_matrix(item: np.ndarray, label: np.ndarray, real: np.ndarray, n_items: int) -> scipy.sparse.csr_matrix:
    """1 where a task's support has a known item with a label above 0, `(T, n_items)`."""
    task, position = np.nonzero(real & (label > 0) & (item > 0))
    return _ones(task, item[task, position], (len(item), n_items))


def popularity(matrix: scipy.sparse.csr_matrix) -> np.ndarray:
    """How many users had each item, `(n_items,)` float32."""
    return np.bincount(matrix.indices, minlength=matrix.shape[1]).astype(np.float32)


def popular_if_empty(scores: np.ndarray, has_support: np.ndarray, popularity: np.ndarray) -> np.ndarray:
    """`scores` `(T, n_items)`, but the popularity list for tasks whose support says nothing."""
    return np.where(has_support[:, None], scores, popularity).astype(np.float32)


def _ones(row: np.ndarray, column: np.ndarray, shape: tuple[int, int]) -> scipy.sparse.csr_matrix:
    matrix = scipy.sparse.csr_matrix((np.ones(len(row), np.float32), (row, column)), shape=shape)
    matrix.sum_duplicates()
    matrix.data[:] = 1
    return matrix
