"""What a served learner answers: its signatures, over plain TensorFlow variables and tables."""

import hashlib
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np
import tensorflow as tf

from tfmetarec.data.vocabulary import Vocabulary
from tfmetarec.export.adapted import Query, StateFormat, Weights, adapted
from tfmetarec.export.catalogue import Catalogue
from tfmetarec.export.clusters import Clusters
from tfmetarec.export.names import input_names
from tfmetarec.export.small_products import small_products
from tfmetarec.export.tables import WEIGHTS
from tfmetarec.meta.learner import MetaLearner
from tfmetarec.meta.paths import EncodedNegatives, TaskRows, Vectorized

Signatures = dict[str, tf.types.experimental.ConcreteFunction]
FILTERED = ("category", "category_list")  # Kinds of item features that a request may filter by.

DESCRIPTIONS = {
    "serving_default": "Scores candidates for a user nothing is known of but the features: the starting point.",
    "adapt_and_score": "Adapts to the support, then scores candidates.",
    "adapt_and_recommend": "Adapts to the support, then returns the best items of the catalogue that are not in it.",
    "adapt_and_recommend_filtered": "The same, with a list to leave out, a length of the answer, and categories.",
    "adapt": "Adapts to the support and returns the state, for the caller to keep.",
    "score_with_state": "Scores candidates for a user whose state the caller kept.",
    "recommend_with_state": "Recommends to a user whose state the caller kept.",
    "embed_users": "The query vectors of adapted users, whose dot product with an item's vector is the score.",
    "embed_items": "Encoded items: where there is `embed_users`, the vectors whose dot product with it is the score.",
    "score_new_items": "Adapts to the support, then scores items that have no row, from their features.",
    "explain": "Recommends, and says by how much each row of the support moved each score.",
}


