"""Facts about the floors: worked out by hand, or checked against implicit and brute-force algebra."""

import numpy as np
import pytest
from implicit.als import AlternatingLeastSquares
from threadpoolctl import threadpool_limits

from tfmetarec.models import baselines
from tfmetarec.models.baselines import (
    EASE,
    Baseline,
    BiasedMF,
    GlobalMean,
    ImplicitALS,
    ItemKNN,
    ItemUserBias,
    Popularity,
    Ratings,
    floors,
)
from tfmetarec.tasks.episode import Support

N_USERS, N_ITEMS = 41, 25


def support_of(items, labels=None, length=None) -> Support:
    items = np.asarray(items)
    labels = np.ones(items.shape, np.float32) if labels is None else np.asarray(labels, np.float32)
    length = np.full(len(items), items.shape[1]) if length is None else np.asarray(length)
    return Support({"user_id": np.zeros(len(items), int)}, {"item_id": items}, labels, length)


@pytest.fixture(scope="module")
def ratings() -> Ratings:
    """40 users and 24 items in two camps; users mostly have, and like, the items of their own."""
    generator = np.random.default_rng(0)
    user, item = np.meshgrid(np.arange(1, N_USERS), np.arange(1, N_ITEMS), indexing="ij")
    same_camp = user % 2 == item % 2
    kept = generator.random(user.shape) < np.where(same_camp, 0.5, 0.1)
    label = np.where(same_camp, 4.5, 1.5) + generator.normal(0, 0.3, user.shape)
    return Ratings(user[kept], item[kept], label[kept].astype(np.float32), N_USERS, N_ITEMS)


def matrix_of(ratings: Ratings) -> np.ndarray:
    matrix = np.zeros((ratings.n_users, ratings.n_items))
    matrix[ratings.user, ratings.item] = 1
    return matrix


def every_baseline() -> list[Baseline]:
    return [*floors("explicit", factors=4), *floors("implicit", factors=4), EASE(2.0), ImplicitALS(4, 2.0, 5.0)]


names = [f"{baseline.name} {place}" for place, baseline in enumerate(every_baseline())]


@pytest.fixture(params=range(len(names)), ids=names)
def baseline(request, ratings) -> Baseline:
    return every_baseline()[request.param].fit(ratings)


# What every baseline promises.


def test_scores_are_float32_with_one_column_for_each_row_of_the_catalogue(baseline):
    scores = baseline.score(baseline.adapt(support_of([[1, 3], [2, 4], [5, 7]])))
    assert scores.dtype == np.float32
    assert scores.shape == (3, N_ITEMS)
    assert np.isfinite(scores[:, 1:]).all()


def test_candidates_score_as_they_do_in_the_whole_catalogue(baseline):
    state = baseline.adapt(support_of([[1, 3], [2, 4]]))
    candidates = np.array([[5, 0, 9], [9, 24, 1]])
    catalogue = baseline.score(state)
    np.testing.assert_array_equal(
        baseline.score(state, {"item_id": candidates}), np.take_along_axis(catalogue, candidates, axis=1)
    )


def test_candidates_common_to_all_tasks_need_no_task_axis(baseline):
    state = baseline.adapt(support_of([[1, 3], [2, 4]]))
    common = baseline.score(state, {"item_id": np.array([5, 0, 9])})
    np.testing.assert_array_equal(common, baseline.score(state)[:, [5, 0, 9]])


def test_rows_past_the_length_change_nothing(baseline):
    clean = support_of([[1, 3, 0, 0], [2, 0, 0, 0]], length=[2, 1])
    dirty = support_of([[1, 3, 10**9, -7], [2, -1, 5, 5]], [[1, 1, np.nan, np.inf], [1, 9, 9, -np.inf]], length=[2, 1])
    np.testing.assert_array_equal(baseline.score(baseline.adapt(clean)), baseline.score(baseline.adapt(dirty)))


def test_a_task_scores_the_same_alone_and_in_company(baseline):
    together = baseline.score(baseline.adapt(support_of([[1, 3, 5], [2, 0, 0], [8, 9, 0]], length=[3, 1, 2])))
    alone = baseline.score(baseline.adapt(support_of([[8, 9]])))
    np.testing.assert_allclose(together[2], alone[0], rtol=1e-5, atol=1e-6)


