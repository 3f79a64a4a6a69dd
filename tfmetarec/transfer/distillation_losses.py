"""What a student has to match of a teacher's scores, each way a class of its own.

A loss compares lists: student and teacher score the same `N` candidates of each of `B` lists (a user's candidates; a
row of a plain model is a list of one). `present` is 0 where there is no candidate, or the teacher does not know it;
what is not present has no part in any loss, and a list of which nothing is present counts nowhere. Scores are before
any activation: logits, where they become probabilities.
"""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

_ABSENT = -1e9  # A score that no softmax sees: minus infinity has no derivative.


class DistillationLoss:
    """Base of the losses: checks, leaving out what is not present, and the mean over lists.

    A loss of one's own writes `each(student, teacher, present)`, one number for each list.
    """

    least_candidates = 1  # With fewer in a list the loss would always be the same.

    def each(self, student: tf.Tensor, teacher: tf.Tensor, present: tf.Tensor) -> tf.Tensor:
        """The loss `(B,)` of each list.

        Args:
            student: `(B, N)`.
            teacher: `(B, N)`, finite wherever present.
            present: `(B, N)`, 1 or 0.
        """
        raise NotImplementedError(f"{type(self).__name__} must say how it compares a list.")

    def __call__(self, student: Any, teacher: Any, present: Any = None, sample_weight: Any = None) -> tf.Tensor:
        """The mean over lists of which anything is present; 0 if there are none.

        Args:
            student: scores `(B, N)`, through which the gradient flows.
            teacher: scores `(B, N)` of the same candidates. No gradient flows through them.
            present: `(B, N)`, 0 where a candidate does not count. Defaults to 1.
            sample_weight: `(B,)` or `(B, 1)`, multiplied with the loss of each list, as Keras does. Defaults to 1.

        Raises:
            ValueError: if shapes disagree, or lists are too short for this loss.
        """
        student, teacher = tf.convert_to_tensor(student), tf.convert_to_tensor(teacher)
        dtype = tf.float64 if student.dtype == tf.float64 else tf.float32
        student, teacher = tf.cast(student, dtype), tf.stop_gradient(tf.cast(teacher, dtype))
        check_shapes(student, teacher)
        present = tf.ones_like(student) if present is None else tf.cast(present, dtype)
        check_shapes(student, present, "`present`")
        if student.shape[1] is not None and student.shape[1] < self.least_candidates:
            raise ValueError(
                f"{type(self).__name__} compares lists of at least {self.least_candidates} candidates. "
                f"Received: student {_shape(student)}"
            )
        here = present > 0
        # Whatever stands where nothing is present, NaN included, must not reach a derivative.
        student, teacher = tf.where(here, student, 0.0), tf.where(here, teacher, 0.0)
        values = self.each(student, teacher, tf.cast(here, dtype))
        counts = tf.cast(tf.reduce_any(here, 1), dtype)
        values *= counts
        if sample_weight is not None:
            values *= weight_of_lists(sample_weight, values)
        return tf.math.divide_no_nan(tf.reduce_sum(values), tf.reduce_sum(counts))

    def get_config(self) -> dict[str, Any]:
        return {}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Any:
        return cls(**config)


@keras.saving.register_keras_serializable(package="tfmetarec")
class BinarySoftLabels(DistillationLoss):
    """Each candidate by itself: the student's probability of a "yes" has to be the teacher's.

    `T^2 * KL(sigmoid(teacher / T), sigmoid(student / T))`, the mean over the candidates of a list. Its gradient,
    `T (sigmoid(student / T) - sigmoid(teacher / T))`, tends to `(student - teacher) / 4` as `T` grows.

    Args:
        temperature: float, greater than 0. Above 1 probabilities are softer, and say more of what the teacher thinks
            unlikely. Defaults to 1.

    Example:
    >>> loss = BinarySoftLabels(temperature=2.0)
    >>> float(loss([[3.0, -1.0]], [[3.0, -1.0]]))
    0.0

    Reference: [Hinton et al., 2015](https://arxiv.org/abs/1503.02531), section 2, for two classes.
    """

    def __init__(self, temperature: float = 1.0):
        self.temperature = _temperature(temperature)

    def each(self, student: tf.Tensor, teacher: tf.Tensor, present: tf.Tensor) -> tf.Tensor:
        student, teacher = student / self.temperature, teacher / self.temperature
        yes, no = tf.sigmoid(teacher), tf.sigmoid(-teacher)
        # log sigmoid(x) = -softplus(-x). The teacher's own part is constant: with it equal scores give 0.
        divergence = yes * (tf.nn.softplus(-student) - tf.nn.softplus(-teacher))
        divergence += no * (tf.nn.softplus(student) - tf.nn.softplus(teacher))
        return self.temperature**2 * _mean_of(divergence, present)

    def get_config(self) -> dict[str, Any]:
        return {"temperature": self.temperature}


