"""Checks and casts one column at a time, so that every later step may trust its types.

Each function takes a polars Series and returns it in the one type that the package uses, or raises a
`DataError` that names the column, what was wrong and the first value that was.
"""

import polars as pl

from tfmetarec.data.errors import DataError
from tfmetarec.data.schema import Feature

# 10^11 seconds lie in the year 5138, 10^11 milliseconds in 1973: no log has both.
_LARGEST_SECOND = 10**11

_ISO_PATTERNS = (
    None,
    "%+",
    "%Y-%m-%d",
    "%Y-%m-%d %H:%M:%S%.f",
    "%Y-%m-%dT%H:%M:%S%.f",
    "%Y-%m-%d %H:%M",
    "%Y-%m-%dT%H:%M",
)


def typed_ids(ids: pl.Series, where: str) -> pl.Series:
    """Returns ids as Int64 or String.

    Args:
        ids: Series of whole numbers or words.
        where: str. The table they come from, for the message.

    Raises:
        DataError: if the type is another one, or an id is null or an empty string.
    """
    _refuse(ids, ids.is_null(), f"`{ids.name}` of {where} must not be null")
    if ids.dtype.is_integer():
        try:
            return ids.cast(pl.Int64)
        except pl.exceptions.PolarsError as error:
            raise DataError(
                f"`{ids.name}` of {where} holds whole numbers past 2^63 - 1, such as {ids.max()!r}; "
                "cast the column to strings"
            ) from error
    if isinstance(ids.dtype, pl.String | pl.Categorical | pl.Enum):
        ids = ids.cast(pl.String)
        _refuse(ids, ids == "", f"`{ids.name}` of {where} must not be an empty string")
        return ids
    raise DataError(f"`{ids.name}` of {where} must hold whole numbers or strings. Received the type {ids.dtype}")


def typed_labels(labels: pl.Series) -> pl.Series:
    """Returns labels as Float32.

    Raises:
        DataError: if the column is not numeric, or a label is null, NaN or infinite.
    """
    if not (labels.dtype.is_numeric() or isinstance(labels.dtype, pl.Boolean)):
        raise DataError(f"`{labels.name}` must hold numbers. Received the type {labels.dtype}{_example(labels)}")
    as_float = labels.cast(pl.Float32)
    _refuse(labels, ~as_float.is_finite().fill_null(False), f"`{labels.name}` must be a finite number")
    return as_float


def typed_timestamps(timestamps: pl.Series) -> pl.Series:
    """Returns times as Int64 seconds since 1970-01-01 UTC.

    Numbers are seconds; fractions are cut off. Strings are ISO dates or times. Dates and times without a zone
    are taken to be UTC.

    Raises:
        DataError: if a time is null, negative, not a time, or so large that it must be milliseconds.
    """
    name = timestamps.name
    rule = f"`{name}` must be seconds since 1970, an ISO date or a datetime"
    _refuse(timestamps, timestamps.is_null(), f"`{name}` must not be null")
    dtype = timestamps.dtype
    if isinstance(dtype, pl.String):
        seconds = _seconds_of_strings(timestamps)
        _refuse(timestamps, seconds.is_null(), rule)
    elif isinstance(dtype, pl.Date | pl.Datetime):
        # `dt.epoch("s")` truncates towards zero, which only differs before 1970, where times are refused.
        seconds = timestamps.dt.epoch("s")
    elif dtype.is_float() or dtype.is_decimal():
        numbers = timestamps.cast(pl.Float64)
        _refuse(timestamps, ~numbers.is_finite(), f"`{name}` must be a finite number of seconds")
        _refuse(timestamps, numbers > _LARGEST_SECOND, _milliseconds(name))
        seconds = numbers.floor().cast(pl.Int64, strict=False)
    elif dtype.is_integer():
        seconds = timestamps.cast(pl.Int64, strict=False)  # An Int32 column cannot be compared with 10^11.
        _refuse(timestamps, seconds.is_null(), _milliseconds(name))
    else:
        raise DataError(f"{rule}. Received the type {dtype}{_example(timestamps)}")
    _refuse(timestamps, seconds > _LARGEST_SECOND, _milliseconds(name))
    _refuse(timestamps, seconds < 0, f"`{name}` must not lie before 1970")
    return seconds


def typed_feature(values: pl.Series, feature: Feature, list_separator: str | None = None) -> pl.Series:
    """Returns a feature's column in the one type of its kind; null stays null and means "not known".

    | kind | type |
    | --- | --- |
    | id | Int64 or String |
    | category | Int64 or String; true and false become "true" and "false" |
    | category_list | List(Int64) or List(String), without nulls inside |
    | number | Float64; NaN becomes null |
    | text | String |
    | vector | Array(Float32, size) |

    Args:
        values: Series.
        feature: `Feature`. Its name and kind.
        list_separator: str, optional. Splits the strings of a `category_list`.

    Raises:
        DataError: if the values do not fit the kind.
    """
    cast = {
        "category": _category,
        "number": _number,
        "text": _text,
        "vector": _vector,
    }
    if feature.kind == "id":
        return typed_ids(values, "the feature table")
    if feature.kind == "category_list":
        return _category_list(values, list_separator)
    return cast[feature.kind](values)


