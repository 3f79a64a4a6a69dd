import numpy as np
import polars as pl
import pytest

from tfmetarec.data import Interactions, Vocabulary
from tfmetarec.tasks import TaskTable

ROWS = pl.DataFrame(
    {
        "user_id": [2, 1, 1, 2, 1, 3],
        "item_id": [10, 20, 30, 20, 10, 40],
        "label": [4.0, 2.0, 5.0, 1.0, 3.0, 2.0],
        "timestamp": [5, 9, 1, 3, 4, 7],
        "domain": ["a", "a", "b", "b", "a", "b"],
    }
)
ITEMS = pl.DataFrame({"item_id": [10, 20, 30, 40], "price": [1.0, 2.0, 3.0, 4.0]})


def make(feedback, rows=ROWS):
    return Interactions.from_frames(rows, items=ITEMS, feedback=feedback)


def tasks_of(table):
    """Raw (user, item, label) triples of every task by key, in the order of the slots."""
    found = {}
    for task, key in enumerate(table.keys):
        slots = range(table.start[task], table.start[task + 1])
        found[key] = [
            (table.users.ids[int(table.user[s])], table.items.ids[int(table.item[s])], float(table.label[s]))
            for s in slots
        ]
    return found


def test_user_tasks_are_their_interactions_in_time_order():
    data = make("explicit")
    table = TaskTable.build(data, Vocabulary.fit(data))
    assert tasks_of(table) == {
        1: [(1, 30, 5.0), (1, 10, 3.0), (1, 20, 2.0)],
        2: [(2, 20, 1.0), (2, 10, 4.0)],
        3: [(3, 40, 2.0)],
    }
    assert table.sizes.tolist() == [3, 2, 1]
    assert table.ordered
    assert table.notes == ()


def test_item_and_domain_tasks_hold_the_same_interactions():
    data = make("explicit")
    vocabulary = Vocabulary.fit(data)
    assert tasks_of(TaskTable.build(data, vocabulary, kind="item")) == {
        10: [(1, 10, 3.0), (2, 10, 4.0)],
        20: [(2, 20, 1.0), (1, 20, 2.0)],
        30: [(1, 30, 5.0)],
        40: [(3, 40, 2.0)],
    }
    assert tasks_of(TaskTable.build(data, vocabulary, kind="domain")) == {
        "a": [(1, 10, 3.0), (2, 10, 4.0), (1, 20, 2.0)],
        "b": [(1, 30, 5.0), (2, 20, 1.0), (3, 40, 2.0)],
    }


def test_implicit_labels_are_one_and_unknown_items_are_left_out_with_a_note():
    data = make("implicit")
    vocabulary = Vocabulary.fit(data, min_item_users=2)
    table = TaskTable.build(data, vocabulary)
    assert tasks_of(table) == {1: [(1, 10, 1.0), (1, 20, 1.0)], 2: [(2, 20, 1.0), (2, 10, 1.0)]}
    assert table.notes == ("2 of 6 interactions are with items outside the catalogue and were left out",)
    np.testing.assert_array_equal(table.items.features["item_id"], [0, 1, 2])


def test_explicit_items_outside_the_catalogue_stay_with_their_content():
    data = make("explicit")
    table = TaskTable.build(data, Vocabulary.fit(data, min_item_users=2))
    assert len(tasks_of(table)[1]) == 3
    new = table.item[table.start[0]]
    assert table.items.ids[int(new)] == 30
    assert table.items.features["item_id"][new] == 0
    assert table.items.features["price"][new] > 0


def test_small_tasks_are_left_out_with_a_note():
    data = make("explicit")
    table = TaskTable.build(data, Vocabulary.fit(data), min_interactions=2)
    assert table.keys.to_list() == [1, 2]
    assert table.notes == ("1 users with fewer than 2 interactions were left out",)
    assert len(table.user) == len(table.item) == len(table.label) == 5


def test_interactions_without_times_are_not_called_ordered():
    data = make("explicit", ROWS.drop("timestamp"))
    assert not TaskTable.build(data, Vocabulary.fit(data)).ordered


def test_taking_rows_keeps_the_shape_of_what_was_asked_for():
    data = make("explicit")
    table = TaskTable.build(data, Vocabulary.fit(data))
    taken = table.items.take(np.array([[0, 1, 3], [2, 2, 0]]))
    assert taken["item_id"].tolist() == [[1, 2, 4], [3, 3, 1]]


def test_what_cannot_be_built_is_refused():
    data = make("explicit")
    vocabulary = Vocabulary.fit(data)
    with pytest.raises(ValueError, match="`kind` must be one of user, item, domain. Received: kind='shop'"):
        TaskTable.build(data, vocabulary, kind="shop")
    with pytest.raises(ValueError, match="no user has `min_interactions` interactions. Received: min_interactions=9"):
        TaskTable.build(data, vocabulary, min_interactions=9)
    without = make("explicit", ROWS.drop("domain"))
    with pytest.raises(ValueError, match="'domain' needs a `domain` column in the interactions, which have none"):
        TaskTable.build(without, vocabulary, kind="domain")
