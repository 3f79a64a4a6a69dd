import numpy as np
import polars as pl
import pytest

import tfmetarec as tmr
from tfmetarec.data import DataError

ABOUT = pl.DataFrame(
    {
        "item_id": [3, 7],
        "title": ["Three", None],
        "brand": ["Acme", "Bolt"],
        "tags": [["a", "b"], []],
        "price": [1.0, 3.0],
        "look": pl.Series([[1.0, 0.0], [0.0, 1.0]], dtype=pl.Array(pl.Float32, 2)),
    }
)


@pytest.fixture(scope="module")
def vocabulary():
    table = pl.DataFrame({"user_id": [1, 1, 2], "item_id": [3, 7, 7]})
    data = tmr.data.Interactions.from_frames(table, items=ABOUT, feedback="implicit", item_name="title", name="shop")
    return tmr.data.Vocabulary.fit(data)


def test_items_are_added_at_the_end_without_a_row_for_a_model(vocabulary):
    new = pl.DataFrame({"item_id": [5, 1], "title": [None, "One"], "brand": ["Bolt", "Unheard"], "price": [2.0, None]})
    grown = vocabulary.with_items(new)
    assert grown.item_ids.tolist() == [0, 3, 7, 5, 1]
    assert grown.item_names == ["?", "Three", "7", "5", "One"]
    assert grown.item_rows([1, 3, 5, 7, 9]).tolist() == [4, 1, 3, 2, 0]
    assert grown.rows("item", "item_id", np.array([1, 3, 5, 7, 9])).numpy().tolist() == [4, 1, 3, 2, 0]
    assert grown.catalogue["item_id"].tolist() == [0, 1, 2, 0, 0]
    assert grown.catalogue["brand"].tolist() == [0, 1, 2, 2, 0]
    assert grown.catalogue["price"][3:].tolist() == [0.0, 0.0]  # 2 is the mean, and so is what is missing.
    assert grown.popularity.tolist() == [0, 1, 2, 0, 0]
    assert grown.specs == vocabulary.specs
    assert vocabulary.n_items == 3


def test_a_request_for_an_added_item_is_encoded_as_an_item_without_a_row(vocabulary):
    grown = vocabulary.with_items(pl.DataFrame({"item_id": [5], "price": [4.0]}))
    raw = {"item_id": np.array([7, 5]), "brand": np.array(["", ""]), "price": np.float32([1, 1])}
    raw |= {"tags": np.array([[""], [""]]), "tags_length": np.int32([0, 0]), "look": np.zeros((2, 2), "f")}
    assert grown.encode("item", raw)["item_id"].numpy().tolist() == [2, 0]


def test_added_items_survive_saving_and_can_be_added_to(vocabulary, tmp_path):
    vocabulary.with_items(pl.DataFrame({"item_id": [5], "tags": [["b"]]})).save(tmp_path)
    grown = tmr.data.Vocabulary.load(tmp_path).with_items(pl.DataFrame({"item_id": [4], "tags": [["a"]]}))
    assert grown.item_ids.tolist() == [0, 3, 7, 5, 4]
    assert grown.catalogue["tags"][3:, 0].tolist() == [2, 1]


def test_a_feature_that_no_new_item_has_says_nothing(vocabulary):
    grown = vocabulary.with_items(pl.DataFrame({"item_id": [5], "tags": [None], "look": [None], "price": [4.0]}))
    assert grown.catalogue["tags_length"].tolist() == [0, 2, 0, 0]
    assert grown.catalogue["look"][3].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet", ".jsonl"])
def test_files_of_every_format_say_the_same(vocabulary, tmp_path, suffix):
    path = tmp_path / f"new{suffix}"
    frame = pl.DataFrame(
        {"item_id": [5, 6], "brand": ["Acme", None], "tags": [["b", "a"], ["a"]], "price": [2.5, None]}
    )
    if suffix in (".csv", ".tsv"):
        frame = frame.with_columns(pl.col("tags").list.join("|"))
        frame.write_csv(path, separator="\t" if suffix == ".tsv" else ",")
    elif suffix == ".parquet":
        frame.write_parquet(path)
    else:
        frame.write_ndjson(path)
    read = vocabulary.read_new_items(path)
    assert read["item_id"].to_list() == [5, 6]
    assert read["tags"].to_list() == [["b", "a"], ["a"]]
    assert read["price"].to_list() == [2.5, None]
    assert vocabulary.with_items(read).catalogue["tags"][3:, :2].tolist() == [[2, 1], [1, 0]]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"item_id": [3], "price": [1.0]},
            "new items must not be in the catalogue yet. Received 1 that are, such as 3",
        ),
        ({"item_id": [5, 5]}, "new items must have each item_id once. Received 5 more than once"),
        ({"item_id": [5], "prise": [1.0]}, "the nearest name is 'price'. Received: 'prise'"),
        ({"price": [1.0]}, "new items must have the column 'item_id', and rows. Received: 1 rows, columns ['price']"),
        ({"item_id": ["x"]}, "new items must have the types of the catalogue: "),
        ({"item_id": [5], "price": ["dear"]}, "Feature 'price' is a 'number' and must hold finite numbers."),
        ({"item_id": [5], "look": [[1.0, 2.0, 3.0]]}, "feature 'look' of new items must be of width 2. Received: 3"),
    ],
)
def test_items_that_do_not_fit_are_refused(vocabulary, columns, message):
    with pytest.raises(DataError) as refused:
        vocabulary.with_items(pl.DataFrame(columns))
    assert message in str(refused.value)


def test_a_catalogue_without_content_takes_no_items():
    table = pl.DataFrame({"user_id": [1, 1, 2], "item_id": [3, 7, 7]})
    vocabulary = tmr.data.Vocabulary.fit(tmr.data.Interactions.from_frames(table, feedback="implicit", name="shop"))
    with pytest.raises(
        DataError, match="items can be added to a catalogue with content features, and this one has none"
    ):
        vocabulary.with_items(pl.DataFrame({"item_id": [5]}))


def test_a_file_that_is_not_there_is_named(vocabulary, tmp_path):
    with pytest.raises(DataError, match=r"must match files. Received: 'nowhere.csv'"):
        vocabulary.read_new_items("nowhere.csv")
