"""One loaded version of a model: a SavedModel in a TensorFlow 1 session, as the C++ server runs it.

`tf.saved_model.load` is more forgiving than TensorFlow Serving: it rebuilds Python objects and finds
variables that the graph alone cannot. The session loader sees what the C++ server sees, and fails with it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import config_pb2

from tfmetarec.server import prometheus, xla
from tfmetarec.server.status import StatusError, from_exception, invalid_argument
from tfmetarec.server.tensors import dtype_name

_LOG = logging.getLogger(__name__)
_MAX_CALLABLES = 256  # Requests choose their outputs; this bounds how many choices are remembered.

Run = Callable[[Mapping[str, np.ndarray], Sequence[str], int], list[np.ndarray]]
"""Feeds by tensor name, names to fetch, time limit in milliseconds (0 for none) -> the fetched arrays."""


class Servable:
    """A loaded SavedModel.

    Args:
        name: str. The model's name.
        version: int, at least 0.
        path: Path. The version's directory.
        tags: sequence of str. Which meta graph to load.
        session_threads: int, at least 0. Threads of the session; 0 lets TensorFlow choose.
        allow_xla: bool. Whether functions exported with `jit_compile=True` may run. Defaults to `False`, as
            in TensorFlow Serving.

    Raises:
        StatusError: if the directory does not hold a SavedModel that a session can load.
    """

    def __init__(
        self,
        name: str,
        version: int,
        path: Path,
        tags: Sequence[str] = ("serve",),
        session_threads: int = 0,
        allow_xla: bool = False,
    ):
        self.name = name
        self.version = version
        self.path = path
        self.run: Run = self.run_session  # Batching replaces this.
        self.close_hooks: list[Callable[[], None]] = []
        if not any((path / file).exists() for file in ("saved_model.pb", "saved_model.pbtxt")):
            raise from_exception(
                tf.errors.NotFoundError(
                    None,
                    None,
                    f"Could not find SavedModel .pb or .pbtxt at supplied export directory path: {path}",
                )
            )
        config = config_pb2.ConfigProto(
            intra_op_parallelism_threads=session_threads,
            inter_op_parallelism_threads=session_threads,
            use_per_session_threads=session_threads > 0,  # Else the first session's pool serves them all.
        )
        self._session = tf.compat.v1.Session(graph=tf.Graph(), config=config)
        try:
            self.meta_graph_def = tf.compat.v1.saved_model.load(self._session, list(tags), str(path))
        except (OSError, RuntimeError) as error:  # A damaged file, or no meta graph with these tags.
            self._session.close()
            raise invalid_argument(str(error)) from None
        except Exception as error:
            self._session.close()
            raise from_exception(error) from error
        self._input_types = {
            tensor.name: tensor.dtype
            for signature in self.meta_graph_def.signature_def.values()
            for tensor in signature.inputs.values()
        }
        self._needs_xla = set() if allow_xla else self._fetches_that_need_xla()
        self._callables: OrderedDict[tuple[Any, ...], Any] = OrderedDict()
        self._lock = threading.Lock()

    def run_session(self, feeds: Mapping[str, np.ndarray], fetches: Sequence[str], timeout_ms: int) -> list[np.ndarray]:
        """Runs the graph once.

        Raises:
            StatusError: INVALID_ARGUMENT for a wrong type, and whatever the graph itself raises.
        """
        names = sorted(feeds)
        for i, name in enumerate(names):
            expected = self._input_types.get(name, 0)
            actual = tf.as_dtype(feeds[name].dtype).as_datatype_enum
            if expected and actual != expected:
                raise invalid_argument(
                    f"Expects arg[{i}] to be {dtype_name(expected)} but {dtype_name(actual)} is provided"
                )
        unique = sorted(set(fetches))
        if not self._needs_xla.isdisjoint(unique):
            raise StatusError("INTERNAL", "XLA compilation disabled")
        started = time.perf_counter()
        try:
            arrays = self._callable(tuple(names), tuple(unique), timeout_ms)(*[feeds[name] for name in names])
        except Exception as error:
            raise from_exception(error) from None
        prometheus.METRICS.observe_runtime(self.name, time.perf_counter() - started)
        by_name = dict(zip(unique, arrays, strict=True))
        # A single string comes as plain bytes, which NumPy would cut at a zero byte.
        return [
            np.array(array, np.object_) if isinstance(array, bytes) else np.asarray(array)
            for array in (by_name[name] for name in fetches)
        ]

    def _fetches_that_need_xla(self) -> set[str]:
        nodes = xla.compiled_nodes(self.meta_graph_def.graph_def)
        fetches: set[str] = set()
        for name, signature in self.meta_graph_def.signature_def.items():
            outputs = {info.name for info in signature.outputs.values()}
            needing = {output for output in outputs if output.split(":")[0] in nodes}
            if needing:
                _LOG.warning(
                    "Signature %s of %s version %d needs jit_compile, which is disabled, and will fail",
                    name,
                    self.name,
                    self.version,
                )
            fetches |= needing
        return fetches

    def _callable(self, feeds: tuple[str, ...], fetches: tuple[str, ...], timeout_ms: int) -> Any:
        key = (feeds, fetches, timeout_ms)
        with self._lock:
            if key not in self._callables:
                # A session's prepared callable skips what `Session.run` repeats each time: names, nesting
                # and feed checks cost more than a small model.
                options = config_pb2.CallableOptions(feed=feeds, fetch=fetches)
                options.run_options.timeout_in_ms = timeout_ms
                self._callables[key] = self._session._make_callable_from_options(options)
                if len(self._callables) > _MAX_CALLABLES:
                    self._callables.popitem(last=False)
            self._callables.move_to_end(key)
            return self._callables[key]

    def close(self) -> None:
        """Frees the graph and its variables; no request may be running."""
        for hook in self.close_hooks:
            hook()
        self._callables.clear()
        self._session.close()
