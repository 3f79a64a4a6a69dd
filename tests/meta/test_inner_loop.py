import numpy as np
import pytest

from tfmetarec.meta import MAML
from tfmetarec.models import TwoTower


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"inner_steps": 0}, "`inner_steps` must be at least 1. Received: inner_steps=0"),
        (
            {"inner_learning_rate": 0.0},
            "`inner_learning_rate` must be greater than 0 and finite. Received: inner_learning_rate=0.0",
        ),
        ({"inner_learning_rate": float("nan")}, "`inner_learning_rate` must be greater than 0"),
        ({"shrinkage": -1.0}, "`shrinkage` must be at least 0. Received: shrinkage=-1.0"),
        ({"contrast": 0}, "`contrast` must be at least 1. Received: contrast=0"),
    ],
)
def test_options_out_of_range_are_refused(explicit, options, message):
    with pytest.raises(ValueError, match=message):
        MAML(TwoTower(explicit.vocabulary, 3), **options)


def test_shrinkage_makes_a_short_support_move_less(explicit, first_batch):
    model, support = TwoTower(explicit.vocabulary, 3), first_batch(explicit.episodes).support
    moves = {}
    for shrinkage in (0.0, 4.0):
        learner = MAML(model, inner_learning_rate=0.1, shrinkage=shrinkage)
        moved = zip(learner.adapt(support).weights, learner.starting_weights(1), strict=True)
        moves[shrinkage] = [np.asarray(w - s).reshape(6, -1) for w, s in moved]
    # One step on n rows: the mean gradient times n / (n + shrinkage).
    shares = np.array([[n / (n + 4)] for n in support.length])
    for plain, shrunk in zip(moves[0.0], moves[4.0], strict=True):
        np.testing.assert_allclose(shrunk, plain * shares, rtol=1e-3, atol=1e-6)
        assert plain[1:5].any()
