"""Clients that mean harm or are broken, for `benchmarks.serving_load` and the tests of the server.

Each attack takes a `Victim` and a size, and returns how often it got which answer: an HTTP status, a gRPC code,
"closed" where the server ended the connection without one, "nothing" where nothing came. An error without a
sentence that says why counts as "unclear". Randomness comes from a fixed seed.
"""

import gzip
import json
import math
import random
import socket
import struct
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import grpc
import numpy as np
import tensorflow as tf
from tensorflow.core.framework import tensor_pb2, types_pb2
from tensorflow_serving.apis import get_model_metadata_pb2, predict_pb2, prediction_service_pb2_grpc

PREDICT = "/tensorflow.serving.PredictionService/Predict"
PATIENCE_S = 30.0
REFUSED = frozenset({"400", "404", "408", "413", "414", "429", "431", "501", "503"})
REFUSED_CODES = frozenset(
    {"INVALID_ARGUMENT", "NOT_FOUND", "FAILED_PRECONDITION", "OUT_OF_RANGE", "RESOURCE_EXHAUSTED", "UNIMPLEMENTED"}
)
"""What says that the request was at fault. 500 and INTERNAL say that the server was."""


class Victim(NamedTuple):
    """The server under attack, and a request that it answers.

    Attributes:
        rest_port: of the server.
        grpc_port: of the server.
        model: the served model's name.
        body: a valid JSON body for `:predict`, columnar.
        request: a valid `PredictRequest`.
        timeouts_s: the server's time limits for headers and for bodies.
        max_body_bytes: its largest body.
    """

    rest_port: int
    grpc_port: int
    model: str
    body: dict[str, Any]
    request: predict_pb2.PredictRequest
    timeouts_s: tuple[float, float]
    max_body_bytes: int

    @property
    def path(self) -> str:
        return f"/v1/models/{self.model}:predict"


class Attack(NamedTuple):
    """An attack and what may come of it.

    Attributes:
        name: what it does, in words.
        run: takes the victim and a size, returns how often each answer came.
        allowed: the answers that a good server gives.
        sizes: how many connections or requests in a quick and in a full run.
    """

    name: str
    run: Callable[[Victim, int], Counter[str]]
    allowed: frozenset[str]
    sizes: tuple[int, int]


# -- raw HTTP -----------------------------------------------------------------------------------------------


def connect(port: int) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), PATIENCE_S)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def head(victim: Victim, *headers: str, path: str | None = None, method: str = "POST") -> bytes:
    """The first line and the headers of a request."""
    lines = [f"{method} {victim.path if path is None else path} HTTP/1.1", "Host: localhost", *headers]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("utf-8", "surrogateescape")


def post(victim: Victim, body: bytes, *headers: str, path: str | None = None) -> bytes:
    """A whole request."""
    return head(victim, f"Content-Length: {len(body)}", *headers, path=path) + body


def received(connection: socket.socket) -> str:
    """The status of the next answer on a connection, or what came instead."""
    text = b""
    try:
        while b"\r\n\r\n" not in text:
            part = connection.recv(65536)
            if not part:
                return "closed" if not text else "unclear"
            text += part
        headers, _, body = text.partition(b"\r\n\r\n")
        status = headers[9:12].decode("latin-1")
        length = next(
            int(line.split(b":")[1]) for line in headers.lower().split(b"\r\n") if line.startswith(b"content-length:")
        )
        while len(body) < length:
            part = connection.recv(1 << 20)
            if not part:
                return "unclear"
            body += part
    except TimeoutError:
        return "nothing"
    except OSError:
        return "closed"
    if status >= "400":
        try:
            return status if len(json.loads(body[:length])["error"]) >= 10 else "unclear"
        except (ValueError, KeyError, TypeError):
            return "unclear"
    return status


def exchange(victim: Victim, sent: bytes, *, end: bool = False) -> str:
    """What one request on a connection of its own is answered; `end` says that no more bytes will come."""
    with connect(victim.rest_port) as connection:
        try:
            connection.sendall(sent)
            if end:
                connection.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # Perhaps refused before it was all sent; the answer counts.
        return received(connection)


