"""Whatever knows more than the student, behind two questions: what do you say of these rows, and of these candidates?

A teacher may be of another library, take other features and know another catalogue; the maps between them are given
here. None of its variables is ever trained, and nothing of it becomes part of the student.
"""

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from tfmetarec.data.vocabulary import Vocabulary
from tfmetarec.tasks.episode import Features, Support
from tfmetarec.transfer.distillation_losses import function_config, function_from_config

ACTIVATIONS = ("linear", "sigmoid", "softmax")


class TeacherScores(NamedTuple):
    """What a teacher says.

    Attributes:
        score: `(B, N)`, before any activation.
        present: `(B, N)` float32, 0 where the teacher does not know the item.
    """

    score: tf.Tensor
    present: tf.Tensor


class Teacher:
    """Base of the adapters: the maps of features and items from the student's to the teacher's.

    Args:
        features: dict of the teacher's names by the student's, for features that are called otherwise; or a function
            from a dict of the student's features to one of the teacher's, which comes after `items`. Defaults to the
            same features.
        items: ints `(I,)`, the teacher's item row by the student's, -1 where the teacher does not know the item: see
            `map_items`. Defaults to the same rows.
        catalogue: features of the teacher's items by its row, looked up in place of the student's item features.
            Defaults to those of the teacher's vocabulary, where it has one and `items` is given.

    Raises:
        ValueError: if `items` holds rows that the teacher's catalogue does not have.
    """

    vocabulary: Vocabulary | None = None

    def __init__(
        self,
        *,
        features: Mapping[str, str] | Callable[[Features], Features] | None = None,
        items: Any = None,
        catalogue: Mapping[str, Any] | None = None,
    ):
        if features is not None and not isinstance(features, Mapping) and not callable(features):
            raise ValueError(f"`features` must be a dict of names or a function. Received: features={features!r}")
        self.features = features
        self.items = None if items is None else _item_map(items)
        self.catalogue = None if catalogue is None else {name: np.asarray(value) for name, value in catalogue.items()}
        self._tables: dict[str, tf.Tensor] | None = None
        size = self._size()
        if self.items is not None and size is not None and self.items.max() >= size:
            raise ValueError(
                f"`items` must hold rows of the teacher's catalogue, which has {size} (the unknown one included). "
                f"Received: {self.items.max()}, for the {len(self.items)} rows of the student"
            )

    @property
    def variables(self) -> list[Any]:
        """Everything of the teacher that must not move."""
        return []

    def rows(self, features: Features) -> TeacherScores:
        """What the teacher says of the rows of a plain model, `(B, N)`; `N` is 1 where a row is a user and an item."""
        raise NotImplementedError(f"{type(self).__name__} does not score rows.")

    def candidates(self, support: Support, item: list[Features]) -> TeacherScores:
        """What the teacher says of candidates, after it has seen the support if it adapts.

        Args:
            support: of `T` users, in the student's features.
            item: groups of candidates in the student's features, `(T, N, ...)` or, common to all users, `(N, ...)`.

        Returns:
            Scores `(T, sum of N)`.
        """
        raise NotImplementedError(f"{type(self).__name__} does not score candidates.")

    def check_catalogue(self, student: Vocabulary | None) -> None:
        """Refuses a catalogue that does not fit the student's, as far as both are known.

        Raises:
            ValueError: naming both sizes.
        """
        size = self._size()
        if student is None:
            return
        if self.items is not None:
            if len(self.items) != student.n_items:
                raise ValueError(
                    f"`items` must have a row for each of the {student.n_items} items of the student's catalogue (the "
                    f"unknown one included). Received: {len(self.items)} rows, into a teacher's catalogue of {size}"
                )
        elif size is not None:
            other = self.vocabulary is not None and not np.array_equal(self.vocabulary.item_ids, student.item_ids)
            if size != student.n_items or other:
                raise ValueError(
                    f"the teacher's catalogue has {size} items and the student's {student.n_items} (the unknown one "
                    "included), and they are not the same: `items` must say which is which, see `map_items`."
                )

    def _size(self) -> int | None:
        """Rows of the teacher's catalogue, if that is known."""
        catalogue = self._catalogue()
        if catalogue:
            return len(next(iter(catalogue.values())))
        return self.vocabulary.n_items if self.vocabulary is not None else None

    def _catalogue(self) -> Mapping[str, Any] | None:
        if self.catalogue is None and self.items is not None and self.vocabulary is not None:
            return self.vocabulary.catalogue
        return self.catalogue

    def _translated(self, features: Features) -> tuple[Features, tf.Tensor | None]:
        """Features as the teacher has them, and 1 for each item that it knows (`None` if there is no map of items)."""
        if self._tables is None:
            with tf.init_scope():  # Once, outside the graph that is being built.
                self._tables = {name: tf.constant(value) for name, value in (self._catalogue() or {}).items()}
                if self.items is not None:
                    self._tables["items of the student"] = tf.constant(self.items)
        if not isinstance(features, Mapping):
            if isinstance(self.features, Mapping):
                raise ValueError(f"`features` cannot rename what has no names. Received: {type(features).__name__}")
            return self.features(features) if self.features else features, None
        features, known = dict(features), None
        if "item_id" in features:
            rows = tf.convert_to_tensor(features["item_id"])
            if self.items is not None:
                rows = tf.gather(self._tables["items of the student"], rows)
                known, rows = tf.cast(rows >= 0, tf.float32), tf.maximum(rows, 0)
                features["item_id"] = rows
            for name in self._catalogue() or ():
                features[name] = tf.gather(self._tables[name], rows)
        if callable(self.features):
            features = self.features(features)
        elif self.features:
            features = {self.features.get(name, name): value for name, value in features.items()}
        return features, known

    def _maps(self) -> dict[str, Any]:
        """The configuration that all adapters share, as plain JSON."""
        catalogue = self.catalogue
        return {
            "features": function_config("features", self.features),
            "items": None if self.items is None else self.items.tolist(),
            "catalogue": None
            if catalogue is None
            else {name: {"values": value.tolist(), "dtype": value.dtype.name} for name, value in catalogue.items()},
        }

    def get_config(self) -> dict[str, Any]:
        """Plain JSON, without weights; `save_assets` writes those.

        Raises:
            ValueError: if something of the teacher could not be found again.
        """
        return self._maps()

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Any:
        return cls(**_with_maps(config))

    def save_assets(self, folder: str) -> None:
        """Writes what the configuration does not hold."""

    def load_assets(self, folder: str) -> None:
        """Reads what `save_assets` wrote."""


