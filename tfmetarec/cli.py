"""The command line: parse, call one function, print. Whatever it does, three lines of Python can do."""

import json
import os
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from tfmetarec.client import Explanation
    from tfmetarec.config import Config

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

    _train(load(config or _own_config(run), overrides or ()), run)


@app.command()
def distill(
    config: ConfigArgument = None,
    teacher: Annotated[
        str | None,
        typer.Option(
            help="Run folder of a learner, or a .keras file with a recommender; from the configuration if unset."
        ),
    ] = None,
    run: RunOption = None,
    overrides: SetOption = None,
) -> None:
    """Train a learner from a teacher, and beside it the same learner without; continues an interrupted run."""
    from tfmetarec.config import load

    own = config or _own_config(run)
    given = [f"distillation.teacher={json.dumps(teacher)}"] if teacher is not None else []
    settings = load(own, [*given, *(overrides or ())])
    if settings.distillation.teacher is None:
        raise ValueError("`distill` needs a teacher: give --teacher, or `distillation.teacher` in the file.")
    if "rival" not in settings.meta.model_fields_set:  # What a teacher is worth shows beside the same learner alone.
        settings = load(own, [*given, f"meta.rival={settings.meta.algorithm}", *(overrides or ())])
    _train(settings, run)


@app.command()
def transfer(
    config: ConfigArgument = None,
    run: RunOption = None,
    overrides: SetOption = None,
    metric: Annotated[str | None, typer.Option(help="Metric of the table, e.g. ndcg@20.")] = None,
) -> None:
    """Carry what users did in one domain to another in which they are new, and compare with the floors."""
    from tfmetarec.config import load

    settings = load(config or _own_config(run), overrides or ())
    with _tensorflow():
        from tfmetarec import crossing, experiment
        from tfmetarec.console import cold_start_table
    with console.status("preparing") as status:
        prepared = crossing.prepare(settings)
        folder = experiment.start_run(settings, run)
        status.update(Text(f"fitting {settings.transfer.method}"))
        method = crossing.fit(settings, folder, prepared)
        table = crossing.evaluate(
            settings,
            folder,
            prepared,
            method,
            progress=lambda name, k: status.update(Text(f"judging {name} at K={k}")),
        )
    for note in table.notes:
        console.print(note, style="dim")
    console.print(cold_start_table(table, metric, learners=[method.name]))
    console.print(f"Run folder: {folder}", soft_wrap=True)


