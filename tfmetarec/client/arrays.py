"""Plain Python values as arrays of the types and shapes that a signature wants."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

NUMPY_TYPES: dict[str, Any] = {
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


def as_input(name: str, value: Any, infos: Mapping[str, Any]) -> np.ndarray:
    """Gives an input the type and, where it is empty, the shape that the signature wants.

    Args:
        name: of the input.
        value: array-like.
        infos: the signature's inputs by name, as its metadata shows them.

    Raises:
        ValueError: if the signature has no such input, or the value does not fit its type.
    """
    if name not in infos:
        raise ValueError(f"`inputs` must hold inputs of the signature: {', '.join(sorted(infos))}. Received: {name}")
    info = infos[name]
    dtype = NUMPY_TYPES.get(info["dtype"])
    if dtype is None:
        raise ValueError(f"`inputs[{name!r}]` has a type this client cannot send: {info['dtype']}")
    array = _as_strings(name, value) if dtype is np.object_ else _as_numbers(name, value, dtype)
    return with_inner_shape(array, info) if array.size == 0 else array


def sizes(info: Mapping[str, Any]) -> list[int]:
    """The dimensions of an input or output, -1 where they are open."""
    return [int(dim["size"]) for dim in info["tensor_shape"].get("dim", ())]


def with_inner_shape(empty: np.ndarray, info: Mapping[str, Any]) -> np.ndarray:
    """`[]` says nothing of the dimensions within; the signature does."""
    shape, wanted = empty.shape, sizes(info)
    if info["tensor_shape"].get("unknown_rank") or len(shape) >= len(wanted):
        return empty
    full = shape + tuple(max(size, 0) for size in wanted[len(shape) :])
    return empty.reshape(full) if math.prod(full) == 0 else empty


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
