"""MAML whose outer gradient looks at where the inner descent ends, not at how it went there."""

from typing import Any

import keras
import tensorflow as tf

from tfmetarec.meta.inner_loop import GradientLearner
from tfmetarec.meta.learner import OuterLoss
from tfmetarec.meta.paths import TaskRows


@keras.saving.register_keras_serializable(package="tfmetarec")
class IMAML(GradientLearner):
    """Adapts to the minimum of support loss plus `proximal / 2 * |w - theta|^2`, however many steps that takes.

    At that minimum the implicit function theorem gives the meta-gradient, `(I + H / proximal)^-1` times the gradient of
    the query loss, with `H` the Hessian of the support loss; it is solved for by conjugate gradient, from products
    of `H` with vectors. Memory and the cost of the outer step do not depend on the number of inner steps, but the
    gradient is right only as far as the inner descent has arrived.

    Args:
        proximal: float, greater than 0. How strongly a task is held to the start. Defaults to 1.
        solver_steps: int, at least 1. Steps of conjugate gradient. Defaults to 5.
        inner_steps: int, at least 1. Defaults to 10.
        **options: as `MAML`. Rates and clipping change how the descent goes, not its goal, so rates cannot be learned.

    Reference: [Rajeswaran et al., 2019](https://arxiv.org/abs/1909.04630), equations 3 and 6, algorithm 2.
    """

    def __init__(
        self,
        model: keras.Model,
        *,
        proximal: float = 1.0,
        solver_steps: int = 5,
        inner_steps: int = 10,
        **options: Any,
    ):
        super().__init__(model, inner_steps=inner_steps, **options)
        if not proximal > 0:
            raise ValueError(f"`proximal` must be greater than 0. Received: proximal={proximal}")
        if solver_steps < 1:
            raise ValueError(f"`solver_steps` must be at least 1. Received: solver_steps={solver_steps}")
        if self.learned_rate is not None:
            raise ValueError("IMAML cannot learn inner rates: its outer gradient does not see the steps.")
        self.proximal, self.solver_steps = proximal, solver_steps

    def adapt_rows(self, rows: TaskRows, training: bool = False) -> list[tf.Tensor]:
        end = self.descend(rows, training, second_order=False, proximal=self.proximal)[-1]
        return self._path.formed(end, tf.shape(rows.label)[0])

    def outer_loss(self, support: TaskRows, query: TaskRows) -> OuterLoss:
        ends = [tf.stop_gradient(w) for w in self.adapt_rows(support, training=True)]
        with tf.GradientTape() as tape:
            tape.watch(ends)
            loss, scores = self._path.losses(ends, query, self.task_loss)
        of_query = [tf.stop_gradient(g) for g in tape.gradient(loss, ends, unconnected_gradients="zero")]
        solved = self._solve_for(ends, support, of_query)
        # With v what was solved for: d loss - v . d grad_w (support loss) + proximal * v . d start.
        implicit = _dot(solved, self._support_gradient(ends, support))
        start = [tf.convert_to_tensor(variable.value)[None] for variable in self._cut.variables]
        moved_start = self.proximal * _dot(solved, start)
        mean = tf.reduce_mean(loss)
        return OuterLoss(mean + tf.reduce_mean(moved_start - implicit), mean, scores)

    def _support_gradient(self, weights: list[tf.Tensor], support: TaskRows) -> list[tf.Tensor]:
        with tf.GradientTape() as tape:
            tape.watch(weights)
            loss, _ = self._path.losses(weights, support, self.inner_loss or self.task_loss, self.shrinkage)
            loss = tf.reduce_sum(loss)
        return tape.gradient(loss, weights, unconnected_gradients="zero")

    def _solve_for(self, weights: list[tf.Tensor], support: TaskRows, right: list[tf.Tensor]) -> list[tf.Tensor]:
        """`(H + proximal I)^-1 right` of each task by conjugate gradient; a direction of negative curvature ends it."""

        def times(vector: list[tf.Tensor]) -> list[tf.Tensor]:
            with tf.GradientTape() as tape:
                tape.watch(weights)
                gradient = self._support_gradient(weights, support)
            product = tape.gradient(gradient, weights, output_gradients=vector, unconnected_gradients="zero")
            return [h + self.proximal * v for h, v in zip(product, vector, strict=True)]

        # Begin where there is no curvature: `right / proximal`, which is all there is to solve without support.
        solution = [r / self.proximal for r in right]
        residual = [r - p for r, p in zip(right, times(solution), strict=True)]
        direction, squared = residual, _dot(residual, residual)
        going = tf.ones_like(squared, tf.bool)
        for _ in range(self.solver_steps):
            product = times(direction)
            curvature = _dot(direction, product)
            going &= curvature > 0
            step = tf.where(going, tf.math.divide_no_nan(squared, curvature), tf.zeros_like(squared))
            solution = _moved(solution, step, direction)
            residual = _moved(residual, -step, product)
            before, squared = squared, _dot(residual, residual)
            direction = _moved(residual, tf.math.divide_no_nan(squared, before), direction)
        return [tf.stop_gradient(s) for s in solution]

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "proximal": self.proximal, "solver_steps": self.solver_steps}


def _dot(a: list[tf.Tensor], b: list[tf.Tensor]) -> tf.Tensor:
    """Inner product of each task, `(T,)`."""
    return tf.add_n([tf.reduce_sum(x * y, list(range(1, x.shape.rank))) for x, y in zip(a, b, strict=True)])


def _moved(a: list[tf.Tensor], step: tf.Tensor, b: list[tf.Tensor]) -> list[tf.Tensor]:
    """`a + step * b`, with a step for each task."""
    return [x + tf.reshape(step, [-1] + [1] * (x.shape.rank - 1)) * y for x, y in zip(a, b, strict=True)]
