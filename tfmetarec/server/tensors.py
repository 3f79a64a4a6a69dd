"""TensorProto to NumPy and back, as strict and as lenient as the C++ server."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.core.framework import tensor_pb2, types_pb2

from tfmetarec.server.status import StatusError, invalid_argument

# A tiny message may ask for a huge tensor, because missing values repeat the last one given. Past this
# size such a message is refused: it is far more likely an attack or a mistake than a request.
MAX_REPEATED_ELEMENTS = 1 << 20
MAX_RANK = 32  # A string tensor with more ends the process in TensorFlow's conversion from NumPy.

_FIELDS: dict[int, tuple[str, Any]] = {
    types_pb2.DT_FLOAT: ("float_val", np.float32),
    types_pb2.DT_DOUBLE: ("double_val", np.float64),
    types_pb2.DT_INT32: ("int_val", np.int32),
    types_pb2.DT_INT16: ("int_val", np.int16),
    types_pb2.DT_INT8: ("int_val", np.int8),
    types_pb2.DT_UINT16: ("int_val", np.uint16),
    types_pb2.DT_UINT8: ("int_val", np.uint8),
    types_pb2.DT_INT64: ("int64_val", np.int64),
    types_pb2.DT_UINT32: ("uint32_val", np.uint32),
    types_pb2.DT_UINT64: ("uint64_val", np.uint64),
    types_pb2.DT_BOOL: ("bool_val", np.bool_),
    types_pb2.DT_STRING: ("string_val", np.object_),
    types_pb2.DT_HALF: ("half_val", np.float16),
    types_pb2.DT_BFLOAT16: ("half_val", tf.bfloat16.as_numpy_dtype),
    types_pb2.DT_COMPLEX64: ("scomplex_val", np.complex64),
    types_pb2.DT_COMPLEX128: ("dcomplex_val", np.complex128),
}


def dtype_name(dtype: int) -> str:
    """Names a DataType as error messages do.

    Example:
    >>> dtype_name(types_pb2.DT_FLOAT)
    'float'
    """
    if dtype == types_pb2.DT_INVALID:
        return "INVALID"
    return types_pb2.DataType.Name(dtype).removeprefix("DT_").lower()


def numpy_dtype(dtype: int) -> Any:
    """The NumPy type of a DataType; `None` for types that a request cannot carry."""
    return _FIELDS[dtype][1] if dtype in _FIELDS else None


def from_proto(proto: tensor_pb2.TensorProto, name: str) -> np.ndarray:
    """Reads a tensor out of a request.

    Args:
        proto: TensorProto with `tensor_content` or the typed values. Fewer values than the shape needs
            repeat the last one, as TensorFlow does.
        name: str. The input's name, for the error.

    Raises:
        StatusError: INVALID_ARGUMENT if type, shape and values do not make a tensor.
    """
    error = invalid_argument(f"tensor parsing error: {name}")
    sizes = [dim.size for dim in proto.tensor_shape.dim]
    if proto.dtype not in _FIELDS or proto.tensor_shape.unknown_rank:
        raise error
    if len(sizes) > MAX_RANK or any(not 0 <= size < 1 << 40 for size in sizes):
        raise error
    field, dtype = _FIELDS[proto.dtype]
    count = math.prod(sizes)
    if proto.tensor_content:
        if proto.dtype == types_pb2.DT_STRING:
            strings = _strings_from_content(proto.tensor_content, count)
            if strings is None:
                raise error
            return _string_array(strings).reshape(sizes)
        if len(proto.tensor_content) != count * np.dtype(dtype).itemsize:
            raise error
        return np.frombuffer(proto.tensor_content, dtype).reshape(sizes)
    values = _typed_values(getattr(proto, field), proto.dtype, dtype)[:count]
    missing = count - len(values)
    if missing > 0:
        if count > MAX_REPEATED_ELEMENTS:
            raise error
        last = values[-1:] if len(values) else np.array([b""] if dtype is np.object_ else [0]).astype(dtype)
        values = np.concatenate([values, np.repeat(last, missing)])
    return values.reshape(sizes)


def _typed_values(values: Any, dtype: int, numpy_type: Any) -> np.ndarray:
    if dtype in (types_pb2.DT_HALF, types_pb2.DT_BFLOAT16):  # The bits, one number each.
        return np.array(values, np.int64).astype(np.uint16).view(numpy_type)
    if dtype in (types_pb2.DT_COMPLEX64, types_pb2.DT_COMPLEX128):  # Real and imaginary parts in turn.
        part = np.float32 if dtype == types_pb2.DT_COMPLEX64 else np.float64
        return np.array(values[: len(values) // 2 * 2], part).view(numpy_type)
    if dtype == types_pb2.DT_STRING:
        return _string_array(values)
    if numpy_type in (np.int16, np.int8, np.uint16, np.uint8):  # Carried as int32; narrowing wraps around.
        return np.array(values, np.int32).astype(numpy_type)
    return np.array(values, numpy_type)


def _string_array(values: Iterable[bytes]) -> np.ndarray:
    listed = list(values)
    array = np.empty(len(listed), np.object_)
    array[:] = listed
    return array


def _strings_from_content(content: bytes, count: int) -> list[bytes] | None:
    """TensorFlow packs strings as all their lengths, seven bits a byte, and then the text; `None` if it is not so."""
    lengths: list[int] = []
    at = length = shift = 0
    while len(lengths) < count:
        if at == len(content) or shift > 28:
            return None
        length |= (content[at] & 0x7F) << shift
        shift += 7
        if content[at] < 0x80:
            lengths.append(length)
            length = shift = 0
        at += 1
    if at + sum(lengths) != len(content):
        return None
    ends = itertools.accumulate(lengths, initial=at)
    return [content[start:end] for start, end in itertools.pairwise(ends)]


def _strings_to_content(values: Sequence[bytes]) -> bytes:
    lengths = bytearray()
    for value in values:
        length = len(value)
        while length >= 0x80:
            lengths.append(length & 0x7F | 0x80)
            length >>= 7
        lengths.append(length)
    return b"".join([bytes(lengths), *values])


def to_proto(array: np.ndarray, proto: tensor_pb2.TensorProto, as_content: bool = False) -> None:
    """Writes `array` into `proto`.

    Args:
        array: of a type that a TensorProto can carry.
        proto: TensorProto, empty.
        as_content: bool. Whether to write bytes (`tensor_content`), which is faster for large arrays, or typed values,
            as the C++ server answers unless told otherwise. Defaults to `False`.

    Raises:
        StatusError: UNIMPLEMENTED for types that no answer can carry (variants, resources).
    """
    dtype = tf.as_dtype(array.dtype).as_datatype_enum
    if dtype not in _FIELDS:
        raise StatusError("UNIMPLEMENTED", f"No TensorProto field for type: {dtype_name(dtype)}")
    proto.dtype = dtype
    for size in array.shape:
        proto.tensor_shape.dim.add().size = size
    flat = np.ravel(array)
    if as_content:
        proto.tensor_content = _strings_to_content(flat.tolist()) if dtype == types_pb2.DT_STRING else flat.tobytes()
        return
    if dtype in (types_pb2.DT_HALF, types_pb2.DT_BFLOAT16):
        flat = flat.view(np.uint16)
    elif dtype in (types_pb2.DT_COMPLEX64, types_pb2.DT_COMPLEX128):
        flat = flat.view(np.float32 if dtype == types_pb2.DT_COMPLEX64 else np.float64)
    getattr(proto, _FIELDS[dtype][0]).extend(flat.tolist())
