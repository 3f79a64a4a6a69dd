import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from tfmetarec.export.small_products import rewrite_small_products, small_products

Spec = tf.TensorSpec


def operations(folder):
    saved = saved_model_pb2.SavedModel.FromString((folder / "saved_model.pb").read_bytes())
    functions = saved.meta_graphs[0].graph_def.library.function
    return sorted(node.op for function in functions for node in function.node_def if "MatMul" in node.op)


def test_marked_products_and_their_gradients_are_exchanged_and_give_the_same(tmp_path):
    def function(x, w):
        with small_products(), tf.GradientTape() as tape:
            tape.watch(w)
            loss = tf.reduce_sum(tf.matmul(x, w) ** 2)
        with small_products():
            moved = w - 0.1 * tape.gradient(loss, w)
        return {"y": tf.matmul(x, moved)}  # Not marked.

    module = tf.Module()
    module.function = tf.function(
        function,
        autograph=False,
        input_signature=[Spec([None, None, 3], tf.float32, "x"), Spec([None, 3, 2], tf.float32, "w")],
    )
    tf.saved_model.save(module, str(tmp_path), signatures={"serving_default": module.function})
    assert operations(tmp_path) == ["BatchMatMulV2"] * 4  # Two forwards, and the gradient by both factors of one.
    assert rewrite_small_products(tmp_path) == 3
    assert operations(tmp_path) == ["BatchMatMulV2", *["BatchMatMulV3"] * 3]
    rng = np.random.default_rng(0)
    x, w = (rng.normal(size=size).astype(np.float32) for size in ((4, 5, 3), (4, 3, 2)))
    moved = w - 0.2 * np.swapaxes(x, 1, 2) @ (x @ w)
    found = tf.saved_model.load(str(tmp_path)).signatures["serving_default"](x=tf.constant(x), w=tf.constant(w))["y"]
    np.testing.assert_allclose(found, x @ moved, rtol=1e-4, atol=1e-4)
    assert rewrite_small_products(tmp_path) == 0
