"""Class means, how far they are trusted, and learners that know newcomers by them."""

import keras
import numpy as np
import polars as pl
import pytest
import tensorflow as tf

import tfmetarec as tmr
from tfmetarec.data import FeatureSpec
from tfmetarec.export.signatures import ServedLearner
from tfmetarec.models.two_tower import UserTower
from tfmetarec.tasks import Support
from tfmetarec.transfer.block_ridge import conjugate_gradients, leave_one_out
from tfmetarec.transfer.classifier import PrototypeClassifier, class_episodes
from tfmetarec.transfer.median import MedianRatings
from tfmetarec.transfer.prototypes import (
    ContentPrototypes,
    Prototypes,
    class_means,
    clusters,
)
from tfmetarec.transfer.zero_shot import WithPrototypes, item_vectors, two_tower_from_vectors, user_vectors
from tfmetarec.transfer.zero_shot import zero_shot as completed_by

VECTORS = np.array([[1.0, 0.0], [3.0, 0.0], [8.0, 4.0], [0.0, 4.0]], np.float32)


# -- class means ---------------------------------------------------------------------------------------------------


def test_a_prototype_is_the_mean_of_its_members_and_of_nobody_else():
    mean, count = class_means(VECTORS, [1, 1, 2, 0], n_classes=4)
    assert mean.numpy().tolist() == [[0, 0], [2, 0], [8, 4], [0, 0]]
    assert count.numpy().tolist() == [0, 2, 1, 0]


def test_an_item_counts_in_each_of_its_classes_once_and_not_past_its_length():
    classes = [[1, 2, 2], [2, 1, 1], [2, 1, 1], [0, 0, 0]]
    mean, count = class_means(VECTORS, classes, n_classes=3, length=[3, 1, 0, 3])
    assert count.numpy().tolist() == [0, 1, 2]
    assert mean.numpy().tolist() == [[0, 0], [1, 0], [2, 0]]  # Class 2: the items at (1, 0) and (3, 0).


def test_members_may_weigh_differently():
    mean, count = class_means(VECTORS, [1, 1, 0, 0], n_classes=2, weight=[3.0, 1.0, 9.0, 9.0])
    assert mean[1].numpy().tolist() == [1.5, 0]
    assert float(count[1]) == 4


@pytest.mark.parametrize(
    ("classes", "n_classes", "message"),
    [
        ([1, 1, 2], 3, r"`vectors` must have shape \(N, D\) and `classes` \(N,\) or \(N, L\)"),
        ([1, 1, 2, 3], 3, "`classes` must be between 0 and 2. Received: 1 to 3"),
        ([1, 1, 2, -1], 3, "`classes` must be between 0 and 2. Received: -1 to 2"),
        ([0, 0, 0, 0], 0, "`n_classes` must be at least 1. Received: n_classes=0"),
    ],
)
def test_classes_that_do_not_fit_the_vectors_are_refused(classes, n_classes, message):
    with pytest.raises(ValueError, match=message):
        class_means(VECTORS, classes, n_classes)


def test_clusters_find_groups_that_lie_apart_and_place_newcomers():
    vectors = np.concatenate([np.zeros((5, 2)), np.full((5, 2), 9.0)]) + np.arange(10)[:, None] * 0.01
    found = clusters(vectors, 2)
    assert len(set(found.rows[:5])) == len(set(found.rows[5:])) == 1
    assert set(found.rows) == {1, 2}
    assert found.nearest([[8.0, 8.0]])[0] == found.rows[5]
    with pytest.raises(ValueError, match="`n_clusters` must be between 1 and the 10 vectors. Received: n_clusters=11"):
        clusters(vectors, 11)


# -- trust -----------------------------------------------------------------------------------------------------------


def test_a_class_is_trusted_by_its_members_over_members_and_shrinkage():
    prototypes = Prototypes.fit(VECTORS, [1, 1, 2, 0], n_classes=4, shrinkage=2.0)
    assert prototypes.trust([0, 1, 2, 3]).numpy().tolist() == pytest.approx([0, 2 / 4, 1 / 3, 0])
    whole = VECTORS.mean(0)
    assert prototypes(np.array([1]))[0].numpy() == pytest.approx(whole + 0.5 * (np.array([2.0, 0.0]) - whole))


def test_an_unknown_class_falls_back_to_the_whole():
    prototypes = Prototypes.fit(VECTORS, [1, 1, 2, 0], n_classes=4, shrinkage=0.0)
    for rows in (0, 3):
        assert prototypes.of([rows])[0].numpy().tolist() == VECTORS.mean(0).tolist()
        assert prototypes(np.array([rows]))[0].numpy().tolist() == VECTORS.mean(0).tolist()


