"""The command line: parse, call one function, print. Whatever it does, three lines of Python can do."""

import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

app = typer.Typer(
    help="Recommenders that adapt to a new user inside the request.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode="rich",
)
# What users named may hold brackets and colons: they are printed as they are.
console = Console(markup=False, emoji=False)
errors = Console(stderr=True, markup=False, emoji=False)

ConfigArgument = Annotated[
    Path | None, typer.Argument(help="YAML file of the experiment; the quickstart's if left out.")
]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", help="Override a key, e.g. --set meta.inner_learning_rate=0.05.")
]
RunOption = Annotated[Path | None, typer.Option("--run", help="Run folder; an existing one is continued.")]
RunArgument = Annotated[Path, typer.Argument(help="Run folder that `tfmetarec train` made.")]


@app.command()
def quickstart(run: RunOption = None, overrides: SetOption = None) -> None:
    """Train on real purchases, compare with baselines, export, serve, and ask for recommendations."""
    from tfmetarec.config import load

    config = load(_own_config(run), overrides or ())
    with _tensorflow():
        from tfmetarec import quickstart as story
    story.run(config, run, console)


@app.command()
def datasets() -> None:
    """List the data sources."""
    with _tensorflow():
        from tfmetarec.data import available
    table = Table("name", "what it is")
    for name, line in available().items():
        table.add_row(name, line)
    console.print(table)


@app.command()
def train(config: ConfigArgument = None, run: RunOption = None, overrides: SetOption = None) -> None:
    """Train the learner (and its rival) of an experiment; continues an interrupted run."""
    from tfmetarec.config import load

    settings = load(config or _own_config(run), overrides or ())
    with _tensorflow():
        from tfmetarec import experiment
        from tfmetarec.console import split_table
    experiment.check(settings, run)
    prepared = experiment.prepare(settings)
    folder = experiment.start_run(settings, run)
    console.print(f"Run folder: {folder}", soft_wrap=True)
    with _resumable(folder):
        console.print(split_table(prepared.split, prepared.vocabulary.name))
        experiment.train(settings, folder, prepared)
        experiment.train_rival(settings, folder, prepared)
    console.print(f"Trained. Next: tfmetarec evaluate {shlex.quote(str(folder))}", soft_wrap=True)


@app.command()
def evaluate(
    run: RunArgument,
    predictions: Annotated[bool, typer.Option(help="Also write every prediction to predictions.parquet.")] = False,
    metric: Annotated[str | None, typer.Option(help="Metric of the table, e.g. ndcg@20.")] = None,
) -> None:
    """Compare a run's learners with the floors on test users."""
    with _tensorflow():
        from tfmetarec import experiment
        from tfmetarec.console import cold_start_table
    config = experiment.open_run(run)
    learner = experiment.load_learner(run / "learner.keras")
    learners = {type(learner).__name__: learner}
    if config.meta.rival:
        rival = experiment.load_learner(run / "rival.keras")
        learners = {type(rival).__name__: rival, **learners}
    with console.status("preparing") as status:
        prepared = experiment.prepare(config)
        table = experiment.evaluate(
            config,
            run,
            prepared,
            learners,
            predictions=predictions,
            progress=lambda name, k: status.update(Text(f"judging {name} at K={k}")),
        )
    for note in table.notes:
        console.print(note, style="dim")
    console.print(cold_start_table(table, metric, learners=list(learners)))
    console.print(f"Figures: {run / 'metrics.json'}", soft_wrap=True)
    if predictions:
        console.print(f"Predictions: {run / 'predictions.parquet'}", soft_wrap=True)


@app.command()
def export(
    run: RunArgument,
    to: Annotated[Path | None, typer.Option(help="Base path of the served model; in the run folder if unset.")] = None,
) -> None:
    """Publish a run's learner as the next version of a served model."""
    with _tensorflow():
        from tfmetarec import experiment
    config = experiment.open_run(run)
    learner = experiment.load_learner(run / "learner.keras")
    with console.status("writing and checking"):
        published = experiment.export_learner(config, run, learner, to)
    table = Table("signature", "largest difference from the live model")
    for name, difference in published.differences.items():
        table.add_row(name, f"{difference:.1e}")
    console.print(table)
    base = published.path.parent
    console.print(f"Published {published.path}", soft_wrap=True)
    base_path = shlex.quote(str(base.absolute()))
    console.print(
        f"Next: tfmetarec serve --rest_api_port=8501 --model_name={config.name} --model_base_path={base_path}",
        soft_wrap=True,
    )


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
)
def serve(context: typer.Context) -> None:
    """Serve SavedModels over gRPC and REST; takes tensorflow_model_server's flags (--help lists them)."""
    with _tensorflow():
        from tfmetarec.server import main as serve_main
    raise typer.Exit(serve_main(context.args))


