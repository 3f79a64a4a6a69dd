"""Computing again what a gradient needs, instead of keeping it."""

from collections.abc import Callable
from typing import Any

import tensorflow as tf


def recomputed(function: Callable, *inputs: Any) -> Any:
    """`function(*inputs)`, of which the graph keeps only the inputs until the gradient asks for more.

    As `tf.recompute_grad`, but a tape within `function` goes on working, which that one stops.

    Args:
        function: of structures of tensors, without randomness: it runs twice.
        *inputs: structures; everything that is differentiated must be in them. `None` is allowed.

    >>> x = tf.constant(3.0)
    >>> with tf.GradientTape() as tape:
    ...     tape.watch(x)
    ...     y = recomputed(lambda z: z**2, x)
    >>> float(tape.gradient(y, x))
    6.0

    Reference: [Chen et al., 2016](https://arxiv.org/abs/1604.06174), section 3.
    """
    flat = tf.nest.flatten(inputs)
    places = [place for place, tensor in enumerate(flat) if tensor is not None]
    form: Any = None

    def run(tensors: Any) -> Any:
        filled = list(flat)
        for place, tensor in zip(places, tensors, strict=True):
            filled[place] = tensor
        return function(*tf.nest.pack_sequence_as(inputs, filled))

    @tf.custom_gradient
    def once(*tensors: tf.Tensor) -> Any:
        nonlocal form
        form = run(tensors)

        def backward(*upstream: tf.Tensor, variables: Any = ()) -> Any:
            # A zero made of what comes from above: without it a graph would compute this early, or only once.
            first = tf.reshape(upstream[0], [-1])[:1]
            late = tf.reduce_sum(tf.cast(tf.math.is_nan(first), first.dtype)) * 0.0
            again = [t + tf.cast(late, t.dtype) if t.dtype.is_floating else t for t in tensors]
            with tf.GradientTape() as tape:
                tape.watch(again)
                outputs = tf.nest.flatten(run(again))
            found = tape.gradient(outputs, (again, list(variables)), output_gradients=list(upstream))
            return found if variables else found[0]

        return tf.nest.flatten(form), backward

    outputs = tf.nest.flatten(once(*(flat[place] for place in places)))
    return tf.nest.pack_sequence_as(form, outputs)