@contextmanager
def many(port: int, count: int) -> Iterator[list[socket.socket]]:
    """So many connections at once, closed at the end."""
    connections: list[socket.socket] = []
    try:
        for _ in range(count):
            connections.append(connect(port))
        yield connections
    finally:
        for connection in connections:
            connection.close()


# -- slowness -----------------------------------------------------------------------------------------------


def half_open(victim: Victim, size: int) -> Counter[str]:
    """Connections on which nothing is ever sent."""
    with many(victim.rest_port, size) as connections:
        return Counter(received(connection) for connection in connections)


def half_open_grpc(victim: Victim, size: int) -> Counter[str]:
    """The same at the gRPC port, which speaks first and then gives up."""
    answers: Counter[str] = Counter()
    with many(victim.grpc_port, size) as connections:
        for connection in connections:
            try:
                while connection.recv(65536):
                    pass
                answers["closed"] += 1
            except TimeoutError:
                answers["nothing"] += 1
            except OSError:
                answers["closed"] += 1
    return answers


def _trickle(connections: Sequence[socket.socket], first: bytes, drop: bytes, limit_s: float) -> Counter[str]:
    """Sends `first`, then a drop at a time on every connection until all are answered."""
    for connection in connections:
        connection.sendall(first)
    open_ones, answers = list(connections), Counter[str]()
    end = time.monotonic() + limit_s + PATIENCE_S
    while open_ones and time.monotonic() < end:
        time.sleep(0.1)
        for connection in list(open_ones):
            connection.setblocking(False)
            try:
                connection.send(drop)
                connection.recv(1, socket.MSG_PEEK)
            except BlockingIOError:
                continue
            except OSError:
                pass
            connection.settimeout(PATIENCE_S)
            answers[received(connection)] += 1
            open_ones.remove(connection)
    answers["nothing"] += len(open_ones)
    return +answers


def slow_headers(victim: Victim, size: int) -> Counter[str]:
    """A byte of the headers now and then."""
    with many(victim.rest_port, size) as connections:
        return _trickle(connections, head(victim)[:-2] + b"X-Slow: ", b"a", victim.timeouts_s[0])


def slow_bodies(victim: Victim, size: int) -> Counter[str]:
    """A byte of the body now and then."""
    with many(victim.rest_port, size) as connections:
        return _trickle(
            connections, head(victim, f"Content-Length: {victim.max_body_bytes // 2}"), b" ", victim.timeouts_s[1]
        )


def slow_readers(victim: Victim, size: int) -> Counter[str]:
    """Large answers that are asked for and never read."""
    items = victim.body["inputs"]["support"][0][:1] * 20_000
    body = json.dumps({"signature_name": "embed_items", "inputs": {"items": items}}).encode()
    answers: Counter[str] = Counter()
    with many(victim.rest_port, size) as connections:
        for connection in connections:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.sendall(post(victim, body))
        # Reading would take minutes through so small a window. What is closed answers a byte by a reset. The answers
        # are computed one after the other, and only then does the time limit for taking each begin.
        open_ones = list(connections)
        end = time.monotonic() + victim.timeouts_s[1] + size + PATIENCE_S
        while open_ones and time.monotonic() < end:
            time.sleep(0.5)
            for connection in list(open_ones):
                try:
                    connection.sendall(b"x")
                except OSError:
                    answers["closed"] += 1
                    open_ones.remove(connection)
        answers["nothing"] += len(open_ones)
    return +answers


# -- size ---------------------------------------------------------------------------------------------------


