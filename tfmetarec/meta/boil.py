"""No inner loop for the last layer."""

from typing import Any

import keras

from tfmetarec.meta.inner_loop import GradientLearner


@keras.saving.register_keras_serializable(package="tfmetarec")
class BOIL(GradientLearner):
    """MAML whose inner loop moves everything but the last layer: the counterpart of ANIL.

    With the last layer held, a task can only fit by changing its representation, which helps where tasks differ in
    what matters about an item rather than in how much. It needs a part that adapts with at least two layers, such as
    the MLP of a `Ranker` or `TwoTower(user_hidden=...)`.

    Args: as `MAML`, with `adapted="body"` by default.

    Raises:
        ValueError: if a `TwoTower` has no hidden layers on the user side.

    Reference: [Oh et al., 2021](https://arxiv.org/abs/2008.08882), section 3.
    """

    second_order = True

    def __init__(self, model: keras.Model, *, adapted: str | None = "body", **options: Any):
        super().__init__(model, adapted=adapted, **options)
        if all(variable.path.endswith("level/kernel") for variable in self.adapted_variables):
            raise ValueError("BOIL needs a part that adapts with at least two layers: give the TwoTower `user_hidden`.")
