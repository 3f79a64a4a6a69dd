"""Two exact ways to run all tasks of a batch side by side, each under its own weights.

Both hold weights in the order of the variables that adapt, and `None` or a tensor of the variable's own shape
stands for the shared starting point. Neither changes a variable.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from tfmetarec.meta import losses

Weights = Any  # By adapted variable: a tensor or a `LowRank`. `None` is the start where every task copies all of it.


class EncodedNegatives(NamedTuple):
    """What implicit feedback is contrasted with, encoded.

    Attributes:
        item: encoded items, `(P, ...)` common to all tasks, or `(T, P, ...)`.
        log_expected: `(P,)` or `(T, P)`.
        weight: `(T, P)`, 0 for an item that must not count.
    """

    item: Any
    log_expected: tf.Tensor
    weight: tf.Tensor


class TaskRows(NamedTuple):
    """The rows of `T` tasks, encoded.

    Attributes:
        user: encoded users, `(T, 1 or R, ...)`.
        item: encoded items, `(T, 1 or R, ...)`.
        label: `(T, R)`.
        weight: `(T, R)`, 0 for padding.
        negatives: `None` for explicit feedback.
    """

    user: Any
    item: Any
    label: tf.Tensor
    weight: tf.Tensor
    negatives: EncodedNegatives | None = None


class Step(NamedTuple):
    """How one gradient step is taken.

    Attributes:
        loss: of `losses`.
        rates: step size by adapted variable: a scalar, or a tensor of the variable's shape.
        second_order: whether the step is differentiated through; otherwise gradients count as constants. A tensor
            that is 1 or 0 decides when the graph runs.
        shrinkage: see `losses.weighted_mean`.
        clipnorm: longest gradient of a task over all that adapts; longer ones are shortened. `None`: any.
        proximal: strength of `proximal / 2 * |w - start|^2`, added to each task's loss after clipping.
        dropout: whether dropout is on in the part that adapts; `Dense` alone can.
        same_rows: whether every step before this one was taken on the same rows.
    """

    loss: Any
    rates: list[tf.Tensor]
    second_order: Any = True
    shrinkage: float = 0.0
    clipnorm: float | None = None
    proximal: float = 0.0
    dropout: bool = False
    same_rows: bool = False


class Vectorized:
    """Any model: `tf.vectorized_map` over tasks, each with a full copy of what adapts."""

    def __init__(self, cut: Any):
        self.cut = cut

    def start(self) -> Weights:
        """The starting point, the same for every task."""
        return None

    def formed(self, weights: Weights, tasks: tf.Tensor) -> list[tf.Tensor]:
        """Weights as tensors `(T, ...)`, one per adapted variable."""
        if weights is None:
            start = [tf.convert_to_tensor(v.value) for v in self.cut.variables]
            return [tf.broadcast_to(w, tf.concat([[tasks], tf.shape(w)], 0)) for w in start]
        return weights

    def losses(
        self, weights: Weights, rows: TaskRows, loss: Any, shrinkage: float = 0.0
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """The loss of each task `(T,)` and its scores `(T, R)`."""
        return self._map(lambda own, rows: self._loss(own, rows, loss, shrinkage), weights, rows)

    def scores(self, weights: Weights, user: Any, item: Any, common: str | None = None) -> tf.Tensor:
        """Scores `(T, R)`.

        Args:
            weights: of the tasks.
            user: encoded user side of each task, `(T, 1 or R, ...)`.
            item: the same for the item side.
            common: "user" or "item" if that side is `(R, ...)`, the same rows for all tasks.
        """
        sides = {"user": user, "item": item}
        mapped = {name: side for name, side in sides.items() if name != common}
        if weights is not None:
            mapped["weights"] = weights

        def score(own: dict[str, Any]) -> tf.Tensor:
            both = {**sides, **own}
            return self.cut.score(self._values(own.get("weights")), both["user"], both["item"])

        return tf.vectorized_map(score, mapped)

    def queries(self, weights: Weights, user: Any) -> tf.Tensor:
        """Query vectors `(T, D)`."""
        return tf.vectorized_map(lambda own: self.cut.query(self._values(own[0]), own[1])[0], (weights, user))

    def step(self, weights: Weights, rows: TaskRows, how: Step) -> Weights:
        """Every task's weights after one gradient step."""
        start = [tf.convert_to_tensor(v.value) for v in self.cut.variables]

        def one(own: Weights, rows: TaskRows) -> Weights:
            before = start if own is None else own
            with tf.GradientTape() as tape:
                tape.watch(before)
                loss, _ = self._loss(before, rows, how.loss, how.shrinkage)
            gradients = tape.gradient(loss, before, unconnected_gradients="zero")
            gradients = [tf.convert_to_tensor(g) for g in gradients]  # Embeddings give sparse slices.
            gradients = [_with_order(g, how.second_order) for g in gradients]
            if how.clipnorm is not None:
                squared = tf.add_n([tf.reduce_sum(g**2) for g in gradients])
                gradients = [g * _shortening(squared, how.clipnorm) for g in gradients]
            if how.proximal and own is not None:
                away = zip(gradients, before, start, strict=True)
                gradients = [g + how.proximal * (w - s) for g, w, s in away]
            return [w - rate * g for w, rate, g in zip(before, how.rates, gradients, strict=True)]

        return self._map(one, weights, rows)

    def _loss(self, weights: Weights, rows: TaskRows, loss: Any, shrinkage: float) -> tuple[tf.Tensor, tf.Tensor]:
        values = self._values(weights)
        scores = tf.cast(self.cut.score(values, rows.user, rows.item), rows.label.dtype)
        against = None
        if rows.negatives is not None:
            item, log_expected, weight = rows.negatives
            negative_scores = tf.cast(self.cut.score(values, rows.user, item), rows.label.dtype)
            against = losses.NegativeRows(negative_scores, log_expected, weight)
        return loss(losses.Rows(rows.label, scores, rows.weight), against, shrinkage), scores

    def _values(self, weights: Weights) -> list[tuple[keras.Variable, tf.Tensor]]:
        return list(zip(self.cut.variables, weights, strict=True)) if weights is not None else []

    def _map(self, function: Callable, weights: Weights, rows: TaskRows) -> Any:
        """Runs `function` on every task at once; negatives common to all are not repeated."""
        mapped: dict[str, Any] = {"rows": tuple(rows[:4])}
        common: dict[str, Any] = {}
        if weights is not None:
            mapped["weights"] = weights
        if rows.negatives is not None:
            item, log_expected, weight = rows.negatives
            (common if log_expected.shape.rank == 1 else mapped)["negatives"] = (item, log_expected)
            mapped["negative_weight"] = weight

        def one(own: dict[str, Any]) -> Any:
            both = {**own, **common}
            negatives = None
            if "negatives" in both:
                item, log_expected = both["negatives"]
                negatives = EncodedNegatives(item, log_expected, both["negative_weight"])
            user, item, label, weight = both["rows"]
            return function(both.get("weights"), TaskRows(user, item, label, weight, negatives))

        return tf.vectorized_map(one, mapped)


