"""Versions come, go and fail while the server runs; each test has a server and a directory of its own."""

import logging
import shutil
import subprocess
import threading
import time

import grpc
import numpy as np
import pytest
import tensorflow as tf
from google.protobuf import text_format
from tensorflow_serving.apis import (
    get_model_status_pb2,
    model_management_pb2,
    model_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_log_pb2,
    prediction_service_pb2_grpc,
)

from tfmetarec.server import BatchingOptions, Server, StatusError, inference

pytestmark = pytest.mark.serving


@pytest.fixture
def base(exported, tmp_path):
    """A model directory with version 1."""
    shutil.copytree(exported / "1", tmp_path / "basket" / "1")
    return tmp_path / "basket"


def publish(exported, base, version, source="2"):
    shutil.copytree(exported / source, base / "staging")
    (base / "staging").rename(base / version)


def states(server, name="basket"):
    rows = server.store.status(model_pb2.ModelSpec(name=name)).model_version_status
    state = get_model_status_pb2.ModelVersionStatus.State
    return {row.version: state.Name(row.state) for row in rows}


def wait_for(condition, timeout_s=15.0):
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def scored(http_call, server):
    body = {"inputs": {"item": ["a"], "price": [1.0], "count": [[1, 1]]}}
    return http_call(server.rest_api_port, "POST", "/v1/models/basket:predict", body)[1]["outputs"]["score"]


def test_a_published_version_takes_over_and_removing_it_brings_the_old_one_back(exported, base, http_call):
    with Server("basket", base, file_system_poll_wait_s=0.05) as server:
        assert scored(http_call, server) == [2.0]
        publish(exported, base, "2")
        wait_for(lambda: states(server) == {2: "AVAILABLE", 1: "END"})
        assert scored(http_call, server) == [102.0]
        shutil.rmtree(base / "2")
        wait_for(lambda: states(server) == {2: "END", 1: "AVAILABLE"})
        assert scored(http_call, server) == [2.0]


def test_a_version_that_cannot_be_loaded_leaves_the_good_one_serving(base, http_call, caplog):
    with Server("basket", base, file_system_poll_wait_s=0.05) as server:
        (base / "2").mkdir()
        (base / "2" / "saved_model.pb").write_bytes(b"not a model")
        wait_for(lambda: states(server).get(2) == "END")
        assert scored(http_call, server) == [2.0]
        _, page = http_call(server.rest_api_port, "GET", "/v1/models/basket/versions/2")
        status = page["model_version_status"][0]["status"]
        assert status["error_code"] == "INVALID_ARGUMENT"
        assert "saved_model.pb" in status["error_message"]
    assert "Could not load basket version 2" in caplog.text


def test_an_incomplete_version_is_not_loaded_until_it_is_complete(exported, base, http_call, caplog):
    with Server("basket", base, file_system_poll_wait_s=0.05) as server:
        (base / "2").mkdir()
        shutil.copy(exported / "2" / "saved_model.pb", base / "2")
        wait_for(lambda: states(server).get(2) == "END")
        assert scored(http_call, server) == [2.0]
        assert "it has no variables/variables.index" in caplog.text
        shutil.copytree(exported / "2" / "variables", base / "variables")
        (base / "variables").rename(base / "2" / "variables")
        wait_for(lambda: states(server) == {2: "AVAILABLE", 1: "END"})
        assert scored(http_call, server) == [102.0]


def test_what_is_under_way_on_the_old_version_finishes_before_it_is_closed(exported, base, http_call):
    with Server("basket", base, file_system_poll_wait_s=0.05) as server:
        with server.store.use(model_pb2.ModelSpec(name="basket")) as old:
            publish(exported, base, "2")
            wait_for(lambda: states(server) == {2: "AVAILABLE", 1: "UNLOADING"})
            assert scored(http_call, server) == [102.0]
            path = "/v1/models/basket/versions/1:predict"
            assert http_call(server.rest_api_port, "POST", path, {"inputs": 1})[0] == 404
            signature = inference.predict_signature(old, "total")
            assert inference.predict(old, signature, {"x": np.float32([1, 2])})["total"] == 3.0
        wait_for(lambda: states(server)[1] == "END")