@app.command()
def tune(
    config: ConfigArgument = None,
    run: RunOption = None,
    overrides: SetOption = None,
    tuner: Annotated[str | None, typer.Option(help="bayesian, random, grid or hyperband.")] = None,
    trials: Annotated[int | None, typer.Option(help="The most trials; more to go on with a finished search.")] = None,
    max_minutes: Annotated[float | None, typer.Option(help="When to stop, whatever was tried.")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes on this machine that train at the same time.")] = 1,
) -> None:
    """Search the settings of an experiment on validation users; continues an interrupted search."""
    from tfmetarec.config import load

    named = (("tuner", tuner), ("trials", trials), ("max_minutes", max_minutes))
    given = [f"tuning.{name}={value}" for name, value in named if value is not None]
    settings = load(config or _own_config(run), [*(overrides or ()), *given])
    with _tensorflow():
        from tfmetarec import experiment
        from tfmetarec.console import search_table, trial_line
    experiment.check(settings, run)
    experiment.search_space(settings)
    prepared = experiment.prepare(settings)
    folder = experiment.start_run(settings, run)
    console.print(f"Run folder: {folder}", soft_wrap=True)

    with _resumable(folder, "tune"), console.status("searching") as status:
        clock = time.monotonic()

        def tell(trial: str, epoch: int, value: float) -> None:
            status.update(Text(f"trial {trial}: {value:.4f} after epoch {epoch}"))

        def ended(tuner: Any, trial: Any) -> None:
            console.print(
                f"{trial_line(tuner, trial)}, {(time.monotonic() - clock) / 60:.1f} min",
                highlight=False,
                soft_wrap=True,
            )

        found = experiment.tune(settings, folder, prepared, workers=workers, tell=tell, ended=ended)
    if found is None:
        console.print("No more trials. The chief has the results.")
        return
    console.print(search_table(found.trials, found.tuner.oracle.objective))
    console.print(f"Trials: {folder / 'trials.parquet'}", soft_wrap=True)
    for plot in found.plots:
        console.print(f"Plot: {plot}", soft_wrap=True)
    console.print(f"Next: tfmetarec train {shlex.quote(str(found.file))}", soft_wrap=True)


def _train(settings: "Config", run: Path | None) -> None:
    with _tensorflow():
        from tfmetarec import experiment
        from tfmetarec.console import split_table
    experiment.check(settings, run)
    prepared = experiment.prepare(settings)
    folder = experiment.start_run(settings, run)
    console.print(f"Run folder: {folder}", soft_wrap=True)
    with _resumable(folder, "train"):
        console.print(split_table(prepared.split, prepared.vocabulary.name))
        experiment.train(settings, folder, prepared)
        experiment.train_rival(settings, folder, prepared)
    console.print(f"Trained. Next: tfmetarec evaluate {shlex.quote(str(folder))}", soft_wrap=True)


@app.command()
def evaluate(
    run: RunArgument,
    predictions: Annotated[bool, typer.Option(help="Also write every prediction to predictions.parquet.")] = False,
    metric: Annotated[str | None, typer.Option(help="Metric of the table, e.g. ndcg@20.")] = None,
    compare: Annotated[
        tuple[str, str] | None,
        typer.Option(help="Say which of two learners is better, at each K; a run judged before is not judged again."),
    ] = None,
) -> None:
    """Compare a run's learners with the floors on test users, and look at them from all sides."""
    with _tensorflow():
        from tfmetarec import experiment
        from tfmetarec.console import cold_start_table, examination_tables
    config = experiment.open_run(run)
    if compare is not None and not predictions and (run / "metrics.parquet").exists():
        _verdicts(experiment.judged_table(run), compare, metric, config.seed)
        return
    learners = experiment.learners(config, run)
    with console.status("preparing") as status:
        prepared = experiment.prepare(config)
        experiment.check_metric(config, prepared.vocabulary, metric)  # What is wrong shows now, and not after judging.
        if compare is not None:
            experiment.check_compared(compare, [*(prepared.floors if config.evaluation.floors else ()), *learners])
        table = experiment.evaluate(
            config,
            run,
            prepared,
            learners,
            predictions=predictions,
            progress=lambda name, k: status.update(Text(f"judging {name} at K={k}")),
        )
        found = experiment.examine(config, run, prepared, learners, progress=lambda words: status.update(Text(words)))
    for note in table.notes:
        console.print(note, style="dim")
    console.print(cold_start_table(table, metric, learners=list(learners)))
    for shown in examination_tables(found, list(learners)):
        console.print(shown)
    for line in found.sentences():
        console.print(line, highlight=False, soft_wrap=True)
    if compare is not None:
        _verdicts(table, compare, metric, config.seed)
    console.print(f"Figures: {run / 'metrics.json'}, {run / experiment.EXAMINATION}", soft_wrap=True)
    if predictions:
        console.print(f"Predictions: {run / 'predictions.parquet'}", soft_wrap=True)


def _verdicts(table: Any, compare: tuple[str, str], metric: str | None, seed: int) -> None:
    from tfmetarec import experiment

    console.print(table.metric_name(metric))
    for line in experiment.compare(table, *compare, metric, seed=seed):
        console.print(line, highlight=False, soft_wrap=True)


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="Run folders that `tfmetarec evaluate` has judged.")],
    out: Annotated[Path | None, typer.Option(help="The HTML file; report.html in the first run if unset.")] = None,
) -> None:
    """Write a page about a run, or about several side by side: one HTML file, and its figures."""
    with _tensorflow():
        from tfmetarec import run_report
    with console.status("drawing"):
        page, *figures = run_report.report(runs, out)
    console.print(f"Figures: {figures[0].parent}" if figures else "No figures.", soft_wrap=True)
    console.print(f"Report: {page}", soft_wrap=True)


