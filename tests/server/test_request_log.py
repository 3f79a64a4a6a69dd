"""Answered requests are logged, and the log is a warm-up file."""

import random
import shutil
import time

import grpc
import numpy as np
import pytest
import tensorflow as tf
from google.protobuf import text_format
from tensorflow_serving.apis import (
    classification_pb2,
    inference_pb2,
    predict_pb2,
    prediction_log_pb2,
    prediction_service_pb2_grpc,
)
from tensorflow_serving.config.model_server_config_pb2 import ModelConfig

from tfmetarec.server import Server, StatusError, request_log
from tfmetarec.server.prometheus import METRICS
from tfmetarec.server.request_log import RequestLogs


class Loaded:
    """What a log needs to know of a version."""

    name = "basket"
    version = 3


def model(prefix, rate=1.0, kind="", name="basket"):
    text = f'log_collector_config {{ type: "{kind}" filename_prefix: "{prefix}" }}'
    text = f'name: "{name}" logging_config {{ {text} sampling_config {{ sampling_rate: {rate} }} }}'
    return text_format.Parse(text, ModelConfig())


def records(folder):
    files = sorted(folder.glob("log-*.tfrecord"))
    raw = [record for file in files for record in tf.data.TFRecordDataset(str(file)).as_numpy_iterator()]
    return files, [prediction_log_pb2.PredictionLog.FromString(record) for record in raw]


def predict_messages(number):
    request = predict_pb2.PredictRequest(model_spec={"name": "basket", "signature_name": "total"})
    request.inputs["x"].CopyFrom(tf.make_tensor_proto([float(number)]))
    return request, predict_pb2.PredictResponse()


def counted(status):
    line = f':tensorflow:serving:request_log_count{{model_name="basket",status_code="{status}"}} '
    return sum(int(row.removeprefix(line)) for row in METRICS.page().splitlines() if row.startswith(line))


@pytest.fixture
def log_at(tmp_path):
    """Starts a log in `tmp_path`: `log_at(rate) -> RequestLogs`."""
    opened = []

    def start(rate=1.0):
        logs = RequestLogs()
        opened.append(logs)
        logs.update([model(tmp_path / "log", rate)])
        return logs

    yield start
    for logs in opened:
        logs.close()


def test_a_record_says_what_was_asked_and_answered_by_which_version(log_at, tmp_path):
    logs = log_at()
    request, response = predict_messages(7)
    response.outputs["total"].CopyFrom(tf.make_tensor_proto(7.0))
    logs.log(Loaded, request, response)
    logs.close()
    _, (record,) = records(tmp_path)
    assert record.predict_log.request == request
    assert record.predict_log.response == response
    assert record.log_metadata.model_spec.version.value == 3
    assert record.log_metadata.model_spec.signature_name == "total"
    assert abs(record.log_metadata.timestamp_secs - time.time()) < 60


def test_the_sample_has_its_rate_and_is_the_same_for_the_same_requests(log_at, tmp_path):
    generator = random.Random(0)
    expected = [number for number in range(400) if generator.random() < 0.25]
    assert 70 < len(expected) < 130
    logs = log_at(0.25)
    for number in range(400):
        logs.log(Loaded, *predict_messages(number))
    logs.close()
    _, logged = records(tmp_path)
    assert [int(record.predict_log.request.inputs["x"].float_val[0]) for record in logged] == expected


def test_no_rate_and_no_configuration_log_nothing(log_at, tmp_path):
    RequestLogs().log(Loaded, *predict_messages(0))
    logs = log_at(0.0)
    logs.log(Loaded, *predict_messages(0))
    logs.close()
    assert records(tmp_path) == ([], [])


def test_a_file_has_no_more_records_than_a_warmup_may(log_at, tmp_path, monkeypatch):
    monkeypatch.setattr(request_log, "MAX_RECORDS", 3)
    logs = log_at()
    for number in range(7):
        logs.log(Loaded, *predict_messages(number))
    logs.close()
    files, logged = records(tmp_path)
    assert len(logged) == 7
    assert [len(list(tf.data.TFRecordDataset(str(file)))) for file in files] == [3, 3, 1]


def test_what_does_not_fit_into_the_queue_is_dropped_and_counted(log_at, tmp_path, monkeypatch):
    monkeypatch.setattr(request_log, "MAX_QUEUED_BYTES", 1000)
    dropped, written = counted("RESOURCE_EXHAUSTED"), counted("OK")
    logs = log_at()
    large, response = predict_messages(0)
    large.inputs["x"].tensor_content = bytes(1001)
    logs.log(Loaded, large, response)
    logs.log(Loaded, *predict_messages(1))
    logs.close()
    assert counted("RESOURCE_EXHAUSTED") == dropped + 1
    assert counted("OK") == written + 1
    assert len(records(tmp_path)[1]) == 1


def test_a_directory_that_goes_away_costs_records_and_nothing_else(log_at, tmp_path, caplog):
    logs = RequestLogs()
    logs.update([model(tmp_path / "away" / "log")])
    (tmp_path / "away").rmdir()
    for number in range(3):
        logs.log(Loaded, *predict_messages(number))
    logs.close()
    assert caplog.text.count("Could not write the request log of basket: NOT_FOUND") == 1


