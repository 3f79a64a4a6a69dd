import json

import numpy as np
import pytest
from tensorflow.core.framework import types_pb2
from tensorflow.core.protobuf.meta_graph_pb2 import TensorInfo
from tensorflow_serving.apis import input_pb2

from tfmetarec.server import json_codec, json_text
from tfmetarec.server.status import StatusError


def read(document, **types):
    inputs = {name: TensorInfo(dtype=getattr(types_pb2, f"DT_{kind}")) for name, kind in types.items()}
    body = json.dumps(document).encode()
    return json_codec.predict_body(json_text.parse_object(body), "", inputs, body)


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
    at_once, one_by_one = (json_codec._tensor(value, dtype, fast) for fast in (True, False))
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


def test_complex_inputs_are_unimplemented():
    with pytest.raises(StatusError) as caught:
        read({"instances": [1.0]}, x="COMPLEX64")
    assert caught.value.code == "UNIMPLEMENTED" or "UNIMPLEMENTED" in caught.value.message


def test_a_signature_without_inputs_is_refused():
    with pytest.raises(StatusError, match="Failed to get input map for signature: DEFAULT"):
        read({"instances": [1.0]})


def test_one_output_is_written_bare_and_rows_stay_on_one_line():
    text = json_codec.predict_text({"y": np.array([[1.0, 0.5]], np.float32)}, row_format=True)
    assert text == b'{\n    "predictions": [[1.0, 0.5]\n    ]\n}'


def test_columns_are_written_over_several_lines():
    text = json_codec.predict_text({"y": np.array([1, 2])}, row_format=False)
    assert text == b'{\n    "outputs": [\n        1,\n        2\n    ]\n}'


@pytest.mark.parametrize("row_format", [True, False])
@pytest.mark.parametrize("shape", [(1,), (3, 2), (2, 0), (2, 0, 3), (2, 1, 2), (1, 2, 0)])
def test_what_is_written_reads_back_as_it_was(row_format, shape):
    rng = np.random.default_rng(1)
    outputs = {
        "single": rng.normal(size=shape).astype(np.float32),
        "double": rng.normal(size=shape) * 1e-9,
        "whole": rng.integers(-5, 5, shape),
        "yes": rng.integers(0, 2, shape).astype(bool),
        "text": np.vectorize(lambda n: f'"{n}\n"'.encode(), otypes=[object])(rng.integers(0, 9, shape)),
    }
    page = json.loads(json_codec.predict_text(outputs, row_format))
    for name, array in outputs.items():
        value = [row[name] for row in page["predictions"]] if row_format else page["outputs"][name]
        expected = [item.decode() for item in array.flat] if name == "text" else array.ravel().tolist()
        got = np.array(value, array.dtype)
        # What would be within an empty list cannot be said in JSON.
        assert got.shape == shape[: shape.index(0) + 1 if 0 in shape else None]
        assert got.ravel().tolist() == expected


def test_not_a_number_and_infinity_are_bare_words():
    values = np.array([np.nan, np.inf, -np.inf, 9e6, 3e-5], np.float32)
    text = json_codec.predict_text({"y": values}, row_format=True)
    assert b"[NaN, Infinity, -Infinity, 9e+06, 3e-05\n" in text


def test_outputs_without_common_rows_cannot_be_listed_by_row():
    with pytest.raises(StatusError, match="Tensor name: t has no shape information"):
        json_codec.predict_text({"t": np.float32(1.0).reshape(())}, row_format=True)
    with pytest.raises(StatusError, match="inconsistent batch size: 2 expecting: 1"):
        json_codec.predict_text({"p": np.zeros(1), "q": np.zeros(2)}, row_format=True)


def test_a_type_that_json_cannot_show_is_refused():
    with pytest.raises(StatusError) as caught:
        json_codec.predict_text({"c": np.zeros(1, np.complex64)}, row_format=False)
    assert caught.value.message == "Failed to write JSON value for tensor type: complex64"


def test_a_context_is_read_beside_the_examples():
    filled = input_pb2.Input()
    json_codec.fill_examples({"context": {"c": "x"}, "examples": [{"x": [1.5, 2.5]}, {}]}, filled)
    listed = filled.example_list_with_context
    assert listed.context.features.feature["c"].bytes_list.value == [b"x"]
    assert listed.examples[0].features.feature["x"].float_list.value == [1.5, 2.5]
    assert len(listed.examples) == 2


def test_a_feature_past_int64_is_refused():
    with pytest.raises(StatusError, match="Only int64 is supported"):
        json_codec.fill_examples({"examples": [{"x": 2**63}]}, input_pb2.Input())


def test_missing_and_empty_examples_are_told_apart():
    with pytest.raises(StatusError, match="key 'examples' is expected and was not found"):
        json_codec.fill_examples({}, input_pb2.Input())
    with pytest.raises(StatusError, match="'examples' value is an empty array"):
        json_codec.fill_examples({"examples": []}, input_pb2.Input())
