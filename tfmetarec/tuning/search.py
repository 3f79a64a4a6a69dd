"""A search from beginning to end, in one process or as the chief of several."""

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import keras_tuner as kt
from keras_tuner.src import config as keras_tuner_config

from tfmetarec.tuning.oracles import make_oracle
from tfmetarec.tuning.results import best_trial
from tfmetarec.tuning.tuner import Ended, MetaTuner, Tell
from tfmetarec.tuning.workers import STOP_AT, chief, end_with_leader, lead, role


def search(
    hypermodel: Any,
    *,
    objective: kt.Objective,
    folder: str | Path,
    tuner: str = "bayesian",
    trials: int = 20,
    epochs: int = 20,
    patience: int | None = None,
    prune: bool = True,
    max_minutes: float | None = None,
    seed: int = 0,
    options: Mapping[str, Any] | None = None,
    workers: int = 1,
    worker_command: Sequence[str] | None = None,
    tell: Tell | None = None,
    ended: Ended | None = None,
    **fit_options: Any,
) -> MetaTuner:
    """Searches, or takes up a search that was interrupted; afterwards there is a best trial.

    Where the environment names an oracle (KERASTUNER_ORACLE_IP, KERASTUNER_ORACLE_PORT, KERASTUNER_TUNER_ID), this
    process is keras-tuner's chief, or one of its workers, and `workers` has no meaning.

    Args:
        hypermodel: `MetaHyperModel`, another `keras_tuner.HyperModel`, or a function that gives a compiled model.
        objective: what is compared.
        folder: of the search; shared by all workers. An existing one is continued: finished trials are kept, and the
            seed and the space are those it began with.
        tuner: "bayesian", "random", "grid" or "hyperband".
        trials: int, at least 1. The most trials, finished ones included.
        epochs: int, at least 1. The most epochs of a trial.
        patience: int, at least 1: epochs without improvement before a trial ends. `None` for never.
        prune: whether hopeless trials end early; see `MetaTuner`.
        max_minutes: float, greater than 0. After so long the trials that run end with their epoch, and the search
            too. One trial there always is.
        seed: int, of what is drawn.
        options: further arguments of keras-tuner's oracle.
        workers: int, at least 1. More than one are processes of their own, which `worker_command` starts.
        worker_command: starts a process that calls `search` with the same arguments.
        tell: called after every epoch with the trial's id, the epoch from 1 on, and the objective.
        ended: called after every trial with the tuner and the trial.
        **fit_options: to the hypermodel's `fit`.

    Returns:
        The tuner, whose `load_model` loads what a trial trained. A worker's has no trials: its chief has them.

    Raises:
        ValueError: for an argument out of range, or scikit-learn's tuner.
        RuntimeError: if no trial was completed, with what each died of.
    """
    if max_minutes is not None and not max_minutes > 0:
        raise ValueError(f"`max_minutes` must be greater than 0. Received: max_minutes={max_minutes}")
    if workers < 1:
        raise ValueError(f"`workers` must be at least 1. Received: workers={workers}")
    if workers > 1 and worker_command is None:
        raise ValueError("`worker_command` must be given with several workers: each is a process of its own.")
    part = role()
    stop_at = None if max_minutes is None else time.time() + 60 * max_minutes
    if part == "worker" and (told := os.environ.get(STOP_AT)) is not None:
        stop_at = float(told)  # That of the whole search, and not counted from the worker's start.
    keras_tuner_config.DEBUG = False  # Else every failed trial prints where it failed.
    oracle = make_oracle(tuner, objective, trials=trials, epochs=epochs, stop_at=stop_at, seed=seed, options=options)
    oracle.keeps_workers = part == "chief"
    made = MetaTuner(
        oracle,
        hypermodel,
        folder=folder,
        epochs=epochs,
        patience=patience,
        prune=prune,
        stop_at=stop_at,
        tell=tell,
        ended=ended,
    )
    if part == "worker":
        end_with_leader()
    if part == "chief":
        chief(made)
    elif part == "alone" and workers > 1:
        assert worker_command is not None
        lead(made, worker_command, workers)
    else:
        made.search(**fit_options)
    if part != "worker":
        best_trial(made)
    return made
