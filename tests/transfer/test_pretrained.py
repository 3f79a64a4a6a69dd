import numpy as np
import polars as pl
import pytest

import tfmetarec as tmr
from tfmetarec.data.errors import DataError
from tfmetarec.transfer.pretrained import ItemVectors, unit_length, vectors_of_catalogue, with_vectors


def shop(ids=(1, 2, 3, 4), features=True):
    """Four users who bought two neighbouring items each; the last item is nobody's."""
    table = pl.DataFrame({"user_id": [1, 1, 2, 2, 3, 3], "item_id": [ids[n] for n in (0, 1, 1, 2, 0, 2)]})
    items = pl.DataFrame({"item_id": list(ids), "brand": ["A", "B", "A", "B"]}) if features else None
    return tmr.data.Interactions.from_frames(table, items=items, feedback="implicit")


VECTORS = ItemVectors([3, 1, 9], [[3.0, 4.0], [1.0, 0.0], [0.0, 9.0]])


def test_vectors_are_found_by_id_and_zeros_stand_for_an_item_without():
    assert VECTORS.of([9, 2, 3]).tolist() == [[0.0, 9.0], [0.0, 0.0], [3.0, 4.0]]
    assert VECTORS.has([9, 2, 3]).tolist() == [True, False, True]
    assert (len(VECTORS), VECTORS.width) == (3, 2)
    assert VECTORS.of([]).shape == (0, 2)


def test_rows_of_zeros_or_nan_are_items_without_a_vector():
    vectors = ItemVectors(["a", "b", "c", "d"], [[0.0, 0.0], [np.nan, 1.0], [1.0, np.inf], [0.0, 1.0]])
    assert vectors.item_ids.tolist() == ["d"]
    assert vectors.has(["a", "b", "c", "d"]).tolist() == [False, False, False, True]


def test_normalized_vectors_have_length_one():
    assert VECTORS.normalized().of([3, 9]).tolist() == [[np.float32(0.6), np.float32(0.8)], [0.0, 1.0]]
    assert unit_length(np.array([[0.0, 0.0]])).tolist() == [[0.0, 0.0]]


@pytest.mark.parametrize("ids", [[1, 2], ["première", "β"]])
def test_vectors_come_back_from_parquet(ids, tmp_path):
    vectors = ItemVectors(ids, [[1.5, 0.0], [0.0, 2.5]])
    vectors.to_parquet(tmp_path / "new" / "vectors.parquet")
    again = ItemVectors.from_parquet(tmp_path / "new" / "vectors.parquet")
    assert again.item_ids.tolist() == vectors.item_ids.tolist()
    np.testing.assert_array_equal(again.vectors, vectors.vectors)


def test_parquet_files_of_others_are_read_by_their_columns_with_missing_vectors(tmp_path):
    file = tmp_path / "images.parquet"
    frame = pl.DataFrame({"sku": ["x", "y", "z"], "resnet": [[1.0, 2.0], None, [0.0, 0.5]]})
    frame.write_parquet(file)
    images = ItemVectors.from_parquet(file, id_column="sku", vector_column="resnet")
    assert images.of(["x", "y", "z"]).tolist() == [[1.0, 2.0], [0.0, 0.0], [0.0, 0.5]]
    with pytest.raises(DataError, match="must have the column 'resent'; the nearest name is 'resnet'"):
        ItemVectors.from_parquet(file, id_column="sku", vector_column="resent")
    with pytest.raises(DataError, match="'sku' of .* must hold lists of numbers. Received the type String"):
        ItemVectors.from_parquet(file, id_column="sku", vector_column="sku")
    pl.DataFrame({"item_id": [1, 2], "vector": [[1.0], [1.0, 2.0]]}).write_parquet(file)
    with pytest.raises(DataError, match=r"must hold lists of one length. Received \[1, 2\]"):
        ItemVectors.from_parquet(file)
    pl.DataFrame({"item_id": [1, 2], "vector": [["a"], ["b"]]}).write_parquet(file)
    with pytest.raises(DataError, match=r"must hold lists of numbers. Received the type List\(String\)"):
        ItemVectors.from_parquet(file)
    with pytest.raises(DataError, match="cannot be read"):
        ItemVectors.from_parquet(tmp_path / "nowhere.parquet")


def test_arrays_of_ids_and_vectors_are_read_and_pickles_refused(tmp_path):
    np.save(tmp_path / "ids.npy", np.array(["b", "a"]))
    np.save(tmp_path / "vectors.npy", np.array([[1.0], [2.0]], np.float16))
    assert ItemVectors.from_npy(tmp_path / "vectors.npy", tmp_path / "ids.npy").of(["a", "b"]).tolist() == [
        [2.0],
        [1.0],
    ]
    np.save(tmp_path / "ids.npy", np.array(["b", 1], object), allow_pickle=True)
    with pytest.raises(DataError, match=r"ids.npy' cannot be read as an array"):
        ItemVectors.from_npy(tmp_path / "vectors.npy", tmp_path / "ids.npy")


