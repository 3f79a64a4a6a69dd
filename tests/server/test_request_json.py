import json

import numpy as np
import pytest
from tensorflow.core.framework import types_pb2
from tensorflow.core.protobuf.meta_graph_pb2 import TensorInfo
from tensorflow_serving.apis import input_pb2

from tfmetarec.server import json_text, request_json
from tfmetarec.server.status import StatusError


def read(document, **types):
    inputs = {name: TensorInfo(dtype=getattr(types_pb2, f"DT_{kind}")) for name, kind in types.items()}
    body = json.dumps(document).encode()
    return request_json.predict_body(json_text.parse_object(body), "", inputs, body)


def test_rows_become_columns_with_the_types_of_the_signature():
    body = read({"instances": [{"a": 1, "b": [1, 2]}, {"a": 2.5, "b": [3, 4]}]}, a="FLOAT", b="INT64")
    assert body.row_format
    np.testing.assert_array_equal(body.inputs["a"], np.array([1.0, 2.5], np.float32))
    np.testing.assert_array_equal(body.inputs["b"], [[1, 2], [3, 4]])
    assert body.inputs["a"].dtype == np.float32
    assert body.inputs["b"].dtype == np.int64


@pytest.mark.parametrize("kind", ["FLOAT", "DOUBLE", "INT32", "INT64", "UINT8", "UINT64"])
@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (2, 0), (0,), (2, 2, 1)])
def test_converting_at_once_and_value_by_value_agree(kind, shape):
    value = np.random.default_rng(0).integers(0, 100, shape).tolist()
    dtype = getattr(types_pb2, f"DT_{kind}")
    at_once, one_by_one = (request_json._tensor(value, dtype, fast) for fast in (True, False))
    np.testing.assert_array_equal(at_once, one_by_one)
    assert at_once.dtype == one_by_one.dtype
    assert at_once.shape == shape


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("FLOAT", [1.0, True]),
        ("INT64", [1, False]),
        ("INT32", [1, 2.0]),
        ("INT32", [2**31]),
        ("INT64", [2**63]),
        ("FLOAT", [1.0, None]),
        ("FLOAT", ["1.0"]),
        ("BOOL", [1]),
        ("STRING", [1]),
        ("UINT32", [-1]),
    ],
)
def test_values_of_a_wrong_type_are_refused_in_both_formats(kind, values):
    for document in ({"instances": values}, {"inputs": values}, {"inputs": {"x": values}}):
        with pytest.raises(StatusError, match="is not of expected type"):
            read(document, x=kind)


def test_the_error_names_the_row_and_the_key():
    with pytest.raises(StatusError) as caught:
        read({"instances": [{"a": 1.0, "b": 1}, {"a": "x", "b": 2}]}, a="FLOAT", b="INT32")
    assert caught.value.message == (
        "Failed to process element: 1 key: a of 'instances' list. Error: INVALID_ARGUMENT: "
        'JSON Value: "x" Type: String is not of expected type: float'
    )


def test_an_unknown_key_in_a_row_is_named():
    with pytest.raises(StatusError, match="does not have named input: c"):
        read({"instances": [{"a": 1.0, "c": 1}]}, a="FLOAT", b="INT32")


def test_rows_of_unequal_shape_are_refused():
    with pytest.raises(StatusError, match="Expecting tensor size: 2 but got: 1"):
        read({"instances": [[1, 2], [3]]}, x="FLOAT")


def test_strings_come_from_text_and_from_base64_and_keep_zero_bytes():
    body = read({"instances": ["é", {"b64": "AAE="}]}, x="STRING")
    assert body.inputs["x"].tolist() == ["é".encode(), b"\x00\x01"]


@pytest.mark.parametrize("text", ["aGk", "aGk=", "aGk.", " a G\nk= "])
def test_base64_needs_no_padding(text):
    assert read({"inputs": {"b64": text}}, x="STRING").inputs["x"].item() == b"hi"


@pytest.mark.parametrize("text", ["aGk==", "aGk=x", "a", "aG=", "_-8=", "@@@"])
def test_base64_with_wrong_padding_or_characters_is_refused(text):
    with pytest.raises(StatusError, match="Unable to base64 decode"):
        read({"inputs": {"b64": text}}, x="STRING")


@pytest.mark.parametrize("kind", ["FLOAT", "DOUBLE", "INT64"])
def test_integers_of_hundreds_of_digits_are_refused(kind):
    with pytest.raises(StatusError) as caught:
        read({"inputs": [1, -(10**400)]}, x=kind)
    assert str(caught.value) == "INVALID_ARGUMENT: JSON Parse error: Number too big to be stored in double."


def test_complex_inputs_are_unimplemented():
    with pytest.raises(StatusError) as caught:
        read({"instances": [1.0]}, x="COMPLEX64")
    assert caught.value.code == "UNIMPLEMENTED" or "UNIMPLEMENTED" in caught.value.message


def nested(levels):
    return nested(levels - 1)[None] if levels else np.array("a")


@pytest.mark.parametrize("key", ["inputs", "instances"])
def test_more_dimensions_than_a_tensor_can_have_are_refused(key):
    # One more, and TensorFlow's conversion of text from NumPy ends the process.
    assert read({key: nested(32).tolist()}, x="STRING").inputs["x"].ndim == 32
    with pytest.raises(StatusError, match=r"at most 32 dimensions\. Received: 33"):
        read({key: nested(33).tolist()}, x="STRING")


def test_a_signature_without_inputs_is_refused():
    with pytest.raises(StatusError, match="Failed to get input map for signature: DEFAULT"):
        read({"instances": [1.0]})


def test_a_context_is_read_beside_the_examples():
    filled = input_pb2.Input()
    request_json.fill_examples({"context": {"c": "x"}, "examples": [{"x": [1.5, 2.5]}, {}]}, filled)
    listed = filled.example_list_with_context
    assert listed.context.features.feature["c"].bytes_list.value == [b"x"]
    assert listed.examples[0].features.feature["x"].float_list.value == [1.5, 2.5]
    assert len(listed.examples) == 2


def test_a_feature_past_int64_is_refused():
    with pytest.raises(StatusError, match="Only int64 is supported"):
        request_json.fill_examples({"examples": [{"x": 2**63}]}, input_pb2.Input())


def test_missing_and_empty_examples_are_told_apart():
    with pytest.raises(StatusError, match="key 'examples' is expected and was not found"):
        request_json.fill_examples({}, input_pb2.Input())
    with pytest.raises(StatusError, match="'examples' value is an empty array"):
        request_json.fill_examples({"examples": []}, input_pb2.Input())