@keras.saving.register_keras_serializable(package="tfmetarec")
class SoftmaxSoftLabels(DistillationLoss):
    """The whole list at once: the student's distribution over the candidates has to be the teacher's.

    `T^2 * KL(softmax(teacher / T), softmax(student / T))` over the candidates of a list. Its gradient,
    `T (softmax(student / T) - softmax(teacher / T))`, tends to the difference of the centred scores over `N` as `T`
    grows, so neither its size nor `alpha` depends on the temperature. A constant added to all scores of a list changes
    nothing.

    Args:
        temperature: float, greater than 0. Defaults to 1.

    Example:
    >>> loss = SoftmaxSoftLabels(temperature=2.0)
    >>> float(loss([[3.0, 1.0, 0.0]], [[13.0, 11.0, 10.0]]))
    0.0

    Reference: [Hinton et al., 2015](https://arxiv.org/abs/1503.02531), section 2.
    """

    least_candidates = 2

    def __init__(self, temperature: float = 1.0):
        self.temperature = _temperature(temperature)

    def each(self, student: tf.Tensor, teacher: tf.Tensor, present: tf.Tensor) -> tf.Tensor:
        student, teacher = (
            tf.nn.log_softmax(tf.where(present > 0, scores / self.temperature, _ABSENT))
            for scores in (student, teacher)
        )
        return self.temperature**2 * tf.reduce_sum(present * tf.exp(teacher) * (teacher - student), 1)

    def get_config(self) -> dict[str, Any]:
        return {"temperature": self.temperature}


@keras.saving.register_keras_serializable(package="tfmetarec")
class SquaredSoftLabels(DistillationLoss):
    """Squared difference of scores, the mean over the candidates of a list: for predicted ratings.

    Example:
    >>> float(SquaredSoftLabels()([[3.0, 1.0]], [[3.0, 3.0]]))
    2.0

    Reference: [Ba & Caruana, 2014](https://arxiv.org/abs/1312.6184), section 2.
    """

    def each(self, student: tf.Tensor, teacher: tf.Tensor, present: tf.Tensor) -> tf.Tensor:
        return _mean_of(tf.math.squared_difference(student, teacher), present)


