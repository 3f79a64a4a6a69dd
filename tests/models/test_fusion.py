import keras
import numpy as np
import pytest
from keras import ops

import tfmetarec as tmr
from tfmetarec.data import FeatureSpec, FeatureSpecs
from tfmetarec.models import FeatureEncoder, ItemEncoder, placeholder_features
from tfmetarec.models.fusion import GateFusion, as_direction

VECTORS = (FeatureSpec("image", "vector", 3), FeatureSpec("sound", "vector", 2))
CONTENT = (FeatureSpec("brand", "category", 5), FeatureSpec("tags", "category_list", 4, 2), *VECTORS)
ITEM = (FeatureSpec("item_id", "id", 6), *CONTENT, FeatureSpec("item_level", "number", 1))
SPECS = FeatureSpecs((FeatureSpec("user_id", "id", 1), FeatureSpec("age", "number", 1)), ITEM, "explicit", 3.0)
BATCH = {
    "item_id": np.array([2, 0], np.int32),
    "brand": np.array([1, 4], np.int32),
    "tags": np.array([[1, 3], [2, 0]], np.int32),
    "tags_length": np.array([2, 1], np.int32),
    "image": np.array([[1.0, 2.0, 2.0], [0.0, 3.0, 4.0]], np.float32),
    "sound": np.array([[0.5, 0.5], [-1.0, 1.0]], np.float32),
    "item_level": np.zeros(2, np.float32),
}
DROPPED = {
    "image": {"image": np.zeros((2, 3), np.float32)},
    "sound": {"sound": np.zeros((2, 2), np.float32)},
    "others": {
        "brand": np.zeros(2, np.int32),
        "tags": np.zeros((2, 2), np.int32),
        "tags_length": np.zeros(2, np.int32),
    },
}


def randomise(layer, seed=0):
    rng = np.random.default_rng(seed)
    for variable in layer.trainable_variables:
        variable.assign(rng.normal(size=variable.shape))
    return layer


def by_hand():
    """Projections that double and negate, and scores of the first entry's tanh, plus log 3 for the second modality."""
    fusion = GateFusion({"a": 2, "b": 2}, units=2)
    fusion.projections["a"].kernel.assign([[2.0, 0.0], [0.0, 2.0]])
    fusion.projections["b"].kernel.assign([[-1.0, 0.0], [0.0, -1.0]])
    fusion.scores["b"].bias.assign([np.log(3.0)])
    fusion.nothing.assign([7.0, 8.0])
    return fusion


def test_what_is_present_is_mixed_by_a_softmax_of_the_scores():
    a, b = np.array([[1.0, 2.0]], np.float32), np.array([[4.0, -4.0]], np.float32)
    # Scores 0 and log 3: gates 1/4 and 3/4.
    fusion = by_hand()
    np.testing.assert_allclose(fusion.gates({"a": a, "b": b}), [[0.25, 0.75]], rtol=1e-6)
    expected = 0.25 * 2 * a + 0.75 * -b
    np.testing.assert_allclose(fusion({"a": a, "b": b}), expected, rtol=1e-6)


def test_a_score_comes_from_its_own_projection():
    fusion = by_hand()
    fusion.scores["a"].kernel.assign([[2.0], [0.0]])
    a, b = np.array([[0.25, 9.0]], np.float32), np.array([[5.0, 5.0]], np.float32)
    odds = np.exp(2 * np.tanh(0.5)) / 3.0  # h_a is (0.5, 18).
    np.testing.assert_allclose(fusion.gates({"a": a, "b": b})[0, 0], odds / (1 + odds), rtol=1e-6)


def test_a_missing_modality_counts_nothing_and_leaves_the_others_their_proportions():
    fusion = randomise(GateFusion({"a": 2, "b": 3, "c": 1}, units=4))
    rng = np.random.default_rng(1)
    vectors = {name: rng.normal(size=(5, width)).astype(np.float32) for name, width in fusion.widths.items()}
    every = np.asarray(fusion.gates(vectors))
    without = np.asarray(fusion.gates({**vectors, "b": np.zeros((5, 3), np.float32)}))
    assert (without[:, 1] == 0).all()
    np.testing.assert_allclose(without.sum(axis=1), 1.0, rtol=1e-6)
    np.testing.assert_allclose(without[:, 0] / without[:, 2], every[:, 0] / every[:, 2], rtol=1e-4)


