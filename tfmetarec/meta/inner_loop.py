"""Adapting by gradient descent on the support: what MAML and its relatives have in common."""

import re
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfmetarec.meta import losses
from tfmetarec.meta.learner import MetaLearner, OuterLoss
from tfmetarec.meta.paths import Dense, Step, TaskRows, Weights
from tfmetarec.meta.recompute import recomputed

LEARNED = (None, "scalar", "layer", "parameter")


class GradientLearner(MetaLearner):
    """Adapts by a few steps of gradient descent on the support.

    Args:
        model: `keras.Model`, built. Maps a dict of `(batch, ...)` features to `(batch, 1)` scores.
        inner_steps: int, at least 1. Gradient steps per task in training. Defaults to 1.
        inner_learning_rate: float, greater than 0, or a dict of them by a regular expression that finds the paths
            of variables. Where it starts, if it is learned. Defaults to 0.01.
        adaptation_steps: int, at least 1. Gradient steps at adaptation. Defaults to `inner_steps`.
        learned_rate: whether the outer loop learns the inner rates too, as logarithms, so that they stay
            positive: "scalar" (one), "layer" (one for each layer), "parameter" (one for each number), or `None`.
        rate_per_step: bool. Whether each step has rates of its own; steps beyond `inner_steps` take the last
            one's. Needs `learned_rate`. Defaults to `False`.
        shrinkage: float, at least 0. The inner loss is the sum over the support divided by its length plus
            this number, as if so many more interactions agreed with the starting point: one interaction then
            moves a user less than twenty do. Defaults to 0, the plain mean of the papers.
        inner_clipnorm: float, greater than 0. A task's gradient, over all that adapts, is shortened to this length.
            Defaults to `None`: never.
        inner_loss: "sampled_softmax", a `SampledSoftmax`, or any Keras loss, of the support. Defaults to the loss that
            was compiled.
        inner_dropout: bool. Whether dropout is on, while training descends, in the part that adapts. Only where
            Dense layers are all that adapts. Defaults to `False`.
        recompute: bool. Whether training computes each inner step twice rather than keep what its derivative needs:
            memory then hardly grows with the number of steps, except by each step's weights. It pays where rows
            (negatives among them) outweigh weights. Not with `inner_dropout`. Defaults to `False`.
        **options: of `MetaLearner`.

    Raises:
        ValueError: for an option out of range, or a regular expression that finds nothing.

    Reference: rates by layer and step as in [Antoniou et al., 2019](https://arxiv.org/abs/1810.09502), section 3.
    """

    second_order = False  # Whether the outer gradient sees through the inner steps.

    def __init__(
        self,
        model: keras.Model,
        *,
        inner_steps: int = 1,
        inner_learning_rate: float | dict[str, float] = 0.01,
        adaptation_steps: int | None = None,
        learned_rate: str | None = None,
        rate_per_step: bool = False,
        shrinkage: float = 0.0,
        inner_clipnorm: float | None = None,
        inner_loss: Any = None,
        inner_dropout: bool = False,
        recompute: bool = False,
        **options: Any,
    ):
        super().__init__(model, **options)
        for name, steps in (("inner_steps", inner_steps), ("adaptation_steps", adaptation_steps)):
            if steps is not None and steps < 1:
                raise ValueError(f"`{name}` must be at least 1. Received: {name}={steps}")
        if not shrinkage >= 0:
            raise ValueError(f"`shrinkage` must be at least 0. Received: shrinkage={shrinkage}")
        if inner_clipnorm is not None and not inner_clipnorm > 0:
            raise ValueError(f"`inner_clipnorm` must be greater than 0. Received: inner_clipnorm={inner_clipnorm}")
        if learned_rate not in LEARNED:
            raise ValueError(
                f"`learned_rate` must be 'scalar', 'layer', 'parameter' or None. "
                f"Received: learned_rate={learned_rate!r}"
            )
        if rate_per_step and learned_rate is None:
            raise ValueError("`rate_per_step` needs `learned_rate`: fixed rates are the same at every step.")
        if inner_dropout and not isinstance(self._path, Dense):
            raise ValueError(
                "`inner_dropout` needs the engine of models of which only Dense layers adapt: under "
                f"`tf.vectorized_map` all tasks would drop the same. Received: {type(model).__name__}"
            )
        if inner_dropout and not self._cut.has_dropout:
            raise ValueError(
                "`inner_dropout` needs dropout among the layers that run under tasks' own weights. "
                f"Received: {type(model).__name__}"
            )
        if inner_dropout and recompute:
            raise ValueError(
                "`inner_dropout` and `recompute` exclude each other: a step repeated drops something else."
            )
        self.inner_steps, self.inner_learning_rate = inner_steps, inner_learning_rate
        self.adaptation_steps, self.learned_rate, self.rate_per_step = adaptation_steps, learned_rate, rate_per_step
        self.shrinkage, self.inner_clipnorm = shrinkage, inner_clipnorm
        self.inner_loss = None if inner_loss is None else losses.resolve(inner_loss, self.feedback)
        self.inner_dropout, self.recompute = inner_dropout, recompute
        self._initial_rates()  # Refuses what cannot be.
        self._log_rates: list[list[keras.Variable]] = self._build_rates()

    # -- inner learning rates ------------------------------------------------------------------------------

    def _initial_rates(self) -> list[float]:
        """Where the rate of each adapted variable starts."""
        given, variables = self.inner_learning_rate, self._cut.variables
        by_pattern = given if isinstance(given, dict) else {"": given}
        for pattern, rate in by_pattern.items():
            if not (isinstance(rate, int | float) and 0 < rate < np.inf):
                raise ValueError(
                    f"`inner_learning_rate` must be greater than 0 and finite. Received: inner_learning_rate={given}"
                )
            if not any(re.search(pattern, variable.path) for variable in variables):
                paths = ", ".join(variable.path for variable in variables)
                raise ValueError(f"`inner_learning_rate` {pattern!r} finds none of the variables that adapt: {paths}.")
        rates = []
        for variable in variables:
            found = [rate for pattern, rate in by_pattern.items() if re.search(pattern, variable.path)]
            if len(found) != 1:
                raise ValueError(
                    f"`inner_learning_rate` must find each variable that adapts once. {variable.path} is found by "
                    f"{len(found)} of: {', '.join(map(repr, by_pattern))}."
                )
            rates.append(float(found[0]))
        return rates

    def _build_rates(self) -> list[list[keras.Variable]]:
        """By step, the logarithm of the rate of each adapted variable; variables of one layer may share it."""
        if self.learned_rate is None:
            return []
        log_rates = []
        layers = self._cut.inner._flatten_layers()
        owner = {id(variable): id(layer) for layer in layers for variable in layer._trainable_variables}
        for step in range(self.inner_steps if self.rate_per_step else 1):
            made: dict[Any, keras.Variable] = {}
            row = []
            for variable, rate in zip(self._cut.variables, self._initial_rates(), strict=True):
                # Variables that start with different rates never share one.
                group = {"scalar": rate, "layer": (owner[id(variable)], rate), "parameter": id(variable)}[
                    self.learned_rate
                ]
                if group not in made:
                    shape = variable.shape if self.learned_rate == "parameter" else ()
                    made[group] = self.add_weight(
                        shape,
                        keras.initializers.Constant(float(np.log(rate))),
                        name=f"log_rate_{step}_{len(made)}",
                    )
                row.append(made[group])
            log_rates.append(row)
        return log_rates

    def inner_rates(self, step: int) -> list[tf.Tensor]:
        """The rate of each adapted variable at one step: scalars, or tensors of the variables' shapes."""
        if self.learned_rate is None:
            return [
                tf.constant(rate, v.dtype) for rate, v in zip(self._initial_rates(), self._cut.variables, strict=True)
            ]
        row = self._log_rates[min(step, len(self._log_rates) - 1)]
        return [tf.exp(tf.convert_to_tensor(log_rate.value)) for log_rate in row]

    # -- descending ----------------------------------------------------------------------------------------

    def descend(
        self, rows: TaskRows, training: bool = False, second_order: bool | None = None, **changes: Any
    ) -> list[Weights]:
        """The weights of all tasks before and after each gradient step, in the form of the engine.

        Args:
            rows: the encoded support.
            training: whether the result will be differentiated for the outer step.
            second_order: whether through the steps themselves. Defaults to the algorithm's own.
            **changes: to `paths.Step`.
        """
        steps = self.inner_steps if training or self.adaptation_steps is None else self.adaptation_steps
        second_order = self.second_order if second_order is None else second_order
        points = [self._path.start()]
        for step in range(steps):
            how = Step(
                self.inner_loss or self.task_loss,
                self.inner_rates(step),
                second_order=second_order if training else False,
                shrinkage=self.shrinkage,
                clipnorm=self.inner_clipnorm,
                dropout=self.inner_dropout and training,
                same_rows=True,
            )._replace(**changes)
            points.append(self._step(points[-1], rows, how, self.recompute and training))
        return points

    def _step(self, weights: Weights, rows: TaskRows, how: Step, recompute: bool) -> Weights:
        if not recompute:
            return self._path.step(weights, rows, how)

        def step(weights: Weights, rows: TaskRows, rates: list[tf.Tensor]) -> Weights:
            return self._path.step(weights, rows, how._replace(rates=rates))

        return recomputed(step, weights, rows, how.rates)

    def adapt_rows(self, rows: TaskRows, training: bool = False) -> list[tf.Tensor]:
        return self._path.formed(self.descend(rows, training)[-1], tf.shape(rows.label)[0])

    def outer_loss(self, support: TaskRows, query: TaskRows) -> OuterLoss:
        weights = self.descend(support, training=True)[-1]
        loss, scores = self._path.losses(weights, query, self.task_loss)
        return OuterLoss(tf.reduce_mean(loss), tf.reduce_mean(loss), scores)

    # -- Keras ---------------------------------------------------------------------------------------------

    def get_config(self) -> dict[str, Any]:
        names = ("inner_steps", "inner_learning_rate", "adaptation_steps", "learned_rate", "rate_per_step")
        names += ("shrinkage", "inner_clipnorm", "inner_loss", "inner_dropout", "recompute")  # type: ignore[assignment]
        own = {name: getattr(self, name) for name in names}
        if self.inner_loss is not None:
            own["inner_loss"] = keras.saving.serialize_keras_object(self.inner_loss)
        return {**super().get_config(), **own}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> "MetaLearner":
        config = dict(config)
        if isinstance(config.get("inner_loss"), dict):
            config["inner_loss"] = keras.saving.deserialize_keras_object(config["inner_loss"])
        return super().from_config(config, custom_objects)
