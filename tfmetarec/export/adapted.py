"""Adapted users inside a graph: what scores items, and what a caller may keep of them between requests."""

from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tfmetarec.export.catalogue import Catalogue
from tfmetarec.export.small_products import small_products
from tfmetarec.meta.learner import MetaLearner


class Query(NamedTuple):
    """Users of a model that scores by a dot product: one vector `(T, D)` each."""

    learner: MetaLearner
    query: tf.Tensor

    def scores(self, items: Any) -> tf.Tensor:
        with small_products():
            return self.learner.activate(tf.linalg.matvec(items, self.query))

    def scores_of_all(self, catalogue: Catalogue) -> tf.Tensor:
        return self.learner.activate(catalogue.products(self.query))

    def search(self, catalogue: Catalogue, count: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        products, ids = catalogue.search(self.query, count)
        # An activation would make something of the minus infinity that says "no item here".
        return tf.where(tf.math.is_inf(products), products, self.learner.activate(products)), ids

    def taken(self, users: tf.Tensor) -> "Query":
        return Query(self.learner, tf.gather(self.query, users))

    def packed(self) -> tf.Tensor:
        return tf.cast(self.query, tf.float32)


class Weights(NamedTuple):
    """Users of any other model: their weights, and what is encoded of them."""

    learner: MetaLearner
    weights: list[tf.Tensor]
    user: Any

    def scores(self, items: Any) -> tf.Tensor:
        with small_products():
            return self.learner.score_rows(self.weights, self.user, items)

    def scores_of_all(self, catalogue: Catalogue) -> tf.Tensor:
        return self.learner.score_rows(self.weights, self.user, catalogue.whole(), common="item")

    def search(self, catalogue: Catalogue, count: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        scores, place = tf.math.top_k(self.scores_of_all(catalogue), count)
        return scores, tf.gather(catalogue.ids, place)

    def taken(self, users: tf.Tensor) -> "Weights":
        weights, user = tf.nest.map_structure(lambda t: tf.gather(t, users), (self.weights, self.user))
        return Weights(self.learner, weights, user)

    def packed(self) -> tf.Tensor:
        parts = tf.nest.flatten((self.weights, self.user))
        return tf.concat([tf.cast(tf.reshape(t, [tf.shape(t)[0], -1]), tf.float32) for t in parts], axis=1)


def adapted(learner: MetaLearner, weights: list[tf.Tensor], user: Any) -> Query | Weights:
    """Adapted users in the form that their model allows."""
    if learner.is_retrieval:
        return Query(learner, learner.query_rows(weights, user))
    return Weights(learner, weights, user)


class StateFormat:
    """How a state `(T, P)` is read back: a stamp of the version that wrote it first, then what `packed` gave.

    A state of another version would be scored without complaint, and wrongly; an error would fail the requests that
    share its batch. So its scores are NaN.

    Args:
        learner: that adapts.
        example: one adapted user.
        stamp: int, less than 2^24, so that a float holds it exactly.
    """

    def __init__(self, learner: MetaLearner, example: Query | Weights, stamp: int):
        self.learner, self.stamp, self._somebody = learner, float(stamp), example
        self._example = (example.query,) if isinstance(example, Query) else (example.weights, example.user)
        self.width = 1 + sum(int(np.prod(t.shape[1:])) for t in tf.nest.flatten(self._example))

    def example(self, batch: int) -> np.ndarray:
        """States `(B, P)` of so many users like the example."""
        return np.repeat(self.pack(self._somebody).numpy(), batch, axis=0)

    def pack(self, users: Query | Weights) -> tf.Tensor:
        packed = users.packed()
        return tf.concat([tf.fill([tf.shape(packed)[0], 1], self.stamp), packed], axis=1)

    def unpack(self, state: tf.Tensor) -> tuple[Query | Weights, tf.Tensor]:
        """The users, and which of them `(T,)` are of this version."""
        parts, start = [], 1
        for tensor in tf.nest.flatten(self._example):
            size = int(np.prod(tensor.shape[1:]))
            part = tf.reshape(state[:, start : start + size], [-1, *tensor.shape[1:]])
            parts.append(tf.cast(part, tensor.dtype))
            start += size
        read = tf.nest.pack_sequence_as(self._example, parts)
        users = Query(self.learner, *read) if self.learner.is_retrieval else Weights(self.learner, *read)
        return users, state[:, 0] == self.stamp
