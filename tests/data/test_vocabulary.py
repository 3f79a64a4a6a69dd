import json

import numpy as np
import polars as pl
import pytest
import tensorflow as tf

import tfmetarec as tmr
from tfmetarec.data import DataError, Interactions, Vocabulary

TABLE = pl.DataFrame({"user_id": ["ann", "ann", "bob", "cyd"], "item_id": [30, 10, 10, 20]})
USERS = pl.DataFrame(
    {"user_id": ["ann", "bob", "cyd"], "age": [20.0, 40.0, None], "likes": [["b", "a"], ["b", "c", "a"], None]}
)
ITEMS = pl.DataFrame(
    {
        "item_id": [10, 20, 30, 40],
        "brand": ["Zeta", None, "Alpha", "Never bought"],
        "tags": [["x", "y"], [], ["y"], ["z"]],
        "blurb": ["Große Äpfel, große Freude", "東京 tea", None, "apple"],
        "price": [1.0, 3.0, None, 99.0],
        "look": [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0], [7.0, 8.0]],
    }
)


def shop(table=TABLE, users=USERS, items=ITEMS, **options):
    kinds = {"blurb": "text"} if items is not None and "blurb" in items.columns else {}
    return Interactions.from_frames(
        table, users, items, feedback="implicit", kinds={**kinds, **options.pop("kinds", {})}, **options
    )


@pytest.fixture(scope="module")
def vocabulary():
    return Vocabulary.fit(shop())


def assert_same_features(first, second):
    assert set(first) == set(second)
    for name in first:
        np.testing.assert_array_equal(np.asarray(first[name]), np.asarray(second[name]), err_msg=name)
        assert np.asarray(first[name]).dtype == np.asarray(second[name]).dtype


def assert_same_vocabulary(first, second):
    assert first.specs == second.specs
    assert first.schema == second.schema
    assert (first.name, first.label_range, first.item_names) == (second.name, second.label_range, second.item_names)
    assert first.item_ids.dtype == second.item_ids.dtype
    assert first.item_ids.tolist() == second.item_ids.tolist()
    assert first.popularity.tolist() == second.popularity.tolist()
    assert_same_features(first.catalogue, second.catalogue)
    for side in ("user", "item"):
        assert first.id_dtype(side) == second.id_dtype(side)
        assert first.raw_signature(side) == second.raw_signature(side)
        for spec in getattr(first.specs, side):
            known, again = first.known_values(side, spec.name), second.known_values(side, spec.name)
            assert (known is None) == (again is None)
            assert known is None or known.tolist() == again.tolist()


# -- rows ----------------------------------------------------------------------------------------------------


def test_rows_begin_at_one_in_the_order_of_the_ids(vocabulary):
    assert vocabulary.item_ids.tolist() == [0, 10, 20, 30]
    assert vocabulary.n_items == 4
    assert vocabulary.item_rows([30, 10, 20]).tolist() == [3, 1, 2]
    assert vocabulary.item_ids[vocabulary.item_rows([[30], [10]])].tolist() == [[30], [10]]


def test_row_zero_is_whatever_was_never_seen(vocabulary):
    assert vocabulary.item_rows([0, 40, -7, 2**60]).tolist() == [0, 0, 0, 0]
    encoded = vocabulary.encode("item", {"item_id": [40, 10]}, only="item_id")
    assert encoded["item_id"].numpy().tolist() == [0, 1]
    raw = {"age": [1.0], "likes": [["unheard of"]], "likes_length": [1]}
    assert vocabulary.encode("user", raw)["likes"].numpy().tolist() == [[0, 0, 0]]


def test_ids_of_the_other_type_are_never_seen_rather_than_an_error(vocabulary):
    assert vocabulary.item_rows(["10", "x"]).tolist() == [0, 0]
    assert vocabulary.item_rows(np.array([1.5, 10.0])).tolist() == [0, 0]
    words = Vocabulary.fit(shop(TABLE.with_columns(pl.format("p{}", "item_id").alias("item_id")), items=None))
    assert words.item_rows([1, 2]).tolist() == [0, 0]
    assert words.item_rows(["p20", "p99", "p10"]).tolist() == [2, 0, 1]
    assert words.item_ids.tolist() == ["", "p10", "p20", "p30"]


