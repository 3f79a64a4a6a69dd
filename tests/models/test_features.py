import numpy as np
import pytest
from keras import ops

from tfmetarec.data import FeatureSpec, FeatureSpecs
from tfmetarec.models import FeatureEncoder, ItemEncoder, ListPooling, placeholder_features
from tfmetarec.models.features import Tower, resolve_specs

SPECS = (
    FeatureSpec("brand", "category", 5),
    FeatureSpec("tags", "category_list", 4, 3),
    FeatureSpec("price", "number", 1),
    FeatureSpec("look", "vector", 2),
)
ITEM = (FeatureSpec("item_id", "id", 6), *SPECS, FeatureSpec("item_level", "number", 1))
BATCH = {
    "item_id": np.array([2, 0], np.int32),
    "brand": np.array([1, 4], np.int32),
    "tags": np.array([[1, 3, 2], [2, 0, 0]], np.int32),
    "tags_length": np.array([2, 0], np.int32),
    "price": np.array([0.5, -1.0], np.float32),
    "look": np.array([[1.0, 2.0], [3.0, 4.0]], np.float32),
    "item_level": np.array([-1.0, -2.0], np.float32),
}


def randomise(layer, seed=0):
    rng = np.random.default_rng(seed)
    for variable in layer.trainable_variables:
        variable.assign(rng.normal(size=variable.shape))


def test_a_list_is_averaged_over_its_real_entries():
    vectors = np.array([[[1.0, 2.0], [3.0, 4.0], [99.0, 99.0]], [[7.0, 8.0], [0.0, 0.0], [0.0, 0.0]]])
    pooled = ListPooling()(ops.array(vectors), ops.array([2, 1]))
    assert np.asarray(pooled).tolist() == [[2.0, 3.0], [7.0, 8.0]]


@pytest.mark.parametrize("length", [0, 1, 2])
def test_what_stands_past_the_length_changes_nothing(length):
    vectors = np.random.default_rng(0).normal(size=(1, 3, 2))
    garbage = vectors.copy()
    garbage[:, length:] = 1e6
    lengths = ops.array([length])
    np.testing.assert_array_equal(
        ListPooling()(ops.array(vectors), lengths), ListPooling()(ops.array(garbage), lengths)
    )
    if length == 0:
        assert not np.asarray(ListPooling()(ops.array(garbage), lengths)).any()


def test_lists_pool_under_any_leading_dimensions():
    vectors = np.random.default_rng(0).normal(size=(2, 5, 3, 4))
    length = np.array([[0, 1, 2, 3, 1], [3, 3, 0, 2, 1]])
    expected = [
        [v[:n].mean(0) if n else np.zeros(4) for v, n in zip(a, b, strict=True)]
        for a, b in zip(vectors, length, strict=True)
    ]
    np.testing.assert_allclose(ListPooling()(ops.array(vectors), ops.array(length)), expected, rtol=1e-5)


def test_an_encoder_places_features_side_by_side():
    encoder = FeatureEncoder(SPECS, embedding_dim=8)
    brand, tags = (np.asarray(encoder.embeddings[name].embeddings) for name in ("brand", "tags"))
    assert brand.shape == (5, 2)  # A small table gets a narrow embedding.
    expected = [
        [*brand[1], *((tags[1] + tags[3]) / 2), 0.5, 1.0, 2.0],
        [*brand[4], 0.0, 0.0, -1.0, 3.0, 4.0],
    ]
    np.testing.assert_allclose(encoder(BATCH), expected, rtol=1e-6)
    assert encoder.width == 7


def test_an_encoder_of_nothing_is_a_constant_one():
    rows = {"user_id": np.zeros((2, 3), np.int32)}
    encoder = FeatureEncoder(())
    assert np.asarray(encoder(rows)).tolist() == [[[1.0]] * 3] * 2
    assert encoder.width == 1


