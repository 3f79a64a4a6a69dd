"""The whole story on one page: data, split, episodes, learner, table, export.

Every stage reads and writes one run folder:

    config.yaml  environment.json  checkpoint/  learner.keras  rival.keras  history.json
    metrics.parquet  users.parquet  metrics.json  examination/  predictions.parquet (if asked)
    new_items.parquet (if added)
    export/NAME/VERSION/
    tuning/  trials.parquet  best.yaml  plots/  tensorboard/  (of a search)

A stage that was interrupted is run again with the same folder and goes on where it stopped.
"""

import difflib
import functools
import json
import os
import platform
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any

import keras
import keras_tuner
import polars as pl
import yaml

from tfmetarec import data, evaluation, export, tasks, transfer, tuning
from tfmetarec.config import Config, ConfigError, DistillationConfig, load, value_of, with_values
from tfmetarec.data.whole_file import write_whole
from tfmetarec.evaluation.drawing import save_all
from tfmetarec.meta import Checkpoint, GradientLearner, MetaLearner
from tfmetarec.meta.losses import SampledSoftmax
from tfmetarec.parts import INNER, check_parts, find, naming_options
from tfmetarec.search_space import search_space

NEW_ITEMS = "new_items.parquet"
EXAMINATION = "examination"
RATES = ("meta.inner_learning_rate", "training.learning_rate")
# A search may go on longer than was meant at first.
EXTENDABLE = ("tuning.trials", "tuning.max_minutes")
PACKAGES = ("tfmetarec", "tensorflow", "keras", "tensorflow-recommenders", "numpy", "polars", "implicit")


@dataclass(frozen=True)
class Prepared:
    """The data of an experiment, split, with the vocabulary of its training part."""

    split: data.Split
    vocabulary: data.Vocabulary

    @functools.cached_property
    def floors(self) -> dict[str, evaluation.Recommender]:
        """The baselines, fitted on the training part once."""
        return evaluation.fitted_floors(self.split.train, self.vocabulary, seed=self.split.seed or 0)


def check(config: Config, run: Path | None = None) -> None:
    """Finds the mistakes that show before any data is loaded.

    Args:
        config: of the experiment.
        run: folder that the run will have, if it is known.

    Raises:
        ValueError: if there is no such model or algorithm, it has no such option, or the folder holds a run
            of another configuration.
    """
    check_parts(config)
    wanted = config.distillation
    if wanted.teacher is None and wanted != DistillationConfig():
        raise ConfigError("keys of `distillation` need a teacher: give `distillation.teacher`, or leave them out.")
    if wanted.teacher is not None:
        _soft_loss(config)
        if run is None or not (run / "learner.keras").exists():
            _check_teacher(Path(wanted.teacher), config)
    if run is not None and _begun(run):
        _check_same(config, run)


def prepare(config: Config) -> Prepared:
    """Loads the data, holds out users (and items, if asked), and learns the vocabulary from what is left.

    Raises:
        ValueError: if `check` finds a mistake, or the users who are held out have too few interactions to be
            judged.
    """
    check_parts(config)
    with naming_options("data.options", config.data.options):
        interactions = data.load(config.data.source, **config.data.options)
    shares: dict[str, Any] = {"test_share": config.split.test_share, "validation_share": config.split.validation_share}
    if config.split.cold_item_share:
        split = data.every_state(
            interactions,
            **shares,
            item_share=config.split.cold_item_share,
            warm_rows=config.evaluation.query,
            min_item_users=config.vocabulary.min_item_users,
            seed=config.seed,
        )
    else:
        split = data.cold_users(interactions, **shares, seed=config.seed)
    vocabulary = data.Vocabulary.fit(split.train, **config.vocabulary.model_dump())
    _check_lengths("validation", split.validation, vocabulary, config)
    _check_lengths("test", split.test, vocabulary, config)
    return Prepared(split, vocabulary)


