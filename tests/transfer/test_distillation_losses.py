"""Losses against numbers worked out by hand, derivatives against differences, and what must not matter."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfmetarec.transfer.distillation_losses import (
    BinarySoftLabels,
    FeatureHints,
    RankingDistillation,
    RelaxedRanking,
    SoftmaxSoftLabels,
    SquaredSoftLabels,
    function_from_config,
)

LOSSES = [
    BinarySoftLabels(2.0),
    SoftmaxSoftLabels(2.0),
    SquaredSoftLabels(),
    RankingDistillation(3, position_decay=2.0, discrepancy_scale=0.5),
    RankingDistillation(2, weights="position"),
    RelaxedRanking(3),
]
every_loss = pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: type(loss).__name__)
kl = [loss for loss in LOSSES if isinstance(loss, BinarySoftLabels | SoftmaxSoftLabels | SquaredSoftLabels)]


def scores(lists=4, candidates=6, seed=0):
    """Student and teacher in float64, neither with ties."""
    rng = np.random.default_rng(seed)
    return tf.constant(rng.normal(size=(lists, candidates))), tf.constant(rng.normal(size=(lists, candidates)) * 2)


def gradient(loss, student, *others):
    with tf.GradientTape() as tape:
        tape.watch(student)
        value = loss(student, *others)
    return tape.gradient(value, student)


# -- numbers by hand ---------------------------------------------------------------------------------------------

# KL((3/4, 1/4), (1/2, 1/2)) = 3/4 log(3/2) + 1/4 log(1/2) = 0.304099 - 0.173287
QUARTERS = 0.130812


def test_binary_soft_labels_are_a_divergence_of_probabilities():
    log3 = np.log(3.0)
    assert float(BinarySoftLabels()([[0.0]], [[log3]])) == pytest.approx(QUARTERS, rel=1e-5)
    assert float(BinarySoftLabels()([[0.0]], [[-log3]])) == pytest.approx(QUARTERS, rel=1e-5)
    # The mean over candidates, then over lists: (0.130812 + 0) / 2 and 0.130812.
    assert float(BinarySoftLabels()([[0.0, 5.0], [0.0, 0.0]], [[log3, 5.0], [log3, log3]])) == pytest.approx(
        0.75 * QUARTERS, rel=1e-5
    )


def test_binary_soft_labels_at_a_temperature_divide_scores_and_multiply_by_its_square():
    assert float(BinarySoftLabels(2.0)([[0.0]], [[2 * np.log(3.0)]])) == pytest.approx(4 * QUARTERS, rel=1e-5)


def test_softmax_soft_labels_are_a_divergence_of_distributions():
    student, teacher = [[0.0, 0.0]], [[np.log(3.0), 0.0]]
    assert float(SoftmaxSoftLabels()(student, teacher)) == pytest.approx(QUARTERS, rel=1e-5)
    assert float(SoftmaxSoftLabels(2.0)(student, 2 * np.asarray(teacher))) == pytest.approx(4 * QUARTERS, rel=1e-5)
    # (1/2, 1/4, 1/4) from thirds: 1/2 log(3/2) + 1/2 log(3/4) = 0.202733 - 0.143841
    assert float(SoftmaxSoftLabels()([[7.0] * 3], [[np.log(2.0), 0.0, 0.0]])) == pytest.approx(0.058892, rel=1e-4)


def test_squared_soft_labels_are_a_mean_of_squares():
    assert float(SquaredSoftLabels()([[1.0, 2.0], [0.0, 0.0]], [[4.0, 2.0], [1.0, 1.0]])) == pytest.approx(
        (4.5 + 1) / 2
    )


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        # The teacher's first two are items 0 and 1, with -log sigmoid of 0 and of 1: 0.693147 and 0.313262.
        ("uniform", (0.693147 + 0.313262) / 2),
        # exp(-1) and exp(-2) as shares: 0.731059 and 0.268941.
        ("position", 0.731059 * 0.693147 + 0.268941 * 0.313262),
        # The student has them third and second: tanh(3 - 1) and tanh(2 - 2) = 0.
        ("discrepancy", 0.693147),
        ("hybrid", 0.693147),
    ],
)
def test_ranking_distillation_weighs_the_teachers_best(weights, expected):
    loss = RankingDistillation(2, weights=weights, position_decay=1.0)
    assert float(loss([[0.0, 1.0, 2.0, -1.0]], [[3.0, 2.0, 1.0, 0.0]])) == pytest.approx(expected, rel=1e-5)


def test_the_hybrid_weight_is_the_product_of_both():
    # The student has the teacher's first two as its third and fourth: tanh(2) exp(-1) and tanh(2) exp(-2).
    student, teacher = [[0.0, -1.0, 2.0, 1.0]], [[3.0, 2.0, 1.0, 0.0]]
    expected = 0.731059 * 0.693147 + 0.268941 * 1.313262
    loss = RankingDistillation(2, weights="hybrid", position_decay=1.0)
    assert float(loss(student, teacher)) == pytest.approx(expected, rel=1e-5)


def test_a_student_that_ranks_as_the_teacher_needs_no_push():
    for weights in ("discrepancy", "hybrid"):
        assert float(RankingDistillation(3, weights=weights)([[3.0, 2.0, 1.0]], [[9.0, 8.0, 7.0]])) == 0.0


def test_relaxed_ranking_is_the_likelihood_of_the_teachers_order():
    # The teacher draws item 1, then item 0: exp(0) / (exp(1) + exp(0) + exp(2)) = 0.090031, then
    # exp(1) / (exp(1) + exp(2)) = 0.268941; -log of them 2.407606 and 1.313262.
    loss = RelaxedRanking(2)([[1.0, 0.0, 2.0]], [[2.0, 3.0, 1.0]])
    assert float(loss) == pytest.approx((2.407606 + 1.313262) / 2, rel=1e-5)


def test_relaxed_ranking_of_everything_is_that_of_the_whole_order():
    # 0.090031 and 0.268941 as before; the last is the only one left.
    loss = RelaxedRanking(5)([[1.0, 0.0, 2.0]], [[2.0, 3.0, 1.0]])
    assert float(loss) == pytest.approx((2.407606 + 1.313262 + 0.0) / 3, rel=1e-5)


def test_the_order_of_uninteresting_items_does_not_matter():
    student, _ = scores()
    teacher = tf.constant([[9.0, 8.0, 1.0, 2.0, 3.0, 4.0]] * 4, tf.float64)
    shuffled = tf.constant([[9.0, 8.0, 4.0, 3.0, 1.0, 2.0]] * 4, tf.float64)
    assert float(RelaxedRanking(2)(student, teacher)) == float(RelaxedRanking(2)(student, shuffled))
    assert float(RelaxedRanking(3)(student, teacher)) != float(RelaxedRanking(3)(student, shuffled))
    # And it pulls each of them down by its own share of the probability, not towards a place.
    pull = gradient(RelaxedRanking(1), student, teacher).numpy() * 4
    np.testing.assert_allclose(pull[:, 1:], tf.nn.softmax(student).numpy()[:, 1:], rtol=1e-9)


# -- derivatives ---------------------------------------------------------------------------------------------------


@every_loss
def test_the_gradient_is_that_of_finite_differences(loss):
    student, teacher = scores()
    found, epsilon = gradient(loss, student, teacher).numpy(), 1e-6
    for place in np.ndindex(*student.shape):
        step = np.zeros(student.shape)
        step[place] = epsilon
        slope = (float(loss(student + step, teacher)) - float(loss(student - step, teacher))) / (2 * epsilon)
        assert found[place] == pytest.approx(slope, abs=1e-7), place


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_the_gradient_of_a_softmax_is_the_difference_of_the_distributions(temperature):
    student, teacher = scores()
    difference = tf.nn.softmax(student / temperature) - tf.nn.softmax(teacher / temperature)
    found = gradient(SoftmaxSoftLabels(temperature), student, teacher)
    np.testing.assert_allclose(found, temperature * difference / 4, rtol=1e-9)
    difference = tf.sigmoid(student / temperature) - tf.sigmoid(teacher / temperature)
    found = gradient(BinarySoftLabels(temperature), student, teacher)
    np.testing.assert_allclose(found, temperature * difference / 4 / 6, rtol=1e-9)


def test_at_a_high_temperature_the_gradient_keeps_its_size():
    student, teacher = scores()
    centred = [scores - tf.reduce_mean(scores, 1, keepdims=True) for scores in (student, teacher)]
    np.testing.assert_allclose(
        gradient(SoftmaxSoftLabels(1e4), student, teacher), (centred[0] - centred[1]) / 6 / 4, rtol=1e-2, atol=1e-5
    )
    np.testing.assert_allclose(
        gradient(BinarySoftLabels(1e4), student, teacher), (student - teacher) / 4 / 6 / 4, rtol=1e-3
    )


@every_loss
def test_no_gradient_reaches_the_teacher(loss):
    student, teacher = scores()
    with tf.GradientTape() as tape:
        tape.watch(teacher)
        value = loss(student, teacher)
    assert tape.gradient(value, teacher) is None


# -- invariances -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", kl, ids=lambda loss: type(loss).__name__)
def test_a_student_equal_to_the_teacher_has_no_loss_and_no_gradient(loss):
    _, teacher = scores()
    assert float(loss(teacher, teacher)) == pytest.approx(0.0, abs=1e-12)
    np.testing.assert_allclose(gradient(loss, teacher, teacher), 0.0, atol=1e-12)
    assert float(loss(teacher + tf.constant([[0.1, 0, 0, 0, 0, 0]], tf.float64), teacher)) > 1e-6


@pytest.mark.parametrize("loss", [SoftmaxSoftLabels(2.0), RelaxedRanking(3)], ids=lambda loss: type(loss).__name__)
def test_a_constant_added_to_a_list_changes_nothing(loss):
    student, teacher = scores()
    shift = tf.constant([[1.0], [-50.0], [300.0], [0.0]], tf.float64)
    assert float(loss(student + shift, teacher)) == pytest.approx(float(loss(student, teacher)), rel=1e-9)
    assert float(loss(student, teacher + shift)) == pytest.approx(float(loss(student, teacher)), rel=1e-9)
    np.testing.assert_allclose(tf.reduce_sum(gradient(loss, student, teacher), 1), 0.0, atol=1e-12)


@every_loss
def test_candidates_in_another_order_lose_the_same(loss):
    student, teacher = scores()
    order = [3, 1, 5, 0, 4, 2]
    shuffled = loss(tf.gather(student, order, axis=1), tf.gather(teacher, order, axis=1))
    assert float(shuffled) == pytest.approx(float(loss(student, teacher)), rel=1e-12)


@every_loss
def test_what_is_not_present_has_no_part_whatever_stands_there(loss):
    student, teacher = scores(candidates=4)
    junk = tf.constant([[np.nan, 1e30]] * 4, tf.float64)
    padded = tf.concat([student, junk], 1), tf.concat([teacher, junk[:, ::-1]], 1)
    present = tf.constant([[1.0, 1, 1, 1, 0, 0]] * 4)
    assert float(loss(*padded, present)) == pytest.approx(float(loss(student, teacher)), rel=1e-12)
    found = gradient(loss, *padded, present).numpy()
    np.testing.assert_allclose(found[:, :4], gradient(loss, student, teacher), rtol=1e-9)
    np.testing.assert_array_equal(found[:, 4:], 0.0)


@every_loss
def test_a_list_of_which_nothing_is_present_counts_nowhere(loss):
    student, teacher = scores()
    present = np.ones((4, 6))
    present[2] = 0
    kept = [0, 1, 3]
    expected = loss(tf.gather(student, kept), tf.gather(teacher, kept))
    assert float(loss(student, teacher, present)) == pytest.approx(float(expected), rel=1e-12)
    assert not gradient(loss, student, teacher, present).numpy()[2].any()
    assert float(loss(student, teacher, np.zeros((4, 6)))) == 0.0
    assert not gradient(loss, student, teacher, np.zeros((4, 6))).numpy().any()


@every_loss
def test_sample_weight_multiplies_the_loss_of_each_list(loss):
    student, teacher = scores()
    each = [float(loss(student[row : row + 1], teacher[row : row + 1])) for row in range(4)]
    weight = np.asarray([2.0, 0.0, 1.0, 0.5])
    for given in (weight, weight[:, None]):
        assert float(loss(student, teacher, None, given)) == pytest.approx(np.dot(each, weight) / 4, rel=1e-9)


# -- what is refused -----------------------------------------------------------------------------------------------


@every_loss
def test_shapes_that_differ_are_refused_with_both_named(loss):
    with pytest.raises(ValueError, match=r"Received: student \(4, 6\), teacher \(4, 5\)"):
        loss(tf.zeros((4, 6)), tf.zeros((4, 5)))
    with pytest.raises(ValueError, match=r"Received: student \(4,\), teacher \(4,\)"):
        loss(tf.zeros(4), tf.zeros(4))
    with pytest.raises(ValueError, match=r"Received: student \(4, 6\), `present` \(4, 1\)"):
        loss(tf.zeros((4, 6)), tf.zeros((4, 6)), tf.ones((4, 1)))


@every_loss
@pytest.mark.parametrize("shape", [(4, 6), (3,), ()])
def test_a_weight_that_is_not_one_a_list_is_refused(loss, shape):
    with pytest.raises(ValueError, match="`sample_weight` must hold one number for each list. Received: sample_weight"):
        loss(tf.zeros((4, 6)), tf.zeros((4, 6)), None, tf.ones(shape))


@pytest.mark.parametrize("loss", [SoftmaxSoftLabels(), RankingDistillation(), RelaxedRanking()])
def test_lists_of_one_teach_nothing_and_are_refused(loss):
    with pytest.raises(ValueError, match=r"compares lists of at least 2 candidates. Received: student \(4, 1\)"):
        loss(tf.zeros((4, 1)), tf.zeros((4, 1)))


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: BinarySoftLabels(0.0), "`temperature` must be greater than 0 and finite. Received: temperature=0.0"),
        (lambda: SoftmaxSoftLabels(np.inf), "`temperature` must be greater than 0 and finite"),
        (lambda: SoftmaxSoftLabels(np.nan), "`temperature` must be greater than 0 and finite"),
        (lambda: RankingDistillation(0), "`top_k` must be at least 1. Received: top_k=0"),
        (lambda: RankingDistillation(weights="all"), "`weights` must be one of hybrid, position, discrepancy, uniform"),
        (lambda: RankingDistillation(position_decay=0), "`position_decay` must be greater than 0"),
        (lambda: RankingDistillation(discrepancy_scale=-1), "`discrepancy_scale` must be greater than 0"),
        (lambda: RelaxedRanking(0), "`top_k` must be at least 1. Received: top_k=0"),
        (lambda: FeatureHints(0, "a", "b"), "`units` must be at least 1. Received: units=0"),
        (lambda: FeatureHints(1, "a", "b", weight=0), "`weight` must be greater than 0"),
        (lambda: FeatureHints(1, None, "b"), "`student_features` must be the name of a layer or a function"),
    ],
)
def test_options_out_of_range_are_refused_in_a_sentence(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()


@every_loss
def test_a_loss_comes_back_from_its_config_as_plain_json(loss):
    config = json.loads(json.dumps(keras.saving.serialize_keras_object(loss)))
    assert config["registered_name"] == f"tfmetarec>{type(loss).__name__}"
    again = keras.saving.deserialize_keras_object(config)
    assert again.get_config() == loss.get_config()
    assert float(again(*scores())) == float(loss(*scores()))


# -- hints -----------------------------------------------------------------------------------------------------------


def projecting(kernel, bias, **options):
    hints = FeatureHints(len(bias), "student", "teacher", **options)
    hints.build((None, len(kernel)))
    hints.projection.set_weights([np.asarray(kernel, np.float32), np.asarray(bias, np.float32)])
    return hints


def test_hints_are_the_mean_square_after_the_projection():
    hints = projecting([[1.0, 0.0], [1.0, 2.0]], [0.0, 1.0])
    student, teacher = tf.constant([[1.0, 2.0], [0.0, 0.0]]), tf.constant([[3.0, 2.0], [1.0, 1.0]])
    # (3, 5) against (3, 2): 9 / 2; (0, 1) against (1, 1): 1 / 2.
    assert float(hints(student, teacher)) == pytest.approx((4.5 + 0.5) / 2)
    assert float(hints(student, teacher, tf.constant([2.0, 0.0]))) == pytest.approx(2 * 4.5 / 2)
    assert float(hints(student, hints.projection(student))) == 0.0


def test_the_gradient_of_hints_reaches_student_and_projection():
    hints = projecting([[1.0, 0.0], [1.0, 2.0]], [0.0, 1.0])
    student, teacher = tf.constant([[1.0, 2.0], [0.0, 0.0]]), tf.constant([[3.0, 2.0], [1.0, 1.0]])
    with tf.GradientTape() as tape:
        tape.watch([student, teacher])
        loss = hints(student, teacher)
    kernel, bias = (variable.value for variable in hints.projection.trainable_variables)
    by_student, by_teacher, by_kernel, by_bias = tape.gradient(loss, [student, teacher, kernel, bias])
    error = np.asarray([[0.0, 3.0], [-1.0, 0.0]])
    np.testing.assert_allclose(by_student, error @ kernel.numpy().T / 2)
    np.testing.assert_allclose(by_kernel, student.numpy().T @ error / 2)
    np.testing.assert_allclose(by_bias, error.sum(0) / 2)
    assert by_teacher is None


def test_hints_of_other_shapes_are_refused_with_both_named():
    with pytest.raises(ValueError, match=r"Received: student \(3, 2\), teacher \(3, 4\)"):
        FeatureHints(2, "a", "b")(tf.zeros((3, 5)), tf.zeros((3, 4)))
    with pytest.raises(ValueError, match=r"Received: student \(3, 7, 2\), teacher \(3, 2\)"):
        FeatureHints(2, "a", "b")(tf.zeros((3, 7, 5)), tf.zeros((3, 2)))


@keras.saving.register_keras_serializable(package="test_distillation_losses")
def first_item(model, batch):
    return batch["item"]


def test_hints_come_back_from_their_config_with_registered_functions():
    hints = FeatureHints(2, "hidden", first_item, weight=0.5, seed=3)
    config = json.loads(json.dumps(hints.get_config()))
    again = FeatureHints.from_config(config)
    assert again.get_config() == config
    assert again.teacher_features is first_item
    assert again.student_features == "hidden"
    np.testing.assert_array_equal(again(tf.ones((1, 3)), tf.ones((1, 2))), hints(tf.ones((1, 3)), tf.ones((1, 2))))


def test_a_function_that_nobody_could_find_again_is_not_saved():
    with pytest.raises(ValueError, match="`student_features` can be saved if it is registered"):
        FeatureHints(2, lambda model, batch: batch, "hidden").get_config()
    with pytest.raises(ValueError, match="no function is registered as 'shop>gone'"):
        function_from_config({"registered_name": "shop>gone"})