@keras.saving.register_keras_serializable(package="tfmetarec")
class LearnerTeacher(Teacher):
    """Anything with `adapt(support)` and `score(state, item=features)`: what it says after it has seen the support.

    A meta-learner, a sequence model, or a baseline in NumPy. Items of the support that it does not know are left out
    of what it sees.

    Args:
        learner: the teacher. Its `vocabulary`, if it has one, is the catalogue that it knows.
        features: as `Teacher`; a function gets users and items apart.
        items: as `Teacher`.
        catalogue: as `Teacher`.

    Raises:
        ValueError: if `learner` cannot adapt and score.

    Example:
    >>> import tfmetarec as tmr
    >>> data = tmr.data.load("synthetic", n_users=30, seed=0)
    >>> vocabulary = tmr.data.Vocabulary.fit(data)
    >>> teacher = LearnerTeacher(tmr.meta.Ridge(tmr.models.TwoTower(vocabulary, 8)))
    >>> episode = next(iter(tmr.tasks.user_episodes(data, vocabulary, tasks_per_batch=5).dataset()))
    >>> teacher.candidates(episode.support, [vocabulary.catalogue]).score.shape
    TensorShape([5, 101])
    """

    def __init__(self, learner: Any, *, features: Any = None, items: Any = None, catalogue: Any = None):
        if not is_recommender(learner):
            raise ValueError(
                "`learner` must have `adapt(support)` and `score(state, item=features)`. "
                f"Received: {type(learner).__name__}"
            )
        self.learner = learner
        self.vocabulary = getattr(learner, "vocabulary", None)
        super().__init__(features=features, items=items, catalogue=catalogue)

    @property
    def variables(self) -> list[Any]:
        return list(getattr(self.learner, "variables", None) or [])

    def _size(self) -> int | None:
        return super()._size() or getattr(self.learner, "n_items", None) or None  # Baselines know how many.

    def rows(self, features: Features) -> TeacherScores:
        raise TypeError(
            "a teacher that adapts needs a support, and batches of rows have none: distil it into a meta-learner, or "
            "write down what it says with `write_soft_labels` and take a `SoftLabelTeacher`."
        )

    def candidates(self, support: Support, item: list[Features]) -> TeacherScores:
        support = _tensors(support)
        user, _ = self._translated(support.user)
        seen, known = self._translated(support.item)
        support = Support(user, seen, support.label, support.length)
        if known is not None:
            support = _only(support, known > 0)
        groups, knowns = zip(*(self._translated(_tensors(group)) for group in item), strict=True)
        return side_by_side(self._scores(support, list(groups)), knowns, tf.shape(support.length)[0])

    def _scores(self, support: Support, groups: list[Features]) -> list[tf.Tensor]:
        if isinstance(self.learner, keras.Model | tf.Module):
            state = self.learner.adapt(support)
            return [tf.cast(self.learner.score(state, item=group), tf.float32) for group in groups]
        inputs = (support, groups)

        def run(*arrays: np.ndarray) -> list[np.ndarray]:  # Of NumPy, which a graph can only call.
            support, groups = tf.nest.pack_sequence_as(inputs, arrays)
            state = self.learner.adapt(support)
            return [np.asarray(self.learner.score(state, item=group), np.float32) for group in groups]

        arrays = tf.nest.flatten(inputs)
        if tf.executing_eagerly():
            return [tf.constant(score) for score in run(*(array.numpy() for array in arrays))]
        scores = tf.numpy_function(run, arrays, [tf.float32] * len(groups))
        for score, group in zip(scores, groups, strict=True):
            score.set_shape((support.length.shape[0], group["item_id"].shape[-1]))
        return list(scores)

    def get_config(self) -> dict[str, Any]:
        _check_saved(self.learner)
        return {"learner": keras.saving.serialize_keras_object(self.learner), **self._maps()}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "LearnerTeacher":
        return super().from_config({**config, "learner": keras.saving.deserialize_keras_object(config["learner"])})

    def save_assets(self, folder: str) -> None:
        self.learner.save(Path(folder) / "teacher.keras")

    def load_assets(self, folder: str) -> None:
        self.learner, self._tables = keras.saving.load_model(Path(folder) / "teacher.keras", compile=False), None
        self.vocabulary = getattr(self.learner, "vocabulary", None)


