"""The REST API of TensorFlow Serving: paths and JSON bodies to requests, answers to JSON."""

from __future__ import annotations

import json
import logging
import re
import time
from typing import Any
from urllib.parse import unquote

from google.protobuf import json_format
from google.protobuf.message import Message
from tensorflow_serving.apis import classification_pb2, get_model_metadata_pb2, model_pb2, regression_pb2

from tfmetarec.server import grpc_services, inference, json_text, request_json, response_json
from tfmetarec.server.http_server import Answer
from tfmetarec.server.model_store import ModelStore
from tfmetarec.server.prometheus import METRICS
from tfmetarec.server.status import HTTP_STATUS, StatusError, from_exception, invalid_argument

DEFAULT_METRICS_PATH = "/monitoring/prometheus/metrics"

_LOG = logging.getLogger(__name__)
_VERSION = r"(?:(?:/versions/([0-9]+))|(?:/labels/([^/:]+)))?"
_PREDICTION_PATH = re.compile(rf"(?i)/v1/models/([^/:]+){_VERSION}:(classify|regress|predict)")
_STATUS_PATH = re.compile(rf"(?i)/v1/models(?:/([^/:]+))?{_VERSION}(?:/(metadata))?")
_CORS = {
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Allow-Methods": "POST, GET",
    "Access-Control-Allow-Headers": "Content-Type",
}


class RestApi:
    """Answers REST requests, knowing nothing of sockets.

    Args:
        store: where the models are.
        timeout_ms: int, at least 0. Time limit for running the graph; 0 for none. Defaults to 30000.
        metrics_path: str or None. Where the Prometheus page is; `None` for nowhere.
        cors: bool. Whether browsers of other origins may call. Defaults to `False`.
    """

    def __init__(self, store: ModelStore, timeout_ms: int = 30000, metrics_path: str | None = None, cors: bool = False):
        self._store = store
        self._timeout_ms = timeout_ms
        self._metrics_path = metrics_path
        self._cors = cors

    def answer(self, http_method: str, path: str, body: bytes, origin: str = "") -> Answer:
        """Answers one request; never raises."""
        if self._metrics_path and path == self._metrics_path:
            return Answer(200, METRICS.page().encode(), {"Content-Type": "text/plain"})
        if not path.lower().startswith("/v1/"):
            return Answer(404, response_json.error_text(f"Malformed request: {http_method} {path}"))
        started = time.perf_counter()
        model, method = "", ""
        try:
            if http_method == "OPTIONS":
                answer = self._preflight(origin)
            else:
                match = self._match(http_method, path)
                model = unquote(match.group(1) or "")
                method = match.group(4) or ""
                spec = _model_spec(match)
                if spec is None:
                    return Answer(400, b"")  # As TensorFlow Serving answers a version past 64 bits.
                answer = Answer(200, self._dispatch(http_method, method, spec, body))
        except Exception as error:
            status = from_exception(error)
            if status is not error:
                _LOG.warning("%s %s failed: %s", http_method, path, status)
            if model:
                METRICS.count_request(model, status.code)
            return Answer(HTTP_STATUS.get(status.code, 500), response_json.error_text(status.message))
        if model:
            METRICS.count_request(model, "OK")
        if http_method == "POST":
            METRICS.observe_request(model, method, "REST", time.perf_counter() - started)
        return answer._replace(headers=answer.headers | _CORS) if self._cors else answer

    def _preflight(self, origin: str) -> Answer:
        if not re.match("https?://", origin):
            raise StatusError("FAILED_PRECONDITION", "Origin header is missing in CORS preflight")
        return Answer(200, b"")

    def _match(self, http_method: str, path: str) -> re.Match[str]:
        patterns = {"POST": _PREDICTION_PATH, "GET": _STATUS_PATH}
        match = patterns[http_method].fullmatch(path) if http_method in patterns else None
        # The path is matched whatever its case, but a method in capitals is then unknown.
        if match is None or (http_method == "POST" and not match.group(4).islower()):
            raise invalid_argument(f"Malformed request: {http_method} {path}")
        return match

    def _dispatch(self, http_method: str, method: str, spec: model_pb2.ModelSpec, body: bytes) -> bytes:
        if http_method == "GET":
            if not spec.name:
                raise invalid_argument("Missing model name in request.")
            if method == "metadata":
                return _metadata_json(grpc_services.metadata(self._store, spec))
            return _message_json(self._store.status(spec)).encode()
        document = json_text.parse_object(body)
        spec.signature_name = request_json.signature_name(document)
        if method == "predict":
            return self._predict(spec, document, body)
        if method == "classify":
            classification = classification_pb2.ClassificationRequest(model_spec=spec)
            request_json.fill_examples(document, classification.input)
            with self._store.use(spec) as servable:
                classified = inference.classify(servable, classification, self._timeout_ms)
                self._store.request_logs.log(servable, classification, classified)
            return response_json.classification_text(classified.result)
        regression = regression_pb2.RegressionRequest(model_spec=spec)
        request_json.fill_examples(document, regression.input)
        with self._store.use(spec) as servable:
            regressed = inference.regress(servable, regression, self._timeout_ms)
            self._store.request_logs.log(servable, regression, regressed)
        return response_json.regression_text(regressed.result)

    def _predict(self, spec: model_pb2.ModelSpec, document: dict[str, Any], body: bytes) -> bytes:
        with self._store.use(spec) as servable:
            name = spec.signature_name or inference.DEFAULT_SIGNATURE
            if name not in servable.meta_graph_def.signature_def:
                raise invalid_argument(f'Serving signature name: "{name}" not found in signature def')
            signature = servable.meta_graph_def.signature_def[name]
            request = request_json.predict_body(document, spec.signature_name, signature.inputs, body)
            outputs = inference.predict(servable, signature, request.inputs, timeout_ms=self._timeout_ms)
            self._store.request_logs.log_prediction(servable, spec.signature_name, request.inputs, outputs)
        return response_json.predict_text(outputs, request.row_format)


def _model_spec(match: re.Match[str]) -> model_pb2.ModelSpec | None:
    spec = model_pb2.ModelSpec(name=unquote(match.group(1) or ""))
    if match.group(2):
        version = int(match.group(2)) if len(match.group(2)) < 4000 else 2**63
        if version >= 2**63:
            return None
        spec.version.value = version
    elif match.group(3):
        spec.version_label = unquote(match.group(3))
    return spec


def _message_json(message: Message) -> str:
    return json_format.MessageToJson(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True, indent=1
    )


def metadata_dict(response: get_model_metadata_pb2.GetModelMetadataResponse) -> dict[str, Any]:
    """The metadata message as REST shows it."""
    signatures = get_model_metadata_pb2.SignatureDefMap()
    response.metadata["signature_def"].Unpack(signatures)
    return {
        "model_spec": json.loads(_message_json(response.model_spec)),
        "metadata": {"signature_def": json.loads(_message_json(signatures))},
    }


def _metadata_json(response: get_model_metadata_pb2.GetModelMetadataResponse) -> bytes:
    return (json.dumps(metadata_dict(response), indent=1) + "\n").encode()