def test_blending_one_class_alone_is_its_shrunk_prototype():
    prototypes = Prototypes.fit(VECTORS, [1, 1, 2, 0], shrinkage=3.0)
    blended = prototypes.blend(np.full((3, 2), 99.0), [0, 1, 2], own_trust=0.0)
    assert blended.numpy() == pytest.approx(prototypes(np.array([0, 1, 2])).numpy())


def test_blending_weighs_own_content_and_all_classes_by_trust():
    prototypes = Prototypes.fit(VECTORS[:, :1], [1, 1, 2, 0], shrinkage=1.0)
    # Weights: 1 for the whole's 3, 0.75 / 0.25 = 3 for the own 7, two members of 2, and one of 8.
    expected = (3 + 3 * 7 + 2 * 2 + 1 * 8) / (1 + 3 + 2 + 1)
    assert float(prototypes.blend([[7.0]], [[1, 2]], own_trust=0.75)[0, 0]) == pytest.approx(expected)
    without = prototypes.blend([[7.0]], [[1, 2]], own_trust=0.75, length=[1])
    assert float(without[0, 0]) == pytest.approx((3 + 3 * 7 + 2 * 2) / (1 + 3 + 2))


@pytest.mark.parametrize("trust", [1.0, -0.1, float("nan")])
def test_an_own_trust_outside_its_range_is_refused(trust):
    prototypes = Prototypes.fit(VECTORS, [1, 1, 2, 0])
    with pytest.raises(ValueError, match="`own_trust` must be at least 0 and less than 1. Received: own_trust="):
        prototypes.blend(VECTORS, [1, 1, 2, 0], own_trust=trust)


def test_leaving_one_out_trusts_classes_that_tell_and_distrusts_those_that_do_not():
    rng = np.random.default_rng(0)
    classes = np.arange(400) % 8 + 1
    centres = rng.normal(size=(9, 3))
    telling = centres[classes] + 0.1 * rng.normal(size=(400, 3))
    noise = rng.normal(size=(400, 3))
    assert Prototypes.fit(telling, classes, shrinkage="leave_one_out").shrinkage < 0.1
    assert Prototypes.fit(noise, classes, shrinkage="leave_one_out").shrinkage > 100


@pytest.mark.parametrize("weight", [np.ones(12), np.r_[40.0, np.linspace(0.5, 3.0, 11)]], ids=["alike", "one heavy"])
def test_shrinkage_by_leaving_one_out_is_the_best_of_a_loop_over_members(weight):
    rng = np.random.default_rng(1)
    classes = np.array([1, 1, 1, 1, 2, 2, 2, 3, 3, 3, 3, 3])
    vectors = 5.0 + 0.7 * rng.normal(size=(4, 2))[classes] + rng.normal(size=(12, 2))

    def mean_of(chosen):
        return (weight[chosen, None] * vectors[chosen]).sum(0) / weight[chosen].sum()

    def error(shrinkage):
        total = 0.0
        for left in range(12):
            rest = np.arange(12) != left
            same = rest & (classes == classes[left])
            trust = weight[same].sum() / (weight[same].sum() + shrinkage)
            foretold = mean_of(rest) + trust * (mean_of(same) - mean_of(rest))
            total += weight[left] * np.square(vectors[left] - foretold).sum()
        return total

    found = Prototypes.fit(vectors, classes, weight=weight, shrinkage="leave_one_out").shrinkage
    assert error(found) == pytest.approx(min(error(each) for each in np.logspace(-2, 4, 61)), rel=1e-5)


@pytest.mark.parametrize("shrinkage", [-1.0, float("nan"), "guess"])
def test_a_shrinkage_that_is_none_is_refused(shrinkage):
    with pytest.raises(ValueError, match="`shrinkage` must be"):
        Prototypes.fit(VECTORS, [1, 1, 2, 0], shrinkage=shrinkage)


def test_prototypes_come_back_from_disk(tmp_path):
    prototypes = Prototypes.fit(VECTORS, [1, 1, 2, 0], shrinkage=2.0)
    prototypes.save(tmp_path / "prototypes.keras")
    again = keras.saving.load_model(tmp_path / "prototypes.keras")
    rows = np.array([0, 1, 2])
    assert again.shrinkage == 2
    assert again(rows).numpy().tolist() == prototypes(rows).numpy().tolist()


# -- several features together ---------------------------------------------------------------------------------------

BRAND = FeatureSpec("brand", "category", 4)
TAGS = FeatureSpec("tags", "category_list", 5, 3)
PRICE = FeatureSpec("price", "number", 1)
PICTURE = FeatureSpec("picture", "vector", 2)


