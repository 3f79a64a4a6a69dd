import numpy as np
import pytest

from tfmetarec.tasks.samplers import NegativeSampler, draw_slots, task_stream
from tfmetarec.tasks.table import TaskTable


def table_of(*sizes, items=None):
    """Tasks of these sizes whose slot `s` holds item `items[s]`, or `s + 1`."""
    start = np.concatenate([[0], np.cumsum(sizes)])
    item = np.arange(1, start[-1] + 1) if items is None else np.asarray(items)
    return TaskTable("user", None, start, None, item.astype(np.int32), None, None, None, True, ())


def draw(table, times=200, seed=0, support=(0, 4), query=3, in_time=True, early=1.0):
    tasks = np.tile(np.arange(len(table.start) - 1), times)
    rng = np.random.default_rng(seed)
    return draw_slots(table, tasks, support=support, query=query, in_time=in_time, early=early, rng=rng)


def real(slots, length):
    return [row[:count].tolist() for row, count in zip(slots, length, strict=True)]


TABLE = table_of(2, 3, 5, 7, 20)


@pytest.mark.parametrize("in_time", [True, False])
def test_every_draw_stays_inside_its_task_and_repeats_nothing(in_time):
    drawn = draw(TABLE, in_time=in_time)
    support, query = real(drawn.support, drawn.support_length), real(drawn.query, drawn.query_length)
    for task, s, q in zip(drawn.tasks, support, query, strict=True):
        both = s + q
        assert len(set(both)) == len(both)
        assert TABLE.start[task] <= min(both)
        assert max(both) < TABLE.start[task + 1]
    # Padding too must be a slot of the same task, so that looking it up is never an error.
    for slots in (drawn.support, drawn.query):
        assert (slots >= TABLE.start[drawn.tasks][:, None]).all()
        assert (slots < TABLE.start[drawn.tasks + 1][:, None]).all()


def test_in_time_order_support_precedes_query():
    drawn = draw(TABLE)
    support, query = real(drawn.support, drawn.support_length), real(drawn.query, drawn.query_length)
    assert all(max(s) < min(q) for s, q in zip(support, query, strict=True) if s)
    assert all(s == sorted(s) and q == sorted(q) for s, q in zip(support, query, strict=True))
    assert all(s == list(range(s[0], s[0] + len(s))) for s in support if s)


def test_lengths_reach_both_ends_of_the_bounds():
    drawn = draw(TABLE, support=(1, 4))
    long = drawn.tasks == 4
    assert set(drawn.support_length[long]) == {1, 2, 3, 4}
    assert set(drawn.query_length[long]) == {3}
    assert set(draw(TABLE).support_length[long]) == {0, 1, 2, 3, 4}


def test_short_tasks_split_in_proportion_and_keep_a_query():
    drawn = draw(TABLE, support=(4, 4), query=3)
    lengths = {
        task: (set(drawn.support_length[drawn.tasks == task]), set(drawn.query_length[drawn.tasks == task]))
        for task in range(5)
    }
    # Of 2, 3, 5 and 7 interactions, 4/7 rounded are the support, and always at least one is the query.
    assert lengths == {0: ({1}, {1}), 1: ({2}, {1}), 2: ({3}, {2}), 3: ({4}, {3}), 4: ({4}, {3})}
    assert set(draw(table_of(2), support=(9, 9), query=1).query_length) == {1}


def test_no_support_at_all_is_possible():
    drawn = draw(TABLE, support=(0, 0))
    assert drawn.support.shape == (len(drawn.tasks), 0)
    assert not drawn.support_length.any()
    assert drawn.query_length.min() >= 1


def test_windows_start_anywhere_and_earlier_when_asked():
    starts = {early: draw(table_of(20), times=4000, support=(1, 4), early=early).support[:, 0] for early in (1.0, 4.0)}
    assert set(starts[1.0]) == set(range(14))  # 20 - 7 + 1 places
    # u ** 4 < 1/2 for u < 0.5 ** 0.25.
    assert abs((starts[4.0] < 7).mean() - 0.5**0.25) < 0.03
    assert abs((starts[1.0] < 7).mean() - 0.5) < 0.03


def test_random_order_makes_every_interaction_a_query_as_often():
    drawn = draw(table_of(8), times=8000, support=(3, 3), query=1, in_time=False)
    share = np.bincount(drawn.query[:, 0], minlength=8) / 8000
    np.testing.assert_allclose(share, 1 / 8, atol=0.02)