@app.command()
def recommend(
    items: Annotated[list[str] | None, typer.Argument(help="Ids of what the user met, oldest first.")] = None,
    model: Annotated[str, typer.Option(help="Name of the served model.")] = "quickstart",
    server: Annotated[str, typer.Option(help="host:port of the server.")] = "127.0.0.1:8501",
    protocol: Annotated[str, typer.Option(help="rest or grpc.")] = "rest",
    label: Annotated[list[float] | None, typer.Option(help="Rating of each item, in order; 1 if left out.")] = None,
    user: Annotated[
        list[str] | None, typer.Option(help="A feature of the user, e.g. --user age=25-34; a list as a,b.")
    ] = None,
    export: Annotated[Path | None, typer.Option(help="Exported version, to show names instead of ids.")] = None,
) -> None:
    """Ask a running server what it would recommend to a user."""
    from tfmetarec.client import Client

    features = dict(_pair(text) for text in user or ())
    if protocol == "grpc":
        with _tensorflow():
            import tensorflow_serving.apis.predict_pb2  # noqa: F401
    with Client(server, protocol=protocol, model=model) as client:  # type: ignore[arg-type]
        found = client.recommend(items or [], label, features)
    names = _names(export) if export is not None else {}
    table = Table("", "item", "name", "score") if names else Table("", "item", "score")
    for place, (item, score) in enumerate(found, 1):
        name = [names.get(item, "?")] if names else []
        table.add_row(str(place), str(item), *name, f"{score:.4f}")
    console.print(table)


def main() -> None:
    """Runs the command line; a known error is one sentence, and an interrupt leaves nothing half-written."""
    try:
        app(standalone_mode=False)
    except typer.Exit as stop:
        sys.exit(stop.exit_code)
    except KeyboardInterrupt:
        errors.print(Text.assemble(("Interrupted.", "yellow"), " What was finished is kept."))
        sys.exit(130)
    except Exception as error:
        if type(error).__module__.startswith("click") or hasattr(error, "format_message"):
            _print_error(error.format_message())  # type: ignore[attr-defined]
            sys.exit(2)
        if os.environ.get("TFMETAREC_TRACEBACK"):
            raise
        if not isinstance(error, ValueError | KeyError | OSError | RuntimeError | ImportError) and not hasattr(
            error, "code"
        ):
            raise
        _print_error(str(error))
        sys.exit(1)


def _print_error(message: str) -> None:
    errors.print(Text.assemble(("error:", "red"), f" {message}"), highlight=False, soft_wrap=True)


def _own_config(run: Path | None) -> Path | None:
    """The configuration of the run that is continued, so that its options need not be given again."""
    return run / "config.yaml" if run is not None and (run / "config.yaml").exists() else None


@contextmanager
def _resumable(folder: Path) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        command = f"tfmetarec train --run {shlex.quote(str(folder))}"
        errors.print(Text.assemble(("Interrupted.", "yellow"), f" Continue with: {command}"), soft_wrap=True)
        sys.exit(130)


@contextmanager
def _tensorflow() -> Iterator[None]:
    """Imports TensorFlow with its device notices, which no setting turns off, sent nowhere."""
    import tfmetarec  # noqa: F401  (sets the environment first)

    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 2)
            import tensorflow as tf

            tf.config.list_physical_devices()
        os.dup2(kept, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise ValueError(f"`--user` must look like name=value. Received: {text!r}")
    return name, value


def _names(version: Path) -> dict[Any, str]:
    import polars as pl

    path = version / "assets.extra" / "vocabulary" / "items.parquet"
    if not path.exists():
        raise ValueError(f"{version} is not a version that tfmetarec exported: it has no {path.relative_to(version)}")
    frame = pl.read_parquet(path, columns=["item_id", "shown as"])
    return dict(zip(frame["item_id"].to_list(), frame["shown as"].to_list(), strict=True))
