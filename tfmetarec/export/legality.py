"""What TensorFlow Serving refuses, found by reading a SavedModel before any server sees it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tensorflow.core.protobuf import meta_graph_pb2, saved_model_pb2
from tensorflow.python.framework import op_def_registry

from tfmetarec.export.errors import GateError

PYTHON_ONLY = ("PyFunc", "PyFuncStateless", "EagerPyFunc")
"""Operations that call back into the Python that wrote them; no server has it."""


def check_legal(folder: Path) -> None:
    """Refuses a SavedModel whose signatures no server could run, or could not batch.

    Args:
        folder: the SavedModel.

    Raises:
        GateError: for a function marked for XLA, an operation that a server does not have, or a signature with an
            input or output that does not have the batch first.
    """
    saved = saved_model_pb2.SavedModel.FromString((folder / "saved_model.pb").read_bytes())
    for graph in saved.meta_graphs:
        _check_functions(graph)
        own = {function.signature.name for function in graph.graph_def.library.function}
        for node in _nodes(graph):
            if node.op in PYTHON_ONLY:
                raise GateError(f"{node.name} calls Python ({node.op}), which a server does not have.")
            if op_def_registry.get(node.op) is None and node.op not in own:
                raise GateError(f"{node.name} is of an operation that TensorFlow does not have: {node.op}.")
        for name, signature in graph.signature_def.items():
            if not name.startswith("__"):
                _check_batching(name, signature)


def _check_functions(graph: meta_graph_pb2.MetaGraphDef) -> None:
    for function in graph.graph_def.library.function:
        if _is_marked(function):
            raise GateError(
                f"function {function.signature.name} is marked for XLA, which TensorFlow Serving answers with an "
                "error; export without `jit_compile`."
            )
    for node in _nodes(graph):
        if _is_marked(node):
            raise GateError(f"{node.name} is marked for XLA, which TensorFlow Serving answers with an error.")


def _is_marked(part: Any) -> bool:
    return "_XlaMustCompile" in part.attr and part.attr["_XlaMustCompile"].b


def _nodes(graph: meta_graph_pb2.MetaGraphDef) -> Iterator[Any]:
    yield from graph.graph_def.node
    for function in graph.graph_def.library.function:
        yield from function.node_def


def _check_batching(name: str, signature: meta_graph_pb2.SignatureDef) -> None:
    for kind, infos in (("input", signature.inputs), ("output", signature.outputs)):
        for key, info in infos.items():
            shape = info.tensor_shape
            if shape.unknown_rank:
                continue
            if not shape.dim or shape.dim[0].size != -1:
                sizes = [dim.size for dim in shape.dim]
                raise GateError(
                    f"{kind} {key!r} of signature {name!r} must have the batch, of any size, as its first dimension, "
                    f"or requests cannot be batched. Received: shape {sizes}"
                )
