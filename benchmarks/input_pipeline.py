"""Whether the input pipeline keeps ahead of the trainer: episodes per second, drawn and consumed.

Measured in turns within one process, so that a machine which is busy for a while slows both sides of a ratio:
the pipeline alone, the trainer on batches kept in memory, and the trainer fed by the pipeline while both share
the processor. The second table says where a batch's time goes when each stage runs alone.
"""

import time
from statistics import median
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf
from rich.console import Console
from rich.progress import track

import tfmetarec as tmr
from benchmarks import meta_epoch, report
from tfmetarec.tasks import Episodes

NAME = "input_pipeline"
TARGET = 3.0
RATINGS = {"feedback": "explicit", "n_users": 50_000, "n_items": 2_000, "interactions_per_user": 40}
RATING_EPISODES = {"support": (0, 20), "query": 20, "tasks_per_batch": 32}
RATING_STEP = 0.1  # A squared error is steeper than a softmax: the purchases' inner step would diverge.


class Case(NamedTuple):
    """Episodes and the learner that trains on them."""

    name: str
    episodes: Episodes
    learner: keras.Model


def cases(options: report.Options, seed: int) -> list[Case]:
    """Real implicit feedback with negatives, and many made-up raters without."""
    bought = meta_epoch.purchases(options.data)
    purchases = meta_epoch.purchase_episodes(bought, seed)
    made_up = {**RATINGS, "n_users": 2_000} if options.quick else RATINGS
    train = tmr.data.cold_users(tmr.data.load("synthetic", seed=seed, **made_up), seed=seed).train
    vocabulary = tmr.data.Vocabulary.fit(train)
    ratings = tmr.tasks.user_episodes(train, vocabulary, seed=seed, **RATING_EPISODES)
    return [
        Case(bought.name, purchases, meta_epoch.trainer("MAML", purchases.vocabulary, seed)),
        Case(
            f"synthetic, {made_up['n_users']:,} users",
            ratings,
            meta_epoch.trainer("MAML", vocabulary, seed, inner_learning_rate=RATING_STEP),
        ),
    ]


def drain(dataset: tf.data.Dataset, batches: int) -> float:
    """Seconds per batch of a data set that nobody waits for, from its second batch on."""
    iterator = iter(dataset.take(batches + 1))
    next(iterator)  # Starting the workers is not part of it.
    start = time.perf_counter()
    for _ in iterator:
        pass
    return (time.perf_counter() - start) / batches


def replayed(episodes: Episodes, rows: list[dict[str, np.ndarray]]) -> Episodes:
    """The same stream with the sampling and the look-up left out: what remains is the hand-over to TensorFlow."""

    class Replayed(Episodes):
        def sample(self, batch: int) -> dict[str, np.ndarray]:
            return rows[batch % len(rows)]

        def _look_up(self, rows: dict[str, tf.Tensor]) -> Any:
            return rows

    return Replayed(**vars(episodes))


class Stages:
    """The stages of one batch, each run alone in one thread of Python."""

    def __init__(self, episodes: Episodes):
        self.episodes = episodes
        self.rows = [episodes.sample(batch) for batch in range(4)]
        self.hand_over = replayed(episodes, self.rows)
        self.tensors = [tf.nest.map_structure(tf.constant, rows) for rows in self.rows]
        self.look_up = tf.function(episodes._look_up, autograph=False)
        self.look_up(self.tensors[0])  # Traced here, outside the measurement.

    def seconds(self, batches: int) -> dict[str, float]:
        """Seconds per batch by stage."""
        start = time.perf_counter()
        for batch in range(batches):
            self.episodes.sample(batch)
        sampled = time.perf_counter()
        for batch in range(batches):
            self.look_up(self.tensors[batch % len(self.tensors)])
        looked_up = time.perf_counter()
        return {
            "sampling": (sampled - start) / batches,
            "look_up": (looked_up - sampled) / batches,
            "hand_over": drain(self.hand_over.dataset(), batches),
        }