class LowRank(NamedTuple):
    """A kernel of each task: `shared + left^T right`, `(D_in, D_out)`, `(T, rank, D_in)` and `(T, rank, D_out)`."""

    shared: tf.Tensor
    left: tf.Tensor
    right: tf.Tensor


class _Tap(NamedTuple):
    layer: keras.layers.Dense
    inputs: tf.Tensor
    outputs: tf.Tensor


class Dense:
    """Models whose Dense layers adapt: exact without a copy of the weights for each task.

    The gradient of a Dense layer over `S` rows is `sum_s A_s^T B_s` (`A`: its inputs, `B`: the error signals at
    its outputs), so after some steps `x W_t = x W - sum (x A^T) (rate B)`: products with the shared kernel, one
    for all tasks, and thin ones. A kernel stays in this form while that takes fewer multiplications than its
    own product, `rank * (D_in + D_out) < D_in * D_out`, and is formed from then on. Both are exact; second
    derivatives flow through either.

    What goes into the first layers does not change from step to step, so their `A` stays, their `B` add up, and their
    rank stays `S`.

    Args:
        cut: whose `dense_layers` own everything that adapts.
        form: "auto" for the rule above, "low_rank" or "formed" for always one of them.
    """

    def __init__(self, cut: Any, form: str = "auto"):
        self.cut, self.form = cut, form
        layers = cut.dense_layers
        assert layers is not None
        places = {id(variable): place for place, variable in enumerate(cut.variables)}
        # Where a layer's kernel and bias are among the weights, if they adapt.
        self._places = {id(layer): (places.get(id(layer._kernel)), places.get(id(layer.bias))) for layer in layers}
        self._first: frozenset[int | None] | None = None

    def start(self) -> Weights:
        """The starting point, the same for every task."""
        return [tf.convert_to_tensor(v.value) for v in self.cut.variables]

    def formed(self, weights: Weights, tasks: tf.Tensor) -> list[tf.Tensor]:
        """Weights as tensors `(T, ...)`, one per adapted variable."""
        formed = []
        for weight, variable in zip(weights, self.cut.variables, strict=True):
            if isinstance(weight, LowRank):
                weight = weight.shared + _product(weight.left, weight.right)
            elif weight.shape.rank == len(variable.shape):
                weight = tf.broadcast_to(weight, tf.concat([[tasks], tf.shape(weight)], 0))
            formed.append(weight)
        return formed

    def losses(
        self, weights: Weights, rows: TaskRows, loss: Any, shrinkage: float = 0.0
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """The loss of each task `(T,)` and its scores `(T, R)`."""
        return self._losses(self._layers(weights), rows, loss, shrinkage)

    def scores(self, weights: Weights, user: Any, item: Any, common: str | None = None) -> tf.Tensor:
        """Scores `(T, R)`; as `Vectorized.scores`."""
        return self.cut.score_all(self._layers(weights), user, item)

    def queries(self, weights: Weights, user: Any) -> tf.Tensor:
        """Query vectors `(T, D)`."""
        return self.cut.query_all(self._layers(weights), user)

    def step(self, weights: Weights, rows: TaskRows, how: Step) -> Weights:
        """Every task's weights after one gradient step."""
        taps: list[_Tap] = []
        with tf.GradientTape() as tape:
            apply = self._layers(weights, tape, taps)
            each, _ = self._losses(apply, rows, how.loss, how.shrinkage, how.dropout)
        if self._first is None:
            self._first = self._find_first(rows, weights)
        # Of the sum over tasks: they do not meet, so each has its own gradient in it.
        signals = tape.gradient(each, [tap.outputs for tap in taps], unconnected_gradients="zero")
        gradients = self._gradients(taps, signals, how.second_order)
        if how.clipnorm is not None:
            squared = tf.add_n([gradient.squared_norm() for gradient in gradients.values()])
            shortening = _shortening(squared, how.clipnorm)
            gradients = {place: gradient.scaled(shortening) for place, gradient in gradients.items()}
        return [self._moved(place, weight, gradients.get(place), how) for place, weight in enumerate(weights)]

    def _losses(
        self, apply: Callable, rows: TaskRows, loss: Any, shrinkage: float, dropout: bool = False
    ) -> tuple[tf.Tensor, tf.Tensor]:
        scores = tf.cast(self.cut.score_all(apply, rows.user, rows.item, dropout), rows.label.dtype)
        against = None
        if rows.negatives is not None:
            item, log_expected, weight = rows.negatives
            negative_scores = tf.cast(self.cut.score_all(apply, rows.user, item, dropout), rows.label.dtype)
            against = losses.NegativeRows(negative_scores, log_expected, weight)
        return loss(losses.Rows(rows.label, scores, rows.weight), against, shrinkage), scores

    def _layers(
        self, weights: Weights, tape: tf.GradientTape | None = None, taps: list[_Tap] | None = None
    ) -> Callable[[keras.layers.Dense, tf.Tensor], tf.Tensor]:
        """How a Dense layer runs on `(T, R, D_in)` under `weights`; with a tape, noting what goes in and out."""

        def apply(layer: keras.layers.Dense, inputs: tf.Tensor) -> tf.Tensor:
            kernel_place, bias_place = self._places.get(id(layer), (None, None))
            if kernel_place is None and bias_place is None:
                return layer(inputs)
            inputs = tf.cast(inputs, layer.compute_dtype)
            kernel = layer._kernel.value if kernel_place is None else weights[kernel_place]
            bias = None if layer.bias is None else layer.bias.value if bias_place is None else weights[bias_place]
            outputs = _affine(inputs, kernel, bias)
            if tape is not None and taps is not None:
                tape.watch(outputs)
                taps.append(_Tap(layer, inputs, outputs))
            return outputs if layer.activation is None else layer.activation(outputs)

        return apply

    def _find_first(self, rows: TaskRows, weights: Weights) -> frozenset[int | None]:
        """The kernels whose inputs no adapted layer has a part in: the graph is walked back from them."""
        taps: list[_Tap] = []

        def run(weights: Weights, user: Any, item: Any) -> tf.Tensor:
            with tf.GradientTape() as tape:
                return self.cut.score_all(self._layers(weights, tape, taps), user, item)

        tf.function(run, autograph=False).get_concrete_function(weights, rows.user, rows.item)
        dependent = {
            self._places[id(tap.layer)][0]
            for place, tap in enumerate(taps)
            if _depends(tap.inputs, [earlier.outputs for earlier in taps[:place]])
        }
        found = {id(tap.layer) for tap in taps}
        for key, places in self._places.items():
            if key not in found and any(place is not None for place in places):
                path = self.cut.variables[next(place for place in places if place is not None)].path
                raise ValueError(f"`model.head` must run each Dense layer by `apply`, and does not run that of {path}.")
        return frozenset(self._places[id(tap.layer)][0] for tap in taps) - dependent

    def _gradients(self, taps: list[_Tap], signals: list[tf.Tensor], second_order: Any) -> "dict[int, _Gradient]":
        """The gradient of each adapted variable as factors, by its place."""
        found: dict[int, _Gradient] = {}
        for tap, signal in zip(taps, signals, strict=True):
            dtype = tap.layer.variable_dtype
            inputs, signal = tf.cast(tap.inputs, dtype), tf.cast(signal, dtype)
            inputs, signal = (_with_order(factor, second_order) for factor in (inputs, signal))
            kernel_place, bias_place = self._places[id(tap.layer)]
            if kernel_place is not None:
                found.setdefault(kernel_place, _Gradient([], [])).add(inputs, signal)
            if bias_place is not None:
                found.setdefault(bias_place, _Gradient([], [])).add(None, signal)
        return found

    def _moved(self, place: int, weight: Any, gradient: "_Gradient | None", how: Step) -> Any:
        """One weight after a step."""
        variable, rate = self.cut.variables[place], how.rates[place]
        if gradient is None:
            return weight
        low_rank = isinstance(weight, LowRank)
        shared = not low_rank and weight.shape.rank == len(variable.shape)
        if gradient.lefts and rate.shape.rank == 0 and (low_rank or shared):
            again = low_rank and how.same_rows and not how.dropout and place in (self._first or ())
            rank = gradient.rank if shared or again else _sum(gradient.rank, weight.left.shape[1])
            if self._stays_low_rank(rank, *variable.shape):
                left, right = _joined(gradient.lefts), -rate * _joined(gradient.rights)
                if shared:
                    return LowRank(weight, left, right)
                kept = (1 - rate * how.proximal) * weight.right if how.proximal else weight.right
                if again:
                    return LowRank(weight.shared, weight.left, kept + right)
                return LowRank(weight.shared, _joined([weight.left, left]), _joined([kept, right]))
        before = weight.shared + _product(weight.left, weight.right) if low_rank else weight
        if rate.shape.rank == 0:  # Into the factors: they are smaller, and a layer's kernel and bias share them.
            moved = before - _Gradient(gradient.lefts, [rate * right for right in gradient.rights]).formed()
        else:
            moved = before - rate * gradient.formed()
        return moved - rate * how.proximal * (before - variable.value) if how.proximal and not shared else moved

    def _stays_low_rank(self, rank: int | None, width: int, units: int) -> bool:
        if self.form != "auto":
            return self.form == "low_rank" and rank is not None
        return rank is not None and rank * (width + units) < width * units


class _Gradient(NamedTuple):
    """The gradient of each task: the sum of `left^T right` for a kernel, of the rows of `right` for a bias.

    Attributes:
        lefts: `(T, R, D_in)`, one for each place where the layer ran; empty for a bias.
        rights: `(T, R, D_out)`.
    """

    lefts: list[tf.Tensor]
    rights: list[tf.Tensor]

    def add(self, left: tf.Tensor | None, right: tf.Tensor) -> None:
        """Another place where the layer ran."""
        self.rights.append(right)
        if left is not None:
            self.lefts.append(left)

    @property
    def rank(self) -> int | None:
        """The rows of all places together, if they are known."""
        return _sum(*(left.shape[1] for left in self.lefts))

    def formed(self) -> tf.Tensor:
        """`(T, D_in, D_out)` or `(T, D_out)`."""
        if not self.lefts:
            return tf.add_n([tf.reduce_sum(right, 1) for right in self.rights])
        return tf.add_n([_product(*pair) for pair in zip(self.lefts, self.rights, strict=True)])

    def squared_norm(self) -> tf.Tensor:
        """`(T,)`. Of a kernel with few rows by `|A^T B|^2 = sum (A A^T) (B B^T)`, without forming it."""
        if self.lefts and self.rank is not None:
            left, right = _joined(self.lefts), _joined(self.rights)
            if self.rank**2 < left.shape[2] * right.shape[2]:
                among = tf.matmul(left, left, transpose_b=True) * tf.matmul(right, right, transpose_b=True)
                return tf.reduce_sum(among, [1, 2])
        formed = self.formed()
        return tf.reduce_sum(formed**2, list(range(1, formed.shape.rank)))

    def scaled(self, factor: tf.Tensor) -> "_Gradient":
        return _Gradient(self.lefts, [right * factor[:, None, None] for right in self.rights])


def _sum(*numbers: int | None) -> int | None:
    return None if None in numbers else sum(numbers)  # type: ignore[arg-type]


def _depends(tensor: tf.Tensor, on: list[tf.Tensor]) -> bool:
    """Whether any of some tensors has a part in the value of `tensor`, which need not mean that it has a derivative."""
    wanted, seen, stack = {id(other.op) for other in on}, set(), [tensor.op]
    while stack:
        operation = stack.pop()
        if id(operation) in wanted:
            return True
        if id(operation) not in seen:
            seen.add(id(operation))
            stack += [source.op for source in operation.inputs]
    return False


def _joined(parts: Any) -> tf.Tensor:
    return parts[0] if len(parts) == 1 else tf.concat(parts, 1)


def _product(left: tf.Tensor, right: tf.Tensor) -> tf.Tensor:
    """`left^T right`: `(T, R, D_in)`, `(T, R, D_out)` -> `(T, D_in, D_out)`."""
    return tf.matmul(left, right, transpose_a=True)


def _affine(inputs: tf.Tensor, kernel: Any, bias: tf.Tensor | None) -> tf.Tensor:
    """`(T, R, D_in)` under each task's kernel, see `_times`, and bias: `(D_out,)` or `(T, D_out)`."""
    if bias is None:
        return _times(inputs, kernel)
    bias = tf.cast(bias, inputs.dtype)
    if isinstance(kernel, LowRank) or kernel.shape.rank == 2 or bias.shape.rank == 1 or inputs.shape.is_fully_defined():
        return _times(inputs, kernel) + (bias if bias.shape.rank == 1 else tf.expand_dims(bias, 1))
    # Tasks and rows are not known, as in a served graph. TensorFlow would compute at every step which dimensions were
    # broadcast, three operations in four of a small layer: here it is known that the tasks are not.
    return _own_layer(inputs, tf.cast(kernel, inputs.dtype), bias)


@tf.custom_gradient
def _own_layer(inputs: tf.Tensor, kernel: tf.Tensor, bias: tf.Tensor) -> Any:
    """`(T, R, D_in)`, `(T, D_in, D_out)`, `(T, D_out)` -> `(T, R, D_out)`, and how it is differentiated."""

    def gradient(signal: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        return tf.matmul(signal, kernel, transpose_b=True), _product(inputs, signal), tf.reduce_sum(signal, 1)

    return tf.matmul(inputs, kernel) + tf.expand_dims(bias, 1), gradient


def _times(inputs: tf.Tensor, kernel: Any) -> tf.Tensor:
    """`(T, R, D_in)` times each task's kernel: a matrix shared by all, `LowRank`, or formed."""
    dtype = inputs.dtype  # Half precision computes in half and keeps weights and their factors whole.
    if not isinstance(kernel, LowRank) and kernel.shape.rank == 3:
        return tf.matmul(inputs, tf.cast(kernel, dtype))
    shared = tf.cast(kernel.shared if isinstance(kernel, LowRank) else kernel, dtype)
    # One product for the rows of all tasks: a matrix product that broadcasts the kernel is slower.
    flat = tf.matmul(tf.reshape(inputs, (-1, inputs.shape[2])), shared)
    rows = [tf.shape(inputs)[axis] if inputs.shape[axis] is None else inputs.shape[axis] for axis in (0, 1)]
    outputs = tf.reshape(flat, (*rows, shared.shape[1]))
    if isinstance(kernel, LowRank):
        left, right = tf.cast(kernel.left, dtype), tf.cast(kernel.right, dtype)
        outputs += tf.matmul(tf.matmul(inputs, left, transpose_b=True), right)
    return outputs


def _with_order(gradient: tf.Tensor, second_order: Any) -> tf.Tensor:
    """A gradient whose own derivative counts or not."""
    if second_order is True:
        return gradient
    constant = tf.stop_gradient(gradient)
    return constant if second_order is False else constant + second_order * (gradient - constant)


def _shortening(squared_norm: tf.Tensor, longest: float) -> tf.Tensor:
    """What to multiply gradients by so that they are no longer than `longest`; safe at 0, with its derivative."""
    too_long = squared_norm > longest**2
    return tf.where(too_long, longest * tf.math.rsqrt(tf.where(too_long, squared_norm, 1.0)), 1.0)
