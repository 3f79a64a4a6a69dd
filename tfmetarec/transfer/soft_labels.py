"""What a teacher says, written down and read again, so that it need not be there while the student learns."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet
import tensorflow as tf

from tfmetarec.data.interactions import Interactions
from tfmetarec.data.vocabulary import Vocabulary
from tfmetarec.data.whole_file import write_whole
from tfmetarec.tasks.episode import Features, Support
from tfmetarec.tasks.table import TaskTable
from tfmetarec.transfer.teachers import Teacher, TeacherScores, as_lists, side_by_side, teacher_of


@keras.saving.register_keras_serializable(package="tfmetarec")
class SoftLabelTeacher(Teacher):
    """Soft labels on disk, one list of items and scores for each user: the teacher itself need not be there.

    Args:
        path: Parquet file with the columns `user_id`, `item_id` (list) and `score` (list of equal length), as
            `write_soft_labels` writes it.
        vocabulary: the student's, through which raw ids become rows; it must keep rows of users (`user_ids=True`).
            `None` if both are row numbers already.
        rest: what the teacher is taken to say of items outside a user's list: best something below every score of it.
            Defaults to `None`: nothing, so that they have no part in the soft loss. Users without a list never have.

    Raises:
        ValueError: if the file lacks a column, its lists do not fit, or the vocabulary keeps no users.
    """

    def __init__(self, path: str | Path, *, vocabulary: Vocabulary | None = None, rest: float | None = None):
        super().__init__()
        if rest is not None and not np.isfinite(rest):
            raise ValueError(f"`rest` must be finite, or None. Received: rest={rest}")
        self.path, self.rest, self.vocabulary = str(path), rest, vocabulary
        self._read()

    def _read(self) -> None:
        """The lists as tensors, with a last row, an empty one, for users who have none."""
        users, items, scores = _lists_of(self.path)
        if self.vocabulary is not None:
            users, items = _rows_of_users(self.vocabulary, users), _rows_of_items(self.vocabulary, items)
        self._has_rows = bool(users.dtype.kind in "iu" and items.dtype.kind in "iu")
        if not self._has_rows:
            return  # `check_catalogue` says so, once it is known that no vocabulary will come.
        kept = users >= (0 if self.vocabulary is None else 1)
        users, items, scores = users[kept], items[kept], scores[kept]
        self._items = tf.constant(np.concatenate([items, np.full((1, items.shape[1]), -1)]), tf.int32)
        self._scores = tf.constant(np.concatenate([scores, np.zeros((1, scores.shape[1]))]), tf.float32)
        places = tf.lookup.KeyValueTensorInitializer(users.astype(np.int64), np.arange(len(users)))
        self._users, self._place = len(users), tf.lookup.StaticHashTable(places, default_value=len(users))

    def check_catalogue(self, student: Vocabulary | None) -> None:
        if not self._has_rows:
            raise ValueError(f"`vocabulary` must be given where ids are no row numbers. Received: {self.path}")
        super().check_catalogue(student)

    def rows(self, features: Features) -> TeacherScores:
        if "item_id" not in features:
            raise ValueError(f"soft labels need the feature 'item_id'. Received: {', '.join(features)}")
        return self._look_up(features, as_lists(tf.convert_to_tensor(features["item_id"])))

    def candidates(self, support: Support, item: list[Features]) -> TeacherScores:
        users = tf.shape(support.length)[0]
        scores, present = [], []
        for group in item:
            ids = tf.convert_to_tensor(group["item_id"])
            if ids.shape.rank == 1:
                ids = tf.broadcast_to(ids, (users, tf.shape(ids)[0]))
            found = self._look_up(support.user, ids)
            scores.append(found.score)
            present.append(found.present)
        return side_by_side(scores, present, users)

    def _look_up(self, features: Features, items: tf.Tensor) -> TeacherScores:
        """Scores of item rows `(B, N)`."""
        if "user_id" not in features:
            raise ValueError(f"soft labels need the feature 'user_id'. Received: {', '.join(features)}")
        place = self._place.lookup(tf.cast(tf.reshape(features["user_id"], [-1]), tf.int64))
        listed, scores = tf.gather(self._items, place), tf.gather(self._scores, place)  # (B, K)
        same = tf.cast(items, tf.int32)[:, :, None] == listed[:, None]  # (B, N, K)
        score = tf.reduce_sum(tf.where(same, scores[:, None], 0.0), 2)
        present = tf.reduce_any(same, 2)
        if self.rest is not None:
            score = tf.where(present, score, self.rest)
            present = tf.broadcast_to((place < self._users)[:, None], tf.shape(score))
        return TeacherScores(score, tf.cast(present, tf.float32))

    def get_config(self) -> dict[str, Any]:
        return {"path": self.path, "rest": self.rest}

    def save_assets(self, folder: str) -> None:
        if self.vocabulary is not None:
            self.vocabulary.save(str(Path(folder) / "vocabulary"))

    def load_assets(self, folder: str) -> None:
        if (saved := Path(folder) / "vocabulary").exists():
            self.vocabulary = Vocabulary.load(str(saved))
            self._read()


def write_soft_labels(
    teacher: Any,
    interactions: Interactions,
    path: str | Path,
    *,
    vocabulary: Vocabulary,
    top_k: int = 100,
    support: int | None = None,
    exclude_support: bool = True,
    batch_size: int = 128,
) -> int:
    """Writes each user's `top_k` items of the catalogue and their scores, as a teacher that knows the user has them.

    Batch by batch, so that memory does not grow with the number of users. The file has the columns `user_id`, `item_id`
    (list, best first) and `score` (list), raw ids all of them; `SoftLabelTeacher` reads it.

    Args:
        teacher: as `Distiller` takes it.
        interactions: of the users; a teacher that adapts sees them.
        path: Parquet file to write. It appears when everything is written.
        vocabulary: the student's.
        top_k: int, at least 1. A list is shorter where the teacher knows fewer items.
        support: int, at least 1: only so many of a user's last interactions are seen. Defaults to all.
        exclude_support: bool. Whether items that the teacher has seen of a user stay out of that user's list.
        batch_size: int, at least 1. Users at once.

    Returns:
        How many users were written.

    Raises:
        ValueError: for an option out of range, a catalogue that does not fit, or scores that are not finite.
    """
    for name, value in (("top_k", top_k), ("support", support), ("batch_size", batch_size)):
        if value is not None and value < 1:
            raise ValueError(f"`{name}` must be at least 1. Received: {name}={value}")
    teacher = teacher_of(teacher)
    teacher.check_catalogue(vocabulary)
    table = TaskTable.build(interactions, vocabulary)
    schema = pa.schema(
        {
            "user_id": table.keys.to_arrow().type,
            "item_id": pa.list_(pa.int64() if vocabulary.item_ids.dtype.kind == "i" else pa.string()),
            "score": pa.list_(pa.float32()),
        }
    )
    with write_whole(path) as writing, pa.parquet.ParquetWriter(writing, schema) as writer:
        for tasks, seen in _supports(table, support, batch_size):
            found = teacher.candidates(seen, [vocabulary.catalogue])
            rows = np.asarray(seen.item["item_id"])
            real = np.arange(rows.shape[1]) < seen.length[:, None]
            left = np.asarray(found.present) > 0
            left[:, 0] = False  # The item never seen.
            if exclude_support:
                left[np.nonzero(real)[0], rows[real]] = False
            items, scores, lengths = _best(np.asarray(found.score), left, top_k)
            offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
            ids = pa.array(vocabulary.item_ids[items].tolist(), schema.field("item_id").type.value_type)
            lists = [pa.ListArray.from_arrays(offsets, values) for values in (ids, pa.array(scores, pa.float32()))]
            users = table.keys[int(tasks[0]) : int(tasks[-1]) + 1].to_arrow()
            writer.write_table(pa.table([users, *lists], schema=schema))
    return len(table)


def _supports(table: TaskTable, most: int | None, batch_size: int) -> Iterator[tuple[np.ndarray, Support]]:
    """The users in batches, each with its last interactions, all batches of one width."""
    width = int(min(table.sizes.max(), most or np.inf))
    for first in range(0, len(table), batch_size):
        tasks = np.arange(first, min(first + batch_size, len(table)))
        length = np.minimum(table.sizes[tasks], width).astype(np.int32)
        place = np.minimum(np.arange(width), length[:, None] - 1)
        slots = (table.start[tasks + 1] - length)[:, None] + place
        user = table.users.take(table.user[slots[:, 0]])
        yield tasks, Support(user, table.items.take(table.item[slots]), table.label[slots], length)


def _best(scores: np.ndarray, left: np.ndarray, top_k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows and scores of every user's best, user after user, and how many each has; equal scores in order of rows."""
    if not np.isfinite(scores[left]).all():
        raise ValueError("the teacher must give finite scores. Received: NaN or infinity")
    order = np.argsort(np.where(left, -scores, np.inf), axis=1, kind="stable")[:, :top_k]
    kept = np.take_along_axis(left, order, 1)
    return order[kept], np.take_along_axis(scores, order, 1)[kept], kept.sum(1)


