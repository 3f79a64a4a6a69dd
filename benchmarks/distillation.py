"""A large teacher, a small student: what distillation keeps, and what it costs to serve.

Complete Journey, and MovieLens-1M made implicit (every rating is a choice, whatever it says). Users are held out whole;
of a held-out user the first K items in time are the support, the 21st to 40th are what is judged, and the whole
catalogue less the support is ranked. The teacher is a wide `Sequence`, the student a narrow one. `student alone` is
the best of four: trained on windows, as the teacher is, or on episodes, as the distilled students are, with weak or
strong regularisation. The distilled students train on what the teacher says of all items after random supports of
training users and, where `alpha` is less than 1, on the labels of the queries. The `keras.distillation` student has
Keras's own `Distiller`, the same teacher, supports and catalogue, and one query item of each user as its label.

The first table of each data set: nDCG@20 after K items on test users, its mean over users and K, and that mean on
validation users, on which everything was chosen: the epoch of every row, the setting of the student alone, and the
distilled student (*) that the targets are for. Test users are judged once. The second: what each row gains over the
student alone, between `low` and `high` (paired bootstrap over users), and its share of the teacher's mean. The third:
teacher and student, exported as SavedModels that answer with the same top 20 of the whole catalogue, in the TF1 session
that a server's loader resembles. Calls are interleaved; times are medians, and `ratio` is that of the medians.
"""

import json
import logging
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import keras
import numpy as np
import polars as pl
import tensorflow as tf
from rich.console import Console

import tfmetarec as tmr
from benchmarks import report
from tfmetarec.data import Interactions, Split, Vocabulary
from tfmetarec.data.whole_file import write_whole
from tfmetarec.evaluation import ColdStartTable, paired_bootstrap
from tfmetarec.models.sequence import Sequence as SequenceModel
from tfmetarec.optimizers import RowSparseAdamW
from tfmetarec.tasks import Support
from tfmetarec.tasks.windows import user_windows
from tfmetarec.transfer.distillation import Distiller
from tfmetarec.transfer.distillation_losses import (
    BinarySoftLabels,
    FeatureHints,
    RankingDistillation,
    RelaxedRanking,
    SoftmaxSoftLabels,
)

NAME = "distillation"
SHOTS, QUERY, TOP_K = (5, 10, 20), 20, 20
MIN_ITEM_USERS = 10
TEACHER = {"embedding_dim": 192, "blocks": 2, "heads": 4, "max_length": 20}
STUDENT = {"embedding_dim": 16, "blocks": 1, "heads": 1, "max_length": 20}
# The teacher's was chosen on validation users before; the student alone has both, and the better one is kept.
REGULARIZED = {
    "strong": {"dropout": 0.3, "id_dropout": 0.5, "weight_decay": 0.05},
    "weak": {"dropout": 0.1, "id_dropout": 0.1, "weight_decay": 0.01},
}
WINDOWS = {"length": (1, max(SHOTS) + 1), "negatives": 1024}
EPISODES = {"support": (0, max(SHOTS)), "query": QUERY, "tasks_per_batch": 64, "negatives": 1024}
LEARNING_RATE = {"teacher": 1e-3, "student": 3e-3}
STEPS = 100  # Of an epoch; then validation users are asked.
EPOCHS = {"teacher": 12, "alone": 15, "distilled": 8}
PATIENCE = 4  # Epochs without a better figure on validation users.
BATCHES = (1, 32)  # Users of a request.
TARGET_BATCH = 32
TURNS = 200


class Problem(NamedTuple):
    """Interactions, split by users.

    Attributes:
        name: of the data.
        split: into `train`, `validation` and `test`.
        vocabulary: of `train`.
        teacher: the regularisation of the teacher, one of `REGULARIZED`.
        horizon: how far ahead windows look for what a place predicts.
        windows_per_batch: of training on windows.
    """

    name: str
    split: Split
    vocabulary: Vocabulary
    teacher: str
    horizon: int
    windows_per_batch: int


class Trained(NamedTuple):
    """A recommender, and its best figure on validation users."""

    recommender: Any
    validation: float
    settings: str = ""


class Budget(NamedTuple):
    """How long a run may take."""

    epochs: dict[str, int]
    steps: int
    turns: int
    quick: bool