def test_one_class_feature_alone_is_the_shrunk_prototype_exactly():
    prototypes = ContentPrototypes([BRAND], 2).fit({"brand": [1, 1, 2, 3]}, VECTORS, shrinkage=2.0)
    plain = Prototypes.fit(VECTORS, [1, 1, 2, 3], shrinkage=2.0)
    rows = np.array([0, 1, 2, 3])
    whole = VECTORS.mean(0)
    expected = whole + np.array([[0.0], [2 / 4], [1 / 3], [1 / 3]]) * (plain.of(rows).numpy() - whole)
    assert prototypes({"brand": rows}).numpy() == pytest.approx(expected, abs=1e-5)


def test_two_features_share_out_what_they_explain_as_ridge_regression_does():
    rng = np.random.default_rng(0)
    features = {
        "brand": rng.integers(0, 4, 30),
        "tags": rng.permuted(np.tile([1, 2, 3, 4], (30, 1)), axis=1)[:, :3],
        "tags_length": rng.integers(0, 4, 30),
        "price": rng.normal(size=30).astype(np.float32),
        "picture": rng.normal(size=(30, 2)).astype(np.float32),
    }
    vectors, weight = rng.normal(size=(30, 2)), rng.random(30) + 0.1
    penalty = {"brand": 1.0, "tags": 0.5, "price": 2.0, "picture": 3.0}
    specs = [BRAND, TAGS, PRICE, PICTURE]
    prototypes = ContentPrototypes(specs, 2).fit(features, vectors, weight=weight, shrinkage=penalty)

    brand = np.eye(4)[features["brand"]] * (features["brand"] > 0)[:, None]
    tags = np.zeros((30, 5))
    for item, length in enumerate(features["tags_length"]):
        tags[item, features["tags"][item, :length]] = 1 / np.sqrt(max(length, 1))
    content = np.concatenate([features["price"][:, None], features["picture"]], 1)
    design = np.concatenate([brand, tags, content - weight @ content / weight.sum()], 1)
    whole = weight @ vectors / weight.sum()
    ridge = np.diag([1.0] * 4 + [0.5] * 5 + [2.0] + [3.0] * 2)
    solution = np.linalg.solve(design.T * weight @ design + ridge, design.T * weight @ (vectors - whole))
    assert prototypes(features).numpy() == pytest.approx(whole + design @ solution, abs=1e-4)


def test_an_item_of_which_nothing_is_known_is_the_whole():
    features = {"brand": [1, 1, 2, 3], "tags": np.array([[1, 2, 0]] * 4), "tags_length": [2, 2, 1, 0]}
    prototypes = ContentPrototypes([BRAND, TAGS], 2).fit(features, VECTORS, shrinkage=1.0)
    nothing = {"brand": np.array([0]), "tags": np.array([[3, 4, 1]]), "tags_length": np.array([0])}
    assert prototypes(nothing).numpy() == pytest.approx(VECTORS.mean(0)[None])


def test_leaving_one_out_chooses_what_a_loop_over_items_finds_best():
    rng = np.random.default_rng(0)
    telling, idle = np.eye(5)[np.arange(40) % 5], np.eye(4)[rng.integers(0, 4, 40)]
    target = telling @ rng.normal(size=(5, 2)) + 0.3 * rng.normal(size=(40, 2))
    weight = rng.random(40) + 0.5

    def error(penalty):
        total = 0.0
        for left in range(40):
            rest = np.arange(40) != left
            found = conjugate_gradients([telling[rest], idle[rest]], target[rest], weight[rest], penalty)
            total += weight[left] * np.square(target[left] - telling[left] @ found[0] - idle[left] @ found[1]).sum()
        return total

    penalty = leave_one_out([telling, idle], target, weight)
    assert penalty[0] < 1 < 100 < penalty[1]
    assert all(error(penalty) < error(penalty * np.array([factor, 1.0])) for factor in (0.1, 10.0))
    assert all(error(penalty) < error(penalty * np.array([1.0, factor])) + 0.05 for factor in (0.1, 10.0))


