"""Several vectors of one item -> one, by a gate over those that are there."""

from collections.abc import Mapping
from typing import Any

import keras
from keras import ops

FUSIONS = ("concatenate", "gate", "gate_all")


@keras.saving.register_keras_serializable(package="tfmetarec")
class GateFusion(keras.layers.Layer):
    """Mixes the modalities that are there, each by a weight of its own, so that any of them may be missing.

    Modality m is projected, h_m = W_m x_m + b_m, and scored, s_m = v_m . tanh(h_m) + c_m. The result is the mean of the
    h_m weighted by the softmax of the s_m over the modalities present; with none present it is a learned constant. A
    score depends on its own modality alone, so a missing one leaves the others' proportions as they were.

    While training, each modality of each row is hidden with the probability `modality_dropout`, as if it were missing:
    that teaches each to do without the others, and the constant to stand for nothing at all.

    A modality is present where its vector is not all zeros, unless `present` says otherwise. No mask is needed, which
    TensorFlow Serving's batching would corrupt: a vector says itself whether it is there.

    Args:
        widths: dict from the name of a modality to the width of its vectors, at least one.
        units: int, at least 1. Width of the result.
        modality_dropout: float in [0, 1). Defaults to 0.
        seed: int.

    Call arguments:
        vectors: dict from name to `(..., width)`, leading dimensions alike. What an absent one holds does not matter.
        present: dict from name to bool `(...)`; names left out go by their vector.

    Returns `(..., units)`.

    Example:
    >>> fusion = GateFusion({"image": 2, "text": 3}, units=4)
    >>> image, text = ops.ones((5, 2)), ops.zeros((5, 3))
    >>> alone = fusion({"image": image, "text": text})
    >>> alone.shape
    TensorShape([5, 4])

    Reference: [Arevalo et al., 2017](https://arxiv.org/abs/1702.01992), with a softmax over what is present;
    [Neverova et al., 2015](https://arxiv.org/abs/1501.00102), ModDrop
    """

    def __init__(
        self, widths: Mapping[str, int], units: int, modality_dropout: float = 0.0, seed: int = 0, **kwargs: Any
    ):
        super().__init__(**kwargs)
        if not widths or min(widths.values()) < 1:
            raise ValueError(
                f"`widths` must name at least one modality, each at least 1 wide. Received: widths={dict(widths)}"
            )
        if units < 1:
            raise ValueError(f"`units` must be at least 1. Received: units={units}")
        check_modality_dropout(modality_dropout)
        self.widths, self.units = dict(widths), units
        self.modality_dropout, self.seed = modality_dropout, seed
        self.projections: dict[str, keras.layers.Dense] = {}
        self.scores: dict[str, keras.layers.Dense] = {}
        for index, (name, width) in enumerate(self.widths.items()):
            initializer = keras.initializers.GlorotUniform(seed=seed + index)
            self.projections[name] = keras.layers.Dense(units, kernel_initializer=initializer, name=f"project_{index}")
            # All modalities count alike until training says which to trust.
            self.scores[name] = keras.layers.Dense(1, kernel_initializer="zeros", name=f"score_{index}")
            self.projections[name].build((None, width))
            self.scores[name].build((None, units))
        self.nothing = self.add_weight((units,), "zeros", name="nothing")
        self.random = keras.random.SeedGenerator(seed)
        self.built = True

    def call(self, vectors: Mapping[str, Any], present: Mapping[str, Any] | None = None, training: bool = False) -> Any:
        projected, weights = self._gated(vectors, present or {}, training)
        mixed = ops.sum(projected * weights[..., None], axis=-2)
        return ops.where(ops.any(weights > 0, axis=-1)[..., None], mixed, ops.cast(self.nothing, mixed.dtype))

    def gates(self, vectors: Mapping[str, Any], present: Mapping[str, Any] | None = None) -> Any:
        """How much each modality counts, `(..., M)` in the order of `widths`. The sum is 1, or 0 with none present."""
        return self._gated(vectors, present or {}, training=False)[1]

    def _gated(self, vectors: Mapping[str, Any], present: Mapping[str, Any], training: bool) -> tuple[Any, Any]:
        """Projections `(..., M, units)` and gates `(..., M)`."""
        self._check(vectors, present)
        projected, scores, there = [], [], []
        for name in self.widths:
            vector = ops.cast(vectors[name], self.compute_dtype)
            is_there = is_present(vector)
            if name in present:
                is_there = ops.cast(present[name], "bool")
                # Nothing of an absent vector may come through, NaN included: 0 times NaN is NaN.
                vector = ops.where(is_there[..., None], vector, ops.zeros_like(vector))
            hidden = self.projections[name](vector)
            projected.append(hidden)
            scores.append(self.scores[name](ops.tanh(hidden))[..., 0])
            there.append(is_there)
        scored, real = ops.stack(scores, axis=-1), ops.stack(there, axis=-1)
        if training and self.modality_dropout > 0:
            kept = keras.random.uniform(ops.shape(scored), seed=self.random) >= self.modality_dropout
            real = ops.logical_and(real, kept)
        # Softmax over what is present. Keras's own would give even shares where nothing is, and warns of a single one.
        scored = ops.where(real, scored, ops.full_like(scored, -1e4))
        highest = ops.stop_gradient(ops.max(scored, axis=-1, keepdims=True))
        shares = ops.exp(scored - highest) * ops.cast(real, scored.dtype)
        weights = shares / ops.maximum(ops.sum(shares, axis=-1, keepdims=True), 1e-30)
        return ops.stack(projected, axis=-2), weights

    def _check(self, vectors: Mapping[str, Any], present: Mapping[str, Any]) -> None:
        if set(vectors) != set(self.widths):
            raise ValueError(f"`vectors` must have the modalities {list(self.widths)}. Received: {list(vectors)}")
        if unknown := sorted(set(present) - set(self.widths)):
            raise ValueError(f"`present` must name modalities of {list(self.widths)}. Received: {unknown}")
        for name, width in self.widths.items():
            if vectors[name].shape[-1] != width:
                raise ValueError(
                    f"`vectors` of {name!r} must have the shape (..., {width}). Received: {tuple(vectors[name].shape)}"
                )

    def get_config(self) -> dict[str, Any]:
        names = ("widths", "units", "modality_dropout", "seed")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}


