"""The four states, worked out by hand."""

from typing import Any

import numpy as np
import polars as pl
import pytest

import tfmetarec as tmr
from tfmetarec.data import Interactions, Split, Vocabulary
from tfmetarec.evaluation import by_state, cold_states


class ByPrice:
    """Scores items by their price, which is known of new ones too, and remembers what it was shown."""

    def __init__(self):
        self.shown: list[Any] = []

    def adapt(self, support: Any) -> int:
        self.shown.append((np.asarray(support.item["price"]), np.asarray(support.length), np.asarray(support.label)))
        return len(support.length)

    def score(self, state: int, item: Any) -> np.ndarray:
        price = np.asarray(item["price"], np.float32)
        return np.broadcast_to(price, (state, price.shape[-1]))


def shop(feedback: str) -> tuple[Split, Vocabulary]:
    """Items 1..6 are known, 7..9 are new, the price is the number. Users 1 and 2 are known, 3 and 4 are not."""
    met = {
        "train": {1: [1, 2, 3], 2: [4, 5]},
        "test": {3: [2, 3, 6], 4: [6, 5]},
        "warm": {1: [6], 2: [1]},
        "item_cold": {1: [9, 7], 2: [7]},
        "both_cold": {3: [8]},
    }
    items = pl.DataFrame({"item_id": range(1, 10), "price": [float(n) for n in range(1, 10)]})
    parts = {}
    for part, users in met.items():
        rows = [
            (user, item, time, (item + user) % 5 + 1.0) for user, own in users.items() for time, item in enumerate(own)
        ]
        table = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp", "label"], orient="row")
        if feedback == "implicit":
            table = table.drop("label")
        parts[part] = Interactions.from_frames(table, items=items, feedback=feedback)
    everything = pl.concat([parts["train"].table, parts["test"].table, parts["warm"].table])
    known = Interactions.from_frames(everything, items=items, feedback=feedback)
    return Split(parts), Vocabulary.fit(known)


def figures(table: Any, metric: str) -> dict[int, float]:
    return dict(table.per_user.select("user_id", metric).iter_rows())


def test_each_state_asks_its_users_for_its_items() -> None:
    split, vocabulary = shop("implicit")
    tables = cold_states({"price": ByPrice()}, split, vocabulary, shots=2, query=2, top_k=2, floors=False)
    assert list(tables) == ["warm", "user_cold", "item_cold", "both_cold"]
    # Of items 1..6 less their own in training, user 1 gets 6 and 5 and meets 6; user 2 gets 6 and 3 and meets 1.
    assert figures(tables["warm"], "recall@2") == {1: 1.0, 2: 0.0}
    # User 3 has shown 2 and 3, gets 6 and 5 and meets 6; user 4 has nothing left to be asked about.
    assert figures(tables["user_cold"], "recall@2") == {3: 1.0}
    # Of 7, 8 and 9 all get 9 and 8. User 1 meets 9 and 7, user 2 meets 7.
    assert figures(tables["item_cold"], "recall@2") == {1: 0.5, 2: 0.0}
    assert figures(tables["both_cold"], "recall@2") == {3: 1.0}
    assert figures(tables["both_cold"], "mrr@2") == {3: 0.5}
    found = by_state(tables)
    assert found.columns == ["learner", *tables]
    assert found.row(0) == ("price", 0.5, 1.0, 0.25, 1.0)
    assert by_state(tables, "mrr")["warm"].item() == 0.5
    with pytest.raises(ValueError, match="`metric` must be one of recall, ndcg, hit_rate, mrr. Received: metric='mae'"):
        by_state(tables, "mae")


def test_known_users_show_their_last_items_and_new_ones_their_first() -> None:
    split, vocabulary = shop("implicit")
    recommender = ByPrice()
    cold_states({"price": recommender}, split, vocabulary, shots=2, query=2, top_k=2, floors=False)
    mean, deviation = vocabulary._moments["item.price"]
    prices = [(shown * deviation + mean).round().astype(int).tolist() for shown, _, _ in recommender.shown]
    assert prices == [[[2, 3], [4, 5]], [[2, 3]], [[2, 3], [4, 5]], [[2, 3]]]


