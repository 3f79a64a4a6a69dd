"""Ridge regression on several blocks of features with a penalty for each, and the penalties that foretell best."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.optimize
import scipy.sparse


def conjugate_gradients(
    designs: Sequence[Any], target: np.ndarray, weight: np.ndarray, penalty: np.ndarray, *, iterations: int = 500
) -> list[np.ndarray]:
    """`argmin sum_i weight_i |target_i - sum_f design_f d_f|^2 + sum_f penalty_f |d_f|^2`, a `d_f` for each design.

    Preconditioned by the diagonal, all columns of `target` at once, until the gradient is a millionth of what it was.

    Args:
        designs: matrices `(N, size)`, sparse or not.
        target: `(N, D)`.
        weight: `(N,)`, at least 0.
        penalty: `(F,)`, greater than 0.
        iterations: int. At most so many.

    >>> conjugate_gradients([np.ones((2, 1))], np.array([[1.0], [3.0]]), np.ones(2), np.array([2.0]))
    [array([[1.]])]
    """
    transposed = [design.T if isinstance(design, np.ndarray) else design.T.tocsr() for design in designs]
    sizes = [design.shape[1] for design in designs]
    edges = np.cumsum([0, *sizes])
    parts = [slice(a, b) for a, b in itertools.pairwise(edges)]
    ridge = np.repeat(penalty, sizes)[:, None]
    squares = [np.square(d) if isinstance(d, np.ndarray) else d.multiply(d) for d in designs]
    scale = np.concatenate([np.asarray(square.T @ weight).reshape(-1) for square in squares])[:, None] + ridge

    def back(rows: np.ndarray) -> np.ndarray:
        rows = weight[:, None] * rows
        return np.concatenate([each @ rows for each in transposed])

    solution = np.zeros((edges[-1], target.shape[1]))
    rest = back(target)
    first = np.linalg.norm(rest)
    step = rest / scale
    direction, progress = step, np.sum(rest * step, 0)
    for _ in range(iterations):
        if np.linalg.norm(rest) <= 1e-6 * first:
            break
        ahead = sum(design @ direction[part] for design, part in zip(designs, parts, strict=True))
        curved = back(ahead) + ridge * direction
        far = progress / np.maximum(np.sum(direction * curved, 0), 1e-300)
        solution += far * direction
        rest = rest - far * curved
        step = rest / scale
        before, progress = progress, np.sum(rest * step, 0)
        direction = step + progress / np.maximum(before, 1e-300) * direction
    return [solution[part] for part in parts]


def leave_one_out(designs: Sequence[Any], target: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """The penalties `(F,)` of `conjugate_gradients` under which each row is foretold best by all the others.

    With the Gram matrices `G_f = design_f design_f^T`, `A = sum_f G_f / penalty_f + diag(1 / weight)` and
    `B = A^-1`, the error on row i of the fit to all other rows is `(B target)_i / B_ii`. The weighted sum of its
    squares is lowered by L-BFGS over the logarithms; its derivative by A, with `a = B target` and `e = a / B_ii`, is

        B diag(2 w e a / B_ii^2) B - 2 (B (w e / B_ii)) a^T.

    Memory is F times N times N, so this is for a sample.

    Args:
        designs: matrices `(N, size)`, sparse or not.
        target: `(N, D)`.
        weight: `(N,)`, greater than 0.
    """
    grams = np.stack([_dense(design @ design.T) for design in designs]).astype(np.float32)  # (F, N, N)
    importance = weight / weight.sum()
    flat = grams.reshape(len(grams), -1)
    scale = float(np.sum(importance[:, None] * np.square(target))) or 1.0
    start = np.log(10.0)

    def loss(logarithms: np.ndarray) -> tuple[float, np.ndarray]:
        inverse_penalty = np.exp(-logarithms)
        system = (inverse_penalty.astype(np.float32) @ flat).reshape(grams.shape[1:]).astype(np.float64)
        system[np.diag_indices_from(system)] += 1 / weight
        inverse = np.linalg.inv(system)
        solution, own = inverse @ target, np.diag(inverse)[:, None]
        error = solution / own
        along = 2 * importance[:, None] * error / own
        by_system = (inverse * np.sum(along * solution / own, 1)) @ inverse - (inverse @ along) @ solution.T
        by_penalty = flat @ by_system.reshape(-1).astype(np.float32)
        # A feature that does not matter has no best penalty; it stays near the start.
        kept, pull = 1e-4 * np.mean(np.square(logarithms - start)), 2e-4 * (logarithms - start) / len(logarithms)
        value = float(np.sum(importance[:, None] * np.square(error))) / scale
        return value + float(kept), -by_penalty.astype(np.float64) * inverse_penalty / scale + pull

    bounds = [(np.log(1e-2), np.log(1e5))] * len(designs)
    found = scipy.optimize.minimize(
        loss, np.full(len(designs), start), jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": 40}
    )
    return np.exp(found.x)


def _dense(matrix: Any) -> np.ndarray:
    return matrix.toarray() if scipy.sparse.issparse(matrix) else matrix