def build_episodes(config: Config, prepared: Prepared) -> tasks.Episodes:
    """The episodes of training users."""
    options = config.tasks.model_dump()
    if options["negatives"] is None and prepared.vocabulary.specs.feedback == "implicit":
        options["negatives"] = 2048
    steps = config.training.steps_per_epoch
    return tasks.user_episodes(
        prepared.split.train, prepared.vocabulary, **options, steps_per_epoch=steps, seed=config.seed
    )


def build_learner(config: Config, vocabulary: data.Vocabulary, algorithm: str | None = None) -> MetaLearner:
    """The configured model inside the configured algorithm (or another one), compiled."""
    chosen = config.model
    with naming_options("model.options", chosen.options):
        model = find("models", chosen.kind)(
            vocabulary,
            chosen.embedding_dim,
            dropout=chosen.dropout,
            id_dropout=chosen.id_dropout,
            seed=config.seed,
            **chosen.options,
        )
    meta = config.meta
    options = {} if algorithm not in (None, meta.algorithm) else meta.options
    kind = find("meta", algorithm or meta.algorithm)
    inner = {name: getattr(meta, name) for name in INNER} if issubclass(kind, GradientLearner) else {}
    with naming_options("meta.options", options):
        learner = kind(model, **inner, contrast=meta.contrast, seed=config.seed, **options)
    if config.training.temperature is not None and learner.feedback == "explicit":
        raise ConfigError("`training.temperature` is that of choices, and these data are ratings: leave it unset.")
    learner.compile(optimizer=_optimizer(config), loss=_loss(config))
    return learner


def _optimizer(config: Config) -> keras.optimizers.Optimizer:
    return keras.optimizers.AdamW(config.training.learning_rate, weight_decay=config.training.weight_decay)


def _loss(config: Config) -> Any:
    training = config.training
    return training.loss if training.temperature is None else SampledSoftmax(training.temperature)


def _soft_loss(config: Config) -> Any:
    """The configured loss that compares with the teacher; `None` for the one that fits the feedback."""
    wanted = config.distillation
    if wanted.loss is None and not wanted.options:
        return None
    losses = [name for name in transfer.SOFT_LOSSES if name == wanted.loss]
    if not losses:
        nearest = difflib.get_close_matches(wanted.loss or "", transfer.SOFT_LOSSES, n=1)
        hint = f"did you mean {nearest[0]!r}?" if nearest else f"There are: {', '.join(transfer.SOFT_LOSSES)}."
        raise ConfigError(
            f"`distillation.loss` must be a class of `tfmetarec.transfer`; {hint} Received: {wanted.loss!r}"
        )
    with naming_options("distillation.options", wanted.options):
        return getattr(transfer, losses[0])(**wanted.options)


def _check_teacher(path: Path, config: Config) -> None:
    if not (path / "learner.keras").exists() and not (path.suffix == ".keras" and path.exists()):
        raise ConfigError(
            f"`distillation.teacher` must be a run folder with a finished learner, or a .keras file. Received: {path}"
        )
    if not (path / "config.yaml").exists():
        return
    teacher = load(path / "config.yaml")
    for name in ("data", "split", "seed"):  # Else it may have learned from users that the student is judged on.
        there, here = getattr(teacher, name), getattr(config, name)
        if there != here:
            raise ConfigError(
                f"the teacher must have held out the same users: `{name}` is {there!r} in {path} and {here!r} here."
            )


def load_teacher(config: Config, vocabulary: data.Vocabulary) -> transfer.LearnerTeacher:
    """What the learner is distilled from, for a student of this vocabulary."""
    path = Path(str(config.distillation.teacher))
    teacher = keras.models.load_model(path / "learner.keras" if path.is_dir() else path)
    return transfer.translated_teacher(teacher, vocabulary, unknown_items=config.distillation.unknown_items)


def train(config: Config, run: Path, prepared: Prepared, *, verbose: int | str = "auto") -> MetaLearner:
    """Trains the learner, from its teacher if it has one; takes up what an earlier call with this folder left."""
    _refuse_crossing(run)
    return _train_one(config, run, prepared, "learner", None, verbose)


def train_rival(config: Config, run: Path, prepared: Prepared, *, verbose: int | str = "auto") -> MetaLearner | None:
    """Trains the rival on the same episodes, if one is configured."""
    rival = config.meta.rival
    return _train_one(config, run, prepared, "rival", rival, verbose) if rival else None


