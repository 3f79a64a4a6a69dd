"""What the ways to cross share that train a learner: its making, its episodes, and the choice of an epoch."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfmetarec.data.vocabulary import Vocabulary
from tfmetarec.optimizers import RowSparseAdam
from tfmetarec.tasks.batching import Episodes
from tfmetarec.tasks.cross_domain import cross_domain_episodes
from tfmetarec.tasks.episode import Features, Support
from tfmetarec.transfer.cross_domain import CrossDomainMethod, Domains, Judged

MakeLearner = Callable[[Vocabulary], Any]


class LearnerTransfer(CrossDomainMethod):
    """A way to cross whose recommender is a learner, which can be served like any other.

    Args:
        learner: function from a `Vocabulary` to a learner built on it, such as
            `lambda vocabulary: tmr.meta.Ridge(tmr.models.TwoTower(vocabulary, 16))`. Compile the learner in it, or
            leave it to be compiled with `RowSparseAdam`. `None` only to load what was saved.
        support: int, or least and most interactions of a task's support. Defaults to 0 to 50.
        query: int, at least 1. Most target interactions of a task. Defaults to 20.
        tasks_per_batch: int, at least 1. Defaults to 32.
        epochs: int, at least 1. In the target: the most that are tried where there are validation users, else how many.
            Defaults to 10.
        learning_rate: float, greater than 0. Of a learner that is not compiled. Defaults to 0.003.
        negatives: int, or `None` for the default of episodes.
        seed: int, at least 0. Of the episodes. Defaults to 0.

    Raises:
        ValueError: for an option out of range.
    """

    def __init__(
        self,
        learner: MakeLearner | None = None,
        *,
        support: int | tuple[int, int] = (0, 50),
        query: int = 20,
        tasks_per_batch: int = 32,
        epochs: int = 10,
        learning_rate: float = 0.003,
        negatives: int | None = None,
        seed: int = 0,
    ):
        if learner is not None and (hasattr(learner, "adapt") or not callable(learner)):
            raise ValueError(
                "`learner` must be a function from a vocabulary to a learner: the vocabulary of both domains is not "
                f"known before `fit`. Received: {type(learner).__name__}"
            )
        if epochs < 1:
            raise ValueError(f"`epochs` must be at least 1. Received: epochs={epochs}")
        if not learning_rate > 0:
            raise ValueError(f"`learning_rate` must be greater than 0. Received: learning_rate={learning_rate}")
        self.make_learner = learner
        self.support = support if isinstance(support, int) else tuple(support)
        self.query, self.tasks_per_batch, self.epochs = query, tasks_per_batch, epochs
        self.learning_rate, self.negatives, self.seed = learning_rate, negatives, seed
        self.chosen_epochs: int | None = None

    def get_config(self) -> dict[str, Any]:
        names = ("support", "query", "tasks_per_batch", "epochs", "learning_rate", "negatives", "seed")
        return {name: getattr(self, name) for name in names}

    @property
    def episode_options(self) -> dict[str, Any]:
        """What every kind of episodes takes."""
        names = ("support", "query", "tasks_per_batch", "negatives", "seed")
        return {name: getattr(self, name) for name in names}

    def crossing_episodes(self, domains: Domains) -> Episodes:
        """Episodes whose support is of the source and whose query is of the target."""
        return cross_domain_episodes(domains.source, domains.target, domains.vocabulary, **self.episode_options)

    def made_learner(self, vocabulary: Vocabulary) -> Any:
        """A compiled learner for a vocabulary.

        Raises:
            ValueError: if there is no function to make one, or it makes one for another catalogue.
        """
        if self.make_learner is None:
            raise ValueError("`learner` must be given to fit. Received: learner=None")
        learner = self.make_learner(vocabulary)
        own = getattr(learner, "vocabulary", None)
        if own is not None and own.n_items != vocabulary.n_items:
            raise ValueError(
                f"`learner` must be built on the vocabulary it is given, of {vocabulary.n_items:,} items. "
                f"Received: a learner of {own.n_items:,} items"
            )
        if getattr(learner, "optimizer", None) is None:
            learner.compile(optimizer=RowSparseAdam(self.learning_rate))
        return learner

    def train(
        self,
        episodes: Episodes,
        epochs: int,
        validation: Judged | None,
        chosen: int | None,
        trainer: Any = None,
    ) -> int | None:
        """Fits the learner and keeps the weights of the epoch that was best on validation users.

        Args:
            episodes: what it is fitted on.
            epochs: int. The most that are tried; without validation how many, unless chosen before.
            validation: users, or `None`.
            chosen: epochs that were chosen before, or `None`.
            trainer: what has `fit`, if it is not the learner itself.

        Returns:
            How many epochs were best, or what was chosen before.
        """
        trainer = self.learner if trainer is None else trainer
        if validation is None:
            trainer.fit(episodes, epochs=chosen or epochs, verbose=0)
            return chosen
        best, best_epoch, weights = np.inf, chosen, None
        for epoch in range(epochs):
            trainer.fit(episodes, initial_epoch=epoch, epochs=epoch + 1, verbose=0)
            loss = self.validation_loss(validation)
            if loss < best:
                best, best_epoch = loss, epoch + 1
                weights = tf.nest.map_structure(np.copy, self.learner.get_weights())
        if weights is None:
            raise ValueError("training diverged: no epoch has a finite loss on validation users")
        self.learner.set_weights(weights)
        return best_epoch

    def _adapt(self, support: Support) -> Any:
        return self.learner.adapt(support)

    def _score(self, state: Any, item: Features) -> Any:
        return self.learner.score(state, item=item)

    def _save(self, folder: Path) -> None:
        self.learner.save(folder / "learner.keras")

    def _restore(self, folder: Path) -> None:
        self.learner = keras.saving.load_model(folder / "learner.keras")
