"""A client for a served model, over REST or gRPC, for TensorFlow Serving and the local server alike.

REST needs the standard library and NumPy alone: it starts in a moment. gRPC moves large tensors faster and
loads TensorFlow first. Both give equal answers.
"""

from __future__ import annotations

import base64
import http.client
import json
import math
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Literal
from urllib.parse import quote

import numpy as np

FIRST_WAIT_S = 0.1
"""How long the first retry waits; every later one waits twice as long as the one before."""

_NUMPY_TYPES: dict[str, Any] = {
    "DT_FLOAT": np.float32,
    "DT_DOUBLE": np.float64,
    "DT_HALF": np.float16,
    "DT_INT8": np.int8,
    "DT_INT16": np.int16,
    "DT_INT32": np.int32,
    "DT_INT64": np.int64,
    "DT_UINT8": np.uint8,
    "DT_UINT16": np.uint16,
    "DT_UINT32": np.uint32,
    "DT_UINT64": np.uint64,
    "DT_BOOL": np.bool_,
    "DT_STRING": np.object_,
}
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


class ServingError(Exception):
    """What the server answered instead of a result, or why there was no answer.

    Args:
        code: str. A gRPC status code such as `"NOT_FOUND"`, also for REST.
        message: str. The server's own words.

    Example:
    >>> print(ServingError("NOT_FOUND", "Could not find any versions of model m"))
    NOT_FOUND: Could not find any versions of model m
    """

    def __init__(self, code: str, message: str):
        super().__init__(code, message)
        self.code = code
        self.message = message

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"


class _NotSent(ServingError):
    """The request reached no server, or one that will answer soon: sending it again is safe."""