def _train_one(
    config: Config, run: Path, prepared: Prepared, name: str, algorithm: str | None, verbose: int | str
) -> MetaLearner:
    finished = run / f"{name}.keras"
    if finished.exists():
        return load_learner(finished)
    keras.utils.set_random_seed(config.seed)
    learner = build_learner(config, prepared.vocabulary, algorithm)
    monitor, mode = evaluation.monitor_of(learner.feedback, config.training.monitor)
    completed = config.zero_shot
    is_completed = name == "learner" and bool(completed.items or completed.user_features)
    if is_completed:  # What does not go shows now, and not after training.
        _complete(config, learner, prepared.split.validation)
    fitted = _taught(config, learner) if name == "learner" else learner
    checkpoint = Checkpoint(run / "checkpoint" / name, monitor=monitor, mode=mode, patience=config.training.patience)
    callbacks: list[keras.callbacks.Callback] = [_validation(config, prepared), checkpoint]
    if config.training.tensorboard:
        callbacks.append(keras.callbacks.TensorBoard(run / "tensorboard" / name))
    episodes = build_episodes(config, prepared)
    fitted.fit(episodes, epochs=config.training.epochs, callbacks=callbacks, verbose=verbose)
    fitted.load_weights(checkpoint.best_weights)
    if is_completed:
        learner = _complete(config, learner, prepared.split.train)
    _write(run / f"{name}-history.json", json.dumps(checkpoint.history, indent=1))
    save_learner(learner, finished)
    return learner


def _taught(config: Config, learner: MetaLearner) -> Any:
    """The learner with its teacher, if it is to have one: what `fit` is called on."""
    wanted = config.distillation
    if wanted.teacher is None:
        return learner
    assert learner.vocabulary is not None
    distiller = transfer.Distiller(
        learner,
        load_teacher(config, learner.vocabulary),
        soft_loss=_soft_loss(config),
        alpha=wanted.alpha,
        candidates=wanted.candidates,
    )
    distiller.compile(optimizer=_optimizer(config), loss=_loss(config))
    return distiller


def _validation(config: Config, prepared: Prepared) -> evaluation.ColdStartValidation:
    """What decides, at the end of every epoch."""
    judged, training = config.evaluation, config.training
    return evaluation.ColdStartValidation(
        prepared.split.validation,
        shots=judged.shots if training.monitor_shots is None else training.monitor_shots,
        query=judged.query,
        top_k=judged.top_k,
        order=config.tasks.order,
        metric=training.monitor,
        seed=config.seed,
    )


def _complete(config: Config, learner: MetaLearner, interactions: data.Interactions) -> MetaLearner:
    """The learner with the prototypes that are configured."""
    wanted = config.zero_shot
    return transfer.zero_shot(
        learner, interactions, items=wanted.items, user_features=wanted.user_features, seed=config.seed
    )


def _refuse_crossing(run: Path) -> None:
    """A run across domains has another split: these users of one domain would be those it was trained on."""
    if (run / "method").exists():
        raise ValueError(f"{run} crosses domains: `tfmetarec transfer --run {run}` has its table.")


def evaluate(
    config: Config,
    run: Path,
    prepared: Prepared,
    learners: dict[str, MetaLearner],
    *,
    predictions: bool = False,
    progress: Callable[[str, int], None] | None = None,
) -> evaluation.ColdStartTable:
    """The final table on test users, written into the run folder."""
    judged = config.evaluation
    table = evaluation.cold_start(
        {**(prepared.floors if judged.floors else {}), **learners},
        prepared.split.test,
        vocabulary=prepared.vocabulary,
        shots=judged.shots,
        query=judged.query,
        top_k=judged.top_k,
        order=config.tasks.order,
        predictions=run / "predictions.parquet" if predictions else False,
        progress=progress,
        seed=config.seed,
    )
    write_table(run, table)
    return table


