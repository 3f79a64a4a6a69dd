"""Request logging: a sample of the answered requests as PredictionLog records, ready to be a warm-up file.

A model asks for it in its `logging_config`. A request costs a random number and a place in a bounded queue; one
thread for each log turns what was sampled into records and writes them. What does not fit is dropped and counted.
TensorFlow Serving has the same settings, but its stock binary has nothing that writes, and refuses them.
"""

from __future__ import annotations

import itertools
import logging
import os
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np
import tensorflow as tf
from google.protobuf.message import Message
from tensorflow_serving.apis import (
    classification_pb2,
    inference_pb2,
    predict_pb2,
    prediction_log_pb2,
    regression_pb2,
)
from tensorflow_serving.config import logging_config_pb2
from tensorflow_serving.config.model_server_config_pb2 import ModelConfig

from tfmetarec.server import tensors
from tfmetarec.server.inference import fill_model_spec
from tfmetarec.server.prometheus import METRICS
from tfmetarec.server.servable import Servable
from tfmetarec.server.status import StatusError, from_exception, invalid_argument
from tfmetarec.server.warmup import MAX_RECORDS

TYPES = ("", "file")
"""What `log_collector_config.type` may say: TFRecord files are all there is."""
MAX_QUEUED_RECORDS = 1000
MAX_QUEUED_BYTES = 64 << 20
FLUSH_INTERVAL_S = 1.0
MAX_FILE_BYTES = 256 << 20
"""A file ends here, or at as many records as a warm-up may have; the next one goes on."""

_CLOSE_S = 10.0

_LOG = logging.getLogger(__name__)
_KINDS: dict[type[Message], str] = {
    predict_pb2.PredictRequest: "predict_log",
    classification_pb2.ClassificationRequest: "classify_log",
    regression_pb2.RegressionRequest: "regress_log",
    inference_pb2.MultiInferenceRequest: "multi_inference_log",
}

Record = Callable[[], prediction_log_pb2.PredictionLog]


class RequestLogs:
    """The logs of all models that have one."""

    def __init__(self) -> None:
        self._logs: dict[str, _Log] = {}

    def update(self, models: Iterable[ModelConfig]) -> None:
        """Logs as the models say from now on; a log whose settings stayed goes on in its file.

        Raises:
            StatusError: NOT_FOUND for an unknown type, INVALID_ARGUMENT for a sampling rate out of its range or two
                models with one file name, FAILED_PRECONDITION if the directory cannot be made. Nothing changes then.
        """
        wanted = {model.name: model.logging_config for model in models if model.HasField("logging_config")}
        _check(wanted)
        before = self._logs
        kept = {name: log for name, log in before.items() if wanted.get(name) == log.settings}
        new = {name: _Log(name, settings) for name, settings in wanted.items() if name not in kept}
        self._logs = kept | new
        for name in before.keys() - kept.keys():
            before[name].close()

    def log(self, servable: Servable, request: Message, response: Message) -> None:
        """Logs an answered request, if it is in the sample. Neither message may be changed afterwards."""
        log = self._logs.get(servable.name)
        if log is not None and log.samples():
            log.put(request.ByteSize() + response.ByteSize(), lambda: log.record(servable, request, response))

    def log_prediction(
        self,
        servable: Servable,
        signature_name: str,
        inputs: Mapping[str, np.ndarray],
        outputs: Mapping[str, np.ndarray],
    ) -> None:
        """Logs an answered prediction that came as JSON, if it is in the sample; it becomes messages only here."""
        log = self._logs.get(servable.name)
        if log is None or not log.samples():
            return

        def record() -> prediction_log_pb2.PredictionLog:
            request, response = predict_pb2.PredictRequest(), predict_pb2.PredictResponse()
            request.model_spec.name, request.model_spec.signature_name = servable.name, signature_name
            fill_model_spec(servable, signature_name, response.model_spec)
            for named, message in ((inputs, request.inputs), (outputs, response.outputs)):
                for name, array in named.items():
                    # As bytes it is faster; but text in bytes is what `tf.make_ndarray` cannot read.
                    tensors.to_proto(array, message[name], as_content=array.dtype != np.object_)
            return log.record(servable, request, response)

        log.put(sum(_size(array) for array in (*inputs.values(), *outputs.values())), record)

    def close(self) -> None:
        """Writes what is queued and ends."""
        logs, self._logs = self._logs, {}
        for log in logs.values():
            log.close()


def _size(array: np.ndarray) -> int:
    return array.nbytes if array.dtype != np.object_ else sum(len(text) + 8 for text in array.ravel().tolist())


