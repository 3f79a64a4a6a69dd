"""Distillation across domains: a teacher that crosses by any method, a student that learners can adapt and serve."""

from pathlib import Path
from typing import Any

import keras

from tfmetarec.tasks.episode import Features, Support
from tfmetarec.transfer.cross_domain import CrossDomainMethod, Domains, Judged
from tfmetarec.transfer.distillation import Distiller
from tfmetarec.transfer.meta_transfer import MakeLearner, check_training, crossing_episodes, made_learner, train


class DistilledTransfer(CrossDomainMethod):
    """Fits a teacher on both domains, then a learner to say of target items what the teacher says.

    Both see the same source support. The student learns from the true target labels and the teacher's together; what is
    kept, saved and served is the student alone.

    Args:
        learner: function from a `Vocabulary` to the student; see `MetaTransfer`.
        teacher: `CrossDomainMethod`, not necessarily fitted: it is fitted here. `None` only to load what was saved.
        alpha: float in [0, 1]. The share of the teacher in the loss. Defaults to 0.5.
        support: int, or least and most source interactions of a task. Defaults to 0 to 50.
        query: int, at least 1. Most target interactions of a task. Defaults to 20.
        tasks_per_batch: int, at least 1. Defaults to 32.
        epochs: int, at least 1. The most that are tried where there are validation users, else how many. Defaults to
        10.
        learning_rate: float, greater than 0. Of the student. Defaults to 0.003.
        negatives: int, or `None` for the default of episodes.
        seed: int, at least 0. Of the episodes. Defaults to 0.

    Reference: [Hinton et al., 2015](https://arxiv.org/abs/1503.02531)
    """

    name = "distilled transfer"

    def __init__(
        self,
        learner: MakeLearner | None = None,
        teacher: CrossDomainMethod | None = None,
        *,
        alpha: float = 0.5,
        support: int | tuple[int, int] = (0, 50),
        query: int = 20,
        tasks_per_batch: int = 32,
        epochs: int = 10,
        learning_rate: float = 0.003,
        negatives: int | None = None,
        seed: int = 0,
    ):
        check_training(learner, epochs, learning_rate)
        if not 0 <= alpha <= 1:
            raise ValueError(f"`alpha` must be between 0 and 1. Received: alpha={alpha}")
        self.make_learner, self.teacher, self.alpha = learner, teacher, alpha
        self.support = support if isinstance(support, int) else tuple(support)
        self.query, self.tasks_per_batch, self.epochs = query, tasks_per_batch, epochs
        self.learning_rate, self.negatives, self.seed = learning_rate, negatives, seed
        self.chosen_epochs: int | None = None

    def get_config(self) -> dict[str, Any]:
        names = ("alpha", "support", "query", "tasks_per_batch", "epochs", "learning_rate", "negatives", "seed")
        return {name: getattr(self, name) for name in names}

    def fit(self, domains: Domains, validation: Any = None) -> "DistilledTransfer":
        """Fits the teacher, then the student. See `CrossDomainMethod.fit`."""
        if self.teacher is None:
            raise ValueError("`teacher` must be given to fit. Received: teacher=None")
        self.teacher.fit(domains, validation)
        return super().fit(domains, validation)

    def _fit(self, domains: Domains, validation: Judged | None) -> None:
        self.learner = made_learner(self.make_learner, domains.vocabulary, self.learning_rate)
        distiller = Distiller(self.learner, self.teacher, alpha=self.alpha)
        # The learner's own loss: it adapts by it, and the hard loss is its outer one.
        distiller.compile(self.learner.optimizer, loss=getattr(self.learner, "task_loss", None))
        episodes = crossing_episodes(self, domains)
        self.chosen_epochs = train(
            self, self.learner, episodes, self.epochs, validation, self.chosen_epochs, trainer=distiller
        )

    def _adapt(self, support: Support) -> Any:
        return self.learner.adapt(support)

    def _score(self, state: Any, item: Features) -> Any:
        return self.learner.score(state, item=item)

    def _save(self, folder: Path) -> None:
        self.learner.save(folder / "learner.keras")

    def _restore(self, folder: Path) -> None:
        self.learner = keras.saving.load_model(folder / "learner.keras")
