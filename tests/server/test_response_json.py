import json

import numpy as np
import pytest

from tfmetarec.server import response_json
from tfmetarec.server.status import StatusError


def test_one_output_is_written_bare_and_rows_stay_on_one_line():
    text = response_json.predict_text({"y": np.array([[1.0, 0.5]], np.float32)}, row_format=True)
    assert text == b'{\n    "predictions": [[1.0, 0.5]\n    ]\n}'


def test_columns_are_written_over_several_lines():
    text = response_json.predict_text({"y": np.array([1, 2])}, row_format=False)
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
    page = json.loads(response_json.predict_text(outputs, row_format))
    for name, array in outputs.items():
        value = [row[name] for row in page["predictions"]] if row_format else page["outputs"][name]
        expected = [item.decode() for item in array.flat] if name == "text" else array.ravel().tolist()
        got = np.array(value, array.dtype)
        # What would be within an empty list cannot be said in JSON.
        assert got.shape == shape[: shape.index(0) + 1 if 0 in shape else None]
        assert got.ravel().tolist() == expected


def test_not_a_number_and_infinity_are_bare_words():
    values = np.array([np.nan, np.inf, -np.inf, 9e6, 3e-5], np.float32)
    text = response_json.predict_text({"y": values}, row_format=True)
    assert b"[NaN, Infinity, -Infinity, 9e+06, 3e-05\n" in text


def test_outputs_without_common_rows_cannot_be_listed_by_row():
    with pytest.raises(StatusError, match="Tensor name: t has no shape information"):
        response_json.predict_text({"t": np.float32(1.0).reshape(())}, row_format=True)
    with pytest.raises(StatusError, match="inconsistent batch size: 2 expecting: 1"):
        response_json.predict_text({"p": np.zeros(1), "q": np.zeros(2)}, row_format=True)


def test_a_type_that_json_cannot_show_is_refused():
    with pytest.raises(StatusError) as caught:
        response_json.predict_text({"c": np.zeros(1, np.complex64)}, row_format=False)
    assert caught.value.message == "Failed to write JSON value for tensor type: complex64"
