"""The catalogue inside an export: items encoded once, found again by row, and searched."""

from typing import Any

import numpy as np
import tensorflow as tf

from tfmetarec.export.clusters import Clusters, ClusterSearch
from tfmetarec.export.tables import Table


class Catalogue:
    """Encoded items behind rows of a vocabulary, in the precision and order of the export.

    The row of an item never seen has a place of its own: what stands in the index can all be recommended.

    Args:
        encoded: what the model's `encode_item` made of all rows, row 0 first: tensors `(I, ...)`.
        item_ids: `(I,)` raw ids.
        is_retrieval: whether a score is a dot product with one encoded tensor `(I, D)`.
        weights: "float32", "float16" or "int8", see `Table`.
        clusters: of the items from row 1 on, for a two-stage search.
    """

    def __init__(
        self,
        encoded: Any,
        item_ids: tf.Tensor,
        *,
        is_retrieval: bool,
        weights: str = "float32",
        clusters: Clusters | None = None,
    ):
        self.size = item_ids.shape[0] - 1
        self.unknown = tf.nest.map_structure(lambda t: tf.Variable(t[0], trainable=False), encoded)
        known, ids = tf.nest.map_structure(lambda t: t[1:], encoded), item_ids[1:]
        self.order = np.arange(self.size)
        self._place: tf.Variable | None = None
        if clusters is not None:
            self.order = clusters.order
            known, ids = tf.nest.map_structure(lambda t: tf.gather(t, self.order), (known, ids))
            self._place = tf.Variable(np.argsort(self.order).astype(np.int32), trainable=False)
        self.index = self._search = None
        if is_retrieval and weights == "float32":
            from tensorflow_recommenders.layers.factorized_top_k import BruteForce

            self.index = BruteForce()
            self.index.index(known, ids)
            self.ids, vectors = self.index._identifiers, self.index._candidates
            self.tables: Any = Table(known, weights, vectors)
        else:
            self.ids = tf.Variable(ids, trainable=False)
            self.tables = tf.nest.map_structure(lambda t: Table(t, weights), known)
        if clusters is not None:
            self._search = ClusterSearch(clusters, self.tables)

    @property
    def is_exact(self) -> bool:
        """Whether `search` finds the very best items, not most of them."""
        return self._search is None

    def rows(self, rows: tf.Tensor) -> Any:
        """Encoded items `rows.shape + (...)`."""
        is_known = rows > 0
        place = tf.maximum(rows - 1, 0)
        if self._place is not None:
            place = tf.gather(self._place, place)

        def found(table: Table, unknown: tf.Variable) -> tf.Tensor:
            known = table.rows(place)
            shape = tf.concat([tf.shape(rows), tf.ones([known.shape.rank - rows.shape.rank], tf.int32)], 0)
            return tf.where(tf.reshape(is_known, shape), known, tf.cast(unknown, known.dtype))

        return tf.nest.map_structure(found, self.tables, self.unknown)

    def whole(self) -> Any:
        """All items that can be recommended, encoded, in the order of their places."""
        return tf.nest.map_structure(lambda table: table.whole(), self.tables)

    def decoded(self) -> Any:
        """All encoded items by row, row 0 first, as this export holds them."""
        return self.rows(tf.range(self.size + 1))

    def products(self, query: tf.Tensor) -> tf.Tensor:
        """`(B, I - 1)`: the products of `(B, D)` queries with every item that can be recommended."""
        return self.tables.products(query)

    def search(self, query: tf.Tensor, count: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Products and raw ids `(B, count)` of the items whose products with `query` are largest, best first."""
        if self._search is not None:
            products, place = self._search.search(query, count)
            return products, tf.gather(self.ids, place)
        if self.index is not None:
            return self.index(query, k=count)
        products, place = tf.math.top_k(self.products(query), count)
        return products, tf.gather(self.ids, place)