def test_all_versions_leaving_ends_the_model(base, http_call):
    with Server("basket", base, file_system_poll_wait_s=0.05) as server:
        shutil.rmtree(base / "1")
        wait_for(lambda: states(server) == {1: "END"})
        status, page = http_call(server.rest_api_port, "POST", "/v1/models/basket:predict", {"instances": [1]})
        assert (status, page["error"]) == (404, "Servable not found for request: Latest(basket)")


def test_a_base_path_that_goes_away_keeps_the_model_serving(base, http_call, caplog):
    with Server("basket", base, file_system_poll_wait_s=0.05) as server:
        base.rename(base.with_name("away"))
        wait_for(lambda: "Could not find base path" in caplog.text)
        assert scored(http_call, server) == [2.0]


def test_a_model_that_cannot_be_loaded_keeps_the_server_from_starting(tmp_path):
    (tmp_path / "m" / "1").mkdir(parents=True)
    with pytest.raises(StatusError) as caught, Server("m", tmp_path / "m"):
        pass
    assert caught.value.code == "UNKNOWN"
    assert caught.value.message.startswith(
        "1 servable(s) did not become available: {{{name: m version: 1} due to error: NOT_FOUND: Could not"
    )


def test_a_failed_load_is_tried_again_as_often_as_asked(tmp_path, caplog):
    (tmp_path / "m" / "1").mkdir(parents=True)
    server = Server("m", tmp_path / "m", load_retries=2, load_retry_wait_s=0.01)
    with pytest.raises(StatusError), server:
        pass
    assert caplog.text.count("Could not load m version 1") == 3


def test_a_new_label_may_wait_for_its_version_where_that_is_allowed(exported, base, tmp_path, http_call):
    file = tmp_path / "models.config"
    file.write_text(
        f'model_config_list {{ config {{ name: "basket" base_path: "{base}" model_platform: "tensorflow" '
        'version_labels { key: "next" value: 2 } } }'
    )
    with pytest.raises(StatusError, match="assign label to version 2"), Server(model_config_file=file):
        pass
    settings = {"allow_labels_for_unavailable": True, "file_system_poll_wait_s": 0.05, "port": None}
    with Server(model_config_file=file, **settings) as server:
        path = "/v1/models/basket/labels/next:predict"
        body = {"signature_name": "total", "inputs": [1.0]}
        assert http_call(server.rest_api_port, "POST", path, body)[0] == 404
        publish(exported, base, "2")
        wait_for(lambda: http_call(server.rest_api_port, "POST", path, body)[0] == 200)
    with pytest.raises(StatusError, match="labels are not currently allowed"):
        Server(model_config_file=file, allow_labels_for_unavailable=True, allow_version_labels=False).start()


def test_a_model_that_does_not_appear_in_time_is_an_error(tmp_path):
    with (
        pytest.raises(StatusError, match="Could not find base path"),
        Server("m", tmp_path / "none", start_timeout_s=0.3),
    ):
        pass


def test_a_taken_port_is_an_error(base):
    with Server("basket", base) as server:
        with pytest.raises(StatusError, match=f"REST port 127.0.0.1:{server.rest_api_port} is taken"):
            Server("basket", base, port=None, rest_api_port=server.rest_api_port).start()
        with pytest.raises(StatusError, match=f"gRPC port 127.0.0.1:{server.port} is taken"):
            Server("basket", base, port=server.port, rest_api_port=None).start()


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl to make a certificate")
def test_grpc_speaks_tls_with_the_certificate_of_the_ssl_file(base, tmp_path):
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost"]
    made += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(made, check=True, capture_output=True)
    texts = [file.read_text().replace("\n", "\\n") for file in (key, certificate)]
    (tmp_path / "ssl.config").write_text(f'server_key: "{texts[0]}" server_cert: "{texts[1]}"')
    with Server("basket", base, rest_api_port=None, ssl_config_file=tmp_path / "ssl.config") as server:
        request = get_model_status_pb2.GetModelStatusRequest()
        request.model_spec.name = "basket"
        address = f"127.0.0.1:{server.port}"
        with grpc.secure_channel(address, grpc.ssl_channel_credentials(certificate.read_bytes())) as channel:
            stub = model_service_pb2_grpc.ModelServiceStub(channel)
            assert stub.GetModelStatus(request, timeout=10).model_version_status[0].version == 1
        with grpc.insecure_channel(address) as channel, pytest.raises(grpc.RpcError):
            model_service_pb2_grpc.ModelServiceStub(channel).GetModelStatus(request, timeout=10)


