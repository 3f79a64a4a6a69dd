import importlib
import re
from pathlib import Path

import pytest
from polars.testing import assert_frame_equal

from tfmetarec.data import sources
from tfmetarec.data.errors import DataError


def test_every_file_of_the_folder_is_a_source_with_one_line_about_it():
    folder = Path(sources.__file__).parent
    assert set(sources.available()) == {file.stem for file in folder.glob("*.py")} - {"__init__"}
    for name, line in sources.available().items():
        assert line.endswith("."), name
        assert callable(importlib.import_module(f"tfmetarec.data.sources.{name}").load)


def test_a_source_is_loaded_by_name_with_its_options():
    direct = importlib.import_module("tfmetarec.data.sources.synthetic").load(n_users=3, seed=7)
    assert_frame_equal(sources.load("synthetic", n_users=3, seed=7).table, direct.table)


def test_an_unknown_source_is_met_with_the_nearest_and_the_list():
    message = (
        "`name` must be one of completejourney, douban_cdr, files, movielens, synthetic; "
        "the nearest name is 'movielens'. Received: name='movie_lens'"
    )
    with pytest.raises(DataError, match=re.escape(message)):
        sources.load("movie_lens")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "synthetic",
            {"n_user": 3},
            "the data set 'synthetic' has no option 'n_user'; the nearest name is 'n_users'. It takes: n_users, n_items,",
        ),
        ("files", {}, "the data set 'files' needs the option 'mapping'. It takes: mapping"),
    ],
)
def test_options_that_a_source_does_not_take_or_lacks_are_named(name, options, message):
    with pytest.raises(DataError, match=re.escape(message)):
        sources.load(name, **options)


def test_files_are_a_source_too(tmp_path):
    (tmp_path / "events.csv").write_text("u,i\n1,2\n")
    mapping = {
        "feedback": "implicit",
        "interactions": {"path": str(tmp_path / "events.csv"), "user_id": "u", "item_id": "i"},
    }
    assert sources.load("files", mapping=mapping).table.rows() == [(1, 2, 1.0)]
