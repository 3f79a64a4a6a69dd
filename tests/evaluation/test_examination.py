"""What an examination finds, against what its parts find."""

import numpy as np
import polars as pl
import pytest

import tfmetarec as tmr
from tfmetarec.evaluation import Examination, cold_start, examine, fitted_floors
from tfmetarec.evaluation.calibration import Platt, ece

ASKED = {"query": 4, "top_k": 5, "seed": 1}


def made(feedback, states=False):
    data = tmr.data.load(
        "synthetic", n_users=200, n_items=60, n_groups=4, interactions_per_user=12, feedback=feedback, seed=0
    )
    split = tmr.data.every_state(data, warm_rows=4, seed=0) if states else tmr.data.cold_users(data, seed=0)
    vocabulary = tmr.data.Vocabulary.fit(split.train)
    learner = tmr.meta.MAML(tmr.models.TwoTower(vocabulary, 8, seed=0), inner_learning_rate=0.5, contrast=20)
    return split, vocabulary, {**fitted_floors(split.train, vocabulary), "MAML": learner}


@pytest.fixture(scope="module")
def implicit():
    split, vocabulary, named = made("implicit", states=True)
    words = []
    found = examine(named, split, vocabulary, "MAML", shots=4, steps=(0, 2), progress=words.append, **ASKED)
    return split, vocabulary, named, found, words


def test_lists_are_those_of_the_table(implicit):
    split, vocabulary, named, found, _ = implicit
    table = cold_start(named, split.test, vocabulary=vocabulary, shots=(4,), predictions=True, **ASKED)
    own = table.predictions.filter(pl.col("learner") == "item-KNN")
    row = found.figures.filter(pl.col("learner") == "item-KNN").row(0, named=True)
    assert row["coverage"] == own["item_id"].explode().n_unique() / (vocabulary.n_items - 1)
    metric = table.summary.filter((pl.col("learner") == "item-KNN") & (pl.col("metric") == "novelty@5"))
    assert row["novelty"] == metric["mean"].item()
    assert found.figures["learner"].to_list() == list(named)
    # What few ask for surprises: lists of what is popular surprise least.
    assert found.figures.sort("novelty")["learner"][0] == "popularity"


def test_probabilities_are_fitted_on_validation_users(implicit):
    split, vocabulary, named, found, _ = implicit
    pairs = {}
    for part in ("validation", "test"):
        table = cold_start(
            {"k": named["item-KNN"]}, split[part], vocabulary=vocabulary, shots=(4,), predictions=True, **ASKED
        )
        rows = table.predictions.rows(named=True)
        scores = [score for row in rows for score in row["score"]]
        labels = [int(item in row["relevant"]) for row in rows for item in row["item_id"]]
        pairs[part] = (np.array(labels), np.array(scores))
    labels, scores = pairs["test"]
    expected = ece(labels, Platt.fit(*pairs["validation"]).probability(scores))
    row = found.figures.filter(pl.col("learner") == "item-KNN").row(0, named=True)
    assert row["ece"] == pytest.approx(expected)
    assert found.reliability.filter(pl.col("learner") == "item-KNN")["rows"].sum() == len(labels)


def test_an_item_asked_for_counts_as_found_if_the_list_has_it(implicit):
    split, vocabulary, named, found, _ = implicit
    table = cold_start(named, split.test, vocabulary=vocabulary, shots=(4,), predictions=True, **ASKED)
    rows = table.predictions.filter(pl.col("learner") == "MAML").rows(named=True)
    group = dict(split.train.items.select("item_id", "group").iter_rows())
    first = found.items.filter((pl.col("learner") == "MAML") & (pl.col("feature") == "group")).row(0, named=True)
    means = []
    for row in rows:
        own = [item in row["item_id"] for item in row["relevant"] if str(group[item]) == first["group"]]
        means += [np.mean(own)] if own else []
    assert first["mean"] == pytest.approx(np.mean(means))
    assert first["users"] == len(means)


def test_every_part_says_where_it_is_and_all_states_are_there(implicit):
    *_, found, words = implicit
    assert "judging MAML" in words
    assert "asking MAML about validation users" in words
    assert found.states["state"].unique(maintain_order=True).to_list() == [
        "warm",
        "user_cold",
        "item_cold",
        "both_cold",
    ]
    assert found.steps.select("K", "steps").unique().sort("K", "steps").rows() == [(1, 0), (1, 2), (4, 0), (4, 2)]
    assert found.about["floor"] in found.figures["learner"].to_list()
    assert found.users["learner"].unique(maintain_order=True).to_list() == ["MAML", found.about["floor"]]


def test_it_says_in_words_what_is_worst(implicit):
    *_, found, _ = implicit
    said = found.sentences()
    own = found.users.filter(pl.col("learner") == "MAML").sort("mean", maintain_order=True).row(0, named=True)
    assert said[0].startswith(f"Worst slice of users: {own['feature']} {own['group']}, recall@5 {own['mean']:.4f} [")
    assert any(line.startswith("Worst slice of items: ") for line in said)
    assert said[-1].startswith("A probability of MAML is off by 0.")


def test_it_comes_back_from_its_folder(implicit, tmp_path):
    *_, found, _ = implicit
    assert Examination.load(tmp_path) is None
    found.save(tmp_path / "deep")
    again = Examination.load(tmp_path / "deep")
    assert again.sentences() == found.sentences()
    for name in ("figures", "reliability", "users", "items", "gaps", "steps", "states"):
        assert getattr(again, name).equals(getattr(found, name)), name


def test_ratings_are_positive_from_three_quarters_of_the_range_and_have_no_lists(tmp_path):
    split, vocabulary, named = made("explicit")
    found = examine(named, split, vocabulary, "MAML", shots=4, steps=(), **ASKED)
    low, high = vocabulary.label_range
    assert found.about["positive_rating"] == low + 0.75 * (high - low)
    assert found.figures["coverage"].null_count() == found.figures.height
    assert found.figures.select("accuracy", "f1", "ece").null_count().sum_horizontal().item() == 0
    assert found.about["item_metric"] == "absolute error"
    assert found.steps.is_empty()
    found.save(tmp_path)
    assert Examination.load(tmp_path).states.is_empty()
    other = examine(named, split, vocabulary, "MAML", shots=4, steps=(), positive_rating=low + 1, **ASKED)
    assert other.figures["brier"].to_list() != found.figures["brier"].to_list()
    with pytest.raises(ValueError, match=f"`positive_rating` must be above {low:g} and at most {high:g}. Received: 9"):
        examine(named, split, vocabulary, "MAML", shots=4, positive_rating=9, **ASKED)
    worst = found.users.filter(pl.col("learner") == "MAML").sort("mean", descending=True, maintain_order=True)
    assert f"{worst['feature'][0]} {worst['group'][0]}, mae" in found.sentences()[0]


def test_an_unknown_learner_is_refused(implicit):
    split, vocabulary, named, *_ = implicit
    with pytest.raises(ValueError, match="`learner` must be one of popularity, .*MAML. Received: learner='nobody'"):
        examine(named, split, vocabulary, "nobody", shots=4, **ASKED)
    with pytest.raises(ValueError, match="`learners` must be of popularity, .*MAML. Received: 'nobody'"):
        examine(named, split, vocabulary, "MAML", learners=["MAML", "nobody"], shots=4, **ASKED)
