"""Small planted data and the learning set-ups that many tests share."""

import gc
import os
from typing import Any, NamedTuple

# Some oneDNN kernels add up in the order in which threads finish. Without them a computation repeated is the
# same to the last bit, which is what tests of equal seeds and resumed runs compare.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfmetarec as tmr


@pytest.fixture(scope="module", autouse=True)
def _spare_the_garbage_collector() -> None:
    """What is there when a file begins stays: every trial of Keras Tuner sends the collector through all that may not."""
    gc.collect()
    gc.freeze()


class Setting(NamedTuple):
    """Interactions of one kind of feedback, their vocabulary and episodes of 6 tasks."""

    data: Any
    vocabulary: Any
    episodes: Any


def _setting(feedback):
    data = tmr.data.load(
        "synthetic", n_users=20, n_items=40, interactions_per_user=8, noise=0.2, feedback=feedback, seed=0
    )
    vocabulary = tmr.data.Vocabulary.fit(data)
    options = {"negatives": 12} if feedback == "implicit" else {}
    episodes = tmr.tasks.user_episodes(
        data, vocabulary, support=(0, 4), query=3, tasks_per_batch=6, steps_per_epoch=2, seed=0, **options
    )
    return Setting(data, vocabulary, episodes)


@pytest.fixture(scope="session")
def implicit():
    return _setting("implicit")


@pytest.fixture(scope="session")
def explicit():
    return _setting("explicit")


@pytest.fixture(scope="session")
def settings(implicit, explicit):
    return {"implicit": implicit, "explicit": explicit}


def _own_model(vocabulary, seed=0, units=4, activation=None):
    """A functional model as a user would write one; it takes some of the features, and knows nothing of tasks."""
    sizes = {spec.name: spec.size for spec in (*vocabulary.specs.user, *vocabulary.specs.item)}
    names = {"segment": "int32", "item_id": "int32", "price": "float32"}
    inputs = {name: keras.Input((), dtype=dtype, name=name) for name, dtype in names.items()}
    parts = []
    for place, name in enumerate(("segment", "item_id")):
        uniform = keras.initializers.RandomUniform(-0.5, 0.5, seed=seed + place)
        parts.append(keras.layers.Embedding(sizes[name], 3, uniform, name=f"{name}_table")(inputs[name]))
    parts.append(keras.layers.Reshape((1,))(inputs["price"]))
    hidden = keras.layers.Dense(
        units, "tanh", kernel_initializer=keras.initializers.GlorotUniform(seed + 2), name="hidden"
    )(keras.layers.Concatenate()(parts))
    score = keras.layers.Dense(
        1, activation, kernel_initializer=keras.initializers.GlorotUniform(seed + 3), name="score"
    )(hidden)
    return keras.Model(inputs, score, name="own")


@pytest.fixture(scope="session")
def own_model():
    return _own_model


@pytest.fixture(scope="session")
def first_batch():
    """The first batch of episodes as NumPy arrays, free to be changed, with every length of support in it."""

    def batch(episodes):
        episode = tf.nest.map_structure(lambda tensor: tensor.numpy().copy(), next(iter(episodes.dataset())))
        tasks, rows = episode.support.label.shape
        episode.support.length[:] = np.arange(tasks) % (rows + 1)
        episode.query.length[-1] = 1
        return episode

    return batch


@pytest.fixture(scope="session")
def values_of():
    """Copies of all variables of a model, optimizer slots included where it has an optimizer."""

    def values(model):
        variables = [*model.variables]
        if getattr(model, "optimizer", None) is not None:
            variables += [v for v in model.optimizer.variables if id(v) not in {id(m) for m in model.variables}]
        return [variable.numpy().copy() for variable in variables if "metric" not in variable.path]

    return values
