"""Asks the served model journey for recommendations, over gRPC. Needs tensorflow-serving-api.

Written by `tfmetarec export --serving-config`.

    python client_grpc.py [HOST:PORT [CERTIFICATE]]

CERTIFICATE is tls/server.crt, where the server's gRPC port speaks TLS.
"""

import sys
from pathlib import Path

import grpc
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

SERVER = sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:8500"
CERTIFICATE = Path(sys.argv[2]) if len(sys.argv) > 2 else None
# Messages may be larger than the 4 MiB that gRPC allows by itself.
OPTIONS = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]

# One user: what was met, oldest first, each with the label 1. Every list has one row for each user, and several
# users may share a request. A user without any interaction is one entry of padding:
#     "support": [[0]], "support_labels": [[0.0]], "support_length": [0]
# Of the user's features nothing is known here: "" is text, NaN a number and length 0 a list that is not known.
# gRPC converts no types, so each input says its own.
INPUTS = {
    "support": ([[0, 1, 2]], tf.int64),
    "support_labels": ([[1.0, 1.0, 1.0]], tf.float32),
    "support_length": ([3], tf.int32),
    "user_segment": ([""], tf.string),
}


def connect() -> grpc.Channel:
    if CERTIFICATE is None:
        return grpc.insecure_channel(SERVER, OPTIONS)
    return grpc.secure_channel(SERVER, grpc.ssl_channel_credentials(CERTIFICATE.read_bytes()), OPTIONS)


def main() -> None:
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "journey"
    request.model_spec.version_label = "stable"
    request.model_spec.signature_name = "adapt_and_recommend"
    for name, (value, dtype) in INPUTS.items():
        request.inputs[name].CopyFrom(tf.make_tensor_proto(value, dtype))
    with connect() as channel:
        try:
            response = prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict(request, timeout=10)
        except grpc.RpcError as error:
            sys.exit(f"{error.code().name}: {error.details()}")
    items = tf.make_ndarray(response.outputs["items"])[0]
    scores = tf.make_ndarray(response.outputs["scores"])[0]
    for item, score in zip(items, scores, strict=True):
        print(f"{item.decode() if isinstance(item, bytes) else item}\t{score:.4f}")


if __name__ == "__main__":
    main()
