import datetime as dt
import re

import polars as pl
import pytest

from tfmetarec.data.columns import typed_feature, typed_ids, typed_labels, typed_timestamps
from tfmetarec.data.errors import DataError
from tfmetarec.data.schema import Feature

# 2021-01-01 00:00:00 UTC, as `datetime` counts it.
NEW_YEAR = int(dt.datetime(2021, 1, 1, tzinfo=dt.UTC).timestamp())


@pytest.mark.parametrize(
    "times",
    [
        pl.Series([NEW_YEAR]),
        pl.Series([NEW_YEAR], dtype=pl.Int32),
        pl.Series([NEW_YEAR], dtype=pl.UInt64),
        pl.Series([NEW_YEAR + 0.75]),
        pl.Series([str(NEW_YEAR)]),
        pl.Series(["2021-01-01"]),
        pl.Series(["2021-01-01 00:00:00"]),
        pl.Series(["2021-01-01T00:00:00.25Z"]),
        pl.Series(["2021-01-01T02:00:00+02:00"]),
        pl.Series([dt.date(2021, 1, 1)]),
        pl.Series([dt.datetime(2021, 1, 1)]),
        pl.Series([dt.datetime(2021, 1, 1)]).cast(pl.Datetime("ns")),
        pl.Series([dt.datetime(2021, 1, 1)]).dt.replace_time_zone("UTC"),
        pl.Series([dt.datetime(2021, 1, 1, 1)]).dt.replace_time_zone("Europe/Berlin"),
    ],
    ids=lambda times: f"{times.dtype}-{times[0]}",
)
def test_every_way_to_write_a_time_gives_the_same_second(times):
    seconds = typed_timestamps(times.alias("timestamp"))
    assert seconds.dtype == pl.Int64
    assert seconds.to_list() == [NEW_YEAR]


def test_a_column_may_mix_iso_dates_and_times():
    times = ["2021-01-01", "2021-01-01 00:00:05", "2021-01-01T00:00:00-01:00", "2021-01-01T00:01"]
    seconds = [NEW_YEAR, NEW_YEAR + 5, NEW_YEAR + 3600, NEW_YEAR + 60]
    for first in range(4):  # Whichever comes first, from which a reader might guess.
        rolled = pl.Series("timestamp", times[first:] + times[:first])
        assert typed_timestamps(rolled).to_list() == seconds[first:] + seconds[:first]


@pytest.mark.parametrize(
    ("times", "message"),
    [
        ([5, None], "`timestamp` must not be null. Received: None in row 1, 1 such rows in all"),
        ([-1, 5], "`timestamp` must not lie before 1970. Received: -1 in row 0"),
        (["1969-12-31"], "`timestamp` must not lie before 1970. Received: '1969-12-31'"),
        ([1_600_000_000_000], "past 10^11, which look like milliseconds. Received: 1600000000000 in row 0"),
        ([1.6e12], "look like milliseconds"),
        (["1600000000000"], "look like milliseconds"),
        ([2**64 - 1], "look like milliseconds"),
        ([float("nan")], "`timestamp` must be a finite number of seconds. Received: nan"),
        (["2021-01-01", "yesterday"], "an ISO date or a datetime. Received: 'yesterday' in row 1, 1 such"),
        (["01/02/2021"], "must be seconds since 1970, an ISO date or a datetime. Received: '01/02/2021'"),
        ([True], "Received the type Boolean, such as True"),
    ],
)
def test_what_is_no_time_in_seconds_is_refused(times, message):
    dtype = pl.UInt64 if times == [2**64 - 1] else None
    with pytest.raises(DataError, match=re.escape(message)):
        typed_timestamps(pl.Series("timestamp", times, dtype=dtype))


@pytest.mark.parametrize("labels", [[1, 0], [1.0, 0.0], [True, False]])
def test_labels_become_floats(labels):
    typed = typed_labels(pl.Series("label", labels))
    assert typed.dtype == pl.Float32
    assert typed.to_list() == [1.0, 0.0]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([1.0, None], "`label` must be a finite number. Received: None in row 1, 1 such rows in all"),
        ([float("nan"), 1.0, float("-inf")], "Received: nan in row 0, 2 such rows in all"),
        ([1e300], "`label` must be a finite number. Received: 1e+300"),
        (["5", "4"], "`label` must hold numbers. Received the type String, such as '5'"),
    ],
)
def test_labels_that_are_no_finite_numbers_are_refused(labels, message):
    with pytest.raises(DataError, match=re.escape(message)):
        typed_labels(pl.Series("label", labels))