def test_with_nothing_present_the_learned_constant_stands():
    nothing = np.zeros((3, 2), np.float32)
    fusion = by_hand()
    assert np.asarray(fusion({"a": nothing, "b": nothing})).tolist() == [[7.0, 8.0]] * 3
    assert np.asarray(fusion.gates({"a": nothing, "b": nothing})).tolist() == [[0.0, 0.0]] * 3


@pytest.mark.parametrize("garbage", [np.nan, np.inf, 5.0])
def test_what_an_absent_vector_holds_reaches_neither_the_result_nor_a_gradient(garbage):
    import tensorflow as tf

    fusion = randomise(GateFusion({"a": 2, "b": 2}, units=3))
    vectors = {"a": np.full((2, 2), garbage, np.float32), "b": np.ones((2, 2), np.float32)}
    present = {"a": np.array([False, False]), "b": np.array([True, False])}
    with tf.GradientTape() as tape:
        fused = fusion(vectors, present)
        loss = tf.reduce_sum(fused**2)
    weights = [variable.value for variable in fusion.trainable_variables]
    gradients = tape.gradient(loss, weights, unconnected_gradients="zero")
    assert all(np.isfinite(gradient).all() for gradient in gradients)
    np.testing.assert_allclose(fused[0], np.asarray(fusion.projections["b"](vectors["b"]))[0], rtol=1e-6)
    np.testing.assert_array_equal(fused[1], fusion.nothing.numpy())


def test_flags_say_that_a_vector_of_zeros_is_there():
    fusion = randomise(by_hand())
    zeros, one = np.zeros((1, 2), np.float32), np.ones((1, 2), np.float32)
    gates = np.asarray(fusion.gates({"a": zeros, "b": one}, {"a": np.array([True])}))
    assert (gates > 0).all()
    assert np.asarray(fusion.gates({"a": zeros, "b": one}))[0, 0] == 0


def test_leading_dimensions_may_be_any():
    fusion = randomise(GateFusion({"a": 2, "b": 3}, units=4))
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 5, 2)).astype(np.float32), rng.normal(size=(2, 5, 3)).astype(np.float32)
    flat = fusion({"a": a.reshape(10, 2), "b": b.reshape(10, 3)})
    np.testing.assert_allclose(np.reshape(fusion({"a": a, "b": b}), (10, 4)), flat, rtol=1e-5)


def test_modalities_are_hidden_in_training_alone_as_if_they_were_missing():
    vectors = {"a": np.ones((2000, 2), np.float32), "b": np.full((2000, 2), 2.0, np.float32)}
    absent = np.zeros((2000, 2), np.float32)
    fusion = randomise(GateFusion({"a": 2, "b": 2}, units=3, modality_dropout=0.25))
    np.testing.assert_array_equal(fusion(vectors), fusion(vectors))
    outcomes = [fusion({**vectors, **dict.fromkeys(hidden, absent)}) for hidden in ("", "a", "b", "ab")]
    trained = np.asarray(fusion(vectors, training=True))
    found = np.array([np.isclose(trained, np.asarray(outcome), atol=1e-5).all(axis=1) for outcome in outcomes])
    assert (found.sum(axis=0) == 1).all()
    hidden = [found[[1, 3]].any(axis=0).mean(), found[[2, 3]].any(axis=0).mean()]
    np.testing.assert_allclose(hidden, 0.25, atol=4 * np.sqrt(0.25 * 0.75 / 2000))


def test_equal_seeds_hide_alike():
    vectors = {"a": np.ones((50, 2), np.float32), "b": np.ones((50, 2), np.float32)}
    one, same, other = (GateFusion({"a": 2, "b": 2}, 3, 0.5, seed=seed) for seed in (1, 1, 2))
    first = np.asarray(one(vectors, training=True))
    np.testing.assert_array_equal(first, same(vectors, training=True))
    assert not np.array_equal(first, other(vectors, training=True))


def planted(rows, seed):
    """A label, a vector that shows it clearly, and one that shows it through noise."""
    rng = np.random.default_rng(seed)
    label = rng.normal(size=(rows, 1))
    clear = label @ np.array([[1.0, -1.0, 0.5]])
    noisy = label @ np.array([[0.7, 0.7]]) + 0.7 * rng.normal(size=(rows, 2))
    return {"clear": clear.astype(np.float32), "noisy": noisy.astype(np.float32)}, label.astype(np.float32)


