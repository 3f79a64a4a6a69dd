"""One YAML file per experiment, checked before anything starts; an unknown key is told the nearest right one."""

import difflib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError


class ConfigError(ValueError):
    """A configuration that cannot be used, in one sentence."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


def _positive(rates: float | dict[str, float]) -> float | dict[str, float]:
    for rate in rates.values() if isinstance(rates, dict) else (rates,):
        if not rate > 0:
            raise ValueError("must be greater than 0")
    return rates


class DataConfig(_Section):
    source: str = Field("completejourney", description="Name of a data source, see `tfmetarec datasets`.")
    options: dict[str, Any] = Field({}, description="Arguments of that source's `load`, e.g. `folder`.")


class SplitConfig(_Section):
    test_share: float = Field(0.2, gt=0, lt=1, description="Share of users held out for the final table.")
    validation_share: float = Field(0.1, gt=0, lt=1, description="Share of users that choices are made on.")
    cold_item_share: float = Field(
        0.0, ge=0, lt=1, description="Share of items held out too, so that `evaluate` judges all four cold states."
    )


class VocabularyConfig(_Section):
    min_item_users: int = Field(10, ge=1, description="Items that fewer users met are not in the catalogue.")
    max_list_length: int = Field(8, ge=1, description="Longest list or text kept, in entries.")
    max_words: int = Field(2000, ge=1, description="Words of a text feature that get a row of their own.")
    word_buckets: int = Field(0, ge=0, description="Rows that all other words of a text share by hash.")
    min_category_users: int = Field(
        5, ge=1, description="Values of users' categories that fewer users have say nothing, as a postal code would."
    )


class TasksConfig(_Section):
    support: tuple[int, int] = Field((0, 20), description="Least and most support interactions in training.")
    query: int = Field(20, ge=1, description="Most query interactions in training.")
    tasks_per_batch: int = Field(32, ge=1, description="Users in a meta-batch.")
    negatives: int | None = Field(None, ge=0, description="Sampled negatives; unset: 2048 for implicit feedback.")
    negative_sampling: Literal["popularity", "uniform", "category"] = Field(
        "popularity", description="How negatives are drawn."
    )
    order: Literal["time", "random"] | None = Field(None, description="Which interactions come first.")
    early: float = Field(16.0, ge=1, description="How strongly episodes prefer the beginning of a history.")


class ModelConfig(_Section):
    kind: str = Field("two_tower", description="File name of a model: two_tower or ranker.")
    embedding_dim: int = Field(32, ge=1, description="Width of the item vectors.")
    dropout: float = Field(0.3, ge=0, lt=1, description="Dropout in the item tower.")
    id_dropout: float = Field(0.7, ge=0, lt=1, description="Share of training rows whose item id is hidden.")
    options: dict[str, Any] = Field({}, description="Further arguments of the model, e.g. `item_hidden`.")


class MetaConfig(_Section):
    algorithm: str = Field("maml", description="File name of a learner, e.g. maml, anil, reptile, fine_tuning.")
    inner_steps: int = Field(
        3, ge=1, description="Gradient steps on the support, of learners that take gradient steps."
    )
    inner_learning_rate: Annotated[float | dict[str, float], AfterValidator(_positive)] = Field(
        2.0,
        description="Step size on the support, of learners that take gradient steps; or one by patterns of variables.",
    )
    shrinkage: float = Field(
        20.0, ge=0, description="Interactions that speak for the starting point, of learners that take gradient steps."
    )
    contrast: int = Field(2048, ge=1, description="Catalogue items that a positive support is contrasted with.")
    rival: str | None = Field("fine_tuning", description="A second learner, trained the same way to compare with.")
    options: dict[str, Any] = Field({}, description="Further arguments of the learner, e.g. `proximal`.")


class TrainingConfig(_Section):
    epochs: int = Field(20, ge=1, description="Most epochs; fewer when validation stops improving.")
    steps_per_epoch: int | None = Field(None, ge=1, description="Batches in an epoch; unset: once through all users.")
    learning_rate: float = Field(1e-3, gt=0, description="Of the outer loop.")
    weight_decay: float = Field(0.05, ge=0, description="Of the outer loop (AdamW).")
    loss: str | None = Field(None, description="A Keras loss or sampled_softmax; unset: by the kind of feedback.")
    temperature: float | None = Field(
        None, gt=0, description="What scores are divided by in the sampled softmax of implicit feedback; unset: 1."
    )
    patience: int = Field(5, ge=1, description="Epochs without improvement on validation users before stopping.")
    monitor: str | None = Field(
        None, description="Metric on validation users that decides, e.g. recall@20; unset: nDCG, or MAE of ratings."
    )
    monitor_shots: tuple[Annotated[int, Field(ge=0)], ...] | None = Field(
        None, min_length=1, description="Support sizes K that it is the mean over; unset: those of evaluation."
    )
    tensorboard: bool = Field(False, description="Write TensorBoard logs into the run folder.")


class DistillationConfig(_Section):
    teacher: str | None = Field(
        None, description="Run folder of a learner, or a .keras file with a recommender; unset: no teacher."
    )
    alpha: float = Field(0.5, ge=0, le=1, description="Weight of the teacher; the rest is that of the labels.")
    loss: str | None = Field(
        None, description="Class of tfmetarec.transfer that compares with the teacher; unset: by the kind of feedback."
    )
    options: dict[str, Any] = Field({}, description="Arguments of that loss, e.g. `temperature`.")
    candidates: int | Literal["episode", "catalogue"] = Field(
        "episode", description="What both score: the episode's items, all, or so many that the teacher puts first."
    )
    unknown_items: Literal["leave_out", "content"] = Field(
        "leave_out", description="Items the teacher has no row for: left out, or scored by their content."
    )


class TransferConfig(_Section):
    source: str | None = Field(None, description="Domain to transfer from; the data need a column `domain`.")
    target: str | None = Field(None, description="Domain to transfer to.")
    method: str = Field("joint_training", description="File name of a method in transfer, e.g. emcdr or ptupcdr.")
    options: dict[str, Any] = Field(
        {}, description="Arguments of the method; its learner is that of `model`, `meta`, and `training`'s optimizer."
    )
    shots: tuple[int, ...] = Field((0, 20, 100), description="Source interactions K to report at.")


class ZeroShotConfig(_Section):
    items: bool = Field(False, description="Complete items without a row by the prototypes of their classes.")
    user_features: tuple[str, ...] = Field(
        (), description="User features whose groups have a starting point of their own, e.g. [age, income]."
    )


class TuningConfig(_Section):
    tuner: Literal["bayesian", "random", "grid", "hyperband", "sklearn"] = Field(
        "bayesian", description="bayesian, random, grid or hyperband of keras-tuner."
    )
    trials: int = Field(20, ge=1, description="The most trials.")
    epochs: int | None = Field(None, ge=1, description="The most epochs of a trial; unset: those of training.")
    max_minutes: float | None = Field(None, gt=0, description="When the search ends, whatever was tried.")
    prune: bool = Field(True, description="End trials that are worse than the median of the others.")
    options: dict[str, Any] = Field({}, description="Further arguments of the oracle, e.g. `beta` or `factor`.")
    only: tuple[str, ...] | None = Field(None, description="Names of the space to search; unset: all.")
    space: dict[str, Any] = Field(
        {}, description="By key of this file: {min, max, log, step} or a list to search, a value to fix, null to drop."
    )


class EvaluationConfig(_Section):
    shots: tuple[int, ...] = Field((0, 1, 3, 5, 10, 20), description="Support sizes K to report.")
    query: int = Field(20, ge=1, description="Interactions a user is judged on.")
    top_k: int = Field(20, ge=1, description="Length of the recommended list.")
    floors: bool = Field(True, description="Put the baselines into the table.")
    adaptation_steps: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        (0, 1, 2, 3, 5), description="Gradient steps at adaptation to draw a curve over; none if empty."
    )
    positive_rating: float | None = Field(
        None, description="Rating from which one is positive; unset: three quarters up the range, 4 of 1 to 5."
    )


class ExportConfig(_Section):
    top_k: int = Field(20, ge=1, description="The most items that a recommendation holds.")
    warmup_batches: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (1,), min_length=1, description="Batch sizes to warm up."
    )
    weights: Literal["float32", "float16", "int8"] = Field("float32", description="How item vectors are stored.")
    search: Literal["exact", "two_stage"] = Field("exact", description="How the catalogue is searched.")
    recall: float = Field(0.95, gt=0, le=1, description="That a two-stage search must reach on validation users.")
    clusters: int | None = Field(None, ge=2, description="Of a two-stage search; unset: the root of the items.")
    keep: int | None = Field(None, ge=1, description="Versions to keep; unset: all.")


class Config(_Section):
    """Everything an experiment depends on."""

    name: str = Field("quickstart", pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", description="Of run and served model.")
    seed: int = Field(0, ge=0, description="Of every random choice.")
    data: DataConfig = DataConfig()
    split: SplitConfig = SplitConfig()
    vocabulary: VocabularyConfig = VocabularyConfig()
    tasks: TasksConfig = TasksConfig()
    model: ModelConfig = ModelConfig()
    meta: MetaConfig = MetaConfig()
    training: TrainingConfig = TrainingConfig()
    distillation: DistillationConfig = DistillationConfig()
    transfer: TransferConfig = TransferConfig()
    zero_shot: ZeroShotConfig = ZeroShotConfig()
    tuning: TuningConfig = TuningConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    export: ExportConfig = ExportConfig()

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


def load(path: str | Path | None = None, overrides: Sequence[str] = ()) -> Config:
    """Reads a YAML file (or takes the defaults, which are the quickstart's) and applies overrides.

    Relative paths among `data.options`, and that of the teacher, become absolute, from the current directory: a run
    that is continued from elsewhere finds its data.

    Args:
        path: the file.
        overrides: like "meta.inner_learning_rate=0.05"; the value is read as YAML.

    Raises:
        ConfigError: in one sentence, naming the key and the rule, or the nearest right key.
    """
    values: Any = {}
    if path is not None:
        try:
            values = yaml.safe_load(Path(path).read_text()) or {}
        except OSError as error:
            raise ConfigError(f"cannot read {path}: {error.strerror}") from None
        except yaml.YAMLError as error:
            raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
        if not isinstance(values, dict):
            raise ConfigError(f"{path} must hold a mapping of sections. Received: {type(values).__name__}")
    for override in overrides:
        _set(values, override)
    _make_paths_absolute(values)
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise ConfigError(_sentence(error)) from None


def with_values(config: Config, values: Mapping[str, Any]) -> Config:
    """The configuration with other values.

    Args:
        config: to start from.
        values: by dotted key, such as "meta.inner_steps". What follows the name of a mapping is a key in it, dots
            included: "meta.inner_learning_rate.user_tower/.*kernel".

    Raises:
        ConfigError: as `load`.
    """
    changed = config.model_dump()
    for key, value in values.items():
        *sections, last = _split(key)
        section = changed
        for name in sections:
            if not isinstance(section.get(name), dict):
                section[name] = {}
            section = section[name]
        section[last] = value
    try:
        return Config.model_validate(changed)
    except ValidationError as error:
        raise ConfigError(_sentence(error)) from None


def value_of(config: Config, key: str) -> Any:
    """What a dotted key is set to, as plain JSON; `None` where it is not."""
    value: Any = config.model_dump(mode="json")
    for name in _split(key):
        value = value.get(name) if isinstance(value, dict) else None
    return value


def _split(key: str) -> list[str]:
    """The parts of a dotted key: a section, a field of it, and a key of that field where it is a mapping."""
    section, _, rest = key.partition(".")
    name, _, inner = rest.partition(".")
    return [part for part in (section, name, inner) if part]


def _set(values: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"an override must look like `section.key=value`. Received: {override!r}")
    *sections, last = key.split(".")
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise ConfigError(f"`{section}` in {override!r} is not a section")
    try:
        values[last] = yaml.safe_load(value)
    except yaml.YAMLError:
        raise ConfigError(f"the value in {override!r} is not valid YAML") from None


def _make_paths_absolute(values: dict[str, Any]) -> None:
    distillation = values.get("distillation")
    if isinstance(distillation, dict) and isinstance(distillation.get("teacher"), str):
        distillation["teacher"] = _absolute(distillation["teacher"])
    section = values.get("data")
    options = section.get("options") if isinstance(section, dict) else None
    if not isinstance(options, dict):
        return  # Left out, or refused by the validation that follows.
    for name in ("mapping", "folder", "cache_dir"):
        if isinstance(options.get(name), str):
            options[name] = _absolute(options[name])
    _make_mapping_absolute(options.get("mapping"))


def _make_mapping_absolute(part: Any) -> None:
    """Every `path` of a mapping that is given inline, those of the tables inside a section too."""
    for key, value in part.items() if isinstance(part, dict) else ():
        if key == "path" and isinstance(value, str):
            part[key] = _absolute(value)
        elif key == "path" and isinstance(value, list):
            part[key] = [_absolute(path) if isinstance(path, str) else path for path in value]
        else:
            _make_mapping_absolute(value)


def _absolute(path: str) -> str:
    return os.path.abspath(os.path.expanduser(path))


def _sentence(error: ValidationError) -> str:
    """The first thing that is wrong, in words."""
    first = error.errors()[0]
    # Of a value that may be of several types, pydantic names the type that it tried beside the key.
    path = [str(part) for part in first["loc"] if part not in ("float", "dict[str,float]")]
    key = ".".join(path)
    if first["type"] == "extra_forbidden":
        known = _keys(path[:-1])
        nearest = difflib.get_close_matches(path[-1], known, n=1, cutoff=0.4)
        hint = f"did you mean `{'.'.join([*path[:-1], nearest[0]])}`?" if nearest else f"known: {', '.join(known)}."
        return f"unknown key `{key}`; {hint}"
    rule = first["msg"].removeprefix("Value error, ")
    return f"`{key}`: {rule[:1].lower()}{rule[1:]}. Received: {first['input']!r}"


def _keys(path: list[str]) -> list[str]:
    section: Any = Config
    for part in path:
        section = section.model_fields[part].annotation
    return list(section.model_fields)
