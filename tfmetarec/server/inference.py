"""What a loaded version is asked: predict, classify, regress, several at once.

Both protocols and the warm-up come through here, so they agree in every check and every error.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import numpy as np
import tensorflow as tf
from tensorflow.core.framework import types_pb2
from tensorflow.core.protobuf.meta_graph_pb2 import SignatureDef
from tensorflow_serving.apis import (
    classification_pb2,
    inference_pb2,
    input_pb2,
    model_pb2,
    predict_pb2,
    regression_pb2,
)

from tfmetarec.server import tensors
from tfmetarec.server.prometheus import METRICS
from tfmetarec.server.servable import Servable
from tfmetarec.server.status import StatusError, failed_precondition, invalid_argument

DEFAULT_SIGNATURE = "serving_default"
MAX_ANSWER_VALUES = 1 << 24
"""Writing an answer takes up to a hundred bytes a value: with more, one request could take all memory."""
CLASSIFY = "tensorflow/serving/classify"
REGRESS = "tensorflow/serving/regress"


def fill_model_spec(servable: Servable, signature: str, spec: model_pb2.ModelSpec) -> None:
    """Says in an answer which version and signature gave it."""
    spec.name = servable.name
    spec.version.value = servable.version
    spec.signature_name = signature or DEFAULT_SIGNATURE


def _listed(names: Sequence[str] | set[str]) -> str:
    return "{" + ",".join(sorted(names)) + "}"


def predict_signature(servable: Servable, name: str) -> SignatureDef:
    """The signature for a prediction; an empty `name` means the default one."""
    signatures = servable.meta_graph_def.signature_def
    name = name or DEFAULT_SIGNATURE
    if name not in signatures:
        raise failed_precondition(f'Serving signature key "{name}" not found.')
    return signatures[name]


def predict(
    servable: Servable,
    signature: SignatureDef,
    inputs: Mapping[str, np.ndarray],
    output_filter: Sequence[str] = (),
    timeout_ms: int = 0,
) -> dict[str, np.ndarray]:
    """Runs a signature on tensors.

    Args:
        servable: the version to run.
        signature: one of its signatures.
        inputs: arrays by input name; an input with a default in the signature may be left out.
        output_filter: names of the outputs to give. Defaults to all.
        timeout_ms: int, at least 0; 0 for no limit.

    Raises:
        StatusError: INVALID_ARGUMENT where names or types do not fit, and whatever the graph raises.
    """
    _check_input_names(signature, set(inputs))
    feeds = {}
    for name, info in signature.inputs.items():
        if name in inputs:
            feeds[info.name] = inputs[name]
        else:
            feeds[info.name] = tensors.from_proto(signature.defaults[name], name)
    fetches = {}
    for name in output_filter:
        if name not in signature.outputs:
            raise invalid_argument(
                f"output tensor alias not found in signature: {name} Outputs expected to be in the set "
                f"{_listed(signature.outputs)}."
            )
        if name in fetches:
            raise invalid_argument(f"duplicate output tensor alias: {name}")
        fetches[name] = signature.outputs[name].name
    if not fetches:
        fetches = {name: info.name for name, info in signature.outputs.items()}
    arrays = _timed_run(servable, "Predict", feeds, list(fetches.values()), timeout_ms)
    return dict(zip(fetches, arrays, strict=True))


def _timed_run(
    servable: Servable, method: str, feeds: Mapping[str, np.ndarray], fetches: Sequence[str], timeout_ms: int
) -> list[np.ndarray]:
    rows = max((len(array) for array in feeds.values() if array.ndim), default=0)
    if servable.max_rows is not None and rows > servable.max_rows:
        raise invalid_argument(
            f"The first dimension of an input must be at most {servable.max_rows} here. Received: {rows}"
        )
    started = time.perf_counter()
    arrays = servable.run(feeds, fetches, timeout_ms)
    values = sum(array.size for array in arrays)
    if values > MAX_ANSWER_VALUES:
        raise StatusError(
            "OUT_OF_RANGE", f"The answer has {values} values, more than the {MAX_ANSWER_VALUES} that one may have."
        )
    METRICS.observe_runtime(servable.name, method, time.perf_counter() - started)
    return arrays


def _check_input_names(signature: SignatureDef, sent: set[str]) -> None:
    known = set(signature.inputs)
    if len(sent) > len(known) or (len(sent) < len(known) and not signature.defaults):
        raise invalid_argument(
            f"input size does not match signature: {len(sent)}!={len(known)} len({_listed(sent)}) != "
            f"len({_listed(known)}). Sent extra: {_listed(sent - known)}. "
            f"Missing but required: {_listed(known - sent)}."
        )
    for name in sorted(known - sent):
        if name not in signature.defaults:
            raise invalid_argument(
                f"Signature input alias: {name}(feed name: {signature.inputs[name].name}) not found in "
                "request and no default value provided. Inputs expected to be in the request "
                f"{_listed(sent)}, or default input alias set: {','.join(sorted(signature.defaults))}"
            )
    if not sent <= known:
        raise invalid_argument(
            f"Inputs contains invalid name. Used request inputs: {','.join(sorted(sent & known))}, "
            f"request input: {','.join(sorted(sent))}"
        )


def predict_request(
    servable: Servable, request: predict_pb2.PredictRequest, timeout_ms: int = 0, as_content: bool = False
) -> predict_pb2.PredictResponse:
    """Answers a Predict message.

    Args:
        servable: the version to run.
        request: PredictRequest.
        timeout_ms: int, at least 0; 0 for no limit.
        as_content: bool. Whether the answer carries its tensors as bytes (`tensor_content`), which is faster for
            large ones, or as typed values. Defaults to `False`.

    Raises:
        StatusError: where the request does not fit the signature, and whatever the graph raises.
    """
    signature = predict_signature(servable, request.model_spec.signature_name)
    _check_input_names(signature, set(request.inputs))
    inputs = {name: tensors.from_proto(proto, name) for name, proto in request.inputs.items()}
    outputs = predict(servable, signature, inputs, list(request.output_filter), timeout_ms)
    response = predict_pb2.PredictResponse()
    fill_model_spec(servable, request.model_spec.signature_name, response.model_spec)
    for name, array in outputs.items():
        tensors.to_proto(array, response.outputs[name], as_content)
    return response


def _examples(request_input: input_pb2.Input) -> np.ndarray:
    """The serialized examples of a request; a context is merged into each by being written before it."""
    kind = request_input.WhichOneof("kind")
    context = b""
    if kind == "example_list_with_context":
        context = request_input.example_list_with_context.context.SerializeToString()
    examples = list(getattr(request_input, kind).examples) if kind else []
    if not examples:
        raise invalid_argument("Input is empty.")
    array = np.empty(len(examples), np.object_)
    array[:] = [context + example.SerializeToString() for example in examples]
    return array


def _example_signature(servable: Servable, name: str, missing: str) -> SignatureDef:
    name = name or DEFAULT_SIGNATURE
    if name not in servable.meta_graph_def.signature_def:
        raise invalid_argument(f"{missing}: {name}")
    return servable.meta_graph_def.signature_def[name]


def _classify_fetches(signature: SignatureDef) -> list[str]:
    if len(signature.inputs) != 1:
        raise invalid_argument("Expected one input Tensor.")
    if len(signature.outputs) not in (1, 2):
        raise invalid_argument(f"Expected one or two output Tensors, found {len(signature.outputs)}")
    if "inputs" not in signature.inputs:
        raise failed_precondition(f"No classification inputs found in SignatureDef: {signature}")
    fetches = [signature.outputs[name].name for name in ("classes", "scores") if name in signature.outputs]
    if not fetches:
        raise failed_precondition(
            'Expected classification signature outputs to contain at least one of "classes" or "scores". '
            f"Signature was: {signature}"
        )
    return fetches


def _regress_fetches(signature: SignatureDef) -> list[str]:
    if len(signature.inputs) != 1:
        raise invalid_argument("Expected one input Tensor.")
    if len(signature.outputs) != 1:
        raise invalid_argument("Expected one output Tensor.")
    if "inputs" not in signature.inputs:
        raise failed_precondition(f"No regression inputs found in SignatureDef: {signature}")
    if "outputs" not in signature.outputs:
        raise failed_precondition(f"No regression outputs found in SignatureDef: {signature}")
    return [signature.outputs["outputs"].name]


def _check_classes(name: str, array: np.ndarray, dtype: int, count: int) -> None:
    if array.ndim != 2:
        shape = ",".join(map(str, array.shape))
        raise invalid_argument(f"Expected Tensor shape: [batch_size num_classes] but got [{shape}]")
    actual = tf.as_dtype(array.dtype).as_datatype_enum
    if actual != dtype:
        expected_name, actual_name = types_pb2.DataType.Name(dtype), types_pb2.DataType.Name(actual)
        raise invalid_argument(f"Expected {name} Tensor of {expected_name}. Got: {actual_name}")
    if len(array) != count:
        raise invalid_argument(f"Expected {name} output batch size of {count}. Got: {len(array)}")


def _classification(
    signature: SignatureDef, arrays: Mapping[str, np.ndarray], count: int
) -> classification_pb2.ClassificationResult:
    outputs = {name: arrays[info.name] for name, info in signature.outputs.items() if info.name in arrays}
    classes, scores = outputs.get("classes"), outputs.get("scores")
    if classes is not None:
        _check_classes("classes", classes, types_pb2.DT_STRING, count)
    if scores is not None:
        _check_classes("scores", scores, types_pb2.DT_FLOAT, count)
    if classes is not None and scores is not None and classes.shape[1] != scores.shape[1]:
        raise invalid_argument(
            f"Tensors class and score should match in dim_size(1). Got {classes.shape[1]} vs. {scores.shape[1]}"
        )
    widths = [array.shape[1] for array in (classes, scores) if array is not None]
    result = classification_pb2.ClassificationResult()
    for row in range(count):
        added = result.classifications.add()
        for column in range(widths[0]):
            label = classes[row, column].decode("utf-8", "replace") if classes is not None else ""
            added.classes.add(label=label, score=float(scores[row, column]) if scores is not None else 0.0)
    return result


def _regression(
    signature: SignatureDef, arrays: Mapping[str, np.ndarray], count: int
) -> regression_pb2.RegressionResult:
    array = arrays[signature.outputs["outputs"].name]
    if not (array.ndim == 1 or (array.ndim == 2 and array.shape[1] == 1)):
        shape = ",".join(map(str, array.shape))
        raise invalid_argument(
            f"Expected output Tensor shape to be either [batch_size] or [batch_size, 1] but got [{shape}]"
        )
    if len(array) != count:
        raise invalid_argument(f"Input batch size did not match output batch size: {count} vs. {len(array)}")
    if array.dtype != np.float32:
        actual = types_pb2.DataType.Name(tf.as_dtype(array.dtype).as_datatype_enum)
        raise invalid_argument(f"Expected output Tensor of DT_FLOAT.  Got: {actual}")
    result = regression_pb2.RegressionResult()
    for value in array.ravel().tolist():
        result.regressions.add(value=value)
    return result


def _run_examples(
    servable: Servable,
    method: str,
    request_input: input_pb2.Input,
    feeds: list[str],
    fetches: list[str],
    timeout_ms: int,
) -> tuple[dict[str, np.ndarray], int]:
    examples = _examples(request_input)
    arrays = _timed_run(servable, method, dict.fromkeys(feeds, examples), fetches, timeout_ms)
    METRICS.count_examples(servable.name, len(examples))
    return dict(zip(fetches, arrays, strict=True)), len(examples)


def classify(
    servable: Servable, request: classification_pb2.ClassificationRequest, timeout_ms: int = 0
) -> classification_pb2.ClassificationResponse:
    """Answers a Classify message.

    Raises:
        StatusError: where the signature is not one for classification, or the graph fails.
    """
    name = request.model_spec.signature_name
    signature = _example_signature(servable, name, "No signature was found with the name")
    fetches = _classify_fetches(signature)
    feeds = [signature.inputs["inputs"].name]
    arrays, count = _run_examples(servable, "Classify", request.input, feeds, fetches, timeout_ms)
    response = classification_pb2.ClassificationResponse(result=_classification(signature, arrays, count))
    fill_model_spec(servable, name, response.model_spec)
    return response


def regress(
    servable: Servable, request: regression_pb2.RegressionRequest, timeout_ms: int = 0
) -> regression_pb2.RegressionResponse:
    """Answers a Regress message.

    Raises:
        StatusError: where the signature is not one for regression, or the graph fails.
    """
    name = request.model_spec.signature_name
    signature = _example_signature(servable, name, "No signature was found with the name")
    fetches = _regress_fetches(signature)
    feeds = [signature.inputs["inputs"].name]
    arrays, count = _run_examples(servable, "Regress", request.input, feeds, fetches, timeout_ms)
    response = regression_pb2.RegressionResponse(result=_regression(signature, arrays, count))
    fill_model_spec(servable, name, response.model_spec)
    return response


def multi_inference(
    servable: Servable, request: inference_pb2.MultiInferenceRequest, timeout_ms: int = 0
) -> inference_pb2.MultiInferenceResponse:
    """Answers a MultiInference message: several signatures, the same examples, one run of the graph.

    Raises:
        StatusError: where tasks do not fit together, or one of them fails.
    """
    signatures: dict[str, SignatureDef] = {}
    feeds: set[str] = set()
    fetches: set[str] = set()
    for task in request.tasks:
        if not task.model_spec.name:
            raise invalid_argument("Found ModelSpec with an empty model name.")
        if task.model_spec.name != request.tasks[0].model_spec.name:
            raise invalid_argument("All ModelSpecs in a MultiInferenceRequest must access the same model name.")
        name = task.model_spec.signature_name or DEFAULT_SIGNATURE
        if name in signatures:
            raise invalid_argument(f"Duplicate evaluation of signature: {name}")
        signatures[name] = _example_signature(servable, name, "Requested signature not found in model graph")
        if task.method_name == CLASSIFY:
            fetches.update(_classify_fetches(signatures[name]))
        elif task.method_name == REGRESS:
            fetches.update(_regress_fetches(signatures[name]))
        else:
            raise StatusError("UNIMPLEMENTED", f"Unsupported signature method_name: {task.method_name}")
        # Signatures of a TensorFlow 2 export each have a placeholder of their own: all get the same examples.
        feeds.add(signatures[name].inputs["inputs"].name)
    arrays, count = _run_examples(servable, "MultiInference", request.input, sorted(feeds), sorted(fetches), timeout_ms)
    response = inference_pb2.MultiInferenceResponse()
    for task, (name, signature) in zip(request.tasks, signatures.items(), strict=True):
        result = response.results.add()
        if task.method_name == CLASSIFY:
            result.classification_result.CopyFrom(_classification(signature, arrays, count))
        else:
            result.regression_result.CopyFrom(_regression(signature, arrays, count))
        fill_model_spec(servable, name, result.model_spec)
    return response
