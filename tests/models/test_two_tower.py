import keras
import numpy as np
import pytest

from tfmetarec.data import FeatureSpec, FeatureSpecs
from tfmetarec.models import TwoTower, placeholder_features
from tfmetarec.models.two_tower import UserTower


def random_rows(specs, rows=7, seed=0):
    """Made-up encoded features of `rows` users and items."""
    rng = np.random.default_rng(seed)
    features = {}
    for spec in (*specs.user, *specs.item):
        shape = {"vector": (rows, spec.size), "category_list": (rows, spec.length)}.get(spec.kind, (rows,))
        if spec.kind in ("number", "vector"):
            features[spec.name] = rng.normal(size=shape).astype(np.float32)
        else:
            features[spec.name] = rng.integers(0, spec.size, shape).astype(np.int32)
        if spec.kind == "category_list":
            features[f"{spec.name}_length"] = rng.integers(0, spec.length + 1, rows).astype(np.int32)
    return features


def randomise(model, seed=0):
    rng = np.random.default_rng(seed)
    for variable in model.trainable_variables:
        variable.assign(0.5 * rng.normal(size=variable.shape))
    return model


def scores(model, features):
    return np.asarray(model(features))[:, 0]


def test_a_score_is_the_hand_worked_dot_product():
    specs = FeatureSpecs(
        (FeatureSpec("user_id", "id", 1), FeatureSpec("age", "number", 1)),
        (FeatureSpec("item_id", "id", 3), FeatureSpec("item_level", "number", 1)),
        "explicit",
        3.0,
    )
    model = TwoTower(specs, embedding_dim=2, item_hidden=())
    user_kernel, user_bias = model.head.tower.trainable_variables
    user_kernel.assign([[1.0, -1.0]])
    user_bias.assign([0.5, 0.0])
    for variable in model.item_encoder.trainable_variables:
        variable.assign(np.zeros(variable.shape))
    model.item_encoder.id_vector.embeddings.assign([[9.0, 9.0], [2.0, 1.0], [0.0, 3.0]])
    model.item_encoder.id_bias.embeddings.assign([[0.0], [0.25], [-1.0]])
    rows = {
        "user_id": np.zeros(2, np.int32),
        "age": np.array([2.0, 4.0], np.float32),
        "item_id": np.array([1, 2], np.int32),
        "item_level": np.zeros(2, np.float32),
    }
    # Row 0: (2.5, -2) . (2, 1) + 0.25 + 3;  row 1: (4.5, -4) . (0, 3) - 1 + 3
    assert scores(model, rows).tolist() == [2.5 * 2 - 2 + 0.25 + 3, -12.0 - 1 + 3]


def test_scores_start_at_the_mean_label_plus_what_the_vectors_say(explicit):
    model = TwoTower(explicit.vocabulary, 4)
    mean = explicit.data.table["label"].mean()
    np.testing.assert_allclose(scores(model, placeholder_features(model.specs)), mean, atol=0.5)
    assert float(model.head.level.kernel.numpy()[0, 0]) == pytest.approx(mean)
    assert (
        float(
            TwoTower(FeatureSpecs(model.specs.user, model.specs.item, "implicit", 1.0), 4).head.level.kernel.numpy()[
                0, 0
            ]
        )
        == 0
    )


def test_one_user_for_all_rows_scores_as_the_same_user_in_each_row(explicit):
    model = randomise(TwoTower(explicit.vocabulary, 4, user_hidden=(5,)))
    rows = random_rows(model.specs)
    rows["segment"][:] = 2
    user, item = model.encode_user(rows), model.encode_item(rows)
    np.testing.assert_allclose(model.head(user[:1], item), model.head(user, item), rtol=1e-5)


@pytest.mark.parametrize("activation", ["linear", "sigmoid"])
def test_the_query_vector_times_an_item_is_the_score(explicit, activation):
    model = randomise(TwoTower(explicit.vocabulary, 4, activation=activation))
    rows = random_rows(model.specs, 1)
    query, item = np.asarray(model.head(model.encode_user(rows))), np.asarray(model.encode_item(rows))
    assert query.shape == item.shape == (1, 6)
    product = float((query * item).sum())
    expected = product if activation == "linear" else 1 / (1 + np.exp(-product))
    np.testing.assert_allclose(scores(model, rows), [expected], rtol=1e-5)


