"""Request batching: requests that arrive together run as one.

Batching asks more of a model than single requests do: every input and output needs a first dimension, the
same for all of them. It can also change what a request sees: requests of different inner sizes are padded,
each with the first element of its own tensor. A model that is told of padding by a mask is then wrong, one
that is told by a length stays right. So this server merges, pads and splits just as TensorFlow Serving does.
"""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from tfmetarec.server import config
from tfmetarec.server.servable import Run, Servable
from tfmetarec.server.status import StatusError, failed_precondition, from_exception, invalid_argument

PER_MODEL_FILE = "batching_params.pbtxt"
_MAX_QUEUES = 256  # Requests choose their outputs; past this many choices they run alone.


@dataclass(frozen=True)
class BatchingOptions:
    """How requests are gathered.

    Attributes:
        max_batch_size: int, at least 1. Most rows in one run. Defaults to 1000.
        batch_timeout_micros: int, at least 0. How long the first request waits for others. Defaults to 0.
        max_enqueued_batches: int, at least 1. Full batches that may wait before requests are refused.
        num_batch_threads: int, at least 1. Batches that run at once. Defaults to the number of CPUs.
        allowed_batch_sizes: ascending ints, the last equal to `max_batch_size`. A batch is filled up to the
            next of them with copies of a row. Defaults to none, every size being allowed.
        pad_variable_length_inputs: bool. Whether requests of different inner sizes may share a batch.
        max_execution_batch_size: int, at least 1 and at most `max_batch_size`, or `None`. Most rows in one run where
            larger requests are split, `max_batch_size` then being the most rows in one request. Defaults to `None`:
            requests are not split.

    Raises:
        StatusError: INVALID_ARGUMENT if the sizes break a rule.
    """

    max_batch_size: int = 1000
    batch_timeout_micros: int = 0
    max_enqueued_batches: int = 10
    num_batch_threads: int = os.cpu_count() or 1
    allowed_batch_sizes: tuple[int, ...] = ()
    pad_variable_length_inputs: bool = False
    max_execution_batch_size: int | None = None

    def __post_init__(self) -> None:
        rules = {
            "max_batch_size": 1,
            "batch_timeout_micros": 0,
            "max_enqueued_batches": 1,
            "num_batch_threads": 1,
        }
        for name, least in rules.items():
            if getattr(self, name) < least:
                raise invalid_argument(f"`{name}` must be at least {least}. Received: {name}={getattr(self, name)}")
        sizes = self.allowed_batch_sizes
        if any(later <= earlier for earlier, later in itertools.pairwise(sizes)):
            raise invalid_argument("allowed_batch_sizes entries must be monotonically increasing")
        if sizes and sizes[-1] != self.max_batch_size:
            raise invalid_argument(
                f"Last entry in allowed_batch_sizes must match max_batch_size; last entry was {sizes[-1]}; "
                f"expected {self.max_batch_size}"
            )
        rows = self.max_execution_batch_size
        if rows is not None and not 1 <= rows <= self.max_batch_size:
            raise invalid_argument(
                f"`max_execution_batch_size` must be from 1 to `max_batch_size`, {self.max_batch_size}. "
                f"Received: {rows}"
            )

    @classmethod
    def from_proto(cls, parameters: Any) -> BatchingOptions:
        """Takes what a `BatchingParameters` message sets, and the defaults for the rest."""
        wrapped = ["max_batch_size", "batch_timeout_micros", "max_enqueued_batches", "num_batch_threads"]
        if parameters.enable_large_batch_splitting.value:  # Without it the other field means nothing.
            wrapped.append("max_execution_batch_size")
        return cls(
            **{name: getattr(parameters, name).value for name in wrapped if parameters.HasField(name)},
            allowed_batch_sizes=tuple(parameters.allowed_batch_sizes),
            pad_variable_length_inputs=parameters.pad_variable_length_inputs,
        )

    @property
    def rows_at_once(self) -> int:
        """Most rows in one run."""
        return self.max_execution_batch_size or self.max_batch_size

    def padded_size(self, size: int) -> int:
        """The size that a batch of `size` rows is filled up to.

        Example:
        >>> BatchingOptions(max_batch_size=8, allowed_batch_sizes=(2, 8)).padded_size(3)
        8
        """
        return next((allowed for allowed in self.allowed_batch_sizes if allowed >= size), size)


