"""Configuration files in protobuf text, read as TensorFlow Serving reads them.

The serving API on PyPI has the message for models alone. The others are small and described here, in a pool of their
own, which no other description of them can meet.
"""

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format, wrappers_pb2
from tensorflow_serving.config import model_server_config_pb2

_Field = descriptor_pb2.FieldDescriptorProto
_TYPES = {"bool": _Field.TYPE_BOOL, "string": _Field.TYPE_STRING, "int64": _Field.TYPE_INT64}
_PACKAGE = "tensorflow.serving"
_INT64, _BOOL, _STRING = (f"google.protobuf.{name}Value" for name in ("Int64", "Bool", "String"))
# Fields as `(number, type, name)`, from TensorFlow Serving's session_bundle_config, monitoring_config and ssl_config.
_MESSAGES = {
    "BatchingParameters": [
        (1, _INT64, "max_batch_size"),
        (2, _INT64, "batch_timeout_micros"),
        (3, _INT64, "max_enqueued_batches"),
        (4, _INT64, "num_batch_threads"),
        (5, _STRING, "thread_pool_name"),
        (6, "repeated int64", "allowed_batch_sizes"),
        (7, "bool", "pad_variable_length_inputs"),
        (8, _INT64, "max_execution_batch_size"),
        (9, _BOOL, "enable_large_batch_splitting"),
    ],
    "PrometheusConfig": [(1, "bool", "enable"), (2, "string", "path")],
    "MonitoringConfig": [(1, f"{_PACKAGE}.PrometheusConfig", "prometheus_config")],
    "SSLConfig": [
        (1, "string", "server_key"),
        (2, "string", "server_cert"),
        (3, "string", "custom_ca"),
        (4, "bool", "client_verify"),
    ],
}


def _message_classes() -> dict[str, Any]:
    file = descriptor_pb2.FileDescriptorProto(name="deployment.proto", package=_PACKAGE, syntax="proto3")
    file.dependency.append(wrappers_pb2.DESCRIPTOR.name)
    for message_name, fields in _MESSAGES.items():
        message = file.message_type.add(name=message_name)
        for number, kind, name in fields:
            label = _Field.LABEL_REPEATED if kind.startswith("repeated ") else _Field.LABEL_OPTIONAL
            field = message.field.add(name=name, number=number, label=label)
            kind = kind.removeprefix("repeated ")
            field.type = _TYPES.get(kind, _Field.TYPE_MESSAGE)
            if kind not in _TYPES:
                field.type_name = f".{kind}"
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(wrappers_pb2.DESCRIPTOR.serialized_pb)
    pool.AddSerializedFile(file.SerializeToString())
    found = {name: pool.FindMessageTypeByName(f"{_PACKAGE}.{name}") for name in _MESSAGES}
    return {name: message_factory.GetMessageClass(descriptor) for name, descriptor in found.items()}


_CLASSES = {"ModelServerConfig": model_server_config_pb2.ModelServerConfig, **_message_classes()}


def parse(text: str, message: str) -> Any:
    """Reads protobuf text as a message of TensorFlow Serving's configuration.

    Args:
        text: str.
        message: `"ModelServerConfig"`, `"BatchingParameters"`, `"MonitoringConfig"` or `"SSLConfig"`.

    Raises:
        text_format.ParseError: if the text is not such a message; says where.

    Example:
    >>> parse("allowed_batch_sizes: 1 allowed_batch_sizes: 8", "BatchingParameters").allowed_batch_sizes
    [1, 8]
    """
    return text_format.Parse(text, _CLASSES[message]())
