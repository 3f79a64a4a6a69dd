"""REST request bodies to tensors and examples, by TensorFlow Serving's rules.

`{"instances": [...]}` lists rows, `{"inputs": ...}` holds whole tensors; a number for
a float input may be an integer, one for an integer input may not have a point; `{"b64": "..."}` is bytes.
Most requests are plain numbers, which NumPy converts at once. Anything NumPy would convert too kindly takes
the slow way, value by value, which also words every error.
"""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from tensorflow.core.example import example_pb2, feature_pb2
from tensorflow.core.framework import types_pb2
from tensorflow.core.protobuf import meta_graph_pb2
from tensorflow_serving.apis import input_pb2

from tfmetarec.server import json_text
from tfmetarec.server.status import StatusError, invalid_argument
from tfmetarec.server.tensors import MAX_RANK, dtype_name, numpy_dtype

_INT_RANGES = {
    types_pb2.DT_INT32: (-(2**31), 2**31 - 1),
    types_pb2.DT_INT16: (-(2**31), 2**31 - 1),  # Carried as int32, then narrowed.
    types_pb2.DT_INT8: (-(2**31), 2**31 - 1),
    types_pb2.DT_UINT8: (-(2**31), 2**31 - 1),
    types_pb2.DT_INT64: (-(2**63), 2**63 - 1),
    types_pb2.DT_UINT32: (0, 2**32 - 1),
    types_pb2.DT_UINT64: (0, 2**64 - 1),
}
_PIECE = 100_000
_FLOATS = (types_pb2.DT_FLOAT, types_pb2.DT_DOUBLE)
_TYPE_NAMES = {
    type(None): "Null",
    dict: "Object",
    list: "Array",
    str: "String",
    int: "Number",
    float: "Number",
}


class PredictBody(NamedTuple):
    """What a `:predict` body says.

    Attributes:
        inputs: tensors by input name.
        row_format: bool. Whether the answer lists rows (`predictions`) or whole tensors (`outputs`).
    """

    inputs: dict[str, np.ndarray]
    row_format: bool


def _type_name(value: Any) -> str:
    return str(value) if isinstance(value, bool) else _TYPE_NAMES[type(value)]


def _format_error(value: Any, message: str) -> StatusError:
    return invalid_argument(f"JSON Value: {json_text.pretty(value)} {message}")


def signature_name(document: dict[str, Any]) -> str:
    """The `signature_name` of a body; empty if it names none."""
    name = document.get("signature_name", "")
    if not isinstance(name, str):
        raise _format_error(document, "not formatted correctly. 'signature_name' key must be a string value.")
    return name


def predict_body(
    document: dict[str, Any], signature: str, inputs: Mapping[str, meta_graph_pb2.TensorInfo], body: bytes
) -> PredictBody:
    """Reads the tensors of a `:predict` body.

    Args:
        document: dict, the parsed body.
        signature: str. The signature's name, for the error; empty for the default one.
        inputs: the signature's inputs, by name.
        body: bytes. The text that `document` was parsed from.

    Raises:
        StatusError: INVALID_ARGUMENT where values do not fit the signature.
    """
    if not inputs:
        raise invalid_argument(f"Failed to get input map for signature: {signature or 'DEFAULT'}")
    if "instances" in document and "inputs" in document:
        raise _format_error(
            document, "Not formatted correctly expecting only one of 'inputs' or 'instances' keys to exist "
        )
    # NumPy reads `true` as 1. Only a body with these words can hold one, and it takes the slow way.
    fast = not any(word in body for word in (b"true", b"false", b"null"))
    if "instances" in document:
        rows = document["instances"]
        if not isinstance(rows, list):
            raise _format_error(document, "Expecting 'instances' to be an list/array")
        if not rows:
            raise _format_error(document, "No values in 'instances' array")
        return PredictBody(_from_rows(rows, inputs, fast), row_format=True)
    if "inputs" in document:
        return PredictBody(_from_columns(document["inputs"], inputs, fast), row_format=False)
    raise invalid_argument("Missing 'inputs' or 'instances' key")


