"""Biases by hand, and against one linear system over all of them."""

import numpy as np
import pytest

from tfmetarec.models.baselines import ItemUserBias, Ratings


def test_without_shrinkage_and_support_there_is_no_bias(support_of):
    ratings = Ratings(np.array([1, 2]), np.array([1, 2]), np.array([2.0, 4.0]), 3, 4)
    baseline = ItemUserBias(0, 0).fit(ratings)
    scores = baseline.score(baseline.adapt(support_of([[1]], length=[0])))
    np.testing.assert_allclose(scores, [[3, 2, 4, 3]])  # Item 3 was never rated: the mean.


def test_biases_solve_their_ridge_regression(ratings, support_of):
    baseline = ItemUserBias(3.0, 5.0, iterations=200).fit(ratings)
    # The same objective as one linear system over all biases.
    n = len(ratings.user)
    design = np.zeros((n, ratings.n_users + ratings.n_items))
    design[np.arange(n), ratings.user] = 1
    design[np.arange(n), ratings.n_users + ratings.item] = 1
    penalty = np.diag(np.r_[np.full(ratings.n_users, 5.0), np.full(ratings.n_items, 3.0)])
    mean = ratings.label.mean(dtype=np.float64)
    solution = np.linalg.solve(design.T @ design + penalty, design.T @ (ratings.label - mean))
    scores = baseline.score(baseline.adapt(support_of([[1]], length=[0])))
    np.testing.assert_allclose(scores[0], mean + solution[ratings.n_users :], atol=1e-4)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ItemUserBias(item_shrinkage=-1), "`item_shrinkage` must be at least 0. Received: item_shrinkage=-1"),
        (lambda: ItemUserBias(iterations=0), "`iterations` must be at least 1. Received: iterations=0"),
    ],
)
def test_settings_out_of_range_are_refused(build, message):
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        build()
    assert str(caught.value) == message