def test_several_leading_dimensions_and_graphs_give_the_same_vectors():
    features = {"brand": np.array([1, 1, 2, 3]), "picture": np.ones((4, 2), np.float32) * np.arange(4)[:, None]}
    prototypes = ContentPrototypes([BRAND, PICTURE], 2).fit(features, VECTORS, shrinkage=1.0)
    flat = prototypes(features).numpy()
    square = {"brand": features["brand"].reshape(2, 2), "picture": features["picture"].reshape(2, 2, 2)}
    in_graph = tf.function(prototypes, autograph=False)({name: tf.constant(v) for name, v in square.items()})
    assert in_graph.numpy().reshape(4, 2) == pytest.approx(flat, abs=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shrinkage": 0.0}, "`shrinkage` must be greater than 0 and finite. Received: brand=0.0"),
        ({"shrinkage": {"price": 1.0}}, r"`shrinkage` must name the features \['brand'\]. Received: \['price'\]"),
        ({"shrinkage": "guess"}, "`shrinkage` must be a number or 'leave_one_out'. Received: shrinkage='guess'"),
        ({"weight": [0.0] * 4}, "`weight` must be one number of at least 0 for each vector, not all of them 0"),
        ({"caution": 0.0}, "`caution` must be greater than 0 and finite. Received: caution=0.0"),
        ({"sample": 1}, "`sample` must be at least 2. Received: sample=1"),
    ],
)
def test_options_of_content_prototypes_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ContentPrototypes([BRAND], 2).fit({"brand": [1, 1, 2, 3]}, VECTORS, **options)


def test_features_and_vectors_that_do_not_fit_are_refused_with_both_sizes():
    prototypes = ContentPrototypes([BRAND], 2)
    with pytest.raises(ValueError, match=r"`vectors` must have shape \(N, 2\). Received: \(4, 3\)"):
        prototypes.fit({"brand": [1, 1, 2, 3]}, np.zeros((4, 3)))
    with pytest.raises(ValueError, match="`features` must have 4 rows, as `vectors`. Received: 'brand', 3"):
        prototypes.fit({"brand": [1, 1, 2]}, VECTORS)
    with pytest.raises(ValueError, match=r"`features` must hold 'brand'. Received: \['price'\]"):
        prototypes.fit({"price": [1.0] * 4}, VECTORS)
    with pytest.raises(ValueError, match="`specs` must be of classes, numbers or vectors. Received: 'item_id', id"):
        ContentPrototypes([FeatureSpec("item_id", "id", 3)], 2)


# -- learners that know newcomers --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def learner(explicit):
    """Ridge over item vectors that are known: the item's group decides them."""
    vocabulary = explicit.vocabulary
    groups = vocabulary.catalogue["group"]
    vectors = np.random.default_rng(0).normal(size=(9, 4))[groups].astype(np.float32)
    vectors[0] = 0
    return tmr.meta.Ridge(two_tower_from_vectors(vocabulary, vectors), regularization=2.5)


@pytest.fixture(scope="module")
def completed(learner, explicit):
    return completed_by(learner, explicit.data, item_features=["group"], shrinkage=1e-3, interactions_for_trust=0.0)


def newcomers(vocabulary, rows, row=0):
    features = {name: value[rows] for name, value in vocabulary.catalogue.items()}
    return {**features, "item_id": np.full_like(features["item_id"], row)}


def test_known_items_keep_their_vectors_and_new_ones_get_those_of_their_class(learner, completed, explicit):
    catalogue = explicit.vocabulary.catalogue
    before = item_vectors(learner.model, catalogue)
    assert item_vectors(completed.model, catalogue)[1:].tolist() == before[1:].tolist()
    rows = np.arange(1, 9)
    after = item_vectors(completed.model, newcomers(explicit.vocabulary, rows))
    assert after == pytest.approx(before[rows], abs=1e-2)
    assert item_vectors(learner.model, newcomers(explicit.vocabulary, rows))[:, :-1].tolist() == [[0.0] * 4] * 8


def test_an_item_without_id_and_one_beyond_the_table_are_new_too(completed, explicit):
    features = newcomers(explicit.vocabulary, np.arange(1, 5))
    new = item_vectors(completed.model, features)
    assert item_vectors(completed.model, {k: v for k, v in features.items() if k != "item_id"}) == pytest.approx(new)
    later = newcomers(explicit.vocabulary, np.arange(1, 5), row=explicit.vocabulary.n_items + 3)
    assert item_vectors(completed.model, later).tolist() == new.tolist()


def test_completing_leaves_the_learner_alone_and_keeps_what_it_has_learned_of_its_own(learner, completed):
    assert type(completed) is type(learner)
    assert completed is not learner
    assert type(learner.model).__name__ == "TwoTower"
    mine, theirs = ([v.numpy() for v in each._logarithms.values()] for each in (learner, completed))
    assert mine == theirs
    assert mine[0] == pytest.approx(np.log(2.5))


def test_a_completed_learner_adapts_on_new_items_to_score_new_items(completed, learner, explicit):
    vocabulary = explicit.vocabulary
    rows = np.array([[1, 2, 3, 4]])
    old = {name: value[rows] for name, value in vocabulary.catalogue.items()}
    new = newcomers(vocabulary, rows)
    users = {name: value[:1] for name, value in explicit.episodes.table.users.features.items()}
    labels, length = np.array([[5.0, 1.0, 4.0, 2.0]], np.float32), np.array([4], np.int32)
    expected = learner.score(learner.adapt(Support(users, old, labels, length)), old)
    found = completed.score(completed.adapt(Support(users, new, labels, length)), new)
    assert np.asarray(found) == pytest.approx(np.asarray(expected), abs=2e-2)
    assert np.ptp(np.asarray(found)) > 0.1


