"""Two-stage search: a few clusters near the query are probed, and their items scored exactly."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tensorflow as tf

WORTH_IT = 0.25
"""Largest share of the catalogue to score; with more, whole search is about as fast, and exact."""
_SAMPLE = 256  # Items drawn per cluster to find the centroids on.


@dataclass(frozen=True)
class TwoStage:
    """Asks for a two-stage search.

    Args:
        recall: float in (0, 1]. The share of the exact top-k that the search must find, measured at export on adapted
            users. Defaults to 0.95.
        clusters: int, at least 2, or `None` for about the square root of the number of items.
        seed: int, of the clustering.

    Raises:
        ValueError: for an option out of range.
    """

    recall: float = 0.95
    clusters: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.recall <= 1:
            raise ValueError(f"`recall` must be greater than 0 and at most 1. Received: recall={self.recall}")
        if self.clusters is not None and self.clusters < 2:
            raise ValueError(f"`clusters` must be at least 2. Received: clusters={self.clusters}")


@dataclass(frozen=True)
class Clusters:
    """A catalogue in the order of its clusters.

    Attributes:
        order: `(N,)` int64. The item at each place: the items of a cluster stand side by side.
        starts: `(C + 1,)` int32. Cluster `c` owns the places `starts[c] : starts[c + 1]`.
        centroids: `(C, D)` float32.
        probes: int. Clusters to look into.
        recall: share of the exact top-k that was found with so many probes.
        share: share of the catalogue that was scored, on average.
        curve: `(probes, recall, share)` for each number of probes that was tried.
    """

    order: np.ndarray
    starts: np.ndarray
    centroids: np.ndarray
    probes: int = 0
    recall: float = 0.0
    share: float = 1.0
    curve: list[tuple[int, float, float]] = field(default_factory=list)

    @property
    def is_worth_it(self) -> bool:
        """Whether the recall asked for is reached without scoring so much that exact search is as good."""
        return self.share <= WORTH_IT


def fit(vectors: np.ndarray, queries: np.ndarray, top_k: int, wanted: TwoStage) -> Clusters:
    """Clusters item vectors by k-means and finds how many clusters must be probed for the recall asked for.

    Args:
        vectors: `(N, D)` float32, whose dot product with a query is the score.
        queries: `(U, D)` float32, of real adapted users.
        top_k: int. The length of the list whose recall counts.
        wanted: what was asked for.

    Returns:
        The clusters, with the fewest probes that reach the recall; `is_worth_it` says whether that saves anything.
    """
    from sklearn.cluster import MiniBatchKMeans

    n = len(vectors)
    count = min(wanted.clusters or round(n**0.5), n)
    rng = np.random.default_rng(wanted.seed)
    sample = vectors if n <= _SAMPLE * count else vectors[rng.choice(n, _SAMPLE * count, replace=False)]
    # k-means++ starts on a few points for each cluster: on more it takes minutes, and ends no better.
    start = min(len(sample), max(6 * count, 1000))
    means = MiniBatchKMeans(
        count, batch_size=min(len(sample), 8192), n_init=1, init_size=start, max_iter=20, random_state=wanted.seed
    )
    centroids = means.fit(sample).cluster_centers_.astype(np.float32)
    owner = _nearest(vectors, centroids)
    # Centroids move to the means of all their items: the sample was only to find them.
    sizes = np.bincount(owner, minlength=count)
    order = np.argsort(owner, kind="stable")
    filled = sizes > 0
    starts = np.concatenate([[0], np.cumsum(sizes)])
    sums = np.add.reduceat(vectors[order].astype(np.float64), starts[:-1][filled], axis=0)
    centroids = (sums / sizes[filled][:, None]).astype(np.float32)
    starts = np.concatenate([[0], np.cumsum(sizes[filled])]).astype(np.int32)
    return _with_probes(Clusters(order, starts, centroids), vectors, queries, top_k, wanted.recall)


def _nearest(vectors: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """The nearest centroid of each vector, in blocks: all distances at once would not fit in memory."""
    half_squares = 0.5 * (centroids**2).sum(axis=1)
    return np.concatenate(
        [
            np.argmax(block @ centroids.T - half_squares, axis=1)
            for block in np.array_split(vectors, 1 + len(vectors) // 8192)
        ]
    )


def _with_probes(clusters: Clusters, vectors: np.ndarray, queries: np.ndarray, top_k: int, recall: float) -> Clusters:
    sizes, n = np.diff(clusters.starts), len(vectors)
    cluster_of = np.empty(n, np.int64)
    cluster_of[clusters.order] = np.repeat(np.arange(len(sizes)), sizes)
    top_k = min(top_k, n)
    ranks, covered = [], []
    for block in np.array_split(queries, 1 + len(queries) // 64):
        best = np.argpartition(-(block @ vectors.T), top_k - 1, axis=1)[:, :top_k]
        by_score = np.argsort(-(block @ clusters.centroids.T), axis=1)
        rank = np.empty_like(by_score)
        np.put_along_axis(rank, by_score, np.arange(len(sizes))[None], axis=1)
        ranks.append(np.take_along_axis(rank, cluster_of[best], axis=1))  # Where the cluster of each best item stands.
        covered.append(np.cumsum(sizes[by_score], axis=1) / n)
    rank, share = np.concatenate(ranks), np.concatenate(covered).mean(axis=0)
    found = np.array([(rank < probes).mean() for probes in range(1, len(sizes) + 1)])
    tried = sorted({*(2**power for power in range(len(sizes).bit_length())), len(sizes)})
    curve = [(probes, float(found[probes - 1]), float(share[probes - 1])) for probes in tried]
    enough = np.flatnonzero(found >= recall)
    probes = int(enough[0]) + 1
    return Clusters(
        clusters.order,
        clusters.starts,
        clusters.centroids,
        probes,
        float(found[probes - 1]),
        float(share[probes - 1]),
        curve,
    )


class ClusterSearch:
    """The clusters as variables, and the search as TensorFlow operations.

    Args:
        clusters: with the number of probes.
        table: `Table` of the item vectors, in the order of the clusters.
    """

    def __init__(self, clusters: Clusters, table: Any):
        self.table, self.probes = table, clusters.probes
        self.centroids = tf.Variable(clusters.centroids, trainable=False)
        self.starts = tf.Variable(clusters.starts, trainable=False)

    def search(self, query: tf.Tensor, count: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Products and places, `(B, count)` each, best first; the product -inf and place 0 where there are too few.

        Args:
            query: `(B, D)`.
            count: scalar int32.
        """
        near = tf.matmul(query, tf.convert_to_tensor(self.centroids), transpose_b=True)
        probed = tf.reshape(tf.math.top_k(near, self.probes, sorted=False).indices, [-1])
        ranges = tf.ragged.range(tf.gather(self.starts, probed), tf.gather(self.starts, probed + 1))
        # The clusters of one user follow each other, so every so many splits is a user's.
        splits = ranges.row_splits[:: self.probes]
        places = tf.RaggedTensor.from_row_splits(ranges.values, splits, validate=False).to_tensor(-1)  # (B, M)
        vectors = self.table.rows(tf.maximum(places, 0))
        products = tf.where(places >= 0, tf.linalg.matvec(vectors, query), -np.inf)
        short = tf.maximum(count - tf.shape(products)[1], 0)
        products = tf.pad(products, [[0, 0], [0, short]], constant_values=-np.inf)
        places = tf.pad(places, [[0, 0], [0, short]])
        products, best = tf.math.top_k(products, count)
        return products, tf.maximum(tf.gather(places, best, batch_dims=1), 0)