@dataclass
class _Task:
    feeds: dict[str, np.ndarray]
    size: int
    answer: Future[dict[str, np.ndarray]] = field(default_factory=Future)


def options_of(path: Path, common: BatchingOptions, per_model: bool) -> BatchingOptions | None:
    """How one version gathers its requests.

    Args:
        path: Path of the version's directory.
        common: what holds for all models.
        per_model: bool. Whether each version has its own options, in `batching_params.pbtxt` beside its graph; one
            without that file does not batch then. How many batches run at once stays common.

    Raises:
        StatusError: INVALID_ARGUMENT if the file cannot be read or breaks a rule.
    """
    if not per_model:
        return common
    file = path / PER_MODEL_FILE
    if not file.exists():
        return None
    own = BatchingOptions.from_proto(config.read_batching(str(file)))
    return replace(own, num_batch_threads=common.num_batch_threads)


def enable_batching(servable: Servable, options: BatchingOptions) -> None:
    """Makes `servable.run` gather requests, one queue for each set of inputs and outputs that is asked for."""
    queues: dict[tuple[frozenset[str], frozenset[str]], _Queue] = {}
    lock = threading.Lock()

    def queue_for(feeds: frozenset[str], fetches: frozenset[str]) -> _Queue | None:
        with lock:
            queue = queues.get((feeds, fetches))
            if queue is None and feeds and len(queues) < _MAX_QUEUES:
                queue = queues[feeds, fetches] = _Queue(servable.run_session, sorted(fetches), options)
            return queue

    def run(feeds: Mapping[str, np.ndarray], fetches: Sequence[str], timeout_ms: int) -> list[np.ndarray]:
        queue = queue_for(frozenset(feeds), frozenset(fetches))
        if queue is None:
            return servable.run_session(feeds, fetches, timeout_ms)
        arrays = queue.run(feeds, timeout_ms)
        return [arrays[name] for name in fetches]

    def close() -> None:
        for queue in list(queues.values()):
            queue.close()

    servable.run = run
    servable.close_hooks.append(close)


def _rows_of(feeds: Mapping[str, np.ndarray]) -> int:
    if any(array.ndim == 0 for array in feeds.values()):
        raise invalid_argument("Batching Run() input tensors must have at least one dimension")
    sizes = {len(array) for array in feeds.values()}
    if len(sizes) != 1:
        raise invalid_argument("Batching Run() input tensors must have equal 0th-dimension size")
    return sizes.pop()


