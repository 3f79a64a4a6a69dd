"""Training on several devices: each batch's tasks shared out among replicas."""

from typing import Any

import tensorflow as tf

from tfmetarec.tasks.episode import Episode


def share_out(episodes: tf.data.Dataset, strategy: tf.distribute.Strategy) -> Any:
    """Batches of which each replica gets its share of the tasks, and all of the negatives common to them.

    TensorFlow's own way would cut every tensor along its first axis, negatives too.

    Raises:
        ValueError: if the tasks of a batch cannot be shared out evenly.
    """
    replicas = strategy.num_replicas_in_sync
    tasks = episodes.element_spec.query.length.shape[0]
    if tasks is None or tasks % replicas:
        raise ValueError(f"`tasks_per_batch` must be a multiple of the {replicas} replicas. Received: {tasks}")
    each = tasks // replicas

    def own(episode: Episode, replica: tf.Tensor) -> Episode:
        def part(value: tf.Tensor) -> tf.Tensor:
            return tf.ensure_shape(value[replica * each : (replica + 1) * each], (each, *value.shape[1:]))

        def negatives(given: Any) -> Any:
            if not given:
                return given
            shared = given.log_expected.shape.rank == 1
            return given._replace(weight=part(given.weight)) if shared else tf.nest.map_structure(part, given)

        support, query = (tf.nest.map_structure(part, rows) for rows in (episode.support, episode.query))
        return Episode(support, query, negatives(episode.support_negatives), negatives(episode.query_negatives))

    def shares(episode: Episode) -> tf.data.Dataset:
        return tf.data.Dataset.range(replicas).map(lambda replica: own(episode, replica))

    return strategy.distribute_datasets_from_function(lambda context: episodes.flat_map(shares))


def scaled(gradient: Any, factor: float) -> Any:
    """`gradient * factor`; rows of a table stay rows."""
    if isinstance(gradient, tf.IndexedSlices):
        return tf.IndexedSlices(gradient.values * factor, gradient.indices, gradient.dense_shape)
    return gradient * factor