# -- data ------------------------------------------------------------------------------------------------------


def problem(
    interactions: Interactions, teacher: str, horizon: int, windows: int, seed: int, users: int | None
) -> Problem:
    """Splits the interactions, of the first `users` users alone if that is given."""
    least = MIN_ITEM_USERS
    if users is not None:
        first = interactions.table["user_id"].unique().sort().head(users)
        table = interactions.table.filter(pl.col("user_id").is_in(first.implode()))
        interactions, least = _with_table(interactions, table), 5
    split = tmr.data.cold_users(interactions, seed=seed)
    vocabulary = Vocabulary.fit(split.train, min_item_users=least)
    return Problem(interactions.name, split, vocabulary, teacher, horizon, windows)


def problems(folder: Path | None, seed: int, quick: bool) -> list[Problem]:
    """Complete Journey, and MovieLens-1M if there is a folder for it; a quick run has a part of the first."""
    users = 250 if quick else None
    found = [problem(tmr.data.load("completejourney"), "strong", 20, 64, seed, users)]
    if folder is not None and not quick:
        found.append(problem(choices(tmr.data.load("movielens", folder=folder)), "weak", 10, 128, seed, None))
    return found


def choices(ratings: Interactions) -> Interactions:
    """Ratings as choices: that a film was rated counts, not how high."""
    items = ratings.items.drop("plot", strict=False)  # Its words say what genre and people say.
    users = None if ratings.users is None else ratings.users.drop("zip_code", strict=False)  # Almost an id.
    table = ratings.table.drop("label")
    return Interactions.from_frames(
        table, users=users, items=items, feedback="implicit", item_name="title", name=ratings.name
    )


def _with_table(interactions: Interactions, table: pl.DataFrame) -> Interactions:
    schema = interactions.schema
    return Interactions.from_frames(
        table.drop("label"),
        users=interactions.users,
        items=interactions.items,
        feedback=schema.feedback,
        kinds={feature.name: feature.kind for feature in schema.item if feature.kind == "text"},
        item_name=schema.item_name,
        name=interactions.name,
    )


# -- judging ---------------------------------------------------------------------------------------------------


def judged(recommenders: dict[str, Any], part: Interactions, case: Problem, **options: Any) -> ColdStartTable:
    """The protocol, for any of the parts."""
    return tmr.evaluation.cold_start(
        recommenders, part, vocabulary=case.vocabulary, shots=SHOTS, query=QUERY, top_k=TOP_K, **options
    )


def metric_of(table: ColdStartTable) -> str:
    """nDCG by its full name: a small catalogue has shorter lists."""
    return next(column for column in table.per_user.columns if column.startswith("ndcg"))


def by_user(table: ColdStartTable, name: str) -> np.ndarray:
    """nDCG of each user, the mean over K."""
    return table.by_user(name, metric=metric_of(table))


class Best(keras.callbacks.Callback):
    """Asks validation users after every epoch, and leaves the recommender as it was when they liked it best."""

    def __init__(self, recommender: keras.Model, case: Problem):
        super().__init__()
        self.recommender, self.case = recommender, case
        self.figures: list[float] = []
        self.weights: list[np.ndarray] = []

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        table = judged({"it": self.recommender}, self.case.split.validation, self.case)
        self.figures.append(float(by_user(table, "it").mean()))
        if self.figures[-1] == max(self.figures):
            self.weights = self.recommender.get_weights()
        best = self.figures.index(max(self.figures))
        if len(self.figures) - 1 - best >= PATIENCE:
            self.model.stop_training = True

    def on_train_end(self, logs: Any = None) -> None:
        self.recommender.set_weights(self.weights)

    def trained(self, settings: str = "") -> Trained:
        return Trained(self.recommender, max(self.figures), settings)


# -- training --------------------------------------------------------------------------------------------------


def optimizer(kind: str, weight_decay: float, steps: int) -> RowSparseAdamW:
    schedule = keras.optimizers.schedules.CosineDecay(LEARNING_RATE[kind], steps, alpha=0.05)
    return RowSparseAdamW(schedule, weight_decay=weight_decay)


