"""Many clients at once, while versions come and go and when the server is told to stop."""

import contextlib
import importlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import grpc
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

from tfmetarec.server import Server

pytestmark = pytest.mark.serving

ROOT = Path(__file__).parents[2]
PATH = "/v1/models/basket:predict"
SCORE = {"inputs": {"item": ["a"], "price": [1.0], "count": [[1, 1]]}}


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def score_request():
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "basket"
    for name, array in {"item": ["a"], "price": np.float32([1]), "count": np.int64([[1, 1]])}.items():
        request.inputs[name].CopyFrom(tf.make_tensor_proto(array))
    return request


def slow_request(steps):
    request = predict_pb2.PredictRequest()
    request.model_spec.name, request.model_spec.signature_name = "basket", "slow"
    request.inputs["steps"].CopyFrom(tf.make_tensor_proto(np.int32([steps])))
    return request


def post(body):
    return f"POST {PATH} HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


def read_answer(connection):
    """Status and JSON of the next answer."""
    text = b""
    while b"\r\n\r\n" not in text:
        part = connection.recv(65536)
        assert part, f"the connection ended after {text!r}"
        text += part
    head, _, body = text.partition(b"\r\n\r\n")
    length = int(head.lower().split(b"content-length:")[1].split()[0])
    while len(body) < length:
        body += connection.recv(65536)
    return int(head[9:12]), json.loads(body)


@pytest.fixture
def base(exported, tmp_path):
    shutil.copytree(exported / "1", tmp_path / "basket" / "1")
    return tmp_path / "basket"


@pytest.fixture(scope="module")
def second_s(exported):
    """How many steps of `slow` this machine makes in a second."""
    with (
        Server("basket", exported, port=None) as server,
        socket.create_connection(("127.0.0.1", server.rest_api_port), 60) as connection,
    ):
        for steps in (10, 1000):
            started = time.monotonic()
            connection.sendall(post(json.dumps({"signature_name": "slow", "inputs": [steps]}).encode()))
            assert read_answer(connection)[0] == 200
    return int(1000 / (time.monotonic() - started))


# -- versions that come and go --------------------------------------------------------------------------------


def test_no_request_fails_while_versions_are_published_and_taken_back(exported, base, http_call):
    failures, scores = [], []
    stop = threading.Event()

    def ask_rest():
        while not stop.is_set():
            status, page = http_call(server.rest_api_port, "POST", PATH, SCORE)
            scores.append(page["outputs"]["score"][0]) if status == 200 else failures.append(page)

    def ask_grpc():
        with grpc.insecure_channel(f"127.0.0.1:{server.port}", [("grpc.use_local_subchannel_pool", 1)]) as channel:
            stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
            while not stop.is_set():
                try:
                    scores.append(stub.Predict(score_request(), timeout=20).outputs["score"].float_val[0])
                except grpc.RpcError as error:
                    failures.append(error.details())

    def newest_is(number):
        end = time.monotonic() + 30
        while True:
            _, page = http_call(server.rest_api_port, "GET", "/v1/models/basket")
            states = {int(row["version"]): row["state"] for row in page["model_version_status"]}
            if [version for version, state in states.items() if state != "END"] == [number]:
                return
            assert time.monotonic() < end, states
            time.sleep(0.02)

    with Server("basket", base, file_system_poll_wait_s=0.05) as server:
        threads = [threading.Thread(target=ask) for ask in (ask_rest, ask_grpc) * 4]
        for thread in threads:
            thread.start()
        for version in ("2", "3"):
            shutil.copytree(exported / "2", base / "staging")
            (base / "staging").rename(base / version)
            newest_is(int(version))
            (base / version).rename(base / "away")
            shutil.rmtree(base / "away")
            newest_is(1)
        stop.set()
        for thread in threads:
            thread.join()
    assert failures == []
    assert set(scores) == {2.0, 102.0}  # Nothing but the answers of the two versions.
    assert len(scores) > 100


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="resident memory is read from /proc")
def test_memory_stays_flat_over_many_versions(exported, base, http_call):
    port = free_port()
    with process(base, port, base.parent / "log") as server:

        def resident_mb():
            pages = int(Path(f"/proc/{server.pid}/statm").read_text().split()[1])
            return pages * os.sysconf("SC_PAGE_SIZE") / 2**20

        sizes = []
        for number in range(40):
            version = base / str(number + 2)
            shutil.copytree(exported / "2", base / "staging")
            (base / "staging").rename(version)
            if number:
                (base / str(number + 1)).rename(base / "away")
                shutil.rmtree(base / "away")
            end = time.monotonic() + 30
            while True:
                _, page = http_call(port, "GET", "/v1/models/basket")
                open_ones = [row["version"] for row in page["model_version_status"] if row["state"] != "END"]
                if open_ones == [str(number + 2)]:
                    break
                assert time.monotonic() < end, page
                time.sleep(0.02)
            assert http_call(port, "POST", PATH, SCORE)[1]["outputs"]["score"] == [102.0]
            sizes.append(resident_mb())
    # What a version needs is a few MB here; ten versions that stayed would be far more.
    assert sizes[-1] - sizes[9] < 10, sizes


