"""Clients that are slow, broken or mean harm: a clear refusal for them, and nothing changes for the others."""

import contextlib
import gzip
import importlib
import json
import shutil
import socket
import struct
import sys
import threading
import time
from pathlib import Path

import grpc
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

from tfmetarec.server import Server, StatusError, json_text, large_json, prometheus
from tfmetarec.server.limits import Gates, Limits

ROOT = Path(__file__).parents[2]
SLOW = {"signature_name": "slow", "inputs": [1]}
LIMITS = Limits(max_body_bytes=100_000, max_bytes_at_once=100_000, header_timeout_s=0.5, body_timeout_s=1.0)


def imported(name):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [str(ROOT), *sys.path])  # `benchmarks` is not part of the installed package.
        return importlib.import_module(f"benchmarks.{name}")


attacks = imported("serving_attacks")


@pytest.fixture(scope="module")
def base(exported, tmp_path_factory):
    root = tmp_path_factory.mktemp("models") / "basket"
    shutil.copytree(exported / "1", root / "1")
    return root


@pytest.fixture(scope="module")
def server(base):
    with Server("basket", base, limits=LIMITS, grpc_threads=1) as running:
        yield running


@pytest.fixture
def serving(base):
    """A server with limits of its own: `serving(max_connections=3)`."""
    with contextlib.ExitStack() as stack:
        yield lambda **limits: stack.enter_context(Server("basket", base, limits=Limits(**limits)))


def question():
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "basket"
    for name, array in {"item": ["a"], "price": np.float32([1]), "count": np.int64([[1, 1]])}.items():
        request.inputs[name].CopyFrom(tf.make_tensor_proto(array))
    return request


@pytest.fixture(scope="module")
def victim(server):
    body = {"inputs": {"item": ["a"], "price": [1.0], "count": [[1, 1]]}}
    ports = (server.rest_api_port, server.port)
    timeouts_s = (LIMITS.header_timeout_s, LIMITS.body_timeout_s)
    return attacks.Victim(*ports, "basket", body, question(), timeouts_s, LIMITS.max_body_bytes)


@pytest.fixture
def well(server, victim, http_call):
    """Asks an honest question over both protocols, before and after a test."""

    def ask():
        status, page = http_call(server.rest_api_port, "POST", victim.path, victim.body)
        assert (status, page["outputs"]["score"]) == (200, [2.0])
        with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
            stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
            assert stub.Predict(victim.request, timeout=20).outputs["score"].float_val[:] == [2.0]

    ask()
    yield
    ask()


@contextlib.contextmanager
def connected(server, sent=b""):
    with socket.create_connection(("127.0.0.1", server.rest_api_port), 20) as connection:
        connection.sendall(sent)
        yield connection


def answer(connection):
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


def head(*headers, method="POST", path="/v1/models/basket:predict"):
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: a", *headers, "", ""]).encode()


def post(body, *headers):
    return head(f"Content-Length: {len(body)}", *headers) + body


STATUS = head(method="GET", path="/v1/models/basket")

# -- the attacks of the benchmark, small ----------------------------------------------------------------------


@pytest.mark.serving
@pytest.mark.parametrize(
    ("attack", "size"),
    [
        ("half_open", 20),
        ("half_open_grpc", 20),
        ("slow_headers", 20),
        ("slow_bodies", 20),
        ("calls_without_message", 200),
        ("too_large_bodies", 4),
        ("lies", 1),
        ("paths", 1),
        ("json_fuzz", 300),
        ("json_tricks", 1),
        ("protobuf_fuzz", 300),
        ("tensor_tricks", 1),
        ("http_garbage", 60),
        ("http2_garbage", 60),
    ],
)
def test_every_attack_is_refused_with_a_reason_and_honest_questions_are_answered(attack, size, victim, well):
    (known,) = (each for each in attacks.ATTACKS if each.run.__name__ == attack)
    answers = known.run(victim, size)
    assert answers.total() > 0
    assert set(answers) <= known.allowed


# -- too much -------------------------------------------------------------------------------------------------


@pytest.mark.serving
@pytest.mark.parametrize(
    "sent",
    [
        head("Content-Length: 100001"),
        head("Content-Length: 100001", "Expect: 100-continue"),
        head("Transfer-Encoding: chunked") + b"186a1\r\n",
        post(gzip.compress(b" " * 100_001), "Content-Encoding: gzip"),
    ],
    ids=["announced", "asked first", "chunked", "unpacked"],
)
def test_a_body_beyond_the_limit_is_refused_before_it_is_read(server, sent):
    with connected(server, sent) as connection:
        status, page = answer(connection)
    assert status == 413
    assert page["error"].startswith("The body must have at most 100000 bytes. Received: ")


