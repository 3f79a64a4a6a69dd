import keras
import numpy as np
import polars as pl
import pytest

import tfmetarec as tmr
from tfmetarec.transfer.cross_domain import Domains
from tfmetarec.transfer.fine_tuning import FineTuning, freeze, named_variables, thaw


def learner(vocabulary):
    return tmr.meta.Ridge(tmr.models.TwoTower(vocabulary, 3, dropout=0.0))


@pytest.fixture(scope="module")
def shop():
    data = tmr.data.load("synthetic", n_users=30, n_items=32, n_groups=2, interactions_per_user=10, feedback="explicit")
    odd = pl.col("item_id") % 2 == 1
    return data.filter(odd), data.filter(~odd)


class Watched:
    """Learners as `learner` makes them, which remember their weights at the start of every `fit`."""

    def __init__(self):
        self.weights = []

    def __call__(self, vocabulary):
        made = learner(vocabulary)
        fit = made.fit

        def watched(*arguments, **options):
            self.weights.append({path: v.numpy().copy() for path, v in named_variables(made.model).items()})
            self.trainable = {path for path, v in named_variables(made.model).items() if v.trainable}
            return fit(*arguments, **options)

        made.fit = watched
        return made


def test_frozen_variables_do_not_move_in_the_target_and_others_do(shop):
    watched = Watched()
    options = {"source_epochs": 1, "epochs": 1, "tasks_per_batch": 8, "support": (0, 4), "query": 3}
    method = FineTuning(watched, frozen="item_encoder", **options).fit(Domains.of(*shop))
    start, after_source = watched.weights
    end = {path: v.numpy() for path, v in named_variables(method.learner.model).items()}
    encoder = [path for path in start if "item_encoder" in path]
    assert any(not np.array_equal(start[path], after_source[path]) for path in encoder)
    assert all(np.array_equal(after_source[path], end[path]) for path in encoder)
    others = [path for path in start if "item_encoder" not in path]
    assert any(not np.array_equal(after_source[path], end[path]) for path in others)
    assert not watched.trainable & set(encoder)
    assert all(variable.trainable for variable in named_variables(method.learner.model).values())


@pytest.mark.slow
def test_what_was_frozen_moves_after_it_is_thawed(shop):
    watched = Watched()
    options = {"source_epochs": 1, "epochs": 2, "tasks_per_batch": 8, "support": (0, 4), "query": 3}
    method = FineTuning(watched, frozen="item_encoder", thaw_after=1, **options).fit(Domains.of(*shop))
    _, after_source, thawed = watched.weights
    end = {path: v.numpy() for path, v in named_variables(method.learner.model).items()}
    encoder = [path for path in end if "item_encoder" in path]
    assert all(np.array_equal(after_source[path], thawed[path]) for path in encoder)
    assert any(not np.array_equal(thawed[path], end[path]) for path in encoder)


def test_domains_that_share_features_alone_are_crossed_too():
    data = tmr.data.load("synthetic", n_users=30, n_items=32, n_groups=2, interactions_per_user=10, feedback="explicit")
    odd, first = pl.col("item_id") % 2 == 1, pl.col("user_id") < 15
    domains = Domains.of(data.filter(odd & first), data.filter(~odd & ~first))
    assert not len(domains.shared_users)
    options = {"source_epochs": 1, "epochs": 1, "tasks_per_batch": 8, "support": (0, 4), "query": 3}
    method = FineTuning(learner, **options).fit(domains)
    assert np.isfinite(method.score(method.adapt(domains.support([0, 1])), domains.candidates())).all()


def test_what_was_never_trained_is_not_thawed():
    model = keras.Sequential(
        [keras.Input((2,)), keras.layers.BatchNormalization(name="norm"), keras.layers.Dropout(0.5)]
    )
    assert thaw(model) == ["norm/gamma", "norm/beta"]
    assert len(model.trainable_variables) == 2


def test_layers_of_layers_have_the_names_of_both(shop):
    model = tmr.models.TwoTower(tmr.data.Vocabulary.fit(shop[0]), 3)
    paths = named_variables(model)
    assert len(paths) == len(model.trainable_variables)
    assert {"item_encoder/id_vector/embeddings", "head/level/kernel"} <= set(paths)


def test_layers_are_frozen_and_thawed_by_name():
    layers = [keras.layers.Dense(3, name="body"), keras.layers.Dense(1, name="top")]
    model = keras.Sequential([keras.Input((2,)), *layers])
    assert freeze(model, "body|top") == ["body/kernel", "body/bias", "top/kernel", "top/bias"]
    assert model.trainable_variables == []
    assert len(thaw(model, "body/kernel")) == 1
    assert [variable is layers[0].kernel for variable in model.trainable_variables] == [True]
    assert len(thaw(model)) == 4
    with pytest.raises(ValueError, match=r"`pattern` must match the path of a variable, such as .*\. Received: 'bodi'"):
        freeze(model, "bodi")