def _check(wanted: Mapping[str, logging_config_pb2.LoggingConfig]) -> None:
    prefixes: set[str] = set()
    for name, settings in wanted.items():
        kind, prefix = settings.log_collector_config.type, settings.log_collector_config.filename_prefix
        rate = settings.sampling_config.sampling_rate
        if kind not in TYPES:
            raise StatusError("NOT_FOUND", f"Cannot find LogCollector::Factory for type: {kind}")
        if prefix in prefixes:
            raise invalid_argument(f"Duplicate LogCollectorConfig::filename_prefix(): {prefix}")
        prefixes.add(prefix)
        if not os.path.isabs(prefix) or prefix.endswith("/"):
            raise invalid_argument(
                f"`filename_prefix` of model {name} must be an absolute path and the beginning of a file name. "
                f"Received: {prefix!r}"
            )
        if not 0 <= rate <= 1:
            raise invalid_argument(f"`sampling_rate` of model {name} must be from 0 to 1. Received: {rate}")
        try:
            Path(prefix).parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StatusError(
                "FAILED_PRECONDITION",
                f"The directory for the request log of model {name} cannot be made: {prefix} ({error.strerror})",
            ) from None


class _Log:
    """One model's log: its sample, its queue and the thread that empties it."""

    def __init__(self, model: str, settings: logging_config_pb2.LoggingConfig):
        self.settings = settings
        self._model = model
        self._rate = settings.sampling_config.sampling_rate
        # One seed for every start: equal requests in equal order give equal logs. Every n-th request instead would
        # always meet the same kind of request, where clients take turns.
        self._random = random.Random(0)
        self._queue: deque[tuple[int, Record]] = deque()
        self._queued_bytes = 0
        self._changed = threading.Condition()
        self._closed = False
        self._files = _Files(settings.log_collector_config.filename_prefix)
        self._failing = False
        self._thread = threading.Thread(target=self._work, daemon=True, name=f"request-log-{model}")
        self._thread.start()

    def samples(self) -> bool:
        return self._random.random() < self._rate

    def put(self, size_bytes: int, record: Record) -> None:
        with self._changed:
            full = len(self._queue) >= MAX_QUEUED_RECORDS or self._queued_bytes + size_bytes > MAX_QUEUED_BYTES
            if not full and not self._closed:
                self._queue.append((size_bytes, record))
                self._queued_bytes += size_bytes
                self._changed.notify()
                return
        METRICS.count_logged_request(self._model, "RESOURCE_EXHAUSTED")

    def record(self, servable: Servable, request: Message, response: Message) -> prediction_log_pb2.PredictionLog:
        """Makes the record of a request; called on the writing thread."""
        record = prediction_log_pb2.PredictionLog()
        metadata = record.log_metadata
        signature_name = request.model_spec.signature_name if hasattr(request, "model_spec") else ""
        fill_model_spec(servable, signature_name, metadata.model_spec)
        metadata.sampling_config.CopyFrom(self.settings.sampling_config)
        metadata.timestamp_secs = int(time.time())
        log = getattr(record, _KINDS[type(request)])
        log.request.CopyFrom(request)
        log.response.CopyFrom(response)
        return record

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join(_CLOSE_S)

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queue or self._closed)
                records = [record for _, record in self._queue]
                self._queue.clear()
                self._queued_bytes = 0
                closed = self._closed
            for record in records:
                self._write(record)
            self._end(self._files.close if closed else self._files.flush)
            if closed:
                return
            with self._changed:  # Records gather in the meantime: a flush for each would be many small writes.
                self._changed.wait_for(self._is_pressing, FLUSH_INTERVAL_S)

    def _is_pressing(self) -> bool:
        return self._closed or len(self._queue) > MAX_QUEUED_RECORDS / 2 or self._queued_bytes > MAX_QUEUED_BYTES / 2

    def _write(self, record: Record) -> None:
        try:
            self._files.write(record().SerializeToString())
        except Exception as error:
            self._fail(error)
        else:
            self._failing = False
            METRICS.count_logged_request(self._model, "OK")

    def _end(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        """A disk that is full must not end the server, nor fill its log."""
        status = from_exception(error)
        METRICS.count_logged_request(self._model, status.code)
        if not self._failing:
            _LOG.error("Could not write the request log of %s: %s", self._model, status)
        self._failing = True


class _Files:
    """The TFRecord files of a log, one after the other, each small enough to be a warm-up file."""

    def __init__(self, prefix: str):
        self._prefix = f"{prefix}-{time.strftime('%Y%m%dT%H%M%S')}-{os.getpid()}"
        self._numbers = itertools.count()
        self._writer: tf.io.TFRecordWriter | None = None
        self._records = self._bytes = 0

    def write(self, record: bytes) -> None:
        if self._writer is not None and (self._records >= MAX_RECORDS or self._bytes + len(record) > MAX_FILE_BYTES):
            self.close()
        if self._writer is None:  # No file before there is something to write.
            self._writer = tf.io.TFRecordWriter(self._next_path())
            self._records = self._bytes = 0
        self._writer.write(record)
        self._records += 1
        self._bytes += len(record)

    def _next_path(self) -> str:
        while True:  # A log that was closed and opened again within a second has the same beginning.
            path = f"{self._prefix}-{next(self._numbers):05d}.tfrecord"
            if not os.path.exists(path):
                return path

    def flush(self) -> None:
        if self._writer is not None:
            self._writer.flush()

    def close(self) -> None:
        if self._writer is not None:
            writer, self._writer = self._writer, None
            writer.close()
