"""EMCDR: a map from users' vectors in the source domain to those in the target, learned on the shared users.

Reference: [Man et al., 2017](https://doi.org/10.24963/ijcai.2017/343)
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfmetarec.models.baselines.base import above
from tfmetarec.tasks.episode import Features, Support
from tfmetarec.transfer.bridges import BridgedDomains, TwoFactorisations, fit_bridge
from tfmetarec.transfer.cross_domain import CrossDomainMethod, Domains, Judged


@keras.saving.register_keras_serializable(package="tfmetarec")
class VectorMap(keras.Model):
    """The map: linear, or with one hidden layer of tanh units.

    Args:
        width: int, at least 1. Of the vectors.
        hidden: int, at least 0. Hidden units; 0 makes the map linear.
        seed: int.
    """

    def __init__(self, width: int, hidden: int = 0, seed: int = 0, **kwargs: Any):
        super().__init__(**kwargs)
        self.width, self.hidden, self.seed = width, hidden, seed
        if hidden:
            start = keras.initializers.GlorotUniform(seed)
            self.inner = keras.layers.Dense(hidden, "tanh", kernel_initializer=start, name="hidden")
        # From the identity for a linear map, which is where a target like the source would end.
        start = keras.initializers.GlorotUniform(seed + 1) if hidden else keras.initializers.Identity()
        self.outer = keras.layers.Dense(width, kernel_initializer=start, name="map")
        self(tf.zeros((1, width)))

    def call(self, vectors: Any) -> Any:
        return self.outer(self.inner(vectors) if self.hidden else vectors)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "width": self.width, "hidden": self.hidden, "seed": self.seed}


class EMCDR(CrossDomainMethod):
    """Factorises each domain alone, then learns to map a user's source vector to the target vector.

    The map minimises the squared distance between the mapped source vector and the target vector of the shared users.
    Both vectors are what folding in finds from a user's interactions, for users in training and new ones alike, so the
    map meets what it was trained on. A user's bias is one more dimension of the vector.

    Args:
        factors: int, at least 1. Dimensions of both factorisations. Defaults to 16.
        hidden: int, at least 0. Hidden units of the map; 0 makes it linear, as the paper's first variant. Defaults to
            32.
        regularization: float, greater than 0, of both factorisations; `None` for their own default. Defaults to `None`.
        epochs: int, at least 1. The most that are tried where there are validation users, else how many. Defaults to
            50.
        learning_rate: float, greater than 0. Of Adam. Defaults to 0.005.
        batch_size: int, at least 1. Users in a step. Defaults to 64.
        seed: int, at least 0. Defaults to 0.

    Reference: [Man et al., 2017](https://doi.org/10.24963/ijcai.2017/343)
    """

    name = "EMCDR"

    def __init__(
        self,
        factors: int = 16,
        hidden: int = 32,
        *,
        regularization: float | None = None,
        epochs: int = 50,
        learning_rate: float = 0.005,
        batch_size: int = 64,
        seed: int = 0,
    ):
        check_settings(factors=factors, epochs=epochs, learning_rate=learning_rate, batch_size=batch_size, seed=seed)
        if hidden < 0:
            raise ValueError(f"`hidden` must be at least 0. Received: hidden={hidden}")
        self.factors, self.hidden, self.epochs, self.learning_rate = factors, hidden, epochs, learning_rate
        self.batch_size, self.seed = batch_size, seed
        self.regularization = None if regularization is None else above("regularization", regularization, 0)
        self.chosen_epochs: int | None = None

    def get_config(self) -> dict[str, Any]:
        names = ("factors", "hidden", "regularization", "epochs", "learning_rate", "batch_size", "seed")
        return {name: getattr(self, name) for name in names}

    def _fit(self, domains: Domains, validation: Judged | None) -> None:
        self.factorisations = TwoFactorisations.fitted(domains, self.factors, self.regularization, self.seed)
        bridged = BridgedDomains.of(domains, self.factorisations)
        self.map = VectorMap(self.factorisations.width, self.hidden, self.seed)

        def loss(users: tf.Tensor) -> tf.Tensor:
            mapped = self.map(tf.gather(bridged.source_vectors, users))
            distance = tf.reduce_sum(tf.square(mapped - tf.gather(bridged.target_vectors, users)), axis=1)
            return tf.reduce_mean(distance)

        validate = None if validation is None else self._validation(validation)
        self.chosen_epochs = fit_bridge(self, self.map, loss, len(bridged.users), validate, self.chosen_epochs)

    def _validation(self, validation: Judged) -> Callable[[], float]:
        vectors, known = self.factorisations.fold_in(validation.support)  # Once: no epoch changes it.
        return lambda: self.validation_loss(validation, lambda part: self._carried(vectors[part], known[part]))

    def _carried(self, vectors: np.ndarray, known: np.ndarray) -> np.ndarray:
        return np.where(known[:, None], self.map(tf.constant(vectors)).numpy(), 0)

    def _adapt(self, support: Support) -> np.ndarray:
        return self._carried(*self.factorisations.fold_in(support))

    def _score(self, state: np.ndarray, item: Features) -> np.ndarray:
        return self.factorisations.score(state, np.asarray(item["item_id"]))

    def _save(self, folder: Path) -> None:
        self.factorisations.save(folder / "factorisations.npz")
        self.map.save(folder / "map.keras")

    def _restore(self, folder: Path) -> None:
        self.factorisations = TwoFactorisations.load(folder / "factorisations.npz")
        self.map = keras.saving.load_model(folder / "map.keras")


def check_settings(**settings: Any) -> None:
    """Refuses a setting below its least, with the argument, the rule and what came."""
    for name, value in settings.items():
        if name == "learning_rate":
            if not value > 0:
                raise ValueError(f"`{name}` must be greater than 0. Received: {name}={value}")
        elif not value >= (0 if name == "seed" else 1):
            raise ValueError(f"`{name}` must be at least {0 if name == 'seed' else 1}. Received: {name}={value}")
