"""The two gRPC services of TensorFlow Serving, over one `ModelStore`."""

from __future__ import annotations

import functools
import logging
import math
import time
from collections.abc import Callable
from typing import Any, NoReturn

import grpc
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    inference_pb2,
    model_management_pb2,
    model_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
    regression_pb2,
)

from tfmetarec.server import inference
from tfmetarec.server.model_store import ModelStore
from tfmetarec.server.prometheus import METRICS
from tfmetarec.server.servable import Servable
from tfmetarec.server.status import CODES, StatusError, from_exception, invalid_argument

_LOG = logging.getLogger(__name__)
_UNLIMITED = -1
_MAX_MESSAGE_BYTES = 1024
_LONGEST_TIMEOUT_S = 2**20  # Twelve days; who waits longer has no limit in mind.

SERVER_OPTIONS = [
    ("grpc.max_send_message_length", _UNLIMITED),
    ("grpc.max_receive_message_length", _UNLIMITED),
    ("grpc.so_reuseport", 0),  # A port in use is an error, not a second server that gets half the requests.
]


def _abort(context: grpc.ServicerContext, error: StatusError) -> NoReturn:
    message = error.message
    encoded = message.encode(errors="replace")
    if len(encoded) > _MAX_MESSAGE_BYTES:  # It travels in a header, and clients take only so much of those.
        message = encoded[:_MAX_MESSAGE_BYTES].decode(errors="ignore") + "...TRUNCATED"
    context.abort(getattr(grpc.StatusCode, error.code), message)
    raise error  # `abort` has raised already; this tells the type checker.


def metadata(store: ModelStore, spec: model_pb2.ModelSpec) -> get_model_metadata_pb2.GetModelMetadataResponse:
    """Describes the signatures of a version."""
    response = get_model_metadata_pb2.GetModelMetadataResponse()
    with store.use(spec) as servable:
        response.model_spec.name = servable.name
        response.model_spec.version.value = servable.version
        signatures = get_model_metadata_pb2.SignatureDefMap(signature_def=dict(servable.meta_graph_def.signature_def))
    response.metadata["signature_def"].Pack(signatures)
    return response


def _timeout_ms(context: grpc.ServicerContext) -> int:
    """How long a client will wait: longer work is for nobody. 0 if it said nothing.

    Rounded up to a power of two, because a session prepares itself anew for every other time limit.
    """
    remaining_s = context.time_remaining()
    if remaining_s is None or remaining_s > _LONGEST_TIMEOUT_S:
        return 0
    return 1 << max(0, math.ceil(remaining_s * 1000) - 1).bit_length()


class PredictionService(prediction_service_pb2_grpc.PredictionServiceServicer):
    """Predict, Classify, Regress, MultiInference and GetModelMetadata.

    Args:
        store: where the models are.
        as_content: bool. Whether predictions carry their tensors as bytes. Defaults to `False`.
    """

    def __init__(self, store: ModelStore, as_content: bool = False):
        self._store = store
        self._as_content = as_content

    def _answer(
        self,
        method: str,
        spec: model_pb2.ModelSpec,
        request: Any,
        context: grpc.ServicerContext,
        answer: Callable[[Servable, Any, int], Any],
    ) -> Any:
        started = time.perf_counter()
        try:
            with self._store.use(spec) as servable:
                response = answer(servable, request, _timeout_ms(context))
                self._store.request_logs.log(servable, request, response)
        except Exception as error:
            status = from_exception(error)
            if status is not error:
                _LOG.warning("%s on %s failed: %s", method, spec.name, status)
            METRICS.count_request(spec.name, status.code)
            _abort(context, status)
        METRICS.count_request(spec.name, "OK")
        METRICS.observe_request(spec.name, method, "GRPC", time.perf_counter() - started)
        return response

    def _answer_with_spec(
        self, method: str, request: Any, context: grpc.ServicerContext, answer: Callable[[Servable, Any, int], Any]
    ) -> Any:
        if not request.HasField("model_spec"):
            _abort(context, invalid_argument("Missing ModelSpec"))
        return self._answer(method, request.model_spec, request, context, answer)

    def Predict(
        self, request: predict_pb2.PredictRequest, context: grpc.ServicerContext
    ) -> predict_pb2.PredictResponse:
        predict = functools.partial(inference.predict_request, as_content=self._as_content)
        return self._answer_with_spec("Predict", request, context, predict)

    def Classify(
        self, request: classification_pb2.ClassificationRequest, context: grpc.ServicerContext
    ) -> classification_pb2.ClassificationResponse:
        return self._answer_with_spec("Classify", request, context, inference.classify)

    def Regress(
        self, request: regression_pb2.RegressionRequest, context: grpc.ServicerContext
    ) -> regression_pb2.RegressionResponse:
        return self._answer_with_spec("Regress", request, context, inference.regress)

    def MultiInference(
        self, request: inference_pb2.MultiInferenceRequest, context: grpc.ServicerContext
    ) -> inference_pb2.MultiInferenceResponse:
        spec = request.tasks[0].model_spec if request.tasks else model_pb2.ModelSpec()
        return self._answer("MultiInference", spec, request, context, inference.multi_inference)

    def GetModelMetadata(
        self, request: get_model_metadata_pb2.GetModelMetadataRequest, context: grpc.ServicerContext
    ) -> get_model_metadata_pb2.GetModelMetadataResponse:
        try:
            if not request.HasField("model_spec"):
                raise invalid_argument("Missing ModelSpec")
            if not request.metadata_field:
                raise invalid_argument("GetModelMetadataRequest must specify at least one metadata_field")
            for name in request.metadata_field:
                if name != "signature_def":
                    raise invalid_argument(f"Metadata field {name} is not supported")
            return metadata(self._store, request.model_spec)
        except Exception as error:
            _abort(context, from_exception(error))


class ModelService(model_service_pb2_grpc.ModelServiceServicer):
    """GetModelStatus and HandleReloadConfigRequest."""

    def __init__(self, store: ModelStore):
        self._store = store

    def GetModelStatus(
        self, request: get_model_status_pb2.GetModelStatusRequest, context: grpc.ServicerContext
    ) -> get_model_status_pb2.GetModelStatusResponse:
        try:
            if not request.HasField("model_spec"):
                raise invalid_argument("Missing ModelSpec")
            return self._store.status(request.model_spec)
        except Exception as error:
            _abort(context, from_exception(error))

    def HandleReloadConfigRequest(
        self, request: model_management_pb2.ReloadConfigRequest, context: grpc.ServicerContext
    ) -> model_management_pb2.ReloadConfigResponse:
        try:
            self._store.reload(request.config, context.is_active)
        except Exception as error:
            status = from_exception(error)
            _LOG.error("Could not apply the new configuration: %s", status)
            _abort(context, status)
        _LOG.info("Applied a new configuration of %d models", len(request.config.model_config_list.config))
        response = model_management_pb2.ReloadConfigResponse()
        response.status.error_code = CODES.index("OK")
        return response


def register(server: grpc.Server, store: ModelStore, as_content: bool = False) -> None:
    """Adds both services to a gRPC server."""
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(PredictionService(store, as_content), server)
    model_service_pb2_grpc.add_ModelServiceServicer_to_server(ModelService(store), server)
