"""What every baseline shares: the ratings it is fitted on, the two verbs, and the checks of what it is given."""

from typing import Any, ClassVar, NamedTuple, Self

import numpy as np

from tfmetarec.models.baselines.blocks import blocks
from tfmetarec.tasks.episode import Features, Support


class Ratings(NamedTuple):
    """What a baseline is fitted on: one row for each rating or purchase.

    Rows whose user or item is 0 are left out when fitting.

    Attributes:
        user: `(n,)` int, vocabulary rows of the users, at least 0 and below `n_users`.
        item: `(n,)` int, vocabulary rows of the items, at least 0 and below `n_items`.
        label: `(n,)` float32. The rating; for implicit feedback anything above 0 counts as an interaction.
        n_users: int. Size of the users' vocabulary, row 0 included.
        n_items: int. Size of the items' vocabulary, row 0 included.
    """

    user: np.ndarray
    item: np.ndarray
    label: np.ndarray
    n_users: int
    n_items: int


class Baseline:
    """A recommender that needs no meta-learning: fit it once, then `adapt` to new users and `score`.

    The state that `adapt` returns has one row for each task. A baseline of one's own sets `name` and `feedback`
    and writes three methods: `_fit(ratings)`; `_adapt(item, label, real)`, where `real` `(T, S)` marks the rows before
    each length and the others hold 0; and `_catalogue(state)`, the `(T, n_items)` scores of the whole catalogue.

    Attributes:
        name: str. What results tables call it.
        feedback: "explicit" if scores are predicted ratings, "implicit" if they only rank.
        n_items: int. Size of the items' vocabulary, row 0 included; set by `fit`.
    """

    name: ClassVar[str]
    feedback: ClassVar[str]
    n_items: int = 0

    def fit(self, ratings: Ratings) -> Self:
        """Learns from the interactions of known users.

        Args:
            ratings: `Ratings`, with at least one row whose user and item are not 0.

        Returns:
            The baseline itself.

        Raises:
            ValueError: if the arrays of `ratings` disagree in shape, hold a row outside their vocabulary or a label
                that is not finite, or if there is nothing to learn from.
        """
        ratings = _known_rows(ratings)
        if self.feedback == "implicit":
            bought = ratings.label > 0
            ratings = ratings._replace(
                user=ratings.user[bought], item=ratings.item[bought], label=ratings.label[bought]
            )
        if not ratings.item.size:
            raise ValueError(
                "`ratings` must hold at least one interaction of a known user with a known item (and, for implicit "
                "feedback, a label above 0). Received: none"
            )
        self._fit(ratings)
        self.n_items = ratings.n_items
        return self

    def adapt(self, support: Support) -> Any:
        """Fits the tasks' own parameters to their support.

        Args:
            support: `Support` of NumPy arrays, of which `item["item_id"]` `(T, S)`, `label` `(T, S)` and `length`
                `(T,)` are used. An empty support gives the unadapted prediction.

        Returns:
            The state, for `score`. It may be sliced by task.

        Raises:
            RuntimeError: before `fit`.
            ValueError: if shapes disagree, a length is outside 0 to S, or a row is outside the catalogue.
        """
        self._check_fitted("adapt")
        item, label, real = _real_rows(support, self.n_items)
        return self._adapt(item, label, real)

    def score(self, state: Any, item: Features | None = None) -> np.ndarray:
        """Scores the whole catalogue, or each task's own candidates.

        Args:
            state: what `adapt` returned.
            item: `None` for the whole catalogue, or features of which `item["item_id"]` is used: `(N,)` rows
                common to all tasks, or `(T, N)`.

        Returns:
            `(T, N)` float32, where the whole catalogue has N = `n_items`. Row 0 gets the prediction for an unknown
            item if feedback is explicit, and minus infinity if it is implicit. Ratings are not clipped, so that
            they rank without ties.

        Raises:
            RuntimeError: before `fit`.
            ValueError: if `item["item_id"]` is neither `(N,)` nor `(T, N)`, or holds a row outside the catalogue.
        """
        self._check_fitted("score")
        n_tasks = state.shape[0]
        candidates = None if item is None else _candidate_rows(item, n_tasks, self.n_items)
        width = self.n_items if candidates is None else candidates.shape[1]
        scores = np.empty((n_tasks, width), np.float32)
        for block in blocks(n_tasks, self.n_items):
            catalogue = self._catalogue(state[block])
            if self.feedback == "implicit":
                catalogue[:, 0] = -np.inf
            scores[block] = (
                catalogue if candidates is None else np.take_along_axis(catalogue, candidates[block], axis=1)
            )
        return scores

    def _check_fitted(self, verb: str) -> None:
        if not self.n_items:
            raise RuntimeError(f"`{verb}` needs a fitted baseline; call `fit(ratings)` first.")

    def _fit(self, ratings: Ratings) -> None:
        raise NotImplementedError

    def _adapt(self, item: np.ndarray, label: np.ndarray, real: np.ndarray) -> Any:
        raise NotImplementedError

    def _catalogue(self, state: Any) -> np.ndarray:
        raise NotImplementedError


