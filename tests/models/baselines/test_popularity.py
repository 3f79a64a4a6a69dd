"""Popularity, counted by hand."""

import numpy as np

from tfmetarec.models.baselines import Popularity, Ratings


def test_popularity_counts_users_not_purchases_and_only_labels_above_zero(support_of):
    ratings = Ratings(np.array([1, 1, 1, 2, 3]), np.array([1, 1, 1, 2, 2]), np.array([1, 1, 1, 1, 1.0]), 4, 4)
    unwanted = Ratings(np.array([1, 2]), np.array([3, 3]), np.array([0.0, 0.0]), 4, 4)
    both = Ratings(*(np.r_[a, b] for a, b in zip(ratings[:3], unwanted[:3], strict=True)), 4, 4)
    baseline = Popularity().fit(both)
    np.testing.assert_array_equal(baseline.score(baseline.adapt(support_of([[1]]))), [[-np.inf, 1, 2, 0]])
