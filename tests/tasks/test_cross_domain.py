import re

import numpy as np
import polars as pl
import pytest

from tfmetarec.data import Interactions, Vocabulary
from tfmetarec.tasks.cross_domain import cross_domain_episodes

# User u meets items 10u + 1 to 10u + 4 in the source and 100 + 10u + 1 to 100 + 10u + 3 in the target; 5 has no source.
SOURCE = [(u, 10 * u + i, float(u)) for u in range(1, 5) for i in range(1, 5)]
TARGET = [(u, 100 + 10 * u + i, float(i)) for u in range(1, 6) for i in range(1, 4)]


def interactions(rows, feedback):
    table = pl.DataFrame(rows, schema=["user_id", "item_id", "label"], orient="row")
    return Interactions.from_frames(table, feedback=feedback)


def parts(feedback="explicit"):
    source, target = interactions(SOURCE, feedback), interactions(TARGET, feedback)
    return source, target, Vocabulary.fit(interactions(SOURCE + TARGET, feedback), user_ids=True)


def sampled(batch=0, feedback="explicit", **options):
    source, target, vocabulary = parts(feedback)
    episodes = cross_domain_episodes(source, target, vocabulary, tasks_per_batch=4, **{"query": 2, **options})
    return next(iter(episodes.dataset(batch, 1))), vocabulary, episodes


def test_the_support_is_of_the_source_and_the_query_of_the_target_of_the_same_user():
    episode, vocabulary, _ = sampled(support=(3, 3))
    assert episode.support.length.numpy().tolist() == [3, 3, 3, 3]
    assert episode.query.length.numpy().tolist() == [2, 2, 2, 2]
    support = vocabulary.item_ids[episode.support.item["item_id"].numpy()]
    query = vocabulary.item_ids[episode.query.item["item_id"].numpy()]
    user = episode.support.user["user_id"].numpy()  # Rows of users are their ids here.
    assert sorted(user) == [1, 2, 3, 4]
    assert (support // 10 == user[:, None]).all()
    assert ((query - 100) // 10 == user[:, None]).all()
    assert (episode.support.label.numpy() == user[:, None]).all()
    assert (episode.query.label.numpy() == query % 10).all()


def test_nothing_is_drawn_twice_and_lengths_end_where_the_user_does():
    episode, _, _ = sampled(support=(9, 9), query=8)
    assert episode.support.length.numpy().tolist() == [4] * 4
    assert episode.query.length.numpy().tolist() == [3] * 4
    for rows, count in ((episode.support, 4), (episode.query, 3)):
        for row in rows.item["item_id"].numpy():
            assert len(set(row[:count])) == count


def test_lengths_of_the_support_vary_between_the_bounds():
    _, _, episodes = sampled(support=(0, 3))
    lengths = np.concatenate([episodes.sample(batch)["support_length"] for batch in range(20)])
    assert set(lengths) == {0, 1, 2, 3}


def test_a_batch_depends_on_the_seed_and_its_number_alone():
    _, _, episodes = sampled(seed=4)
    _, _, again = sampled(seed=4)
    _, _, other = sampled(seed=5)
    one, two, three = (made.sample(3) for made in (episodes, again, other))
    assert all(np.array_equal(one[name], two[name]) for name in one)
    assert any(not np.array_equal(one[name], three[name]) for name in one)
    assert len(episodes) == 1


def test_negatives_are_of_the_domain_at_hand_and_never_the_users_own():
    episode, vocabulary, _ = sampled(feedback="implicit", negatives=40)
    ids = vocabulary.item_ids
    assert (ids[episode.support_negatives.item["item_id"].numpy()] < 100).all()
    drawn = ids[episode.query_negatives.item["item_id"].numpy()]
    assert (drawn > 100).all()
    owners, user = (drawn - 100) // 10, episode.query.user["user_id"].numpy()
    np.testing.assert_array_equal(episode.query_negatives.weight, owners[None] != user[:, None])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"support": (0, 0)}, "`support` must be a whole number of at least 1, or the least and the most"),
        ({"support": (5, 2)}, "`support` must be a whole number of at least 1, or the least and the most"),
        ({"query": 0}, "`query` must be at least 1. Received: query=0"),
        ({"seed": -1}, "`seed` must be at least 0. Received: seed=-1"),
        ({"negatives": 5}, "`negatives` must be at least 0, and 0 for explicit feedback. Received: negatives=5"),
    ],
)
def test_options_out_of_range_are_named(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        cross_domain_episodes(*parts(), **options)


def test_domains_without_shared_users_are_refused():
    source, target, vocabulary = parts()
    with pytest.raises(ValueError, match="`source` and `target` must share users with known items"):
        cross_domain_episodes(source, target.filter(pl.col("user_id") == 5), vocabulary)


def test_users_whose_known_items_lie_in_one_domain_are_left_out():
    source, target, _ = parts("implicit")
    vocabulary = Vocabulary.fit(interactions([row for row in SOURCE + TARGET if row[0] < 3], "implicit"))
    assert cross_domain_episodes(source, target, vocabulary, negatives=0).table.keys.to_list() == [1, 2]
