"""Well-behaved clients for `benchmarks.serving_load`, in a process of their own and without TensorFlow.

Reads one JSON object from standard input: `rest_port`, `grpc_port`, `path` (REST), `rest` (bodies, as text), `grpc`
(PredictRequests, in base64), `connections`, `reconnect_every` (requests; every second connection reconnects) and
`pause_s` between the requests of one connection. Runs until standard input ends, then writes one JSON object:
`calls`, rows of [protocol, start on the monotonic clock in s, took ms, index of the answer or -1], `answers` (each
distinct one once) and `failures`.
"""

import base64
import http.client
import json
import sys
import threading
import time
from typing import Any

import grpc

PREDICT = "/tensorflow.serving.PredictionService/Predict"
TIMEOUT_S = 30.0


class Record:
    """What all connections together have seen; every distinct answer once."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, float, float, int]] = []
        self.answers: list[list[Any]] = []
        self.failures: list[str] = []
        self._places: dict[tuple[str, int, bytes], int] = {}
        self._lock = threading.Lock()

    def add(self, protocol: str, start_s: float, request: int, answer: bytes | None, failure: str) -> None:
        """One call: its answer, or why there was none."""
        took_ms = 1e3 * (time.monotonic() - start_s)
        with self._lock:
            place = -1
            if answer is None:
                self.failures.append(f"{protocol} request {request} after {took_ms:.0f} ms: {failure}")
            else:
                key = (protocol, request, answer)
                if key not in self._places:
                    self._places[key] = len(self.answers)
                    self.answers.append([protocol, request, base64.b64encode(answer).decode()])
                place = self._places[key]
            self.calls.append((protocol, start_s, took_ms, place))


class Rest:
    """One connection over REST."""

    def __init__(self, settings: dict[str, Any]):
        self._port, self._path = settings["rest_port"], settings["path"]
        self._bodies = [body.encode() for body in settings["rest"]]
        self._connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=TIMEOUT_S)

    def __call__(self, request: int) -> bytes:
        self._connection.request("POST", self._path, self._bodies[request])
        answer = self._connection.getresponse()
        text = answer.read()
        if answer.status != 200:
            raise ConnectionError(f"status {answer.status}: {text[:300]!r}")
        return text

    def close(self) -> None:
        self._connection.close()


class Grpc:
    """One connection over gRPC; without the local pool, channels to one address would share one."""

    def __init__(self, settings: dict[str, Any]):
        self._requests = [base64.b64decode(request) for request in settings["grpc"]]
        options = [("grpc.use_local_subchannel_pool", 1)]
        self._channel = grpc.insecure_channel(f"127.0.0.1:{settings['grpc_port']}", options)
        self._call = self._channel.unary_unary(PREDICT)

    def __call__(self, request: int) -> bytes:
        return self._call(self._requests[request], timeout=TIMEOUT_S)

    def close(self) -> None:
        self._channel.close()


def work(number: int, settings: dict[str, Any], record: Record, stop: threading.Event) -> None:
    """Asks one question after the other; every second pair of connections connects anew every few requests."""
    protocol, kind = (("rest", Rest), ("grpc", Grpc))[number % 2]
    reconnects = number // 2 % 2 == 1
    made = 0
    connection = kind(settings)
    while not stop.is_set():
        request = (number + made) % len(settings[protocol])
        start_s, answer, failure = time.monotonic(), None, ""
        try:
            answer = connection(request)
        except Exception as error:
            failure = f"{type(error).__name__}: {error.details() if isinstance(error, grpc.Call) else error}"
        record.add(protocol, start_s, request, answer, failure)
        made += 1
        if answer is None or (reconnects and made % settings["reconnect_every"] == 0):
            connection.close()
            connection = kind(settings)
        stop.wait(settings["pause_s"])
    connection.close()


def main() -> None:
    settings = json.loads(sys.stdin.readline())
    record, stop = Record(), threading.Event()
    threads = [
        threading.Thread(target=work, args=(number, settings, record, stop))
        for number in range(settings["connections"])
    ]
    for thread in threads:
        thread.start()
    sys.stdin.read()
    stop.set()
    for thread in threads:
        thread.join()
    result = {"calls": record.calls, "answers": record.answers, "failures": record.failures}
    sys.stdout.write(json.dumps(result))


if __name__ == "__main__":
    main()