def test_an_empty_support_gives_every_task_the_unadapted_prediction(baseline):
    no_rows = baseline.score(baseline.adapt(support_of(np.zeros((2, 0), int))))
    no_length = baseline.score(baseline.adapt(support_of([[1, 3], [2, 4]], length=[0, 0])))
    np.testing.assert_array_equal(no_rows, no_length)
    np.testing.assert_array_equal(no_rows[0], no_rows[1])


def test_small_blocks_give_the_same_scores(baseline, ratings, monkeypatch):
    support = support_of([[1, 3], [2, 4], [5, 7]])
    before = baseline.score(baseline.adapt(support))
    monkeypatch.setattr(baselines, "BLOCK_SIZE", 1)
    np.testing.assert_allclose(baseline.fit(ratings).score(baseline.adapt(support)), before, rtol=1e-4, atol=1e-5)


def test_a_state_can_be_sliced_by_task(baseline):
    state = baseline.adapt(support_of([[1, 3], [2, 4], [5, 7]]))
    np.testing.assert_allclose(baseline.score(state[1:2]), baseline.score(state)[1:2], rtol=1e-5, atol=1e-6)


def test_equal_seeds_give_equal_scores_and_leave_the_global_generator_alone(baseline, ratings):
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    support = support_of([[1, 3]])
    scores = baseline.score(baseline.adapt(support))
    np.testing.assert_array_equal(baseline.fit(ratings).score(baseline.adapt(support)), scores)
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002


def test_no_tasks_give_no_scores(baseline):
    state = baseline.adapt(support_of(np.zeros((0, 3), int)))
    assert baseline.score(state).shape == (0, N_ITEMS)


def test_training_rows_of_row_zero_are_left_out(baseline, ratings):
    support = support_of([[1, 3]])
    scores = baseline.score(baseline.adapt(support))
    extra = Ratings(
        np.append(ratings.user, [0, 0, 7]),
        np.append(ratings.item, [2, 3, 0]),
        np.append(ratings.label, [1, 1, 1]).astype(np.float32),
        N_USERS,
        N_ITEMS,
    )
    np.testing.assert_array_equal(baseline.fit(extra).score(baseline.adapt(support)), scores)


def test_row_zero_is_never_recommended(ratings):
    for baseline in floors("implicit", factors=4):
        state = baseline.fit(ratings).adapt(support_of([[1, 3], [0, 0]]))
        assert (baseline.score(state)[:, 0] == -np.inf).all()
        assert (baseline.score(state, {"item_id": np.zeros((2, 1), int)}) == -np.inf).all()


# Explicit feedback.


def test_without_shrinkage_and_support_there_is_no_bias():
    ratings = Ratings(np.array([1, 2]), np.array([1, 2]), np.array([2.0, 4.0]), 3, 4)
    baseline = ItemUserBias(0, 0).fit(ratings)
    scores = baseline.score(baseline.adapt(support_of([[1]], length=[0])))
    np.testing.assert_allclose(scores, [[3, 2, 4, 3]])  # Item 3 was never rated: the mean.


def test_biases_solve_their_ridge_regression(ratings):
    baseline = ItemUserBias(3.0, 5.0, iterations=200).fit(ratings)
    # The same objective as one linear system over all biases.
    n = len(ratings.user)
    design = np.zeros((n, N_USERS + N_ITEMS))
    design[np.arange(n), ratings.user] = 1
    design[np.arange(n), N_USERS + ratings.item] = 1
    penalty = np.diag(np.r_[np.full(N_USERS, 5.0), np.full(N_ITEMS, 3.0)])
    mean = ratings.label.mean(dtype=np.float64)
    solution = np.linalg.solve(design.T @ design + penalty, design.T @ (ratings.label - mean))
    scores = baseline.score(baseline.adapt(support_of([[1]], length=[0])))
    np.testing.assert_allclose(scores[0], mean + solution[N_USERS:], atol=1e-4)


