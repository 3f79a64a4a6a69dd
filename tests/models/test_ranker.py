import keras
import numpy as np
import pytest

from tfmetarec.models import Ranker
from tfmetarec.models.ranker import DecisionLayers


@pytest.fixture(scope="module")
def rows(explicit):
    """Features of 7 users and items, taken from real episodes."""
    episode = next(iter(explicit.episodes.dataset()))
    users = {name: np.repeat(np.asarray(value), 3, axis=0)[:7] for name, value in episode.query.user.items()}
    items = {name: np.asarray(value).reshape(18, *value.shape[2:])[:7] for name, value in episode.query.item.items()}
    return {**users, **items}


def randomise(model, seed=0):
    rng = np.random.default_rng(seed)
    for variable in model.trainable_variables:
        variable.assign(0.5 * rng.normal(size=variable.shape))
    return model


def scores(model, features):
    return np.asarray(model(features))[:, 0]


@pytest.mark.parametrize("activation", ["linear", "sigmoid"])
def test_a_score_is_the_mlp_over_both_plus_the_items_bias(explicit, rows, activation):
    model = randomise(Ranker(explicit.vocabulary, 4, hidden=(5,), activation=activation))
    user, item = np.asarray(model.encode_user(rows)), np.asarray(model.encode_item(rows))
    first, first_bias, last, last_bias = (np.asarray(v) for v in model.head.trainable_variables)
    hidden = np.maximum(np.concatenate([user, item[:, :-1]], axis=1) @ first + first_bias, 0)
    expected = (hidden @ last + last_bias)[:, 0] + item[:, -1]
    if activation == "sigmoid":
        expected = 1 / (1 + np.exp(-expected))
    np.testing.assert_allclose(scores(model, rows), expected, rtol=1e-5)


def test_one_user_for_all_rows_scores_as_the_same_user_in_each_row(explicit, rows):
    model = randomise(Ranker(explicit.vocabulary, 4, hidden=(5,)))
    rows = {**rows, "segment": np.full(7, 2, np.int32)}
    user, item = model.encode_user(rows), model.encode_item(rows)
    np.testing.assert_allclose(model.head(user[:1], item), model.head(user, item), rtol=1e-5)


def test_ratings_start_at_the_mean_label(explicit):
    model = Ranker(explicit.vocabulary, 4)
    assert np.asarray(model.head.trainable_variables[-1]).tolist() == pytest.approx(
        [explicit.vocabulary.specs.label_mean]
    )


def test_items_never_seen_are_told_apart_by_their_content_alone(explicit, rows):
    model = randomise(Ranker(explicit.vocabulary, 4, hidden=(5,)))
    twice = {name: np.repeat(value[:1], 2, axis=0) for name, value in rows.items()}
    twice["item_id"] = np.zeros(2, np.int32)
    assert len(set(scores(model, twice).tolist())) == 1
    twice["price"] = np.array([0.0, 3.0], np.float32)
    assert len(set(scores(model, twice).tolist())) == 2


def test_equal_seeds_give_equal_scores_and_others_different_ones(explicit, rows):
    one, same, other = (scores(Ranker(explicit.vocabulary, 4, seed=seed), rows) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert not np.allclose(one, other)


def test_a_saved_model_loads_with_equal_config_and_scores(explicit, rows, tmp_path):
    model = randomise(Ranker(explicit.vocabulary, 4, hidden=(5, 3), activation="sigmoid"))
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.get_config() == model.get_config()
    np.testing.assert_array_equal(scores(model, rows), scores(loaded, rows))


def test_the_part_that_adapts_comes_back_from_its_config():
    head = DecisionLayers(3, 4, (5,), score_bias=0.5, activation="sigmoid", seed=2)
    again = DecisionLayers.from_config(head.get_config())
    assert again.get_config() == head.get_config()
    for a, b in zip(head.trainable_variables, again.trainable_variables, strict=True):
        np.testing.assert_array_equal(a, b)


def test_options_out_of_range_are_refused(explicit):
    with pytest.raises(ValueError, match="`embedding_dim` must be at least 1. Received: embedding_dim=0"):
        Ranker(explicit.vocabulary, 0)
    with pytest.raises(ValueError, match="`activation` must be 'linear' or 'sigmoid'. Received: activation='relu'"):
        Ranker(explicit.vocabulary, activation="relu")