def measure(case: Case, *, turns: int, steps: int, console: Console) -> list[dict[str, float]]:
    """Seconds per batch of everything that is compared, one dict per turn.

    Args:
        case: what is measured.
        turns: int, at least 1.
        steps: int, at least 1. Training steps of a turn; the pipeline alone delivers three times as many batches.
        console: where progress is shown.
    """
    episodes, learner = case.episodes, case.learner
    kept, stages = meta_epoch.in_memory(episodes, steps), Stages(episodes)
    meta_epoch.train(learner, kept.take(2))  # Compiles.
    results = []
    for turn in track(range(turns), case.name, console=console, transient=True):
        first = turn * steps
        results.append(
            {
                "pipeline": drain(episodes.dataset(first), 3 * steps),
                "trainer": _step_s(learner, kept),
                "fed": _step_s(learner, episodes.dataset(first, steps)),
                **stages.seconds(3 * steps),
            }
        )
    return results


def _step_s(learner: keras.Model, batches: tf.data.Dataset) -> float:
    """Mean and not median: a pipeline that falls behind makes the trainer wait now and then, and that counts."""
    seconds = meta_epoch.train(learner, batches)[1:]  # The first step waits for the pipeline to start.
    return sum(seconds) / len(seconds)


def speeds(case: Case, turns: list[dict[str, float]]) -> dict[str, Any]:
    """Tasks per second, and how far the pipeline is ahead of the trainer."""
    per_batch = case.episodes.tasks_per_batch
    ahead = [turn["trainer"] / turn["pipeline"] for turn in turns]
    rates = {name: per_batch / median(turn[name] for turn in turns) for name in ("pipeline", "trainer", "fed")}
    return {
        "data": case.name,
        "pipeline_per_s": rates["pipeline"],
        "trainer_per_s": rates["trainer"],
        "pipeline_over_trainer": median(ahead),
        "lowest": min(ahead),
        "highest": max(ahead),
        "fed_trainer_per_s": rates["fed"],
        "fed_over_unfed": median(turn["trainer"] / turn["fed"] for turn in turns),
    }


def stage_times(case: Case, turns: list[dict[str, float]]) -> dict[str, Any]:
    """Milliseconds per batch of each stage alone, beside the whole pipeline, whose two workers overlap them."""
    names = ("sampling", "look_up", "hand_over", "pipeline", "trainer")
    return {"data": case.name} | {f"{name}_ms": 1e3 * median(turn[name] for turn in turns) for name in names}


def main(arguments: list[str] | None = None) -> int:
    options = report.read_options(NAME, "Episodes per second: the input pipeline and the trainer.", arguments)
    console = report.console()
    turns, steps = (2, 4) if options.quick else (9, 60)
    measured: dict[str, list[dict[str, float]]] = {}
    for seed in range(options.seeds):
        console.print(f"seed {seed}: MAML on two data sets, {turns} turns of {steps} steps")
        for case in (made := cases(options, seed)):
            measured.setdefault(case.name, []).extend(measure(case, turns=turns, steps=steps, console=console))
    figures = {
        "tasks per second": [speeds(case, measured[case.name]) for case in made],
        "milliseconds per batch, each stage alone": [stage_times(case, measured[case.name]) for case in made],
    }
    targets = [
        report.Target(f"pipeline over trainer on {row['data']}", row["pipeline_over_trainer"], "at least", TARGET)
        for row in figures["tasks per second"]
    ]
    config = {
        "data": [case.name for case in made],
        "model": {"class": "TwoTower", **meta_epoch.MODEL},
        "learner": {"class": "MAML", **meta_epoch.INNER},
        "optimizer": {"class": "AdamW", **meta_epoch.OPTIMIZER},
        "purchases": {"min_item_users": meta_epoch.MIN_ITEM_USERS, "episodes": meta_epoch.EPISODES},
        "ratings": {**RATINGS, "episodes": RATING_EPISODES, "inner_learning_rate": RATING_STEP},
        "turns": turns,
        "steps_per_turn": steps,
    }
    return report.finish(options, config=config, figures=figures, targets=targets, console=console)


if __name__ == "__main__":
    report.run(main)