def _lists_of(path: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Users `(U,)`, and items and scores `(U, K)` of a file; past a list's end the item is -1 (or `None`)."""
    frame = pl.read_parquet(path)
    lacking = [name for name in ("user_id", "item_id", "score") if name not in frame.columns]
    if lacking:
        raise ValueError(
            f"soft labels need the columns user_id, item_id and score. Received: {path} without {', '.join(lacking)}"
        )
    twice = frame["user_id"].filter(frame["user_id"].is_duplicated())
    if len(twice):
        raise ValueError(f"soft labels must hold one list for each user. Received: user {twice[0]!r} more than once")
    lengths = frame["item_id"].list.len().to_numpy()
    unlike = np.flatnonzero(lengths != frame["score"].list.len().to_numpy())
    if len(unlike):
        user = frame["user_id"][int(unlike[0])]
        raise ValueError(f"`item_id` and `score` must be lists of equal length. Received: others for user {user!r}")
    here = np.arange(max(int(lengths.max(initial=0)), 1)) < lengths[:, None]
    flat = frame.filter(pl.col("item_id").list.len() > 0)
    ids = flat["item_id"].explode().to_numpy()
    items = np.full(here.shape, -1 if ids.dtype.kind in "iu" else None, ids.dtype if ids.dtype.kind in "iu" else object)
    scores = np.zeros(here.shape, np.float32)
    items[here], scores[here] = ids, flat["score"].explode().to_numpy()
    if not np.isfinite(scores).all():
        raise ValueError(f"soft labels must be finite. Received: NaN or infinity in {path}")
    return frame["user_id"].to_numpy(), items, scores


def _rows_of_users(vocabulary: Vocabulary, users: np.ndarray) -> np.ndarray:
    known = vocabulary.known_values("user", "user_id")
    if known is None:
        raise ValueError("`vocabulary` must keep rows of users to find their soft labels: fit it with user_ids=True.")
    rows = {value: row for row, value in enumerate(known.tolist(), 1)}
    return np.asarray([rows.get(user, 0) for user in users.tolist()], np.int64)


def _rows_of_items(vocabulary: Vocabulary, items: np.ndarray) -> np.ndarray:
    given = items.copy()
    if given.dtype == object:
        given[[[one is None for one in row] for row in items]] = ""
    rows = vocabulary.item_rows(given)
    return np.where(rows > 0, rows, -1)
