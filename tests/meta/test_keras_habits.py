"""What a Keras user does as a matter of course, and what must not go wrong then."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops

from tfmetarec.meta import BOIL, MAML, MetaSGD
from tfmetarec.models import TwoTower
from tfmetarec.optimizers import RowSparseAdamW


def item_model(vocabulary, body):
    item = keras.Input((), dtype="int32", name="item_id")
    size = next(spec.size for spec in vocabulary.specs.item if spec.name == "item_id")
    initializer = keras.initializers.RandomNormal(seed=0)
    return keras.Model({"item_id": item}, body(keras.layers.Embedding(size, 4, initializer)(item)))


def dense(units, activation=None, seed=0):
    return keras.layers.Dense(units, activation, kernel_initializer=keras.initializers.GlorotUniform(seed))


def gradients(learner, episode):
    return [tf.convert_to_tensor(g).numpy() for g in learner.meta_gradients(episode)[1]]


@pytest.mark.parametrize("hidden", ["stopped", "gate"])
def test_a_layer_behind_something_without_a_derivative_is_no_first_layer(explicit, first_batch, hidden):
    def body(x):
        first = dense(24, "tanh", 1)(x)
        if hidden == "stopped":
            return dense(1, seed=3)(keras.layers.Concatenate()([first, dense(24, "tanh", 2)(ops.stop_gradient(first))]))
        return dense(1, seed=3)(dense(24, "tanh", 2)(ops.cast(first > 0, "float32")))

    episode = tf.nest.map_structure(tf.constant, first_batch(explicit.episodes))
    model = item_model(explicit.vocabulary, body)
    options = {"inner_steps": 3, "inner_learning_rate": 0.05}
    found = [gradients(MAML(model, engine=engine, **options), episode) for engine in ("low_rank", "vectorized")]
    for a, b in zip(*found, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_an_encoder_that_thaws_trains(explicit, first_batch):
    encoder = dense(3, "tanh")
    encoder.trainable = False
    model = item_model(explicit.vocabulary, lambda x: dense(1)(encoder(x)))
    learner = MAML(model, adapted="last")
    encoder.trainable = True
    learner.compile("sgd")
    episode = tf.nest.map_structure(tf.constant, first_batch(explicit.episodes))
    by_path = dict(zip((v.path for v in learner.trainable_variables), gradients(learner, episode), strict=True))
    assert np.abs(by_path[encoder.kernel.path]).max() > 0


def test_batch_normalisation_mixes_neither_tasks_nor_padding(explicit, first_batch):
    model = item_model(explicit.vocabulary, lambda x: dense(1)(keras.layers.BatchNormalization()(dense(3)(x))))
    before = [variable.numpy() for variable in model.non_trainable_variables]
    learner = MAML(model)
    batch = first_batch(explicit.episodes)
    losses = []
    for shift in (0, 1):
        past = np.arange(batch.support.label.shape[1]) >= batch.support.length[:, None]
        item = {**batch.support.item, "item_id": batch.support.item["item_id"] + shift * past}
        episode = batch._replace(support=batch.support._replace(item=item))
        losses.append(float(learner.meta_gradients(tf.nest.map_structure(tf.constant, episode))[0]))
    assert losses[0] == losses[1]
    for a, b in zip(before, model.non_trainable_variables, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("kind", [keras.optimizers.AdamW, RowSparseAdamW])
@pytest.mark.parametrize("algorithm", [MAML, MetaSGD])
def test_what_the_user_excludes_from_weight_decay_stays_excluded(explicit, kind, algorithm):
    optimizer = kind(0.1, weight_decay=1.0)
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    learner = algorithm(TwoTower(explicit.vocabulary, 3))
    learner.compile(optimizer)
    for variable in learner.trainable_variables:
        spared = "bias" in variable.name or variable.name.startswith("log_")
        assert optimizer._use_weight_decay(variable) is not spared, variable.path


def test_a_query_label_that_says_nothing_does_not_count_in_metrics(explicit, first_batch):
    learner = MAML(TwoTower(explicit.vocabulary, 3))
    learner.compile("sgd", metrics=["mae"])
    batch = first_batch(explicit.episodes)
    batch.query.label[1, 0] = np.nan
    logs = learner.evaluate(tf.data.Dataset.from_tensors(tf.nest.map_structure(tf.constant, batch)), verbose=0)
    assert np.isfinite(logs).all()


def test_single_batches_are_trained_and_tested_on(explicit, first_batch):
    learner = MAML(TwoTower(explicit.vocabulary, 3, dropout=0.0, id_dropout=0.0))
    learner.compile(keras.optimizers.SGD(0.1))
    episode = tf.nest.map_structure(tf.constant, first_batch(explicit.episodes))
    losses = [learner.train_on_batch(episode) for _ in range(5)]
    assert losses[-1] < losses[0]
    assert learner.test_on_batch(episode) < losses[0]


def test_a_setting_changed_between_two_fits_counts(explicit):
    learner = MAML(TwoTower(explicit.vocabulary, 3, dropout=0.0, id_dropout=0.0), inner_learning_rate=0.01)
    learner.compile(keras.optimizers.SGD(0.0))
    losses = []
    for steps in (1, 1, 8):
        learner.inner_steps = steps
        losses += learner.fit(explicit.episodes, epochs=1, verbose=0).history["loss"]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert losses[2] != pytest.approx(losses[1], rel=1e-3)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda v: MAML(item_model(v, lambda x: dense(2)(x))), "`model` must have one output of shape"),
        (lambda v: BOIL(TwoTower(v, 3)), "BOIL needs a part that adapts with at least two layers"),
        (lambda v: MAML(TwoTower(v, 3), adapted="dense("), "`adapted` must be a regular expression"),
        (lambda v: MAML(TwoTower(v, 3), inner_dropout=True), "`inner_dropout` needs dropout among the layers"),
        (lambda v: MAML(TwoTower(v, 3), inner_learning_rate="0.1"), "`inner_learning_rate` must be greater than 0"),
    ],
)
def test_what_cannot_work_is_refused_in_a_sentence(explicit, make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make(explicit.vocabulary)


def test_a_feature_that_the_batch_lacks_is_named(explicit, first_batch):
    inputs = {"item_id": keras.Input((), dtype="int32", name="item_id"), "colour": keras.Input((3,), name="colour")}
    vector = keras.layers.Embedding(50, 3)(inputs["item_id"])
    learner = MAML(keras.Model(inputs, dense(1)(keras.layers.Concatenate()([vector, inputs["colour"]]))))
    with pytest.raises(ValueError, match="`model` takes 'item_id', 'colour', and the features of users and items lack"):
        learner.adapt(first_batch(explicit.episodes).support)


@pytest.mark.parametrize("jit_compile", ["auto", True])
def test_nothing_is_compiled_again_while_shapes_repeat(explicit, jit_compile):
    item = keras.Input((), dtype="float32", name="price")
    model = keras.Model({"price": item}, dense(1)(keras.layers.Reshape((1,))(item)))
    learner = MAML(model)
    learner.compile("sgd", jit_compile=jit_compile)
    learner.fit(explicit.episodes, epochs=3, verbose=0)
    ((key, compiled),) = ((key, graph) for key, graph in learner._graphs.items() if key[1] == "xla")
    assert key[0] == ("_solve" if jit_compile == "auto" else "_outer_step")
    assert compiled.experimental_get_tracing_count() == 1
