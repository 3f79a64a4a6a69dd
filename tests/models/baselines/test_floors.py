"""The floors are chosen by the kind of feedback."""

import pytest

from tfmetarec.models.baselines import BiasedMF, floors


def test_floors_are_fresh_and_of_the_kind_asked_for():
    named = [baseline.name for baseline in floors("explicit")]
    assert named == ["global mean", "item+user bias", "MF fold-in", "Bayesian MF"]
    assert {baseline.feedback for baseline in floors("implicit")} == {"implicit"}
    assert floors("implicit")[0] is not floors("implicit")[0]
    *_, mf, bayesian = floors("explicit", factors=7, seed=5)
    assert isinstance(mf, BiasedMF)
    assert (mf.factors, mf.seed) == (bayesian.factors, bayesian.seed) == (7, 5)
    with pytest.raises(ValueError, match=r'`feedback` must be "explicit" or "implicit"\. Received: feedback=\'likes\''):
        floors("likes")
