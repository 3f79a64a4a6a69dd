"""What a meta-training step costs: every learner beside a plain training step on the same rows.

Two yardsticks run in the same turns as the learners: `plain` is ordinary Keras training on the support and
query rows of the same batches, and `MAML, loop over tasks` is MAML as it is often written, one task after the
other under an eager `GradientTape`. Turns are interleaved and ratios to `plain` taken within one, so that a machine
which is busy for a while slows both sides of a ratio.

The columns: `step_ms` is the median of the turns, each the median of its steps, on batches kept in memory;
`ratio_to_plain` the median over turns, between `lowest_ratio` and `highest_ratio`; `compile_s` what the first step
takes longer than the others; `epoch_s` one epoch through the input pipeline; `peak_growth_mb` by how much compiling
and a few steps raise the peak memory of a process that has read the model and the batches. First-order MAML may
cost less than a plain step: no outer gradient flows back to the support.
"""

import logging
import multiprocessing
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from rich.console import Console
from rich.progress import track

import tfmetarec as tmr
from benchmarks import report
from benchmarks.peers.worker import peak_mb
from tfmetarec.data import DataError, Interactions, Vocabulary
from tfmetarec.meta.paths import TaskRows, Vectorized, Weights
from tfmetarec.tasks import Episode, Episodes, Support

NAME = "meta_epoch"
PLAIN, LOOP = "plain", "MAML, loop over tasks"
LEARNERS = ("MAML", "FirstOrderMAML", "ANIL", "MetaSGD", "MAMLPlusPlus", "IMAML", "Reptile", "Ridge", "NeuralProcess")
LEARNERS += ("PrototypicalNetwork", "FineTuning")  # All but BOIL, whose use is in deeper heads than this model's.
INNER = {"inner_steps": 1, "inner_learning_rate": 2.0, "shrinkage": 20.0, "contrast": 2048}
MODEL = {"embedding_dim": 32, "id_dropout": 0.7, "dropout": 0.3}
EPISODES = {"support": (0, 20), "query": 20, "tasks_per_batch": 32, "negatives": 2048}
OPTIMIZER = {"learning_rate": 1e-3, "weight_decay": 0.05}
MIN_ITEM_USERS = 10


class PlainTraining(keras.Model):
    """Ordinary training of a two-tower model on the rows of an episode, as if there were no tasks.

    The loss is the one that `FineTuning` has: sampled softmax on support and on query, each against its own
    negatives. Every user and every item is encoded once, and the negatives are scored in one matrix product.
    """

    def __init__(self, model: keras.Model):
        super().__init__()
        self.model = model
        self.loss_tracker = keras.metrics.Mean(name="loss")
        self.built = True

    def episode_loss(self, episode: Episode, training: bool) -> tf.Tensor:
        support = self._rows_loss(episode.support, episode.support_negatives, training)
        return 0.5 * (support + self._rows_loss(episode.query, episode.query_negatives, training))

    def train_step(self, episode: Episode) -> dict[str, Any]:
        with tf.GradientTape() as tape:
            loss = self.episode_loss(episode, training=True)
        gradients = tape.gradient(loss, [variable.value for variable in self.trainable_variables])
        self.optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
        self.loss_tracker.update_state(loss)
        return self.get_metrics_result()

    def _rows_loss(self, rows: Support, negatives: Any, training: bool) -> tf.Tensor:
        query = self.model.head(self.model.encode_user(rows.user, training=training))  # (T, D + 2)
        item = self.model.encode_item(rows.item, training=training)  # (T, R, D + 2)
        negative = self.model.encode_item(negatives.item, training=training)  # (P, D + 2)
        score = tf.linalg.matvec(item, query)  # (T, R)
        contrast = tf.matmul(query, negative, transpose_b=True) - negatives.log_expected  # (T, P)
        contrast = tf.where(negatives.weight > 0, contrast, -1e9)
        each = tf.nn.softplus(tf.reduce_logsumexp(contrast, axis=1, keepdims=True) - score)
        real = tf.sequence_mask(rows.length, tf.shape(score)[1], tf.float32)
        return tf.reduce_mean(tf.math.divide_no_nan(tf.reduce_sum(each * real, 1), tf.reduce_sum(real, 1)))


