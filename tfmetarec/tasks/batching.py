"""Episodes as a `tf.data.Dataset`: batch `i` depends on the seed and on `i`, and on nothing else."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tensorflow as tf

from tfmetarec.data.interactions import Interactions
from tfmetarec.data.vocabulary import Vocabulary
from tfmetarec.tasks.episode import Episode, Negatives, Support
from tfmetarec.tasks.samplers import NegativeSampler, draw_slots, task_stream
from tfmetarec.tasks.stream import BatchStream, check_at_least, is_in_time, tensors_of
from tfmetarec.tasks.table import TaskTable


@dataclass(frozen=True)
class Episodes(BatchStream):
    """An endless, random-access stream of episodes.

    `learner.fit(episodes, epochs=5)` takes it as it is, and after an interruption continues at the very batch
    where it stopped. `episodes.dataset()` is the `tf.data.Dataset` behind it, for any other use.

    Make one with `user_episodes`, `item_episodes` or `domain_episodes`.
    """

    table: TaskTable
    vocabulary: Vocabulary
    support: tuple[int, int]
    query: int
    tasks_per_batch: int
    negatives: int
    steps_per_epoch: int
    in_time: bool
    early: float
    seed: int
    sampler: NegativeSampler | None
    _tables: dict[str, dict[str, tf.Tensor]] = field(repr=False, default_factory=dict)

    def sample(self, batch: int) -> dict[str, np.ndarray]:
        """The rows of batch `batch` before their features are looked up."""
        table, per_batch = self.table, self.tasks_per_batch
        rng = np.random.default_rng([self.seed, 0, batch])
        tasks = task_stream(len(table), batch * per_batch, per_batch, self.seed)
        draw = draw_slots(
            table, tasks, support=self.support, query=self.query, in_time=self.in_time, early=self.early, rng=rng
        )
        rows = {
            "support_length": draw.support_length,
            "query_length": draw.query_length,
            "support_label": table.label[draw.support],
            "query_label": table.label[draw.query],
        }
        first = table.start[tasks]
        for side, own in (("user", table.user), ("item", table.item)):
            shared = table.kind == side
            rows[f"support_{side}"] = own[first] if shared else own[draw.support]
            rows[f"query_{side}"] = own[first] if shared else own[draw.query]
        if self.sampler is not None:
            for part in ("support", "query"):
                names = (f"{part}_negative_{what}" for what in ("item", "log_expected", "weight"))
                near = draw.support if part == "support" and self.support[1] else draw.query
                rows.update(zip(names, self.sampler.draw(tasks, near, self.negatives, rng), strict=True))
        return rows

    def _look_up(self, rows: dict[str, tf.Tensor]) -> Episode:
        def features(part: str, side: str, picked: tf.Tensor) -> dict[str, tf.Tensor]:
            return self._features(self._table_of(part, side), picked)

        def part(name: str) -> Support:
            user, item = (features(name, side, rows[f"{name}_{side}"]) for side in ("user", "item"))
            return Support(user, item, rows[f"{name}_label"], rows[f"{name}_length"])

        def negatives(name: str) -> Negatives | dict:
            if self.sampler is None:
                return {}
            item, log_expected, weight = (
                rows[f"{name}_negative_{what}"] for what in ("item", "log_expected", "weight")
            )
            return Negatives(features(name, "item", item), log_expected, weight)

        return Episode(part("support"), part("query"), negatives("support"), negatives("query"))

    def _table_of(self, part: str, side: str) -> str:
        """Which of the tables holds the features of a side of "support" or "query"."""
        return side


def user_episodes(interactions: Interactions, vocabulary: Vocabulary, **options: Any) -> Episodes:
    """Episodes whose tasks are users.

    Args:
        interactions: training interactions, e.g. `split.train`.
        vocabulary: fitted on them.
        **options: any of these keywords.

            - `support`: int, or least and most support interactions per task, drawn anew each time. Defaults to
              `(0, 20)`.
            - `query`: int, at least 1. Most query interactions per task. Defaults to 20.
            - `tasks_per_batch`: int, at least 1. Defaults to 32.
            - `negatives`: int. Items per batch that implicit feedback is contrasted with, once for the support and
              once for the query. Defaults to 512 for implicit feedback; must be 0 for explicit.
            - `negative_sampling`: "popularity" (default), "uniform" or "category".
            - `order`: "time" (support precedes query) or "random". Defaults to "time" where there are timestamps.
            - `early`: float, at least 1. In time order, how strongly episodes prefer the beginning of a history,
              which is what a new user's looks like: a window starts `u ** early` of the way, `u` uniform. Defaults
              to 4; 1 is anywhere alike.
            - `min_interactions`: int, at least 2. Smaller tasks are left out, see `episodes.table.notes`. Defaults
              to 2.
            - `steps_per_epoch`: int. Defaults to once through all tasks.
            - `seed`: int. Equal seeds give equal episodes. Defaults to 0.

    Raises:
        ValueError: for an option out of range.
    """
    return _episodes("user", interactions, vocabulary, **options)


def item_episodes(interactions: Interactions, vocabulary: Vocabulary, **options: Any) -> Episodes:
    """Episodes whose tasks are items: adapt to an item from its first ratings. Options as `user_episodes`.

    Explicit feedback only: without ratings there is nothing to contrast an item's users with.
    """
    return _episodes("item", interactions, vocabulary, **options)


def domain_episodes(interactions: Interactions, vocabulary: Vocabulary, **options: Any) -> Episodes:
    """Episodes whose tasks are domains (the `domain` column). Options as `user_episodes`; explicit feedback only."""
    return _episodes("domain", interactions, vocabulary, **options)


def _episodes(
    kind: str,
    interactions: Interactions,
    vocabulary: Vocabulary,
    *,
    support: int | tuple[int, int] = (0, 20),
    query: int = 20,
    tasks_per_batch: int = 32,
    negatives: int | None = None,
    negative_sampling: str = "popularity",
    order: str | None = None,
    early: float = 4.0,
    min_interactions: int = 2,
    steps_per_epoch: int | None = None,
    seed: int = 0,
) -> Episodes:
    bounds = (support, support) if isinstance(support, int) else tuple(support)
    implicit = vocabulary.specs.feedback == "implicit"
    if len(bounds) != 2 or not 0 <= bounds[0] <= bounds[1]:
        raise ValueError(
            f"`support` must be a whole number of at least 0, or the least and the most. Received: support={support}"
        )
    fewest, most = bounds
    check_at_least(1, query=query, tasks_per_batch=tasks_per_batch, early=early, steps_per_epoch=steps_per_epoch)
    check_at_least(2, min_interactions=min_interactions)
    check_at_least(0, seed=seed)
    if negatives is None:
        negatives = 512 if implicit and kind == "user" else 0
    if negatives < 0 or (negatives and not (implicit and kind == "user")):
        raise ValueError(
            "`negatives` must be at least 0, and 0 unless tasks are users with implicit feedback. "
            f"Received: negatives={negatives}"
        )
    if implicit and kind != "user":
        raise ValueError(
            f"tasks about {kind}s need explicit feedback: there is nothing to contrast their positives with. "
            "Received: implicit feedback"
        )
    table = TaskTable.build(interactions, vocabulary, kind=kind, min_interactions=min_interactions)
    in_time = is_in_time(order, table.ordered)
    sampler = None
    if negatives:
        categories = [spec.name for spec in vocabulary.specs.item if spec.kind == "category"]
        category = vocabulary.catalogue[categories[0]] if categories else None
        sampler = NegativeSampler(table, vocabulary.popularity, negative_sampling, category)
    steps = steps_per_epoch or -(-len(table) // tasks_per_batch)
    return Episodes(
        table,
        vocabulary,
        support=(fewest, most),
        query=query,
        tasks_per_batch=tasks_per_batch,
        negatives=negatives,
        steps_per_epoch=steps,
        in_time=in_time,
        early=early,
        seed=seed,
        sampler=sampler,
        _tables=tensors_of(user=table.users, item=table.items),
    )
