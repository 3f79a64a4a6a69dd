"""The client against what `tfmetarec.export` writes: each answer follows from another by plain arithmetic."""

from typing import NamedTuple

import numpy as np
import polars as pl
import pytest
import tensorflow as tf

import tfmetarec as tmr
from tfmetarec.client import Client, ServingError
from tfmetarec.server import Server

pytestmark = pytest.mark.serving

ITEMS = [10 * number for number in range(1, 13)]
DEPARTMENTS = ["tea", "jam", "nuts"]
MET, USER = [20, 70, 110], {"age": 44, "city": "Ulm"}


def make_learner(feedback, seed):
    rng = np.random.default_rng(0)
    rows = [(user, int(item)) for user in range(20) for item in rng.choice(ITEMS, 5, replace=False)]
    table = pl.DataFrame(rows, schema=["user_id", "item_id"], orient="row").with_columns(
        label=pl.Series(rng.integers(1, 6, len(rows)).astype(float))
    )
    users = pl.DataFrame(
        {"user_id": range(20), "age": rng.uniform(18, 80, 20), "city": rng.choice(["Ulm", "Lyon"], 20)}
    )
    items = pl.DataFrame(
        {
            "item_id": ITEMS,
            "department": [DEPARTMENTS[place % 3] for place in range(12)],
            "shop tags": [["red"] if place % 2 else ["hot", "red"] if place % 4 else [] for place in range(12)],
            "price": rng.uniform(1, 9, 12),
        }
    )
    data = tmr.data.Interactions.from_frames(table, users, items, feedback=feedback, name="shop")
    vocabulary = tmr.data.Vocabulary.fit(data)
    model = tmr.models.TwoTower(vocabulary, 4)
    rng = np.random.default_rng(seed)
    for variable in model.trainable_variables:
        variable.assign(0.3 * rng.normal(size=variable.shape))
    return tmr.meta.MAML(model, inner_steps=2, inner_learning_rate=0.2)


class Shop(NamedTuple):
    """Clients of two versions of a shop, and the labels of `MET`."""

    client: Client
    newer: Client
    labels: list[float]

    @property
    def asked(self):
        return MET, self.labels, USER


@pytest.fixture(scope="module", params=["implicit", pytest.param("explicit", marks=pytest.mark.slow)])
def shop(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    for version in (1, 2):
        # As `tmr.export.saved_model` does, without its checks, which take long and have tests of their own.
        served = tmr.export.ServedLearner(make_learner(request.param, version), top_k=6)
        signatures = served.signatures()
        tf.saved_model.save(served.resources(signatures), str(folder / str(version)), signatures=signatures)
    (folder / "models.config").write_text(
        f'model_config_list {{ config {{ name: "shop" base_path: "{folder}" model_platform: "tensorflow" '
        "model_version_policy { all {} } } }"
    )
    labels = [1.0, 1.0, 1.0] if request.param == "implicit" else [1.0, 4.5, 3.0]
    with (
        Server(model_config_file=folder / "models.config") as server,
        Client(f"127.0.0.1:{server.rest_api_port}", model="shop", version=1) as client,
        Client(f"127.0.0.1:{server.port}", model="shop", protocol="grpc") as newer,
    ):
        yield Shop(client, newer, labels)


def best(shop, fits, top_k=6):
    """What a search among all items must find, from their scores."""
    scores = dict(zip(ITEMS, shop.client.score(ITEMS, *shop.asked).tolist(), strict=True))
    found = sorted((item for item in ITEMS if item not in MET and fits(item)), key=lambda item: -scores[item])
    return [(item, pytest.approx(scores[item], abs=1e-5)) for item in found[:top_k]]


def department(item):
    return DEPARTMENTS[ITEMS.index(item) % 3]


def test_recommends_the_best_scores_of_all_items(shop):
    client, asked = shop.client, shop.asked
    assert client.recommend(*asked) == best(shop, lambda item: True)
    assert client.recommend(*asked, top_k=2) == best(shop, lambda item: True, 2)
    assert client.recommend(*asked, exclude=[30, 40]) == best(shop, lambda item: item not in (30, 40))
    tea = best(shop, lambda item: department(item) == "tea")
    assert client.recommend(*asked, only={"department": "tea"}) == tea
    assert 0 < len(tea) < 6
    hot = best(shop, lambda item: ITEMS.index(item) % 4 == 2 and department(item) != "jam")
    assert len(hot) == 1
    assert client.recommend(*asked, only={"shop tags": "hot", "department": ["tea", "nuts"]}) == hot


def test_contributions_are_what_leaving_an_interaction_out_changes(shop):
    found = shop.client.explain(*shop.asked)
    assert [(item, score) for item, score, _ in found] == best(shop, lambda item: True)
    ids = [item for item, _, _ in found]
    whole = shop.client.score(ids, *shop.asked)
    for place, item in enumerate(MET):
        rest = [p for p in range(3) if p != place]
        without = shop.client.score(ids, [MET[p] for p in rest], [shop.labels[p] for p in rest], USER)
        assert [dict(because)[item] for _, _, because in found] == pytest.approx(list(whole - without), abs=1e-5)
    for _, _, because in found:
        assert [value for _, value in because] == sorted((value for _, value in because), reverse=True)


def test_two_steps_answer_as_one_does(shop):
    state = shop.client.adapt(*shop.asked)
    found = shop.client.recommend(*shop.asked, top_k=4, only={"department": ["tea", "jam"]})
    again = shop.client.recommend_with_state(state, top_k=4, exclude=MET, only={"department": ["tea", "jam"]})
    assert [item for item, _ in again] == [item for item, _ in found]
    assert [score for _, score in again] == pytest.approx([score for _, score in found], abs=1e-5)
    np.testing.assert_allclose(
        shop.client.score_with_state(state, ITEMS), shop.client.score(ITEMS, *shop.asked), atol=1e-5
    )


def test_a_new_item_is_scored_by_its_features(shop):
    new = [{"department": "tea", "shop tags": ["hot", "red"], "price": 2.5}, {"price": "8"}, {}]
    scores = shop.client.score_new_items(new, *shop.asked)
    assert scores.shape == (3,)
    assert len(set(scores.tolist())) == 3
    alone = [shop.client.score_new_items([item], *shop.asked)[0] for item in new]
    np.testing.assert_allclose(scores, alone, atol=1e-6)


def test_a_session_never_recommends_what_it_has_seen(shop):
    session = shop.client.session(USER, keep=2)
    for item, label in zip([*MET, 30], [*shop.labels, 2.0], strict=True):
        session.add(item, label)
    found = session.recommend()
    assert len(found) == 6
    assert not {item for item, _ in found} & {*MET, 30}
    assert found == shop.client.recommend([110, 30], [shop.labels[2], 2.0], USER, exclude=[20, 70])


def test_a_state_of_another_version_is_told_to_adapt_again(shop):
    state = shop.client.adapt(*shop.asked)
    for ask in (lambda s: shop.newer.recommend_with_state(s), lambda s: shop.newer.score_with_state(s, ITEMS)):
        with pytest.raises(ServingError) as caught:
            ask(state)
        assert caught.value.code == "FAILED_PRECONDITION"
        ask(shop.newer.adapt(*shop.asked))