def examine(
    config: Config,
    run: Path,
    prepared: Prepared,
    learners: dict[str, MetaLearner],
    *,
    progress: Callable[[str], None] | None = None,
) -> evaluation.Examination:
    """What means do not show, of the last of the learners and its best floor, written into the run folder."""
    judged = config.evaluation
    found = evaluation.examine(
        {**(prepared.floors if judged.floors else {}), **learners},
        prepared.split,
        prepared.vocabulary,
        list(learners)[-1],
        learners=list(learners),
        shots=max(judged.shots),
        query=judged.query,
        top_k=judged.top_k,
        order=config.tasks.order,
        positive_rating=judged.positive_rating,
        steps=judged.adaptation_steps,
        progress=progress,
        seed=config.seed,
    )
    found.save(run / EXAMINATION)
    return found


def judged_table(run: Path) -> evaluation.ColdStartTable:
    """The table that `evaluate` has left in a run folder.

    Raises:
        ValueError: if it has not, or not all of it.
    """
    if not (run / "metrics.parquet").exists():
        raise ValueError(f"{run} has nothing to report yet: `tfmetarec evaluate {run}` makes its table.")
    with _judged_anew(run):
        per_user, summary = pl.read_parquet(run / "users.parquet"), pl.read_parquet(run / "metrics.parquet")
        notes = json.loads((run / "metrics.json").read_text())["notes"]
    feedback = "explicit" if "mae" in per_user.columns else "implicit"
    return evaluation.ColdStartTable(summary, per_user, feedback, tuple(notes))


def examination(run: Path) -> evaluation.Examination | None:
    """What `examine` has left in a run folder; `None` if it has not.

    Raises:
        ValueError: if not all of it is there.
    """
    with _judged_anew(run):
        return evaluation.Examination.load(run / EXAMINATION)


@contextmanager
def _judged_anew(run: Path) -> Iterator[None]:
    """Says how to get what cannot be read."""
    try:
        yield
    except (OSError, pl.exceptions.PolarsError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"what `evaluate` left in {run} cannot be read; run it again. Received: {reason}") from error


def compare(table: evaluation.ColdStartTable, a: str, b: str, metric: str | None = None, *, seed: int = 0) -> list[str]:
    """A verdict in words on two learners of a table at each K, by a paired bootstrap over users.

    Raises:
        ValueError: if the table has no such learner.
    """
    check_compared((a, b), table.per_user["learner"].unique(maintain_order=True).to_list())
    higher = table.metric_name(metric) not in evaluation.LOWER_IS_BETTER
    said = []
    for k in table.per_user["K"].unique(maintain_order=True):
        found = table.compare(a, b, k, metric, seed=seed)
        said.append(f"K={k}: {found.verdict(a, b, higher_is_better=higher)} (p = {found.p_value:.2g})")
    return said


def check_metric(config: Config, vocabulary: data.Vocabulary, metric: str | None) -> None:
    """Refuses a metric that the table of a run will not have.

    Raises:
        ValueError: naming those that it will.
    """
    if metric is not None:
        evaluation.check_metric(metric, evaluation.metric_names(vocabulary, config.evaluation.top_k))


def check_compared(names: Sequence[str], known: Sequence[str]) -> None:
    """Refuses names that are not those of learners in the table.

    Raises:
        ValueError: with the nearest one that is.
    """
    for name in names:
        if name not in known:
            folded = {one.casefold(): one for one in known}
            nearest = difflib.get_close_matches(name.casefold(), folded, n=1)
            hint = f"did you mean {folded[nearest[0]]!r}?" if nearest else f"there are {', '.join(known)}."
            raise ValueError(f"`compare` must name learners of the table; {hint} Received: {name!r}")