def is_present(vector: Any) -> Any:
    """Which vectors `(..., D)` are there at all: those that are not all zeros."""
    return ops.any(ops.not_equal(vector, 0), axis=-1)


def as_direction(vector: Any) -> Any:
    """Vectors `(..., D)` scaled so that their entries have a mean square of 1; zeros stay zeros."""
    square = ops.mean(ops.square(vector), axis=-1, keepdims=True)
    return vector * ops.rsqrt(ops.where(square > 0, square, ops.ones_like(square)))


def check_fusion(fusion: str, modality_dropout: float | None) -> None:
    """Refuses an unknown way to fuse, and a dropout that would be ignored."""
    if fusion not in FUSIONS:
        raise ValueError(f"`fusion` must be one of {', '.join(map(repr, FUSIONS))}. Received: fusion={fusion!r}")
    if modality_dropout is not None:
        check_modality_dropout(modality_dropout)
        if fusion == "concatenate":
            raise ValueError(
                "`modality_dropout` is for `fusion` 'gate' and 'gate_all', and must be None otherwise. "
                f"Received: modality_dropout={modality_dropout}, fusion={fusion!r}"
            )


def check_modality_dropout(modality_dropout: float) -> None:
    if not 0 <= modality_dropout < 1:
        raise ValueError(
            f"`modality_dropout` must be at least 0 and less than 1. Received: modality_dropout={modality_dropout}"
        )
