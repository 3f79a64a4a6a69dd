"""Distillation across domains: a teacher that crosses by any method, a student that learners can adapt and serve."""

from typing import Any

from tfmetarec.transfer.cross_domain import CrossDomainMethod, Domains, Judged
from tfmetarec.transfer.distillation import Distiller
from tfmetarec.transfer.learner_transfer import LearnerTransfer, MakeLearner


class DistilledTransfer(LearnerTransfer):
    """Fits a teacher on both domains, then a learner to say of target items what the teacher says.

    Both see the same source support. The student learns from the true target labels and the teacher's together; what is
    kept, saved and served is the student alone.

    Args:
        learner: function from a `Vocabulary` to the student.
        teacher: `CrossDomainMethod`, not necessarily fitted: it is fitted here. `None` only to load what was saved.
        alpha: float in [0, 1]. The share of the teacher in the loss. Defaults to 0.5.
        **options: of `LearnerTransfer`.

    Reference: [Hinton et al., 2015](https://arxiv.org/abs/1503.02531)
    """

    name = "distilled transfer"

    def __init__(
        self,
        learner: MakeLearner | None = None,
        teacher: CrossDomainMethod | None = None,
        *,
        alpha: float = 0.5,
        **options: Any,
    ):
        super().__init__(learner, **options)
        if not 0 <= alpha <= 1:
            raise ValueError(f"`alpha` must be between 0 and 1. Received: alpha={alpha}")
        self.teacher, self.alpha = teacher, alpha

    def get_config(self) -> dict[str, Any]:
        return {"alpha": self.alpha, **super().get_config()}

    def fit(self, domains: Domains, validation: Any = None) -> "DistilledTransfer":
        """Fits the teacher, then the student. See `CrossDomainMethod.fit`."""
        if self.teacher is None:
            raise ValueError("`teacher` must be given to fit. Received: teacher=None")
        self.teacher.fit(domains, validation)
        return super().fit(domains, validation)

    def _fit(self, domains: Domains, validation: Judged | None) -> None:
        self.learner = self.made_learner(domains.vocabulary)
        distiller = Distiller(self.learner, self.teacher, alpha=self.alpha)
        # The learner's own loss: it adapts by it, and the hard loss is its outer one.
        distiller.compile(self.learner.optimizer, loss=getattr(self.learner, "task_loss", None))
        episodes = self.crossing_episodes(domains)
        self.chosen_epochs = self.train(episodes, self.epochs, validation, self.chosen_epochs, trainer=distiller)