def test_mf_folds_a_user_in_by_ridge_on_item_vectors_and_a_constant(ratings):
    baseline = BiasedMF(4, fold_in_regularization=0.7, user_shrinkage=2.0).fit(ratings)
    items, labels = np.array([3, 8, 8, 20, 0]), np.array([5.0, 1.0, 2.0, 4.0, 3.0])
    scores = baseline.score(baseline.adapt(support_of([items], [labels])))
    design = np.c_[baseline.items[items, :-1], np.ones(5)]
    target = labels - baseline.mean - baseline.items[items, -1]
    solution = np.linalg.solve(design.T @ design + np.diag([0.7] * 4 + [2.0]), design.T @ target)
    expected = baseline.mean + baseline.items[:, -1] + np.c_[baseline.items[:, :-1], np.ones(N_ITEMS)] @ solution
    np.testing.assert_allclose(scores[0], expected, rtol=1e-4)


def test_mf_training_ends_where_no_item_wants_to_move(ratings):
    """The last half-turn solved the items' own ridge regressions: their gradients are 0."""
    users = {}

    def spy(others, target, real, penalty, shrinkage):
        users["others"], users["target"], users["real"] = others, target, real
        users["answer"] = solve(others, target, real, penalty, shrinkage)
        users["penalty"], users["shrinkage"] = penalty, shrinkage
        return users["answer"]

    solve = baselines._biased_ridge
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(baselines, "_biased_ridge", spy)
        BiasedMF(3, 0.1, item_shrinkage=4.0).fit(ratings)
    assert users["shrinkage"] == 4.0
    np.testing.assert_allclose(users["penalty"], 0.1 * users["real"].sum(axis=1))
    for others, target, real, penalty, answer in zip(
        *(users[name] for name in ("others", "target", "real", "penalty", "answer")), strict=True
    ):
        features = np.c_[others[real][:, :-1], np.ones(real.sum())]
        residual = target[real] - others[real][:, -1] - features @ answer
        np.testing.assert_allclose(features.T @ residual, np.r_[np.full(3, penalty), 4.0] * answer, atol=1e-3)


def test_mf_learns_which_camp_a_user_is_in(ratings):
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


# Implicit feedback.


def test_popularity_counts_users_not_purchases_and_only_labels_above_zero():
    ratings = Ratings(np.array([1, 1, 1, 2, 3]), np.array([1, 1, 1, 2, 2]), np.array([1, 1, 1, 1, 1.0]), 4, 4)
    unwanted = Ratings(np.array([1, 2]), np.array([3, 3]), np.array([0.0, 0.0]), 4, 4)
    both = Ratings(*(np.r_[a, b] for a, b in zip(ratings[:3], unwanted[:3], strict=True)), 4, 4)
    baseline = Popularity().fit(both)
    np.testing.assert_array_equal(baseline.score(baseline.adapt(support_of([[1]]))), [[-np.inf, 1, 2, 0]])


@pytest.mark.parametrize("place", [1, 2, 3])
def test_an_empty_support_ranks_by_popularity(place, ratings):
    popularity = Popularity().fit(ratings)
    baseline = floors("implicit", factors=4)[place].fit(ratings)
    empty = support_of([[1]], length=[0])
    expected = popularity.score(popularity.adapt(empty))[0, 1:]
    found = baseline.score(baseline.adapt(empty))[0, 1:]
    np.testing.assert_array_equal(found[:, None] > found, expected[:, None] > expected)


