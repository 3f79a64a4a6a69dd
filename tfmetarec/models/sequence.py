"""A large teacher: self-attention over a user's history in order, and a dot product with every item."""

from collections.abc import Sequence as Several
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from tfmetarec.data.vocabulary import FeatureSpecs, Vocabulary
from tfmetarec.models.features import FeatureEncoder, ItemEncoder, resolve_specs
from tfmetarec.models.two_tower import check_options
from tfmetarec.tasks.episode import Episode, Features, Support
from tfmetarec.tasks.stream import once, only_input, taken_up
from tfmetarec.tasks.windows import Window, Windows

LOSSES = ("sampled_softmax", "retrieval")
_NEVER = -1e9  # A score that no exponential notices. Minus infinity would make gradients NaN.


class EpisodeLoss(NamedTuple):
    """What an episode says: the scalar to minimise, the one to show, and scores of the query `(T, Q)`."""

    objective: tf.Tensor
    loss: tf.Tensor
    scores: tf.Tensor


@keras.saving.register_keras_serializable(package="tfmetarec")
class AttentionBlock(keras.layers.Layer):
    """Every place looks back, at itself and at the places before it, and then thinks about what it saw.

    Attention and two Dense layers, each after a normalisation and added to what came in.

    Args:
        width: int, `D`, a multiple of `heads`.
        heads: int, at least 1.
        dropout: float in [0, 1).
        seed: int.

    Call arguments: `(T, S, D)`. Returns the same shape; place `s` depends on the places up to `s` alone.

    References: [Vaswani et al., 2017](https://arxiv.org/abs/1706.03762), section 3;
    [Xiong et al., 2020](https://arxiv.org/abs/2002.04745), for where the normalisations stand.
    """

    def __init__(self, width: int, heads: int = 1, dropout: float = 0.0, seed: int = 0, **kwargs: Any):
        super().__init__(**kwargs)
        self.width, self.heads, self.dropout, self.seed = width, heads, dropout, seed
        kernels = [keras.initializers.GlorotUniform(seed + place) for place in range(3)]
        self.before_attention = keras.layers.LayerNormalization(epsilon=1e-6, name="before_attention")
        self.attention = keras.layers.MultiHeadAttention(
            heads, width // heads, dropout=dropout, kernel_initializer=kernels[0], seed=seed, name="attention"
        )
        self.before_dense = keras.layers.LayerNormalization(epsilon=1e-6, name="before_dense")
        self.inner = keras.layers.Dense(4 * width, "gelu", kernel_initializer=kernels[1], name="inner")
        self.outer = keras.layers.Dense(width, kernel_initializer=kernels[2], name="outer")
        self.drops = [keras.layers.Dropout(dropout, seed=seed + place) for place in range(2)]
        shape = (None, None, width)
        for layer in (self.before_attention, self.before_dense, self.inner):
            layer.build(shape)
        self.attention.build(shape, shape)
        self.outer.build((None, None, 4 * width))
        self.built = True

    def call(self, inputs: Any, training: bool = False) -> Any:
        normal = self.before_attention(inputs)
        seen = self.attention(normal, normal, use_causal_mask=True, training=training)
        inputs = inputs + self.drops[0](seen, training=training)
        thought = self.outer(self.inner(self.before_dense(inputs)))
        return inputs + self.drops[1](thought, training=training)

    def get_config(self) -> dict[str, Any]:
        own = {name: getattr(self, name) for name in ("width", "heads", "dropout", "seed")}
        return {**super().get_config(), **own}