def hyper_model(config: Config, prepared: Prepared) -> tuning.MetaHyperModel:
    """The configured learner with `tuning.space` to search, for any tuner of keras-tuner.

    What is searched has the names of keys; the first values are those of the configuration.

    Raises:
        ValueError: as `search_space`.
    """
    config, space = search_space(config)
    if prepared.vocabulary.specs.feedback == "explicit":  # There is no softmax.
        space.pop("training.temperature", None)
    defaults = {name: value_of(config, name) for name in space}
    unset = {"training.temperature": 1.0, "meta.options.adaptation_steps": config.meta.inner_steps}
    if not isinstance(rate := config.meta.inner_learning_rate, dict):
        unset |= {name: rate for name in space if name.startswith("meta.inner_learning_rate.")}
    defaults |= {name: value for name, value in unset.items() if name in defaults and defaults[name] is None}

    def build(values: dict[str, Any]) -> Any:
        chosen = with_values(config, values)
        check_parts(chosen)
        return _taught(chosen, build_learner(chosen, prepared.vocabulary))

    return tuning.MetaHyperModel(
        build,
        lambda values: build_episodes(with_values(config, values), prepared),
        space=space,
        defaults=defaults,
        validation=_validation(config, prepared),
        seed=config.seed,
    )


def _objective(config: Config, prepared: Prepared) -> keras_tuner.Objective:
    return keras_tuner.Objective(*evaluation.monitor_of(prepared.vocabulary.specs.feedback, config.training.monitor))


def searched(config: Config, run: Path, prepared: Prepared) -> tuning.MetaTuner:
    """The search in a run folder, with its trials, to look at."""
    wanted = config.tuning
    epochs = wanted.epochs or config.training.epochs
    oracle = tuning.make_oracle(
        wanted.tuner, _objective(config, prepared), trials=wanted.trials, epochs=epochs, options=wanted.options
    )
    return tuning.MetaTuner(oracle, hyper_model(config, prepared), folder=run / "tuning", epochs=epochs)


@dataclass(frozen=True)
class Tuned:
    """What a search has left in the run folder.

    Attributes:
        tuner: with the trials.
        trials: a row for each, as `tuning.trials_table` has them.
        best: the best trial.
        config: with which `train` does what the best trial did.
        file: `best.yaml`, with the same.
        plots: files of pictures; none without matplotlib.
    """

    tuner: tuning.MetaTuner
    trials: pl.DataFrame
    best: Any
    config: Config
    file: Path
    plots: list[Path]


def tune(
    config: Config,
    run: Path,
    prepared: Prepared,
    *,
    workers: int = 1,
    tell: Callable[[str, int, float], None] | None = None,
    ended: Callable[[tuning.MetaTuner, Any], None] | None = None,
) -> Tuned | None:
    """Searches for the best configuration on validation users; takes up what an earlier call with this folder left.

    Args:
        config: of the experiment.
        run: its folder, from `start_run`. Workers on several machines share it.
        prepared: by `prepare`.
        workers: processes that train at the same time.
        tell: called after every epoch with the trial's id, the epoch and the objective.
        ended: called after every trial with the tuner and the trial.

    Returns:
        What was found, or `None` in a worker, whose chief has it.
    """
    wanted = config.tuning
    hypermodel = hyper_model(config, prepared)
    objective = _objective(config, prepared)

    def keep(tuner: tuning.MetaTuner, trial: Any) -> None:
        with write_whole(run / "trials.parquet") as partial:
            tuning.trials_table(tuner).write_parquet(partial)
        if ended is not None:
            ended(tuner, trial)

    tuner = tuning.search(
        hypermodel,
        objective=objective,
        folder=run / "tuning",
        tuner=wanted.tuner,
        trials=wanted.trials,
        epochs=wanted.epochs or config.training.epochs,
        patience=config.training.patience,
        prune=wanted.prune,
        max_minutes=wanted.max_minutes,
        seed=config.seed,
        options=wanted.options,
        workers=workers,
        worker_command=[sys.executable, "-m", "tfmetarec", "tune", "--run", str(run)],
        tell=tell,
        ended=keep,
    )
    if tuning.role() == "worker":
        return None
    trials, best = tuning.trials_table(tuner), tuning.best_trial(tuner)
    found = with_values(
        search_space(config)[0],
        {**hypermodel.values(best.hyperparameters.copy()), "training.epochs": len(tuning.epochs_of(tuner, best))},
    )
    _write(run / "best.yaml", f"# {objective.name} {best.score:.6g} on validation users.\n{found.to_yaml()}")
    tuning.write_tensorboard(tuner, run / "tensorboard")
    try:
        plots = save_all(tuning.drawings(tuner, RATES, seed=config.seed), run / "plots")
    except ImportError:  # An extra.
        plots = []
    return Tuned(tuner, trials, best, found, run / "best.yaml", plots)


