"""What every algorithm shares: adapting many tasks at once, scoring, and living inside Keras."""

from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from tfmetarec.data.vocabulary import Vocabulary
from tfmetarec.meta import losses
from tfmetarec.meta.checkpoint import Checkpoint
from tfmetarec.meta.fast_weights import Adaptable, Weights
from tfmetarec.tasks.batching import Episodes
from tfmetarec.tasks.episode import Episode, Features, Negatives, Support


class AdaptedState(NamedTuple):
    """`T` adapted tasks: their weights, and what is encoded of the side that each task is about.

    Attributes:
        weights: tensors `(T, ...)`, one per adapted variable.
        user: encoded user side, leading dimensions `(T, 1)`; `None` if users vary within a task.
        item: encoded item side, leading dimensions `(T, 1)`; `None` if items vary within a task.
    """

    weights: Weights
    user: Any
    item: Any


class TaskRows(NamedTuple):
    """One task as an algorithm sees it inside `adapt_task`: encoded rows and, maybe, negatives.

    Attributes:
        user: encoded users, leading dimension 1 or `S`.
        item: encoded items, leading dimension 1 or `S`.
        label: `(S,)`.
        weight: `(S,)`, 0 for padding.
        negative_item: encoded negatives, leading dimension `P`, or `None`.
        negative_log_expected: `(P,)`, or `None`.
        negative_weight: `(P,)`, or `None`.
    """

    user: Any
    item: Any
    label: tf.Tensor
    weight: tf.Tensor
    negative_item: Any = None
    negative_log_expected: Any = None
    negative_weight: Any = None


class EncodedNegatives(NamedTuple):
    """`tfmetarec.tasks.Negatives` whose items are encoded: leading dimension `(P,)` or `(T, P)`."""

    item: Any
    log_expected: tf.Tensor
    weight: tf.Tensor


