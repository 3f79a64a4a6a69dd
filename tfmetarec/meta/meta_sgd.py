"""MAML that learns how far to go along each coordinate."""

from typing import Any

import keras

from tfmetarec.meta.inner_loop import GradientLearner


@keras.saving.register_keras_serializable(package="tfmetarec")
class MetaSGD(GradientLearner):
    """MAML with a learned step size for every number that adapts: direction and speed of adapting are learned too.

    `theta_t = theta - alpha * grad L_t(theta)`, elementwise, with `alpha` meta-learned beside `theta`. Here `alpha`
    is the exponential of what is learned, so it stays positive: a step never climbs.

    One step often does what takes MAML several. It costs as many more variables as adapt, and since an elementwise
    product has no low rank, kernels are formed for each task.

    Args: as `MAML`, with `learned_rate="parameter"` by default; `inner_learning_rate` is where each rate starts.

    Reference: [Li et al., 2017](https://arxiv.org/abs/1707.09835), equation 2 and algorithm 1.
    """

    second_order = True

    def __init__(self, model: keras.Model, *, learned_rate: str | None = "parameter", **options: Any):
        super().__init__(model, learned_rate=learned_rate, **options)
