"""Every metric against numbers worked out by hand, scikit-learn, or a loop that follows the definition."""

import math

import numpy as np
import pytest
from sklearn.metrics import (
    accuracy_score,
    f1_score,
    label_ranking_average_precision_score,
    ndcg_score,
    precision_score,
    recall_score,
    roc_auc_score,
)

from tfmetarec.evaluation.metrics import (
    best_threshold,
    classification,
    coverage,
    hit_rate,
    mae,
    mrr,
    ndcg_at_k,
    precision_at_k,
    rating_ndcg_at_k,
    recall_at_k,
    rmse,
    top_items,
)

RANKING = (recall_at_k, precision_at_k, hit_rate, mrr, ndcg_at_k)


# The list itself.


def test_the_best_items_come_first():
    np.testing.assert_array_equal(top_items(np.array([[0.1, 0.9, 0.5], [3, 1, 2]]), 2), [[1, 2], [0, 2]])


def test_without_ties_the_list_is_the_sorted_catalogue():
    scores = np.random.default_rng(0).normal(size=(20, 50)).astype(np.float32)
    for k in (1, 7, 50):
        np.testing.assert_array_equal(top_items(scores, k), np.argsort(-scores, axis=1)[:, :k])


def test_excluded_rows_are_never_chosen():
    scores = np.array([[9.0, 8, 7, 6], [9, 8, 7, 6]])
    top = top_items(scores, 2, exclude=np.array([[0, 1], [0, -5]]), exclude_length=np.array([2, 1]))
    np.testing.assert_array_equal(top, [[2, 3], [1, 2]])


def test_a_place_that_only_an_excluded_row_could_fill_holds_row_zero():
    scores = np.array([[-np.inf, 3.0, 2.0, 1.0]])
    np.testing.assert_array_equal(top_items(scores, 4, exclude=np.array([[1, 3]])), [[2, 0, 0, 0]])


def test_minus_infinity_is_chosen_only_when_nothing_else_is_left():
    scores = np.array([[-np.inf, 1.0, -np.inf, 2.0]])
    np.testing.assert_array_equal(top_items(scores, 2), [[3, 1]])
    assert set(top_items(scores, 4)[0, 2:]) == {0, 2}
    # Row 2 is still allowed, row 0 is not.
    np.testing.assert_array_equal(top_items(scores, 3, exclude=np.array([[0]])), [[3, 1, 2]])


def test_tied_items_are_drawn_evenly_for_every_user_anew():
    scores = np.zeros((20_000, 5))
    scores[:, 2] = 1
    top = top_items(scores, 3)
    assert (top[:, 0] == 2).all()
    counts = np.bincount(top[:, 1:].ravel(), minlength=5)
    # Each of the four tied items takes one of the two places half the time: 10,000 +- 71.
    np.testing.assert_allclose(counts[[0, 1, 3, 4]], 10_000, atol=400)
    assert (np.sort(top, axis=1)[:, 1:] > np.sort(top, axis=1)[:, :-1]).all()  # No item twice.


def test_ties_above_the_last_place_are_drawn_too():
    top = top_items(np.tile([2.0, 2.0, 1.0, 0.0], (10_000, 1)), 3)
    assert abs((top[:, 0] == 0).mean() - 0.5) < 0.03
    assert (top[:, 2] == 2).all()


def test_equal_seeds_draw_equal_lists():
    scores = np.zeros((50, 30))
    np.testing.assert_array_equal(top_items(scores, 5, seed=1), top_items(scores, 5, seed=1))
    assert (top_items(scores, 5, seed=1) != top_items(scores, 5, seed=2)).any()


# Lists against what was relevant.


def test_one_list_worked_out_by_hand():
    top, relevant = np.array([[5, 3, 8, 1]]), np.array([[3, 1, 9, 7, 6]])
    assert recall_at_k(top, relevant) == pytest.approx(2 / 5)
    assert precision_at_k(top, relevant) == pytest.approx(2 / 4)
    assert hit_rate(top, relevant) == 1
    assert mrr(top, relevant) == pytest.approx(1 / 2)
    ideal = 1 + 1 / math.log2(3) + 1 / 2 + 1 / math.log2(5)  # Four places for five relevant items.
    assert ndcg_at_k(top, relevant) == pytest.approx((1 / math.log2(3) + 1 / math.log2(5)) / ideal)


def test_a_perfect_list_has_ndcg_one_even_when_shorter_than_the_relevant():
    np.testing.assert_allclose(ndcg_at_k(np.array([[2, 4]]), np.array([[4, 3, 2]])), 1)
    np.testing.assert_allclose(ndcg_at_k(np.array([[2, 4, 9]]), np.array([[4, 2]])), 1)