@pytest.mark.parametrize(
    ("ids", "vectors", "message"),
    [
        ([1, 2, 3], [[1.0], [2.0]], r"must be as many. Received: item_ids \(3,\), vectors \(2, 1\)"),
        ([1, 2], [1.0, 2.0], r"must be numbers of shape \(N, D\). Received: shape \(2,\)"),
        ([1], np.ones((1, 0)), r"must be numbers of shape \(N, D\). Received: shape \(1, 0\)"),
        ([1, 1], [[1.0], [2.0]], "must hold each id once. Received 1 more than once"),
        ([1, 2], [[0.0], [np.nan]], "neither zeros nor NaN. Received 2 others"),
        ([1.5], [[1.0]], "`item_ids` must be whole numbers or strings. Received the type float64"),
        ([None], [[1.0]], "`item_ids` must be whole numbers or strings. Received the type object"),
    ],
)
def test_ids_and_vectors_that_do_not_fit_are_refused(ids, vectors, message):
    with pytest.raises(DataError, match=message):
        ItemVectors(np.array(ids), np.array(vectors))


def test_a_vector_feature_joins_and_items_without_one_have_none():
    joined = with_vectors(shop(), "look", VECTORS)
    assert joined.schema.item[-1] == tmr.data.Feature("look", "vector")
    found = dict(zip(joined.items["item_id"], joined.items["look"].to_list(), strict=True))
    assert found == {1: [1.0, 0.0], 2: None, 3: [3.0, 4.0], 4: None, 9: [0.0, 9.0]}
    # Nothing else has changed, and an item nobody has touched has come to the table of items.
    assert joined.items["brand"].to_list() == ["A", "B", "A", "B", None]
    assert joined.table.equals(shop().table)


def test_a_vocabulary_encodes_the_feature_with_zeros_for_missing_and_new_items():
    joined = with_vectors(shop(), "look", VECTORS)
    vocabulary = tmr.data.Vocabulary.fit(joined)
    assert next(spec for spec in vocabulary.specs.item if spec.name == "look").size == 2
    assert vocabulary.catalogue["look"].tolist() == [[0.0, 0.0], [1.0, 0.0], [0.0, 0.0], [3.0, 4.0]]
    encoded = vocabulary.encode_items(joined, pl.Series([9, 77]))
    assert (encoded["item_id"].tolist(), encoded["look"].tolist()) == ([0, 0], [[0.0, 9.0], [0.0, 0.0]])


def test_interactions_without_a_table_of_items_get_one():
    joined = with_vectors(shop(features=False), "look", VECTORS)
    assert joined.items.columns == ["item_id", "look"]
    assert joined.items["item_id"].to_list() == [1, 2, 3, 9]
    twice = with_vectors(joined, "sound", ItemVectors([2], [[5.0]]))
    assert [feature.name for feature in twice.schema.item] == ["item_id", "look", "sound"]


def test_all_parts_of_a_split_get_the_feature():
    data = tmr.data.load("synthetic", n_users=30, n_items=12, interactions_per_user=3, seed=0)
    split = with_vectors(tmr.data.cold_users(data, seed=0), "look", ItemVectors([0], [[1.0]]))
    assert set(split.parts) == {"train", "validation", "test"}
    assert all(part.schema.item[-1].name == "look" for part in split.parts.values())


def test_features_that_would_collide_or_say_nothing_are_refused():
    with pytest.raises(DataError, match="must not be the name of a feature yet. Received: name='brand'"):
        with_vectors(shop(), "brand", VECTORS)
    with pytest.raises(DataError, match="Received 1 vectors, such as of 77, and 4 items without one, such as 1"):
        with_vectors(shop(), "look", ItemVectors([77], [[1.0]]))
    with pytest.raises(DataError, match="ids must be of one type; .* Received whole numbers, and vectors of strings"):
        with_vectors(shop(), "look", ItemVectors(["1"], [[1.0]]))


def test_vectors_stand_in_the_order_of_the_catalogue():
    vocabulary = tmr.data.Vocabulary.fit(shop())
    assert vectors_of_catalogue(VECTORS, vocabulary).tolist() == [[0.0, 0.0], [1.0, 0.0], [0.0, 0.0], [3.0, 4.0]]
    with pytest.raises(DataError, match="Received 1 vectors and 3 items without one in common"):
        vectors_of_catalogue(ItemVectors([77], [[1.0]]), vocabulary)
    words = tmr.data.Vocabulary.fit(shop(ids=("a", "b", "c", "d")))
    with pytest.raises(DataError, match="Received strings, and vectors of whole numbers"):
        vectors_of_catalogue(VECTORS, words)
