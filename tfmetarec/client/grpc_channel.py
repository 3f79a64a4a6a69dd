"""The gRPC port. Importing this loads TensorFlow, as TensorFlow Serving's own Python package does."""

from collections.abc import Callable, Mapping
from typing import Any

import grpc
import numpy as np
import tensorflow as tf
from google.protobuf import json_format
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from tfmetarec.client.errors import ServingError


class GrpcTransport:
    """Speaks to the gRPC port; threads share its channel."""

    def __init__(self, target: str, model: str, version: int | None, label: str | None):
        # The default limit of 4 MiB is less than a page of embeddings; -1 is none, as in the server.
        options = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
        self._channel = grpc.insecure_channel(target, options)
        self._prediction = prediction_service_pb2_grpc.PredictionServiceStub(self._channel)
        self._models = model_service_pb2_grpc.ModelServiceStub(self._channel)
        self._spec = model_pb2.ModelSpec(name=model)
        if version is not None:
            self._spec.version.value = version
        elif label is not None:
            self._spec.version_label = label

    def predict(
        self, inputs: dict[str, np.ndarray], signature: str, definition: Mapping[str, Any], left_s: float
    ) -> dict[str, np.ndarray]:
        request = predict_pb2.PredictRequest(model_spec=self._spec)
        request.model_spec.signature_name = signature
        for name, array in inputs.items():
            request.inputs[name].CopyFrom(tf.make_tensor_proto(array, shape=array.shape))
        response = _call(self._prediction.Predict, request, left_s)
        return {name: _from_tensor(name, tf.make_ndarray(tensor)) for name, tensor in response.outputs.items()}

    def status(self, left_s: float) -> list[dict[str, Any]]:
        request = get_model_status_pb2.GetModelStatusRequest(model_spec=self._spec)
        return _page(_call(self._models.GetModelStatus, request, left_s))["model_version_status"]

    def metadata(self, left_s: float) -> dict[str, Any]:
        request = get_model_metadata_pb2.GetModelMetadataRequest(
            model_spec=self._spec, metadata_field=["signature_def"]
        )
        response = _call(self._prediction.GetModelMetadata, request, left_s)
        signatures = get_model_metadata_pb2.SignatureDefMap()
        response.metadata["signature_def"].Unpack(signatures)
        return {"model_spec": _page(response.model_spec), "metadata": {"signature_def": _page(signatures)}}

    def close(self) -> None:
        self._channel.close()


def _call(method: Callable[..., Any], request: Any, left_s: float) -> Any:
    try:
        return method(request, timeout=left_s)
    except grpc.RpcError as error:
        raise ServingError(error.code().name, error.details()) from None


def _from_tensor(name: str, array: np.ndarray) -> np.ndarray:
    if array.dtype != np.object_ or name.endswith("_bytes"):
        return array
    texts = np.empty(array.size, np.object_)
    texts[:] = [item.decode("utf-8", "surrogateescape") for item in array.flat]
    return texts.reshape(array.shape)


def _page(message: Any) -> dict[str, Any]:
    """A message as the REST port shows it."""
    return json_format.MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
