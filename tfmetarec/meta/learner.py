"""What every algorithm shares: adapting many tasks at once, scoring, and living inside Keras."""

import functools
import inspect
from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from tfmetarec.data.vocabulary import Vocabulary
from tfmetarec.meta import losses
from tfmetarec.meta.adaptable import cut
from tfmetarec.meta.paths import Dense, EncodedNegatives, TaskRows, Vectorized
from tfmetarec.meta.replicas import scaled, share_out
from tfmetarec.optimizers.row_sparse import RowSparseOptimizer, no_gradient
from tfmetarec.tasks.batching import Episodes
from tfmetarec.tasks.episode import Episode, Features, Negatives, Support
from tfmetarec.tasks.stream import once, only_input, taken_up

ENGINES = ("auto", "low_rank", "formed", "vectorized")


class AdaptedState(NamedTuple):
    """`T` adapted tasks: their weights, and what is encoded of the side that each task is about.

    Attributes:
        weights: tensors `(T, ...)`, one per adapted variable.
        user: encoded user side, leading dimensions `(T, 1)`; `None` if users vary within a task.
        item: encoded item side, leading dimensions `(T, 1)`; `None` if items vary within a task.
    """

    weights: list[tf.Tensor]
    user: Any
    item: Any


class OuterLoss(NamedTuple):
    """What one batch of episodes says about the starting point.

    Attributes:
        objective: scalar whose gradient the outer step follows.
        loss: scalar, the query loss after adapting, to be shown.
        scores: query scores `(T, Q)` after adapting.
    """

    objective: tf.Tensor
    loss: tf.Tensor
    scores: tf.Tensor


