"""Facts about the bootstrap: exact cases, the normal approximation, and how often it is right."""

import itertools

import numpy as np
import pytest

from tfmetarec.evaluation import bootstrap
from tfmetarec.evaluation.bootstrap import Difference, bootstrap_mean, paired_bootstrap


def test_users_who_all_agree_leave_no_doubt():
    assert bootstrap_mean(np.full(50, 0.25)) == (0.25, 0.25, 0.25)


def test_the_interval_is_the_quantiles_of_every_possible_draw():
    values = np.array([0.0, 1.0, 5.0])
    exact = [np.mean(draw) for draw in itertools.product(values, repeat=3)]  # All 27 draws are as likely.
    interval = bootstrap_mean(values, samples=20_000, confidence=0.6)
    assert interval.mean == pytest.approx(2)
    assert interval.low == pytest.approx(np.quantile(exact, 0.2, method="inverted_cdf"))
    assert interval.high == pytest.approx(np.quantile(exact, 0.8, method="inverted_cdf"))


def test_with_many_users_the_interval_is_two_standard_errors_wide():
    values = np.random.default_rng(0).exponential(size=4000)
    interval = bootstrap_mean(values, samples=2000)
    error = values.std() / np.sqrt(4000)
    assert interval.high - interval.mean == pytest.approx(1.96 * error, rel=0.1)
    assert interval.mean - interval.low == pytest.approx(1.96 * error, rel=0.1)


def test_the_interval_holds_the_truth_about_as_often_as_it_says():
    generator = np.random.default_rng(0)
    intervals = [bootstrap_mean(generator.normal(size=100), samples=300, confidence=0.8) for _ in range(300)]
    assert np.mean([low <= 0 <= high for _, low, high in intervals]) == pytest.approx(0.8, abs=0.07)


def test_equal_seeds_give_equal_intervals_and_blocks_do_not_matter(monkeypatch):
    values = np.random.default_rng(0).normal(size=100)
    first = bootstrap_mean(values, seed=1)
    assert bootstrap_mean(values, seed=1) == first
    assert bootstrap_mean(values, seed=2) != first
    monkeypatch.setattr(bootstrap, "BLOCK_SIZE", 250)
    assert bootstrap_mean(values, seed=1) == first


def test_pairing_sees_a_small_difference_between_users_who_differ_a_lot():
    generator = np.random.default_rng(0)
    users = generator.normal(0, 10, 200)
    a, b = users + 0.1 + generator.normal(0, 0.1, 200), users
    difference = paired_bootstrap(a, b)
    assert difference.low > 0
    assert difference.p_value == pytest.approx(2 / 1001)  # No draw on the other side: the smallest there is.
    assert bootstrap_mean(a).low < bootstrap_mean(b).mean  # Alone, neither interval shows it.


def test_a_model_does_not_differ_from_itself():
    values = np.random.default_rng(0).normal(size=30)
    assert paired_bootstrap(values, values) == (0, 0, 0, 1)
    assert not paired_bootstrap(values, values).significant


def test_swapping_the_models_turns_the_difference_round():
    a, b = np.random.default_rng(0).normal(size=(2, 50))
    there, back = paired_bootstrap(a, b), paired_bootstrap(b, a)
    np.testing.assert_allclose((back.mean, back.low, back.high), (-there.mean, -there.high, -there.low))
    assert back.p_value == there.p_value


def test_without_a_difference_small_p_values_are_rare():
    generator = np.random.default_rng(0)
    p_values = [paired_bootstrap(generator.normal(size=80), np.zeros(80), samples=200).p_value for _ in range(400)]
    assert np.mean(np.array(p_values) <= 0.1) == pytest.approx(0.1, abs=0.05)


def test_the_p_value_follows_the_normal_one():
    values = np.random.default_rng(0).normal(size=500)
    values += 1.5 * values.std() / np.sqrt(500) - values.mean()  # 1.5 standard errors above 0: p = .1336.
    assert paired_bootstrap(values, np.zeros(500), samples=5000).p_value == pytest.approx(0.1336, abs=0.025)


def test_the_verdict_names_the_winner_whichever_way_the_metric_points():
    up = Difference(0.012, 0.004, 0.02, 0.002)
    down = Difference(-0.012, -0.02, -0.004, 0.002)
    assert up.verdict() == "a is better than b by 0.012 [0.004, 0.02]"
    assert down.verdict("ours", "MF") == "MF is better than ours by 0.012 [0.004, 0.02]"
    assert down.verdict("ours", "MF", higher_is_better=False) == "ours is better than MF by 0.012 [0.004, 0.02]"
    assert up.verdict("ours", "MF", higher_is_better=False) == "MF is better than ours by 0.012 [0.004, 0.02]"
    assert Difference(0.01, -0.01, 0.03, 0.3).verdict("ours", "MF") == (
        "no significant difference between ours and MF: 0.01 [-0.01, 0.03]"
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda v: bootstrap_mean(v[:0]), "`values` must be a vector of at least one value. Received: shape (0,)"),
        (lambda v: bootstrap_mean(v * np.nan), "`values` must be finite. Received: 3 values that are not"),
        (lambda v: bootstrap_mean(v, samples=0), "`samples` must be at least 1. Received: samples=0"),
        (lambda v: bootstrap_mean(v, confidence=95), "`confidence` must be between 0 and 1. Received: confidence=95"),
        (
            lambda v: paired_bootstrap(v, v[:2]),
            "`a` and `b` must have one value each for the same users. Received: 3 and 2",
        ),
        (
            lambda v: paired_bootstrap(v, v[:, None]),
            "`b` must be a vector of at least one value. Received: shape (3, 1)",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(call, message):
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        call(np.arange(3.0))
    assert str(caught.value) == message
