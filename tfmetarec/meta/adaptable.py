"""A Keras model cut in two: what is encoded once for all rows, and what runs under each task's own weights."""

import inspect
import math
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import keras
import tensorflow as tf
from keras.src.models.functional import Functional

from tfmetarec.tasks.episode import Features

Values = Sequence[tuple[keras.Variable, tf.Tensor]]
Apply = Callable[[keras.layers.Layer, Any], Any]


def cut(model: keras.Model, adapted: str | None, sides: dict[str, str] | None = None) -> "HeadCut | GraphCut | Whole":
    """Finds where `model` can be cut, and which variables adapt.

    A model with `encode_user`, `encode_item` and `head` (see `tfmetarec.models.TwoTower`) says so itself. A
    functional model over a dict of features is cut along its graph: whatever depends on one side alone and on
    nothing that adapts is encoded once for all rows. Any other model runs whole for every task.

    Encoders run in training mode in training; the part that adapts runs in inference mode unless a learner
    asks for dropout, and so does batch normalisation anywhere.

    Args:
        model: `keras.Model`, built. Maps a dict of `(R, ...)` features to `(R, 1)` scores.
        adapted: regular expression; the variables whose path it finds adapt. `None` for all but embeddings (of
            the head, where there is one); "last" for the last layer with weights, embeddings apart; "body" for
            all but that layer.
        sides: "user" or "item" by the name of a feature. Without it, each feature is a side of its own.

    Raises:
        ValueError: if the model is not built, or nothing matches.
    """
    if not model.built:
        raise ValueError("`model` must be built. Call it once on a batch of features, or give it an input shape.")
    if all(hasattr(model, name) for name in ("encode_user", "encode_item", "head")):
        return HeadCut(model, _choose(model.head, adapted))
    chosen = _choose(model, adapted)
    if is_graph(model):
        return GraphCut(model, chosen, sides or {})
    return Whole(model, chosen)


def is_graph(model: keras.Model) -> bool:
    """Whether a model is functional, over a dict of features, and runs as its graph says."""
    functional = isinstance(model, Functional) and type(model).call is Functional.call
    return functional and isinstance(model._inputs_struct, dict)


def is_plain_dense(layer: Any) -> bool:
    """Whether a layer is Keras's own Dense, and multiplies by its own kernel."""
    return type(layer) is keras.layers.Dense and not layer.lora_enabled and layer.quantization_mode is None


class Whole:
    """A model that nothing is known of: it runs whole, on rows that have every feature.

    Attributes:
        inner: what runs under a task's weights.
        variables: those that adapt.
        takes_apply: whether `score_all` can run it for all tasks at once.
    """

    takes_apply = False
    is_retrieval = False

    def __init__(self, model: keras.Model, variables: list[keras.Variable]):
        self.model = self.inner = model
        self.variables = variables

    @property
    def has_dropout(self) -> bool:
        """Whether the inner part can run in training mode, and does something else then."""
        return False

    @property
    def inner_variables(self) -> list[keras.Variable]:
        """The trainable variables of the inner part."""
        return self.inner.trainable_variables

    @property
    def dense_layers(self) -> list[keras.layers.Dense] | None:
        """The Dense layers that own all variables that adapt; `None` if something else owns one."""
        return None

    def encode_user(self, features: Features, training: bool) -> Any:
        return features

    def encode_item(self, features: Features, training: bool) -> Any:
        return features

    def learned(self, encoded: Any) -> list[tf.Tensor]:
        """The tensors of an encoded side that depend on variables, and so pass a gradient on to them."""
        return []

    def score(self, values: Values, user: Any, item: Any) -> tf.Tensor:
        """Scores `(R,)` of one task's rows.

        Args:
            values: what variables are worth in this task, all others as they are.
            user: encoded user(s) with leading dimension 1 or `R`.
            item: encoded items with leading dimension 1 or `R`.
        """
        rows = _broadcast([user["user_id"], item["item_id"]], 0)
        features = {}
        for value in (user, item):
            for name, feature in value.items():
                features[name] = tf.broadcast_to(feature, tf.concat([[rows], tf.shape(feature)[1:]], 0))
        with keras.StatelessScope(state_mapping=values):
            return tf.reshape(self.model(features, training=False), [-1])