@pytest.mark.serving
def test_a_client_that_sends_on_reads_why_it_was_refused(server):
    with connected(server, head("Content-Length: 9000000")) as connection:
        connection.sendall(bytes(9_000_000))
        assert answer(connection)[0] == 413


@pytest.mark.serving
def test_a_message_beyond_the_limit_is_refused(server):
    with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        call = channel.unary_unary(attacks.PREDICT)
        with pytest.raises(grpc.RpcError) as caught:
            call(bytes(100_001), timeout=20)
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.serving
def test_one_request_too_many_is_refused_at_once_over_both_protocols(serving, http_call):
    server = serving(max_requests=1)
    path = "/v1/models/basket:predict"
    started = time.monotonic()
    http_call(server.rest_api_port, "POST", path, {**SLOW, "inputs": [1000]})
    steps = int(1000 * 2.0 / (time.monotonic() - started))
    under_way = []
    long = threading.Thread(
        target=lambda: under_way.append(http_call(server.rest_api_port, "POST", path, {**SLOW, "inputs": [steps]}))
    )
    long.start()
    time.sleep(0.4)
    refused = http_call(server.rest_api_port, "POST", path, SLOW)
    with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel, pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary(attacks.PREDICT)(question().SerializeToString(), timeout=20)
    visible = http_call(server.rest_api_port, "GET", "/v1/models/basket")
    assert long.is_alive()
    sentence = "The server is answering 1 requests, as many as it takes at once."
    assert refused == (429, {"error": sentence})
    assert (caught.value.code().name, caught.value.details()) == ("RESOURCE_EXHAUSTED", sentence)
    assert visible[0] == 200
    long.join()
    assert under_way == [(200, {"outputs": [float(steps)]})]
    assert http_call(server.rest_api_port, "POST", path, SLOW)[0] == 200


@pytest.mark.serving
def test_with_all_connections_in_use_one_more_is_told_so(serving):
    server = serving(max_connections=2)
    with connected(server, STATUS) as first, connected(server, STATUS) as second:
        assert [answer(first)[0], answer(second)[0]] == [200, 200]
        with connected(server, STATUS) as third:
            assert answer(third) == (503, {"error": "The server has 2 connections, as many as it takes."})
        first.sendall(STATUS)  # Those that are there are left alone.
        assert answer(first)[0] == 200
    time.sleep(0.3)
    with connected(server, STATUS) as fourth:
        assert answer(fourth)[0] == 200


@pytest.mark.serving
def test_with_all_connections_in_use_the_oldest_that_never_asked_makes_room(serving):
    server = serving(max_connections=3)
    with connected(server, STATUS) as used, connected(server) as silent, connected(server, b"POST /v1/mo") as slow:
        assert answer(used)[0] == 200
        time.sleep(0.3)
        with connected(server, STATUS) as fourth:
            assert answer(fourth)[0] == 200
            assert silent.recv(100) == b""
            slow.settimeout(0.1)
            with pytest.raises(TimeoutError):
                slow.recv(100)
            used.sendall(STATUS)
            assert answer(used)[0] == 200


def test_large_bodies_count_while_they_are_held_and_only_as_much_as_has_come():
    gates = Gates(Limits(max_body_bytes=10, max_bytes_at_once=10))
    gates.bytes.take(6)
    with pytest.raises(StatusError, match="The server holds 10 bytes of large requests") as caught:
        gates.bytes.take(5)
    assert caught.value.code == "RESOURCE_EXHAUSTED"
    gates.bytes.take(4)
    gates.bytes.give_back(6)
    gates.bytes.take(6)


@pytest.mark.serving
def test_more_rows_than_the_limit_are_refused(serving, http_call):
    server = serving(max_rows=3)
    path = "/v1/models/basket:predict"
    body = {"signature_name": "total", "inputs": [1.0, 2.0, 3.0, 4.0]}
    message = "The first dimension of an input must be at most 3 here. Received: 4"
    assert http_call(server.rest_api_port, "POST", path, body) == (400, {"error": message})
    body["inputs"].pop()
    assert http_call(server.rest_api_port, "POST", path, body) == (200, {"outputs": 6.0})


@pytest.mark.parametrize(
    ("name", "value", "rule"),
    [
        ("max_body_bytes", 0, "must be at least 1"),
        ("max_rows", 0, "must be at least 1"),
        ("max_requests", 0, "must be at least 1"),
        ("header_timeout_s", 0, "must be greater than 0"),
        ("body_timeout_s", float("nan"), "must be greater than 0"),
        ("max_bytes_at_once", 5, "must be at least `max_body_bytes`, 33554432"),
    ],
)
def test_limits_out_of_range_are_refused(name, value, rule):
    with pytest.raises(StatusError) as caught:
        Limits(**{name: value})
    assert caught.value.message == f"`{name}` {rule}. Received: {value}"


