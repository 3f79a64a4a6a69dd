"""One loaded version of a model: a SavedModel in a TensorFlow 1 session, as the C++ server runs it.

`tf.saved_model.load` is more forgiving than TensorFlow Serving: it rebuilds Python objects and finds
variables that the graph alone cannot. The session loader sees what the C++ server sees, and fails with it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import config_pb2
from tensorflow.python.client import pywrap_tf_session

from tfmetarec.server import memory, prometheus, xla
from tfmetarec.server.status import StatusError, from_exception, invalid_argument
from tfmetarec.server.tensors import dtype_name

_LOG = logging.getLogger(__name__)
_MAX_PREPARED = 256

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
        session_config: ConfigProto for the session, or `None` for TensorFlow's own defaults.
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
        session_config: config_pb2.ConfigProto | None = None,
    ):
        self.name = name
        self.version = version
        self.path = path
        self.run: Run = self.run_session  # Batching replaces this.
        self.close_hooks: list[Callable[[], None]] = []
        self.max_rows: int | None = None  # The largest first dimension of an input that requests may have.
        if not any((path / file).exists() for file in ("saved_model.pb", "saved_model.pbtxt")):
            raise from_exception(
                tf.errors.NotFoundError(
                    None,
                    None,
                    f"Could not find SavedModel .pb or .pbtxt at supplied export directory path: {path}",
                )
            )
        self._session = tf.compat.v1.Session(graph=tf.Graph(), config=_session_config(session_threads, session_config))
        started = time.perf_counter()
        loaded = False
        try:
            self.meta_graph_def = tf.compat.v1.saved_model.load(self._session, list(tags), str(path))
            loaded = True
        except (OSError, RuntimeError) as error:  # A damaged file, or no meta graph with these tags.
            raise invalid_argument(str(error)) from None
        except Exception as error:
            raise from_exception(error) from error
        finally:
            prometheus.METRICS.count_load(str(path), loaded, time.perf_counter() - started)
            if not loaded:
                self._session.close()
        self._input_types = {
            tensor.name: tensor.dtype
            for signature in self.meta_graph_def.signature_def.values()
            for tensor in signature.inputs.values()
        }
        self._needs_xla = set() if allow_xla else self._fetches_that_need_xla()
        self._session._extend_graph()
        self._prepared: set[tuple[tuple[str, ...], tuple[str, ...]]] = set()
        self._tensors: dict[str, Any] = {}

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
        try:
            arrays = self._run_graph(tuple(names), [feeds[name] for name in names], tuple(unique), timeout_ms)
        except Exception as error:
            raise from_exception(error) from None
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

    def _run_graph(
        self, names: tuple[str, ...], arrays: list[np.ndarray], fetches: tuple[str, ...], timeout_ms: int
    ) -> Any:
        # Below `Session.run`, which each time repeats what costs more than a small model: names, nesting and checks.
        # Not a prepared callable, which the session would prepare anew, for seconds, for every other time limit.
        if (names, fetches) not in self._prepared:
            if len(self._prepared) >= _MAX_PREPARED:
                # A session never forgets what it prepared, and requests choose their outputs.
                options = config_pb2.CallableOptions(feed=names, fetch=fetches)
                options.run_options.timeout_in_ms = timeout_ms
                return self._session._make_callable_from_options(options)(*arrays)
            self._prepared.add((names, fetches))
        limit = None
        if timeout_ms:
            run_options = config_pb2.RunOptions(timeout_in_ms=timeout_ms)
            limit = pywrap_tf_session.TF_NewBufferFromString(run_options.SerializeToString())
        try:
            feeds = {self._tensor(name): array for name, array in zip(names, arrays, strict=True)}
            return self._session._call_tf_sessionrun(limit, feeds, [self._tensor(name) for name in fetches], [], None)
        finally:
            if limit is not None:
                pywrap_tf_session.TF_DeleteBuffer(limit)

    def _tensor(self, name: str) -> Any:
        if name not in self._tensors:
            try:
                self._tensors[name] = self._session.graph.get_tensor_by_name(name)._as_tf_output()
            except (KeyError, ValueError):  # A signature may name what the graph does not have.
                raise StatusError("NOT_FOUND", f"Tensor {name} was not found in the Graph") from None
        return self._tensors[name]

    def close(self) -> None:
        """Frees the graph and its variables; no request may be running."""
        for hook in self.close_hooks:
            hook()
        self._tensors.clear()
        self._session.close()
        # The session keeps its graph until it is collected itself, and `run` keeps this object, by a cycle.
        del self._session, self.run, self.meta_graph_def
        memory.give_back()


def _session_config(threads: int, given: config_pb2.ConfigProto | None) -> config_pb2.ConfigProto:
    config = config_pb2.ConfigProto()
    if given is not None:
        config.CopyFrom(given)
    if threads:
        config.intra_op_parallelism_threads = config.inter_op_parallelism_threads = threads
    if config.intra_op_parallelism_threads or config.inter_op_parallelism_threads:
        config.use_per_session_threads = True  # Else the first session's pool serves them all.
    return config
