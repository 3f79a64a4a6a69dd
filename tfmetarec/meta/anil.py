"""Almost no inner loop."""

from typing import Any

import keras

from tfmetarec.meta.inner_loop import GradientLearner


@keras.saving.register_keras_serializable(package="tfmetarec")
class ANIL(GradientLearner):
    """MAML whose inner loop moves only the last layer; everything below is learned across tasks.

    Most of what MAML learns is a representation that adapting hardly touches, so leaving it alone costs
    little and makes adapting cheaper.

    Args: as `MAML`, with `adapted="last"` by default.

    Reference: [Raghu et al., 2020](https://arxiv.org/abs/1909.09157), section 4.
    """

    second_order = True

    def __init__(self, model: keras.Model, *, adapted: str | None = "last", **options: Any):
        super().__init__(model, adapted=adapted, **options)
