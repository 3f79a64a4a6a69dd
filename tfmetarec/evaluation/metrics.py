"""What a recommendation or a predicted rating was worth, one number for each user.

Per-user arrays come out and the caller takes the mean: that way two models can be compared user by user (see
`tfmetarec.evaluation.bootstrap`). A metric that is undefined for a user, such as the recall of someone with nothing
to find, is NaN there, so that a mean taken over it shows.

Letters for shapes: `T` users, `N` candidates, `Q` rows a user is judged on, `E` excluded rows, `k` list length.
"""

import numpy as np
from sklearn.metrics import accuracy_score, f1_score, precision_score, recall_score, roc_auc_score

from tfmetarec.evaluation.checks import check_rows, labelled, two_axes


def top_items(
    scores: np.ndarray,
    k: int,
    exclude: np.ndarray | None = None,
    exclude_length: np.ndarray | None = None,
    *,
    seed: int = 0,
) -> np.ndarray:
    """Picks each user's `k` best columns, best first.

    Ties are broken at random, for every user anew: neither the order of the catalogue nor the true labels can help.

    Args:
        scores: `(T, N)` float. Column n is item row n. Minus infinity means "only if nothing else is left".
        k: int, between 1 and N.
        exclude: `(T, E)` int or `None`. Rows that must not be recommended, such as the support.
        exclude_length: `(T,)` int or `None`. How many of the E are real; all of them if `None`.
        seed: int, at least 0. For the ties. Defaults to 0.

    Returns:
        `(T, k)` int64 rows. A place that only an excluded row could fill holds 0, the row of no item.

    Raises:
        ValueError: if shapes disagree, `k` is not between 1 and N, a score is NaN or a row is not a column.

    Example:
    >>> top_items(np.array([[-np.inf, 0.5, 0.1, 0.9]]), k=2, exclude=np.array([[3]]))
    array([[1, 2]])
    """
    scores = two_axes("scores", scores)
    n_tasks, n_items = scores.shape
    _check_k(k, n_items)
    if np.isnan(scores).any():
        raise ValueError(f"`scores` must not be NaN. Received: {np.isnan(scores).sum()} NaN")
    excluded = np.zeros(scores.shape, bool)
    if exclude is not None:
        task, place = np.nonzero(_real(exclude, exclude_length, n_tasks, "exclude"))
        rows = np.asarray(exclude)[task, place]
        check_rows("exclude", rows, n_items)
        excluded[task, rows] = True
        scores = np.where(excluded, -np.inf, scores)
    elif exclude_length is not None:
        raise ValueError("`exclude_length` must come with `exclude`. Received: exclude=None")
    # Sorting the whole catalogue is slow, and a partition alone lets the order of the columns decide the ties. So:
    # everything above the k-th score goes in, what equals it goes in at random, an excluded row last of all.
    kth = np.partition(scores, n_items - k, axis=1)[:, n_items - k, None]
    lottery = np.random.default_rng(seed).random(scores.shape, dtype=np.float32)
    lottery[excluded] -= 1
    lottery[scores > kth] += 2
    lottery[scores < kth] = -2
    top = np.argpartition(lottery, n_items - k, axis=1)[:, n_items - k :]
    order = np.lexsort((-np.take_along_axis(lottery, top, 1), -np.take_along_axis(scores, top, 1)), axis=1)
    top = np.take_along_axis(top, order, axis=1)
    return np.where(np.take_along_axis(excluded, top, axis=1), 0, top)


def recall_at_k(top: np.ndarray, relevant: np.ndarray, relevant_length: np.ndarray | None = None) -> np.ndarray:
    """The share of a user's relevant items that the list holds: hits / |relevant|.

    The denominator is not capped at k, so a list shorter than the relevant items cannot reach 1.

    Args:
        top: `(T, k)` int rows, best first, without repetition, as from `top_items`. Row 0 never counts as a hit.
        relevant: `(T, Q)` int rows. A repeated row counts once; each row 0 counts as one item out of reach.
        relevant_length: `(T,)` int or `None`. How many of the Q are real; all of them if `None`.

    Returns:
        `(T,)` float64 between 0 and 1; NaN for users with nothing relevant.

    Raises:
        ValueError: if shapes disagree or a length is not between 0 and Q.

    Example:
    >>> recall_at_k(np.array([[4, 7, 2]]), np.array([[2, 4, 5, 6]]))
    array([0.5])
    """
    hits, count = _hits(top, relevant, relevant_length)
    return _ratio(hits.sum(axis=1), count)