def test_unsigned_ids_are_found(vocabulary):
    assert vocabulary.item_rows(np.array([10, 30], np.uint32)).tolist() == [1, 3]


def test_no_ids_give_no_rows(vocabulary):
    assert vocabulary.item_rows(np.zeros((2, 0), np.int64)).shape == (2, 0)


def test_popularity_counts_users_and_leaves_out_rare_items():
    assert Vocabulary.fit(shop()).popularity.tolist() == [0, 2, 1, 1]
    popular = Vocabulary.fit(shop(), min_item_users=2)
    assert popular.item_ids.tolist() == [0, 10]
    with pytest.raises(DataError, match="the most popular one was met by 2 users.*min_item_users=3"):
        Vocabulary.fit(shop(), min_item_users=3)


@pytest.mark.parametrize("option", ["min_item_users", "max_list_length", "max_words"])
def test_options_below_one_are_refused(option):
    with pytest.raises(ValueError, match=f"`{option}` must be at least 1. Received: {option}=0"):
        Vocabulary.fit(shop(), **{option: 0})


def test_equal_rows_come_from_any_order_of_the_interactions():
    assert_same_vocabulary(
        Vocabulary.fit(shop()), Vocabulary.fit(shop(TABLE.reverse(), USERS.reverse(), ITEMS.reverse()))
    )


# -- features ------------------------------------------------------------------------------------------------


def test_the_catalogue_holds_the_hand_worked_features(vocabulary):
    catalogue = vocabulary.catalogue
    assert catalogue["item_id"].tolist() == [0, 1, 2, 3]
    assert catalogue["brand"].tolist() == [0, 2, 0, 1]  # Alpha, Zeta; the brand nobody bought has no row.
    assert catalogue["tags"].tolist() == [[0, 0], [1, 2], [0, 0], [2, 0]]
    assert catalogue["tags_length"].tolist() == [0, 2, 0, 1]
    # Words by code point: freude, große, tea, äpfel, 東京.
    assert vocabulary.known_values("item", "blurb").tolist() == ["freude", "große", "tea", "äpfel", "東京"]
    assert catalogue["blurb"][1, :4].tolist() == [2, 4, 2, 1]
    assert catalogue["blurb"][2, :3].tolist() == [5, 3, 0]
    assert catalogue["blurb_length"].tolist() == [0, 4, 2, 0]
    # Prices 1 and 3: mean 2, deviation sqrt(2); the missing one stands at the mean.
    np.testing.assert_allclose(catalogue["price"], [0, -(2**-0.5), 2**-0.5, 0], rtol=1e-6)
    assert catalogue["look"].tolist() == [[0, 0], [1, 2], [3, 4], [5, 6]]
    np.testing.assert_allclose(catalogue["item_level"], np.log([0.5 / 3, 2 / 3, 1 / 3, 1 / 3]), rtol=1e-6)


def test_user_features_are_the_hand_worked_ones(vocabulary):
    encoded = vocabulary.encode_users(shop(), pl.Series(["bob", "ann", "cyd", "nobody"]))
    assert encoded["user_id"].tolist() == [0, 0, 0, 0]
    np.testing.assert_allclose(encoded["age"], [2**-0.5, -(2**-0.5), 0, 0], rtol=1e-6)
    assert encoded["likes"].tolist() == [[2, 3, 1], [2, 1, 0], [0, 0, 0], [0, 0, 0]]
    assert encoded["likes_length"].tolist() == [3, 2, 0, 0]


def test_items_outside_the_catalogue_keep_their_content(vocabulary):
    encoded = vocabulary.encode_items(shop(), pl.Series([40, 30, 99]))
    assert encoded["item_id"].tolist() == [0, 3, 0]
    assert encoded["look"].tolist() == [[7, 8], [5, 6], [0, 0]]
    np.testing.assert_allclose(encoded["price"][0], (99 - 2) / 2**0.5, rtol=1e-6)
    np.testing.assert_allclose(encoded["item_level"], np.log([0.5 / 3, 1 / 3, 0.5 / 3]), rtol=1e-6)


