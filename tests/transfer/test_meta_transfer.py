import numpy as np
import polars as pl
import pytest

import tfmetarec as tmr
from tfmetarec.transfer.cross_domain import Domains, judged
from tfmetarec.transfer.distilled import DistilledTransfer
from tfmetarec.transfer.joint_training import JointTraining
from tfmetarec.transfer.meta_transfer import MetaTransfer


def shop(**options):
    data = tmr.data.load("synthetic", n_users=60, n_items=40, n_groups=2, interactions_per_user=10, **options)
    odd = pl.col("item_id") % 2 == 1
    return data.filter(odd), data.filter(~odd)


SMALL = {"support": (1, 5), "query": 4, "tasks_per_batch": 8}


@pytest.mark.slow
def test_a_learner_learns_to_cross():
    source, target = shop()
    cold = pl.col("user_id") < 20
    domains = Domains.of(source, target.filter(~cold))

    def learner(vocabulary):
        made = tmr.meta.Ridge(tmr.models.TwoTower(vocabulary, 4, dropout=0.0, id_dropout=0.0))
        made.compile(optimizer=tmr.optimizers.RowSparseAdam(0.05))
        return made

    method = MetaTransfer(learner, epochs=6, negatives=20, **SMALL).fit(domains, target.filter(cold))
    planted = tmr.data.sources.synthetic.truth(60, 40, 2)
    users = [user for user in range(20) if user in set(source.table["user_id"])]
    scores = method.score(method.adapt(domains.support(users)), domains.candidates())
    best = domains.vocabulary.item_ids[domains.target_rows[np.argmax(scores, axis=1)]].astype(int)
    assert (planted.item_group[best] == planted.user_group[users]).mean() > 0.9


def test_the_weights_kept_are_those_of_the_best_epoch():
    source, target = shop(feedback="explicit")
    cold = pl.col("user_id") < 10
    domains = Domains.of(source, target.filter(~cold))
    losses = []

    class Watched(MetaTransfer):
        def validation_loss(self, validation):
            losses.append(super().validation_loss(validation))
            return losses[-1]

    def learner(vocabulary):
        made = tmr.meta.Ridge(tmr.models.TwoTower(vocabulary, 3, dropout=0.0))
        made.compile(optimizer=tmr.optimizers.RowSparseAdam(0.3))  # So large that it gets worse again.
        return made

    method = Watched(learner, epochs=4, **SMALL)
    method.fit(domains, target.filter(cold))
    assert method.chosen_epochs == 1 + int(np.argmin(losses))
    assert method.validation_loss(judged(domains, target.filter(cold))) == pytest.approx(min(losses), rel=1e-5)


def test_a_student_needs_a_teacher():
    source, target = shop(feedback="explicit")
    with pytest.raises(ValueError, match="`teacher` must be given to fit"):
        DistilledTransfer().fit(Domains.of(source, target))


@pytest.mark.slow
def test_with_all_weight_on_the_teacher_the_student_says_what_the_teacher_says():
    source, target = shop(feedback="explicit")
    domains = Domains.of(source, target)
    teacher = JointTraining(2, iterations=3)

    def learner(vocabulary):
        made = tmr.meta.Ridge(tmr.models.TwoTower(vocabulary, 3, dropout=0.0, id_dropout=0.0))
        made.compile(optimizer=tmr.optimizers.RowSparseAdam(0.03))
        return made

    def distance(epochs):
        method = DistilledTransfer(learner, teacher, alpha=1.0, epochs=epochs, **SMALL).fit(domains)
        support = domains.support(list(range(20)))
        taught, learned = (m.score(m.adapt(support), domains.candidates()) for m in (teacher, method))
        return np.square(taught - learned).mean()

    assert distance(8) < 0.5 * distance(1)
