"""Calibration against scikit-learn and numbers worked out by hand."""

import numpy as np
import pytest
from sklearn.calibration import calibration_curve
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss

from tfmetarec.evaluation.calibration import Platt, brier, ece, reliability


@pytest.fixture(scope="module")
def said():
    """Labels and probabilities with many ties."""
    generator = np.random.default_rng(0)
    probabilities = generator.integers(0, 21, 3000) / 20
    return (generator.random(3000) < probabilities**2).astype(int), probabilities


@pytest.mark.parametrize(("ours", "theirs"), [("mass", "quantile"), ("width", "uniform")])
@pytest.mark.parametrize("bins", [1, 5, 10, 37])
def test_the_curve_is_that_of_scikit_learn(said, ours, theirs, bins):
    happened, expected = calibration_curve(*said, n_bins=bins, strategy=theirs)
    found = reliability(*said, bins=bins, strategy=ours)
    np.testing.assert_allclose(found["happened"], happened)
    np.testing.assert_allclose(found["said"], expected)
    assert found["rows"].sum() == 3000


def test_brier_is_that_of_scikit_learn(said):
    assert brier(*said) == pytest.approx(brier_score_loss(*said))


def test_ece_worked_out_by_hand():
    labels, probabilities = np.array([0, 0, 1, 1, 0]), np.array([0.1, 0.1, 0.1, 0.6, 0.8])
    # Width .5: three rows said .1, a third happened; two rows said .7, half happened.
    assert ece(labels, probabilities, bins=2, strategy="width") == pytest.approx((3 * (1 / 3 - 0.1) + 2 * 0.2) / 5)
    assert ece(np.array([0, 1]), np.array([0.0, 1.0])) == 0


def test_platt_finds_what_logistic_regression_finds():
    generator = np.random.default_rng(1)
    scores = 100 + 7 * generator.normal(size=20_000)
    labels = (generator.random(20_000) < 1 / (1 + np.exp(-(scores - 105) / 4))).astype(int)
    found = Platt.fit(labels, scores)
    assert found.slope == pytest.approx(1 / 4, rel=0.1)
    assert -found.intercept / found.slope == pytest.approx(105, abs=0.3)
    model = LogisticRegression(C=np.inf).fit(scores[:, None], labels)
    np.testing.assert_allclose(found.probability(scores), model.predict_proba(scores[:, None])[:, 1], atol=1e-3)
    assert ece(labels, found.probability(scores)) < 0.01


def test_platt_keeps_the_order_and_the_mean_and_stays_finite():
    parted = Platt.fit(np.array([0, 0, 0, 1, 1]), np.array([1.0, 2, 3, 4, 5]))
    assert np.isfinite(parted).all()
    assert (np.diff(parted.probability(np.arange(1.0, 6))) > 0).all()
    # Scores that say nothing give everybody the share of positives, a little drawn to the middle.
    same = Platt.fit(np.array([0] * 90 + [1] * 10), np.zeros(100))
    assert same.probability(np.array([3.0]))[0] == pytest.approx((10 * 11 / 12 + 90 / 92) / 100)
    # Seven times .1 has a standard deviation of rounding, 1e-17, which is no reason for a slope of 10.
    assert Platt.fit(np.array([0, 1, 1, 0, 0, 0, 1]), np.full(7, 0.1)).slope == pytest.approx(0, abs=1e-12)
    assert Platt.fit(np.zeros(5, int), np.arange(5.0)).probability(np.array([2.0]))[0] < 0.2


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ece(np.array([0]), np.array([1.5])), "`probabilities` must lie between 0 and 1. Received: 1.5 to 1.5"),
        (lambda: brier(np.array([2]), np.array([0.5])), "`labels` must be 0 or 1. Received: 2"),
        (lambda: brier(np.array([]), np.array([])), "`labels` and `probabilities` must be vectors of one length"),
        (lambda: Platt.fit(np.array([1]), np.array([np.nan])), "`scores` must be finite. Received: nan"),
        (lambda: reliability(np.ones(1), np.ones(1), bins=0), "`bins` must be an int, at least 1. Received: bins=0"),
        (lambda: Platt.fit(np.ones(1), np.ones(1), steps=0), "`steps` must be an int, at least 1. Received: steps=0"),
        (lambda: reliability(np.ones(1), np.ones(1), strategy="x"), "`strategy` must be 'mass' or 'width'. Received"),
    ],
)
def test_what_makes_no_sense_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
