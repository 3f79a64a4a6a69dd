"""Whether the local server stands: under load while versions come and go, and under attack.

A server in a process of its own serves a small adapting model, everything on 127.0.0.1. **Load**: 64 connections,
half of them REST and half gRPC, half of each reconnecting now and then, ask several times a second each, while a
newer version is published and taken back every few seconds, staged and renamed as one does in production. No request
may fail, every answer must be that of one of the two versions, and the resident memory of the server, sampled twice
a second, must be flat: the median of the run's last quarter at most 5 % above that of the second (the first warms
up). **Attack**: one attack of `benchmarks.serving_attacks` after the other, while four well-behaved connections ask
up to 100 times a second all in all. The server must live, answer every attack with a clear refusal, and never fail
the well-behaved.

`p99_ms` under attack is what the well-behaved clients saw meanwhile. `--seeds` repeats everything.
"""

import base64
import contextlib
import json
import math
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from rich.console import Console
from rich.progress import track
from tensorflow_serving.apis import predict_pb2, prediction_log_pb2

import tfmetarec as tmr
from benchmarks import report, serving_attacks
from tfmetarec.server import inference
from tfmetarec.server.servable import Servable
from tfmetarec.server.warmup import WARMUP_FILE

NAME = "serving_load"
MODEL = "shop"
CONNECTIONS = 64
DATA = {"n_users": 300, "n_items": 500}
SUPPORTS = (5, 20)
CANDIDATES = 100
RECONNECT_EVERY = 20
TIMEOUTS_MS, QUICK_TIMEOUTS_MS = (3000, 5000), (1000, 2000)  # For headers and bodies; the defaults would take minutes.
MAX_BODY_BYTES = 32 << 20
WELL_BEHAVED = {"connections": 4, "pause_s": 0.04}
PAUSE_S = 0.1  # Between the requests of a connection under load; without, loading a version takes half a minute.
STARTING_S = 3.0
FLAT, SLOW_MS = 1.05, 1000.0
KB = 1024

Question = tuple[str, dict[str, Any]]


class Process:
    """A server in a process of its own."""

    def __init__(self, base_path: Path, log: Path, **flags: Any):
        self.log = log
        given = {"port": _free_port(), "rest_api_port": _free_port(), "model_name": MODEL, **flags}
        given |= {"model_base_path": base_path, "file_system_poll_wait_seconds": 1}
        command = [sys.executable, "-m", "tfmetarec", "serve", *(f"--{name}={value}" for name, value in given.items())]
        with log.open("w") as written:
            self.process = subprocess.Popen(command, stdout=written, stderr=subprocess.STDOUT)
        self.grpc_port, self.rest_port = given["port"], given["rest_api_port"]

    def states(self) -> dict[int, str]:
        """The state of each version the server knows."""
        address = f"http://127.0.0.1:{self.rest_port}/v1/models/{MODEL}"
        with urllib.request.urlopen(address, timeout=30) as response:
            page = json.load(response)
        return {int(row["version"]): row["state"] for row in page["model_version_status"]}

    def wait_until(self, done: Callable[[dict[int, str]], bool], timeout_s: float = 120.0) -> None:
        """Returns once `done` holds for the versions' states."""
        end = time.monotonic() + timeout_s
        while time.monotonic() < end and self.process.poll() is None:
            with contextlib.suppress(OSError):
                if done(self.states()):
                    return
            time.sleep(0.1)
        raise RuntimeError(f"the server did not get so far: {' | '.join(self.log.read_text().splitlines()[-3:])}")

    def resident_mb(self) -> float:
        """Resident memory, in MiB; 0 once it has ended."""
        try:
            pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        except (OSError, IndexError):
            return 0.0
        return pages * os.sysconf("SC_PAGE_SIZE") / KB**2

    def stop(self) -> int:
        """Tells it to stop; returns its exit status."""
        self.process.terminate()
        try:
            return self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()


@contextlib.contextmanager
def serving(base_path: Path, log: Path, **flags: Any) -> Iterator[Process]:
    """A `Process` that answers; stopped at the end."""
    server = Process(base_path, log, **flags)
    try:
        server.wait_until(lambda states: "AVAILABLE" in states.values())
        yield server
    finally:
        server.stop()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


