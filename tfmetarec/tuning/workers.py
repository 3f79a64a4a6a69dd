"""Several workers on this machine, led over keras-tuner's own gRPC service, which is that of several machines too."""

import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent import futures
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import grpc

from tfmetarec.tuning.tuner import MetaTuner, write_outcome

HOST = "127.0.0.1"
ADDRESS = ("KERASTUNER_ORACLE_IP", "KERASTUNER_ORACLE_PORT")
ROLE = "KERASTUNER_TUNER_ID"
LEADER = "TFMETAREC_LEADER"  # The process that started a worker.
STOP_AT = "TFMETAREC_STOP_AT"  # When its search ends, as `time.time` counts.
BARREN = 3  # Deaths of a worker, one after another, without a trial.


class _Worker(NamedTuple):
    name: str
    process: subprocess.Popen
    log: Path


def role() -> str:
    """What the environment makes of this process: "alone", "chief" or "worker".

    Raises:
        ValueError: if only a part of the three variables is set.
    """
    there = [name for name in (*ADDRESS, ROLE) if os.environ.get(name)]
    if not there:
        return "alone"
    if missing := [name for name in (*ADDRESS, ROLE) if name not in there]:
        raise ValueError(f"a search on several machines needs {', '.join((*ADDRESS, ROLE))}. Missing: {missing[0]}")
    return "chief" if "chief" in os.environ[ROLE] else "worker"


@contextmanager
def _served(tuner: MetaTuner, address: str) -> Iterator[tuple[Any, int]]:
    """Answers workers at an address; gives keras-tuner's servicer, and the port.

    Raises:
        ValueError: if nothing can listen there.
    """
    from keras_tuner.src import protos
    from keras_tuner.src.distribute.oracle_chief import OracleServicer

    server = grpc.server(futures.ThreadPoolExecutor(max_workers=1))  # The oracle answers one at a time.
    servicer = OracleServicer(tuner.oracle)
    protos.get_service_grpc().add_OracleServicer_to_server(servicer, server)
    try:
        port = server.add_insecure_port(address)
    except RuntimeError:
        raise ValueError(
            f"the chief cannot listen at {address}: the address is not this machine's, or taken."
        ) from None
    server.start()
    tuner.save()
    try:
        yield servicer, port
    finally:
        server.stop(None).wait()
        tuner.save()  # Without what keras-tuner still has under way when it saves a trial's end.


def chief(tuner: MetaTuner) -> None:
    """Hands out trials to workers of any machine, at the address in the environment, until there are no more.

    A worker that dies is missed until one of the same name takes up its trial.

    Args:
        tuner: whose oracle is asked. It trains nothing here.
    """
    oracle = tuner.oracle
    with _served(tuner, ":".join(os.environ[name] for name in ADDRESS)) as (servicer, _):
        while oracle.ongoing_trials or oracle.tuner_ids or not servicer.stop_triggered:
            time.sleep(0.5)
            tuner.tell_of_ended()


def lead(tuner: MetaTuner, command: Sequence[str], workers: int) -> None:
    """Starts workers and hands out trials to them until the oracle has no more.

    The channel is not encrypted and asks nobody who they are: it listens on the loopback interface alone. A worker
    that dies loses its trial, which is noted as failed, and another takes its place.

    Args:
        tuner: whose oracle is asked. It trains nothing here.
        command: of a worker, which makes the same tuner and searches. It finds in its environment where to ask.
        workers: int, at least 1.

    Raises:
        RuntimeError: if a worker ends before it has asked for a trial, or three times without one.
    """
    logs = tuner.folder / "workers"
    logs.mkdir(exist_ok=True)
    barren = dict.fromkeys((f"worker-{number}" for number in range(workers)), 0)
    asked: set[str] = set()
    with _served(tuner, f"{HOST}:0") as (servicer, port):
        shared = {**os.environ, **_threads(workers), LEADER: str(os.getpid())}
        shared |= {ADDRESS[0]: HOST, ADDRESS[1]: str(port)}
        if tuner.stop_at is not None:
            shared[STOP_AT] = str(tuner.stop_at)
        running = [_start(name, command, shared, logs) for name in barren]
        try:
            while running:
                time.sleep(0.2)
                asked |= tuner.oracle.tuner_ids
                tuner.tell_of_ended()
                for worker in list(running):
                    if (code := worker.process.poll()) is None:
                        continue
                    running.remove(worker)
                    had_one = _end_its_trial(tuner, worker, code)
                    if code == 0 or servicer.stop_triggered:
                        continue
                    barren[worker.name] = 0 if had_one else barren[worker.name] + 1
                    if worker.name not in asked or barren[worker.name] >= BARREN:
                        said = f"{worker.name} {_how(code)} without a trial"
                        raise RuntimeError(f"{said}; its log {worker.log} ends: {_last(worker.log)}")
                    running.append(_start(worker.name, command, shared, logs))
        finally:
            for worker in running:
                worker.process.terminate()
            for worker in running:
                _wait(worker.process)
    tuner.tell_of_ended()


def end_with_leader() -> None:
    """Lets a worker end when the process that started it has: nobody would hand it another trial."""
    leader = os.environ.get(LEADER)

    def watch() -> None:
        while os.getppid() == int(leader or 0):
            time.sleep(1)
        os._exit(1)

    if leader is not None:
        threading.Thread(target=watch, daemon=True).start()


def _start(name: str, command: Sequence[str], environment: dict[str, str], logs: Path) -> _Worker:
    log = logs / f"{name}.log"
    with log.open("ab") as out:
        process = subprocess.Popen(command, env={**environment, ROLE: name}, stdout=out, stderr=subprocess.STDOUT)
    return _Worker(name, process, log)


def _end_its_trial(tuner: MetaTuner, worker: _Worker, code: int) -> bool:
    """Marks the trial of a worker that has ended as failed; says whether it had one."""
    oracle = tuner.oracle
    oracle.tuner_ids.discard(worker.name)
    trial = oracle.ongoing_trials.get(worker.name)
    if trial is None:
        return False
    trial.status, trial.message = "FAILED", f"its worker {_how(code)}"
    write_outcome(tuner.trial_folder(trial.trial_id), None, trial.message)
    oracle.end_trial(trial)
    return True


def _how(code: int) -> str:
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"


def _last(log: Path) -> str:
    """The last line of a log that is not one of TensorFlow's."""
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    own = [line for line in lines if not re.match(r"[IWE]\d{4} |WARNING: All log", line)]
    return own[-1].strip() if own else "nothing"


def _threads(workers: int) -> dict[str, str]:
    """Shares the cores, unless the user has."""
    each = str(max(1, (os.cpu_count() or 1) // workers))
    names = ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS", "OMP_NUM_THREADS")
    return {name: os.environ.get(name, each) for name in names}


def _wait(process: subprocess.Popen) -> None:
    try:
        process.wait(timeout=10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
