"""The client against any model: settings, types, versions, errors, both protocols."""

import socket
import subprocess
import sys
import threading

import numpy as np
import pytest

from tfmetarec.client import Client, ServingError


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.parametrize("protocol", ["rest", "grpc"])
def test_no_server_at_all_is_unavailable(protocol):
    client = Client(f"127.0.0.1:{free_port()}", model="m", protocol=protocol, retries=1, timeout_s=5)
    with client, pytest.raises(ServingError) as caught:
        client.status()
    assert caught.value.code == "UNAVAILABLE"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target": "http://localhost:1"}, r'`target` must be "host:port". Received: target='),
        ({"target": "localhost"}, r'`target` must be "host:port"'),
        ({"protocol": "http"}, '`protocol` must be "rest" or "grpc". Received'),
        ({"model": ""}, "`model` must name a model. Received: model=''"),
        ({"version": 1, "label": "x"}, "Only one of `version` and `label` can be given"),
        ({"timeout_s": 0}, "`timeout_s` must be greater than 0. Received: timeout_s=0"),
        ({"retries": -1}, "`retries` must be at least 0. Received: retries=-1"),
    ],
)
def test_settings_that_break_a_rule_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Client(**settings)


def test_the_rest_client_does_not_load_tensorflow():
    code = "import sys, tfmetarec.client as c; c.Client(); print({'tensorflow', 'grpc'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    import tensorflow as tf

    from tfmetarec.server import Server

    spec = tf.TensorSpec

    class Model(tf.Module):
        @tf.function(
            input_signature=[
                spec([None], tf.int64, "id"),
                spec([None, 3], tf.float32, "features"),
                spec([None], tf.string, "name"),
                spec([None], tf.bool, "new"),
            ]
        )
        def score(self, id, features, name, new):
            total = tf.reduce_sum(features, 1)
            return {
                "id": id + 1,
                "score": tf.where(new, total, -total),
                "name": tf.strings.join([name, "é"]),
                "name_bytes": name,
            }

        @tf.function(input_signature=[spec([None], tf.float32, "x")])
        def one(self, x):
            return {"y": x * 2.0}

        @tf.function(input_signature=[spec(None, tf.string, "s")])
        def text(self, s):
            return {"s": s}

        @tf.function(input_signature=[spec([None], tf.int32, "n")])
        def empty(self, n):
            return {"none": tf.zeros([tf.shape(n)[0], 0, 2]), "words": tf.zeros([0, 2], tf.string)}

    base = tmp_path_factory.mktemp("client") / "m"
    model = Model()
    signatures = {"serving_default": model.score, "one": model.one, "text": model.text, "empty": model.empty}
    tf.saved_model.save(model, str(base / "1"), signatures=signatures)
    with Server("m", base) as running:
        yield running


@pytest.fixture(params=["rest", "grpc"])
def client(request, server):
    port = server.rest_api_port if request.param == "rest" else server.port
    with Client(f"127.0.0.1:{port}", protocol=request.param, model="m") as made:
        yield made


INPUTS = {
    "id": [2**53 + 1, 2],  # Not a float64.
    "features": [[1, 2, 3], [0.1, 0.2, 0.3]],
    "name": ["bread", b"milk\x00\xff"],
    "new": [True, False],
}


@pytest.mark.serving
def test_lists_go_out_as_the_signature_wants_them(client):
    outputs = client.predict(INPUTS)
    assert outputs["id"].tolist() == [2**53 + 2, 3]
    assert outputs["id"].dtype == np.int64
    expected = np.array([6.0, -np.sum(np.float32([0.1, 0.2, 0.3]))], np.float32)
    np.testing.assert_allclose(outputs["score"], expected, rtol=1e-6)
    assert outputs["score"].dtype == np.float32
    assert outputs["name_bytes"].tolist() == [b"bread", b"milk\x00\xff"]
    assert outputs["name"][0] == "breadé"


