"""Several workers on this machine, led over keras-tuner's own gRPC service, which is that of several machines too."""

import os
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
        RuntimeError: if a worker ends before it has asked for a trial: the others would too.
    """
    logs = tuner.folder / "workers"
    logs.mkdir(exist_ok=True)
    with _served(tuner, f"{HOST}:0") as (_, port):
        shared = {**os.environ, **_threads(workers), LEADER: str(os.getpid())}
        shared |= {ADDRESS[0]: HOST, ADDRESS[1]: str(port)}
        running = [_start(f"worker-{number}", command, shared, logs) for number in range(workers)]
        try:
            while running:
                time.sleep(0.2)
                tuner.tell_of_ended()
                for worker in list(running):
                    code = worker.process.poll()
                    if code is not None:
                        running.remove(worker)
                    if code:
                        _end_its_trial(tuner, worker, code)
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


def _end_its_trial(tuner: MetaTuner, worker: _Worker, code: int) -> None:
    """Marks the trial of a dead worker as failed, if it had one."""
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
    oracle = tuner.oracle
    if worker.name not in oracle.tuner_ids:
        lines = [line for line in worker.log.read_text(errors="replace").splitlines() if line.strip()]
        raise RuntimeError(f"{worker.name} {how} before it asked for a trial; its log {worker.log} ends: {lines[-1:]}")
    oracle.tuner_ids.discard(worker.name)
    if (trial := oracle.ongoing_trials.get(worker.name)) is not None:
        trial.status, trial.message = "FAILED", f"its worker {how}"
        write_outcome(tuner.trial_folder(trial.trial_id), None, trial.message)
        oracle.end_trial(trial)


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
