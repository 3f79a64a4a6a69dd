import os
import re
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from tfmetarec.data.errors import DataError
from tfmetarec.data.interactions import Interactions
from tfmetarec.data.sources import movielens, synthetic
from tfmetarec.data.splits import (
    PUBLISHED_STATES,
    by_domain,
    by_time,
    cold_items,
    cold_users,
    every_state,
    four_states,
    published_states,
)

# GroupLens allows no copies to be passed on: whoever has them says where.
ML_1M = Path(os.environ.get("TFMETAREC_TEST_DATA") or "no-such-folder") / "ml-1m"


def make(**columns):
    return Interactions.from_frames(pl.DataFrame(columns), feedback="implicit")


@pytest.fixture(scope="module")
def data():
    return synthetic.load(n_users=50, n_items=40, interactions_per_user=6, noise=0.5)


def users_of(part):
    return set(part.table["user_id"])


def items_of(part):
    return set(part.table["item_id"])


def same_parts(first, second):
    assert list(first.parts) == list(second.parts)
    for name in first.parts:
        assert_frame_equal(first[name].table, second[name].table)


def test_cold_users_follow_the_published_recipe(data):
    split = cold_users(data, test_share=0.2, validation_share=0.1, seed=3)
    order = np.random.default_rng(3).permutation(sorted(set(data.table["user_id"])))
    assert users_of(split.test) == set(order[:10])
    assert users_of(split.validation) == set(order[10:15])
    assert users_of(split.train) == set(order[15:])
    assert sum(len(part) for part in split.parts.values()) == len(data)


def test_string_ids_are_drawn_by_the_same_recipe(data):
    names = data.table.with_columns(pl.format("user-{}", "user_id").alias("user_id"))
    split = cold_users(Interactions.from_frames(names, feedback="implicit"), seed=3)
    order = np.random.default_rng(3).permutation(np.array(sorted(set(names["user_id"]))))
    assert users_of(split.test) == set(order[:10])


def test_cold_items_are_unseen_in_training(data):
    split = cold_items(data, test_share=0.25, validation_share=0.25)
    n_items = data.n_items
    assert [part.n_items for part in split.parts.values()] == [
        n_items - 2 * int(0.25 * n_items),
        int(0.25 * n_items),
        int(0.25 * n_items),
    ]
    assert not items_of(split.train) & (items_of(split.validation) | items_of(split.test))
    assert not items_of(split.validation) & items_of(split.test)


@pytest.mark.parametrize("draw", [cold_users, cold_items, four_states])
def test_equal_seeds_give_equal_parts_and_other_seeds_other_parts(draw, data):
    same_parts(draw(data, seed=1), draw(data, seed=1))
    assert not draw(data, seed=1).train.table.equals(draw(data, seed=2).train.table)


def test_a_split_does_not_depend_on_the_order_of_the_rows(data):
    shuffled = data.with_table(data.table.sample(fraction=1.0, shuffle=True, seed=5))
    same_parts(cold_users(data), cold_users(shuffled))


def test_users_with_too_few_rows_leave_test_and_are_counted():
    # Users 0 to 9, where user n has n + 1 rows.
    user_id = [user for user in range(10) for _ in range(user + 1)]
    data = make(user_id=user_id, item_id=list(range(len(user_id))))
    split = cold_users(data, test_share=0.5, validation_share=0.2, min_interactions=6, seed=0)
    order = np.random.default_rng(0).permutation(10)
    few = [user for user in order[:5] if user < 5]
    assert 0 < len(few) < 5
    assert users_of(split.test) == set(order[:5]) - set(few)
    assert f"Users with fewer than 6 interactions, {len(few)} in all, were left out of test." in split.notes
    assert users_of(split.train) == set(order[7:])


def test_no_validation_share_makes_no_validation_part(data):
    split = cold_users(data, validation_share=0)
    assert list(split.parts) == ["train", "test"]
    assert not hasattr(split, "validation")
    assert list(by_time(data, validation_share=0).parts) == ["train", "test"]


