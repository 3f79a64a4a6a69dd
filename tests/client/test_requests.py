"""What goes out for one user: ids, raw features of users and new items, and wishes."""

import re

import numpy as np
import pytest

from tfmetarec.client import Client
from tfmetarec.client.requests import item_ids, new_item_inputs, option_inputs, support_inputs

NUMBERS = {"dtype": "DT_INT64", "tensor_shape": {"dim": [{"size": "-1"}, {"size": "-1"}]}}
WORDS = {"dtype": "DT_STRING", "tensor_shape": {"dim": [{"size": "-1"}, {"size": "-1"}]}}


def info(dtype, *shape):
    return {"dtype": dtype, "tensor_shape": {"dim": [{"size": str(size)} for size in shape]}}


@pytest.mark.parametrize(
    ("items", "sent"),
    [
        ([1, "2", b"3"], [1, 2, 3]),
        (np.array([1, 2]), [1, 2]),
        ((4.0, np.float32(5.0)), [4, 5]),  # As a column with gaps has whole numbers.
        ({7}, [7]),
        ([], []),
    ],
)
def test_ids_that_are_numbers_may_come_in_many_ways(items, sent):
    assert item_ids("items", items, NUMBERS) == sent


@pytest.mark.parametrize(
    ("items", "which", "message"),
    [
        (["bread"], NUMBERS, "`items` must hold whole numbers, as the model's ids are. Received: ['bread']"),
        ([7.5], NUMBERS, "`items` must hold whole numbers, as the model's ids are. Received: [7.5]"),
        ([None], NUMBERS, "`items` must hold whole numbers, as the model's ids are. Received: [None]"),
        ([3], WORDS, "`items` must hold text, as the model's ids are. Received: 3"),
        ("bread", WORDS, "`items` must be a list of ids. Received: 'bread'"),  # Not its letters.
        ({"bread": 1.0}, WORDS, "`items` must be a list of ids. Received: {'bread': 1.0}"),
    ],
)
def test_ids_of_the_wrong_type_are_refused(items, which, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        item_ids("items", items, which)


def test_an_empty_support_is_one_padded_row_of_length_0():
    numbers, words = ({"support": which} for which in (NUMBERS, WORDS))
    assert support_inputs(numbers, [], None) == {"support": [[0]], "support_labels": [[0.0]], "support_length": [0]}
    assert support_inputs(words, [], [])["support"] == [[""]]


def test_labels_are_1_unless_given():
    assert support_inputs({"support": NUMBERS}, [5, 6], None)["support_labels"] == [[1.0, 1.0]]
    assert support_inputs({"support": NUMBERS}, [5, 6], np.array([2.0, 3.0]))["support_labels"] == [[2.0, 3.0]]
    with pytest.raises(ValueError, match="`labels` must be as many as `items`. Received: 1 and 2"):
        support_inputs({"support": NUMBERS}, [5, 6], [1.0])


@pytest.mark.parametrize("label", [float("nan"), np.float32("inf"), "5", None])
def test_labels_that_are_no_finite_numbers_are_refused(label):
    with pytest.raises(ValueError, match=f"`labels` must be finite numbers. Received: {re.escape(repr(label))}"):
        support_inputs({"support": NUMBERS}, [5, 6], [1.0, label])


OPTIONS = {"exclude": NUMBERS, "exclude_length": {}, "top_k": {}, "only_department": {}, "only_shop_tags": {}}


def test_wishes_that_nobody_has_are_padding():
    assert option_inputs(OPTIONS, None, (), None) == {
        "exclude": [[0]],
        "exclude_length": [0],
        "top_k": [2**31 - 1],  # Cut by the model to what it was exported for.
        "only_department": [[""]],
        "only_shop_tags": [[""]],
    }


def test_wishes_go_out_under_the_names_of_the_inputs():
    sent = option_inputs(OPTIONS, 3, ["8", 9], {"shop tags": ["red", "hot"], "department": "tea"})
    assert sent == {
        "exclude": [[8, 9]],
        "exclude_length": [2],
        "top_k": [3],
        "only_department": [["tea"]],
        "only_shop_tags": [["red", "hot"]],
    }
    assert option_inputs(OPTIONS, 1, (), {"department": np.array(["a", "b"])})["only_department"] == [["a", "b"]]


@pytest.mark.parametrize(
    ("top_k", "exclude", "only", "message"),
    [
        (0, (), {}, "`top_k` must be at least 1. Received: top_k=0"),
        (None, ["x"], {}, "`exclude` must hold whole numbers, as the model's ids are. Received: ['x']"),
        (
            None,
            (),
            {"departmnt": "tea"},
            "`only` must name categorical item features of the model: ['department', 'shop_tags']. Received: ['departmnt']",
        ),
        (
            None,
            (),
            {"department": ""},
            "`only['department']` must be text or a list of texts, none empty. Received: ''",
        ),
        (None, (), {"department": []}, "none empty. Received: []"),
        (None, (), {"department": ["tea", ""]}, "none empty. Received: ['tea', '']"),
        (None, (), {"department": None}, "none empty. Received: None"),
        (None, (), {"department": [3]}, "none empty. Received: [3]"),
    ],
)
def test_wishes_that_break_a_rule_are_refused(top_k, exclude, only, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        option_inputs(OPTIONS, top_k, exclude, only)


NEW = {
    "item_price": info("DT_FLOAT", -1, -1),
    "item_brand": info("DT_STRING", -1, -1),
    "item_tags": info("DT_STRING", -1, -1, -1),
    "item_tags_length": info("DT_INT32", -1, -1),
    "item_taste": info("DT_FLOAT", -1, -1, 2),
    "support": NUMBERS,
}


def test_new_items_go_out_as_columns_with_lists_padded_to_the_longest():
    sent = new_item_inputs(
        NEW, [{"price": "1.5", "tags": ["red", "hot"], "taste": (1, 2)}, {"brand": "B", "tags": "red"}, {}]
    )
    np.testing.assert_array_equal(sent.pop("item_price"), [[1.5, np.nan, np.nan]])
    np.testing.assert_array_equal(sent.pop("item_taste"), [[[1, 2], [np.nan, np.nan], [np.nan, np.nan]]])
    assert sent == {
        "item_brand": [["", "B", ""]],
        "item_tags": [[["red", "hot"], ["red", ""], ["", ""]]],
        "item_tags_length": [[2, 1, 0]],
    }


def test_lists_that_are_all_empty_keep_one_padded_entry():
    sent = new_item_inputs(NEW, [{}, {"tags": []}])
    assert (sent["item_tags"], sent["item_tags_length"]) == ([[[""], [""]]], [[0, 0]])


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (
            {"prize": 1},
            "`new_items[1]` must hold features of the model: ['brand', 'price', 'tags', 'taste']. Received: ['prize']",
        ),
        ({"price": "cheap"}, "`new_items[1]['price']` must be a number. Received: 'cheap'"),
        ({"taste": [1, 2, 3]}, "`new_items[1]['taste']` must be a vector of width 2. Received: width 3"),
        ({"tags_length": 1}, "Received: ['tags_length']"),
    ],
)
def test_a_new_item_that_does_not_fit_is_named_by_its_place(item, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        new_item_inputs(NEW, [{}, item])


@pytest.fixture(scope="module")
def echo(tmp_path_factory):
    """A model that recommends what it was told of the user, as text."""
    import tensorflow as tf

    from tfmetarec.server import Server

    spec = tf.TensorSpec

    class Model(tf.Module):
        @tf.function(
            input_signature=[
                spec([None, None], tf.int64, "support"),
                spec([None, None], tf.float32, "support_labels"),
                spec([None], tf.int32, "support_length"),
                spec([None], tf.float32, "user_age"),
                spec([None], tf.int64, "user_floor"),
                spec([None], tf.string, "user_home_town"),
                spec([None, None], tf.string, "user_likes"),
                spec([None], tf.int32, "user_likes_length"),
                spec([None, 2], tf.float32, "user_place"),
            ]
        )
        def told(self, support, support_labels, support_length, age, floor, town, likes, likes_length, place):
            likes = tf.strings.reduce_join(likes, 1, separator="|")
            place = tf.strings.reduce_join(tf.strings.as_string(place, precision=1), 1, separator="|")
            age = tf.strings.as_string(age, precision=1)
            floor, length = tf.strings.as_string(floor), tf.strings.as_string(likes_length)
            items = tf.stack([age, floor, town, likes, length, place], 1)
            return {"items": items, "scores": tf.ones(tf.shape(items))}

    base = tmp_path_factory.mktemp("echo") / "echo"
    model = Model()
    tf.saved_model.save(model, str(base / "1"), signatures={"adapt_and_recommend": model.told})
    with Server("echo", base) as running, Client(f"127.0.0.1:{running.rest_api_port}", model="echo") as client:
        yield lambda user: [item for item, _ in client.recommend([], user=user)]


@pytest.mark.serving
@pytest.mark.parametrize(
    ("user", "told"),
    [
        ({}, ["nan", "0", "", "", "0", "nan|nan"]),
        ({"age": None, "likes": None, "place": None}, ["nan", "0", "", "", "0", "nan|nan"]),
        ({"age": "34", "floor": "-2"}, ["34.0", "-2", "", "", "0", "nan|nan"]),
        ({"age": 34.5, "floor": np.int64(3)}, ["34.5", "3", "", "", "0", "nan|nan"]),
        ({"home town": "a, b"}, ["nan", "0", "a, b", "", "0", "nan|nan"]),
        ({"likes": ["tea", "rye, dark"]}, ["nan", "0", "", "tea|rye, dark", "2", "nan|nan"]),
        ({"likes": "tea, rye"}, ["nan", "0", "", "tea|rye", "2", "nan|nan"]),
        ({"likes": "tea"}, ["nan", "0", "", "tea", "1", "nan|nan"]),
        ({"likes": [], "place": "1,2.5"}, ["nan", "0", "", "", "0", "1.0|2.5"]),
        ({"likes": "", "place": np.array([1, 2])}, ["nan", "0", "", "", "0", "1.0|2.0"]),
    ],
)
def test_features_of_a_user_arrive_as_the_model_wants_them(echo, user, told):
    assert echo(user) == told


@pytest.mark.serving
@pytest.mark.parametrize(
    ("user", "message"),
    [
        ({"age": "old"}, "`user['age']` must be a number. Received: 'old'"),
        ({"age": [3]}, "`user['age']` must be a number. Received: [3]"),
        ({"floor": "2.5"}, "`user['floor']` must be a whole number. Received: '2.5'"),
        ({"home_town": 3}, "`user['home_town']` must hold text. Received: 3"),
        ({"likes": ["tea", 3]}, "`user['likes']` must hold text. Received: 3"),
        ({"place": [1, 2, 3]}, "`user['place']` must be a vector of width 2. Received: width 3"),
        ({"place": "1"}, "`user['place']` must be a vector of width 2. Received: width 1"),
        ({"place": "1,x"}, "`user['place']` must be a number. Received: 'x'"),
        (
            {"likes_length": 1},
            "features of the model: ['age', 'floor', 'home_town', 'likes', 'place']. Received: ['likes_length']",
        ),
    ],
)
def test_features_of_a_user_that_do_not_fit_are_refused(echo, user, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        echo(user)
