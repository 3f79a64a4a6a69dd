"""What every baseline promises, checked for all of them, and what each refuses."""

import numpy as np
import pytest

from tfmetarec.models.baselines import (
    EASE,
    Baseline,
    GlobalMean,
    ImplicitALS,
    ItemKNN,
    Popularity,
    Ratings,
    blocks,
    floors,
)


def every_baseline() -> list[Baseline]:
    return [*floors("explicit", factors=4), *floors("implicit", factors=4), EASE(2.0), ImplicitALS(4, 2.0, 5.0)]


names = [f"{baseline.name} {place}" for place, baseline in enumerate(every_baseline())]


@pytest.fixture(params=range(len(names)), ids=names)
def baseline(request, ratings) -> Baseline:
    return every_baseline()[request.param].fit(ratings)


# What every baseline promises.


def test_scores_are_float32_with_one_column_for_each_row_of_the_catalogue(baseline, ratings, support_of):
    scores = baseline.score(baseline.adapt(support_of([[1, 3], [2, 4], [5, 7]])))
    assert scores.dtype == np.float32
    assert scores.shape == (3, ratings.n_items)
    assert np.isfinite(scores[:, 1:]).all()


def test_candidates_score_as_they_do_in_the_whole_catalogue(baseline, support_of):
    state = baseline.adapt(support_of([[1, 3], [2, 4]]))
    candidates = np.array([[5, 0, 9], [9, 24, 1]])
    catalogue = baseline.score(state)
    np.testing.assert_array_equal(
        baseline.score(state, {"item_id": candidates}), np.take_along_axis(catalogue, candidates, axis=1)
    )


def test_candidates_common_to_all_tasks_need_no_task_axis(baseline, support_of):
    state = baseline.adapt(support_of([[1, 3], [2, 4]]))
    common = baseline.score(state, {"item_id": np.array([5, 0, 9])})
    np.testing.assert_array_equal(common, baseline.score(state)[:, [5, 0, 9]])


def test_rows_past_the_length_change_nothing(baseline, support_of):
    clean = support_of([[1, 3, 0, 0], [2, 0, 0, 0]], length=[2, 1])
    dirty = support_of([[1, 3, 10**9, -7], [2, -1, 5, 5]], [[1, 1, np.nan, np.inf], [1, 9, 9, -np.inf]], length=[2, 1])
    np.testing.assert_array_equal(baseline.score(baseline.adapt(clean)), baseline.score(baseline.adapt(dirty)))


def test_a_task_scores_the_same_alone_and_in_company(baseline, support_of):
    together = baseline.score(baseline.adapt(support_of([[1, 3, 5], [2, 0, 0], [8, 9, 0]], length=[3, 1, 2])))
    alone = baseline.score(baseline.adapt(support_of([[8, 9]])))
    np.testing.assert_allclose(together[2], alone[0], rtol=1e-5, atol=1e-6)


def test_an_empty_support_gives_every_task_the_unadapted_prediction(baseline, support_of):
    no_rows = baseline.score(baseline.adapt(support_of(np.zeros((2, 0), int))))
    no_length = baseline.score(baseline.adapt(support_of([[1, 3], [2, 4]], length=[0, 0])))
    np.testing.assert_array_equal(no_rows, no_length)
    np.testing.assert_array_equal(no_rows[0], no_rows[1])


def test_small_blocks_give_the_same_scores(baseline, ratings, monkeypatch, support_of):
    support = support_of([[1, 3], [2, 4], [5, 7]])
    before = baseline.score(baseline.adapt(support))
    monkeypatch.setattr(blocks, "BLOCK_SIZE", 1)
    np.testing.assert_allclose(baseline.fit(ratings).score(baseline.adapt(support)), before, rtol=1e-4, atol=1e-5)


def test_a_state_can_be_sliced_by_task(baseline, support_of):
    state = baseline.adapt(support_of([[1, 3], [2, 4], [5, 7]]))
    np.testing.assert_allclose(baseline.score(state[1:2]), baseline.score(state)[1:2], rtol=1e-5, atol=1e-6)


def test_equal_seeds_give_equal_scores_and_leave_the_global_generator_alone(baseline, ratings, support_of):
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    support = support_of([[1, 3]])
    scores = baseline.score(baseline.adapt(support))
    np.testing.assert_array_equal(baseline.fit(ratings).score(baseline.adapt(support)), scores)
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002


def test_no_tasks_give_no_scores(baseline, ratings, support_of):
    state = baseline.adapt(support_of(np.zeros((0, 3), int)))
    assert baseline.score(state).shape == (0, ratings.n_items)


def test_training_rows_of_row_zero_are_left_out(baseline, ratings, support_of):
    support = support_of([[1, 3]])
    scores = baseline.score(baseline.adapt(support))
    extra = Ratings(
        np.append(ratings.user, [0, 0, 7]),
        np.append(ratings.item, [2, 3, 0]),
        np.append(ratings.label, [1, 1, 1]).astype(np.float32),
        ratings.n_users,
        ratings.n_items,
    )
    np.testing.assert_array_equal(baseline.fit(extra).score(baseline.adapt(support)), scores)


# What those for implicit feedback promise besides.


def test_row_zero_is_never_recommended(ratings, support_of):
    for baseline in floors("implicit", factors=4):
        state = baseline.fit(ratings).adapt(support_of([[1, 3], [0, 0]]))
        assert (baseline.score(state)[:, 0] == -np.inf).all()
        assert (baseline.score(state, {"item_id": np.zeros((2, 1), int)}) == -np.inf).all()


@pytest.mark.parametrize("place", [1, 2, 3])
def test_an_empty_support_ranks_by_popularity(place, ratings, support_of):
    popularity = Popularity().fit(ratings)
    baseline = floors("implicit", factors=4)[place].fit(ratings)
    empty = support_of([[1]], length=[0])
    expected = popularity.score(popularity.adapt(empty))[0, 1:]
    found = baseline.score(baseline.adapt(empty))[0, 1:]
    np.testing.assert_array_equal(found[:, None] > found, expected[:, None] > expected)


@pytest.mark.parametrize("model", [ItemKNN(), EASE(2.0), ImplicitALS(4, 2.0, 5.0)], ids=lambda model: model.name)
def test_repeated_unknown_and_unwanted_support_says_nothing_more(model, ratings, support_of):
    model.fit(ratings)
    once = model.adapt(support_of([[3, 8]]))
    noisy = model.adapt(support_of([[3, 0, 8, 3, 5]], [[1, 1, 2, 1, 0]]))
    np.testing.assert_allclose(model.score(noisy), model.score(once), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("model", [ItemKNN(), EASE(2.0), ImplicitALS(4, 2.0, 5.0)], ids=lambda model: model.name)
def test_the_best_unseen_item_is_of_the_same_camp(model, ratings, support_of):
    scores = model.fit(ratings).score(model.adapt(support_of([[1, 3, 5], [2, 4, 6]])))
    scores[0, [1, 3, 5]] = scores[1, [2, 4, 6]] = -np.inf
    assert list(scores.argmax(axis=1) % 2) == [1, 0]


# What is refused, and how.


def test_using_a_baseline_before_fitting_says_what_to_call(support_of):
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


def test_support_and_candidates_that_make_no_sense_are_refused(ratings, support_of):
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
