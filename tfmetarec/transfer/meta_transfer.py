"""Meta-transfer: a learner is trained on tasks whose support lies in the source and whose query in the target.

Tasks are users. A learner that is good at them has learned to cross: to say from what somebody did in one domain what
the same person does in the other.
"""

from tfmetarec.transfer.cross_domain import Domains, Judged
from tfmetarec.transfer.learner_transfer import LearnerTransfer


class MetaTransfer(LearnerTransfer):
    """Trains a meta-learner (MAML, Ridge or any other) to cross from the source to the target.

    Args:
        learner: function from a `Vocabulary` to a learner built on it; it and the other options are those of
            `LearnerTransfer`.

    Reference: tasks over two domains as in [TMCDR, Zhu et al., 2021](https://doi.org/10.1145/3404835.3463010)
    """

    name = "meta-transfer"

    def _fit(self, domains: Domains, validation: Judged | None) -> None:
        self.learner = self.made_learner(domains.vocabulary)
        episodes = self.crossing_episodes(domains)
        self.chosen_epochs = self.train(episodes, self.epochs, validation, self.chosen_epochs)
