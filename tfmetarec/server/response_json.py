"""Tensors and results to REST answers, in the number formats and white space of TensorFlow Serving."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping

import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import classification_pb2, regression_pb2

from tfmetarec.server import json_text
from tfmetarec.server.status import invalid_argument
from tfmetarec.server.tensors import dtype_name


def predict_text(outputs: Mapping[str, np.ndarray], row_format: bool) -> bytes:
    """Writes the answer to `:predict`.

    Args:
        outputs: tensors by output name, at least one. One output is written bare, several by name.
        row_format: bool. Whether to list rows; then all outputs need one common first dimension.

    Raises:
        StatusError: INVALID_ARGUMENT where the outputs have no rows or a type JSON cannot show.
    """
    if not outputs:
        raise invalid_argument("Cannot convert empty tensor map to JSON")
    text = _rows_text(outputs) if row_format else _columns_text(outputs)
    return text.encode("utf-8", "surrogateescape")


def _rows_text(outputs: Mapping[str, np.ndarray]) -> str:
    sizes: list[int] = []
    for name, tensor in outputs.items():
        if tensor.ndim == 0:
            raise invalid_argument(f"Tensor name: {name} has no shape information ")
        if sizes and sizes[0] != len(tensor):
            raise invalid_argument(
                f"Tensor name: {name} has inconsistent batch size: {len(tensor)} expecting: {sizes[0]}"
            )
        sizes.append(len(tensor))
    rows = {name: _nest(_value_texts(name, tensor), tensor.shape, 1) for name, tensor in outputs.items()}
    if not sizes[0]:
        listed = "[]"
    elif len(outputs) == 1:
        (texts,) = rows.values()
        listed = "[" + ", ".join(texts) + "\n    ]"
    else:
        keys = [json_text.quote(name) for name in rows]
        objects = (
            ",\n".join(f"            {key}: {text}" for key, text in zip(keys, texts, strict=True))
            for texts in zip(*rows.values(), strict=True)
        )
        listed = "[\n" + ",\n".join(f"        {{\n{members}\n        }}" for members in objects) + "\n    ]"
    return f'{{\n    "predictions": {listed}\n}}'


def _columns_text(outputs: Mapping[str, np.ndarray]) -> str:
    if len(outputs) == 1:
        ((name, tensor),) = outputs.items()
        return f'{{\n    "outputs": {_nested_text(name, tensor, 1)}\n}}'
    members = (f"        {json_text.quote(name)}: {_nested_text(name, tensor, 2)}" for name, tensor in outputs.items())
    return '{\n    "outputs": {\n' + ",\n".join(members) + "\n    }\n}"


def _nested_text(name: str, tensor: np.ndarray, depth: int) -> str:
    return _nest(_value_texts(name, tensor), tensor.shape, 0, depth)[0]


def _nest(texts: list[str], shape: tuple[int, ...], first: int, depth: int | None = None) -> list[str]:
    """Wraps flat texts in brackets, innermost dimension first, down to dimension `first`.

    Without a `depth` everything stays on one line; with it, each value gets its own, indented that deep.
    """
    for level in reversed(range(first, len(shape))):
        size, outer = shape[level], math.prod(shape[:level])
        start = between = end = ""
        if depth is not None:
            start = "\n" + json_text.INDENT * (depth + level + 1)
            end = "\n" + json_text.INDENT * (depth + level)
        between = "," + (start or " ")
        if size:
            texts = [f"[{start}{between.join(texts[i * size : (i + 1) * size])}{end}]" for i in range(outer)]
        else:
            texts = ["[]"] * outer
    return texts


def _value_texts(name: str, tensor: np.ndarray) -> list[str]:
    """Each value of a tensor as JSON, in order."""
    kind, flat = tensor.dtype, tensor.ravel()
    if kind in (np.float32, np.float64):
        return _decimal_texts(flat)
    if kind == np.object_:
        if name.endswith("_bytes"):
            return ['{\n"b64": "' + base64.b64encode(value).decode() + '"\n}' for value in flat]
        return [json_text.quote(value) for value in flat]
    if kind == np.bool_:
        return ["true" if value else "false" for value in flat.tolist()]
    if kind.kind in "iu" and kind != np.uint16:
        return [str(value) for value in flat.tolist()]
    dtype = tf.as_dtype(kind).as_datatype_enum
    raise invalid_argument(f"Failed to write JSON value for tensor type: {dtype_name(dtype)}")


def _decimal_texts(flat: np.ndarray) -> list[str]:
    """`json_text.decimal` for many values: six digits where they are enough, all of them elsewhere."""
    values = flat.tolist()
    texts = [f"{value:.6g}" for value in values]
    if texts:
        exact = np.array(texts, dtype=np.float64).astype(flat.dtype) == flat
        digits = 9 if flat.dtype == np.float32 else 17
        for i in np.flatnonzero(~exact):
            texts[i] = json_text.special_decimal(values[i]) or f"{values[i]:.{digits}g}"
        for i in np.flatnonzero(np.isinf(flat)):
            texts[i] = "Infinity" if values[i] > 0 else "-Infinity"
    return [text if "." in text or "e" in text or text[-1] in "yN" else text + ".0" for text in texts]


def classification_text(result: classification_pb2.ClassificationResult) -> bytes:
    """Writes the answer to `:classify`: for each example, its `[label, score]` pairs."""
    if not result.classifications:
        raise invalid_argument("Cannot convert empty ClassificationResults to JSON")
    rows = (
        "[" + ", ".join(f"[{json_text.quote(c.label)}, {_score(c.score)}]" for c in row.classes) + "]"
        for row in result.classifications
    )
    return ('{\n    "results": [' + ", ".join(rows) + "\n    ]\n}").encode("utf-8", "surrogateescape")


def regression_text(result: regression_pb2.RegressionResult) -> bytes:
    """Writes the answer to `:regress`: one number for each example."""
    if not result.regressions:
        raise invalid_argument("Cannot convert empty RegressionResults to JSON")
    return ('{\n    "results": [' + ", ".join(_score(row.value) for row in result.regressions) + "]\n}").encode()


def _score(value: float) -> str:
    return _decimal_texts(np.array([value], np.float32))[0]


def error_text(message: str) -> bytes:
    """Writes an error as REST answers it.

    Example:
    >>> error_text("no such model")
    b'{\\n    "error": "no such model"\\n}'
    """
    return f'{{\n    "error": {json_text.quote(message)}\n}}'.encode("utf-8", "surrogatepass")