class Client:
    """Asks a served model for predictions.

    Input types come from the model itself: a list of ints goes out as int64, int32 or float32, as the
    signature wants, and an empty list gets the signature's inner shape. Threads may share a client.

    Args:
        target: str, `"host:port"`. Defaults to `"127.0.0.1:8501"`.
        protocol: `"rest"` or `"grpc"`. Defaults to `"rest"`.
        model: str. The model's name. Defaults to `"default"`.
        version: int or None. The version to ask. Defaults to the newest.
        label: str or None. The version label to ask, such as `"stable"`, instead of a version.
        timeout_s: float, greater than 0. Seconds for one call, its retries included. Defaults to 10.
        retries: int, at least 0. How often a call is tried again while the server refuses connections or is
            UNAVAILABLE (503), with waits that double. Defaults to 3.

    Raises:
        ValueError: for settings that break a rule.

    Example:
    >>> with Client("127.0.0.1:8501", model="journey") as client:  # doctest: +SKIP
    ...     scores = client.predict({"item_id": ["bread", "milk"]})["score"]
    """

    def __init__(
        self,
        target: str = "127.0.0.1:8501",
        *,
        protocol: Literal["rest", "grpc"] = "rest",
        model: str = "default",
        version: int | None = None,
        label: str | None = None,
        timeout_s: float = 10.0,
        retries: int = 3,
    ):
        if not re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[^\s/:\[\]]+):[0-9]{1,5}", target):
            raise ValueError(f'`target` must be "host:port". Received: target={target!r}')
        if protocol not in ("rest", "grpc"):
            raise ValueError(f'`protocol` must be "rest" or "grpc". Received: protocol={protocol!r}')
        if not model:
            raise ValueError(f"`model` must name a model. Received: model={model!r}")
        if version is not None and label is not None:
            raise ValueError(
                f"Only one of `version` and `label` can be given. Received: version={version}, label={label!r}"
            )
        if not timeout_s > 0:
            raise ValueError(f"`timeout_s` must be greater than 0. Received: timeout_s={timeout_s}")
        if retries < 0:
            raise ValueError(f"`retries` must be at least 0. Received: retries={retries}")
        self._timeout_s = timeout_s
        self._retries = retries
        transport = _Rest if protocol == "rest" else _Grpc
        self._transport: _Rest | _Grpc = transport(target, model, version, label)
        self._signatures: dict[str, Any] | None = None

    def predict(self, inputs: Mapping[str, Any], signature: str = "serving_default") -> dict[str, np.ndarray]:
        """Runs a signature of the model.

        Args:
            inputs: array-likes by input name. Strings may be `str` or `bytes`.
            signature: str. Defaults to `"serving_default"`.

        Returns:
            Arrays by output name. Strings come as object arrays of `str`; of `bytes` where the output's name
            ends in `_bytes`.

        Raises:
            ServingError: with the server's code and words, or DEADLINE_EXCEEDED or UNAVAILABLE.
            ValueError: if an input is unknown or does not fit its type.
        """
        end = time.monotonic() + self._timeout_s
        definition = self._signature(signature, end)
        arrays = {name: _as_input(name, value, definition["inputs"]) for name, value in inputs.items()}
        try:
            return self._retried(lambda left_s: self._transport.predict(arrays, signature, definition, left_s), end)
        except ServingError as error:
            if error.code == "INVALID_ARGUMENT":  # Perhaps a new version with another signature.
                self._signatures = None
            raise

    def recommend(
        self, items: Sequence[Any], labels: Sequence[float] | None = None, user: Mapping[str, Any] | None = None
    ) -> list[tuple[Any, float]]:
        """Recommends to one user of a model that tfmetarec exported, from the interactions given here alone.

        Args:
            items: raw ids of what the user met, oldest first; may be empty. Where ids are numbers, their text
                will do.
            labels: float for each, e.g. ratings. Defaults to 1, as implicit feedback has it.
            user: raw features of the user by name, such as `{"age": "25-34"}`. What is left out or `None`
                counts as not known. Numbers may come as text; a list or a vector may, with commas between
                its entries.

        Returns:
            Item ids and scores, best first; none that is in `items`.

        Raises:
            ServingError: as `predict`.
            ValueError: if `items` and `labels` differ in length, or the model has no such user feature, or a
                feature does not fit its type.
        """
        signature = "adapt_and_recommend"
        wanted = self._signature(signature, time.monotonic() + self._timeout_s)["inputs"]
        labels = [1.0] * len(items) if labels is None else labels
        if len(labels) != len(items):
            raise ValueError(f"`labels` must be as many as `items`. Received: {len(labels)} and {len(items)}")
        features = _user_inputs(user or {}, {n: info for n, info in wanted.items() if n.startswith("user_")})
        # One padded row with length 0 stands for nobody: an empty list would lose its inner dimension.
        as_text = wanted["support"]["dtype"] == "DT_STRING"
        try:
            support = [item if as_text else int(item) for item in items]
        except ValueError:
            raise ValueError(f"`items` must hold whole numbers, as the model's ids are. Received: {items!r}") from None
        inputs: dict[str, Any] = {
            "support": [support or ["" if as_text else 0]],
            "support_labels": [list(labels) or [0.0]],
            "support_length": [len(items)],
            **features,
        }
        answer = self.predict(inputs, signature)
        return [
            (item, float(score))
            for item, score in zip(answer["items"][0].tolist(), answer["scores"][0], strict=True)
            if np.isfinite(score)
        ]

    def status(self) -> list[dict[str, Any]]:
        """The state of each version of the model, the newest first.

        Returns:
            Dicts as TensorFlow Serving's status page lists them: `version`, `state` and `status`.

        Raises:
            ServingError: NOT_FOUND for a model that the server does not know.
        """
        return self._retried(self._transport.status, time.monotonic() + self._timeout_s)

    def metadata(self) -> dict[str, Any]:
        """The version that answers and its signatures, as TensorFlow Serving's metadata page shows them.

        Raises:
            ServingError: NOT_FOUND for a model or version that is not loaded.
        """
        return self._retried(self._transport.metadata, time.monotonic() + self._timeout_s)

    def _signature(self, name: str, end: float) -> dict[str, Any]:
        signatures = self._signatures  # Another thread may drop them meanwhile.
        if signatures is None or name not in signatures:
            page = self._retried(self._transport.metadata, end)
            self._signatures = signatures = page["metadata"]["signature_def"]["signature_def"]
        if name not in signatures:
            known = ", ".join(sorted(key for key in signatures if not key.startswith("__")))
            raise ServingError("INVALID_ARGUMENT", f"The model has no signature {name!r}; it has {known}.")
        return signatures[name]

    def _retried(self, call: Callable[[float], Any], end: float) -> Any:
        for attempt in range(self._retries + 1):
            left_s = end - time.monotonic()
            if left_s <= 0:
                raise ServingError("DEADLINE_EXCEEDED", f"No answer within {self._timeout_s} s.")
            try:
                return call(left_s)
            except _NotSent as error:
                wait_s = FIRST_WAIT_S * 2**attempt
                if attempt == self._retries or time.monotonic() + wait_s >= end:
                    raise ServingError(error.code, error.message) from None
            time.sleep(wait_s)
        raise AssertionError  # The loop returns or raises.

    def close(self) -> None:
        """Closes the connections; the client is of no use then."""
        self._transport.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _user_inputs(user: Mapping[str, Any], infos: Mapping[str, Any]) -> dict[str, Any]:
    """One row for every user input of a signature, from the features that are known of the user."""
    lists = {name for name, info in infos.items() if info["dtype"] == "DT_STRING" and len(_sizes(info)) == 2}
    lengths = {f"{name}_length" for name in lists}
    known = [name for name in infos if name not in lengths]
    # An exported input has `_` for what TensorFlow cannot name, such as the space in "Household Size".
    given = {name: "user_" + re.sub(r"[^A-Za-z0-9_]", "_", name) for name in user}
    if unknown := sorted(name for name, wire in given.items() if wire not in known):
        features = sorted(name.removeprefix("user_") for name in known)
        raise ValueError(f"`user` must hold features of the model: {features}. Received: {unknown}")
    values = {given[name]: _feature(name, value, infos[given[name]]) for name, value in user.items()}
    inputs: dict[str, Any] = {}
    for name in known:
        value = values.get(name)
        if name in lists:
            inputs[f"{name}_length"] = [len(value or ())]
        # A list of nothing goes out with one padded entry: `[[]]` would lose its inner dimension.
        inputs[name] = [value if value not in (None, []) else _not_known(infos[name])]
    return inputs


