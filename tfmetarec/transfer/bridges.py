"""What maps between two domains' vectors stand on: a factorisation of each domain alone, and how maps are trained."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from tfmetarec.models.baselines import BiasedMF, ImplicitALS
from tfmetarec.tasks.episode import Support
from tfmetarec.transfer.cross_domain import Domains, inner_products
from tfmetarec.transfer.joint_training import factorisation


class TwoFactorisations:
    """A factorisation of the source and one of the target, each fitted on its own domain alone.

    A user's vector is what folding in finds; for ratings its last dimension is the user's bias.

    Args:
        source: fitted `BiasedMF` or `ImplicitALS`.
        target: the same of the target.
        popularity: `(I,)` how many users met each item in the target.
    """

    def __init__(self, source: Any, target: Any, popularity: np.ndarray):
        self.source, self.target, self.popularity = source, target, popularity
        self.explicit = isinstance(source, BiasedMF)
        self.width = source.items.shape[1]
        #: `(I, width)` what a user's target vector meets in a product; for ratings a 1 in the bias's place.
        self.items = target.items.copy()
        if self.explicit:
            self.items[:, -1] = 1

    @classmethod
    def fitted(cls, domains: Domains, factors: int, regularization: float | None, seed: int) -> "TwoFactorisations":
        """Factorises both domains; a regularization of `None` is the factorisation's own default."""
        source, target = (
            factorisation(domains.feedback, factors, regularization, seed=seed).fit(part)
            for part in (domains.source_ratings, domains.target_ratings)
        )
        popularity = np.bincount(domains.target_ratings.item, minlength=domains.vocabulary.n_items)
        return cls(source, target, popularity.astype(np.float32))

    def fold_in(self, support: Support) -> tuple[np.ndarray, np.ndarray]:
        """Users' source vectors `(T, width)` from their support, and whether there was anything to fold in, `(T,)`."""
        return self._folded(self.source, support)

    def fold_in_target(self, support: Support) -> np.ndarray:
        """Users' target vectors `(T, width)` from target interactions."""
        return self._folded(self.target, support)[0]

    def constant(self, rows: np.ndarray) -> np.ndarray:
        """What is predicted of items before anything is known of a user."""
        return self.target.mean + self.target.items[rows, -1] if self.explicit else np.zeros(rows.shape, np.float32)

    def score(self, state: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """`(T, N)` of items by rows; where the vector is 0, of somebody unknown: the constant, or popularity."""
        scores = self.constant(rows) + inner_products(state, self.items, rows)
        if self.explicit:
            return scores
        return np.where(np.any(state, axis=1)[:, None], scores, self.popularity[rows])

    def save(self, path: Path) -> None:
        """Writes everything to one file."""
        arrays = {"popularity": self.popularity}
        for name, part in (("source", self.source), ("target", self.target)):
            arrays[f"{name}_items"] = part.items
            arrays[f"{name}_constant"] = np.asarray(part.mean if self.explicit else part.penalty)
        arrays["explicit"] = np.asarray(self.explicit)
        np.savez(path, **arrays)  # type: ignore[arg-type]

    @classmethod
    def load(cls, path: Path) -> "TwoFactorisations":
        """Reads what `save` wrote."""
        parts = []
        with np.load(path) as arrays:
            explicit = bool(arrays["explicit"])
            for name in ("source", "target"):
                items, constant = arrays[f"{name}_items"], float(arrays[f"{name}_constant"])
                part: Any = BiasedMF(items.shape[1] - 1) if explicit else ImplicitALS(items.shape[1])
                part.items, part.n_items, part.popularity = items, len(items), arrays["popularity"]
                setattr(part, "mean" if explicit else "penalty", constant)
                parts.append(part)
            return cls(parts[0], parts[1], arrays["popularity"])

    def _folded(self, part: Any, support: Support) -> tuple[np.ndarray, np.ndarray]:
        # An item that this domain does not have has a vector of 0: it says nothing of taste, but would of the bias.
        known = np.any(part.items[:, : self.width - self.explicit], axis=1)
        item = np.asarray(support.item["item_id"])
        real = (np.arange(item.shape[1]) < np.asarray(support.length)[:, None]) & known[item]
        order = np.argsort(~real, axis=1, kind="stable")
        item = np.take_along_axis(item, order, axis=1)
        label = np.take_along_axis(np.asarray(support.label, np.float32), order, axis=1)
        length = real.sum(axis=1)
        return part.adapt(Support({}, {"item_id": item}, label, length)), length > 0


class BridgedDomains(NamedTuple):
    """The shared users' vectors in both domains.

    Attributes:
        users: `(M,)` rows of the users.
        support: their source interactions.
        source_vectors: `(M, width)`.
        target_vectors: `(M, width)`.
    """

    users: np.ndarray
    support: Support
    source_vectors: tf.Tensor
    target_vectors: tf.Tensor

    @classmethod
    def of(cls, domains: Domains, factorisations: TwoFactorisations) -> "BridgedDomains":
        """Folds the shared users in."""
        users = domains.shared_users
        if not len(users):
            raise ValueError("a map between domains needs users whom both have. Received: none")
        ids = domains.user_ids[(users - 1).tolist()]
        support = domains.support(ids)
        source, _ = factorisations.fold_in(support)
        target = factorisations.fold_in_target(domains.support(ids, domains.target))
        return cls(users, support, tf.constant(source), tf.constant(target))


def fit_bridge(
    method: Any,
    model: keras.Model,
    loss: Callable[[tf.Tensor], tf.Tensor],
    n_users: int,
    validation_loss: Callable[[], float] | None,
    chosen: int | None,
) -> int | None:
    """Trains a map on batches of users, and keeps the epoch that was best on validation users.

    Args:
        method: with `epochs`, `learning_rate`, `batch_size` and `seed`.
        model: whose weights are trained.
        loss: of users' places `(B,)`.
        n_users: int. Places are 0 to `n_users` - 1.
        validation_loss: of the map as it is, by which the epoch is chosen, or `None`: then as many as were chosen
            before, or `method.epochs`.
        chosen: epochs that were chosen before.

    Returns:
        How many epochs were best, or what was chosen before.
    """
    optimizer = keras.optimizers.Adam(method.learning_rate)
    optimizer.build(model.trainable_variables)

    @tf.function(autograph=False, reduce_retracing=True)
    def step(users: tf.Tensor) -> None:
        variables = [variable.value for variable in model.trainable_variables]
        with tf.GradientTape() as tape:
            value = loss(users)
        gradients = [tf.convert_to_tensor(gradient) for gradient in tape.gradient(value, variables)]
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))

    rng = np.random.default_rng(method.seed)
    size = min(method.batch_size, n_users)
    best, best_epoch, best_weights = np.inf, chosen, None
    for epoch in range(1, (method.epochs if validation_loss is not None else chosen or method.epochs) + 1):
        order = rng.permutation(n_users)
        for start in range(0, n_users - size + 1, size):  # The few users of a last, smaller batch wait an epoch.
            step(tf.constant(order[start : start + size]))
        if validation_loss is not None:
            value = validation_loss()
            if value < best:
                best, best_epoch, best_weights = value, epoch, model.get_weights()
    if validation_loss is not None:
        if best_weights is None:
            raise ValueError("training diverged: no epoch has a finite loss on validation users")
        model.set_weights(best_weights)
    return best_epoch
