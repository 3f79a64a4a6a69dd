"""What one user does while they are here, kept beside the client since the server keeps nothing."""

from __future__ import annotations

import threading
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tfmetarec.client.answers import Explanation
from tfmetarec.client.requests import FILTERED

if TYPE_CHECKING:  # The client makes sessions.
    from tfmetarec.client.client import Client

REMEMBERED = 1000
"""How many older items a session still knows by id, so that they are not recommended."""


class Session:
    """The last interactions of one user; made by `Client.session`.

    At most the last `keep` interactions go out with a question. An item that comes again takes the place of its
    older interaction, since a row that is there twice counts twice in the model. Of what is older only the ids are
    kept, the last 1000 of them, so that nothing the user met comes back as a recommendation; memory is bounded by
    that. A session adapts anew with every question, in the graph and within the same request: it holds no state that
    a new version of the model could make stale. Threads may share a session.

    Args:
        client: `Client`.
        user: raw features of the user, as for `Client.recommend`.
        keep: int, at least 1. Defaults to 20.

    Raises:
        ValueError: if `keep` is less than 1.

    Example:
    >>> session = client.session({"kids_count": "2"}, keep=10)  # doctest: +SKIP
    >>> session.add(1029743)  # doctest: +SKIP
    >>> session.recommend(top_k=5)  # doctest: +SKIP
    """

    def __init__(self, client: Client, user: Mapping[str, Any] | None = None, keep: int = 20):
        if keep < 1:
            raise ValueError(f"`keep` must be at least 1. Received: keep={keep}")
        self.user = dict(user or {})
        self._client = client
        self._keep = keep
        self._lock = threading.Lock()
        # By the text of the id, since the same number may come as an int, from NumPy, or as text.
        self._kept: dict[str, tuple[Any, float]] = {}
        self._older: dict[str, Any] = {}

    def add(self, item: Any, label: float = 1.0) -> None:
        """Notes that the user met an item; nothing is sent yet.

        Args:
            item: raw id.
            label: float, e.g. a rating. Defaults to 1, as implicit feedback has it.
        """
        key = _text(item)
        with self._lock:
            self._kept.pop(key, None)
            self._older.pop(key, None)
            self._kept[key] = (item, float(label))
            while len(self._kept) > self._keep:
                oldest = next(iter(self._kept))
                self._older[oldest] = self._kept.pop(oldest)[0]
            while len(self._older) > REMEMBERED:
                del self._older[next(iter(self._older))]

    @property
    def interactions(self) -> list[tuple[Any, float]]:
        """Items and labels that go out with the next question, oldest first."""
        with self._lock:
            return list(self._kept.values())

    def recommend(
        self, *, top_k: int | None = None, exclude: Collection[Any] = (), only: Mapping[str, Any] | None = None
    ) -> list[tuple[Any, float]]:
        """Recommends as `Client.recommend` does, and nothing that the session has seen.

        A model without the signature that `exclude` needs is asked without it; what the user met before the last
        `keep` is then taken out of its answer, which may leave fewer items.
        """
        items, labels, older = self._seen()
        if older and self._client.has_signature(FILTERED):
            exclude = [*older.values(), *exclude]
        found = self._client.recommend(items, labels, self.user, top_k=top_k, exclude=exclude, only=only)
        return [(item, score) for item, score in found if _text(item) not in older]

    def explain(self) -> list[Explanation]:
        """Explains as `Client.explain` does, by the interactions that are kept.

        What the user met before those is taken out of the answer, which may leave fewer items.
        """
        items, labels, older = self._seen()
        found = self._client.explain(items, labels, self.user)
        return [explanation for explanation in found if _text(explanation.item) not in older]

    def score(self, candidates: Collection[Any]) -> np.ndarray:
        """Scores items as `Client.score` does."""
        items, labels, _ = self._seen()
        return self._client.score(candidates, items, labels, self.user)

    def score_new_items(self, new_items: Sequence[Mapping[str, Any]]) -> np.ndarray:
        """Scores new items as `Client.score_new_items` does."""
        items, labels, _ = self._seen()
        return self._client.score_new_items(new_items, items, labels, self.user)

    def _seen(self) -> tuple[list[Any], list[float], dict[str, Any]]:
        """Items and labels that are kept, and the ids of what came before them by their text."""
        with self._lock:
            kept = list(self._kept.values())
            return [item for item, _ in kept], [label for _, label in kept], dict(self._older)


def _text(item: Any) -> str:
    return item.decode("utf-8", "surrogateescape") if isinstance(item, bytes) else str(item)
