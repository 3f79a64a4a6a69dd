"""Stretches of users' histories, in order: what a sequence model trains on."""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tfmetarec.data.interactions import Interactions
from tfmetarec.data.vocabulary import Vocabulary
from tfmetarec.tasks.episode import Features, Negatives
from tfmetarec.tasks.samplers import NegativeSampler, task_stream
from tfmetarec.tasks.stream import BatchStream, check_at_least, is_in_time, tensors_of
from tfmetarec.tasks.table import TaskTable


class Window(NamedTuple):
    """Stretches of `T` histories, and what is to be predicted after each place in them.

    Place 0 is before the first item: nothing of the history is known there. Place `s` is after `s` items.

    Attributes:
        user: user features `(T, ...)`.
        item: item features `(T, W, ...)` in order, the first `S - 1` of which are the history. Past the end of
            a user's history they repeat its last item.
        length: `(T,)` int32, at least 1, at most `S`: how many places count.
        target: `(T, S)` int32: where in `item` the item stands that place `s` is to predict.
        negatives: `Negatives`, or an empty dict (which `tf.data` can carry, unlike `None`).
    """

    user: Features
    item: Features
    length: Any
    target: Any
    negatives: Any


@dataclass(frozen=True)
class Windows(BatchStream):
    """An endless, random-access stream of `Window`s; make one with `user_windows`.

    `model.fit(windows, epochs=5)` takes it as it is. Batch `i` depends on the seed and on `i`, and on nothing else, so
    that an interrupted run can go on at the very batch where it stopped.
    """

    table: TaskTable
    vocabulary: Vocabulary
    length: tuple[int, int]
    horizon: int
    windows_per_batch: int
    negatives: int
    steps_per_epoch: int
    in_time: bool
    early: float
    seed: int
    sampler: NegativeSampler | None
    _tables: dict[str, dict[str, tf.Tensor]] = field(repr=False, default_factory=dict)

    def sample(self, batch: int) -> dict[str, np.ndarray]:
        """The rows of batch `batch` before their features are looked up."""
        table, per_batch = self.table, self.windows_per_batch
        rng = np.random.default_rng([self.seed, 2, batch])
        tasks = task_stream(len(table), batch * per_batch, per_batch, self.seed)
        slots, sizes = self._draw(tasks, rng)
        least, most = self.length
        length = np.minimum(rng.integers(least, most + 1, per_batch), sizes)
        place = np.arange(most)
        ahead = np.minimum(self.horizon, np.maximum(sizes[:, None] - place, 1))
        target = place + (rng.random(ahead.shape) * ahead).astype(int)
        rows = {
            "user": table.user[table.start[tasks]],
            "item": table.item[slots],
            "length": length.astype(np.int32),
            "target": target.astype(np.int32),
        }
        if self.sampler is not None:
            names = (f"negative_{what}" for what in ("item", "log_expected", "weight"))
            rows.update(zip(names, self.sampler.draw(tasks, slots, self.negatives, rng), strict=True))
        return rows

    def _draw(self, tasks: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Slots `(T, W)` of the table, in order, and how many of each row are different ones."""
        table, width = self.table, self.length[1] + self.horizon - 1
        sizes = table.start[tasks + 1] - table.start[tasks]
        used = np.minimum(sizes, width)
        place = np.minimum(np.arange(width), used[:, None] - 1)
        if self.in_time:
            # Nearer the beginning, where a new user's history lies, as episodes do.
            first = (rng.random(len(tasks)) ** self.early * (sizes - used + 1)).astype(np.int64)
            return table.start[tasks][:, None] + first[:, None] + place, used
        keys = rng.random((len(tasks), int(sizes.max())), np.float32)
        keys[np.arange(keys.shape[1]) >= sizes[:, None]] = 2.0
        slots = table.start[tasks][:, None] + np.take_along_axis(np.argsort(keys, axis=1), place, axis=1)
        return slots, used

    def _look_up(self, rows: dict[str, tf.Tensor]) -> Window:
        negatives: Negatives | dict = {}
        if self.sampler is not None:
            drawn = self._features("item", rows["negative_item"])
            negatives = Negatives(drawn, rows["negative_log_expected"], rows["negative_weight"])
        user, item = (self._features(side, rows[side]) for side in ("user", "item"))
        return Window(user, item, rows["length"], rows["target"], negatives)


def user_windows(
    interactions: Interactions,
    vocabulary: Vocabulary,
    *,
    length: int | tuple[int, int] = (1, 50),
    horizon: int = 1,
    windows_per_batch: int = 64,
    negatives: int = 1024,
    negative_sampling: str = "popularity",
    order: str | None = None,
    early: float = 4.0,
    min_interactions: int = 2,
    steps_per_epoch: int | None = None,
    seed: int = 0,
) -> Windows:
    """Stretches of the histories of users who chose items (implicit feedback).

    Args:
        interactions: training interactions, e.g. `split.train`.
        vocabulary: fitted on them.
        length: int, or least and most places of a window, each at least 1; drawn anew each time, so that a
            model that counts positions from the most recent item meets short histories too.
        horizon: int, at least 1. Each place predicts one of so many items that come next: 1 is the next item, more
            ask for what is chosen soon, in whatever order.
        windows_per_batch: int, at least 1.
        negatives: int, at least 0. Items per batch that the targets are contrasted with; 0 for a loss that takes the
            targets of others.
        negative_sampling: "popularity" (default) or "uniform".
        order: "time" (a stretch of the history) or "random" (any of its items, in random order: what belongs
            together, whenever it was chosen). Defaults to "time" where there are timestamps.
        early: float, at least 1: how strongly windows prefer the beginning of a history, as `user_episodes`
            has it.
        min_interactions: int, at least 1. Smaller users are left out, see `windows.table.notes`.
        steps_per_epoch: int. Defaults to once through all users.
        seed: int. Equal seeds give equal windows.

    Raises:
        ValueError: for an option out of range, or explicit feedback.

    Example:
    >>> import tfmetarec as tmr
    >>> data = tmr.data.load("synthetic", n_users=20, seed=0)
    >>> windows = user_windows(data, tmr.data.Vocabulary.fit(data), length=5, windows_per_batch=4)
    >>> next(iter(windows.dataset())).item["item_id"].shape
    TensorShape([4, 5])
    """
    least, most = (length, length) if isinstance(length, int) else tuple(length)
    if not 1 <= least <= most:
        raise ValueError(f"`length` must be at least 1, or the least and the most. Received: length={length}")
    check_at_least(1, horizon=horizon, windows_per_batch=windows_per_batch, early=early)
    check_at_least(1, min_interactions=min_interactions, steps_per_epoch=steps_per_epoch)
    check_at_least(0, negatives=negatives, seed=seed)
    if vocabulary.specs.feedback != "implicit":
        raise ValueError(
            "windows need implicit feedback: what is predicted is which item is chosen. Received: explicit"
        )
    if negative_sampling not in ("popularity", "uniform"):
        raise ValueError(
            f"`negative_sampling` must be 'popularity' or 'uniform'. Received: negative_sampling={negative_sampling!r}"
        )
    table = TaskTable.build(interactions, vocabulary, min_interactions=min_interactions)
    return Windows(
        table,
        vocabulary,
        length=(least, most),
        horizon=horizon,
        windows_per_batch=windows_per_batch,
        negatives=negatives,
        steps_per_epoch=steps_per_epoch or -(-len(table) // windows_per_batch),
        in_time=is_in_time(order, table.ordered),
        early=early,
        seed=seed,
        sampler=NegativeSampler(table, vocabulary.popularity, negative_sampling) if negatives else None,
        _tables=tensors_of(user=table.users, item=table.items),
    )