@pytest.mark.parametrize("model", [ItemKNN(), EASE(2.0), ImplicitALS(4, 2.0, 5.0)], ids=lambda model: model.name)
def test_repeated_unknown_and_unwanted_support_says_nothing_more(model, ratings):
    model.fit(ratings)
    once = model.adapt(support_of([[3, 8]]))
    noisy = model.adapt(support_of([[3, 0, 8, 3, 5]], [[1, 1, 2, 1, 0]]))
    np.testing.assert_allclose(model.score(noisy), model.score(once), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("model", [ItemKNN(), EASE(2.0), ImplicitALS(4, 2.0, 5.0)], ids=lambda model: model.name)
def test_the_best_unseen_item_is_of_the_same_camp(model, ratings):
    scores = model.fit(ratings).score(model.adapt(support_of([[1, 3, 5], [2, 4, 6]])))
    scores[0, [1, 3, 5]] = scores[1, [2, 4, 6]] = -np.inf
    assert list(scores.argmax(axis=1) % 2) == [1, 0]


def test_item_knn_sums_the_cosines_of_all_items_when_all_are_neighbours(ratings):
    matrix = matrix_of(ratings)[:, 1:]
    unit = matrix / np.linalg.norm(matrix, axis=0)
    cosine = unit.T @ unit
    np.fill_diagonal(cosine, 0)
    model = ItemKNN(neighbours=N_ITEMS).fit(ratings)
    scores = model.score(model.adapt(support_of([[3, 8]])))[0, 1:]
    expected = cosine[2] + cosine[7]
    np.testing.assert_allclose(scores[expected > 0], expected[expected > 0], rtol=1e-5)


def test_items_that_no_neighbour_reaches_follow_by_popularity():
    # Items 1 and 2 go together; 3 (one user) and 4 (two users) have nothing to do with them.
    ratings = Ratings(
        np.array([1, 1, 2, 3, 4]), np.array([1, 2, 3, 4, 4]), np.ones(5, np.float32), n_users=5, n_items=5
    )
    model = ItemKNN(neighbours=1).fit(ratings)
    scores = model.score(model.adapt(support_of([[1]])))[0]
    assert scores[2] == pytest.approx(1.0)
    assert scores[2] > scores[4] > scores[3] > scores[0]


def test_each_item_keeps_only_its_nearest_neighbours():
    # Item 1 shares two of its users with item 2 and one with item 3.
    ratings = Ratings(
        np.array([1, 1, 2, 2, 2, 3]), np.array([1, 2, 1, 2, 3, 3]), np.ones(6, np.float32), n_users=4, n_items=4
    )
    one, two = ItemKNN(neighbours=1).fit(ratings), ItemKNN(neighbours=2).fit(ratings)
    assert one.score(one.adapt(support_of([[1]])))[0, 3] <= 0
    assert two.score(two.adapt(support_of([[1]])))[0, 3] == pytest.approx(0.5)


@pytest.mark.parametrize("few_users", [True, False])
def test_ease_equals_its_closed_form_by_either_route(few_users, ratings):
    if few_users:
        kept = ratings.user < 12
        ratings = ratings._replace(user=ratings.user[kept], item=ratings.item[kept], label=ratings.label[kept])
    matrix = matrix_of(ratings)
    inverse = np.linalg.inv(matrix.T @ matrix + 3.0 * np.eye(N_ITEMS))
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


@pytest.mark.parametrize("alpha", [0.5, 1.0, 8.0])
def test_als_folds_users_in_as_implicit_does(alpha, ratings):
    import scipy.sparse

    model = ImplicitALS(4, 2.0, alpha, seed=3).fit(ratings)
    with threadpool_limits(1, "blas"):
        other = AlternatingLeastSquares(4, regularization=2.0, alpha=alpha, random_state=3)
        other.fit(scipy.sparse.csr_matrix(matrix_of(ratings).astype(np.float32)), show_progress=False)
        row, column = np.array([0, 0, 1]), np.array([3, 8, 20])
        users = scipy.sparse.csr_matrix((np.ones(3, np.float32), (row, column)), shape=(2, N_ITEMS))
        expected = other.recalculate_user(np.arange(2), users)
    np.testing.assert_allclose(model.items, other.item_factors, atol=1e-5)
    state = model.adapt(support_of([[3, 8], [20, 0]], length=[2, 1]))
    np.testing.assert_allclose(state, expected, rtol=1e-3, atol=1e-4)


def test_the_default_penalty_of_als_follows_the_largest_singular_value(ratings):
    largest = np.linalg.svd(matrix_of(ratings), compute_uv=False)[0]
    assert ImplicitALS(4, alpha=3.0).fit(ratings).penalty == pytest.approx(0.2 * 3 * largest, rel=1e-3)
    assert ImplicitALS(4, 7.0).fit(ratings).penalty == 7.0


# What is refused, and how.


def test_floors_are_fresh_and_of_the_kind_asked_for():
    assert [baseline.name for baseline in floors("explicit")] == ["global mean", "item+user bias", "MF fold-in"]
    assert {baseline.feedback for baseline in floors("implicit")} == {"implicit"}
    assert floors("implicit")[0] is not floors("implicit")[0]
    *_, mf = floors("explicit", factors=7, seed=5)
    assert isinstance(mf, BiasedMF)
    assert (mf.factors, mf.seed) == (7, 5)
    with pytest.raises(ValueError, match=r'`feedback` must be "explicit" or "implicit"\. Received: feedback=\'likes\''):
        floors("likes")


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ItemUserBias(item_shrinkage=-1), "`item_shrinkage` must be at least 0. Received: item_shrinkage=-1"),
        (lambda: ItemUserBias(iterations=0), "`iterations` must be at least 1. Received: iterations=0"),
        (lambda: BiasedMF(factors=0), "`factors` must be at least 1. Received: factors=0"),
        (lambda: BiasedMF(user_shrinkage=0), "`user_shrinkage` must be greater than 0. Received: user_shrinkage=0"),
        (lambda: BiasedMF(seed=-1), "`seed` must be at least 0. Received: seed=-1"),
        (lambda: ItemKNN(neighbours=0), "`neighbours` must be at least 1. Received: neighbours=0"),
        (lambda: EASE(0), "`regularization` must be greater than 0. Received: regularization=0"),
        (lambda: EASE(float("nan")), "`regularization` must be greater than 0. Received: regularization=nan"),
        (lambda: ImplicitALS(alpha=0), "`alpha` must be greater than 0. Received: alpha=0"),
    ],
)
def test_settings_out_of_range_are_refused(build, message):
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        build()
    assert str(caught.value) == message


