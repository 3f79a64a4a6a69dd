"""What every method that crosses domains keeps to."""

import functools
import re

import numpy as np
import polars as pl
import pytest

import tfmetarec as tmr
from tfmetarec.tasks.episode import Support
from tfmetarec.transfer.adaptive import AdaptiveTransfer
from tfmetarec.transfer.cross_domain import Domains, available, load
from tfmetarec.transfer.distilled import DistilledTransfer
from tfmetarec.transfer.emcdr import EMCDR
from tfmetarec.transfer.fine_tuning import FineTuning
from tfmetarec.transfer.hierarchical import HierarchicalTransfer
from tfmetarec.transfer.joint_training import JointTraining
from tfmetarec.transfer.kernel import KernelTransfer
from tfmetarec.transfer.meta_transfer import MetaTransfer
from tfmetarec.transfer.ptupcdr import PTUPCDR


def learner(vocabulary):
    return tmr.meta.Ridge(tmr.models.TwoTower(vocabulary, 3, dropout=0.0))


def training(feedback):
    small = {"support": (0, 4), "query": 3, "tasks_per_batch": 8, "epochs": 1}
    return {**small, "negatives": 8} if feedback == "implicit" else small


MAKERS = {
    "joint_training": lambda feedback: JointTraining(3, iterations=2),
    "emcdr": lambda feedback: EMCDR(3, 4, epochs=2),
    "ptupcdr": lambda feedback: PTUPCDR(3, 4, epochs=2, longest=3),
    "hierarchical": lambda feedback: HierarchicalTransfer(3),
    "kernel": lambda feedback: KernelTransfer((1.0, 3.0)),
    "meta_transfer": lambda feedback: MetaTransfer(learner, **training(feedback)),
    "fine_tuning": lambda feedback: FineTuning(learner, frozen="item_encoder", source_epochs=1, **training(feedback)),
    "distilled": lambda feedback: DistilledTransfer(learner, JointTraining(3, iterations=2), **training(feedback)),
    "adaptive": lambda feedback: AdaptiveTransfer(JointTraining(3, iterations=2), standard_errors=0.0),
}
# What trains a learner takes seconds, so each is fitted on one kind of feedback, meta-transfer on both.
ONE_KIND = {"hierarchical": "explicit", "kernel": "implicit", "fine_tuning": "explicit", "distilled": "implicit"}
CASES = [(name, kind) for name in MAKERS for kind in ("explicit", "implicit") if ONE_KIND.get(name, kind) == kind]


class Case:
    """A method fitted once, with a tenth of the users left to choose on, and its domains."""

    def __init__(self, name, feedback):
        each = 10 if feedback == "explicit" else 6
        data = tmr.data.load(
            "synthetic", n_users=30, n_items=32, n_groups=2, interactions_per_user=each, noise=0.2, feedback=feedback
        )
        odd = pl.col("item_id") % 2 == 1
        held_out = pl.col("user_id") < 4
        self.domains = Domains.of(data.filter(odd), data.filter(~odd & ~held_out))
        self.validation = data.filter(~odd & held_out)
        self.method = MAKERS[name](feedback).fit(self.domains, self.validation)
        self.support = self.domains.support(list(range(10)))
        self.item = self.domains.candidates()


@pytest.fixture(scope="module")
def case_of():
    return functools.cache(Case)


@pytest.fixture(params=CASES, ids="-".join)
def case(request, case_of):
    return case_of(*request.param)


def test_every_method_is_tested_here():
    assert set(MAKERS) == set(available())


def test_target_items_are_scored_by_finite_numbers(case):
    scores = case.method.score(case.method.adapt(case.support), case.item)
    assert scores.shape == (10, len(case.domains.target_rows))
    assert np.isfinite(scores).all()


def test_items_common_to_all_and_items_of_each_score_alike(case):
    state = case.method.adapt(case.support)
    common = case.method.score(state, case.item)
    own = {name: np.repeat(value[None], 10, axis=0) for name, value in case.item.items()}
    np.testing.assert_allclose(case.method.score(state, own), common, rtol=1e-4, atol=1e-4)


def test_without_items_all_rows_are_scored(case):
    scores = case.method.score(case.method.adapt(case.support))
    assert scores.shape == (10, case.domains.vocabulary.n_items)
    if case.domains.feedback == "implicit":
        assert (scores[:, 0] == -np.inf).all()


def test_a_user_without_source_interactions_gets_what_everybody_gets(case):
    user = {name: np.repeat(value[:1], 10, axis=0) for name, value in case.support.user.items()}
    nobody = case.support._replace(user=user, length=np.zeros(10, np.int32))
    scores = case.method.score(case.method.adapt(nobody), case.item)
    np.testing.assert_allclose(scores, np.repeat(scores[:1], 10, axis=0), rtol=1e-5, atol=1e-5)


