"""Matrix factorisation of purchases, into which new users are folded by one more least-squares solve."""

import numpy as np
import scipy.sparse
from implicit.als import AlternatingLeastSquares
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from tfmetarec.models.baselines.base import Baseline, Ratings, above, at_least
from tfmetarec.models.baselines.blocks import blocks
from tfmetarec.models.baselines.linear_algebra import popular_if_empty, popularity, ridge, user_item_matrix


class ImplicitALS(Baseline):
    """Ranks the items by weighted matrix factorisation; a new user's vector is one more least-squares solve.

    Folding in solves the equation that the training solves for its own users, for all tasks in one batch: the
    Gram matrix of all items stands for everything a user did not buy. With an empty support the vector is 0, so the
    ranking is the popularity list.

    Args:
        factors: int, at least 1. Defaults to 64.
        regularization: float, greater than 0, or `None`: 0.2 times `alpha` times the largest singular value of the
            user-item matrix. With short supports it matters more than anything else: far below this value the
            ranking falls behind popularity, and far above it all vectors vanish. Defaults to `None`.
        alpha: float, greater than 0. Confidence of an interaction, where its absence has 1. Defaults to 1.
        iterations: int, at least 1. Defaults to 15.
        seed: int, at least 0. Where the vectors start. Defaults to 0.

    Reference: [Hu et al., 2008](https://doi.org/10.1109/ICDM.2008.22), equation 4
    """

    name = "iALS fold-in"
    feedback = "implicit"

    def __init__(
        self,
        factors: int = 64,
        regularization: float | None = None,
        alpha: float = 1.0,
        *,
        iterations: int = 15,
        seed: int = 0,
    ):
        self.factors = at_least("factors", factors, 1)
        self.regularization = None if regularization is None else above("regularization", regularization, 0)
        self.alpha = above("alpha", alpha, 0)
        self.iterations = at_least("iterations", iterations, 1)
        self.seed = at_least("seed", seed, 0)

    def _fit(self, ratings: Ratings) -> None:
        matrix = user_item_matrix(ratings)
        # With alpha = 1 this is a soft-thresholded singular value decomposition: directions below it are gone.
        penalty = 0.2 * self.alpha * _largest_singular_value(matrix)
        self.penalty = penalty if self.regularization is None else self.regularization
        # implicit runs its own threads and warns when BLAS brings more, so BLAS gets one while it trains.
        with threadpool_limits(1, "blas"):
            model = AlternatingLeastSquares(
                factors=self.factors,
                regularization=self.penalty,
                alpha=self.alpha,
                iterations=self.iterations,
                random_state=self.seed,
                use_gpu=False,  # Its vectors would not be NumPy arrays.
            )
            model.fit(matrix, show_progress=False)
        self.items = np.asarray(model.item_factors)
        self.popularity = popularity(matrix)

    def _adapt(self, item: np.ndarray, label: np.ndarray, real: np.ndarray) -> np.ndarray:
        bought = _distinct(item, real & (label > 0)).astype(np.float32)
        gram = self.items.T @ self.items + self.penalty * np.eye(self.factors, dtype=np.float32)
        state = np.zeros((len(item), self.factors), np.float32)
        for block in blocks(len(item), self.factors * max(item.shape[1], self.factors)):
            seen = bought[block]
            # Equation 4 has confidence alpha where an interaction is; 1 of it is in the Gram matrix already.
            state[block] = ridge(self.items[item[block]], (self.alpha - 1) * seen, self.alpha * seen, gram)
        return state

    def _catalogue(self, state: np.ndarray) -> np.ndarray:
        return popular_if_empty(state @ self.items.T, np.any(state, axis=1), self.popularity)


def _distinct(item: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Keeps of `chosen` `(T, S)` the first place of each known item."""
    rows = np.where(chosen, item, 0)
    order = np.argsort(rows, axis=1, kind="stable")
    ordered = np.take_along_axis(rows, order, axis=1)
    first = np.ones(rows.shape, bool)
    first[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    kept = np.zeros(rows.shape, bool)
    np.put_along_axis(kept, order, first & (ordered > 0), axis=1)
    return kept


def _largest_singular_value(matrix: scipy.sparse.csr_matrix) -> float:
    """By power iteration, which a matrix without negative entries lets start from ones."""
    vector = np.ones(matrix.shape[1])
    for _ in range(30):
        vector = matrix.T @ (matrix @ (vector / np.linalg.norm(vector)))
    return float(np.sqrt(np.linalg.norm(vector)))