@pytest.mark.serving
def test_both_protocols_give_equal_answers(server):
    calls = [
        (INPUTS, "serving_default"),
        ({"x": [np.nan, np.inf, -np.inf, 1e-30, 1 / 3]}, "one"),
        ({"x": []}, "one"),
        ({"s": [["a", "é"], ['"', "\n"]]}, "text"),
        ({"s": "alone"}, "text"),
        ({"n": [1, 2]}, "empty"),
    ]
    with (
        Client(f"127.0.0.1:{server.rest_api_port}", model="m") as rest,
        Client(f"127.0.0.1:{server.port}", model="m", protocol="grpc") as grpc,
    ):
        for inputs, signature in calls:
            one, other = rest.predict(inputs, signature), grpc.predict(inputs, signature)
            assert one.keys() == other.keys()
            for name in one:
                np.testing.assert_array_equal(one[name], other[name])
                assert (one[name].dtype, one[name].shape) == (other[name].dtype, other[name].shape)
        assert rest.status() == grpc.status()
        assert rest.metadata() == grpc.metadata()


@pytest.mark.serving
def test_an_empty_list_gets_the_inner_shape_of_the_signature(server):
    inputs = {"id": [], "features": [], "name": [], "new": []}
    with Client(f"127.0.0.1:{server.port}", model="m", protocol="grpc") as client:
        assert client.predict(inputs)["score"].shape == (0,)
    with (
        Client(f"127.0.0.1:{server.rest_api_port}", model="m") as client,
        pytest.raises(ValueError, match=r"`inputs\['features'\]` has shape \(0, 3\), which JSON cannot say"),
    ):
        client.predict(inputs)


@pytest.mark.serving
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"other": [1]},
            "`inputs` must hold inputs of the signature: features, id, name, new. Received: other",
        ),
        ({"id": [1.5, 2.0]}, r"`inputs\['id'\]` must hold int64 values. Received: float64"),
        ({"id": ["a", "b"]}, r"`inputs\['id'\]` must hold int64 values. Received: <U1"),
        ({"new": [0, 1]}, r"`inputs\['new'\]` must hold bool values. Received: int64"),
        ({"name": [1, 2]}, r"`inputs\['name'\]` must hold strings only. Received: int"),
        ({"name": ["a", 2]}, r"`inputs\['name'\]` must hold strings only. Received: int"),
        ({"name": [["a"], ["b", "c"]]}, r"`inputs\['name'\]` must have rows of equal lengths"),
        ({"features": [[1, 2, 3], [1]]}, r"`inputs\['features'\]` must have rows of equal lengths"),
    ],
)
def test_inputs_that_do_not_fit_are_refused_before_they_are_sent(client, changed, message):
    with pytest.raises(ValueError, match=message):
        client.predict(INPUTS | changed)


@pytest.mark.serving
def test_integers_out_of_range_are_refused(client):
    with pytest.raises(ValueError, match="must hold int32 values, from -2147483648 to 2147483647"):
        client.predict({"n": [2**31]}, "empty")


@pytest.mark.serving
def test_the_words_of_the_server_come_through(client):
    with pytest.raises(ServingError) as caught:
        client.predict({"id": [1]}, "serving_default")
    assert caught.value.code == "INVALID_ARGUMENT"
    with pytest.raises(ServingError, match="The model has no signature 'none'; it has empty, one, serving_d"):
        client.predict({}, "none")


@pytest.mark.serving
@pytest.mark.parametrize(
    ("which", "code", "message"),
    [
        ({"version": 7}, "NOT_FOUND", "Servable not found for request: Specific(m, 7)"),
        ({"label": "stable"}, "INVALID_ARGUMENT", "Unrecognized servable version label: stable"),
        ({"model": "n/o"}, "NOT_FOUND", "Servable not found for request: Latest(n/o)"),
    ],
)
def test_version_label_and_model_reach_the_server_over_both_protocols(server, which, code, message):
    for protocol, port in (("rest", server.rest_api_port), ("grpc", server.port)):
        settings = {"model": "m", "protocol": protocol} | which
        with Client(f"127.0.0.1:{port}", **settings) as client, pytest.raises(ServingError) as caught:
            client.predict({"x": [1.0]}, "one")
        assert (caught.value.code, caught.value.message) == (code, message)


@pytest.mark.serving
def test_threads_may_share_a_client(client):
    answers = {}

    def ask(number):
        answers[number] = client.predict({"x": [number]}, "one")["y"].tolist()

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == {number: [2.0 * number] for number in range(16)}
