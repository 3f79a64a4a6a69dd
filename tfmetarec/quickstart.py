"""From real purchases to a served recommendation: what `tfmetarec quickstart` does, step by step."""

import os
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import polars as pl
from rich.console import Console
from rich.text import Text

from tfmetarec import experiment
from tfmetarec.client import Client
from tfmetarec.config import Config
from tfmetarec.console import cold_start_table, recommendation_table, split_table
from tfmetarec.data.interactions import Interactions
from tfmetarec.data.vocabulary import Vocabulary

SHOWN = 5  # Purchases the household has made before the first request.
MORE = 2  # Purchases it makes before the second one.


def run(config: Config, run_folder: Path | None, console: Console) -> Path:
    """Trains, compares, exports, serves and asks; returns the run folder.

    Interrupted and called again with the same folder, it goes on where it stopped.
    """
    began = time.monotonic()

    def heading(text: str) -> None:
        took = f"{time.monotonic() - began:.0f} s"
        console.rule(Text.assemble((text, "bold"), "  ", (took, "dim")), align="left")

    experiment.check(config, run_folder)
    heading("1  Real data")
    prepared = experiment.prepare(config)
    folder = experiment.start_run(config, run_folder)
    try:
        _tell(config, folder, prepared, console, heading)
    except KeyboardInterrupt:
        console.print(f"Continue with: tfmetarec quickstart --run {shlex.quote(str(folder))}", soft_wrap=True)
        raise
    return folder


def _tell(
    config: Config, folder: Path, prepared: experiment.Prepared, console: Console, heading: Callable[[str], None]
) -> None:
    """Everything that goes on in a run folder; called again, it finds what was finished."""
    split, vocabulary = prepared.split, prepared.vocabulary
    console.print(split_table(split, f"{vocabulary.name}: whole users are held out"))
    console.print(
        f"Catalogue: the {vocabulary.n_items - 1:,} items that at least "
        f"{config.vocabulary.min_item_users} training users met."
    )
    for note in split.notes:
        console.print(note, style="dim")

    heading(f"2  Meta-learn ({config.meta.algorithm})")
    learner = experiment.train(config, folder, prepared)
    learners = {type(learner).__name__: learner}
    if config.meta.rival:
        heading(f"3  The rival without meta-learning ({config.meta.rival})")
        rival = experiment.train_rival(config, folder, prepared)
        assert rival is not None
        learners = {type(rival).__name__: rival, **learners}

    heading("4  Compare on users never seen, with what one would deploy instead")
    with console.status("fitting the floors") as status:
        table = experiment.evaluate(
            config, folder, prepared, learners, progress=lambda name, k: status.update(Text(f"judging {name} at K={k}"))
        )
    for note in table.notes:
        console.print(note, style="dim")

    heading("5  Export, checked in a clean process against the live model")
    published = experiment.export_learner(config, folder, learner)
    worst = max(published.differences.values())
    console.print(f"version {published.version}: {', '.join(published.differences)}")
    console.print(f"largest difference from the live model: {worst:.1e}")

    heading("6  Serve, and ask for a household it has never seen")
    with serving(published.base, config.name, folder / "server.log") as (grpc_port, rest_port):
        console.print(f"serving on gRPC port {grpc_port} and REST port {rest_port}")
        _ask(config, prepared.split.test, vocabulary, grpc_port, rest_port, console)
    console.print("The server is stopped.")

    heading("Done")
    console.print(cold_start_table(table, learners=list(learners)))
    name = type(learner).__name__
    for k in config.evaluation.shots:
        floor = table.best_floor(k, [name])
        console.print(f"K={k}: {table.compare(name, floor, k, seed=config.seed).verdict(name, floor)}", highlight=False)
    console.print(f"Run folder:  {folder}\nSavedModel:  {published.path}", soft_wrap=True)


