"""How much the server takes on at once, and how long it waits for a client."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tfmetarec.server import memory
from tfmetarec.server.status import StatusError, invalid_argument

LARGE_BODY_BYTES = 1 << 18
"""From here on a REST body counts against `Limits.max_bytes_at_once`."""
HUGE_BODY_BYTES = 1 << 22
"""From here on REST bodies are worked on one after the other."""


@dataclass(frozen=True)
class Limits:
    """What is refused, so that no client can take the server away from the others.

    TensorFlow Serving has none of these. What is beyond them is refused at once with a sentence: 413 for a body
    that is too large, 429 (gRPC: RESOURCE_EXHAUSTED) for one request too many, 503 for one connection too many,
    408 for a client that is too slow.

    Args:
        max_body_bytes: int, at least 1. Largest request over either protocol, after decompression. Defaults to
            32 MiB.
        max_rows: int, at least 1. Largest first dimension of an input: users in one request, as a rule. A graph
            may need memory for each of them times the catalogue. Defaults to 65536.
        max_bytes_at_once: int, at least `max_body_bytes`. Bytes of large REST bodies held at the same time.
            Defaults to 128 MiB.
        max_connections: int, at least 1. REST connections, idle ones too. Defaults to 1000.
        max_requests: int, at least 1. Requests that are answered or wait for a thread at the same time, REST and
            gRPC together. Defaults to 256.
        header_timeout_s: float, greater than 0. From the first byte of a request to the end of its headers; over
            gRPC, for opening a connection. Defaults to 10.
        body_timeout_s: float, greater than 0. For sending a body, and for taking the answer. Defaults to 60.

    Raises:
        StatusError: INVALID_ARGUMENT for a value out of its range.

    Example:
    >>> Limits(max_connections=0)
    Traceback (most recent call last):
        ...
    tfmetarec.server.status.StatusError: INVALID_ARGUMENT: `max_connections` must be at least 1. Received: 0
    """

    max_body_bytes: int = 32 << 20
    max_rows: int = 1 << 16
    max_bytes_at_once: int = 128 << 20
    max_connections: int = 1000
    max_requests: int = 256
    header_timeout_s: float = 10.0
    body_timeout_s: float = 60.0

    def __post_init__(self) -> None:
        for name in ("max_body_bytes", "max_rows", "max_connections", "max_requests"):
            if getattr(self, name) < 1:
                raise invalid_argument(f"`{name}` must be at least 1. Received: {getattr(self, name)}")
        for name in ("header_timeout_s", "body_timeout_s"):
            if not getattr(self, name) > 0:
                raise invalid_argument(f"`{name}` must be greater than 0. Received: {getattr(self, name)}")
        if self.max_bytes_at_once < self.max_body_bytes:
            raise invalid_argument(
                f"`max_bytes_at_once` must be at least `max_body_bytes`, {self.max_body_bytes}. "
                f"Received: {self.max_bytes_at_once}"
            )


class Budget:
    """So much of something may be in use at once; one more is refused and never waits.

    Args:
        limit: int.
        refusal: str. What the one is told who asks for too much.

    Example:
    >>> budget = Budget(1, "Only one at a time.")
    >>> budget.take()
    >>> budget.take()
    Traceback (most recent call last):
        ...
    tfmetarec.server.status.StatusError: RESOURCE_EXHAUSTED: Only one at a time.
    >>> budget.give_back()
    """

    def __init__(self, limit: int, refusal: str):
        self._limit = limit
        self._refusal = refusal
        self._used = 0
        self._lock = threading.Lock()

    def take(self, amount: int = 1) -> None:
        """Raises `StatusError` RESOURCE_EXHAUSTED if less than `amount` is left."""
        with self._lock:
            if self._used + amount > self._limit:
                raise StatusError("RESOURCE_EXHAUSTED", self._refusal)
            self._used += amount

    def give_back(self, amount: int = 1) -> None:
        with self._lock:
            self._used -= amount


class Gates:
    """The budgets of one server, which both of its protocols share."""

    def __init__(self, limits: Limits):
        self.limits = limits
        self.requests = Budget(
            limits.max_requests, f"The server is answering {limits.max_requests} requests, as many as it takes at once."
        )
        self.bytes = Budget(
            limits.max_bytes_at_once,
            f"The server holds {limits.max_bytes_at_once} bytes of large requests, as many as it takes at once.",
        )
        self._one_huge = threading.Lock()

    @contextmanager
    def turn(self, size_bytes: int) -> Iterator[None]:
        """Lets huge bodies be worked on one after the other: each takes many times its size as Python values."""
        if size_bytes < HUGE_BODY_BYTES:
            yield
            return
        with self._one_huge:
            try:
                yield
            finally:
                memory.give_back()