class MetaLearner(keras.Model):
    """Learns from many tasks how to adapt to a new one; `fit` it like any Keras model.

    An algorithm overrides `adapt_rows`, and `outer_loss` if its outer step is unusual. Everything else is here:
    tasks run side by side, never in a Python loop, and adapting returns weights without touching a variable.

    Args:
        model: `keras.Model`, built, that maps a dict of features to `(batch, 1)` scores.
        vocabulary: `tfmetarec.data.Vocabulary`. Defaults to the model's own. Needed for implicit feedback and
            for export.
        adapted: which variables adapt: a regular expression searched for in their paths, "last" for the last
            layer with weights, "body" for all but that layer. Defaults to all but embeddings; of a model in two
            parts, of its head.
        contrast: int, at least 1. With implicit feedback a support holds only positives: adapting contrasts
            them with this many catalogue items, drawn once by popularity and kept, so that a served model
            answers the same request the same way. Defaults to 512.
        engine: how tasks run side by side; all are exact. "auto": where only Dense layers adapt, all tasks at
            once, each kernel as low-rank factors or formed, whichever takes fewer multiplications; else
            "vectorized" (`tf.vectorized_map`, any model). "low_rank" and "formed" fix the form of kernels.
        seed: int, of the contrast items.

    Raises:
        ValueError: for an option out of range, an engine that the model does not allow, or if nothing adapts.
    """

    amortised = False  # Whether all of adapting is learned, so that it lowers no loss before training.
    adaptation_steps: int | None = None  # Of learners that take steps; may be changed: a graph is traced for each.
    suits_xla = True  # Whether XLA makes what happens under tasks' own weights faster, where the model allows it.

    def __init__(
        self,
        model: keras.Model,
        *,
        vocabulary: Vocabulary | None = None,
        adapted: str | None = None,
        contrast: int = 512,
        engine: str = "auto",
        seed: int = 0,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        if contrast < 1:
            raise ValueError(f"`contrast` must be at least 1. Received: contrast={contrast}")
        if engine not in ENGINES:
            raise ValueError(f"`engine` must be one of {', '.join(ENGINES)}. Received: engine={engine!r}")
        self.model = model
        self.adapted, self.contrast, self.engine, self.seed = adapted, contrast, engine, seed
        vocabulary = vocabulary or getattr(model, "vocabulary", None)
        self._cut: Any = cut(model, adapted, _sides(vocabulary))
        self._path = self._choose_path(engine)
        self._graphs: dict[tuple, Any] = {}
        self._set_vocabulary(vocabulary)
        self.task_loss = losses.resolve(None, self.feedback)
        self.loss_tracker = keras.metrics.Mean(name="loss")
        self._compiled: str | None = None
        self.built = True

    def _choose_path(self, engine: str) -> Dense | Vectorized:
        dense = self._cut.takes_apply and self._cut.dense_layers is not None
        if engine in ("low_rank", "formed") and not dense:
            raise ValueError(
                f"`engine` {engine!r} needs a model of which only Dense layers adapt. "
                f"Received: {type(self.model).__name__}"
            )
        if dense and engine != "vectorized":
            return Dense(self._cut, engine)
        return Vectorized(self._cut)

    # -- what an algorithm overrides -----------------------------------------------------------------------

    def adapt_rows(self, rows: TaskRows, training: bool = False) -> list[tf.Tensor]:
        """Adapted weights of `T` tasks from their encoded support: `(T, ...)` for each variable that adapts.

        Args:
            rows: the encoded support.
            training: whether the result will be differentiated for the outer step.
        """
        raise NotImplementedError(f"{type(self).__name__} must say how it adapts.")

    def outer_loss(self, support: TaskRows, query: TaskRows) -> OuterLoss:
        """What the outer step minimises: by default the query loss after adapting, averaged over tasks."""
        return self._query_loss(self.adapt_rows(support, training=True), query)

    def _query_loss(self, weights: Any, query: TaskRows) -> OuterLoss:
        loss, scores = self._path.losses(weights, query, self.task_loss)
        return OuterLoss(tf.reduce_mean(loss), tf.reduce_mean(loss), scores)

    # -- the two verbs ---------------------------------------------------------------------------------------

    def adapt(self, support: Support, negatives: Negatives | None = None) -> AdaptedState:
        """Adapts to `T` tasks at once; no variable changes.

        Args:
            support: features, labels and lengths, as arrays or tensors. Length 0 gives the starting point.
            negatives: what implicit feedback is contrasted with. Defaults to the fixed contrast items less
                those in the support.

        Raises:
            ValueError: if a label within the support is not finite (checked outside a graph).
        """
        support = _with_room(_tensors(support))
        if tf.executing_eagerly() and negatives is None:
            self._check_labels(support)
            return AdaptedState(*self._run_graph(self._adapt, support))
        return self._adapt(support, negatives)

    def _adapt(self, support: Support, negatives: Negatives | None = None) -> AdaptedState:
        encoded = self._contrast_negatives(support) if negatives is None else self._encode_negatives(negatives, False)
        rows = self._task_rows(support, False)._replace(negatives=encoded)
        return AdaptedState(
            self.adapt_rows(rows),
            rows.user if is_shared(support.user) else None,
            rows.item if is_shared(support.item) else None,
        )

    @property
    def adapted_variables(self) -> list[keras.Variable]:
        """The variables that adapt, in the order of adapted weights."""
        return self._cut.variables

    def starting_weights(self, tasks: int | tf.Tensor) -> list[tf.Tensor]:
        """The starting point as `adapt_rows` returns weights: the same for each of so many tasks."""
        return self._path.formed(self._path.start(), tasks)

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
        sides, common = {"user": state.user, "item": state.item}, None
        encode = {"user": self._cut.encode_user, "item": self._cut.encode_item}
        for side, features in (("user", user), ("item", item)):
            if features is not None:
                sides[side] = encode[side](features, training=False)
                if features[f"{side}_id"].shape.rank == 1:
                    common = side
        return self._path.scores(state.weights, sides["user"], sides["item"], common)

    def score_rows(self, weights: list[tf.Tensor], user: Any, item: Any, common: str | None = None) -> tf.Tensor:
        """`score` for sides that are encoded already, as an exported graph has them.

        Args:
            weights: as `adapt_rows` returns them.
            user: encoded users, `(T, 1 or N, ...)`.
            item: encoded items, `(T, 1 or N, ...)`.
            common: "user" or "item" if that side is `(N, ...)`, common to all tasks.
        """
        return self._path.scores(weights, user, item, common)

    @property
    def is_retrieval(self) -> bool:
        """Whether a score is the dot product of `query` with `model.encode_item`, through an activation."""
        return self._cut.is_retrieval

    def query(self, state: AdaptedState) -> tf.Tensor:
        """Query vectors `(T, D)` whose dot product with `model.encode_item` is the score, before activation.

        Raises:
            ValueError: if the model's score is not a dot product.
        """
        if not self.is_retrieval:
            raise ValueError(
                f"`query` needs a model that scores by a dot product. Received: {type(self.model).__name__}"
            )
        return self._run_graph(self.query_rows, state.weights, state.user)

    def query_rows(self, weights: list[tf.Tensor], user: Any) -> tf.Tensor:
        """`query` for users that are encoded already, `(T, 1, ...)`."""
        return self._path.queries(weights, user)

    def activate(self, products: tf.Tensor) -> tf.Tensor:
        """Scores from the dot products of queries and items."""
        return self._cut.activate(products)

    def _run_graph(self, function: Any, *inputs: Any) -> Any:
        """Runs `function` as a graph, traced once per kind of input: adapting op by op would be slow."""
        ranks = tuple(tensor.shape.rank for tensor in tf.nest.flatten(inputs) if tensor is not None)
        key = (function.__name__, ranks, self.adaptation_steps if function == self._adapt else None)
        if key not in self._graphs:
            self._graphs[key] = tf.function(function, autograph=False, reduce_retracing=True)
        return self._graphs[key](*inputs)

    # -- the outer loop ----------------------------------------------------------------------------------------

    def meta_gradients(self, episode: Episode) -> tuple[tf.Tensor, list[tf.Tensor], tf.Tensor]:
        """Loss, gradient of every trainable variable, and query scores `(T, Q)` of one batch of episodes.

        Encoders run once, outside; what happens under tasks' own weights is a function of the encoded rows and
        of few variables, which XLA may compile. The chain rule joins the two.
        """
        variables = [variable.value for variable in self.trainable_variables]
        with tf.GradientTape() as tape:
            support, query = self.encode(episode)
            penalty = tf.add_n(self.model.losses) if self.model.losses else None
        loss, scores, inner_gradients, encoded_gradients = self._inner_problem(support, query)
        targets, along = self._learned(support, query), encoded_gradients
        if penalty is not None:
            targets, along = [*targets, penalty], [*along, tf.ones_like(penalty)]
        gradients = tape.gradient(targets, variables, output_gradients=along) if targets else [None] * len(variables)
        by_variable = {id(v): g for v, g in zip(self._inner_variables, inner_gradients, strict=True)}
        pairs = zip(self.trainable_variables, gradients, strict=True)
        joined = [_joined(variable, gradient, by_variable.get(id(variable))) for variable, gradient in pairs]
        return loss, joined, scores

    @property
    def _inner_variables(self) -> list[keras.Variable]:
        """What is used under tasks' own weights: the inner part of the model, and the learner's own."""
        return [*self._cut.inner_variables, *self._own_variables]

    @property
    def _own_variables(self) -> list[keras.Variable]:
        """What the learner has to learn besides the model."""
        of_model = {id(variable) for variable in self.model.trainable_variables}
        return [variable for variable in self.trainable_variables if id(variable) not in of_model]

    def _learned(self, support: TaskRows, query: TaskRows) -> list[tf.Tensor]:
        """The encoded tensors through which a gradient reaches the encoders."""
        sides = []
        for rows in (support, query):
            sides += [rows.user, rows.item, *([rows.negatives.item] if rows.negatives is not None else [])]
        return [tensor for side in sides for tensor in self._cut.learned(side)]

    def _inner_problem(self, support: TaskRows, query: TaskRows) -> tuple:
        # Measured: with thousands of negatives through every layer, XLA loses a tenth instead of gaining a fifth.
        if self._compiled == "inner" and (support.negatives is None or self.is_retrieval):
            return self._with_xla(self._solve, support, query)
        return self._solve(support, query)

    def _solve(self, support: TaskRows, query: TaskRows) -> tuple:
        """Loss, scores, and the objective's gradients by inner variables and by encoded tensors."""
        encoded = self._learned(support, query)
        with tf.GradientTape() as tape:
            tape.watch(encoded)
            objective, loss, scores = self.outer_loss(support, query)
        sources = ([variable.value for variable in self._inner_variables], encoded)
        inner, outer = tape.gradient(objective, sources)
        outer = [
            tf.zeros_like(e) if g is None else tf.convert_to_tensor(g) for e, g in zip(encoded, outer, strict=True)
        ]
        return loss, scores, inner, outer

    def candidate_scores(
        self, episode: Episode, candidates: Sequence[Features], *, with_loss: bool = True
    ) -> tuple[OuterLoss | None, tf.Tensor]:
        """The outer loss, and scores of candidates after adapting as in training, both to be differentiated.

        What else an outer step may look at, as distillation does. Under a tape, the gradient reaches every trainable
        variable of the learner, through adapting wherever the algorithm lets it.

        Args:
            episode: of tasks about users.
            candidates: features of items, `(T, N, ...)` of each task or `(N, ...)` common to all; their scores stand
                side by side, in this order.
            with_loss: whether the outer loss is wanted; else `None` stands for it.

        Returns:
            The outer loss, without the model's own penalties (`losses`), and scores `(T, sum of N)`.
        """
        support, query = self.encode(episode)
        outer, weights = None, self.adapt_rows(support, training=True) if candidates else []
        if with_loss and candidates and type(self).outer_loss is MetaLearner.outer_loss:
            outer = self._query_loss(weights, query)  # Adapted already.
        elif with_loss:
            outer = self.outer_loss(support, query)
        scores = [tf.zeros((tf.shape(query.label)[0], 0), query.label.dtype)]
        for features in candidates:
            item = self._cut.encode_item(_tensors(features), training=True)
            common = "item" if features["item_id"].shape.rank == 1 else None
            scores.append(tf.cast(self.score_rows(weights, query.user, item, common), query.label.dtype))
        return outer, tf.concat(scores, 1)

    def encode(self, episode: Episode, training: bool = True) -> tuple[TaskRows, TaskRows]:
        """Encoded support and query, contrasted with sampled negatives where the episode has them."""
        parts = []
        for part, negatives in (
            (episode.support, episode.support_negatives),
            (episode.query, episode.query_negatives),
        ):
            rows = self._task_rows(part, training)
            if negatives:
                rows = rows._replace(negatives=self._encode_negatives(negatives, training))
            parts.append(rows)
        return parts[0], parts[1]

    def query_loss(self, episode: Episode) -> tuple[tf.Tensor, tf.Tensor]:
        """Mean loss over tasks on the query after adapting as a served model does, and the query scores `(T, Q)`."""
        _, query = self.encode(episode, training=False)
        loss, scores = self._path.losses(self._adapt(_tensors(episode.support)).weights, query, self.task_loss)
        return tf.reduce_mean(loss), scores

    def _encode_negatives(self, negatives: Negatives, training: bool) -> EncodedNegatives:
        negatives = _tensors(negatives)
        return EncodedNegatives(
            self._cut.encode_item(negatives.item, training=training),
            tf.cast(negatives.log_expected, keras.config.floatx()),
            tf.cast(negatives.weight, keras.config.floatx()),
        )

    def _task_rows(self, support: Support, training: bool) -> TaskRows:
        """The encoded rows of `T` tasks, each with leading dimensions `(T, rows)`; a shared side has one row."""
        support = _tensors(support)
        user = self._cut.encode_user(support.user, training=training)
        item = self._cut.encode_item(support.item, training=training)
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
        jit_compile: bool | str = "auto",
        **kwargs: Any,
    ) -> None:
        """Configures the outer loop.

        Args:
            optimizer: of the outer loop, as Keras takes it.
            loss: "sampled_softmax", a `SampledSoftmax`, or any Keras loss. Defaults to "sampled_softmax" for
                implicit feedback and "mean_squared_error" for explicit.
            metrics: list of Keras metrics of query labels and scores after adapting, padding left out.
            weighted_metrics: the same; here all metrics are weighted, by 0 for padding.
            jit_compile: "auto" compiles with XLA what happens under tasks' own weights, where that pays: where only
                Dense layers adapt and sampled negatives, if any, meet them in a dot product. `True` compiles the
                whole training step, `False` nothing. Adapting, and an exported model, never are.
        """
        for name, given in (("metrics", metrics), ("weighted_metrics", weighted_metrics)):
            if not isinstance(given, list | tuple | None):
                raise ValueError(f"`{name}` must be a list of Keras metrics. Received: {name}={given!r}")
        # Keras gives sample weights to its weighted metrics alone, and without them padding would count.
        weighted = [*(metrics or ()), *(weighted_metrics or ())] or None
        if any(layer.compute_dtype == "float16" for layer in self.model._flatten_layers()):
            raise ValueError("a meta-learner does not scale its loss, so it cannot train in float16. Take bfloat16.")
        self._jit_compile = jit_compile
        optimizer = keras.optimizers.get(optimizer) if optimizer is not None else None
        logarithms = [variable for variable in self._own_variables if variable.name.startswith("log_")]
        if logarithms and optimizer is not None and optimizer.weight_decay is not None:
            # A positive number of the algorithm's own, which decay would pull towards 1. Keras's method for this
            # would forget what the user has excluded.
            excluded = getattr(optimizer, "_exclude_from_weight_decay", None) or ()
            optimizer._exclude_from_weight_decay = {*excluded, *map(optimizer._var_key, logarithms)}
        super().compile(optimizer=optimizer, weighted_metrics=weighted, jit_compile=False, **kwargs)
        parts = {True: "step", "auto": "inner" if isinstance(self._path, Dense) and self.suits_xla else None}
        self._compiled = None if self.run_eagerly else parts.get(jit_compile)
        if self.optimizer is not None and not self.optimizer.built:
            # Left to the first step, it would be built inside that step's graph, which is then traced twice.
            self.optimizer.build(self.trainable_variables)
        self.task_loss = losses.resolve(loss, self.feedback)
        self._graphs.clear()  # They hold the loss that was set when they were traced.

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if "_graphs" in self.__dict__ and name in _settings(type(self)):  # type: ignore[arg-type]
            self._graphs.clear()  # They hold the settings with which they were traced, and so do Keras's own.
            self.train_function = self.test_function = self.predict_function = None

    def get_compile_config(self) -> dict[str, Any]:
        config = super().get_compile_config() or {}
        config["loss"] = keras.saving.serialize_keras_object(self.task_loss)
        config["jit_compile"] = self._jit_compile
        return config

    def compile_from_config(self, config: dict[str, Any]) -> None:
        # Of a learner that was never compiled, its loss alone was saved: it gets no optimizer that it did not have.
        self.compile(**{"optimizer": None, **keras.saving.deserialize_keras_object(config)})

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        """The loss first, as `evaluate` returns it. Keras has a loss tracker too, which would be a second "loss"."""
        return [self.loss_tracker, *(metric for metric in super().metrics if metric.name != "loss")]

    def train_step(self, data: Any) -> dict[str, Any]:
        episode = _episode(data)
        if self._compiled == "step":
            loss, scores = self._with_xla(self._outer_step, episode)
        else:
            loss, scores = self._outer_step(episode)
        return self._logs(loss, episode, scores)

    def _outer_step(self, episode: Episode) -> tuple[tf.Tensor, tf.Tensor]:
        loss, gradients, scores = self.meta_gradients(episode)
        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        if replicas > 1:  # The optimizer adds up what the replicas say of their share of the tasks.
            gradients = [scaled(gradient, 1 / replicas) for gradient in gradients]
        if not isinstance(self.optimizer, RowSparseOptimizer):
            # Keras's optimizers visit every row anyway, and square what a row met several times one by one.
            gradients = [tf.convert_to_tensor(gradient) for gradient in gradients]
        self.optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
        return loss, scores

    def _with_xla(self, function: Any, *inputs: Any) -> Any:
        key = (function.__name__, "xla")
        if key not in self._graphs:
            self._graphs[key] = tf.function(function, autograph=False, jit_compile=True)
        return self._graphs[key](*inputs)

    def test_step(self, data: Any) -> dict[str, Any]:
        episode = _episode(data)
        loss, scores = self.query_loss(episode)
        return self._logs(loss, episode, scores)

    def call(self, episode: Any, training: bool = False) -> tf.Tensor:
        """Query scores `(T, Q)` after adapting to the support."""
        episode = _episode(episode)
        weights = self.adapt(episode.support).weights
        rows = self._task_rows(episode.query, False)
        return self.score_rows(weights, rows.user, rows.item)

    def predict_step(self, data: Any) -> tf.Tensor:
        return self(_episode(data))

    def _logs(self, loss: tf.Tensor, episode: Episode, scores: tf.Tensor) -> dict[str, Any]:
        self.loss_tracker.update_state(loss)
        self.update_metrics(episode, scores)
        return self.get_metrics_result()

    def update_metrics(self, episode: Episode, scores: tf.Tensor) -> None:
        """Adds a batch to the metrics that were compiled: query labels and scores `(T, Q)`, padding left out."""
        if self._compile_metrics is not None:
            query = episode.query
            label, real = self.evidence(query.label, query.length)
            weight = tf.reshape(tf.cast(real, tf.float32), [-1])
            self._compile_metrics.update_state(
                tf.reshape(label, [-1, 1]), tf.reshape(scores, [-1, 1]), sample_weight=weight
            )

    def _maybe_symbolic_build(self, iterator: Any = None, data_batch: Any = None) -> None:
        """Nothing is left to build but metrics: Keras would run a step on symbols, which have no gradients."""
        metrics = self._compile_metrics
        if metrics is not None and not metrics.built:
            one = tf.ones((1, 1))
            metrics.build(one, one)

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
        initial_epoch, epochs = taken_up(self, callbacks, initial_epoch, epochs)
        if isinstance(x, Episodes):
            steps_per_epoch = steps_per_epoch or len(x)
            x = x.dataset(initial_epoch * steps_per_epoch)
        if isinstance(x, tf.data.Dataset):
            options.setdefault("shuffle", False)  # Keras warns about its own default.
            if self.distribute_strategy is not None and self.distribute_strategy.num_replicas_in_sync > 1:
                x = share_out(x, self.distribute_strategy)
        return super().fit(
            x,
            epochs=epochs,
            initial_epoch=initial_epoch,
            steps_per_epoch=steps_per_epoch,
            validation_data=once(validation_data),
            callbacks=callbacks,
            **options,
        )

    def evaluate(self, x: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Keras's `evaluate`: the query loss after adapting. `x` may be `Episodes`."""
        return super().evaluate(once(x), *args, **kwargs)

    def predict(self, x: Any, *args: Any, **kwargs: Any) -> np.ndarray:
        """Keras's `predict`: query scores `(T, Q)` after adapting. `x` may be `Episodes`."""
        return super().predict(once(x), *args, **kwargs)

    def get_config(self) -> dict[str, Any]:
        model = keras.saving.serialize_keras_object(self.model)
        own = {name: getattr(self, name) for name in ("adapted", "contrast", "engine", "seed")}
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


@functools.cache
def _settings(kind: type) -> frozenset[str]:
    """What a learner's constructor takes."""
    makers = [vars(base)["__init__"] for base in kind.__mro__ if "__init__" in vars(base) and base is not object]
    return frozenset(name for maker in makers for name in inspect.signature(maker).parameters)


def _sides(vocabulary: Vocabulary | None) -> dict[str, str]:
    """The side of each feature that a vocabulary knows, by the name that the feature has in a batch."""
    specs = getattr(vocabulary, "specs", None)
    if specs is None:
        return {}
    of = {spec.name: side for side in ("user", "item") for spec in getattr(specs, side)}
    return {**of, **{f"{name}_length": side for name, side in of.items()}}


def _with_room(support: Support) -> Support:
    """A support of no rows at all as one of a row of padding, since `tf.vectorized_map` cannot do with none."""
    if support.label.shape[1] != 0:
        return support

    def padded(value: tf.Tensor) -> tf.Tensor:
        return tf.pad(value, [[0, 0], [0, 1], *[[0, 0]] * (value.shape.rank - 2)])

    user, item = (side if is_shared(side) else tf.nest.map_structure(padded, side) for side in support[:2])
    return Support(user, item, padded(support.label), support.length)


def _joined(variable: keras.Variable, *gradients: Any) -> Any:
    """The sum of what there is of a variable's gradients; rows of a table stay rows."""
    found = [gradient for gradient in gradients if gradient is not None]
    if found and all(isinstance(gradient, tf.IndexedSlices) for gradient in found):
        values, indices = (tf.concat([getattr(g, part) for g in found], 0) for part in ("values", "indices"))
        return found[0] if len(found) == 1 else tf.IndexedSlices(values, indices, found[0].dense_shape)
    if found:
        return tf.add_n([tf.convert_to_tensor(gradient) for gradient in found])
    return no_gradient(variable)


def _tensors(structure: Any) -> Any:
    return tf.nest.map_structure(lambda value: None if value is None else tf.convert_to_tensor(value), structure)


def _episode(data: Any) -> Episode:
    data = only_input(data, Episode)
    if not isinstance(data, Episode):
        raise TypeError(f"a meta-learner trains on episodes, see `tfmetarec.tasks`. Received: {type(data).__name__}")
    return data
