"""What the live learner answers to a request: the measure of an export, made without the export's own graph."""

from typing import Any

import numpy as np
import tensorflow as tf

from tfmetarec.export.adapted import adapted
from tfmetarec.export.encoded_learner import EncodedLearner
from tfmetarec.export.example_requests import Request
from tfmetarec.export.signatures import ServedLearner
from tfmetarec.meta.learner import AdaptedState
from tfmetarec.tasks.episode import Support

Answer = dict[str, np.ndarray]


class LiveLearner:
    """Answers requests through the learner's own `adapt` and `score`.

    Items that an export holds in fewer bits are scored by the vectors that it holds.

    Args:
        served: what is exported.
    """

    def __init__(self, served: ServedLearner):
        self.served, self.learner, self.vocabulary = served, served.learner, served.vocabulary
        self._judge: Any = self.learner if served.weights == "float32" else EncodedLearner(served)

    def answer(
        self, signature: str, request: Request, found: Answer | None = None, behind: Request | None = None
    ) -> Answer:
        """What `signature` must answer.

        Args:
            signature: its name.
            request: raw arrays by input name.
            found: the answer of an export whose search is not exact: its items are taken as they are, and only their
                scores are looked up.
            behind: where the request holds states, the request with the supports that these came from.
        """
        if signature == "embed_items":
            items = self._features(self.vocabulary.item_rows(request["items"]))
            if self._judge is self.learner:
                encoded = self.learner._cut.encode_item(items, training=False)
            else:
                encoded = self._judge.encode_item(items)
            encoded = tf.nest.flatten(encoded)
            flat = [np.reshape(np.asarray(part, np.float32), (len(request["items"]), -1)) for part in encoded]
            return {"embeddings": np.concatenate(flat, axis=1)}
        state = self._adapt(request if behind is None else behind)
        if signature == "adapt":
            return {"state": self.served.state.pack(adapted(self.learner, state.weights, state.user)).numpy()}
        if signature == "embed_users":
            return {"embeddings": self.learner.query(state).numpy()}
        if signature == "score_new_items":
            return {"scores": np.asarray(self.learner.score(state, self._new_items(request)))}
        if "candidates" in request:
            answer = {"scores": np.array(self._score(state, request["candidates"]))}
        else:
            answer = self._best(np.array(self._score(state, None)), request, found)
        if signature == "explain":
            answer["contributions"] = self._contributions(request, answer)
        if "state" in request:
            stale = request["state"][:, 0] != self.served.state.stamp
            answer["scores"][stale] = np.nan
            if "items" in answer:
                answer["items"][stale] = self._nothing
        return answer

    # -- pieces --------------------------------------------------------------------------------------------

    @property
    def _nothing(self) -> Any:
        return 0 if self.vocabulary.item_ids.dtype.kind == "i" else ""

    def _features(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        if self._judge is not self.learner:
            return {"item_id": rows}
        return {name: value[rows] for name, value in self.vocabulary.catalogue.items()}

    def _adapt(self, request: Request) -> AdaptedState:
        vocabulary = self.vocabulary
        batch = len(next(iter(request.values())))
        raw = {name: request[wire] for name, wire in self.served.user_inputs.items()}
        user = vocabulary.encode("user", raw, batch)
        none = np.full((batch, 1), vocabulary.item_ids[0])
        rows = vocabulary.item_rows(request.get("support", none))
        label = request.get("support_labels", np.ones((batch, 1), np.float32))
        length = request.get("support_length", np.zeros(batch, np.int32))
        return self._judge.adapt(Support(user, self._features(rows), label, length))

    def _score(self, state: AdaptedState, raw: np.ndarray | None) -> np.ndarray:
        """Scores of items by raw id, or `(B, I)` of the whole catalogue."""
        rows = np.arange(self.vocabulary.n_items) if raw is None else self.vocabulary.item_rows(raw)
        features = self._features(rows)
        return np.asarray(self._judge.score(state, features))

    def _new_items(self, request: Request) -> dict[str, Any]:
        raw = {name: request[wire] for name, wire in self.served.item_inputs.items()}
        batch, each = next(iter(raw.values())).shape[:2]
        flat = {name: value.reshape(batch * each, *value.shape[2:]) for name, value in raw.items()}
        features = self.vocabulary.encode("item", flat, batch * each)
        return {name: np.reshape(value, (batch, each, *value.shape[1:])) for name, value in features.items()}

    def _best(self, scores: np.ndarray, request: Request, found: Answer | None) -> Answer:
        """The best items of `(B, I)` scores that the request allows."""
        scores[:, 0] = -np.inf
        for name, length in (("support", "support_length"), ("exclude", "exclude_length")):
            for row, (out, count) in enumerate(zip(request.get(name, ()), request.get(length, ()), strict=True)):
                scores[row, self.vocabulary.item_rows(out[:count])] = -np.inf
        for name, wire in self.served.filters.items():
            if wire in request:
                scores[~self._has(name, request[wire])] = -np.inf
        top_k = np.clip(request.get("top_k", np.full(len(scores), self.served.top_k)), 1, self.served.top_k)
        if found is None:
            best = np.argsort(-scores, axis=1, kind="stable")[:, : top_k.max()]
            shown = np.take_along_axis(scores, best, axis=1)
        else:
            best = self.vocabulary.item_rows(found["items"])
            shown = np.where(np.isfinite(found["scores"]), np.take_along_axis(scores, best, axis=1), -np.inf)
        shown[np.arange(shown.shape[1]) >= top_k[:, None]] = -np.inf
        ids = self.vocabulary.item_ids[best]
        ids = ids if ids.dtype.kind == "i" else ids.astype(str)
        return {"items": np.where(np.isinf(shown), self._nothing, ids), "scores": shown}

    def _has(self, name: str, wanted: np.ndarray) -> np.ndarray:
        """`(B, I)`: whether an item has one of the values `(B, F)`; everything has where all of them are empty."""
        values = np.concatenate([[""], np.asarray(self.vocabulary.known_values("item", name)).astype(str)])
        own = values[self.vocabulary.catalogue[name]]  # (I,) or (I, L)
        own = own if own.ndim == 2 else own[:, None]
        rows = [np.isin(own, asked[asked != ""]).any(axis=1) | (asked == "").all() for asked in wanted]
        return np.array(rows)

    def _contributions(self, request: Request, answer: Answer) -> np.ndarray:
        """`(B, k, S)` by adapting anew without each row of the support in turn."""
        shown = np.isfinite(answer["scores"])
        width = request["support"].shape[1]
        label, length = request["support_labels"], request["support_length"]
        real = self.learner.evidence(label, tf.constant(length))[1].numpy()
        whole = self._score(self._adapt(request), answer["items"])
        moved = np.zeros((*shown.shape, width), np.float32)
        for row in range(width):
            rest = {name: np.delete(request[name], row, axis=1) for name in ("support", "support_labels")}
            if width == 1:
                rest = {"support": request["support"], "support_labels": label}
            fewer = (length - (row < length)).astype(np.int32)
            without = self._adapt({**request, **rest, "support_length": fewer})
            moved[:, :, row] = whole - self._score(without, answer["items"])
        return np.where(shown[:, :, None] & real[:, None, :], moved, 0.0)