class ServedLearner:
    """A `MetaLearner` and its catalogue, ready to be written as a SavedModel.

    Items are encoded once, here: a request only looks rows up. What a request adapts are tensors, so a server
    that answers many users at once keeps nothing between two requests.

    Args:
        learner: `MetaLearner` over users, with a vocabulary.
        top_k: int, at least 1: the most items a recommendation holds, fewer if the catalogue has fewer.
        weights: "float32", "float16" or "int8": how the catalogue is stored.
        clusters: for a two-stage search of the catalogue.
        vocabulary: the learner's own with items added, see `Vocabulary.with_items`. Defaults to the learner's own.

    Raises:
        ValueError: if the learner has no vocabulary, its model computes in half precision, an option is out of range,
            or clusters are given for a model whose score is no dot product.
    """

    def __init__(
        self,
        learner: MetaLearner,
        top_k: int = 20,
        *,
        weights: str = "float32",
        clusters: Clusters | None = None,
        vocabulary: Vocabulary | None = None,
    ):
        if learner.vocabulary is None:
            raise ValueError("`learner` needs a vocabulary to be served, since requests carry raw ids.")
        if top_k < 1:
            raise ValueError(f"`top_k` must be at least 1. Received: top_k={top_k}")
        if weights not in WEIGHTS:
            raise ValueError(f"`weights` must be one of {', '.join(WEIGHTS)}. Received: weights={weights!r}")
        if clusters is not None and not learner.is_retrieval:
            raise ValueError(
                "a two-stage search needs a model that scores by a dot product. "
                f"Received: {type(learner.model).__name__}"
            )
        self._trained = learner.vocabulary
        vocabulary = vocabulary or learner.vocabulary
        self.vocabulary, self.learner, self.weights = vocabulary, learner, weights
        self.top_k = min(top_k, vocabulary.n_items - 1)
        self.user_inputs = input_names("user", vocabulary.raw_signature("user"), "user")
        self.item_inputs = input_names("item", _content(vocabulary.raw_signature("item")), "item")
        kinds = {spec.name: spec.kind for spec in vocabulary.specs.item}
        self.filters = input_names("only", [name for name, kind in kinds.items() if kind in FILTERED], "item")
        features = {name: tf.constant(value) for name, value in vocabulary.catalogue.items()}
        encoded = learner._cut.encode_item(features, training=False)
        if any(tensor.dtype in (tf.bfloat16, tf.float16) for tensor in tf.nest.flatten(encoded)):
            raise ValueError(
                "a model that computes in half precision cannot be exported: build it under the dtype policy float32 "
                "and load the same weights, which are float32 already."
            )
        self.catalogue = Catalogue(
            encoded,
            tf.constant(vocabulary.item_ids, vocabulary.id_dtype("item")),
            is_retrieval=learner.is_retrieval,
            weights=weights,
            clusters=clusters,
        )
        order = 1 + self.catalogue.order
        self._classes = {name: tf.Variable(vocabulary.catalogue[name][order], trainable=False) for name in self.filters}
        self.state = StateFormat(learner, self._somebody(), self._stamp())
        self.inputs = self._inputs()
        # One function for all signatures, so that adapting is traced once, and stands once in the graph.
        self._adapting = tf.function(self._adapt_parts, autograph=False)

    def _somebody(self) -> Query | Weights:
        """One user of whom nothing is known."""
        raw = {}
        for name, spec in self.vocabulary.raw_signature("user").items():
            shape = [size or 1 for size in spec.shape]
            raw[self.user_inputs[name]] = tf.fill(shape, "") if spec.dtype == tf.string else tf.zeros(shape, spec.dtype)
        return self._start(raw, tf.constant(1))

    def _stamp(self) -> int:
        """24 bits of what adapted users depend on: items that were added are not among it."""
        digest = hashlib.sha256(f"{self.learner.get_config()} {self.weights}".encode())
        values = [variable.value for variable in self.learner.variables]
        values += [value for _, value in sorted(self._trained.catalogue.items())]
        for value in values:
            digest.update(np.ascontiguousarray(np.asarray(value)).tobytes())
        return int.from_bytes(digest.digest()[:3], "big")

    @property
    def added_items(self) -> int:
        """How many items of the catalogue training never saw."""
        return self.vocabulary.n_items - self._trained.n_items

    def resources(self, signatures: Signatures) -> tf.Module:
        """Everything the signatures read, and nothing else, as one object for `tf.saved_model.save`.

        TensorFlow Serving restores variables by the path they are tracked under and finds none through Keras's
        own objects, so these are the plain variables beneath them. Embedding tables that no signature reads
        stay behind.
        """
        module = tf.Module(name="served_learner")
        variables: dict[int, tf.Variable] = {}
        for function in signatures.values():
            # `variables` has those that were read while tracing too.
            handles = {id(tensor) for tensor in function.captured_inputs}
            variables |= {id(v): v for v in function.variables if id(v.handle) in handles}
        module.variables_read = list(variables.values())
        module.tables = self.vocabulary.tables
        module.index = self.catalogue.index
        return module

    # -- inputs ------------------------------------------------------------------------------------------

    def user_signature(self) -> dict[str, tf.TensorSpec]:
        """User features of a request, one row a user."""
        raw = self.vocabulary.raw_signature("user")
        return {wire: tf.TensorSpec(raw[name].shape, raw[name].dtype, wire) for name, wire in self.user_inputs.items()}

    def item_signature(self) -> dict[str, tf.TensorSpec]:
        """Features of items without a row, `N` of them for each user."""
        raw = self.vocabulary.raw_signature("item")
        return {
            wire: tf.TensorSpec([None, None, *raw[name].shape[1:]], raw[name].dtype, wire)
            for name, wire in self.item_inputs.items()
        }

    def _inputs(self) -> dict[str, dict[str, tf.TensorSpec]]:
        """The inputs of every signature.

        Every input and output has the batch `B` of users (or items) first, which is what server-side batching
        asks for; lists are padded to any common width and come with their length.
        """
        ids = self.vocabulary.id_dtype("item")

        def lists(*names: str, dtype: tf.DType = ids) -> dict[str, tf.TensorSpec]:
            return {name: tf.TensorSpec([None, None], dtype, name) for name in names}

        def numbers(*names: str) -> dict[str, tf.TensorSpec]:
            return {name: tf.TensorSpec([None], tf.int32, name) for name in names}

        user, candidates = self.user_signature(), lists("candidates")
        labels = lists("support_labels", dtype=tf.float32)
        support = {**lists("support"), **labels, **numbers("support_length"), **user}
        state = {"state": tf.TensorSpec([None, self.state.width], tf.float32, "state")}
        options = {**lists("exclude"), **numbers("exclude_length", "top_k")}
        options |= lists(*self.filters.values(), dtype=tf.string)
        inputs = {
            "serving_default": {**candidates, **user},
            "adapt_and_score": {**support, **candidates},
            "adapt_and_recommend": support,
            "adapt_and_recommend_filtered": {**support, **options},
            "adapt": support,
            "score_with_state": {**state, **candidates},
            "recommend_with_state": {**state, **options},
            "embed_items": {"items": tf.TensorSpec([None], ids, "items")},
            "explain": support,
        }
        if self.item_inputs:  # Without a feature all new items would be alike.
            inputs["score_new_items"] = {**support, **self.item_signature()}
        if self.learner.is_retrieval:
            inputs["embed_users"] = support
        return inputs

    def signatures(self) -> Signatures:
        """The concrete functions by signature name."""
        methods = {name: getattr(self, "score" if name == "serving_default" else name) for name in self.inputs}
        return {name: _concrete(methods[name], specs) for name, specs in self.inputs.items()}

    # -- signatures --------------------------------------------------------------------------------------

    def score(self, **inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        candidates = inputs["candidates"]
        users = self._start(inputs, tf.shape(candidates)[0])
        return {"scores": users.scores(self._items(candidates))}

    def adapt_and_score(self, **inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"scores": self._adapted(inputs).scores(self._items(inputs["candidates"]))}

    def adapt_and_recommend(self, **inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        bought = _within(inputs["support"], inputs["support_length"])
        scores, ids = self._recommended(self._adapted(inputs), inputs["support"], bought, self.top_k)
        return {"items": ids, "scores": scores}

    def adapt_and_recommend_filtered(self, **inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        return self._filtered(self._adapted(inputs), inputs)

    def adapt(self, **inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"state": self.state.pack(self._adapted(inputs))}

    def score_with_state(self, **inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        users, is_ours = self.state.unpack(inputs["state"])
        scores = users.scores(self._items(inputs["candidates"]))
        return {"scores": tf.where(is_ours[:, None], scores, np.nan)}

    def recommend_with_state(self, **inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        users, is_ours = self.state.unpack(inputs["state"])
        answer, is_ours = self._filtered(users, inputs), is_ours[:, None]
        items = tf.where(is_ours, answer["items"], _nothing(answer["items"]))
        return {"items": items, "scores": tf.where(is_ours, answer["scores"], np.nan)}

    def embed_users(self, **inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"embeddings": self._adapted(inputs).packed()}

    def embed_items(self, items: tf.Tensor) -> dict[str, tf.Tensor]:
        encoded = tf.nest.flatten(self._items(items))
        flat = [tf.reshape(tf.cast(e, tf.float32), [tf.shape(items)[0], -1]) for e in encoded]
        return {"embeddings": tf.concat(flat, axis=1)}

    def score_new_items(self, **inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        raw = {name: inputs[wire] for name, wire in self.item_inputs.items()}
        first = next(iter(raw.values()))
        users, each = tf.shape(first)[0], tf.shape(first)[1]
        raw = {name: tf.reshape(t, tf.concat([[users * each], tf.shape(t)[2:]], 0)) for name, t in raw.items()}
        features = self.vocabulary.encode("item", raw, users * each)
        if getattr(self.learner.model, "takes_items_without_id", False):
            del features["item_id"]
        encoded = self.learner._cut.encode_item(features, training=False)
        items = tf.nest.map_structure(lambda t: tf.reshape(t, tf.concat([[users, each], tf.shape(t)[1:]], 0)), encoded)
        items = tf.nest.map_structure(lambda t, like: tf.ensure_shape(t, [None, None, *like.shape[1:]]), items, encoded)
        return {"scores": self._adapted(inputs).scores(items)}

    def explain(self, **inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        """Leaves every row of the support out once, all at the same time, and adapts to the rest."""
        support = inputs["support"]
        batch, width = tf.unstack(tf.shape(support))
        times = width + 1
        kept = tf.concat([tf.ones([1, width], tf.bool), ~tf.eye(width, dtype=tf.bool)], axis=0)  # (S + 1, S)
        every = self._adapted(inputs, kept)  # (B * (S + 1)) users, the whole support of each first.
        users = every.taken(times * tf.range(batch))
        scores, ids = self._recommended(users, support, _within(support, inputs["support_length"]), self.top_k)
        items = tf.nest.map_structure(lambda t: tf.repeat(t, times, axis=0), self._items(ids))
        each = tf.reshape(every.scores(items), [batch, times, -1])  # (B, S + 1, k)
        moved = tf.transpose(each[:, :1] - each[:, 1:], [0, 2, 1])  # (B, k, S)
        _, real = self._evidence(inputs)
        counts = real[:, None, :] & tf.math.is_finite(scores)[:, :, None]
        return {"items": ids, "scores": scores, "contributions": tf.where(counts, moved, 0.0)}

    # -- adapting ----------------------------------------------------------------------------------------

    def _user(self, inputs: dict[str, tf.Tensor], batch: tf.Tensor) -> Any:
        raw = {name: inputs[wire] for name, wire in self.user_inputs.items()}
        features = self.vocabulary.encode("user", raw, batch)
        encoded = self.learner._cut.encode_user(features, training=False)
        return tf.nest.map_structure(lambda t: t[:, None], encoded)

    def _rows(self, raw_ids: tf.Tensor) -> tf.Tensor:
        return self.vocabulary.rows("item", "item_id", raw_ids)

    def _items(self, raw_ids: tf.Tensor) -> Any:
        return self.catalogue.rows(self._rows(raw_ids))

    def _start(self, inputs: dict[str, tf.Tensor], batch: tf.Tensor) -> Query | Weights:
        user = self._user(inputs, batch)
        with small_products():
            return adapted(self.learner, self.learner.starting_weights(batch), user)

    def _evidence(self, inputs: dict[str, tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
        support = inputs["support"]
        # Another shape would be broadcast, and the answer be wrong without a word: a reshape refuses it.
        label = tf.reshape(inputs["support_labels"], tf.shape(support))
        length = tf.reshape(inputs["support_length"], tf.shape(support)[:1])
        return self.learner.evidence(label, length)

    def _adapted(self, inputs: dict[str, tf.Tensor], kept: tf.Tensor | None = None) -> Query | Weights:
        """Users adapted to their support; with `kept` `(V, S)` each of them to `V` parts of it, one after another."""
        wanted = self.inputs["adapt"]
        parts = self._adapting({name: value for name, value in inputs.items() if name in wanted}, kept)
        return Query(self.learner, *parts) if self.learner.is_retrieval else Weights(self.learner, *parts)

    def _adapt_parts(self, inputs: dict[str, tf.Tensor], kept: tf.Tensor | None) -> tuple:
        support = inputs["support"]
        user, rows = self._user(inputs, tf.shape(support)[0]), self._rows(support)
        label, real = self._evidence(inputs)
        if isinstance(self.learner._path, Vectorized):  # It cannot do without a row: one of padding will do.
            room = [[0, 0], [0, tf.cast(tf.equal(tf.shape(rows)[1], 0), tf.int32)]]
            rows, label = tf.pad(rows, room), tf.pad(label, room)
            real = tf.pad(tf.cast(real, tf.int32), room) > 0
            kept = None if kept is None else tf.pad(tf.cast(kept, tf.int32), room) > 0
        items = self.catalogue.rows(rows)
        if kept is not None:
            times = tf.shape(kept)[0]
            user, rows, label, real, items = tf.nest.map_structure(
                lambda t: tf.repeat(t, times, axis=0), (user, rows, label, real, items)
            )
            real &= tf.tile(kept, [tf.shape(support)[0], 1])
            label = tf.where(real, label, 0.0)
        task = TaskRows(user, items, label, tf.cast(real, label.dtype), self.negatives(rows, real))
        # Negatives before every layer make large products, which are better off as they are.
        with small_products() if task.negatives is None or self.learner.is_retrieval else nullcontext():
            users = adapted(self.learner, self.learner.adapt_rows(task), user)
        return (users.query,) if isinstance(users, Query) else (users.weights, users.user)

    def negatives(self, rows: tf.Tensor, real: tf.Tensor) -> EncodedNegatives | None:
        """What implicit feedback is contrasted with, for support rows `(B, S)` as far as `real` `(B, S)` says so."""
        learner = self.learner
        if learner.feedback == "explicit":
            return None
        items = self.catalogue.rows(tf.constant(learner.contrast_items))
        log_expected = tf.constant(learner.contrast_log_expected)
        return EncodedNegatives(items, log_expected, learner.contrast_weight(rows, real))

    # -- recommending ------------------------------------------------------------------------------------

    def _recommended(
        self,
        users: Query | Weights,
        left_out: tf.Tensor,
        real: tf.Tensor,
        top_k: tf.Tensor | int,
        allowed: tf.Tensor | None = None,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Scores and ids `(B, k)` of the best items; -inf and `_nothing` where there are no more.

        Args:
            users: `B` of them.
            left_out: ids `(B, E)` that must not be recommended, as far as `real` `(B, E)` says so.
            real: see `left_out`.
            top_k: `k`.
            allowed: `(B, I - 1)`, what alone may be recommended. `None`: everything.
        """
        fetched = tf.minimum(top_k + tf.shape(left_out)[1], self.catalogue.size)
        if allowed is None:
            scores, ids = users.search(self.catalogue, fetched)
        else:
            scores = tf.where(allowed, users.scores_of_all(self.catalogue), -np.inf)
            scores, place = tf.math.top_k(scores, fetched)
            ids = tf.gather(self.catalogue.ids, place)
        out = tf.reduce_any((ids[:, :, None] == left_out[:, None, :]) & real[:, None, :], axis=2)
        scores, place = tf.math.top_k(tf.where(out, -np.inf, scores), top_k)
        ids = tf.gather(ids, place, batch_dims=1)
        return scores, tf.where(tf.math.is_inf(scores), _nothing(ids), ids)

    def _filtered(self, users: Query | Weights, inputs: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """The best items that are neither in the support nor excluded, of the categories asked for."""
        lists = [("exclude", "exclude_length"), *([("support", "support_length")] if "support" in inputs else [])]
        left_out = tf.concat([inputs[name] for name, _ in lists], axis=1)
        real = tf.concat([_within(inputs[name], inputs[length]) for name, length in lists], axis=1)
        top_k = tf.clip_by_value(tf.reshape(inputs["top_k"], tf.shape(left_out)[:1]), 1, self.top_k)
        longest = tf.reduce_max(top_k)
        asked = [tf.reduce_any(inputs[wire] != "") for wire in self.filters.values()]
        if asked:
            scores, ids = tf.cond(
                tf.reduce_any(asked),
                lambda: self._recommended(users, left_out, real, longest, self._allowed(inputs)),
                lambda: self._recommended(users, left_out, real, longest),
            )
        else:
            scores, ids = self._recommended(users, left_out, real, longest)
        scores = tf.where(tf.range(longest) < top_k[:, None], scores, -np.inf)
        return {"items": tf.where(tf.math.is_inf(scores), _nothing(ids), ids), "scores": scores}

    def _allowed(self, inputs: dict[str, tf.Tensor]) -> tf.Tensor:
        """`(B, I - 1)`: whether an item has, of every feature that is asked about, one of the values asked for."""
        allowed = tf.constant(True)
        for name, wire in self.filters.items():
            wanted = inputs[wire]
            size = next(spec.size for spec in self.vocabulary.specs.item if spec.name == name)
            rows = self.vocabulary.rows("item", name, wanted)  # 0 for padding and for what was never seen.
            values = tf.range(size)
            listed = tf.reduce_any((values == rows[:, :, None]) & (values > 0), axis=1)  # (B, size)
            has = tf.gather(listed, tf.convert_to_tensor(self._classes[name]), axis=1)
            if has.shape.rank == 3:  # A list: any of its entries.
                has = tf.reduce_any(has, axis=2)
            allowed &= has | ~tf.reduce_any(wanted != "", axis=1)[:, None]
        return allowed


def _content(signature: dict[str, tf.TensorSpec]) -> list[str]:
    return [name for name in signature if name != "item_id"]


def _within(ids: tf.Tensor, length: tf.Tensor) -> tf.Tensor:
    """Which of the padded ids `(B, E)` are real."""
    return tf.range(tf.shape(ids)[1]) < tf.reshape(length, tf.shape(ids)[:1])[:, None]


def _nothing(ids: tf.Tensor) -> tf.Tensor:
    """What stands where no item is."""
    return tf.constant("") if ids.dtype == tf.string else tf.zeros([], ids.dtype)


def _concrete(function: Callable, specs: dict[str, tf.TensorSpec]) -> tf.types.experimental.ConcreteFunction:
    # autograph stays off: the functions hold no Python control flow over tensors, and TFRS brings its own.
    return tf.function(function, autograph=False).get_concrete_function(**specs)
