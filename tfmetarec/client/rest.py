"""The REST port, with the standard library alone."""

import base64
import http.client
import json
import math
import threading
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import numpy as np

from tfmetarec.client.arrays import NUMPY_TYPES, with_inner_shape
from tfmetarec.client.errors import ServingError

_CODES = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    409: "ABORTED",
    413: "RESOURCE_EXHAUSTED",
    429: "RESOURCE_EXHAUSTED",
    499: "CANCELLED",
    500: "INTERNAL",
    501: "UNIMPLEMENTED",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}
_BROKEN = (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError)


class RestTransport:
    """Speaks to the REST port; every thread keeps a connection of its own."""

    def __init__(self, target: str, model: str, version: int | None, label: str | None):
        self._host, _, port = target.rpartition(":")
        self._port = int(port)
        self._path = f"/v1/models/{quote(model, safe='')}"
        if version is not None:
            self._path += f"/versions/{version}"
        elif label is not None:
            self._path += f"/labels/{quote(label, safe='')}"
        self._local = threading.local()
        self._connections: list[http.client.HTTPConnection] = []

    def predict(
        self, inputs: dict[str, np.ndarray], signature: str, definition: Mapping[str, Any], left_s: float
    ) -> dict[str, np.ndarray]:
        body = {
            "signature_name": signature,
            "inputs": {name: _to_json(name, a) for name, a in inputs.items()},
        }
        outputs = self._request("POST", ":predict", json.dumps(body).encode(), left_s)["outputs"]
        infos = definition["outputs"]
        if len(infos) == 1:  # A lone output comes without its name.
            outputs = dict.fromkeys(infos, outputs)
        return {name: _from_json(value, infos[name]) for name, value in outputs.items()}

    def status(self, left_s: float) -> list[dict[str, Any]]:
        return self._request("GET", "", None, left_s)["model_version_status"]

    def metadata(self, left_s: float) -> dict[str, Any]:
        return self._request("GET", "/metadata", None, left_s)

    def close(self) -> None:
        for connection in self._connections:
            connection.close()

    def _connection(self) -> http.client.HTTPConnection:
        if not hasattr(self._local, "connection"):
            self._local.connection = http.client.HTTPConnection(self._host.strip("[]"), self._port)
            self._connections.append(self._local.connection)
        return self._local.connection

    def _request(self, method: str, path: str, body: bytes | None, left_s: float) -> Any:
        connection = self._connection()
        fresh = connection.sock is None
        try:
            return self._exchange(connection, method, path, body, left_s)
        except _BROKEN as error:
            # A server may close a connection that was idle. It then never saw the request.
            if fresh:
                raise ServingError("UNAVAILABLE", f"The connection to {self._address()} broke: {error}.") from None
        return self._request(method, path, body, left_s)

    def _exchange(
        self,
        connection: http.client.HTTPConnection,
        method: str,
        path: str,
        body: bytes | None,
        left_s: float,
    ) -> Any:
        late = ServingError("DEADLINE_EXCEEDED", f"No answer from {self._address()} within {left_s:.3g} s.")
        connection.timeout = left_s
        try:
            if connection.sock is None:
                connection.connect()
        except TimeoutError:
            raise late from None
        except OSError as error:
            raise ServingError("UNAVAILABLE", f"Could not connect to {self._address()}: {error.strerror}.") from None
        try:
            connection.sock.settimeout(left_s)
            connection.request(method, self._path + path, body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            text = response.read().decode("utf-8", "surrogateescape")
        except BaseException as error:
            connection.close()  # Half an exchange is left on it.
            if isinstance(error, TimeoutError):
                raise late from None
            if isinstance(error, http.client.HTTPException) and not isinstance(error, _BROKEN):
                raise ServingError("UNKNOWN", f"{self._address()} did not answer in HTTP: {error!r}.") from None
            raise
        return self._decoded(response.status, text)

    def _decoded(self, status: int, text: str) -> Any:
        try:
            page = json.loads(text)
        except ValueError:
            page = None
        if status == 200 and isinstance(page, dict):
            return page
        message = page["error"] if isinstance(page, dict) and "error" in page else text.strip()[:200]
        code = "UNKNOWN" if status == 200 else _CODES.get(status, "UNKNOWN")
        raise ServingError(code, message or f"{self._address()} answered with HTTP status {status} and no message.")

    def _address(self) -> str:
        return f"{self._host}:{self._port}"


def _to_json(name: str, array: np.ndarray) -> Any:
    if array.size == 0 and 0 in array.shape[:-1]:
        raise ValueError(
            f"`inputs[{name!r}]` has shape {array.shape}, which JSON cannot say; send padded rows with "
            'length 0, or use protocol="grpc".'
        )
    if array.dtype != np.object_:
        return array.tolist()
    encode = np.frompyfunc(_string_to_json, 1, 1)
    return encode(array).tolist() if array.ndim else _string_to_json(array.item())


def _string_to_json(item: str | bytes) -> Any:
    return {"b64": base64.b64encode(item).decode()} if isinstance(item, bytes) else item


def _from_json(value: Any, info: Mapping[str, Any]) -> np.ndarray:
    dtype = NUMPY_TYPES.get(info["dtype"], np.float64)
    shape: list[int] = []
    first = value
    while isinstance(first, list):
        shape.append(len(first))
        first = first[0] if first else None
    if dtype is not np.object_:
        with np.errstate(over="ignore"):
            array = np.array(value, np.float64 if dtype is np.float16 else dtype).astype(dtype)
    else:
        array = np.empty(math.prod(shape), np.object_)
        array[:] = [_string_from_json(item) for item in _leaves(value, len(shape))]
        array = array.reshape(shape)
    return with_inner_shape(array, info) if array.size == 0 else array


def _leaves(value: Any, depth: int) -> list[Any]:
    values = [value]
    for _ in range(depth):
        values = [item for inner in values for item in inner]
    return values


def _string_from_json(item: Any) -> str | bytes:
    return base64.b64decode(item["b64"]) if isinstance(item, dict) else item
