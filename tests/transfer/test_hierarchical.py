import numpy as np
import polars as pl
import pytest

from tfmetarec.data import Interactions
from tfmetarec.transfer import ordinal
from tfmetarec.transfer.cross_domain import Domains, cross_domain
from tfmetarec.transfer.hierarchical import (
    HierarchicalTransfer,
    _squared_errors,
    _user_effects,
    _user_noise,
    fitted_effects,
)


def planted(correlation, n_users=150, n_items=40, seed=0):
    """Ratings in two domains whose users' effects have a deviation of 1 and this correlation, both to the last bit."""
    rng = np.random.default_rng(seed)
    independent, _ = np.linalg.qr(rng.normal(size=(n_users, 3)) * [0, 1, 1] + [1, 0, 0])
    one, two = np.sqrt(n_users) * independent[:, 1:].T
    effects = np.stack([one, correlation * one + np.sqrt(1 - correlation**2) * two], axis=1)
    frames = []
    for side, first in ((0, 0), (1, n_items)):
        quality = rng.normal(0, 0.5, n_items)
        user = np.repeat(np.arange(n_users), 20)
        item = np.concatenate([rng.permutation(n_items)[:20] for _ in range(n_users)])
        label = 3 + quality[item] + effects[user, side] + rng.normal(0, 0.5, len(user))
        table = pl.DataFrame({"user_id": user, "item_id": item + first, "label": label})
        frames.append(Interactions.from_frames(table, feedback="explicit"))
    return frames, effects


def test_effects_of_one_domain_are_the_textbook_shrinkage():
    count, first = np.array([[4.0], [0.0]]), np.array([[2.0], [0.0]])
    covariance = np.array([[0.5, 0.2], [0.2, 0.4]])
    user, spread = _user_effects(count, first, covariance, np.array([[2.0], [2.0]]))
    # The source effect: precision 1 / .5 + 4 * 2 = 10, mean 2 * 2 / 10; the target's regresses on it by .2 / .5.
    np.testing.assert_allclose(user, [[0.4, 0.16]])
    np.testing.assert_allclose(spread[0, 0, 0], 0.1)
    np.testing.assert_allclose(spread[0, 1, 1], 0.4 - 0.2**2 / (0.5 + 1 / 8))


def test_evidence_in_both_domains_solves_the_normal_equations():
    count, first = np.array([[3.0], [5.0]]), np.array([[1.0], [-2.0]])
    covariance, weight = np.array([[0.5, 0.2], [0.2, 0.4]]), np.array([[2.0], [1.5]])
    user, spread = _user_effects(count, first, covariance, weight)
    precision = np.linalg.inv(covariance) + np.diag((weight * count)[:, 0])
    np.testing.assert_allclose(spread[0], np.linalg.inv(precision))
    np.testing.assert_allclose(user[0], np.linalg.solve(precision, (weight * first)[:, 0]))


def test_squared_errors_are_those_of_the_residuals():
    residual, effect, variance = np.array([1.0, -0.5, 2.0]), 0.4, 0.1
    expected = np.square(residual - effect).sum() + 3 * variance
    arguments = (np.array([[3.0]]), residual.sum(keepdims=True)[None], np.square(residual).sum(keepdims=True)[None])
    found = _squared_errors(*arguments, np.array([[effect]]), np.array([[[variance]]]))
    np.testing.assert_allclose(found, [[expected]])


def test_a_user_without_ratings_is_as_noisy_as_anybody():
    nothing = np.zeros((2, 1))
    noise = _user_noise(nothing, nothing, nothing, np.zeros((1, 2)), np.eye(2)[None], np.array([3.0, 2.0]), 8.0)
    assert noise.tolist() == [1.0]


def test_planted_effects_are_found():
    (source, target), effects = planted(0.8)
    domains = Domains.of(source, target)
    *_, found = fitted_effects((domains.source_ratings, domains.target_ratings), 15, 8.0)
    correlation = found.covariance[0, 1] / np.sqrt(found.covariance[0, 0] * found.covariance[1, 1])
    assert np.corrcoef(effects.T)[0, 1] == pytest.approx(0.8)
    assert correlation == pytest.approx(0.8, abs=0.03)
    np.testing.assert_allclose(np.diag(found.covariance), 1, rtol=0.1)
    np.testing.assert_allclose(found.precision, 1 / 0.25, rtol=0.1)


