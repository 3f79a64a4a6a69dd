"""What every benchmark does alike: its options, its JSON file, its tables and its verdict."""

import argparse
import json
import math
import os
import platform
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import median
from types import MappingProxyType
from typing import Any, NamedTuple, NoReturn

from rich.console import Console
from rich.table import Table

from tfmetarec.data import DataError

RESULTS = Path(__file__).with_name("results")
PACKAGES = ("tfmetarec", "tensorflow", "keras", "numpy")

Rows = list[dict[str, Any]]


class Options(NamedTuple):
    """How a benchmark was asked to run.

    Attributes:
        name: of the benchmark, which is the name of its JSON file.
        quick: whether this run only shows that everything works; its figures mean nothing.
        seeds: how many seeds, 0, 1, ..., to run.
        data: where the data are, `None` for the benchmark's own.
        out: the JSON file to write.
        more: what options of the benchmark's own were given.
    """

    name: str
    quick: bool
    seeds: int
    data: Path | None
    out: Path
    more: Mapping[str, Any] = MappingProxyType({})

    @property
    def parts(self) -> Path:
        """Where an interrupted run finds what it has done."""
        return self.out.with_suffix(".parts")


class Target(NamedTuple):
    """A bound that a figure must keep: `rule` is "at least" or "at most".

    >>> str(Target("speed", 2.5, "at least", 3.0)), Target("speed", 2.5, "at least", 3.0).met
    ('speed is 2.5, must be at least 3', False)
    """

    name: str
    value: float
    rule: str
    bound: float

    @property
    def met(self) -> bool:
        """Whether the bound is kept; NaN keeps none."""
        return self.value >= self.bound if self.rule == "at least" else self.value <= self.bound

    def __str__(self) -> str:
        return f"{self.name} is {self.value:.3g}, must be {self.rule} {self.bound:.3g}"


def read_options(
    name: str,
    description: str,
    arguments: Sequence[str] | None = None,
    *,
    seeds: int = 1,
    own_data: Sequence[str] = (),
    more: Mapping[str, dict[str, Any]] = MappingProxyType({}),
) -> Options:
    """The command line of a benchmark.

    Args:
        name: of the benchmark.
        description: one sentence for `--help`.
        arguments: instead of those the process was started with.
        seeds: how many seeds a full run takes unless told.
        own_data: names that `--data` takes besides paths, the default first; each has a JSON file of its own.
        more: options of the benchmark's own, with what `add_argument` takes.
    """
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=description)
    parser.add_argument("--quick", action="store_true", help="the same code in a minute; the figures mean nothing")
    parser.add_argument("--seeds", type=int, help=f"seeds to run (default {seeds}; 1 with --quick)", metavar="N")
    parser.add_argument("--data", type=Path, metavar="PATH", help="where the data are, instead of the benchmark's own")
    parser.add_argument("--out", type=Path, metavar="PATH", help="JSON file to write (default benchmarks/results/)")
    for option, settings in more.items():
        parser.add_argument(option, **settings)
    given = parser.parse_args(arguments)
    if given.seeds is not None and given.seeds < 1:
        parser.error(f"`--seeds` must be at least 1. Received: --seeds {given.seeds}")
    if given.data is not None and str(given.data) not in own_data and not given.data.exists():
        names = f" or be one of {', '.join(own_data)}" if own_data else ""
        parser.error(f"`--data` must exist{names}. Received: --data {given.data}")
    is_other = own_data and given.data is not None and str(given.data) != own_data[0]
    own = f"-{given.data.stem}" if is_other else ""
    committed = RESULTS / f"{name}{own}.json"
    if given.quick and given.out is not None and given.out.resolve() == committed.resolve():
        parser.error("`--out` must not be the committed file of a full run when there is `--quick`.")
    out = given.out
    if out is None:
        out = Path(tempfile.mkdtemp(prefix="benchmark-")) / committed.name if given.quick else committed
    try:  # Now, and not after an hour of measuring.
        out.parent.mkdir(parents=True, exist_ok=True)
        usable = not out.is_dir()
    except OSError:
        usable = False
    if not usable:
        parser.error(f"`--out` must be a file in a folder that can be written. Received: --out {out}")
    more_given = {option.lstrip("-"): getattr(given, option.lstrip("-").replace("-", "_")) for option in more}
    return Options(name, given.quick, given.seeds or (1 if given.quick else seeds), given.data, out, more_given)


def run(main: Callable[[], int]) -> NoReturn:
    """Ends the process with the status of `main`, or with 2 and one sentence where the data cannot be used."""
    try:
        sys.exit(main())
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def console() -> Console:
    """Where a benchmark shows its progress and its tables; wide enough for them when it is not a terminal."""
    return Console(width=None if sys.stdout.isatty() else 120)


def finish(
    options: Options,
    *,
    config: dict[str, Any],
    figures: dict[str, Rows],
    targets: Sequence[Target],
    console: Console,
) -> int:
    """Writes the JSON file, prints a table for each of `figures`, says which targets are missed.

    Args:
        options: of this run.
        config: the settings behind the figures, plain JSON.
        figures: rows of named values by title, one table each.
        targets: what the figures are held to.
        console: where to print.

    Returns:
        The exit status: 1 if a full run misses a target, else 0.
    """
    missed = [target for target in targets if not target.met]
    result = {
        "benchmark": options.name,
        "quick": options.quick,
        "config": config,
        "seeds": list(range(options.seeds)),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        "machine": machine(),
        "figures": figures,
        "targets": [{**target._asdict(), "met": target.met} for target in targets],
    }
    options.out.write_text(json.dumps(_plain(result), indent=2, allow_nan=False) + "\n", encoding="utf-8")
    for title, rows in figures.items():
        console.print(_table(title, rows))
    console.print(f"written to {options.out}", soft_wrap=True, highlight=False)
    if options.quick:
        console.print("a quick run: these figures mean nothing", highlight=False)
    verdict = f"targets: {len(targets) - len(missed)} met, {len(missed)} missed"
    if missed:
        verdict += f" ({'; '.join(map(str, missed))})"
    console.print(verdict, soft_wrap=True, highlight=False, markup=False)
    return int(bool(missed) and not options.quick)


def merged(same: Rows) -> dict[str, Any]:
    """The rows of one case over all seeds as one: medians, and the extremes of the extremes."""
    how = {"lowest_ratio": min, "highest_ratio": max}
    merged: dict[str, Any] = {}
    for name, value in same[0].items():
        values = [row[name] for row in same]
        merged[name] = how.get(name, median)(values) if isinstance(value, float) else value
    return merged


def machine() -> dict[str, Any]:
    """The processor, the cores that this process may use, and the system; nothing that names the machine."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"cpu": _cpu(), "cores": cores, "system": f"{platform.system()} {platform.machine()}"}


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # Not Linux.
        lines = []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or "unknown"


def _table(title: str, rows: Rows) -> Table:
    table = Table(title=title, title_justify="left")
    for name in rows[0]:
        numeric = any(isinstance(row[name], int | float) for row in rows)
        table.add_column(name.replace("_", " "), justify="right" if numeric else "left", no_wrap=not numeric)
    for row in rows:
        table.add_row(*(_shown(value) for value in row.values()))
    return table


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    if not isinstance(value, float) or not math.isfinite(value):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _plain(value: Any) -> Any:
    """Plain JSON: floats to five digits, what is not finite as null, which JSON has no other word for."""
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, float):
        return float(f"{value:.5g}") if math.isfinite(value) else None
    return value