def _feature(name: str, value: Any, info: Mapping[str, Any]) -> Any:
    """A raw feature in the type and rank of its input: a scalar, or a list; `None` is not known."""
    sizes = _sizes(info)
    if value is None:
        return None
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if len(sizes) < 2:
        return _entry(name, value, info["dtype"])
    if isinstance(value, str):
        value = [part.strip() for part in value.split(",")] if value.strip() else []
    elif not isinstance(value, list | tuple):
        value = [value]
    entries = [_entry(name, entry, info["dtype"]) for entry in value]
    if sizes[1] >= 0 and len(entries) != sizes[1]:
        raise ValueError(f"`user[{name!r}]` must be a vector of width {sizes[1]}. Received: width {len(entries)}")
    return entries


def _entry(name: str, value: Any, dtype: str) -> Any:
    if dtype == "DT_STRING":
        if isinstance(value, str | bytes):
            return value
        raise ValueError(f"`user[{name!r}]` must hold text. Received: {value!r}")
    whole = "INT" in dtype
    try:
        if isinstance(value, str):
            return int(value) if whole else float(value)
    except ValueError:
        pass  # The same mistake as a value of another type.
    else:
        if isinstance(value, int if whole else int | float) and not isinstance(value, bool):
            return value
    raise ValueError(f"`user[{name!r}]` must be a {'whole number' if whole else 'number'}. Received: {value!r}")


def _sizes(info: Mapping[str, Any]) -> list[int]:
    return [int(dim["size"]) for dim in info["tensor_shape"].get("dim", ())]


def _not_known(info: Mapping[str, Any]) -> Any:
    """What an input holds for a user of whom nothing is known: empty text, no number, 0 entries of a list."""
    empty: Any = {"DT_STRING": "", "DT_FLOAT": math.nan}.get(info["dtype"], 0)
    width = _sizes(info)[1:]
    return [empty] * max(width[0], 1) if width else empty


def _as_input(name: str, value: Any, infos: Mapping[str, Any]) -> np.ndarray:
    """Gives an input the type and, where it is empty, the shape that the signature wants."""
    if name not in infos:
        raise ValueError(f"`inputs` must hold inputs of the signature: {', '.join(sorted(infos))}. Received: {name}")
    info = infos[name]
    dtype = _NUMPY_TYPES.get(info["dtype"])
    if dtype is None:
        raise ValueError(f"`inputs[{name!r}]` has a type this client cannot send: {info['dtype']}")
    array = _as_strings(name, value) if dtype is np.object_ else _as_numbers(name, value, dtype)
    if array.size == 0:
        return array.reshape(_empty_shape(array.shape, info["tensor_shape"]))
    return array


def _empty_shape(shape: tuple[int, ...], wanted: Mapping[str, Any]) -> tuple[int, ...]:
    """`[]` says nothing of the dimensions within; the signature does."""
    sizes = [int(dim["size"]) for dim in wanted.get("dim", ())]
    if wanted.get("unknown_rank") or len(shape) >= len(sizes):
        return shape
    full = shape + tuple(max(size, 0) for size in sizes[len(shape) :])
    return full if math.prod(full) == 0 else shape


def _as_strings(name: str, value: Any) -> np.ndarray:
    # As objects: NumPy's own string types cut zero bytes at the end and take no bytes beside text.
    array = np.asarray(value, np.object_)
    for item in array.flat:
        if isinstance(item, list | tuple):
            raise ValueError(f"`inputs[{name!r}]` must have rows of equal lengths.")
        if not isinstance(item, str | bytes):
            raise ValueError(f"`inputs[{name!r}]` must hold strings only. Received: {type(item).__name__}")
    return array


