"""EASE, by either route, against its closed form."""

import numpy as np
import pytest

from tfmetarec.models.baselines import EASE, Ratings


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


def test_ease_names_the_regularization_when_float32_cannot_carry_it():
    user, item = np.meshgrid(np.arange(1, 30), np.arange(1, 20), indexing="ij")  # All columns are equal.
    ratings = Ratings(user.ravel(), item.ravel(), np.ones(user.size, np.float32), 30, 20)
    with pytest.raises(ValueError, match=r"`regularization` must be large enough .* regularization=1e-09"):
        EASE(1e-9).fit(ratings)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: EASE(0), "`regularization` must be greater than 0. Received: regularization=0"),
        (lambda: EASE(float("nan")), "`regularization` must be greater than 0. Received: regularization=nan"),
    ],
)
def test_settings_out_of_range_are_refused(build, message):
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        build()
    assert str(caught.value) == message
