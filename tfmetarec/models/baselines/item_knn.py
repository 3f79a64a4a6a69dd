"""Nearest neighbours among items."""

import numpy as np
import scipy.sparse
from implicit.nearest_neighbours import ItemItemRecommender

from tfmetarec.models.baselines.base import Baseline, Ratings, at_least
from tfmetarec.models.baselines.linear_algebra import popularity, support_matrix, user_item_matrix


class ItemKNN(Baseline):
    """Ranks the items by their cosine similarity to the support, each item of it speaking for its neighbours.

    Items that no neighbour reaches come after the others, by popularity; with an empty support that is the
    popularity list.

    Args:
        neighbours: int, at least 1. Neighbours that each item keeps. Defaults to 100.

    Reference: [Sarwar et al., 2001](https://doi.org/10.1145/371920.372071)
    """

    name = "item-KNN"
    feedback = "implicit"

    def __init__(self, neighbours: int = 100):
        self.neighbours = at_least("neighbours", neighbours, 1)

    def _fit(self, ratings: Ratings) -> None:
        matrix = user_item_matrix(ratings)
        self.popularity = popularity(matrix)
        # Between columns of length 1 the products are cosines. (implicit's CosineRecommender normalises too, but
        # hands its own COO matrix on, which then warns.)
        matrix.data = 1 / np.sqrt(self.popularity.astype(np.float64))[matrix.indices]
        # Every item is its own nearest neighbour, which says nothing: ask for one more and drop it.
        recommender = ItemItemRecommender(K=self.neighbours + 1)
        recommender.fit(matrix, show_progress=False)
        similarity = recommender.similarity.tocoo().astype(np.float32)
        similarity.data[similarity.row == similarity.col] = 0
        self.similarity = similarity.tocsr()

    def _adapt(self, item: np.ndarray, label: np.ndarray, real: np.ndarray) -> scipy.sparse.csr_matrix:
        return support_matrix(item, label, real, self.n_items)

    def _catalogue(self, state: scipy.sparse.csr_matrix) -> np.ndarray:
        scores = (state @ self.similarity).toarray()
        # Similarities are above 0, so popularity moved to -1 .. 0 only orders what they leave tied.
        return np.where(scores > 0, scores, self.popularity / self.popularity.max() - 1)
