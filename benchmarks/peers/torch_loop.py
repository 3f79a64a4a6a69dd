"""MAML as learn2learn's users write it, in PyTorch alone: a Python loop over the tasks, each with its own graph.

learn2learn clones the modules of a model for every task. Here the adapted weights are plain tensors: less to do.
"""

from typing import Any

from benchmarks.peers import worker
from benchmarks.peers.problem import BETAS, EPSILON, INNER_LEARNING_RATE, LEARNING_RATE, Batch, Shape, Weights

try:
    import torch
except ModuleNotFoundError as error:
    raise ImportError("This peer needs PyTorch: pip install .[peers]") from error


def predict(weights: Any, x: torch.Tensor) -> torch.Tensor:
    w1, b1, w2, b2, w3, b3 = weights
    hidden = torch.relu(torch.addmm(b1, x, w1))
    hidden = torch.relu(torch.addmm(b2, hidden, w2))
    return torch.addmm(b3, hidden, w3)[:, 0]


def error(weights: Any, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.mse_loss(predict(weights, x), y)


class Peer:
    """Each task's query error goes backward at once, as in learn2learn's examples: one graph in memory, not `T`."""

    name = "PyTorch, loop over tasks"
    version = torch.__version__

    def __init__(self, weights: Weights, shape: Shape):
        self._inner_steps = shape.inner_steps
        self._weights = [torch.tensor(w, requires_grad=True) for w in weights]
        self._optimizer = torch.optim.Adam(self._weights, LEARNING_RATE, BETAS, EPSILON, fused=True)

    def put(self, batch: Batch) -> Batch:
        return Batch(*map(torch.as_tensor, batch))

    def step(self, batch: Batch) -> float:
        loss = self._backward(self.put(batch))
        self._optimizer.step()
        return loss

    def meta_gradient(self, batch: Batch) -> tuple[float, Weights]:
        return self._backward(self.put(batch)), [w.grad.numpy().copy() for w in self._weights]

    def weights(self) -> Weights:
        return [w.detach().numpy().copy() for w in self._weights]

    def _backward(self, batch: Batch) -> float:
        """Leaves the gradients with the weights; returns the loss."""
        self._optimizer.zero_grad()
        tasks, total = len(batch.support_y), 0.0
        for support_x, support_y, query_x, query_y in zip(*batch, strict=True):
            adapted = self._weights
            for _ in range(self._inner_steps):
                gradients = torch.autograd.grad(error(adapted, support_x, support_y), adapted, create_graph=True)
                adapted = [w - INNER_LEARNING_RATE * g for w, g in zip(adapted, gradients, strict=True)]
            loss = error(adapted, query_x, query_y) / tasks
            loss.backward()
            total += loss.item()
        return total


WAYS: dict[str, type[worker.Peer]] = {"loop": Peer}

if __name__ == "__main__":
    worker.main(WAYS)