def test_a_graph_encodes_as_eager_code_does(vocabulary):
    raw = {
        "item_id": tf.constant([10, 11], tf.int64),
        "brand": tf.constant(["Alpha", ""]),
        "tags": tf.constant([["y", "x", "y"], ["x", "", ""]]),
        "tags_length": tf.constant([3, 1]),
        "blurb": tf.constant(["ÄPFEL-Freude", "nothing known"]),
        "price": tf.constant([3.0, np.nan]),
        "look": tf.constant([[1.0, np.nan], [0.0, 1.0]]),
    }
    eager = vocabulary.encode("item", raw)
    assert eager["tags"].numpy().tolist() == [[2, 1], [1, 0]]
    assert eager["tags_length"].numpy().tolist() == [2, 1]
    assert eager["blurb"].numpy()[:, :3].tolist() == [[4, 1, 0], [0, 0, 0]]
    assert eager["look"].numpy().tolist() == [[1, 0], [0, 1]]
    graph = tf.function(lambda **given: vocabulary.encode("item", given), autograph=False)
    assert_same_features(eager, graph.get_concrete_function(**vocabulary.raw_signature("item"))(**raw))


def test_the_catalogue_is_what_its_raw_values_encode_to(vocabulary):
    raw = {
        "item_id": [10, 20, 30],
        "brand": ["Zeta", "", "Alpha"],
        "tags": [["x", "y"], ["", ""], ["y", ""]],
        "tags_length": [2, 0, 1],
        "blurb": ["Große Äpfel, große Freude", "東京 tea", ""],
        "price": [1.0, 3.0, np.nan],
        "look": [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]],
        "item_level": vocabulary.catalogue["item_level"][1:],
    }
    encoded = vocabulary.encode("item", {name: tf.constant(value) for name, value in raw.items()})
    assert_same_features(encoded, {name: value[1:] for name, value in vocabulary.catalogue.items()})


@pytest.mark.parametrize(
    "words", ["İstanbul", "ΟΔΟΣ οδός", "naïve café—bar", "ПРИВЕТ мир", "tea№5 x²", "a_b\tc\nd", "हिन्दी"]
)
def test_tables_and_requests_split_the_same_words(words):
    items = pl.DataFrame({"item_id": [10, 20, 30], "blurb": [words, "other", None]})
    vocabulary = Vocabulary.fit(shop(items=items))
    known = vocabulary.known_values("item", "blurb")
    from_request = vocabulary.encode("item", {"blurb": [words]}, only="blurb")["blurb"].numpy()[0]
    assert vocabulary.catalogue["blurb"][1].tolist() == from_request.tolist()
    # Every word learned from the table is found again by the request's own lower-casing and splitting.
    assert {known[row - 1] for row in from_request if row} == set(known) - {"other"}


def test_long_lists_are_cut_and_short_ones_padded():
    vocabulary = Vocabulary.fit(shop(), max_list_length=2)
    encoded = vocabulary.encode_users(shop(), pl.Series(["bob", "cyd"]))
    assert encoded["likes"].tolist() == [[2, 3], [0, 0]]
    assert encoded["likes_length"].tolist() == [2, 0]
    assert vocabulary.catalogue["blurb"].shape == (4, 2)
    assert vocabulary.catalogue["blurb_length"].tolist() == [0, 2, 2, 0]


def test_a_length_beyond_what_was_sent_counts_what_was_sent(vocabulary):
    raw = {"age": [1.0, 1.0], "likes": [["a"], ["b"]], "likes_length": [3, -2]}
    encoded = vocabulary.encode("user", raw)
    assert encoded["likes_length"].numpy().tolist() == [1, 0]
    assert encoded["likes"].numpy().tolist() == [[1, 0, 0], [0, 0, 0]]


def test_only_the_most_frequent_words_get_a_row():
    vocabulary = Vocabulary.fit(shop(), max_words=1)
    assert vocabulary.known_values("item", "blurb").tolist() == ["große"]


def test_number_categories_are_written_as_text():
    items = pl.DataFrame({"item_id": [10, 20, 30], "year": [1999, 5, None], "codes": [[3, 20], [], [20]]})
    vocabulary = Vocabulary.fit(shop(items=items))
    assert vocabulary.known_values("item", "year").tolist() == ["1999", "5"]
    assert vocabulary.known_values("item", "codes").tolist() == ["20", "3"]
    assert vocabulary.catalogue["year"].tolist() == [0, 1, 2, 0]
    assert vocabulary.catalogue["codes"].tolist() == [[0, 0], [2, 1], [0, 0], [1, 0]]


