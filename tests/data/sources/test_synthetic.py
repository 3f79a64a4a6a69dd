import re

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from tfmetarec.data.errors import DataError
from tfmetarec.data.sources import synthetic


def ids(made):
    return made.table["user_id"].to_numpy(), made.table["item_id"].to_numpy()


def test_without_noise_users_meet_the_items_of_their_group_alone():
    made, planted = synthetic.load(seed=3), synthetic.truth(seed=3)
    user, item = ids(made)
    assert (planted.user_group[user] == planted.item_group[item]).all()
    assert len(made) == 200 * 20


def test_noise_is_the_share_of_items_from_other_groups():
    made = synthetic.load(n_users=1000, n_items=80, interactions_per_user=10, noise=0.3)
    planted = synthetic.truth(n_users=1000, n_items=80)
    user, item = ids(made)
    outside = (planted.user_group[user] != planted.item_group[item]).mean()
    # Ten thousand draws: three standard deviations are 0.014.
    assert outside == pytest.approx(0.3, abs=0.014)


@pytest.mark.parametrize("noise", [0.0, 0.5, 1.0])
def test_no_user_meets_an_item_twice(noise):
    made = synthetic.load(n_users=300, n_items=21, n_groups=3, interactions_per_user=7, noise=noise)
    assert made.table.select("user_id", "item_id").is_unique().all()


def test_items_of_a_group_are_drawn_evenly():
    made = synthetic.load(n_users=6000, n_items=12, n_groups=2, interactions_per_user=3)
    counts = made.table["item_id"].value_counts()["count"].cast(pl.Int64).to_numpy()
    # 3000 users draw 3 of 6 items each: 1500 per item, with a standard deviation of 27.
    assert len(counts) == 12
    assert np.abs(counts - 1500).max() < 5 * 27


def test_the_order_of_drawing_tells_nothing_about_the_item():
    made = synthetic.load(n_users=6000, n_items=6, n_groups=1, interactions_per_user=3)
    last = made.table.group_by("user_id").agg(pl.col("item_id").last())["item_id"].to_numpy()
    # 6000 users, 6 items: 1000 each, with a standard deviation of 29.
    assert np.abs(np.bincount(last, minlength=6) - 1000).max() < 5 * 29


def test_explicit_labels_follow_the_documented_formula():
    made = synthetic.load(n_users=40, n_items=30, feedback="explicit", seed=1)
    planted = synthetic.truth(n_users=40, n_items=30, seed=1)
    for user, item, label in made.table.select("user_id", "item_id", "label").rows():
        match = 1 if planted.user_group[user] == planted.item_group[item] else -1
        score = 3 + match + planted.user_bias[user] + planted.item_bias[item]
        assert label == round(min(max(score, 1), 5))


def test_full_noise_turns_explicit_taste_around():
    options = {"n_users": 40, "n_items": 30, "seed": 1, "feedback": "explicit"}
    planted = synthetic.truth(n_users=40, n_items=30, seed=1)
    made = synthetic.load(**options, noise=1.0)
    user, item = ids(made)
    same = planted.user_group[user] == planted.item_group[item]
    labels = made.table["label"].to_numpy()
    assert labels[same].mean() < 3 < labels[~same].mean()


def test_a_users_times_increase():
    table = synthetic.load(n_users=50).table
    steps = table.group_by("user_id").agg(pl.col("timestamp").diff().drop_nulls().min())
    assert steps["timestamp"].min() > 0


def test_features_tell_the_planted_groups():
    made, planted = synthetic.load(), synthetic.truth()
    assert made.users["segment"].to_list() == [f"segment-{group}" for group in planted.user_group]
    assert made.items["group"].to_list() == [f"group-{group}" for group in planted.item_group]
    assert made.items["tags"].list.first().to_list() == made.items["group"].to_list()
    assert (made.items["price"] // 10 - 1).cast(pl.Int64).to_list() == planted.item_group.tolist()
    assert [f.kind for f in made.schema.item] == ["id", "category", "category_list", "number"]


def test_groups_have_one_size_give_or_take_one():
    planted = synthetic.truth(n_users=11, n_items=10, n_groups=4)
    assert sorted(np.bincount(planted.user_group)) == [2, 3, 3, 3]
    assert sorted(np.bincount(planted.item_group)) == [2, 2, 3, 3]


def test_equal_seeds_give_equal_data_and_other_seeds_other_data():
    first, second = synthetic.load(noise=0.2, seed=5), synthetic.load(noise=0.2, seed=5)
    for part in ("table", "users", "items"):
        assert_frame_equal(getattr(first, part), getattr(second, part))
    assert not synthetic.load(noise=0.2, seed=6).table.equals(first.table)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_users": 0}, "`n_users` must be at least 1. Received: n_users=0"),
        ({"n_groups": 0}, "`n_groups` must be at least 1. Received: n_groups=0"),
        ({"seed": -1}, "`seed` must be at least 0. Received: seed=-1"),
        ({"n_items": 3}, "`n_items` must be at least `n_groups`. Received: n_items=3, n_groups=4"),
        ({"noise": 1.5}, "`noise` must be between 0 and 1. Received: noise=1.5"),
        ({"n_groups": 1, "noise": 0.1}, "`noise` must be 0 where one group has all items"),
        ({"interactions_per_user": 26}, "between 1 and the 25 different items that a user can meet"),
        (
            {"n_items": 40, "n_groups": 2, "interactions_per_user": 21, "noise": 0.5},
            "between 1 and the 20 different items",
        ),
        ({"feedback": "explicit", "interactions_per_user": 101}, "between 1 and the 100 different items"),
        ({"interactions_per_user": 0}, "Received: interactions_per_user=0"),
        ({"feedback": "stars"}, "`feedback` must be 'explicit' or 'implicit'. Received: feedback='stars'"),
    ],
)
def test_arguments_out_of_range_are_named(options, message):
    with pytest.raises(DataError, match=re.escape(message)):
        synthetic.load(**options)
