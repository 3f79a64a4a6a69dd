"""From tensorflow_model_server's flags to a running server, and to its clean end."""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import tensorflow as tf

from tfmetarec.server import config, flags, rest
from tfmetarec.server.batching import BatchingOptions
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
    for name in flags.WITHOUT_EFFECT:
        if getattr(parsed, name) is not None:
            _LOG.warning("The flag --%s has no effect here", name)
    return Server(
        None if parsed.model_config_file else parsed.model_name,
        parsed.model_base_path or None,
        parsed.model_config_file or None,
        parsed.port or None,
        parsed.rest_api_port or None,
        parsed.host,
        file_system_poll_wait_s=parsed.file_system_poll_wait_seconds,
        model_config_file_poll_wait_s=parsed.model_config_file_poll_wait_seconds,
        batching=batching,
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
        allow_xla=parsed.xla_cpu_compilation_enabled,
        grpc_threads=parsed.grpc_max_threads,
        grpc_options=_grpc_options(parsed.grpc_channel_arguments),
        cors=parsed.enable_cors_support,
        start_timeout_s=None,
    )


@contextlib.contextmanager
def _on_signals(end: Callable[[], None]) -> Iterator[None]:
    """Calls `end` on SIGTERM and SIGINT within a `with` block; only the main thread may ask for signals."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = [signal.signal(number, lambda *_: end()) for number in numbers]
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
    except StatusError as error:
        _LOG.error("Failed to start server. Error: %s", error)
        return 1
    return _serve(server)


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
        server.stop()
    return 0
