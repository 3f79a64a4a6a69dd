"""MAML without second derivatives."""

import keras

from tfmetarec.meta.inner_loop import GradientLearner


@keras.saving.register_keras_serializable(package="tfmetarec")
class FirstOrderMAML(GradientLearner):
    """MAML that treats the inner gradients as constants: cheaper per step, and less exact.

    The outer gradient is the gradient of the query loss at the adapted weights. Where the inner loss is linear
    in the weights the two are the same.

    Args: as `MAML`.

    Reference: [Finn et al., 2017](https://arxiv.org/abs/1703.03400), section 5.2.
    """

    second_order = False