def test_a_completed_learner_comes_back_from_disk(learner, explicit, tmp_path):
    made = completed_by(learner, explicit.data, user_features=["segment"], shrinkage=2.0)
    made.compile()
    made.save(tmp_path / "learner.keras")
    again = keras.saving.load_model(tmp_path / "learner.keras")
    episode = next(iter(explicit.episodes.dataset()))
    query = {**episode.query.item, "item_id": tf.zeros_like(episode.query.item["item_id"])}
    ours, theirs = (np.asarray(each.score(each.adapt(episode.support), query)) for each in (made, again))
    assert theirs.tolist() == ours.tolist()


# -- users without an interaction --------------------------------------------------------------------------------------


def group_start(learner, explicit, **options):
    """The learner completed by user groups, and for each training user the group and the move of the query."""
    made = completed_by(learner, explicit.data, items=False, user_features=["segment"], **options)
    users, moves, count = user_vectors(learner, explicit.data)
    return made, users, moves, count


def nobody(users, rows):
    features = {name: value[rows] for name, value in users.items()}
    item = {"item_id": np.zeros((len(rows), 1), np.int32), "item_level": np.zeros((len(rows), 1), np.float32)}
    empty = {"group": np.zeros((len(rows), 1), np.int32), "tags": np.zeros((len(rows), 1, 2), np.int32)}
    empty |= {"tags_length": np.zeros((len(rows), 1), np.int32), "price": np.zeros((len(rows), 1), np.float32)}
    zeros = np.zeros((len(rows), 1), np.float32)
    return Support(features, {**item, **empty}, zeros, np.zeros(len(rows), np.int32))


def test_without_interactions_a_user_starts_at_the_shrunk_mean_of_the_group(learner, explicit):
    made, users, moves, count = group_start(learner, explicit, shrinkage=1.0, interactions_for_trust=0.0)
    support = nobody(users, np.arange(len(moves)))
    start = np.asarray(learner.query(learner.adapt(support)))
    found = np.asarray(made.query(made.adapt(support))) - start
    whole = moves.mean(0)
    for segment in np.unique(users["segment"]):
        members = users["segment"] == segment
        mean = moves[members].mean(0)
        expected = whole + members.sum() / (members.sum() + 1.0) * (mean - whole)
        assert found[members] == pytest.approx(np.tile(expected, (members.sum(), 1)), abs=1e-4)
    assert count.min() >= 1


def test_an_unknown_group_starts_at_the_whole(learner, explicit):
    made, users, moves, _ = group_start(learner, explicit, shrinkage=1.0, interactions_for_trust=0.0)
    support = nobody({**users, "segment": np.zeros_like(users["segment"])}, np.arange(2))
    start = np.asarray(learner.query(learner.adapt(support)))
    assert np.asarray(made.query(made.adapt(support))) - start == pytest.approx(
        np.tile(moves.mean(0), (2, 1)), abs=1e-4
    )


def test_scores_are_products_with_the_query_that_starts_at_the_group(learner, explicit):
    made, *_ = group_start(learner, explicit, shrinkage=1.0)
    episode = next(iter(explicit.episodes.dataset()))
    state = made.adapt(episode.support)
    query, items = np.asarray(made.query(state)), np.asarray(made.model.encode_item(episode.query.item))
    assert np.asarray(made.score(state, episode.query.item)) == pytest.approx(
        np.einsum("td,tqd->tq", query, items), abs=1e-4
    )
    common = {name: value[0] for name, value in episode.query.item.items()}
    assert np.asarray(made.score(state, common)) == pytest.approx(query @ items[0].T, abs=1e-4)
    rows = {name: np.asarray(value)[:3] for name, value in {**episode.support.user, **common}.items()}
    assert made.model(rows).shape == (3, 1)


def raw_request(vocabulary, segments):
    """A request of users of whom only the segment is known."""
    users = len(segments)
    return {
        "support": tf.zeros((users, 1), tf.int64),
        "support_labels": tf.zeros((users, 1)),
        "support_length": tf.zeros(users, tf.int32),
        "candidates": tf.constant(np.tile(vocabulary.item_ids[1:6], (users, 1))),
        "user_segment": tf.constant(list(segments)),
    }


