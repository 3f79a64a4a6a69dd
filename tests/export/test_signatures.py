import numpy as np
import pytest
import tensorflow as tf

import tfmetarec as tmr
from tfmetarec.export import ServedLearner

USERS = {
    "user_age": np.array([30.0, 50.0, np.nan], np.float32),
    "user_hobbies": np.array([["chess", "boats"], ["", ""], ["never heard of", "föhn"]]),
    "user_hobbies_length": np.array([2, 0, 2], np.int32),
    "user_bio": np.array(["likes chess", "", "nothing known"]),
    "user_taste": np.array([[0.1, 0.2, 0.3], [1.0, 1.0, 1.0], [0.0, 0.0, 0.0]], np.float32),
    "user_city": np.array(["Ulm", "Paris", "Lyon"]),
}
SUPPORT = {
    "support": np.array([["artículo-01", "artículo-05", "artículo-07"]] * 3),
    "support_labels": np.array([[5.0, 4.0, 1.0]] * 3, np.float32),
    "support_length": np.array([3, 0, 1], np.int32),
}
CANDIDATES = {"candidates": np.array([["artículo-00", "artículo-01", "no such item"]] * 3)}


class Answers:
    """Calls the signatures of a learner as a server would, with arrays in and arrays out."""

    def __init__(self, learner, top_k=5):
        self.served = ServedLearner(learner, top_k)
        self.signatures = self.served.signatures()

    def __call__(self, name, **inputs):
        answer = self.signatures[name](**{key: tf.constant(value) for key, value in inputs.items()})
        answer = {key: value.numpy() for key, value in answer.items()}
        if "items" in answer and answer["items"].dtype == object:
            answer["items"] = np.char.decode(answer["items"].astype(bytes), "utf-8")
        return answer


@pytest.fixture(scope="module", params=["two_tower-implicit", "two_tower-explicit", "ranker-explicit"])
def answers(request, shops, make_learner):
    kind, feedback = request.param.split("-")
    model = {"two_tower": tmr.models.TwoTower, "ranker": tmr.models.Ranker}[kind]
    return Answers(make_learner(shops[feedback][1], model))


@pytest.fixture(scope="module")
def implicit_answers(shops, make_learner):
    return Answers(make_learner(shops["implicit"][1]))


def test_every_input_and_output_has_the_batch_first(answers):
    requests = {
        "serving_default": {**CANDIDATES, **USERS},
        "adapt_and_score": {**SUPPORT, **CANDIDATES, **USERS},
        "adapt_and_recommend": {**SUPPORT, **USERS},
        "embed_items": {"items": CANDIDATES["candidates"][0]},
    }
    assert set(answers.signatures) == set(requests)
    for name, inputs in requests.items():
        specs = tf.nest.flatten(answers.signatures[name].structured_input_signature)
        assert {spec.name for spec in specs} == set(inputs)
        assert all(spec.shape.rank >= 1 and spec.shape[0] is None for spec in specs)
        for value in answers(name, **inputs).values():
            assert len(value) == 3


def test_a_user_without_support_is_scored_exactly_as_by_default(answers):
    adapted = answers("adapt_and_score", **SUPPORT, **CANDIDATES, **USERS)["scores"]
    default = answers("serving_default", **CANDIDATES, **USERS)["scores"]
    np.testing.assert_array_equal(adapted[1], default[1])
    assert not np.allclose(adapted[0], default[0])


def test_what_stands_past_the_length_changes_nothing(answers):
    garbage = {name: value.copy() for name, value in SUPPORT.items()}
    garbage["support"][2, 1:] = ["unheard of", "artículo-02"]
    garbage["support_labels"][1] = np.nan
    garbage["support_labels"][2, 1:] = [np.inf, -7.0]
    for name, more in (("adapt_and_score", {**CANDIDATES, **USERS}), ("adapt_and_recommend", USERS)):
        for key, value in answers(name, **SUPPORT, **more).items():
            np.testing.assert_array_equal(answers(name, **garbage, **more)[key], value)


def test_a_wider_support_answers_alike(answers):
    wide = {
        "support": np.concatenate([SUPPORT["support"], np.full((3, 30), "artículo-11")], axis=1),
        "support_labels": np.concatenate([SUPPORT["support_labels"], np.full((3, 30), 2.0, np.float32)], axis=1),
        "support_length": SUPPORT["support_length"],
    }
    found, expected = (answers("adapt_and_recommend", **part, **USERS) for part in (wide, SUPPORT))
    assert found["items"].tolist() == expected["items"].tolist()
    np.testing.assert_allclose(found["scores"], expected["scores"], rtol=1e-4, atol=1e-5)


def test_ids_never_seen_are_no_error_and_score_alike(answers):
    strange = {**SUPPORT, "support": np.full((3, 3), "unheard of")}
    nobody = {
        "candidates": np.array([["new", "newer", "artículo-03"]] * 3),
    }
    scores = answers("adapt_and_score", **strange, **nobody, **USERS)["scores"]
    assert np.isfinite(scores).all()
    np.testing.assert_array_equal(scores[:, 0], scores[:, 1])
    assert (scores[:, 0] != scores[:, 2]).all()
    items = answers("adapt_and_recommend", **strange, **USERS)["items"]
    assert np.char.startswith(items, "artículo-").all()


