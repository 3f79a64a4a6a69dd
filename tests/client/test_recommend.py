"""What the client asks of an exported model, against the small shops of `conftest.py`."""

import re

import numpy as np
import pytest

from tfmetarec.client import Explanation, ServingError

pytestmark = pytest.mark.serving


def approx(pairs):
    return [(item, pytest.approx(score, abs=1e-6)) for item, score in pairs]


def test_recommends_what_follows_the_interactions(client):
    # Item 2 adds its label to item 3 and takes a quarter of it from item 1, which the user has.
    assert client.recommend([1, 2]) == approx([(3, 1.3), (6, 0.6), (5, 0.5), (4, 0.4)])
    assert client.recommend([1, 2], [1, 3], {"age": 10})[0] == (3, pytest.approx(3.4))
    assert client.recommend([]) == approx([(6, 0.6), (5, 0.5), (4, 0.4), (3, 0.3), (2, 0.2)])


def test_asks_for_a_number_of_items(client):
    assert client.recommend([1, 2], top_k=2) == approx([(3, 1.3), (6, 0.6)])
    assert [item for item, _ in client.recommend([], top_k=99)] == [6, 5, 4, 3, 2]  # As many as exported.


def test_leaves_out_what_is_excluded_and_fills_up_with_others(client):
    assert [item for item, _ in client.recommend([], exclude=[6, 4])] == [5, 3, 2, 1]
    assert [item for item, _ in client.recommend([], exclude=["6", 99], top_k=2)] == [5, 4]
    assert client.recommend([1, 2, 3], exclude=[4, 5, 6]) == []


def test_restricts_to_categories_where_every_feature_named_must_fit(client):
    assert [item for item, _ in client.recommend([], only={"department": "tea"})] == [5, 2, 1]
    assert [item for item, _ in client.recommend([], only={"department": ["tea", "jam"]})] == [5, 4, 3, 2, 1]
    assert [item for item, _ in client.recommend([], only={"shop tags": ["red", "blue"]})] == [3, 2, 1]
    both = {"shop tags": ["red", "blue"], "department": "tea"}
    assert [item for item, _ in client.recommend([], only=both)] == [2, 1]
    assert [item for item, _ in client.recommend([1], exclude=[5], only=both, top_k=3)] == [2]
    assert client.recommend([], only={"department": "coffee"}) == []


def test_ids_may_be_words(shops):
    with shops.client("words") as client:
        assert client.recommend(["w1", "w2"], top_k=1) == approx([("w3", 1.3)])
        assert [item for item, _ in client.recommend([], exclude=["w6", "w5"], top_k=2)] == ["w4", "w3"]
        assert client.explain(["w2"])[0].because == [("w2", pytest.approx(1.0))]
        assert client.score(["w3", "nothing of ours"], ["w2"]).tolist() == pytest.approx([1.3, 0.0])
        state = client.adapt(["w2"])
        assert client.recommend_with_state(state, exclude=["w2"], top_k=1) == approx([("w3", 1.3)])
        with pytest.raises(ValueError, match="`exclude` must hold text, as the model's ids are. Received: 3"):
            client.recommend([], exclude=[3])


def test_explains_by_the_contribution_of_each_interaction_largest_first(client):
    found = client.explain([4, 2, 1], [1, 2, 3])
    # 1 adds 3 to item 2, which the user has; 2 adds 2 to item 3, from which 4 takes a quarter; 4 adds 1 to item 5.
    assert [item for item, _, _ in found] == [3, 5, 6]
    assert found[0] == Explanation(
        3, pytest.approx(2.05), [(2, pytest.approx(2.0)), (1, pytest.approx(0.0)), (4, pytest.approx(-0.25))]
    )
    assert found[1].because == [(4, 1.0), (2, 0.0), (1, 0.0)]
    assert [(item, score) for item, score, _ in found] == client.recommend([4, 2, 1], [1, 2, 3])


def test_without_interactions_there_is_nothing_to_explain_by(client):
    assert client.explain([]) == [(item, pytest.approx(item / 10), []) for item in (6, 5, 4, 3, 2)]


def test_interactions_are_named_in_the_type_of_the_models_ids(client):
    assert client.explain(["4"])[0].because == [(4, 1.0)]


def test_scores_candidates_in_their_order(client):
    scores = client.score([3, 1, 99], [2], [2.0])
    assert (scores.dtype, scores.shape) == (np.float32, (3,))
    assert scores.tolist() == pytest.approx([2.3, -0.4, 0.0])
    assert client.score(["6"]).tolist() == pytest.approx([0.6])
    assert client.score([], [2]).shape == (0,)