def precision_at_k(top: np.ndarray, relevant: np.ndarray, relevant_length: np.ndarray | None = None) -> np.ndarray:
    """The share of the list that is relevant: hits / k. Arguments and result as for `recall_at_k`.

    Example:
    >>> precision_at_k(np.array([[4, 7, 2, 9]]), np.array([[2, 4, 5]]))
    array([0.5])
    """
    hits, count = _hits(top, relevant, relevant_length)
    return np.where(count > 0, hits.mean(axis=1), np.nan)


def hit_rate(top: np.ndarray, relevant: np.ndarray, relevant_length: np.ndarray | None = None) -> np.ndarray:
    """1 where the list holds anything relevant, else 0. Arguments and result as for `recall_at_k`.

    Example:
    >>> hit_rate(np.array([[4, 7], [1, 3]]), np.array([[7, 8], [7, 8]]))
    array([1., 0.])
    """
    hits, count = _hits(top, relevant, relevant_length)
    return np.where(count > 0, hits.any(axis=1), np.nan)


def mrr(top: np.ndarray, relevant: np.ndarray, relevant_length: np.ndarray | None = None) -> np.ndarray:
    """One over the rank of the first relevant item, 0 if the list has none. Arguments and result as for `recall_at_k`.

    Example:
    >>> mrr(np.array([[4, 7, 2]]), np.array([[2, 7]]))
    array([0.5])
    """
    hits, count = _hits(top, relevant, relevant_length)
    rank = hits.argmax(axis=1) + 1
    return np.where(count > 0, hits.any(axis=1) / rank, np.nan)


def ndcg_at_k(top: np.ndarray, relevant: np.ndarray, relevant_length: np.ndarray | None = None) -> np.ndarray:
    """Normalised discounted cumulative gain with gains of 0 and 1.

    The sum of 1 / log2(rank + 1) over the hits, divided by that of a perfect list, whose first min(k, |relevant|)
    places are hits. Arguments and result as for `recall_at_k`.

    Example:
    >>> ndcg_at_k(np.array([[7, 4, 5]]), np.array([[4]])).round(4)  # 1 / log2(3)
    array([0.6309])
    """
    hits, count = _hits(top, relevant, relevant_length)
    discount = _discount(hits.shape[1])
    ideal = np.concatenate([[0.0], np.cumsum(discount)])[np.minimum(count, hits.shape[1])]
    return _ratio(hits @ discount, ideal)


RANKING = {"recall": recall_at_k, "ndcg": ndcg_at_k, "hit_rate": hit_rate, "mrr": mrr}
"""What a list is judged by, by the names in tables."""


def coverage(top: np.ndarray, n_items: int) -> float:
    """The share of the catalogue, rows 1 to `n_items` - 1, that at least one user was shown.

    Args:
        top: `(T, k)` int rows. Row 0 is no item.
        n_items: int, at least 2. Size of the items' vocabulary, row 0 included.

    Raises:
        ValueError: if `n_items` is below 2 or a row is outside the catalogue.

    Example:
    >>> coverage(np.array([[1, 2], [2, 0]]), n_items=5)
    0.5
    """
    if n_items < 2:
        raise ValueError(f"`n_items` must be at least 2. Received: n_items={n_items}")
    top = two_axes("top", top)
    check_rows("top", top, n_items)
    shown = np.unique(top)
    return float((shown > 0).sum() / (n_items - 1))


def mae(labels: np.ndarray, predictions: np.ndarray, length: np.ndarray | None = None) -> np.ndarray:
    """The mean absolute error over each user's rows.

    Args:
        labels: `(T, Q)` float.
        predictions: `(T, Q)` float.
        length: `(T,)` int or `None`. How many of the Q are real; all of them if `None`.

    Returns:
        `(T,)` float64; NaN for users without rows.

    Raises:
        ValueError: if shapes disagree or a length is not between 0 and Q.

    Example:
    >>> mae(np.array([[1.0, 5.0, 3.0]]), np.array([[2.0, 2.0, 0.0]]), np.array([2]))
    array([2.])
    """
    error, count = _errors(labels, predictions, length)
    return _ratio(np.abs(error).sum(axis=1), count)


def rmse(labels: np.ndarray, predictions: np.ndarray, length: np.ndarray | None = None) -> np.ndarray:
    """The root of the mean squared error over each user's rows. Arguments and result as for `mae`.

    The mean of these over users is not the root over all rows: every user weighs the same here.

    Example:
    >>> rmse(np.array([[1.0, 5.0]]), np.array([[2.0, -2.0]]))  # sqrt((1 + 49) / 2)
    array([5.])
    """
    error, count = _errors(labels, predictions, length)
    return np.sqrt(_ratio(np.square(error).sum(axis=1), count))