class _Queue:
    """Requests for one signature, and the threads that run them together."""

    def __init__(self, run: Run, fetches: list[str], options: BatchingOptions):
        self._run = run
        self._fetches = fetches
        self._options = options
        self._waiting: deque[_Task] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._threads: list[threading.Thread] = []

    def run(self, feeds: Mapping[str, np.ndarray], timeout_ms: int) -> dict[str, np.ndarray]:
        size = _rows_of(feeds)
        options = self._options
        if size > options.max_batch_size:
            raise invalid_argument(f"Task size {size} is larger than maximum input batch size {options.max_batch_size}")
        rows = options.rows_at_once
        parts = [
            _Task({name: array[start : start + rows] for name, array in feeds.items()}, min(rows, size - start))
            for start in range(0, max(size, 1), rows)
        ]
        with self._changed:
            if sum(t.size for t in self._waiting) + size > options.max_batch_size * options.max_enqueued_batches:
                raise StatusError("UNAVAILABLE", "The batch scheduling queue to which this task was submitted is full")
            if len(self._threads) < options.num_batch_threads:  # A quiet signature costs no threads.
                self._threads.append(threading.Thread(target=self._work, daemon=True, name="batching"))
                self._threads[-1].start()
            self._waiting += parts
            self._changed.notify_all()
        end = time.monotonic() + timeout_ms / 1000 if timeout_ms else None
        try:
            answers = [part.answer.result(None if end is None else end - time.monotonic()) for part in parts]
        except TimeoutError:
            raise StatusError("RESOURCE_EXHAUSTED", "Run() timeout exceeded while waiting in batching queue") from None
        if len(answers) == 1:
            return answers[0]
        return {name: np.concatenate([answer[name] for answer in answers]) for name in self._fetches}

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        while tasks := self._next_batch():
            try:
                answers = self._process(tasks)
            except Exception as error:
                for task in tasks:
                    task.answer.set_exception(from_exception(error))
            else:
                for task, answer in zip(tasks, answers, strict=True):
                    task.answer.set_result(answer)

    def _next_batch(self) -> list[_Task]:
        """Waits for a full batch, or for the time limit of its first request; empty once closed."""
        limit = self._options.rows_at_once
        batch: list[_Task] = []
        with self._changed:
            while not batch:  # Another thread may have taken what this one waited for.
                while not self._waiting:
                    if self._closed:
                        return []
                    self._changed.wait()
                end = time.monotonic() + self._options.batch_timeout_micros / 1e6
                while self._waiting and not self._closed and sum(task.size for task in self._waiting) < limit:
                    left_s = end - time.monotonic()
                    if left_s <= 0:
                        break
                    self._changed.wait(left_s)
                size = 0
                while self._waiting and size + self._waiting[0].size <= limit:
                    batch.append(self._waiting.popleft())
                    size += batch[-1].size
        return batch

    def _process(self, tasks: list[_Task]) -> list[dict[str, np.ndarray]]:
        size = sum(task.size for task in tasks)
        padded = self._options.padded_size(size)
        feeds = {
            name: self._merge(name, [task.feeds[name] for task in tasks], padded - size) for name in tasks[0].feeds
        }
        outputs = dict(zip(self._fetches, self._run(feeds, self._fetches, 0), strict=True))
        for array in outputs.values():
            if array.ndim == 0:
                raise failed_precondition("Batched output tensor has 0 dimensions")
            if len(array) != padded:
                raise failed_precondition(
                    "Batched output tensor's 0th dimension does not equal the sum of the 0th dimension sizes "
                    "of the input tensors"
                )
        ends = np.cumsum([task.size for task in tasks])
        return [
            {name: array[end - task.size : end] for name, array in outputs.items()}
            for task, end in zip(tasks, ends, strict=True)
        ]

    def _merge(self, name: str, arrays: list[np.ndarray], padding_rows: int) -> np.ndarray:
        if len({array.shape[1:] for array in arrays}) > 1:
            if not self._options.pad_variable_length_inputs:
                raise failed_precondition(
                    f"Tensors with name '{name}' from different tasks have different shapes and padding is "
                    "turned off.Set pad_variable_length_inputs to true, or ensure that all tensors with the "
                    "same namehave equal dimensions starting with the first dim."
                )
            arrays = _pad(arrays)
        if padding_rows and len(arrays[-1]):  # The first row of the last request: surely a valid row.
            arrays = [*arrays, np.repeat(arrays[-1][:1], padding_rows, axis=0)]
        return np.concatenate(arrays)


def _pad(arrays: list[np.ndarray]) -> list[np.ndarray]:
    """Pads the inner dimensions to the largest, each array with its own first element."""
    if len({array.ndim for array in arrays}) > 1:
        raise invalid_argument("Tensors of different ranks cannot share a batch.")
    sizes = [max(array.shape[i] for array in arrays) for i in range(1, arrays[0].ndim)]
    padded = []
    for array in arrays:
        if list(array.shape[1:]) == sizes:
            padded.append(array)
            continue
        if array.size == 0:
            raise invalid_argument("Got empty tensor in batch of non-empty tensors.")
        full = np.full([len(array), *sizes], array.flat[0], array.dtype)
        full[tuple(slice(size) for size in array.shape)] = array
        padded.append(full)
    return padded
