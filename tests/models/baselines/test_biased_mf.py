"""Matrix factorisation against the ridge regressions that it claims to solve."""

import numpy as np
import pytest

from tfmetarec.models.baselines import BiasedMF, biased_mf


def test_mf_folds_a_user_in_by_ridge_on_item_vectors_and_a_constant(ratings, support_of):
    baseline = BiasedMF(4, fold_in_regularization=0.7, user_shrinkage=2.0).fit(ratings)
    items, labels = np.array([3, 8, 8, 20, 0]), np.array([5.0, 1.0, 2.0, 4.0, 3.0])
    scores = baseline.score(baseline.adapt(support_of([items], [labels])))
    design = np.c_[baseline.items[items, :-1], np.ones(5)]
    target = labels - baseline.mean - baseline.items[items, -1]
    solution = np.linalg.solve(design.T @ design + np.diag([0.7] * 4 + [2.0]), design.T @ target)
    expected = (
        baseline.mean + baseline.items[:, -1] + np.c_[baseline.items[:, :-1], np.ones(ratings.n_items)] @ solution
    )
    np.testing.assert_allclose(scores[0], expected, rtol=1e-4)


def test_mf_training_ends_where_no_item_wants_to_move(ratings):
    """The last half-turn solved the items' own ridge regressions: their gradients are 0."""
    users = {}

    def spy(others, target, real, penalty, shrinkage):
        users["others"], users["target"], users["real"] = others, target, real
        users["answer"] = solve(others, target, real, penalty, shrinkage)
        users["penalty"], users["shrinkage"] = penalty, shrinkage
        return users["answer"]

    solve = biased_mf._biased_ridge
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(biased_mf, "_biased_ridge", spy)
        BiasedMF(3, 0.1, item_shrinkage=4.0).fit(ratings)
    assert users["shrinkage"] == 4.0
    np.testing.assert_allclose(users["penalty"], 0.1 * users["real"].sum(axis=1))
    for others, target, real, penalty, answer in zip(
        *(users[name] for name in ("others", "target", "real", "penalty", "answer")), strict=True
    ):
        features = np.c_[others[real][:, :-1], np.ones(real.sum())]
        residual = target[real] - others[real][:, -1] - features @ answer
        np.testing.assert_allclose(features.T @ residual, np.r_[np.full(3, penalty), 4.0] * answer, atol=1e-3)


def test_mf_learns_which_camp_a_user_is_in(ratings, support_of):
    baseline = BiasedMF(4).fit(ratings)
    even = [[2, 4, 6, 1, 3, 5]]
    candidates = {"item_id": np.array([[20, 21]])}
    likes_even = baseline.adapt(support_of(even, [[5, 5, 4, 1, 2, 1]]))
    likes_odd = baseline.adapt(support_of(even, [[1, 2, 1, 5, 4, 5]]))
    (even_item, odd_item), (even_item_2, odd_item_2) = (
        baseline.score(likes_even, candidates)[0],
        baseline.score(likes_odd, candidates)[0],
    )
    assert even_item - odd_item > 1
    assert odd_item_2 - even_item_2 > 1


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: BiasedMF(factors=0), "`factors` must be at least 1. Received: factors=0"),
        (lambda: BiasedMF(user_shrinkage=0), "`user_shrinkage` must be greater than 0. Received: user_shrinkage=0"),
        (lambda: BiasedMF(seed=-1), "`seed` must be at least 0. Received: seed=-1"),
    ],
)
def test_settings_out_of_range_are_refused(build, message):
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        build()
    assert str(caught.value) == message
