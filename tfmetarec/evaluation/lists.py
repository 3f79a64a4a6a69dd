"""What recommended lists are like besides being right: how rare, how unlike each other, how well spread.

Letters for shapes: `T` users, `k` list length, `I` items, row 0 included, `C` classes.
"""

from typing import Any

import numpy as np
import scipy.sparse

from tfmetarec.data.vocabulary import Vocabulary
from tfmetarec.evaluation.checks import check_rows, two_axes


def novelty(top: np.ndarray, share: np.ndarray) -> np.ndarray:
    """How surprising a user's list is: the mean of -log2 of the share of training users who have each item.

    An item that every second user has counts 1 bit, one that every thousandth has about 10.

    Args:
        top: `(T, k)` int rows. Row 0 is no item and does not count.
        share: `(I,)` float, above 0 and at most 1, the share of training users by row; what row 0 has is not read.

    Returns:
        `(T,)` float64, at least 0; NaN for empty lists.

    Raises:
        ValueError: if `share` is out of range, or a row is not below I.

    Example:
    >>> novelty(np.array([[1, 2], [2, 0]]), np.array([1, 0.5, 0.25]))
    array([1.5, 2. ])

    Reference: [Zhou et al., 2010](https://doi.org/10.1073/pnas.1000488107);
    [Vargas and Castells, 2011](https://doi.org/10.1145/2043932.2043955)
    """
    share = np.asarray(share, np.float64)
    if share.ndim != 1:
        raise ValueError(f"`share` must be a vector. Received: shape {share.shape}")
    if (wrong := ~((share[1:] > 0) & (share[1:] <= 1))).any():
        raise ValueError(f"`share` must hold numbers above 0 and at most 1. Received: {share[1:][wrong][0]}")
    top, real = _rows(top, len(share))
    surprise = -np.log2(np.where(np.arange(len(share)) > 0, share, 1))
    return _mean((surprise[top] * real).sum(axis=1), real.sum(axis=1))


def diversity(top: np.ndarray, vectors: Any) -> np.ndarray:
    """How unlike each other the items of a user's list are: 1 less the mean cosine over its pairs.

    Args:
        top: `(T, k)` int rows. Row 0 is no item and does not count.
        vectors: `(I, D)` float, dense or a sparse matrix of SciPy: item vectors, or classes such as `class_vectors`
            makes. A vector of zeros is like nothing.

    Returns:
        `(T,)` float64 between 0 and 2, at most 1 where no vector has a negative number; NaN for lists of fewer than
        two items.

    Raises:
        ValueError: if `vectors` is no matrix of finite numbers, or a row is not below I.

    Example:
    >>> diversity(np.array([[1, 2], [1, 3], [1, 0]]), np.array([[0, 0], [1, 0], [2, 0], [0, 1]]))
    array([ 0.,  1., nan])

    Reference: [Ziegler et al., 2005](https://doi.org/10.1145/1060745.1060754)
    """
    vectors = vectors if scipy.sparse.issparse(vectors) else np.asarray(vectors)
    if vectors.ndim != 2:
        raise ValueError(f"`vectors` must have two axes, items first. Received: shape {vectors.shape}")
    vectors = scipy.sparse.csr_array(vectors, dtype=np.float64)
    if not np.isfinite(vectors.data).all():
        raise ValueError(f"`vectors` must be finite. Received: {vectors.data[~np.isfinite(vectors.data)][0]}")
    top, real = _rows(top, vectors.shape[0])
    length = np.sqrt(vectors.multiply(vectors).sum(axis=1))
    unit = scipy.sparse.diags_array(_mean(np.ones_like(length), length, empty=0.0)) @ vectors
    # The squared length of the sum has every pair twice, and every item with itself: no pair need be formed.
    user, place = np.nonzero(real)
    member = scipy.sparse.csr_array((np.ones(len(user)), (user, top[user, place])), (len(top), vectors.shape[0]))
    total = member @ unit
    squared = total.multiply(total).sum(axis=1)
    alone = member @ (length > 0).astype(np.float64)
    count = real.sum(axis=1)
    return 1 - _mean(squared - alone, count * (count - 1.0))


def gini(top: np.ndarray, n_items: int) -> float:
    """How unevenly the places of all lists fall on the catalogue: 0 if on all items alike, near 1 if on few.

    Args:
        top: `(T, k)` int rows. Row 0 is no item.
        n_items: int, at least 2. Size of the items' vocabulary, row 0 included.

    Raises:
        ValueError: if `n_items` is below 2, a row is outside the catalogue, or all lists are empty.

    Example:
    >>> gini(np.array([[1, 2], [3, 4]]), n_items=5), gini(np.array([[1], [1]]), n_items=5)
    (0.0, 0.75)
    """
    if n_items < 2:
        raise ValueError(f"`n_items` must be at least 2. Received: n_items={n_items}")
    top, real = _rows(top, n_items)
    if not real.any():
        raise ValueError("`top` must hold at least one item. Received: none")
    shown = np.sort(np.bincount(top[real], minlength=n_items)[1:]).astype(np.float64)
    n = n_items - 1
    return float((2 * np.arange(1, n + 1) - n - 1) @ shown / (n * shown.sum()))


def class_vectors(vocabulary: Vocabulary) -> scipy.sparse.csr_array | None:
    """The categories of catalogue items as sparse vectors, each of their features with the same weight.

    The cosine of two items is then the mean over features of the overlap of their categories: 1 for a feature in
    which they agree. Items are alike by what they are, not by what a model makes of them, so that all learners and
    floors are measured alike.

    Args:
        vocabulary: of the catalogue.

    Returns:
        `(I, C)`, row 0 empty; `None` if items have no categories.
    """
    parts, catalogue = [], vocabulary.catalogue
    for spec in vocabulary.specs.item:
        if spec.kind not in ("category", "category_list"):
            continue
        rows = catalogue[spec.name].reshape(vocabulary.n_items, -1)
        item, place = np.nonzero(rows)
        ones = scipy.sparse.csr_array((np.ones(len(item)), (item, rows[item, place])), (len(rows), spec.size))
        length = np.sqrt(ones.multiply(ones).sum(axis=1))
        parts.append(scipy.sparse.diags_array(_mean(np.ones_like(length), length, empty=0.0)) @ ones)
    return scipy.sparse.csr_array(scipy.sparse.hstack(parts)) if parts else None


def _rows(top: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """`top` as an array, and which of its places hold an item."""
    top = two_axes("top", top)
    check_rows("top", top, size)
    return top, top > 0


def _mean(total: np.ndarray, count: np.ndarray, empty: float = np.nan) -> np.ndarray:
    return np.divide(total, count, out=np.full(len(total), empty), where=count > 0)
