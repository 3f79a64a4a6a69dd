"""Users held out from training, on whom an export measures what it gives up: recall of a search, nDCG of fewer bits."""

from dataclasses import dataclass

import numpy as np

from tfmetarec.data.interactions import Interactions
from tfmetarec.evaluation.cold_start import cold_start
from tfmetarec.export.encoded_learner import EncodedLearner
from tfmetarec.export.signatures import ServedLearner
from tfmetarec.meta.learner import MetaLearner
from tfmetarec.tasks.episode import Support
from tfmetarec.tasks.table import TaskTable


@dataclass(frozen=True)
class Holdout:
    """What an export is measured on.

    Args:
        interactions: of users that the learner was not trained on, e.g. `split.validation`.
        shots: ints, at least 0. Support sizes to judge at.
        query: int, at least 1. Interactions that a user is judged on.
        order: "time" or "random", see `evaluation.cold_start`.
        seed: int.
    """

    interactions: Interactions
    shots: tuple[int, ...] = (1, 5, 10)
    query: int = 10
    order: str | None = None
    seed: int = 0


@dataclass(frozen=True)
class PrecisionCost:
    """What fewer bits cost.

    Attributes:
        metric: name of the metric.
        float32: its mean over users and support sizes with 32 bits.
        reduced: the same with fewer.
    """

    metric: str
    float32: float
    reduced: float

    @property
    def change(self) -> float:
        """Relative change, negative where fewer bits are worse."""
        return self.reduced / self.float32 - 1 if self.float32 else 0.0


def precision_cost(served: ServedLearner, holdout: Holdout) -> PrecisionCost:
    """nDCG of `served`, which has fewer bits, against the same export in 32, on the same users.

    Items that were added are left out: no held-out user has met one.
    """
    whole = ServedLearner(served.learner, served.top_k, vocabulary=served.vocabulary)
    names = {"float32": whole, "reduced": served}
    table = cold_start(
        {name: EncodedLearner(each) for name, each in names.items()},
        holdout.interactions,
        vocabulary=served.learner.vocabulary,
        shots=holdout.shots,
        query=holdout.query,
        top_k=served.top_k,
        order=holdout.order,
        seed=holdout.seed,
    )
    metric = next(name for name in table.summary["metric"].unique(maintain_order=True) if name.startswith("ndcg"))
    means = [float(table.per_user.filter(learner=name)[metric].mean()) for name in names]
    return PrecisionCost(metric, *means)


def queries(learner: MetaLearner, holdout: Holdout) -> np.ndarray:
    """`(U, D)` query vectors of held-out users, adapted to their first interactions, at most `max(holdout.shots)`."""
    vocabulary = learner.vocabulary
    assert vocabulary is not None
    table = TaskTable.build(holdout.interactions, vocabulary)
    most = max(*holdout.shots, 1)
    found = []
    for first in range(0, len(table), 128):
        start = table.start[:-1][first : first + 128]
        length = np.minimum(table.sizes[first : first + 128], most)
        slots = start[:, None] + np.minimum(np.arange(most), length[:, None] - 1)
        support = Support(
            table.users.take(table.user[start]),
            table.items.take(table.item[slots]),
            table.label[slots],
            length.astype(np.int32),
        )
        found.append(learner.query(learner.adapt(support)).numpy())
    return np.concatenate(found)
