"""One running server, asked over both protocols."""

import gzip
import http.client
import shutil
import socket
import threading
import urllib.request

import grpc
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    inference_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
    regression_pb2,
)

from tfmetarec.server import Server, rest

pytestmark = pytest.mark.serving

ROWS = [{"item": "bread", "price": 2.0, "count": [1, 2]}, {"item": "milk", "price": 0.5, "count": [4, 0]}]


@pytest.fixture(scope="module")
def server(exported, tmp_path_factory):
    root = tmp_path_factory.mktemp("models") / "basket"
    shutil.copytree(exported / "1", root / "1")
    shutil.copytree(exported / "2", root / "0002")
    (root / "notes").mkdir()
    file = root.parent / "models.config"
    file.write_text(
        f'model_config_list {{ config {{ name: "basket" base_path: "{root}" model_platform: "tensorflow" '
        'model_version_policy { all {} } version_labels { key: "stable" value: 1 } } }'
    )
    settings = {"metrics_path": rest.DEFAULT_METRICS_PATH, "cors": True, "allow_labels_for_unavailable": True}
    with Server(model_config_file=file, **settings) as running:
        running.wait_until_available(10)
        yield running


@pytest.fixture(scope="module")
def stubs(server):
    options = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
    with grpc.insecure_channel(f"127.0.0.1:{server.port}", options) as channel:
        yield (
            prediction_service_pb2_grpc.PredictionServiceStub(channel),
            model_service_pb2_grpc.ModelServiceStub(channel),
        )


@pytest.fixture
def call(server, http_call):
    return lambda *args, **kwargs: http_call(server.rest_api_port, *args, **kwargs)


def predict_request(signature="", version=None, **inputs):
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "basket"
    request.model_spec.signature_name = signature
    if version is not None:
        request.model_spec.version.value = version
    for name, value in inputs.items():
        request.inputs[name].CopyFrom(tf.make_tensor_proto(value))
    return request


def failed(method, request):
    with pytest.raises(grpc.RpcError) as caught:
        method(request, timeout=20)
    return caught.value.code().name, caught.value.details()


def test_rows_are_scored_by_the_newest_version(call):
    status, page = call("POST", "/v1/models/basket:predict", {"instances": ROWS})
    assert status == 200
    assert page["predictions"] == [
        {"score": 106.0, "label": "<bread>", "count": 3},
        {"score": 102.0, "label": "<milk>", "count": 4},
    ]


@pytest.mark.parametrize("address", ["versions/1", "versions/0001", "labels/stable", "labels/%73table"])
def test_a_version_is_found_by_number_and_by_label(call, address):
    status, page = call("POST", f"/v1/models/basket/{address}:predict", {"instances": ROWS})
    assert status == 200
    assert [row["score"] for row in page["predictions"]] == [6.0, 2.0]


def test_both_protocols_give_the_same_scores(call, stubs):
    inputs = {"item": ["bread"], "price": np.array([2.0], np.float32), "count": np.array([[1, 2]])}
    response = stubs[0].Predict(predict_request(version=1, **inputs), timeout=20)
    assert tf.make_ndarray(response.outputs["score"]).tolist() == [6.0]
    assert response.outputs["score"].float_val[:] == [6.0]
    assert response.model_spec.version.value == 1
    assert response.model_spec.signature_name == "serving_default"
    columns = {"item": ["bread"], "price": [2], "count": [[1, 2]]}
    _, page = call("POST", "/v1/models/basket/versions/1:predict", {"inputs": columns})
    assert page["outputs"] == {"score": [6.0], "label": ["<bread>"], "count": [3]}


