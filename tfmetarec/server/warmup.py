"""Warm-up: a version answers recorded requests before it takes live ones.

The first run of a signature on a new shape is slow, since TensorFlow then plans the graph. A file of recorded
requests beside the model lets the server pay that before the version becomes available.
"""

from __future__ import annotations

import logging
import time

import tensorflow as tf
from google.protobuf.message import DecodeError
from tensorflow_serving.apis import prediction_log_pb2

from tfmetarec.server import inference, prometheus
from tfmetarec.server.servable import Servable
from tfmetarec.server.status import StatusError, from_exception, invalid_argument

WARMUP_FILE = "assets.extra/tf_serving_warmup_requests"
MAX_RECORDS = 1000

_LOG = logging.getLogger(__name__)


def warm_up(servable: Servable, iterations: int = 1) -> int:
    """Runs the requests recorded beside a version, if there are any.

    Args:
        servable: the version, loaded.
        iterations: int, at least 1. How often each request runs. Defaults to 1.

    Returns:
        How many records there were.

    Raises:
        StatusError: if the file is damaged, too long, or any request fails; the version is then no good.
    """
    path = servable.path / WARMUP_FILE
    if not path.exists():
        return 0
    started = time.perf_counter()
    count = 0
    code = "OK"
    try:
        for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
            count += 1
            if count > MAX_RECORDS:
                raise invalid_argument(f"Number of warmup records exceeds the maximum ({MAX_RECORDS}) at {path}")
            log = _parse(record, str(path))
            for _ in range(iterations):
                _replay(servable, log)
    except Exception as error:
        status = from_exception(error)
        code = status.code
        if code == "DATA_LOSS":
            message = f"{status.message}. Please verify your warmup data is in TFRecord format."
            raise StatusError("DATA_LOSS", message) from None
        raise status from None
    finally:
        prometheus.METRICS.observe_warmup(str(servable.path), code, time.perf_counter() - started)
    _LOG.info(
        "Warmed up %s version %d with %d requests in %.2f s",
        servable.name,
        servable.version,
        count,
        time.perf_counter() - started,
    )
    return count


def _parse(record: bytes, path: str) -> prediction_log_pb2.PredictionLog:
    try:
        return prediction_log_pb2.PredictionLog.FromString(record)
    except DecodeError:
        raise invalid_argument(f"Failed to parse warmup record: {record[:80]!r} from {path}") from None


def _replay(servable: Servable, log: prediction_log_pb2.PredictionLog) -> None:
    kind = log.WhichOneof("log_type")
    if kind == "session_run_log":
        number = prediction_log_pb2.PredictionLog.SESSION_RUN_LOG_FIELD_NUMBER
        raise StatusError("UNIMPLEMENTED", f"Unsupported log_type for warmup: {number}")
    if kind == "predict_log":
        inference.predict_request(servable, log.predict_log.request)
    elif kind == "classify_log":
        inference.classify(servable, log.classify_log.request)
    elif kind == "regress_log":
        inference.regress(servable, log.regress_log.request)
    elif kind == "multi_inference_log":
        inference.multi_inference(servable, log.multi_inference_log.request)
    # Records of any other kind, or of none, are passed over, as TensorFlow Serving does.
