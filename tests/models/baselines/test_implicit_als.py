"""Folding in against that of implicit, which takes one user after another."""

import numpy as np
import pytest
import scipy.sparse
from implicit.als import AlternatingLeastSquares
from threadpoolctl import threadpool_limits

from tfmetarec.models.baselines import ImplicitALS


@pytest.mark.parametrize("alpha", [0.5, 1.0, 8.0])
def test_als_folds_users_in_as_implicit_does(alpha, ratings, support_of, matrix_of):
    model = ImplicitALS(4, 2.0, alpha, seed=3).fit(ratings)
    with threadpool_limits(1, "blas"):
        other = AlternatingLeastSquares(4, regularization=2.0, alpha=alpha, random_state=3)
        other.fit(scipy.sparse.csr_matrix(matrix_of(ratings).astype(np.float32)), show_progress=False)
        row, column = np.array([0, 0, 1]), np.array([3, 8, 20])
        users = scipy.sparse.csr_matrix((np.ones(3, np.float32), (row, column)), shape=(2, ratings.n_items))
        expected = other.recalculate_user(np.arange(2), users)
    np.testing.assert_allclose(model.items, other.item_factors, atol=1e-5)
    state = model.adapt(support_of([[3, 8], [20, 0]], length=[2, 1]))
    np.testing.assert_allclose(state, expected, rtol=1e-3, atol=1e-4)


def test_the_default_penalty_of_als_follows_the_largest_singular_value(ratings, matrix_of):
    largest = np.linalg.svd(matrix_of(ratings), compute_uv=False)[0]
    assert ImplicitALS(4, alpha=3.0).fit(ratings).penalty == pytest.approx(0.2 * 3 * largest, rel=1e-3)
    assert ImplicitALS(4, 7.0).fit(ratings).penalty == 7.0


def test_a_setting_out_of_range_is_refused():
    with pytest.raises(ValueError, match=r"^`alpha` must be greater than 0\. Received: alpha=0$"):
        ImplicitALS(alpha=0)
