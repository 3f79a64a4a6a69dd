import math

import pytest

from tfmetarec.server import json_text
from tfmetarec.server.status import StatusError


@pytest.mark.parametrize(
    ("body", "reason", "offset"),
    [
        (b"nope", "Invalid value.", 1),
        (b"  ", "The document is empty.", 2),
        (b"{", "Missing a name for object member.", 1),
        (b'{"a"', "Missing a colon after a name of object member.", 4),
        (b'{"a": 1', "Missing a comma or } after an object member.", 7),
        (b'{"a": [1 2]}', "Missing a comma or ] after an array element.", 9),
        (b'{"a": "x', "Missing a closing quotation mark in string.", 8),
        (b'{"a": "\\x"}', "Invalid escape character in string.", 7),
        (b'{"a": "\\u12"}', "Incorrect hex digit after \\u escape in string.", 7),
        (b'{"a": 1.}', "Miss fraction part in number.", 8),
        (b'{"a": 1e}', "Miss exponent in number.", 8),
        (b'{"a": -}', "Invalid value.", 7),
        (b'{"a": Nan}', "Invalid value.", 8),
        (b'{"a": -Infinite}', "Invalid value.", 14),
        (b'{"a": "\\ud800"}', "The surrogate pair in string is invalid.", 7),
        (b'{"a": "\\ude00\\ud800"}', "The surrogate pair in string is invalid.", 7),
        (b'{"a": 1' + b"0" * 5000 + b"}", "Number too big to be stored in double.", 6),
        (b'{"a": [1, -1e400]}', "Number too big to be stored in double.", 10),
        (b'{"a": 1E+309}', "Number too big to be stored in double.", 6),
        (b'{"a": Infinit}', "Invalid value.", 13),
        (b'{"a": -In}', "Invalid value.", 9),
        (b'{"a": "\x01"}', "Invalid encoding in string.", 7),
        ('{"é": nul}'.encode(), "Invalid value.", 10),
    ],
)
def test_a_malformed_document_is_explained_with_the_byte_where_reading_stopped(body, reason, offset):
    with pytest.raises(StatusError) as caught:
        json_text.parse_object(body)
    assert caught.value.message == f"JSON Parse error: {reason} at offset: {offset}"


def test_the_short_words_for_numbers_that_are_none_are_read_outside_of_text():
    value = json_text.parse_object(
        b'{"Inf": [Inf, -Inf, -NaN, Infinity, "-Inf -NaN \\" Inf"], "e": "1e400", "x": 1e308}'
    )
    assert value["Inf"][:2] == [math.inf, -math.inf]
    assert math.isnan(value["Inf"][2])
    assert value["Inf"][3:] == [math.inf, '-Inf -NaN " Inf']
    assert (value["e"], value["x"]) == ("1e400", 1e308)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1.5, "1.5"),
        (0.123456789, "0.123456791"),  # As float32, which needs nine digits.
        (1e300, "1e+300"),
        (-1.0000000001e300, "-1.0000000001e+300"),
        (math.inf, "Infinity"),
        (2**64 - 1, "18446744073709551615"),
        (2**64, "1.84467441e+19"),  # Past 64 bits it is no integer any more.
        ([0.123456789, 2**64], "[0.123456789, 18446744073709552000.0]"),
    ],
)
def test_numbers_are_shown_in_errors_as_rapidjson_holds_them(value, text):
    assert json_text.pretty(value) == text


def test_text_behind_the_document_is_ignored_and_whole_surrogate_pairs_are_read():
    assert json_text.parse_object(b'{"a": "\\ud83d\\ude00"} }') == {"a": "\U0001f600"}


def test_an_empty_body_and_a_list_are_no_objects():
    with pytest.raises(StatusError, match="The document is empty"):
        json_text.parse_object(b"")
    with pytest.raises(StatusError) as caught:
        json_text.parse_object(b"[1, 2]")
    assert caught.value.message == "JSON Value: [1, 2] Is not object"


def test_a_document_nested_too_deeply_is_refused():
    with pytest.raises(StatusError, match="nested too deeply"):
        json_text.parse_object(b'{"a":' + b"[" * 100_000)


def test_a_large_malformed_document_is_refused_quickly_with_the_place_of_the_error():
    body = b'{"a": "' + "é".encode() * json_text.MAX_EXPLAINED_BYTES + b'", }'
    with pytest.raises(StatusError, match=f"Invalid value. at offset: {len(body) - 1}$"):
        json_text.parse_object(body)


def test_bytes_that_are_not_utf8_and_a_byte_order_mark_are_survived():
    document = json_text.parse_object(b'\xef\xbb\xbf{"a": "\xff"}')
    assert document["a"].encode("utf-8", "surrogateescape") == b"\xff"


def test_objects_within_lists_are_laid_out_as_rapidjson_does():
    assert json_text.pretty({"rows": [{"a": 1.0}], "none": None, "empty": {}}) == (
        '{\n    "rows": [{\n            "a": 1.0\n        }],\n    "none": null,\n    "empty": {}\n}'
    )


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1e20, "100000000000000000000.0"),
        (1e21, "1e21"),
        (0.000001, "0.000001"),
        (1e-7, "1e-7"),
        (-1.5e30, "-1.5e30"),
    ],
)
def test_the_shortest_decimal_has_an_exponent_only_for_far_numbers(value, text):
    assert json_text.shortest_decimal(value) == text
    assert float(text) == value
