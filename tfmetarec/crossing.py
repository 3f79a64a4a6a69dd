"""An experiment across two domains on one page: both domains' data, the method, the table.

A run folder has `method/` in place of a rival and `learner.keras` if the method trains one, and is otherwise as
`tfmetarec.experiment` writes it.
"""

import functools
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import keras

from tfmetarec import data, evaluation, experiment, transfer
from tfmetarec.config import Config, ConfigError
from tfmetarec.parts import naming_options, parameters_of


@dataclass(frozen=True)
class Crossing:
    """The data of an experiment across two domains."""

    split: data.Split
    domains: transfer.Domains


def prepare(config: Config) -> Crossing:
    """Loads the data of both domains and hides the target from a share of the users whom both have.

    Raises:
        ValueError: if a domain is not named, not there, or no user has both.
    """
    wanted = config.transfer
    if config.split.cold_item_share:
        raise ConfigError("`split.cold_item_share` is not for a run across domains: there no items are held out.")
    for name in ("source", "target"):
        if getattr(wanted, name) is None:
            raise ConfigError(f"`transfer.{name}` must name a domain of the data. Received: none")
    _method(config)
    with naming_options("data.options", config.data.options):
        interactions = data.load(config.data.source, **config.data.options)
    split = data.by_domain(
        interactions,
        source=str(wanted.source),
        target=str(wanted.target),
        test_share=config.split.test_share,
        seed=config.seed,
    )
    domains = transfer.Domains.of(split["source"], split["train"], min_item_users=config.vocabulary.min_item_users)
    return Crossing(split, domains)


def fit(config: Config, run: Path, crossing: Crossing) -> transfer.CrossDomainMethod:
    """Fits the configured method, choosing on validation users, or loads what an earlier call has fitted."""
    folder = run / "method"
    if folder.exists():
        return transfer.load_method(folder)
    keras.utils.set_random_seed(config.seed)
    method = transfer.cross_domain(
        _method(config),
        crossing.split["source"],
        crossing.split["train"],
        validation_share=config.split.validation_share,
        min_item_users=config.vocabulary.min_item_users,
        seed=config.seed,
    )
    if (learner := getattr(method, "learner", None)) is not None:  # It can be exported like any other.
        experiment.save_learner(learner, run / "learner.keras")
    with tempfile.TemporaryDirectory(prefix=".method-", dir=run) as staged:  # All of it, or nothing.
        method.save(Path(staged) / "method")
        os.replace(Path(staged) / "method", folder)
    return method


def _method(config: Config) -> transfer.CrossDomainMethod:
    """The configured method; one that trains a learner gets the configured one."""
    kind, options = transfer.method_class(config.transfer.method), dict(config.transfer.options)
    parameters = parameters_of(kind)
    # A configured learner is compiled already, so that the method's own rate would be ignored.
    known = [name for name in parameters if name not in ("learner", "learning_rate")]
    for name in options:
        if name not in known:
            raise ConfigError(f"unknown key `transfer.options.{name}`; known: {', '.join(known)}.")
    if "learner" in parameters:
        options["learner"] = functools.partial(experiment.build_learner, config)
    for name in set(parameters) & {"teacher", "transfer"}:  # A method around another one.
        inner = transfer.method_class(options.get(name, "joint_training"))
        options[name] = inner(**({"seed": config.seed} if "seed" in parameters_of(inner) else {}))
    if "seed" in parameters:
        options.setdefault("seed", config.seed)
    with naming_options("transfer.options", config.transfer.options):
        return kind(**options)


def evaluate(
    config: Config,
    run: Path,
    crossing: Crossing,
    method: transfer.CrossDomainMethod,
    *,
    progress: Callable[[str, int], None] | None = None,
) -> evaluation.ColdStartTable:
    """The table on test users, who are cold in the target, written into the run folder."""
    table = evaluation.cross_domain(
        {method.name: method},
        crossing.domains,
        crossing.split["test"],
        shots=config.transfer.shots,
        top_k=config.evaluation.top_k,
        floors=config.evaluation.floors,
        progress=progress,
        seed=config.seed,
    )
    experiment.write_table(run, table)
    return table
