"""Neighbours by hand, and against all cosines."""

import numpy as np
import pytest

from tfmetarec.models.baselines import ItemKNN, Ratings


def test_item_knn_sums_the_cosines_of_all_items_when_all_are_neighbours(ratings, support_of, matrix_of):
    matrix = matrix_of(ratings)[:, 1:]
    unit = matrix / np.linalg.norm(matrix, axis=0)
    cosine = unit.T @ unit
    np.fill_diagonal(cosine, 0)
    model = ItemKNN(neighbours=ratings.n_items).fit(ratings)
    scores = model.score(model.adapt(support_of([[3, 8]])))[0, 1:]
    expected = cosine[2] + cosine[7]
    np.testing.assert_allclose(scores[expected > 0], expected[expected > 0], rtol=1e-5)


def test_items_that_no_neighbour_reaches_follow_by_popularity(support_of):
    # Items 1 and 2 go together; 3 (one user) and 4 (two users) have nothing to do with them.
    ratings = Ratings(
        np.array([1, 1, 2, 3, 4]), np.array([1, 2, 3, 4, 4]), np.ones(5, np.float32), n_users=5, n_items=5
    )
    model = ItemKNN(neighbours=1).fit(ratings)
    scores = model.score(model.adapt(support_of([[1]])))[0]
    assert scores[2] == pytest.approx(1.0)
    assert scores[2] > scores[4] > scores[3] > scores[0]


def test_each_item_keeps_only_its_nearest_neighbours(support_of):
    # Item 1 shares two of its users with item 2 and one with item 3.
    ratings = Ratings(
        np.array([1, 1, 2, 2, 2, 3]), np.array([1, 2, 1, 2, 3, 3]), np.ones(6, np.float32), n_users=4, n_items=4
    )
    one, two = ItemKNN(neighbours=1).fit(ratings), ItemKNN(neighbours=2).fit(ratings)
    assert one.score(one.adapt(support_of([[1]])))[0, 3] <= 0
    assert two.score(two.adapt(support_of([[1]])))[0, 3] == pytest.approx(0.5)


def test_a_setting_out_of_range_is_refused():
    with pytest.raises(ValueError, match=r"^`neighbours` must be at least 1\. Received: neighbours=0$"):
        ItemKNN(neighbours=0)