def trained(modality_dropout):
    keras.utils.set_random_seed(0)
    inputs = {name: keras.Input((width,), name=name) for name, width in (("clear", 3), ("noisy", 2))}
    fusion = GateFusion({"clear": 3, "noisy": 2}, 8, modality_dropout, name="fusion")
    model = keras.Model(inputs, keras.layers.Dense(1)(fusion(inputs)))
    model.compile(keras.optimizers.Adam(0.05), "mse", jit_compile=False)
    model.fit(*planted(100 * 256, seed=0), batch_size=256, verbose=0)
    return model


def test_a_model_that_learned_with_modalities_hidden_loses_less_when_one_is_missing():
    vectors, label = planted(1000, seed=1)
    losses = {}
    for modality_dropout in (0.0, 0.3):
        model = trained(modality_dropout)
        for name in ("none", "clear", "noisy"):
            shown = {m: np.zeros_like(vector) if m == name else vector for m, vector in vectors.items()}
            losses[modality_dropout, name] = float(np.mean((model(shown) - label) ** 2))
    # The best guess from the noisy vector alone leaves 1 / (1 + 2) of the variance: two views, each with a signal as
    # strong as its noise.
    assert losses[0.3, "clear"] < losses[0.0, "clear"]
    assert losses[0.3, "clear"] < 0.5 * label.var()
    assert losses[0.3, "noisy"] < 0.1 * label.var()
    assert losses[0.3, "none"] < losses[0.3, "clear"]


def test_a_direction_has_entries_of_mean_square_one_and_zeros_stay():
    found = np.asarray(as_direction(ops.array([[3.0, 4.0], [0.0, 0.0]])))
    np.testing.assert_allclose(found, [[3 / np.sqrt(12.5), 4 / np.sqrt(12.5)], [0.0, 0.0]], rtol=1e-6)


@pytest.mark.parametrize("fusion", ["gate", "gate_all"])
def test_an_encoder_fuses_its_vectors_instead_of_placing_them_side_by_side(fusion):
    encoder = randomise(FeatureEncoder(CONTENT, 4, fusion=fusion))
    vectors = {name: as_direction(ops.array(BATCH[name])) for name in ("image", "sound")}
    others = FeatureEncoder(CONTENT[:2], 4)
    for name, table in others.embeddings.items():
        table.embeddings.assign(encoder.embeddings[name].embeddings)
    beside = np.asarray(others(BATCH))
    if fusion == "gate":
        expected = np.concatenate([beside, np.asarray(encoder.gate(vectors))], axis=1)
    else:
        expected = encoder.gate({**vectors, "": ops.array(beside)})
    assert encoder(BATCH).shape == (2, encoder.width)
    np.testing.assert_allclose(encoder(BATCH), expected, rtol=1e-5)


@pytest.mark.parametrize("dropped", DROPPED)
def test_whatever_is_missing_gets_a_gate_of_zero(dropped):
    encoder = randomise(FeatureEncoder(CONTENT, 4, fusion="gate_all"))
    seen = []
    encoder.gate.call, original = (
        lambda *a, **k: seen.append(encoder.gate.gates(*a)) or original(*a, **k),
        encoder.gate.call,
    )
    encoder({**BATCH, **DROPPED[dropped]})
    names = [{"": "others"}.get(name, name) for name in encoder.gate.widths]
    assert (np.asarray(seen[0]) == 0).tolist() == [[name == dropped for name in names]] * 2


def test_the_length_of_a_gated_vector_does_not_matter():
    encoder = randomise(FeatureEncoder(CONTENT, 4, fusion="gate"))
    longer = {**BATCH, "image": 30 * BATCH["image"]}
    np.testing.assert_allclose(encoder(longer), encoder(BATCH), rtol=1e-5, atol=1e-6)


def test_vectors_alone_are_fused_too():
    encoder = FeatureEncoder(VECTORS, 4, fusion="gate_all")
    assert list(encoder.gate.widths) == ["image", "sound"]
    assert encoder(BATCH).shape == (2, encoder.width) == (2, 8)


