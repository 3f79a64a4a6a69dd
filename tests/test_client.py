import http.server
import json
import re
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from tfmetarec.client import Client, ServingError


class Answers(http.server.BaseHTTPRequestHandler):
    """Answers requests with `server.pages` in turn: a status and a body, or seconds to stay silent."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.server.requests += 1
        page = self.server.pages.pop(0) if len(self.server.pages) > 1 else self.server.pages[0]
        if isinstance(page, float):
            time.sleep(page)
            self.close_connection = True
            return
        status, body = page
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET

    def log_message(self, *args):
        pass


@pytest.fixture
def answering():
    """Starts HTTP servers that give the answers listed: `answering(*pages) -> server`."""
    started = []

    def start(*pages):
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers)
        server.pages, server.requests = list(pages), 0
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        started.append(server)
        return server

    yield start
    for server in started:
        server.shutdown()
        server.server_close()


def client_of(server, **settings):
    return Client(f"127.0.0.1:{server.server_port}", model="m", **settings)


STATUS = (200, json.dumps({"model_version_status": [{"version": "1", "state": "AVAILABLE"}]}).encode())
BUSY = (503, b'{"error": "The batch scheduling queue to which this task was submitted is full"}')


def test_an_overloaded_server_is_asked_again(answering):
    server = answering(BUSY, BUSY, STATUS)
    with client_of(server) as client:
        assert client.status()[0]["version"] == "1"
    assert server.requests == 3


def test_the_last_error_comes_out_when_the_retries_are_used_up(answering):
    server = answering(BUSY)
    with client_of(server, retries=1) as client, pytest.raises(ServingError) as caught:
        client.status()
    assert server.requests == 2
    assert str(caught.value) == "UNAVAILABLE: The batch scheduling queue to which this task was submitted is full"


@pytest.mark.parametrize(("status", "code"), [(400, "INVALID_ARGUMENT"), (404, "NOT_FOUND"), (500, "INTERNAL")])
def test_other_errors_are_told_at_once(answering, status, code):
    server = answering((status, b'{"error": "words of the server"}'))
    with client_of(server) as client, pytest.raises(ServingError) as caught:
        client.status()
    assert server.requests == 1
    assert (caught.value.code, caught.value.message) == (code, "words of the server")


def test_waits_between_retries_double(answering):
    server = answering(BUSY, BUSY, STATUS)
    started = time.monotonic()
    with client_of(server) as client:
        client.status()
    assert 0.3 <= time.monotonic() - started < 2.0  # 0.1 + 0.2


def test_a_silent_server_is_a_deadline_exceeded(answering):
    server = answering(5.0)
    started = time.monotonic()
    with client_of(server, timeout_s=0.3) as client, pytest.raises(ServingError) as caught:
        client.status()
    assert caught.value.code == "DEADLINE_EXCEEDED"
    assert time.monotonic() - started < 2.0


def test_the_time_limit_covers_the_retries(answering):
    server = answering(BUSY)
    started = time.monotonic()
    with client_of(server, timeout_s=0.5, retries=100) as client, pytest.raises(ServingError):
        client.status()
    assert time.monotonic() - started < 1.5


def test_a_connection_that_the_server_closed_meanwhile_is_opened_again(answering):
    server = answering(STATUS, 0.0, STATUS)
    with client_of(server, retries=0) as client:
        client.status()
        assert client.status()[0]["state"] == "AVAILABLE"


@pytest.mark.parametrize("page", [(200, b"<html>"), (502, b"<h1>Bad gateway</h1>"), (500, b"")])
def test_an_answer_that_is_no_json_is_a_serving_error(answering, page):
    with client_of(answering(page)) as client, pytest.raises(ServingError):
        client.status()


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


@pytest.fixture(scope="module")
def echo(tmp_path_factory):
    """A model that recommends what it was told of the user, as text."""
    import tensorflow as tf

    from tfmetarec.server import Server

    spec = tf.TensorSpec

    class Model(tf.Module):
        @tf.function(
            input_signature=[
                spec([None, None], tf.int64, "support"),
                spec([None, None], tf.float32, "support_labels"),
                spec([None], tf.int32, "support_length"),
                spec([None], tf.float32, "user_age"),
                spec([None], tf.int64, "user_floor"),
                spec([None], tf.string, "user_home_town"),
                spec([None, None], tf.string, "user_likes"),
                spec([None], tf.int32, "user_likes_length"),
                spec([None, 2], tf.float32, "user_place"),
            ]
        )
        def told(self, support, support_labels, support_length, age, floor, town, likes, likes_length, place):
            likes = tf.strings.reduce_join(likes, 1, separator="|")
            place = tf.strings.reduce_join(tf.strings.as_string(place, precision=1), 1, separator="|")
            age = tf.strings.as_string(age, precision=1)
            floor, length = tf.strings.as_string(floor), tf.strings.as_string(likes_length)
            items = tf.stack([age, floor, town, likes, length, place], 1)
            return {"items": items, "scores": tf.ones(tf.shape(items))}

    base = tmp_path_factory.mktemp("echo") / "echo"
    model = Model()
    tf.saved_model.save(model, str(base / "1"), signatures={"adapt_and_recommend": model.told})
    with Server("echo", base) as running, Client(f"127.0.0.1:{running.rest_api_port}", model="echo") as client:
        yield lambda user: [item for item, _ in client.recommend([], user=user)]


@pytest.mark.serving
@pytest.mark.parametrize(
    ("user", "told"),
    [
        ({}, ["nan", "0", "", "", "0", "nan|nan"]),
        ({"age": None, "likes": None, "place": None}, ["nan", "0", "", "", "0", "nan|nan"]),
        ({"age": "34", "floor": "-2"}, ["34.0", "-2", "", "", "0", "nan|nan"]),
        ({"age": 34.5, "floor": np.int64(3)}, ["34.5", "3", "", "", "0", "nan|nan"]),
        ({"home town": "a, b"}, ["nan", "0", "a, b", "", "0", "nan|nan"]),
        ({"likes": ["tea", "rye, dark"]}, ["nan", "0", "", "tea|rye, dark", "2", "nan|nan"]),
        ({"likes": "tea, rye"}, ["nan", "0", "", "tea|rye", "2", "nan|nan"]),
        ({"likes": "tea"}, ["nan", "0", "", "tea", "1", "nan|nan"]),
        ({"likes": [], "place": "1,2.5"}, ["nan", "0", "", "", "0", "1.0|2.5"]),
        ({"likes": "", "place": np.array([1, 2])}, ["nan", "0", "", "", "0", "1.0|2.0"]),
    ],
)
def test_features_of_a_user_arrive_as_the_model_wants_them(echo, user, told):
    assert echo(user) == told


@pytest.mark.serving
@pytest.mark.parametrize(
    ("user", "message"),
    [
        ({"age": "old"}, "`user['age']` must be a number. Received: 'old'"),
        ({"age": [3]}, "`user['age']` must be a number. Received: [3]"),
        ({"floor": "2.5"}, "`user['floor']` must be a whole number. Received: '2.5'"),
        ({"home_town": 3}, "`user['home_town']` must hold text. Received: 3"),
        ({"likes": ["tea", 3]}, "`user['likes']` must hold text. Received: 3"),
        ({"place": [1, 2, 3]}, "`user['place']` must be a vector of width 2. Received: width 3"),
        ({"place": "1"}, "`user['place']` must be a vector of width 2. Received: width 1"),
        ({"place": "1,x"}, "`user['place']` must be a number. Received: 'x'"),
        (
            {"likes_length": 1},
            "features of the model: ['age', 'floor', 'home_town', 'likes', 'place']. Received: ['likes_length']",
        ),
    ],
)
def test_features_of_a_user_that_do_not_fit_are_refused(echo, user, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        echo(user)
