"""From tensorflow_model_server's flags to a running server, and to its clean end."""

from __future__ import annotations

import contextlib
import logging
import os
import resource
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import tensorflow as tf
from tensorflow.core.protobuf import config_pb2

from tfmetarec.server import config, flags, memory, rest
from tfmetarec.server.batching import BatchingOptions
from tfmetarec.server.limits import Limits
from tfmetarec.server.server import Server
from tfmetarec.server.status import StatusError, invalid_argument

_LOG = logging.getLogger(__name__)


def _from_flags(parsed: Any) -> Server:
    batching = metrics_path = None
    if parsed.enable_batching:
        batching = BatchingOptions()
        if parsed.batching_parameters_file:
            batching = BatchingOptions.from_proto(config.read_batching(parsed.batching_parameters_file))
    if parsed.monitoring_config_file:
        prometheus = config.read_monitoring(parsed.monitoring_config_file).prometheus_config
        metrics_path = (prometheus.path or rest.DEFAULT_METRICS_PATH) if prometheus.enable else None
    if parsed.model_config_file and parsed.model_base_path:  # The start script of its Docker image gives both.
        _LOG.warning("--model_config_file is given, so --model_name and --model_base_path are ignored")
    for name in flags.WITHOUT_EFFECT:
        if getattr(parsed, name) is not None:
            _LOG.warning("The flag --%s has no effect here", name)
    return Server(
        None if parsed.model_config_file else parsed.model_name,
        None if parsed.model_config_file else parsed.model_base_path,
        parsed.model_config_file or None,
        parsed.port or None,
        parsed.rest_api_port or None,
        parsed.host,
        file_system_poll_wait_s=parsed.file_system_poll_wait_seconds,
        model_config_file_poll_wait_s=parsed.model_config_file_poll_wait_seconds,
        batching=batching,
        per_model_batching=parsed.enable_per_model_batching_parameters,
        metrics_path=metrics_path,
        ssl_config_file=parsed.ssl_config_file or None,
        rest_api_timeout_ms=parsed.rest_api_timeout_in_ms,
        warmup_iterations=parsed.num_request_iterations_for_warmup if parsed.enable_model_warmup else 0,
        allow_version_labels=parsed.allow_version_labels,
        allow_labels_for_unavailable=parsed.allow_version_labels_for_unavailable_models,
        load_retries=parsed.max_num_load_retries,
        load_retry_wait_s=parsed.load_retry_interval_micros / 1e6,
        tags=[tag for tag in parsed.saved_model_tags.split(",") if tag],
        session_threads=parsed.tensorflow_session_parallelism,
        session_config=_session_config(parsed),
        allow_xla=parsed.xla_cpu_compilation_enabled,
        grpc_threads=parsed.grpc_max_threads,
        grpc_options=_grpc_options(parsed.grpc_channel_arguments),
        grpc_socket_path=parsed.grpc_socket_path or None,
        grpc_health=parsed.enable_grpc_healthcheck_service,
        tensor_content=parsed.enable_serialization_as_tensor_content,
        cors=parsed.rest_api_enable_cors_support,
        limits=Limits(
            max_body_bytes=parsed.max_body_bytes,
            max_rows=parsed.max_rows,
            max_bytes_at_once=parsed.max_bytes_at_once,
            max_connections=parsed.max_connections,
            max_requests=parsed.max_requests,
            header_timeout_s=parsed.header_timeout_in_ms / 1000,
            body_timeout_s=parsed.body_timeout_in_ms / 1000,
        ),
        grace_s=parsed.shutdown_grace_in_ms / 1000,
        start_timeout_s=None,
    )


def _session_config(parsed: Any) -> config_pb2.ConfigProto | None:
    session = config_pb2.ConfigProto()
    if parsed.tensorflow_session_config_file:
        session = config.read_session(parsed.tensorflow_session_config_file)
    for name in ("intra", "inter"):
        threads = getattr(parsed, f"tensorflow_{name}_op_parallelism")
        if threads:
            setattr(session, f"{name}_op_parallelism_threads", threads)
    return session if session.ByteSize() else None


@contextlib.contextmanager
def _on_signals(end: Callable[[], None]) -> Iterator[None]:
    """Calls `end` on the first SIGTERM or SIGINT within a `with` block; the second ends the process at once.

    Only the main thread may ask for signals.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGTERM, signal.SIGINT)

    def first(*_: object) -> None:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)
        end()

    before = [signal.signal(number, first) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def _grpc_options(text: str) -> list[tuple[str, int | str]]:
    options: list[tuple[str, int | str]] = []
    for argument in filter(None, text.split(",")):
        key, equals, value = argument.partition("=")
        if not equals:
            raise invalid_argument(f"`--grpc_channel_arguments` must be key=value pairs. Received: {argument}")
        options.append((key, int(value) if value.lstrip("-").isdigit() else value))
    return options


def main(argv: Sequence[str]) -> int:
    """Runs a server from tensorflow_model_server's flags until it is told to stop (SIGTERM or SIGINT).

    Args:
        argv: sequence of str, without the program's name. `--help` lists the flags.

    Returns:
        0 after a clean stop, 1 if the server could not start, 2 for wrong flags.
    """
    logging.basicConfig(format="%(asctime)s %(levelname).1s %(message)s", level=logging.INFO)
    tf.get_logger().setLevel(logging.ERROR)  # The session loader announces on every load that it is old.
    try:
        parsed = flags.parse(argv)
    except StatusError as error:
        _LOG.error("%s", error.message)
        return 2
    if parsed.version:
        _LOG.info("TensorFlow library version: %s", tf.__version__)
        return 0
    try:
        server = _from_flags(parsed)
        _prepare_process()
    except StatusError as error:
        _LOG.error("Failed to start server. Error: %s", error)
        return 1
    return _serve(server)


def _prepare_process() -> None:
    memory.prepare()
    # Threads that compute in Python let the others in sooner: 5 ms each add up within one request.
    sys.setswitchinterval(0.001)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # A connection is an open file.


def _serve(server: Server) -> int:
    stop = threading.Event()

    def end() -> None:
        stop.set()
        server.store.stop_waiting()

    with _on_signals(end):
        try:
            server.start()
        except StatusError as error:
            if stop.is_set():
                return 0
            _LOG.error("Failed to start server. Error: %s", error)
            return 1
        stop.wait()
        _LOG.info("Stopping; requests under way may finish")
        if not server.stop():
            _LOG.warning("Some requests took too long to be waited for")
            logging.shutdown()
            os._exit(0)  # Python would wait for the threads of these requests, perhaps for ever.
    return 0
