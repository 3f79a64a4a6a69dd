"""The trainer: a student learns from labels and from what a teacher says, in one loop of gradient steps."""

from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from tfmetarec.data.vocabulary import Vocabulary
from tfmetarec.optimizers.row_sparse import RowSparseOptimizer, no_gradient
from tfmetarec.tasks.batching import Episodes
from tfmetarec.tasks.episode import Episode, Features, Support
from tfmetarec.tasks.stream import from_batch, once, only_input, taken_up
from tfmetarec.transfer.candidates import candidates_of
from tfmetarec.transfer.distillation_losses import (
    BinarySoftLabels,
    DistillationLoss,
    FeatureHints,
    SoftmaxSoftLabels,
    SquaredSoftLabels,
)
from tfmetarec.transfer.teachers import TeacherScores, as_lists, check_activation, logits, teacher_of

_SETTINGS = ("alpha", "soft_loss", "hints", "candidates", "student_activation")


class TwoTasks(NamedTuple):
    """A batch of each of two data sets: one for its labels, one for what the teacher says."""

    hard: Any
    soft: Any


class Losses(NamedTuple):
    """What a step looks at.

    Attributes:
        objective: scalar whose gradient the step follows.
        parts: scalars to be shown, by name.
        outputs: the student's scores of the batch with labels.
    """

    objective: tf.Tensor
    parts: dict[str, tf.Tensor]
    outputs: Any