class HeadCut(Whole):
    """A model that says itself where it is cut: `encode_user`, `encode_item`, and a `head` on top."""

    def __init__(self, model: keras.Model, variables: list[keras.Variable]):
        super().__init__(model, variables)
        self.inner: keras.layers.Layer = model.head
        self.takes_apply = "apply" in inspect.signature(self.inner.call).parameters

    @property
    def is_retrieval(self) -> bool:  # type: ignore[override]
        """Whether a score is the dot product of `query` with the encoded item, through an activation."""
        return getattr(self.model, "is_retrieval", False)

    @property
    def dense_layers(self) -> list[keras.layers.Dense] | None:
        return _dense_owners(self.inner._flatten_layers(), self.variables) if self.takes_apply else None

    @property
    def has_dropout(self) -> bool:
        return self.inner._call_has_training_arg

    def encode_user(self, features: Features, training: bool) -> Any:
        return self.model.encode_user(features, training=training)

    def encode_item(self, features: Features, training: bool) -> Any:
        return self.model.encode_item(features, training=training)

    def learned(self, encoded: Any) -> list[tf.Tensor]:
        return [tensor for tensor in tf.nest.flatten(encoded) if tensor.dtype.is_floating]

    def score(self, values: Values, user: Any, item: Any) -> tf.Tensor:
        with keras.StatelessScope(state_mapping=values):
            return self.inner(user, item, **self._training(False))

    def query(self, values: Values, user: Any) -> tf.Tensor:
        """The query vector `(1, D)` of one adapted user, for a model whose score is a dot product."""
        with keras.StatelessScope(state_mapping=values):
            return self.inner(user)

    def activate(self, products: tf.Tensor) -> tf.Tensor:
        """Scores from the dot products of queries and items."""
        return keras.activations.get(self.inner.activation)(products)

    def score_all(self, apply: Apply, user: Any, item: Any, training: bool = False) -> tf.Tensor:
        """Scores `(T, R)` of all tasks at once.

        Args:
            apply: how a Dense layer runs on `(T, R, ...)`.
            user: encoded user sides, `(T, R or 1, ...)`.
            item: encoded items, `(T, R or 1, ...)`, or `(R, ...)` common to all tasks.
            training: whether dropout is on.
        """
        return self.inner(user, item, apply=apply, **self._training(training))

    def query_all(self, apply: Apply, user: Any) -> tf.Tensor:
        """Query vectors `(T, D)`."""
        return self.inner(user, apply=apply)[:, 0]

    def _training(self, training: bool) -> dict[str, bool]:
        return {"training": training} if self.inner._call_has_training_arg else {}