@keras.saving.register_keras_serializable(package="tfmetarec")
class Sequence(keras.Model):
    """Ranks items by a user's history in order: what was chosen, and what after what.

    An item is its id and its content, the same for the history and for what is ranked. A start vector (learned,
    plus what the user's features say) stands before the history, so a user without any has a state too; each place
    looks back through attention, and its state, in a dot product with an item, scores the item as the next.
    Positions are counted from the most recent item. Nothing after a place is ever looked at, so padding of any
    content changes nothing, and no mask is needed: a length is.

    It is a recommender like a meta-learner: `adapt(support)` reads the histories of users, `score(state, item)`
    scores items for them. It is larger and slower than those, and a good teacher of a small one, see
    `tfmetarec.transfer.Distiller`. `compile` takes the loss: "sampled_softmax" against the negatives of the windows,
    corrected for how they were drawn, or "retrieval", `tfrs.tasks.Retrieval` against the targets of the other places,
    corrected for their popularity. The first sees unpopular items, too, and is the better on a CPU.

    Args:
        vocabulary: `tfmetarec.data.Vocabulary` of implicit feedback, or its `specs`.
        embedding_dim: int, at least 1. `D`, the width of everything. Defaults to 128.
        blocks: int, at least 1. Attention blocks, one on the other. Defaults to 2.
        heads: int, at least 1, of which `embedding_dim` is a multiple. Defaults to 2.
        max_length: int, at least 1. Only so many of the most recent items are looked at. Defaults to 50.
        item_hidden: ints. Hidden layers between an item's content and its vector. Defaults to none.
        dropout: float in [0, 1). Defaults to 0.2.
        id_dropout: float in [0, 1). Share of training rows whose item id is hidden. Defaults to 0.1.
        seed: int, of all initial weights and dropout.

    Raises:
        ValueError: for an option out of range.

    Example:
    >>> import tfmetarec as tmr
    >>> data = tmr.data.load("synthetic", n_users=20, seed=0)
    >>> vocabulary = tmr.data.Vocabulary.fit(data)
    >>> windows = tmr.tasks.windows.user_windows(data, vocabulary, length=(1, 5), windows_per_batch=4, negatives=8)
    >>> teacher = Sequence(vocabulary, embedding_dim=8)
    >>> teacher.compile(optimizer="adam")
    >>> history = teacher.fit(windows, epochs=1, verbose=0)

    References: [Kang and McAuley, 2018](https://arxiv.org/abs/1808.09781), for self-attention over a history;
    [Yi et al., 2019](https://doi.org/10.1145/3298689.3346996), equation 3, for the correction of both losses.
    """

    def __init__(
        self,
        vocabulary: Vocabulary | FeatureSpecs | dict,
        embedding_dim: int = 128,
        *,
        blocks: int = 2,
        heads: int = 2,
        max_length: int = 50,
        item_hidden: Several[int] = (),
        dropout: float = 0.2,
        id_dropout: float = 0.1,
        seed: int = 0,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        check_options(embedding_dim=embedding_dim, dropout=dropout, id_dropout=id_dropout, activation="linear")
        for name, value in (("blocks", blocks), ("heads", heads), ("max_length", max_length)):
            if value < 1:
                raise ValueError(f"`{name}` must be at least 1. Received: {name}={value}")
        if embedding_dim % heads:
            raise ValueError(
                f"`embedding_dim` must be a multiple of `heads`. Received: embedding_dim={embedding_dim}, heads={heads}"
            )
        self.specs = resolve_specs(vocabulary)
        self.vocabulary = vocabulary if isinstance(vocabulary, Vocabulary) else None
        self.embedding_dim, self.blocks, self.heads, self.max_length = embedding_dim, blocks, heads, max_length
        self.item_hidden, self.dropout, self.id_dropout, self.seed = tuple(item_hidden), dropout, id_dropout, seed
        user = [spec for spec in self.specs.user if spec.kind != "id"]
        small = [keras.initializers.RandomNormal(0.0, 0.02, seed=seed + place) for place in (1, 2)]
        self.user_encoder = FeatureEncoder(user, max(4, embedding_dim // 8), seed, name="user_encoder")
        self.start = keras.layers.Dense(embedding_dim, kernel_initializer=small[0], name="start")
        self.start.build((None, self.user_encoder.width))
        self.item_encoder = ItemEncoder(
            self.specs.item, embedding_dim, self.item_hidden, dropout, id_dropout, seed=seed, name="item_encoder"
        )
        self.positions = self.add_weight((max_length, embedding_dim), small[1], name="positions")
        self.drop = keras.layers.Dropout(dropout, seed=seed + 3)
        self.attention_blocks = [
            AttentionBlock(embedding_dim, heads, dropout, seed + 10 * (place + 1), name=f"block_{place}")
            for place in range(blocks)
        ]
        self.last = keras.layers.LayerNormalization(epsilon=1e-6, name="last")
        self.last.build((None, embedding_dim))
        self.loss_tracker = keras.metrics.Mean(name="loss")
        self.window_loss: SampledSoftmax | InBatchRetrieval = SampledSoftmax()
        self._graphs: dict[tuple, Any] = {}
        self.built = True

    # -- from a history to scores --------------------------------------------------------------------------

    def encode_item(self, features: Features, training: bool = False) -> Any:
        """Item features `(...)` -> `(..., D + 1)`: the vector, and the bias."""
        return self.item_encoder(features, training=training)

    def queries(self, user: Features, vectors: Any, length: Any, training: bool = False) -> Any:
        """What each place of a history asks for: `(T, S + 1, D + 1)`, in a dot product with `encode_item`.

        Args:
            user: user features `(T, ...)`.
            vectors: `(T, S, D)` of the items of the history, in order; at most `max_length` are real.
            length: `(T,)`, how many are real.
        """
        place = ops.arange(ops.shape(vectors)[1], dtype="int32")
        ago = ops.cast(length, "int32")[:, None] - 1 - place  # (T, S)
        # Padding is never looked at, but what is not finite would reach through a weight of zero.
        vectors = ops.where(ago[..., None] >= 0, vectors, 0.0)
        vectors = vectors + ops.take(self.positions, ops.clip(ago, 0, self.max_length - 1), axis=0)
        start = self.start(self.user_encoder(user))[:, None]
        hidden = self.drop(ops.concatenate([start, vectors], axis=1), training=training)
        for block in self.attention_blocks:
            hidden = block(hidden, training=training)
        hidden = self.last(hidden)
        return ops.concatenate([hidden, ops.ones_like(hidden[..., :1])], axis=-1)

    def recent(self, item: Features, length: tf.Tensor) -> tuple[Features, tf.Tensor]:
        """The most recent `max_length` items of each history at most, and how many of them are real."""
        width = tf.shape(item["item_id"])[1]
        kept = tf.minimum(width, self.max_length)
        first = tf.maximum(length - kept, 0)
        picked = first[:, None] + tf.range(kept)
        latest = {name: tf.gather(value, picked, axis=1, batch_dims=1) for name, value in item.items()}
        return latest, length - first

    def call(self, support: Support, training: bool = False) -> Any:
        """The query `(T, D + 1)` of each user, after the whole history."""
        item, length = self.recent(support.item, tf.cast(support.length, tf.int32))
        queries = self.queries(support.user, self.encode_item(item, training)[..., :-1], length, training)
        return tf.gather(queries, length, axis=1, batch_dims=1)

    def adapt(self, support: Support) -> tf.Tensor:
        """Reads the histories of `T` users, in the order of the support; labels are not looked at.

        Args:
            support: arrays or tensors: user features, item features `(T, S, ...)` and lengths. Length 0 gives what is
                known without a history.

        Returns:
            The state `(T, D + 1)`, for `score`.

        Raises:
            ValueError: if a length is below 0 or above `S` (checked outside a graph).
        """
        support = _tensors(support)
        if not tf.executing_eagerly():
            return self(support)
        width, length = support.item["item_id"].shape[1], support.length.numpy()
        if length.size and not 0 <= length.min() <= length.max() <= width:
            raise ValueError(
                f"`length` of `support` must be from 0 to {width}. Received: {length.min()} to {length.max()}"
            )
        return self._run_graph(self._adapt, support)

    def _adapt(self, support: Support) -> tf.Tensor:
        return self(support)

    def score(self, state: tf.Tensor, item: Features) -> tf.Tensor:
        """Scores `(T, N)` of candidates.

        Args:
            state: what `adapt` returned.
            item: features of candidates common to all users, `(N, ...)`, or of each user's own, `(T, N, ...)`.
        """
        state, item = _tensors((state, item))
        return self._run_graph(self._score, state, item) if tf.executing_eagerly() else self._score(state, item)

    def _score(self, state: tf.Tensor, item: Features, training: bool = False) -> tf.Tensor:
        encoded = self.encode_item(item, training=training)
        if encoded.shape.rank == 2:
            return tf.matmul(state, encoded, transpose_b=True)
        return tf.linalg.matvec(encoded, state)

    def _run_graph(self, function: Any, *inputs: Any) -> Any:
        """Runs `function` as a graph, traced once whatever the numbers of users and items."""
        key = (function.__name__, *(tensor.shape.rank for tensor in tf.nest.flatten(inputs)))
        if key not in self._graphs:
            signature = tf.nest.map_structure(_of_any_number, inputs)
            self._graphs[key] = tf.function(function, autograph=False, input_signature=signature)
        return self._graphs[key](*inputs)

    # -- as somebody's student -------------------------------------------------------------------------------

    @property
    def feedback(self) -> str:
        return self.specs.feedback

    def candidate_scores(
        self, episode: Episode, candidates: Several[Features], *, with_loss: bool = True
    ) -> tuple[EpisodeLoss | None, tf.Tensor]:
        """The loss of an episode, and scores of candidates after its support, both to be differentiated.

        With it a `tfmetarec.transfer.Distiller` trains a small sequence model as it does a meta-learner.

        Args:
            episode: of tasks about users, with negatives of the query if the loss is wanted.
            candidates: features of items, `(T, N, ...)` of each user or `(N, ...)` common to all; their scores stand
                side by side, in this order.
            with_loss: whether the loss is wanted: that of the query's items, each against the negatives.

        Returns:
            The loss or `None`, and scores `(T, sum of N)`.
        """
        state = self(episode.support, training=True)
        loss = self._query_loss(state, episode, training=True) if with_loss else None
        scores = [tf.zeros((tf.shape(state)[0], 0), state.dtype)]
        scores += [self._score(state, features, training=True) for features in candidates]
        return loss, tf.concat(scores, 1)

    def query_loss(self, episode: Episode) -> tuple[tf.Tensor, tf.Tensor]:
        """The loss of the query's items after the support, and their scores `(T, Q)`."""
        found = self._query_loss(self(episode.support), episode, training=False)
        return found.loss, found.scores

    def _query_loss(self, state: tf.Tensor, episode: Episode, training: bool) -> EpisodeLoss:
        query, negatives = episode.query, episode.query_negatives
        if not negatives:
            raise ValueError("the loss of an episode needs negatives of the query, and the episode has none.")
        scores = self._score(state, query.item, training)  # (T, Q)
        contrast = self._score(state, negatives.item, training)
        total = _total(contrast, negatives.log_expected, negatives.weight)[:, None]
        real = tf.sequence_mask(query.length, tf.shape(scores)[1], scores.dtype)
        each = tf.reduce_sum(tf.nn.softplus(total - scores) * real, 1)
        loss = tf.reduce_mean(tf.math.divide_no_nan(each, tf.reduce_sum(real, 1)))
        return EpisodeLoss(loss, loss, scores)

    def update_metrics(self, episode: Episode, scores: tf.Tensor) -> None:
        """There are none, see `compile`."""

    # -- training ------------------------------------------------------------------------------------------

    def compile(self, optimizer: Any = "adam", loss: str | None = None, **kwargs: Any) -> None:
        """Configures training.

        Args:
            optimizer: as Keras takes it; one of `tfmetarec.optimizers` does not visit the whole table of items.
            loss: "sampled_softmax" (the default) or "retrieval".
            **kwargs: `run_eagerly`, `steps_per_execution`, `jit_compile` (off by default), as Keras takes them.

        Raises:
            ValueError: for explicit feedback, another loss, or metrics: there is no list of candidates that they could
                be of, so judge the model with `tfmetarec.evaluation`.
        """
        if self.feedback != "implicit":
            raise ValueError("a sequence model trains on choices, and its vocabulary is of explicit feedback.")
        loss = loss or LOSSES[0]
        if loss not in LOSSES:
            raise ValueError(f"`loss` must be one of {', '.join(map(repr, LOSSES))}. Received: loss={loss!r}")
        for name in ("metrics", "weighted_metrics", "loss_weights"):
            if kwargs.get(name):
                raise ValueError(f"`{name}` must be left out: a sequence model has none. Received: {kwargs[name]!r}")
        super().compile(optimizer=keras.optimizers.get(optimizer), **{"jit_compile": False, **kwargs})
        self.window_loss = SampledSoftmax() if loss == "sampled_softmax" else InBatchRetrieval()
        if self.optimizer is not None and not self.optimizer.built:
            # Left to the first step, it would be built inside that step's graph, which is then traced twice.
            self.optimizer.build(self.trainable_variables)

    def get_compile_config(self) -> dict[str, Any]:
        return {**(super().get_compile_config() or {}), "loss": self.window_loss.name}

    def compile_from_config(self, config: dict[str, Any]) -> None:
        if "optimizer" in config:  # Else it was never compiled.
            self.compile(**keras.saving.deserialize_keras_object(config))

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        return [self.loss_tracker]

    def train_step(self, data: Any) -> dict[str, Any]:
        window = _window(data)
        with tf.GradientTape() as tape:
            loss = self._loss(window, training=True)
        gradients = tape.gradient(loss, [variable.value for variable in self.trainable_variables])
        if not hasattr(self.optimizer, "update_rows"):
            # No row-sparse one: Keras's visit every row anyway, and square what a row met several times one by one.
            gradients = [tf.convert_to_tensor(gradient) for gradient in gradients]
        self.optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
        self.loss_tracker.update_state(loss)
        return self.get_metrics_result()

    def test_step(self, data: Any) -> dict[str, Any]:
        self.loss_tracker.update_state(self._loss(_window(data), training=False))
        return self.get_metrics_result()

    def _loss(self, window: Window, training: bool) -> tf.Tensor:
        """The mean over all real places of all histories."""
        encoded = self.encode_item(window.item, training=training)  # (T, W, D + 1), history and targets at once.
        places = window.target.shape[1]
        history = encoded[:, : places - 1, :-1]
        queries = self.queries(window.user, history, window.length - 1, training)
        negatives = self.encode_item(window.negatives.item, training=training) if window.negatives else None
        return self.window_loss(window, queries, encoded, negatives)

    def _maybe_symbolic_build(self, iterator: Any = None, data_batch: Any = None) -> None:
        """Nothing is left to build: Keras would run a step on symbols, which have no gradients."""

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
        """Keras's `fit`; `x` and `validation_data` may be `Windows`, and `callbacks` may hold a `Checkpoint`.

        With a `tfmetarec.meta.Checkpoint` whose folder holds an earlier run, training goes on after that run's last
        complete epoch, with the very windows an unbroken run would have seen.
        """
        callbacks = list(callbacks or [])
        initial_epoch, epochs = taken_up(self, callbacks, initial_epoch, epochs)
        if isinstance(x, Windows):
            steps_per_epoch = steps_per_epoch or len(x)
            x = x.dataset(initial_epoch * steps_per_epoch)
        if isinstance(x, tf.data.Dataset):
            options.setdefault("shuffle", False)  # Keras warns about its own default.
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
        """Keras's `evaluate`: the loss. `x` may be `Windows`."""
        return super().evaluate(once(x), *args, **kwargs)

    # -- saving and serving --------------------------------------------------------------------------------

    def get_config(self) -> dict[str, Any]:
        names = ("embedding_dim", "blocks", "heads", "max_length", "item_hidden", "dropout", "id_dropout", "seed")
        own = {name: getattr(self, name) for name in names}
        return {"vocabulary": self.specs.to_dict(), **own, "name": self.name}

    def save_assets(self, folder: str) -> None:
        if self.vocabulary is not None:
            self.vocabulary.save(folder)

    def load_assets(self, folder: str) -> None:
        if (Path(folder) / "vocabulary.json").exists():
            self.vocabulary = Vocabulary.load(folder)

    def export_top_k(self, path: str | Path, top_k: int = 20) -> None:
        """Writes a SavedModel with one signature, `recommend`: the best items of the catalogue after a history.

        Its inputs are `history` `(B, S)`, raw item ids in order, padded to any width; `history_length` `(B,)` int32;
        and the user's raw features, `(B, ...)`, under their names. Its outputs are `items` `(B, K)`, raw ids, and
        `scores` `(B, K)`; items of the history are not among them. Unknown ids count as the unknown item. The
        catalogue is encoded once, here, so the tables of ids and content stay behind.

        Args:
            path: folder to write, which should not exist.
            top_k: int, at least 1. Fewer if the catalogue has fewer.

        Raises:
            ValueError: if the model has no vocabulary, or `top_k` is out of range.
        """
        if self.vocabulary is None:
            raise ValueError("a model without a `vocabulary` cannot be exported, since requests carry raw ids.")
        if top_k < 1:
            raise ValueError(f"`top_k` must be at least 1. Received: top_k={top_k}")
        served = _Served(self, min(top_k, self.vocabulary.n_items - 1))
        archive = keras.export.ExportArchive()
        archive.track(served)
        archive.add_endpoint("recommend", served.recommend, [served.inputs])
        archive.write_out(str(path), verbose=False)


class SampledSoftmax:
    """Cross-entropy of each place's target against the negatives of the batch, corrected for how they were drawn.

    What a user chose at any time is no negative for any of the user's places.
    """

    name = "sampled_softmax"

    def __call__(self, window: Window, queries: tf.Tensor, encoded: tf.Tensor, negatives: Any) -> tf.Tensor:
        if negatives is None:
            raise ValueError("the loss 'sampled_softmax' needs negatives, and the windows have none.")
        real = tf.sequence_mask(window.length, window.target.shape[1])
        queries, target = (
            tf.boolean_mask(vectors, real)
            for vectors in (queries, tf.gather(encoded, window.target, axis=1, batch_dims=1))
        )
        score = tf.reduce_sum(queries * target, -1)
        contrast = tf.matmul(queries, negatives, transpose_b=True)
        weight = tf.repeat(window.negatives.weight, window.length, axis=0)  # In the order in which places are real.
        # -log(exp(score) / (exp(score) + exp(total))) = log(1 + exp(total - score))
        return tf.reduce_mean(tf.nn.softplus(_total(contrast, window.negatives.log_expected, weight) - score))


class InBatchRetrieval:
    """`tfrs.tasks.Retrieval`: the targets of the other places are the negatives."""

    name = "retrieval"

    def __init__(self) -> None:
        import tensorflow_recommenders as tfrs

        task = tfrs.tasks.Retrieval(remove_accidental_hits=True)
        # TFRS branches in Python on what it is given, and Keras 3 has switched autograph off.
        self._task = tf.function(lambda *inputs: task(*inputs[:2], None, *inputs[2:], compute_metrics=False))

    def __call__(self, window: Window, queries: tf.Tensor, encoded: tf.Tensor, negatives: Any) -> tf.Tensor:
        real = tf.sequence_mask(window.length, window.target.shape[1])

        def targets(values: tf.Tensor) -> tf.Tensor:
            return tf.boolean_mask(tf.gather(values, window.target, axis=1, batch_dims=1), real)

        # The share of users who met an item. It is the probability up to a factor, which no softmax notices.
        share = tf.exp(targets(window.item["item_level"]))
        total = self._task(tf.boolean_mask(queries, real), targets(encoded), share, targets(window.item["item_id"]))
        return total / tf.cast(tf.reduce_sum(window.length), total.dtype)


class _Served(keras.layers.Layer):
    """The catalogue, encoded, and what reads a history: all that an exported graph holds."""

    def __init__(self, model: Sequence, top_k: int):
        super().__init__(name="served")
        vocabulary = model.vocabulary
        assert vocabulary is not None
        self.vocabulary, self.top_k = vocabulary, top_k
        self.recent, self.queries = model.recent, model.queries  # Not the model: its tables would be written, too.
        encoded = model.encode_item({name: tf.constant(value) for name, value in vocabulary.catalogue.items()})
        never = tf.tensor_scatter_nd_update(encoded, [[0, encoded.shape[1] - 1]], [_NEVER])
        self.encoded = tf.Variable(never, trainable=False)  # A bias that keeps the unknown item out of every list.
        self.item_ids = tf.Variable(tf.constant(vocabulary.item_ids, vocabulary.id_dtype("item")), trainable=False)
        self.tables = list(vocabulary.tables.values())
        self.built = True
        self.user_inputs = vocabulary.raw_signature("user")
        self.inputs = {
            "history": tf.TensorSpec([None, None], vocabulary.id_dtype("item"), "history"),
            "history_length": tf.TensorSpec([None], tf.int32, "history_length"),
            **self.user_inputs,
        }

    def recommend(self, inputs: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        rows = self.vocabulary.rows("item", "item_id", inputs["history"])
        length = tf.clip_by_value(inputs["history_length"], 0, tf.shape(rows)[1])
        raw = {name: inputs[name] for name in self.user_inputs}
        user = self.vocabulary.encode("user", raw, tf.shape(rows)[0])
        recent, kept = self.recent({"item_id": rows}, length)
        vectors = tf.gather(self.encoded, recent["item_id"])[..., :-1]
        query = tf.gather(self.queries(user, vectors, kept), kept, axis=1, batch_dims=1)
        scores = tf.matmul(query, self.encoded, transpose_b=True)
        seen = tf.where(tf.sequence_mask(length, tf.shape(rows)[1]), rows, 0)  # Row 0 cannot be recommended anyway.
        place = tf.stack([tf.broadcast_to(tf.range(tf.shape(rows)[0])[:, None], tf.shape(rows)), seen], axis=-1)
        scores = tf.tensor_scatter_nd_update(scores, place, tf.fill(tf.shape(rows), -np.inf))
        scores, best = tf.math.top_k(scores, self.top_k)
        return {"items": tf.gather(self.item_ids, best), "scores": scores}


def _total(scores: tf.Tensor, log_expected: tf.Tensor, weight: tf.Tensor) -> tf.Tensor:
    """The logarithm of what the negatives, `(..., P)`, stand for: the sum over the whole catalogue."""
    return tf.reduce_logsumexp(tf.where(weight > 0, scores - log_expected, _NEVER), -1)


def _of_any_number(tensor: tf.Tensor) -> tf.TensorSpec:
    return tf.TensorSpec([None, None][: tensor.shape.rank] + tensor.shape[2:], tensor.dtype)


def _tensors(structure: Any) -> Any:
    return tf.nest.map_structure(tf.convert_to_tensor, structure)


def _window(data: Any) -> Window:
    data = only_input(data, Window)
    if not isinstance(data, Window):
        raise TypeError(f"a sequence model trains on windows, see `user_windows`. Received: {type(data).__name__}")
    return data
