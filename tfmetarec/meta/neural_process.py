"""A set encoder that reads the support and modulates the model: adapting is one forward pass."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfmetarec.meta.adaptable import GraphCut, Whole
from tfmetarec.meta.learner import MetaLearner
from tfmetarec.meta.paths import TaskRows
from tfmetarec.meta.residuals import residuals
from tfmetarec.models.features import Tower, placeholder_features


@keras.saving.register_keras_serializable(package="tfmetarec")
class NeuralProcess(MetaLearner):
    """Learns to read a user's support, and from it to set the weights that adapt: no gradient at adaptation.

    Each row of the support, as the encoded item, the encoded user and the residual `e` under the starting point (see
    `residuals`), goes through a small MLP `h`; a user's representation is the mean

        r = sum_s e_s h(item_s, user_s, e_s) / (K + shrinkage)

    over the `K` rows, and with implicit feedback over the negatives too, whose residuals are what the starting point
    gave them in the support's place: what was not bought counts against what was. Of every variable that adapts,
    `r` scales the columns by `1 + tanh(r U)`, and shifts a bias by `r V`: feature-wise modulation of each layer.
    Without biases in `U` and `V`, a user without support has `r = 0` and exactly the starting point.

    Rows are multiplied by their residual, so that one that the starting point foresaw says nothing, and a step of
    gradient descent on the last bias is among what can be learned. They are averaged, without attention between
    them: the order of the support does not matter, and its cost is linear in `K`.

    It adapts by what it has learned: before training, `U` and `V` are small random numbers and adapting is as good as
    none. Nothing tells it in advance that alike items are liked alike, as a gradient step or a prototype does, so it
    wants many users beside the items; of few it remembers which support belongs to whom. Watch it on validation users.

    Args:
        model: `keras.Model`, built: in two parts (`TwoTower`, `Ranker`), or functional over a dict of features.
        representation: int, at least 1. Width of `r`. Defaults to 32.
        hidden: ints, each at least 1. Widths of the hidden layers of `h`. Defaults to one of 64.
        shrinkage: float, greater than 0. As if so many more rows had said nothing. Where it starts: it is learned, as
            a logarithm. Defaults to 1.
        **options: of `MetaLearner`. `seed` is that of `h`, `U` and `V` too.

    Raises:
        ValueError: for an option out of range, or a model that runs whole: its rows are ids, not vectors.

    Example:
    >>> import tfmetarec as tmr
    >>> data = tmr.data.load("synthetic", n_users=64, seed=0)
    >>> vocabulary = tmr.data.Vocabulary.fit(data)
    >>> episodes = tmr.tasks.user_episodes(data, vocabulary, support=(0, 5), query=5, negatives=20)
    >>> learner = NeuralProcess(tmr.models.TwoTower(vocabulary, 8), representation=8, hidden=(16,))
    >>> learner.compile(optimizer="adam")
    >>> history = learner.fit(episodes, epochs=1, verbose=0)

    References: [Garnelo et al., 2018](https://arxiv.org/abs/1807.01613), equations 2-4, for encoding a set and
    conditioning on its mean; [Lin et al., 2021](https://arxiv.org/abs/2103.06137), section 3, for modulating a
    recommender's decoder by the task (here without the latent variable and the pool of task clusters);
    [Perez et al., 2018](https://arxiv.org/abs/1709.07871), equation 2, for the modulation.
    """

    amortised = True  # How to adapt is learned altogether: before training, adapting promises nothing.

    def __init__(
        self,
        model: keras.Model,
        *,
        representation: int = 32,
        hidden: Sequence[int] = (64,),
        shrinkage: float = 1.0,
        **options: Any,
    ):
        if representation < 1:
            raise ValueError(f"`representation` must be at least 1. Received: representation={representation}")
        if any(width < 1 for width in hidden):
            raise ValueError(f"`hidden` must hold widths of at least 1. Received: hidden={tuple(hidden)}")
        if not 0 < shrinkage < np.inf:
            raise ValueError(f"`shrinkage` must be greater than 0 and finite. Received: shrinkage={shrinkage}")
        super().__init__(model, **options)
        self.representation, self.hidden, self.shrinkage = representation, tuple(hidden), shrinkage
        self._set_encoder = Tower(
            self._encoded_width() + 1, representation, self.hidden, seed=self.seed + 300, name="set_encoder"
        )
        self._log_shrinkage = self.add_weight(
            (), keras.initializers.Constant(float(np.log(shrinkage))), name="log_shrinkage"
        )
        self._scales: list[keras.Variable] = []
        self._shifts: list[keras.Variable | None] = []
        for place, variable in enumerate(self.adapted_variables):
            shape = (representation, variable.shape[-1] if variable.shape else 1)
            maps = [
                self.add_weight(
                    shape,
                    keras.initializers.RandomNormal(0.0, 0.01, self.seed + 400 + 2 * place + kind),
                    name=f"{name}_{place}",
                )
                for kind, name in enumerate(("scale", "shift")[: 2 if len(variable.shape) < 2 else 1])
            ]
            self._scales.append(maps[0])
            self._shifts.append(maps[1] if len(maps) == 2 else None)

    def adapt_rows(self, rows: TaskRows, training: bool = False) -> list[tf.Tensor]:
        r = self._represent(rows)
        weights = []
        for variable, scale, shift in zip(self.adapted_variables, self._scales, self._shifts, strict=True):
            columns = (-1, *[1] * (len(variable.shape) - 1), *variable.shape[-1:])
            weight = variable.value * (1 + tf.reshape(tf.tanh(tf.matmul(r, scale.value)), columns))
            if shift is not None:
                weight += tf.reshape(tf.matmul(r, shift.value), columns)
            weights.append(weight)
        return weights

    def _represent(self, rows: TaskRows) -> tf.Tensor:
        """What the support says of each task, `(T, R)`."""
        start, negatives, common = self._path.start(), rows.negatives, None
        score, other_score = self._path.scores(start, rows.user, rows.item), None
        if negatives is not None:
            common = "item" if negatives.log_expected.shape.rank == 1 else None
            other_score = self._path.scores(start, rows.user, negatives.item, common)
        residual, other_residual = residuals(self.task_loss, rows, score, other_score)
        total = self._encoded_sum(rows.user, rows.item, residual)
        if negatives is not None:
            item = tf.nest.map_structure(lambda t: t[None], negatives.item) if common else negatives.item
            total += self._encoded_sum(rows.user, item, other_residual)
        shrinkage = tf.exp(tf.convert_to_tensor(self._log_shrinkage.value))
        return total / (tf.reduce_sum(rows.weight, 1, keepdims=True) + shrinkage)

    def _encoded_sum(self, user: Any, item: Any, residual: tf.Tensor) -> tf.Tensor:
        """`sum_s e_s h(item_s, user_s, e_s)` of each task."""
        leading = tf.shape(residual)
        parts = [residual[..., None]]
        for tensor in _floats(item, user):
            flat = tf.reshape(tensor, [*tf.unstack(tf.shape(tensor)[:2]), int(np.prod(tensor.shape[2:]))])
            parts.append(tf.cast(tf.broadcast_to(flat, [leading[0], leading[1], flat.shape[2]]), residual.dtype))
        encoded = tf.cast(self._set_encoder(tf.concat(parts, -1)), residual.dtype)
        return tf.matmul(residual[:, None], encoded)[:, 0]

    def _encoded_width(self) -> int:
        """How many numbers the encoded sides of a row are."""
        if type(self._cut) is Whole:
            raise ValueError(
                "`model` must be in two parts, like a TwoTower or Ranker, or a functional model over a dict of "
                "features, so that rows are encoded before they meet what adapts. "
                f"Received: {type(self.model).__name__}"
            )
        features: dict[str, Any] = {"user_id": np.zeros(1, np.int32), "item_id": np.zeros(1, np.int32)}
        if isinstance(self._cut, GraphCut):
            for name, tensor in self.model._inputs_struct.items():
                features[name] = np.zeros((1, *tensor.shape[1:]), tensor.dtype)
            sides: Any = (self._cut.encode_user(features, training=False),)
        else:
            specs = getattr(self.vocabulary, "specs", None) or getattr(self.model, "specs", None)
            if specs is None:
                raise ValueError("`vocabulary` is needed to know how wide the encoded sides of the model are.")
            features.update(placeholder_features(specs))
            sides = (self._cut.encode_user(features, training=False), self._cut.encode_item(features, training=False))
        return sum(int(np.prod(tensor.shape[1:])) for tensor in _floats(*sides))

    def get_config(self) -> dict[str, Any]:
        names = ("representation", "hidden", "shrinkage")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}


def _floats(*sides: Any) -> list[tf.Tensor]:
    """The numbers of encoded sides; ids, which a functional model may still have to look up, are none."""
    if all(isinstance(side, dict) for side in sides):  # Of a functional model: the same order, whatever side is where.
        sides = tuple({name: tensor for side in sides for name, tensor in side.items()}.items())
        sides = tuple(tensor for _, tensor in sorted(sides))
    return [tensor for tensor in tf.nest.flatten(sides) if tensor.dtype.is_floating]
