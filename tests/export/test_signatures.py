import keras
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
OPTIONS = {
    "exclude": np.array([["artículo-02", "artículo-03"]] * 3),
    "exclude_length": np.array([0, 1, 2], np.int32),
    "top_k": np.array([5, 3, 1], np.int32),
    "only_shelf": np.full((3, 1), ""),
    "only_marks": np.full((3, 1), ""),
}
NEW_ITEMS = {
    "item_price": np.array([[2.0, 2.0]] * 3, np.float32),
    "item_blurb": np.array([["word3 word4", "word30"]] * 3),
    "item_shelf": np.array([["high", "no such shelf"]] * 3),
    "item_marks": np.array([[["new", "cheap"], ["", ""]]] * 3),
    "item_marks_length": np.array([[2, 0]] * 3, np.int32),
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


def state_of(answers, **changed):
    return answers("adapt", **{**SUPPORT, **USERS, **changed})


def test_every_input_and_output_has_the_batch_first(answers):
    requests = {
        "serving_default": {**CANDIDATES, **USERS},
        "adapt_and_score": {**SUPPORT, **CANDIDATES, **USERS},
        "adapt_and_recommend": {**SUPPORT, **USERS},
        "adapt_and_recommend_filtered": {**SUPPORT, **USERS, **OPTIONS},
        "adapt": {**SUPPORT, **USERS},
        "score_with_state": {**state_of(answers), **CANDIDATES},
        "recommend_with_state": {**state_of(answers), **OPTIONS},
        "embed_items": {"items": CANDIDATES["candidates"][0]},
        "score_new_items": {**SUPPORT, **USERS, **NEW_ITEMS},
        "explain": {**SUPPORT, **USERS},
    }
    if answers.served.learner.is_retrieval:
        requests["embed_users"] = {**SUPPORT, **USERS}
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
    learner = implicit_answers.served.learner
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


# -- options of a recommendation ------------------------------------------------------------------------------------


def recommended(answers, **options):
    found = answers("adapt_and_recommend_filtered", **{**SUPPORT, **USERS, **OPTIONS, **options})
    return [[item for item in row if item] for row in found["items"].tolist()], found["scores"]


def ranking(answers):
    """All items of each user that are not in the support, best first."""
    everything = np.array(answers.served.vocabulary.item_ids[1:].tolist())
    scores = answers("adapt_and_score", **SUPPORT, candidates=np.tile(everything, (3, 1)), **USERS)["scores"]
    bought = [set(SUPPORT["support"][row, : SUPPORT["support_length"][row]]) for row in range(3)]
    return [[i for i in everything[np.argsort(-scores[row])] if i not in bought[row]] for row in range(3)]


def test_each_user_gets_as_many_items_as_asked_for_without_the_excluded_ones(answers):
    items, scores = recommended(answers)
    ranked = ranking(answers)
    assert items[0] == ranked[0][:5]  # Nothing is excluded: the length says so.
    assert items[1] == [item for item in ranked[1] if item != "artículo-02"][:3]
    assert items[2] == [item for item in ranked[2] if item not in ("artículo-02", "artículo-03")][:1]
    assert np.isfinite(scores).sum(axis=1).tolist() == [5, 3, 1]


def test_the_answer_is_as_wide_as_the_longest_list_asked_for_and_the_maximum_is_a_limit(answers):
    assert recommended(answers, top_k=np.array([2, 1, 2], np.int32))[1].shape == (3, 2)
    assert recommended(answers, top_k=np.array([99, -3, 0], np.int32))[1].shape == (3, 5)
    assert np.isfinite(recommended(answers, top_k=np.array([99, -3, 0], np.int32))[1]).sum(axis=1).tolist() == [5, 1, 1]


def test_only_items_of_the_categories_asked_for_are_recommended(answers):
    shelf = {f"artículo-{n:02d}": ("high", "low", "middle")[n % 3] for n in range(12)}
    ranked = ranking(answers)
    all_five = np.full(3, 5, np.int32)
    only = {"only_shelf": np.array([["low", ""], ["high", "middle"], ["", ""]])}
    items, _ = recommended(answers, **only, top_k=all_five, exclude_length=np.zeros(3, np.int32))
    assert items[0] == [item for item in ranked[0] if shelf[item] == "low"][:5]
    assert items[1] == [item for item in ranked[1] if shelf[item] != "low"][:5]
    assert items[2] == ranked[2][:5]


def test_lists_of_categories_and_several_features_narrow_together(answers):
    marks = {f"artículo-{n:02d}": [[], ["new"], ["new", "cheap"], ["cheap"]][n % 4] for n in range(12)}
    shelf = {f"artículo-{n:02d}": ("high", "low", "middle")[n % 3] for n in range(12)}
    only = {"only_marks": np.array([["cheap"]] * 3), "only_shelf": np.array([[""], ["low"], ["no such shelf"]])}
    options = {"top_k": np.full(3, 5, np.int32), "exclude_length": np.zeros(3, np.int32)}
    items, scores = recommended(answers, **only, **options)
    ranked = ranking(answers)
    assert items[0] == [item for item in ranked[0] if "cheap" in marks[item]][:5]
    assert items[1] == [item for item in ranked[1] if "cheap" in marks[item] and shelf[item] == "low"][:5]
    assert items[2] == []
    assert (scores[2] == -np.inf).all()


# -- states that a caller keeps -------------------------------------------------------------------------------------


def test_a_kept_state_scores_as_adapting_does(answers):
    kept = answers("score_with_state", **state_of(answers), **CANDIDATES)["scores"]
    adapted = answers("adapt_and_score", **SUPPORT, **CANDIDATES, **USERS)["scores"]
    np.testing.assert_allclose(kept, adapted, rtol=1e-5, atol=1e-6)


def test_a_kept_state_recommends_as_adapting_does_once_the_support_is_excluded(answers):
    options = {**OPTIONS, "exclude": SUPPORT["support"], "exclude_length": SUPPORT["support_length"]}
    found = answers("recommend_with_state", **state_of(answers), **options)
    items, scores = recommended(answers, exclude_length=np.zeros(3, np.int32))
    assert [[item for item in row if item] for row in found["items"].tolist()] == items
    np.testing.assert_allclose(found["scores"], scores, rtol=1e-5, atol=1e-6)


def test_a_state_of_another_version_gives_nan_to_its_user_alone(answers):
    state = state_of(answers)["state"]
    state[1, 0] += 1
    scores = answers("score_with_state", state=state, **CANDIDATES)["scores"]
    assert np.isnan(scores).all(axis=1).tolist() == [False, True, False]
    found = answers("recommend_with_state", state=state, **OPTIONS)
    assert np.isnan(found["scores"][1]).all()
    assert found["items"][1].tolist() == [""] * 5
    assert not np.isnan(found["scores"][[0, 2]]).any()


def test_versions_with_other_weights_have_another_stamp(shops, make_learner):
    vocabulary = shops["implicit"][1]
    learner = make_learner(vocabulary)
    stamp = ServedLearner(learner).state.stamp
    assert ServedLearner(learner).state.stamp == stamp
    learner.model.trainable_variables[0].assign_add(0.01 * np.ones_like(learner.model.trainable_variables[0]))
    assert ServedLearner(learner).state.stamp != stamp


# -- vectors, new items, reasons ------------------------------------------------------------------------------------


def test_users_vectors_times_items_vectors_are_the_scores(implicit_answers):
    users = implicit_answers("embed_users", **SUPPORT, **USERS)["embeddings"]
    items = implicit_answers("embed_items", items=CANDIDATES["candidates"][0])["embeddings"]
    scores = implicit_answers("adapt_and_score", **SUPPORT, **CANDIDATES, **USERS)["scores"]
    np.testing.assert_allclose(users @ items.T, scores, rtol=1e-4, atol=1e-5)


def test_a_new_item_is_scored_by_its_content_alone(answers):
    learner, vocabulary = answers.served.learner, answers.served.vocabulary
    raw = {name.removeprefix("user_"): tf.constant(value) for name, value in USERS.items()}
    rows = vocabulary.item_rows(SUPPORT["support"])
    items = {name: value[rows] for name, value in vocabulary.catalogue.items()}
    support = tmr.tasks.Support(
        vocabulary.encode("user", raw), items, SUPPORT["support_labels"], SUPPORT["support_length"]
    )
    new = {name.removeprefix("item_"): tf.constant(value[0]) for name, value in NEW_ITEMS.items()}
    features = vocabulary.encode("item", {**new, "item_id": tf.constant(["new-1", "new-2"])})
    expected = learner.score(learner.adapt(support), features).numpy()
    found = answers("score_new_items", **SUPPORT, **USERS, **NEW_ITEMS)["scores"]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert (np.abs(found[:, 0] - found[:, 1]) > 1e-4).all()


def test_the_reasons_are_what_leaving_a_row_out_changes(answers):
    found = answers("explain", **SUPPORT, **USERS)
    assert found["contributions"].shape == (3, 5, 3)
    assert found["items"].tolist() == answers("adapt_and_recommend", **SUPPORT, **USERS)["items"].tolist()
    for row in range(3):
        rest = {
            "support": np.delete(SUPPORT["support"], row, axis=1),
            "support_labels": np.delete(SUPPORT["support_labels"], row, axis=1),
            "support_length": np.maximum(SUPPORT["support_length"] - (row < SUPPORT["support_length"]), 0).astype(
                np.int32
            ),
        }
        without = answers("adapt_and_score", **rest, candidates=found["items"], **USERS)["scores"]
        moved = np.where(row < SUPPORT["support_length"][:, None], found["scores"] - without, 0.0)
        np.testing.assert_allclose(found["contributions"][:, :, row], moved, rtol=1e-3, atol=1e-5)
    assert np.abs(found["contributions"][0]).max() > 1e-3
    assert (found["contributions"][1] == 0).all()  # This user has no support.


def test_a_row_that_says_nothing_moves_nothing(implicit_answers):
    silent = {**SUPPORT, "support_labels": np.array([[1.0, 0.0, np.nan]] * 3, np.float32)}
    moved = implicit_answers("explain", **silent, **USERS)["contributions"]
    assert (moved[:, :, 1:] == 0).all()
    assert np.abs(moved[0, :, 0]).max() > 1e-3


@pytest.mark.parametrize("weights", ["float16", "int8"])
def test_fewer_bits_answer_nearly_alike(shops, make_learner, weights):
    learner = make_learner(shops["implicit"][1])
    exact, reduced = Answers(learner), Answers(learner)
    reduced.served = ServedLearner(learner, 5, weights=weights)
    reduced.signatures = reduced.served.signatures()
    for name, more in (("adapt_and_score", CANDIDATES), ("score_new_items", NEW_ITEMS)):
        expected = exact(name, **SUPPORT, **USERS, **more)["scores"]
        found = reduced(name, **SUPPORT, **USERS, **more)["scores"]
        assert 0 < np.abs(found - expected).max() < 0.02
    assert {variable.dtype for variable in reduced.signatures["embed_items"].variables} >= {tf.as_dtype(weights)}


def test_two_features_of_one_name_in_a_request_are_refused():
    from tfmetarec.export.names import input_names

    with pytest.raises(
        ValueError, match="two item features would be the same input 'only_a_b' of a request; rename one"
    ):
        input_names("only", ["a b", "a_b"], "item")


def test_a_support_of_no_width_is_an_empty_one(shops, make_learner):
    model = tmr.models.Ranker(shops["explicit"][1], 4, hidden=(5,))
    answers = Answers(tmr.meta.MAML(model, engine="vectorized"))
    empty = {
        "support": np.zeros((3, 0), "U1"),
        "support_labels": np.zeros((3, 0), np.float32),
        "support_length": np.zeros(3, np.int32),
    }
    default = answers("serving_default", **CANDIDATES, **USERS)["scores"]
    adapted = answers("adapt_and_score", **empty, **CANDIDATES, **USERS)["scores"]
    np.testing.assert_allclose(adapted, default, rtol=1e-5)
    assert answers("explain", **empty, **USERS)["contributions"].shape == (3, 5, 0)


def test_places_that_no_item_is_left_for_are_empty(answers):
    everything = np.array(answers.served.vocabulary.item_ids[1:].tolist())
    bought = {
        "support": np.tile(everything[:9], (3, 1)),
        "support_labels": np.ones((3, 9), np.float32),
        "support_length": np.array([9, 8, 0], np.int32),
    }
    for name in ("adapt_and_recommend", "explain"):
        items = answers(name, **bought, **USERS)["items"]
        assert (items == "").sum(axis=1).tolist() == [2, 1, 0]


def test_half_precision_is_refused_with_what_to_do(shops):
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        learner = tmr.meta.MAML(tmr.models.TwoTower(shops["implicit"][1], 4))
    finally:
        keras.config.set_dtype_policy("float32")
    with pytest.raises(ValueError, match="build it under the dtype policy float32 and load the same weights"):
        ServedLearner(learner)