def test_only_the_outputs_asked_for_come_back(stubs):
    request = predict_request(item=["a"], price=np.float32([1]), count=np.int64([[1, 1]]))
    request.output_filter.append("count")
    assert list(stubs[0].Predict(request, timeout=20).outputs) == ["count"]
    request.output_filter[:] = ["nothing"]
    assert failed(stubs[0].Predict, request) == (
        "INVALID_ARGUMENT",
        "output tensor alias not found in signature: nothing Outputs expected to be in the set {count,label,score}.",
    )


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        ("/v1/models/none:predict", {"instances": [1]}, 404, "Servable not found for request: Latest(none)"),
        (
            "/v1/models/basket/versions/9:predict",
            {"instances": [1]},
            404,
            "Servable not found for request: Specific(basket, 9)",
        ),
        ("/v1/models/basket/labels/x:predict", {"inputs": 1}, 400, "Unrecognized servable version label: x"),
        (
            "/v1/models/basket:PREDICT",
            {"inputs": 1},
            400,
            "Malformed request: POST /v1/models/basket:PREDICT",
        ),
        ("/v1/models/basket:predict?a=1", {}, 400, "Malformed request: POST /v1/models/basket:predict?a=1"),
        (
            "/v1/models/basket:predict",
            {"signature_name": "none", "instances": [1]},
            400,
            'Serving signature name: "none" not found in signature def',
        ),
        (
            "/v1/models/basket:predict",
            {"signature_name": 1, "instances": []},
            400,
            'JSON Value: {\n    "signature_name": 1,\n    "instances": []\n} not formatted correctly. '
            "'signature_name' key must be a string value.",
        ),
        (
            "/v1/models/basket:predict",
            {"signature_name": "total", "instances": [1.0]},
            400,
            "Tensor name: total has no shape information ",
        ),
    ],
)
def test_errors_are_json_with_the_words_of_tensorflow_serving(call, path, body, status, message):
    assert call("POST", path, body) == (status, {"error": message})


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH"])
def test_other_methods_are_malformed(call, method):
    path = "/v1/models/basket"
    assert call(method, path, b"{}") == (400, {"error": f"Malformed request: {method} {path}"})


def test_status_needs_a_model_name_and_lists_the_newest_first(call):
    assert call("GET", "/v1/models") == (400, {"error": "Missing model name in request."})
    _, page = call("GET", "/v1/models/basket")
    assert [row["version"] for row in page["model_version_status"]] == ["2", "1"]
    assert page["model_version_status"][0] == {
        "version": "2",
        "state": "AVAILABLE",
        "status": {"error_code": "OK", "error_message": ""},
    }
    assert call("GET", "/v1/models/basket/versions/7") == (
        404,
        {"error": "Could not find version 7 of model basket"},
    )


def test_metadata_describes_the_signatures_over_both_protocols(call, stubs):
    _, page = call("GET", "/v1/models/basket/labels/stable/metadata")
    assert page["model_spec"] == {"name": "basket", "signature_name": "", "version": "1"}
    count = page["metadata"]["signature_def"]["signature_def"]["serving_default"]["inputs"]["count"]
    assert count["dtype"] == "DT_INT64"
    assert [dim["size"] for dim in count["tensor_shape"]["dim"]] == ["-1", "2"]
    request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
    request.model_spec.name = "basket"
    signatures = get_model_metadata_pb2.SignatureDefMap()
    stubs[0].GetModelMetadata(request, timeout=20).metadata["signature_def"].Unpack(signatures)
    assert set(signatures.signature_def) == set(page["metadata"]["signature_def"]["signature_def"])


def test_requests_without_what_they_need_are_refused(stubs):
    prediction, models = stubs
    empty = predict_pb2.PredictRequest()
    assert failed(prediction.Predict, empty) == ("INVALID_ARGUMENT", "Missing ModelSpec")
    assert failed(prediction.Classify, classification_pb2.ClassificationRequest())[1] == "Missing ModelSpec"
    metadata = get_model_metadata_pb2.GetModelMetadataRequest()
    assert failed(prediction.GetModelMetadata, metadata)[1] == "Missing ModelSpec"
    metadata.model_spec.name = "basket"
    assert failed(prediction.GetModelMetadata, metadata)[1] == (
        "GetModelMetadataRequest must specify at least one metadata_field"
    )
    assert failed(models.GetModelStatus, get_model_status_pb2.GetModelStatusRequest())[1] == "Missing ModelSpec"
    assert failed(prediction.Predict, predict_request("none", text="x")) == (
        "FAILED_PRECONDITION",
        'Serving signature key "none" not found.',
    )
    assert failed(prediction.Predict, predict_request("text", wrong="x"))[1].startswith(
        "Signature input alias: text(feed name: text_text:0) not found in request and no default value "
    )
    assert failed(prediction.Predict, predict_request("text")) == (
        "INVALID_ARGUMENT",
        "input size does not match signature: 0!=1 len({}) != len({text}). Sent extra: {}. "
        "Missing but required: {text}.",
    )


