"""The adapting signature for LiteRT (TensorFlow Lite): on a phone, without any server."""

import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from tfmetarec.data.whole_file import write_whole
from tfmetarec.export.adapted import adapted
from tfmetarec.export.errors import GateError
from tfmetarec.export.names import input_name
from tfmetarec.export.quiet import silently
from tfmetarec.export.signatures import ServedLearner
from tfmetarec.export.small_products import rename_outputs
from tfmetarec.meta.learner import MetaLearner
from tfmetarec.meta.paths import TaskRows
from tfmetarec.models.features import placeholder_features
from tfmetarec.tasks.episode import Support

SIGNATURE = "adapt_and_score"
# A float16 file rounds its weights; what it computes with them is exact.
TOLERANCE = {"float32": 1e-4, "float16": 1e-2}


@dataclass(frozen=True)
class LiteModel:
    """A written file.

    Attributes:
        path: of the file.
        size_bytes: of the file.
        difference: largest absolute difference of a score from the live model.
    """

    path: Path
    size_bytes: int
    difference: float


def lite_model(
    learner: MetaLearner,
    path: str | Path,
    *,
    support: int = 20,
    candidates: int = 100,
    weights: str = "float32",
    new_items: pl.DataFrame | None = None,
) -> LiteModel:
    """Converts adapting and scoring to one file that needs no operation beyond LiteRT's own.

    LiteRT has no tables of strings, and shapes that vary cost it dearly. So its signature `adapt_and_score` differs
    from the served one: one user, a fixed number of support rows and candidates (pad; `support_length` says how many
    rows are real), and rows of the vocabulary instead of ids: `support (1, S)`, `support_labels (1, S)`,
    `support_length (1)`, `candidates (1, N)` and the encoded `user_NAME` of each user feature. An item's row is its
    place in `assets.extra/vocabulary/items.parquet` of an export, from 1; row 0 is an item never seen.

    Args:
        learner: `MetaLearner` over users, with a vocabulary.
        path: the file to write, usually `.tflite`.
        support: int, at least 1. `S`.
        candidates: int, at least 1. `N`.
        weights: "float32" or "float16": how the file stores weights. LiteRT computes in 32 bits.
        new_items: items to add, as `saved_model` takes them.

    Raises:
        ValueError: for an option out of range.
        GateError: if the learner needs operations that LiteRT does not have, which are named, or if the file does not
            score as the live model does. Nothing is written then.
    """
    for name, value in (("support", support), ("candidates", candidates)):
        if value < 1:
            raise ValueError(f"`{name}` must be at least 1. Received: {name}={value}")
    if weights not in TOLERANCE:
        raise ValueError(f"`weights` must be one of {', '.join(TOLERANCE)}. Received: weights={weights!r}")
    vocabulary = learner.vocabulary
    if vocabulary is not None and new_items is not None:
        vocabulary = vocabulary.with_items(new_items)
    served = ServedLearner(learner, 1, vocabulary=vocabulary)
    content = _converted(served, support, candidates, weights)
    difference = _difference(content, served, support, candidates)
    if not difference <= TOLERANCE[weights]:
        raise GateError(f"the LiteRT file scores differently from the live model: up to {difference:.2g} apart.")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with write_whole(path) as partial:
        Path(partial).write_bytes(content)
    return LiteModel(path, len(content), difference)


def _converted(served: ServedLearner, support: int, candidates: int, weights: str) -> bytes:
    with tempfile.TemporaryDirectory() as scratch, silently():
        module, function = _function(served, support, candidates)
        tf.saved_model.save(module, scratch, signatures={SIGNATURE: function})
        _replace_relu_gradients(Path(scratch) / "saved_model.pb")
        converter = tf.lite.TFLiteConverter.from_saved_model(scratch, signature_keys=[SIGNATURE])
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
        if weights == "float16":
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
            converter.target_spec.supported_types = [tf.float16]
        try:
            return converter.convert()
        except Exception as error:
            missing = sorted(set(re.findall(r"'tf\.(\w+)' op is neither", str(error))))
            reason = f"it lacks {', '.join(missing)}" if missing else str(error).splitlines()[0]
            raise GateError(f"LiteRT cannot hold a {type(served.learner).__name__}: {reason}.") from None


