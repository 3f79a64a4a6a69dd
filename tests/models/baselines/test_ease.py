"""EASE, by either route, against its closed form."""

import numpy as np
import pytest

from tfmetarec.models.baselines import EASE, Ratings
from tfmetarec.models.baselines.linear_algebra import early_matrix


@pytest.mark.parametrize("few_users", [True, False])
def test_ease_equals_its_closed_form_by_either_route(few_users, ratings, support_of, matrix_of):
    if few_users:
        kept = ratings.user < 12
        ratings = ratings._replace(user=ratings.user[kept], item=ratings.item[kept], label=ratings.label[kept])
    matrix = matrix_of(ratings)
    inverse = np.linalg.inv(matrix.T @ matrix + 3.0 * np.eye(ratings.n_items))
    weights = -inverse / np.diag(inverse)
    np.fill_diagonal(weights, 0)
    model = EASE(3.0).fit(ratings)
    assert model.low_rank == few_users
    scores = model.score(model.adapt(support_of([[3, 8], [20, 0]])))
    np.testing.assert_allclose(scores[0, 1:], (weights[3] + weights[8])[1:], atol=1e-5)
    np.testing.assert_allclose(scores[1, 1:], weights[20, 1:], atol=1e-5)


def test_an_early_item_counts_more_and_the_first_time_of_an_item_counts(support_of):
    user, item = np.array([1, 2, 1, 1, 2, 1]), np.array([3, 1, 1, 3, 2, 2])  # User 1 has 3, 1, 2; user 2 has 1, 2.
    model = EASE(2.0, early=2.0, prior=0.5).fit(Ratings(user, item, np.ones(6, np.float32), 3, 4))
    matrix = np.exp(-np.array([[np.inf, 1, 2, 0], [np.inf, 0, 1, np.inf]]) / 2)
    inverse = np.linalg.inv(matrix.T @ matrix + 2.0 * np.eye(4))
    weights = -inverse / np.diag(inverse)
    np.fill_diagonal(weights, 0)
    popularity = np.array([0, np.exp(-1) + 1, np.exp(-2) + np.exp(-1), 1])
    scores = model.score(model.adapt(support_of([[1, 0], [0, 0]], length=[1, 0])))
    np.testing.assert_allclose(scores[0, 1:], (weights[1] + 0.5 * popularity / popularity.max())[1:], atol=1e-6)
    np.testing.assert_allclose(scores[1, 1:], popularity[1:], rtol=1e-6)


def test_what_came_too_late_to_count_is_left_out():
    item = np.arange(1, 31)
    matrix = early_matrix(Ratings(np.ones(30, int), item, np.ones(30, np.float32), 2, 31), 2.0)
    assert matrix.nnz == 14  # exp(-13 / 2) is above 0.001, exp(-14 / 2) is not.
    assert matrix[1, 14] == pytest.approx(np.exp(-6.5))


def test_ease_names_the_regularization_when_float32_cannot_carry_it():
    user, item = np.meshgrid(np.arange(1, 30), np.arange(1, 20), indexing="ij")  # All columns are equal.
    ratings = Ratings(user.ravel(), item.ravel(), np.ones(user.size, np.float32), 30, 20)
    with pytest.raises(ValueError, match=r"`regularization` must be large enough .* regularization=1e-09"):
        EASE(1e-9).fit(ratings)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: EASE(0), "`regularization` must be greater than 0. Received: regularization=0"),
        (lambda: EASE(early=0.0), "`early` must be greater than 0. Received: early=0.0"),
        (lambda: EASE(prior=-1.0), "`prior` must be at least 0. Received: prior=-1.0"),
        (lambda: EASE(float("nan")), "`regularization` must be greater than 0. Received: regularization=nan"),
    ],
)
def test_settings_out_of_range_are_refused(build, message):
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        build()
    assert str(caught.value) == message