def test_the_stream_visits_every_task_once_a_round():
    stream = task_stream(7, 0, 70, seed=3).reshape(10, 7)
    assert all(sorted(row) == list(range(7)) for row in stream.tolist())
    assert len({tuple(row) for row in stream.tolist()}) > 1


def test_any_stretch_of_the_stream_can_be_drawn_alone():
    whole = task_stream(5, 0, 40, seed=1)
    for first, count in ((0, 1), (3, 9), (5, 5), (14, 26), (39, 1)):
        assert task_stream(5, first, count, seed=1).tolist() == whole[first : first + count].tolist()
    assert task_stream(5, 0, 40, seed=2).tolist() != whole.tolist()


# -- negatives ---------------------------------------------------------------------------------------------------

POPULARITY = np.array([0, 8, 4, 2, 2, 1, 1, 1, 1])
CATEGORY = np.array([0, 1, 1, 1, 2, 2, 2, 0, 0])
HISTORIES = [[1, 2, 4], [1, 5], [3, 6, 7, 8]]
SHOP = table_of(3, 2, 4, items=[item for history in HISTORIES for item in history])


def negatives(kind, count=300, seed=0):
    sampler = NegativeSampler(SHOP, POPULARITY, kind, CATEGORY)
    tasks = np.array([2, 0, 1, 0])
    query = np.array([[8, 8], [2, 3 - 1], [3, 4], [0, 1]])  # Slots: task 0 owns 0-2, task 1 3-4, task 2 5-8.
    return tasks, query, sampler.draw(tasks, query, count, np.random.default_rng(seed))


@pytest.mark.parametrize("kind", NegativeSampler.KINDS)
def test_a_positive_of_the_task_has_weight_zero_and_everything_else_one(kind):
    tasks, _, (rows, _, weight) = negatives(kind)
    assert weight.shape == (4, 300)
    rows = np.broadcast_to(rows, weight.shape)
    expected = [[float(item not in HISTORIES[task]) for item in row] for task, row in zip(tasks, rows, strict=True)]
    np.testing.assert_array_equal(weight, expected)
    assert {0.0, 1.0} == set(weight.ravel())


@pytest.mark.parametrize("kind", NegativeSampler.KINDS)
def test_the_unknown_item_is_never_drawn(kind):
    _, _, (rows, _, _) = negatives(kind)
    assert rows.min() >= 1
    assert rows.max() < len(POPULARITY)
    assert rows.dtype == np.int32


def test_category_negatives_share_the_category_of_a_query_item():
    tasks, query, (rows, log_expected, _) = negatives("category")
    for row, slots in zip(rows, query, strict=True):
        categories = {int(CATEGORY[SHOP.item[slot]]) for slot in slots}
        assert {int(CATEGORY[item]) for item in row} == categories
        assert set(row) == {item for item in range(1, 9) if CATEGORY[item] in categories}
    assert not log_expected.any()
    assert log_expected.shape == rows.shape == (len(tasks), 300)


@pytest.mark.parametrize(("kind", "share"), [("uniform", np.full(8, 1 / 8)), ("popularity", POPULARITY[1:] ** 0.75)])
def test_draws_and_their_expectation_follow_the_stated_probability(kind, share):
    share = share / share.sum()
    sampler = NegativeSampler(SHOP, POPULARITY, kind)
    rows = sampler.draw_shared(20000, np.random.default_rng(0))
    np.testing.assert_allclose(np.bincount(rows, minlength=9)[1:] / 20000, share, atol=0.01)
    _, _, (rows, log_expected, _) = negatives(kind)
    np.testing.assert_allclose(log_expected, np.log(300 * share[rows - 1]), rtol=1e-5)


def test_the_largest_random_number_still_draws_an_item():
    class AlmostOne:
        def random(self, count):
            return np.full(count, np.nextafter(1.0, 0.0))

    popularity = np.concatenate([[0], np.random.default_rng(0).integers(1, 1000, 5000)])
    assert NegativeSampler(SHOP, popularity, "popularity").draw_shared(1, AlmostOne()).tolist() == [5000]


def test_unknown_kinds_and_a_missing_category_are_refused():
    with pytest.raises(
        ValueError, match="`negative_sampling` must be one of popularity, uniform, category. Received: 'hard'"
    ):
        NegativeSampler(SHOP, POPULARITY, "hard")
    with pytest.raises(ValueError, match="'category' needs an item feature of kind category; there is none"):
        NegativeSampler(SHOP, POPULARITY, "category")