class OneAfterAnother(Vectorized):
    """An engine whose tasks follow one another in Python. Items are encoded once for all tasks, which is generous."""

    def _map(self, function: Any, weights: Weights, rows: TaskRows) -> Any:
        results = []
        for index in range(rows.label.shape[0]):
            user, item, label, weight = (tf.nest.map_structure(lambda t, i=index: t[i], part) for part in rows[:4])
            negatives = rows.negatives
            if negatives is not None:
                negatives = negatives._replace(weight=negatives.weight[index])
            own = None if weights is None else [tensor[index] for tensor in weights]
            results.append(function(own, TaskRows(user, item, label, weight, negatives)))
        return tf.nest.map_structure(lambda *parts: tf.stack(parts), *results)


class LoopedMAML(tmr.meta.MAML):
    """MAML as it is often written."""

    def __init__(self, model: keras.Model, **options: Any):
        super().__init__(model, **options)
        self._path = OneAfterAnother(self._cut)


class StepTimer(keras.callbacks.Callback):
    """How long each training step took, in seconds."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: list[float] = []

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        self._start = time.perf_counter()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.seconds.append(time.perf_counter() - self._start)


def purchases(data: Path | None) -> Interactions:
    """Complete Journey, or implicit feedback that `Interactions.to_parquet` wrote to the folder `data`."""
    if data is None:
        return tmr.data.load("completejourney")
    interactions = Interactions.from_parquet(data)
    if interactions.schema.feedback != "implicit":
        raise DataError(f"`--data` must hold implicit feedback. Received: {interactions!r}")
    return interactions


def purchase_episodes(interactions: Interactions, seed: int) -> Episodes:
    """Episodes of the warm users, with a vocabulary of the items that enough of them met."""
    train = tmr.data.cold_users(interactions, seed=seed).train
    vocabulary = Vocabulary.fit(train, min_item_users=MIN_ITEM_USERS)
    return tmr.tasks.user_episodes(train, vocabulary, seed=seed, **EPISODES)


def trainer(name: str, vocabulary: Vocabulary, seed: int, **inner: Any) -> keras.Model:
    """A compiled learner or yardstick with a model of its own; `inner` replaces some of `INNER`."""
    model = tmr.models.TwoTower(vocabulary, seed=seed, **MODEL)
    optimizer = keras.optimizers.AdamW(**OPTIMIZER)
    if name == PLAIN:
        learner = PlainTraining(model)
    else:
        kind = LoopedMAML if name == LOOP else getattr(tmr.meta, name)
        options = {**INNER, **inner} if issubclass(kind, tmr.meta.GradientLearner) else {"contrast": INNER["contrast"]}
        learner = kind(model, seed=seed, **options)
    learner.compile(optimizer=optimizer, run_eagerly=name == LOOP)
    return learner


def train(learner: keras.Model, batches: tf.data.Dataset) -> list[float]:
    """Trains once through `batches` with Keras's `fit`; returns the seconds of each step."""
    timer = StepTimer()
    # Keras would shuffle the order of an array; a data set keeps its own, and Keras warns unless told so.
    learner.fit(batches, epochs=1, verbose=0, shuffle=False, callbacks=[timer])
    return timer.seconds


def in_memory(episodes: Episodes, batches: int) -> tf.data.Dataset:
    """The first batches, drawn now and kept: what is trained on them does not wait for the pipeline."""
    kept = episodes.dataset(0, batches).cache()
    for _ in kept:
        pass
    return kept


def measure(
    episodes: Episodes, names: Sequence[str], seed: int, *, turns: int, steps: int, console: Console
) -> report.Rows:
    """One row per learner and yardstick: its step in milliseconds and its ratio to the plain step.

    Args:
        episodes: of implicit feedback.
        names: of learners and yardsticks; `PLAIN` is among them.
        seed: of the models.
        turns: int, at least 1. How often each of them trains, one after the other.
        steps: int, at least 1. Steps of a turn; the loop over tasks takes one.
        console: where progress is shown.
    """
    kept = in_memory(episodes, turns * steps)
    learners = {name: trainer(name, episodes.vocabulary, seed) for name in names}
    first_s = {
        name: train(learner, kept.take(1 if name == LOOP else 3))[0]
        for name, learner in track(learners.items(), "compiling", console=console, transient=True)
    }
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in track(range(turns), "turns", console=console, transient=True):
        for name, learner in learners.items():
            batches = kept.skip(turn * steps).take(1 if name == LOOP else steps)
            seconds[name].append(median(train(learner, batches)))
    rows = []
    for name, learner in learners.items():
        step_s = median(seconds[name])
        ratios = [own / plain for own, plain in zip(seconds[name], seconds[PLAIN], strict=True)]
        row: dict[str, Any] = {"learner": name, "step_ms": step_s * 1e3, "ratio_to_plain": median(ratios)}
        row |= {"lowest_ratio": min(ratios), "highest_ratio": max(ratios)}
        row["tasks_per_s"] = episodes.tasks_per_batch / step_s
        # The first step traces the graph and optimises it. The loop runs op by op: nothing is compiled.
        row["compile_s"] = None if name == LOOP else first_s[name] - step_s
        row["epoch_s"] = None if name == LOOP else _epoch_s(learner, episodes)
        rows.append(row)
    return rows