def test_scores_new_items_by_what_is_known_of_them(client):
    new = [{"price": 2, "tags": ["red", "hot"]}, {"tags": "red", "taste": [1, 7], "blurb": "warm"}, {}]
    scores = client.score_new_items(new, [1, 2], [1.0, 3.0])  # The labels add 4 to each.
    assert (scores.dtype, scores.tolist()) == (np.float32, [2 + 20 + 4, 10 + 100 + 4, 4])
    assert client.score_new_items([]).shape == (0,)
    with pytest.raises(ValueError, match=re.escape("`new_items[0]` must hold features of the model")):
        client.score_new_items([{"colour": "red"}])


def test_two_steps_answer_as_one_does(client):
    state = client.adapt([1, 2], [1, 3], {"age": 10})
    assert (state.dtype, state.shape) == (np.float32, (8,))
    assert client.recommend_with_state(state, exclude=[1, 2]) == client.recommend([1, 2], [1, 3], {"age": 10})
    only = {"department": "tea"}
    assert client.recommend_with_state(state, top_k=2, only=only) == approx([(5, 0.6), (2, 1.3)][::-1])
    candidates = [3, 1, 99]
    np.testing.assert_array_equal(
        client.score_with_state(state, candidates), client.score(candidates, [1, 2], [1, 3], {"age": 10})
    )
    assert client.score_with_state(state.tolist(), []).shape == (0,)


def test_a_state_travels_to_the_last_bit(shops):
    # The mark of a version must arrive as it left: a tenth has no exact float.
    states = {}
    for protocol in ("rest", "grpc"):
        with shops.client(protocol=protocol, version=1) as client:
            states[protocol] = client.adapt([1, 2], [1 / 3, 1e-7], {"age": 33.3})
    np.testing.assert_array_equal(states["rest"], states["grpc"])


@pytest.mark.parametrize("version", [2, 3], ids=["as long", "longer"])
@pytest.mark.parametrize("protocol", ["rest", "grpc"])
def test_a_state_of_another_version_is_told_what_to_do(shops, protocol, version):
    with shops.client(version=1) as old:
        state = old.adapt([1, 2])
    with shops.client(protocol=protocol, version=version) as new:
        for ask in (lambda s: new.recommend_with_state(s), lambda s: new.score_with_state(s, [3])):
            with pytest.raises(ServingError) as caught:
                ask(state)
            assert caught.value.code == "FAILED_PRECONDITION"
            assert caught.value.message.endswith("than the one that answers: adapt again.")
            ask(new.adapt([1, 2]))


def test_a_client_that_knows_an_older_version_takes_a_state_of_the_newest(shops):
    with shops.client() as client, shops.client(version=1) as old:
        assert client.has_signature("adapt")
        client._signatures = old.metadata()["metadata"]["signature_def"]["signature_def"]  # As before an update.
        assert client.recommend_with_state(client.adapt([1, 2]), exclude=[1, 2], top_k=1) == approx([(3, 1.3)])


@pytest.mark.parametrize("state", [[[1.0] * 8], 3.0])
def test_a_state_that_is_no_vector_is_refused(client, state):
    with pytest.raises(
        ValueError, match=re.escape("`state` must be the vector that `adapt` returned. Received: shape (")
    ):
        client.score_with_state(state, [1])


def test_a_refusal_that_has_nothing_to_do_with_the_state_comes_through(client):
    with pytest.raises(ValueError, match=re.escape("`candidates` must hold whole numbers")):
        client.score_with_state(client.adapt([]), ["bread"])


def test_an_export_without_the_newer_signatures_says_what_it_has(shops):
    with shops.client("old") as client:
        assert client.recommend([1, 2])[0] == (3, pytest.approx(1.3))
        has = "it has adapt_and_recommend, adapt_and_score, explain."
        with pytest.raises(ServingError) as caught:
            client.recommend([1, 2], top_k=3)
        assert caught.value.code == "INVALID_ARGUMENT"
        assert caught.value.message == (
            "The model has no signature 'adapt_and_recommend_filtered', which `top_k`, `exclude` and `only` need; "
            + has
        )
        with pytest.raises(ServingError, match=re.escape(f"The model has no signature 'adapt'; {has}")):
            client.adapt([1])
