import re
from pathlib import Path

import keras
import numpy as np
import pytest

import tfmetarec as tmr
from tfmetarec.transfer.initialization import Thaw, initialize_embedding, principal_components
from tfmetarec.transfer.pretrained import ItemVectors


@pytest.fixture(scope="module")
def shop():
    data = tmr.data.load("synthetic", n_users=30, n_items=12, interactions_per_user=3, seed=0)
    return data, tmr.data.Vocabulary.fit(data)


def table(rows=4, width=2):
    layer = keras.layers.Embedding(rows, width, name="table")
    layer.build()
    return layer


VECTORS = np.array([[0.0, 0.0, 0.0], [3.0, 0.0, 0.0], [-3.0, 0.0, 0.0], [0.0, 0.1, 0.0]], np.float32)


def test_vectors_as_wide_as_the_table_are_written_as_they_are():
    layer = table(width=3)
    initialize_embedding(layer, VECTORS)
    np.testing.assert_array_equal(layer.embeddings, VECTORS)


def test_narrower_vectors_get_zeros_appended():
    layer = table(width=5)
    initialize_embedding(layer, VECTORS)
    np.testing.assert_array_equal(layer.embeddings, np.pad(VECTORS, [(0, 0), (0, 2)]))


def test_wider_vectors_are_reduced_to_what_tells_the_known_rows_apart():
    layer = table(width=2)
    initialize_embedding(layer, VECTORS)
    found = layer.embeddings.numpy()
    assert found[0].tolist() == [0.0, 0.0]  # No vector, so no part in the mean either.
    # Three points in a plane: their distances are those of the vectors.
    np.testing.assert_allclose(
        np.linalg.norm(found[1:, None] - found[None, 1:], axis=-1),
        np.linalg.norm(VECTORS[1:, None] - VECTORS[None, 1:], axis=-1),
        rtol=1e-5,
    )
    assert np.ptp(found[1:, 0]) > np.ptp(found[1:, 1])


def test_principal_components_are_those_of_the_singular_values():
    vectors = np.random.default_rng(0).normal(size=(20, 6)) * np.arange(1, 7)
    found = principal_components(vectors, 3)
    centred = vectors - vectors.mean(axis=0)
    left, values, _ = np.linalg.svd(centred, full_matrices=False)
    np.testing.assert_allclose(np.abs(found), np.abs(left[:, :3] * values[:3]), rtol=1e-6)
    np.testing.assert_allclose(principal_components(vectors[::-1], 3)[::-1], found)


def test_known_rows_are_scaled_to_the_root_mean_square_asked_for():
    layer = table(width=3)
    initialize_embedding(layer, VECTORS, scale=0.05)
    found = layer.embeddings.numpy()
    assert np.sqrt(np.mean(found[1:] ** 2)) == pytest.approx(0.05)
    np.testing.assert_allclose(found[1] / found[3].max(), VECTORS[1] / VECTORS[3].max(), rtol=1e-5)


def test_items_find_their_rows_and_those_without_a_vector_are_zeros(shop):
    _, vocabulary = shop
    model = tmr.models.TwoTower(vocabulary, 4)
    layer = model.item_encoder.id_vector
    ids = vocabulary.item_ids[[3, 5]]
    initialize_embedding(layer, ItemVectors(ids, [[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]]), vocabulary, frozen=True)
    found = layer.embeddings.numpy()
    assert found[[3, 5]].tolist() == [[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]]
    assert not np.delete(found, [3, 5], axis=0).any()
    assert not layer.trainable
    assert all(variable is not layer.embeddings for variable in model.trainable_variables)


