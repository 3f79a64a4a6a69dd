"""PTUPCDR: a bridge of one's own for each user, made by a meta network from the items that the user met in the source.

Reference: [Zhu et al., 2022](https://doi.org/10.1145/3488560.3498392)
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from tfmetarec.models.baselines.base import above
from tfmetarec.tasks.episode import Features, Support
from tfmetarec.transfer.bridges import BridgedDomains, TwoFactorisations, fit_bridge
from tfmetarec.transfer.cross_domain import CrossDomainMethod, Domains, Judged
from tfmetarec.transfer.emcdr import check_settings

_USERS = 128  # Adapted at once: each user has a matrix of his own.
_FAR = -1e9
_LEAST = 1e-9


@keras.saving.register_keras_serializable(package="tfmetarec")
class PersonalBridge(keras.Model):
    """From a user's source items to a matrix, and from the user's source vector through it to the target vector.

    The characteristic is the mean of the items' vectors under an attention that looks at each item alone (equations 2
    to 4 of the paper); the meta network makes the matrix of it (equations 5 to 7).

    Args:
        width: int, at least 1. Of the vectors.
        hidden: int, at least 1. Hidden units of the attention and of the meta network.
        seed: int.

    Call arguments:
        vector: `(B, width)` source vectors of users.
        items: `(B, S, width)` source vectors of the items they met.
        length: `(B,)` how many are real.

    Returns `(B, width)`.
    """

    def __init__(self, width: int, hidden: int = 32, seed: int = 0, **kwargs: Any):
        super().__init__(**kwargs)
        self.width, self.hidden, self.seed = width, hidden, seed
        starts = [keras.initializers.GlorotUniform(seed + place) for place in range(4)]
        self.look = keras.layers.Dense(hidden, "relu", kernel_initializer=starts[0], name="attention_hidden")
        self.weigh = keras.layers.Dense(1, use_bias=False, kernel_initializer=starts[1], name="attention")
        self.think = keras.layers.Dense(hidden, "relu", kernel_initializer=starts[2], name="meta_hidden")
        small = keras.initializers.VarianceScaling(0.01, seed=seed + 3)

        def identity(shape: Any, dtype: Any = None) -> Any:
            return ops.reshape(ops.eye(width, dtype=dtype), (-1,))

        # The bridge starts as the identity with a little of the user in it, from where it cannot scatter vectors.
        self.matrix = keras.layers.Dense(
            width * width, kernel_initializer=small, bias_initializer=identity, name="meta"
        )
        self(tf.zeros((1, width)), tf.zeros((1, 1, width)), tf.ones(1, tf.int32))

    def call(self, vector: Any, items: Any, length: Any) -> Any:
        attention = self.weigh(self.look(items))[..., 0]  # (B, S)
        real = ops.arange(ops.shape(items)[1]) < ops.cast(length, "int32")[:, None]
        # A softmax by hand: somebody without items has none to attend to, and Keras's warns where there is only one.
        attention = ops.where(real, attention, _FAR)
        shares = ops.exp(attention - ops.max(attention, axis=-1, keepdims=True)) * ops.cast(real, attention.dtype)
        shares = shares / ops.maximum(ops.sum(shares, axis=-1, keepdims=True), _LEAST)
        characteristic = ops.einsum("bs,bsd->bd", shares, items)
        matrix = ops.reshape(self.matrix(self.think(characteristic)), (-1, self.width, self.width))
        return ops.einsum("bd,bde->be", vector, matrix)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "width": self.width, "hidden": self.hidden, "seed": self.seed}


class PTUPCDR(CrossDomainMethod):
    """Factorises each domain alone, then learns to make for each user the matrix that carries the vector across.

    What is minimised is not the distance of vectors but the error of the target ratings that the carried vector
    predicts (the paper's task-oriented objective); with implicit feedback, a softmax over the target's items. The
    paper's code picks the epoch on test users; this picks it on validation users.

    Args:
        factors: int, at least 1. Dimensions of both factorisations. Defaults to 16.
        hidden: int, at least 1. Hidden units of the attention and of the meta network. Defaults to 32.
        regularization: float, greater than 0, of both factorisations; `None` for their own default. Defaults to `None`.
        epochs: int, at least 1. The most that are tried where there are validation users, else how many. Defaults to
            20.
        learning_rate: float, greater than 0. Of Adam. Defaults to 0.002.
        batch_size: int, at least 1. Users in a step. Defaults to 32.
        longest: int, at least 1. Source items that the attention sees, the last ones. Defaults to 100.
        seed: int, at least 0. Defaults to 0.

    Reference: [Zhu et al., 2022](https://doi.org/10.1145/3488560.3498392)
    """

    name = "PTUPCDR"

    def __init__(
        self,
        factors: int = 16,
        hidden: int = 32,
        *,
        regularization: float | None = None,
        epochs: int = 20,
        learning_rate: float = 0.002,
        batch_size: int = 32,
        longest: int = 100,
        seed: int = 0,
    ):
        check_settings(
            factors=factors,
            hidden=hidden,
            epochs=epochs,
            learning_rate=learning_rate,
            batch_size=batch_size,
            longest=longest,
            seed=seed,
        )
        self.factors, self.hidden, self.epochs, self.learning_rate = factors, hidden, epochs, learning_rate
        self.batch_size, self.longest, self.seed = batch_size, longest, seed
        self.regularization = None if regularization is None else above("regularization", regularization, 0)
        self.chosen_epochs: int | None = None

    def get_config(self) -> dict[str, Any]:
        names = ("factors", "hidden", "regularization", "epochs", "learning_rate", "batch_size", "longest", "seed")
        return {name: getattr(self, name) for name in names}

    def _fit(self, domains: Domains, validation: Judged | None) -> None:
        both = self.factorisations = TwoFactorisations.fitted(domains, self.factors, self.regularization, self.seed)
        bridged = BridgedDomains.of(domains, both)
        self.bridge = PersonalBridge(both.width, self.hidden, self.seed)
        item, length = self._last(bridged.support)
        ids = domains.user_ids[(bridged.users - 1).tolist()]
        query = domains.support(ids, domains.target, longest=self.longest)
        rows = tf.constant(query.item["item_id"])
        targets = domains.target_rows
        constant = tf.constant(both.constant(query.item["item_id"]), tf.float32)
        label, real = tf.constant(query.label), tf.sequence_mask(query.length, rows.shape[1], tf.float32)
        source_items, target_items = tf.constant(both.source.items), tf.constant(both.items)
        place = tf.constant(
            np.searchsorted(targets, np.where(np.isin(query.item["item_id"], targets), rows, targets[0]))
        )
        item, length = tf.constant(item), tf.constant(length)

        def loss(users: tf.Tensor) -> tf.Tensor:
            met = tf.gather(source_items, tf.gather(item, users))
            carried = self.bridge(tf.gather(bridged.source_vectors, users), met, tf.gather(length, users))
            weight = tf.gather(real, users)
            if both.explicit:
                asked = tf.gather(target_items, tf.gather(rows, users))
                predicted = tf.gather(constant, users) + tf.einsum("bd,bqd->bq", carried, asked)
                error = tf.square(predicted - tf.gather(label, users))
            else:
                scores = tf.matmul(carried, tf.gather(target_items, targets), transpose_b=True)
                error = -tf.gather(tf.nn.log_softmax(scores), tf.gather(place, users), batch_dims=1)
            return tf.reduce_sum(error * weight) / tf.reduce_sum(weight)

        validate = None if validation is None else self._validation(validation)
        self.chosen_epochs = fit_bridge(self, self.bridge, loss, len(bridged.users), validate, self.chosen_epochs)

    def _validation(self, validation: Judged) -> Callable[[], float]:
        known = (*self.factorisations.fold_in(validation.support), *self._last(validation.support))
        return lambda: self.validation_loss(validation, lambda part: self._carried(*(value[part] for value in known)))

    def _adapt(self, support: Support) -> np.ndarray:
        return self._carried(*self.factorisations.fold_in(support), *self._last(support))

    def _carried(self, vectors: np.ndarray, known: np.ndarray, item: np.ndarray, length: np.ndarray) -> np.ndarray:
        state = np.zeros_like(vectors)
        for start in range(0, len(item), _USERS):
            part = slice(start, start + _USERS)
            met = tf.constant(self.factorisations.source.items[item[part]])
            state[part] = self.bridge(tf.constant(vectors[part]), met, tf.constant(length[part])).numpy()
        return np.where(known[:, None], state, 0)

    def _score(self, state: np.ndarray, item: Features) -> np.ndarray:
        return self.factorisations.score(state, np.asarray(item["item_id"]))

    def _last(self, support: Support) -> tuple[np.ndarray, np.ndarray]:
        """The last `longest` items of each support, `(T, at most longest)`, and how many there are."""
        item, length = np.asarray(support.item["item_id"]), np.asarray(support.length)
        width = min(self.longest, item.shape[1])
        place = np.maximum(length - width, 0)[:, None] + np.arange(width)
        return np.take_along_axis(item, np.minimum(place, item.shape[1] - 1), axis=1), np.minimum(length, width)

    def _save(self, folder: Path) -> None:
        self.factorisations.save(folder / "factorisations.npz")
        self.bridge.save(folder / "bridge.keras")

    def _restore(self, folder: Path) -> None:
        self.factorisations = TwoFactorisations.load(folder / "factorisations.npz")
        self.bridge = keras.saving.load_model(folder / "bridge.keras")