def test_settings_that_break_a_rule_are_refused(base):
    with pytest.raises(StatusError, match="Exactly one of `model_base_path` and `model_config_file`"):
        Server("basket")
    with pytest.raises(StatusError, match="`model_name` is only for `model_base_path`"):
        Server("basket", model_config_file=base)


def reload(server, text):
    request = model_management_pb2.ReloadConfigRequest()
    text_format.Parse(text, request.config)
    with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        try:
            model_service_pb2_grpc.ModelServiceStub(channel).HandleReloadConfigRequest(request, timeout=30)
        except grpc.RpcError as error:
            return error.code().name, error.details()
    return "OK", ""


def test_configuration_is_replaced_as_a_whole_and_labels_follow_versions(exported, base, http_call):
    publish(exported, base, "2")

    def listing(more, name="basket"):
        return (
            f'model_config_list {{ config {{ name: "{name}" base_path: "{base}" model_platform: "tensorflow" '
            f"{more} }} }}"
        )

    both = "model_version_policy { specific { versions: 1 versions: 2 } }"
    label = 'version_labels { key: "stable" value: 1 }'
    with Server("basket", base, file_system_poll_wait_s=0) as server:
        assert reload(server, listing(label)) == (
            "FAILED_PRECONDITION",
            "Request to assign label to version 1 of model basket, which is not currently available for inference",
        )
        assert reload(server, listing(both)) == ("OK", "")
        assert reload(server, listing(both + label)) == ("OK", "")
        assert states(server) == {2: "AVAILABLE", 1: "AVAILABLE"}
        path = "/v1/models/basket/labels/stable:predict"
        body = {"signature_name": "total", "inputs": [1.0]}
        assert http_call(server.rest_api_port, "POST", path, body) == (200, {"outputs": 1.0})
        assert reload(server, listing("", name="other")) == ("OK", "")
        wait_for(lambda: states(server) == {2: "END", 1: "END"})
        assert states(server, "other") == {2: "AVAILABLE"}
        assert http_call(server.rest_api_port, "POST", path, body)[0] == 400  # Labels went with the model.


def test_a_label_cannot_come_with_its_version_except_where_labels_may_wait(exported, base, tmp_path, http_call):
    publish(exported, base, "2")

    def listing(more):
        return (
            f'model_config_list {{ config {{ name: "basket" base_path: "{base}" model_platform: "tensorflow" '
            f"{more} }} }}"
        )

    both = "model_version_policy { specific { versions: 1 versions: 2 } }"
    old, new = 'version_labels { key: "stable" value: 1 }', 'version_labels { key: "canary" value: 2 }'
    refused = "Request to assign label to version 1 of model basket, which is not currently available for inference"
    file = tmp_path / "models.config"
    file.write_text(listing(both + old))
    with pytest.raises(StatusError, match=refused), Server(model_config_file=file):
        pass
    with Server("basket", base, file_system_poll_wait_s=0) as server:
        assert reload(server, listing(both + old)) == ("FAILED_PRECONDITION", refused)
        assert states(server) == {2: "AVAILABLE"}  # Labels come first: version 1 was not even loaded.
    with Server(model_config_file=file, allow_labels_for_unavailable=True, file_system_poll_wait_s=0) as server:
        assert states(server) == {2: "AVAILABLE", 1: "AVAILABLE"}
        assert reload(server, listing(old + new)) == ("OK", "")  # Version 1 goes; its label had it before.
        wait_for(lambda: states(server)[1] == "END")
        path = "/v1/models/basket/labels/stable:predict"
        status, page = http_call(server.rest_api_port, "POST", path, {"signature_name": "total", "inputs": [1.0]})
        assert (status, page["error"]) == (404, "Servable not found for request: Specific(basket, 1)")
        moved = new.replace("value: 2", "value: 1")  # A label that was somewhere may only move to what is there.
        assert reload(server, listing(moved)) == ("FAILED_PRECONDITION", refused)


