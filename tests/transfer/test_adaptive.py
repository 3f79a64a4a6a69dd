import numpy as np
import polars as pl
import pytest

import tfmetarec as tmr
from tfmetarec.data import DataError, Interactions
from tfmetarec.models.baselines import Ratings
from tfmetarec.transfer.adaptive import AdaptiveTransfer, target_alone
from tfmetarec.transfer.cross_domain import Domains, cross_domain, judged
from tfmetarec.transfer.hierarchical import HierarchicalTransfer
from tfmetarec.transfer.joint_training import JointTraining
from tfmetarec.transfer.kernel import KernelTransfer


def shop(feedback, seed=0):
    """A source and a target: users of two groups who buy what their group does, or who rate as high in both."""
    if feedback == "implicit":
        data = tmr.data.load("synthetic", n_users=200, n_items=60, n_groups=2, interactions_per_user=14, seed=seed)
        odd = pl.col("item_id") % 2 == 1
        return data.filter(odd), data.filter(~odd)
    rng = np.random.default_rng(seed)
    level = rng.normal(0, 1, 200)
    parts = []
    for first in (0, 100):
        user, item = np.repeat(np.arange(200), 12), rng.integers(0, 30, 2400)
        label = 3 + level[user] + rng.normal(0, 1, 2400)
        table = pl.DataFrame({"user_id": user, "item_id": first + item, "label": label})
        parts.append(Interactions.from_frames(table, feedback="explicit", duplicates="first"))
    return tuple(parts)


def noise(source, seed=0):
    """The same source with every history given to somebody else, so that it says nothing about its user."""
    users = source.table["user_id"].unique().sort()
    others = users.gather(np.random.default_rng(seed).permutation(len(users)))
    return source.with_table(source.table.with_columns(pl.col("user_id").replace_strict(users, others)))


def cold(target, n=60):
    """The target with and without its first users."""
    return target.filter(pl.col("user_id") >= n), target.filter(pl.col("user_id") < n)


METHODS = {"explicit": HierarchicalTransfer, "implicit": KernelTransfer}


def squared_errors(scores, users):
    return (np.square(scores - users.label) * users.real).sum(axis=1) / users.real.sum(axis=1)


def recalls(scores, users):
    top = np.argsort(-scores, axis=1, kind="stable")[:, :5]
    place = np.searchsorted(users.candidates, users.item)
    return np.array([np.isin(p[r], t).mean() for t, p, r in zip(top, place, users.real, strict=True)])


@pytest.fixture(scope="module")
def crossed():
    """Adaptive transfer with a good source and with noise, for both kinds of feedback."""

    def fitted(feedback, bad):
        source, target = shop(feedback)
        train, test = cold(target)
        source = noise(source) if bad else source
        method = cross_domain(AdaptiveTransfer(METHODS[feedback]()), source, train, validation_share=0.3)
        return method, judged(Domains.of(source, train), test)

    return {(feedback, bad): fitted(feedback, bad) for feedback in METHODS for bad in (False, True)}


def items(method, users):
    return method.vocabulary.catalogue, users.candidates if method._ranks else users.item


def scores_of(method, users):
    catalogue, rows = items(method, users)
    item = {name: value[rows] for name, value in catalogue.items()}
    return method.score(method.adapt(users.support), item), np.broadcast_to(
        method.alone[rows], (len(users.users), rows.shape[-1])
    )


@pytest.mark.parametrize("feedback", METHODS)
def test_a_source_of_noise_is_shut_out_exactly(crossed, feedback):
    method, users = crossed[feedback, True]
    scores, alone = scores_of(method, users)
    assert not method.is_open
    np.testing.assert_array_equal(scores, alone.astype(np.float32))


@pytest.mark.parametrize("seed", range(3))
def test_with_noise_the_result_is_not_worse_than_the_target_alone(seed):
    source, target = shop("explicit", seed)
    train, test = cold(target)
    source = noise(source, seed)
    method = cross_domain(AdaptiveTransfer(HierarchicalTransfer()), source, train, validation_share=0.3, seed=seed)
    users = judged(Domains.of(source, train), test)
    scores, alone = scores_of(method, users)
    worse = squared_errors(scores, users) - squared_errors(alone, users)
    difference = tmr.evaluation.paired_bootstrap(worse, np.zeros(len(worse)))
    assert difference.low <= 0


def test_a_source_that_helps_is_let_in(crossed):
    method, users = crossed["explicit", False]
    scores, alone = scores_of(method, users)
    assert method.is_open
    better = squared_errors(alone, users) - squared_errors(scores, users)
    assert tmr.evaluation.bootstrap_mean(better).low > 0
    method, users = crossed["implicit", False]
    scores, alone = scores_of(method, users)
    assert method.is_open
    assert tmr.evaluation.bootstrap_mean(recalls(scores, users) - recalls(alone, users)).low > 0


def test_on_the_users_who_choose_it_an_open_gate_is_never_worse_than_a_shut_one():
    source, target = shop("explicit")
    train, held_out = cold(target)
    domains = Domains.of(source, train)
    method = AdaptiveTransfer(HierarchicalTransfer(), standard_errors=0.0).fit(domains, held_out)
    users = judged(domains, held_out.filter(pl.col("user_id") % 2 == 1))
    scores, alone = scores_of(method, users)
    assert squared_errors(scores, users).mean() <= squared_errors(alone, users).mean()


def test_too_few_users_to_choose_on_are_refused():
    source, target = shop("explicit")
    few = pl.col("user_id") < 3
    with pytest.raises(DataError, match=r"`validation` must hold at least 4 users, of whom half choose\. Received: 3"):
        AdaptiveTransfer(HierarchicalTransfer()).fit(Domains.of(source, target.filter(~few)), target.filter(few))


@pytest.mark.parametrize("feedback", METHODS)
def test_without_source_interactions_the_target_alone_speaks(crossed, feedback):
    method, users = crossed[feedback, False]
    nobody = users._replace(support=users.support._replace(length=np.zeros_like(users.support.length)))
    scores, alone = scores_of(method, nobody)
    strength = np.exp(method.weights[2]) if feedback == "implicit" else 1.0
    np.testing.assert_allclose(scores, strength * alone, rtol=1e-6)


def test_the_score_of_an_item_does_not_depend_on_what_else_is_scored(crossed):
    method, users = crossed["implicit", False]
    state, catalogue = method.adapt(users.support), method.vocabulary.catalogue
    rows = users.candidates
    whole = method.score(state, {name: value[rows] for name, value in catalogue.items()})
    some = method.score(state, {name: value[rows[3:7]] for name, value in catalogue.items()})
    np.testing.assert_allclose(whole[:, 3:7], some, rtol=1e-5)


def test_the_target_alone_is_a_shrunk_mean_or_the_logarithm_of_popularity():
    ratings = Ratings(np.array([1, 2, 3]), np.array([1, 1, 2]), np.array([5.0, 4.0, 3.0]), 4, 4)
    np.testing.assert_allclose(target_alone(ratings, "explicit", 2.0), [4, 4 + 1 / 4, 4 - 1 / 3, 4])
    np.testing.assert_allclose(target_alone(ratings, "implicit", 2.0), np.log([0.5, 2.5, 1.5, 0.5]))


def test_without_validation_the_gate_stays_shut():
    source, target = shop("explicit")
    method = AdaptiveTransfer(JointTraining(2, iterations=1)).fit(Domains.of(source, target))
    assert not method.is_open


def test_a_method_must_be_given():
    source, target = shop("explicit")
    with pytest.raises(ValueError, match="`transfer` must be given to fit"):
        AdaptiveTransfer().fit(Domains.of(source, target))