def test_the_four_states_hold_out_users_and_items_whole(data):
    split = four_states(data, user_share=0.2, item_share=0.25, seed=0)
    rng = np.random.default_rng(0)
    cold_user = set(rng.permutation(50)[:10])
    items = np.array(sorted(items_of(data)))
    cold_item = set(items[rng.permutation(len(items))[: int(0.25 * len(items))]])
    for name, user_is_cold, item_is_cold in (
        ("train", False, False),
        ("user_cold", True, False),
        ("item_cold", False, True),
        ("both_cold", True, True),
    ):
        expected = data.table.filter(
            pl.col("user_id").is_in(list(cold_user)) == user_is_cold,
            pl.col("item_id").is_in(list(cold_item)) == item_is_cold,
        )
        assert_frame_equal(split[name].table, expected)


def test_training_ends_before_validation_and_validation_before_test(data):
    split = by_time(data, validation_share=0.2, test_share=0.1)
    times = {name: part.table["timestamp"] for name, part in split.parts.items()}
    assert times["train"].max() < times["validation"].min()
    assert times["validation"].max() < times["test"].min()
    assert {name: len(part) for name, part in split.parts.items()} == {
        "train": 210,
        "validation": 60,
        "test": 30,
    }
    assert split.notes == ()


def test_rows_at_the_time_of_the_cut_stay_together_and_are_counted():
    data = make(user_id=[1] * 10, item_id=list(range(10)), timestamp=[1, 2, 3, 4, 5, 5, 5, 8, 9, 10])
    split = by_time(data, validation_share=0.3, test_share=0.2)
    assert {name: part.table["timestamp"].to_list() for name, part in split.parts.items()} == {
        "train": [1, 2, 3, 4, 5, 5, 5],
        "validation": [8],
        "test": [9, 10],
    }
    assert split.notes == ("Rows at the very time of the cut, 2 in all, went to train too.",)


def domains():
    """Users 1 to 4 buy books and music, user 5 only books, user 6 only music; a film is in between."""
    rows = [(u, f"b{u}", "book") for u in range(1, 6)] + [(u, f"m{u}", "music") for u in (1, 2, 3, 4, 6)]
    rows += [(1, "f", "film"), (1, "b1", "music")]
    user_id, item_id, domain = zip(*rows, strict=True)
    return make(user_id=user_id, item_id=item_id, domain=domain)


def test_test_users_of_a_domain_are_known_in_the_source_alone():
    split = by_domain(domains(), source="book", target="music", test_share=0.5, seed=0)
    test = set(np.random.default_rng(0).permutation([1, 2, 3, 4])[:2])
    assert users_of(split.test) == test
    assert users_of(split.train) == {1, 2, 3, 4, 6} - test
    assert users_of(split["source"]) == {1, 2, 3, 4, 5}
    assert split["source"].table["domain"].unique().to_list() == ["book"]
    assert split.notes == (
        "Rows of other domains, 1 in all, were left out.",
        "Item ids that both domains have, 1 in all, are taken to be the same items.",
    )


def test_validation_users_of_a_domain_come_after_the_test_users():
    options = {"source": "book", "target": "music", "test_share": 0.25, "seed": 3}
    split, without = by_domain(domains(), validation_share=0.5, **options), by_domain(domains(), **options)
    drawn = np.random.default_rng(3).permutation([1, 2, 3, 4])
    assert users_of(split.test) == users_of(without.test) == {drawn[0]}
    assert users_of(split.validation) == {drawn[1], drawn[2]}
    assert users_of(split.train) == {drawn[3], 6}
    assert "validation" not in without.parts


