"""MAML in PyTorch's functional style: `torch.func.grad` adapts one task, `torch.func.vmap` all of them at once.

`CompiledPeer` hands the same function to `torch.compile`, which needs a C++ compiler and takes its time.
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


def mean_loss(weights: Any, batch: Batch, inner_steps: int) -> torch.Tensor:
    """The mean query error of all tasks, each after its inner steps."""

    def task_loss(support_x: Any, support_y: Any, query_x: Any, query_y: Any) -> torch.Tensor:
        adapted = weights
        for _ in range(inner_steps):
            gradients = torch.func.grad(error)(adapted, support_x, support_y)
            adapted = [w - INNER_LEARNING_RATE * g for w, g in zip(adapted, gradients, strict=True)]
        return error(adapted, query_x, query_y)

    return torch.func.vmap(task_loss)(*batch).mean()


class Peer:
    """Op by op, the outer gradient by `backward`: a little faster than `torch.func.grad` around it all."""

    name = "PyTorch, torch.func"
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
        loss = mean_loss(self._weights, batch, self._inner_steps)
        loss.backward()
        return loss.item()


class CompiledPeer(Peer):
    """The loss and its gradients in one compiled function."""

    name = "PyTorch, torch.func + torch.compile"

    def __init__(self, weights: Weights, shape: Shape):
        super().__init__(weights, shape)
        self._gradients = torch.compile(torch.func.grad_and_value(mean_loss))

    def _backward(self, batch: Batch) -> float:
        gradients, loss = self._gradients([w.detach() for w in self._weights], batch, self._inner_steps)
        for weight, gradient in zip(self._weights, gradients, strict=True):
            weight.grad = gradient
        return loss.item()


WAYS: dict[str, type[worker.Peer]] = {"vmap": Peer, "compiled": CompiledPeer}

if __name__ == "__main__":
    worker.main(WAYS)