def test_a_source_that_says_nothing_is_not_believed():
    (source, target), _ = planted(0.0)
    domains = Domains.of(source, target)
    method = HierarchicalTransfer(15).fit(domains)
    assert abs(method.covariance[0, 1]) < 0.03  # Of effects whose variance is 1.
    everybody = method.adapt(domains.support(domains.user_ids))[:, 0]
    assert everybody.std() < 0.03


def test_cold_users_are_rated_by_what_they_did_in_the_source():
    (source, target), effects = planted(0.9)
    cold = pl.col("user_id") < 30
    domains = Domains.of(source, target.filter(~cold))
    method = HierarchicalTransfer(10).fit(domains)
    predicted = method.adapt(domains.support(list(range(30))))[:, 0]
    assert np.corrcoef(predicted, effects[:30, 1])[0, 1] > 0.8


def test_what_the_user_did_in_the_target_counts_too():
    (source, target), effects = planted(0.0)
    cold = pl.col("user_id") < 30
    domains = Domains.of(source, target.filter(~cold))
    method = HierarchicalTransfer(10).fit(domains)
    users = list(range(30))
    known = method.adapt(domains.support(users, source, target.filter(cold)))[:, 0]
    assert np.corrcoef(known, effects[:30, 1])[0, 1] > 0.95


def test_users_in_one_domain_alone_cannot_be_correlated():
    table = {"user_id": [1, 2], "item_id": [1, 2], "label": [1.0, 2.0]}
    source = Interactions.from_frames(pl.DataFrame(table), feedback="explicit")
    target = Interactions.from_frames(pl.DataFrame({**table, "user_id": [3, 4]}), feedback="explicit")
    with pytest.raises(ValueError, match=r"correlated effects need users whom both domains have\. Received: none"):
        HierarchicalTransfer().fit(Domains.of(source, target))


def test_ratings_of_one_step_are_refused():
    ratings = pl.DataFrame({"user_id": [1, 2], "item_id": [1, 2], "label": [3.0, 3.0]})
    data = Interactions.from_frames(ratings, feedback="explicit")
    with pytest.raises(ValueError, match=r"ratings must have at least two steps to be told apart\. Received: \[3.0\]"):
        HierarchicalTransfer().fit(Domains.of(data, data))


@pytest.fixture(scope="module")
def stepped():
    (source, target), _ = planted(0.8)
    rounded = [
        part.with_table(part.table.with_columns(pl.col("label").round().clip(1, 5))) for part in (source, target)
    ]
    return cross_domain(HierarchicalTransfer(), *rounded, validation_share=0.3), Domains.of(*rounded)


def test_the_distribution_is_one_and_its_median_a_step(stepped):
    method, domains = stepped
    state = method.adapt(domains.support(list(range(5))))
    chances = method.distribution(state, domains.candidates())
    assert chances.shape == (5, 40, 5)
    np.testing.assert_allclose(chances.sum(axis=-1), 1)
    median = method.median(state, domains.candidates())
    assert set(np.unique(median)) <= {1.0, 2.0, 3.0, 4.0, 5.0}
    below = np.cumsum(chances, axis=-1)
    place = median.astype(int)[..., None] - 1
    assert (np.take_along_axis(below, place, axis=-1) >= 0.5).all()


def test_steps_are_recovered_from_ratings_drawn_with_them():
    rng = np.random.default_rng(0)
    levels = np.array([1.0, 2.0, 3.0])
    truth = np.array([1.2, np.log(1.5), np.log(0.7), 1.0])
    mean, deviation = rng.normal(2, 1, 20_000), rng.uniform(0.5, 1.5, 20_000)
    chances = ordinal.probabilities(truth, mean, deviation)
    label = levels[(rng.random((20_000, 1)) > np.cumsum(chances, axis=1)).sum(axis=1).clip(max=2)]
    found = ordinal.fit(mean, deviation, label, levels)
    np.testing.assert_allclose(found, truth, atol=0.1)


def test_cuts_are_half_way_before_anything_is_known():
    chances = ordinal.probabilities(ordinal.default(np.array([1.0, 2.0, 4.0])), np.array([3.0]), np.array([1.0]))
    # Phi(-1.5), Phi(0) - Phi(-1.5) and the rest: the cuts are 1.5 and 3.
    np.testing.assert_allclose(chances, [[0.0668072, 0.4331928, 0.5]], atol=1e-6)
    assert ordinal.mean(chances, np.array([1.0, 2.0, 4.0]))[0] == pytest.approx(0.0668072 + 0.8663856 + 2)