def test_features_that_are_never_known_encode_to_nothing(tmp_path):
    items = pl.DataFrame(
        {"item_id": [10, 20, 30], "brand": [None] * 3, "blurb": [None] * 3, "price": [None] * 3, "tags": [[], [], []]},
        schema={
            "item_id": pl.Int64,
            "brand": pl.String,
            "blurb": pl.String,
            "price": pl.Float64,
            "tags": pl.List(pl.String),
        },
    )
    vocabulary = Vocabulary.fit(shop(items=items))
    for name, shape in (("brand", (4,)), ("blurb", (4, 8)), ("price", (4,)), ("tags", (4, 1))):
        np.testing.assert_array_equal(vocabulary.catalogue[name], np.zeros(shape))
    encoded = vocabulary.encode("item", {"brand": ["new"]}, only="brand")
    assert encoded["brand"].numpy().tolist() == [0]
    vocabulary.save(tmp_path)
    assert_same_vocabulary(vocabulary, Vocabulary.load(tmp_path))


def test_numbers_that_never_vary_are_only_centred():
    items = pl.DataFrame({"item_id": [10, 20, 30], "price": [7.0, 7.0, 7.0]})
    assert Vocabulary.fit(shop(items=items)).catalogue["price"].tolist() == [0, 0, 0, 0]


def test_names_are_shown_and_kept_out_of_the_features():
    items = pl.DataFrame({"item_id": [10, 20, 30], "title": ["Tea", None, "Soap"]})
    vocabulary = Vocabulary.fit(shop(items=items, item_name="title"))
    assert vocabulary.item_names == ["?", "Tea", "20", "Soap"]
    assert [spec.name for spec in vocabulary.specs.item] == ["item_id", "item_level"]


# -- names that clash ------------------------------------------------------------------------------------------


def test_one_name_on_both_sides_is_refused():
    users = pl.DataFrame({"user_id": ["ann"], "country": ["de"]})
    items = pl.DataFrame({"item_id": [10], "country": ["fr"]})
    with pytest.raises(DataError, match="rename one. Received: user.country and item.country, which .* 'country'"):
        Vocabulary.fit(shop(users=users, items=items))


def test_a_feature_called_as_the_length_of_another_is_refused():
    items = pl.DataFrame({"item_id": [10], "tags": [["x"]], "tags_length": [1.0]})
    with pytest.raises(DataError, match="Received: item.tags and item.tags_length, which .* 'tags_length'"):
        Vocabulary.fit(shop(items=items))


def test_the_name_of_the_made_popularity_is_taken():
    items = pl.DataFrame({"item_id": [10], "item_level": [1.0]})
    with pytest.raises(DataError, match=r"item_level \(made here\) and item.item_level"):
        Vocabulary.fit(shop(items=items))


# -- saving ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("user_ids", [False, True])
def test_a_saved_vocabulary_loads_equal(tmp_path, user_ids):
    vocabulary = Vocabulary.fit(shop(), user_ids=user_ids)
    vocabulary.save(tmp_path)
    loaded = Vocabulary.load(tmp_path)
    assert_same_vocabulary(vocabulary, loaded)
    everybody = pl.Series(["ann", "bob", "cyd", "nobody"])
    assert_same_features(vocabulary.encode_users(shop(), everybody), loaded.encode_users(shop(), everybody))
    anything = pl.Series([40, 30])
    assert_same_features(vocabulary.encode_items(shop(), anything), loaded.encode_items(shop(), anything))


def test_string_ids_and_awkward_names_survive_saving(tmp_path):
    table = TABLE.with_columns(pl.format("p/{}", "item_id").alias("item_id"))
    items = pl.DataFrame({"item_id": ["p/10", "p/20"], "genre/sub.type %": ["a", "b"]})
    vocabulary = Vocabulary.fit(shop(table, items=items), user_ids=True)
    vocabulary.save(tmp_path / "new" / "folder")
    loaded = Vocabulary.load(tmp_path / "new" / "folder")
    assert_same_vocabulary(vocabulary, loaded)
    assert loaded.catalogue["genre/sub.type %"].tolist() == [0, 1, 2, 0]