def test_ranking_metrics_agree_with_a_loop_over_users():
    generator = np.random.default_rng(0)
    top = np.array([generator.permutation(30)[:8] for _ in range(200)])
    relevant = np.array([1 + generator.permutation(29)[:6] for _ in range(200)])
    length = generator.integers(1, 7, 200)
    for user in range(200):
        wanted = set(relevant[user, : length[user]])
        hit = [item in wanted for item in top[user]]
        one = (top[user : user + 1], relevant[user : user + 1], length[user : user + 1])
        assert recall_at_k(*one)[0] == recall_at_k(top, relevant, length)[user] == sum(hit) / len(wanted)
        assert precision_at_k(top, relevant, length)[user] == sum(hit) / 8
        assert hit_rate(top, relevant, length)[user] == any(hit)
        assert mrr(top, relevant, length)[user] == (1 / (1 + hit.index(True)) if any(hit) else 0)
        gain = sum(1 / math.log2(place + 2) for place in range(8) if hit[place])
        ideal = sum(1 / math.log2(place + 2) for place in range(min(8, len(wanted))))
        assert ndcg_at_k(top, relevant, length)[user] == pytest.approx(gain / ideal)


def test_ranking_metrics_agree_with_scikit_learn():
    generator = np.random.default_rng(1)
    scores = generator.normal(size=(60, 25))
    scores[:, 0] = -100  # Row 0 is no item.
    relevant = np.array([1 + generator.permutation(24)[:4] for _ in range(60)])
    labels = np.zeros((60, 25))
    np.put_along_axis(labels, relevant, 1, axis=1)
    assert ndcg_at_k(top_items(scores, 10), relevant).mean() == pytest.approx(ndcg_score(labels, scores, k=10))
    # With one relevant item, average precision is the reciprocal rank.
    one = np.zeros((60, 25))
    one[np.arange(60), relevant[:, 0]] = 1
    expected = label_ranking_average_precision_score(one, scores)
    assert mrr(top_items(scores, 25), relevant, np.ones(60, int)).mean() == pytest.approx(expected)


def test_with_ties_the_mean_over_draws_is_scikit_learns_ndcg_which_shares_places_out():
    generator = np.random.default_rng(2)
    scores = generator.integers(0, 4, (30, 12)) / 4.0  # Three or so items to a place.
    scores[:, 0] = -1  # Row 0 is no item.
    relevant = np.array([1 + generator.permutation(11)[:4] for _ in range(30)])
    labels = np.zeros((30, 12))
    np.put_along_axis(labels, relevant, 1, axis=1)
    drawn = [ndcg_at_k(top_items(scores, 5, seed=seed), relevant).mean() for seed in range(400)]
    expected = ndcg_score(labels, scores, k=5)  # Of ties it takes the mean.
    assert np.mean(drawn) == pytest.approx(expected, abs=4 * np.std(drawn) / 20)


def test_ranking_metrics_agree_with_tfrs_factorized_top_k_on_scores_with_ties():
    import tensorflow as tf
    import tensorflow_recommenders as tfrs

    generator = np.random.default_rng(3)
    users, items = generator.integers(-1, 2, (3000, 4)), generator.integers(-1, 2, (200, 4))  # Few scores for many.
    asked = 1 + generator.integers(200, size=3000)
    ids, users, items = np.arange(1, 201), users.astype(np.float32), items.astype(np.float32)
    index = tfrs.layers.factorized_top_k.BruteForce(k=10)
    index.index(tf.constant(items), tf.constant(ids))
    metric = tfrs.metrics.FactorizedTopK(index, ks=(1, 5, 10))
    metric.update_state(tf.constant(users), tf.constant(items[asked - 1]), tf.constant(asked)[:, None])
    found = [float(value) for value in metric.result()]
    relevant = asked[:, None]
    _, theirs = index(tf.constant(users))
    scores = np.concatenate([np.full((3000, 1), -np.inf), users @ items.T], axis=1)
    ours = top_items(scores, 10)
    for k, expected in zip((1, 5, 10), found, strict=True):
        # On its own list, whose ties are in the order of the catalogue, to the digit; on ours, drawn, but for chance.
        assert recall_at_k(theirs.numpy()[:, :k], relevant).mean() == pytest.approx(expected)
        assert hit_rate(theirs.numpy()[:, :k], relevant).mean() == pytest.approx(expected)
        assert hit_rate(ours[:, :k], relevant).mean() == pytest.approx(expected, abs=0.02)


def test_relevant_rows_past_the_length_change_nothing():
    top = np.array([[1, 2, 3]])
    for metric in RANKING:
        clean = metric(top, np.array([[2, 0]]), np.array([1]))
        np.testing.assert_array_equal(metric(top, np.array([[2, 3]]), np.array([1])), clean)
        np.testing.assert_array_equal(metric(top, np.array([[2, -9]]), np.array([1])), clean)