class _RowTeacher(Teacher):
    """Scores rows of features, and candidates as rows, each with the features of its user."""

    def __init__(self, *, activation: str = "linear", **maps: Any):
        self.activation = check_activation("activation", activation)
        super().__init__(**maps)

    def score(self, features: Features) -> Any:
        """Scores of features of the teacher's own, after its activation."""
        raise NotImplementedError

    def rows(self, features: Features) -> TeacherScores:
        translated, known = self._translated(_tensors(features))
        score = as_lists(logits(self.score(translated), self.activation))
        if self.items is not None and known is None:
            return self._columns(score)
        return TeacherScores(score, tf.ones_like(score) if known is None else as_lists(known))

    def _columns(self, score: tf.Tensor) -> TeacherScores:
        """The student's columns of scores of the teacher's whole catalogue."""
        items = self.items
        assert items is not None
        if score.shape[1] is not None and items.max() >= score.shape[1]:
            raise ValueError(
                f"`items` must hold columns of the teacher's scores, of which there are {score.shape[1]}. "
                f"Received: {items.max()}, for the {len(items)} columns of the student"
            )
        known = tf.broadcast_to(tf.constant(items >= 0), (tf.shape(score)[0], len(items)))
        return TeacherScores(tf.gather(score, np.maximum(items, 0), axis=1), tf.cast(known, tf.float32))

    def candidates(self, support: Support, item: list[Features]) -> TeacherScores:
        users = tf.shape(support.length)[0]
        scores, knowns = [], []
        for group in map(_tensors, item):
            size = tf.shape(group["item_id"])[-1]
            rows = {name: tf.repeat(value, size, axis=0) for name, value in support.user.items()}
            for name, value in group.items():
                if group["item_id"].shape.rank == 1:  # Common to all users.
                    rows[name] = tf.tile(value, [users, *[1] * (value.shape.rank - 1)])
                else:
                    rows[name] = tf.reshape(value, tf.concat([[-1], tf.shape(value)[2:]], 0))
                    rows[name].set_shape([None, *value.shape[2:]])
            found = self.rows(rows)
            scores.append(tf.reshape(found.score, (users, size)))
            knowns.append(tf.reshape(found.present, (users, size)))
        return side_by_side(scores, knowns, users)


