import keras
import numpy as np
import pytest
import tensorflow as tf

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