def _function(served: ServedLearner, support: int, candidates: int) -> tuple[tf.Module, Any]:
    """A module with the items' vectors, and the concrete function over it."""
    learner = served.learner
    items = tf.nest.map_structure(lambda t: tf.Variable(t, trainable=False), served.catalogue.decoded())

    def rows(places: tf.Tensor) -> Any:
        return tf.nest.map_structure(lambda table: tf.gather(table, places), items)

    def adapt_and_score(**inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        user = {name: inputs[input_name("user", name)] for name in _user_features(served)}
        user = learner._cut.encode_user({"user_id": tf.zeros([1], tf.int32), **user}, training=False)
        user = tf.nest.map_structure(lambda t: t[:, None], user)
        label, real = learner.evidence(inputs["support_labels"], inputs["support_length"])
        negatives = served.negatives(inputs["support"], real)
        task = TaskRows(user, rows(inputs["support"]), label, tf.cast(real, label.dtype), negatives)
        users = adapted(learner, learner.adapt_rows(task), user)
        return {"scores": users.scores(rows(inputs["candidates"]))}

    specs = {
        "support": tf.TensorSpec([1, support], tf.int32),
        "support_labels": tf.TensorSpec([1, support], tf.float32),
        "support_length": tf.TensorSpec([1], tf.int32),
        "candidates": tf.TensorSpec([1, candidates], tf.int32),
    }
    for name, value in _user_features(served).items():
        specs[input_name("user", name)] = tf.TensorSpec(value.shape, value.dtype)
    specs = {name: tf.TensorSpec(spec.shape, spec.dtype, name) for name, spec in specs.items()}
    module = tf.Module()
    function = tf.function(adapt_and_score, autograph=False).get_concrete_function(**specs)
    module.variables_read = list(function.variables)
    return module, function


def _user_features(served: ServedLearner) -> dict[str, np.ndarray]:
    """Encoded features of one user of whom nothing is known, without the id."""
    features = placeholder_features(served.vocabulary.specs)
    names = {spec.name for spec in served.vocabulary.specs.user if spec.kind != "id"}
    return {name: value for name, value in features.items() if name in names or name.removesuffix("_length") in names}


def _replace_relu_gradients(file: Path) -> None:
    """Writes the derivative of ReLU, which LiteRT lacks, as what it is: the signal where the input was positive."""
    saved = saved_model_pb2.SavedModel.FromString(file.read_bytes())
    for function in saved.meta_graphs[0].graph_def.library.function:
        replaced = [node for node in function.node_def if node.op == "ReluGrad"]
        for node in replaced:
            signal, inputs = node.input[:2]
            kind = node.attr["T"]
            zero = function.node_def.add(name=f"{node.name}/zero", op="Const")
            zero.attr["dtype"].CopyFrom(kind)
            zero.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(0, tf.as_dtype(kind.type)))
            positive = function.node_def.add(name=f"{node.name}/positive", op="Greater")
            positive.input.extend([inputs, f"{zero.name}:output:0"])
            positive.attr["T"].CopyFrom(kind)
            share = function.node_def.add(name=f"{node.name}/share", op="Cast")
            share.input.append(f"{positive.name}:z:0")
            share.attr["SrcT"].type = tf.bool.as_datatype_enum
            share.attr["DstT"].CopyFrom(kind)
            node.op = "Mul"
            node.input[:] = [signal, f"{share.name}:y:0"]
        rename_outputs(function, {f"{node.name}:backprops:0": f"{node.name}:z:0" for node in replaced})
    file.write_bytes(saved.SerializeToString(deterministic=True))


def _difference(content: bytes, served: ServedLearner, support: int, candidates: int) -> float:
    """The largest difference of a score from the live learner's, for full, half-full and empty supports."""
    vocabulary, learner, rng = served.vocabulary, served.learner, np.random.default_rng(0)
    low, high = vocabulary.label_range
    user = _user_features(served)
    worst = 0.0
    with silently():
        run = tf.lite.Interpreter(model_content=content).get_signature_runner(SIGNATURE)
        for length in (support, support // 2, 0):
            rows = rng.integers(0, vocabulary.n_items, (1, support)).astype(np.int32)
            asked = rng.integers(0, vocabulary.n_items, (1, candidates)).astype(np.int32)
            labels = rng.uniform(low, high, (1, support)).astype(np.float32)
            lengths = np.array([length], np.int32)
            inputs = {"support": rows, "support_labels": labels, "support_length": lengths, "candidates": asked}
            found = run(**inputs, **{input_name("user", name): value for name, value in user.items()})["scores"]
            items = [{name: value[at] for name, value in vocabulary.catalogue.items()} for at in (rows, asked)]
            state = learner.adapt(Support({"user_id": np.zeros(1, np.int32), **user}, items[0], labels, lengths))
            worst = max(worst, float(np.abs(found - learner.score(state, items[1])).max()))
    return worst