@keras.saving.register_keras_serializable(package="tfmetarec")
class Distiller(keras.Model):
    """Trains a student on labels and on what a larger, better informed or differently built teacher says.

    The loss is `(1 - alpha) * hard + alpha * soft`, plus `hints` if there are any. The student is one of two kinds:

    - a plain Keras model, trained on batches of `(features, label)` or `(features, label, sample_weight)`;
    - a meta-learner, trained on episodes. Student and teacher see the same support and then score the same candidates:
      the student learns what the *adapted* teacher says. The hard loss is the learner's own.

    Labels and teacher may share one data set, `fit(x)`, or have one each, `fit(source, soft_data=target)`: then a step
    takes a batch of both, hard labels of the source task and soft ones of the target task. The teacher runs in
    inference mode and does not change. Afterwards `student` is what it was before, only better: it adapts, scores,
    saves and exports by itself. It shares the optimizer of the distiller: to train it further alone, compile it anew.

    Args:
        student: a meta-learner of `tfmetarec.meta`, or a Keras 3 model that scores rows, `(B, 1)`, or lists, `(B, N)`.
        teacher: a Keras 3 model; anything with `adapt` and `score`; a TFRS or tf_keras model; a function; or an adapter
            of `tfmetarec.transfer.teachers`, which maps features and items, and takes SavedModels and files too.
        soft_loss: one of `tfmetarec.transfer.distillation_losses`. Defaults to `SoftmaxSoftLabels(2)`; where a row has
            one score only, to `BinarySoftLabels(2)`; for a learner of explicit feedback, to `SquaredSoftLabels()`.
        alpha: float in [0, 1]: the share of the soft loss. Defaults to 0.5.
        hints: `FeatureHints`: vectors inside student and teacher are compared too.
        candidates: what a learner and its teacher score. "episode": the query's items and the episode's negatives.
            "catalogue": all items. An int `K`: the `K` items that the teacher puts first in the catalogue, and the
            episode's negatives. What the support shows is never among them. Defaults to "episode".
        student_activation: "linear", "sigmoid" or "softmax": what the student's scores have been through. It is undone
            before the soft loss.

    Raises:
        ValueError: for an option out of range, catalogues that do not fit, or a teacher of which a part is the student.

    Example:
    >>> import tfmetarec as tmr
    >>> data = tmr.data.load("synthetic", n_users=60, seed=0)
    >>> vocabulary = tmr.data.Vocabulary.fit(data)
    >>> episodes = tmr.tasks.user_episodes(data, vocabulary, support=(0, 5), query=5, negatives=20)
    >>> teacher = tmr.meta.Ridge(tmr.models.TwoTower(vocabulary, 32))
    >>> distiller = Distiller(tmr.meta.MAML(tmr.models.TwoTower(vocabulary, 8)), teacher, alpha=0.7)
    >>> distiller.compile(optimizer="adam")
    >>> sorted(distiller.fit(episodes, verbose=0).history)
    ['hard_loss', 'loss', 'soft_loss']

    Reference: [Hinton et al., 2015](https://arxiv.org/abs/1503.02531)
    """

    def __init__(
        self,
        student: keras.Model,
        teacher: Any,
        *,
        soft_loss: DistillationLoss | None = None,
        alpha: float = 0.5,
        hints: FeatureHints | None = None,
        candidates: str | int = "episode",
        student_activation: str = "linear",
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        if not isinstance(student, keras.Model):
            raise ValueError(f"`student` must be a Keras 3 model. Received: {type(student).__name__}")
        if not 0 <= alpha <= 1:
            raise ValueError(f"`alpha` must be between 0 and 1. Received: alpha={alpha}")
        for name, given, kind in (("soft_loss", soft_loss, DistillationLoss), ("hints", hints, FeatureHints)):
            if given is not None and not isinstance(given, kind):
                raise ValueError(f"`{name}` must be a {kind.__name__}. Received: {type(given).__name__}")
        is_number = isinstance(candidates, int) and not isinstance(candidates, bool)
        if candidates not in ("episode", "catalogue") and not (is_number and int(candidates) >= 1):
            raise ValueError(
                "`candidates` must be 'episode', 'catalogue' or a whole number of at least 1. "
                f"Received: candidates={candidates!r}"
            )
        self.student, self.soft_loss, self.alpha, self.hints = student, soft_loss, float(alpha), hints
        self.candidates = candidates
        self.student_activation = check_activation("student_activation", student_activation)
        if candidates != "episode" and not self.is_episodic:
            raise ValueError(
                "`candidates` can be chosen for a meta-learner; a plain model scores what is in its batch. "
                f"Received: candidates={candidates!r}"
            )
        if any(layer.compute_dtype == "float16" for layer in student._flatten_layers()):
            raise ValueError("distillation does not scale its loss, so it cannot train in float16. Take bfloat16.")
        self.teacher = teacher_of(teacher)
        self.teacher.check_catalogue(self.vocabulary)
        own = {id(variable) for variable in student.trainable_variables}
        if any(id(variable) in own for variable in self.teacher.variables):
            raise ValueError(
                "a teacher must not change while it teaches, and this one shares variables with the student."
            )
        if hints is not None and _insides(self.teacher) is None:
            raise ValueError(f"`hints` need a teacher with insides. Received: {type(self.teacher).__name__}")
        if hints is not None and self.is_episodic and not hints.are_functions:
            raise ValueError(
                "`hints` between a meta-learner and its teacher must be functions of a model and an episode. Received: "
                f"{hints.student_features!r} and {hints.teacher_features!r}"
            )
        names = ["loss", "hard_loss", "soft_loss", *(["hint_loss"] if hints is not None else [])]
        self._trackers = [keras.metrics.Mean(name=name) for name in names]
        self._student_with_hints: Callable | None = None
        self._for_student: dict[str, Any] = {}
        self.built = student.built

    @property
    def is_episodic(self) -> bool:
        """Whether the student is a meta-learner, and so trained on episodes."""
        return callable(getattr(self.student, "candidate_scores", None))

    # -- what callbacks and evaluation ask of a learner --------------------------------------------------------

    @property
    def vocabulary(self) -> Vocabulary | None:
        """The student's."""
        return getattr(self.student, "vocabulary", None)

    def adapt(self, support: Support) -> Any:
        """The student's `adapt`."""
        return self.student.adapt(support)

    def score(self, state: Any, item: Features) -> tf.Tensor:
        """The student's `score`."""
        return self.student.score(state, item=item)

    def call(self, inputs: Any, training: bool = False) -> Any:
        """The student's output."""
        return self.student(inputs, training=training)

    # -- the losses --------------------------------------------------------------------------------------------

    def _step_losses(self, hard: Any, soft: Any, said: Any) -> Losses:
        """The losses of a step on a batch with labels and one with what the teacher has said, often the same."""
        of = self._losses_of_episodes if self.is_episodic else self._losses_of_rows
        hard_loss, soft_loss, hint_loss, outputs, shown = of(hard, soft, said)
        objective = self.alpha * soft_loss
        parts = {"soft_loss": soft_loss}
        if hard_loss is not None:
            objective += (1 - self.alpha) * hard_loss
            parts["hard_loss"] = shown
        loss = self.alpha * soft_loss + (0.0 if hard_loss is None else (1 - self.alpha) * shown)
        extra = list(self.losses)  # Penalties of weights and activities are nobody's share.
        if self.hints is not None:
            parts["hint_loss"] = hint_loss
            extra.append(self.hints.weight * hint_loss)
        return Losses(objective + sum(extra), {"loss": loss + sum(extra), **parts}, outputs)

    def _losses_of_rows(self, hard: Any, soft: Any, said: Any) -> tuple:
        x, label, weight = keras.utils.unpack_x_y_sample_weight(hard)
        outputs, vectors = self._forward(x)
        hard_loss = None
        if self._compile_loss is not None:
            if label is None:
                raise ValueError("the hard loss needs labels, and the batch has none: give `(features, label)`.")
            hard_loss = self._compile_loss(label, outputs, weight)
        scores = outputs
        if soft is not hard:
            x, _, weight = keras.utils.unpack_x_y_sample_weight(soft)
            scores, vectors = self._forward(x)
        told, told_vectors = said
        soft_loss = self._soft_loss(scores, told, weight)
        hint_loss = None if self.hints is None else self.hints(vectors, told_vectors, weight)
        return hard_loss, soft_loss, hint_loss, outputs, hard_loss

    def _losses_of_episodes(self, hard: Episode, soft: Episode, said: Any) -> tuple:
        (listed, told), told_vectors = said
        if soft is hard:
            outer, scores = self.student.candidate_scores(hard, listed.groups)
        else:
            outer, _ = self.student.candidate_scores(hard, [])
            _, scores = self.student.candidate_scores(soft, listed.groups, with_loss=False)
        soft_loss = self._soft_loss(scores, told, None)
        hint_loss = None
        if self.hints is not None:
            hint_loss = self.hints(self.hints.of_student(self.student, soft), told_vectors)
        return outer.objective, soft_loss, hint_loss, outer.scores, outer.loss

    def _soft_loss(self, scores: Any, told: TeacherScores, weight: Any) -> tf.Tensor:
        scores = as_lists(logits(scores, self.student_activation))
        return self._loss_for(scores.shape[1])(scores, told.score, told.present, weight)

    def _loss_for(self, candidates: int | None) -> DistillationLoss:
        if self.soft_loss is not None:
            return self.soft_loss
        if self.is_episodic:
            return SquaredSoftLabels() if self.student.feedback == "explicit" else SoftmaxSoftLabels(2.0)
        return BinarySoftLabels(2.0) if candidates == 1 else SoftmaxSoftLabels(2.0)

    def _said(self, batch: Any) -> tuple[Any, Any]:
        """What the teacher says of a batch, and its vectors if there are hints."""
        vectors = None
        if self.is_episodic:
            _check_users(batch)
            said: Any = candidates_of(batch, self.teacher, self.candidates, self.vocabulary)
            if self.hints is not None:
                vectors = self.hints.of_teacher(_insides(self.teacher), batch)
        else:
            x, _, _ = keras.utils.unpack_x_y_sample_weight(batch)
            said = self.teacher.rows(x)
            if self.hints is not None:
                vectors = self._teachers_vectors(x)
        return said, vectors

    # -- hints -------------------------------------------------------------------------------------------------

    def _forward(self, x: Any, training: bool = True) -> tuple[Any, Any]:
        """The plain student's output, and its vectors if there are hints."""
        if self.hints is None:
            return self.student(x, training=training), None
        if callable(self.hints.student_features):
            return self.student(x, training=training), self.hints.student_features(self.student, x)
        if self._student_with_hints is None:  # One pass for both: dropout is the same, and moments move once.
            vectors = _layer(self.student, self.hints.student_features, "student_features").output
            both = keras.Model(self.student.inputs, [self.student.outputs[0], vectors])
            self._student_with_hints = lambda x, training: both(x, training=training)  # Not a layer of this model.
        return self._student_with_hints(x, training)

    def _teachers_vectors(self, x: Any) -> Any:
        assert self.hints is not None
        model, features = _insides(self.teacher), self.teacher._translated(x)[0]
        if callable(self.hints.teacher_features):
            return self.hints.teacher_features(model, features)
        layer = _layer(model, self.hints.teacher_features, "teacher_features")
        return type(model)(model.inputs, layer.output)(features, training=False)

    # -- Keras: steps --------------------------------------------------------------------------------------------

    def compile(
        self,
        optimizer: Any = "adam",
        loss: Any = None,
        metrics: Any = None,
        *,
        weighted_metrics: Any = None,
        jit_compile: bool | str = "auto",
        **kwargs: Any,
    ) -> None:
        """Configures the loop.

        Args:
            optimizer: of the student (and the projection of hints), as Keras takes it.
            loss: the hard loss: for a plain model as Keras takes it, left out only if `alpha` is 1; for a meta-learner
                as its own `compile` takes it, its own default if left out.
            metrics: of the student, as its own `compile` takes them.
            weighted_metrics: the same.
            jit_compile: bool. Whether XLA compiles the whole step, teacher included. "auto" is `False`.

        Raises:
            ValueError: if there is nothing to take the hard loss from, or under a strategy of several replicas.
        """
        if loss is None and not self.is_episodic and self.alpha < 1:
            raise ValueError(f"`loss`, the hard loss, must be given unless alpha is 1. Received: alpha={self.alpha}")
        if tf.distribute.get_strategy().num_replicas_in_sync > 1:
            raise ValueError("distillation runs on one device. Received: a strategy of several replicas")
        given = {"loss": loss, "metrics": metrics, "weighted_metrics": weighted_metrics}
        own = {} if self.is_episodic else given
        super().compile(optimizer=optimizer, jit_compile=jit_compile is True, **own, **kwargs)
        self._for_student = given if self.is_episodic else {}
        self._compile_parts()

    def _compile_parts(self) -> None:
        """Builds the optimizer as soon as all is there that it moves, and compiles a learner with it.

        Left to the first step, it would be built inside that step's graph, which is then traced twice.
        """
        ready = self._is_ready and self.optimizer is not None
        if ready and not self.optimizer.built:
            self.optimizer.build(self.trainable_variables)
        if self.is_episodic:  # Its own trainer's optimizer: some learners count its steps.
            self.student.compile(self.optimizer if ready else None, jit_compile=False, **self._for_student)

    @property
    def _is_ready(self) -> bool:
        return self.student.built and (self.hints is None or self.hints.built)

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name in _SETTINGS:  # Keras's own graphs hold the settings with which they were traced.
            self.train_function = self.test_function = None

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        """The losses first, then the student's metrics."""
        has_hard = self.is_episodic or getattr(self, "_compile_loss", None) is not None
        own = [tracker for tracker in self._trackers if has_hard or tracker.name != "hard_loss"]
        if self.is_episodic:
            return [*own, *(metric for metric in self.student.metrics if metric.name != "loss")]
        return [*own, *([self._compile_metrics] if self.compiled and self._compile_metrics is not None else [])]

    def train_step(self, data: Any) -> dict[str, Any]:
        hard, soft = self._batches(data)
        self._build_on(soft)
        said = self._said(soft)
        with tf.GradientTape() as tape:
            losses = self._step_losses(hard, soft, said)
        variables = self.trainable_variables
        gradients = tape.gradient(losses.objective, [variable.value for variable in variables])
        sparse = isinstance(self.optimizer, RowSparseOptimizer)
        pairs = zip(variables, gradients, strict=True)
        self.optimizer.apply_gradients([(_whole(v, gradient, sparse), v) for v, gradient in pairs])
        return self._logs(hard, losses.parts, losses.outputs)

    def test_step(self, data: Any) -> dict[str, Any]:
        """Of the student: `loss` is the hard loss, or the soft one if no hard loss was compiled."""
        if self.is_episodic:
            episode = _episode(data)
            loss, outputs = self.student.query_loss(episode)
            return self._logs(episode, {"loss": loss}, outputs)
        x, label, weight = keras.utils.unpack_x_y_sample_weight(data)
        outputs = self.student(x, training=False)
        if self._compile_loss is not None:
            loss = self._compile_loss(label, outputs, weight)
        else:
            loss = self._soft_loss(outputs, self.teacher.rows(x), weight)
        return self._logs(data, {"loss": loss}, outputs)

    def predict_step(self, data: Any) -> Any:
        return self.student.predict_step(data)

    def _logs(self, batch: Any, losses: dict[str, tf.Tensor], outputs: Any) -> dict[str, Any]:
        logs = {}
        rows = None
        if not self.is_episodic:
            x, label, weight = keras.utils.unpack_x_y_sample_weight(batch)
            rows = tf.shape(tf.nest.flatten(x)[0])[0]  # The last batch of an epoch may be smaller.
            if self._compile_metrics is not None:
                self._compile_metrics.update_state(label, outputs, weight)
        else:
            self.student.update_metrics(batch, outputs)
        for tracker in self._trackers:
            if tracker.name in losses:
                tracker.update_state(losses[tracker.name], sample_weight=rows)
                logs[tracker.name] = tracker.result()
        for metric in self.metrics:
            if metric not in self._trackers:
                found = metric.result()
                logs.update(found if isinstance(found, dict) else {metric.name: found})
        return logs

    def _batches(self, data: Any) -> tuple[Any, Any]:
        """The batch with labels and the batch for the teacher; the same one, unless there are two tasks."""
        hard, soft = data if isinstance(data, TwoTasks) else (data, data)
        if self.is_episodic:
            one = _episode(hard)
            return one, one if soft is hard else _episode(soft)
        return hard, soft

    # -- Keras: loops --------------------------------------------------------------------------------------------

    def fit(
        self,
        x: Any = None,
        y: Any = None,
        *,
        soft_data: Any = None,
        epochs: int = 1,
        initial_epoch: int = 0,
        steps_per_epoch: int | None = None,
        validation_data: Any = None,
        callbacks: Any = None,
        **options: Any,
    ) -> keras.callbacks.History:
        """Keras's `fit`, of one data set or of two.

        For a meta-learner `x`, `soft_data` and `validation_data` may be `Episodes`, and `callbacks` may hold a
        `tfmetarec.meta.Checkpoint`: a run that was interrupted continues with the episodes an unbroken one would see.

        Args:
            x: what Keras takes, or `Episodes`.
            y: as Keras takes it.
            soft_data: `Episodes` or a `tf.data.Dataset` of batches of the target task: only what the teacher says of
                them counts, labels do not. Then `x` is one of the two too, of the source task: of it only labels count.
                Each step takes a batch of both; an epoch is as long as `x`, and `soft_data` goes on where the last
                epoch stopped.
            epochs: int.
            initial_epoch: int.
            steps_per_epoch: int.
            validation_data: with labels, on which the student is evaluated.
            callbacks: as Keras takes them.
            **options: of Keras's `fit`.
        """
        steps_per_epoch = steps_per_epoch or _steps(x, soft_data)
        if not self._is_ready:
            self._build_on(self._batches(_first_batch(x if soft_data is None else soft_data))[1])
        if self.is_episodic:
            self.student._maybe_symbolic_build()
        callbacks = list(callbacks or [])
        initial_epoch, epochs = taken_up(self, callbacks, initial_epoch, epochs)
        first = initial_epoch * (steps_per_epoch or 0)
        x = from_batch(x, first)
        if soft_data is not None:
            x = _in_step(x, from_batch(soft_data, first))
        if isinstance(x, tf.data.Dataset):
            options.setdefault("shuffle", False)  # Keras warns about its own default.
        return super().fit(
            x,
            y,
            epochs=epochs,
            initial_epoch=initial_epoch,
            steps_per_epoch=steps_per_epoch,
            validation_data=once(validation_data),
            callbacks=callbacks,
            **options,
        )

    def _build_on(self, batch: Any) -> None:
        """Builds what is left to build: a student without shapes, the projection of hints, the optimizer."""
        if self._is_ready:
            return
        if self.is_episodic:
            assert self.hints is not None
            vectors = self.hints.of_student(self.student, batch)
        else:
            _, vectors = self._forward(keras.utils.unpack_x_y_sample_weight(batch)[0], training=False)
        with tf.init_scope():
            if self.hints is not None:
                self.hints.build(tuple(vectors.shape))
            self.built = True
            self._compile_parts()

    def evaluate(self, x: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Keras's `evaluate`, of the student. `x` may be `Episodes`."""
        return super().evaluate(once(x), *args, **kwargs)

    def predict(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        """Keras's `predict`, of the student. `x` may be `Episodes`."""
        return super().predict(once(x), *args, **kwargs)

    # -- Keras: saving -------------------------------------------------------------------------------------------

    def get_config(self) -> dict[str, Any]:
        def saved(thing: Any) -> Any:
            return None if thing is None else keras.saving.serialize_keras_object(thing)

        parts = {name: saved(getattr(self, name)) for name in ("student", "teacher", "soft_loss")}
        own = {"alpha": self.alpha, "hints": saved(self.hints), "candidates": self.candidates}
        return {**parts, **own, "student_activation": self.student_activation, "name": self.name}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> "Distiller":
        config = dict(config)
        for name in ("student", "teacher", "soft_loss", "hints"):
            if config[name] is not None:
                config[name] = keras.saving.deserialize_keras_object(config[name], custom_objects=custom_objects)
        return cls(**config)

    def get_compile_config(self) -> dict[str, Any]:
        config = super().get_compile_config() or {}
        if self.is_episodic and config:
            of_student = self.student.get_compile_config()
            config.update({name: of_student[name] for name in ("loss", "metrics", "weighted_metrics")})
        return config

    def compile_from_config(self, config: dict[str, Any]) -> None:
        self.compile(**keras.saving.deserialize_keras_object(config))

    def save_assets(self, folder: str) -> None:
        self.teacher.save_assets(folder)

    def load_assets(self, folder: str) -> None:
        self.teacher.load_assets(folder)


def _insides(teacher: Any) -> Any:
    """The model behind an adapter, if there is one."""
    return getattr(teacher, "learner", getattr(teacher, "model", None))


def _layer(model: Any, name: str, argument: str) -> Any:
    """A layer of a functional model by its name."""
    if not hasattr(model, "inputs") or model.inputs is None:
        raise ValueError(
            f"`{argument}` can be the name of a layer where the model is functional; give a function. "
            f"Received: {name!r} of a {type(model).__name__}"
        )
    return model.get_layer(name)


def _whole(variable: keras.Variable, gradient: Any, sparse: bool) -> Any:
    """A gradient that the optimizer takes: rows stay rows if it knows them, and no gradient is one of zeros."""
    if gradient is None:
        gradient = no_gradient(variable)
    return gradient if sparse else tf.convert_to_tensor(gradient)


def _episode(data: Any) -> Episode:
    data = only_input(data, Episode)
    if not isinstance(data, Episode):
        raise TypeError(
            "a meta-learner is distilled on episodes alone, see `tfmetarec.tasks`: they hold labels, and have no "
            f"`sample_weight`. Received: {type(data).__name__}"
        )
    return data


def _check_users(episode: Episode) -> None:
    user, item = episode.query.user["user_id"], episode.query.item["item_id"]
    if user.shape.rank != 1 or item.shape.rank != 2:
        raise ValueError(
            "distilling a meta-learner needs tasks about users, who have items as candidates. "
            f"Received: user_id {tuple(user.shape)}, item_id {tuple(item.shape)}"
        )


def _steps(x: Any, soft_data: Any) -> int | None:
    """Steps of an epoch, where the data say so."""
    if isinstance(x, Episodes):
        return len(x)
    if soft_data is None or not isinstance(x, tf.data.Dataset):
        return None
    steps = int(x.cardinality())
    if steps < 1:
        raise ValueError("`steps_per_epoch` must be given: how many batches `x` has is not known.")
    return steps


def _in_step(hard: Any, soft: Any) -> tf.data.Dataset:
    """A batch of each, step by step, without end."""
    for name, given in (("x", hard), ("soft_data", soft)):
        if not isinstance(given, tf.data.Dataset):
            raise ValueError(
                f"`{name}` must be Episodes or a tf.data.Dataset of batches where there are two data sets. "
                f"Received: {type(given).__name__}"
            )
    return tf.data.Dataset.zip((hard.repeat(), soft.repeat())).map(TwoTasks)


def _first_batch(data: Any) -> Any:
    if isinstance(data, Episodes | tf.data.Dataset):
        return next(iter(once(data).take(1)))
    return (tf.nest.map_structure(lambda value: tf.convert_to_tensor(value[:1]), data),)