def test_recommendations_are_the_best_scored_items_outside_the_support(answers):
    vocabulary = answers.served.vocabulary
    everything = np.array(vocabulary.item_ids[1:].tolist())
    scores = answers("adapt_and_score", **SUPPORT, candidates=np.tile(everything, (3, 1)), **USERS)["scores"]
    found = answers("adapt_and_recommend", **SUPPORT, **USERS)
    for row in range(3):
        bought = set(SUPPORT["support"][row, : SUPPORT["support_length"][row]])
        ranked = [item for item in everything[np.argsort(-scores[row])] if item not in bought]
        assert found["items"][row].tolist() == ranked[:5]
        np.testing.assert_allclose(
            found["scores"][row],
            np.sort(scores[row][~np.isin(everything, list(bought))])[::-1][:5],
            rtol=1e-4,
            atol=1e-5,
        )


def test_support_items_are_never_among_those_with_a_score(answers):
    everything = np.array(answers.served.vocabulary.item_ids[1:].tolist())
    bought = {
        "support": np.tile(everything[:9], (3, 1)),
        "support_labels": np.ones((3, 9), np.float32),
        "support_length": np.array([9, 8, 0], np.int32),
    }
    found = answers("adapt_and_recommend", **bought, **USERS)
    # Three and four of twelve items are left for five places; what fills the rest says so by its score.
    assert np.isfinite(found["scores"]).sum(axis=1).tolist() == [3, 4, 5]
    for row, length in enumerate((9, 8, 0)):
        real = np.isfinite(found["scores"][row])
        assert not set(found["items"][row][real]) & set(everything[:length])
        assert (found["scores"][row][~real] == -np.inf).all()


def test_a_support_longer_than_the_catalogue_is_no_error(answers):
    everything = np.array(answers.served.vocabulary.item_ids[1:].tolist())
    wide = {
        "support": np.tile(np.concatenate([everything, everything]), (3, 1)),
        "support_labels": np.full((3, 24), 3.0, np.float32),
        "support_length": np.array([24, 11, 1], np.int32),
    }
    scores = answers("adapt_and_recommend", **wide, **USERS)["scores"]
    assert np.isfinite(scores).sum(axis=1).tolist() == [0, 1, 5]


def test_a_catalogue_smaller_than_top_k_is_shown_whole(shops, make_learner):
    answers = Answers(make_learner(shops["implicit"][1]), top_k=50)
    found = answers("adapt_and_recommend", **SUPPORT, **USERS)
    assert found["items"].shape == found["scores"].shape == (3, 12)
    assert sorted(found["items"][1]) == answers.served.vocabulary.item_ids[1:].tolist()


def test_users_that_differ_are_told_apart_and_lists_travel_with_their_length(implicit_answers):
    scores = implicit_answers("serving_default", **CANDIDATES, **USERS)["scores"]
    assert len({row.tobytes() for row in scores}) == 3
    longer = {**USERS, "user_hobbies": np.array([["chess", "boats", "föhn"]] * 3)}
    longer["user_hobbies"][1:] = [["gardens", "x", ""], ["never heard of", "föhn", "boats"]]
    np.testing.assert_allclose(implicit_answers("serving_default", **CANDIDATES, **longer)["scores"], scores, rtol=1e-5)


def test_with_implicit_feedback_a_label_of_zero_is_no_interaction(implicit_answers):
    zero = {**SUPPORT, "support_labels": np.array([[9.0, 0.0, -1.0]] * 3, np.float32)}
    one = {**SUPPORT, "support_length": np.array([1, 0, 1], np.int32)}
    found, expected = (implicit_answers("adapt_and_score", **part, **CANDIDATES, **USERS) for part in (zero, one))
    np.testing.assert_allclose(found["scores"], expected["scores"], rtol=1e-5, atol=1e-6)


def test_embeddings_times_a_query_are_the_scores(implicit_answers, shops, make_learner):
    learner = implicit_answers.served._learner
    vocabulary = shops["implicit"][1]
    raw = {name.removeprefix("user_"): tf.constant(value) for name, value in USERS.items()}
    none = {name: value[np.zeros((3, 1), int)] for name, value in vocabulary.catalogue.items()}
    support = tmr.tasks.Support(
        vocabulary.encode("user", raw), none, np.ones((3, 1), np.float32), np.zeros(3, np.int32)
    )
    query = learner.query(learner.adapt(support)).numpy()
    vectors = implicit_answers("embed_items", items=CANDIDATES["candidates"][0])["embeddings"]
    scores = implicit_answers("serving_default", **CANDIDATES, **USERS)["scores"]
    np.testing.assert_allclose(query @ vectors.T, scores, rtol=1e-4, atol=1e-5)


def test_what_cannot_be_served_is_refused(shops, make_learner):
    learner = make_learner(shops["explicit"][1])
    with pytest.raises(ValueError, match="`top_k` must be at least 1. Received: top_k=0"):
        ServedLearner(learner, 0)
    bare = tmr.meta.MAML(tmr.models.TwoTower(shops["explicit"][1].specs, 4))
    with pytest.raises(ValueError, match="`learner` needs a vocabulary to be served, since requests carry raw ids"):
        ServedLearner(bare)
