"""Items added to a catalogue without training: a larger version of the same weights."""

import json

import numpy as np
import polars as pl
import pytest
import tensorflow as tf

import tfmetarec as tmr
from tfmetarec.export import Holdout, ServedLearner, TwoStage, saved_model
from tfmetarec.export.example_requests import example_request

NEW = pl.DataFrame(
    {"item_id": ["zither", "accordion"], "price": [2.0, 8.0], "shelf": ["low", "high"], "marks": [["new"], []]}
)


@pytest.fixture(scope="module", params=["implicit", "explicit"])
def grown(request, shops, make_learner):
    """The same learner served without and with two items more."""
    learner = make_learner(shops[request.param][1])
    return ServedLearner(learner, 14), ServedLearner(learner, 14, vocabulary=learner.vocabulary.with_items(NEW))


def requested(served, signature, **changes):
    return {**example_request(served, signature, batch=2, support=4, candidates=2, seed=0), **changes}


def answers(served, signature, request):
    found = served.signatures()[signature](**{name: tf.constant(value) for name, value in request.items()})
    return {name: value.numpy() for name, value in found.items()}


def test_an_added_item_scores_as_the_same_content_without_a_row_does(grown):
    _, after = grown
    request = requested(after, "adapt_and_score", candidates=np.array([["zither", "accordion"]] * 2))
    scored = answers(after, "adapt_and_score", request)["scores"]
    content = {
        "price": np.tile(np.float32([2.0, 8.0]), (2, 1)),
        "shelf": np.array([["low", "high"]] * 2),
        "marks": np.array([[["new"], [""]]] * 2),
        "marks_length": np.int32([[1, 0]] * 2),
        "blurb": np.array([["", ""]] * 2),
    }
    content = {after.item_inputs[name]: value for name, value in content.items()}
    same = {name: value for name, value in request.items() if name != "candidates"}
    new = answers(after, "score_new_items", {**same, **content})["scores"]
    np.testing.assert_allclose(scored, new, rtol=1e-5, atol=1e-6)
    assert (scored[:, 0] != scored[:, 1]).all()


def test_adding_items_changes_nothing_for_the_others(grown):
    before, after = grown
    request = requested(before, "adapt_and_score")
    old, new = (answers(served, "adapt_and_score", request)["scores"] for served in grown)
    np.testing.assert_array_equal(old, new)
    assert before.state.stamp == after.state.stamp  # What clients keep stays valid.


def test_added_items_are_recommended_in_their_place(grown):
    _, after = grown
    found = answers(
        after, "adapt_and_recommend", requested(after, "adapt_and_recommend", support_length=np.int32([0, 2]))
    )
    assert all({"zither", "accordion"} <= {item.decode() for item in row} for row in found["items"])
    assert (np.diff(found["scores"][0]) <= 0).all()


def test_an_added_item_can_be_support_and_is_not_recommended_again(grown):
    _, after = grown
    support = {"support": np.array([["zither", "", "", ""]] * 2), "support_labels": np.ones((2, 4), np.float32)}
    request = requested(after, "adapt_and_recommend", **support, support_length=np.int32([1, 0]))
    found = answers(after, "adapt_and_recommend", request)
    assert b"zither" not in found["items"][0].tolist()
    assert b"zither" in found["items"][1].tolist()


def test_a_filter_finds_an_added_item_by_its_category(grown):
    _, after = grown
    asked = {wire: np.full((2, 1), "") for wire in after.filters.values()}
    asked[after.filters["shelf"]] = np.array([["low"], ["high"]])
    nothing = {name: np.zeros(2, np.int32) for name in ("support_length", "exclude_length")}
    request = requested(after, "adapt_and_recommend_filtered", **asked, **nothing, top_k=np.int32([14, 14]))
    low, high = answers(after, "adapt_and_recommend_filtered", request)["items"].tolist()
    assert (b"zither" in low, b"zither" in high) == (True, False)
    assert (b"accordion" in low, b"accordion" in high) == (False, True)


@pytest.mark.parametrize("options", [{}, pytest.param({"weights": "int8"}, marks=pytest.mark.slow)])
def test_a_version_with_added_items_passes_the_gate_and_names_them(shops, make_learner, tmp_path, options):
    _, vocabulary = shops["implicit"]
    export = saved_model(make_learner(vocabulary), tmp_path / "shop", top_k=5, new_items=NEW, **options)
    card = json.loads((export.path / "assets.extra" / "tfmetarec.json").read_text())
    assert (card["items"], card["added_items"]) == (14, 2)
    assert max(export.differences.values()) < 1e-5
    read = tmr.data.Vocabulary.load(export.path / "assets.extra" / "vocabulary")
    assert read.item_names[-2:] == ["zither", "accordion"]
    assert read.item_rows(["accordion", "zither", "artículo-00"]).tolist() == [14, 13, 1]


@pytest.mark.slow
def test_a_two_stage_search_has_a_place_for_added_items(shops, make_learner, tmp_path):
    data, vocabulary = shops["implicit"]
    search, holdout = TwoStage(recall=0.5, clusters=7), Holdout(data, (1, 2), 2)
    export = saved_model(
        make_learner(vocabulary), tmp_path / "shop", top_k=2, search=search, holdout=holdout, new_items=NEW
    )
    assert "14 items (2 of them added)" in export.search


@pytest.mark.slow
def test_a_model_that_runs_whole_takes_added_items(own_model, explicit, tmp_path):
    learner = tmr.meta.MAML(own_model(explicit.vocabulary), vocabulary=explicit.vocabulary, inner_learning_rate=0.1)
    new = pl.DataFrame({"item_id": [500], "price": [9.0]})
    export = saved_model(learner, tmp_path / "own", top_k=5, new_items=new)
    assert max(export.differences.values()) < 1e-5