def test_a_reload_counts_models_where_the_start_counts_servables(base, tmp_path):
    (tmp_path / "broken" / "1").mkdir(parents=True)
    entry = 'config {{ name: "{0}" base_path: "{1}" model_platform: "tensorflow" }}'
    with Server("basket", base) as server:
        text = entry.format("basket", base) + entry.format("broken", tmp_path / "broken")
        code, message = reload(server, f"model_config_list {{ {text} }}")
        assert code == "UNKNOWN"
        assert message.startswith("1 model(s) did not become available: {{{name: broken version: 1} due to error: ")


def test_a_rejected_platform_blocks_later_reloads_as_in_tensorflow_serving(base, http_call):
    listing = f'model_config_list {{ config {{ name: "basket" base_path: "{base}" model_type: TENSORFLOW }} %s }}'
    good, new = listing % "", listing % f'config {{ name: "new" base_path: "{base}" }}'
    with Server("basket", base, file_system_poll_wait_s=0) as server:
        for text in (new, good):
            code, message = reload(server, text)
            assert code == "INVALID_ARGUMENT"
            assert message.startswith("Illegal setting neither")
        assert scored(http_call, server) == [2.0]


def test_a_changed_configuration_file_is_applied(exported, base, tmp_path, http_call):
    publish(exported, base, "2")
    file = tmp_path / "models.config"
    text = f'model_config_list {{ config {{ name: "basket" base_path: "{base}" model_type: TENSORFLOW %s }} }}'
    file.write_text(text % "")
    with Server(model_config_file=file, model_config_file_poll_wait_s=0.05) as server:
        assert scored(http_call, server) == [102.0]
        file.write_text(text % "model_version_policy { specific { versions: 1 } }")
        wait_for(lambda: states(server) == {2: "END", 1: "AVAILABLE"})


def test_a_request_past_the_time_limit_is_a_504(base, http_call):
    with Server("basket", base, port=None, rest_api_timeout_ms=200) as server:
        body = {"signature_name": "slow", "inputs": [10**9]}
        status, page = http_call(server.rest_api_port, "POST", "/v1/models/basket:predict", body)
        assert status == 504
        assert page["error"]
        assert scored(http_call, server) == [2.0]


def test_work_for_a_client_that_no_longer_waits_is_ended(base):
    with (
        Server("basket", base, rest_api_port=None, grpc_threads=1) as server,
        grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel,
    ):
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        request = predict_pb2.PredictRequest(model_spec={"name": "basket", "signature_name": "slow"})
        request.inputs["steps"].CopyFrom(tf.make_tensor_proto(np.int32([10**9])))
        with pytest.raises(grpc.RpcError) as caught:
            stub.Predict(request, timeout=0.3)
        assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        request.inputs["steps"].CopyFrom(tf.make_tensor_proto(np.int32([1])))
        assert stub.Predict(request, timeout=20).outputs["done"].float_val == [1.0]  # The only thread is free again.


def test_tensors_are_sent_as_bytes_where_that_was_asked_for(base):
    request = predict_pb2.PredictRequest(model_spec={"name": "basket", "signature_name": "text"})
    request.inputs["text"].CopyFrom(tf.make_tensor_proto(["ab"]))
    for tensor_content, values, content in ((False, [b"ab"], b""), (True, [], b"\x02ab")):
        with (
            Server("basket", base, rest_api_port=None, tensor_content=tensor_content) as server,
            grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel,
        ):
            stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
            answer = stub.Predict(request, timeout=20).outputs["text"]
            assert (list(answer.string_val), answer.tensor_content) == (values, content)


