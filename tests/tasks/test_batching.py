import itertools

import numpy as np
import polars as pl
import pytest
import tensorflow as tf

from tfmetarec.data import Interactions, Vocabulary
from tfmetarec.tasks import domain_episodes, item_episodes, user_episodes


def episodes_of(setting, **options):
    options = {"support": (0, 4), "query": 3, "tasks_per_batch": 6, **options}
    return user_episodes(setting.data, setting.vocabulary, **options)


def flat(episode):
    return [np.asarray(tensor) for tensor in tf.nest.flatten(episode)]


def assert_same(first, second):
    for a, b in zip(flat(first), flat(second), strict=True):
        np.testing.assert_array_equal(a, b)


def take(episodes, count, first=0):
    return list(episodes.dataset(first, count))


@pytest.fixture
def by_domain():
    rng = np.random.default_rng(0)
    pairs = pl.DataFrame(list(itertools.product(range(12), range(10))), schema=["user_id", "item_id"], orient="row")
    pairs = pairs.with_columns(
        label=pl.Series(rng.integers(1, 6, 120).astype(float)),
        domain=pl.Series(rng.choice(["book", "film", "game"], 120)),
    )
    data = Interactions.from_frames(pairs, feedback="explicit")
    return data, Vocabulary.fit(data)


def test_a_batch_has_the_documented_shapes(implicit):
    episode = next(iter(implicit.episodes.dataset()))
    assert episode.support.user["user_id"].shape == (6,)
    assert episode.support.item["item_id"].shape == (6, 4)
    assert episode.query.item["tags"].shape == (6, 3, 2)
    assert episode.support.label.shape == (6, 4)
    assert episode.query.label.shape == (6, 3)
    assert episode.support.length.shape == episode.query.length.shape == (6,)
    assert episode.query_negatives.item["item_id"].shape == (12,)
    assert episode.query_negatives.log_expected.shape == (12,)
    assert episode.query_negatives.weight.shape == (6, 12)
    assert set(np.asarray(episode.support.label).ravel()) == {1.0}


def test_explicit_feedback_has_no_negatives(explicit):
    episode = next(iter(explicit.episodes.dataset()))
    assert episode.support_negatives == {} == episode.query_negatives
    assert set(np.asarray(episode.query.label).ravel()) <= {1.0, 2.0, 3.0, 4.0, 5.0}


def test_labels_belong_to_the_very_user_and_item_of_their_row(explicit):
    rated = {(u, i): label for u, i, label in explicit.data.table.select("user_id", "item_id", "label").iter_rows()}
    episodes = explicit.episodes
    table = episodes.table
    for batch in range(10):
        rows = episodes.sample(batch)
        for part in ("support", "query"):
            users = table.users.ids.to_numpy()[rows[f"{part}_user"]]
            items = table.items.ids.to_numpy()[rows[f"{part}_item"]]
            for task, user in enumerate(users):
                assert [rated[user, item] for item in items[task]] == rows[f"{part}_label"][task].tolist()


@pytest.mark.parametrize("feedback", ["implicit", "explicit"])
def test_support_precedes_query_in_time(settings, feedback):
    setting = settings[feedback]
    time = {(u, i): t for u, i, t in setting.data.table.select("user_id", "item_id", "timestamp").iter_rows()}
    episodes, counts = episodes_of(setting), set()
    users, items = episodes.table.users.ids.to_numpy(), episodes.table.items.ids.to_numpy()
    for batch in range(40):
        rows = episodes.sample(batch)
        for task, user in enumerate(users[rows["support_user"]]):
            k, q = rows["support_length"][task], rows["query_length"][task]
            support = [time[user, item] for item in items[rows["support_item"][task, :k]]]
            query = [time[user, item] for item in items[rows["query_item"][task, :q]]]
            assert support == sorted(support)
            assert query == sorted(query)
            assert not support or support[-1] < query[0]
            counts.add((int(k), int(q)))
    assert counts == {(k, 3) for k in range(5)}


@pytest.mark.parametrize("kind", ["popularity", "uniform", "category"])
def test_negatives_that_the_user_met_anywhere_weigh_nothing(implicit, kind):
    met = {user: set(part["item_id"]) for (user,), part in implicit.data.table.group_by("user_id")}
    episodes = episodes_of(implicit, negatives=30, negative_sampling=kind)
    users, items = episodes.table.users.ids.to_numpy(), episodes.table.items.ids.to_list()
    for batch, part in itertools.product(range(5), ("support", "query")):
        rows = episodes.sample(batch)
        weight = rows[f"{part}_negative_weight"]
        drawn = np.broadcast_to(rows[f"{part}_negative_item"], weight.shape)
        for task, user in enumerate(users[rows["query_user"]]):
            assert weight[task].tolist() == [float(items[row] not in met[user]) for row in drawn[task]]


def test_category_negatives_are_of_a_query_items_group(implicit):
    episode = next(iter(episodes_of(implicit, negatives=25, negative_sampling="category").dataset()))
    assert episode.query_negatives.item["item_id"].shape == (6, 25)
    drawn, own = np.asarray(episode.query_negatives.item["group"]), np.asarray(episode.query.item["group"])
    assert all(set(drawn[task]) == set(own[task]) for task in range(6))


def test_support_and_query_have_negatives_of_their_own(implicit):
    rows = implicit.episodes.sample(0)
    assert rows["support_negative_item"].tolist() != rows["query_negative_item"].tolist()


