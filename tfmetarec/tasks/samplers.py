"""Which interactions make up an episode: drawn for a whole batch of tasks at once, without a loop over tasks."""

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from tfmetarec.tasks.table import TaskTable


class Draw(NamedTuple):
    """Slots of a `TaskTable` for `T` tasks.

    Attributes:
        tasks: `(T,)` int64.
        support: `(T, S)` int64 slots; past `support_length` they repeat a valid slot.
        support_length: `(T,)` int32.
        query: `(T, Q)` int64 slots.
        query_length: `(T,)` int32, at least 1.
    """

    tasks: np.ndarray
    support: np.ndarray
    support_length: np.ndarray
    query: np.ndarray
    query_length: np.ndarray


def task_stream(n_tasks: int, first: int, count: int, seed: int) -> np.ndarray:
    """`count` tasks from position `first` of an endless stream in which every task comes once per round.

    Each round is a new permutation that depends on the seed and the round alone, so any stretch of the stream
    can be drawn without drawing what came before it: that is what makes a resumed run equal an unbroken one.

    >>> task_stream(3, 0, 6, seed=0).tolist() == [*task_stream(3, 0, 2, seed=0), *task_stream(3, 2, 4, seed=0)]
    True
    """
    rounds = range(first // n_tasks, (first + count - 1) // n_tasks + 1)
    offset = first % n_tasks
    if len(rounds) == 1:
        return _round_order(n_tasks, rounds[0], seed)[offset : offset + count]
    return np.concatenate([_round_order(n_tasks, r, seed) for r in rounds])[offset : offset + count]


@lru_cache(maxsize=4)  # A round lasts many batches; shuffling a million tasks for each would outlast training.
def _round_order(n_tasks: int, round_: int, seed: int) -> np.ndarray:
    order = np.random.default_rng([seed, 1, round_]).permutation(n_tasks)
    order.flags.writeable = False  # Every batch of the round reads this array.
    return order


def draw_slots(
    table: TaskTable,
    tasks: np.ndarray,
    *,
    support: tuple[int, int],
    query: int,
    in_time: bool,
    early: float = 1.0,
    rng: np.random.Generator,
) -> Draw:
    """Draws support and query for `tasks`.

    In time order, a window of at most `support[1] + query` consecutive interactions is placed at random; its
    first `K` are the support and the ones after place `support[1]` the query, so that support precedes query
    whatever `K` is. Otherwise the window is a random subset. A task too short for the whole window splits
    what it has in the same proportion and always keeps one interaction for the query.

    Args:
        table: the tasks.
        tasks: `(T,)` int.
        support: least and most support interactions; `K` is uniform between them for each task.
        query: most query interactions.
        in_time: whether the window is consecutive.
        early: at least 1. Where a consecutive window starts is `u ** early` of the way, `u` uniform: 1 is
            anywhere alike, larger values prefer the beginning of a history.
        rng: where the randomness comes from.
    """
    fewest, most = support
    width = most + query
    sizes = table.start[tasks + 1] - table.start[tasks]
    used = np.minimum(sizes, width)
    place = np.arange(width)
    if in_time:
        # Nearer the beginning, where a new user's history lies: density falls as the window moves on.
        first = (rng.random(len(tasks)) ** early * (sizes - used + 1)).astype(np.int64)
        window = first[:, None] + np.minimum(place, used[:, None] - 1)
    else:
        keys = rng.random((len(tasks), int(sizes.max())), np.float32)
        keys[np.arange(keys.shape[1]) >= sizes[:, None]] = 2.0
        shuffled = np.argsort(keys, axis=1)
        window = np.take_along_axis(shuffled, np.minimum(place, used[:, None] - 1), axis=1)
    slots = table.start[tasks][:, None] + window
    split = np.clip(np.rint(used * most / width).astype(int), 0, used - 1)
    length = np.minimum(rng.integers(fewest, most + 1, len(tasks)), split)
    query_place = np.minimum(split[:, None] + np.arange(query), used[:, None] - 1)
    return Draw(
        tasks,
        slots[:, :most],
        length.astype(np.int32),
        np.take_along_axis(slots, query_place, axis=1),
        np.minimum(used - split, query).astype(np.int32),
    )


class NegativeSampler:
    """Draws items that a task never met.

    Args:
        table: user tasks of implicit feedback, items in the rows of the catalogue.
        popularity: `(I,)` how many users met each item; row 0 is never drawn.
        kind: "popularity" (proportional to `popularity ** 0.75`), "uniform", or "category": items that share
            the category of an item of the task, which are harder to tell apart.
        category: `(I,)` int category of each item, for kind "category".

    Raises:
        ValueError: if `kind` is unknown, or needs a `category` that is not there.
    """

    KINDS = ("popularity", "uniform", "category")

    def __init__(
        self,
        table: TaskTable,
        popularity: np.ndarray,
        kind: str = "popularity",
        category: np.ndarray | None = None,
    ):
        if kind not in self.KINDS:
            raise ValueError(f"`negative_sampling` must be one of {', '.join(self.KINDS)}. Received: {kind!r}")
        if kind == "category" and category is None:
            raise ValueError("`negative_sampling` 'category' needs an item feature of kind category; there is none.")
        self.table, self.kind = table, kind
        weights = np.ones(len(popularity)) if kind == "uniform" else popularity.astype(float) ** 0.75
        weights[0] = 0.0
        self._probability = weights / weights.sum()
        self._cumulative = np.cumsum(self._probability)
        self._cumulative /= self._cumulative[-1]  # Rounded to just below 1, it would let a draw fall past the end.
        if category is not None:
            self._category = category
            self._by_category = np.argsort(category[1:], kind="stable") + 1
            self._first = np.searchsorted(category[self._by_category], np.arange(category.max() + 2))

    def draw(
        self, tasks: np.ndarray, query: np.ndarray, count: int, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Rows, logarithm of the expected number of draws, and weights, as in `tfmetarec.tasks.Negatives`."""
        if self.kind == "category":
            return self._draw_in_category(tasks, query, count, rng)
        rows = self.draw_shared(count, rng)
        met, owner = self._histories(tasks)
        distinct, inverse = np.unique(rows, return_inverse=True)
        # A binary search among the draws: a table over the whole catalogue would be faster, and grow with it.
        place = np.minimum(np.searchsorted(distinct, met), len(distinct) - 1)
        hit = distinct[place] == met
        positive = np.zeros((len(tasks), len(distinct)), bool)
        positive[owner[hit], place[hit]] = True
        weight = 1.0 - positive[:, inverse].astype(np.float32)
        return rows, np.log(count * self._probability[rows]).astype(np.float32), weight

    def draw_shared(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """`(count,)` int32 item rows, drawn with replacement."""
        return np.searchsorted(self._cumulative, rng.random(count), side="right").astype(np.int32)

    def _draw_in_category(self, tasks, query, count, rng):
        picked = np.take_along_axis(query, rng.integers(0, query.shape[1], (len(tasks), count)), axis=1)
        category = self._category[self.table.item[picked]]
        first, size = self._first[category], self._first[category + 1] - self._first[category]
        rows = self._by_category[first + (rng.random(category.shape) * size).astype(int)].astype(np.int32)
        met, owner = self._histories(tasks)
        n_items = len(self._category)
        positives = np.unique(owner * n_items + met)
        codes = np.arange(len(tasks))[:, None] * n_items + rows
        place = np.minimum(np.searchsorted(positives, codes), len(positives) - 1)
        weight = (positives[place] != codes).astype(np.float32)
        return rows, np.zeros(rows.shape, np.float32), weight

    def _histories(self, tasks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Everything that `tasks` ever met, and which of them met it (an index into `tasks`)."""
        start = self.table.start[tasks]
        sizes = self.table.start[tasks + 1] - start
        owner = np.repeat(np.arange(len(tasks)), sizes)
        offset = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        return self.table.item[start[owner] + offset], owner
