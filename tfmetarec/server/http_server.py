"""The sockets under the REST API: connections kept alive, and every limit on what a client may do to them.

One thread for each connection, on the standard library's HTTP server. Slow clients cost a thread that sleeps;
deadlines end them, and where all connections are taken, those that never completed a request go first.
"""

from __future__ import annotations

import errno
import io
import logging
import random
import re
import socket
import threading
import time
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

from tfmetarec.server import response_json
from tfmetarec.server.limits import LARGE_BODY_BYTES, Gates
from tfmetarec.server.status import HTTP_STATUS, StatusError

IDLE_CONNECTION_S = 300.0
"""How long a connection that has had an answer may wait for its next request."""

_LOG = logging.getLogger(__name__)
_METHODS = ("GET", "POST", "OPTIONS", "DELETE", "PUT", "PATCH", "HEAD")
_MAX_LINE_BYTES = 1 << 16
_MAX_TRAILERS = 100
_PIECE_BYTES = 1 << 18
_YOUNG_S = 0.1  # A connection may be silent for so long before it counts as half-open.
_LINGER_S = 2.0
_MAX_LEAVING = 256
_JSON = {"Content-Type": "application/json"}


class Answer(NamedTuple):
    """What goes back to the client.

    Attributes:
        status: int. The HTTP status.
        body: bytes.
        headers: dict. `Content-Type` and others that this answer needs.
    """

    status: int
    body: bytes
    headers: dict[str, str] = _JSON


Respond = Callable[[str, str, bytes, str], Answer]
"""Method, path, body and the `Origin` header -> the answer; never raises."""


class _Refused(Exception):
    """A request that cannot be read to its end; after it nothing more can be read from the connection."""


class _Reader(io.RawIOBase):
    """Reads a socket up to one deadline, however many small pieces the bytes come in."""

    def __init__(self, connection: socket.socket):
        self._connection = connection
        self.deadline = 0.0
        self.ended = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        left_s = self.deadline - time.monotonic()
        if left_s <= 0:
            raise TimeoutError
        self._connection.settimeout(left_s)
        count = self._connection.recv_into(buffer)
        self.ended = count == 0
        return count