def on_windows(
    case: Problem, shape: dict[str, Any], regularized: str, kind: str, epochs: int, steps: int, seed: int
) -> Trained:
    """A sequence model trained by itself."""
    chosen = dict(REGULARIZED[regularized])
    decay = chosen.pop("weight_decay")
    model = SequenceModel(case.vocabulary, **shape, **chosen, seed=seed)
    windows = user_windows(
        case.split.train,
        case.vocabulary,
        **WINDOWS,
        horizon=case.horizon,
        windows_per_batch=case.windows_per_batch,
        steps_per_epoch=steps,
        seed=seed,
    )
    model.compile(optimizer(kind, decay, epochs * steps))
    best = Best(model, case)
    model.fit(windows, epochs=epochs, callbacks=[best], verbose=0)
    return best.trained(f"on windows, {regularized}")


class Encoded:
    """A trained sequence model whose items are encoded already: a teacher that costs what reading a history costs."""

    def __init__(self, model: SequenceModel):
        vocabulary = model.vocabulary
        assert vocabulary is not None
        self.model, self.vocabulary = model, vocabulary
        catalogue = {name: tf.constant(value) for name, value in vocabulary.catalogue.items()}
        self.items = tf.constant(model.encode_item(catalogue))

    def adapt(self, support: Support) -> tf.Tensor:
        return self.model.adapt(support)

    def score(self, state: tf.Tensor, item: dict[str, Any]) -> tf.Tensor:
        rows = tf.gather(self.items, item["item_id"])
        return tf.matmul(state, rows, transpose_b=True) if rows.shape.rank == 2 else tf.linalg.matvec(rows, state)


def ways(teacher: int, seed: int) -> dict[str, dict[str, Any]]:
    """The distillations that are compared: options of `Distiller` by the name of the row.

    Args:
        teacher: width of the teacher.
        seed: of the hints' projection.
    """

    def of_student(model: Any, episode: Any) -> Any:
        return model(episode.support, training=True)

    def of_teacher(model: Any, episode: Any) -> Any:
        return model.adapt(episode.support)

    hints = FeatureHints(teacher + 1, of_student, of_teacher, weight=0.1, seed=seed)
    return {
        "softmax KL, T=1, alpha 1": {"soft_loss": SoftmaxSoftLabels(1.0), "alpha": 1.0},
        "softmax KL, T=2, alpha 1": {"soft_loss": SoftmaxSoftLabels(2.0), "alpha": 1.0},
        "softmax KL, T=1, alpha .2": {"soft_loss": SoftmaxSoftLabels(1.0), "alpha": 0.2},
        "the same, with hints, alpha .5": {"soft_loss": SoftmaxSoftLabels(1.0), "alpha": 0.5, "hints": hints},
        "binary soft labels, alpha .5": {"soft_loss": BinarySoftLabels(1.0), "alpha": 0.5},
        "ranking distillation, alpha .5": {"soft_loss": RankingDistillation(20), "alpha": 0.5},
        "relaxed ranking, alpha .5": {"soft_loss": RelaxedRanking(20), "alpha": 0.5},
        "softmax KL, T=1, alpha .5": {"soft_loss": SoftmaxSoftLabels(1.0), "alpha": 0.5},
    }


NO_TEACHER = {"alpha": 0.0, "candidates": "episode"}


def episodes(case: Problem, steps: int, seed: int) -> tmr.tasks.Episodes:
    return tmr.tasks.user_episodes(case.split.train, case.vocabulary, **EPISODES, steps_per_epoch=steps, seed=seed)


def distilled(
    case: Problem, teacher: Encoded, way: dict[str, Any], regularized: str | None, epochs: int, steps: int, seed: int
) -> Trained:
    """A student of our `Distiller`. Soft labels are regularisation enough, if they are there."""
    chosen = {"dropout": 0.0, "id_dropout": 0.0, **REGULARIZED.get(regularized, {})}
    decay = chosen.pop("weight_decay", 0.0)
    learner = SequenceModel(case.vocabulary, **STUDENT, **chosen, seed=seed)
    distiller = Distiller(learner, teacher, **{"candidates": "catalogue", **way})
    distiller.compile(optimizer("student", decay, epochs * steps))
    best = Best(learner, case)
    distiller.fit(episodes(case, steps, seed), epochs=epochs, callbacks=[best], verbose=0)
    return best.trained(f"on episodes, {regularized}")


