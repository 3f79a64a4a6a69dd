"""Small matrix products of an export, run without oneDNN.

TensorFlow hands every matrix product on a CPU to oneDNN, which takes much longer to get ready for a small one than the
product takes: a request that adapts has dozens of them, and its server waits longer for that than for everything else.
`BatchMatMulV3` is the same product, which TensorFlow keeps for itself.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

SCOPE = "small_products"
# By operation: its attributes that transpose, and its output.
_PRODUCTS = {
    "MatMul": ("transpose_a", "transpose_b", "product"),
    "BatchMatMulV2": ("adj_x", "adj_y", "output"),
}


@contextmanager
def small_products() -> Iterator[None]:
    """Marks what is traced inside, gradients of it included."""
    with tf.name_scope(SCOPE):
        yield


def rewrite_small_products(folder: Path) -> int:
    """Exchanges the marked products of a SavedModel; returns how many there were."""
    file = folder / "saved_model.pb"
    saved = saved_model_pb2.SavedModel.FromString(file.read_bytes())
    count = 0
    for graph in saved.meta_graphs:
        for function in graph.graph_def.library.function:
            outputs = {}
            for node in function.node_def:
                is_float = node.attr["T"].type == tf.float32.as_datatype_enum if "T" in node.attr else False
                if node.op in _PRODUCTS and SCOPE in node.name and is_float:
                    outputs[f"{node.name}:{_PRODUCTS[node.op][2]}:0"] = f"{node.name}:output:0"
                    _rewrite(node)
            rename_outputs(function, outputs)
            count += len(outputs)
    file.write_bytes(saved.SerializeToString(deterministic=True))
    return count


def rename_outputs(function: Any, names: dict[str, str]) -> None:
    """Lets all that reads some outputs of a FunctionDef's operations read others."""
    for node in function.node_def:
        node.input[:] = [names.get(name, name) for name in node.input]
    for name, value in function.ret.items():
        function.ret[name] = names.get(value, value)


def _rewrite(node: Any) -> None:
    left, right, _ = _PRODUCTS[node.op]
    transposes = {"adj_x": node.attr[left].b, "adj_y": node.attr[right].b}
    kind = node.attr["T"].type
    node.op = "BatchMatMulV3"
    for name in [name for name in node.attr if not name.startswith("_")]:
        del node.attr[name]
    for name in ("Ta", "Tb", "Tout"):
        node.attr[name].type = kind
    for name, value in transposes.items():
        node.attr[name].b = value