def test_a_long_message_is_cut_as_tensorflow_serving_cuts_it(stubs):
    # 52 of the 1,024 bytes come before the name; half of the letter at their end is left out.
    for name, cut in (("x" * 2000, "x" * 972), ("x" + "é" * 900, "x" + "é" * 485)):
        code, message = failed(stubs[0].Predict, predict_request("text", text="a", **{name: "a"}))
        assert code == "INVALID_ARGUMENT"
        assert message == f"input size does not match signature: 2!=1 len({{text,{cut}...TRUNCATED"


def test_a_wrong_type_is_refused_before_the_graph_runs(stubs):
    assert failed(stubs[0].Predict, predict_request("total", x=np.float64([1.0]))) == (
        "INVALID_ARGUMENT",
        "Expects arg[0] to be float but double is provided",
    )


def test_garbage_instead_of_a_message_is_an_error_and_the_server_lives(server, stubs):
    with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        raw = channel.unary_unary("/tensorflow.serving.PredictionService/Predict")
        with pytest.raises(grpc.RpcError):
            raw(b"\xff\xff\xff\xff", timeout=20)
    assert stubs[0].Predict(predict_request("text", text="x"), timeout=20).outputs["text"].string_val == [b"x"]


def test_messages_beyond_grpcs_default_limit_pass(stubs):
    big = "x" * (5 << 20)
    response = stubs[0].Predict(predict_request("text", text=[big]), timeout=20)
    assert response.outputs["text"].string_val[0] == big.encode()


def test_examples_are_classified_and_regressed_alike_over_both_protocols(call, stubs):
    example = tf.train.Example()
    example.features.feature["x"].float_list.value.append(0.25)
    classification = classification_pb2.ClassificationRequest()
    classification.model_spec.name, classification.model_spec.signature_name = "basket", "classify"
    classification.input.example_list.examples.append(example)
    (row,) = stubs[0].Classify(classification, timeout=20).result.classifications
    assert [(each.label, each.score) for each in row.classes] == [("yes", 0.25), ("no", 0.75)]
    body = {"signature_name": "classify", "examples": [{"x": 0.25}]}
    assert call("POST", "/v1/models/basket:classify", body) == (
        200,
        {"results": [[["yes", 0.25], ["no", 0.75]]]},
    )
    regression = regression_pb2.RegressionRequest()
    regression.model_spec.name, regression.model_spec.signature_name = "basket", "regress"
    regression.input.example_list_with_context.context.CopyFrom(example)
    regression.input.example_list_with_context.examples.add()
    assert stubs[0].Regress(regression, timeout=20).result.regressions[0].value == 0.25
    body = {"signature_name": "regress", "context": {"x": 0.25}, "examples": [{}]}
    assert call("POST", "/v1/models/basket:regress", body) == (200, {"results": [0.25]})
    both = inference_pb2.MultiInferenceRequest(input=classification.input)
    for name in ("classify", "regress"):
        task = both.tasks.add(method_name=f"tensorflow/serving/{name}")
        task.model_spec.name, task.model_spec.signature_name = "basket", name
    results = stubs[0].MultiInference(both, timeout=20).results
    assert results[0].classification_result.classifications[0] == row
    assert results[1].regression_result.regressions[0].value == 0.25
    both.tasks[1].method_name = "tensorflow/serving/other"
    assert failed(stubs[0].MultiInference, both) == (
        "UNIMPLEMENTED",
        "Unsupported signature method_name: tensorflow/serving/other",
    )