def _ask(
    config: Config,
    cold: Interactions,
    vocabulary: Vocabulary,
    grpc_port: int,
    rest_port: int,
    console: Console,
) -> None:
    """Asks both protocols for one cold user, before and after two more interactions."""
    user_id, history = _a_cold_user(cold, vocabulary)
    features: dict[str, Any] = {}
    if cold.users is not None:
        for row in cold.users.filter(pl.col("user_id") == user_id).drop("user_id").iter_rows(named=True):
            features = {name: _as_text(value) for name, value in row.items() if value is not None}
    console.print(f"User {user_id}: " + (", ".join(f"{k} {v}" for k, v in features.items()) or "nothing known"))
    names = dict(zip(vocabulary.item_ids.tolist(), vocabulary.item_names, strict=True))
    items, labels = history["item_id"].to_list(), history["label"].to_list()
    for number, item in enumerate(items[: SHOWN + MORE]):
        console.print(f"  {'then' if number >= SHOWN else 'met '}  {names[item]}", highlight=False)
    answers: dict[str, dict[str, list[tuple[str, float]]]] = {}
    protocols: tuple[tuple[Literal["grpc", "rest"], int], ...] = (("grpc", grpc_port), ("rest", rest_port))
    for protocol, port in protocols:
        with Client(f"127.0.0.1:{port}", protocol=protocol, model=config.name, timeout_s=30) as client:
            for count in (SHOWN, SHOWN + MORE):
                found = client.recommend(items[:count], labels[:count], features)
                answers.setdefault(protocol, {})[f"after {count} of its items"] = [
                    (names[item], score) for item, score in found[:10]
                ]
    for protocol, title in (("grpc", "Recommended, over gRPC"), ("rest", "Recommended, over REST")):
        console.print(recommendation_table(title, answers[protocol], console.width))


def _as_text(value: Any) -> str | list[str]:
    """A feature as the client takes it, whatever the model made of it: category, number, list or vector."""
    return [str(entry) for entry in value if entry is not None] if isinstance(value, list) else str(value)


def _a_cold_user(cold: Interactions, vocabulary: Vocabulary) -> tuple[object, pl.DataFrame]:
    """The first test user with enough catalogue items, one with features if there is such."""
    known = pl.Series(vocabulary.item_ids[1:].tolist())
    table = cold.table.filter(pl.col("item_id").is_in(known.implode()))
    enough = table.group_by("user_id").len().filter(pl.col("len") >= SHOWN + MORE)["user_id"].sort()
    if enough.is_empty():
        raise ValueError(f"no test user has {SHOWN + MORE} interactions with catalogue items")
    if cold.users is not None:
        described = enough.filter(enough.is_in(cold.users["user_id"].implode()))
        enough = described if len(described) else enough
    return enough[0], table.filter(pl.col("user_id") == enough[0])


@contextmanager
def serving(base_path: Path, name: str, log: Path, timeout_s: float = 120) -> Iterator[tuple[int, int]]:
    """A `tfmetarec serve` process of its own on two free ports, stopped at the end.

    Yields:
        The gRPC and the REST port, once the model answers.

    Raises:
        RuntimeError: if it ends or does not answer in time; the log's last lines are in the message.
    """
    grpc_port, rest_port = _free_port(), _free_port()
    flags = [f"--port={grpc_port}", f"--rest_api_port={rest_port}", f"--model_name={name}"]
    command = [sys.executable, "-m", "tfmetarec", "serve", *flags, f"--model_base_path={base_path.absolute()}"]
    with log.open("w") as written:
        process = subprocess.Popen(command, stdout=written, stderr=subprocess.STDOUT, env=dict(os.environ))
    try:
        _wait_until_available(process, name, rest_port, log, timeout_s)
        yield grpc_port, rest_port
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_until_available(process: subprocess.Popen, name: str, port: int, log: Path, timeout_s: float) -> None:
    end = time.monotonic() + timeout_s
    while time.monotonic() < end and process.poll() is None:
        try:
            with Client(f"127.0.0.1:{port}", model=name, retries=0, timeout_s=2) as client:
                if any(version["state"] == "AVAILABLE" for version in client.status()):
                    return
        except Exception as error:
            if getattr(error, "code", None) not in ("UNAVAILABLE", "DEADLINE_EXCEEDED", "NOT_FOUND"):
                raise
        time.sleep(0.2)
    last = " | ".join(log.read_text().splitlines()[-3:])
    raise RuntimeError(f"the server did not make {name!r} available within {timeout_s:.0f} s: {last}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