def test_a_table_of_the_vectors_width_is_projected_by_what_is_learned(shop):
    _, vocabulary = shop
    vectors = ItemVectors(vocabulary.item_ids[1:], np.random.default_rng(0).normal(size=(vocabulary.n_items - 1, 9)))
    model = tmr.models.TwoTower(vocabulary, 4, id_width=vectors.width)
    initialize_embedding(model.item_encoder.id_vector, vectors, vocabulary, frozen=True)
    np.testing.assert_array_equal(model.item_encoder.id_vector.embeddings[1:], vectors.vectors)
    assert any(variable is model.item_encoder.id_projection.kernel for variable in model.trainable_variables)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda v: initialize_embedding(table(rows=9), VECTORS), r"a row for each of the 9 of `layer`. Received: shape \(4, 3\)"),
        (lambda v: initialize_embedding(table(), VECTORS[:, 0]), r"Received: shape \(4,\)"),
        (lambda v: initialize_embedding(table(rows=5), ItemVectors([0], [[1.0]]), v), "each of the 13 rows of `vocabulary`. Received: 5 rows"),
        (lambda v: initialize_embedding(table(), ItemVectors([0], [[1.0]])), "`vocabulary` is needed .* Received: vocabulary=None"),
        (lambda v: initialize_embedding(table(), VECTORS, v), "`vocabulary` is for `ItemVectors`"),
        (lambda v: initialize_embedding(table(rows=13), ItemVectors([99], [[1.0]]), v), "12 items without one in common"),
        (lambda v: initialize_embedding(table(), 0 * VECTORS), r"must have a row that is not all zeros. Received: shape \(4, 3\)"),
        (lambda v: initialize_embedding(table(), VECTORS, scale=0.0), "`scale` must be greater than 0, or None. Received: scale=0.0"),
        (lambda v: initialize_embedding(keras.layers.Dense(2), VECTORS), "must be a built `keras.layers.Embedding`. Received: <Dense"),
        (lambda v: initialize_embedding(keras.layers.Embedding(4, 2), VECTORS), "must be a built `keras.layers.Embedding`. Received: <Embedding"),
    ],
)  # fmt: skip
def test_tables_and_vectors_that_do_not_fit_are_refused(call, message, shop):
    with pytest.raises(ValueError, match=message):
        call(shop[1])


class Watched(keras.callbacks.Callback):
    """What moved by the end of each epoch."""

    def __init__(self, **variables):
        super().__init__()
        self.variables, self.moved = variables, []
        self.before = {name: variable.numpy().copy() for name, variable in variables.items()}

    def on_epoch_end(self, epoch, logs=None):
        self.moved.append({name: not np.array_equal(v, self.before[name]) for name, v in self.variables.items()})
        self.before = {name: variable.numpy().copy() for name, variable in self.variables.items()}


def built_model(optimizer):
    model = keras.Sequential([keras.Input((), dtype="int32"), table(), keras.layers.Dense(1)])
    model.compile(optimizer, "mse", jit_compile=False)
    return model


def learner_of(shop, optimizer):
    data, vocabulary = shop
    model = tmr.models.TwoTower(vocabulary, 4)
    learner = tmr.meta.MAML(model)
    learner.compile(optimizer)
    episodes = tmr.tasks.user_episodes(
        data, vocabulary, support=1, query=1, tasks_per_batch=4, steps_per_epoch=1, negatives=6, seed=0
    )
    return learner, episodes


@pytest.mark.parametrize("optimizer", [keras.optimizers.AdamW, tmr.optimizers.RowSparseAdagrad])
def test_a_layer_stays_as_it_is_and_then_moves_with_the_rest(optimizer):
    model = built_model(optimizer(0.1))
    rows, labels = np.array([1, 2]), np.array([1.0, 2.0])
    watched = Watched(layer=model.layers[0].embeddings, rest=model.layers[1].kernel)
    model.fit(rows, labels, epochs=3, callbacks=[Thaw("table", after=2), watched], verbose=0)
    assert watched.moved == [{"layer": layer_moved, "rest": True} for layer_moved in (False, False, True)]
    # Training goes on where it was: epochs are counted from the first one ever.
    watched = Watched(layer=model.layers[0].embeddings)
    model.fit(rows, labels, epochs=4, initial_epoch=3, callbacks=[Thaw(model.layers[0], after=2), watched], verbose=0)
    assert watched.moved == [{"layer": True}]


