import re

import numpy as np
import polars as pl
import pytest

import tfmetarec as tmr
from tfmetarec.data import DataError, Interactions
from tfmetarec.transfer.cross_domain import (
    CrossDomainMethod,
    Domains,
    available,
    cross_domain,
    inner_products,
    judged,
    load,
    method_class,
    user_softmax_losses,
)
from tfmetarec.transfer.hierarchical import HierarchicalTransfer


def interactions(rows, items=None, feedback="explicit"):
    columns = ["user_id", "item_id", "label"][: len(rows[0])]
    return Interactions.from_frames(pl.DataFrame(rows, schema=columns, orient="row"), None, items, feedback=feedback)


@pytest.fixture
def domains():
    """Users 1 and 2 are in both; item 20 too. Users 3 and 4 are in one."""
    source = interactions([(1, 10, 5.0), (1, 11, 4.0), (2, 10, 3.0), (3, 20, 1.0)])
    target = interactions([(1, 20, 2.0), (2, 21, 3.0), (4, 20, 4.0)])
    return Domains.of(source, target)


def test_both_domains_are_numbered_alike(domains):
    assert domains.user_ids.to_list() == [1, 2, 3, 4]
    assert domains.vocabulary.item_ids.tolist() == [0, 10, 11, 20, 21]
    assert domains.source_ratings.user.tolist() == [1, 1, 2, 3]
    assert domains.target_ratings.user.tolist() == [1, 2, 4]
    assert domains.source_ratings.item.tolist() == [1, 2, 1, 3]
    assert domains.target_ratings.item.tolist() == [3, 4, 3]
    assert domains.joint_ratings.label.tolist() == [5, 4, 3, 1, 2, 3, 4]
    assert (domains.joint_ratings.n_users, domains.joint_ratings.n_items) == (5, 5)


def test_users_and_items_of_both_are_shared(domains):
    assert domains.shared_users.tolist() == [1, 2]
    assert domains.source_rows.tolist() == [1, 2, 3]
    assert domains.target_rows.tolist() == [3, 4]
    assert domains.candidates()["item_id"].tolist() == [3, 4]


def test_a_support_is_what_users_did_in_the_source(domains):
    support = domains.support([2, 9, 1])
    assert support.length.tolist() == [1, 0, 2]
    assert support.item["item_id"].tolist() == [[1, 0], [0, 0], [1, 2]]
    assert support.label.tolist() == [[3, 0], [0, 0], [5, 4]]


def test_a_support_may_add_the_target_and_keep_the_last_interactions(domains):
    support = domains.support([1], domains.source, domains.target, longest=2)
    assert support.item["item_id"].tolist() == [[2, 3]]
    assert support.label.tolist() == [[4, 2]]
    with pytest.raises(ValueError, match=r"`longest` must be at least 1\. Received: longest=0"):
        domains.support([1], longest=0)


def test_features_of_one_name_share_their_values():
    one = pl.DataFrame({"item_id": [10], "brand": ["a"]})
    two = pl.DataFrame({"item_id": [20], "brand": ["a"], "sold": [1.5]})
    domains = Domains.of(interactions([(1, 10, 5.0)], one), interactions([(2, 20, 4.0)], two))
    brand = domains.vocabulary.catalogue["brand"]
    assert brand[1] == brand[2] > 0
    assert len(domains.shared_users) == 0


def test_what_is_judged_keeps_ratings_of_unknown_items(domains):
    asked = judged(domains, interactions([(3, 21, 5.0), (3, 99, 1.0)]))
    assert asked.item.tolist() == [[4, 0]]
    assert asked.real.tolist() == [[True, True]]
    assert asked.support.item["item_id"].tolist() == [[3]]