def numbers_body(size_bytes: int) -> bytes:
    """A valid body of about that size, which is nearly all one list of ids."""
    return b'{"signature_name": "embed_items", "inputs": {"items": [' + b"12345, " * (size_bytes // 7) + b"1]}}"


def garbage(size_bytes: int) -> bytes:
    """What is no JSON, but only at its end."""
    return b'{"inputs": [' + b"[1, 2], " * (size_bytes // 8) + b"}"


def _sent_together(victim: Victim, requests: Sequence[bytes]) -> Counter[str]:
    """All requests under way at the same time, each on its connection; one thread sends them in turns."""
    answers: Counter[str] = Counter()
    with many(victim.rest_port, len(requests)) as connections:
        left = {connection: memoryview(request) for connection, request in zip(connections, requests, strict=True)}
        for connection in connections:
            connection.setblocking(False)
        end = time.monotonic() + PATIENCE_S
        while left and time.monotonic() < end:
            for connection, rest in list(left.items()):
                try:
                    left[connection] = rest[connection.send(rest[: 1 << 20]) :]
                except BlockingIOError:
                    continue
                except OSError:
                    del left[connection]
                    continue
                if not left[connection]:
                    del left[connection]
            time.sleep(0.001)
        for connection in connections:
            connection.settimeout(PATIENCE_S)
            answers[received(connection)] += 1
    return answers


def too_large_bodies(victim: Victim, size: int) -> Counter[str]:
    """Bodies half as large again as allowed: valid, garbage, in chunks; and unpacked from very little."""
    over = victim.max_body_bytes * 3 // 2
    valid, wrong = numbers_body(over), garbage(over)
    chunk = b"10000\r\n" + b" " * (1 << 16) + b"\r\n"
    chunked = head(victim, "Transfer-Encoding: chunked") + chunk * (over >> 16) + b"0\r\n\r\n"
    bomb = post(victim, gzip.compress(b" " * over, 9), "Content-Encoding: gzip")
    kinds = (post(victim, valid), post(victim, wrong), chunked, bomb)
    return _sent_together(victim, [kinds[number % 4] for number in range(size)])


def large_bodies(victim: Victim, size: int) -> Counter[str]:
    """Bodies as large as allowed, several at once: valid ones, and some that are no JSON at their very end."""
    most = victim.max_body_bytes - 1000
    kinds = (post(victim, numbers_body(most)), post(victim, garbage(most)))
    return _sent_together(victim, [kinds[number % 2] for number in range(size)])


def large_messages(victim: Victim, size: int) -> Counter[str]:
    """The same over gRPC: too large, as large as allowed, and garbage."""
    request = predict_pb2.PredictRequest()
    request.model_spec.name, request.model_spec.signature_name = victim.model, "embed_items"
    tensor = request.inputs["items"]
    tensor.dtype = types_pb2.DT_INT64
    tensor.tensor_shape.dim.add().size = (victim.max_body_bytes - 1000) // 8
    tensor.tensor_content = bytes(8 * tensor.tensor_shape.dim[0].size)
    kinds = (request.SerializeToString(), b"\xff" * (victim.max_body_bytes - 1000), bytes(victim.max_body_bytes + 1))
    return _called(victim, [kinds[number % 3] for number in range(size)])


# -- lies ---------------------------------------------------------------------------------------------------


def lies(victim: Victim, size: int) -> Counter[str]:
    """Lengths, encodings and headers that are not true."""
    body = json.dumps(victim.body).encode()
    count = len(body)
    crowd = [f"X-{number}: {number}" for number in range(5000)]
    cases = [
        (head(victim, f"Content-Length: {count + 10}") + body, True),
        (head(victim, f"Content-Length: {count - 10}") + body[: count - 10], False),
        (head(victim, "Content-Length: -1") + body, False),
        (head(victim, "Content-Length: ten") + body, False),
        (head(victim, f"Content-Length: {2**62}"), False),
        (head(victim, f"Content-Length: {'9' * 5000}"), False),
        (head(victim, f"Content-Length: {count}", "Content-Length: 3") + body, False),
        (head(victim, f"Content-Length: {count}", "Transfer-Encoding: chunked") + body, False),
        (head(victim, "Transfer-Encoding: gzip, chunked") + body, False),
        (head(victim, "Transfer-Encoding: chunked") + b"xyz\r\n", False),
        (head(victim, "Transfer-Encoding: chunked") + b"fffffffffffffff\r\n", False),
        (head(victim, "Transfer-Encoding: chunked") + b"-5\r\nabc", False),
        (head(victim, "Transfer-Encoding: chunked") + b"3\r\nabcdef\r\n", False),
        (head(victim, "Transfer-Encoding: chunked") + b"0\r\n" + b"A: b\r\n" * 1000 + b"\r\n", False),
        (post(victim, body, "Content-Encoding: gzip"), False),
        (post(victim, gzip.compress(body)[:-9], "Content-Encoding: gzip"), False),
        (post(victim, b"", "Content-Encoding: gzip"), False),
        (post(victim, body, *crowd), False),
        (post(victim, body, "X-Long: " + "a" * 100_000), False),
        (head(victim)[:-4], True),
        (post(victim, b""), False),
    ]
    return Counter(exchange(victim, sent, end=end) for sent, end in cases * size)


def paths(victim: Victim, size: int) -> Counter[str]:
    """Model names and versions that try to leave the model."""
    model = victim.model
    names = [
        "..",
        "../..",
        "..%2f..%2fetc",
        "%2e%2e%2f",
        "%00",
        f"{model}%00",
        f"{model}%0d%0aX: y",
        "%ff%fe",
        "m\u00f6del",
    ]
    names += [
        "%F0%9F%8D%9E",
        "a" * 60_000,
        "%61" * 20_000,
        "\\..\\",
        "~",
        "$(id)",
        "'--",
        "%25%32%65",
        "",
        f"{model}/",
        "\udcff",
    ]
    wanted = [f"/v1/models/{name}:predict" for name in names]
    wanted += [f"/v1/models/{model}/versions/{number}:predict" for number in ("-1", "1e9", "0x1", "9" * 18, "../1", "")]
    wanted += [f"/v1/models/{model}/labels/{label}:predict" for label in ("..", "%00", "x" * 10_000)]
    wanted += [
        f"{victim.path}?a=b",
        f"{victim.path}#",
        "/",
        "*",
        "//",
        "/v1/",
        "http://other.test/v1/models",
        "x" * 70_000,
    ]
    body = json.dumps(victim.body).encode()
    answers = Counter(exchange(victim, post(victim, body, path=path)) for path in wanted * size)
    return answers + Counter(exchange(victim, head(victim, path=path, method="GET")) for path in wanted * size)


# -- nonsense -----------------------------------------------------------------------------------------------


def _changed(text: bytes, rng: random.Random) -> bytes:
    """A copy with one to four bytes, stretches or numbers changed."""
    mutable = bytearray(text)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(mutable) + 1)
        kind = rng.randrange(5)
        if kind == 0 and at < len(mutable):
            mutable[at] = rng.randrange(256)
        elif kind == 1:
            del mutable[at : at + rng.randint(1, 20)]
        elif kind == 2:
            mutable[at:at] = rng.randbytes(rng.randint(1, 20))
        elif kind == 3:
            start = rng.randrange(len(mutable) + 1)
            mutable[at:at] = mutable[start : start + rng.randint(1, 200)]
        else:
            words = (
                b"-1",
                b"1e999",
                b"null",
                b"[]",
                b"{}",
                b"NaN",
                b'""',
                b"\\ud800",
                b"18446744073709551616",
                b"true",
            )
            mutable[at : at + rng.randint(0, 4)] = rng.choice(words)
    return bytes(mutable)


def json_fuzz(victim: Victim, size: int) -> Counter[str]:
    """Valid bodies with a few bytes changed, over connections that are kept."""
    rng = random.Random(0)
    valid = json.dumps(victim.body).encode()
    answers: Counter[str] = Counter()
    connection = connect(victim.rest_port)
    for _ in range(size):
        connection.sendall(post(victim, _changed(valid, rng)))
        answer = received(connection)
        answers[answer] += 1
        if not answer.isdigit():
            connection.close()
            connection = connect(victim.rest_port)
    connection.close()
    return answers


def json_tricks(victim: Victim, size: int) -> Counter[str]:
    """Documents that are hard to read: deep, wide, repeated, with numbers of no size."""
    inputs = victim.body["inputs"]
    changed = [
        {**inputs, "support_length": [length]} for length in (-1, -(2**31), 2**31 - 1, 2**31, 2**70, 1.5, "3", None)
    ]
    changed += [{**inputs, name: value} for name in inputs for value in ([], [[]], [[[[]]]], {}, None, "x", 1e400)]
    documents = [json.dumps({**victim.body, "inputs": each}).encode() for each in changed]
    valid = json.dumps(victim.body).encode()
    for depth in (900, 100_000):
        documents += [b"[" * depth, b'{"a":' * depth, b'{"inputs": ' + b"[" * depth + b"]" * depth + b"}"]
    documents += [
        b'{"inputs": ' + b"9" * 100_000 + b"}",
        b'{"inputs": 0.' + b"9" * 1_000_000 + b"}",
        b'{"inputs": 1e999999999}',
    ]
    documents += [b"{" + b'"inputs": 1, ' * 100_000 + valid[1:], b'{"instances": 1, ' + valid[1:]]
    documents += [
        b'{"' + b"a" * 1_000_000 + b'": 1}',
        b'{"inputs": "' + b"\\u0000" * 100_000 + b'"}',
        b"\xff" * 1000,
        b"\x00" * 1000,
    ]
    documents += [b'{"inputs": {"b64": "' + b"A" * 1_000_001 + b'"}}', b'{"inputs": [' + b"true," * 200_000 + b"1]}"]
    documents += [
        b'{"inputs": [' + b'{"a": 1},' * 100_000 + b"1]}",
        b'{"signature_name": ["' + b"a" * 300_000 + b'"]}',
        b" " * 1_000_000,
    ]
    return Counter(exchange(victim, post(victim, document)) for document in documents * size)


def _called(victim: Victim, messages: Sequence[bytes], method: str = PREDICT) -> Counter[str]:
    """The codes that these messages get over one gRPC connection."""
    answers: Counter[str] = Counter()
    options = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
    with grpc.insecure_channel(f"127.0.0.1:{victim.grpc_port}", options) as channel:
        call = channel.unary_unary(method)
        for message in messages:
            try:
                call(message, timeout=PATIENCE_S)
                answers["OK"] += 1
            except grpc.RpcError as error:
                clear = isinstance(error, grpc.Call) and len(error.details() or "") >= 10
                answers[error.code().name if clear else "unclear"] += 1  # type: ignore[attr-defined]
    return answers


def protobuf_fuzz(victim: Victim, size: int) -> Counter[str]:
    """Valid messages with a few bytes changed."""
    rng = random.Random(0)
    valid = victim.request.SerializeToString()
    return _called(victim, [_changed(valid, rng) for _ in range(size)])


def tensor_tricks(victim: Victim, size: int) -> Counter[str]:
    """Shapes that are huge, negative or not filled, and lengths that cannot be."""
    messages = []

    def changed(name: str, **fields: Any) -> tensor_pb2.TensorProto:
        request = predict_pb2.PredictRequest()
        request.CopyFrom(victim.request)
        messages.append(request)
        for field, value in fields.items():
            setattr(request.inputs[name], field, value)
        return request.inputs[name]

    shapes: list[list[int]] = [[1 << 40], [1 << 62, 4], [1 << 32, 1 << 32], [-1], [-5, 3], [1 << 26], [1, 1 << 26]]
    shapes += [[0, 1 << 62], [1] * 32, [1] * 33, [1] * 64, [1] * 300, [2] * 40, [1 << 20, 1 << 20], [0], [0, 0], []]
    shapes += [[1 << 20], [1, 1 << 20], [1 << 20, 1], [1 << 10, 1 << 10]]
    for name in victim.request.inputs:
        for shape in shapes:
            for tensor in (changed(name), changed(name, tensor_content=b"")):  # Without content, zeros fill it.
                del tensor.tensor_shape.dim[:]
                for length in shape:
                    tensor.tensor_shape.dim.add().size = length
        for dtype in (0, 1, 7, 20, 21, 101, 999):
            changed(name, dtype=dtype)
        changed(name).tensor_shape.unknown_rank = True
        changed(name, tensor_content=b"\x01")
        changed(name, tensor_content=bytes(1 << 20))
    for length in (-1, -(2**31), 2**31 - 1):
        tensor = changed("support_length", tensor_content=b"")
        tensor.int_val[:] = [length]
    messages += [predict_pb2.PredictRequest(), predict_pb2.PredictRequest(output_filter=["x"] * 10_000)]
    return _called(victim, [message.SerializeToString() for message in messages * size])


_EXTREMES: dict[int, list[Any]] = {
    types_pb2.DT_FLOAT: [0.0, 1.0, -1.0, 3e38, -3e38, 1e-45, float("nan"), float("inf")],
    types_pb2.DT_INT32: [0, 1, 5, -1, -(2**31), 2**31 - 1],
    types_pb2.DT_INT64: [0, 1, 5, -1, -(2**63), 2**63 - 1],
    types_pb2.DT_STRING: [b"", b"a", b"\x00", b"\xff\xfe", b"x" * 1000],
    types_pb2.DT_BOOL: [False, True],
}


def tensor_fuzz(victim: Victim, size: int) -> Counter[str]:
    """Well-formed tensors for every signature, whose sizes do not fit each other and whose values are extreme."""
    rng = random.Random(0)
    question = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
    question.model_spec.name = victim.model
    with grpc.insecure_channel(f"127.0.0.1:{victim.grpc_port}") as channel:
        metadata = prediction_service_pb2_grpc.PredictionServiceStub(channel).GetModelMetadata(question, timeout=30)
    signatures = get_model_metadata_pb2.SignatureDefMap()
    metadata.metadata["signature_def"].Unpack(signatures)
    names = sorted(name for name, signature in signatures.signature_def.items() if signature.inputs)
    return _called(victim, [_random_request(rng, victim.model, rng.choice(names), signatures) for _ in range(size)])


def _random_request(
    rng: random.Random, model: str, name: str, signatures: get_model_metadata_pb2.SignatureDefMap
) -> bytes:
    request = predict_pb2.PredictRequest()
    request.model_spec.name, request.model_spec.signature_name = model, name
    usual = {place: rng.choice((0, 1, 1, 2, 3)) for place in range(8)}
    for key, info in sorted(signatures.signature_def[name].inputs.items()):
        shape = [usual[place] if dim.size < 0 else dim.size for place, dim in enumerate(info.tensor_shape.dim)]
        if rng.random() < 0.1:
            shape = [rng.choice((0, 1, 2, 5)) for _ in range(rng.randrange(10))]
        elif shape and rng.random() < 0.1:
            shape[rng.randrange(len(shape))] = rng.choice((0, 1, 2, 7, 1000))
        extreme = rng.random() < 0.5
        values = _EXTREMES[info.dtype] if extreme else _EXTREMES[info.dtype][:3]
        array = np.array([rng.choice(values) for _ in range(math.prod(shape))], tf.as_dtype(info.dtype).as_numpy_dtype)
        request.inputs[key].CopyFrom(tf.make_tensor_proto(array.reshape(shape)))
    return request.SerializeToString()


def http_garbage(victim: Victim, size: int) -> Counter[str]:
    """Bytes that are no HTTP, some almost."""
    rng = random.Random(0)
    valid = post(victim, json.dumps(victim.body).encode())
    answers: Counter[str] = Counter()
    for number in range(size):
        sent = rng.randbytes(rng.randint(1, 2000)) if number % 2 else _changed(valid[:120], rng) + valid[120:]
        answers[exchange(victim, sent, end=True)] += 1
    return answers


# -- HTTP/2 -------------------------------------------------------------------------------------------------

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HEADERS, SETTINGS = 1, 4


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """One HTTP/2 frame."""
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def _call_headers(stream: int) -> bytes:
    """The headers that open a call of `PREDICT`, and not its message."""

    def field(name: bytes, value: bytes) -> bytes:
        return b"\x00" + bytes([len(name)]) + name + bytes([len(value)]) + value

    fields = [(b":path", PREDICT.encode()), (b":authority", b"localhost"), (b"te", b"trailers")]
    fields += [(b"content-type", b"application/grpc")]
    post_http = b"\x83\x86"  # From HPACK's static table.
    return frame(HEADERS, 4, stream, post_http + b"".join(field(*each) for each in fields))


def http2_garbage(victim: Victim, size: int) -> Counter[str]:
    """Bytes that are no HTTP/2, or stop being it after the greeting, or begin calls and break off."""
    rng = random.Random(0)
    greeting = PREFACE + frame(SETTINGS, 0, 0, b"")
    answers: Counter[str] = Counter()
    for number in range(size):
        junk = rng.randbytes(rng.randint(1, 2000))
        odd = frame(rng.randrange(12), rng.randrange(256), rng.randrange(2**31), junk[: rng.randrange(200)])
        kinds = (junk, greeting + junk, greeting + odd, greeting + _call_headers(1) + odd, _changed(greeting, rng))
        with connect(victim.grpc_port) as connection:
            try:
                connection.sendall(kinds[number % 5])
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(65536):
                    pass
                answers["closed"] += 1
            except TimeoutError:
                answers["nothing"] += 1
            except OSError:
                answers["closed"] += 1
    return answers


def calls_without_message(victim: Victim, size: int) -> Counter[str]:
    """gRPC calls that are opened and then silent, many on each connection, held for a while."""
    per_connection = 100
    with many(victim.grpc_port, -(-size // per_connection)) as connections:
        for connection in connections:
            connection.sendall(PREFACE + frame(SETTINGS, 0, 0, b""))
            for number in range(per_connection):
                connection.sendall(_call_headers(2 * number + 1))
        time.sleep(victim.timeouts_s[0] + 1)
    return Counter({"held": size})


ATTACKS = (
    Attack("half-open connections", half_open, frozenset({"408", "503", "closed"}), (150, 1500)),
    Attack("half-open gRPC connections", half_open_grpc, frozenset({"closed"}), (50, 500)),
    Attack("headers byte by byte", slow_headers, frozenset({"408"}), (50, 300)),
    Attack("bodies byte by byte", slow_bodies, frozenset({"408"}), (50, 300)),
    Attack("answers never read", slow_readers, frozenset({"closed"}), (4, 20)),
    Attack("gRPC calls without a message", calls_without_message, frozenset({"held"}), (200, 2000)),
    Attack("bodies beyond the limit", too_large_bodies, frozenset({"413", "429"}), (4, 24)),
    Attack("bodies at the limit", large_bodies, frozenset({"400", "413", "429"}), (2, 12)),
    Attack("gRPC messages around the limit", large_messages, REFUSED_CODES, (3, 12)),
    Attack("lies about lengths and encodings", lies, REFUSED, (1, 5)),
    Attack("tricks in paths", paths, REFUSED, (1, 5)),
    Attack("changed JSON", json_fuzz, REFUSED | {"200"}, (300, 10_000)),
    Attack("JSON hard to read", json_tricks, REFUSED | {"200"}, (1, 3)),
    Attack("changed protobuf", protobuf_fuzz, REFUSED_CODES | {"OK"}, (300, 10_000)),
    Attack("tensors that cannot be", tensor_tricks, REFUSED_CODES | {"OK"}, (1, 3)),
    Attack("tensors of random sizes", tensor_fuzz, REFUSED_CODES | {"OK"}, (300, 5000)),
    Attack("not HTTP", http_garbage, REFUSED | {"200", "closed"}, (100, 1000)),
    Attack("not HTTP/2", http2_garbage, frozenset({"closed"}), (100, 1000)),
)