@keras.saving.register_keras_serializable(package="tfmetarec")
class RankingDistillation(DistillationLoss):
    """The teacher's top K as further positives, each weighing by its position and by how wrong the student is.

    `-sum_r w_r log sigmoid(student of the teacher's r-th)`, with weights that add up to 1:

    - "position": `w_r` grows with `exp(-r / position_decay)`: the teacher is surest at the top;
    - "discrepancy": with `tanh(max(discrepancy_scale * (rank of it by the student - r), 0))`: what the student already
      puts as high needs no push, and if that is all, the loss is 0;
    - "hybrid": with the product of both, as the paper has it;
    - "uniform": all alike.

    It knows no negatives, so it needs the hard loss beside it. The paper estimates the student's rank from a sample;
    here it is that among the candidates.

    Args:
        top_k: int, at least 1. Defaults to 10.
        weights: "hybrid", "position", "discrepancy" or "uniform". Defaults to "hybrid".
        position_decay: float, greater than 0. In positions. Defaults to 10.
        discrepancy_scale: float, greater than 0. Defaults to 1.

    Example:
    >>> loss = RankingDistillation(top_k=1, weights="uniform")
    >>> f"{float(loss([[0.0, 5.0]], [[2.0, 1.0]])):.4f}"  # log 2, of the teacher's first
    '0.6931'

    Reference: [Tang & Wang, 2018](https://arxiv.org/abs/1809.07428), section 3.
    """

    least_candidates = 2
    WEIGHTS = ("hybrid", "position", "discrepancy", "uniform")

    def __init__(
        self,
        top_k: int = 10,
        *,
        weights: str = "hybrid",
        position_decay: float = 10.0,
        discrepancy_scale: float = 1.0,
    ):
        if top_k < 1:
            raise ValueError(f"`top_k` must be at least 1. Received: top_k={top_k}")
        if weights not in self.WEIGHTS:
            raise ValueError(f"`weights` must be one of {', '.join(self.WEIGHTS)}. Received: weights={weights!r}")
        for name, value in (("position_decay", position_decay), ("discrepancy_scale", discrepancy_scale)):
            if not 0 < value < np.inf:
                raise ValueError(f"`{name}` must be greater than 0 and finite. Received: {name}={value}")
        self.top_k, self.weights = int(top_k), weights
        self.position_decay, self.discrepancy_scale = float(position_decay), float(discrepancy_scale)

    def each(self, student: tf.Tensor, teacher: tf.Tensor, present: tf.Tensor) -> tf.Tensor:
        best, real = _teachers_best(teacher, present, self.top_k)
        score = tf.gather(student, best, batch_dims=1)  # (B, K)
        weight = real * tf.stop_gradient(self._weight(student, score, present))
        weight = tf.math.divide_no_nan(weight, tf.reduce_sum(weight, 1, keepdims=True))
        return tf.reduce_sum(weight * tf.nn.softplus(-score), 1)

    def _weight(self, student: tf.Tensor, score: tf.Tensor, present: tf.Tensor) -> tf.Tensor:
        position = 1.0 + tf.cast(tf.range(tf.shape(score)[1]), score.dtype)
        weight = tf.ones_like(score)
        if self.weights in ("hybrid", "position"):
            weight *= tf.exp(-position / self.position_decay)
        if self.weights in ("hybrid", "discrepancy"):
            in_order = tf.sort(tf.where(present > 0, student, student.dtype.min), 1)
            above = tf.shape(student)[1] - tf.searchsorted(in_order, score, side="right")
            rank = 1.0 + tf.cast(above, score.dtype)
            weight *= tf.tanh(tf.nn.relu(self.discrepancy_scale * (rank - position)))
        return weight

    def get_config(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("top_k", "weights", "position_decay", "discrepancy_scale")}


@keras.saving.register_keras_serializable(package="tfmetarec")
class RelaxedRanking(DistillationLoss):
    """The teacher's order of its top K, all others somewhere below, in whatever order.

    The probability that the student draws the teacher's top K one after the other, each from what is left of them and
    all others (Plackett-Luce):

        -1 / K * log prod_r exp(s_r) / (sum of exp(s) over the r-th to the K-th, and over all others).

    How the others are ordered does not matter: the student need not spend its few parameters on it. The paper draws the
    K, by position, and the others; here the K are the candidates that the teacher puts first, and the candidates
    themselves are the sample. The mean over positions is taken, so that `alpha` means the same for every K. A constant
    added to all scores of a list changes nothing.

    Args:
        top_k: int, at least 1. Defaults to 10.

    Example:
    >>> loss = RelaxedRanking(top_k=1)
    >>> f"{float(loss([[0.0, 0.0, 0.0]], [[2.0, 1.0, 0.0]])):.4f}"  # one of three
    '1.0986'

    Reference: [Kang et al., 2020](https://arxiv.org/abs/2012.04357), relaxed ranking distillation.
    """

    least_candidates = 2

    def __init__(self, top_k: int = 10):
        if top_k < 1:
            raise ValueError(f"`top_k` must be at least 1. Received: top_k={top_k}")
        self.top_k = int(top_k)

    def each(self, student: tf.Tensor, teacher: tf.Tensor, present: tf.Tensor) -> tf.Tensor:
        best, real = _teachers_best(teacher, present, self.top_k)
        top = tf.where(real > 0, tf.gather(student, best, batch_dims=1), _ABSENT)
        lists = tf.broadcast_to(tf.range(tf.shape(best)[0])[:, None], tf.shape(best))
        chosen = tf.scatter_nd(tf.stack([lists, best], 2), tf.ones_like(real), tf.shape(student))
        others = tf.where((present > 0) & (chosen == 0), student, _ABSENT)
        total = tf.reduce_logsumexp(others, 1, keepdims=True)
        left = tf.math.cumulative_logsumexp(tf.concat([top, total], 1), 1, reverse=True)[:, :-1]
        return _mean_of(left - top, real)

    def get_config(self) -> dict[str, Any]:
        return {"top_k": self.top_k}