def test_rows_of_a_table_of_another_width_are_projected():
    encoder = randomise(ItemEncoder(ITEM, 4, id_width=3))
    plain = ItemEncoder(ITEM, 4)
    assert encoder.id_vector.embeddings.shape == (6, 3)
    for mine, other in ((encoder.tower, plain.tower), (encoder.content, plain.content)):
        for target, source in zip(other.trainable_variables, mine.trainable_variables, strict=True):
            target.assign(source)
    plain.id_vector.embeddings.assign(encoder.id_vector.embeddings.numpy() @ encoder.id_projection.kernel.numpy())
    np.testing.assert_allclose(encoder(BATCH)[:, :4], plain(BATCH)[:, :4], rtol=1e-5, atol=1e-6)
    without_id = {name: value for name, value in BATCH.items() if name != "item_id"}
    np.testing.assert_allclose(encoder(without_id)[1], encoder(BATCH)[1], rtol=1e-5)


@pytest.mark.parametrize("kind", [tmr.models.TwoTower, tmr.models.Ranker])
def test_a_model_takes_the_options_and_comes_back_with_them(kind, tmp_path):
    model = randomise(kind(SPECS, 4, fusion="gate_all", modality_dropout=0.3, id_width=3))
    gate = model.item_encoder.content.gate
    assert (list(gate.widths), gate.modality_dropout) == (["image", "sound", ""], 0.3)
    assert model.item_encoder.id_vector.embeddings.shape == (6, 3)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert again.get_config() == model.get_config()
    features = {**BATCH, "user_id": np.zeros(2, np.int32), "age": np.ones(2, np.float32)}
    np.testing.assert_array_equal(again(features), model(features))


def test_a_gate_hides_a_fifth_unless_told_otherwise_and_without_one_nothing_changes():
    assert tmr.models.TwoTower(SPECS, 4, fusion="gate").item_encoder.content.gate.modality_dropout == 0.2
    plain = tmr.models.TwoTower(SPECS, 4)
    assert plain.item_encoder.content.gate is None
    assert plain.item_encoder.id_projection is None
    assert plain(placeholder_features(SPECS)).shape == (1, 1)


@pytest.mark.parametrize(
    "layer",
    [
        GateFusion({"b": 2, "a": 3}, 4, 0.1, seed=3),
        FeatureEncoder(CONTENT, 4, seed=3, fusion="gate", modality_dropout=0.1),
        ItemEncoder(ITEM, 4, seed=3, fusion="gate_all", id_width=2),
    ],
    ids=["gate", "features", "items"],
)
def test_a_layer_comes_back_from_its_config_with_equal_weights(layer):
    again = type(layer).from_config(layer.get_config())
    assert again.get_config() == layer.get_config()
    for a, b in zip(again.trainable_variables, layer.trainable_variables, strict=True):
        assert a.path == b.path
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GateFusion({}, 2), "`widths` must name at least one modality, .* Received: widths={}"),
        (lambda: GateFusion({"a": 0}, 2), "each at least 1 wide. Received: widths={'a': 0}"),
        (lambda: GateFusion({"a": 1}, 0), "`units` must be at least 1. Received: units=0"),
        (lambda: GateFusion({"a": 1}, 2, 1.0), "at least 0 and less than 1. Received: modality_dropout=1.0"),
        (lambda: FeatureEncoder(CONTENT, fusion="sum"), "one of 'concatenate', 'gate', 'gate_all'. Received: fusion='sum'"),
        (lambda: FeatureEncoder(CONTENT, modality_dropout=0.1), "must be None otherwise. Received: modality_dropout=0.1, fusion='concatenate'"),
        (lambda: FeatureEncoder(CONTENT[:2], fusion="gate"), r"needs features that are vectors; .* features \['brand', 'tags'\]"),
        (lambda: ItemEncoder(ITEM, id_width=0), "`id_width` must be at least 1, or None. Received: id_width=0"),
    ],
)  # fmt: skip
def test_options_out_of_range_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_vectors_of_other_modalities_or_widths_are_refused():
    fusion, a, b = GateFusion({"a": 2, "b": 3}, 4), np.ones((1, 2), np.float32), np.ones((1, 3), np.float32)
    with pytest.raises(ValueError, match=r"must have the modalities \['a', 'b'\]. Received: \['a'\]"):
        fusion({"a": a})
    with pytest.raises(ValueError, match=r"of 'b' must have the shape \(..., 3\). Received: \(1, 2\)"):
        fusion({"a": a, "b": a})
    with pytest.raises(ValueError, match=r"`present` must name modalities of \['a', 'b'\]. Received: \['c'\]"):
        fusion({"a": a, "b": b}, {"c": np.array([True])})
