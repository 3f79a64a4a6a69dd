"""The mean of the ratings, by hand."""

import numpy as np

from tfmetarec.models.baselines import GlobalMean, Ratings


def test_the_mean_is_over_ratings_not_users_and_no_support_moves_it(support_of):
    ratings = Ratings(np.array([1, 1, 1, 2]), np.array([1, 2, 3, 1]), np.array([1.0, 2.0, 3.0, 4.0]), 3, 4)
    baseline = GlobalMean().fit(ratings)
    scores = baseline.score(baseline.adapt(support_of([[1, 2], [3, 3]], [[5, 5], [1, 1]])))
    np.testing.assert_array_equal(scores, np.full((2, 4), 2.5))