@app.command()
def export(
    run: RunArgument,
    to: Annotated[Path | None, typer.Option(help="Base path of the served model; in the run folder if unset.")] = None,
    keep: Annotated[int | None, typer.Option(help="Delete all but so many of the newest versions.")] = None,
    weights: Annotated[str | None, typer.Option(help="float32, float16 or int8: how item vectors are stored.")] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", help="Override a key of the section, e.g. --set export.search=two_stage."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Write and check, but publish nothing.")] = False,
    serving_config: Annotated[
        Path | None, typer.Option(help="Folder for deployment files: server, compose, Kubernetes, clients.")
    ] = None,
    lite: Annotated[Path | None, typer.Option(help="Also write a LiteRT file that adapts on a phone.")] = None,
    add_items: Annotated[
        list[Path] | None,
        typer.Option(help="CSV, Parquet or JSON lines file of items to add: item_id and features. No retraining."),
    ] = None,
) -> None:
    """Publish a run's learner as the next version of a served model."""
    with _tensorflow():
        from tfmetarec import experiment
        from tfmetarec.export import lite_model, write_serving_config
    given = [f"export.{name}={value}" for name, value in (("keep", keep), ("weights", weights)) if value is not None]
    config = experiment.open_run(run, [*(overrides or ()), *given])
    learner = experiment.load_learner(run / "learner.keras")
    with console.status("writing and checking"):
        published = experiment.export_learner(config, run, learner, to, add_items=add_items or (), dry_run=dry_run)
    table = Table("signature", "largest difference from the live model")
    for name, difference in published.differences.items():
        table.add_row(name, f"{difference:.1e}")
    console.print(table)
    console.print(f"Search: {published.search}.", soft_wrap=True)
    if (cost := published.precision) is not None:
        console.print(
            f"{cost.metric} on validation users: {cost.reduced:.4f} with {config.export.weights}, "
            f"{cost.float32:.4f} with float32 ({cost.change:+.1%})",
            soft_wrap=True,
        )
    if lite is not None:
        written = lite_model(learner, lite, new_items=experiment.new_items(run, learner, add_items or ()))
        console.print(f"Wrote {lite}: {written.size_bytes:,} bytes, {written.difference:.1e} from the live model")
    if published.path is None:
        console.print(f"Dry run: it would be version {published.version} under {published.base}", soft_wrap=True)
        return
    for version in published.removed:
        console.print(f"Deleted version {version}")
    console.print(f"Published {published.path}", soft_wrap=True)
    base_path = shlex.quote(str(published.base.absolute()))
    if serving_config is not None:
        files = write_serving_config(published.base.absolute(), serving_config, name=config.name)
        console.print(f"Wrote {len(files)} deployment files into {serving_config}", soft_wrap=True)
    console.print(
        f"Next: tfmetarec serve --rest_api_port=8501 --model_name={config.name} --model_base_path={base_path}",
        soft_wrap=True,
    )


@app.command()
def rollback(
    base: Annotated[Path, typer.Argument(help="Base path of the served model, with its numbered versions.")],
    to: Annotated[int | None, typer.Option(help="Version to serve; the one before the newest if unset.")] = None,
) -> None:
    """Take the newest versions out of service; with --to, bring one back."""
    with _tensorflow():
        from tfmetarec import export as exports
    version = exports.rollback(base, to)
    console.print(f"Version {version} is the newest under {base}", soft_wrap=True)
    if retired := exports.retired_versions(base):
        console.print(f"Out of service, to bring back with --to: {', '.join(map(str, retired))}")


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
    support: Annotated[
        Path | None,
        typer.Option(help="The same as a CSV, Parquet or JSON lines file with columns item_id and, if wanted, label."),
    ] = None,
    model: Annotated[str, typer.Option(help="Name of the served model.")] = "quickstart",
    server: Annotated[str, typer.Option(help="host:port of the server.")] = "127.0.0.1:8501",
    protocol: Annotated[str, typer.Option(help="rest or grpc.")] = "rest",
    label: Annotated[list[float] | None, typer.Option(help="Rating of each item, in order; 1 if left out.")] = None,
    user: Annotated[
        list[str] | None, typer.Option(help="A feature of the user, e.g. --user age=25-34; a list as a,b.")
    ] = None,
    top_k: Annotated[int | None, typer.Option(min=1, help="How many items; as many as exported if unset.")] = None,
    exclude: Annotated[list[str] | None, typer.Option(help="Id of an item that must not come.")] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(help="Only items with this value, e.g. --only brand=Acme; again for another value or feature."),
    ] = None,
    explain: Annotated[bool, typer.Option("--explain", help="Show which interactions led to an item.")] = False,
    export: Annotated[Path | None, typer.Option(help="Exported version, to show names instead of ids.")] = None,
) -> None:
    """Ask a running server what it would recommend to a user."""
    from tfmetarec.client import Client, Explanation

    if support is not None and (items or label):
        raise ValueError("Give what the user met once: as a `--support` file, or as ids with `--label`.")
    if explain and (exclude or only):
        raise ValueError("`--explain` shows what leads to the best items of all: it takes no `--exclude` or `--only`.")
    met, labels = (items or [], label) if support is None else _support(support)
    names, feedback = ({}, None) if export is None else _exported(export)
    if feedback == "explicit" and met and labels is None:
        raise ValueError("This model learns from ratings: give one `--label` an item, or a column label in the file.")
    features = dict(_pair("--user", text) for text in user or ())
    values: dict[str, list[str]] = {}
    for name, value in (_pair("--only", text) for text in only or ()):
        values.setdefault(name, []).append(value)
    if protocol == "grpc":
        with _tensorflow():
            import tensorflow_serving.apis.predict_pb2  # noqa: F401
    with Client(server, protocol=protocol, model=model) as client:  # type: ignore[arg-type]
        if explain:
            found = client.explain(met, labels, features)[:top_k]
        else:
            pairs = client.recommend(met, labels, features, top_k=top_k, exclude=exclude or (), only=values)
            found = [Explanation(item, score, []) for item, score in pairs]
    if not found:
        console.print("No item fits.")
        return
    verb = {"implicit": "because you bought", "explicit": "because you rated", None: "because of"}[feedback]
    console.print(_recommendations(found, names, verb if explain else None, console.width))


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
def _resumable(folder: Path, command: str) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        command = f"tfmetarec {command} --run {shlex.quote(str(folder))}"
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