def live_scores(made, vocabulary, rows):
    users = {"user_id": np.zeros(len(rows), np.int32), "segment": np.array(rows, np.int32)}
    items = {name: value[1:6] for name, value in vocabulary.catalogue.items()}
    return np.asarray(made.score(made.adapt(nobody(users, np.arange(len(rows)))), items))


def test_group_prototypes_answer_a_served_request_with_an_empty_support(explicit, learner):
    made = completed_by(learner, explicit.data, user_features=["segment"], shrinkage=1.0)
    known = explicit.vocabulary.known_values("user", "segment")
    request = raw_request(explicit.vocabulary, [known[0], known[1], "never seen"])
    answer = ServedLearner(made).adapt_and_score(**request)["scores"].numpy()
    assert answer == pytest.approx(live_scores(made, explicit.vocabulary, [1, 2, 0]), abs=1e-4)
    assert np.abs(answer[0] - answer[1]).max() > 1e-3


def test_items_without_a_row_are_scored_by_their_prototypes_when_served(explicit, completed):
    vocabulary = explicit.vocabulary
    features = {"item_group": [["group-0", "group-1"]], "item_tags": [[["a"], ["b"]]], "item_tags_length": [[1, 1]]}
    request = raw_request(vocabulary, ["segment-0"]) | {name: tf.constant(value) for name, value in features.items()}
    request["item_price"] = tf.constant([[10.0, 20.0]])
    del request["candidates"]
    answer = ServedLearner(completed).score_new_items(**request)["scores"].numpy()
    groups = vocabulary.catalogue["group"]
    rows = [int(np.flatnonzero(groups == vocabulary.rows("item", "group", name))[0]) for name in ("group-0", "group-1")]
    known = ServedLearner(completed).adapt_and_score(
        **raw_request(vocabulary, ["segment-0"]) | {"candidates": tf.constant(vocabulary.item_ids[rows][None])}
    )
    assert answer == pytest.approx(known["scores"].numpy(), abs=2e-2)


def test_an_item_added_to_a_served_catalogue_has_the_vector_of_its_class(explicit, completed):
    vocabulary = explicit.vocabulary
    larger = vocabulary.with_items(pl.DataFrame({"item_id": [999], "group": ["group-1"]}))
    vectors = ServedLearner(completed, vocabulary=larger).embed_items(tf.constant([999]))["embeddings"].numpy()
    member = int(np.flatnonzero(vocabulary.catalogue["group"] == vocabulary.rows("item", "group", "group-1"))[0])
    features = {name: value[[member]] for name, value in vocabulary.catalogue.items()}
    assert vectors == pytest.approx(item_vectors(completed.model, features), abs=1e-2)


@pytest.mark.slow
def test_a_completed_learner_is_exported_like_any_other(explicit, learner, tmp_path):
    made = completed_by(learner, explicit.data, user_features=["segment"], shrinkage=1.0)
    exported = tmr.export.saved_model(made, tmp_path / "served")
    assert max(exported.differences.values()) < 1e-4
    served = tf.saved_model.load(str(exported.path)).signatures["adapt_and_score"]
    known = explicit.vocabulary.known_values("user", "segment")
    answer = served(**raw_request(explicit.vocabulary, known[:2]))["scores"].numpy()
    assert answer == pytest.approx(live_scores(made, explicit.vocabulary, [1, 2]), abs=1e-4)


def test_groups_need_a_model_that_scores_by_a_dot_product(explicit):
    ranker = tmr.models.Ranker(explicit.vocabulary, 4)
    users = ContentPrototypes([explicit.vocabulary.specs.user[1]], ranker.item_encoder.width)
    with pytest.raises(ValueError, match="`users` need a model that scores by a dot product.* Received: Ranker"):
        WithPrototypes(ranker, users=users)


def test_items_of_a_ranker_are_completed_too(explicit):
    learner = tmr.meta.MAML(tmr.models.Ranker(explicit.vocabulary, 4))
    made = completed_by(learner, explicit.data, shrinkage=1.0)
    assert not isinstance(made.model.head, UserTower)
    known = item_vectors(learner.model, explicit.vocabulary.catalogue)
    assert item_vectors(made.model, explicit.vocabulary.catalogue)[1:].tolist() == known[1:].tolist()
    episode = next(iter(explicit.episodes.dataset()))
    assert np.isfinite(np.asarray(made.score(made.adapt(episode.support), episode.query.item))).all()


def test_purchases_are_completed_too(implicit):
    learner = tmr.meta.Ridge(tmr.models.TwoTower(implicit.vocabulary, 4), contrast=16)
    made = completed_by(learner, implicit.data, user_features=["segment"], shrinkage=1.0)
    table = tmr.evaluation.cold_start(made, implicit.data, shots=(0, 2), query=3, top_k=5)
    assert table.summary.filter(table.summary["metric"] == "recall@5")["mean"].is_finite().all()