def new_items(run: Path, learner: MetaLearner, files: Sequence[Path] = ()) -> pl.DataFrame | None:
    """The items added to a run's catalogue: by earlier exports, and by `files`, whose row of an id replaces older ones.

    Raises:
        ValueError: if a file cannot be read, or its items do not fit the catalogue.
    """
    kept = run / NEW_ITEMS
    vocabulary = learner.vocabulary
    assert vocabulary is not None  # Every learner of a run has one.
    frames = [vocabulary.read_new_items(path) for path in files]
    if kept.exists():
        try:
            frames.insert(0, vocabulary.read_new_items(kept))
        except data.DataError as error:
            raise ValueError(f"{kept} holds the items that were added before; edit or delete it: {error}") from error
    return pl.concat(frames, how="diagonal").unique("item_id", keep="last", maintain_order=True) if frames else None


def export_learner(
    config: Config,
    run: Path,
    learner: MetaLearner,
    to: Path | None = None,
    *,
    add_items: Sequence[Path] = (),
    dry_run: bool = False,
) -> export.Export:
    """The next served version of the learner, under `to` or the run folder.

    Items added are kept in the run folder, so that later versions have them too. The data are prepared again where
    validation users are needed: for a two-stage search, or fewer bits.
    """
    wanted = config.export
    holdout = None
    if wanted.search != "exact" or wanted.weights != "float32":
        _refuse_crossing(run)
        judged = config.evaluation
        holdout = export.Holdout(
            prepare(config).split.validation, judged.shots, judged.query, config.tasks.order, config.seed
        )
    added = new_items(run, learner, add_items)
    published = export.saved_model(
        learner,
        to or run / "export" / config.name,
        top_k=wanted.top_k,
        warmup_batches=wanted.warmup_batches,
        weights=wanted.weights,
        search=export.TwoStage(wanted.recall, wanted.clusters, config.seed) if wanted.search == "two_stage" else None,
        holdout=holdout,
        new_items=added,
        keep=wanted.keep,
        dry_run=dry_run,
    )
    if added is not None and not dry_run:
        with write_whole(run / NEW_ITEMS) as partial:
            added.write_parquet(partial)
    return published


def start_run(config: Config, run: Path | None = None) -> Path:
    """Makes the run folder, or checks that an existing one was made with the same configuration.

    A folder in which nothing has been trained yet takes any configuration.

    Raises:
        ValueError: as `check`.
    """
    check(config, run)
    run = run or Path("runs") / f"{config.name}-{datetime.now():%Y%m%d-%H%M%S}"
    if _begun(run):
        if (text := config.to_yaml()) != (run / "config.yaml").read_text():  # A search that goes on for longer.
            _write(run / "config.yaml", text)
        return run
    run.mkdir(parents=True, exist_ok=True)
    _write(run / "environment.json", json.dumps(environment(config.seed), indent=1))
    _write(run / "config.yaml", config.to_yaml())
    return run


def open_run(run: Path, overrides: Sequence[str] = ()) -> Config:
    """The configuration of an existing run.

    Args:
        run: its folder.
        overrides: of keys of `export`, which alone can change once there is a learner.

    Raises:
        ValueError: if the folder is not a run, or another key would change.
    """
    if not (run / "config.yaml").exists():
        raise ValueError(f"{run} is not a run folder: it has no config.yaml.")
    for override in overrides:
        if not override.startswith("export."):
            raise ConfigError(f"only keys of `export` can be changed after training. Received: {override!r}")
    return load(run / "config.yaml", overrides)


def learners(config: Config, run: Path) -> dict[str, MetaLearner]:
    """The finished learners of a run by their names in tables, the rival first.

    Raises:
        ValueError: if one is not finished.
    """
    _refuse_crossing(run)
    learner = load_learner(run / "learner.keras")
    name = type(learner).__name__
    if config.distillation.teacher is not None:
        name += ", distilled"
    if config.zero_shot.items or config.zero_shot.user_features:
        name += ", prototypes"
    if config.meta.rival is None:
        return {name: learner}
    rival = load_learner(run / "rival.keras")
    rival_name = type(rival).__name__
    return {rival_name if rival_name != name else f"{rival_name} (rival)": rival, name: learner}