def test_a_signature_that_does_not_fit_examples_says_so(call):
    body = {"signature_name": "total", "examples": [{"x": 1.0}]}
    status, page = call("POST", "/v1/models/basket:regress", body)
    assert status == 400
    assert page["error"].startswith("No regression inputs found in SignatureDef: ")


def test_compressed_and_chunked_bodies_are_read(call, server):
    body = b'{"signature_name": "total", "inputs": [1.0, 2.0]}'
    path = "/v1/models/basket:predict"
    assert call("POST", path, gzip.compress(body), headers={"Content-Encoding": "gzip"}) == (
        200,
        {"outputs": 3.0},
    )
    status, page = call("POST", path, body, headers={"Content-Encoding": "gzip"})
    assert status == 400
    assert "not gzip data" in page["error"]
    connection = http.client.HTTPConnection("127.0.0.1", server.rest_api_port, timeout=20)
    connection.request("POST", path, iter([body[:10], body[10:]]), encode_chunked=True)
    assert connection.getresponse().read() == b'{\n    "outputs": 3.0\n}'
    connection.request("GET", "/v1/models/basket")  # The connection is still good.
    assert connection.getresponse().status == 200
    connection.close()


def raw_exchange(server, sent):
    with socket.create_connection(("127.0.0.1", server.rest_api_port), 20) as connection:
        connection.sendall(sent)
        received = b""
        while part := connection.recv(65536):
            received += part
    return received


def test_a_body_announced_too_large_is_refused_unread(server):
    head = b"POST /v1/models/basket:predict HTTP/1.1\r\nContent-Length: 999999999999\r\n\r\n"
    assert raw_exchange(server, head).startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize("sent", [b"\x00\x01\x02\r\n\r\n", b"GET\r\n\r\n", b"BREW /v1/models/basket HTTP/1.1\r\n\r\n"])
def test_what_is_not_http_gets_an_error_object(server, sent):
    assert b'"error": "Malformed request: ' in raw_exchange(server, sent)


def test_browsers_may_ask_first(server, call):
    path = f"http://127.0.0.1:{server.rest_api_port}/v1/models/basket:predict"
    request = urllib.request.Request(path, headers={"Origin": "https://shop.test"}, method="OPTIONS")
    with urllib.request.urlopen(request, timeout=20) as response:
        assert response.headers["Access-Control-Allow-Origin"] == "*"
    assert call("OPTIONS", "/v1/models/basket:predict")[0] == 400


def test_many_threads_get_their_own_answers(call):
    answers = {}

    def ask(number):
        body = {"signature_name": "types", "inputs": types_of(number)}
        answers[number] = call("POST", "/v1/models/basket:predict", body)

    def types_of(number):
        return {"yes": [number % 2 == 0], "exact": [number / 3], "small": [-number], "byte": [number]}

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == {number: (200, {"outputs": types_of(number)}) for number in range(24)}


def test_the_prometheus_page_counts_requests_by_model_and_status(server, call):
    def count(status):
        path = f"http://127.0.0.1:{server.rest_api_port}/monitoring/prometheus/metrics"
        with urllib.request.urlopen(path, timeout=20) as response:
            assert response.headers["Content-Type"] == "text/plain"
            lines = response.read().decode().splitlines()
        wanted = f':tensorflow:serving:request_count{{model_name="basket",status="{status}"}} '
        return sum(int(line.removeprefix(wanted)) for line in lines if line.startswith(wanted)), lines

    body = {"signature_name": "total", "inputs": [1.0]}
    before, wrong_before = count("OK")[0], count("INVALID_ARGUMENT")[0]
    for _ in range(3):
        call("POST", "/v1/models/basket:predict", body)
    call("POST", "/v1/models/basket:predict", {"inputs": "wrong"})
    after, lines = count("OK")
    assert after - before == 3
    assert count("INVALID_ARGUMENT")[0] - wrong_before == 1
    latency = ':tensorflow:serving:request_latency_bucket{model_name="basket",API="predict",entrypoint="REST",le="'
    buckets = [int(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(latency)]
    assert buckets == sorted(buckets)
    assert len(buckets) == 34  # 33 limits and infinity.
