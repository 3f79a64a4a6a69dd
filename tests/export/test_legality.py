import pytest
import tensorflow as tf

from tfmetarec.export import GateError
from tfmetarec.export.legality import check_legal

Spec = tf.TensorSpec


def saved(folder, function, spec=None):
    spec = Spec([None], tf.float32, "x") if spec is None else spec
    signature = tf.function(function, autograph=False, input_signature=[spec])
    module = tf.Module()
    module.function = signature
    tf.saved_model.save(module, str(folder), signatures={"serving_default": signature})
    return folder


def test_an_ordinary_model_is_legal(tmp_path):
    check_legal(saved(tmp_path, lambda x: {"y": 2.0 * x}))


def test_a_function_marked_for_xla_is_refused_wherever_it_is_called(tmp_path):
    inner = tf.function(lambda x: x + 1.0, jit_compile=True)
    with pytest.raises(GateError, match="marked for XLA, which TensorFlow Serving answers with an error"):
        check_legal(saved(tmp_path, lambda x: {"y": inner(x)}))


def test_an_operation_that_calls_python_is_refused(tmp_path):
    def function(x):
        return {"y": tf.reshape(tf.numpy_function(lambda value: value + 1, [x], tf.float32), tf.shape(x))}

    with pytest.raises(GateError, match=r"calls Python \(\w*PyFunc\w*\), which a server does not have"):
        check_legal(saved(tmp_path, function))


def test_an_operation_that_tensorflow_does_not_have_is_refused(tmp_path):
    from tensorflow.core.protobuf import saved_model_pb2

    file = saved(tmp_path, lambda x: {"y": 2.0 * x}) / "saved_model.pb"
    model = saved_model_pb2.SavedModel.FromString(file.read_bytes())
    model.meta_graphs[0].graph_def.library.function[0].node_def.add(name="odd", op="TheirOwnOperation")
    file.write_bytes(model.SerializeToString())
    with pytest.raises(GateError, match="odd is of an operation that TensorFlow does not have: TheirOwnOperation"):
        check_legal(tmp_path)


@pytest.mark.parametrize(
    ("function", "spec", "message"),
    [
        (lambda x: {"y": x[None]}, Spec([], tf.float32, "x"), r"input 'x' of signature .* Received: shape \[\]"),
        (lambda x: {"y": x}, Spec([3], tf.float32, "x"), r"input 'x' of signature .* Received: shape \[3\]"),
        (lambda x: {"y": tf.reduce_sum(x)}, None, r"output 'y' of signature .* Received: shape \[\]"),
    ],
)
def test_inputs_and_outputs_without_a_batch_of_any_size_are_refused(tmp_path, function, spec, message):
    with pytest.raises(GateError, match=message):
        check_legal(saved(tmp_path, function, spec))
