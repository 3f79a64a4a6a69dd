import keras
import numpy as np
import pytest
import tensorflow as tf

from tfmetarec.meta.losses import NegativeRows, RowLoss, Rows, SampledSoftmax, resolve

SCORE = np.array([0.5, -1.0, 2.0], np.float32)
LABEL = np.array([1.0, 0.0, 1.0], np.float32)
AGAINST = np.array([1.0, 0.0, -0.5, 3.0], np.float32)
LOG_EXPECTED = np.log(np.array([2.0, 0.5, 1.0, 4.0], np.float32))


def rows(weight=(1, 1, 1), score=SCORE, label=LABEL):
    return Rows(*(tf.constant(value, tf.float32) for value in (label, score, weight)))


def against(weight=(1, 1, 1, 1), score=AGAINST, log_expected=LOG_EXPECTED):
    return NegativeRows(*(tf.constant(value, tf.float32) for value in (score, log_expected, weight)))


def softmax_by_hand(kept=(0, 1, 2, 3), temperature=1.0):
    total = sum(np.exp(AGAINST[j] / temperature) / np.exp(LOG_EXPECTED[j]) for j in kept)
    positive = np.exp(SCORE / temperature)
    return -np.log(positive / (positive + total))


@pytest.mark.parametrize("temperature", [1.0, 0.2, 5.0])
def test_the_sampled_softmax_is_the_hand_worked_one(temperature):
    loss = SampledSoftmax(temperature)(rows(), against())
    assert float(loss) == pytest.approx(softmax_by_hand(temperature=temperature).mean(), rel=1e-5)


def test_over_the_whole_catalogue_it_is_the_plain_cross_entropy():
    scores = np.array([0.5, -1.0, 2.0, 0.1], np.float32)  # Item 0 was chosen; the other three are the negatives.
    loss = SampledSoftmax()(rows((1,), scores[:1], (1,)), against((1, 1, 1), scores[1:], np.zeros(3, np.float32)))
    expected = tf.nn.sparse_softmax_cross_entropy_with_logits([0], scores[None])
    assert float(loss) == pytest.approx(float(expected[0]), rel=1e-5)


def test_a_negative_of_weight_zero_is_as_if_never_drawn():
    found = SampledSoftmax()(rows(), against((1, 0, 1, 0), score=[1.0, 77.0, -0.5, -77.0]))
    assert float(found) == pytest.approx(softmax_by_hand((0, 2)).mean(), rel=1e-5)


def test_without_a_negative_left_there_is_nothing_to_learn():
    with tf.GradientTape() as tape:
        score = tf.constant(SCORE)
        tape.watch(score)
        loss = SampledSoftmax()(rows()._replace(score=score), against((0, 0, 0, 0)))
    assert float(loss) == 0.0
    assert not tape.gradient(loss, score).numpy().any()


def test_padding_and_shrinkage_weigh_as_documented():
    each = softmax_by_hand()
    assert float(SampledSoftmax()(rows((1, 0, 1)), against())) == pytest.approx(each[[0, 2]].mean(), rel=1e-5)
    shrunk = SampledSoftmax()(rows((1, 0, 1)), against(), shrinkage=3.0)
    assert float(shrunk) == pytest.approx(each[[0, 2]].sum() / 5, rel=1e-5)


@pytest.mark.parametrize("loss", [SampledSoftmax(), RowLoss("mean_squared_error"), RowLoss("binary_crossentropy")])
def test_no_rows_at_all_give_no_loss_and_no_gradient(loss):
    score, negative = tf.constant([0.3, 0.6, 0.9]), tf.constant([0.2, 0.4, 0.6, 0.8])
    with tf.GradientTape() as tape:
        tape.watch([score, negative])
        value = loss(rows((0, 0, 0))._replace(score=score), against()._replace(score=negative))
    assert float(value) == 0.0
    assert not any(gradient.numpy().any() for gradient in tape.gradient(value, [score, negative]))


def test_a_keras_loss_is_averaged_over_the_real_rows():
    loss = RowLoss("mean_squared_error")(rows((1, 0, 1)), None)
    assert float(loss) == pytest.approx(((0.5 - 1) ** 2 + (2 - 1) ** 2) / 2)
    shrunk = RowLoss("mean_squared_error")(rows((1, 0, 1)), None, shrinkage=2.0)
    assert float(shrunk) == pytest.approx(((0.5 - 1) ** 2 + (2 - 1) ** 2) / 4)