class GraphCut(Whole):
    """A functional model cut along its graph.

    An operation belongs to a side's encoder if all that it depends on comes from that side and nothing it
    depends on adapts. The tensors on the border are what is encoded.
    """

    takes_apply = True

    def __init__(self, model: keras.Model, variables: list[keras.Variable], sides: dict[str, str]):
        super().__init__(model, variables)
        shapes = [tuple(output.shape) for output in model.outputs]
        if len(shapes) != 1 or shapes[0][1:] not in ((1,), ()):
            raise ValueError(f"`model` must have one output of shape (batch, 1). Received: {shapes}")
        names = {id(tensor): name for name, tensor in model._inputs_struct.items()}
        side_of = {key: sides.get(name, name) for key, name in names.items()}
        moving = _ids(variables)
        nodes = [node for depth in sorted(model._nodes_by_depth, reverse=True) for node in model._nodes_by_depth[depth]]
        border: dict[int, Any] = {}
        inner: list[Any] = []
        for node in nodes:
            if node.is_input:
                continue
            from_sides = {side_of.get(id(tensor)) for tensor in node.input_tensors}
            fixed = not moving & _ids(getattr(node.operation, "trainable_variables", ()))
            if fixed and len(from_sides) == 1 and None not in from_sides:
                side_of.update((id(tensor), next(iter(from_sides))) for tensor in node.outputs)
            else:
                inner.append(node.operation)
                border.update((id(t), t) for t in node.input_tensors if id(t) in side_of)
        border.update((id(t), t) for t in model.outputs if id(t) in side_of)  # A model of which nothing adapts.
        self._border = list(border.values())
        self._graph = keras.Function(self._border, model.outputs)
        self._layers = [operation for operation in inner if isinstance(operation, keras.layers.Layer)]
        # Which inputs each side needs, and which border tensors it makes.
        self._encoders = {}
        self._learned: set[str] = set()  # Raw features reach the border too, and have no gradient to pass on.
        for side in dict.fromkeys(side_of[key] for key in names):
            inputs = {name: tensor for name, tensor in model._inputs_struct.items() if side_of[id(tensor)] == side}
            made = {str(place): t for place, t in enumerate(self._border) if side_of[id(t)] == side}
            if made:
                self._encoders[side] = (inputs, made, keras.Function(inputs, made))
            for place, tensor in made.items():
                operations = keras.Function(inputs, tensor).operations
                if any(getattr(operation, "variables", ()) for operation in operations):  # Frozen ones may thaw.
                    self._learned.add(place)

    @property
    def has_dropout(self) -> bool:
        modes = [layer for layer in self._layers if layer._call_has_training_arg]
        return any(not isinstance(layer, keras.layers.BatchNormalization) for layer in modes)

    @property
    def inner_variables(self) -> list[keras.Variable]:
        found = {id(variable): variable for layer in self._layers for variable in layer.trainable_variables}
        return list(found.values())

    @property
    def dense_layers(self) -> list[keras.layers.Dense] | None:
        return _dense_owners(self._layers, self.variables)

    def encode_user(self, features: Features, training: bool) -> Any:
        encoded = {}
        ids = tf.convert_to_tensor(features["user_id" if "user_id" in features else "item_id"])
        for inputs, made, graph in self._encoders.values():
            if not inputs.keys() <= features.keys():
                continue
            flat = {n: tf.reshape(tf.cast(features[n], t.dtype), (-1, *t.shape[1:])) for n, t in inputs.items()}
            outputs = _run(graph, flat, lambda operation: _in_mode(operation, training))
            for place in made:
                output = tf.reshape(outputs[place], tf.concat([tf.shape(ids), tf.shape(outputs[place])[1:]], 0))
                output.set_shape(ids.shape.concatenate(outputs[place].shape[1:]))
                encoded[place] = output
        if not encoded:  # Somebody must say how many rows there are.
            encoded["rows"] = tf.zeros_like(ids)
        return encoded

    encode_item = encode_user  # A feature's name says which side it is of.

    def learned(self, encoded: Any) -> list[tf.Tensor]:
        return [tensor for place, tensor in encoded.items() if place in self._learned and tensor.dtype.is_floating]

    def _sides(self, user: Any, item: Any) -> dict[str, tf.Tensor]:
        """Both sides, with all that the graph needs."""
        sides = {**user, **item}
        if any(str(place) not in sides for place in range(len(self._border))):
            raise ValueError(
                f"`model` takes {', '.join(map(repr, self.model._inputs_struct))}, and the features of users and items "
                "lack at least one of them."
            )
        return sides

    def score(self, values: Values, user: Any, item: Any) -> tf.Tensor:
        sides = self._sides(user, item)
        rows = _broadcast(list(sides.values()), 0)
        flat = []
        for place in range(len(self._border)):
            value = sides[str(place)]
            flat.append(tf.broadcast_to(value, tf.concat([[rows], tf.shape(value)[1:]], 0)))
        with keras.StatelessScope(state_mapping=values):
            (score,) = _run(self._graph, flat, lambda operation: _in_mode(operation, False))
        return tf.reshape(score, [-1])

    def score_all(self, apply: Apply, user: Any, item: Any, training: bool = False) -> tf.Tensor:
        sides = self._sides(user, item)
        ranks = {str(place): len(tensor.shape) - 1 for place, tensor in enumerate(self._border)} | {"rows": 0}
        # (T, R, ...) where rows are a task's own, (R, ...) where they are common to all.
        wide = {name: value if value.shape.rank - ranks[name] == 2 else value[None] for name, value in sides.items()}
        tasks, rows = (_broadcast(list(wide.values()), axis) for axis in (0, 1))
        flat = []
        for place in range(len(self._border)):
            value = wide[str(place)]
            value = tf.broadcast_to(value, tf.concat([[tasks, rows], tf.shape(value)[2:]], 0))
            flat.append(tf.reshape(value, (-1, *self._border[place].shape[1:])))

        def run(operation: Any) -> Any:
            if not isinstance(operation, keras.layers.Dense):
                return _in_mode(operation, training)
            return lambda x: dense(operation, x)

        def dense(layer: keras.layers.Dense, x: tf.Tensor) -> tf.Tensor:
            # A list has several vectors in a row: each is one more row of its task.
            outputs = apply(layer, tf.reshape(x, (tasks, rows * math.prod(x.shape[1:-1]), x.shape[-1])))
            return tf.reshape(outputs, (-1, *x.shape[1:-1], outputs.shape[-1]))

        (score,) = _run(self._graph, flat, run)
        return tf.reshape(score, (tasks, rows))


