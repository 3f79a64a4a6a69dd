"""What each gradient step at adaptation is worth: too few leave something, too many overfit a short support."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import polars as pl
import tensorflow as tf

from tfmetarec.data.interactions import Interactions
from tfmetarec.evaluation.cold_start import ColdStartTable, Recommender, cold_start
from tfmetarec.meta import GradientLearner
from tfmetarec.tasks.episode import Features, Support


class _StartingPoint:
    """A learner that takes no step: it knows the user's features and nothing of the support.

    Args:
        learner: that adapts and scores.
    """

    def __init__(self, learner: GradientLearner):
        self.learner, self.vocabulary = learner, learner.vocabulary

    def adapt(self, support: Support) -> Any:
        return self.learner.adapt(support._replace(length=support.length * 0))

    def score(self, state: Any, item: Features) -> Any:
        return self.learner.score(state, item)


def adaptation_curve(
    learner: GradientLearner,
    interactions: Interactions,
    *,
    steps: Sequence[int] = (0, 1, 2, 3, 5, 10),
    shots: Sequence[int] = (5, 20),
    **options: Any,
) -> pl.DataFrame:
    """The figures of a gradient learner after so many steps of adaptation, at a few K.

    All users adapt at once, and a graph is traced for each number of steps. The learner is left as it was.

    Args:
        learner: a gradient learner, such as `MAML`.
        interactions: of users never seen.
        steps: ints, at least 0. With 0 the learner answers from its starting point.
        shots: ints, at least 0. The K to judge at.
        **options: of `cold_start`.

    Returns:
        As `ColdStartTable.summary`, with a column `steps` in place of `learner`.

    Raises:
        ValueError: if the learner takes no gradient steps, `steps` is out of range, or as `cold_start`.
    """
    if not isinstance(learner, GradientLearner):
        raise ValueError(f"`learner` must adapt by gradient steps. Received: {type(learner).__name__}")
    if not len(steps) or any(not isinstance(number, int) or number < 0 for number in steps):
        raise ValueError(f"`steps` must be one or more ints, at least 0. Received: steps={steps!r}")
    rows = []
    for number in steps:
        with _taking(learner, max(number, 1)):
            who: Recommender = learner if number else _StartingPoint(learner)
            table: ColdStartTable = cold_start({"learner": who}, interactions, shots=shots, **options)
        rows.append(table.summary.select(pl.lit(number).alias("steps"), pl.exclude("learner")))
    return pl.concat(rows)


class _NotOfTracing(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return "retracing" not in record.getMessage()


@contextmanager
def many_graphs() -> Iterator[None]:
    """TensorFlow does not warn of graphs traced often, which is what a curve over steps is made of."""
    logger, own = tf.get_logger(), _NotOfTracing()  # Its own: another one within ends first.
    logger.addFilter(own)
    try:
        yield
    finally:
        logger.removeFilter(own)


@contextmanager
def _taking(learner: GradientLearner, steps: int) -> Iterator[None]:
    before = learner.adaptation_steps
    learner.adaptation_steps = steps
    try:
        with many_graphs():
            yield
    finally:
        learner.adaptation_steps = before