@pytest.mark.slow
def test_a_layer_of_a_learners_model_stays_as_it_is_and_then_moves(shop):
    learner, episodes = learner_of(shop, tmr.optimizers.RowSparseAdam(0.1))
    layer = learner.model.item_encoder.id_vector
    watched = Watched(layer=layer.embeddings, rest=learner.model.item_encoder.tower.dense[0].kernel)
    learner.fit(episodes, epochs=3, callbacks=[Thaw("id_vector", after=2), watched], verbose=0)
    assert watched.moved == [{"layer": layer_moved, "rest": True} for layer_moved in (False, False, True)]


def test_a_run_that_ends_early_leaves_the_layer_as_trainable_as_before():
    model = built_model("sgd")
    layer = model.layers[0]
    before = layer.embeddings.numpy().copy()
    model.fit(np.array([1, 2]), np.array([1.0, 2.0]), epochs=1, callbacks=[Thaw(layer, after=5)], verbose=0)
    assert layer.trainable
    np.testing.assert_array_equal(layer.embeddings, before)
    model.fit(np.array([1, 2]), np.array([1.0, 2.0]), epochs=1, verbose=0)
    assert not np.array_equal(layer.embeddings, before)


def test_layers_that_cannot_be_thawed_are_refused():
    with pytest.raises(ValueError, match="`after` must be at least 1. Received: after=0"):
        Thaw("table", after=0)

    def fit(thaw, frozen=False):
        layer = table()
        layer.trainable = not frozen
        inputs = keras.Input((), dtype="int32")
        model = keras.Sequential([inputs, layer, keras.layers.Dense(1), keras.layers.ReLU(name="relu")])
        model.compile("sgd", "mse", jit_compile=False)
        model.optimizer.build(model.trainable_variables)
        layer.trainable = frozen != "for ever"
        model.fit(np.array([1, 2]), np.array([1.0, 2.0]), callbacks=[thaw], verbose=0)

    with pytest.raises(ValueError, match="the nearest name is 'table'. Received: 'tabel', which 0 layers have"):
        fit(Thaw("tabel", after=1))
    with pytest.raises(ValueError, match="`layer` must be a layer of the model. Received: 'table'"):
        fit(Thaw(table(), after=1))
    with pytest.raises(ValueError, match="`layer` must be trainable when training begins; .* Received: 'table'"):
        fit(Thaw("table", after=1), frozen="for ever")
    with pytest.raises(ValueError, match="`layer` must be trainable when training begins; .* Received: 'relu'"):
        fit(Thaw("relu", after=1))
    unbuilt = keras.Sequential([table(), keras.layers.Dense(1)])
    unbuilt.compile("sgd", "mse", jit_compile=False)
    with pytest.raises(ValueError, match="must be built before `Thaw` freezes a part of it"):
        unbuilt.fit(np.array([1, 2]), np.array([1.0, 2.0]), callbacks=[Thaw("table", after=1)], verbose=0)
    with pytest.raises(ValueError, match="when the model is compiled, .* Received: 'table', whose .* it does not know"):
        fit(Thaw("table", after=1), frozen=True)


def test_the_example_of_the_documentation_runs():
    pytest.importorskip("gensim", reason="needs the extra `pretrained`")
    pytest.importorskip("wordllama", reason="needs the extra `pretrained`")
    page = (Path(__file__).parents[2] / "docs" / "pretrained.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, flags=re.S)
    for theirs, small in (
        ('"completejourney"', '"synthetic", n_users=40, n_items=20, interactions_per_user=4'),
        ('["category", "type"]', '["group", "tags"]'),
        ("min_item_users=10", "min_item_users=1"),
    ):
        assert theirs in code
        code = code.replace(theirs, small)
    names = {}
    exec(compile(code, "pretrained.md", "exec"), names)
    model, vocabulary = names["model"], names["vocabulary"]
    assert list(model.item_encoder.content.gate.widths) == ["words"]
    table = model.item_encoder.id_vector.embeddings.numpy()
    known = names["together"].has(vocabulary.item_ids[1:])
    assert np.sqrt(np.mean(table[1:][known] ** 2)) == pytest.approx(0.05)