@pytest.mark.slow
def test_the_benchmark_runs_and_no_request_fails(tmp_path):
    out = tmp_path / "serving_load.json"
    command = [sys.executable, "-m", "benchmarks.serving_load", "--quick", "--out", str(out)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "these figures mean nothing" in run.stdout
    result = json.loads(out.read_text())
    values = {target["name"]: target["value"] for target in result["targets"]}
    assert values["failed requests under load"] == 0, run.stdout
    assert values["failed requests under attack"] == 0, run.stdout
    assert values["attacks without a clear answer"] == 0, run.stdout
    assert values["servers that did not end with 0"] == 0


def test_the_benchmark_counts_an_answer_that_no_version_gives():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [str(ROOT), *sys.path])  # `benchmarks` is not part of the installed package.
        benchmark = importlib.import_module("benchmarks.serving_load")
    right = [[{"scores": np.array([[1.0, 2.0]])}, {"scores": np.array([[3.0, 4.0]])}]]

    def seen(text):
        import base64

        return {"answers": [["rest", 0, base64.b64encode(text).decode()]], "calls": [["rest", 0.0, 1.0, 0]] * 3}

    assert benchmark.wrong_answers(seen(b'{"outputs": [[3.0, 4.0]]}'), right) == 0
    assert benchmark.wrong_answers(seen(b'{"outputs": [[3.0, 2.0]]}'), right) == 3
    assert benchmark.wrong_answers(seen(b'{"outputs": [[3.0]]}'), right) == 3


# -- time limits ----------------------------------------------------------------------------------------------


def test_a_new_time_limit_does_not_prepare_the_graph_again(exported):
    with Server("basket", exported, port=None, rest_api_port=None) as server:
        spec = score_request().model_spec
        with server.store.use(spec) as servable:
            feeds = {"total_x:0": np.float32([1, 2])}
            fetch = [servable.meta_graph_def.signature_def["total"].outputs["total"].name]
            assert servable.run(feeds, fetch, 0)[0] == 3.0
            started = time.monotonic()
            for limit_ms in range(1000, 1400):
                assert servable.run(feeds, fetch, limit_ms)[0] == 3.0
            took = time.monotonic() - started
    assert took < 4  # Preparing takes 10 ms and more, even for this graph.


# -- the end --------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def process(base, port, log, *flags):
    """`tfmetarec.server` as a process of its own."""
    flags = [f"--rest_api_port={port}", "--model_name=basket", f"--model_base_path={base}", *flags]
    flags += [] if any(flag.startswith("--port=") for flag in flags) else ["--port=0"]
    with log.open("w") as written:
        started = subprocess.Popen([sys.executable, "-m", "tfmetarec.server", *flags], stdout=written, stderr=written)
    try:
        end = time.monotonic() + 60
        while "Serving REST" not in log.read_text():
            assert started.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.05)
        yield started
    finally:
        started.kill()
        started.wait()


def test_told_to_stop_it_answers_what_was_asked_over_both_protocols_and_takes_nothing_new(base, second_s):
    port, grpc_port = free_port(), free_port()
    slow = json.dumps({"signature_name": "slow", "inputs": [second_s]}).encode()
    address = ("127.0.0.1", port)
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(process(base, port, base.parent / "log", f"--port={grpc_port}"))
        running, half, kept = (stack.enter_context(socket.create_connection(address, 30)) for _ in range(3))
        channel = stack.enter_context(grpc.insecure_channel(f"127.0.0.1:{grpc_port}"))
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        kept.sendall(post(json.dumps(SCORE).encode()))
        assert read_answer(kept)[0] == 200
        running.sendall(post(slow))
        call = stub.Predict.future(slow_request(second_s), timeout=30)
        half.sendall(post(slow)[:-5])  # The rest of this request comes after the signal.
        time.sleep(0.5)
        server.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        half.sendall(post(slow)[-5:])
        with pytest.raises(OSError, match="refused"):
            socket.create_connection(address, 5)
        assert kept.recv(100) == b""  # Nothing was asked on it.
        assert call.result().outputs["done"].float_val[:] == [float(second_s)]
        assert read_answer(running) == (200, {"outputs": [float(second_s)]})
        assert read_answer(half) == (200, {"outputs": [float(second_s)]})
        assert server.wait(15) == 0


def test_work_that_does_not_end_is_left_after_the_grace_time_and_a_second_signal_ends_at_once(base, second_s):
    forever = json.dumps({"signature_name": "slow", "inputs": [60 * second_s]}).encode()
    for signals, flags, status, limits_s in (
        (1, ["--shutdown_grace_in_ms=1000"], 0, (0.9, 8)),
        (2, [], -signal.SIGTERM, (0, 2)),
    ):
        port = free_port()
        with (
            process(base, port, base.parent / "log", *flags) as server,
            socket.create_connection(("127.0.0.1", port), 30) as connection,
        ):
            connection.sendall(post(forever))
            time.sleep(0.5)
            started = time.monotonic()
            for _ in range(signals):
                server.send_signal(signal.SIGTERM)
                time.sleep(0.2)
            assert server.wait(20) == status
            least_s, most_s = limits_s
            assert least_s <= time.monotonic() - started <= most_s


def test_a_request_that_waits_in_the_socket_when_draining_begins_is_answered(base):
    server = Server("basket", base, port=None)
    server.start()
    with socket.create_connection(("127.0.0.1", server.rest_api_port), 20) as connection:
        connection.sendall(post(json.dumps(SCORE).encode()))
        stopping = threading.Thread(target=server.stop)
        stopping.start()
        status, page = read_answer(connection)
        stopping.join()
        assert (status, page["outputs"]["score"]) == (200, [2.0])
        assert connection.recv(1) == b""
