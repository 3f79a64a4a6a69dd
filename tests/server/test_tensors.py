import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.framework import tensor_pb2, types_pb2

from tfmetarec.server import tensors
from tfmetarec.server.status import StatusError

TYPES = ["float32", "float64", "float16", "bfloat16", "int8", "int16", "int32", "int64", "uint8", "uint16"]
TYPES += ["uint32", "uint64", "bool", "complex64", "complex128"]


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("shape", [(), (3,), (2, 2), (0,), (2, 0)])
@pytest.mark.parametrize("as_content", [False, True])
def test_tensorflow_reads_what_is_written_and_the_other_way_round(name, shape, as_content):
    dtype = tf.as_dtype(name).as_numpy_dtype
    array = (np.random.default_rng(0).integers(0, 100, shape)).astype(dtype)
    proto = tensor_pb2.TensorProto()
    tensors.to_proto(array, proto, as_content)
    for read in (tf.make_ndarray(proto), tensors.from_proto(proto, "x")):
        np.testing.assert_array_equal(read, array)
        assert read.dtype == dtype
    np.testing.assert_array_equal(tensors.from_proto(tf.make_tensor_proto(array), "x"), array)


def test_strings_keep_zero_bytes():
    array = np.array([[b"a\x00", b""], [b"\xff", b"b"]], np.object_)
    proto = tensor_pb2.TensorProto()
    tensors.to_proto(array, proto)
    assert tensors.from_proto(proto, "x").tolist() == array.tolist()


def test_strings_can_be_packed_into_bytes_as_tensorflow_packs_them():
    array = np.array([b"ab", b"", b"x" * 130], np.object_)
    proto = tensor_pb2.TensorProto()
    tensors.to_proto(array, proto, as_content=True)
    assert proto.tensor_content == b"\x02\x00\x82\x01ab" + b"x" * 130  # 130 = 0b1_0000010: low seven bits first.
    assert tensors.from_proto(proto, "x").tolist() == array.tolist()
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:  # The C++ reader agrees.
        assert session.run(tf.raw_ops.Identity(input=parsed(proto))).tolist() == array.tolist()


def parsed(proto):
    return tf.io.parse_tensor(proto.SerializeToString(), tf.string)


def proto(**fields):
    shape = fields.pop("shape")
    made = tensor_pb2.TensorProto(**fields)
    for size in shape:
        made.tensor_shape.dim.add().size = size
    return made


def test_missing_values_repeat_the_last_one_and_none_at_all_means_zero():
    float_type = types_pb2.DT_FLOAT
    some = tensors.from_proto(proto(dtype=float_type, shape=[4], float_val=[1.0, 2.0]), "x")
    assert some.tolist() == [1.0, 2.0, 2.0, 2.0]
    assert tensors.from_proto(proto(dtype=float_type, shape=[2]), "x").tolist() == [0.0, 0.0]
    assert tensors.from_proto(proto(dtype=types_pb2.DT_STRING, shape=[1]), "x").tolist() == [b""]


@pytest.mark.parametrize(
    "fields",
    [
        {"dtype": types_pb2.DT_FLOAT, "shape": [3], "tensor_content": b"1234"},
        {"dtype": types_pb2.DT_INVALID, "shape": [1]},
        {"dtype": types_pb2.DT_RESOURCE, "shape": [1]},
        {"dtype": types_pb2.DT_FLOAT, "shape": [-1], "float_val": [1.0]},
        {"dtype": types_pb2.DT_STRING, "shape": [1], "tensor_content": b"x"},
        {"dtype": types_pb2.DT_STRING, "shape": [2], "tensor_content": b"\x01"},
        {"dtype": types_pb2.DT_STRING, "shape": [1], "tensor_content": b"\xff" * 9 + b"\x01"},
        {"dtype": types_pb2.DT_FLOAT, "shape": [1 << 40], "float_val": [1.0]},
        {"dtype": types_pb2.DT_FLOAT, "shape": [1 << 62, 1 << 62], "float_val": [1.0]},
        {"dtype": types_pb2.DT_FLOAT, "shape": [0, 1 << 62]},
        {"dtype": types_pb2.DT_FLOAT, "shape": [1] * 65, "float_val": [1.0]},
    ],
)
def test_a_message_that_makes_no_tensor_is_refused(fields):
    with pytest.raises(StatusError) as caught:
        tensors.from_proto(proto(**fields), "price")
    assert str(caught.value) == "INVALID_ARGUMENT: tensor parsing error: price"


def test_an_unknown_rank_is_refused():
    unknown = tensor_pb2.TensorProto(dtype=types_pb2.DT_FLOAT, float_val=[1.0])
    unknown.tensor_shape.unknown_rank = True
    with pytest.raises(StatusError, match="tensor parsing error: x"):
        tensors.from_proto(unknown, "x")
