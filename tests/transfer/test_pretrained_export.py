"""A model that fuses modalities, served: each of them is left out of requests in turn."""

import numpy as np
import polars as pl
import pytest
import tensorflow as tf

import tfmetarec as tmr
from tfmetarec.export import ServedLearner
from tfmetarec.tasks.episode import Support
from tfmetarec.transfer.pretrained import ItemVectors, with_vectors

N_ITEMS = 9
SUPPORT = {
    "support": np.array([[0, 1, 2], [3, 4, 0]]),
    "support_labels": np.array([[5.0, 1.0, 3.0], [2.0, 4.0, 0.0]], np.float32),
    "support_length": np.array([3, 2], np.int32),
}
NEW_ITEMS = {
    "item_brand": np.array([["A", "B"]] * 2),
    "item_image": np.random.default_rng(1).normal(size=(2, 2, 4)).astype(np.float32),
    "item_text": np.random.default_rng(2).normal(size=(2, 2, 3)).astype(np.float32),
}
ABSENT = {"brand": "", "image": 0.0, "text": 0.0}


@pytest.fixture(scope="module")
def learner():
    rng = np.random.default_rng(0)
    rows = [(user, item, float(rng.integers(1, 6))) for user in range(12) for item in rng.choice(N_ITEMS, 5, False)]
    table = pl.DataFrame(rows, schema=["user_id", "item_id", "label"], orient="row")
    items = pl.DataFrame({"item_id": range(N_ITEMS), "brand": list("AABBC") + [None] * (N_ITEMS - 5)})
    data = tmr.data.Interactions.from_frames(table, items=items, feedback="explicit", name="shop")
    # Items 6 and 7 have no image, 7 and 8 no text, and 5 to 8 no brand: of item 7 nothing is known.
    images, texts = rng.normal(size=(N_ITEMS, 4)), rng.normal(size=(N_ITEMS, 3))
    data = with_vectors(data, "image", ItemVectors(np.delete(np.arange(N_ITEMS), [6, 7]), np.delete(images, [6, 7], 0)))
    data = with_vectors(data, "text", ItemVectors(np.arange(7), texts[:7]))
    vocabulary = tmr.data.Vocabulary.fit(data)
    model = tmr.models.TwoTower(vocabulary, 4, fusion="gate_all", id_width=3)
    for variable in model.trainable_variables:
        variable.assign(0.4 * rng.normal(size=variable.shape))
    return tmr.meta.MAML(model, inner_steps=1, inner_learning_rate=0.1)


@pytest.fixture(scope="module")
def answer(learner, tmp_path_factory):
    """Calls signatures of a SavedModel that was written and loaded."""
    served = ServedLearner(learner, top_k=5)
    signatures = served.signatures()
    kept = {name: signatures[name] for name in ("score_new_items", "adapt_and_recommend", "adapt_and_score")}
    folder = str(tmp_path_factory.mktemp("served") / "1")
    tf.saved_model.save(served.resources(kept), folder, signatures=kept)
    loaded = tf.saved_model.load(folder)

    def call(name, **inputs):
        found = loaded.signatures[name](**{key: tf.constant(value) for key, value in inputs.items()})
        return {key: value.numpy() for key, value in found.items()}

    call.loaded = loaded  # Its variables live as long as it does.
    return call


def adapted(learner):
    vocabulary = learner.vocabulary
    rows = vocabulary.item_rows(SUPPORT["support"])
    features = {name: value[rows] for name, value in vocabulary.catalogue.items()}
    user = vocabulary.encode("user", {}, 2)
    return learner.adapt(Support(user, features, SUPPORT["support_labels"], SUPPORT["support_length"]))


def live_scores(learner, request):
    """Scores of items of a request by the live model, which is told which modalities are there."""
    encoder = learner.model.item_encoder
    rows = {name.removeprefix("item_"): value.reshape(4, *value.shape[2:]) for name, value in request.items()}
    features = learner.vocabulary.encode("item", rows, 4)
    features = {name: np.reshape(value, (2, 2, *value.shape[1:])) for name, value in features.items()}
    assert encoder.content.gate is not None
    return np.asarray(learner.score(adapted(learner), features))


