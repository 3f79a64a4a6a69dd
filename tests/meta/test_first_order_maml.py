import pytest

from tfmetarec.meta import FirstOrderMAML
from tfmetarec.models import TwoTower


@pytest.mark.parametrize("feedback", [pytest.param("explicit", marks=pytest.mark.slow), "implicit"])
@pytest.mark.usefixtures("float64")
def test_the_outer_gradient_takes_the_inner_ones_as_constants(settings, first_batch, by_the_book, feedback):
    setting = settings[feedback]
    model = by_the_book.randomise(TwoTower(setting.vocabulary, 3, item_hidden=(), dropout=0.0, id_dropout=0.0))
    episode = by_the_book.in_float64(first_batch(setting.episodes))
    learner = FirstOrderMAML(model, inner_steps=2, inner_learning_rate=0.2)
    found, moves = by_the_book.compiled(learner, episode)(), by_the_book.head_moves(model)
    options = {"steps": 2, "rate": 0.2}
    expected = by_the_book.meta_gradient(model, episode, moves, second_order=False, **options)
    exact = by_the_book.meta_gradient(model, episode, moves, **options)
    by_the_book.assert_close(found, expected)
    assert found[0] == pytest.approx(exact[0])
    with pytest.raises(AssertionError):
        by_the_book.assert_close(found, exact)
