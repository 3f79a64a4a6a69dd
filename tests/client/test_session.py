"""The memory of one user's session."""

import threading

import pytest

from tfmetarec.client import Client, Session
from tfmetarec.client.session import REMEMBERED


@pytest.fixture
def offline():
    """A client that nobody answers: what a session keeps needs no server."""
    with Client() as client:
        yield client


def test_keeps_the_last_interactions(offline):
    session = offline.session(keep=2)
    for item in (1, 2, 3):
        session.add(item, label=item / 2)
    assert session.interactions == [(2, 1.0), (3, 1.5)]


def test_an_item_that_comes_again_takes_the_place_of_the_older(offline):
    session = offline.session(keep=3)
    for item, label in (("bread", 1), ("milk", 2), ("bread", 3)):
        session.add(item, label)
    assert session.interactions == [("milk", 2.0), ("bread", 3.0)]


def test_the_same_id_in_another_type_is_the_same_item(offline):
    import numpy as np

    session = offline.session()
    for item in (7, "7", np.int64(7), b"7"):
        session.add(item)
    assert len(session.interactions) == 1


def test_an_item_that_fell_out_and_comes_again_is_kept_once(offline):
    session = offline.session(keep=2)
    for item in (1, 2, 3, 1):
        session.add(item)
    assert [item for item, _ in session.interactions] == [3, 1]
    assert session._seen()[2] == {"2": 2}


def test_memory_is_bounded(offline):
    session = offline.session(keep=5)
    for item in range(REMEMBERED + 100):
        session.add(item)
    assert len(session.interactions) == 5
    older = list(session._seen()[2].values())
    assert (len(older), older[-1]) == (REMEMBERED, REMEMBERED + 94)


def test_a_session_keeps_at_least_one_interaction(offline):
    with pytest.raises(ValueError, match="`keep` must be at least 1. Received: keep=0"):
        offline.session(keep=0)


def test_threads_may_share_a_session(offline):
    session = offline.session(keep=8)

    def add(first):
        for item in range(first, first + 500):
            session.add(item)

    threads = [threading.Thread(target=add, args=(1000 * number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(session.interactions) == 8
    assert len(session._seen()[2]) == REMEMBERED


@pytest.mark.serving
def test_asks_with_what_it_keeps(client):
    session = client.session({"age": 10}, keep=2)
    assert isinstance(session, Session)
    assert session.recommend() == client.recommend([], user={"age": 10})
    session.add(1)
    session.add(2, label=3)
    assert session.recommend() == client.recommend([1, 2], [1, 3], {"age": 10})
    assert session.recommend(top_k=1, exclude=[3], only={"department": "jam"}) == [(4, pytest.approx(0.5))]
    assert session.explain() == client.explain([1, 2], [1, 3], {"age": 10})
    assert session.score([5, 3]).tolist() == client.score([5, 3], [1, 2], [1, 3], {"age": 10}).tolist()
    assert session.score_new_items([{"price": 2}]).tolist() == [6.0]  # And the labels, 1 and 3.
    session.user["age"] = 20
    assert session.score([5]).tolist() == pytest.approx([0.7])


@pytest.mark.serving
def test_never_sends_more_than_it_keeps(client):
    session = client.session(keep=2)
    for item in (1, 2, 3):
        session.add(item)
    # 1 does not add to item 2 any more: 0.2 less what 3 takes.
    assert session.score([2]).tolist() == pytest.approx([0.2 - 0.25])


@pytest.mark.serving
def test_never_recommends_what_it_has_seen_and_fills_up_with_others(client):
    session = client.session(keep=1)
    for item in (6, 5, 4, 1):
        session.add(item)
    # With the last alone: item 2 gets 1, and 6 and 5 would be next.
    assert client.recommend([1])[:3] == [(2, pytest.approx(1.2)), (6, pytest.approx(0.6)), (5, pytest.approx(0.5))]
    assert session.recommend() == [(2, pytest.approx(1.2)), (3, pytest.approx(0.3))]
    assert session.recommend(top_k=2) == [(2, pytest.approx(1.2)), (3, pytest.approx(0.3))]
    assert session.recommend(top_k=1, exclude=[2]) == [(3, pytest.approx(0.3))]
    assert [item for item, _, _ in session.explain()] == [2, 3]


@pytest.mark.serving
@pytest.mark.parametrize("which", ["old", "words"])
def test_never_recommends_what_it_has_seen_by_words_or_from_an_older_export(shops, which):
    name = "w{}" if which == "words" else "{}"
    with shops.client(which) as client:
        session = client.session(keep=1)
        for item in (6, 5, 1):
            session.add(name.format(item))
        assert [str(item) for item, _ in session.recommend()] == [name.format(item) for item in (2, 4, 3)]
