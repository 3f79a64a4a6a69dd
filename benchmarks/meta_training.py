"""The engine against its peers: one second-order MAML step on an MLP, and a step over large embedding tables.

Every way runs in a process of its own, on the same first weights and the same batches (`benchmarks/peers`); one process
works at a time, in interleaved turns, and ratios are taken within a turn. The peers are JAX and PyTorch, from
`pip install .[peers]`; those that are missing are named, and their targets left out.

The columns: `step_ms` is the median over turns of each turn's median step; `ratio` how many times as long as
tfmetarec's step of the same turn it takes, the median over turns; `compile_s` what the first step takes longer than
another; `peak_growth_mb` by how much compiling and training raise the peak memory of the process. After equally many
steps all ways must have the same loss, or the run fails: they do the same thing.
"""

import importlib.util
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.progress import track

from benchmarks import report
from benchmarks.peers.problem import SHAPES

NAME = "meta_training"
OURS, PLAIN, GENERIC = "tfmetarec_maml", "tfmetarec_maml:plain", "tfmetarec_maml:vectorized"
JAX, JAX_SCAN = "jax_vmap", "jax_vmap:scan"
TORCH, TORCH_COMPILED, LOOP = "torch_func", "torch_func:compiled", "torch_loop"
WAYS = (OURS, PLAIN, GENERIC, JAX, JAX_SCAN, TORCH, TORCH_COMPILED, LOOP)
UNCOMPILED = (TORCH, LOOP)
PACKAGE = {JAX: "jax", JAX_SCAN: "jax", TORCH: "torch", TORCH_COMPILED: "torch", LOOP: "torch"}
OPTIMIZERS = ("adagrad", "sgd", "adam")
TURNS = 9
TURN_MS = 300  # A turn takes about this long, or one step: short beside the moods of the machine.
EMBEDDING_ROWS = (10_000, 10_000_000)
WARMUP = 3