def test_compiled_functions_fail_as_in_tensorflow_serving_unless_allowed(tmp_path, http_call, caplog):
    class Compiled(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, "x")], jit_compile=True)
        def inner(self, x):
            return {"y": 2.0 * x}

        @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, "x")])
        def outer(self, x):
            return {"y": tf.cond(x[0] > 0, lambda: self.inner(x)["y"], lambda: x)}

        @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, "x")])
        def plain(self, x):
            return {"y": x}

    model = Compiled()
    signatures = {name: getattr(model, name) for name in ("inner", "outer", "plain")}
    tf.saved_model.save(model, str(tmp_path / "m" / "1"), signatures=signatures)
    disabled = (500, {"error": "XLA compilation disabled"})
    expected = {"inner": disabled, "outer": disabled, "plain": (200, {"outputs": [3.0]})}
    with Server("m", tmp_path / "m", port=None) as server:
        for name, answer in expected.items():
            body = {"signature_name": name, "inputs": [3.0]}
            assert http_call(server.rest_api_port, "POST", "/v1/models/m:predict", body) == answer
    assert "Signature outer of m version 1 needs jit_compile" in caplog.text
    with Server("m", tmp_path / "m", port=None, allow_xla=True) as server:
        body = {"signature_name": "inner", "inputs": [3.0]}
        assert http_call(server.rest_api_port, "POST", "/v1/models/m:predict", body) == (
            200,
            {"outputs": [6.0]},
        )


def predict_log(**inputs):
    request = predict_pb2.PredictRequest()
    request.model_spec.name, request.model_spec.signature_name = "basket", "mean"
    for name, value in inputs.items():
        request.inputs[name].CopyFrom(tf.make_tensor_proto(value))
    return prediction_log_pb2.PredictionLog(predict_log=prediction_log_pb2.PredictLog(request=request))


def write_warmup(base, records):
    path = base / "1" / "assets.extra" / "tf_serving_warmup_requests"
    path.parent.mkdir()
    with tf.io.TFRecordWriter(str(path)) as writer:
        for record in records:
            writer.write(record)
    return path


def test_recorded_requests_run_before_a_version_is_served(base, caplog):
    caplog.set_level(logging.INFO)
    good = predict_log(values=np.float32([[1, 2]]), length=np.int32([2])).SerializeToString()
    empty = prediction_log_pb2.PredictionLog().SerializeToString()  # Holds no request, and is passed over.
    write_warmup(base, [good, good, empty])
    with Server("basket", base):
        assert "Warmed up basket version 1 with 3 requests" in caplog.text


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (predict_log(values=np.float32([[1, 2]])).SerializeToString(), "Missing but required: {length}"),
        (
            prediction_log_pb2.PredictionLog(session_run_log={}).SerializeToString(),
            "Unsupported log_type for warmup: 5",
        ),
        (b"\xff\xff", "Failed to parse warmup record"),
    ],
)
def test_a_bad_recorded_request_keeps_a_version_from_loading(base, record, message):
    write_warmup(base, [record])
    with pytest.raises(StatusError, match=message), Server("basket", base):
        pass
    with Server("basket", base, warmup_iterations=0) as server:  # The model itself is fine.
        assert states(server) == {1: "AVAILABLE"}


def test_a_warmup_file_that_is_no_tfrecord_is_explained(base):
    write_warmup(base, []).write_bytes(b"something else entirely, and long enough")
    with (
        pytest.raises(StatusError, match="verify your warmup data is in TFRecord format"),
        Server("basket", base),
    ):
        pass


