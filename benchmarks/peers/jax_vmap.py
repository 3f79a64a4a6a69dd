"""MAML in JAX: a task is a function, `jax.vmap` makes it one of many tasks, `jax.jit` compiles the whole step.

`ScanPeer` differs in one thing: `jax.lax.scan` takes the tasks one after the other, adding up their gradients. On a
CPU it has far less memory to go through once the weights of all tasks together no longer fit into a cache.
"""

from functools import partial
from typing import Any

import numpy as np

from benchmarks.peers import worker
from benchmarks.peers.problem import BETAS, EPSILON, INNER_LEARNING_RATE, LEARNING_RATE, Batch, Shape, Weights

try:
    import jax
    import jax.numpy as jnp
except ModuleNotFoundError as error:
    raise ImportError("This peer needs JAX: pip install .[peers]") from error


def predict(weights: Any, x: jax.Array) -> jax.Array:
    w1, b1, w2, b2, w3, b3 = weights
    hidden = jax.nn.relu(x @ w1 + b1)
    hidden = jax.nn.relu(hidden @ w2 + b2)
    return (hidden @ w3 + b3)[:, 0]


def error(weights: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.mean((predict(weights, x) - y) ** 2)


def task_loss(weights: Any, task: Batch, inner_steps: int) -> jax.Array:
    """The query error of one task after its inner steps."""
    for _ in range(inner_steps):  # Unrolled by the tracer; `lax.scan` compiles sooner and runs no faster.
        gradients = jax.grad(error)(weights, task.support_x, task.support_y)
        weights = [w - INNER_LEARNING_RATE * g for w, g in zip(weights, gradients, strict=True)]
    return error(weights, task.query_x, task.query_y)


def vmapped(weights: Any, batch: Batch, inner_steps: int) -> tuple[jax.Array, Any]:
    """The mean loss of all tasks and its gradients, the tasks side by side.

    The mean is taken over the gradients of each task: differentiating the mean of the losses is the same, and slower.
    """
    of_task = jax.value_and_grad(partial(task_loss, inner_steps=inner_steps))
    return jax.tree.map(lambda each: jnp.mean(each, 0), jax.vmap(of_task, in_axes=(None, 0))(weights, batch))


def scanned(weights: Any, batch: Batch, inner_steps: int) -> tuple[jax.Array, Any]:
    """The mean loss of all tasks and its gradients, one task after the other."""
    of_task = jax.value_and_grad(partial(task_loss, inner_steps=inner_steps))

    def add(total: Any, task: Batch) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, of_task(weights, task)), None

    nothing = (jnp.zeros(()), [jnp.zeros_like(w) for w in weights])
    total, _ = jax.lax.scan(add, nothing, batch)
    return jax.tree.map(lambda each: each / len(batch.support_y), total)


def adam(gradients: Any, state: Any) -> Any:
    """One step of Adam; the state is weights, first moments, second moments and the number of steps."""
    weights, first, second, count = state
    count += 1
    first = [BETAS[0] * m + (1 - BETAS[0]) * g for m, g in zip(first, gradients, strict=True)]
    second = [BETAS[1] * v + (1 - BETAS[1]) * g * g for v, g in zip(second, gradients, strict=True)]
    rate, scale = LEARNING_RATE / (1 - BETAS[0] ** count), 1 / (1 - BETAS[1] ** count)
    moves = [rate * m / (jnp.sqrt(scale * v) + EPSILON) for m, v in zip(first, second, strict=True)]
    return [w - move for w, move in zip(weights, moves, strict=True)], first, second, count


class Peer:
    """Tasks side by side."""

    name = "JAX, vmap + jit"
    version = jax.__version__
    meta_gradients = staticmethod(vmapped)

    def __init__(self, weights: Weights, shape: Shape):
        def step(state: Any, batch: Batch) -> tuple[Any, jax.Array]:
            loss, gradients = gradients_of(state[0], batch)
            return adam(gradients, state), loss

        gradients_of = partial(self.meta_gradients, inner_steps=shape.inner_steps)
        self._gradients = jax.jit(gradients_of)
        self._step = jax.jit(step, donate_argnums=0)
        own = [jnp.array(w) for w in weights]  # Copies: what is donated must not be the caller's.
        first, second = ([jnp.zeros_like(w) for w in own] for _ in range(2))
        self._state = (own, first, second, jnp.zeros(()))

    def put(self, batch: Batch) -> Batch:
        return jax.block_until_ready(jax.device_put(batch))

    def step(self, batch: Batch) -> float:
        self._state, loss = jax.block_until_ready(self._step(self._state, batch))
        return float(loss)

    def meta_gradient(self, batch: Batch) -> tuple[float, Weights]:
        loss, gradients = self._gradients(self._state[0], batch)
        return float(loss), [np.array(g) for g in gradients]

    def weights(self) -> Weights:
        return [np.array(w) for w in self._state[0]]


class ScanPeer(Peer):
    """Tasks one after the other."""

    name = "JAX, scan + jit"
    meta_gradients = staticmethod(scanned)


WAYS: dict[str, type[worker.Peer]] = {"vmap": Peer, "scan": ScanPeer}

if __name__ == "__main__":
    worker.main(WAYS)