class Lists(keras.Model):
    """A sequence model as Keras's `Distiller` wants both of its models: from one input to logits over all items."""

    def __init__(self, model: SequenceModel, items: tf.Tensor | None = None):
        super().__init__()
        self.model, self.items = model, items
        vocabulary = model.vocabulary
        assert vocabulary is not None
        self.catalogue = {name: tf.constant(value) for name, value in vocabulary.catalogue.items()}
        self.built = True

    def call(self, support: Support, training: bool = False) -> tf.Tensor:
        items = self.model.encode_item(self.catalogue, training=training) if self.items is None else self.items
        scores = tf.matmul(self.model(support, training=training), items, transpose_b=True)
        rows = tf.where(tf.sequence_mask(support.length, tf.shape(support.label)[1]), support.item["item_id"], 0)
        users = tf.broadcast_to(tf.range(tf.shape(rows)[0])[:, None], tf.shape(rows))
        # What the support shows is no candidate, and row 0, which padding points at, is no item.
        return tf.tensor_scatter_nd_update(scores, tf.stack([users, rows], -1), tf.fill(tf.shape(rows), -1e9))


def distilled_by_keras(case: Problem, teacher: Encoded, epochs: int, steps: int, seed: int) -> Trained:
    """A student of `keras.distillation`, with half of the weight on the label, its default."""
    learner = SequenceModel(case.vocabulary, **STUDENT, dropout=0.0, id_dropout=0.0, seed=seed)
    distiller = keras.distillation.Distiller(
        teacher=Lists(teacher.model, teacher.items),
        student=Lists(learner),
        # By its default, the name of the loss, Keras 3.15 compares raw scores; this class gets probabilities.
        distillation_losses=keras.distillation.LogitsDistillation(1.0, loss=keras.losses.KLDivergence()),
    )
    distiller.compile(
        optimizer=optimizer("student", 0.0, epochs * steps),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=False,
    )
    drawn = episodes(case, steps, seed).dataset(batches=epochs * steps)
    pairs = drawn.map(lambda episode: (episode.support, episode.query.item["item_id"][:, 0]))
    best = Best(learner, case)
    distiller.fit(pairs, epochs=epochs, steps_per_epoch=steps, callbacks=[best], verbose=0, shuffle=False)
    teacher.model.trainable = True  # Keras's `Distiller` leaves its teacher frozen.
    return best.trained()


# -- serving ---------------------------------------------------------------------------------------------------


def answering(model: SequenceModel, folder: Path) -> Callable[[dict[str, np.ndarray]], list[np.ndarray]]:
    """Exports the model; what it returns answers a request in a TF1 session."""
    model.export_top_k(folder, top_k=TOP_K)
    session = tf.compat.v1.Session(graph=tf.Graph())
    with session.graph.as_default():
        signature = tf.compat.v1.saved_model.load(session, ["serve"], str(folder)).signature_def["recommend"]
    names = sorted(signature.inputs)
    outputs = [signature.outputs[name].name for name in ("items", "scores")]
    call = session.make_callable(outputs, [signature.inputs[name].name for name in names])
    return lambda request: call(*(request[name] for name in names))


def request(case: Problem, users: int, seed: int) -> dict[str, np.ndarray]:
    """Histories of the longest length, of test users as far as there are so many."""
    rng = np.random.default_rng(seed)
    vocabulary, length = case.vocabulary, max(SHOTS)
    made: dict[str, Any] = {
        "history": rng.choice(vocabulary.item_ids[1:], (users, length)),
        "history_length": np.full(users, length, np.int32),
    }
    for name, spec in vocabulary.raw_signature("user").items():
        shape = [users, *(size or 1 for size in spec.shape[1:])]
        made[name] = (
            np.full(shape, "", object) if spec.dtype == tf.string else np.zeros(shape, spec.dtype.as_numpy_dtype)
        )
    return made


