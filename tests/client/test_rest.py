"""The REST transport against a server that answers what a test lists."""

import json
import time

import pytest

from tfmetarec.client import Client, ServingError


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


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (400, "INVALID_ARGUMENT"),
        (404, "NOT_FOUND"),
        (429, "RESOURCE_EXHAUSTED"),
        (500, "INTERNAL"),
        (504, "DEADLINE_EXCEEDED"),
    ],
)
def test_errors_other_than_unavailable_are_told_at_once(answering, status, code):
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


@pytest.mark.parametrize("ask", [lambda c: c.recommend([]), lambda c: c.predict({}, "adapt_and_recommend")])
def test_the_time_limit_covers_the_look_at_the_signatures_too(answering, ask):
    rows = {"dim": [{"size": "-1"}, {"size": "-1"}]}
    types = {"support": "DT_INT64", "support_labels": "DT_FLOAT", "support_length": "DT_INT32"}
    inputs = {name: {"dtype": dtype, "tensor_shape": rows} for name, dtype in types.items()}
    signatures = {"adapt_and_recommend": {"inputs": inputs, "outputs": {}}}
    page = (200, json.dumps({"metadata": {"signature_def": {"signature_def": signatures}}}).encode())
    server = answering(BUSY, BUSY, BUSY, page, 5.0)  # It takes 0.7 s until the signatures are there.
    started = time.monotonic()
    with client_of(server, timeout_s=1.2) as client, pytest.raises(ServingError) as caught:
        ask(client)
    assert caught.value.code == "DEADLINE_EXCEEDED"
    assert 1.1 < time.monotonic() - started < 1.7  # And not 0.7 + 1.2.


def test_a_connection_that_the_server_closed_meanwhile_is_opened_again(answering):
    server = answering(STATUS, 0.0, STATUS)
    with client_of(server, retries=0) as client:
        client.status()
        assert client.status()[0]["state"] == "AVAILABLE"


def test_a_connection_that_breaks_while_new_is_tried_again(answering):
    server = answering(0.0, STATUS)
    with client_of(server) as client:
        assert client.status()[0]["state"] == "AVAILABLE"
    assert server.requests == 2
    with client_of(answering(0.0), retries=0) as client, pytest.raises(ServingError) as caught:
        client.status()
    assert caught.value.code == "UNAVAILABLE"


@pytest.mark.parametrize("page", [(200, b"<html>"), (502, b"<h1>Bad gateway</h1>"), (500, b"")])
def test_an_answer_that_is_no_json_is_a_serving_error(answering, page):
    with client_of(answering(page)) as client, pytest.raises(ServingError):
        client.status()