def test_published_states_name_the_parts_and_count_the_rest():
    data = make(user_id=[1, 1, 2, 2, 3], item_id=[7, 8, 7, 8, 7])
    states = pl.DataFrame(
        {
            "user_id": [1, 1, 2, 2, 9],
            "movie_id": [7, 8, 7, 8, 9],
            "state": [
                "meta_training",
                "item_cold_testing",
                "user_cold_testing",
                "user_and_item_cold_testing",
                "meta_training",
            ],
        },
        schema_overrides={"user_id": pl.Int16, "state": pl.Categorical},
    )
    split = published_states(data, states)
    assert {name: part.table.select("user_id", "item_id").rows() for name, part in split.parts.items()} == {
        "train": [(1, 7)],
        "user_cold": [(2, 7)],
        "item_cold": [(1, 8)],
        "both_cold": [(2, 8)],
    }
    assert split.notes == (
        "Rows without a state, 1 in all, were left out.",
        "States of pairs that are no interaction, 1 in all, were left out.",
    )


@pytest.mark.skipif(not ML_1M.is_dir(), reason="needs TFMETAREC_TEST_DATA, a folder with MovieLens copies")
def test_the_published_split_of_movielens_has_the_published_pairs():
    data = movielens.load(ML_1M)
    states = pl.read_parquet(ML_1M / "split_metahin.parquet")
    split = published_states(data, states)
    # The same by set arithmetic: a pair is one number, user * 10,000 + film.
    rated = set((data.table["user_id"] * 10_000 + data.table["item_id"]).to_list())
    pairs = states["user_id"].cast(pl.Int64) * 10_000 + states["movie_id"]
    for published, part in PUBLISHED_STATES.items():
        table = split[part].table
        found = (table["user_id"] * 10_000 + table["item_id"]).to_list()
        assert set(found) == rated & set(pairs.filter(states["state"] == published).to_list())
    assert split.notes == (
        f"Rows without a state, {len(rated - set(pairs))} in all, were left out.",
        f"States of pairs that are no interaction, {len(set(pairs) - rated)} in all, were left out.",
    )


def test_counts_and_repr_show_each_part_and_note():
    split = by_domain(domains(), source="book", target="music", test_share=0.5)
    assert split.counts.rows()[0] == ("source", 5, 5, 5)
    assert split.counts["rows"].to_list() == [len(part) for part in split.parts.values()]
    assert repr(split).splitlines()[:2] == ["Split(seed=0)", "  source: 5 rows, 5 users, 5 items"]
    assert repr(split).splitlines()[-2] == "  Rows of other domains, 1 in all, were left out."


def test_an_unknown_part_is_named(data):
    split = four_states(data)
    with pytest.raises(DataError, match=r"the nearest name is 'user_cold'\. Received: name='users_cold'"):
        split["users_cold"]
    with pytest.raises(AttributeError, match="has no part 'test'; its parts are train, user_cold"):
        _ = split.test


@pytest.mark.parametrize(
    ("split", "message"),
    [
        (
            lambda data: cold_users(data, test_share=0),
            "`test_share` must lie between 0 and 1. Received: test_share=0",
        ),
        (lambda data: cold_users(data, validation_share=1.0), "`validation_share` must lie between 0 and 1"),
        (lambda data: cold_users(data, test_share=0.6, validation_share=0.4), "their sum must be below 1"),
        (lambda data: cold_users(data, seed=-1), "`seed` must be at least 0. Received: seed=-1"),
        (lambda data: cold_users(data, min_interactions=0), "`min_interactions` must be at least 1"),
        (lambda data: cold_users(data, min_interactions=99), "'validation' would have none of the 300"),
        (lambda data: cold_users(data, test_share=0.01), "'test' would have none of the 300"),
        (lambda data: four_states(data, user_share=1.5), "`user_share` must lie between 0 and 1"),
        (lambda data: four_states(data, item_share=float("nan")), "`item_share` must lie between 0 and 1"),
        (lambda data: by_time(make(user_id=[1], item_id=[1])), "`interactions` must have timestamps"),
        (
            lambda data: by_time(make(user_id=[1] * 9, item_id=list(range(9)), timestamp=[5] * 9), test_share=0.5),
            "'validation' would have none of the 9",
        ),
        (lambda data: by_domain(data, source="a", target="b"), "must have a column `domain`"),
        (
            lambda data: by_domain(domains(), source="books", target="music"),
            "`source` must be a domain; the nearest name is 'book'. Received: source='books', domains",
        ),
        (
            lambda data: by_domain(domains(), source="book", target="book"),
            "`source` and `target` must differ",
        ),
        (
            lambda data: by_domain(make(user_id=[1, 2], item_id=[1, 2], domain=["a", "b"]), source="a", target="b"),
            "`source` and `target` must share users. Received none with both 'a' and 'b'",
        ),
        (lambda data: published_states(data, [1]), "`states` must be a polars DataFrame"),
        (
            lambda data: published_states(data, pl.DataFrame({"user_id": [1], "item_id": [1], "stat": ["x"]})),
            "`states` must have the column 'state'; the nearest name is 'stat'",
        ),
        (
            lambda data: published_states(data, pl.DataFrame({"user_id": [1], "item_id": [1], "state": ["warmup"]})),
            "the nearest name is 'warm_up'. Received: 'warmup'",
        ),
        (
            lambda data: published_states(data, pl.DataFrame({"user_id": ["x"], "item_id": [1], "state": ["warm"]})),
            "`states` must have ids of the types of `interactions`",
        ),
        (
            lambda data: published_states(
                data, pl.DataFrame({"user_id": [1, 1], "item_id": [1, 1], "state": ["warm", "train"]})
            ),
            "`states` must give each user and item one state. Received two for user 1 and item 1",
        ),
    ],
)
def test_splits_that_cannot_be_made_say_why(split, message, data):
    with pytest.raises(DataError, match=re.escape(message)):
        split(data)


