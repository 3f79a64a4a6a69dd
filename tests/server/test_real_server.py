"""One suite for two servers: ours, and TensorFlow Serving's own binary where it is on PATH.

`python -m pytest -rs tests/server/test_real_server.py` runs it and says what was left out.
"""

import json
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import NamedTuple

import grpc
import numpy as np
import polars as pl
import pytest
import tensorflow as tf
from tensorflow_serving.apis import prediction_log_pb2, prediction_service_pb2_grpc

import tfmetarec as tmr
from tfmetarec.server import inference
from tfmetarec.server.servable import Servable

CONFORMANCE = Path(__file__).parents[2].parent / "shared" / "conformance.py"
BINARY = shutil.which("tensorflow_model_server")
WARMUP = "assets.extra/tf_serving_warmup_requests"

pytestmark = [pytest.mark.serving, pytest.mark.slow]


@pytest.fixture(
    scope="module",
    params=[
        pytest.param([sys.executable, "-m", "tfmetarec.server"], id="ours"),
        pytest.param(
            [BINARY],
            id="tensorflow_model_server",
            marks=pytest.mark.skipif(BINARY is None, reason="tensorflow_model_server is not on PATH"),
        ),
    ],
)
def command(request):
    return request.param


class Running(NamedTuple):
    """Where a server answers."""

    port: int
    rest_api_port: int


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def ask(port, path, body=None):
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", data, timeout=60) as response:
        return json.load(response)


@pytest.fixture(scope="module")
def exported_learner(tmp_path_factory):
    """A two-tower model with features of several kinds, published as any user would."""
    rng = np.random.default_rng(0)
    items = [f"item-{number}" for number in range(12)]
    rows = [(user, item) for user in range(20) for item in rng.choice(items, 5, replace=False)]
    table = pl.DataFrame(rows, schema=["user_id", "item_id"], orient="row")
    users = pl.DataFrame({"user_id": range(20), "age": rng.uniform(18, 80, 20), "city": ["Ulm", "Lyon"] * 10})
    shelves = pl.DataFrame({"item_id": items, "shelf": ["high", "low", "middle"] * 4})
    data = tmr.data.Interactions.from_frames(table, users, shelves, feedback="implicit", name="shop")
    learner = tmr.meta.MAML(tmr.models.TwoTower(tmr.data.Vocabulary.fit(data), 4), inner_steps=2)
    return tmr.export.saved_model(learner, tmp_path_factory.mktemp("real") / "shop", top_k=5).path


@pytest.fixture(scope="module")
def running(command, exported_learner, tmp_path_factory):
    ports = Running(free_port(), free_port())
    flags = [f"--port={ports.port}", f"--rest_api_port={ports.rest_api_port}"]
    flags += ["--model_name=shop", f"--model_base_path={exported_learner.parent}"]
    log = tmp_path_factory.mktemp("log") / "server.log"
    with log.open("w") as file:
        process = subprocess.Popen([*command, *flags], stdout=file, stderr=subprocess.STDOUT)
    try:
        end = time.monotonic() + 120
        while not is_available(ports):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.2)
        yield ports
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def is_available(ports):
    try:
        page = ask(ports.rest_api_port, "/v1/models/shop")
    except (urllib.error.URLError, OSError):
        return False
    return page["model_version_status"][0]["state"] == "AVAILABLE"


@pytest.fixture(scope="module")
def recorded(exported_learner):
    """The warm-up requests of an export, one or more of each signature, and what the graph answers to them here."""
    servable = Servable("shop", int(exported_learner.name), exported_learner)
    raw = tf.data.TFRecordDataset(str(exported_learner / WARMUP)).as_numpy_iterator()
    requests = [prediction_log_pb2.PredictionLog.FromString(record).predict_log.request for record in raw]
    pairs = [(request, inference.predict_request(servable, request)) for request in requests]
    signatures = {name for name in servable.meta_graph_def.signature_def if not name.startswith("__")}
    servable.close()
    assert {request.model_spec.signature_name for request, _ in pairs} == signatures
    return pairs


def check_same(found, expected):
    assert set(found) == set(expected)
    for name, proto in expected.items():
        value = tf.make_ndarray(proto)
        if value.dtype.kind == "f":
            np.testing.assert_allclose(np.asarray(found[name], float), value, rtol=1e-4, atol=1e-5, err_msg=name)
        else:
            assert np.array_equal(np.asarray(found[name], value.dtype), value), name


def test_every_signature_of_an_export_answers_over_grpc(running, recorded):
    with grpc.insecure_channel(f"127.0.0.1:{running.port}") as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        for request, expected in recorded:
            response = stub.Predict(request, timeout=60)
            assert response.model_spec == expected.model_spec
            check_same({name: tf.make_ndarray(proto) for name, proto in response.outputs.items()}, expected.outputs)


def test_every_signature_of_an_export_answers_over_rest(running, recorded):
    for request, expected in recorded:
        inputs = {name: as_json(tf.make_ndarray(proto)) for name, proto in request.inputs.items()}
        body = {"signature_name": request.model_spec.signature_name, "inputs": inputs}
        outputs = ask(running.rest_api_port, "/v1/models/shop:predict", body)["outputs"]
        if len(expected.outputs) == 1:  # A single output is written bare.
            outputs = {next(iter(expected.outputs)): outputs}
        check_same({name: from_json(value) for name, value in outputs.items()}, expected.outputs)


def as_json(array):
    return array.astype(str).tolist() if array.dtype == np.object_ else array.tolist()


def from_json(value):
    array = np.array(value)
    return np.char.encode(array, "utf-8").astype(object) if array.dtype.kind == "U" else array


@pytest.mark.skipif(not CONFORMANCE.exists(), reason="the conformance cases are not on this machine")
def test_a_server_answers_as_tensorflow_serving_does_in_every_conformance_case(command):
    run = subprocess.run(
        [sys.executable, CONFORMANCE, "--server", " ".join(command)], capture_output=True, text=True, timeout=900
    )
    assert run.returncode == 0, run.stdout
    assert " 0 failed" in run.stdout