def test_a_user_with_nothing_relevant_is_nan():
    for metric in RANKING:
        result = metric(np.array([[1, 2], [1, 2]]), np.array([[1], [1]]), np.array([0, 1]))
        assert np.isnan(result[0])
        assert result[1] > 0


def test_a_repeated_relevant_item_counts_once_and_an_unknown_one_is_out_of_reach():
    assert recall_at_k(np.array([[4, 7]]), np.array([[4, 4, 9]])) == pytest.approx(1 / 2)
    assert recall_at_k(np.array([[4, 0]]), np.array([[4, 0, 0]])) == pytest.approx(1 / 3)
    assert precision_at_k(np.array([[4, 0]]), np.array([[4, 0]])) == pytest.approx(1 / 2)


def test_the_same_row_of_another_user_is_no_hit():
    np.testing.assert_array_equal(hit_rate(np.array([[3], [5]]), np.array([[5], [3]])), [0, 0])


def test_small_integer_types_do_not_overflow():
    top = np.full((300, 1), 120, np.int8)
    np.testing.assert_array_equal(recall_at_k(top, top), np.ones(300))


def test_coverage_counts_items_once_and_leaves_row_zero_out():
    assert coverage(np.array([[1, 2], [2, 0]]), 11) == pytest.approx(2 / 10)


# Predicted ratings.


def test_errors_are_means_over_users_rows_before_the_length():
    labels = np.array([[1.0, 2.0, np.nan], [5.0, 3.0, 1.0]])
    predictions = np.array([[2.0, 5.0, 1.0], [5.0, 3.0, 4.0]])
    np.testing.assert_allclose(mae(labels, predictions, np.array([2, 3])), [2, 1])
    np.testing.assert_allclose(rmse(labels, predictions, np.array([2, 3])), [math.sqrt(5), math.sqrt(3)])
    np.testing.assert_array_equal(np.isnan(mae(labels, predictions, np.array([0, 1]))), [True, False])
    np.testing.assert_array_equal(np.isnan(rmse(labels, predictions, np.array([0, 1]))), [True, False])


def test_rating_ndcg_of_one_user_worked_out_by_hand():
    # By prediction the labels read 3, 1, 2: gains 7, 1, 3; in the best order 7, 3, 1.
    found = rating_ndcg_at_k(np.array([[1.0, 2.0, 3.0]]), np.array([[0.5, 0.1, 0.9]]), k=3)
    expected = (7 + 1 / math.log2(3) + 3 / 2) / (7 + 3 / math.log2(3) + 1 / 2)
    assert found == pytest.approx(expected)


def test_rating_ndcg_agrees_with_scikit_learn_on_exponential_gains():
    generator = np.random.default_rng(0)
    labels, scores = generator.integers(1, 6, (40, 10)), generator.normal(size=(40, 10))
    found = rating_ndcg_at_k(labels, scores, k=5).mean()
    assert found == pytest.approx(ndcg_score(2.0**labels - 1, scores, k=5))


def test_rating_ndcg_ignores_rows_past_the_length():
    labels, scores = np.array([[1.0, 3.0, 5.0]]), np.array([[0.2, 0.1, 0.9]])
    clean = rating_ndcg_at_k(labels[:, :2], scores[:, :2], k=2)
    dirty = rating_ndcg_at_k(np.array([[1.0, 3.0, np.nan]]), np.array([[0.2, 0.1, np.inf]]), np.array([2]), k=2)
    np.testing.assert_array_equal(rating_ndcg_at_k(labels, scores, np.array([2]), k=2), clean)
    np.testing.assert_array_equal(dirty, clean)


def test_tied_ratings_score_as_a_random_order_whatever_the_labels_order():
    labels = np.tile([[1.0, 3.0]], (20_000, 1))
    for ordered in (labels, labels[:, ::-1]):
        found = rating_ndcg_at_k(ordered, np.zeros(labels.shape), k=1)
        assert found.mean() == pytest.approx((1 + 1 / 7) / 2, abs=0.01)


def test_a_user_without_any_gain_has_no_rating_ndcg():
    found = rating_ndcg_at_k(np.array([[0.0, 0.0], [1.0, 0.0]]), np.zeros((2, 2)), k=2)
    np.testing.assert_array_equal(np.isnan(found), [True, False])


# Two classes.


def test_classification_agrees_with_scikit_learn():
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 2, 500)
    scores = labels * 0.4 + generator.random(500)
    found = classification(labels, scores, 0.6)
    chosen = scores >= 0.6
    assert found == pytest.approx(
        {
            "accuracy": accuracy_score(labels, chosen),
            "precision": precision_score(labels, chosen),
            "recall": recall_score(labels, chosen),
            "f1": f1_score(labels, chosen),
            "auc": roc_auc_score(labels, scores),
        }
    )