def test_user_rows_exist_only_when_asked_for():
    without, with_rows = Vocabulary.fit(shop()), Vocabulary.fit(shop(), user_ids=True)
    assert "user_id" not in without.raw_signature("user")
    assert with_rows.raw_signature("user")["user_id"].dtype == tf.string
    assert with_rows.encode_users(shop(), pl.Series(["cyd", "new", "ann"]))["user_id"].tolist() == [3, 0, 1]


def test_nothing_saved_holds_a_user_id_unless_asked_for(tmp_path):
    table = TABLE.with_columns(pl.format("someone-{}", "user_id").alias("user_id"))
    users = USERS.with_columns(pl.format("someone-{}", "user_id").alias("user_id"))
    Vocabulary.fit(shop(table, users)).save(tmp_path / "private")
    Vocabulary.fit(shop(table, users), user_ids=True).save(tmp_path / "named")
    written = {part: list((tmp_path / part).iterdir()) for part in ("private", "named")}
    assert not any(b"someone-" in file.read_bytes() for file in written["private"])
    assert any(b"someone-" in file.read_bytes() for file in written["named"])


def test_specs_are_plain_json(vocabulary):
    config = json.loads(json.dumps(vocabulary.specs.to_dict()))
    assert tmr.data.FeatureSpecs.from_dict(config) == vocabulary.specs


def test_raw_signature_names_what_a_request_carries(vocabulary):
    user = vocabulary.raw_signature("user")
    assert {name: (spec.dtype, spec.shape.rank) for name, spec in user.items()} == {
        "age": (tf.float32, 1),
        "likes": (tf.string, 2),
        "likes_length": (tf.int32, 1),
    }
    assert vocabulary.raw_signature("item")["look"].shape.as_list() == [None, 2]
    assert vocabulary.raw_signature("item")["item_id"].dtype == tf.int64


def test_words_without_a_row_of_their_own_share_the_hashed_rows(tmp_path):
    items = pl.DataFrame({"item_id": [10, 20, 30], "blurb": ["red red apple", "red pear", None]})
    vocabulary = Vocabulary.fit(shop(items=items), max_words=1, word_buckets=3)
    spec = next(spec for spec in vocabulary.specs.item if spec.name == "blurb")
    assert (spec.size, spec.buckets) == (1 + 1 + 3, 3)  # Never seen, "red", and three shared rows.
    hashed = {word: 2 + int(tf.strings.to_hash_bucket_fast(word, 3)) for word in ("apple", "pear", "novel")}
    rows = vocabulary.catalogue["blurb"]
    assert rows[1, :3].tolist() == [1, 1, hashed["apple"]]
    assert rows[2, :2].tolist() == [1, hashed["pear"]]
    assert vocabulary.catalogue["blurb_length"].tolist() == [0, 3, 2, 0]
    vocabulary.save(tmp_path)
    raw = {"item_id": tf.constant([10], tf.int64), "blurb": tf.constant(["novel red"])}
    again = Vocabulary.load(tmp_path).encode("item", {**raw, "item_level": tf.constant([0.0])})
    assert again["blurb"][0, :2].numpy().tolist() == [hashed["novel"], 1]


def test_values_that_too_few_users_have_get_no_row():
    users = USERS.with_columns(town=pl.Series(["Ulm", "Ulm", "Bonn"]))
    assert Vocabulary.fit(shop(users=users)).known_values("user", "town").tolist() == ["Bonn", "Ulm"]
    vocabulary = Vocabulary.fit(shop(users=users), min_category_users=2)
    assert vocabulary.known_values("user", "town").tolist() == ["Ulm"]
    assert vocabulary.known_values("user", "likes").tolist() == ["a", "b"]  # Both like these, bob alone likes c.
    assert vocabulary.known_values("item", "brand").tolist() == ["Alpha", "Zeta"]  # Items are not people.
    assert vocabulary.encode_frame("user", users)["town"].tolist() == [1, 1, 0]


def test_a_value_is_counted_once_a_user():
    users = pl.DataFrame({"user_id": ["ann", "bob", "cyd"], "likes": [["a", "a", "b"], ["b"], []]})
    assert Vocabulary.fit(shop(users=users), min_category_users=2).known_values("user", "likes").tolist() == ["b"]
    with pytest.raises(ValueError, match="`min_category_users` must be at least 1. Received: min_category_users=0"):
        Vocabulary.fit(shop(users=users), min_category_users=0)
