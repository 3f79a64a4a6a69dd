"""The command line, under tensorflow_model_server's own flag names."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from typing import NoReturn

from tfmetarec.server.status import invalid_argument

WITHOUT_EFFECT = (
    "rest_api_num_threads",
    "num_load_threads",
    "num_unload_threads",
    "num_initial_load_threads",
    "flush_filesystem_caches",
    "per_process_gpu_memory_fraction",
    "enable_signature_method_name_check",
    "enforce_session_run_timeout",
    "use_alts_credentials",
    "platform_config_file",
    "remove_unused_fields_from_bundle_metagraph",
    "prefer_tflite_model",
    "num_tflite_pools",
    "num_tflite_interpreters_per_pool",
    "enable_profiler",
    "thread_pool_factory_config_file",
    "mixed_precision",
    "skip_initialize_tpu",
    "xla_gpu_compilation_enabled",
)
"""Flags of the C++ server for what this one does not have; taken, so that one command line fits both."""


def parse_bool(text: str) -> bool:
    """Reads a boolean flag.

    Example:
    >>> parse_bool("true"), parse_bool("0")
    (True, False)
    """
    value = {"true": True, "1": True, "false": False, "0": False}.get(text.lower())
    if value is None:
        raise argparse.ArgumentTypeError(f"must be true or false. Received: {text}")
    return value


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise invalid_argument(f"Wrong flags: {message}")


def parser() -> argparse.ArgumentParser:
    """The parser, whose help text lists every flag."""
    flags = _Parser(
        prog="tfmetarec.server",
        description="Serves SavedModels over gRPC and REST, as TensorFlow Serving does.",
        usage="%(prog)s --model_base_path=DIR | --model_config_file=FILE [flags]",
        epilog=f"Accepted, without effect: {', '.join(WITHOUT_EFFECT)}.",
        allow_abbrev=False,
    )

    def add(name: str, kind: type, default: object, text: str) -> None:
        if kind is bool:
            flags.add_argument(
                f"--{name}",
                nargs="?",
                const=True,
                type=parse_bool,
                default=default,
                metavar="BOOL",
                help=text,
            )
        else:
            flags.add_argument(f"--{name}", type=kind, default=default, help=text)

    add("port", int, 8500, "port for gRPC; 0 for none")
    add("grpc_socket_path", str, "", "file of a Unix socket for gRPC, beside the port or without one")
    add("rest_api_port", int, 0, "port for REST; 0 for none")
    add("host", str, "127.0.0.1", "address to listen on; 0.0.0.0 for all. TensorFlow Serving always takes all")
    add("model_name", str, "default", "name of the one model; ignored with --model_config_file")
    add("model_base_path", str, "", "directory with the versions of the one model; ignored with --model_config_file")
    add("model_config_file", str, "", "text ModelServerConfig that lists the models")
    add("model_config_file_poll_wait_seconds", int, 0, "seconds between looks at that file; 0 for one look")
    add("file_system_poll_wait_seconds", int, 1, "seconds between looks for new versions; 0 for one look")
    add("rest_api_timeout_in_ms", int, 30000, "time limit for a REST request; 0 for none")
    add("enable_batching", bool, False, "gather requests and run them together")
    add("batching_parameters_file", str, "", "text BatchingParameters; needs --enable_batching")
    add(
        "enable_per_model_batching_parameters",
        bool,
        False,
        "let each version's own batching_params.pbtxt say how it batches; needs --enable_batching",
    )
    add("monitoring_config_file", str, "", "text MonitoringConfig, for the Prometheus page")
    add("ssl_config_file", str, "", "text SSLConfig; makes the gRPC port a TLS port")
    add("enable_model_warmup", bool, True, "run the requests recorded beside a version before serving it")
    add("num_request_iterations_for_warmup", int, 1, "how often each of them runs")
    add("allow_version_labels", bool, True, "let models have version labels")
    add(
        "allow_version_labels_for_unavailable_models",
        bool,
        False,
        "let a new label point to a version that is not loaded",
    )
    add("max_num_load_retries", int, 0, "how often a failed load is tried again (TensorFlow Serving: 5)")
    add("load_retry_interval_micros", int, 60_000_000, "time between those tries")
    add("saved_model_tags", str, "serve", "comma-separated tags of the meta graph to load")
    add("tensorflow_session_parallelism", int, 0, "threads of a model's session; 0 for automatic")
    add("tensorflow_intra_op_parallelism", int, 0, "threads within an operation, instead of the flag above")
    add("tensorflow_inter_op_parallelism", int, 0, "operations at once, likewise")
    add("tensorflow_session_config_file", str, "", "text ConfigProto for the models' sessions")
    add("xla_cpu_compilation_enabled", bool, False, "run functions that were exported with jit_compile")
    add("grpc_max_threads", int, max(16, 4 * (os.cpu_count() or 1)), "gRPC requests answered at once")
    add("grpc_channel_arguments", str, "", "comma-separated key=value arguments for the gRPC server")
    add("enable_grpc_healthcheck_service", bool, False, "answer grpc.health.v1.Health")
    add("enable_serialization_as_tensor_content", bool, False, "let predictions over gRPC carry tensors as bytes")
    add("rest_api_enable_cors_support", bool, False, "let browsers of other origins call the REST API")
    add("max_body_bytes", int, 32 << 20, "largest request over REST or gRPC; beyond it 413 or RESOURCE_EXHAUSTED")
    add("max_rows", int, 1 << 16, "largest first dimension of an input: users in one request, as a rule; beyond it 400")
    add("max_bytes_at_once", int, 128 << 20, "bytes of large REST requests held at once; beyond it 429")
    add("max_connections", int, 1000, "REST connections at once; beyond it 503")
    add("max_requests", int, 256, "requests answered at once, REST and gRPC together; beyond it 429 or its gRPC twin")
    add("header_timeout_in_ms", int, 10_000, "time for a request's headers to arrive, for a gRPC connection to open")
    add("body_timeout_in_ms", int, 60_000, "time for a REST request's body to arrive, and for its answer to be taken")
    add("shutdown_grace_in_ms", int, 10_000, "time for requests under way once told to stop")
    add("version", bool, False, "print the version and end")
    for name in WITHOUT_EFFECT:
        flags.add_argument(f"--{name}", nargs="?", const="true", help=argparse.SUPPRESS)
    return flags


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parses and checks a command line.

    Args:
        argv: sequence of str, without the program's name; `--flag=value` and `--flag value` mean the same.

    Raises:
        StatusError: INVALID_ARGUMENT for unknown flags, wrong values and combinations that make no sense.
        SystemExit: for `--help`.

    Example:
    >>> flags = parse(["--model_base_path=/exports/journey", "--rest_api_port", "8501", "--enable_batching"])
    >>> flags.rest_api_port, flags.enable_batching, flags.port
    (8501, True, 8500)
    """
    flags = parser().parse_args(list(argv))
    if flags.version:
        return flags
    if not flags.model_base_path and not flags.model_config_file:
        raise invalid_argument("`--model_base_path` or `--model_config_file` must be given. Received: neither")
    for name in ("port", "rest_api_port"):
        if not 0 <= getattr(flags, name) <= 65535:
            raise invalid_argument(f"`--{name}` must be from 0 to 65535. Received: {getattr(flags, name)}")
    if flags.port == flags.rest_api_port and (flags.port or not flags.grpc_socket_path):
        raise invalid_argument(
            "`--port` and `--rest_api_port` must differ, and at least one must not be 0. "
            f"Received: {flags.port} for both"
        )
    for name in ("batching_parameters_file", "enable_per_model_batching_parameters"):
        if getattr(flags, name) and not flags.enable_batching:
            raise invalid_argument(f"`--{name}` needs `--enable_batching`, which is not set.")
    if flags.tensorflow_session_parallelism and (
        flags.tensorflow_intra_op_parallelism or flags.tensorflow_inter_op_parallelism
    ):
        raise invalid_argument(
            "`--tensorflow_session_parallelism` stands for `--tensorflow_intra_op_parallelism` and "
            "`--tensorflow_inter_op_parallelism` together; give it or them."
        )
    least = {
        "rest_api_timeout_in_ms": 0,
        "num_request_iterations_for_warmup": 1,
        "max_num_load_retries": 0,
        "load_retry_interval_micros": 0,
        "tensorflow_session_parallelism": 0,
        "tensorflow_intra_op_parallelism": 0,
        "tensorflow_inter_op_parallelism": 0,
        "grpc_max_threads": 1,
        "max_body_bytes": 1,
        "max_rows": 1,
        "max_bytes_at_once": flags.max_body_bytes,
        "max_connections": 1,
        "max_requests": 1,
        "header_timeout_in_ms": 1,
        "body_timeout_in_ms": 1,
        "shutdown_grace_in_ms": 0,
    }
    for name, smallest in least.items():
        if getattr(flags, name) < smallest:
            raise invalid_argument(f"`--{name}` must be at least {smallest}. Received: {getattr(flags, name)}")
    return flags
