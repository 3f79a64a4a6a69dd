"""A mixture weighs its members by a gate that knows K; checked by hand, by finite differences and by scikit-learn."""

import numpy as np
import pytest
import sklearn.linear_model

import tfmetarec as tmr
from tfmetarec.tasks import Support
from tfmetarec.transfer import Mixture
from tfmetarec.transfer.mixture import soft_ndcg


class Says:
    """Predicts what it was told, whoever asks."""

    def __init__(self, of_lengths):
        self.of_lengths = of_lengths

    def adapt(self, support):
        return np.asarray(support.length)

    def score(self, state, item):
        rows = np.asarray(item["item_id"])
        rows = np.broadcast_to(rows, (len(state), rows.shape[-1]))
        return self.of_lengths(rows, state[:, None]).astype(np.float32)


def support(lengths):
    lengths = np.asarray(lengths, np.int32)
    return Support({}, {"item_id": np.zeros((len(lengths), 1), np.int32)}, np.zeros((len(lengths), 1)), lengths)


@pytest.fixture(scope="module")
def explicit():
    return tmr.data.Vocabulary.fit(tmr.data.load("synthetic", n_users=30, feedback="explicit", seed=0))


@pytest.fixture(scope="module")
def implicit():
    return tmr.data.Vocabulary.fit(tmr.data.load("synthetic", n_users=30, seed=0))


def test_before_fit_ratings_are_the_plain_mean(explicit):
    mixture = Mixture({"low": Says(lambda i, k: 2 + 0 * i), "high": Says(lambda i, k: 5 + 0 * i)}, explicit)
    scores = mixture.score(mixture.adapt(support([0, 7])), {"item_id": np.array([1, 2, 3])})
    assert scores.tolist() == [[3.5] * 3] * 2
    assert mixture.weights([0, 7])["low"].tolist() == [0.5, 0.5]


def test_a_gate_set_by_hand(explicit):
    mixture = Mixture({"a": Says(lambda i, k: 1 + 0 * i), "b": Says(lambda i, k: 0 * i)}, explicit)
    mixture.gate = np.array([[np.log(3.0), 0.0], [1.0, 0.0]])  # w_a : w_b = 3 (1 + K) : 1.
    scores = mixture.score(mixture.adapt(support([0, 4])), {"item_id": np.array([[1], [1]])})
    np.testing.assert_allclose(scores[:, 0], [3 / 4, 15 / 16], rtol=1e-6)


def test_the_gate_hands_over_from_the_one_that_is_right_without_history_to_the_one_that_is_right_with_it(explicit):
    rng = np.random.default_rng(0)
    lengths, item = np.tile([0, 20], 100), {"item_id": rng.integers(1, 20, (200, 8))}
    truth = item["item_id"] % 5 + 1.0
    early = Says(lambda i, k: i % 5 + 1.0 + np.where(k > 0, 2.0, 0.0))
    late = Says(lambda i, k: i % 5 + 1.0 + np.where(k > 0, 0.0, 2.0))
    mixture = Mixture({"early": early, "late": late}, explicit, penalty=0.01).fit(support(lengths), item, truth)
    weights = mixture.weights([0, 20])
    assert weights["early"][0] > 0.95
    assert weights["late"][1] > 0.95
    error = np.abs(mixture.score(mixture.adapt(support(lengths)), item) - truth).mean()
    assert error < 0.1  # One weight for all K leaves 1.


def test_of_ratings_at_one_length_it_is_the_least_squares_on_the_simplex(explicit):
    rng = np.random.default_rng(1)
    item = {"item_id": np.arange(1, 21)[None].repeat(50, 0)}
    a, b = rng.normal(3, 1, 21), rng.normal(3, 1, 21)
    labels = 0.3 * a[item["item_id"]] + 0.7 * b[item["item_id"]] + rng.normal(0, 0.1, (50, 20))
    members = {"a": Says(lambda i, k: a[i]), "b": Says(lambda i, k: b[i])}
    mixture = Mixture(members, explicit, penalty=0.0).fit(support(np.full(50, 3)), item, labels)
    line = sklearn.linear_model.LinearRegression(fit_intercept=False)
    line.fit((a - b)[item["item_id"]].reshape(-1, 1), (labels - b[item["item_id"]]).ravel())
    assert mixture.weights(3)["a"] == pytest.approx(line.coef_[0], abs=1e-3)


def test_a_ranking_is_judged_by_scale_free_scores_and_who_tells_nothing_apart_says_nothing(implicit):
    good = np.random.default_rng(2).normal(size=implicit.n_items)
    members = {"good": Says(lambda i, k: 1000 * good[i]), "silent": Says(lambda i, k: 5 + 0 * i)}
    mixture = Mixture(members, implicit)
    scores = mixture.score(mixture.adapt(support([2])), implicit.catalogue)[0, 1:]
    known = good[1:]
    np.testing.assert_allclose(scores, (known - known.mean()) / known.std() / 2, rtol=1e-4, atol=1e-5)
    some = mixture.score(mixture.adapt(support([2])), {"item_id": np.array([3, 1])})[0]
    np.testing.assert_allclose(some, scores[[2, 0]], rtol=1e-5)


