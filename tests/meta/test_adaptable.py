import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfmetarec as tmr
from tfmetarec.meta import MAML
from tfmetarec.meta.adaptable import cut
from tfmetarec.models import TwoTower


def paths(adaptable):
    return [variable.path for variable in adaptable.variables]


def test_a_two_part_model_adapts_its_head(explicit):
    model = TwoTower(explicit.vocabulary, 3, user_hidden=(4,))
    adaptable = cut(model, None)
    assert {id(v) for v in adaptable.variables} == {id(v) for v in model.head.trainable_variables}
    assert len(adaptable.variables) == 5


def test_any_other_model_adapts_everything_but_embeddings(explicit, own_model):
    found = paths(cut(own_model(explicit.vocabulary), None))
    assert found == ["hidden/kernel", "hidden/bias", "score/kernel", "score/bias"]


def test_a_pattern_chooses_what_adapts(explicit, own_model):
    model = own_model(explicit.vocabulary)
    assert paths(cut(model, "hidden")) == ["hidden/kernel", "hidden/bias"]
    assert paths(cut(model, "bias$")) == ["hidden/bias", "score/bias"]
    assert paths(cut(model, "item_id_table|score/kernel")) == ["item_id_table/embeddings", "score/kernel"]
    assert paths(cut(model, "last")) == ["score/kernel", "score/bias"]