@keras.saving.register_keras_serializable(package="tfmetarec")
class ModelTeacher(_RowTeacher):
    """A model that scores rows of features: of Keras 3, of tf_keras or TFRS, or any function.

    Candidates of a user it scores row by row, each with the user's features, and without looking at the support.

    Args:
        model: a Keras 3 model; a `tf_keras.Model` or `tfrs.Model`; or a function from a dict of features to scores,
            `(B,)`, `(B, 1)`, `(B, N)` or `(B, N, 1)`.
        output: which output to take, where there are several: its name, or its place.
        features: as `Teacher`.
        items: as `Teacher`. Where rows have no `item_id`, and a row is scored with the teacher's whole catalogue: which
            of its columns belongs to each of the student's.
        catalogue: as `Teacher`.
        activation: "linear", "sigmoid" or "softmax": what the scores have been through. It is undone.

    Example:
    >>> quality = {"quality": [0.0, 1.0, 9.0]}
    >>> teacher = ModelTeacher(lambda features: features["quality"], items=[-1, 2], catalogue=quality)
    >>> scores = teacher.rows({"item_id": tf.constant([1, 0])})
    >>> scores.score.numpy().tolist(), scores.present.numpy().tolist()
    ([[9.0], [0.0]], [[1.0], [0.0]])
    """

    def __init__(
        self,
        model: Any,
        *,
        output: str | int | None = None,
        features: Any = None,
        items: Any = None,
        catalogue: Any = None,
        activation: str = "linear",
    ):
        if not callable(model):
            raise ValueError(f"`model` must be a model or a function. Received: {type(model).__name__}")
        self.output = output
        self._take(model)
        super().__init__(features=features, items=items, catalogue=catalogue, activation=activation)

    def _take(self, model: Any) -> None:
        self.model, self._call = model, model
        self.vocabulary = getattr(model, "vocabulary", None)
        if isinstance(model, keras.Model | tf.Module):
            self._call = _in_inference(model)
        if not isinstance(model, keras.Model):
            # Keras 3 switches autograph off, and layers of tf_keras and TFRS rely on it.
            self._call = tf.function(self._call)

    @property
    def variables(self) -> list[Any]:
        return list(getattr(self.model, "variables", None) or [])

    def score(self, features: Features) -> Any:
        outputs = self._call(_inputs_of(self.model, features))
        if self.output is not None:
            return outputs[self.output]
        if not tf.is_tensor(outputs):
            raise ValueError(
                f"`output` must say which output of the teacher holds its scores. Received: {type(outputs).__name__}"
            )
        return outputs

    def get_config(self) -> dict[str, Any]:
        _check_saved(self.model)
        model = keras.saving.serialize_keras_object(self.model)
        return {"model": model, "output": self.output, **self._maps(), "activation": self.activation}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "ModelTeacher":
        return super().from_config({**config, "model": keras.saving.deserialize_keras_object(config["model"])})

    def save_assets(self, folder: str) -> None:
        self.model.save(Path(folder) / "teacher.keras")

    def load_assets(self, folder: str) -> None:
        self._take(keras.saving.load_model(Path(folder) / "teacher.keras", compile=False))
        self._tables = None


