"""A set encoder that reads the support and says at once where the user's own weights lie."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfmetarec.meta.last_layer import LastLayer
from tfmetarec.meta.learner import MetaLearner
from tfmetarec.meta.paths import EncodedNegatives, TaskRows
from tfmetarec.models.features import Tower
from tfmetarec.tasks.episode import Support

LEARNED = ("shrinkage", "level_shrinkage")


@keras.saving.register_keras_serializable(package="tfmetarec")
class SetEncoder(MetaLearner):
    """Learns to read a user's support, and to answer with the last layer that suits such a user.

    Each row, as the inputs `phi` of the model's last layer (the item vector of a `TwoTower`) and the residual `e`
    that the starting point left, goes through a small MLP `h`; what it says is pooled over the `K` rows; a second MLP
    `g` turns that into the change of the last layer (of a `TwoTower`, the user's own vector and level):

        level = sum_s e_s / (K + level_shrinkage)
        p = sum_s h(phi_s, (e_s - level) phi_s, e_s, e_s - level) / (K + shrinkage)
        change = K / (K + shrinkage) * g(p, sqrt(K) p, log(1 + K), level) + (0, level)

    With implicit feedback `e` is 1 and there is no level: what was taken speaks, and nothing is contrasted with it.
    Rows count for being there, whatever their residual, so that which items a user rated tells something too. Without
    support the change is exactly 0.

    Where `Ridge` solves for the weights that fit the support, this learns from many users what such supports mean; it
    errs in other places, so the two are worth more together (`tfmetarec.transfer.Mixture`). It remembers users where
    there are few of them, and wants dropout of about a half.

    Args:
        model: `keras.Model`, built: a `TwoTower` or `Ranker` with linear activation, or a functional model over a
            dict of features that ends in a linear `Dense(1)`. Only that layer adapts.
        representation: int, at least 1. Width of `p`. Defaults to 128.
        hidden: ints, each at least 1. Widths of the hidden layers of `h`, and of `g`. Defaults to one of 128.
        heads: int, at least 0. With 0, `p` is the mean above. Otherwise each of so many parts of `h` is pooled by
            attention weights of its own, a softmax over the rows and one more row that says nothing; must divide
            `representation`. Defaults to 0.
        dropout: float in [0, 1), in training: on the vectors that are read, on hidden layers, and on the change of
            the vector. Defaults to 0.5.
        shrinkage: float, greater than 0. As if so many more rows had said nothing. Where it starts: it is learned, as
            a logarithm. Defaults to 5.
        level_shrinkage: float, greater than 0. The same for the level. Defaults to 5.
        **options: of `MetaLearner`, except `adapted`. `seed` is that of the MLPs too. `contrast` has no effect on
            adapting: nothing is contrasted.

    Raises:
        ValueError: for an option out of range, or a model whose score is not linear in its last layer.

    Example:
    >>> import tfmetarec as tmr
    >>> data = tmr.data.load("synthetic", n_users=64, feedback="explicit", seed=0)
    >>> vocabulary = tmr.data.Vocabulary.fit(data)
    >>> episodes = tmr.tasks.user_episodes(data, vocabulary, support=(0, 5), query=5)
    >>> learner = SetEncoder(tmr.models.TwoTower(vocabulary, 8), representation=8, hidden=(16,))
    >>> learner.compile(optimizer="adam")
    >>> history = learner.fit(episodes, epochs=1, verbose=0)

    References: [Zaheer et al., 2017](https://arxiv.org/abs/1703.06114), theorem 2, for sums over a set;
    [Lee et al., 2019](https://arxiv.org/abs/1810.00825), section 3.2, for pooling by attention;
    [Sedhain et al., 2015](https://doi.org/10.1145/2740908.2742726) for a user read from all of their ratings
    """

    amortised = True  # How to adapt is learned altogether: before training, adapting promises nothing.
    suits_xla = False  # Small products, and random numbers in between.

    def __init__(
        self,
        model: keras.Model,
        *,
        representation: int = 128,
        hidden: Sequence[int] = (128,),
        heads: int = 0,
        dropout: float = 0.5,
        shrinkage: float = 5.0,
        level_shrinkage: float = 5.0,
        **options: Any,
    ):
        if representation < 1:
            raise ValueError(f"`representation` must be at least 1. Received: representation={representation}")
        if any(width < 1 for width in hidden):
            raise ValueError(f"`hidden` must hold widths of at least 1. Received: hidden={tuple(hidden)}")
        if heads < 0 or (heads and representation % heads):
            raise ValueError(f"`heads` must be 0 or divide `representation`, {representation}. Received: heads={heads}")
        if not 0 <= dropout < 1:
            raise ValueError(f"`dropout` must be at least 0 and less than 1. Received: dropout={dropout}")
        start = dict(zip(LEARNED, (shrinkage, level_shrinkage), strict=True))
        for name, value in start.items():
            if not 0 < value < np.inf:
                raise ValueError(f"`{name}` must be greater than 0 and finite. Received: {name}={value}")
        if (adapted := options.pop("adapted", None)) is not None:
            raise ValueError(
                f"`adapted` cannot be chosen: only the last layer is answered for. Received: adapted={adapted!r}"
            )
        last = LastLayer(model)
        super().__init__(model, adapted=last.pattern, **options)
        self.adapted = None  # The pattern follows from the model.
        self.representation, self.hidden, self.heads, self.dropout = representation, tuple(hidden), heads, dropout
        self.shrinkage, self.level_shrinkage, self._last = shrinkage, level_shrinkage, last
        self._logarithms = {
            name: self.add_weight((), keras.initializers.Constant(float(np.log(value))), name=f"log_{name}")
            for name, value in start.items()
        }
        width, seed = last.width - 1, self.seed
        dtype = last.layer.variable_dtype  # Of what is read and told, whatever the policy computes in.
        self._read = keras.layers.Dropout(dropout, seed=seed + 500, dtype=dtype)
        self._told = keras.layers.Dropout(dropout, seed=seed + 501, dtype=dtype)
        options = {"dropout": dropout, "seed": seed}
        self._row_encoder = Tower(2 * width + 2, representation + heads, self.hidden, **options, name="row_encoder")
        options["seed"] = seed + 100
        self._set_decoder = Tower(2 * representation + 2, width + 1, self.hidden, **options, name="set_decoder")
        kernel = self._set_decoder.dense[-1].kernel
        kernel.assign(0.1 * kernel.numpy())  # To begin near the starting point.

    def adapt_rows(self, rows: TaskRows, training: bool = False) -> list[tf.Tensor]:
        phi, score = self._last.features(self._cut, rows.user, rows.item)
        weight = tf.cast(rows.weight, phi.dtype)
        count = tf.reduce_sum(weight, 1, keepdims=True)  # (T, 1)
        residual, level = weight, tf.zeros_like(count)
        if self.feedback == "explicit":
            residual = weight * (tf.cast(rows.label, phi.dtype) - tf.cast(score, phi.dtype))
            level = tf.reduce_sum(residual, 1, keepdims=True) / (count + self._value("level_shrinkage"))
        pooled, share = self._pooled(phi, residual, level, weight, training)
        told = tf.concat([pooled, tf.sqrt(count) * pooled / 5, tf.math.log1p(count) / 4, level], -1)  # All of order 1.
        change = share * tf.cast(self._set_decoder(told, training=training), phi.dtype)
        vector = self._told(change[:, :-1], training=training)
        return self._last.moved(self.adapted_variables, tf.concat([vector, change[:, -1:] + level], -1))

    def _pooled(
        self, phi: tf.Tensor, residual: tf.Tensor, level: tf.Tensor, weight: tf.Tensor, training: bool
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """`p` `(T, R)`, and the share of what is not shrunk away, `K / (K + shrinkage)`, `(T, 1)`."""
        vector = self._read(phi[..., :-1], training=training)
        apart = weight * (residual - level)
        parts = [vector, apart[..., None] * vector, residual[..., None], apart[..., None]]
        said = tf.cast(self._row_encoder(tf.concat(parts, -1), training=training), phi.dtype)  # (T, S, R + H)
        count = tf.reduce_sum(weight, 1, keepdims=True)
        shrinkage = self._value("shrinkage")
        share = count / (count + shrinkage)
        if not self.heads:
            return tf.matmul(weight[:, None], said)[:, 0] / (count + shrinkage), share
        values, logits = said[..., : -self.heads], said[..., -self.heads :]
        # Bounded, so that no row silences the others; the silent row has a logit of log(shrinkage).
        attention = weight[..., None] * tf.exp(4 * tf.tanh(logits / 4))
        attention /= tf.reduce_sum(attention, 1, keepdims=True) + shrinkage  # (T, S, H)
        values = tf.reshape(values, [*tf.unstack(tf.shape(values)[:2]), self.heads, self.representation // self.heads])
        return tf.reshape(tf.einsum("tsh,tshd->thd", attention, values), [-1, self.representation]), share

    def _value(self, name: str) -> tf.Tensor:
        return tf.exp(tf.convert_to_tensor(self._logarithms[name].value))

    def _contrast_negatives(self, support: Support) -> EncodedNegatives | None:
        return None  # What was taken speaks for itself.

    def get_config(self) -> dict[str, Any]:
        names = ("representation", "hidden", "heads", "dropout", *LEARNED)
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}