def _is_base64(value: Any) -> bool:
    return isinstance(value, dict) and len(value) == 1 and isinstance(value.get("b64"), str)


def _is_named(value: Any) -> bool:
    return isinstance(value, dict) and not _is_base64(value)


def _from_columns(value: Any, inputs: Mapping[str, meta_graph_pb2.TensorInfo], fast: bool) -> dict[str, np.ndarray]:
    if _is_named(value):
        for name in sorted(inputs):
            if name not in value:
                raise invalid_argument(f"Missing named input: {name} in 'inputs' object.")
        return {name: _tensor(value[name], info.dtype, fast) for name, info in inputs.items()}
    if len(inputs) > 1:
        raise invalid_argument(
            "inputs is a plain value/list, but expecting an object as multiple input tensors required as per "
            "tensorinfo_map"
        )
    ((name, info),) = inputs.items()
    return {name: _tensor(value, info.dtype, fast)}


def _from_rows(rows: list[Any], inputs: Mapping[str, meta_graph_pb2.TensorInfo], fast: bool) -> dict[str, np.ndarray]:
    if not isinstance(rows[0], dict) and len(inputs) > 1:
        raise invalid_argument(
            "instances is a plain list, but expecting list of objects as multiple input tensors required as "
            "per tensorinfo_map"
        )
    if fast:
        tensors = _from_rows_at_once(rows, inputs)
        if tensors is not None:
            return tensors
    return _from_rows_one_by_one(rows, inputs)


def _from_rows_at_once(
    rows: list[Any], inputs: Mapping[str, meta_graph_pb2.TensorInfo]
) -> dict[str, np.ndarray] | None:
    if _is_named(rows[0]):
        if not all(isinstance(row, dict) and row.keys() == inputs.keys() for row in rows):
            return None
        columns: dict[str, list[Any]] = {name: [row[name] for row in rows] for name in inputs}
    else:
        columns = {next(iter(inputs)): rows}
    tensors = {}
    for name, column in columns.items():
        tensor = _numbers(column, inputs[name].dtype)
        if tensor is None:
            return None
        tensors[name] = tensor
    return tensors


def _from_rows_one_by_one(rows: list[Any], inputs: Mapping[str, meta_graph_pb2.TensorInfo]) -> dict[str, np.ndarray]:
    named = _is_named(rows[0])
    columns: dict[str, list[np.ndarray]] = {name: [] for name in inputs}
    for number, row in enumerate(rows):
        if named and not _is_named(row):
            raise invalid_argument(f"Expecting object but got list at item {number} of input list")
        if not named and _is_named(row):
            raise invalid_argument(f"Expecting value/list but got object at item {number} of input list")
        for name, value in row.items() if named else [(next(iter(inputs)), row)]:
            try:
                if name not in inputs:
                    raise invalid_argument(f"JSON object: does not have named input: {name}")
                columns[name].append(_row_tensor(value, inputs[name].dtype, columns[name]))
            except StatusError as error:
                key = f" key: {name}" if named else ""
                raise invalid_argument(
                    f"Failed to process element: {number}{key} of 'instances' list. Error: {error}"
                ) from None
        if named and row.keys() != inputs.keys():
            raise invalid_argument(
                f"Failed to process element: {number} of 'instances' list. JSON object: "
                f"{json_text.pretty(row)} keys must be equal to: {','.join(sorted(inputs))}"
            )
    return {name: np.stack(column) for name, column in columns.items()}


def _row_tensor(value: Any, dtype: int, earlier: list[np.ndarray]) -> np.ndarray:
    tensor = _tensor(value, dtype, fast=False)
    if tensor.ndim == MAX_RANK:  # The rows together have one more.
        raise invalid_argument(f"A tensor must have at most {MAX_RANK} dimensions. Received: {MAX_RANK + 1}")
    if earlier and earlier[0].size != tensor.size:
        raise invalid_argument(f"Expecting tensor size: {earlier[0].size} but got: {tensor.size}")
    if earlier and earlier[0].shape != tensor.shape:
        raise invalid_argument(f"Expecting shape {_shape(earlier[0])} but got: {_shape(tensor)}")
    return tensor