def test_what_cannot_be_completed_is_refused(learner, explicit, own_model):
    with pytest.raises(ValueError, match="`model` must have `encode_user`, as a TwoTower. Received: Functional"):
        WithPrototypes(own_model(explicit.vocabulary))
    with pytest.raises(ValueError, match="`items` or `users` must be given. Received: neither"):
        WithPrototypes(learner.model)
    with pytest.raises(ValueError, match="`items` must have the width 5. Received: width=3"):
        WithPrototypes(learner.model, ContentPrototypes([BRAND], 3))
    with pytest.raises(
        ValueError, match=r"`item_features` must be of \['group', 'price', 'tags'\]. Received: 'colour'"
    ):
        completed_by(learner, explicit.data, item_features=["colour"])
    with pytest.raises(ValueError, match="`interactions_for_trust` must be at least 0"):
        completed_by(learner, explicit.data, interactions_for_trust=-1.0)
    with pytest.raises(ValueError, match="`most_support` must be at least 1. Received: most_support=0"):
        user_vectors(learner, explicit.data, most_support=0)
    with pytest.raises(ValueError, match=r"`vectors` must have shape \(40, D \+ 1\).* Received: \(3, 2\)"):
        two_tower_from_vectors(explicit.vocabulary, np.zeros((3, 2)))


# -- classification ----------------------------------------------------------------------------------------------------


def test_probabilities_are_a_softmax_over_negative_squared_distances():
    classifier = PrototypeClassifier(2, embedding_dim=2, temperature=0.5)
    dense = classifier.encoder.dense[0]
    dense.kernel.assign(np.eye(2))
    prototypes = classifier.prototypes([[0.0, 0.0], [2.0, 0.0], [0.0, 3.0]], [1, 1, 2], n_classes=3)
    assert prototypes.numpy().tolist() == [[0, 0], [1, 0], [0, 3]]
    found = classifier.classify([[0.0, 0.0]], prototypes)[0].numpy()
    weights = np.exp(-0.5 * np.array([1.0, 9.0]))  # Squared distances 1 and 9; class 0 is no class.
    assert found == pytest.approx([0, *(weights / weights.sum())])


def test_an_episode_is_scored_against_the_means_of_its_own_support():
    classifier = PrototypeClassifier(1, embedding_dim=1)
    classifier.encoder.dense[0].kernel.assign([[1.0]])
    support = np.array([[[[0.0], [2.0]], [[4.0], [6.0]]]], np.float32)  # Prototypes 1 and 5.
    query = np.array([[[[1.0]], [[4.0]]]], np.float32)
    logits = classifier({"support": support, "query": query}).numpy()
    assert logits.tolist() == [[[0, -16], [-9, -1]]]


def planted(n_classes, seed=0):
    """Classes told apart by the first three of twelve coordinates; the others are loud and say nothing."""
    rng = np.random.default_rng(seed)
    classes = np.arange(30 * n_classes) % n_classes + 1
    telling = rng.normal(size=(n_classes + 1, 3))[classes] + 0.2 * rng.normal(size=(len(classes), 3))
    return np.concatenate([telling, 3 * rng.normal(size=(len(classes), 9))], 1).astype(np.float32), classes


def test_training_on_some_classes_teaches_to_tell_others_apart():
    vectors, classes = planted(24)
    source = classes <= 16
    classifier = PrototypeClassifier(12, embedding_dim=3, seed=0)
    classifier.compile(optimizer=keras.optimizers.Adam(0.02))
    episodes = class_episodes(vectors[source], classes[source], ways=5, shots=5, queries=5, seed=0)

    def accuracy():
        shown = np.arange(len(classes)) < 24 * 5
        prototypes = classifier.prototypes(vectors[shown & ~source], classes[shown & ~source], 25)
        asked = ~shown & ~source
        return np.mean(np.argmax(classifier.classify(vectors[asked], prototypes), 1) == classes[asked])

    before = accuracy()
    history = classifier.fit(episodes, epochs=1, steps_per_epoch=150, verbose=0).history
    assert accuracy() > before + 0.2
    assert np.isfinite(history["loss"][0])
    assert set(classifier.evaluate(episodes, steps=2, verbose=0, return_dict=True)) == {"loss", "accuracy"}


def test_classes_may_be_described_instead_of_shown():
    classifier = PrototypeClassifier(2, embedding_dim=2)
    classifier.encoder.dense[0].kernel.assign(np.eye(2))
    described = classifier.described([[5.0, 0.0], [0.0, 5.0]])
    assert np.argmax(classifier.classify([[4.0, 1.0], [0.0, 9.0]], described), 1).tolist() == [0, 1]
    with pytest.raises(ValueError, match="`prototypes` must hold a class that is present"):
        classifier.classify([[4.0, 1.0]], np.zeros((2, 2), np.float32))


