"""Runs recorded requests on a SavedModel through the TF1 session loader, as TensorFlow Serving's core does.

    python gate_process.py SAVED_MODEL REQUESTS.npz ANSWERS.npz

A script of its own, run in a process that holds nothing of the model: it imports TensorFlow and NumPy alone.
"""

import os
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tensorflow as tf


def main(saved_model: str, requests: str, answers: str) -> None:
    """Writes what every request answers, under the request's key."""
    with np.load(requests) as recorded:
        inputs = {key: recorded[key] for key in recorded.files}
    found: dict[str, np.ndarray] = {}
    with tf.compat.v1.Session(graph=tf.Graph()) as session:
        graph = tf.compat.v1.saved_model.load(session, [tf.saved_model.SERVING], saved_model)
        for case in sorted({key.rsplit("/", 1)[0] for key in inputs}):
            signature = graph.signature_def[case.split("/")[0]]
            feed = {}
            for name, info in signature.inputs.items():
                value = inputs[f"{case}/{name}"]
                feed[info.name] = value.astype(object) if value.dtype.kind == "U" else value
            outputs = session.run({name: info.name for name, info in signature.outputs.items()}, feed)
            for name, value in outputs.items():
                is_text = value.dtype == object
                found[f"{case}/{name}"] = np.char.decode(value.astype(bytes), "utf-8") if is_text else value
    np.savez(answers, **found)  # type: ignore[arg-type]


if __name__ == "__main__":
    main(*sys.argv[1:])
