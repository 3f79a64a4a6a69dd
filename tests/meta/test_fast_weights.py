import keras
import numpy as np
import pytest
import tensorflow as tf

from tfmetarec.meta import MAML
from tfmetarec.meta.fast_weights import Adaptable, descend, gradient_step
from tfmetarec.models import TwoTower


def paths(adaptable):
    return [variable.path for variable in adaptable.variables]


def test_a_step_returns_new_weights_and_keeps_the_old():
    weights = [tf.constant([1.0, 2.0])]
    (moved,) = gradient_step(lambda w: tf.reduce_sum(w[0] ** 2), weights, 0.25, second_order=True)
    assert moved.numpy().tolist() == [0.5, 1.0]
    assert weights[0].numpy().tolist() == [1.0, 2.0]


def test_weights_that_the_loss_does_not_use_stay():
    weights = [tf.constant(1.0), tf.constant(5.0)]
    moved = gradient_step(lambda w: w[0] ** 2, weights, 0.25, second_order=True)
    assert [float(w) for w in moved] == [0.5, 5.0]


@pytest.mark.parametrize(("second_order", "slope"), [(True, (1 - 0.2) ** 2), (False, 1.0)])
def test_second_derivatives_are_there_when_asked_for(second_order, slope):
    start = tf.constant(3.0)
    with tf.GradientTape() as tape:
        tape.watch(start)
        (end,) = descend(lambda w: w[0] ** 2, [start], steps=2, learning_rate=0.1, second_order=second_order)
    assert float(end) == pytest.approx(3 * 0.8**2)
    assert float(tape.gradient(end, start)) == pytest.approx(slope)


def test_a_two_part_model_adapts_its_head(explicit):
    model = TwoTower(explicit.vocabulary, 3, user_hidden=(4,))
    adaptable = Adaptable(model)
    assert {id(v) for v in adaptable.variables} == {id(v) for v in model.head.trainable_variables}
    assert len(adaptable.variables) == 5


def test_any_other_model_adapts_everything_but_embeddings(explicit, own_model):
    found = paths(Adaptable(own_model(explicit.vocabulary)))
    assert found == ["hidden/kernel", "hidden/bias", "score/kernel", "score/bias"]


def test_a_pattern_chooses_what_adapts(explicit, own_model):
    model = own_model(explicit.vocabulary)
    assert paths(Adaptable(model, "hidden")) == ["hidden/kernel", "hidden/bias"]
    assert paths(Adaptable(model, "bias$")) == ["hidden/bias", "score/bias"]
    assert paths(Adaptable(model, "item_id_table|score/kernel")) == ["item_id_table/embeddings", "score/kernel"]
    assert paths(Adaptable(model, "last")) == ["score/kernel", "score/bias"]


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
    assert paths(Adaptable(model, "last")) == [variable.path for variable in model.dense.variables]


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
        adaptable = Adaptable(model)
        encoded = adaptable.encode_user(user, False), adaptable.encode_item(item, False)
        found = adaptable.score(adaptable.start(), *encoded)
        features = {**{name: np.repeat(value, 3, axis=0) for name, value in user.items()}, **item}
        names = getattr(model, "_inputs_struct", None) or features
        np.testing.assert_allclose(found, model({name: features[name] for name in names})[:, 0], rtol=1e-5)
