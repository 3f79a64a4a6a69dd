"""An independent client, OpenVINO's `ovmsclient`, against the local server.

It brings its own copies of TensorFlow Serving's messages, so it lives in an environment of its own:
`python -m venv DIR && DIR/bin/pip install ovmsclient==2023.1`, then `OVMSCLIENT_PYTHON=DIR/bin/python`. It always asks
for a version: its "no version" is 0, which TensorFlow Serving takes at its word.
"""

import json
import os
import shutil
import subprocess

import pytest

from tfmetarec.server import Server

PYTHON = os.environ.get("OVMSCLIENT_PYTHON", "")

pytestmark = [
    pytest.mark.serving,
    pytest.mark.skipif(not PYTHON, reason="OVMSCLIENT_PYTHON names no interpreter with ovmsclient"),
]

SCRIPT = """
import json, sys
import numpy, ovmsclient

make, address = getattr(ovmsclient, sys.argv[1]), sys.argv[2]
client = make(address)
inputs = {
    "item": ["bread"],
    "price": numpy.array([2.0], numpy.float32),
    "count": numpy.array([[1, 2]], numpy.int64),
}
seen = {
    "score": client.predict(inputs, "basket", 1)["score"].tolist(),
    "status": client.get_model_status("basket", 1),
    "metadata": client.get_model_metadata("basket", 1),
}
for name, ask in {
    "no version": lambda: client.predict(inputs, "basket", 9),
    "no input": lambda: client.predict({"price": inputs["price"]}, "basket", 1),
}.items():
    try:
        ask()
    except ovmsclient.ModelNotFoundError as error:
        seen[name] = ["ModelNotFoundError", str(error)]
    except ovmsclient.InvalidInputError as error:
        seen[name] = ["InvalidInputError", str(error)]
print(json.dumps(seen))
"""


@pytest.fixture(scope="module")
def server(exported, tmp_path_factory):
    base = tmp_path_factory.mktemp("ovms") / "basket"
    shutil.copytree(exported / "1", base / "1")
    with Server("basket", base) as running:
        yield running


def seen_by(make, port):
    command = [PYTHON, "-c", SCRIPT, make, f"127.0.0.1:{port}"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


def check(seen):
    assert seen["score"] == [6.0]
    assert seen["status"] == {"1": {"state": "AVAILABLE", "error_code": 0, "error_message": ""}}
    kind, message = seen["no version"]
    assert kind == "ModelNotFoundError"
    assert message.endswith("Servable not found for request: Specific(basket, 9)")
    assert seen["no input"][0] == "InvalidInputError"


def test_it_predicts_and_reads_status_and_metadata_over_grpc(server):
    seen = seen_by("make_grpc_client", server.port)
    check(seen)
    assert seen["metadata"]["model_version"] == 1
    assert seen["metadata"]["inputs"]["count"] == {"shape": [-1, 2], "dtype": "DT_INT64"}
    assert set(seen["metadata"]["outputs"]) == {"score", "label", "count"}


def test_it_predicts_and_reads_status_and_metadata_over_http(server):
    seen = seen_by("make_http_client", server.rest_api_port)
    check(seen)
    signatures = seen["metadata"]["metadata"]["signature_def"]["signature_def"]
    assert signatures["serving_default"]["inputs"]["count"]["dtype"] == "DT_INT64"