def test_every_state_holds_out_the_users_of_cold_users_and_items_that_training_never_meets(data):
    split = every_state(data, test_share=0.2, validation_share=0.1, item_share=0.25, warm_rows=2, seed=3)
    same = cold_users(data, test_share=0.2, validation_share=0.1, seed=3)
    new = items_of(split["item_cold"]) | items_of(split["both_cold"])
    assert len(new) == 10
    assert split.notes[0] == "10 items were held out of training."
    for name in ("train", "validation", "test", "warm"):
        assert not items_of(split[name]) & new
    for name in ("validation", "test"):
        assert users_of(split[name]) == users_of(same[name])
    assert users_of(split["both_cold"]) <= users_of(same.test)
    assert users_of(split["item_cold"]) <= users_of(same.train)
    assert users_of(split["warm"]) <= users_of(split.train)
    left_out = sum(len(part) for part in same.parts.values()) - sum(len(part) for part in split.parts.values())
    assert left_out == int(same.validation.table["item_id"].is_in(list(new)).sum())


def test_warm_is_the_last_that_a_user_met_for_the_first_time():
    rows = [(user, item, time, "view") for user in range(10) for time, item in enumerate(range(1, 7))]
    rows += [(user, 1, 9, "purchase") for user in range(10)]
    rows += [(user, item, 0, "view") for user in (0, 1) for item in (7, 8, 9, 10)]
    table = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp", "behavior"], orient="row")
    split = every_state(
        Interactions.from_frames(table, feedback="implicit"),
        validation_share=0, item_share=0.2, warm_rows=2, min_item_users=3, seed=1,
    )  # fmt: skip
    (new,) = items_of(split["item_cold"])
    assert new <= 6  # The others have fewer users.
    expected = [item for item in range(1, 7) if item != new][-2:]
    warm = split["warm"].table.sort("user_id", "item_id")
    for user in warm["user_id"].unique():
        assert warm.filter(pl.col("user_id") == user)["item_id"].unique().sort().to_list() == expected
    # Item 1, bought at the end, was seen first of all.
    assert 1 not in items_of(split["warm"])
    assert len(users_of(split["warm"])) == 2
    assert "validation" not in split.parts


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"item_share": 1.0}, "`item_share` must lie between 0 and 1. Received: item_share=1.0"),
        ({"warm_rows": 0}, "`warm_rows` must be at least 1. Received: warm_rows=0"),
        ({"warm_rows": 99}, "Every part must have rows, and 'warm' would have none"),
    ],
)
def test_every_state_refuses_what_cannot_be(data, options, message):
    with pytest.raises(DataError, match=message):
        every_state(data, **options)
