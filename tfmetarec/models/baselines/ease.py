"""A linear model from items to items, solved exactly by whichever of two routes is shorter."""

import numpy as np
import scipy.linalg
import scipy.sparse

from tfmetarec.models.baselines.base import Baseline, Ratings, above, at_least
from tfmetarec.models.baselines.blocks import blocks
from tfmetarec.models.baselines.linear_algebra import early_matrix, popular_if_empty, support_matrix, user_item_matrix


class EASE(Baseline):
    """Ranks the items by a ridge regression of every item on all others, in closed form.

    The weights are B = I - P / diag(P) with P = (X'X + regularization I)^-1, zero on the diagonal. With an empty
    support the ranking is the popularity list.

    X holds 1 where a user had an item. With `early`, it holds exp(-p / early) for the item at place p of a user's
    history: what a new user takes next is more like what others took at first than like what they took in years.
    Popularity is the diagonal of X'X. With `prior`, a share of it is added to every score; as those of a ridge grow
    with the support, popularity rules a short one and hardly counts in a long one.

    Cost: with fewer items than users P is formed, `n_items`² float32 (0.9 GB at 15,000 items) and `n_items`³ / 2
    multiplications; with fewer users the same weights come from a `n_users`² system and take `n_users` x `n_items`
    float32. Nothing approximate happens in either case.

    Args:
        regularization: float, greater than 0. Defaults to 5000: a short support needs far more than the few hundred
            that suit long histories.
        early: float, greater than 0, or `None`. Items of a history after which what comes counts e times less; the
            rows of `Ratings` must then be in the order of time for each user. Defaults to `None`: all count alike.
        prior: float, at least 0. What is added to the score of the most popular item. Defaults to 0.

    Example:
    >>> import tfmetarec as tmr
    >>> data = tmr.data.load("synthetic", n_users=64, seed=0)
    >>> vocabulary = tmr.data.Vocabulary.fit(data)
    >>> ease = EASE(50.0, early=20.0, prior=0.1).fit(tmr.evaluation.ratings_of(data, vocabulary))

    Reference: [Steck, 2019](https://arxiv.org/abs/1905.03375), equation 8
    """

    name = "EASE"
    feedback = "implicit"

    def __init__(self, regularization: float = 5000.0, *, early: float | None = None, prior: float = 0.0):
        self.regularization = above("regularization", regularization, 0)
        self.early = None if early is None else above("early", early, 0)
        self.prior = at_least("prior", prior, 0)

    def _fit(self, ratings: Ratings) -> None:
        matrix = user_item_matrix(ratings) if self.early is None else early_matrix(ratings, self.early)
        self.popularity = np.bincount(matrix.indices, matrix.data**2, matrix.shape[1]).astype(np.float32)
        self.base = self.prior * self.popularity / self.popularity.max()
        matrix = matrix[np.diff(matrix.indptr) > 0]
        self.low_rank = matrix.shape[0] < matrix.shape[1]
        if self.low_rank:
            self.factor, self.diagonal = _ease_factor(matrix, self.regularization)
        else:
            self.weights = _ease_weights(matrix, self.regularization)

    def _adapt(self, item: np.ndarray, label: np.ndarray, real: np.ndarray) -> scipy.sparse.csr_matrix:
        return support_matrix(item, label, real, self.n_items)

    def _catalogue(self, state: scipy.sparse.csr_matrix) -> np.ndarray:
        if self.low_rank:
            # x B with B = I - P / diag(P), where P is (I - W'W) / regularization and W the factor.
            dense = state.toarray()
            scores = dense - (dense - (state @ self.factor.T) @ self.factor) / self.diagonal
        else:
            scores = state @ self.weights
        if self.prior:
            scores = scores + self.base
        return popular_if_empty(scores, np.diff(state.indptr) > 0, self.popularity)


def _ease_weights(matrix: scipy.sparse.csr_matrix, regularization: float) -> np.ndarray:
    """B `(n_items, n_items)` of EASE; one matrix of that size is all it holds."""
    columns = matrix.tocsc()
    n_items = matrix.shape[1]
    inverse = np.zeros((n_items, n_items), np.float32, order="F")
    for block in blocks(n_items, n_items):
        inverse[:, block] = (columns.T @ columns[:, block]).toarray()
    np.fill_diagonal(inverse, inverse.diagonal() + regularization)
    inverse, failed = scipy.linalg.lapack.spotrf(inverse, lower=0, overwrite_a=1)
    if failed:
        raise ValueError(
            "`regularization` must be large enough for the item Gram matrix to be positive definite in float32. "
            f"Received: regularization={regularization}"
        )
    inverse, _ = scipy.linalg.lapack.spotri(inverse, lower=0, overwrite_c=1)
    for block in blocks(n_items, n_items):  # LAPACK leaves the lower triangle out: mirror the upper one.
        inverse[block, : block.start] = inverse[: block.start, block].T
        corner = np.triu(inverse[block, block])
        inverse[block, block] = corner + np.triu(corner, 1).T
    inverse /= -inverse.diagonal()
    np.fill_diagonal(inverse, 0)
    return inverse


def _ease_factor(matrix: scipy.sparse.csr_matrix, regularization: float) -> tuple[np.ndarray, np.ndarray]:
    """W `(n_users, n_items)` and the diagonal of I - W'W, which is regularization times EASE's P.

    By the Woodbury identity (X'X + r I)^-1 = (I - X'(XX' + r I)^-1 X) / r, and with XX' + r I = LL' and W = L^-1 X
    the bracket is I - W'W.
    """
    n_users, n_items = matrix.shape
    system = (matrix @ matrix.T).toarray().astype(np.float64)
    np.fill_diagonal(system, system.diagonal() + regularization)
    lower = scipy.linalg.cholesky(system, lower=True, overwrite_a=True)
    columns = matrix.tocsc()
    factor = np.empty((n_users, n_items), np.float32)
    diagonal = np.empty(n_items, np.float32)
    for block in blocks(n_items, n_users):
        # In float64, for the diagonal is what is left of 1 after a sum that may come close to it.
        part = scipy.linalg.solve_triangular(lower, columns[:, block].toarray().astype(np.float64), lower=True)
        diagonal[block] = 1 - np.einsum("un,un->n", part, part)
        factor[:, block] = part
    return factor, diagonal
