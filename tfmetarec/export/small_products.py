"""Small batched matrix products of an export, run without oneDNN.

TensorFlow hands every `BatchMatMulV2` to oneDNN, which takes some 50 microseconds to get ready for products that take
one: a request that adapts has dozens of them, and its server waits longer for that than for everything else.
`BatchMatMulV3` is the same product, which TensorFlow keeps for itself.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

SCOPE = "small_products"


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
            for node in function.node_def:
                marked = node.op == "BatchMatMulV2" and SCOPE in node.name
                if not marked or node.attr["T"].type != tf.float32.as_datatype_enum:
                    continue
                node.op = "BatchMatMulV3"
                for name in ("Ta", "Tb", "Tout"):
                    node.attr[name].CopyFrom(node.attr["T"])
                del node.attr["T"]
                count += 1
    file.write_bytes(saved.SerializeToString(deterministic=True))
    return count