# -- what is served and asked ---------------------------------------------------------------------------------


class Scene(NamedTuple):
    """What is served and asked.

    Attributes:
        base: the served model's folder, with version 1.
        prepared: another version, to be published.
        questions: what clients ask: signatures and inputs.
        right: for each question the answers of both versions.
    """

    base: Path
    prepared: Path
    questions: list[Question]
    right: list[list[dict[str, np.ndarray]]]


def prepare(folder: Path, seed: int, *, quick: bool) -> Scene:
    """Exports two versions of a learner that adapts, whose answers differ; the same version twice if `quick`."""
    data = tmr.data.load("synthetic", seed=seed, **DATA)
    vocabulary = tmr.data.Vocabulary.fit(data)
    versions = []
    for number in range(1 if quick else 2):
        model = tmr.models.TwoTower(vocabulary, 16, seed=2 * seed + number)
        learner = tmr.meta.MAML(model, inner_steps=2, inner_learning_rate=0.2)
        versions.append(tmr.export.saved_model(learner, folder / f"export-{number}" / MODEL, top_k=10).path)
    asked = questions(data, vocabulary, seed)
    for version in set(versions):
        _warm_up_only(version, {signature for signature, _ in asked})
    base = folder / "served" / MODEL
    shutil.copytree(versions[0], base / "1")
    return Scene(base, versions[-1], asked, right_answers(asked, *versions))


def _warm_up_only(version: Path, signatures: set[str]) -> None:
    """Leaves out the warm-up of what nobody asks here: versions then change every few seconds also under load."""
    file = str(version / WARMUP_FILE)
    records = [
        record
        for record in tf.data.TFRecordDataset(file).as_numpy_iterator()
        if prediction_log_pb2.PredictionLog.FromString(record).predict_log.request.model_spec.signature_name
        in signatures
    ]
    assert len(records) == len(signatures)
    with tf.io.TFRecordWriter(file) as writer:
        for record in records:
            writer.write(record)


def questions(data: tmr.data.Interactions, vocabulary: tmr.data.Vocabulary, seed: int) -> list[Question]:
    """Signatures and inputs: a few cold users, with little and with much support."""
    rng = np.random.default_rng(seed)
    ids = vocabulary.item_ids[1:]
    assert data.users is not None
    segment = data.users["segment"][0]
    asked: list[Question] = []
    for support in SUPPORTS:
        user = {
            "support": rng.choice(ids, (1, support), replace=False),
            "support_labels": np.ones((1, support), np.float32),
            "support_length": np.array([support], np.int32),
            "user_segment": np.array([segment], np.object_),
        }
        asked.append(("adapt_and_recommend", user))
        asked.append(("adapt_and_score", {**user, "candidates": rng.choice(ids, (1, CANDIDATES), replace=False)}))
    return asked


def json_body(question: Question) -> dict[str, Any]:
    """A question for REST, in columns."""
    signature, inputs = question
    return {"signature_name": signature, "inputs": {name: array.tolist() for name, array in inputs.items()}}


def message(question: Question) -> predict_pb2.PredictRequest:
    """A question for gRPC."""
    request = predict_pb2.PredictRequest()
    request.model_spec.name, request.model_spec.signature_name = MODEL, question[0]
    for name, array in question[1].items():
        request.inputs[name].CopyFrom(tf.make_tensor_proto(array))
    return request


def decoded(protocol: str, answer: bytes) -> dict[str, np.ndarray]:
    """The outputs of an answer, whichever way it came; a signature with one output has no names over REST."""
    if protocol == "grpc":
        response = predict_pb2.PredictResponse.FromString(answer)
        return {name: tf.make_ndarray(tensor) for name, tensor in response.outputs.items()}
    outputs = json.loads(answer)["outputs"]
    named = outputs if isinstance(outputs, dict) else {"scores": outputs}
    return {name: np.array(value) for name, value in named.items()}


def same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> bool:
    """Whether two answers agree, up to the digits that JSON and another order of adding leave."""
    return found.keys() == expected.keys() and all(
        found[name].shape == expected[name].shape and np.allclose(found[name], expected[name], rtol=1e-4, atol=1e-5)
        for name in expected
    )