def at_least(name: str, value: Any, low: int) -> Any:
    """Returns the setting `value`, or refuses one below `low`, NaN included."""
    if not value >= low:
        raise ValueError(f"`{name}` must be at least {low}. Received: {name}={value}")
    return value


def above(name: str, value: Any, low: int) -> Any:
    """Returns the setting `value`, or refuses one that is not above `low`, NaN included."""
    if not value > low:
        raise ValueError(f"`{name}` must be greater than {low}. Received: {name}={value}")
    return value


def _known_rows(ratings: Ratings) -> Ratings:
    """Checks the arrays and leaves row 0 of either vocabulary out."""
    user, item, label = (np.asarray(values) for values in ratings[:3])
    if not (user.ndim == 1 and user.shape == item.shape == label.shape):
        raise ValueError(
            "`user`, `item` and `label` of `ratings` must be vectors of one length. "
            f"Received: shapes {user.shape}, {item.shape} and {label.shape}"
        )
    for name, rows, size in (("user", user, ratings.n_users), ("item", item, ratings.n_items)):
        _check_rows(f"`{name}` of `ratings`", rows, size)
    label = label.astype(np.float32)
    if not np.isfinite(label).all():
        raise ValueError(
            f"`label` of `ratings` must be finite. Received: {(~np.isfinite(label)).sum()} values that are not"
        )
    known = (user > 0) & (item > 0)
    return Ratings(user[known], item[known], label[known], ratings.n_users, ratings.n_items)


def _real_rows(support: Support, n_items: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The support's items and labels with 0 in every padding, and where they are real, `(T, S)` each."""
    item, label = np.asarray(support.item["item_id"]), np.asarray(support.label)
    length = np.asarray(support.length)
    if item.ndim != 2 or item.shape != label.shape or length.shape != item.shape[:1]:
        raise ValueError(
            '`support` must have `item["item_id"]` and `label` of shape (T, S) and `length` of shape (T,). '
            f"Received: shapes {item.shape}, {label.shape} and {length.shape}"
        )
    if length.size and not 0 <= length.min() <= length.max() <= item.shape[1]:
        raise ValueError(
            f"`length` of `support` must be between 0 and {item.shape[1]}. Received: {length.min()} to {length.max()}"
        )
    real = np.arange(item.shape[1]) < length[:, None]
    item = np.where(real, item, 0)
    _check_rows('`item["item_id"]` of `support`', item, n_items)
    return item, np.where(real, label, 0).astype(np.float32), real


def _candidate_rows(item: Features, n_tasks: int, n_items: int) -> np.ndarray:
    rows = np.asarray(item["item_id"])
    if rows.ndim == 1:  # Candidates common to all tasks.
        rows = np.broadcast_to(rows, (n_tasks, len(rows)))
    if rows.ndim != 2 or len(rows) != n_tasks:
        raise ValueError(
            f'`item["item_id"]` must have shape (N,) or (T, N) with T={n_tasks} tasks. Received: shape {rows.shape}'
        )
    _check_rows('`item["item_id"]`', rows, n_items)
    return rows


def _check_rows(name: str, rows: np.ndarray, size: int) -> None:
    if not np.issubdtype(rows.dtype, np.integer):
        raise ValueError(f"{name} must hold integers. Received: {rows.dtype}")
    if rows.size and not 0 <= rows.min() <= rows.max() < size:
        raise ValueError(f"{name} must hold rows between 0 and {size - 1}. Received: {rows.min()} to {rows.max()}")