def timed(case: Problem, models: dict[str, SequenceModel], turns: int, seed: int) -> report.Rows:
    """Milliseconds of the teacher and the student for each size of a request, in turns."""
    with tempfile.TemporaryDirectory() as folder:
        answer = {name: answering(model, Path(folder) / name) for name, model in models.items()}
        rows: report.Rows = []
        for users in BATCHES:
            asked = request(case, users, seed)
            seconds: dict[str, list[float]] = {name: [] for name in models}
            for turn in range(turns + 5):
                for name, call in answer.items():
                    start = time.perf_counter()
                    call(asked)
                    if turn >= 5:  # The first ones warm up.
                        seconds[name].append(time.perf_counter() - start)
            teacher_ms, student_ms = (1e3 * median(seconds[name]) for name in ("teacher", "student"))
            row = {"data": case.name, "users": users, "teacher_ms": teacher_ms, "student_ms": student_ms}
            rows.append({**row, "ratio": teacher_ms / student_ms})
    return rows


# -- the story -------------------------------------------------------------------------------------------------


def kept(file: Path, train: Callable[[], Trained]) -> Trained:
    """What an interrupted run has trained, or what is trained and written now."""
    figures = file.with_suffix(".json")
    if not figures.exists():
        found = train()
        with write_whole(file) as partial:
            found.recommender.save(partial)
        with write_whole(figures) as partial:  # Last: it says that all is there.
            partial.write_text(json.dumps({"validation": found.validation, "settings": found.settings}))
    return Trained(keras.models.load_model(file), **json.loads(figures.read_text()))


def train_all(
    case: Problem, budget: Budget, seed: int, parts: Path, console: Console
) -> tuple[dict[str, Trained], str]:
    """The teacher and every student of one data set, and which distilled one validation users like best."""
    epochs, steps = budget.epochs, budget.steps

    def train(name: str, function: Callable[..., Trained], *arguments: Any) -> Trained:
        start = time.perf_counter()
        file = parts / f"{case.name}-{seed}-{re.sub('[^a-z0-9]+', '-', name.lower())}.keras"
        found = kept(file, lambda: function(case, *arguments, steps, seed))
        seconds = time.perf_counter() - start
        console.print(f"  {name}: {found.validation:.4f} on validation users, {seconds:.0f} s", highlight=False)
        return found

    trained = {"teacher": train("teacher", on_windows, TEACHER, case.teacher, "teacher", epochs["teacher"])}
    teacher = Encoded(trained["teacher"].recommender)
    alone = []
    for name in ("weak",) if budget.quick else REGULARIZED:
        alone += [
            train(f"student alone on windows, {name}", on_windows, STUDENT, name, "student", epochs["alone"]),
            train(f"student alone on episodes, {name}", distilled, teacher, NO_TEACHER, name, epochs["alone"]),
        ]
    trained["student alone"] = max(alone, key=lambda one: one.validation)
    compared = ways(TEACHER["embedding_dim"], seed)
    if budget.quick:
        compared = dict(list(compared.items())[-1:])
    for name, way in compared.items():
        trained[name] = train(name, distilled, teacher, way, None, epochs["distilled"])
    trained["keras.distillation"] = train("keras.distillation", distilled_by_keras, teacher, epochs["distilled"])
    return trained, max(compared, key=lambda name: trained[name].validation)


def quality(table: ColdStartTable, trained: dict[str, Trained]) -> report.Rows:
    """nDCG on test users, a row for each recommender."""
    metric = metric_of(table)
    rows: report.Rows = []
    for name in table.per_user["learner"].unique(maintain_order=True):
        own = table.per_user.filter(pl.col("learner") == name)
        one = trained.get(name)
        row: dict[str, Any] = {"learner": name}
        row |= {f"K={k}": float(own.filter(pl.col("K") == k)[metric].to_numpy().mean()) for k in SHOTS}
        row |= {"mean": float(by_user(table, name).mean()), "validation": None, "parameters": None}
        if one is not None:
            row |= {"validation": one.validation, "parameters": int(one.recommender.count_params())}
        rows.append(row)
    return rows


def gains(table: ColdStartTable, seed: int) -> report.Rows:
    """What each recommender gains over the student alone, with an interval over users."""
    alone, teacher = by_user(table, "student alone"), by_user(table, "teacher").mean()
    rows: report.Rows = []
    for name in table.per_user["learner"].unique(maintain_order=True):
        own = by_user(table, name)
        gain = paired_bootstrap(own, alone, seed=seed)
        row = {"learner": name, "over_alone": gain.mean, "low": gain.low, "high": gain.high}
        rows.append({**row, "of_teacher": float(own.mean() / teacher)})
    return rows