@pytest.mark.parametrize(
    ("models", "message"),
    [
        ([model("/l/a", kind="kafka")], "NOT_FOUND: Cannot find LogCollector::Factory for type: kafka"),
        (
            [model("/l/a"), model("/l/a", name="other")],
            "INVALID_ARGUMENT: Duplicate LogCollectorConfig::filename_prefix(): /l/a",
        ),
        (
            [model("a")],
            "INVALID_ARGUMENT: `filename_prefix` of model basket must be an absolute path and the beginning of a file "
            "name. Received: 'a'",
        ),
        (
            [model("/l/a", 1.5)],
            "INVALID_ARGUMENT: `sampling_rate` of model basket must be from 0 to 1. Received: 1.5",
        ),
        (
            [model("/dev/null/none/a")],
            "FAILED_PRECONDITION: The directory for the request log of model basket cannot be made: /dev/null/none/a "
            "(Not a directory)",
        ),
    ],
)
def test_settings_that_break_a_rule_are_refused(models, message):
    with pytest.raises(StatusError) as caught:
        RequestLogs().update(models)
    assert str(caught.value) == message


def test_unchanged_settings_keep_the_file_and_changed_ones_begin_another(log_at, tmp_path):
    logs = log_at()
    logs.log(Loaded, *predict_messages(1))
    logs.update([model(tmp_path / "log")])
    logs.log(Loaded, *predict_messages(2))
    logs.update([model(tmp_path / "log", kind="file")])
    logs.log(Loaded, *predict_messages(3))
    logs.update([])
    logs.log(Loaded, *predict_messages(4))
    files, logged = records(tmp_path)
    assert len(files) == 2
    assert [record.predict_log.request.inputs["x"].float_val[:] for record in logged] == [[1.0], [2.0], [3.0]]


@pytest.mark.serving
def test_what_both_protocols_were_asked_warms_up_the_next_version(exported, tmp_path, http_call, caplog):
    base = tmp_path / "basket"
    shutil.copytree(exported / "1", base / "1")
    file = tmp_path / "models.config"
    listing = f'name: "basket" base_path: "{base}" model_platform: "tensorflow"'
    logging_config = str(model(tmp_path / "logs" / "log")).split("\n", 1)[1]
    file.write_text(f"model_config_list {{ config {{ {listing} {logging_config} }} }}")
    with Server(model_config_file=file) as server:
        path = "/v1/models/basket"
        rows = [{"item": "bread", "price": 2.0, "count": [1, 2]}]
        rest = [
            (f"{path}:predict", {"instances": rows}),
            (f"{path}:classify", {"signature_name": "classify", "examples": [{"x": 0.5}]}),
            (f"{path}:regress", {"signature_name": "regress", "examples": [{"x": 0.5}]}),
        ]
        assert [http_call(server.rest_api_port, "POST", *call)[0] for call in rest] == [200] * 3
        refused = http_call(server.rest_api_port, "POST", f"{path}:predict", {"instances": [1]})[0]
        assert refused == 400  # What failed once would fail as a warm-up too, and is not logged.
        with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
            stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
            request = predict_pb2.PredictRequest(model_spec={"name": "basket", "signature_name": "total"})
            request.inputs["x"].CopyFrom(tf.make_tensor_proto(np.float32([1, 2])))
            stub.Predict(request, timeout=20)
            example = tf.train.Example()
            example.features.feature["x"].float_list.value.append(0.25)
            classification = classification_pb2.ClassificationRequest(
                model_spec={"name": "basket", "signature_name": "classify"}, input={"example_list": {}}
            )
            classification.input.example_list.examples.append(example)
            stub.Classify(classification, timeout=20)
            both = inference_pb2.MultiInferenceRequest(input=classification.input)
            task = both.tasks.add(method_name="tensorflow/serving/regress")
            task.model_spec.name, task.model_spec.signature_name = "basket", "regress"
            stub.MultiInference(both, timeout=20)
    (log,), logged = records(tmp_path / "logs")
    kinds = [record.WhichOneof("log_type") for record in logged]
    assert kinds == ["predict_log", "classify_log", "regress_log", "predict_log", "classify_log", "multi_inference_log"]
    assert tf.make_ndarray(logged[0].predict_log.request.inputs["item"]).tolist() == [b"bread"]
    assert tf.make_ndarray(logged[0].predict_log.response.outputs["score"]).tolist() == [6.0]
    shutil.copytree(exported / "2", base / "2")
    (base / "2" / "assets.extra").mkdir()
    shutil.copy(log, base / "2" / "assets.extra" / "tf_serving_warmup_requests")
    caplog.set_level("INFO")
    with Server("basket", base, port=None) as server:
        assert "Warmed up basket version 2 with 6 requests" in caplog.text
        _, page = http_call(server.rest_api_port, "POST", "/v1/models/basket:predict", {"instances": rows})
        assert page["predictions"][0]["score"] == 106.0
