import numpy as np
import pytest

from tfmetarec.meta import ANIL, MAML
from tfmetarec.models import Ranker, TwoTower


def last_dense(model):
    """Whether each variable belongs to the last dense layer of a ranker's MLP."""
    ids = {id(variable) for variable in model.head.tower.dense[-1].trainable_variables}
    return [id(variable) in ids for variable in model.trainable_variables]


@pytest.mark.parametrize("feedback", ["explicit", pytest.param("implicit", marks=pytest.mark.slow)])
@pytest.mark.usefixtures("float64")
def test_the_meta_gradient_is_exact_with_only_the_last_layer_moving(settings, first_batch, by_the_book, feedback):
    setting = settings[feedback]
    model = by_the_book.randomise(Ranker(setting.vocabulary, 3, hidden=(4,), dropout=0.0, id_dropout=0.0))
    episode = by_the_book.in_float64(first_batch(setting.episodes))
    run = by_the_book.compiled(ANIL(model, inner_steps=2, inner_learning_rate=0.2), episode)
    found = run()
    expected = by_the_book.meta_gradient(model, episode, last_dense(model), steps=2, rate=0.2)
    by_the_book.assert_close(found, expected)
    by_the_book.assert_matches_finite_differences(run, model.trainable_variables, found[1])


@pytest.mark.parametrize("hidden", [(), (5,), (5, 6, 7)])
def test_the_layer_that_moves_is_the_last_of_the_mlp(explicit, hidden):
    model = Ranker(explicit.vocabulary, 3, hidden=hidden)
    moving = ANIL(model).adapted_variables
    assert [id(v) for v in moving] == [id(v) for v in model.head.tower.dense[-1].trainable_variables]
    assert moving[0].shape[-1] == 1


def test_without_hidden_layers_the_users_own_level_stays(explicit):
    model = TwoTower(explicit.vocabulary, 3)
    moving = {variable.path for variable in ANIL(model).adapted_variables}
    everything = {variable.path for variable in MAML(model).adapted_variables}
    assert everything - moving == {"level/kernel"}


def test_adapting_gives_weights_for_the_last_layer_alone(explicit, first_batch, own_model):
    model = own_model(explicit.vocabulary)
    state = ANIL(model).adapt(first_batch(explicit.episodes).support)
    assert [tuple(weight.shape) for weight in state.weights] == [(6, 4, 1), (6, 1)]
    assert not np.allclose(state.weights[0][1], state.weights[0][2])


def test_what_moves_can_be_chosen_after_all(explicit):
    model = Ranker(explicit.vocabulary, 3, hidden=(5,))
    assert len(ANIL(model, adapted=None).adapted_variables) == 4