def test_implicit_feedback_is_judged_on_the_targets_items_alone():
    source = interactions([(1, 10), (2, 11)], feedback="implicit")
    domains = Domains.of(source, interactions([(1, 20)], feedback="implicit"))
    assert judged(domains, interactions([(2, 20), (2, 10)], feedback="implicit")).item.tolist() == [[3]]
    with pytest.raises(DataError, match="`held_out` must hold interactions with items that the target has"):
        judged(domains, interactions([(2, 10)], feedback="implicit"))


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        (
            interactions([(1, 1, 5.0)]),
            interactions([(1, 1)], feedback="implicit"),
            "`source` and `target` must have one kind of feedback. Received: explicit and implicit",
        ),
        (
            interactions([(1, 1, 5.0)]),
            interactions([("a", 1, 5.0)]),
            "`source` and `target` must have ids and features of one type",
        ),
        (
            interactions([(1, 1, 5.0)], pl.DataFrame({"item_id": [1], "x": ["a"]})),
            interactions([(1, 1, 5.0)], pl.DataFrame({"item_id": [1], "x": [1.5]})),
            "feature 'x' must be of one kind in both domains. Received: 'category' and 'number'",
        ),
    ],
)
def test_domains_that_do_not_fit_together_are_refused(source, target, message):
    with pytest.raises(DataError, match=re.escape(message)):
        Domains.of(source, target)


def test_the_loss_of_a_ranking_is_that_of_a_softmax():
    scores = np.log([[1.0, 2.0, 5.0]])
    losses = user_softmax_losses(scores, np.array([[2, 0, 0]]), np.array([[True, True, False]]))
    assert losses[0] == pytest.approx(-(np.log(5 / 8) + np.log(1 / 8)) / 2)


def test_products_with_common_items_and_with_own_items_agree():
    rng = np.random.default_rng(0)
    vectors, items = rng.normal(size=(3, 2)), rng.normal(size=(5, 2))
    rows = np.array([[0, 4], [1, 1], [2, 3]])
    own = inner_products(vectors, items, rows)
    for task in range(3):
        np.testing.assert_allclose(own[task], inner_products(vectors[task : task + 1], items, rows[task])[0], 1e-6)


def test_every_method_of_the_package_is_found_by_its_file():
    assert {"emcdr", "ptupcdr", "hierarchical", "joint_training", "meta_transfer"} <= set(available())
    for name, line in available().items():
        assert line.endswith((".", "`")), name
        assert issubclass(method_class(name), CrossDomainMethod)


def test_an_unknown_method_is_met_with_the_nearest():
    with pytest.raises(ValueError, match=re.escape("the nearest name is 'emcdr'. Received: method='emcd'")):
        method_class("emcd")


@pytest.fixture(scope="module")
def shop():
    data = tmr.data.load("synthetic", n_users=40, n_items=24, interactions_per_user=12, feedback="explicit")
    odd = pl.col("item_id") % 2 == 1
    return data.filter(odd), data.filter(~odd)


def test_the_verb_chooses_on_held_out_users_and_then_learns_from_everybody(shop):
    seen = []

    class Watched(HierarchicalTransfer):
        def _fit(self, domains, validation):
            seen.append((domains.target.n_users, None if validation is None else len(validation.users)))
            super()._fit(domains, validation)

    cross_domain(Watched(), *shop, validation_share=0.25)
    assert seen == [(30, 10), (40, None)]


def test_the_verb_repeats_itself(shop):
    one, two = (cross_domain("hierarchical", *shop, validation_share=0.25, seed=3) for _ in range(2))
    assert np.array_equal(one.gates, two.gates)
    assert np.array_equal(one.item, two.item)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"validation_share": 1.0}, ValueError, "`validation_share` must be at least 0 and below 1"),
        ({"validation_share": 0.01}, DataError, "`validation_share` leaves no user to choose on, of 40"),
        ({"seed": -1}, ValueError, "`seed` must be at least 0. Received: seed=-1"),
        ({"iterations": 3}, ValueError, "`options` are for a method given by its name. Received: iterations"),
    ],
)
def test_wrong_arguments_of_the_verb_are_named(shop, options, error, message):
    with pytest.raises(error, match=re.escape(message)):
        cross_domain(HierarchicalTransfer(), *shop, **options)


def test_validation_users_must_not_be_trained_on(shop):
    with pytest.raises(
        DataError, match=r"`validation` must hold users whom the target training part does not\. .*: 40"
    ):
        HierarchicalTransfer().fit(Domains.of(*shop), shop[1])


def test_a_folder_is_neither_overwritten_nor_taken_for_a_method(shop, tmp_path):
    fitted = cross_domain("hierarchical", *shop)
    with pytest.raises(DataError, match="`folder` must not exist yet"):
        fitted.save(tmp_path)
    with pytest.raises(DataError, match="`folder` must have been written by `save`"):
        load(tmp_path)