def test_a_served_item_scores_as_the_live_one_with_everything_there(learner, answer):
    found = answer("score_new_items", **SUPPORT, **NEW_ITEMS)["scores"]
    np.testing.assert_allclose(found, live_scores(learner, NEW_ITEMS), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dropped", [["brand"], ["image"], ["text"], ["image", "text"], ["brand", "image", "text"]])
def test_a_request_without_a_modality_is_answered_as_by_a_model_that_lacks_it(dropped, learner, answer):
    request = {name: value.copy() for name, value in NEW_ITEMS.items()}
    for name in dropped:
        request[f"item_{name}"][:] = ABSENT[name]
    found = answer("score_new_items", **SUPPORT, **request)["scores"]
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found, live_scores(learner, request), rtol=1e-4, atol=1e-5)
    # Worked out from the gate alone, over the modalities that are left.
    content, vocabulary = learner.model.item_encoder.content, learner.vocabulary
    names = {"brand": "", "image": "image", "text": "text"}
    present = {names[name]: tf.fill([2, 2], name not in dropped) for name in names}
    rows = vocabulary.rows("item", "brand", NEW_ITEMS["item_brand"])
    vectors = {"": content.embeddings["brand"](rows)}
    for name in ("image", "text"):
        vector = NEW_ITEMS[f"item_{name}"]
        vectors[name] = vector / np.sqrt((vector**2).mean(axis=-1, keepdims=True))
    fused = content.gate(vectors, present)
    features = vocabulary.encode(
        "item", {name[5:]: value.reshape(4, *value.shape[2:]) for name, value in request.items()}, 4
    )
    np.testing.assert_allclose(np.reshape(content(features), (2, 2, -1)), fused, rtol=1e-4, atol=1e-5)


def test_nan_in_a_request_is_a_vector_that_is_not_there(learner, answer):
    zeros, nan = ({**NEW_ITEMS, "item_image": np.full((2, 2, 4), value, np.float32)} for value in (0.0, np.nan))
    found, expected = (answer("score_new_items", **SUPPORT, **request)["scores"] for request in (nan, zeros))
    np.testing.assert_array_equal(found, expected)


def test_what_shares_a_batch_changes_nothing(answer):
    """Server-side batching fills up with whatever came first: here with an item that has an image."""
    absent = {**NEW_ITEMS, "item_image": NEW_ITEMS["item_image"].copy()}
    absent["item_image"][1] = 0.0
    together = answer("score_new_items", **SUPPORT, **absent)["scores"]
    alone = answer("score_new_items", **{name: value[1:] for name, value in {**SUPPORT, **absent}.items()})["scores"]
    np.testing.assert_allclose(together[1:], alone, rtol=1e-5, atol=1e-6)


def test_items_of_the_catalogue_that_lack_modalities_are_recommended_by_their_live_scores(learner, answer):
    live = np.asarray(learner.score(adapted(learner), learner.vocabulary.catalogue))[:, 1:]
    everything = np.tile(np.arange(N_ITEMS), (2, 1))
    found = answer("adapt_and_score", **SUPPORT, candidates=everything)["scores"]
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found, live, rtol=1e-4, atol=1e-5)
    best = answer("adapt_and_recommend", **SUPPORT)
    for row, (bought, length) in enumerate(zip(SUPPORT["support"], SUPPORT["support_length"], strict=True)):
        left = [item for item in np.argsort(-live[row]) if item not in bought[:length]]
        assert best["items"][row].tolist() == left[:5]


@pytest.mark.slow
def test_a_whole_export_passes_its_gate(learner, tmp_path):
    export = tmr.export.saved_model(learner, tmp_path / "shop", top_k=5)
    assert max(export.differences.values()) < 1e-4
    assert "score_new_items" in export.differences