def load_learner(path: Path) -> MetaLearner:
    """A learner that a run has finished training.

    Raises:
        ValueError: if it has not.
    """
    if not path.exists():
        raise ValueError(f"{path.parent} has no finished {path.stem} yet; `tfmetarec train` with this run goes on.")
    return keras.models.load_model(path)


def environment(seed: int) -> dict[str, Any]:
    """Seed, versions and machine, as every run and benchmark records them."""
    versions = {"python": platform.python_version(), **{name: installed_version(name) for name in PACKAGES}}
    machine = {"system": platform.system(), "processor": platform.machine(), "cores": os.cpu_count()}
    return {"seed": seed, "versions": versions, "machine": machine}


def _check_lengths(part: str, interactions: data.Interactions, vocabulary: data.Vocabulary, config: Config) -> None:
    """Refuses shots and a query that no user has enough interactions for, and says which would do."""
    judged = config.evaluation
    needed = max(judged.shots) + judged.query
    table = interactions.table
    if vocabulary.specs.feedback == "implicit":  # Nothing could recommend what is not in the catalogue.
        table = table.filter(pl.col("item_id").is_in(pl.Series(vocabulary.item_ids[1:].tolist()).implode()))
    met = table.group_by("user_id").agg(pl.col("item_id").n_unique())
    longest = int(met["item_id"].to_numpy().max(initial=0))
    if 0 < longest < needed:
        # A quarter each: the users who have half as many interactions as the busiest one stay in, too.
        query = min(judged.query, max(1, longest // 4))
        most = min(query, longest - query)
        shots = ",".join(str(k) for k in judged.shots if k <= most) or "0"
        raise ValueError(
            f"{part} users have at most {longest} interactions, and evaluation.shots and evaluation.query need "
            f"{needed} together; try --set evaluation.shots=[{shots}] --set evaluation.query={query}"
        )


def _begun(run: Path) -> bool:
    """Whether anything was trained in a folder that would be lost, or mixed up, under another configuration."""
    trained = any((run / name).exists() for name in ("checkpoint", "learner.keras", "rival.keras", "method", "tuning"))
    return trained and (run / "config.yaml").exists()


def _check_same(config: Config, run: Path) -> None:
    there = _flat(yaml.safe_load((run / "config.yaml").read_text()))
    here = _flat(config.model_dump(mode="json"))
    for key in [*here, *there]:
        if key in EXTENDABLE:
            continue
        before, now = there.get(key, "unset"), here.get(key, "unset")
        if before != now:
            raise ValueError(
                f"{run} holds a run with another configuration: `{key}` is {before} there and {now} here; "
                "take a new folder, or that run's own configuration."
            )


def _flat(values: Any, path: str = "") -> dict[str, Any]:
    """Sections as dotted keys: {"meta": {"inner_steps": 3}} -> {"meta.inner_steps": 3}."""
    if not isinstance(values, dict) or not values:
        return {path: values}
    return {k: v for key, value in values.items() for k, v in _flat(value, f"{path}.{key}".lstrip(".")).items()}


def write_table(run: Path, table: evaluation.ColdStartTable) -> None:
    """Leaves a table in a run folder, as `judged_table` reads it."""
    for name, frame in (("metrics", table.summary), ("users", table.per_user)):
        with write_whole(run / f"{name}.parquet") as partial:
            frame.write_parquet(partial)
    _write(run / "metrics.json", json.dumps({"notes": table.notes, "rows": table.summary.to_dicts()}, indent=1))


def save_learner(learner: MetaLearner, path: Path) -> None:
    """Writes a learner, whole or not at all."""
    with write_whole(path) as partial:
        learner.save(partial)


def _write(path: Path, text: str) -> None:
    with write_whole(path) as partial:
        partial.write_text(text)
