import numpy as np
import pytest

from tfmetarec.meta import ANIL, MAML
from tfmetarec.meta.boil import BOIL
from tfmetarec.models import Ranker, TwoTower


def test_everything_but_the_last_layer_moves(explicit):
    model = Ranker(explicit.vocabulary, 3, hidden=(5, 6))
    moving = {variable.path for variable in BOIL(model).adapted_variables}
    last = {variable.path for variable in model.head.tower.dense[-1].trainable_variables}
    assert len(last) == 2
    assert moving == {variable.path for variable in MAML(model).adapted_variables} - last


@pytest.mark.parametrize("user_hidden", [(5,), (5, 4)])
def test_it_moves_what_anil_leaves(explicit, user_hidden):
    model = TwoTower(explicit.vocabulary, 3, user_hidden=user_hidden)
    body, last, everything = (
        {variable.path for variable in algorithm(model).adapted_variables} for algorithm in (BOIL, ANIL, MAML)
    )
    assert body | last == everything
    assert not body & last


def test_adapting_gives_weights_for_the_body_alone(explicit, own_model, first_batch):
    learner = BOIL(own_model(explicit.vocabulary), inner_learning_rate=0.1)
    state = learner.adapt(first_batch(explicit.episodes).support)
    assert [tuple(weight.shape) for weight in state.weights] == [(6, 7, 4), (6, 4)]
    assert not np.allclose(state.weights[0][1], state.weights[0][2])


@pytest.mark.usefixtures("float64")
def test_the_meta_gradient_is_exact_with_only_the_body_moving(explicit, own_model, first_batch, by_the_book):
    model = by_the_book.randomise(own_model(explicit.vocabulary))
    episode = by_the_book.in_float64(first_batch(explicit.episodes))
    learner = BOIL(model, vocabulary=explicit.vocabulary, inner_steps=2, inner_learning_rate=0.2)
    moves = ["hidden" in variable.path for variable in model.trainable_variables]
    expected = by_the_book.meta_gradient(model, episode, moves, steps=2, rate=0.2)
    by_the_book.assert_close(by_the_book.compiled(learner, episode)(), expected)


def test_a_model_with_nothing_below_its_last_layer_is_refused(explicit):
    with pytest.raises(
        ValueError, match=r"`adapted` must match at least one trainable variable of: .* Received: 'body'"
    ):
        BOIL(Ranker(explicit.vocabulary, 3, hidden=()))
