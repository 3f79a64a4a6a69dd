"""The client: a question in plain values, the right signature, an answer in plain values."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from tfmetarec.client.answers import Explanation, explained, ranked
from tfmetarec.client.arrays import as_input, sizes
from tfmetarec.client.errors import ServingError
from tfmetarec.client.requests import (
    FILTERED,
    candidate_inputs,
    new_item_inputs,
    option_inputs,
    support_inputs,
    user_inputs,
)
from tfmetarec.client.rest import RestTransport
from tfmetarec.client.session import Session

if TYPE_CHECKING:  # It loads TensorFlow.
    from tfmetarec.client.grpc_channel import GrpcTransport

FIRST_WAIT_S = 0.1
"""How long the first retry waits; every later one waits twice as long as the one before."""


class Client:
    """Asks a served model for predictions.

    Input types come from the model itself: a list of ints goes out as int64, int32 or float32, as the
    signature wants, and an empty list gets the signature's inner shape. Threads may share a client.

    The server keeps nothing between two calls: what is known of a user travels with every question. `session`
    gathers it; `adapt` packs it into a vector that can be kept anywhere.

    Args:
        target: str, `"host:port"`. Defaults to `"127.0.0.1:8501"`.
        protocol: `"rest"` or `"grpc"`. Defaults to `"rest"`.
        model: str. The model's name. Defaults to `"default"`.
        version: int or None. The version to ask. Defaults to the newest.
        label: str or None. The version label to ask, such as `"stable"`, instead of a version.
        timeout_s: float, greater than 0. Seconds for one call, its retries included. Defaults to 10.
        retries: int, at least 0. How often a call is tried again while the server is UNAVAILABLE (nobody
            listens, the connection broke, 503), with waits that double. No other error is tried again.
            Defaults to 3.

    Raises:
        ValueError: for settings that break a rule.

    Example:
    >>> with Client("127.0.0.1:8501", model="journey") as client:  # doctest: +SKIP
    ...     for item, score in client.recommend([1029743, 1106523], user={"kids_count": "2"}, top_k=5):
    ...         print(item, score)
    """

    def __init__(
        self,
        target: str = "127.0.0.1:8501",
        *,
        protocol: Literal["rest", "grpc"] = "rest",
        model: str = "default",
        version: int | None = None,
        label: str | None = None,
        timeout_s: float = 10.0,
        retries: int = 3,
    ):
        if not re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[^\s/:\[\]]+):[0-9]{1,5}", target):
            raise ValueError(f'`target` must be "host:port". Received: target={target!r}')
        if protocol not in ("rest", "grpc"):
            raise ValueError(f'`protocol` must be "rest" or "grpc". Received: protocol={protocol!r}')
        if not model:
            raise ValueError(f"`model` must name a model. Received: model={model!r}")
        if version is not None and label is not None:
            raise ValueError(
                f"Only one of `version` and `label` can be given. Received: version={version}, label={label!r}"
            )
        if not timeout_s > 0:
            raise ValueError(f"`timeout_s` must be greater than 0. Received: timeout_s={timeout_s}")
        if retries < 0:
            raise ValueError(f"`retries` must be at least 0. Received: retries={retries}")
        self._timeout_s = timeout_s
        self._retries = retries
        transport = RestTransport if protocol == "rest" else _grpc_transport()
        self._transport: RestTransport | GrpcTransport = transport(target, model, version, label)
        self._signatures: dict[str, Any] | None = None

    # -- any model ---------------------------------------------------------------------------------------

    def predict(self, inputs: Mapping[str, Any], signature: str = "serving_default") -> dict[str, np.ndarray]:
        """Runs a signature of the model.

        Args:
            inputs: array-likes by input name. Strings may be `str` or `bytes`.
            signature: str. Defaults to `"serving_default"`.

        Returns:
            Arrays by output name. Strings come as object arrays of `str`; of `bytes` where the output's name
            ends in `_bytes`.

        Raises:
            ServingError: with the server's code and words, or DEADLINE_EXCEEDED or UNAVAILABLE.
            ValueError: if an input is unknown or does not fit its type.
        """
        return self._ask(signature, inputs, self._end())

    def status(self) -> list[dict[str, Any]]:
        """The state of each version of the model, the newest first.

        Returns:
            Dicts as TensorFlow Serving's status page lists them: `version`, `state` and `status`.

        Raises:
            ServingError: NOT_FOUND for a model that the server does not know.
        """
        return self._retried(self._transport.status, self._end())

    def metadata(self) -> dict[str, Any]:
        """The version that answers and its signatures, as TensorFlow Serving's metadata page shows them.

        Raises:
            ServingError: NOT_FOUND for a model or version that is not loaded.
        """
        return self._retried(self._transport.metadata, self._end())

    def has_signature(self, name: str) -> bool:
        """Whether the model has a signature, as far as this client knows.

        It asks the server once, and again after a call that the model refused.

        Raises:
            ServingError: as `predict`.
        """
        return name in (self._signatures or self._read_signatures(self._end()))

    # -- models that tfmetarec exported ------------------------------------------------------------------

    def recommend(
        self,
        items: Collection[Any],
        labels: Sequence[float] | None = None,
        user: Mapping[str, Any] | None = None,
        *,
        top_k: int | None = None,
        exclude: Collection[Any] = (),
        only: Mapping[str, Any] | None = None,
    ) -> list[tuple[Any, float]]:
        """Recommends to one user, from the interactions given here alone.

        Args:
            items: raw ids of what the user met, oldest first; may be empty. Where ids are numbers, their text
                will do. An item that is there twice counts twice.
            labels: float for each: what a model of ratings needs. Defaults to 1, as implicit feedback has it.
            user: raw features of the user by name, such as `{"age": "25-34"}`. What is left out or `None`
                counts as not known. Numbers may come as text; a list or a vector may, with commas between
                its entries.
            top_k: int, at least 1. How many items, but never more than the model was exported for. Defaults to
                as many as that.
            exclude: ids of further items that must not come.
            only: values by categorical item feature, such as `{"department": "GROCERY", "brand": ["A", "B"]}`:
                only items that have one of the values of every feature named.

        Returns:
            Item ids and scores, best first; none that is in `items`. Fewer than `top_k` where no more fit.

        Raises:
            ServingError: as `predict`; INVALID_ARGUMENT for a model that was exported without the signature
                that `top_k`, `exclude` and `only` need.
            ValueError: if `items` and `labels` differ in length, or the model has no such feature, or a
                value does not fit its type.
        """
        end = self._end()
        wishes = top_k is not None or len(exclude) > 0 or bool(only)
        signature = FILTERED if wishes else "adapt_and_recommend"
        infos = self._inputs(signature, end)
        inputs = support_inputs(infos, items, labels) | user_inputs(infos, user)
        if wishes:
            inputs |= option_inputs(infos, top_k, exclude, only)
        return ranked(self._ask(signature, inputs, end))

    def explain(
        self, items: Collection[Any], labels: Sequence[float] | None = None, user: Mapping[str, Any] | None = None
    ) -> list[Explanation]:
        """Recommends as `recommend` does, and says how much each interaction contributed to each item.

        Args:
            items: as for `recommend`.
            labels: as for `recommend`.
            user: as for `recommend`.

        Returns:
            `(item, score, because)`, best first; see `Explanation`.

        Raises:
            ServingError: as `predict`.
            ValueError: as `recommend`.

        Example:
        >>> for item, score, because in client.explain(["bread", "milk"]):  # doctest: +SKIP
        ...     print(item, score, because[0])
        jam 0.83 ('bread', 0.41)
        """
        end = self._end()
        infos = self._inputs("explain", end)
        support = support_inputs(infos, items, labels)
        answer = self._ask("explain", support | user_inputs(infos, user), end)
        return explained(answer, support["support"][0][: len(items)])

    def score(
        self,
        candidates: Collection[Any],
        items: Collection[Any] = (),
        labels: Sequence[float] | None = None,
        user: Mapping[str, Any] | None = None,
    ) -> np.ndarray:
        """Scores some items for one user.

        Args:
            candidates: raw ids of `N` items. One that the model does not know gets the score of an unknown item.
            items: what the user met, as for `recommend`.
            labels: as for `recommend`.
            user: as for `recommend`.

        Returns:
            `(N,)` float32.

        Raises:
            ServingError: as `predict`.
            ValueError: as `recommend`.
        """
        end = self._end()
        infos = self._inputs("adapt_and_score", end)
        inputs = support_inputs(infos, items, labels) | user_inputs(infos, user) | candidate_inputs(infos, candidates)
        return self._ask("adapt_and_score", inputs, end)["scores"][0]

    def score_new_items(
        self,
        new_items: Sequence[Mapping[str, Any]],
        items: Collection[Any] = (),
        labels: Sequence[float] | None = None,
        user: Mapping[str, Any] | None = None,
    ) -> np.ndarray:
        """Scores items that came after the model was trained, by what is known of them.

        Args:
            new_items: raw features by name of `N` items, such as `[{"department": "GROCERY", "price": 1.5}]`. What
                is left out or `None` counts as not known.
            items: what the user met, as for `recommend`.
            labels: as for `recommend`.
            user: as for `recommend`.

        Returns:
            `(N,)` float32.

        Raises:
            ServingError: as `predict`.
            ValueError: as `recommend`.
        """
        end = self._end()
        infos = self._inputs("score_new_items", end)
        inputs = support_inputs(infos, items, labels) | user_inputs(infos, user)
        if not new_items:
            return np.zeros(0, np.float32)
        return self._ask("score_new_items", inputs | new_item_inputs(infos, new_items), end)["scores"][0]

    def session(self, user: Mapping[str, Any] | None = None, keep: int = 20) -> Session:
        """Opens a `Session`, which keeps the last interactions of one user and asks with them.

        Args:
            user: raw features of the user, as for `recommend`.
            keep: int, at least 1. How many interactions at most go out with a question. Defaults to 20.

        Raises:
            ValueError: if `keep` is less than 1.
        """
        return Session(self, user, keep)

    # -- in two steps ------------------------------------------------------------------------------------

    def adapt(
        self, items: Collection[Any], labels: Sequence[float] | None = None, user: Mapping[str, Any] | None = None
    ) -> np.ndarray:
        """Adapts to one user and returns the result, for `recommend_with_state` and `score_with_state`.

        Worth it where one user is asked about many times between two interactions; keep it wherever you like.

        Args:
            items: as for `recommend`.
            labels: as for `recommend`.
            user: as for `recommend`.

        Returns:
            `(P,)` float32. It belongs to the version of the model that made it.

        Raises:
            ServingError: as `predict`.
            ValueError: as `recommend`.
        """
        end = self._end()
        infos = self._inputs("adapt", end)
        return self._ask("adapt", support_inputs(infos, items, labels) | user_inputs(infos, user), end)["state"][0]

    def recommend_with_state(
        self,
        state: np.ndarray,
        *,
        top_k: int | None = None,
        exclude: Collection[Any] = (),
        only: Mapping[str, Any] | None = None,
    ) -> list[tuple[Any, float]]:
        """Recommends to the user whom a state was made for.

        Args:
            state: what `adapt` returned.
            top_k: as for `recommend`.
            exclude: ids of items that must not come. The state does not tell which items made it: give those too.
            only: as for `recommend`.

        Returns:
            Item ids and scores, best first.

        Raises:
            ServingError: as `predict`; FAILED_PRECONDITION if another version of the model answers than the one
                that made the state. Adapt again then.
            ValueError: as `recommend`, or if `state` is no vector.
        """
        end = self._end()
        options = option_inputs(self._inputs("recommend_with_state", end), top_k, exclude, only)
        return ranked(self._ask_with_state("recommend_with_state", state, options, end))

    def score_with_state(self, state: np.ndarray, candidates: Collection[Any]) -> np.ndarray:
        """Scores some items for the user whom a state was made for.

        Args:
            state: what `adapt` returned.
            candidates: raw ids of `N` items, as for `score`.

        Returns:
            `(N,)` float32.

        Raises:
            ServingError: as `recommend_with_state`.
            ValueError: if `state` is no vector, or an id is of the wrong type.
        """
        end = self._end()
        inputs = candidate_inputs(self._inputs("score_with_state", end), candidates)
        return self._ask_with_state("score_with_state", state, inputs, end)["scores"][0]

    # -- life --------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Closes the connections; the client is of no use then."""
        self._transport.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    # -- pieces ------------------------------------------------------------------------------------------

    def _end(self) -> float:
        return time.monotonic() + self._timeout_s

    def _ask(self, signature: str, inputs: Mapping[str, Any], end: float) -> dict[str, np.ndarray]:
        definition = self._signature(signature, end)
        arrays = {name: as_input(name, value, definition["inputs"]) for name, value in inputs.items()}
        try:
            return self._retried(lambda left_s: self._transport.predict(arrays, signature, definition, left_s), end)
        except ServingError as error:
            if error.code == "INVALID_ARGUMENT":  # Perhaps a new version with another signature.
                self._signatures = None
            raise

    def _ask_with_state(
        self, signature: str, state: np.ndarray, inputs: Mapping[str, Any], end: float
    ) -> dict[str, np.ndarray]:
        if np.ndim(state) != 1:
            raise ValueError(f"`state` must be the vector that `adapt` returned. Received: shape {np.shape(state)}")
        stale = ServingError(
            "FAILED_PRECONDITION",
            "The state gives no finite score, so it comes from another version than the one that answers: adapt again.",
        )
        try:
            answer = self._ask(signature, {"state": [state], **inputs}, end)
        except ServingError as error:
            # Of another length it does not even fit; what the model wants is read anew after a refusal.
            if error.code == "INVALID_ARGUMENT":
                width = sizes(self._inputs(signature, end)["state"])[1]
                if width not in (-1, len(state)):
                    raise stale from None
            raise
        if np.isnan(answer["scores"]).any():
            raise stale
        return answer

    def _inputs(self, signature: str, end: float) -> dict[str, Any]:
        return self._signature(signature, end)["inputs"]

    def _signature(self, name: str, end: float) -> dict[str, Any]:
        signatures = self._signatures  # Another thread may drop them meanwhile.
        if signatures is None or name not in signatures:
            signatures = self._read_signatures(end)
        if name not in signatures:
            known = ", ".join(sorted(key for key in signatures if not key.startswith("__")))
            needed = ", which `top_k`, `exclude` and `only` need" if name == FILTERED else ""
            raise ServingError("INVALID_ARGUMENT", f"The model has no signature {name!r}{needed}; it has {known}.")
        return signatures[name]

    def _read_signatures(self, end: float) -> dict[str, Any]:
        page = self._retried(self._transport.metadata, end)
        signatures = page["metadata"]["signature_def"]["signature_def"]
        self._signatures = signatures
        return signatures

    def _retried(self, call: Callable[[float], Any], end: float) -> Any:
        """Calls until the server is there. No call changes anything in the server, so each may be repeated."""
        for attempt in range(self._retries + 1):
            left_s = end - time.monotonic()
            if left_s <= 0:
                raise ServingError("DEADLINE_EXCEEDED", f"No answer within {self._timeout_s} s.")
            try:
                return call(left_s)
            except ServingError as error:
                wait_s = FIRST_WAIT_S * 2**attempt
                last = attempt == self._retries or time.monotonic() + wait_s >= end
                if error.code != "UNAVAILABLE" or last:
                    raise
            time.sleep(wait_s)
        raise AssertionError  # The loop returns or raises.


def _grpc_transport() -> type[GrpcTransport]:
    try:
        from tfmetarec.client.grpc_channel import GrpcTransport
    except ImportError as error:
        raise ImportError(f'protocol="grpc" needs the packages grpcio and tensorflow-serving-api: {error}') from error
    return GrpcTransport