def test_negatives_are_half_of_a_keras_loss_with_label_zero():
    score, negative = np.array([0.9, 0.6, 0.2]), np.array([0.1, 0.3, 0.5, 0.7])
    found = RowLoss("binary_crossentropy")(rows(score=score, label=[1, 1, 1]), against((1, 1, 0, 1), score=negative))
    expected = (-np.log(score).mean() - np.log(1 - negative[[0, 1, 3]]).mean()) / 2
    assert float(found) == pytest.approx(expected, rel=1e-5)


def test_an_instance_keeps_its_own_settings():
    huber = keras.losses.Huber(delta=0.5)
    found = RowLoss(huber)(rows(score=[3.0, 0.25, 1.0]), None)
    assert float(found) == pytest.approx((0.5 * (2 - 0.25) + 0.5 * 0.25**2 + 0) / 3)


@pytest.mark.parametrize(
    ("given", "feedback", "kind", "name"),
    [
        (None, "implicit", SampledSoftmax, "sampled_softmax"),
        (None, "explicit", RowLoss, "mean_squared_error"),
        ("sampled_softmax", "explicit", SampledSoftmax, "sampled_softmax"),
        ("mse", "implicit", RowLoss, "mean_squared_error"),
        (keras.losses.Huber(), "explicit", RowLoss, "huber_loss"),
    ],
)
def test_compile_takes_names_and_losses(given, feedback, kind, name):
    loss = resolve(given, feedback)
    assert isinstance(loss, kind)
    assert loss.name == name


def test_given_task_losses_are_kept():
    given = SampledSoftmax(0.5)
    assert resolve(given, "explicit") is given


@pytest.mark.parametrize(
    "loss", [SampledSoftmax(0.3), RowLoss("mse"), RowLoss(keras.losses.BinaryCrossentropy(from_logits=True))]
)
def test_a_loss_comes_back_from_its_saved_form(loss):
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(loss))
    assert again.get_config() == loss.get_config()
    assert float(again(rows(), against())) == float(loss(rows(), against()))


def test_what_cannot_be_used_is_refused():
    with pytest.raises(ValueError, match="`temperature` must be greater than 0. Received: temperature=0"):
        SampledSoftmax(0)
    with pytest.raises(ValueError, match="the loss 'sampled_softmax' needs negatives, and the episodes have none"):
        SampledSoftmax()(rows(), None)


def test_rows_of_unknown_number_have_the_loss_and_both_derivatives_of_known_ones():
    rng = np.random.default_rng(0)
    label, score, weight = (rng.normal(size=(3, 4)).astype(np.float32) for _ in range(3))
    weight = np.abs(weight)
    weight[1] = 0.0

    def derivatives(label, score, weight):
        with tf.GradientTape() as outer:
            outer.watch([score, weight])
            with tf.GradientTape() as inner:
                inner.watch(score)
                loss = RowLoss("mean_squared_error")(Rows(label, score, weight), None, 2.0)
            first = inner.gradient(loss, score)
            squared = tf.reduce_sum(first**2)
        return loss, first, *outer.gradient(squared, [score, weight])

    unknown = tf.TensorSpec([None, None], tf.float32)
    expected = derivatives(*map(tf.constant, (label, score, weight)))
    found = tf.function(derivatives, input_signature=[unknown] * 3)(label, score, weight)
    by_hand = ((score - label) ** 2 * weight).sum(axis=1) / (weight.sum(axis=1) + 2.0)
    np.testing.assert_allclose(found[0], by_hand, rtol=1e-5)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_a_loss_that_only_has_the_name_of_the_squared_error_is_what_it_says():
    class Tenfold(keras.losses.MeanSquaredError):
        def call(self, y_true, y_pred):
            return 10.0 * super().call(y_true, y_pred)

    one = Rows(tf.constant([1.0]), tf.constant([3.0]), tf.constant([1.0]))
    assert float(RowLoss(Tenfold())(one, None)) == 40.0
    assert float(RowLoss(keras.losses.MeanAbsoluteError(name="mean_squared_error"))(one, None)) == 2.0
    assert float(RowLoss(keras.losses.MeanSquaredError())(one, None)) == 4.0
    assert float(RowLoss("mean_squared_error")(one, None)) == 4.0