def test_items_are_worked_out_by_hand():
    encoder = ItemEncoder(ITEM, embedding_dim=4, hidden=(), level=0.5)
    randomise(encoder)
    content = np.asarray(encoder.content(BATCH))
    kernel, bias = (np.asarray(v) for v in encoder.tower.trainable_variables)
    ids, id_bias = np.asarray(encoder.id_vector.embeddings), np.asarray(encoder.id_bias.embeddings)
    vector = ids[[2, 0]] + content @ kernel + bias
    level = id_bias[[2, 0], 0] + content @ np.asarray(encoder.content_bias.kernel)[:, 0]
    level += BATCH["item_level"] * float(encoder.level_weight.numpy())
    np.testing.assert_allclose(encoder(BATCH), np.column_stack([vector, level]), rtol=1e-5, atol=1e-6)


def test_popularity_starts_with_the_weight_given():
    assert float(ItemEncoder(ITEM, 4, level=0.5).level_weight.numpy()) == 0.5


def test_ids_are_hidden_in_training_alone_and_leave_the_content():
    encoder = ItemEncoder(ITEM, embedding_dim=4, id_dropout=0.5)
    randomise(encoder)
    rows = {name: np.repeat(value[:1], 400, axis=0) for name, value in BATCH.items()}
    known = np.asarray(encoder(rows))
    hidden = np.asarray(encoder({**rows, "item_id": np.zeros(400, np.int32)}))
    np.testing.assert_array_equal(known, np.repeat(known[:1], 400, axis=0))
    trained = np.asarray(encoder(rows, training=True))
    is_known = np.isclose(trained, known, atol=1e-5).all(axis=1)
    is_hidden = np.isclose(trained, hidden, atol=1e-5).all(axis=1)
    assert (is_known ^ is_hidden).all()
    assert 0.4 < is_hidden.mean() < 0.6


def test_towers_are_relu_inside_and_linear_at_the_end():
    tower = Tower(3, 2, (4,), output_bias=0.25)
    first, first_bias, last, last_bias = (np.asarray(v) for v in tower.trainable_variables)
    inputs = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    expected = np.maximum(inputs @ first + first_bias, 0) @ last + last_bias
    np.testing.assert_allclose(tower(inputs), expected, rtol=1e-5)
    assert last_bias.tolist() == [0.25, 0.25]
    assert (expected < 0).any()


def test_tower_dropout_acts_in_training_alone():
    tower = Tower(3, 2, (64,), dropout=0.5)
    inputs = np.ones((4, 3), np.float32)
    np.testing.assert_array_equal(tower(inputs), tower(inputs))
    assert not np.allclose(tower(inputs, training=True), tower(inputs))


@pytest.mark.parametrize(
    "layer",
    [FeatureEncoder(SPECS, 4, seed=3), ItemEncoder(ITEM, 4, (5,), 0.1, 0.2, 0.3, seed=3), Tower(3, 2, (4,), 0.1, 0.5)],
)
def test_a_layer_comes_back_from_its_config_with_equal_weights(layer):
    again = type(layer).from_config(layer.get_config())
    assert again.get_config() == layer.get_config()
    assert [v.path for v in again.trainable_variables] == [v.path for v in layer.trainable_variables]
    for a, b in zip(again.trainable_variables, layer.trainable_variables, strict=True):
        np.testing.assert_array_equal(a, b)


def test_placeholders_hold_one_row_of_every_feature():
    specs = FeatureSpecs((FeatureSpec("user_id", "id", 1),), ITEM, "explicit", 3.0)
    features = placeholder_features(specs)
    shapes = {name: value.shape for name, value in features.items()}
    assert shapes == {"user_id": (1,), **{name: (1, *value.shape[1:]) for name, value in BATCH.items()}}
    assert {name: value.dtype for name, value in features.items() if name in BATCH} == {
        name: value.dtype for name, value in BATCH.items()
    }


def test_what_is_no_vocabulary_is_refused():
    with pytest.raises(TypeError, match=r"`vocabulary` must be a `tfmetarec.data.Vocabulary` .* Received: list"):
        resolve_specs([])
    with pytest.raises(ValueError, match="`embedding_dim` must be at least 1. Received: embedding_dim=0"):
        FeatureEncoder(SPECS, 0)
