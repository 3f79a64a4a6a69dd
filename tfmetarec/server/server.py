"""The server: models, the two protocols, and the threads that watch for new versions."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import grpc
from tensorflow.core.protobuf import config_pb2
from tensorflow_serving.config import model_server_config_pb2

from tfmetarec.server import config, rest
from tfmetarec.server.batching import BatchingOptions, enable_batching, options_of
from tfmetarec.server.grpc_server import GrpcServer
from tfmetarec.server.http_server import RestServer
from tfmetarec.server.limits import Gates, Limits
from tfmetarec.server.model_store import ModelStore
from tfmetarec.server.servable import Servable
from tfmetarec.server.status import StatusError, from_exception, invalid_argument
from tfmetarec.server.warmup import warm_up

GRACE_S = 10.0
"""How long requests under way may take once the server is told to stop."""
_LEAST_WAIT_S = 1.0

_LOG = logging.getLogger(__name__)


class Server:
    """Serves exported models over gRPC and REST on this machine, as TensorFlow Serving does.

    The same directories, configuration files, addresses and error texts, so that what works here works there.

    Args:
        model_name: str. Name of the one model. Defaults to `"default"`.
        model_base_path: str or path. The directory that holds its version directories.
        model_config_file: str or path. A text `ModelServerConfig`, instead of the two above.
        port: int. gRPC port; 0 for any free port, `None` for none. Defaults to 0.
        rest_api_port: int. REST port; 0 for any free port, `None` for no REST. Defaults to 0.
        host: str. Address to listen on. Defaults to `"127.0.0.1"`, this machine alone.
        file_system_poll_wait_s: float. Seconds between looks for new versions; 0 for one look. Defaults to 1.
        model_config_file_poll_wait_s: float. Seconds between looks at `model_config_file`; 0 for one look.
        batching: `BatchingOptions`, or `None` to run each request alone. Defaults to `None`.
        per_model_batching: bool. Whether each version's own `batching_params.pbtxt` says how it batches, beside
            `batching`. Defaults to `False`.
        metrics_path: str or None. Where REST shows the Prometheus page. Defaults to `None`, nowhere.
        ssl_config_file: str or path. A text `SSLConfig`, to make the gRPC port a TLS port.
        rest_api_timeout_ms: int, at least 0. Time limit for running a REST request. Defaults to 30000.
        warmup_iterations: int, at least 0. How often recorded warm-up requests run. Defaults to 1.
        allow_version_labels: bool. Whether models may have version labels. Defaults to `True`.
        allow_labels_for_unavailable: bool. Whether a new label may wait for its version. Defaults to `False`.
        load_retries: int, at least 0. How often a failed load is tried again. Defaults to 0.
        load_retry_wait_s: float. Seconds between those tries. Defaults to 60.
        tags: sequence of str. Tags of the meta graph to load. Defaults to `("serve",)`.
        session_threads: int, at least 0. Threads of each model's session; 0 for automatic. Defaults to 0.
        session_config: ConfigProto for each model's session, or `None` for TensorFlow's own defaults.
        allow_xla: bool. Whether functions exported with `jit_compile=True` may run; by default they fail, as
            in TensorFlow Serving.
        grpc_threads: int, at least 1. gRPC requests answered at once. Defaults to 16.
        grpc_options: sequence of `(name, value)`. Further arguments for the gRPC server.
        grpc_socket_path: str or path. File of a Unix socket on which gRPC listens too. Defaults to `None`.
        grpc_health: bool. Whether to answer `grpc.health.v1.Health`. Defaults to `False`.
        tensor_content: bool. Whether predictions over gRPC carry their tensors as bytes, which is faster for large
            ones. Defaults to `False`, as typed values.
        cors: bool. Whether browsers of other origins may call REST. Defaults to `False`.
        limits: `Limits`, or `None` for their defaults. Sizes, numbers and times beyond which clients are refused.
        grace_s: float, at least 0. How long requests under way may take once the server is told to stop. Defaults
            to 10.
        start_timeout_s: float or None. How long to wait for the models; `None` for ever. Defaults to 120.

    Attributes:
        port: int. The gRPC port once started.
        rest_api_port: int. The REST port once started.
        store: `ModelStore`. The models.

    Raises:
        StatusError: from the constructor for settings that break a rule; from `start` if a model cannot be
            loaded or a port is taken.

    Example:
    >>> with Server("journey", "/exports/journey") as server:  # doctest: +SKIP
    ...     print(f"http://127.0.0.1:{server.rest_api_port}/v1/models/journey")
    """

    def __init__(
        self,
        model_name: str | None = None,
        model_base_path: str | os.PathLike[str] | None = None,
        model_config_file: str | os.PathLike[str] | None = None,
        port: int | None = 0,
        rest_api_port: int | None = 0,
        host: str = "127.0.0.1",
        *,
        file_system_poll_wait_s: float = 1.0,
        model_config_file_poll_wait_s: float = 0.0,
        batching: BatchingOptions | None = None,
        per_model_batching: bool = False,
        metrics_path: str | None = None,
        ssl_config_file: str | os.PathLike[str] | None = None,
        rest_api_timeout_ms: int = 30000,
        warmup_iterations: int = 1,
        allow_version_labels: bool = True,
        allow_labels_for_unavailable: bool = False,
        load_retries: int = 0,
        load_retry_wait_s: float = 60.0,
        tags: Sequence[str] = ("serve",),
        session_threads: int = 0,
        session_config: config_pb2.ConfigProto | None = None,
        allow_xla: bool = False,
        grpc_threads: int = 16,
        grpc_options: Sequence[tuple[str, int | str]] = (),
        grpc_socket_path: str | os.PathLike[str] | None = None,
        grpc_health: bool = False,
        tensor_content: bool = False,
        cors: bool = False,
        limits: Limits | None = None,
        grace_s: float = GRACE_S,
        start_timeout_s: float | None = 120.0,
    ):
        if (model_base_path is None) == (model_config_file is None):
            raise invalid_argument(
                "Exactly one of `model_base_path` and `model_config_file` must be given. "
                f"Received: model_base_path={model_base_path}, model_config_file={model_config_file}"
            )
        if grace_s < 0:
            raise invalid_argument(f"`grace_s` must be at least 0. Received: {grace_s}")
        if model_config_file is not None and model_name is not None:
            raise invalid_argument(
                f"`model_name` is only for `model_base_path`. Received: model_name={model_name!r} "
                "beside a model_config_file"
            )
        self._config_file = None if model_config_file is None else os.fspath(model_config_file)
        self._models = self._read_models(model_name or "default", model_base_path)
        self._host = host
        self._ports = (port, rest_api_port)
        self._poll_waits_s = (file_system_poll_wait_s, model_config_file_poll_wait_s)
        self._batching = batching
        self._per_model_batching = per_model_batching
        self._credentials = None if ssl_config_file is None else _credentials(os.fspath(ssl_config_file))
        self._warmup_iterations = warmup_iterations
        self._tags = tuple(tags)
        self._session_threads = session_threads
        self._session_config = session_config
        self._allow_xla = allow_xla
        self._grpc_threads = grpc_threads
        self._grpc_options = tuple(grpc_options)
        self._grpc_socket_path = None if grpc_socket_path is None else os.fspath(grpc_socket_path)
        self._grpc_health = grpc_health
        self._tensor_content = tensor_content
        self._gates = Gates(limits or Limits())
        self._grace_s = grace_s
        self._start_timeout_s = start_timeout_s
        self.store = ModelStore(
            self._load,
            allow_version_labels=allow_version_labels,
            allow_labels_for_unavailable=allow_labels_for_unavailable,
            load_retries=load_retries,
            load_retry_wait_s=load_retry_wait_s,
        )
        self._api = rest.RestApi(self.store, rest_api_timeout_ms, metrics_path, cors)
        self._grpc: GrpcServer | None = None
        self._rest: RestServer | None = None
        self._threads: list[threading.Thread] = []
        self._stopping = threading.Event()
        self.port: int | None = None
        self.rest_api_port: int | None = None

    def _read_models(
        self, name: str, base_path: str | os.PathLike[str] | None
    ) -> model_server_config_pb2.ModelServerConfig:
        if self._config_file is not None:
            return config.read_models(self._config_file)
        return config.single_model(name, os.path.abspath(os.fspath(base_path or "")))

    def _load(self, name: str, number: int, path: Path) -> Servable:
        servable = Servable(
            name, number, path, self._tags, self._session_threads, self._allow_xla, self._session_config
        )
        servable.max_rows = self._gates.limits.max_rows
        try:
            if self._batching is not None:
                options = options_of(path, self._batching, self._per_model_batching)
                if options is not None:
                    enable_batching(servable, options)
            if self._warmup_iterations:
                warm_up(servable, self._warmup_iterations)
        except Exception:
            servable.close()
            raise
        return servable

    def start(self) -> None:
        """Loads the models, then opens the ports.

        Raises:
            StatusError: if a model cannot be loaded or does not appear in time, or a port is taken.
        """
        end = None if self._start_timeout_s is None else time.monotonic() + self._start_timeout_s
        try:
            self.store.reload(self._models, lambda: end is None or time.monotonic() < end)
            port, rest_api_port = self._ports
            if port is not None or self._grpc_socket_path is not None:
                self.port = self._start_grpc(port)
            if rest_api_port is not None:
                self.rest_api_port = self._start_rest(rest_api_port)
        except BaseException:
            self.stop()
            raise
        for seconds, work, name in zip(
            self._poll_waits_s,
            (self.store.reconcile, self._reread_models),
            ("versions", "configuration"),
            strict=True,
        ):
            if seconds > 0:
                self._run_thread(name, self._repeat, seconds, work)

    def _run_thread(self, name: str, target: Any, *args: Any) -> None:
        self._threads.append(threading.Thread(target=target, args=args, daemon=True, name=name))
        self._threads[-1].start()

    def _start_grpc(self, port: int | None) -> int | None:
        server = GrpcServer(
            self._host,
            port,
            self.store,
            self._gates,
            self._grpc_threads,
            self._credentials,
            self._grpc_options,
            self._grpc_socket_path,
            self._grpc_health,
            self._tensor_content,
        )
        server.start()
        self._grpc = server
        if self._grpc_socket_path is not None:
            _LOG.info("Serving gRPC at unix:%s", self._grpc_socket_path)
        if port is None:
            return None
        _LOG.info("Serving gRPC at %s:%d", self._host, server.port)
        return server.port

    def _start_rest(self, port: int) -> int:
        try:
            server = RestServer(self._host, port, self._api.answer, self._gates)
        except OSError as error:
            message = f"The REST port {self._host}:{port} is taken or not allowed: {error.strerror}."
            raise StatusError("UNAVAILABLE", message) from None
        self._rest = server
        self._run_thread("rest", server.serve_forever, 0.1)
        _LOG.info("Serving REST at http://%s:%d/v1/models", self._host, server.server_port)
        return server.server_port

    def _repeat(self, seconds: float, work: Any) -> None:
        while not self._stopping.wait(seconds):
            try:
                work()
            except Exception as error:
                _LOG.error("Could not look for changes: %s", from_exception(error))

    def _reread_models(self) -> None:
        models = config.read_models(self._config_file or "")
        if models != self._models:
            self.store.reload(models, lambda: not self._stopping.is_set())
            self._models = models
            _LOG.info("Applied the changed %s", self._config_file)

    def wait_until_available(self, timeout_s: float = 60.0) -> None:
        """Returns once every configured model has a version that answers.

        Args:
            timeout_s: float. Seconds to wait. Defaults to 60.

        Raises:
            TimeoutError: if a model is still not available then; says why.
        """
        end = time.monotonic() + timeout_s
        while unavailable := self.store.unavailable():
            if time.monotonic() >= end:
                reasons = "; ".join(f"{name}: {reason}" for name, reason in unavailable.items())
                raise TimeoutError(f"Not available after {timeout_s} s: {reasons}")
            self._stopping.wait(0.05)

    def stop(self) -> bool:
        """Takes no more requests, lets those under way finish, unloads the models.

        Returns:
            Whether everything has ended. What has not after `grace_s` seconds is left to the end of the process.
        """
        self._stopping.set()
        end = time.monotonic() + self._grace_s
        grpc_ended = self._grpc.stop(self._grace_s) if self._grpc is not None else None
        ended = self._rest.drain(self._grace_s) if self._rest is not None else True
        if grpc_ended is not None:
            grpc_ended()
        for thread in self._threads:
            thread.join(max(_LEAST_WAIT_S, end - time.monotonic()))
            ended = ended and not thread.is_alive()
        return self.store.close(max(_LEAST_WAIT_S, end - time.monotonic())) and ended

    def __enter__(self) -> Server:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()


def _credentials(path: str) -> grpc.ServerCredentials:
    ssl = config.read_ssl(path)
    return grpc.ssl_server_credentials(
        [(ssl.server_key.encode(), ssl.server_cert.encode())],
        root_certificates=ssl.custom_ca.encode() or None,
        require_client_auth=ssl.client_verify,
    )