def test_ids_are_whole_numbers_or_strings():
    assert typed_ids(pl.Series("user_id", [1], dtype=pl.UInt8), "`table`").dtype == pl.Int64
    assert typed_ids(pl.Series("user_id", ["a"], dtype=pl.Categorical), "`table`").dtype == pl.String


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (pl.Series([1, None]), "`user_id` of `table` must not be null. Received: None in row 1"),
        (pl.Series(["a", ""]), "`user_id` of `table` must not be an empty string. Received: '' in row 1"),
        (pl.Series([1.0]), "must hold whole numbers or strings. Received the type Float64"),
        (
            pl.Series([2**63], dtype=pl.UInt64),
            "holds whole numbers past 2^63 - 1, such as 9223372036854775808",
        ),
    ],
)
def test_other_ids_are_refused(ids, message):
    with pytest.raises(DataError, match=re.escape(message)):
        typed_ids(ids.alias("user_id"), "`table`")


@pytest.mark.parametrize(
    ("kind", "values", "expected", "dtype"),
    [
        ("category", [True, None], ["true", None], pl.String),
        ("category", [7, None], [7, None], pl.Int64),
        ("category", [7.0, float("nan")], [7, None], pl.Int64),
        ("category_list", ["a| b", "", None], [["a", "b"], [], None], pl.List(pl.String)),
        ("category_list", [["a", None], []], [["a"], []], pl.List(pl.String)),
        ("category_list", [[1], [2, 3]], [[1], [2, 3]], pl.List(pl.Int64)),
        ("number", [1.5, float("nan"), None], [1.5, None, None], pl.Float64),
        ("number", ["3", "4.5"], [3.0, 4.5], pl.Float64),
        ("text", ["a b", None], ["a b", None], pl.String),
        ("vector", [[1, 2], [3, 4]], [[1.0, 2.0], [3.0, 4.0]], pl.Array(pl.Float32, 2)),
        ("vector", [[0.5], None], [[0.5], None], pl.Array(pl.Float32, 1)),
    ],
)
def test_each_kind_has_one_type_and_keeps_what_is_not_known(kind, values, expected, dtype):
    typed = typed_feature(pl.Series("x", values), Feature("x", kind), list_separator="|")
    assert typed.dtype == dtype
    assert [v.to_list() if isinstance(v, pl.Series) else v for v in typed] == expected


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        (
            "category",
            [1.5],
            "Feature 'x' is a 'category' and must hold words or whole numbers. Received: 1.5",
        ),
        ("category", [["a"]], "Received the type List(String)"),
        ("category_list", ["a|b"], "`list_separator` must say what they are split by, such as 'a|b'"),
        ("category_list", [[0.5]], "must hold lists of words or of whole numbers"),
        ("number", ["3", "many"], "must hold finite numbers. Received: 'many' in row 1, 1 such rows in all"),
        ("number", [1.0, float("inf")], "must hold finite numbers. Received: inf in row 1"),
        ("number", [dt.date(2020, 1, 1)], "must hold finite numbers. Received the type Date"),
        ("text", [1], "Feature 'x' is a 'text' and must hold strings. Received the type Int64"),
        ("vector", [[1.0, 2.0], [1.0]], "all of one length. Received: [1.0] in row 1"),
        ("vector", [[1.0], [float("nan")]], "must hold finite numbers. Received: [nan] in row 1"),
        ("vector", [[1.0, None]], "must hold finite numbers. Received: [1.0, None] in row 0"),
        ("vector", [1.0], "Received the type Float64"),
    ],
)
def test_values_that_do_not_fit_their_kind_are_refused(kind, values, message):
    with pytest.raises(DataError, match=re.escape(message)):
        typed_feature(pl.Series("x", values), Feature("x", kind))
