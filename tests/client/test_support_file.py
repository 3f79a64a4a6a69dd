"""Files with what one user met."""

import re

import polars as pl
import pytest

from tfmetarec.client.support_file import read_support


@pytest.mark.parametrize("name", ["met.csv", "met.tsv", "met.parquet", "met.jsonl", "met.NDJSON"])
def test_reads_items_and_labels_in_their_order(tmp_path, name):
    frame = pl.DataFrame({"timestamp": [1, 2, 3], "item_id": ["b", "a", "c"], "label": [1, 5, 2]})
    kind = name.rpartition(".")[2].lower()
    if kind in ("csv", "tsv"):
        frame.write_csv(tmp_path / name, separator="," if kind == "csv" else "\t")
    elif kind == "parquet":
        frame.write_parquet(tmp_path / name)
    else:
        frame.write_ndjson(tmp_path / name)
    assert read_support(tmp_path / name) == (["b", "a", "c"], [1.0, 5.0, 2.0])


def test_ids_of_a_csv_stay_as_they_are_written(tmp_path):
    (tmp_path / "met.csv").write_text("item_id\n007\n12\n")
    assert read_support(tmp_path / "met.csv") == (["007", "12"], None)


def test_ids_of_other_files_keep_their_type(tmp_path):
    (tmp_path / "met.jsonl").write_text('{"item_id": 7}\n{"item_id": 12}\n')
    assert read_support(str(tmp_path / "met.jsonl")) == ([7, 12], None)


def test_a_user_may_have_met_nothing(tmp_path):
    (tmp_path / "met.csv").write_text("item_id,label\n")
    assert read_support(tmp_path / "met.csv") == ([], [])


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("met.txt", "", "A support file must end in .csv, .tsv, .parquet, .jsonl, .ndjson. Received: "),
        (
            "met.csv",
            "item,label\n1,2\n",
            "met.csv must have the column 'item_id'. Received the columns ['item', 'label']",
        ),
        ("met.csv", "item_id,label\n1,2\n2,\n", "`label` of {}/met.csv must be there in every row. Row 2 has none"),
        ("met.csv", "item_id,label\n,2\n", "`item_id` of {}/met.csv must be there in every row. Row 1 has none"),
        ("met.csv", "item_id,label\n1,good\n", "`label` of {}/met.csv must hold numbers. Received: String"),
        (
            "met.csv",
            "item_id,rating\n1,5\n",
            "met.csv must call its ratings 'label'. Received the columns ['item_id', 'rating']",
        ),
        ("met.csv", "", "met.csv cannot be read: "),
        ("met.jsonl", "{]", "met.jsonl cannot be read: "),
        ("met.parquet", "no", "met.parquet cannot be read: "),
    ],
)
def test_a_file_that_does_not_fit_is_told_in_one_sentence(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=re.escape(message.format(tmp_path))) as caught:
        read_support(tmp_path / name)
    assert len(str(caught.value).splitlines()) == 1


def test_a_file_that_is_not_there_is_told_in_one_sentence(tmp_path):
    for name in ("met.csv", "met.jsonl", "met.parquet"):
        with pytest.raises(ValueError, match=f"{name} cannot be read: "):
            read_support(tmp_path / name)