def test_an_item_bias_raises_the_score_by_itself(explicit):
    model = randomise(TwoTower(explicit.vocabulary, 4))
    rows = random_rows(model.specs)
    before = scores(model, rows)
    table = model.item_encoder.id_bias.embeddings.numpy().copy()
    table[rows["item_id"][0]] += 2.0
    model.item_encoder.id_bias.embeddings.assign(table)
    same = rows["item_id"] == rows["item_id"][0]
    np.testing.assert_allclose(scores(model, rows) - before, np.where(same, 2.0, 0.0), atol=1e-5)


def test_items_never_seen_are_told_apart_by_their_content_alone(explicit):
    model = randomise(TwoTower(explicit.vocabulary, 4))
    rows = random_rows(model.specs, 2)
    rows = {name: np.repeat(value[:1], 2, axis=0) for name, value in rows.items()}
    rows["item_id"] = np.zeros(2, np.int32)
    assert len(set(scores(model, rows).tolist())) == 1
    rows["price"] = np.array([0.0, 3.0], np.float32)
    assert len(set(scores(model, rows).tolist())) == 2


def test_what_stands_past_a_lists_length_changes_nothing(explicit):
    model = randomise(TwoTower(explicit.vocabulary, 4))
    rows = random_rows(model.specs)
    rows["tags_length"] = np.array([0, 1, 2, 0, 1, 2, 0], np.int32)
    garbage = {**rows, "tags": rows["tags"].copy()}
    garbage["tags"][np.arange(2) >= rows["tags_length"][:, None]] = 1
    assert (garbage["tags"] != rows["tags"]).any()
    np.testing.assert_array_equal(scores(model, rows), scores(model, garbage))


def test_features_may_have_any_leading_dimensions(explicit):
    model = randomise(TwoTower(explicit.vocabulary, 4))
    rows = random_rows(model.specs, 6)
    folded = {name: value.reshape(2, 3, *value.shape[1:]) for name, value in rows.items()}
    np.testing.assert_allclose(
        np.reshape(model.encode_item(folded), (6, -1)), np.asarray(model.encode_item(rows)), rtol=1e-5
    )


def test_equal_seeds_give_equal_weights_and_others_different_ones(explicit):
    one, same, other = (TwoTower(explicit.vocabulary, 4, seed=seed) for seed in (1, 1, 2))
    for a, b in zip(one.trainable_variables, same.trainable_variables, strict=True):
        np.testing.assert_array_equal(a, b)
    rows = random_rows(one.specs)
    assert not np.allclose(scores(one, rows), scores(other, rows))


def test_a_model_comes_back_from_its_config(explicit):
    model = TwoTower(explicit.vocabulary, 4, user_hidden=(3,), item_hidden=(5, 2), activation="sigmoid", seed=4)
    again = TwoTower.from_config(model.get_config())
    assert again.get_config() == model.get_config()
    rows = random_rows(model.specs)
    np.testing.assert_array_equal(scores(model, rows), scores(again, rows))


def test_a_saved_model_loads_with_equal_scores(explicit, tmp_path):
    model = randomise(TwoTower(explicit.vocabulary, 4, user_hidden=(3,)))
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    rows = random_rows(model.specs)
    np.testing.assert_array_equal(scores(model, rows), scores(loaded, rows))


def test_a_model_trains_in_plain_keras(explicit):
    model = TwoTower(explicit.vocabulary, 4)
    model.compile("adam", "mse")
    rows = random_rows(model.specs, 32)
    history = model.fit(rows, rows["price"], epochs=5, verbose=0).history["loss"]
    assert history[-1] < history[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"embedding_dim": 0}, "`embedding_dim` must be at least 1. Received: embedding_dim=0"),
        ({"dropout": 1.0}, "`dropout` must be at least 0 and less than 1. Received: dropout=1.0"),
        ({"id_dropout": -0.1}, "`id_dropout` must be at least 0 and less than 1. Received: id_dropout=-0.1"),
        ({"activation": "tanh"}, "`activation` must be 'linear' or 'sigmoid'. Received: activation='tanh'"),
    ],
)
def test_options_out_of_range_are_refused(explicit, options, message):
    with pytest.raises(ValueError, match=message):
        TwoTower(explicit.vocabulary, **options)


def test_the_part_that_adapts_comes_back_from_its_config():
    tower = UserTower(3, 4, (5,), score_bias=0.5, activation="sigmoid", seed=2)
    again = UserTower.from_config(tower.get_config())
    assert again.get_config() == tower.get_config()
    for a, b in zip(tower.trainable_variables, again.trainable_variables, strict=True):
        np.testing.assert_array_equal(a, b)
