"""What every peer does alike when it is run: `python -m benchmarks.peers.NAME --shape INDEX`.

It builds its weights and batches, warms up, times its steps and prints one line of JSON. With `--serve` it prints that
line after warming up, and then waits: for every number on a line of its standard input it takes so many steps, and
answers with a line of their milliseconds. So one parent can hold several peers ready and let them work in turns.
"""

import argparse
import itertools
import json
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any, Protocol

from benchmarks.peers.problem import SHAPES, Batch, Shape, Weights, batch, initial_weights

BATCHES = 4  # Kept in memory and taken in turn: a step on the same one over and over soon has nothing left to learn.


class Peer(Protocol):
    """A way to take one meta-training step, with weights and an optimizer of its own."""

    name: str
    version: str

    def __init__(self, weights: Weights, shape: Shape): ...

    def put(self, batch: Batch) -> Any:
        """The batch as the peer wants it; the other methods take this and NumPy's arrays alike."""

    def step(self, batch: Any) -> float:
        """Moves the weights; returns the loss before, once weights and loss are there."""

    def meta_gradient(self, batch: Any) -> tuple[float, Weights]:
        """The loss and its gradients, one for each of the weights, which stay as they were."""

    def weights(self) -> Weights:
        """A copy of the weights."""


def main(ways: dict[str, type[Peer]], arguments: list[str] | None = None) -> None:
    """Runs one of a module's peers as the command line says; the first is the default."""
    parser = argparse.ArgumentParser(description="Times one peer's training step; prints JSON.")
    shapes = "; ".join(f"{index}: {shape}" for index, shape in enumerate(SHAPES))
    parser.add_argument("--shape", type=int, required=True, choices=range(len(SHAPES)), help=shapes)
    parser.add_argument("--way", default=next(iter(ways)), choices=ways, help="how (default %(default)s)")
    add_options(parser)
    given = checked(parser, arguments)
    shape = SHAPES[given.shape]
    peer = ways[given.way](initial_weights(shape, given.seed), shape)
    batches = [peer.put(batch(shape, given.seed + 1 + index)) for index in range(BATCHES)]
    serve(Run(peer, batches), given, parser)


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options that every worker takes."""
    parser.add_argument("--warmup", type=int, default=3, metavar="N", help="steps before those that are timed")
    parser.add_argument("--steps", type=int, default=20, metavar="N", help="steps to time (not with --serve)")
    parser.add_argument("--serve", action="store_true", help="steps are asked for on standard input, a number a line")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of weights and data")


def checked(parser: argparse.ArgumentParser, arguments: list[str] | None) -> argparse.Namespace:
    """The command line, refused where it makes no sense."""
    given = parser.parse_args(arguments)
    if given.warmup < 2:
        parser.error(f"`--warmup` must be at least 2, one step to compile and one not. Received: {given.warmup}")
    if given.steps < 1:
        parser.error(f"`--steps` must be at least 1. Received: {given.steps}")
    return given


def serve(run: "Run", given: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Warms up and prints what was measured; with `--serve`, goes on as it is told."""
    warmup_ms = run.steps(given.warmup)
    compile_s = (warmup_ms[0] - median(warmup_ms[1:])) / 1e3
    if not given.serve:
        _say(run.report(compile_s, run.steps(given.steps)))
        return
    _say(run.report(compile_s, warmup_ms[1:]))
    for line in sys.stdin:
        if not line.strip().isdecimal() or int(line) < 1:
            parser.error(f"a line of standard input must be a number of steps, at least 1. Received: {line!r}")
        _say(run.steps(int(line)))


class Run:
    """A peer on its batches, and the peak memory of the process before its first step."""

    def __init__(self, peer: Any, batches: list[Any]):
        self._peer = peer
        self._batches: Iterator[Any] = itertools.cycle(batches)
        self._losses: list[float] = []
        self._before_mb = peak_mb()

    def steps(self, number: int) -> list[float]:
        """Takes steps; returns the milliseconds of each."""
        elapsed = []
        for rows in itertools.islice(self._batches, number):
            start = time.perf_counter()
            self._losses.append(self._peer.step(rows))
            elapsed.append((time.perf_counter() - start) * 1e3)
        return elapsed

    def report(self, compile_s: float, step_ms: list[float]) -> dict[str, Any]:
        """What the process has measured by now, plain JSON."""
        return {
            "peer": self._peer.name,
            "version": self._peer.version,
            "compile_s": compile_s,
            "step_ms": step_ms,
            "peak_growth_mb": peak_mb() - self._before_mb,
            "losses": self._losses,
        }


def peak_mb() -> float:
    """The most memory that this process ever held, in megabytes."""
    status = Path("/proc/self/status")
    if status.exists():  # Linux's `ru_maxrss` begins with that of the process which started this one.
        peak = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(peak.split()[1]) / 2**10
    unit = 2**20 if sys.platform == "darwin" else 2**10  # macOS counts bytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def _say(value: Any) -> None:
    print(json.dumps(value), flush=True)
