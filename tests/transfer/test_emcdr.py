import keras
import numpy as np
import polars as pl
import pytest

from tfmetarec.data import Interactions
from tfmetarec.transfer.bridges import BridgedDomains, TwoFactorisations
from tfmetarec.transfer.cross_domain import Domains
from tfmetarec.transfer.emcdr import EMCDR, VectorMap


def rated(seed=0):
    """A source and a target of 120 users who rate as high in both."""
    rng = np.random.default_rng(seed)
    level, parts = rng.normal(0, 0.8, 120), []
    for first in (0, 100):
        user, item = np.repeat(np.arange(120), 10), rng.integers(0, 25, 1200)
        label = 3 + level[user] + rng.normal(0, 0.4, 1200)
        table = pl.DataFrame({"user_id": user, "item_id": first + item, "label": label})
        parts.append(Interactions.from_frames(table, feedback="explicit", duplicates="first"))
    return parts, level


@pytest.fixture(scope="module")
def crossed():
    (source, target), level = rated()
    cold = pl.col("user_id") < 30
    domains = Domains.of(source, target.filter(~cold))
    method = EMCDR(4, 0, epochs=30, learning_rate=0.02).fit(domains, target.filter(cold))
    return method, domains, level


def test_a_linear_map_starts_as_the_identity():
    vectors = np.array([[1.0, -2.0, 3.0]], np.float32)
    np.testing.assert_array_equal(VectorMap(3)(vectors), vectors)


def test_a_map_comes_back_from_its_config():
    made = VectorMap(3, 5, seed=2)
    again = VectorMap.from_config(made.get_config())
    assert [v.shape for v in again.variables] == [v.shape for v in made.variables] == [(3, 5), (5,), (5, 3), (3,)]
    assert keras.saving.get_registered_name(VectorMap) == "tfmetarec>VectorMap"


def test_each_domain_is_factorised_alone(crossed):
    method, domains, _ = crossed
    both = method.factorisations
    outside = np.setdiff1d(domains.target_rows, domains.source_rows)
    assert not both.source.items[outside].any()
    assert both.source.mean == pytest.approx(domains.source_ratings.label.mean())
    assert both.target.mean == pytest.approx(domains.target_ratings.label.mean())


def test_target_items_in_a_support_say_nothing_of_the_source_vector(crossed):
    method, domains, _ = crossed
    both = method.factorisations
    alone, _ = both.fold_in(domains.support([5]))
    with_more, _ = both.fold_in(domains.support([40, 5], domains.source, domains.target))
    np.testing.assert_allclose(both.fold_in(domains.support([40, 5]))[0], with_more, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(alone[0], with_more[1], rtol=1e-5, atol=1e-6)


def test_a_score_is_the_items_constant_plus_the_product_with_the_mapped_vector(crossed):
    method, domains, _ = crossed
    state = method.adapt(domains.support([3]))
    rows = domains.target_rows
    target = method.factorisations.target
    expected = target.mean + target.items[rows, -1] + target.items[rows, :-1] @ state[0, :-1] + state[0, -1]
    np.testing.assert_allclose(method.score(state, domains.candidates())[0], expected, rtol=1e-5)


def test_the_map_is_trained_towards_the_target_vectors(crossed):
    method, domains, _ = crossed
    bridged = BridgedDomains.of(domains, method.factorisations)

    def distance(mapped):
        return np.square(mapped - bridged.target_vectors.numpy()).sum(axis=1).mean()

    assert distance(method.map(bridged.source_vectors).numpy()) < distance(VectorMap(5)(bridged.source_vectors).numpy())


def test_cold_users_are_told_apart_by_how_high_they_rate(crossed):
    method, domains, level = crossed
    scores = method.score(method.adapt(domains.support(list(range(30)))), domains.candidates()).mean(axis=1)
    assert np.corrcoef(scores, level[:30])[0, 1] > 0.8


def test_the_epoch_is_that_of_the_least_validation_loss():
    (source, target), _ = rated()
    cold = pl.col("user_id") < 30
    losses = []

    class Watched(EMCDR):
        def validation_loss(self, *arguments):
            losses.append(super().validation_loss(*arguments))
            return losses[-1]

    method = Watched(3, 4, epochs=6, learning_rate=0.1).fit(
        Domains.of(source, target.filter(~cold)), target.filter(cold)
    )
    assert len(losses) == 6
    assert method.chosen_epochs == 1 + int(np.argmin(losses))
    method.fit(Domains.of(source, target))
    assert method.chosen_epochs == 1 + int(np.argmin(losses[:6]))


def test_equal_seeds_give_equal_maps():
    (source, target), _ = rated()
    domains = Domains.of(source, target)
    one, two = (EMCDR(3, 4, epochs=2, seed=1).fit(domains).map.get_weights() for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))


def test_domains_without_shared_users_have_no_map():
    (source, target), _ = rated()
    apart = source.filter(pl.col("user_id") < 60), target.filter(pl.col("user_id") >= 60)
    with pytest.raises(ValueError, match=r"a map between domains needs users whom both have\. Received: none"):
        EMCDR(3).fit(Domains.of(*apart))


def test_factorisations_come_back_from_their_file(crossed, tmp_path):
    method, domains, _ = crossed
    method.factorisations.save(tmp_path / "both.npz")
    again = TwoFactorisations.load(tmp_path / "both.npz")
    support = domains.support([0, 1, 2])
    np.testing.assert_array_equal(again.fold_in(support)[0], method.factorisations.fold_in(support)[0])
    np.testing.assert_array_equal(again.items, method.factorisations.items)