def rating_ndcg_at_k(
    labels: np.ndarray, scores: np.ndarray, length: np.ndarray | None = None, k: int = 5, *, seed: int = 0
) -> np.ndarray:
    """Normalised discounted cumulative gain of a user's own rows, with gains 2^label - 1.

    The rows are put in the order of the scores, with ties broken at random, and the sum of (2^label - 1) /
    log2(rank + 1) over the first k is divided by that of the order of the labels.

    Args:
        labels: `(T, Q)` float, at least 0.
        scores: `(T, Q)` float.
        length: `(T,)` int or `None`. How many of the Q are real; all of them if `None`.
        k: int, at least 1. Defaults to 5. Users with fewer rows are judged on all of theirs.
        seed: int, at least 0. For the ties. Defaults to 0.

    Returns:
        `(T,)` float64 between 0 and 1; NaN for users without a label above 0.

    Raises:
        ValueError: if shapes disagree, a length is not between 0 and Q, a score is NaN, a label is below 0 or `k` is
            below 1.

    Example:
    >>> rating_ndcg_at_k(np.array([[1.0, 3.0]]), np.array([[0.9, 0.1]]), k=1)  # (2^1 - 1) / (2^3 - 1)
    array([0.14285714])
    """
    labels, scores = two_axes("labels", labels), two_axes("scores", scores)
    _check_same_shape(labels, scores, "scores")
    _check_k(k)
    real = _real(labels, length, len(labels), "labels")
    if not (labels[real] >= 0).all():
        raise ValueError(f"`labels` must be at least 0. Received: {labels[real].min()}")
    if np.isnan(scores[real]).any():
        raise ValueError(f"`scores` must not be NaN. Received: {np.isnan(scores[real]).sum()} NaN")
    gains = np.where(real, np.exp2(np.where(real, labels, 0).astype(np.float64)) - 1, 0)
    lottery = np.random.default_rng(seed).random(scores.shape)
    order = np.lexsort((lottery, -np.where(real, scores, 0), ~real), axis=1)  # Padding after everything.
    ranked = np.take_along_axis(gains, order, axis=1)[:, :k]
    ideal = -np.sort(-gains, axis=1)[:, :k]
    discount = _discount(ranked.shape[1])
    return _ratio(ranked @ discount, ideal @ discount)


def classification(labels: np.ndarray, scores: np.ndarray, threshold: float) -> dict[str, float | None]:
    """How well "score at least `threshold`" tells the two classes apart, over rows pooled from all users.

    Args:
        labels: `(n,)` of 0 and 1.
        scores: `(n,)` float, finite.
        threshold: float. Choose it on validation users (see `best_threshold`), never on the rows given here.

    Returns:
        "accuracy", "precision", "recall", "f1" and "auc". Precision, recall and F1 are 0 where they would divide by 0;
        "auc" is `None` where only one class occurs.

    Raises:
        ValueError: if the vectors disagree in length or are empty, a label is not 0 or 1 or a score not finite.

    Example:
    >>> classification(np.array([1, 1, 0, 0]), np.array([0.9, 0.4, 0.6, 0.1]), threshold=0.5)
    {'accuracy': 0.5, 'precision': 0.5, 'recall': 0.5, 'f1': 0.5, 'auc': 0.75}
    """
    labels, scores = labelled(labels, scores)
    if np.isnan(threshold):
        raise ValueError(f"`threshold` must be a number. Received: threshold={threshold}")
    chosen = scores >= threshold
    return {
        "accuracy": float(accuracy_score(labels, chosen)),
        "precision": float(precision_score(labels, chosen, zero_division=0)),
        "recall": float(recall_score(labels, chosen, zero_division=0)),
        "f1": float(f1_score(labels, chosen, zero_division=0)),
        "auc": float(roc_auc_score(labels, scores)) if labels.min() < labels.max() else None,
    }


def positive_from(low: float, high: float) -> float:
    """From which rating on one counts as positive, where nobody says: three quarters of the way up the scale.

    Args:
        low: float. The lowest rating.
        high: float. The highest one.

    >>> positive_from(1, 5), positive_from(0.5, 5)
    (4.0, 3.875)
    """
    return low + 0.75 * (high - low)