def test_the_one_that_knows_gets_the_weight(implicit):
    rng = np.random.default_rng(3)
    good, noise = rng.normal(size=implicit.n_items), rng.normal(size=implicit.n_items)
    best = np.argsort(-good[1:])[:5] + 1
    taken = {"item_id": np.stack([rng.permutation(best)[:3] for _ in range(40)])}
    members = {"good": Says(lambda i, k: good[i]), "noise": Says(lambda i, k: noise[i])}
    mixture = Mixture(members, implicit).fit(support(rng.integers(0, 9, 40)), taken)
    weights = mixture.weights([0, 8])
    assert (weights["good"] > 2 * weights["noise"]).all()


def test_soft_ranks_by_hand():
    real = np.array([[True, True, True, False]])
    scores = np.array([[0.2 * np.log(3.0), 0.0, -20.0, 50.0]])  # Item 0 stands before item 1 with chance 3/4.
    value, _ = soft_ndcg(scores, 1, real)
    assert value[0] == pytest.approx(1 / np.log2(1 + 1.25))
    value, _ = soft_ndcg(scores, 2, real)  # The ranks are 1.25 and 1.75; the item that is not real has none.
    assert value[0] == pytest.approx((1 / np.log2(2.25) + 1 / np.log2(2.75)) / (1 + 1 / np.log2(3)))
    value, slope = soft_ndcg(scores, 2, np.array([[True, False, True, True]]))
    assert value[0] == pytest.approx(1 / np.log2(1 + 2))
    assert slope[0, 1] == 0.0


def test_the_slope_of_soft_ranks_is_that_of_finite_differences():
    rng = np.random.default_rng(4)
    scores, real = rng.normal(size=(2, 6)), np.ones((2, 6), bool)
    real[1, [0, 4]] = False
    slope = soft_ndcg(scores, 3, real)[1]
    for place in np.ndindex(2, 6):
        step = np.zeros((2, 6))
        step[place] = 1e-5
        change = soft_ndcg(scores + step, 3, real)[0] - soft_ndcg(scores - step, 3, real)[0]
        assert slope[place] == pytest.approx(change[place[0]] / 2e-5, abs=1e-7)


def test_the_gate_hands_over_between_rankings_too(implicit):
    rng = np.random.default_rng(5)
    good, noise = rng.normal(size=(2, implicit.n_items))
    lengths, best = np.tile([0, 20], 50), np.argsort(-good[1:])[:10] + 1
    taken = {"item_id": np.stack([rng.permutation(best)[:5] for _ in lengths])}
    members = {
        "early": Says(lambda i, k: np.where(k > 0, noise[i], good[i])),
        "late": Says(lambda i, k: np.where(k > 0, good[i], noise[i])),
    }
    weights = Mixture(members, implicit, penalty=0.1).fit(support(lengths), taken).weights([0, 20])
    assert weights["early"][0] > 0.8
    assert weights["late"][1] > 0.8


def test_the_support_is_on_no_list_and_an_item_counts_once(implicit):
    member = Says(lambda i, k: -1.0 * i)
    mixture = Mixture({"a": member, "b": member}, implicit)
    own = support([1, 0])
    own.item["item_id"][:] = [[3], [5]]
    said, real = mixture._contested(own, np.array([[2], [2]]))
    assert said.shape == (2, 1 + 2 * (implicit.n_items - 1), 2)
    # All items, row 0 and the support left out; what lies past its length is no support.
    assert real.sum(1).tolist() == [implicit.n_items - 2, implicit.n_items - 1]


def test_a_row_of_no_item_at_minus_infinity_leaves_the_gate_finite(implicit):
    rng = np.random.default_rng(6)
    good, noise = rng.normal(size=(2, implicit.n_items))
    good[0] = noise[0] = -np.inf  # As baselines have it.
    taken = np.tile(np.argsort(-good)[:3], (8, 1))
    taken[0, 0] = 0
    own = support(np.ones(8, np.int64))
    own.item["item_id"][:] = np.argsort(-good)[3]
    members = {"good": Says(lambda i, k: good[i]), "noise": Says(lambda i, k: noise[i])}
    mixture = Mixture(members, implicit)
    assert np.isfinite(mixture._contested(own, taken)[0]).all()
    assert mixture.fit(own, {"item_id": taken}).weights(1)["good"] > 0.5


def test_awkward_arguments_are_refused(explicit, implicit):
    two = {"a": Says(lambda i, k: i), "b": Says(lambda i, k: i)}
    with pytest.raises(ValueError, match="`vocabulary` must be given: none of the members has one of its own"):
        Mixture(two)
    with pytest.raises(ValueError, match=r"`members` must be at least 2 recommenders. Received: \['a'\]"):
        Mixture({"a": two["a"]}, explicit)
    with pytest.raises(ValueError, match="`penalty` must be at least 0. Received: penalty=-1"):
        Mixture(two, explicit, penalty=-1)
    item = {"item_id": np.array([[1]])}
    with pytest.raises(ValueError, match="`fit` is called without `labels` for implicit feedback"):
        Mixture(two, implicit).fit(support([1]), item, np.ones((1, 1)))
    with pytest.raises(ValueError, match="`fit` is called with `labels`, the ratings for explicit feedback"):
        Mixture(two, explicit).fit(support([1]), item)
    with pytest.raises(ValueError, match="`support` must hold at least one user. Received: none"):
        Mixture(two, implicit).fit(support([]), item)