def test_using_a_baseline_before_fitting_says_what_to_call():
    with pytest.raises(RuntimeError, match=r"`adapt` needs a fitted baseline; call `fit\(ratings\)` first"):
        GlobalMean().adapt(support_of([[1]]))
    with pytest.raises(RuntimeError, match=r"`score` needs a fitted baseline"):
        Popularity().score(np.zeros((1, 0)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"item": np.array([1, 5])}, "`item` of `ratings` must hold rows between 0 and 4. Received: 1 to 5"),
        ({"user": np.array([-1, 1])}, "`user` of `ratings` must hold rows between 0 and 2. Received: -1 to 1"),
        ({"item": np.array([1.0, 2.0])}, "`item` of `ratings` must hold integers. Received: float64"),
        ({"label": np.array([1.0, np.nan])}, "`label` of `ratings` must be finite. Received: 1 values that are not"),
        ({"label": np.ones(3)}, "`user`, `item` and `label` of `ratings` must be vectors of one length. Received:"),
        ({"item": np.array([0, 0])}, "`ratings` must hold at least one interaction of a known user with a known item"),
        ({"label": np.zeros(2)}, "(and, for implicit feedback, a label above 0). Received: none"),
    ],
)
def test_ratings_that_make_no_sense_are_refused(change, message):
    good = Ratings(np.array([1, 2]), np.array([1, 4]), np.ones(2), 3, 5)
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        Popularity().fit(good._replace(**change))
    assert message in str(caught.value)


def test_support_and_candidates_that_make_no_sense_are_refused(ratings):
    baseline = Popularity().fit(ratings)
    with pytest.raises(ValueError, match=r"of `support` must hold rows between 0 and 24\. Received: 1 to 25"):
        baseline.adapt(support_of([[1, 25]]))
    with pytest.raises(ValueError, match=r"`length` of `support` must be between 0 and 2\. Received: 3 to 3"):
        baseline.adapt(support_of([[1, 2]], length=[3]))
    with pytest.raises(ValueError, match=r"of shape \(T, S\) and `length` of shape \(T,\)\. Received: shapes \(1, 2\)"):
        baseline.adapt(support_of([[1, 2]], [[1]], length=[1]))
    state = baseline.adapt(support_of([[1, 2]]))
    with pytest.raises(
        ValueError, match=r"must have shape \(N,\) or \(T, N\) with T=1 tasks\. Received: shape \(2, 1\)"
    ):
        baseline.score(state, {"item_id": np.array([[1], [2]])})
    with pytest.raises(ValueError, match=r"must hold rows between 0 and 24\. Received: -1 to -1"):
        baseline.score(state, {"item_id": np.array([[-1]])})