def best_threshold(labels: np.ndarray, scores: np.ndarray, metric: str = "f1") -> float:
    """The threshold at which `classification` gives the best value of `metric` on these rows.

    Args:
        labels: `(n,)` of 0 and 1, of validation users.
        scores: `(n,)` float, finite.
        metric: "f1" or "accuracy". Defaults to "f1".

    Returns:
        One of the scores, or the next number above all of them where calling nothing positive is best. Among equals
        the highest.

    Raises:
        ValueError: as `classification`, or if `metric` is neither.

    Example:
    >>> best_threshold(np.array([1, 1, 0, 0]), np.array([0.9, 0.5, 0.4, 0.1]))
    0.5
    """
    if metric not in ("f1", "accuracy"):
        raise ValueError(f'`metric` must be "f1" or "accuracy". Received: metric={metric!r}')
    labels, scores = labelled(labels, scores)
    order = np.argsort(-scores)
    labels, scores = labels[order], scores[order]
    # Calling the first c rows positive, for every c that does not part equal scores; c = 0 is "nothing".
    cuts = np.concatenate([[0], np.flatnonzero(scores[1:] < scores[:-1]) + 1, [len(scores)]])
    hits = np.concatenate([[0], np.cumsum(labels)])[cuts]
    positives, n_rows = labels.sum(), len(labels)
    if metric == "accuracy":
        value = (hits + (n_rows - positives) - (cuts - hits)) / n_rows
    else:
        value = 2 * hits / np.maximum(cuts + positives, 1)
    best = cuts[np.argmax(value)]
    return float(scores[best - 1] if best else np.nextafter(scores[0], np.inf))


def _hits(top: np.ndarray, relevant: np.ndarray, relevant_length: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Which places of `top` are relevant, `(T, k)` bool, and how many relevant items there are, `(T,)`."""
    top, relevant = two_axes("top", top), two_axes("relevant", relevant)
    if not top.shape[1]:
        raise ValueError(f"`top` must have at least 1 place. Received: shape {top.shape}")
    n_tasks = len(top)
    real = _real(relevant, relevant_length, n_tasks, "relevant")
    task, place = np.nonzero(real)
    rows = relevant[task, place]
    check_rows("relevant", rows)
    check_rows("top", top)
    # One number for each (user, row), so that one sorted search serves all users: comparing everything with
    # everything would take T k Q.
    width = int(max(top.max(initial=0), rows.max(initial=0))) + 1  # A Python int: the product needs 64 bits.
    known = np.unique((task * width + rows)[rows > 0])
    wanted = np.arange(n_tasks)[:, None] * width + top
    place = np.searchsorted(known, wanted)  # `isin` would sort all lists anew.
    hits = np.append(known, -1)[place] == wanted
    unknown = np.bincount(task[rows == 0], minlength=n_tasks)
    return hits, np.bincount(known // width, minlength=n_tasks) + unknown


def _errors(labels: np.ndarray, predictions: np.ndarray, length: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    labels, predictions = two_axes("labels", labels), two_axes("predictions", predictions)
    _check_same_shape(labels, predictions, "predictions")
    real = _real(labels, length, len(labels), "labels")
    # Padding may hold anything, NaN included, so it is cleared before the arithmetic.
    error = np.where(real, predictions, 0).astype(np.float64) - np.where(real, labels, 0)
    return error, real.sum(axis=1)


def _real(rows: np.ndarray, length: np.ndarray | None, n_tasks: int, name: str) -> np.ndarray:
    """`(T, Q)` bool, true before each length."""
    rows = two_axes(name, rows)
    if len(rows) != n_tasks:
        raise ValueError(f"`{name}` must have one row for each of {n_tasks} users. Received: shape {rows.shape}")
    if length is None:
        return np.ones(rows.shape, bool)
    length = np.asarray(length)
    if length.shape != (n_tasks,):
        raise ValueError(f"The length of `{name}` must have shape ({n_tasks},). Received: shape {length.shape}")
    if n_tasks and not 0 <= length.min() <= length.max() <= rows.shape[1]:
        raise ValueError(
            f"The length of `{name}` must be between 0 and {rows.shape[1]}. Received: {length.min()} to {length.max()}"
        )
    return np.arange(rows.shape[1]) < length[:, None]


def _check_same_shape(labels: np.ndarray, other: np.ndarray, name: str) -> None:
    if other.shape != labels.shape:
        raise ValueError(f"`{name}` must have the shape of `labels`, {labels.shape}. Received: shape {other.shape}")


def _check_k(k: int, most: int | None = None) -> None:
    if k < 1 or (most is not None and k > most):
        rule = "at least 1" if most is None else f"between 1 and {most}, the number of candidates"
        raise ValueError(f"`k` must be {rule}. Received: k={k}")


def _discount(k: int) -> np.ndarray:
    return 1 / np.log2(np.arange(k) + 2)


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Their quotient, NaN where the denominator is 0."""
    return np.where(denominator > 0, numerator / np.where(denominator > 0, denominator, 1), np.nan)
