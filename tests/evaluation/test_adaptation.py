"""Curves over the steps of adaptation."""

import numpy as np
import pytest

import tfmetarec as tmr
from tfmetarec.evaluation import adaptation_curve, cold_start
from tfmetarec.evaluation.adaptation import many_graphs


@pytest.fixture(scope="module")
def planted():
    data = tmr.data.load("synthetic", n_users=60, n_items=40, n_groups=4, interactions_per_user=8, seed=0)
    split = tmr.data.cold_users(data, seed=0)
    vocabulary = tmr.data.Vocabulary.fit(split.train)
    model = tmr.models.TwoTower(vocabulary, 8, seed=0)
    return split, tmr.meta.MAML(model, inner_steps=2, inner_learning_rate=1.0, contrast=20)


OPTIONS = {"query": 3, "top_k": 5}


def test_each_number_of_steps_is_that_of_a_learner_that_takes_so_many(planted):
    split, learner = planted
    found = adaptation_curve(learner, split.test, steps=(0, 1, 2, 3), shots=(2, 4), **OPTIONS)
    assert found["steps"].unique(maintain_order=True).to_list() == [0, 1, 2, 3]
    assert learner.adaptation_steps is None
    for steps in (1, 3):
        other = tmr.meta.MAML(
            learner.model, inner_steps=2, adaptation_steps=steps, inner_learning_rate=1.0, contrast=20
        )
        table = cold_start({"other": other}, split.test, shots=(2, 4), **OPTIONS)
        own = found.filter(found["steps"] == steps)
        np.testing.assert_allclose(own["mean"], table.summary["mean"])
    start = found.filter((found["steps"] == 0) & (found["metric"] == "novelty@5"))
    own = cold_start({"it": learner}, split.test, shots=(0, 4), **OPTIONS).summary  # K=0, the same query.
    assert start.filter(start["K"] == 4)["users"].item() == own["users"][0]


def test_changed_steps_change_the_answer_of_a_learner_that_has_answered_before(planted):
    split, learner = planted
    table = tmr.tasks.table.TaskTable.build(split.test, learner.vocabulary, min_interactions=4)
    from tfmetarec.evaluation.cold_start import questions

    ((_, question),) = questions(table, table.start[:-1, None] + np.arange(4), 3, 3)
    once = [np.asarray(w) for w in learner.adapt(question.support).weights]
    learner.adaptation_steps = 6
    more = [np.asarray(w) for w in learner.adapt(question.support).weights]
    learner.adaptation_steps = None
    again = [np.asarray(w) for w in learner.adapt(question.support).weights]
    assert max(np.abs(a - b).max() for a, b in zip(once, more, strict=True)) > 1e-4
    for a, b in zip(once, again, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_learner_without_steps_and_steps_out_of_range_are_refused(planted):
    split, learner = planted
    with pytest.raises(ValueError, match="`learner` must adapt by gradient steps. Received: Ridge"):
        adaptation_curve(tmr.meta.Ridge(learner.model), split.test)
    with pytest.raises(ValueError, match=r"`steps` must be one or more ints, at least 0. Received: steps=\(-1,\)"):
        adaptation_curve(learner, split.test, steps=(-1,))


def test_tensorflow_is_quiet_about_many_graphs_until_the_outermost_ends():
    import tensorflow as tf

    logger, warning = tf.get_logger(), "triggered tf.function retracing"
    before = list(logger.filters)
    with many_graphs():
        with many_graphs():
            pass
        assert not logger.filter(logger.makeRecord("", 30, "", 0, warning, (), None))
        assert logger.filter(logger.makeRecord("", 30, "", 0, "something else", (), None))
    assert logger.filters == before