@pytest.mark.parametrize("feedback", ["implicit", "explicit"])
def test_equal_seeds_give_equal_episodes_and_others_different_ones(settings, feedback):
    one, same, other = (take(episodes_of(settings[feedback], seed=seed), 3) for seed in (5, 5, 6))
    for a, b, c in zip(one, same, other, strict=True):
        assert_same(a, b)
        assert any(not np.array_equal(x, y) for x, y in zip(flat(a), flat(c), strict=True))


def test_starting_at_batch_seven_equals_skipping_seven(implicit):
    skipped = list(implicit.episodes.dataset(0, 10).skip(7))
    started = take(implicit.episodes, 3, first=7)
    assert len(skipped) == len(started) == 3
    for a, b in zip(skipped, started, strict=True):
        assert_same(a, b)


def test_every_task_comes_once_a_round(explicit):
    episodes = episodes_of(explicit, tasks_per_batch=5)
    assert len(episodes) == 4  # 20 users
    for round_ in range(3):
        users = np.concatenate([episodes.sample(4 * round_ + batch)["query_user"] for batch in range(4)])
        assert sorted(users) == list(range(20))


def test_sampling_a_batch_twice_is_the_same_and_touches_no_global_generator(implicit):
    state = np.random.get_state()[1].tolist()  # noqa: NPY002
    first, again = implicit.episodes.sample(3), implicit.episodes.sample(3)
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert np.random.get_state()[1].tolist() == state  # noqa: NPY002


def test_a_data_set_without_end_goes_past_the_epoch(explicit):
    assert len(list(explicit.episodes.dataset().take(7))) == 7 > len(explicit.episodes)


def test_more_tasks_a_batch_than_there_are_is_no_error(explicit):
    episode = next(iter(episodes_of(explicit, tasks_per_batch=50).dataset()))
    assert episode.query.label.shape == (50, 3)


def test_item_tasks_have_one_item_and_many_users(explicit):
    episodes = item_episodes(explicit.data, explicit.vocabulary, support=(0, 3), query=2, tasks_per_batch=4)
    episode = next(iter(episodes.dataset()))
    assert episode.support.item["item_id"].shape == episode.query.item["tags_length"].shape == (4,)
    assert episode.query.item["tags"].shape == (4, 2)
    assert episode.support.user["segment"].shape == (4, 3)
    assert episode.query.user["user_id"].shape == (4, 2)
    assert_same(episode.support.item, episode.query.item)
    assert episode.support_negatives == {}


def test_domain_tasks_have_both_sides_per_row_and_keep_to_their_domain(by_domain):
    data, vocabulary = by_domain
    domain = {(u, i): d for u, i, d in data.table.select("user_id", "item_id", "domain").iter_rows()}
    episodes = domain_episodes(data, vocabulary, support=(1, 5), query=4, tasks_per_batch=3, order="random")
    episode = next(iter(episodes.dataset()))
    assert episode.support.user["user_id"].shape == episode.support.item["item_id"].shape == (3, 5)
    assert episode.query.user["user_id"].shape == episode.query.item["item_id"].shape == (3, 4)
    rows = episodes.sample(0)
    users, items = episodes.table.users.ids.to_list(), episodes.table.items.ids.to_list()
    met = [
        {domain[users[u], items[i]] for u, i in zip(rows["query_user"][task], rows["query_item"][task], strict=True)}
        for task in range(3)
    ]
    assert sorted(map(len, met)) == [1, 1, 1]
    assert set.union(*met) == {"book", "film", "game"}


def test_whole_numbers_mean_exactly_that_much_support(explicit):
    rows = episodes_of(explicit, support=2).sample(0)
    assert rows["support_length"].tolist() == [2] * 6
    assert episodes_of(explicit, support=[0, 2]).support == (0, 2)  # As a YAML file writes it.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"support": (3, 2)}, r"`support` must be a whole number of at least 0, .* Received: support=\(3, 2\)"),
        ({"support": (1, 2, 3)}, r"or the least and the most. Received: support=\(1, 2, 3\)"),
        ({"support": -1}, "`support` must be a whole number of at least 0, .* Received: support=-1"),
        ({"seed": -1}, "`seed` must be at least 0. Received: seed=-1"),
        ({"query": 0}, "`query` must be at least 1. Received: query=0"),
        ({"tasks_per_batch": 0}, "`tasks_per_batch` must be at least 1. Received: tasks_per_batch=0"),
        ({"early": 0.5}, "`early` must be at least 1. Received: early=0.5"),
        ({"early": float("nan")}, "`early` must be at least 1. Received: early=nan"),
        ({"min_interactions": 1}, "`min_interactions` must be at least 2. Received: min_interactions=1"),
        ({"steps_per_epoch": 0}, "`steps_per_epoch` must be at least 1. Received: steps_per_epoch=0"),
        ({"negatives": 5}, "`negatives` must be at least 0, and 0 unless tasks are users with implicit feedback"),
        ({"order": "score"}, "`order` must be 'time' or 'random'. Received: order='score'"),
    ],
)
def test_options_out_of_range_are_refused(explicit, options, message):
    with pytest.raises(ValueError, match=message):
        episodes_of(explicit, **options)


def test_time_order_needs_times_and_a_known_way_of_drawing(by_domain, implicit):
    with pytest.raises(ValueError, match="`order` 'time' needs a `timestamp` column"):
        user_episodes(*by_domain, order="time")
    with pytest.raises(ValueError, match="`negative_sampling` must be one of popularity, uniform, category"):
        episodes_of(implicit, negative_sampling="hardest")
