"""The gRPC port. Messages arrive on one event loop; only whole ones get a thread.

In grpcio's own threaded server a call holds a thread from its first header on. A few clients that open calls and
send nothing then stop the server for everybody.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NoReturn

import grpc
from google.protobuf.message import DecodeError

from tfmetarec.server import grpc_services
from tfmetarec.server.health import Health
from tfmetarec.server.limits import Gates
from tfmetarec.server.model_store import ModelStore
from tfmetarec.server.status import StatusError, from_exception

_LOG = logging.getLogger(__name__)
_MAX_STREAMS = 256
_MAX_PENDING = 100_000  # Calls that have just arrived. Beyond 1000, its default, grpcio cancels calls by lot, anyone's.


class _Aborted(Exception):
    """Carries a status from the thread of a request to the event loop."""

    def __init__(self, code: grpc.StatusCode, message: str):
        super().__init__(code, message)
        self.code, self.message = code, message


class _Context:
    """What the services need of a `grpc.ServicerContext`, usable from any thread."""

    def __init__(self, gone: threading.Event, time_remaining_s: float | None):
        self._gone = gone
        self._end = None if time_remaining_s is None else time.monotonic() + time_remaining_s

    def abort(self, code: grpc.StatusCode, message: str) -> NoReturn:
        raise _Aborted(code, message)

    def is_active(self) -> bool:
        return not self._gone.is_set()

    def time_remaining(self) -> float | None:
        return None if self._end is None else max(0.0, self._end - time.monotonic())


class _Collected(grpc.GenericRpcHandler):
    """Stands in for a server while the services register, then answers for them on the event loop."""

    def __init__(self, pool: ThreadPoolExecutor, gates: Gates):
        self._pool = pool
        self._gates = gates
        self._services: list[grpc.GenericRpcHandler] = []
        self._wrapped = functools.lru_cache(maxsize=None)(self._wrap)

    def add_generic_rpc_handlers(self, handlers: Sequence[grpc.GenericRpcHandler]) -> None:
        self._services += handlers

    def add_registered_method_handlers(self, service: str, handlers: dict[str, Any]) -> None:
        """The same methods once more, under names; not needed."""

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        for service in self._services:
            handler = service.service(handler_call_details)
            if handler is not None:
                return self._wrapped(handler)
        return None

    def _wrap(self, handler: grpc.RpcMethodHandler) -> grpc.RpcMethodHandler:
        async def answer(message: bytes, context: grpc.aio.ServicerContext) -> bytes:
            gone = threading.Event()
            try:
                self._gates.requests.take()
                answered = self._pool.submit(_answer, handler, message, _Context(gone, context.time_remaining()))
                # Not when this coroutine ends: the thread goes on after a client that has gone.
                answered.add_done_callback(lambda _: self._gates.requests.give_back())
                del message  # May be large, and the answer may take long.
                return await asyncio.wrap_future(answered)
            except _Aborted as aborted:
                code, text = aborted.code, aborted.message
            except StatusError as error:
                code, text = getattr(grpc.StatusCode, error.code), error.message
            finally:
                gone.set()
            await context.abort(code, text)
            raise AssertionError("`abort` always raises.")

        return grpc.unary_unary_rpc_method_handler(answer)


def _answer(handler: grpc.RpcMethodHandler, message: bytes, context: _Context) -> bytes:
    try:
        request = handler.request_deserializer(message)
    except DecodeError:
        raise StatusError("INVALID_ARGUMENT", "The request is not a message of this method's type.") from None
    del message
    try:
        return handler.response_serializer(handler.unary_unary(request, context))
    except (_Aborted, StatusError):
        raise
    except Exception as error:  # Such as an answer beyond the 2 GiB of a message.
        raise from_exception(error) from None


@functools.cache
def _loop() -> asyncio.AbstractEventLoop:
    """The event loop of all servers of this process: grpcio misbehaves with more than one."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True, name="grpc-loop").start()
    return loop


def _on_loop(work: Coroutine[Any, Any, Any]) -> Future[Any]:
    return asyncio.run_coroutine_threadsafe(work, _loop())


class GrpcServer:
    """Both services on one port.

    Args:
        host: str. Address to listen on.
        port: int; 0 for any free port, `None` for a socket file alone.
        store: where the models are.
        gates: what limits the requests.
        threads: int, at least 1. Requests answered at once; others wait.
        credentials: for TLS; `None` for none. Defaults to `None`.
        options: sequence of `(name, value)`. Further arguments for the gRPC server.
        socket_path: str. File of a Unix socket to listen on too; `None` for none. Defaults to `None`.
        health: bool. Whether to answer `grpc.health.v1.Health`. Defaults to `False`.
        as_content: bool. Whether predictions carry their tensors as bytes. Defaults to `False`.

    Attributes:
        port: int. The port once started; 0 without one.
    """

    def __init__(
        self,
        host: str,
        port: int | None,
        store: ModelStore,
        gates: Gates,
        threads: int,
        credentials: grpc.ServerCredentials | None = None,
        options: Sequence[tuple[str, int | str]] = (),
        socket_path: str | None = None,
        health: bool = False,
        as_content: bool = False,
    ):
        tcp = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self._addresses = [] if port is None else [tcp]
        self._addresses += [] if socket_path is None else [f"unix:{socket_path}"]
        self._gates = gates
        self._store = store
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="grpc")
        self._credentials = credentials
        limits = gates.limits
        given = {
            **dict(grpc_services.SERVER_OPTIONS),
            "grpc.max_receive_message_length": limits.max_body_bytes,
            "grpc.server_handshake_timeout_ms": int(limits.header_timeout_s * 1000),
            "grpc.max_concurrent_streams": _MAX_STREAMS,
            "grpc.server.max_pending_requests": _MAX_PENDING,
            "grpc.server.max_pending_requests_hard_limit": _MAX_PENDING,
            **dict(options),
        }
        self._options = list(given.items())
        self._wants_health = health
        self._as_content = as_content
        self.port = 0
        self._server: grpc.aio.Server | None = None
        self._health: Health | None = None

    def start(self) -> None:
        """Opens the port.

        Raises:
            StatusError: UNAVAILABLE if it is taken.
        """
        try:
            _on_loop(self._start()).result()
        except RuntimeError:
            self._pool.shutdown()
            addresses = " or ".join(self._addresses)
            raise StatusError("UNAVAILABLE", f"The gRPC port {addresses} is taken or not allowed.") from None

    async def _start(self) -> None:
        collected = _Collected(self._pool, self._gates)
        grpc_services.register(collected, self._store, self._as_content)
        server = grpc.aio.server(options=self._options)
        server.add_generic_rpc_handlers((collected,))
        if self._wants_health:
            self._health = Health()
            await self._health.register(server)
        for address in self._addresses:
            if self._credentials is not None:
                port = server.add_secure_port(address, self._credentials)
            else:
                port = server.add_insecure_port(address)
            if not address.startswith("unix:"):
                self.port = port
        await server.start()
        self._server = server

    def stop(self, grace_s: float) -> Callable[[], None]:
        """Takes no more calls; those under way have `grace_s` seconds. Returns at once, with what waits for the end."""
        if self._server is None:
            return lambda: None
        stopping = _on_loop(self._stop(self._server, grace_s))

        def wait() -> None:
            stopping.result()
            self._pool.shutdown(wait=False, cancel_futures=True)

        return wait

    async def _stop(self, server: grpc.aio.Server, grace_s: float) -> None:
        if self._health is not None:
            await self._health.drain()
        await server.stop(grace_s)
