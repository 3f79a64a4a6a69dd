import os
import re
from pathlib import Path

import polars as pl
import pytest

from tfmetarec.data.errors import DataError
from tfmetarec.data.sources import douban_cdr

COPY = Path(os.environ.get("TFMETAREC_TEST_DATA") or "no-such-folder") / "douban_cdr"


def write(folder, domain, rows):
    columns = ["user_id", "item_id", "rating"]
    pl.DataFrame(rows, schema=columns, orient="row").write_parquet(folder / f"{domain}.parquet")


@pytest.fixture
def folder(tmp_path):
    write(tmp_path, "book", [(1, 0, 5), (2, 0, 3)])
    write(tmp_path, "music", [(2, 0, 1)])
    return tmp_path


def test_people_are_shared_and_item_numbers_are_not(folder):
    made = douban_cdr.load(folder)
    assert made.table.rows() == [
        (1, "book-0", 5.0, "book"),
        (2, "book-0", 3.0, "book"),
        (2, "music-0", 1.0, "music"),
    ]
    assert (made.schema.feedback, made.name) == ("explicit", "douban_cdr")


def test_a_missing_file_is_named(folder):
    (folder / "music.parquet").unlink()
    with pytest.raises(DataError, match=r"`folder` must have the file music\.parquet"):
        douban_cdr.load(folder)


def test_a_missing_column_is_named(folder):
    pl.DataFrame({"user_id": [1], "item": [2], "rating": [3]}).write_parquet(folder / "book.parquet")
    message = "must have the columns user_id, item_id, rating. Received: user_id, item, rating"
    with pytest.raises(DataError, match=re.escape(message)):
        douban_cdr.load(folder)


def test_files_whose_ids_differ_in_type_are_refused(folder):
    write(folder, "music", [("two", 0, 1)])
    with pytest.raises(DataError, match="the files of `folder` must have columns of one type"):
        douban_cdr.load(folder)


@pytest.mark.skipif(not COPY.is_dir(), reason="needs TFMETAREC_TEST_DATA, a folder with a copy of douban_cdr")
def test_the_real_copy_has_the_published_counts():
    made = douban_cdr.load(COPY)
    books, music = (made.filter(pl.col("domain") == domain) for domain in douban_cdr.DOMAINS)
    assert (books.n_users, books.n_items, len(books)) == (2_110, 6_777, 96_041)
    assert (music.n_users, music.n_items, len(music)) == (1_672, 5_567, 69_709)
    assert len(set(books.table["user_id"]) & set(music.table["user_id"])) == 1_566
