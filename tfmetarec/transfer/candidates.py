"""What a meta-learner and its teacher both score: the candidates of an episode, and which of them count."""

from typing import NamedTuple

import tensorflow as tf

from tfmetarec.data.vocabulary import Vocabulary
from tfmetarec.tasks.episode import Episode, Features, Support
from tfmetarec.transfer.teachers import Teacher, TeacherScores


class Candidates(NamedTuple):
    """Groups of items of `T` users.

    Attributes:
        groups: features of items, `(T, N, ...)` or, common to all users, `(N, ...)`.
        present: `(T, sum of N)` bool: whether a candidate counts.
    """

    groups: list[Features]
    present: tf.Tensor


def candidates_of(
    episode: Episode, teacher: Teacher, choice: str | int, vocabulary: Vocabulary | None
) -> tuple[Candidates, TeacherScores]:
    """The candidates, and what the teacher says of them after it has seen the support.

    Args:
        episode: of tasks about users.
        teacher: the teacher.
        choice: as `Distiller` takes it.
        vocabulary: the student's.

    Raises:
        ValueError: if the catalogue is wanted, and there is no vocabulary.
    """
    if choice == "episode":
        listed = _of_episode(episode)
        said = teacher.candidates(episode.support, listed.groups)
    else:
        if vocabulary is None:
            raise ValueError("`candidates` from the catalogue need a student with a vocabulary, and it has none.")
        with tf.init_scope():  # Constants of the program, not of this graph.
            catalogue = {name: tf.constant(value) for name, value in vocabulary.catalogue.items()}
        listed = Candidates([catalogue], _not_shown(episode.support, vocabulary.n_items))
        said = teacher.candidates(episode.support, [catalogue])
        if not isinstance(choice, str):
            listed, said = _best(episode, catalogue, listed.present, said, choice)
    counts = tf.cast(listed.present, said.present.dtype)
    return listed, said._replace(present=said.present * counts)


def _of_episode(episode: Episode) -> Candidates:
    """The query's items, and the negatives."""
    query = episode.query
    rows = tf.shape(query.label)[1]
    groups, present = [query.item], [tf.range(rows) < query.length[:, None]]
    if episode.query_negatives:
        groups.append(episode.query_negatives.item)
        present.append(_fresh_negatives(episode))
    return Candidates(groups, tf.concat(present, 1))


def _fresh_negatives(episode: Episode) -> tf.Tensor:
    """`(T, P)`: each negative once, drawn with replacement as they are, and none that the user ever met."""
    rows = episode.query_negatives.item["item_id"]
    same = rows[..., :, None] == rows[..., None, :]
    place = tf.range(tf.shape(rows)[-1])
    first = ~tf.reduce_any(same & (place < place[:, None]), -1)
    return (episode.query_negatives.weight > 0) & first


def _not_shown(support: Support, items: int) -> tf.Tensor:
    """`(T, I)`: every item but the unknown one and those of the support."""
    rows = tf.cast(support.item["item_id"], tf.int32)
    users = tf.broadcast_to(tf.range(tf.shape(rows)[0])[:, None], tf.shape(rows))
    real = tf.cast(tf.range(tf.shape(rows)[1]) < support.length[:, None], tf.int32)
    shown = tf.scatter_nd(tf.stack([users, rows], -1), real, (tf.shape(rows)[0], items))
    return (shown == 0) & (tf.range(items) > 0)


def _best(
    episode: Episode, catalogue: Features, left: tf.Tensor, said: TeacherScores, top_k: int
) -> tuple[Candidates, TeacherScores]:
    """The items that the teacher puts first among those that are left, and the negatives that are not among them."""
    eligible = left & (said.present > 0)
    lowest = said.score.dtype.min
    _, best = tf.math.top_k(tf.where(eligible, tf.maximum(said.score, lowest / 2), lowest), min(top_k, left.shape[1]))
    groups = [{name: tf.gather(value, best) for name, value in catalogue.items()}]
    present = [tf.gather(eligible, best, batch_dims=1)]
    rows = [best]
    if episode.query_negatives:
        negatives = episode.query_negatives.item
        ids = tf.cast(negatives["item_id"], tf.int32)
        ids = tf.broadcast_to(ids, (tf.shape(best)[0], tf.shape(ids)[-1]))
        listed = tf.reduce_any(ids[:, :, None] == best[:, None], 2)
        groups.append(negatives)
        present.append(_fresh_negatives(episode) & ~listed)
        rows.append(ids)
    picked = tf.concat(rows, 1)
    scores = (tf.gather(part, picked, batch_dims=1) for part in (said.score, said.present))
    return Candidates(groups, tf.concat(present, 1)), TeacherScores(*scores)