def test_an_episode_holds_members_of_its_classes_once_and_asks_only_what_is_clear():
    classes = np.array([[1, 2], [1, 0], [1, 0], [2, 0], [2, 0], [3, 0], [3, 0], [3, 0], [4, 0]])
    vectors = np.arange(9, dtype=np.float32)[:, None]
    batch = next(iter(class_episodes(vectors, classes, ways=3, shots=2, queries=1, episodes_per_batch=50)))
    support, query, weight = (batch[name].numpy()[..., 0] for name in ("support", "query", "query_weight"))
    weight = batch["query_weight"].numpy()
    drawn = np.concatenate([support, query], 2)
    members = [{0, 1, 2}, {0, 3, 4}, {5, 6, 7}]  # Class 4 is too small.
    for episode in drawn.astype(int):
        assert sorted(map(sorted, map(set, episode))) == sorted(map(sorted, members))
    assert ((query == 0) == (weight == 0)).all()
    assert (query == 0).any()


def test_equal_seeds_give_equal_episodes_and_others_do_not():
    vectors, classes = planted(6)
    first = [next(iter(class_episodes(vectors, classes, seed=seed)))["query"].numpy() for seed in (0, 0, 1)]
    assert (first[0] == first[1]).all()
    assert (first[0] != first[2]).any()


def test_a_classifier_comes_back_from_disk(tmp_path):
    classifier = PrototypeClassifier(3, embedding_dim=2, hidden=(4,), temperature=2.0, seed=1)
    classifier.save(tmp_path / "classifier.keras")
    again = keras.saving.load_model(tmp_path / "classifier.keras")
    vectors = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    prototypes = classifier.described(vectors[:2])
    assert (
        again.classify(vectors, prototypes).numpy().tolist()
        == classifier.classify(vectors, prototypes).numpy().tolist()
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ways": 1}, "`ways` must be at least 2. Received: ways=1"),
        ({"shots": 0}, "`shots` must be at least 1. Received: shots=0"),
        ({"ways": 7}, "`ways` must be at most the 6 classes that have 10 members. Received: ways=7"),
        ({"shots": 40}, "`ways` must be at most the 0 classes that have 45 members. Received: ways=5"),
    ],
)
def test_episodes_that_cannot_be_drawn_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        class_episodes(*planted(6), **options)


# -- medians -----------------------------------------------------------------------------------------------------------


def test_thresholds_stand_where_a_higher_rating_becomes_likelier_than_not():
    scores = np.array([1.0, 1.2, 1.4, 1.6, 1.8, 2.0])
    labels = np.array([1, 1, 2, 2, 1, 2])  # One label lies on the wrong side of a cut at 1.3, no cut is better.
    assert MedianRatings(None, (1, 2)).fit_scores(scores, labels).thresholds == pytest.approx([1.3])


def test_medians_keep_the_order_and_miss_by_less():
    rng = np.random.default_rng(0)
    scores = rng.uniform(2.0, 4.8, 4000)
    labels = np.clip(np.rint(scores + 0.3 + rng.normal(size=4000)), 1, 5)
    medians = MedianRatings(None, (1, 2, 3, 4, 5)).fit_scores(scores[:2000], labels[:2000])
    found = medians.of(scores[2000:])
    assert (np.argsort(found) == np.argsort(scores[2000:])).all()
    assert np.abs(found - labels[2000:]).mean() < np.abs(scores[2000:] - labels[2000:]).mean()


def test_medians_judge_like_any_recommender(learner, explicit):
    episode = next(iter(explicit.episodes.dataset()))
    medians = MedianRatings(learner, (1, 2, 3, 4, 5)).fit(episode.support, episode.query.item, episode.query.label)
    table = tmr.evaluation.cold_start({"medians": medians}, explicit.data, shots=(0, 3), query=3)
    assert table.summary["mean"].is_finite().all()


@pytest.mark.parametrize(
    ("ratings", "options", "message"),
    [
        ((1,), {}, r"`ratings` must be two or more, rising. Received: ratings=\(1,\)"),
        ((2, 1), {}, r"`ratings` must be two or more, rising. Received: ratings=\(2, 1\)"),
        ((1, 2), {"width": 0}, "`width` must be greater than 0. Received: width=0"),
    ],
)
def test_medians_of_no_scale_are_refused(ratings, options, message):
    with pytest.raises(ValueError, match=message):
        MedianRatings(None, ratings, **options)