def _shape(tensor: np.ndarray) -> str:
    return f"[{','.join(map(str, tensor.shape))}]"


def _numbers(value: Any, dtype: int) -> np.ndarray | None:
    """Converts nested lists of numbers at once; `None` where that could differ from value by value."""
    if dtype not in _FLOATS and dtype not in _INT_RANGES:
        return None
    try:
        array = _array(value)
    except (ValueError, OverflowError):  # Ragged.
        return None
    if dtype in _FLOATS:
        return _to_float(array, dtype) if array.dtype.kind in "if" else None
    if array.size == 0:
        return array.astype(numpy_dtype(dtype))
    low, high = _INT_RANGES[dtype]
    if array.dtype.kind != "i" or array.min() < low or array.max() > high:
        return None
    return array.astype(numpy_dtype(dtype))


def _array(value: Any) -> np.ndarray:
    """`numpy.array` in pieces where a list is long: no other thread runs during one call."""
    if not isinstance(value, list) or not value:
        return np.array(value)
    if isinstance(value[0], list) and len(value[0]) > _PIECE:
        return np.stack([_array(item) for item in value])
    if len(value) <= _PIECE:
        return np.array(value)
    return np.concatenate([np.array(value[start : start + _PIECE]) for start in range(0, len(value), _PIECE)])


def _to_float(array: np.ndarray, dtype: int) -> np.ndarray:
    with np.errstate(over="ignore"):  # Too large for float32 becomes infinity.
        return array.astype(numpy_dtype(dtype))


def _tensor(value: Any, dtype: int, fast: bool) -> np.ndarray:
    if fast:
        array = _numbers(value, dtype)
        if array is not None:
            return array
    shape: list[int] = []
    first = value
    while isinstance(first, list):
        shape.append(len(first))
        if not first:
            break
        first = first[0]
    if len(shape) > MAX_RANK:
        raise invalid_argument(f"A tensor must have at most {MAX_RANK} dimensions. Received: {len(shape)}")
    flat: list[Any] = []
    _flatten(value, 0, shape, dtype, flat)
    if dtype == types_pb2.DT_STRING:
        array = np.empty(len(flat), np.object_)
        array[:] = flat
    elif dtype in _FLOATS:
        array = _to_float(np.array(flat, np.float64), dtype)
    elif dtype in _INT_RANGES:
        array = np.array(flat, np.uint64 if dtype == types_pb2.DT_UINT64 else np.int64).astype(numpy_dtype(dtype))
    else:
        array = np.array(flat, numpy_dtype(dtype))
    return array.reshape(shape)


def _flatten(value: Any, level: int, shape: list[int], dtype: int, flat: list[Any]) -> None:
    if not isinstance(value, list):
        if level != len(shape):
            raise _format_error(
                value,
                f"found at incorrect level: {level + 1} in the JSON DOM. Expected at level: {len(shape)}",
            )
        flat.append(_scalar(value, dtype))
        return
    if level >= len(shape):
        raise invalid_argument(f"Encountered list at unexpected level: {level} expected < {len(shape)}")
    if len(value) != shape[level]:
        raise invalid_argument(
            f"Encountered list at unexpected size: {len(value)} at level: {level} expected size: {shape[level]}"
        )
    for item in value:
        _flatten(item, level + 1, shape, dtype, flat)