def test_the_last_layer_is_not_an_embedding():
    @keras.saving.register_keras_serializable(package="tests")
    class Biased(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = keras.layers.Dense(1)
            self.level = keras.layers.Embedding(4, 1)

        def call(self, features):
            return self.dense(features["x"]) + self.level(features["item_id"])

    model = Biased()
    model({"x": np.ones((1, 2), np.float32), "item_id": np.zeros(1, np.int32)})
    assert paths(cut(model, "last")) == [variable.path for variable in model.dense.variables]


def test_a_pattern_without_a_match_names_what_there_is(explicit, own_model):
    with pytest.raises(
        ValueError, match=r"`adapted` must match .* of: .*hidden/kernel, .*score/bias. Received: 'towr'"
    ):
        MAML(own_model(explicit.vocabulary), adapted="towr")


def test_a_model_without_weights_yet_is_refused():
    with pytest.raises(ValueError, match="`model` must be built. Call it once on a batch of features"):
        MAML(keras.Sequential([keras.layers.Dense(1)]))


def test_a_chosen_embedding_moves_in_the_inner_loop(explicit, own_model, first_batch):
    support = first_batch(explicit.episodes).support
    learner = MAML(own_model(explicit.vocabulary), adapted="item_id_table", inner_learning_rate=0.5)
    (table,) = learner.adapt(support).weights
    start = learner.model.get_layer("item_id_table").embeddings.numpy()
    moved = (np.abs(table - start) > 1e-7).any(axis=2)
    for task, length in enumerate(support.length):
        assert set(np.flatnonzero(moved[task])) == set(support.item["item_id"][task, :length])


def test_scores_of_one_task_are_the_models_own(explicit, own_model, first_batch):
    query = first_batch(explicit.episodes).query
    user = {name: value[:1] for name, value in query.user.items()}
    item = {name: value[0] for name, value in query.item.items()}
    for model in (own_model(explicit.vocabulary), TwoTower(explicit.vocabulary, 3)):
        adaptable = cut(model, None)
        encoded = adaptable.encode_user(user, False), adaptable.encode_item(item, False)
        found = adaptable.score([], *encoded)
        features = {**{name: np.repeat(value, 3, axis=0) for name, value in user.items()}, **item}
        names = getattr(model, "_inputs_struct", None) or features
        np.testing.assert_allclose(found, model({name: features[name] for name in names})[:, 0], rtol=1e-5)


# -- where a functional model is cut -----------------------------------------------------------------------------------


class Rows(keras.layers.Layer):
    """Passes on what it is given, and notes how many rows that was."""

    def __init__(self, **options):
        super().__init__(**options)
        self.seen = []

    def call(self, x):
        self.seen.append(x.shape[0])
        return x + 0.0


def inputs_of(**kinds):
    """`name=shape` or `name=(shape, dtype)`."""
    return {name: keras.Input(shape, dtype=dtype, name=name) for name, (shape, dtype) in kinds.items()}


IDS = {"segment": ((), "int32"), "item_id": ((), "int32")}


def embedding(vocabulary, name, **options):
    sizes = {spec.name: spec.size for spec in (*vocabulary.specs.user, *vocabulary.specs.item)}
    return keras.layers.Embedding(sizes[name], 3, name=f"{name}_table", **options)


def two_branches(vocabulary):
    """Each side alone through an embedding and a fixed projection, then both through what adapts."""
    inputs = inputs_of(**IDS)
    sides = [
        Rows(name=f"{name}_rows")(keras.layers.Dense(4, "tanh", name=f"{name}_fixed")(embedding(vocabulary, name)(x)))
        for name, x in inputs.items()
    ]
    hidden = keras.layers.Dense(5, "tanh", name="hidden")(keras.layers.Concatenate()(sides))
    return keras.Model(inputs, keras.layers.Dense(1, name="score")(hidden))


def mixed_early(vocabulary):
    """Sides meet in a product and a layer that stays fixed, before what adapts."""
    inputs = inputs_of(**IDS, price=((), "float32"))
    user, item = (embedding(vocabulary, name)(inputs[name]) for name in IDS)
    price = keras.layers.Reshape((1,))(inputs["price"])
    mixed = keras.layers.Concatenate(name="mixed")([user * item, user + item, price])
    mixed = keras.layers.Dense(6, "relu", name="fixed")(mixed)
    return keras.Model(inputs, keras.layers.Dense(1, name="score")(mixed))


def with_lists(vocabulary):
    """The mean of a list of tags as long as its length says."""
    inputs = inputs_of(**IDS, tags=((2,), "int32"), tags_length=((), "int32"))
    real = keras.ops.expand_dims(inputs["tags_length"], -1) > np.arange(2)
    real = keras.ops.expand_dims(keras.ops.cast(real, keras.config.floatx()), -1)
    tags = keras.ops.sum(embedding(vocabulary, "tags")(inputs["tags"]) * real, axis=1)
    sides = [embedding(vocabulary, name)(inputs[name]) for name in IDS]
    hidden = keras.layers.Dense(5, "tanh", name="hidden")(keras.layers.Concatenate()([*sides, tags]))
    return keras.Model(inputs, keras.layers.Dense(1, name="score")(hidden))


def with_mask(vocabulary):
    """Tags whose row is 0 masked, right up to a pooling behind a layer that adapts."""
    inputs = inputs_of(segment=((), "int32"), tags=((2,), "int32"))
    tags = keras.layers.Dense(4, name="hidden")(embedding(vocabulary, "tags", mask_zero=True)(inputs["tags"]))
    tags = keras.layers.GlobalAveragePooling1D()(tags)
    both = keras.layers.Concatenate()([embedding(vocabulary, "segment")(inputs["segment"]), tags])
    return keras.Model(inputs, keras.layers.Dense(1, name="score")(both))


def with_an_unused_feature(vocabulary):
    inputs = inputs_of(**IDS, price=((), "float32"))
    sides = [embedding(vocabulary, name)(inputs[name]) for name in IDS]
    return keras.Model(inputs, keras.layers.Dense(1, name="score")(keras.layers.Concatenate()(sides)))


def of_items_alone(vocabulary):
    inputs = inputs_of(item_id=IDS["item_id"])
    return keras.Model(inputs, keras.layers.Dense(1, name="score")(embedding(vocabulary, "item_id")(inputs["item_id"])))


def as_columns(vocabulary):
    """Features of shape (1,), as many Keras examples have them; Keras takes rows without that axis too."""
    inputs = inputs_of(segment=((1,), "int32"), item_id=((1,), "int32"))
    sides = [keras.layers.Flatten()(embedding(vocabulary, name)(x)) for name, x in inputs.items()]
    return keras.Model(inputs, keras.layers.Dense(1, name="score")(keras.layers.Concatenate()(sides)))


@keras.saving.register_keras_serializable(package="tests")
class Subclassed(keras.Model):
    """Nothing is known of it but that it can be called."""

    def __init__(self, vocabulary):
        super().__init__()
        self.tables = {name: embedding(vocabulary, name) for name in IDS}
        self.hidden = keras.layers.Dense(5, "tanh", name="hidden")
        self.score = keras.layers.Dense(1, name="score")
        placeholder = tmr.models.placeholder_features(vocabulary.specs)
        self(placeholder)

    def call(self, features):
        return self.score(self.hidden(keras.ops.concatenate([self.tables[n](features[n]) for n in IDS], -1)))


def own_scores(model, user, item):
    """`(T, N)` by the model's own call, one task after the other; items are each task's own or common to all."""
    scores = []
    for task in range(len(user["user_id"])):
        own = {name: value[task] if item["item_id"].ndim == 2 else value for name, value in item.items()}
        rows = {name: np.repeat(value[task : task + 1], len(own["item_id"]), axis=0) for name, value in user.items()}
        features = {**rows, **own}
        names = getattr(model, "_inputs_struct", None) or features
        scores.append(model({name: features[name] for name in names})[:, 0])
    return np.stack(scores)


CASES = {
    "two branches": (two_branches, "hidden|score", 4),
    "two branches, last": (two_branches, "last", 2),
    "two branches, body": (two_branches, "body", 6),
    "mixed early": (mixed_early, "score", 2),
    "lists": (with_lists, None, 4),
    "mask": (with_mask, "score", 2),
    "an unused feature": (with_an_unused_feature, None, 2),
    "items alone": (of_items_alone, None, 2),
    "an embedding adapts": (two_branches, "item_id_table|score", 3),
    "subclassed": (Subclassed, None, 4),
}
CASES["mask behind what adapts"] = (with_mask, None, 4)
CASES["columns"] = (as_columns, None, 2)


def cases():
    for name, engine in itertools.product(CASES, ("auto", "vectorized")):
        yield pytest.param(*CASES[name], engine, id=f"{name}-{engine}")


@pytest.mark.parametrize(("make", "adapted", "number", "engine"), list(cases()))
def test_unadapted_scores_are_the_models_own_however_it_is_cut(explicit, first_batch, make, adapted, number, engine):
    vocabulary, query = explicit.vocabulary, first_batch(explicit.episodes).query
    model = make(vocabulary)
    learner = MAML(model, vocabulary=vocabulary, adapted=adapted, engine=engine)
    assert len(learner.adapted_variables) == number
    nothing = learner.adapt(query._replace(length=0 * query.length))
    few = {name: value[1:9] for name, value in vocabulary.catalogue.items()}  # Item 0, the unknown one, has no tags.
    for items in (query.item, few):
        np.testing.assert_allclose(
            learner.score(nothing, items), own_scores(model, query.user, items), rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("make", [two_branches, mixed_early, with_lists, with_an_unused_feature])
def test_it_does_not_matter_whether_the_sides_are_known(explicit, first_batch, make):
    model, support = make(explicit.vocabulary), first_batch(explicit.episodes).support
    learners = [MAML(model, vocabulary=known, inner_steps=2) for known in (explicit.vocabulary, None)]
    weights = [learner.adapt(support).weights for learner in learners]
    for a, b in zip(*weights, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    sides, features = (len(learner._cut._encoders) for learner in learners)
    assert sides == 2 < features or len(IDS) == features


def test_encoders_run_once_for_all_tasks(explicit, first_batch):
    model, support = two_branches(explicit.vocabulary), first_batch(explicit.episodes).support
    seen = {name: model.get_layer(f"{name}_rows").seen for name in IDS}
    adaptable = cut(model, "hidden|score")
    for rows in seen.values():
        rows.clear()
    user = tf.nest.map_structure(lambda t: t[:, None], adaptable.encode_user(support.user, False))
    item = adaptable.encode_item(explicit.vocabulary.catalogue, False)
    items = len(explicit.vocabulary.catalogue["item_id"])
    assert seen == {"segment": [6], "item_id": [items]}
    scores = adaptable.score_all(lambda layer, x: layer(x), user, item)
    assert seen == {"segment": [6], "item_id": [items]}  # Not again, and not for every task.
    np.testing.assert_allclose(
        scores, own_scores(model, support.user, explicit.vocabulary.catalogue), rtol=1e-4, atol=1e-5
    )


def test_what_is_fixed_but_depends_on_both_sides_runs_with_what_adapts(explicit):
    adaptable = cut(mixed_early(explicit.vocabulary), "score", {"segment": "user", "item_id": "item", "price": "item"})
    inner = {variable.path for variable in adaptable.inner_variables}
    assert inner == {"fixed/kernel", "fixed/bias", "score/kernel", "score/bias"}
    assert len(adaptable.dense_layers) == 2
    whole = cut(Subclassed(explicit.vocabulary), None)
    assert len(whole.inner_variables) == 6
    assert whole.dense_layers is None


def test_dropout_of_an_encoder_is_on_in_training_and_off_in_adapting(explicit, first_batch):
    inputs = inputs_of(**IDS)
    sides = [embedding(explicit.vocabulary, name)(x) for name, x in inputs.items()]
    sides[1] = keras.layers.Dropout(0.5, seed=0)(sides[1])
    model = keras.Model(inputs, keras.layers.Dense(1, name="score")(keras.layers.Concatenate()(sides)))
    episode = tf.nest.map_structure(tf.constant, first_batch(explicit.episodes))
    learner = MAML(model, vocabulary=explicit.vocabulary)
    items = [learner._cut.encode_item(episode.support.item, training) for training in (True, True, False)]
    one, other, off = (tf.nest.flatten(item)[0].numpy() for item in items)
    assert 0.2 < (one == 0).mean() < 0.8
    assert (one != other).any()
    np.testing.assert_allclose(one[one != 0], 2 * off[one != 0], rtol=1e-6)
    losses = {float(learner.meta_gradients(episode)[0]) for _ in range(3)}
    assert len(losses) == 3
    weights = [learner.adapt(episode.support).weights[0].numpy() for _ in range(2)]
    np.testing.assert_array_equal(*weights)
    np.testing.assert_array_equal(learner.query_loss(episode)[1], learner.query_loss(episode)[1])