class MetaLearner(keras.Model):
    """Learns from many tasks how to adapt to a new one; `fit` it like any Keras model.

    An algorithm overrides `adapt_task`, and `meta_gradients` if its outer step is unusual. Everything else is
    here: tasks run side by side (`tf.vectorized_map`), never in a Python loop, and adapting returns weights
    without touching a variable.

    Args:
        model: `keras.Model`, built, that maps a dict of features to `(batch, 1)` scores.
        vocabulary: `tfmetarec.data.Vocabulary`. Defaults to the model's own. Needed for implicit feedback and
            for export.
        adapted: regular expression that says which variables adapt, see `Adaptable`.
        contrast: int, at least 1. With implicit feedback a support holds only positives: adapting contrasts
            them with this many catalogue items, drawn once by popularity and kept, so that a served model
            answers the same request the same way. Defaults to 512.
        seed: int, of the contrast items.

    """

    def __init__(
        self,
        model: keras.Model,
        *,
        vocabulary: Vocabulary | None = None,
        adapted: str | None = None,
        contrast: int = 512,
        seed: int = 0,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        if contrast < 1:
            raise ValueError(f"`contrast` must be at least 1. Received: contrast={contrast}")
        self.model = model
        self.adapted, self.contrast, self.seed = adapted, contrast, seed
        self._adaptable = Adaptable(model, adapted)
        self._graphs: dict[tuple, Any] = {}
        self._set_vocabulary(vocabulary or getattr(model, "vocabulary", None))
        self.task_loss = losses.resolve(None, self.feedback)
        self.loss_tracker = keras.metrics.Mean(name="loss")
        self.built = True

    # -- what an algorithm overrides -----------------------------------------------------------------------

    def adapt_task(self, task: TaskRows, training: bool) -> Weights:
        """Adapted weights of one task; runs vectorised over all tasks of a batch.

        Args:
            task: the encoded support.
            training: whether the result will be differentiated for the outer step.
        """
        raise NotImplementedError(f"{type(self).__name__} must say how it adapts.")

    def meta_gradients(self, episode: Episode) -> tuple[tf.Tensor, list[tf.Tensor], tf.Tensor]:
        """Loss, gradient of every trainable variable, and query scores `(T, Q)` of one batch of episodes."""
        with tf.GradientTape() as tape:
            loss, scores = self.query_loss(episode, training=True)
            total = tf.add_n([loss, *self.model.losses]) if self.model.losses else loss
        variables = [variable.value for variable in self.trainable_variables]
        return loss, tape.gradient(total, variables, unconnected_gradients="zero"), scores

    # -- the two verbs ---------------------------------------------------------------------------------------

    def adapt(self, support: Support, negatives: Negatives | None = None, training: bool = False) -> AdaptedState:
        """Adapts to `T` tasks at once; no variable changes.

        Args:
            support: features, labels and lengths, as arrays or tensors. Length 0 gives the starting point.
            negatives: what implicit feedback is contrasted with. Defaults to the fixed contrast items less
                those in the support.
            training: whether to encode in training mode (dropout).

        Raises:
            ValueError: if a label within the support is not finite (checked outside a graph).
        """
        support = _tensors(support)
        if tf.executing_eagerly() and negatives is None and not training:
            self._check_labels(support)
            return AdaptedState(*self._run_graph(self._adapt, support))
        return self._adapt(support, negatives, training)

    def _adapt(self, support: Support, negatives: Negatives | None = None, training: bool = False) -> AdaptedState:
        task = self._task_rows(support, training)
        encoded = (
            self._contrast_negatives(support) if negatives is None else self._encode_negatives(negatives, training)
        )
        return AdaptedState(
            self.adapt_rows(task, encoded, training),
            task.user if is_shared(support.user) else None,
            task.item if is_shared(support.item) else None,
        )

    def adapt_rows(self, task: TaskRows, negatives: EncodedNegatives | None, training: bool = False) -> Weights:
        """`adapt` for rows that are encoded already, as an exported graph has them."""
        return self._map(lambda rows: self.adapt_task(rows, training), task, negatives)

    def score(self, state: AdaptedState, item: Features | None = None, user: Features | None = None) -> tf.Tensor:
        """Scores `(T, N)` of candidates under adapted weights.

        Args:
            state: what `adapt` returned.
            item: features of the candidates of each task, `(T, N, ...)`, or of candidates common to all
                tasks, `(N, ...)`. For tasks about an item leave it out and give `user`.
            user: the same for candidate users.

        Raises:
            ValueError: if there are no candidates.
        """
        if item is None and user is None:
            raise ValueError(
                "`item` must be given (or `user`, for tasks about an item). Received: item=None, user=None"
            )
        state, item, user = _tensors((state, item, user))
        if tf.executing_eagerly():
            return self._run_graph(self._score, state, item, user)
        return self._score(state, item, user)

    def _score(self, state: AdaptedState, item: Features | None, user: Features | None) -> tf.Tensor:
        given = {"user": user, "item": item}
        sides = {"user": state.user, "item": state.item}
        encode = {"user": self._adaptable.encode_user, "item": self._adaptable.encode_item}
        mapped: dict[str, Any] = {}
        common: dict[str, Any] = {}
        for side, features in given.items():
            if features is None:
                mapped[side] = sides[side]
            else:
                target = common if features[f"{side}_id"].shape.rank == 1 else mapped
                target[side] = encode[side](features, training=False)

        return self.score_rows(state.weights, mapped, common)

    def score_rows(self, weights: Weights, own: dict[str, Any], common: dict[str, Any] | None = None) -> tf.Tensor:
        """`score` for encoded sides "user" and "item": each task's own, `(T, N or 1, ...)`, or common to all."""

        def score_task(inputs: tuple[Weights, dict[str, Any]]) -> tf.Tensor:
            sides = {**inputs[1], **(common or {})}
            return self._adaptable.score(inputs[0], sides["user"], sides["item"])

        return tf.vectorized_map(score_task, (weights, own))

    def query(self, state: AdaptedState) -> tf.Tensor:
        """Query vectors `(T, D)` whose dot product with `model.encode_item` is the score, before activation.

        Raises:
            ValueError: if the model's score is not a dot product.
        """
        if not self._adaptable.is_retrieval:
            raise ValueError(
                f"`query` needs a model that scores by a dot product. Received: {type(self.model).__name__}"
            )
        return self._run_graph(self._query, state.weights, state.user)

    def _query(self, weights: Weights, user: Any) -> tf.Tensor:
        return tf.vectorized_map(lambda own: self._adaptable.query(*own)[0], (weights, user))

    def _run_graph(self, function: Any, *inputs: Any) -> Any:
        """Runs `function` as a graph, traced once per kind of input: adapting op by op would be slow."""
        ranks = tuple(tensor.shape.rank for tensor in tf.nest.flatten(inputs) if tensor is not None)
        key = (function.__name__, ranks)
        if key not in self._graphs:
            self._graphs[key] = tf.function(function, autograph=False, reduce_retracing=True)
        return self._graphs[key](*inputs)

    # -- the outer loop ----------------------------------------------------------------------------------------

    def query_loss(self, episode: Episode, training: bool) -> tuple[tf.Tensor, tf.Tensor]:
        """Mean loss over tasks on the query after adapting to the support, and the query scores `(T, Q)`."""
        support_negatives = episode.support_negatives or None
        state = self.adapt(episode.support, support_negatives if training else None, training=training)
        return self._query_loss_under(state.weights, episode, training)

    def _query_loss_under(self, weights: Weights, episode: Episode, training: bool) -> tuple[tf.Tensor, tf.Tensor]:
        task = self._task_rows(episode.query, training)
        negatives = self._encode_negatives(episode.query_negatives, training) if episode.query_negatives else None
        loss, scores = self._map(lambda own: self._task_loss_and_scores(*own), task, negatives, weights)
        return tf.reduce_mean(loss), scores

    def support_loss(self, weights: Weights, task: TaskRows, shrinkage: float = 0.0) -> tf.Tensor:
        """The inner loss of one task under `weights`, see `losses.weighted_mean` for `shrinkage`."""
        return self._task_loss_and_scores(weights, task, shrinkage)[0]

    def _task_loss_and_scores(
        self, weights: Weights, task: TaskRows, shrinkage: float = 0.0
    ) -> tuple[tf.Tensor, tf.Tensor]:
        scores = self._adaptable.score(weights, task.user, task.item)
        negatives = None
        if task.negative_item is not None:
            negative_scores = self._adaptable.score(weights, task.user, task.negative_item)
            negatives = losses.NegativeRows(negative_scores, task.negative_log_expected, task.negative_weight)
        return self.task_loss(losses.Rows(task.label, scores, task.weight), negatives, shrinkage), scores

    def _map(
        self,
        function: Any,
        task: TaskRows,
        negatives: EncodedNegatives | None,
        weights: Weights | None = None,
    ) -> Any:
        """Runs `function` on every task of a batch at once; negatives common to all are not repeated."""
        mapped: dict[str, Any] = {"task": task[:4]}
        common: dict[str, Any] = {}
        if weights is not None:
            mapped["weights"] = weights
        if negatives is not None:
            shared = negatives.log_expected.shape.rank == 1
            (common if shared else mapped)["negatives"] = (negatives.item, negatives.log_expected)
            mapped["negative_weight"] = negatives.weight

        def one(own: dict[str, Any]) -> Any:
            both = {**own, **common}
            rows = TaskRows(*both["task"])
            if negatives is not None:
                item, log_expected = both["negatives"]
                rows = rows._replace(
                    negative_item=item,
                    negative_log_expected=log_expected,
                    negative_weight=both["negative_weight"],
                )
            return function(rows if weights is None else (both["weights"], rows))

        return tf.vectorized_map(one, mapped)

    def _encode_negatives(self, negatives: Negatives, training: bool) -> EncodedNegatives:
        negatives = _tensors(negatives)
        return EncodedNegatives(
            self._adaptable.encode_item(negatives.item, training=training),
            tf.cast(negatives.log_expected, keras.config.floatx()),
            tf.cast(negatives.weight, keras.config.floatx()),
        )

    def _task_rows(self, support: Support, training: bool) -> TaskRows:
        """The encoded rows of `T` tasks, each with leading dimensions `(T, rows)`; a shared side has one row."""
        support = _tensors(support)
        user = self._adaptable.encode_user(support.user, training=training)
        item = self._adaptable.encode_item(support.item, training=training)
        if is_shared(support.user):
            user = tf.nest.map_structure(lambda t: t[:, None], user)
        if is_shared(support.item):
            item = tf.nest.map_structure(lambda t: t[:, None], item)
        label, real = self.evidence(support.label, support.length)
        return TaskRows(user, item, label, tf.cast(real, label.dtype))

    def evidence(self, label: tf.Tensor, length: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Labels `(T, S)`, and which rows count, `(T, S)` bool: those within the length whose label says something.

        A label that is not finite says nothing. With implicit feedback nor does one of 0 or less ("not bought":
        the negatives say that already), and every other counts as 1.
        """
        label = tf.cast(label, keras.config.floatx())  # Ratings may well come as whole numbers.
        real = (tf.range(tf.shape(label)[1]) < length[:, None]) & tf.math.is_finite(label)
        if self.feedback == "implicit":
            real &= label > 0
            label = tf.ones_like(label)
        return tf.where(real, label, 0.0), real

    # -- implicit feedback: what the support is contrasted with ------------------------------------------------

    @property
    def feedback(self) -> str:
        specs = getattr(self.vocabulary, "specs", None) or getattr(self.model, "specs", None)
        return specs.feedback if specs is not None else "explicit"

    def _set_vocabulary(self, vocabulary: Vocabulary | None) -> None:
        self.vocabulary = vocabulary
        self._graphs.clear()
        self.contrast_items = np.zeros(0, np.int32)
        if vocabulary is None or self.feedback == "explicit":
            return
        weights = vocabulary.popularity.astype(float) ** 0.75
        probability = weights / weights.sum()
        drawable = np.flatnonzero(weights > 0)
        if self.contrast >= len(drawable):  # The whole catalogue: the softmax is exact.
            self.contrast_items = drawable.astype(np.int32)
            self.contrast_log_expected = np.zeros(len(drawable), np.float32)
        else:
            drawn = np.random.default_rng(self.seed).choice(len(weights), self.contrast, p=probability)
            self.contrast_items = np.sort(drawn).astype(np.int32)
            expected = self.contrast * probability[self.contrast_items]
            self.contrast_log_expected = np.log(expected).astype(np.float32)

    def contrast_weight(self, item_rows: tf.Tensor, real: tf.Tensor) -> tf.Tensor:
        """`(T, P)`: 0 where a contrast item is among the `(T, S)` support rows that are `real`, else 1."""
        same = item_rows[:, :, None] == tf.constant(self.contrast_items)
        return 1.0 - tf.cast(tf.reduce_any(same & real[:, :, None], axis=1), tf.float32)

    def _contrast_negatives(self, support: Support) -> EncodedNegatives | None:
        if self.feedback == "explicit":
            return None
        if self.vocabulary is None:
            raise ValueError("`vocabulary` is needed to adapt from implicit feedback, and this learner has none.")
        if not is_shared(support.user) or is_shared(support.item):
            raise ValueError(
                "implicit feedback needs tasks about users: items can be drawn to contrast a user's items with, "
                "but there is nothing to contrast the rows of another task with."
            )
        items = {name: value[self.contrast_items] for name, value in self.vocabulary.catalogue.items()}
        weight = self.contrast_weight(support.item["item_id"], self.evidence(support.label, support.length)[1])
        return self._encode_negatives(Negatives(items, self.contrast_log_expected, weight), False)

    def _check_labels(self, support: Support) -> None:
        real = np.arange(support.label.shape[1]) < np.asarray(support.length)[:, None]
        wrong = np.flatnonzero((real & ~np.isfinite(support.label.numpy())).any(axis=1))
        if len(wrong):
            raise ValueError(f"support labels must be finite. Received NaN or infinity in task {wrong[0]}.")

    # -- Keras ---------------------------------------------------------------------------------------------------

    def compile(
        self,
        optimizer: Any = "adam",
        loss: Any = None,
        metrics: Any = None,
        *,
        weighted_metrics: Any = None,
        jit_compile: bool = False,
        **kwargs: Any,
    ) -> None:
        """Configures the outer loop.

        Args:
            optimizer: of the outer loop, as Keras takes it.
            loss: "sampled_softmax", a `SampledSoftmax`, or any Keras loss. Defaults to "sampled_softmax" for
                implicit feedback and "mean_squared_error" for explicit.
            metrics: list of Keras metrics of query labels and scores after adapting, padding left out.
            weighted_metrics: the same; here all metrics are weighted, by 0 for padding.
            jit_compile: bool. XLA for the training step.
        """
        for name, given in (("metrics", metrics), ("weighted_metrics", weighted_metrics)):
            if not isinstance(given, list | tuple | None):
                raise ValueError(f"`{name}` must be a list of Keras metrics. Received: {name}={given!r}")
        # Keras gives sample weights to its weighted metrics alone, and without them padding would count.
        weighted = [*(metrics or ()), *(weighted_metrics or ())] or None
        if keras.config.dtype_policy().compute_dtype == "float16":
            raise ValueError("a meta-learner does not scale its loss, so it cannot train in float16. Take bfloat16.")
        super().compile(optimizer=optimizer, weighted_metrics=weighted, jit_compile=jit_compile, **kwargs)
        if self.optimizer is not None and not self.optimizer.built:
            # Left to the first step, it would be built inside that step's graph, which is then traced twice.
            self.optimizer.build(self.trainable_variables)
        self.task_loss = losses.resolve(loss, self.feedback)
        self._graphs.clear()  # They hold the loss that was set when they were traced.

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if not name.startswith("_") and "_graphs" in self.__dict__:
            self._graphs.clear()  # They hold the settings with which they were traced.

    def get_compile_config(self) -> dict[str, Any]:
        config = super().get_compile_config() or {}
        config["loss"] = keras.saving.serialize_keras_object(self.task_loss)
        return config

    def compile_from_config(self, config: dict[str, Any]) -> None:
        self.compile(**keras.saving.deserialize_keras_object(config))

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        """The loss first, as `evaluate` returns it. Keras has a loss tracker too, which would be a second "loss"."""
        return [self.loss_tracker, *(metric for metric in super().metrics if metric.name != "loss")]

    def train_step(self, data: Any) -> dict[str, Any]:
        episode = _episode(data)
        loss, gradients, scores = self.meta_gradients(episode)
        self.optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
        return self._logs(loss, episode, scores)

    def test_step(self, data: Any) -> dict[str, Any]:
        episode = _episode(data)
        loss, scores = self.query_loss(episode, training=False)
        return self._logs(loss, episode, scores)

    def call(self, episode: Any, training: bool = False) -> tf.Tensor:
        """Query scores `(T, Q)` after adapting to the support."""
        episode = _episode(episode)
        weights = self.adapt(episode.support).weights
        rows = self._task_rows(episode.query, False)
        return self.score_rows(weights, {"user": rows.user, "item": rows.item})

    def predict_step(self, data: Any) -> tf.Tensor:
        return self(_episode(data))

    def _logs(self, loss: tf.Tensor, episode: Episode, scores: tf.Tensor) -> dict[str, Any]:
        self.loss_tracker.update_state(loss)
        if self._compile_metrics is not None:
            query = episode.query
            real = tf.cast(tf.range(tf.shape(query.label)[1]) < query.length[:, None], tf.float32)
            label, score = tf.reshape(query.label, [-1, 1]), tf.reshape(scores, [-1, 1])
            self._compile_metrics.update_state(label, score, sample_weight=tf.reshape(real, [-1]))
        return self.get_metrics_result()

    def fit(
        self,
        x: Any = None,
        *,
        epochs: int = 1,
        initial_epoch: int = 0,
        steps_per_epoch: int | None = None,
        validation_data: Any = None,
        callbacks: Any = None,
        **options: Any,
    ) -> keras.callbacks.History:
        """Keras's `fit`; `x` and `validation_data` may be `Episodes`, and `callbacks` may hold a `Checkpoint`.

        With a `Checkpoint` whose folder holds an earlier run, training continues after that run's last
        complete epoch with the very episodes an unbroken run would have seen.
        """
        callbacks = list(callbacks or [])
        for callback in callbacks:
            if isinstance(callback, Checkpoint):
                initial_epoch = max(callback.restore(self), initial_epoch)
                if callback.is_finished:
                    epochs = initial_epoch
        if isinstance(x, Episodes):
            steps_per_epoch = steps_per_epoch or len(x)
            x = x.dataset(initial_epoch * steps_per_epoch)
        if isinstance(x, tf.data.Dataset):
            options.setdefault("shuffle", False)  # Keras warns about its own default.
        if isinstance(validation_data, Episodes):
            validation_data = _once(validation_data)
        return super().fit(
            x,
            epochs=epochs,
            initial_epoch=initial_epoch,
            steps_per_epoch=steps_per_epoch,
            validation_data=validation_data,
            callbacks=callbacks,
            **options,
        )

    def evaluate(self, x: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Keras's `evaluate`: the query loss after adapting. `x` may be `Episodes`."""
        return super().evaluate(_once(x) if isinstance(x, Episodes) else x, *args, **kwargs)

    def predict(self, x: Any, *args: Any, **kwargs: Any) -> np.ndarray:
        """Keras's `predict`: query scores `(T, Q)` after adapting. `x` may be `Episodes`."""
        return super().predict(_once(x) if isinstance(x, Episodes) else x, *args, **kwargs)

    def get_config(self) -> dict[str, Any]:
        model = keras.saving.serialize_keras_object(self.model)
        own = {"adapted": self.adapted, "contrast": self.contrast, "seed": self.seed}
        return {"model": model, **own, "name": self.name}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> "MetaLearner":
        config = dict(config)
        config["model"] = keras.saving.deserialize_keras_object(config["model"], custom_objects=custom_objects)
        return cls(**config)

    def save_assets(self, folder: str) -> None:
        if self.vocabulary is not None:
            self.vocabulary.save(folder)

    def load_assets(self, folder: str) -> None:
        self._set_vocabulary(Vocabulary.load(folder))


def is_shared(features: Features) -> bool:
    """Whether a task has a single user (or item) for all its rows."""
    return features["user_id" if "user_id" in features else "item_id"].shape.rank == 1


def _tensors(structure: Any) -> Any:
    return tf.nest.map_structure(lambda value: None if value is None else tf.convert_to_tensor(value), structure)


def _episode(data: Any) -> Episode:
    if not isinstance(data, Episode):
        raise TypeError(f"a meta-learner trains on episodes, see `tfmetarec.tasks`. Received: {type(data).__name__}")
    return data


def _once(episodes: Episodes) -> tf.data.Dataset:
    return episodes.dataset(batches=len(episodes))
