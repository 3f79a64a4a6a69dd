"""The REST API of TensorFlow Serving on the standard library's HTTP server, with connections kept alive."""

from __future__ import annotations

import json
import logging
import re
import socket
import threading
import time
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple
from urllib.parse import unquote

from google.protobuf import json_format
from google.protobuf.message import Message
from tensorflow_serving.apis import classification_pb2, get_model_metadata_pb2, model_pb2, regression_pb2

from tfmetarec.server import grpc_services, inference, json_text, request_json, response_json
from tfmetarec.server.model_store import ModelStore
from tfmetarec.server.prometheus import METRICS
from tfmetarec.server.status import HTTP_STATUS, StatusError, from_exception, invalid_argument

MAX_BODY_BYTES = 1 << 29
"""Largest request body, also after decompression; larger ones are answered with 413."""
IDLE_CONNECTION_S = 300.0
DEFAULT_METRICS_PATH = "/monitoring/prometheus/metrics"

_LOG = logging.getLogger(__name__)
_VERSION = r"(?:(?:/versions/([0-9]+))|(?:/labels/([^/:]+)))?"
_PREDICTION_PATH = re.compile(rf"(?i)/v1/models/([^/:]+){_VERSION}:(classify|regress|predict)")
_STATUS_PATH = re.compile(rf"(?i)/v1/models(?:/([^/:]+))?{_VERSION}(?:/(metadata))?")
_JSON = {"Content-Type": "application/json"}
_CORS = {
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Allow-Methods": "POST, GET",
    "Access-Control-Allow-Headers": "Content-Type",
}


class Answer(NamedTuple):
    """What goes back to the client.

    Attributes:
        status: int. The HTTP status.
        body: bytes.
        headers: dict. `Content-Type` and others that this answer needs.
    """

    status: int
    body: bytes
    headers: dict[str, str] = _JSON


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
            return response_json.classification_text(classified.result)
        regression = regression_pb2.RegressionRequest(model_spec=spec)
        request_json.fill_examples(document, regression.input)
        with self._store.use(spec) as servable:
            regressed = inference.regress(servable, regression, self._timeout_ms)
        return response_json.regression_text(regressed.result)

    def _predict(self, spec: model_pb2.ModelSpec, document: dict[str, Any], body: bytes) -> bytes:
        with self._store.use(spec) as servable:
            name = spec.signature_name or inference.DEFAULT_SIGNATURE
            if name not in servable.meta_graph_def.signature_def:
                raise invalid_argument(f'Serving signature name: "{name}" not found in signature def')
            signature = servable.meta_graph_def.signature_def[name]
            request = request_json.predict_body(document, spec.signature_name, signature.inputs, body)
            outputs = inference.predict(servable, signature, request.inputs, timeout_ms=self._timeout_ms)
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


class _BodyError(Exception):
    """A body that cannot be read; after it nothing more can be read from the connection."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "tfmetarec"
    disable_nagle_algorithm = True
    wbufsize = -1  # Headers and body leave in one piece.
    timeout = IDLE_CONNECTION_S
    server: RestServer

    def _answer(self) -> None:
        with self.server.answering(self.connection):
            try:
                body = self._body()
            except _BodyError as error:
                self.close_connection = True
                status, message = error.args
                self._send(Answer(status, response_json.error_text(message)))
                return
            self._send(self.server.api.answer(self.command, self.path, body, self.headers.get("Origin", "")))

    do_GET = do_POST = do_OPTIONS = do_DELETE = do_PUT = do_PATCH = do_HEAD = _answer

    def _send(self, answer: Answer) -> None:
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(answer.body)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body)
        self.wfile.flush()

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            body = self._chunks()
        else:
            length = self.headers.get("Content-Length", "0")
            if not re.fullmatch("[0-9]{1,18}", length):
                raise _BodyError(400, "The Content-Length header must be a number of bytes.")
            self._check_size(int(length))
            body = self.rfile.read(int(length))
            if len(body) < int(length):
                raise _BodyError(400, "The body ended before its Content-Length.")
        if self.headers.get("Content-Encoding", "").lower() == "gzip":
            return self._unzip(body)
        return body

    def _check_size(self, size: int) -> None:
        if size > MAX_BODY_BYTES:
            raise _BodyError(413, f"The body must have at most {MAX_BODY_BYTES} bytes. Received: {size} or more")

    def _chunks(self) -> bytes:
        body = bytearray()
        while True:
            line = self.rfile.readline(1024).split(b";")[0].strip()
            if not re.fullmatch(b"[0-9a-fA-F]{1,15}", line):
                raise _BodyError(400, "A chunk of the body does not begin with its size.")
            size = int(line, 16)
            self._check_size(len(body) + size)
            if size == 0:
                while self.rfile.readline(65536).strip():  # Trailing headers.
                    pass
                return bytes(body)
            chunk = self.rfile.read(size)
            if len(chunk) < size:
                raise _BodyError(400, "The body ended within a chunk.")
            body += chunk
            self.rfile.readline(1024)

    def _unzip(self, body: bytes) -> bytes:
        unzipper = zlib.decompressobj(16 + zlib.MAX_WBITS)
        try:
            plain = unzipper.decompress(body, MAX_BODY_BYTES + 1)
        except zlib.error:
            raise _BodyError(400, "The body is not gzip data, though its Content-Encoding says so.") from None
        self._check_size(len(plain))
        if not unzipper.eof:
            raise _BodyError(400, "The gzip data of the body ends too early.")
        return plain

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Answers what is not even an HTTP request in JSON too, where the base class writes a web page."""
        self.close_connection = True
        self.command = getattr(self, "command", None) or ""
        self._send(Answer(code, response_json.error_text(f"Malformed request: {message or code}")))

    def log_message(self, format: str, *args: Any) -> None:
        _LOG.debug("%s %s", self.address_string(), format % args)


class RestServer(ThreadingHTTPServer):
    """An HTTP server for a `RestApi`, one thread for each connection.

    Args:
        host: str. Address to listen on.
        port: int; 0 for any free port.
        api: what answers.

    Raises:
        OSError: if the port is taken.
    """

    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, host: str, port: int, api: RestApi):
        self.api = api
        self._connections: dict[socket.socket, bool] = {}  # Whether a request is being answered on it.
        self._idle = threading.Condition()
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, port), _Handler)

    def server_bind(self) -> None:
        # `HTTPServer` looks the host's name up here, which can take seconds without a network.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def handle_error(self, request: Any, client_address: Any) -> None:
        _LOG.debug("Connection from %s ended", client_address, exc_info=True)

    def answering(self, connection: socket.socket) -> _Answering:
        return _Answering(self, connection)

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._idle:
            self._connections[request] = False
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._idle:
            self._connections.pop(request, None)
            self._idle.notify_all()
        super().shutdown_request(request)

    def mark(self, connection: socket.socket, busy: bool) -> None:
        with self._idle:
            if connection in self._connections:
                self._connections[connection] = busy
            self._idle.notify_all()

    def drain(self, grace_s: float) -> None:
        """Takes no more connections, waits for the requests under way and closes."""
        self.shutdown()
        self.server_close()
        with self._idle:
            self._idle.wait_for(lambda: not any(self._connections.values()), grace_s)
            connections = list(self._connections)
        for connection in connections:
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue  # The client was faster.


class _Answering:
    def __init__(self, server: RestServer, connection: socket.socket):
        self._server, self._connection = server, connection

    def __enter__(self) -> None:
        self._server.mark(self._connection, True)

    def __exit__(self, *error: object) -> None:
        self._server.mark(self._connection, False)