@keras.saving.register_keras_serializable(package="tfmetarec")
class SavedModelTeacher(_RowTeacher):
    """A signature of a SavedModel, of whatever library: it is loaded without Keras.

    Args:
        path: folder of the SavedModel.
        output: which of the signature's outputs holds the scores.
        signature: Defaults to "serving_default".
        features: as `Teacher`. Of the features the signature gets those that it has an input for.
        items: as `ModelTeacher`.
        catalogue: as `Teacher`.
        activation: as `ModelTeacher`.

    Raises:
        ValueError: if there is no such signature or output; when scoring, if an input is missing.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        output: str,
        signature: str = "serving_default",
        features: Any = None,
        items: Any = None,
        catalogue: Any = None,
        activation: str = "linear",
    ):
        self.path, self.output, self.signature = str(path), output, signature
        self._loaded = tf.saved_model.load(self.path)  # Kept: variables live as long as what was loaded.
        if signature not in self._loaded.signatures:
            names = ", ".join(sorted(self._loaded.signatures))
            raise ValueError(f"`signature` must be one of {names}. Received: signature={signature!r}")
        self._function = self._loaded.signatures[signature]
        if output not in self._function.structured_outputs:
            names = ", ".join(sorted(self._function.structured_outputs))
            raise ValueError(f"`output` must be one of {names}. Received: output={output!r}")
        super().__init__(features=features, items=items, catalogue=catalogue, activation=activation)

    @property
    def variables(self) -> list[Any]:
        return list(self._function.variables)

    def score(self, features: Features) -> Any:
        wanted = self._function.structured_input_signature[1]
        missing = sorted(name for name in wanted if name not in features)
        if missing:
            raise ValueError(
                f"the signature {self.signature!r} needs the inputs {', '.join(sorted(wanted))}, and the features lack "
                f"{', '.join(missing)}: rename or make them by `features`."
            )
        inputs = {name: tf.cast(features[name], spec.dtype) for name, spec in wanted.items()}
        return self._function(**inputs)[self.output]

    def get_config(self) -> dict[str, Any]:
        own = {"path": self.path, "output": self.output, "signature": self.signature}
        return {**own, **self._maps(), "activation": self.activation}


def teacher_of(given: Any) -> Teacher:
    """The adapter of whatever a teacher may be given as.

    Raises:
        TypeError: if it is nothing that could teach.
    """
    if isinstance(given, Teacher):
        return given
    if is_recommender(given):
        return LearnerTeacher(given)
    if callable(given):
        return ModelTeacher(given)
    raise TypeError(
        "`teacher` must be a model, something with `adapt` and `score`, a function, or an adapter of "
        f"`tfmetarec.transfer.teachers`. Received: {type(given).__name__}"
    )


def is_recommender(given: Any) -> bool:
    """Whether it adapts to a support and scores candidates."""
    return all(callable(getattr(given, verb, None)) for verb in ("adapt", "score"))


def map_items(student: Vocabulary, teacher: Vocabulary, ids: Mapping[Any, Any] | None = None) -> np.ndarray:
    """For each item row of the student the row of the same item in the teacher's catalogue, -1 where it has none.

    Args:
        student: its vocabulary, of `I` items.
        teacher: its vocabulary.
        ids: the teacher's raw id by the student's, where they differ; an item that is not in it is one that the
            teacher does not know. Defaults to equal ids.

    Returns:
        int32 `(I,)`. Row 0, an item never seen, is -1.

    >>> import tfmetarec as tmr
    >>> few, more = (tmr.data.Vocabulary.fit(tmr.data.load("synthetic", n_users=2, seed=seed)) for seed in (1, 2))
    >>> rows = map_items(few, more)
    >>> bool((more.item_ids[rows[rows >= 0]] == few.item_ids[rows >= 0]).all())
    True
    """
    raw = student.item_ids[1:].tolist()
    rows = np.full(len(raw) + 1, -1, np.int32)
    pairs = (
        list(enumerate(raw, 1)) if ids is None else [(row, ids[one]) for row, one in enumerate(raw, 1) if one in ids]
    )
    if pairs:
        places, names = zip(*pairs, strict=True)
        found = teacher.item_rows(np.array(names, None if isinstance(names[0], int) else object))
        rows[list(places)] = np.where(found > 0, found, -1)
    return rows


def check_activation(name: str, activation: str) -> str:
    """The activation, if it is one that can be undone."""
    if activation not in ACTIVATIONS:
        raise ValueError(f"`{name}` must be one of {', '.join(ACTIVATIONS)}. Received: {name}={activation!r}")
    return activation


def logits(scores: Any, activation: str) -> tf.Tensor:
    """What scores were before an activation; of a softmax up to a constant in each list.

    >>> f"{float(logits(0.75, 'sigmoid')):.4f}"  # log(3)
    '1.0986'
    """
    scores = tf.cast(scores, tf.float32)
    if activation == "linear":
        return scores
    scores = tf.clip_by_value(scores, 1e-7, 1 - 1e-7)
    return tf.math.log(scores) - (tf.math.log1p(-scores) if activation == "sigmoid" else 0.0)


def as_lists(scores: tf.Tensor) -> tf.Tensor:
    """Scores `(B,)`, `(B, N)` or `(B, N, 1)` as `(B, N)`.

    Raises:
        ValueError: for any other shape.
    """
    if scores.shape.rank == 1:
        return scores[:, None]
    if scores.shape.rank == 3 and scores.shape[2] == 1:
        return scores[:, :, 0]
    if scores.shape.rank != 2:
        raise ValueError(f"scores must be (B,), (B, N) or (B, N, 1). Received: shape {tuple(scores.shape)}")
    return scores


def _tensors(structure: Any) -> Any:
    return tf.nest.map_structure(tf.convert_to_tensor, structure)


def _item_map(items: Any) -> np.ndarray:
    items = np.asarray(items)
    if items.ndim != 1 or not items.size or items.dtype.kind not in "iu" or items.min() < -1:
        raise ValueError(
            "`items` must be a list of the teacher's rows, -1 for an item that it does not know. "
            f"Received: {items.dtype} of shape {items.shape}"
        )
    if items.max() < 0:
        raise ValueError(
            f"`items` must hold at least one item that the teacher knows. Received: none of {len(items)} known"
        )
    return items.astype(np.int32)


def _only(support: Support, known: tf.Tensor) -> Support:
    """The support without the rows that are not known: the others move up, in their order."""
    real = tf.range(tf.shape(known)[1]) < support.length[:, None]
    order = tf.argsort(tf.cast(~(known & real), tf.int32), stable=True)
    item = {name: tf.gather(value, order, batch_dims=1) for name, value in support.item.items()}
    length = tf.reduce_sum(tf.cast(known & real, support.length.dtype), 1)
    return Support(support.user, item, tf.gather(support.label, order, batch_dims=1), length)


def side_by_side(scores: Any, knowns: Any, users: tf.Tensor) -> TeacherScores:
    """One answer of those for groups of candidates; `None` is a group of which the teacher knows every item."""
    present = [
        tf.ones_like(score) if known is None else tf.broadcast_to(known, (users, tf.shape(known)[-1]))
        for score, known in zip(scores, knowns, strict=True)
    ]
    return TeacherScores(tf.concat(list(scores), 1), tf.concat(present, 1))


def _in_inference(model: Any) -> Callable[[Features], Any]:
    """The model's call in inference mode, if it tells modes apart."""
    if "training" in inspect.signature(model.call).parameters:
        return lambda features: model(features, training=False)
    return lambda features: model(features)


def _inputs_of(model: Any, features: Features) -> Features:
    """Of the features, those that a functional model takes: it warns of others."""
    names = getattr(model, "_inputs_struct", None)
    return (
        {name: features[name] for name in names}
        if isinstance(names, dict) and names.keys() <= features.keys()
        else features
    )


def _check_saved(model: Any) -> None:
    if not isinstance(model, keras.Model):
        raise ValueError(
            f"a teacher of type {type(model).__name__} cannot be saved with the distiller: save `distiller.student`, "
            "or export the teacher and take a `SavedModelTeacher`."
        )


def _with_maps(config: dict[str, Any]) -> dict[str, Any]:
    """The arguments behind a configuration with `Teacher._maps`."""
    config = dict(config)
    if "features" in config:
        config["features"] = function_from_config(config["features"])
    if config.get("catalogue") is not None:
        config["catalogue"] = {n: np.asarray(v["values"], v["dtype"]) for n, v in config["catalogue"].items()}
    return config