def test_what_is_past_the_length_changes_nothing(case):
    support = case.support._replace(length=np.full(10, 2, np.int32))
    other = support._replace(
        item={name: np.concatenate([value[:, :2], value[::-1, 2:]], axis=1) for name, value in support.item.items()},
        label=np.concatenate([support.label[:, :2], support.label[::-1, 2:]], axis=1),
    )
    scores = [case.method.score(case.method.adapt(given), case.item) for given in (support, other)]
    np.testing.assert_allclose(scores[0], scores[1], rtol=1e-4, atol=1e-5)


def test_a_saved_method_scores_the_same(case, tmp_path):
    case.method.save(tmp_path / "method")
    again = load(tmp_path / "method")
    assert type(again) is type(case.method)
    assert again.get_config() == case.method.get_config()
    scores = [method.score(method.adapt(case.support), case.item) for method in (case.method, again)]
    np.testing.assert_allclose(scores[0], scores[1], rtol=1e-5, atol=1e-5)


def test_supports_of_wrong_shapes_are_refused(case):
    wrong = case.support._replace(label=case.support.label[:, :1])
    message = '`support` must have `item["item_id"]` and `label` of shape (T, S) and `length` of shape (T,)'
    with pytest.raises(ValueError, match=re.escape(message)):
        case.method.adapt(wrong)
    wrong = case.support._replace(length=case.support.length + 99)
    with pytest.raises(ValueError, match=r"`length` of `support` must be between 0 and \d+\. Received: 1\d\d to 1\d\d"):
        case.method.adapt(wrong)


def test_another_catalogue_is_refused_with_both_sizes(case):
    size = case.domains.vocabulary.n_items
    foreign = Support({"user_id": np.zeros(1, int)}, {"item_id": np.array([[99]])}, np.ones((1, 1)), np.array([1]))
    message = f"`support` must come from the catalogue of both domains, which has {size} rows. Received: row 99, of a"
    with pytest.raises(ValueError, match=re.escape(f"{message} catalogue of at least 100")):
        case.method.adapt(foreign)
    with pytest.raises(
        ValueError, match=re.escape(f"`item` must come from the catalogue of both domains, which has {size}")
    ):
        case.method.score(case.method.adapt(case.support), {"item_id": np.array([99])})


@pytest.mark.parametrize("name", MAKERS)
def test_a_method_that_is_not_fitted_says_so(name):
    method = MAKERS[name]("explicit")
    for verb in (lambda: method.adapt(None), lambda: method.score(None), lambda: method.save("nowhere")):
        with pytest.raises(RuntimeError, match="needs a fitted method; call `fit"):
            verb()


def test_a_kind_of_feedback_that_a_method_does_not_take_is_refused(case_of):
    domains = case_of("joint_training", "implicit").domains
    with pytest.raises(
        ValueError, match=r"hierarchical transfer takes explicit feedback\. Received: implicit feedback"
    ):
        HierarchicalTransfer().fit(domains)


@pytest.mark.parametrize("kind", [MetaTransfer, FineTuning])
def test_a_learner_is_made_for_the_vocabulary_of_both_domains(kind, case_of):
    domains = case_of("joint_training", "explicit").domains
    other = tmr.data.Vocabulary.fit(domains.source)
    with pytest.raises(ValueError, match=r"of 33 items\. Received: a learner of 17 items"):
        kind(lambda vocabulary: learner(other)).fit(domains)
    with pytest.raises(ValueError, match="`learner` must be a function from a vocabulary to a learner"):
        kind(learner(other))
    with pytest.raises(ValueError, match="`learner` must be given to fit"):
        kind().fit(domains)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: EMCDR(hidden=-1), "`hidden` must be at least 0. Received: hidden=-1"),
        (lambda: EMCDR(epochs=0), "`epochs` must be at least 1. Received: epochs=0"),
        (lambda: PTUPCDR(longest=0), "`longest` must be at least 1. Received: longest=0"),
        (lambda: PTUPCDR(learning_rate=0), "`learning_rate` must be greater than 0. Received: learning_rate=0"),
        (lambda: JointTraining(0), "`factors` must be at least 1. Received: factors=0"),
        (lambda: HierarchicalTransfer(0), "`iterations` must be at least 1. Received: iterations=0"),
        (lambda: KernelTransfer(()), "`penalties` must be one or more, greater than 0. Received: penalties=()"),
        (lambda: MetaTransfer(epochs=0), "`epochs` must be at least 1. Received: epochs=0"),
        (lambda: FineTuning(source_epochs=0), "`source_epochs` must be at least 1. Received: source_epochs=0"),
        (lambda: FineTuning(thaw_after=1), "`thaw_after` must be at least 0, and needs `frozen`"),
        (lambda: DistilledTransfer(alpha=2), "`alpha` must be between 0 and 1. Received: alpha=2"),
        (lambda: AdaptiveTransfer(shrinkage=-1), "`shrinkage` must be at least 0. Received: shrinkage=-1"),
    ],
)
def test_settings_out_of_range_are_named(make, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make()