@keras.saving.register_keras_serializable(package="tfmetarec")
class FeatureHints(keras.layers.Layer):
    """Vectors inside the student have to say, through a learned projection, what vectors inside the teacher say.

    `mean |projection(student) - teacher|^2` over vectors and their coordinates. The projection (one Dense layer)
    lets a narrow student follow a wide teacher; it trains with the student and is thrown away afterwards.

    Args:
        units: int, at least 1. Width of the teacher's vectors.
        student_features: the name of a layer of a functional student, whose output is taken; or a function of the
            student and a batch (a dict of features, or an `Episode`) that gives vectors `(..., D)`.
        teacher_features: the same for the teacher, with as many vectors. Gets what the teacher gets: a batch of
            features through its map of features and items; an `Episode` as it is.
        weight: float, greater than 0. Multiplied with the loss, which is added to the mixture. Defaults to 1.
        seed: int, of the projection.

    Call arguments: the student's vectors `(..., D)`, the teacher's `(..., units)`, and a weight for each of the first
    dimension, or `None`. Returns the mean squared difference, a scalar.

    Example:
    >>> hints = FeatureHints(2, "hidden", "hidden")
    >>> float(hints(tf.zeros((3, 5)), 2 * tf.ones((3, 2))))  # The projection's bias starts at 0.
    4.0

    Reference: [Romero et al., 2015](https://arxiv.org/abs/1412.6550), section 2.2.
    """

    def __init__(
        self,
        units: int,
        student_features: str | Callable,
        teacher_features: str | Callable,
        *,
        weight: float = 1.0,
        seed: int = 0,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        if units < 1:
            raise ValueError(f"`units` must be at least 1. Received: units={units}")
        if not 0 < weight < np.inf:
            raise ValueError(f"`weight` must be greater than 0 and finite. Received: weight={weight}")
        for name, given in (("student_features", student_features), ("teacher_features", teacher_features)):
            if not isinstance(given, str) and not callable(given):
                raise ValueError(f"`{name}` must be the name of a layer or a function. Received: {name}={given!r}")
        self.units, self.weight, self.seed = int(units), float(weight), seed
        self.student_features, self.teacher_features = student_features, teacher_features
        initializer = keras.initializers.GlorotUniform(seed)
        self.projection = keras.layers.Dense(units, kernel_initializer=initializer, name="projection")

    @property
    def are_functions(self) -> bool:
        """Whether both features are functions, not names of layers."""
        return callable(self.student_features) and callable(self.teacher_features)

    def of_student(self, student: Any, batch: Any) -> tf.Tensor:
        """The student's vectors by its function."""
        assert callable(self.student_features)
        return self.student_features(student, batch)

    def of_teacher(self, teacher: Any, batch: Any) -> tf.Tensor:
        """The teacher's vectors by its function."""
        assert callable(self.teacher_features)
        return self.teacher_features(teacher, batch)

    def build(self, student_shape: Any, *others: Any) -> None:
        self.projection.build(student_shape)
        self.built = True

    def call(self, student: tf.Tensor, teacher: tf.Tensor, sample_weight: tf.Tensor | None = None) -> tf.Tensor:
        projected = self.projection(student)
        teacher = tf.stop_gradient(tf.cast(teacher, projected.dtype))
        if not projected.shape.is_compatible_with(teacher.shape) or projected.shape.rank != teacher.shape.rank:
            raise ValueError(
                "the student's vectors, projected, and the teacher's must have one shape. "
                f"Received: student {_shape(projected)}, teacher {_shape(teacher)}"
            )
        squared = tf.math.squared_difference(projected, teacher)
        each = tf.reduce_mean(squared, list(range(1, squared.shape.rank)))
        if sample_weight is not None:
            each *= weight_of_lists(sample_weight, each)
        return tf.reduce_mean(each)

    def get_config(self) -> dict[str, Any]:
        features = {
            name: function_config(name, getattr(self, name)) for name in ("student_features", "teacher_features")
        }
        return {**super().get_config(), "units": self.units, **features, "weight": self.weight, "seed": self.seed}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "FeatureHints":
        names = ("student_features", "teacher_features")
        return cls(**{**config, **{name: function_from_config(config[name]) for name in names}})


def check_shapes(student: tf.Tensor, other: tf.Tensor, name: str = "teacher") -> None:
    """Refuses lists of different shapes, or what is no list."""
    if student.shape.rank != 2 or other.shape.rank != 2 or not student.shape.is_compatible_with(other.shape):
        raise ValueError(
            f"student and {name} must both be (lists, candidates), of the same candidates. "
            f"Received: student {_shape(student)}, {name} {_shape(other)}"
        )


def weight_of_lists(sample_weight: Any, values: tf.Tensor) -> tf.Tensor:
    """`sample_weight` as one number for each of the `(B,)` values.

    Raises:
        ValueError: if it is anything else: a weight within a list would have to be left out.
    """
    weight = tf.cast(sample_weight, values.dtype)
    if weight.shape.rank == 2 and weight.shape[1] == 1:
        weight = weight[:, 0]
    if weight.shape.rank != 1 or not weight.shape.is_compatible_with(values.shape):
        raise ValueError(
            "`sample_weight` must hold one number for each list. "
            f"Received: sample_weight {_shape(weight)} for {_shape(values)} lists"
        )
    return weight


def function_config(name: str, given: Any) -> Any:
    """A function as plain JSON: by the name under which it is registered; anything else as it is.

    Raises:
        ValueError: if the function is not registered, and so could not be found again.
    """
    if not callable(given):
        return given
    registered = keras.saving.get_registered_name(given) if hasattr(given, "__name__") else type(given).__name__
    if keras.saving.get_registered_object(registered) is not given:
        raise ValueError(
            f"`{name}` can be saved if it is registered with `keras.saving.register_keras_serializable`. "
            f"Received: {registered}"
        )
    return {"registered_name": registered}


def function_from_config(config: Any) -> Any:
    """What `function_config` was given."""
    if not isinstance(config, dict) or set(config) != {"registered_name"}:
        return config
    found = keras.saving.get_registered_object(config["registered_name"])
    if found is None:
        raise ValueError(f"no function is registered as {config['registered_name']!r}: import the file that does so.")
    return found


def _teachers_best(teacher: tf.Tensor, present: tf.Tensor, top_k: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Places `(B, K)` of what the teacher puts first, and 1 where there is a candidate for that position, else 0."""
    top_k = min(top_k, teacher.shape[1]) if teacher.shape[1] is not None else tf.minimum(top_k, tf.shape(teacher)[1])
    lowest = teacher.dtype.min
    _, best = tf.math.top_k(tf.where(present > 0, tf.maximum(teacher, lowest / 2), lowest), top_k)
    return best, tf.gather(present, best, batch_dims=1)


def _mean_of(values: tf.Tensor, present: tf.Tensor) -> tf.Tensor:
    """Mean over what is present in each list, 0 where nothing is."""
    return tf.math.divide_no_nan(tf.reduce_sum(values * present, 1), tf.reduce_sum(present, 1))


def _temperature(temperature: float) -> float:
    if not 0 < temperature < np.inf:
        raise ValueError(f"`temperature` must be greater than 0 and finite. Received: temperature={temperature}")
    return float(temperature)


def _shape(tensor: tf.Tensor) -> tuple:
    return tuple(tensor.shape)