def test_requests_that_arrive_together_run_as_one_and_padding_does_not_leak(base, http_call):
    options = BatchingOptions(
        max_batch_size=4,
        batch_timeout_micros=1_500_000,
        num_batch_threads=1,
        allowed_batch_sizes=(4,),
        pad_variable_length_inputs=True,
    )
    requests = {"short": ([[3.0, 5.0]], [2]), "long": ([[1.0, 2.0, 3.0, 99.0]], [3])}
    answers = {}
    with Server("basket", base, port=None, batching=options) as server:

        def ask(name):
            values, length = requests[name]
            body = {"signature_name": "mean", "inputs": {"values": values, "length": length}}
            answers[name] = http_call(server.rest_api_port, "POST", "/v1/models/basket:predict", body)

        threads = [threading.Thread(target=ask, args=(name,)) for name in requests]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    # Both ran at width 4 (the wider one's) among 4 rows (the only allowed size), and got their own means.
    assert answers["short"] == (200, {"outputs": {"mean": [4.0], "width": [4], "rows": [4]}})
    assert answers["long"] == (200, {"outputs": {"mean": [2.0], "width": [4], "rows": [4]}})


def test_requests_of_different_widths_cannot_share_a_batch_without_padding(base, http_call):
    options = BatchingOptions(max_batch_size=2, batch_timeout_micros=1_500_000, num_batch_threads=1)
    answers = []
    with Server("basket", base, port=None, batching=options) as server:

        def ask(width):
            body = {"signature_name": "mean", "inputs": {"values": [[1.0] * width], "length": [1]}}
            answers.append(http_call(server.rest_api_port, "POST", "/v1/models/basket:predict", body))

        threads = [threading.Thread(target=ask, args=(width,)) for width in (1, 2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert [status for status, _ in answers] == [400, 400]
    assert "padding is turned off" in answers[0][1]["error"]


@pytest.mark.parametrize(
    ("signature", "inputs", "message"),
    [
        (
            "mean",
            {"values": [[1.0]] * 9, "length": [1] * 9},
            "Task size 9 is larger than maximum input batch size 8",
        ),
        (
            "mean",
            {"values": [[1.0]], "length": [1, 1]},
            "Batching Run() input tensors must have equal 0th-dimension size",
        ),
        ("total", {"x": [1.0]}, "Batched output tensor has 0 dimensions"),
        ("text", {"text": "x"}, "Batching Run() input tensors must have at least one dimension"),
    ],
)
def test_batching_refuses_what_has_no_common_rows(batched, http_call, signature, inputs, message):
    body = {"signature_name": signature, "inputs": inputs}
    answer = http_call(batched.rest_api_port, "POST", "/v1/models/basket:predict", body)
    assert answer == (400, {"error": message})


@pytest.fixture(scope="module")
def batched(exported, tmp_path_factory):
    base = tmp_path_factory.mktemp("batched") / "basket"
    shutil.copytree(exported / "1", base / "1")
    with Server("basket", base, port=None, batching=BatchingOptions(max_batch_size=8)) as server:
        yield server


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_batch_size": 0}, "`max_batch_size` must be at least 1. Received: max_batch_size=0"),
        ({"allowed_batch_sizes": (4, 2)}, "allowed_batch_sizes entries must be monotonically increasing"),
        (
            {"max_batch_size": 32, "allowed_batch_sizes": (4, 16)},
            "Last entry in allowed_batch_sizes must match max_batch_size; last entry was 16; expected 32",
        ),
    ],
)
def test_batch_sizes_that_break_a_rule_are_refused(settings, message):
    with pytest.raises(StatusError) as caught:
        BatchingOptions(**settings)
    assert caught.value.message == message


def test_every_request_of_a_busy_batching_server_gets_its_own_answer(batched, http_call):
    answers = {}

    def ask(number):
        inputs = {"values": [[float(number), 0.0]] * (1 + number % 3), "length": [1] * (1 + number % 3)}
        body = {"signature_name": "mean", "inputs": inputs}
        _, page = http_call(batched.rest_api_port, "POST", "/v1/models/basket:predict", body)
        answers[number] = page["outputs"]["mean"]

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == {number: [float(number)] * (1 + number % 3) for number in range(40)}
