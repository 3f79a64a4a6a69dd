"""Which class is it? Answered by the nearest prototype, for classes that training never saw as well."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfmetarec.models.features import Tower
from tfmetarec.transfer.prototypes import class_means


@keras.saving.register_keras_serializable(package="tfmetarec")
class PrototypeClassifier(keras.Model):
    """Learns a space in which the members of a class lie around their mean, and classifies by the nearest mean.

    The probability of a class is a softmax over the negative squared distances to the prototypes,

        p(c | x) = exp(-temperature |f(x) - mu_c|^2) / sum_k exp(-temperature |f(x) - mu_k|^2).

    It is trained on episodes (`class_episodes`): a few classes, their prototypes from a few members each, other members
    to be told apart. So it does not learn the classes but how to tell classes apart, and new ones need no training:
    their prototypes come from a few members, or from descriptions in the space of the inputs.

    Args:
        width: int, at least 1. Of the vectors that are classified.
        embedding_dim: int, at least 1. Of the learned space. Defaults to 32.
        hidden: ints. Hidden layers on the way there. Defaults to none.
        dropout: float in [0, 1), on the hidden layers.
        temperature: float, greater than 0. Where the temperature starts; it is learned, as a logarithm.
        seed: int, of the initial weights.

    Call arguments: an episode, see `class_episodes`. Returns logits `(T, C * Q, C)`.

    Example:
    >>> vectors = np.random.default_rng(0).normal(size=(40, 4)).astype(np.float32)
    >>> classes = np.arange(40) % 4 + 1
    >>> classifier = PrototypeClassifier(4, embedding_dim=2)
    >>> classifier.compile(optimizer="adam")
    >>> episodes = class_episodes(vectors, classes, ways=3, shots=2, queries=2)
    >>> history = classifier.fit(episodes, steps_per_epoch=2, verbose=0)
    >>> new = classifier.prototypes(vectors[:4], np.array([1, 1, 2, 2]), n_classes=3)
    >>> classifier.classify(vectors[4:9], new).shape  # Class 0 is no class.
    TensorShape([5, 3])

    Reference: [Snell et al., 2017](https://arxiv.org/abs/1703.05175), equations 1 and 2; section 2.5: descriptions
    """

    def __init__(
        self,
        width: int,
        embedding_dim: int = 32,
        hidden: Sequence[int] = (),
        dropout: float = 0.0,
        temperature: float = 1.0,
        seed: int = 0,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        for name, value in (("width", width), ("embedding_dim", embedding_dim)):
            if value < 1:
                raise ValueError(f"`{name}` must be at least 1. Received: {name}={value}")
        if not 0 <= dropout < 1:
            raise ValueError(f"`dropout` must be at least 0 and less than 1. Received: dropout={dropout}")
        if not 0 < temperature < np.inf:
            raise ValueError(f"`temperature` must be greater than 0 and finite. Received: temperature={temperature}")
        self.width, self.embedding_dim, self.hidden = width, embedding_dim, tuple(hidden)
        self.dropout, self.temperature, self.seed = dropout, temperature, seed
        self.encoder = Tower(width, embedding_dim, self.hidden, dropout, seed=seed, name="encoder")
        start = keras.initializers.Constant(float(np.log(temperature)))
        self.log_temperature = self.add_weight((), start, name="log_temperature")
        self.loss_tracker = keras.metrics.Mean(name="loss")
        self.accuracy = keras.metrics.Mean(name="accuracy")
        self.built = True

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        """Loss and accuracy on the query."""
        return [self.loss_tracker, self.accuracy]

    def call(self, episode: dict[str, Any], training: bool = False) -> tf.Tensor:
        members = self.encoder(episode["support"], training=training)  # (T, C, S, W) -> (T, C, S, D)
        prototypes = tf.reduce_mean(members, 2)
        query = self.encoder(episode["query"], training=training)
        query = tf.reshape(query, [tf.shape(query)[0], -1, self.embedding_dim])  # (T, C, Q, D) -> (T, C * Q, D)
        return self._logits(query, prototypes)

    def train_step(self, episode: dict[str, Any]) -> dict[str, Any]:
        with tf.GradientTape() as tape:
            loss, accuracy = self._judge(episode, training=True)
        gradients = tape.gradient(loss, [variable.value for variable in self.trainable_variables])
        self.optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
        return self._logs(loss, accuracy)

    def fit(self, x: Any = None, **options: Any) -> keras.callbacks.History:
        """Keras's `fit`, on `class_episodes`: give `steps_per_epoch`, as they are endless."""
        options.setdefault("shuffle", False)  # Keras warns about its own default.
        return super().fit(x, **options)

    def test_step(self, episode: dict[str, Any]) -> dict[str, Any]:
        return self._logs(*self._judge(episode, training=False))

    def prototypes(self, vectors: Any, classes: Any, n_classes: int, *, length: Any = None) -> tf.Tensor:
        """Prototypes `(C, D)` in the learned space from members of any classes; 0 for a class without members.

        Args:
            vectors: `(N, width)`.
            classes: `(N,)` or `(N, L)` int rows, 0 for no class, see `tfmetarec.transfer.class_means`.
            n_classes: int. `C`, row 0 included.
            length: `(N,)` int, how many of the `L` are real.
        """
        return class_means(self._encoded(vectors), classes, n_classes, length=length).mean

    def described(self, descriptions: Any) -> tf.Tensor:
        """Prototypes `(C, D)` of classes that are described by vectors `(C, width)` instead of members."""
        return self._encoded(descriptions)

    def classify(self, vectors: Any, prototypes: Any, present: Any = None) -> tf.Tensor:
        """Probabilities `(N, C)` of classes.

        Args:
            vectors: `(N, width)`.
            prototypes: `(C, D)`, of `prototypes` or `described`: of classes seen in training or not.
            present: `(C,)` bool. Classes that can be the answer. Defaults to those whose prototype is not all 0.

        Raises:
            ValueError: if no class can be the answer.
        """
        prototypes = tf.convert_to_tensor(prototypes)
        present = tf.reduce_any(prototypes != 0, -1) if present is None else tf.convert_to_tensor(present)
        if tf.executing_eagerly() and not bool(tf.reduce_any(present)):
            raise ValueError("`prototypes` must hold a class that is present. Received: none")
        logits = self._logits(self._encoded(vectors)[None], prototypes[None])[0]
        return tf.nn.softmax(tf.where(present, logits, -np.inf))

    def _encoded(self, vectors: Any) -> tf.Tensor:
        return self.encoder(tf.cast(tf.convert_to_tensor(vectors), tf.float32))

    def _logits(self, query: tf.Tensor, prototypes: tf.Tensor) -> tf.Tensor:
        """`(T, Q, D)` and `(T, C, D)` -> `(T, Q, C)`, without ever holding `(T, Q, C, D)`."""
        squares = tf.reduce_sum(query**2, -1)[..., None] + tf.reduce_sum(prototypes**2, -1)[:, None, :]
        distances = squares - 2 * tf.matmul(query, prototypes, transpose_b=True)
        return -tf.exp(tf.convert_to_tensor(self.log_temperature.value)) * tf.maximum(distances, 0.0)

    def _judge(self, episode: dict[str, Any], training: bool) -> tuple[tf.Tensor, tf.Tensor]:
        logits = self(episode, training=training)
        ways, queries = episode["query"].shape[1:3]
        labels = tf.broadcast_to(tf.repeat(tf.range(ways), queries), tf.shape(logits)[:2])
        weight = tf.reshape(episode["query_weight"], tf.shape(logits)[:2])
        each = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
        right = tf.cast(tf.argmax(logits, -1, tf.int32) == labels, tf.float32)
        total = tf.reduce_sum(weight)
        return tuple(tf.math.divide_no_nan(tf.reduce_sum(weight * value), total) for value in (each, right))

    def _logs(self, loss: tf.Tensor, accuracy: tf.Tensor) -> dict[str, Any]:
        self.loss_tracker.update_state(loss)
        self.accuracy.update_state(accuracy)
        return {metric.name: metric.result() for metric in self.metrics}

    def _maybe_symbolic_build(self, iterator: Any = None, data_batch: Any = None) -> None:
        """Nothing is left to build: Keras would run a step on symbols, which have no gradients."""

    def get_config(self) -> dict[str, Any]:
        names = ("width", "embedding_dim", "hidden", "dropout", "temperature", "seed")
        return {**{name: getattr(self, name) for name in names}, "name": self.name}


def class_episodes(
    vectors: Any,
    classes: Any,
    *,
    length: Any = None,
    ways: int = 5,
    shots: int = 5,
    queries: int = 5,
    episodes_per_batch: int = 8,
    seed: int = 0,
) -> tf.data.Dataset:
    """Endless batches of classification tasks; batch `i` depends on the seed and on `i` alone.

    Args:
        vectors: `(N, W)` float.
        classes: `(N,)` or `(N, L)` int rows, 0 for no class. Classes with fewer than `shots + queries` members are left
            out; an item of several of an episode's classes is no query there.
        length: `(N,)` int, how many of the `L` are real.
        ways: int, at least 2. Classes of an episode, `C`.
        shots: int, at least 1. Members behind a prototype, `S`.
        queries: int, at least 1. Members to be told apart, `Q` for each class.
        episodes_per_batch: int, at least 1. `T`.
        seed: int, at least 0.

    Returns:
        A data set of dicts `support` `(T, C, S, W)`, `query` `(T, C, Q, W)` and `query_weight` `(T, C, Q)`.

    Raises:
        ValueError: for an option out of range, or if fewer than `ways` classes have enough members.
    """
    for name, value, least in (
        ("ways", ways, 2),
        ("shots", shots, 1),
        ("queries", queries, 1),
        ("episodes_per_batch", episodes_per_batch, 1),
        ("seed", seed, 0),
    ):
        if value < least:
            raise ValueError(f"`{name}` must be at least {least}. Received: {name}={value}")
    vectors, classes = np.asarray(vectors, np.float32), np.asarray(classes)
    classes = classes.reshape(len(vectors), -1)
    if length is not None:
        classes = np.where(np.arange(classes.shape[1]) < np.asarray(length)[:, None], classes, 0)
    belongs = np.zeros((len(vectors), int(classes.max(initial=0)) + 1), bool)
    belongs[np.arange(len(vectors))[:, None], classes] = True
    belongs[:, 0] = False
    large = np.flatnonzero(belongs.sum(0) >= shots + queries)
    if len(large) < ways:
        raise ValueError(
            f"`ways` must be at most the {len(large)} classes that have {shots + queries} members. "
            f"Received: ways={ways}"
        )
    of_class, member = np.nonzero(belongs.T)
    first = np.searchsorted(of_class, np.arange(belongs.shape[1] + 1))

    def batch(index: np.ndarray) -> list[np.ndarray]:
        rng = np.random.default_rng([seed, int(index)])
        chosen = large[np.argsort(rng.random((episodes_per_batch, len(large))), axis=1)[:, :ways]]  # (T, C)
        place = _distinct(rng, np.diff(first)[chosen].reshape(-1), shots + queries)
        drawn = member[first[chosen].reshape(-1, 1) + place].reshape(episodes_per_batch, ways, -1)
        asked = drawn[..., shots:]
        several = belongs[asked[..., None], chosen[:, None, None, :]].sum(-1) > 1
        return [vectors[drawn[..., :shots]], vectors[asked], (~several).astype(np.float32)]

    width = vectors.shape[1]
    shapes = {
        "support": (episodes_per_batch, ways, shots, width),
        "query": (episodes_per_batch, ways, queries, width),
        "query_weight": (episodes_per_batch, ways, queries),
    }

    def tensors(index: tf.Tensor) -> dict[str, tf.Tensor]:
        arrays = tf.numpy_function(batch, [index], [tf.float32] * 3)
        return {
            name: tf.ensure_shape(array, shape) for array, (name, shape) in zip(arrays, shapes.items(), strict=True)
        }

    return tf.data.Dataset.range(np.iinfo(np.int64).max).map(tensors).prefetch(2)


def _distinct(rng: np.random.Generator, sizes: np.ndarray, count: int) -> np.ndarray:
    """`(R, count)` numbers, row r without repeats and evenly from `range(sizes[r])`, in random order.

    Floyd's algorithm for all rows at once: a number already drawn gives way to the largest that could not be before.
    """
    drawn = np.empty((len(sizes), count), np.int64)
    for step in range(count):
        last = sizes - count + step
        number = rng.integers(0, last + 1)
        drawn[:, step] = np.where((drawn[:, :step] == number[:, None]).any(1), last, number)
    return rng.permuted(drawn, axis=1)