def test_one_class_has_no_auc_and_no_division_by_zero():
    nothing = {"accuracy": 1.0, "precision": 0.0, "recall": 0.0, "f1": 0.0, "auc": None}
    assert classification(np.zeros(3), np.array([0.1, 0.2, 0.3]), 0.9) == nothing


@pytest.mark.parametrize("metric", ["f1", "accuracy"])
def test_no_threshold_beats_the_best_one(metric):
    for seed in range(20):
        generator = np.random.default_rng(seed)
        labels = generator.integers(0, 2, 40)
        scores = (generator.integers(0, 12, 40) / 12).astype(np.float32)  # Many ties.
        best = classification(labels, scores, best_threshold(labels, scores, metric))[metric]
        tried = [-1.0, *np.unique(scores), 2.0]
        assert best == pytest.approx(max(classification(labels, scores, float(t))[metric] for t in tried))


def test_without_positives_nothing_is_called_positive():
    scores = np.array([0.2, 0.7])
    for metric in ("f1", "accuracy"):
        assert not (scores >= best_threshold(np.zeros(2), scores, metric)).any()


# What is refused, and how.

LIST, SCORES = np.array([[1, 2]]), np.zeros((1, 4))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: top_items(SCORES, 5), "`k` must be between 1 and 4, the number of candidates. Received: k=5"),
        (lambda: top_items(SCORES, 0), "`k` must be between 1 and 4, the number of candidates. Received: k=0"),
        (lambda: top_items(np.array([[np.nan, 1]]), 1), "`scores` must not be NaN. Received: 1 NaN"),
        (lambda: top_items(np.zeros(4), 1), "`scores` must have two axes, users first. Received: shape (4,)"),
        (
            lambda: top_items(SCORES, 1, exclude=np.array([[4]])),
            "`exclude` must hold rows that are between 0 and 3. Received: 0 to 4",
        ),
        (
            lambda: top_items(SCORES, 1, exclude=LIST, exclude_length=np.array([3])),
            "The length of `exclude` must be between 0 and 2. Received: 3 to 3",
        ),
        (
            lambda: top_items(SCORES, 1, exclude_length=np.array([3])),
            "`exclude_length` must come with `exclude`. Received: exclude=None",
        ),
        (
            lambda: recall_at_k(LIST, np.array([[1], [2]])),
            "`relevant` must have one row for each of 1 users. Received: shape (2, 1)",
        ),
        (lambda: recall_at_k(LIST * 1.0, LIST), "`top` must hold integers. Received: float64"),
        (lambda: mrr(LIST[:, :0], LIST), "`top` must have at least 1 place. Received: shape (1, 0)"),
        (lambda: mrr(LIST, -LIST), "`relevant` must hold rows that are at least 0. Received: -2 to 0"),
        (lambda: coverage(LIST, 2), "`top` must hold rows that are between 0 and 1. Received: 0 to 2"),
        (lambda: coverage(LIST, 1), "`n_items` must be at least 2. Received: n_items=1"),
        (
            lambda: mae(LIST, SCORES),
            "`predictions` must have the shape of `labels`, (1, 2). Received: shape (1, 4)",
        ),
        (
            lambda: rmse(LIST, LIST, np.array([1, 1])),
            "The length of `labels` must have shape (1,). Received: shape (2,)",
        ),
        (lambda: rating_ndcg_at_k(LIST, LIST, k=0), "`k` must be at least 1. Received: k=0"),
        (lambda: rating_ndcg_at_k(-LIST, LIST), "`labels` must be at least 0. Received: -2"),
        (lambda: rating_ndcg_at_k(LIST, LIST * np.nan), "`scores` must not be NaN. Received: 2 NaN"),
        (lambda: classification(np.array([2]), np.ones(1), 0.5), "`labels` must be 0 or 1. Received: 2"),
        (lambda: classification(np.ones(1), np.array([np.inf]), 0.5), "`scores` must be finite. Received: inf"),
        (
            lambda: classification(np.ones(1), np.ones(1), np.nan),
            "`threshold` must be a number. Received: threshold=nan",
        ),
        (
            lambda: best_threshold(np.ones(0), np.ones(0)),
            "`labels` and `scores` must be vectors of one length, at least 1. Received: shapes (0,) and (0,)",
        ),
        (
            lambda: best_threshold(np.ones(1), np.ones(1), "auc"),
            '`metric` must be "f1" or "accuracy". Received: metric=\'auc\'',
        ),
    ],
)
def test_what_makes_no_sense_is_refused(call, message):
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        call()
    assert str(caught.value) == message
