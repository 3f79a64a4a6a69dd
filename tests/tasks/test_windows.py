import numpy as np
import polars as pl
import pytest
import tensorflow as tf

import tfmetarec as tmr
from tfmetarec.data import Interactions
from tfmetarec.tasks.windows import user_windows


@pytest.fixture(scope="module")
def counted():
    """User 1 met items 1 to 12 in this order, user 2 met items 5, 4, 3; both at times that rise."""
    rows = [(1, item, item) for item in range(1, 13)] + [(2, item, 100 - item) for item in (5, 4, 3)]
    table = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")
    data = Interactions.from_frames(table, feedback="implicit")
    return data, tmr.data.Vocabulary.fit(data)


def rows(counted, **options):
    """The first 50 batches of windows, one of each user in each."""
    windows = user_windows(*counted, windows_per_batch=2, steps_per_epoch=50, **options)
    for batch in range(50):
        drawn = windows.sample(batch)
        yield from zip(drawn["item"], drawn["length"], drawn["target"], strict=True)


def test_a_window_is_a_stretch_of_a_history_in_order(counted):
    starts = set()
    for item, _, _ in rows(counted, length=4, early=1):
        if item[0] < 5 or (item[1] > item[0]):  # Of user 1.
            assert item.tolist() == list(range(item[0], item[0] + 4))
            starts.add(int(item[0]))
        else:  # User 2 has only three items: the last one is repeated.
            assert item.tolist() == [5, 4, 3, 3]
    assert starts == set(range(1, 10))


def test_each_place_predicts_the_item_after_the_ones_before_it(counted):
    for _, _, target in rows(counted, length=4):
        assert target.tolist() == [0, 1, 2, 3]


def test_with_a_horizon_a_place_predicts_any_of_the_items_that_come_soon(counted):
    met = [set() for _ in range(3)]
    for item, length, target in rows(counted, length=3, horizon=3):
        assert len(item) == 5
        if item[0] != 5 or item[1] != 4:
            for place in range(length):
                met[place].add(int(target[place]))
        else:
            assert target.max() < 3, "user 2 has three items"
    assert met == [{0, 1, 2}, {1, 2, 3}, {2, 3, 4}]


def test_lengths_are_drawn_between_the_least_and_the_most_and_never_pass_the_history(counted):
    of_one, of_two = set(), set()
    for item, length, _ in rows(counted, length=(2, 6)):
        (of_two if item[0] == 5 and item[1] == 4 else of_one).add(int(length))
    assert of_one == {2, 3, 4, 5, 6}
    assert of_two == {2, 3}


def test_a_larger_early_prefers_the_beginning_of_a_history(counted):
    mean = {
        early: np.mean([item[0] for item, _, _ in rows(counted, length=4, early=early) if item[1] > item[0]])
        for early in (1, 8)
    }
    assert mean[8] < mean[1] - 1


@pytest.mark.parametrize("timed", [True, False])
def test_in_random_order_or_without_timestamps_a_window_is_any_part_of_a_history(counted, timed):
    data = counted[0] if timed else Interactions.from_frames(counted[0].table.drop("timestamp"), feedback="implicit")
    windows = user_windows(data, counted[1], length=12, windows_per_batch=2, order="random" if timed else None)
    found = [drawn for batch in range(10) for drawn in windows.sample(batch)["item"].tolist() if len(set(drawn)) == 12]
    assert len(found) == 10
    assert all(set(drawn) == set(range(1, 13)) for drawn in found)
    assert len({tuple(drawn) for drawn in found}) == 10


def test_a_batch_depends_on_the_seed_and_its_number_alone(implicit):
    def batch(first, place, seed=0):
        windows = user_windows(
            implicit.data, implicit.vocabulary, length=5, negatives=7, windows_per_batch=6, seed=seed
        )
        batches = list(windows.dataset(first, 3).as_numpy_iterator())
        return batches[place]

    a, b, other = batch(0, 2), batch(2, 0), batch(2, 0, seed=1)
    tf.nest.map_structure(np.testing.assert_array_equal, a, b)
    assert (a.item["item_id"] != other.item["item_id"]).any()


def test_a_batch_holds_the_features_of_users_items_and_negatives(implicit):
    windows = user_windows(
        implicit.data, implicit.vocabulary, length=(1, 4), horizon=2, negatives=7, windows_per_batch=6
    )
    window = next(iter(windows.dataset()))
    assert window.user["segment"].shape == (6,)
    assert window.item["item_id"].shape == window.item["price"].shape == (6, 5)
    assert window.length.shape == (6,)
    assert window.target.shape == (6, 4)
    assert window.negatives.item["price"].shape == window.negatives.log_expected.shape == (7,)
    assert window.negatives.weight.shape == (6, 7)
    met = implicit.data.table.group_by("user_id").agg("item_id")  # Items are their own rows less 1 here.
    sets = [set(implicit.vocabulary.item_rows(items.to_numpy()).tolist()) for items in met["item_id"]]
    for row in range(6):
        own = next(s for s in sets if set(window.item["item_id"].numpy()[row].tolist()) <= s)
        drawn = window.negatives.item["item_id"].numpy()
        assert (window.negatives.weight.numpy()[row] == [float(item not in own) for item in drawn]).all()


def test_an_epoch_is_once_through_all_users(implicit):
    windows = user_windows(implicit.data, implicit.vocabulary, windows_per_batch=6)
    assert len(windows) == 4  # 20 users
    assert user_windows(implicit.data, implicit.vocabulary, negatives=0).sampler is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"length": 0}, "`length` must be at least 1, or the least and the most. Received: length=0"),
        ({"length": (3, 2)}, r"`length` must be at least 1, or the least and the most. Received: length=\(3, 2\)"),
        ({"horizon": 0}, "`horizon` must be at least 1. Received: horizon=0"),
        ({"windows_per_batch": 0}, "`windows_per_batch` must be at least 1. Received: windows_per_batch=0"),
        ({"negatives": -1}, "`negatives` must be at least 0. Received: negatives=-1"),
        ({"early": float("nan")}, "`early` must be at least 1. Received: early=nan"),
        ({"order": "newest"}, "`order` must be 'time' or 'random'. Received: order='newest'"),
        ({"negative_sampling": "category"}, "`negative_sampling` must be 'popularity' or 'uniform'. .*'category'"),
    ],
)
def test_options_out_of_range_are_refused(implicit, options, message):
    with pytest.raises(ValueError, match=message):
        user_windows(implicit.data, implicit.vocabulary, **options)


def test_time_order_needs_timestamps(counted):
    data = Interactions.from_frames(counted[0].table.drop("timestamp"), feedback="implicit")
    with pytest.raises(ValueError, match="`order` 'time' needs a `timestamp` column"):
        user_windows(data, counted[1], order="time")


def test_explicit_feedback_is_refused(explicit):
    with pytest.raises(ValueError, match="windows need implicit feedback"):
        user_windows(explicit.data, explicit.vocabulary)