# -- too slow -------------------------------------------------------------------------------------------------


@pytest.mark.serving
@pytest.mark.parametrize(
    ("sent", "sentence"),
    [
        (b"", "A request must begin within 0.5 s."),
        (b"POST /v1/models", "The headers must arrive within 0.5 s."),
        (head("Content-Length: 9") + b"{", "The body must arrive within 1 s."),
        (head("Transfer-Encoding: chunked") + b"5\r\n{", "The body must arrive within 1 s."),
    ],
)
def test_what_does_not_arrive_in_time_is_given_up_with_the_limit(server, sent, sentence):
    with connected(server, sent) as connection:
        started = time.monotonic()
        assert answer(connection) == (408, {"error": sentence})
        assert 0.3 < time.monotonic() - started < 5
        assert connection.recv(1) == b""


@pytest.mark.serving
def test_a_byte_now_and_then_does_not_gain_time(server):
    with connected(server, b"POST /v1/models/basket:predict HTTP/1.1\r\nX-Slow: ") as connection:
        started = time.monotonic()
        connection.settimeout(0.05)
        while time.monotonic() - started < 10:
            connection.sendall(b"a")
            with contextlib.suppress(TimeoutError):
                assert connection.recv(1, socket.MSG_PEEK)
                break
        connection.settimeout(20)
        assert answer(connection)[0] == 408
        assert time.monotonic() - started < 5


@pytest.mark.serving
def test_a_connection_that_had_an_answer_may_rest(server):
    with connected(server, STATUS) as connection:
        assert answer(connection)[0] == 200
        time.sleep(1.2)
        connection.sendall(STATUS)
        assert answer(connection)[0] == 200


@pytest.mark.serving
def test_an_answer_that_nobody_takes_is_given_up(base, http_call):
    body = json.dumps({"signature_name": "text", "inputs": ["x" * 1_000_000] * 30}).encode()
    limits = Limits(body_timeout_s=1.0)
    with Server("basket", base, port=None, limits=limits) as server, connected(server) as reader:
        reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        reader.sendall(post(body))
        end = time.monotonic() + 20
        while len(server._rest._connections):
            assert time.monotonic() < end, "still trying to send"
            time.sleep(0.05)
        assert http_call(server.rest_api_port, "GET", "/v1/models/basket")[0] == 200


@pytest.mark.serving
def test_grpc_calls_that_are_opened_and_silent_hold_no_thread(server, victim, well):
    with socket.create_connection(("127.0.0.1", server.port), 20) as connection:
        connection.sendall(attacks.PREFACE + attacks.frame(attacks.SETTINGS, 0, 0, b""))
        for number in range(5):  # The server has a single thread.
            connection.sendall(attacks._call_headers(2 * number + 1))
        time.sleep(0.2)
        with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
            stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
            assert stub.Predict(victim.request, timeout=5).outputs["score"].float_val[:] == [2.0]


# -- not what it says -----------------------------------------------------------------------------------------


@pytest.mark.serving
@pytest.mark.parametrize(
    ("sent", "status", "error"),
    [
        (
            head("Content-Length: 3", "Content-Length: 4") + b"{}{}",
            400,
            "The length of the body must be given once: by Content-Length or in chunks.",
        ),
        (
            head("Content-Length: 3", "Transfer-Encoding: chunked") + b"0\r\n\r\n",
            400,
            "The length of the body must be given once: by Content-Length or in chunks.",
        ),
        (
            head("Transfer-Encoding: gzip, chunked") + b"0\r\n\r\n",
            501,
            "The only Transfer-Encoding is chunked. Received: gzip, chunked",
        ),
        (
            head("Transfer-Encoding: chunked") + b"2\r\n{}{}\r\n",
            400,
            "A chunk of the body is longer than its size says.",
        ),
        (
            post(gzip.compress(b"{}")[:-9], "Content-Encoding: gzip"),
            400,
            "The gzip data of the body ends too early.",
        ),
        (post(b"{}", *(f"X-{number}: a" for number in range(101))), 431, "Malformed request: Too many headers"),
        (b"GET /v1/models/basket\r\n\r\n", 200, None),
    ],
    ids=["two lengths", "length and chunks", "coding", "long chunk", "half gzip", "many headers", "HTTP/0.9"],
)
def test_lies_about_the_request_are_named(server, sent, status, error):
    with connected(server, sent) as connection:
        if error is None:
            assert b"model_version_status" in connection.recv(65536)  # HTTP/0.9 has no status line.
        else:
            assert answer(connection) == (status, {"error": error})