def _category(values: pl.Series) -> pl.Series:
    dtype = values.dtype
    if dtype.is_integer():
        return values.cast(pl.Int64)
    if isinstance(dtype, pl.String | pl.Categorical | pl.Enum | pl.Boolean | pl.Null):
        return values.cast(pl.String)
    if dtype.is_float():  # Where pandas met a missing value, whole numbers arrive as floats.
        values = values.fill_nan(None)
        _refuse(values, values != values.floor(), _misfit(values, "category", "words or whole numbers"))
        return values.cast(pl.Int64)
    raise DataError(f"{_misfit(values, 'category', 'words or whole numbers')}. Received the type {dtype}")


def _category_list(values: pl.Series, separator: str | None) -> pl.Series:
    dtype = values.dtype
    if isinstance(dtype, pl.String | pl.Null):
        if separator is None:
            raise DataError(
                f"Feature {values.name!r} is a 'category_list' written as strings; `list_separator` must say "
                f"what they are split by{_example(values)}"
            )
        frame = values.cast(pl.String).to_frame()
        parts = pl.col(values.name).str.split(separator)
        parts = parts.list.eval(pl.element().str.strip_chars())
        return frame.select(parts.list.eval(pl.element().filter(pl.element() != ""))).to_series()
    if isinstance(dtype, pl.List | pl.Array):
        if dtype.inner.is_integer():
            return values.cast(pl.List(pl.Int64)).list.drop_nulls()
        if isinstance(dtype.inner, pl.String | pl.Categorical | pl.Enum | pl.Null):
            return values.cast(pl.List(pl.String)).list.drop_nulls()
    rule = _misfit(values, "category_list", "lists of words or of whole numbers")
    raise DataError(f"{rule}. Received the type {dtype}")


def _number(values: pl.Series) -> pl.Series:
    dtype = values.dtype
    rule = _misfit(values, "number", "finite numbers")
    if not (dtype.is_numeric() or isinstance(dtype, pl.String | pl.Boolean | pl.Null)):
        raise DataError(f"{rule}. Received the type {dtype}")
    numbers = values.cast(pl.Float64, strict=False)
    _refuse(values, numbers.is_null() & values.is_not_null(), rule)
    numbers = numbers.fill_nan(None)
    _refuse(values, numbers.is_infinite(), rule)
    return numbers


def _text(values: pl.Series) -> pl.Series:
    if isinstance(values.dtype, pl.String | pl.Categorical | pl.Enum | pl.Null):
        return values.cast(pl.String)
    raise DataError(f"{_misfit(values, 'text', 'strings')}. Received the type {values.dtype}")


def _vector(values: pl.Series) -> pl.Series:
    dtype = values.dtype
    rule = _misfit(values, "vector", "lists of numbers, all of one length")
    if not isinstance(dtype, pl.List | pl.Array) or not dtype.inner.is_numeric():
        raise DataError(f"{rule}. Received the type {dtype}")
    lists = values.cast(pl.List(pl.Float32))
    size = lists.list.len().max()
    if not isinstance(size, int) or size == 0:
        raise DataError(f"{rule}. Received no values at all")
    _refuse(values, lists.list.len() != size, rule)
    whole = lists.list.eval(pl.element().is_finite().fill_null(False)).list.all()
    _refuse(values, ~whole, f"{_misfit(values, 'vector', 'finite numbers')}")
    return lists.cast(pl.Array(pl.Float32, size))


def _seconds_of_strings(timestamps: pl.Series) -> pl.Series:
    """Reads numbers, else ISO times; null where neither fits."""
    numbers = timestamps.cast(pl.Float64, strict=False)
    if numbers.null_count() == 0 and numbers.is_finite().all():
        return numbers.floor().cast(pl.Int64, strict=False)
    # Only year first: polars would read 01/02/2020 too, as the 1st of February whoever wrote it.
    iso = timestamps.to_frame().select(pl.when(pl.all().str.contains(r"^\d{4}-\d{2}-\d{2}")).then(pl.all()))
    # The pattern that polars guesses from the first time mostly fits all; the others are for mixed columns.
    seconds = pl.repeat(None, len(timestamps), dtype=pl.Int64, eager=True)
    for pattern in _ISO_PATTERNS:
        if seconds.null_count() == 0:
            break
        read = iso.to_series().str.to_datetime(pattern, time_unit="us", time_zone="UTC", strict=False)
        seconds = seconds.fill_null(read.dt.epoch("s"))
    return seconds


def _milliseconds(name: str) -> str:
    return f"`{name}` must be in seconds, but holds values past 10^11, which look like milliseconds"


def _misfit(values: pl.Series, kind: str, rule: str) -> str:
    return f"Feature {values.name!r} is a {kind!r} and must hold {rule}"


def _refuse(values: pl.Series, wrong: pl.Series, rule: str) -> None:
    """Raises with the rule, how many values break it and the first of them."""
    wrong = wrong.fill_null(False)
    count = int(wrong.sum())
    if count:
        first = wrong.arg_max() or 0
        value = values[first]
        value = value.to_list() if isinstance(value, pl.Series) else value
        raise DataError(f"{rule}. Received: {value!r} in row {first}, {count:,} such rows in all")


def _example(values: pl.Series) -> str:
    known = values.drop_nulls()
    return f", such as {known[0]!r}" if len(known) else ""
