"""Episodes that cross from one domain to another: the support comes from the source, the query from the target."""

from dataclasses import dataclass, field

import numpy as np
import polars as pl

from tfmetarec.data.interactions import Interactions
from tfmetarec.data.vocabulary import Vocabulary
from tfmetarec.tasks.batching import Episodes
from tfmetarec.tasks.samplers import NegativeSampler, task_stream
from tfmetarec.tasks.stream import check_at_least, tensors_of
from tfmetarec.tasks.table import TaskTable


@dataclass(frozen=True)
class CrossDomainEpisodes(Episodes):
    """`Episodes` whose tasks have two tables: `source` for the support, `table` for the query.

    Task t is the same user in both. Make one with `cross_domain_episodes`.
    """

    source: TaskTable = field(kw_only=True)
    source_sampler: NegativeSampler | None = field(kw_only=True, default=None)

    def sample(self, batch: int) -> dict[str, np.ndarray]:
        """The rows of batch `batch` before their features are looked up."""
        rng = np.random.default_rng([self.seed, 0, batch])
        tasks = task_stream(len(self.table), batch * self.tasks_per_batch, self.tasks_per_batch, self.seed)
        fewest, most = self.support
        wanted = rng.integers(fewest, most + 1, len(tasks))
        support, support_length = _drawn(self.source, tasks, most, wanted, rng)
        query, query_length = _drawn(self.table, tasks, self.query, np.full(len(tasks), self.query), rng)
        user = self.table.user[self.table.start[tasks]]
        rows = {
            "support_length": support_length,
            "query_length": query_length,
            "support_label": self.source.label[support],
            "query_label": self.table.label[query],
            "support_user": user,
            "query_user": user,
            "support_item": self.source.item[support],
            "query_item": self.table.item[query],
        }
        samplers = {"support": (self.source_sampler, support), "query": (self.sampler, query)}
        for part, (sampler, slots) in samplers.items():
            if sampler is not None:
                names = (f"{part}_negative_{what}" for what in ("item", "log_expected", "weight"))
                rows.update(zip(names, sampler.draw(tasks, slots, self.negatives, rng), strict=True))
        return rows

    def _table_of(self, part: str, side: str) -> str:
        return f"{part}_item" if side == "item" else side


def cross_domain_episodes(
    source: Interactions,
    target: Interactions,
    vocabulary: Vocabulary,
    *,
    support: int | tuple[int, int] = (0, 20),
    query: int = 20,
    tasks_per_batch: int = 32,
    negatives: int | None = None,
    steps_per_epoch: int | None = None,
    seed: int = 0,
) -> CrossDomainEpisodes:
    """Episodes whose tasks are the users of both domains: from the source support it must guess the target query.

    Support and query are drawn at random from all that the user did in each domain, anew each time.

    Args:
        source: interactions of the domain to cross from.
        target: training interactions of the domain to cross to.
        vocabulary: fitted on both together, such as `transfer.cross_domain.Domains.vocabulary`.
        support: int, or least and most source interactions per task.
        query: int, at least 1. Most target interactions per task.
        tasks_per_batch: int, at least 1.
        negatives: int. Items of the domain at hand that implicit feedback is contrasted with, once for the support and
            once for the query. Defaults to 512 for implicit feedback; must be 0 for explicit.
        steps_per_epoch: int, at least 1. Defaults to once through all users.
        seed: int, at least 0. Equal seeds give equal episodes.

    Raises:
        ValueError: for an option out of range, or if the domains share no user.
    """
    bounds = (support, support) if isinstance(support, int) else tuple(support)
    implicit = vocabulary.specs.feedback == "implicit"
    if len(bounds) != 2 or not 0 <= bounds[0] <= bounds[1] or bounds[1] < 1:
        raise ValueError(
            f"`support` must be a whole number of at least 1, or the least and the most. Received: support={support}"
        )
    check_at_least(1, query=query, tasks_per_batch=tasks_per_batch, steps_per_epoch=steps_per_epoch)
    check_at_least(0, seed=seed)
    if negatives is None:
        negatives = 512 if implicit else 0
    if negatives < 0 or (negatives and not implicit):
        raise ValueError(
            f"`negatives` must be at least 0, and 0 for explicit feedback. Received: negatives={negatives}"
        )
    of_source, of_target = _shared_tables(source, target, vocabulary)
    samplers: dict[str, NegativeSampler | None] = {"sampler": None, "source_sampler": None}
    if negatives:
        for name, table in (("sampler", of_target), ("source_sampler", of_source)):
            # Of the domain's own items alone: telling groceries from drugs apart is not the task.
            met = np.bincount(table.item, minlength=vocabulary.n_items)
            samplers[name] = NegativeSampler(table, met)
    tables = tensors_of(user=of_target.users, support_item=of_source.items, query_item=of_target.items)
    return CrossDomainEpisodes(
        of_target,
        vocabulary,
        support=bounds,
        query=query,
        tasks_per_batch=tasks_per_batch,
        negatives=negatives,
        steps_per_epoch=steps_per_epoch or -(-len(of_target) // tasks_per_batch),
        in_time=False,
        early=1.0,
        seed=seed,
        _tables=tables,
        source=of_source,
        **samplers,
    )


def _shared_tables(source: Interactions, target: Interactions, vocabulary: Vocabulary) -> tuple[TaskTable, TaskTable]:
    """Tables of the source and the target whose tasks are the same users in the same order."""
    parts = [source, target]
    # With implicit feedback a table leaves out items outside the catalogue, and with them maybe the last of a user's.
    if vocabulary.specs.feedback == "implicit":
        known = pl.col("item_id").is_in(pl.Series(vocabulary.item_ids[1:].tolist()).implode())
        parts = [part.with_table(rows) for part in parts if not (rows := part.table.filter(known)).is_empty()]
    users = [part.table["user_id"].unique() for part in parts]
    shared = users[0].filter(users[0].is_in(users[-1].implode())) if len(parts) == 2 else users[0].clear()
    if shared.is_empty():
        raise ValueError("`source` and `target` must share users with known items. Received: none in both")
    kept = pl.col("user_id").is_in(shared.implode())
    of_source, of_target = (TaskTable.build(part.filter(kept), vocabulary) for part in parts)
    return of_source, of_target


def _drawn(
    table: TaskTable, tasks: np.ndarray, width: int, wanted: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Slots `(T, width)` drawn without repeats, and how many of them count, `(T,)`: at most `wanted`."""
    sizes = table.sizes[tasks]
    keys = rng.random((len(tasks), max(width, int(sizes.max()))), np.float32)
    keys[np.arange(keys.shape[1]) >= sizes[:, None]] = 2.0  # Past the task's own: last.
    place = np.argsort(keys, axis=1)[:, :width]
    place = np.minimum(place, sizes[:, None] - 1)  # Padding repeats a valid slot.
    return table.start[tasks][:, None] + place, np.minimum(sizes, wanted).astype(np.int32)
