"""Novelty, diversity and exposure, worked out by hand or by a loop that follows the definition."""

import numpy as np
import polars as pl
import pytest
import scipy.sparse

import tfmetarec as tmr
from tfmetarec.evaluation.lists import class_vectors, diversity, gini, novelty


def test_novelty_is_the_mean_number_of_bits():
    share = np.array([1, 1, 1 / 2, 1 / 4, 1 / 8])
    np.testing.assert_allclose(novelty(np.array([[1, 2, 3, 4], [4, 4, 0, 0]]), share), [6 / 4, 3])
    assert np.isnan(novelty(np.array([[0, 0]]), share)).all()


def test_diversity_agrees_with_a_loop_over_pairs():
    generator = np.random.default_rng(0)
    vectors = generator.normal(size=(30, 5))
    top = np.array([generator.permutation(30)[:6] for _ in range(20)])
    for user in range(20):
        own = [row for row in top[user] if row > 0]
        cosines = [
            vectors[a] @ vectors[b] / np.linalg.norm(vectors[a]) / np.linalg.norm(vectors[b])
            for i, a in enumerate(own)
            for b in own[i + 1 :]
        ]
        assert diversity(top[user : user + 1], vectors)[0] == pytest.approx(1 - np.mean(cosines))
    np.testing.assert_allclose(diversity(top, scipy.sparse.csr_array(vectors)), diversity(top, vectors))


def test_items_of_one_class_have_no_diversity_and_items_without_are_like_nothing():
    vectors = np.array([[0, 0], [1, 0], [1, 0], [0, 0], [0, 0]])
    np.testing.assert_allclose(diversity(np.array([[1, 2], [1, 3], [3, 4]]), vectors), [0, 1, 1])


def test_gini_agrees_with_the_mean_difference_of_all_pairs():
    top = np.random.default_rng(1).integers(0, 9, (40, 5)) ** 2 // 8
    shown = np.bincount(top[top > 0], minlength=9)[1:]
    pairs = np.abs(shown[:, None] - shown).sum() / (2 * len(shown) ** 2 * shown.mean())
    assert gini(top, 9) == pytest.approx(pairs)


def test_class_vectors_give_each_feature_the_same_weight():
    table = pl.DataFrame({"user_id": [1, 1, 1], "item_id": [1, 2, 3]})
    items = pl.DataFrame({"item_id": [1, 2, 3], "brand": ["a", "a", "b"], "tags": [["x", "y"], ["x"], ["z"]]})
    vocabulary = tmr.data.Vocabulary.fit(tmr.data.Interactions.from_frames(table, items=items, feedback="implicit"))
    vectors = class_vectors(vocabulary)
    assert vectors[[0]].nnz == 0
    likeness = (vectors @ vectors.T).toarray()[1:, 1:] / 2
    half = (1 + np.sqrt(1 / 2)) / 2  # The same brand, and one of two tags.
    np.testing.assert_allclose(likeness, [[1, half, 0], [half, 1, 0], [0, 0, 1]])


def test_without_categories_there_are_no_class_vectors():
    table = pl.DataFrame({"user_id": [1, 1, 2], "item_id": [1, 2, 2]})
    data = tmr.data.Interactions.from_frames(table, feedback="implicit")
    assert class_vectors(tmr.data.Vocabulary.fit(data)) is None


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: novelty(np.array([[1]]), np.array([1, 0.5, 0.0])),
            "`share` must hold numbers above 0 and at most 1. Received: 0.0",
        ),
        (lambda: novelty(np.array([[1.0]]), np.ones(2)), "`top` must hold integers. Received: float64"),
        (
            lambda: diversity(np.array([[1, 2]]), np.array([[0.0], [1.0], [np.nan]])),
            "`vectors` must be finite. Received: nan",
        ),
        (
            lambda: diversity(np.array([[1]]), [0, 1]),
            r"`vectors` must have two axes, items first. Received: shape \(2,\)",
        ),
        (
            lambda: novelty(np.array([[2]]), np.ones(2)),
            "`top` must hold rows that are between 0 and 1. Received: 0 to 2",
        ),
        (lambda: novelty(np.array([2]), np.ones(2)), r"`top` must have two axes, users first. Received: shape \(1,\)"),
        (lambda: gini(np.array([[0]]), 2), "`top` must hold at least one item. Received: none"),
        (lambda: gini(np.array([[0]]), 1), "`n_items` must be at least 2. Received: n_items=1"),
    ],
)
def test_what_makes_no_sense_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