def test_users_who_showed_too_little_are_counted() -> None:
    split, vocabulary = shop("implicit")
    tables = cold_states({"price": ByPrice()}, split, vocabulary, shots=3, query=2, top_k=2, floors=False)
    assert list(tables) == ["warm", "item_cold", "both_cold"]  # Nobody new has a fourth item.
    assert tables["warm"].notes == ("warm: 1 users who showed fewer than 3 interactions were left out",)


def test_without_a_support_everybody_is_asked() -> None:
    split, vocabulary = shop("implicit")
    recommender = ByPrice()
    tables = cold_states({"price": recommender}, split, vocabulary, shots=0, query=9, top_k=2, floors=False)
    assert [length.tolist() for _, length, _ in recommender.shown] == [[0, 0], [0, 0], [0, 0], [0]]
    assert figures(tables["user_cold"], "recall@2") == {3: 1 / 3, 4: 1.0}


def test_ratings_asked_for_are_compared_with_their_labels() -> None:
    split, vocabulary = shop("explicit")

    class Threes(ByPrice):
        def score(self, state: int, item: Any) -> np.ndarray:
            return np.full((state, np.asarray(item["price"]).shape[-1]), 3.0)

    tables = cold_states({"threes": Threes()}, split, vocabulary, shots=2, query=2, floors=False)
    # User 1 rates items 9 and 7 with (9 + 1) % 5 + 1 = 1 and 4: errors 2 and 1. User 2 rates item 7 with 5.
    assert figures(tables["item_cold"], "mae") == {1: 1.5, 2: 2.0}
    assert figures(tables["both_cold"], "mae") == {3: 1.0}


def test_floors_stand_in_every_state_and_rank_new_items_by_chance() -> None:
    data = tmr.data.load("synthetic", n_users=150, n_items=80, n_groups=4, interactions_per_user=15, seed=0)
    split = tmr.data.every_state(data, item_share=0.2, warm_rows=4, seed=0)
    vocabulary = Vocabulary.fit(split.train)
    learner = tmr.meta.Ridge(tmr.models.TwoTower(vocabulary, 8, seed=0))
    tables = cold_states({"Ridge": learner}, split, vocabulary, shots=4, query=4, top_k=5, seed=1)
    found = by_state(tables)
    assert {"popularity", "item-KNN", "EASE", "Ridge"} <= set(found["learner"])
    assert found.null_count().sum_horizontal().item() == 0
    knn = {state: found.filter(pl.col("learner") == "item-KNN")[state].item() for state in tables}
    assert knn["user_cold"] > 0.2  # The planted group is plain after four items.
    chance = 5 / 16
    assert abs(knn["both_cold"] - chance) < 0.15
    again = cold_states({"Ridge": learner}, split, vocabulary, shots=4, query=4, top_k=5, seed=1)
    assert by_state(again).equals(found)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shots": -1}, "`shots` must be one or more ints, at least 0"),
        ({"query": 0}, "`query` must be an int, at least 1"),
        ({"order": "x"}, "`order` must be 'time' or 'random'. Received: order='x'"),
        ({"shots": 50}, "`shots` and `query` leave no user in any state. Received: shots=50, query=10"),
    ],
)
def test_what_cannot_be_is_refused(options: dict, message: str) -> None:
    split, vocabulary = shop("implicit")
    with pytest.raises(ValueError, match=message):
        cold_states({"price": ByPrice()}, split, vocabulary, floors=False, **options)


def test_a_split_without_the_states_and_a_table_without_anybody_are_refused() -> None:
    split, vocabulary = shop("implicit")
    without = Split({"train": split.train, "test": split.test})
    with pytest.raises(ValueError, match="`split` must have a part 'warm', as `every_state` makes it"):
        cold_states({"price": ByPrice()}, without, vocabulary)
    with pytest.raises(ValueError, match="`recommenders` must hold at least one, or `floors` be True"):
        cold_states({}, split, vocabulary, floors=False)
    with pytest.raises(ValueError, match="must not be called like a floor. Received: 'popularity'"):
        cold_states({"popularity": ByPrice()}, split, vocabulary)
