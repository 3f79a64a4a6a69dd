import numpy as np
import polars as pl
import pytest

import tfmetarec as tmr
from tfmetarec.data import Interactions
from tfmetarec.transfer.cross_domain import Domains
from tfmetarec.transfer.kernel import KernelTransfer

# Users 1 to 4 bought sources 10 to 12 and targets 20 and 21.
SOURCE = [(1, 10), (1, 11), (2, 10), (3, 12), (4, 11), (4, 12)]
TARGET = [(1, 20), (2, 20), (3, 21), (4, 21), (4, 20)]


def interactions(rows):
    return Interactions.from_frames(
        pl.DataFrame(rows, schema=["user_id", "item_id"], orient="row"), feedback="implicit"
    )


def test_scores_are_those_of_a_kernel_ridge_regression():
    domains = Domains.of(interactions(SOURCE), interactions(TARGET))
    method = KernelTransfer((2.0,), rarity=0.0).fit(domains)
    x = np.array([[1, 1, 0], [1, 0, 0], [0, 0, 1], [0, 1, 1]], float)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    y = np.array([[1, 0], [1, 0], [0, 1], [1, 1]], float)
    new = np.array([1.0, 0.0, 1.0]) / np.sqrt(2)
    expected = y.mean(axis=0) + new @ x.T @ np.linalg.solve(x @ x.T + 2 * np.eye(4), y - y.mean(axis=0))
    support = domains.support([9], interactions([(9, 10), (9, 12)]))
    np.testing.assert_allclose(method.score(method.adapt(support), domains.candidates())[0], expected, rtol=1e-5)


def test_the_dual_form_is_the_ridge_regression_on_items():
    domains = Domains.of(interactions(SOURCE), interactions(TARGET))
    method = KernelTransfer((0.5,), rarity=0.0).fit(domains)
    x = np.array([[1, 1, 0], [1, 0, 0], [0, 0, 1], [0, 1, 1]], float)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    y = np.array([[1, 0], [1, 0], [0, 1], [1, 1]], float) - [0.75, 0.5]
    primal = np.linalg.solve(x.T @ x + 0.5 * np.eye(3), x.T @ y)
    found = method.score(method.adapt(domains.support([1, 2, 3, 4])), domains.candidates())
    np.testing.assert_allclose(found, [0.75, 0.5] + x @ primal, rtol=1e-5)


def test_somebody_unknown_gets_the_share_of_users_who_have_an_item():
    domains = Domains.of(interactions(SOURCE), interactions(TARGET))
    method = KernelTransfer().fit(domains)
    np.testing.assert_allclose(method.score(method.adapt(domains.support([9])), domains.candidates()), [[0.75, 0.5]])


def test_the_penalty_is_chosen_on_validation_users():
    data = tmr.data.load("synthetic", n_users=120, n_items=60, n_groups=3, interactions_per_user=12)
    odd, cold = pl.col("item_id") % 2 == 1, pl.col("user_id") < 40
    domains = Domains.of(data.filter(odd), data.filter(~odd & ~cold))
    method = KernelTransfer((1.0, 1e9)).fit(domains, data.filter(~odd & cold))
    assert method.chosen == 1.0  # With the other one everybody gets the same.
    assert method.fit(domains).chosen == 1.0
    planted = tmr.data.sources.synthetic.truth(120, 60, 3)
    users = [user for user in range(40) if user in set(domains.source.table["user_id"])]
    scores = method.score(method.adapt(domains.support(users)), domains.candidates())
    best = domains.vocabulary.item_ids[domains.target_rows[np.argmax(scores, axis=1)]].astype(int)
    assert (planted.item_group[best] == planted.user_group[users]).mean() > 0.95


def test_without_shared_users_there_is_no_kernel():
    with pytest.raises(ValueError, match=r"a kernel over users needs users whom both domains have\. Received: none"):
        KernelTransfer().fit(Domains.of(interactions([(1, 10)]), interactions([(2, 20)])))