def _pair(option: str, text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise ValueError(f"`{option}` must look like name=value. Received: {text!r}")
    return name, value


def _support(path: Path) -> tuple[list[Any], list[float] | None]:
    from tfmetarec.client.support_file import read_support

    return read_support(path)


def _exported(version: Path) -> tuple[dict[Any, str], str]:
    """The names of an exported version's items, and the feedback it learned from."""
    import polars as pl

    extra = version / "assets.extra"
    items, card = extra / "vocabulary" / "items.parquet", extra / "tfmetarec.json"
    for path in (items, card):
        if not path.exists():
            raise ValueError(
                f"{version} is not a version that tfmetarec exported: it has no {path.relative_to(version)}"
            )
    frame = pl.read_parquet(items, columns=["item_id", "shown as"])
    names = dict(zip(frame["item_id"].to_list(), frame["shown as"].to_list(), strict=True))
    return names, json.loads(card.read_text())["feedback"]


def _recommendations(found: "list[Explanation]", names: dict[Any, str], because: str | None, width: int) -> Table:
    """Places, ids, names and scores, and under the heading `because` the interactions that led to each item.

    Names are cut so that the table fits `width`; from 70 columns on ids, scores and contributions are not.
    """
    rows = [(str(item), names.get(item, "?"), f"{score:.4f}") for item, score, _ in found]
    reasons = [_reasons(explanation.because, names) for explanation in found]
    ids, shown, scores = zip(*rows, strict=True)
    edges = 3 * (3 + bool(names) + bool(because)) + 1
    left = width - edges - len(str(len(rows))) - max(map(len, ids)) - max(map(len, scores))
    reason_width = max(len(line) for text in [because, *reasons] for line in text.splitlines()) if because else 0
    name_width = max(12, left - reason_width, left * 2 // 5)
    name_width = min(name_width, max(map(len, shown))) if names else 0

    table = Table()
    table.add_column("", justify="right", no_wrap=True)
    table.add_column("item", no_wrap=True)
    if names:
        table.add_column("name", no_wrap=True, overflow="ellipsis", max_width=name_width)
    table.add_column("score", justify="right", no_wrap=True)
    if because:
        table.add_column(because, no_wrap=True, overflow="ellipsis", max_width=max(20, left - name_width))
    for place, ((item, name, score), reason) in enumerate(zip(rows, reasons, strict=True), 1):
        table.add_row(str(place), item, *([name] if names else []), score, *([reason] if because else []))
    return table


def _reasons(because: list[tuple[Any, float]], names: dict[Any, str]) -> str:
    """The up to three interactions that speak for an item the most, one a line."""
    for_it = [(item, contribution) for item, contribution in because[:3] if round(contribution, 4) > 0]
    return "\n".join(f"{contribution:+.4f} {names.get(item, item)}" for item, contribution in for_it) or "-"