def held_to(chosen: str, rows: report.Rows, gained: report.Rows, speed: report.Rows) -> dict[str, float]:
    """The figures that the targets are about, of the `chosen` distilled student."""
    sizes = {row["learner"]: row["parameters"] for row in rows}
    own = next(row for row in gained if row["learner"] == chosen)
    return {
        "gain over the student alone, lower end": own["low"],
        "share of the teacher's nDCG@20": own["of_teacher"],
        "share of the teacher's parameters": sizes[chosen] / sizes["teacher"],
        f"times faster with {TARGET_BATCH} users": next(row["ratio"] for row in speed if row["users"] == TARGET_BATCH),
    }


BOUNDS = {
    "gain over the student alone, lower end": ("at least", 0.0),
    "share of the teacher's nDCG@20": ("at least", 0.97),
    "share of the teacher's parameters": ("at most", 0.1),
    f"times faster with {TARGET_BATCH} users": ("at least", 5.0),
}


def main(arguments: Sequence[str] | None = None) -> int:
    options = report.read_options(NAME, "What a small student keeps of a large teacher, and how fast it is.", arguments)
    console = report.console()
    tf.get_logger().setLevel(logging.ERROR)  # It takes the first trace of each model for retracing one function.
    if options.data is None or options.quick:
        console.print(f"MovieLens-1M is left out: {'a quick run' if options.quick else 'no `--data`'}.")
    budget = Budget(EPOCHS, STEPS, TURNS, False)
    if options.quick:
        budget = Budget(dict.fromkeys(EPOCHS, 1), 4, 10, True)
    runs: dict[str, list[report.Rows]] = {}
    seen: dict[str, list[float]] = {}
    for seed in range(options.seeds):
        for case in problems(options.data, seed, options.quick):
            console.print(f"seed {seed}, {case.name}: {case.vocabulary.n_items - 1:,} items", highlight=False)
            trained, chosen = train_all(case, budget, seed, options.parts, console)
            recommenders = {name: one.recommender for name, one in trained.items()}
            table = judged(recommenders, case.split.test, case, train=case.split.train, seed=seed)
            rows, gained = quality(table, trained), gains(table, seed)
            speed = timed(
                case, {"teacher": recommenders["teacher"], "student": recommenders[chosen]}, budget.turns, seed
            )
            chosen_rows = [{"seed": seed, "alone": trained["student alone"].settings, "distilled": chosen}]
            for title, found in (
                (f"{case.name}: nDCG@{TOP_K} on test users", rows),
                (f"{case.name}: gains over the student alone", gained),
                (f"{case.name}: exported graphs", speed),
                (f"{case.name}: chosen on validation users, seed {seed}", chosen_rows),
            ):
                runs.setdefault(title, []).append(found)
            for name, value in held_to(chosen, rows, gained, speed).items():
                seen.setdefault(f"{case.name}: {name}", []).append(value)
    # Medians over seeds, as elsewhere.
    figures = {title: [report.merged(list(same)) for same in zip(*found, strict=True)] for title, found in runs.items()}
    targets = [report.Target(name, median(found), *BOUNDS[name.split(": ")[1]]) for name, found in seen.items()]
    config = {
        "data": [case.split(": ")[0] for case in figures if case.endswith("exported graphs")],
        "min_item_users": MIN_ITEM_USERS,
        "shots": SHOTS,
        "query": QUERY,
        "teacher": TEACHER,
        "student": STUDENT,
        "regularized": REGULARIZED,
        "windows": WINDOWS,
        "episodes": EPISODES,
        "learning_rate": LEARNING_RATE,
        "epochs": budget.epochs,
        "steps_per_epoch": budget.steps,
        "patience": PATIENCE,
        "turns": budget.turns,
    }
    status = report.finish(options, config=config, figures=figures, targets=targets, console=console)
    shutil.rmtree(options.parts, ignore_errors=True)
    return status


if __name__ == "__main__":
    report.run(main)
