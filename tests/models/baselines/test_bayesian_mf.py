"""Bayesian factorisation against closed forms of what it draws, and against what generated the ratings."""

import numpy as np
import pytest

from tfmetarec.models.baselines import BayesianMF, BiasedMF, ItemUserBias, Ratings, blocks
from tfmetarec.models.baselines.bayesian_mf import Gaussian, draw_prior, draw_vectors, inner_products, packed, posterior


@pytest.fixture(scope="module")
def fitted(ratings):
    return BayesianMF(3, draws=4, burn_in=3).fit(ratings)


def test_a_user_is_folded_in_by_the_posterior_mean_in_each_draw(fitted, ratings, support_of):
    items, labels = np.array([3, 8, 8, 20, 0]), np.array([5.0, 1.0, 2.0, 4.0, 3.0])
    scores = fitted.score(fitted.adapt(support_of([items], [labels])))
    expected = []
    for draw in fitted._kept:
        shown, prior = draw.items[items].astype(float), draw.users
        precision = prior.precision + draw.noise_precision * shown.T @ shown
        right = prior.precision @ prior.mean + draw.noise_precision * shown.T @ (labels - fitted.mean)
        expected.append(fitted.mean + draw.items @ np.linalg.solve(precision, right))
    np.testing.assert_allclose(scores[0], np.mean(expected, 0), rtol=1e-3)


def test_without_support_a_user_is_the_mean_user(fitted, support_of):
    scores = fitted.score(fitted.adapt(support_of([[1]], length=[0])))
    expected = np.mean([fitted.mean + draw.items @ draw.users.mean for draw in fitted._kept], 0)
    np.testing.assert_allclose(scores[0], expected, rtol=1e-4)


def test_the_posterior_is_that_of_bayesian_regression():
    """With one dimension by hand: precision 2 + 3 (1 + 4), mean (2 * 1 + 3 (1 * 2 + 2 * 3)) / 17."""
    precision, right = posterior(
        np.array([[[1.0], [2.0], [0.0]]], np.float32),
        np.array([[2.0, 3.0, 0.0]], np.float32),
        Gaussian(np.array([1.0]), np.array([[2.0]])),
        3.0,
    )
    assert precision.item() == pytest.approx(17, rel=1e-5)
    assert right.item() == pytest.approx(26, rel=1e-5)


def test_vectors_are_drawn_with_the_mean_and_the_covariance_of_their_posterior():
    rng = np.random.default_rng(0)
    others, target = rng.normal(size=(5, 2)).astype(np.float32), rng.normal(size=5).astype(np.float32)
    ratings = packed(np.repeat(np.arange(4000), 5), np.tile(np.arange(5), 4000), np.tile(target, 4000), 2)
    prior = Gaussian(np.array([0.5, -1.0]), np.array([[2.0, 0.6], [0.6, 1.0]]))
    drawn = np.empty((4000, 2), np.float32)
    draw_vectors(rng, drawn, ratings, others, prior, 1.5)
    precision = prior.precision + 1.5 * others.T @ others
    expected = np.linalg.solve(precision, prior.precision @ prior.mean + 1.5 * others.T @ target)
    np.testing.assert_allclose(drawn.mean(0), expected, atol=0.03)  # Four standard errors.
    np.testing.assert_allclose(np.cov(drawn.T), np.linalg.inv(precision), atol=0.03)


def test_the_prior_is_drawn_from_the_normal_wishart_posterior():
    vectors = np.random.default_rng(1).normal([1.0, -2.0], [0.5, 2.0], (50, 2))
    rng = np.random.default_rng(2)
    draws = [draw_prior(rng, vectors) for _ in range(4000)]
    mean = 50 * vectors.mean(0) / 52
    centred = vectors - vectors.mean(0)
    scale = np.eye(2) + centred.T @ centred + 2 * 50 / 52 * np.outer(vectors.mean(0), vectors.mean(0))
    # E[precision] = degrees of freedom * inverse scale; Cov[mean] = scale / (count (degrees of freedom - D - 1)).
    np.testing.assert_allclose(
        np.mean([d.precision for d in draws], 0), 52 * np.linalg.inv(scale), rtol=0.03, atol=0.03
    )
    np.testing.assert_allclose(np.mean([d.mean for d in draws], 0), mean, atol=0.03)
    np.testing.assert_allclose(np.cov(np.array([d.mean for d in draws]).T), scale / (52 * 49), atol=0.01)


def test_one_dimension_has_a_prior_too():
    drawn = draw_prior(np.random.default_rng(0), np.random.default_rng(1).normal(3, 0.1, (400, 1)))
    assert drawn.mean.shape == (1,)
    assert drawn.precision.shape == (1, 1)
    assert drawn.mean.item() == pytest.approx(3, abs=0.1)


def planted(seed):
    """300 users and 60 items of two dimensions of taste, noise of 0.5; users after 240 are for asking."""
    rng = np.random.default_rng(seed)
    users, items, bias = rng.normal(size=(300, 2)), rng.normal(0, 0.5, (60, 2)), rng.normal(0, 0.4, 60)
    truth = 3.5 + users @ items.T + bias + rng.normal(0, 0.3, (300, 1))
    return truth, truth + rng.normal(0, 0.5, truth.shape), rng


