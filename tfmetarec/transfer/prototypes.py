"""What a class of items (or a group of users) looks like on average, and how far to trust that for a newcomer."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import scipy.sparse
import tensorflow as tf

from tfmetarec.data.vocabulary import LISTS, FeatureSpec
from tfmetarec.tasks.episode import Features
from tfmetarec.transfer.block_ridge import conjugate_gradients, leave_one_out

LEAVE_ONE_OUT = "leave_one_out"
_CLASSES = ("category", *LISTS)
_CONTENT = ("number", "vector")


class ClassMeans(NamedTuple):
    """Prototypes as they are, before anything is shrunk.

    Attributes:
        mean: `(C, D)`; 0 for a class without members.
        count: `(C,)`, how many members, or how much they weigh together.
    """

    mean: tf.Tensor
    count: tf.Tensor


def class_means(vectors: Any, classes: Any, n_classes: int, *, length: Any = None, weight: Any = None) -> ClassMeans:
    """The mean vector of every class, exactly `mu_c = sum_i x_i I(y_i = c) / N_c`.

    Two segment sums, whatever the number of classes. Row 0 stands for "no class" and gets no member.

    Args:
        vectors: `(N, D)` float.
        classes: `(N,)` int rows, or `(N, L)` where an item has several classes (one listed twice counts once).
        n_classes: int, at least 1. `C`, row 0 included.
        length: `(N,)` int, how many of the `L` are real. Defaults to all.
        weight: `(N,)` float, at least 0, how much each member counts. Defaults to 1.

    Raises:
        ValueError: if shapes disagree, or a class is outside 0 to C - 1.

    Example:
    >>> mean, count = class_means([[1.0], [3.0], [8.0]], [1, 1, 2], n_classes=3)
    >>> mean.numpy().tolist(), count.numpy().tolist()
    ([[0.0], [2.0], [8.0]], [0.0, 2.0, 1.0])
    """
    vectors, classes = _floats(vectors), _rows(classes)
    _check_members(vectors, classes, n_classes)
    real = _counts_once(_as_list(classes), length)
    each = tf.cast(real, tf.float32)
    if weight is not None:
        each *= _floats(weight)[:, None]
    flat = tf.reshape(_as_list(classes), [-1])
    count = tf.math.unsorted_segment_sum(tf.reshape(each, [-1]), flat, n_classes)
    width = vectors.shape[1]
    members = tf.reshape(vectors[:, None, :] * each[:, :, None], [-1, width])
    total = tf.math.unsorted_segment_sum(members, flat, n_classes)
    return ClassMeans(tf.math.divide_no_nan(total, count[:, None]), count)


class Clusters(NamedTuple):
    """Classes of items that have none.

    Attributes:
        centres: `(C - 1, D)`.
        rows: `(N,)` int32 from 1 to `C - 1`, the cluster of each item; row 0 stays free for "no class".
    """

    centres: np.ndarray
    rows: np.ndarray

    def nearest(self, vectors: Any) -> np.ndarray:
        """The rows `(M,)` of other items: of the centre nearest to each vector `(M, D)`."""
        from sklearn.metrics import pairwise_distances_argmin

        return (pairwise_distances_argmin(np.asarray(vectors, np.float32), self.centres) + 1).astype(np.int32)


def clusters(vectors: Any, n_clusters: int, *, seed: int = 0) -> Clusters:
    """Makes classes of content vectors by k-means (scikit-learn's).

    Args:
        vectors: `(N, D)` float.
        n_clusters: int, between 1 and N.
        seed: int, at least 0.

    Example:
    >>> found = clusters([[0.0], [0.1], [5.0]], 2)
    >>> bool(found.rows[0] == found.rows[1] != found.rows[2]), bool(found.nearest([[4.0]])[0] == found.rows[2])
    (True, True)
    """
    from sklearn.cluster import KMeans

    vectors = np.asarray(vectors, np.float32)
    if not 1 <= n_clusters <= len(vectors):
        raise ValueError(
            f"`n_clusters` must be between 1 and the {len(vectors)} vectors. Received: n_clusters={n_clusters}"
        )
    found = KMeans(n_clusters, n_init=3, random_state=seed).fit(vectors)
    return Clusters(found.cluster_centers_, (found.labels_ + 1).astype(np.int32))


@keras.saving.register_keras_serializable(package="tfmetarec")
class Prototypes(keras.Model):
    """Stands in for an item without interactions by the mean of its class, as far as the class can be trusted.

    A class with `n_c` members is trusted by `n_c / (n_c + shrinkage)`, and the rest of the way the mean of all
    items stands: a large class speaks for itself, a class of one hardly, an unknown class not at all.

    Args:
        n_classes: int, at least 1. `C`, row 0 ("no class") included.
        width: int, at least 1. `D` of the vectors.
        shrinkage: float, at least 0. In members.

    Call arguments: rows `(...)`. Returns the shrunk prototypes `(..., D)`.

    Attributes:
        mean: variable `(C, D)`, the exact means.
        count: variable `(C,)`.
        whole: variable `(D,)`, the mean of all members.

    Example:
    >>> prototypes = Prototypes.fit([[1.0], [3.0], [8.0]], [1, 1, 2], shrinkage=1.0)
    >>> prototypes.of([1, 2, 0]).numpy().tolist()  # Class 0 is unknown: the whole.
    [[2.0], [8.0], [4.0]]
    >>> round(float(prototypes(np.array([2]))[0, 0]), 3)  # Half way between the class of one and the whole.
    6.0

    Reference: [Snell et al., 2017](https://arxiv.org/abs/1703.05175), equation 1
    """

    def __init__(self, n_classes: int, width: int, shrinkage: float = 5.0, **kwargs: Any):
        super().__init__(**kwargs)
        for name, value in (("n_classes", n_classes), ("width", width)):
            if value < 1:
                raise ValueError(f"`{name}` must be at least 1. Received: {name}={value}")
        self.n_classes, self.width, self.shrinkage = n_classes, width, _check_shrinkage(shrinkage)
        self.mean = self.add_weight((n_classes, width), "zeros", trainable=False, name="mean")
        self.count = self.add_weight((n_classes,), "zeros", trainable=False, name="count")
        self.whole = self.add_weight((width,), "zeros", trainable=False, name="whole")
        self.built = True

    @classmethod
    def fit(  # Not Keras's: nothing is trained, it is all sums.
        cls,
        vectors: Any,
        classes: Any,
        n_classes: int | None = None,
        *,
        shrinkage: float | str = 5.0,
        length: Any = None,
        weight: Any = None,
    ) -> "Prototypes":
        """Prototypes of known members.

        Args:
            vectors: `(N, D)`: item vectors of any trained model (see `tfmetarec.transfer.zero_shot.item_vectors`), or
                any other.
            classes: `(N,)` or `(N, L)` int rows, see `class_means`.
            n_classes: int. Defaults to the largest row and one.
            shrinkage: float, at least 0, or "leave_one_out": the one of 61 from 0.01 to 10,000 that foretells each
                member best from the others.
            length: see `class_means`.
            weight: see `class_means`.

        Raises:
            ValueError: see `class_means`, or for a shrinkage below 0.
        """
        classes = np.asarray(classes)
        vectors = np.asarray(vectors, np.float32)
        n_classes = int(classes.max(initial=0)) + 1 if n_classes is None else n_classes
        means = class_means(vectors, classes, n_classes, length=length, weight=weight)
        each = np.ones(len(vectors), np.float32) if weight is None else np.asarray(weight, np.float32)
        if isinstance(shrinkage, str):
            _check_method(shrinkage)
            real = np.asarray(_counts_once(_as_list(_rows(classes)), length))
            shrinkage = _foretelling_shrinkage(vectors, classes, real, each, means)
        made = cls(n_classes, vectors.shape[1], shrinkage)
        made.mean.assign(means.mean)
        made.count.assign(means.count)
        made.whole.assign(_weighted_mean(vectors, each))
        return made

    def of(self, classes: Any) -> tf.Tensor:
        """The exact means `(..., D)` of classes `(...)`; the mean of all for a class that nobody is in."""
        rows = _rows(classes)
        count = tf.gather(self.count.value, rows)
        return tf.where(count[..., None] > 0, tf.gather(self.mean.value, rows), self.whole.value)

    def trust(self, classes: Any) -> tf.Tensor:
        """`n_c / (n_c + shrinkage)` of classes `(...)`, 0 for a class that nobody is in."""
        count = tf.gather(self.count.value, _rows(classes))
        return tf.math.divide_no_nan(count, count + self.shrinkage)

    def call(self, classes: Any) -> tf.Tensor:
        return self.whole.value + self.trust(classes)[..., None] * (self.of(classes) - self.whole.value)

    def blend(self, own: Any, classes: Any, own_trust: Any = 0.5, *, length: Any = None) -> tf.Tensor:
        """Vectors `(N, D)` from what is known of each item itself and of its classes.

        What is trusted by `t` stands as so many members as `t / (1 - t)` times the shrinkage: with weights
        `t / (1 - t)`, and 1 for the mean of all, a weighted mean. One class alone is thus trusted by its `t`, and a
        thing trusted by 0 changes nothing.

        Args:
            own: `(N, D)`: the item's own vector, from its content or its first interactions.
            classes: `(N,)` or `(N, L)` int rows.
            own_trust: float, or `(N,)`: at least 0 and less than 1; of `n` interactions, `n / (n + shrinkage)`.
            length: `(N,)` int, how many of the `L` are real.

        Raises:
            ValueError: if `own_trust` is outside [0, 1).

        Example:
        >>> prototypes = Prototypes.fit([[1.0], [3.0], [8.0]], [1, 1, 2], shrinkage=2.0)
        >>> prototypes.blend([[7.0]], [1], own_trust=0.5).numpy().tolist()  # (4 + 7 + 2 * 2 / 2) / (1 + 1 + 1)
        [[4.333333492279053]]
        """
        trust = _floats(own_trust)
        if tf.executing_eagerly() and not np.all((trust.numpy() >= 0) & (trust.numpy() < 1)):
            raise ValueError(f"`own_trust` must be at least 0 and less than 1. Received: own_trust={own_trust}")
        own, rows = _floats(own), _as_list(_rows(classes))
        weights = tf.gather(self.count.value, rows) / max(self.shrinkage, 1e-6)  # t / (1 - t)
        weights = tf.where(_counts_once(rows, length), weights, 0.0)
        own_weight = (trust / (1 - trust))[..., None]
        total = tf.reduce_sum(weights[..., None] * (self.of(rows) - self.whole.value), 1)
        total += own_weight * (own - self.whole.value)
        return self.whole.value + total / (1 + own_weight + tf.reduce_sum(weights, 1, keepdims=True))

    def get_config(self) -> dict[str, Any]:
        return {"n_classes": self.n_classes, "width": self.width, "shrinkage": self.shrinkage, "name": self.name}


@keras.saving.register_keras_serializable(package="tfmetarec")
class ContentPrototypes(keras.Model):
    """Vectors of newcomers from all that is known of them, each class answering for its own share.

    A film has genres, a director, actors and a plot, and their prototypes overlap: actors of good films have good
    directors. So they are found together,

        x = whole + sum over features f of 1 / sqrt(L) times the d_c of the L classes c listed in f,
        d = argmin sum_i weight_i |x_i - x|^2 + sum_f shrinkage_f sum_c |d_c|^2,

    in which every `d_c` is the prototype of what the other features leave over of the class's members, shrunk by
    their number: with one feature and one class each, `d_c = n_c / (n_c + shrinkage) (mu_c - whole)` exactly.
    Content that is a number or a vector enters the same sum by a matrix. `1 / sqrt(L)` rather than `1 / L`, so that
    items with long lists are expected to be as far from the whole as others.

    Args:
        specs: features, as `FeatureSpec`s or dicts: classes (categories, lists, texts), numbers and vectors.
        width: int, at least 1. `D` of the vectors.

    Call arguments: a dict of features `(...)`, more than those in `specs` allowed. Returns `(..., D)`; the whole's
    mean where nothing is known.

    Attributes:
        whole: variable `(D,)`.
        deviations: dict of variables `(C, D)`, of numbers and vectors `(size, D)`.
        shrinkage: variable `(F,)`, what `fit` found or was given.

    Example:
    >>> spec = FeatureSpec("brand", "category", 3)
    >>> items = {"brand": np.array([1, 1, 2])}
    >>> prototypes = ContentPrototypes([spec], 1).fit(items, np.array([[1.0], [3.0], [8.0]]), shrinkage=1.0)
    >>> prototypes({"brand": np.array([2, 0])}).numpy().round(3).tolist()
    [[6.0], [4.0]]

    References: [Snell et al., 2017](https://arxiv.org/abs/1703.05175), equation 1;
    [Allen, 1974](https://doi.org/10.1080/00401706.1974.10489157), for leaving one out in closed form.
    """

    def __init__(self, specs: Sequence[FeatureSpec | dict], width: int, **kwargs: Any):
        super().__init__(**kwargs)
        self.specs = tuple(spec if isinstance(spec, FeatureSpec) else FeatureSpec(**spec) for spec in specs)
        if not self.specs:
            raise ValueError("`specs` must hold at least one feature. Received: none")
        for spec in self.specs:
            if spec.kind not in (*_CLASSES, *_CONTENT):
                raise ValueError(
                    f"`specs` must be of classes, numbers or vectors. Received: {spec.name!r}, {spec.kind}"
                )
        if width < 1:
            raise ValueError(f"`width` must be at least 1. Received: width={width}")
        self.width = width
        self.whole = self.add_weight((width,), "zeros", trainable=False, name="whole")
        self.shrinkage = self.add_weight((len(self.specs),), "ones", trainable=False, name="shrinkage")
        self.deviations = {
            spec.name: self.add_weight((spec.size, width), "zeros", trainable=False, name=f"deviations_{index}")
            for index, spec in enumerate(self.specs)
        }
        self.centres = {
            spec.name: self.add_weight((spec.size,), "zeros", trainable=False, name=f"centre_{index}")
            for index, spec in enumerate(self.specs)
            if spec.kind in _CONTENT
        }
        self.built = True

    def fit(  # Not Keras's: one linear system.
        self,
        features: Features,
        vectors: Any,
        *,
        weight: Any = None,
        shrinkage: float | str | Mapping[str, float] = LEAVE_ONE_OUT,
        caution: float = 1.0,
        sample: int = 1000,
        seed: int = 0,
    ) -> "ContentPrototypes":
        """Finds the prototypes of known items, and returns itself.

        The system is solved by conjugate gradients over sums by class, at a cost of so many passes over the listed
        classes, never of items times items. Leaving one out is exact, in closed form, on a sample of items.

        Args:
            features: of `N` items.
            vectors: `(N, D)`.
            weight: `(N,)`, at least 0: how well each vector is known. Of `n` interactions, `n / (n + 20)` or the like.
                Defaults to 1.
            shrinkage: float, greater than 0, for all features; a dict of them by feature; or "leave_one_out": chosen so
                that each item is foretold best by all others.
            caution: float, greater than 0. What "leave_one_out" finds is multiplied by it: where newcomers are unlike
                what is known, as next year's films are, known items foretell them worse than each other.
            sample: int, at least 2. Items that "leave_one_out" looks at; its cost grows with the cube.
            seed: int, of the sample.

        Raises:
            ValueError: if a feature is missing, shapes disagree, or an option is out of range.
        """
        vectors = np.asarray(vectors, np.float64)
        if vectors.ndim != 2 or vectors.shape[1] != self.width:
            raise ValueError(f"`vectors` must have shape (N, {self.width}). Received: {vectors.shape}")
        n_items = len(vectors)
        weight = np.ones(n_items) if weight is None else np.asarray(weight, np.float64)
        if weight.shape != (n_items,) or not (weight >= 0).all() or not weight.sum() > 0:
            raise ValueError("`weight` must be one number of at least 0 for each vector, not all of them 0.")
        whole = weight @ vectors / weight.sum()
        designs = []
        for spec in self.specs:
            design = self._design(spec, features, n_items)
            if spec.kind in _CONTENT:
                centre = weight @ design / weight.sum()
                self.centres[spec.name].assign(centre)
                design = design - centre
            designs.append(design)
        if isinstance(shrinkage, str):
            _check_method(shrinkage)
            if sample < 2:
                raise ValueError(f"`sample` must be at least 2. Received: sample={sample}")
            if not 0 < caution < np.inf:
                raise ValueError(f"`caution` must be greater than 0 and finite. Received: caution={caution}")
            known = np.flatnonzero(weight)
            chosen = np.sort(np.random.default_rng(seed).permutation(known)[:sample])
            parts = [design[chosen] for design in designs]
            penalty = caution * leave_one_out(parts, vectors[chosen] - whole, weight[chosen])
        else:
            penalty = self._penalty(shrinkage)
        found = conjugate_gradients(designs, vectors - whole, weight, penalty)
        self.whole.assign(whole)
        self.shrinkage.assign(penalty)
        for spec, deviations in zip(self.specs, found, strict=True):
            self.deviations[spec.name].assign(deviations)
        return self

    def call(self, features: Features) -> tf.Tensor:
        total = tf.convert_to_tensor(self.whole.value)
        for spec in self.specs:
            value, table = tf.convert_to_tensor(features[spec.name]), self.deviations[spec.name]
            if spec.kind in _CONTENT:
                value = _floats(value)
                value = value[..., None] if spec.kind == "number" else value
                total += tf.linalg.matvec(table.value, value - self.centres[spec.name].value, transpose_a=True)
                continue
            length = features.get(f"{spec.name}_length")
            rows = value if spec.kind in LISTS else value[..., None]
            share = _shares(rows, length)
            total += tf.reduce_sum(share[..., None] * tf.gather(table.value, rows), -2)
        return total

    def _design(self, spec: FeatureSpec, features: Features, n_items: int) -> Any:
        """What the deviations of one feature are multiplied with: `(N, size)`, sparse for classes."""
        if spec.name not in features:
            raise ValueError(f"`features` must hold {spec.name!r}. Received: {sorted(features)}")
        value = np.asarray(features[spec.name])
        if len(value) != n_items:
            raise ValueError(
                f"`features` must have {n_items} rows, as `vectors`. Received: {spec.name!r}, {len(value)}"
            )
        if spec.kind in _CONTENT:
            return np.reshape(value, (n_items, spec.size)).astype(np.float64)
        rows = value if spec.kind in LISTS else value[:, None]
        share = np.asarray(_shares(tf.convert_to_tensor(rows), features.get(f"{spec.name}_length")))
        item, place = np.nonzero(share)
        shape = (n_items, spec.size)
        return scipy.sparse.csr_matrix((share[item, place].astype(np.float64), (item, rows[item, place])), shape=shape)

    def _penalty(self, shrinkage: float | Mapping[str, float]) -> np.ndarray:
        names = [spec.name for spec in self.specs]
        if not isinstance(shrinkage, Mapping):
            shrinkage = dict.fromkeys(names, shrinkage)
        if set(shrinkage) != set(names):
            raise ValueError(f"`shrinkage` must name the features {sorted(names)}. Received: {sorted(shrinkage)}")
        for name, value in shrinkage.items():
            if not 0 < value < np.inf:
                raise ValueError(f"`shrinkage` must be greater than 0 and finite. Received: {name}={value}")
        return np.array([shrinkage[name] for name in names], np.float64)

    def get_config(self) -> dict[str, Any]:
        return {"specs": [vars(spec) for spec in self.specs], "width": self.width, "name": self.name}


def _foretelling_shrinkage(
    vectors: np.ndarray, classes: np.ndarray, real: np.ndarray, weight: np.ndarray, means: ClassMeans
) -> float:
    """Of many shrinkages, the one with the least squared error of members foretold by the others of their class."""
    member, place = np.nonzero(real & (weight > 0)[:, None])
    if not len(member):
        return 5.0
    rows, own = classes.reshape(len(vectors), -1)[member, place], weight[member][:, None]
    count = np.asarray(means.count)[rows][:, None]
    others = np.maximum(count - own, 0.0)
    total = float(weight.sum())
    whole = (_weighted_mean(vectors, weight) * total - own * vectors[member]) / np.maximum(total - own, 1e-12)
    sums = np.asarray(means.mean)[rows] * count - own * vectors[member]
    mean = np.where(others > 1e-9, sums / np.maximum(others, 1e-9), whole)
    tried = np.logspace(-2, 4, 61)
    errors = [
        float(np.sum(own * np.square(vectors[member] - whole - others / (others + each) * (mean - whole))))
        for each in tried
    ]
    return float(tried[int(np.argmin(errors))])


def _rows(values: Any) -> tf.Tensor:
    return tf.cast(tf.convert_to_tensor(values), tf.int32)


def _floats(values: Any) -> tf.Tensor:
    return tf.cast(tf.convert_to_tensor(values), tf.float32)


def _as_list(classes: tf.Tensor) -> tf.Tensor:
    return classes[:, None] if classes.shape.rank == 1 else classes


def _counts_once(rows: tf.Tensor, length: Any) -> tf.Tensor:
    """Which entries of lists `(..., L)` name a class, and for the first time."""
    width = tf.shape(rows)[-1]
    place = tf.range(width)
    real = rows > 0
    if length is not None:
        real &= place < _rows(length)[..., None]
    if rows.shape[-1] == 1:
        return real
    earlier = (rows[..., :, None] == rows[..., None, :]) & (place[:, None] > place) & real[..., None, :]
    return real & ~tf.reduce_any(earlier, -1)


def _shares(rows: tf.Tensor, length: Any) -> tf.Tensor:
    """`1 / sqrt(L)` for each of the `L` classes in lists `(..., L)`, 0 for what is none."""
    real = tf.cast(_counts_once(rows, length), tf.float32)
    return real / tf.sqrt(tf.maximum(tf.reduce_sum(real, -1, keepdims=True), 1.0))


def _weighted_mean(vectors: np.ndarray, weight: np.ndarray) -> np.ndarray:
    return weight @ vectors / max(float(weight.sum()), 1e-12)


def _check_members(vectors: tf.Tensor, classes: tf.Tensor, n_classes: int) -> None:
    if vectors.shape.rank != 2 or classes.shape.rank not in (1, 2) or vectors.shape[0] != classes.shape[0]:
        raise ValueError(
            "`vectors` must have shape (N, D) and `classes` (N,) or (N, L). "
            f"Received: shapes {tuple(vectors.shape)} and {tuple(classes.shape)}"
        )
    if n_classes < 1:
        raise ValueError(f"`n_classes` must be at least 1. Received: n_classes={n_classes}")
    if classes.shape.num_elements():
        low, high = int(tf.reduce_min(classes)), int(tf.reduce_max(classes))
        if low < 0 or high >= n_classes:
            raise ValueError(f"`classes` must be between 0 and {n_classes - 1}. Received: {low} to {high}")


def _check_shrinkage(shrinkage: float) -> float:
    if not 0 <= shrinkage < np.inf:
        raise ValueError(f"`shrinkage` must be at least 0 and finite. Received: shrinkage={shrinkage}")
    return float(shrinkage)


def _check_method(shrinkage: str) -> None:
    if shrinkage != LEAVE_ONE_OUT:
        raise ValueError(f"`shrinkage` must be a number or {LEAVE_ONE_OUT!r}. Received: shrinkage={shrinkage!r}")