@pytest.mark.serving
def test_a_request_that_ends_within_its_headers_is_not_taken_for_a_whole_one(server):
    with connected(server, STATUS[:-2]) as connection:
        connection.shutdown(socket.SHUT_WR)
        assert answer(connection) == (400, {"error": "The request ended within its headers."})


@pytest.mark.serving
@pytest.mark.parametrize("rank", [33, 64, 300])
def test_strings_of_more_dimensions_than_tensorflow_converts_do_not_end_the_process(server, rank, well):
    request = question()
    del request.inputs["item"].tensor_shape.dim[:]
    for _ in range(rank):
        request.inputs["item"].tensor_shape.dim.add().size = 1
    with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel, pytest.raises(grpc.RpcError) as caught:
        prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict(request, timeout=20)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def test_an_error_shows_only_the_beginning_of_a_large_request():
    assert len(json_text.pretty({"rows": [[1.0] * 1000] * 1000})) < 20_000
    assert json_text.pretty(["a" * 5000]) == '["' + "a" * 1000 + '..."]'
    deep = 1.0
    for _ in range(400):
        deep = {"a": deep}
    assert '"..."' in json_text.pretty(deep)
    assert "..." not in json_text.pretty({"rows": [1.0] * 900})


def test_quotes_that_never_close_take_no_quadratic_time():
    body = b'{"a": Inf, ' + b'\\"' * 60_000
    started = time.monotonic()
    with pytest.raises(StatusError, match="JSON Parse error"):
        json_text.parse_object(body)
    assert time.monotonic() - started < 5


def test_model_names_that_clients_make_up_do_not_fill_the_memory(monkeypatch):
    monkeypatch.setattr(prometheus, "MAX_SERIES", 3)
    metrics = prometheus.Metrics()
    for number in range(10):
        metrics.count_request(f"m{number}", "NOT_FOUND")
    metrics.count_request("m0", "NOT_FOUND")
    page = metrics.page()
    assert page.count("model_name=") == 3
    assert 'model_name="m0",status="NOT_FOUND"} 2' in page


# -- large documents ------------------------------------------------------------------------------------------


def made_up(rng, depth):
    """A JSON value with everything that could end a stretch in the wrong place."""
    if depth == 0 or rng.random() < 0.3:
        leaves = [1, -2.5, 1e30, "a", "},", "],", '"x', "€", None, True, "", float("inf"), [], {}]
        return leaves[rng.integers(len(leaves))]
    if rng.random() < 0.6:
        return [made_up(rng, depth - 1) for _ in range(rng.integers(12))]
    return {"abc"[: rng.integers(4)]: made_up(rng, depth - 1) for _ in range(rng.integers(6))}


def outcome(decode, text):
    try:
        return repr(decode(text))
    except json.JSONDecodeError as error:
        return error.pos


def test_documents_read_in_stretches_come_out_as_read_at_once(monkeypatch):
    monkeypatch.setattr(large_json, "_STRETCH", 40)
    rng = np.random.default_rng(0)
    wrong = 0
    for _ in range(2000):
        text = json.dumps(made_up(rng, 5), indent=(None, 1)[rng.integers(2)])
        if rng.random() < 0.5:
            at = rng.integers(len(text) + 1)
            text = text[:at] + ("", ",", "]", "}", "[", "{", '"', "1")[rng.integers(8)] + text[at + rng.integers(3) :]
        found = outcome(large_json.raw_decode, text)
        assert found == outcome(json.JSONDecoder().raw_decode, text), text
        wrong += isinstance(found, int)
    assert wrong > 100


@pytest.mark.parametrize(
    "body", [attacks.numbers_body(8 << 20), b'{"inputs": [' + b'{"a": [1, 2], "b": "c"}, ' * 300_000 + b"1]}"]
)
def test_a_large_document_leaves_the_other_threads_their_turns(body):
    turns, reading = [], threading.Event()

    def take_turns():
        reading.wait()
        while reading.is_set():
            turns.append(time.monotonic())
            time.sleep(0.005)

    other = threading.Thread(target=take_turns)
    other.start()
    reading.set()
    started = time.monotonic()
    json_text.parse_object(body)
    took = time.monotonic() - started
    reading.clear()
    other.join()
    during = [turn for turn in turns if turn < started + took]
    assert len(during) >= 5


# -- what is sent in HTTP/2 -----------------------------------------------------------------------------------


def test_a_frame_is_its_length_kind_flags_stream_and_payload():
    assert attacks.frame(1, 4, 3, b"ab") == struct.pack(">BHBBI", 0, 2, 1, 4, 3) + b"ab"
