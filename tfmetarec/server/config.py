"""Configuration files in protobuf text: which models to serve, batching, monitoring, TLS.

The serving API on PyPI has the message for models only. The other messages are small and are described here,
so that the same files work for TensorFlow Serving.
"""

from __future__ import annotations

import posixpath
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format, wrappers_pb2
from google.protobuf.message import Message
from tensorflow.core.protobuf import config_pb2
from tensorflow_serving.config import model_server_config_pb2

from tfmetarec.server.status import invalid_argument

_Field = descriptor_pb2.FieldDescriptorProto
_SCALARS = {"bool": _Field.TYPE_BOOL, "string": _Field.TYPE_STRING, "int64": _Field.TYPE_INT64}
_PACKAGE = "tfmetarec.server"
_MESSAGES: dict[str, list[tuple[int, str, str]]] = {  # Number, type, name; as in TensorFlow Serving's files.
    "BatchingParameters": [
        (1, ".google.protobuf.Int64Value", "max_batch_size"),
        (2, ".google.protobuf.Int64Value", "batch_timeout_micros"),
        (3, ".google.protobuf.Int64Value", "max_enqueued_batches"),
        (4, ".google.protobuf.Int64Value", "num_batch_threads"),
        (5, ".google.protobuf.StringValue", "thread_pool_name"),
        (6, "repeated int64", "allowed_batch_sizes"),
        (7, "bool", "pad_variable_length_inputs"),
        (8, ".google.protobuf.Int64Value", "max_execution_batch_size"),
        (9, ".google.protobuf.BoolValue", "enable_large_batch_splitting"),
    ],
    "PrometheusConfig": [(1, "bool", "enable"), (2, "string", "path")],
    "MonitoringConfig": [(1, f".{_PACKAGE}.PrometheusConfig", "prometheus_config")],
    "SSLConfig": [
        (1, "string", "server_key"),
        (2, "string", "server_cert"),
        (3, "string", "custom_ca"),
        (4, "bool", "client_verify"),
    ],
}


def _message_classes() -> dict[str, type[Message]]:
    file = descriptor_pb2.FileDescriptorProto(name="tfmetarec/server/config.proto", package=_PACKAGE, syntax="proto3")
    file.dependency.append(wrappers_pb2.DESCRIPTOR.name)
    for message_name, fields in _MESSAGES.items():
        message = file.message_type.add(name=message_name)
        for number, kind, name in fields:
            label = _Field.LABEL_REPEATED if kind.startswith("repeated ") else _Field.LABEL_OPTIONAL
            field = message.field.add(name=name, number=number, label=label)
            kind = kind.removeprefix("repeated ")
            if kind in _SCALARS:
                field.type = _SCALARS[kind]
            else:
                field.type, field.type_name = _Field.TYPE_MESSAGE, kind
    pool = descriptor_pool.Default()
    pool.Add(file) if hasattr(pool, "Add") else pool.AddSerializedFile(file.SerializeToString())
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.{name}")) for name in _MESSAGES
    }


_CLASSES = _message_classes()


def _read(path: str, message: Any, flag: str) -> Any:
    try:
        return text_format.Parse(Path(path).read_text(), message)
    except OSError as error:
        raise invalid_argument(f"`{flag}` must name a readable file. Received: {path} ({error.strerror})") from None
    except (text_format.ParseError, UnicodeDecodeError) as error:
        raise invalid_argument(f"Invalid protobuf file: '{path}' ({error})") from None


def read_models(path: str) -> model_server_config_pb2.ModelServerConfig:
    """Reads a `ModelServerConfig` file.

    Raises:
        StatusError: INVALID_ARGUMENT if the file cannot be read or is not such a message.
    """
    return _read(path, model_server_config_pb2.ModelServerConfig(), "model_config_file")


def read_batching(path: str) -> Any:
    """Reads a `BatchingParameters` file; see `batching.BatchingOptions`."""
    return _read(path, _CLASSES["BatchingParameters"](), "batching_parameters_file")


def read_monitoring(path: str) -> Any:
    """Reads a `MonitoringConfig` file, with `prometheus_config.enable` and `prometheus_config.path`."""
    return _read(path, _CLASSES["MonitoringConfig"](), "monitoring_config_file")


def read_ssl(path: str) -> Any:
    """Reads an `SSLConfig` file, with PEM text in `server_key`, `server_cert` and `custom_ca`."""
    return _read(path, _CLASSES["SSLConfig"](), "ssl_config_file")


def read_session(path: str) -> config_pb2.ConfigProto:
    """Reads a `ConfigProto` file, the settings of a TensorFlow session."""
    return _read(path, config_pb2.ConfigProto(), "tensorflow_session_config_file")


def single_model(name: str, base_path: str) -> model_server_config_pb2.ModelServerConfig:
    """The configuration that serves the latest version of one model.

    Example:
    >>> single_model("journey", "/exports/journey").model_config_list.config[0].model_platform
    'tensorflow'
    """
    server_config = model_server_config_pb2.ModelServerConfig()
    server_config.model_config_list.config.add(name=name, base_path=base_path, model_platform="tensorflow")
    return server_config


def platform_of(model: model_server_config_pb2.ModelConfig) -> str:
    """The platform that a model asks for.

    Raises:
        StatusError: INVALID_ARGUMENT if it names none, or two.
    """
    if model.model_type != model_server_config_pb2.MODEL_TYPE_UNSPECIFIED:
        if model.model_platform:
            raise invalid_argument(
                "Illegal setting both ModelServerConfig::model_type (deprecated) and ModelServerConfig::model_platform."
            )
        if model.model_type != model_server_config_pb2.TENSORFLOW:
            raise invalid_argument(f"ModelServerConfig::model_type choice {model.model_type} not supported.")
        return "tensorflow"
    if not model.model_platform:
        raise invalid_argument(
            "Illegal setting neither ModelServerConfig::model_type (deprecated) nor ModelServerConfig::model_platform."
        )
    return model.model_platform


def check_models(models: model_server_config_pb2.ModelConfigList) -> None:
    """Checks what makes a list of models unacceptable as a whole.

    Raises:
        StatusError: INVALID_ARGUMENT for a model listed twice or a relative path.
    """
    seen: set[str] = set()
    for model in models.config:
        if model.name in seen:
            raise invalid_argument(f"Illegal to list model {model.name} multiple times in config list")
        seen.add(model.name)
    for model in models.config:
        if not posixpath.isabs(model.base_path) and "://" not in model.base_path:
            raise invalid_argument(
                f"Expected model {model.name} to have an absolute path or URI; got base_path()={model.base_path}"
            )


def check_platforms(old: model_server_config_pb2.ModelConfigList, new: model_server_config_pb2.ModelConfigList) -> None:
    """Checks that no model that stays changes its platform.

    Raises:
        StatusError: INVALID_ARGUMENT if one does, or if a platform is missing in either list.
    """
    before = {model.name: platform_of(model) for model in old.config}
    for model in new.config:
        if model.name in before and platform_of(model) != before[model.name]:
            raise invalid_argument(
                f"Illegal to change a model's platform. For model {model.name} platform was "
                f"{before[model.name]} and new platform requested is {platform_of(model)}"
            )


def check_supported(models: model_server_config_pb2.ModelConfigList) -> None:
    """Checks that every model names the one platform that is served.

    Raises:
        StatusError: INVALID_ARGUMENT for a missing or other platform.
    """
    for model in models.config:
        if platform_of(model) != "tensorflow":
            raise invalid_argument(f"Model {model.name} requests unsupported platform {platform_of(model)}")