class Clients:
    """Well-behaved clients in a process of their own: see `benchmarks.serving_clients`."""

    def __init__(self, server: Process, asked: list[Question], *, connections: int, pause_s: float):
        settings = {
            "rest_port": server.rest_port,
            "grpc_port": server.grpc_port,
            "path": f"/v1/models/{MODEL}:predict",
            "rest": [json.dumps(json_body(question)) for question in asked],
            "grpc": [base64.b64encode(message(question).SerializeToString()).decode() for question in asked],
            "connections": connections,
            "reconnect_every": RECONNECT_EVERY,
            "pause_s": pause_s,
        }
        command = [sys.executable, "-m", "benchmarks.serving_clients"]
        root = Path(__file__).parents[1]
        self._process = subprocess.Popen(command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(settings) + "\n")
        self._process.stdin.flush()

    def finish(self) -> dict[str, Any]:
        """Lets them end their last requests; returns what they saw."""
        return json.loads(self._process.communicate(timeout=120)[0])

    def end(self) -> None:
        """Ends them if they are still there."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.communicate()


@contextlib.contextmanager
def asking(server: Process, asked: list[Question], **settings: Any) -> Iterator[Clients]:
    """`Clients` that are surely gone at the end."""
    clients = Clients(server, asked, **settings)
    try:
        yield clients
    finally:
        clients.end()


def right_answers(asked: list[Question], *versions: Path) -> list[list[dict[str, np.ndarray]]]:
    """For each question the answers of the versions, each from a session of its own."""
    answers: list[list[dict[str, np.ndarray]]] = [[] for _ in asked]
    for number, path in enumerate(versions):
        servable = Servable(MODEL, number, path)
        for place, question in enumerate(asked):
            response = inference.predict_request(servable, message(question))
            answers[place].append(decoded("grpc", response.SerializeToString()))
        servable.close()
    return answers


def wrong_answers(seen: dict[str, Any], right: list[list[dict[str, np.ndarray]]]) -> int:
    """How many requests got an answer that no version gives."""
    is_right = []
    for protocol, request, answer in seen["answers"]:
        found = decoded(protocol, base64.b64decode(answer))
        is_right.append(any(same(found, expected) for expected in right[request]))
    return sum(place >= 0 and not is_right[place] for *_, place in seen["calls"])


def failed_requests(seen: dict[str, Any], scene: Scene) -> tuple[int, list[str]]:
    """How many requests failed or were answered wrongly, and the first few reasons."""
    wrong = wrong_answers(seen, scene.right)
    why = [f"{wrong} answers are of no version"] if wrong else []
    return len(seen["failures"]) + wrong, [*why, *seen["failures"][:5]]


# -- load -----------------------------------------------------------------------------------------------------


class Publisher:
    """Publishes a newer version and takes it back, over and over, as one does it: staged, then renamed."""

    def __init__(self, base: Path, prepared: Path, server: Process, every_s: float):
        self.changes = 0
        self._base, self._prepared, self._server, self._every_s = base, prepared, server, every_s
        self._stop = threading.Event()
        self._problem: Exception | None = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            while not self._stop.wait(self._every_s):
                newest = self.changes // 2 + 2
                if self.changes % 2 == 0:
                    shutil.copytree(self._prepared, self._base / "staging")
                    (self._base / "staging").rename(self._base / str(newest))
                    self._wait_for(newest)
                else:
                    (self._base / str(newest)).rename(self._base / "taken-back")
                    shutil.rmtree(self._base / "taken-back")
                    self._wait_for(1)
                self.changes += 1
        except Exception as error:
            self._problem = error

    def _wait_for(self, version: int) -> None:
        """Until this version is the only one, the others being unloaded altogether."""
        self._server.wait_until(
            lambda states: (
                {number: state for number, state in states.items() if state != "END"} == {version: "AVAILABLE"}
            )
        )

    def finish(self) -> int:
        """Ends after the change under way; returns how many there were."""
        self._stop.set()
        self._thread.join()
        if self._problem is not None:
            raise self._problem
        return self.changes


class Load(NamedTuple):
    """What came of a run under load.

    Attributes:
        rows: the table, one row per protocol.
        memory: resident memory of the server in MiB: the medians of the quarters of the run.
        failed: requests that failed or were answered wrongly.
        failures: why, the first few.
    """

    rows: report.Rows
    memory: dict[str, Any]
    failed: int
    failures: list[str]

    @property
    def growth(self) -> float:
        """Memory of the last quarter over that of the second."""
        return self.memory["quarter_4_mb"] / self.memory["quarter_2_mb"]


def load(scene: Scene, server: Process, *, seconds: float, every_s: float, console: Console) -> Load:
    """Many connections at once, while versions come and go.

    Args:
        scene: what is served and asked.
        server: that serves it.
        seconds: how long.
        every_s: seconds between a change of versions and the next.
        console: where progress is shown.
    """
    memory = []
    with asking(server, scene.questions, connections=CONNECTIONS, pause_s=PAUSE_S) as clients:
        publisher = Publisher(scene.base, scene.prepared, server, every_s)
        for _ in track(range(int(2 * seconds)), "load", console=console, transient=True):
            time.sleep(0.5)
            memory.append(server.resident_mb())
        changes = publisher.finish()
        seen = clients.finish()
    rows = []
    for protocol in ("rest", "grpc"):
        calls = [call for call in seen["calls"] if call[0] == protocol]
        took = np.array([call[2] for call in calls])
        span_s = max(call[1] for call in calls) - min(call[1] for call in calls)
        row: dict[str, Any] = {"protocol": protocol, "connections": CONNECTIONS // 2, "requests": len(calls)}
        row |= {"failed": sum(call[3] < 0 for call in calls), "per_s": len(calls) / span_s}
        row |= {f"p{part}_ms": float(np.percentile(took, part)) for part in (50, 99)}
        rows.append({**row, "longest_ms": float(took.max())})
    quarters = [float(median(part)) for part in np.array_split(memory, 4)]
    figures: dict[str, Any] = {f"quarter_{number}_mb": value for number, value in enumerate(quarters, 1)}
    figures |= {"most_mb": max(memory), "version_changes": changes}
    failed, failures = failed_requests(seen, scene)
    return Load(rows, figures, failed, failures)


# -- attack ---------------------------------------------------------------------------------------------------


class Attacked(NamedTuple):
    """What came of the attacks.

    Attributes:
        rows: what the well-behaved saw, one row per attack.
        answers: what the attackers got, one row per attack.
        failed: requests of the well-behaved that failed or were answered wrongly.
        not_allowed: answers to attacks that are no clear refusal.
        failures: examples of both.
    """

    rows: report.Rows
    answers: report.Rows
    failed: int
    not_allowed: int
    failures: list[str]


def attack(scene: Scene, server: Process, timeouts_ms: tuple[int, int], *, quick: bool, console: Console) -> Attacked:
    """One attack after the other, beside clients that want nothing but answers.

    Args:
        scene: what is served and asked.
        server: that serves it.
        timeouts_ms: the time limits that the server has for headers and bodies.
        quick: whether the attacks are small.
        console: where progress is shown.
    """
    question = scene.questions[0]
    header_s, body_s = (each / 1e3 for each in timeouts_ms)
    ports = (server.rest_port, server.grpc_port)
    victim = serving_attacks.Victim(
        *ports, MODEL, json_body(question), message(question), (header_s, body_s), MAX_BODY_BYTES
    )
    starts, names, memory = [], ["nothing"], []
    answers: report.Rows = []
    failures, not_allowed = [], 0
    with asking(server, scene.questions, **WELL_BEHAVED) as clients:
        time.sleep(STARTING_S)
        starts.append(time.monotonic())
        time.sleep(1 if quick else 5)
        memory.append(server.resident_mb())
        for each in track(serving_attacks.ATTACKS, "attacks", console=console, transient=True):
            starts.append(time.monotonic())
            names.append(each.name)
            try:
                got = each.run(victim, each.sizes[0 if quick else 1])
            except OSError as error:
                got = Counter({f"{type(error).__name__}: {error}": 1})  # As when nobody listens any more.
            memory.append(server.resident_mb())
            counts = ", ".join(f"{answer} {count}" for answer, count in got.most_common())
            answers.append({"attack": each.name, "tries": got.total(), "answers": counts})
            wrong = {answer: count for answer, count in got.items() if answer not in each.allowed}
            not_allowed += sum(wrong.values())
            if wrong:
                failures.append(f"{each.name}: {wrong}")
        seen = clients.finish()
    rows = []
    for name, start, end, size_mb in zip(names, starts, [*starts[1:], math.inf], memory, strict=True):
        calls = [call for call in seen["calls"] if start <= call[1] < end]
        took = [call[2] for call in calls] or [math.nan]
        row: dict[str, Any] = {"attack": name, "requests": len(calls), "failed": sum(call[3] < 0 for call in calls)}
        row |= {f"p{part}_ms": float(np.percentile(took, part)) for part in (50, 99)}
        rows.append({**row, "longest_ms": max(took), "memory_mb": size_mb})
    failed, why = failed_requests(seen, scene)
    return Attacked(rows, answers, failed, not_allowed, [*failures, *why])


def main(arguments: list[str] | None = None) -> int:
    options = report.read_options(NAME, "The local server under load and under attack.", arguments)
    console = report.console()
    seconds, every_s = (5.0, 0.5) if options.quick else (60.0, 2.0)
    timeouts_ms = QUICK_TIMEOUTS_MS if options.quick else TIMEOUTS_MS
    flags = {
        "header_timeout_in_ms": timeouts_ms[0],
        "body_timeout_in_ms": timeouts_ms[1],
        "max_body_bytes": MAX_BODY_BYTES,
    }
    loads, attacks, statuses, load_averages = [], [], [], []
    for seed in range(options.seeds):
        console.print(
            f"seed {seed}: {CONNECTIONS} connections for {seconds:.0f} s, then {len(serving_attacks.ATTACKS)} attacks"
        )
        load_averages.append(os.getloadavg()[0])
        with tempfile.TemporaryDirectory() as name:
            scene = prepare(Path(name), seed, quick=options.quick)
            with serving(scene.base, Path(name) / "server.log", **flags) as server:
                loads.append(load(scene, server, seconds=seconds, every_s=every_s, console=console))
                attacks.append(attack(scene, server, timeouts_ms, quick=options.quick, console=console))
                statuses.append(server.stop())
        for failure in (*loads[-1].failures, *attacks[-1].failures):
            console.print(f"  {failure}", markup=False, highlight=False)
    worst = float(np.nanmax([row["p99_ms"] for attacked in attacks for row in attacked.rows]))
    targets = [
        report.Target("failed requests under load", sum(each.failed for each in loads), "at most", 0),
        report.Target("memory, last quarter over second", max(each.growth for each in loads), "at most", FLAT),
        report.Target("failed requests under attack", sum(each.failed for each in attacks), "at most", 0),
        report.Target("attacks without a clear answer", sum(each.not_allowed for each in attacks), "at most", 0),
        report.Target("worst p99 under attack in ms", worst, "at most", SLOW_MS),
        report.Target("servers that did not end with 0", sum(status != 0 for status in statuses), "at most", 0),
    ]
    config = {
        "data": {"name": "synthetic", **DATA},
        "model": {"class": "TwoTower", "embedding_dim": 16},
        "learner": {"class": "MAML", "inner_steps": 2, "inner_learning_rate": 0.2},
        "support": SUPPORTS,
        "candidates": CANDIDATES,
        "flags": flags,
        "seconds": seconds,
        "seconds_between_version_changes": every_s,
        "pause_s": PAUSE_S,
        "reconnect_every": RECONNECT_EVERY,
        "under_attack": WELL_BEHAVED,
        "load_average_before": load_averages,
    }
    figures = {
        f"{CONNECTIONS} connections while versions come and go": [row for each in loads for row in each.rows],
        "resident memory of the server under load": [each.memory for each in loads],
        "what attackers got": [row for each in attacks for row in each.answers],
        "what the well-behaved saw meanwhile": [row for each in attacks for row in each.rows],
    }
    return report.finish(options, config=config, figures=figures, targets=targets, console=console)


if __name__ == "__main__":
    report.run(main)
