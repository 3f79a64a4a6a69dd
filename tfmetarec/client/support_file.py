"""A file with what one user met."""

from pathlib import Path
from typing import Any

import polars as pl

_READERS = {".csv": "csv", ".tsv": "csv", ".parquet": "parquet", ".jsonl": "json lines", ".ndjson": "json lines"}


def read_support(path: str | Path) -> tuple[list[Any], list[float] | None]:
    """Reads the interactions of one user from a file, one a row, oldest first.

    Args:
        path: .csv, .tsv, .parquet, .jsonl or .ndjson with the columns `item_id` and, if wanted, `label`; other
            columns are not read. Ids in CSV stay text: `Client` makes numbers of them where the model's are.

    Returns:
        Items, and labels or `None` if the file has none.

    Raises:
        ValueError: if the file cannot be read, lacks `item_id`, has a row without an id or label, or has a column
            `rating` instead of `label`.
    """
    path = Path(path)
    kind = _READERS.get(path.suffix.lower())
    if kind is None:
        raise ValueError(f"A support file must end in {', '.join(_READERS)}. Received: {str(path)!r}")
    try:
        frame = _read(path, kind)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise ValueError(f"{path} cannot be read: {str(error).splitlines()[0]}") from error
    if "item_id" not in frame.columns:
        raise ValueError(f"{path} must have the column 'item_id'. Received the columns {frame.columns}")
    for column in [name for name in ("item_id", "label") if name in frame.columns]:
        if (missing := frame[column].is_null()).any():
            row = missing.arg_true()[0] + 1
            raise ValueError(f"`{column}` of {path} must be there in every row. Row {row} has none")
    if "label" not in frame.columns:
        if "rating" in frame.columns:  # Every rating would count as 1 without a word.
            raise ValueError(f"{path} must call its ratings 'label'. Received the columns {frame.columns}")
        return frame["item_id"].to_list(), None
    try:
        return frame["item_id"].to_list(), frame["label"].cast(pl.Float64).to_list()
    except pl.exceptions.PolarsError:
        raise ValueError(f"`label` of {path} must hold numbers. Received: {frame['label'].dtype}") from None


def _read(path: Path, kind: str) -> pl.DataFrame:
    if kind == "parquet":
        return pl.read_parquet(path, glob=False)
    if kind == "json lines":
        return pl.read_ndjson(path, infer_schema_length=None)
    separator = "\t" if path.suffix.lower() == ".tsv" else ","
    # As text: a number would drop the zeros of the id 007.
    return pl.read_csv(path, separator=separator, infer_schema=False, glob=False)