class Worker:
    """A way in a process of its own, waiting to be told how many steps to take."""

    def __init__(self, way: str, *arguments: str):
        module, _, form = way.partition(":")
        command = [sys.executable, "-m", f"benchmarks.peers.{module}", "--serve", "--warmup", str(WARMUP), *arguments]
        command += ["--way", form] if form else []
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  Open as long as the worker is.
        self._process = subprocess.Popen(
            command,
            cwd=Path(__file__).parents[1],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        self.ready = self._answer()

    def steps(self, number: int) -> list[float]:
        """Takes steps; returns the milliseconds of each."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{number}\n")
        self._process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        self._process.communicate()
        self._errors.close()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._errors.seek(0)
            raise RuntimeError(f"a worker ended: {self._errors.read()[-2000:]}")
        return json.loads(line)


def available() -> tuple[list[str], list[str]]:
    """The ways that can run here, and the packages that are missing for the others."""
    missing = sorted({package for package in PACKAGE.values() if importlib.util.find_spec(package) is None})
    return [way for way in WAYS if PACKAGE.get(way) not in missing], missing


def measure(shape: int, ways: list[str], seed: int, turns: int, console: Console) -> report.Rows:
    """One row for each way at one shape."""
    workers = {}
    try:
        for way in track(ways, f"starting at {SHAPES[shape]}", console=console, transient=True):
            workers[way] = Worker(way, "--shape", str(shape), "--seed", str(seed))
        return _timed(shape, workers, turns, console)
    finally:
        for worker in workers.values():
            worker.close()


def _timed(shape: int, workers: dict[str, Worker], turns: int, console: Console) -> report.Rows:
    check_losses(shape, {way: worker.ready["losses"] for way, worker in workers.items() if way != PLAIN})
    turn_ms = take_turns(workers, turns, f"turns at {SHAPES[shape]}", console)
    rows = []
    for way, worker in workers.items():
        ratios = [other / ours for other, ours in zip(turn_ms[way], turn_ms[OURS], strict=True)]
        row: dict[str, Any] = {"shape": str(SHAPES[shape]), "way": worker.ready["peer"]}
        row |= {"step_ms": median(turn_ms[way]), "ratio": median(ratios)}
        row |= {"lowest_ratio": min(ratios), "highest_ratio": max(ratios)}
        row["compile_s"] = None if way in UNCOMPILED else worker.ready["compile_s"]
        row["peak_growth_mb"] = worker.ready["peak_growth_mb"]
        rows.append(row)
    return rows


def check_losses(shape: int, losses: dict[str, list[float]]) -> None:
    """Refuses ways whose losses of the first steps differ: they would not have done the same thing."""
    for way, each in losses.items():
        if any(abs(a - b) > 1e-3 * abs(b) for a, b in zip(each, losses[OURS], strict=True)):
            raise RuntimeError(f"{way} disagrees at {SHAPES[shape]}: {each} against {losses[OURS]}")


def take_turns(workers: dict[Any, Worker], turns: int, what: str, console: Console) -> dict[Any, list[float]]:
    """The median step of each turn, in milliseconds."""
    turn_ms: dict[Any, list[float]] = {key: [] for key in workers}
    for _ in track(range(turns), what, console=console, transient=True):
        for key, worker in workers.items():
            (first,) = worker.steps(1)  # Caches, after another process had them.
            turn_ms[key].append(median(worker.steps(max(1, min(20, int(TURN_MS / first))))))
    return turn_ms


def embedding_steps(
    seed: int, optimizers: Sequence[str], sizes: Sequence[int], turns: int, console: Console
) -> report.Rows:
    """One row for each optimizer and table size; the ratio is to the step of the smallest table."""
    rows: report.Rows = []
    for optimizer in optimizers:
        workers: dict[int, Worker] = {}
        try:
            for size in sizes:
                arguments = ("--rows", str(size), "--seed", str(seed))
                workers[size] = Worker(f"embedding_table:{optimizer}", *arguments)
            turn_ms = take_turns(workers, turns, f"tables with {optimizer}", console)
            for size, worker in workers.items():
                ratios = [large / small for large, small in zip(turn_ms[size], turn_ms[sizes[0]], strict=True)]
                row: dict[str, Any] = {
                    "optimizer": worker.ready["peer"],
                    "rows": size,
                    "step_ms": median(turn_ms[size]),
                }
                row |= {"ratio": median(ratios), "lowest_ratio": min(ratios), "highest_ratio": max(ratios)}
                rows.append({**row, "peak_growth_mb": worker.ready["peak_growth_mb"]})
        finally:
            for worker in workers.values():
                worker.close()
    return rows


def main(arguments: list[str] | None = None) -> int:
    options = report.read_options(NAME, "The engine against JAX, PyTorch and a plain training step.", arguments)
    console = report.console()
    ways, missing = available()
    for package in missing:
        console.print(
            f"{package} is not installed, so its ways do not run: pip install .[peers]", highlight=False, markup=False
        )
    if options.quick:
        ways = [way for way in ways if way not in (GENERIC, TORCH_COMPILED)]  # The latter compiles for a minute.
    shapes = range(1) if options.quick else range(len(SHAPES))
    sizes = (1_000, 10_000) if options.quick else EMBEDDING_ROWS
    turns = 2 if options.quick else TURNS
    runs, tables = [], []
    for seed in range(options.seeds):
        console.print(f"seed {seed}", highlight=False)
        runs.append([row for shape in shapes for row in measure(shape, ways, seed, turns, console)])
        tables.append(embedding_steps(seed, OPTIMIZERS[:1] if options.quick else OPTIMIZERS, sizes, turns, console))
    rows = [report.merged(list(same)) for same in zip(*runs, strict=True)]
    table = [report.merged(list(same)) for same in zip(*tables, strict=True)]
    figures = {"one second-order MAML step": rows, "one MAML step over an embedding table": table}
    config = {"ways": ways, "missing": missing, "shapes": [SHAPES[s]._asdict() for s in shapes]}
    config |= {"turns": turns, "warmup": WARMUP, "embedding_rows": sizes}
    targets = _targets([str(SHAPES[shape]) for shape in shapes], ways, rows, table)
    return report.finish(options, config=config, figures=figures, targets=targets, console=console)


def _targets(shapes: list[str], ways: list[str], rows: report.Rows, table: report.Rows) -> list[report.Target]:
    ratio = {(row["shape"], row["way"]): row["ratio"] for row in rows}
    names = {way: row["way"] for way, row in zip(ways, rows, strict=False)}
    bounds = {JAX: 1.0, TORCH: 3.0, LOOP: 15.0}
    targets = []
    for shape in shapes:
        for way, bound in bounds.items():
            if way in ways:
                found = ratio[shape, names[way]]
                targets.append(report.Target(f"{names[way]} over tfmetarec at {shape}", found, "at least", bound))
        if shape.startswith("D512 H512, 1 step"):
            over_plain = 1 / ratio[shape, names[PLAIN]]
            targets.append(report.Target(f"tfmetarec over a plain step at {shape}", over_plain, "at most", 1.6))
    smallest, largest = (extreme(row["rows"] for row in table) for extreme in (min, max))
    for row in table:
        if row["rows"] == largest:
            name = f"{row['optimizer']}: a step at {largest:,} rows over one at {smallest:,}"
            targets.append(report.Target(name, row["ratio"], "at most", 1.2))
    return targets


if __name__ == "__main__":
    report.run(main)