def test_of_planted_tastes_it_tells_more_than_its_rivals(support_of):
    truth, rated, rng = planted(0)
    kept = (rng.random(rated.shape) < 0.35) & (np.arange(300)[:, None] < 240)
    user, item = np.nonzero(kept)
    data = Ratings(user + 1, item + 1, rated[kept].astype(np.float32), 301, 61)
    shown = np.array([rng.choice(60, 12, replace=False) for _ in range(60)])
    support = support_of(shown + 1, np.take_along_axis(rated[240:], shown, 1))
    error = {}
    for baseline in (BayesianMF(4), BiasedMF(4), ItemUserBias()):
        missed = baseline.fit(data).score(baseline.adapt(support))[:, 1:] - truth[240:]
        error[baseline.name] = np.sqrt(np.mean(missed**2))
    assert error["Bayesian MF"] < 0.95 * error["MF fold-in"]
    assert error["Bayesian MF"] < 0.7 * error["item+user bias"]


def test_the_noise_is_found():
    _, rated, _ = planted(1)
    user, item = np.indices(rated.shape).reshape(2, -1) + 1
    found = BayesianMF(4).fit(Ratings(user, item, rated.ravel().astype(np.float32), 301, 61))
    noise = np.mean([draw.noise_precision for draw in found._kept]) ** -0.5
    assert noise == pytest.approx(0.5, rel=0.03)


@pytest.mark.parametrize("scale", [2.0**-13, 2.0**10])
def test_ratings_on_another_scale_are_predicted_on_that_scale(ratings, support_of, scale):
    """Powers of two scale exactly, so that even the digits are the same."""
    support = support_of([[3, 8, 1]], [[5.0, 1.0, 2.0]])
    scaled = support._replace(label=scale * support.label)
    plain = BayesianMF(2, draws=2, burn_in=2).fit(ratings)
    other = BayesianMF(2, draws=2, burn_in=2).fit(ratings._replace(label=np.float32(scale) * ratings.label))
    np.testing.assert_allclose(other.score(other.adapt(scaled)), scale * plain.score(plain.adapt(support)), rtol=1e-5)
    found = [scale**2 * draw.noise_precision for draw in other._kept]
    assert found == pytest.approx([draw.noise_precision for draw in plain._kept])


def test_large_ratings_without_noise_are_learned():
    truth, _, rng = planted(2)
    user, item = np.nonzero(rng.random(truth.shape) < 0.4)
    baseline = BayesianMF(4, draws=3).fit(Ratings(user + 1, item + 1, 1000 * truth[user, item], 301, 61))
    assert max(draw.noise_precision for draw in baseline._kept) ** -0.5 < 50


def test_of_many_ratings_without_noise_the_noise_is_a_hundredth_of_their_deviation():
    user, item = np.indices((400, 200)).reshape(2, -1)
    baseline = BayesianMF(1, draws=1).fit(Ratings(user + 1, item + 1, 512.0 * (user % 3 + item % 3), 401, 201))
    assert baseline._kept[0].noise_precision ** -0.5 == pytest.approx(512 / 100)


def test_ratings_that_are_all_the_same_are_what_is_predicted(support_of):
    user, item = np.indices((40, 20)).reshape(2, -1) + 1
    baseline = BayesianMF(2, draws=3).fit(Ratings(user, item, np.full(800, 0.1, np.float32), 41, 21))
    scores = baseline.score(baseline.adapt(support_of([[1, 2, 3]], [[0.1, 0.1, 0.1]])))
    np.testing.assert_allclose(scores[:, 1:], 0.1, atol=0.1)


def test_draws_are_views_of_the_item_vectors(fitted):
    width = fitted.factors + 2
    for place, draw in enumerate(fitted._kept):
        assert np.shares_memory(draw.items, fitted.items)
        np.testing.assert_array_equal(draw.items, fitted.items[:, place * width : (place + 1) * width])


def test_vectors_are_multiplied_in_blocks_too(ratings, monkeypatch):
    users = np.random.default_rng(0).normal(size=(ratings.n_users, 3)).astype(np.float32)
    items = np.random.default_rng(1).normal(size=(ratings.n_items, 3)).astype(np.float32)
    whole = inner_products(users, items, ratings)
    np.testing.assert_allclose(whole, (users @ items.T)[ratings.user, ratings.item], rtol=1e-4, atol=1e-5)
    monkeypatch.setattr(blocks, "BLOCK_SIZE", 21)
    np.testing.assert_array_equal(inner_products(users, items, ratings), whole)


def test_seeds_decide_and_what_is_kept_is_as_many_as_asked_for(ratings):
    def items(seed):
        return BayesianMF(2, draws=3, burn_in=0, thinning=1, seed=seed).fit(ratings).items

    assert items(0).shape == (25, 3 * 4)
    np.testing.assert_array_equal(items(0), items(0))
    assert not np.array_equal(items(0), items(1))


def test_an_item_without_ratings_has_the_mean_vector_of_items(ratings):
    wider = ratings._replace(n_items=27)
    fitted = BayesianMF(2, draws=2, burn_in=1).fit(wider)
    for draw in fitted._kept:
        np.testing.assert_array_equal(draw.items[[25, 26]], draw.items[[0, 0]])
        mean = draw.items[np.unique(ratings.item)].mean(0)
        assert np.linalg.norm(draw.items[0] - mean) < 0.4 * np.linalg.norm(mean)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: BayesianMF(0), "`factors` must be at least 1. Received: factors=0"),
        (lambda: BayesianMF(draws=0), "`draws` must be at least 1. Received: draws=0"),
        (lambda: BayesianMF(burn_in=-1), "`burn_in` must be at least 0. Received: burn_in=-1"),
        (lambda: BayesianMF(thinning=0), "`thinning` must be at least 1. Received: thinning=0"),
        (lambda: BayesianMF(seed=-1), "`seed` must be at least 0. Received: seed=-1"),
    ],
)
def test_settings_out_of_range_are_refused(build, message):
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        build()
    assert str(caught.value) == message
