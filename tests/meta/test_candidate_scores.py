"""Scores of candidates after adapting as in training: what distillation differentiates."""

import numpy as np
import pytest
import tensorflow as tf

import tfmetarec as tmr

ALGORITHMS = {
    "Ridge": {},
    "MAML": {"inner_steps": 2, "inner_learning_rate": 0.3},
    "NeuralProcess": {"representation": 3, "hidden": (4,)},
    "SetEncoder": {"representation": 3, "hidden": (4,), "dropout": 0.0},
    "PrototypicalNetwork": {},
    "MetaSGD": {"inner_learning_rate": 0.3},
}


def small(vocabulary):
    return tmr.models.TwoTower(vocabulary, 3, dropout=0.0, id_dropout=0.0)


@pytest.mark.parametrize(
    "name", ["Ridge", "MAML", *(pytest.param(name, marks=pytest.mark.slow) for name in list(ALGORITHMS)[2:])]
)
def test_the_gradient_goes_through_adapting(float64, by_the_book, implicit, first_batch, name):
    learner = getattr(tmr.meta, name)(small(implicit.vocabulary), **ALGORITHMS[name])
    by_the_book.randomise(learner)
    episode = by_the_book.in_float64(first_batch(implicit.episodes))
    groups = [episode.query.item, episode.query_negatives.item]
    along = tf.constant(np.random.default_rng(0).normal(size=(6, 15)))

    @tf.function(autograph=False)
    def step():
        variables = [variable.value for variable in learner.trainable_variables]
        with tf.GradientTape() as tape:
            _, scores = learner.candidate_scores(episode, groups, with_loss=False)
            total = tf.reduce_sum(along * tf.tanh(scores))
        return total, tape.gradient(total, variables, unconnected_gradients="zero")

    def run():
        total, gradients = step()
        return float(total), [tf.convert_to_tensor(gradient).numpy() for gradient in gradients]

    _, gradients = run()
    adapted = {id(variable) for variable in learner.adapted_variables}
    pairs = zip(learner.trainable_variables, gradients, strict=True)
    assert any(np.abs(gradient).max() > 1e-4 for variable, gradient in pairs if id(variable) in adapted)
    by_the_book.assert_matches_finite_differences(run, learner.trainable_variables, gradients)


@pytest.mark.parametrize("name", ["Ridge", "MAML"])
def test_the_loss_beside_them_is_the_learners_own(implicit, first_batch, name):
    learner = getattr(tmr.meta, name)(small(implicit.vocabulary), **ALGORITHMS[name])
    episode = tf.nest.map_structure(tf.constant, first_batch(implicit.episodes))
    groups = [episode.query.item, implicit.vocabulary.catalogue]
    outer, scores = tf.function(learner.candidate_scores, autograph=False)(episode, groups)
    loss, _, query_scores = tf.function(learner.meta_gradients, autograph=False)(episode)
    assert float(outer.loss) == pytest.approx(float(loss), rel=1e-5)
    assert scores.shape[1] == 3 + implicit.vocabulary.n_items
    np.testing.assert_allclose(scores[:, :3], query_scores, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(outer.scores, query_scores, rtol=1e-4, atol=1e-5)