def _scalar(value: Any, dtype: int) -> Any:
    wrong_type = _type_error(value, dtype)
    if isinstance(value, dict):
        if dtype == types_pb2.DT_STRING:
            return _decode_base64(value)
        raise wrong_type()
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if dtype in _FLOATS:
        if not number:
            raise wrong_type()
        return json_text.double(value)
    if dtype in _INT_RANGES:
        low, high = _INT_RANGES[dtype]
        if not number or isinstance(value, float) or not low <= value <= high:
            raise wrong_type()
        return value
    if dtype == types_pb2.DT_STRING:
        if not isinstance(value, str):
            raise wrong_type()
        return _encode_text(value)
    if dtype == types_pb2.DT_BOOL:
        if not isinstance(value, bool):
            raise wrong_type()
        return value
    raise StatusError(
        "UNIMPLEMENTED", f"Conversion of JSON Value: {json_text.pretty(value)} to type: {dtype_name(dtype)}"
    )


def _type_error(value: Any, dtype: int) -> Any:
    return lambda: _format_error(value, f"Type: {_type_name(value)} is not of expected type: {dtype_name(dtype)}")


def _encode_text(text: str) -> bytes:
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise invalid_argument("JSON Parse error: The surrogate pair in string is invalid.") from None


def _decode_base64(value: dict[str, Any]) -> bytes:
    if not _is_base64(value):
        raise _format_error(value, "not formatted correctly for base64 data")
    padded = "".join(value["b64"].split())
    text = padded.rstrip("=.")  # Abseil, which decodes it in the C++ server, takes either for padding.
    missing = -len(text) % 4
    if len(padded) - len(text) not in (0, missing):
        raise invalid_argument("Unable to base64 decode")
    try:
        return base64.b64decode(text + "=" * missing, validate=True)
    except (binascii.Error, ValueError):
        raise invalid_argument("Unable to base64 decode") from None


def fill_examples(document: dict[str, Any], request_input: input_pb2.Input) -> None:
    """Reads the examples of a `:classify` or `:regress` body into `request_input`.

    Raises:
        StatusError: INVALID_ARGUMENT where the body does not hold a list of flat feature objects.
    """
    has_context = "context" in document
    if has_context:
        _fill_example(document["context"], request_input.example_list_with_context.context)
    if "examples" not in document:
        raise _format_error(document, "When method is classify, key 'examples' is expected and was not found")
    examples = document["examples"]
    if not isinstance(examples, list):
        raise _format_error(document, "Expecting 'examples' value to be an list/array")
    if not examples:
        raise _format_error(document, "'examples' value is an empty array")
    target = request_input.example_list_with_context if has_context else request_input.example_list
    for example in examples:
        _fill_example(example, target.examples.add())


def _fill_example(value: Any, example: example_pb2.Example) -> None:
    if not isinstance(value, dict):
        raise invalid_argument(f"Example must be JSON object but got JSON {_type_name(value)}")
    example.SetInParent()
    for name, content in value.items():
        feature = example.features.feature[name]
        for item in content if isinstance(content, list) else [content]:
            _add_to_feature(item, name, feature)


def _add_to_feature(value: Any, name: str, feature: feature_pb2.Feature) -> None:
    if value is None or isinstance(value, list) or _is_named(value):
        raise invalid_argument(f"Feature: {name} has element with unexpected JSON type: {_type_name(value)}")
    item: Any
    if isinstance(value, str | dict):
        kind, item = "bytes", _encode_text(value) if isinstance(value, str) else _decode_base64(value)
    elif isinstance(value, float):
        kind, item = "float", value
    else:
        kind, item = "int64", int(value)
    present = feature.WhichOneof("kind")
    if present not in (None, f"{kind}_list"):
        raise invalid_argument(
            f"Unexpected element type in feature: {name} expecting type: {present.removesuffix('_list')}"
        )
    if kind == "int64" and not -(2**63) <= item < 2**63:
        raise invalid_argument(f"Feature: {name} has uint64 element. Only int64 is supported.")
    if kind == "float" and math.isfinite(item) and abs(item) > np.finfo(np.float32).max:
        item = math.copysign(math.inf, item)
    getattr(feature, f"{kind}_list").value.append(item)