def _broadcast(values: list[tf.Tensor], axis: int) -> Any:
    """The size of a dimension to which those of size 1 are broadcast, as a number where it is known."""
    static = [value.shape[axis] for value in values]
    if None not in static:
        return next((size for size in static if size != 1), 1)
    sizes = tf.stack([tf.shape(value)[axis] for value in values])
    return tf.where(tf.reduce_min(sizes) == 0, 0, tf.reduce_max(sizes))


def _run(graph: keras.Function, inputs: Any, run: Callable[[Any], Callable]) -> Any:
    """Runs a function's graph, each operation as `run` says."""
    return graph._run_through_graph(inputs, operation_fn=run)


def _in_mode(operation: Any, training: bool) -> Callable:
    """An operation in training or inference mode, if it tells them apart.

    Batch normalisation always infers: in training it would mix tasks, and padding with rows.
    """
    if not getattr(operation, "_call_has_training_arg", False):
        return operation
    training = training and not isinstance(operation, keras.layers.BatchNormalization)
    return lambda *inputs, **options: operation(*inputs, **{**options, "training": training})


def _dense_owners(
    layers: Iterable[keras.layers.Layer], variables: list[keras.Variable]
) -> list[keras.layers.Dense] | None:
    dense = [layer for layer in layers if is_plain_dense(layer)]
    owned = {key for layer in dense for key in _ids(layer.trainable_variables)}
    return dense if _ids(variables) <= owned else None


def _choose(layer: keras.layers.Layer, adapted: str | None) -> list[keras.Variable]:
    variables = layer.trainable_variables
    parts = layer._flatten_layers()
    embeddings = {
        key for part in parts if isinstance(part, keras.layers.Embedding) for key in _ids(part.trainable_variables)
    }
    chosen = [variable for variable in variables if id(variable) not in embeddings]
    if adapted in ("last", "body") and chosen:
        # The innermost owner of the last variable. `_flatten_layers` itself keeps no order to rely on.
        owners = [part for part in layer._flatten_layers() if id(chosen[-1]) in _ids(part.trainable_variables)]
        own = _ids(min(owners, key=lambda part: len(part.trainable_variables)).trainable_variables)
        chosen = [variable for variable in chosen if (id(variable) in own) == (adapted == "last")]
    elif adapted is not None:
        try:
            chosen = [variable for variable in variables if re.search(adapted, variable.path)]
        except re.error as error:
            raise ValueError(f"`adapted` must be a regular expression ({error}). Received: {adapted!r}") from error
    if not chosen:
        paths = ", ".join(variable.path for variable in variables)
        raise ValueError(f"`adapted` must match at least one trainable variable of: {paths}. Received: {adapted!r}")
    return chosen


def _ids(variables: Iterable[keras.Variable]) -> set[int]:
    return {id(variable) for variable in variables}