def _as_numbers(name: str, value: Any, dtype: Any) -> np.ndarray:
    wanted = np.dtype(dtype)
    try:
        array = np.asarray(value)
    except ValueError:
        raise ValueError(f"`inputs[{name!r}]` must have rows of equal lengths.") from None
    if array.size == 0:
        return array.astype(wanted)
    if array.dtype.kind not in {"f": "iuf", "i": "iu", "u": "iu", "b": "b"}[wanted.kind]:
        raise ValueError(f"`inputs[{name!r}]` must hold {wanted} values. Received: {array.dtype}")
    if wanted.kind in "iu":
        limits = np.iinfo(wanted)
        if int(array.min()) < limits.min or int(array.max()) > limits.max:
            raise ValueError(
                f"`inputs[{name!r}]` must hold {wanted} values, from {limits.min} to {limits.max}. "
                f"Received: {array.min()} to {array.max()}"
            )
    with np.errstate(over="ignore"):
        return array.astype(wanted)


class _Rest:
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
            raise _NotSent("UNAVAILABLE", f"Could not connect to {self._address()}: {error.strerror}.") from None
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
        kind = _NotSent if status == 503 else ServingError
        code = "UNKNOWN" if status == 200 else _CODES.get(status, "UNKNOWN")
        raise kind(code, message or f"{self._address()} answered with HTTP status {status} and no message.")

    def _address(self) -> str:
        return f"{self._host}:{self._port}"

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
    dtype = _NUMPY_TYPES.get(info["dtype"], np.float64)
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
    if array.size == 0:
        return array.reshape(_empty_shape(array.shape, info["tensor_shape"]))
    return array


def _leaves(value: Any, depth: int) -> list[Any]:
    values = [value]
    for _ in range(depth):
        values = [item for inner in values for item in inner]
    return values


def _string_from_json(item: Any) -> str | bytes:
    return base64.b64decode(item["b64"]) if isinstance(item, dict) else item


class _Grpc:
    """Speaks to the gRPC port."""

    def __init__(self, target: str, model: str, version: int | None, label: str | None):
        try:
            import grpc
            from tensorflow_serving.apis import model_pb2, model_service_pb2_grpc, prediction_service_pb2_grpc
        except ImportError as error:
            raise ImportError(
                f'protocol="grpc" needs the packages grpcio and tensorflow-serving-api: {error}'
            ) from error
        self._grpc = grpc
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

    def _call(self, method: Callable[..., Any], request: Any, left_s: float) -> Any:
        try:
            return method(request, timeout=left_s)
        except self._grpc.RpcError as error:
            code = error.code().name
            kind = _NotSent if code == "UNAVAILABLE" else ServingError
            raise kind(code, error.details()) from None

    def predict(
        self, inputs: dict[str, np.ndarray], signature: str, definition: Mapping[str, Any], left_s: float
    ) -> dict[str, np.ndarray]:
        import tensorflow as tf
        from tensorflow_serving.apis import predict_pb2

        request = predict_pb2.PredictRequest(model_spec=self._spec)
        request.model_spec.signature_name = signature
        for name, array in inputs.items():
            request.inputs[name].CopyFrom(tf.make_tensor_proto(array, shape=array.shape))
        response = self._call(self._prediction.Predict, request, left_s)
        return {name: _from_tensor(name, tf.make_ndarray(tensor)) for name, tensor in response.outputs.items()}

    def status(self, left_s: float) -> list[dict[str, Any]]:
        from tensorflow_serving.apis import get_model_status_pb2

        request = get_model_status_pb2.GetModelStatusRequest(model_spec=self._spec)
        return _page(self._call(self._models.GetModelStatus, request, left_s))["model_version_status"]

    def metadata(self, left_s: float) -> dict[str, Any]:
        from tensorflow_serving.apis import get_model_metadata_pb2

        request = get_model_metadata_pb2.GetModelMetadataRequest(
            model_spec=self._spec, metadata_field=["signature_def"]
        )
        response = self._call(self._prediction.GetModelMetadata, request, left_s)
        signatures = get_model_metadata_pb2.SignatureDefMap()
        response.metadata["signature_def"].Unpack(signatures)
        return {"model_spec": _page(response.model_spec), "metadata": {"signature_def": _page(signatures)}}

    def close(self) -> None:
        self._channel.close()


def _from_tensor(name: str, array: np.ndarray) -> np.ndarray:
    if array.dtype != np.object_ or name.endswith("_bytes"):
        return array
    texts = np.empty(array.size, np.object_)
    texts[:] = [item.decode("utf-8", "surrogateescape") for item in array.flat]
    return texts.reshape(array.shape)


def _page(message: Any) -> dict[str, Any]:
    """A message as the REST port shows it."""
    from google.protobuf import json_format

    return json_format.MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