class _Writer(io.BufferedIOBase):
    """Collects an answer and sends it in one piece, within a time limit for the whole."""

    def __init__(self, connection: socket.socket, timeout_s: float):
        self._connection = connection
        self._timeout_s = timeout_s
        self._parts: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, part: Any) -> int:
        self._parts.append(bytes(part))
        return len(self._parts[-1])

    def flush(self) -> None:
        parts, self._parts = self._parts, []
        if not parts:
            return
        self._connection.settimeout(self._timeout_s)  # `sendall` takes it for the whole, not for each piece.
        if sum(map(len, parts)) <= _PIECE_BYTES:
            parts = [b"".join(parts)]
        for part in parts:
            self._connection.sendall(part)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "tfmetarec"
    sys_version = ""
    server: RestServer
    rfile: io.BufferedReader

    def setup(self) -> None:
        self.connection = self.request
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)
        self._limits = self.server.gates.limits
        self._state = self.server.state_of(self.connection)
        self._reader = _Reader(self.connection)
        self._held = 0
        self.rfile = io.BufferedReader(self._reader, 1 << 16)
        self.wfile = _Writer(self.connection, self._limits.body_timeout_s)

    def finish(self) -> None:
        try:
            super().finish()
        except OSError:
            _LOG.debug("Connection from %s ended before its answer", self.client_address)

    def handle_one_request(self) -> None:
        self.command, self.requestline, self.request_version = "", "", "HTTP/1.1"
        fresh = not self._state.answered
        # Up to a quarter longer: a thousand connections that come together must not all end at the same moment.
        patience = random.uniform(1.0, 1.25)
        self._reader.deadline = time.monotonic() + patience * (
            self._limits.header_timeout_s if fresh else IDLE_CONNECTION_S
        )
        try:
            begun = self.rfile.peek(1)
        except TimeoutError:
            # An answer to no request only where there was none before: a client may take it for the next one's.
            if fresh:
                message = f"A request must begin within {self._limits.header_timeout_s:g} s."
                self._refuse(408, message, unread=False)
            begun = b""
        if not begun:
            self.close_connection = True
            return
        with self.server.answering(self._state):
            try:
                self._one_request()
            finally:
                self._let_go()
            self._state.answered += 1

    def _one_request(self) -> None:
        self._reader.deadline = time.monotonic() + self._limits.header_timeout_s
        try:
            self.raw_requestline = self.rfile.readline(_MAX_LINE_BYTES + 1)
            if len(self.raw_requestline) > _MAX_LINE_BYTES:
                self.send_error(414, f"The first line must have at most {_MAX_LINE_BYTES} bytes.")
                return
            if not self.parse_request():
                return
            if self.command not in _METHODS:
                self.send_error(501, f"There is no method {self.command[:100]}.")
                return
        except TimeoutError:
            self._refuse(408, f"The headers must arrive within {self._limits.header_timeout_s:g} s.")
            return
        if self._reader.ended:
            self._refuse(400, "The request ended within its headers.")
            return
        self._reader.deadline = time.monotonic() + self._limits.body_timeout_s
        try:
            body = self._body()
        except _Refused as refused:
            self._refuse(*refused.args)
            return
        except StatusError as error:
            self._refuse(HTTP_STATUS[error.code], error.message)
            return
        except TimeoutError:
            self._refuse(408, f"The body must arrive within {self._limits.body_timeout_s:g} s.")
            return
        self._state.running = True
        self._send(self._answer(body))

    def _answer(self, body: bytes) -> Answer:
        gates = self.server.gates
        origin = self.headers.get("Origin", "")
        if self.command != "POST":  # Status and metrics must stay visible when there is too much to do.
            return self.server.respond(self.command, self.path, body, origin)
        try:
            gates.requests.take()
        except StatusError as error:
            return _refusal(HTTP_STATUS[error.code], error.message)
        try:
            with gates.turn(len(body)):
                return self.server.respond(self.command, self.path, body, origin)
        finally:
            gates.requests.give_back()

    def _send(self, answer: Answer) -> None:
        if self.server.draining:
            self.close_connection = True
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(answer.body)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body)
        self.wfile.flush()

    def _refuse(self, status: int, message: str, unread: bool = True) -> None:
        self.close_connection = True
        self._let_go()  # Not only after the wait below: others may come through with these bytes.
        try:
            self._send(_refusal(status, message))
            if unread:
                self._linger()
        except OSError:
            _LOG.debug("%s did not wait for: %s", self.client_address, message)

    def _linger(self) -> None:
        """Reads on for a while: closing with bytes unread would take the answer away from the client again."""
        self.connection.shutdown(socket.SHUT_WR)
        self._reader.deadline = time.monotonic() + _LINGER_S
        scrap = bytearray(_PIECE_BYTES)
        while self._reader.readinto(scrap):
            pass

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Answers what is not even an HTTP request in JSON too, where the base class writes a web page."""
        self.command = getattr(self, "command", None) or ""
        if self.request_version == "HTTP/0.9":
            self.request_version = "HTTP/1.1"  # Else the answer would have no status.
        self._refuse(code, f"Malformed request: {message or code}")

    def handle_expect_100(self) -> bool:
        length = self.headers.get("Content-Length", "")
        if re.fullmatch("[0-9]{1,18}", length) and int(length) > self._limits.max_body_bytes:
            return True  # `_body` refuses it, and nothing asks the client to go on.
        return super().handle_expect_100()

    # The body.

    def _body(self) -> bytes:
        coding = self.headers.get("Transfer-Encoding")
        lengths = set(self.headers.get_all("Content-Length", []))
        if coding is not None and coding.strip().lower() != "chunked":
            raise _Refused(501, f"The only Transfer-Encoding is chunked. Received: {coding[:100]}")
        if len(lengths) > 1 or (lengths and coding is not None):
            raise _Refused(400, "The length of the body must be given once: by Content-Length or in chunks.")
        body = self._chunks() if coding is not None else self._counted(lengths.pop() if lengths else "0")
        if self.headers.get("Content-Encoding", "").lower() == "gzip":
            return self._unzip(body)
        return body

    def _check_size(self, size: int) -> None:
        limit = self._limits.max_body_bytes
        if size > limit:
            raise _Refused(413, f"The body must have at most {limit} bytes. Received: {size} or more")

    def _hold(self, size: int) -> None:
        """Counts the bytes of a large body as they come: what was only announced takes nothing from others."""
        if size > LARGE_BODY_BYTES and size > self._held:
            self.server.gates.bytes.take(size - self._held)
            self._held = size

    def _let_go(self) -> None:
        self.server.gates.bytes.give_back(self._held)
        self._held = 0

    def _counted(self, length: str) -> bytes:
        if not re.fullmatch("[0-9]{1,18}", length):
            raise _Refused(400, "The Content-Length header must be a number of bytes.")
        self._check_size(int(length))
        parts: list[bytes] = []
        self._read_onto(parts, int(length), 0, "its Content-Length")
        return b"".join(parts)

    def _read_onto(self, parts: list[bytes], size: int, before: int, end: str) -> None:
        got = 0
        while got < size:
            part = self.rfile.read1(min(size - got, _PIECE_BYTES))
            if not part:
                raise _Refused(400, f"The body ended before {end}.")
            got += len(part)
            self._hold(before + got)
            parts.append(part)

    def _chunks(self) -> bytes:
        parts: list[bytes] = []
        total = 0
        while True:
            line = self.rfile.readline(1024).split(b";")[0].strip()
            if not re.fullmatch(b"[0-9a-fA-F]{1,15}", line):
                raise _Refused(400, "A chunk of the body does not begin with its size.")
            size = int(line, 16)
            self._check_size(total + size)
            if size == 0:
                break
            self._read_onto(parts, size, total, "the end of a chunk")
            total += size
            if self.rfile.readline(3).strip():
                raise _Refused(400, "A chunk of the body is longer than its size says.")
            if len(parts) > 1000:  # Tiny chunks would take a hundred times their size.
                parts = [b"".join(parts)]
        for _ in range(_MAX_TRAILERS):
            if not self.rfile.readline(_MAX_LINE_BYTES).strip():
                return b"".join(parts)
        raise _Refused(431, f"Behind the body there must be at most {_MAX_TRAILERS} headers.")

    def _unzip(self, body: bytes) -> bytes:
        unzipper = zlib.decompressobj(16 + zlib.MAX_WBITS)
        parts: list[bytes] = []
        total = 0
        try:
            while not unzipper.eof:
                part = unzipper.decompress(body, _PIECE_BYTES)
                body = unzipper.unconsumed_tail
                if not part and not unzipper.eof and not body:
                    raise _Refused(400, "The gzip data of the body ends too early.")
                total += len(part)
                self._check_size(total)
                self._hold(total)
                parts.append(part)
        except zlib.error:
            raise _Refused(400, "The body is not gzip data, though its Content-Encoding says so.") from None
        return b"".join(parts)

    def log_message(self, format: str, *args: Any) -> None:
        _LOG.debug("%s %s", self.address_string(), format % args)


def _refusal(status: int, message: str) -> Answer:
    headers = {**_JSON, "Retry-After": "1"} if status in (429, 503) else _JSON
    return Answer(status, response_json.error_text(message), headers)


class _State:
    """What the server knows of a connection."""

    __slots__ = ("answered", "busy", "connection", "running", "since")

    def __init__(self, connection: socket.socket):
        self.connection = connection
        self.since = time.monotonic()
        self.busy = False  # From the first byte of a request to the last of its answer.
        self.running = False  # The request has been read.
        self.answered = 0

    @property
    def half_open(self) -> bool:
        """Whether it has been here for a while and not come as far as one whole request."""
        return not self.answered and not self.running and time.monotonic() - self.since > _YOUNG_S


class RestServer(ThreadingHTTPServer):
    """An HTTP server, one thread for each connection.

    Args:
        host: str. Address to listen on.
        port: int; 0 for any free port.
        respond: what answers.
        gates: what limits connections and requests.

    Attributes:
        draining: bool. Whether answers end their connections, because the server is about to stop.

    Raises:
        OSError: if the port is taken.
    """

    daemon_threads = True
    block_on_close = False
    request_queue_size = 4096  # What does not fit waits a second to knock again, whoever it is.

    def __init__(self, host: str, port: int, respond: Respond, gates: Gates):
        self.respond = respond
        self.gates = gates
        self.draining = False
        self._connections: dict[socket.socket, _State] = {}
        self._changed = threading.Condition()
        self._leaving: deque[tuple[socket.socket, float]] = deque()
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        limit = gates.limits.max_connections
        body = response_json.error_text(f"The server has {limit} connections, as many as it takes.")
        head = f"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
        self._turned_away = f"{head}\r\nRetry-After: 1\r\nConnection: close\r\n\r\n".encode() + body
        super().__init__((host, port), _Handler)

    def server_bind(self) -> None:
        # `HTTPServer` looks the host's name up here, which can take seconds without a network.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def handle_error(self, request: Any, client_address: Any) -> None:
        _LOG.debug("Connection from %s ended", client_address, exc_info=True)

    def get_request(self) -> tuple[socket.socket, Any]:
        try:
            return super().get_request()
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                _LOG.error("Cannot take a connection: %s", error.strerror)
                time.sleep(0.1)  # The connection is still waiting, and asking again at once would take a processor.
            raise

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._changed:
            full = len(self._connections) >= self.gates.limits.max_connections
            if full and not self._end_half_open():
                self._turn_away(request)
                return
            self._connections[request] = _State(request)
        super().process_request(request, client_address)

    def _end_half_open(self) -> bool:
        for connection, state in self._connections.items():  # The oldest first.
            if state.half_open:
                del self._connections[connection]
                _shut(connection, socket.SHUT_RDWR)
                return True
        return False

    def _turn_away(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        try:
            connection.send(self._turned_away)
            connection.shutdown(socket.SHUT_WR)
        except OSError:
            connection.close()
            return
        if len(self._leaving) >= _MAX_LEAVING:
            self._leaving.popleft()[0].close()
        self._leaving.append((connection, time.monotonic()))

    def service_actions(self) -> None:
        """Lets those who were turned away read why: see `_Handler._linger`. Called between connections."""
        for _ in range(len(self._leaving)):
            connection, since = self._leaving.popleft()
            try:
                gone = not connection.recv(_PIECE_BYTES)
            except BlockingIOError:
                gone = False
            except OSError:
                gone = True
            if gone or time.monotonic() - since > _LINGER_S:
                connection.close()
            else:
                self._leaving.append((connection, since))

    def state_of(self, connection: socket.socket) -> _State:
        with self._changed:
            return self._connections.get(connection) or _State(connection)

    @contextmanager
    def answering(self, state: _State) -> Iterator[None]:
        with self._changed:
            state.busy = True
        try:
            yield
        finally:
            with self._changed:
                state.busy = state.running = False

    def shutdown_request(self, request: Any) -> None:
        super().shutdown_request(request)
        with self._changed:
            self._connections.pop(request, None)
            self._changed.notify_all()

    def drain(self, grace_s: float) -> bool:
        """Takes no more connections, answers what has been asked, and closes.

        Returns:
            Whether everybody was answered within `grace_s` seconds.
        """
        end = time.monotonic() + grace_s
        self.draining = True
        self.shutdown()
        self._take_those_waiting()
        self.server_close()
        with self._changed:
            for connection, state in self._connections.items():
                if not state.busy:
                    # A request that is here already can still be read; then comes the end.
                    _shut(connection, socket.SHUT_RD)
            drained = self._changed.wait_for(lambda: not self._connections, end - time.monotonic())
            for connection in self._connections:
                _shut(connection, socket.SHUT_RDWR)
        for connection, _ in self._leaving:
            connection.close()
        return drained

    def _take_those_waiting(self) -> None:
        """Takes the connections that the system accepted before; closing the port would reset them."""
        self.socket.setblocking(False)
        while True:
            try:
                connection, address = self.socket.accept()
            except OSError:
                return
            connection.setblocking(True)
            self.process_request(connection, address)


def _shut(connection: socket.socket, how: int) -> None:
    try:
        connection.shutdown(how)
    except OSError:
        _LOG.debug("The client was faster")
