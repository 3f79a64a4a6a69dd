"""Warm-up records: requests that TensorFlow Serving runs before it calls a version available."""

from pathlib import Path

import tensorflow as tf

from tfmetarec.export.example_requests import Request

MAXIMUM = 1000  # TensorFlow Serving refuses a file with more.


def write_warmup(folder: Path, model_name: str, requests: list[tuple[str, Request]]) -> None:
    """Writes `assets.extra/tf_serving_warmup_requests` under `folder`, a TFRecord of PredictionLogs.

    The first call of a signature in a shape pays for building its kernels (half a second here); warmed up, a
    client never sees that.

    Args:
        folder: of the SavedModel.
        model_name: goes into the requests; servers accept any.
        requests: signature names with their inputs, at most 1,000.

    Raises:
        ValueError: if there are too many.
    """
    from tensorflow_serving.apis import prediction_log_pb2

    if len(requests) > MAXIMUM:
        raise ValueError(f"`requests` must be at most {MAXIMUM}. Received: {len(requests)}")
    extra = folder / "assets.extra"
    extra.mkdir(exist_ok=True)
    with tf.io.TFRecordWriter(str(extra / "tf_serving_warmup_requests")) as writer:
        for signature, inputs in requests:
            log = prediction_log_pb2.PredictionLog()
            request = log.predict_log.request
            request.model_spec.name = model_name
            request.model_spec.signature_name = signature
            for name, value in inputs.items():
                request.inputs[name].CopyFrom(tf.make_tensor_proto(value))
            writer.write(log.SerializeToString())
