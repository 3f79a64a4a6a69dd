"""What a served learner answers: its signatures, over plain TensorFlow variables and tables."""

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from tfmetarec.export.example_requests import user_input
from tfmetarec.meta.learner import MetaLearner
from tfmetarec.meta.paths import EncodedNegatives, TaskRows

Signatures = dict[str, tf.types.experimental.ConcreteFunction]

DESCRIPTIONS = {
    "serving_default": "Scores candidates for a user nothing is known of but the features: the starting point.",
    "adapt_and_score": "Adapts to the support, then scores candidates.",
    "adapt_and_recommend": "Adapts to the support, then returns the best items of the catalogue that are not in it.",
    "embed_items": "The vectors whose dot product with an adapted user's query is the score.",
}


class ServedLearner:
    """A `MetaLearner` and its catalogue, ready to be written as a SavedModel.

    Items are encoded once, here: a request only looks rows up. What a request adapts are tensors, so a server
    that answers many users at once keeps nothing between two requests.

    Args:
        learner: `MetaLearner` over users, with a vocabulary.
        top_k: int, at least 1: how many items `adapt_and_recommend` returns, fewer if the catalogue has fewer.

    Raises:
        ValueError: if the learner has no vocabulary, or `top_k` is out of range.
    """

    def __init__(self, learner: MetaLearner, top_k: int = 20):
        if learner.vocabulary is None:
            raise ValueError("`learner` needs a vocabulary to be served, since requests carry raw ids.")
        if top_k < 1:
            raise ValueError(f"`top_k` must be at least 1. Received: top_k={top_k}")
        vocabulary = learner.vocabulary
        self.vocabulary = vocabulary
        names = [user_input(name) for name in vocabulary.raw_signature("user")]
        if same := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"two user features would be the same input {same[0]!r} of a request; rename one.")
        self.top_k = min(top_k, vocabulary.n_items - 1)
        self._learner = learner
        catalogue = {name: tf.constant(value) for name, value in vocabulary.catalogue.items()}
        encoded = learner._cut.encode_item(catalogue, training=False)
        self.item_vectors = tf.nest.map_structure(lambda t: tf.Variable(t, trainable=False), encoded)
        self.item_ids = tf.Variable(tf.constant(vocabulary.item_ids, vocabulary.id_dtype("item")), trainable=False)
        self.index = self._index() if learner.is_retrieval else None

    def _index(self) -> Any:
        from tensorflow_recommenders.layers.factorized_top_k import BruteForce

        index = BruteForce(k=self.top_k)
        index.index(self.item_vectors[1:], self.item_ids[1:])
        return index

    def resources(self, signatures: Signatures) -> tf.Module:
        """Everything the signatures read, and nothing else, as one object for `tf.saved_model.save`.

        TensorFlow Serving restores variables by the path they are tracked under and finds none through Keras's
        own objects, so these are the plain variables beneath them. Embedding tables that no signature reads
        (items are encoded already) stay behind.
        """
        module = tf.Module(name="served_learner")
        variables = {id(v): v for function in signatures.values() for v in function.variables}
        module.variables_read = list(variables.values())
        module.tables = self.vocabulary.tables
        module.index = self.index
        return module

    # -- inputs ------------------------------------------------------------------------------------------

    def user_signature(self) -> dict[str, tf.TensorSpec]:
        """User features of a request, one row a user, see `user_input` for their names."""
        raw = self.vocabulary.raw_signature("user")
        return {user_input(name): tf.TensorSpec(s.shape, s.dtype, user_input(name)) for name, s in raw.items()}

    def signatures(self) -> Signatures:
        """The concrete functions by signature name.

        Every input and output has the batch `B` of users (or items) first, which is what server-side batching
        asks for; lists are padded to any common width and come with their length.
        """
        ids = self.vocabulary.id_dtype("item")
        support = {
            "support": tf.TensorSpec([None, None], ids, "support"),
            "support_labels": tf.TensorSpec([None, None], tf.float32, "support_labels"),
            "support_length": tf.TensorSpec([None], tf.int32, "support_length"),
        }
        candidates = {"candidates": tf.TensorSpec([None, None], ids, "candidates")}
        user = self.user_signature()
        return {
            "serving_default": _concrete(self.score, {**candidates, **user}),
            "adapt_and_score": _concrete(self.adapt_and_score, {**support, **candidates, **user}),
            "adapt_and_recommend": _concrete(self.adapt_and_recommend, {**support, **user}),
            "embed_items": _concrete(self.embed_items, {"items": tf.TensorSpec([None], ids, "items")}),
        }

    # -- signatures --------------------------------------------------------------------------------------

    def score(self, **inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        candidates = inputs["candidates"]
        user = self._user(inputs, tf.shape(candidates)[0])
        weights = self._learner.starting_weights(tf.shape(candidates)[0])
        return {"scores": self._learner.score_rows(weights, user, self._items(candidates))}

    def adapt_and_score(self, **inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        weights, user = self._adapt(inputs)
        return {"scores": self._learner.score_rows(weights, user, self._items(inputs["candidates"]))}

    def adapt_and_recommend(self, **inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        weights, user = self._adapt(inputs)
        support, length = inputs["support"], inputs["support_length"]
        fetched = tf.minimum(self.top_k + tf.shape(support)[1], self.vocabulary.n_items - 1)
        if self.index is not None:
            scores, ids = self._search(weights, user, fetched)
        else:
            known = tf.nest.map_structure(lambda t: t[1:], self.item_vectors)
            scores = self._learner.score_rows(weights, user, known, common="item")
            scores, place = tf.math.top_k(scores, fetched)
            ids = tf.gather(self.item_ids[1:], place)
        real = tf.range(tf.shape(support)[1]) < length[:, None]
        bought = tf.reduce_any((ids[:, :, None] == support[:, None, :]) & real[:, None, :], axis=2)
        scores = tf.where(bought, -np.inf, scores)
        scores, place = tf.math.top_k(scores, self.top_k)
        return {"items": tf.gather(ids, place, batch_dims=1), "scores": scores}

    def embed_items(self, items: tf.Tensor) -> dict[str, tf.Tensor]:
        encoded = tf.nest.flatten(self._items(items))
        flat = [tf.reshape(tf.cast(e, tf.float32), [tf.shape(items)[0], -1]) for e in encoded]
        return {"embeddings": tf.concat(flat, axis=1)}

    # -- pieces ------------------------------------------------------------------------------------------

    def _user(self, inputs: dict[str, tf.Tensor], batch: tf.Tensor) -> Any:
        raw = {name: inputs[user_input(name)] for name in self.vocabulary.raw_signature("user")}
        features = self.vocabulary.encode("user", raw, batch)
        encoded = self._learner._cut.encode_user(features, training=False)
        return tf.nest.map_structure(lambda t: t[:, None], encoded)

    def _rows(self, raw_ids: tf.Tensor) -> tf.Tensor:
        return self.vocabulary.encode("item", {"item_id": raw_ids}, only="item_id")["item_id"]

    def _items(self, raw_ids: tf.Tensor) -> Any:
        rows = self._rows(raw_ids)
        return tf.nest.map_structure(lambda table: tf.gather(table, rows), self.item_vectors)

    def _adapt(self, inputs: dict[str, tf.Tensor]) -> tuple[list[tf.Tensor], Any]:
        support = inputs["support"]
        # Another shape would be broadcast, and the answer be wrong without a word: a reshape refuses it.
        label = tf.reshape(inputs["support_labels"], tf.shape(support))
        length = tf.reshape(inputs["support_length"], tf.shape(support)[:1])
        user = self._user(inputs, tf.shape(support)[0])
        rows = self._rows(support)
        label, real = self._learner.evidence(label, length)
        items = tf.nest.map_structure(lambda table: tf.gather(table, rows), self.item_vectors)
        task = TaskRows(user, items, label, tf.cast(real, tf.float32), self._negatives(rows, real))
        return self._learner.adapt_rows(task), user

    def _negatives(self, rows: tf.Tensor, real: tf.Tensor) -> EncodedNegatives | None:
        learner = self._learner
        if learner.feedback == "explicit":
            return None
        items = tf.nest.map_structure(lambda table: tf.gather(table, learner.contrast_items), self.item_vectors)
        log_expected = tf.constant(learner.contrast_log_expected)
        return EncodedNegatives(items, log_expected, learner.contrast_weight(rows, real))

    def _search(self, weights: list[tf.Tensor], user: Any, count: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        assert self.index is not None
        scores, ids = self.index(self._learner.query_rows(weights, user), k=count)
        return self._learner.activate(scores), ids


def _concrete(function: Callable, specs: dict[str, tf.TensorSpec]) -> tf.types.experimental.ConcreteFunction:
    # autograph stays off: the functions hold no Python control flow over tensors, and TFRS brings its own.
    return tf.function(function, autograph=False).get_concrete_function(**specs)