def _epoch_s(learner: keras.Model, episodes: Episodes) -> float:
    """One epoch as a user runs it: the episodes are drawn while the learner trains."""
    start = time.perf_counter()
    train(learner, episodes.dataset(batches=len(episodes)))
    return time.perf_counter() - start


def peak_growth_mb(name: str, episodes: Episodes, seed: int, steps: int) -> float:
    """By how much compiling and training raise the peak memory of a process, in megabytes.

    The peak never falls, and reading the data would raise it first: so a fresh process gets no more than the
    batches and the vocabulary.
    """
    batches = [tf.nest.map_structure(np.asarray, batch) for batch in episodes.dataset(0, steps)]
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder, ProcessPoolExecutor(1, mp_context=spawn) as fresh:
        episodes.vocabulary.save(folder)
        return fresh.submit(_own_peak_growth_mb, name, folder, batches, seed).result()


def _own_peak_growth_mb(name: str, folder: str, batches: list[Episode], seed: int) -> float:
    learner = trainer(name, Vocabulary.load(folder), seed)
    learner.optimizer.build(learner.trainable_variables)  # Its slots are the model's size, not the method's.
    stacked = tf.nest.map_structure(lambda *arrays: np.stack(arrays), *batches)
    kept = tf.data.Dataset.from_tensor_slices(stacked)
    before = peak_mb()
    train(learner, kept)
    return peak_mb() - before


def main(arguments: list[str] | None = None) -> int:
    options = report.read_options(NAME, "Speed and memory of a meta-training step.", arguments)
    console = report.console()
    tf.get_logger().setLevel(logging.ERROR)  # It takes the first trace of each learner for retracing one function.
    interactions = purchases(options.data)
    learners = ("MAML", "Reptile") if options.quick else LEARNERS
    turns, steps, memory_steps = (2, 2, 2) if options.quick else (9, 6, 10)
    runs = []
    for seed in range(options.seeds):
        console.print(f"seed {seed}: {', '.join(learners)} and two yardsticks on {interactions.name}")
        episodes = purchase_episodes(interactions, seed)
        names = (PLAIN, *learners, LOOP)
        runs.append(measure(episodes, names, seed, turns=turns, steps=steps, console=console))
    rows = [report.merged(list(same)) for same in zip(*runs, strict=True)]
    for row in track(rows, "peak memory", console=console, transient=True):
        skipped = options.quick and row["learner"] != "MAML"
        row["peak_growth_mb"] = None if skipped else peak_growth_mb(row["learner"], episodes, seed, memory_steps)

    maml, loop = (next(row for row in rows if row["learner"] == name) for name in ("MAML", LOOP))
    targets = [
        report.Target("a MAML step over a plain step", maml["ratio_to_plain"], "at most", 3.0),
        report.Target("the loop over tasks over MAML", loop["step_ms"] / maml["step_ms"], "at least", 15.0),
    ]
    config = {
        "data": interactions.name,
        "min_item_users": MIN_ITEM_USERS,
        "model": {"class": "TwoTower", **MODEL},
        "episodes": EPISODES,
        "learner": INNER,
        "optimizer": {"class": "AdamW", **OPTIMIZER},
        "turns": turns,
        "steps_per_turn": steps,
    }
    figures = {"one meta-training step": rows}
    return report.finish(options, config=config, figures=figures, targets=targets, console=console)


if __name__ == "__main__":
    report.run(main)
