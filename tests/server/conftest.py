"""Small models that the server tests export and serve."""

import json
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import tensorflow as tf

Spec = tf.TensorSpec


class Basket(tf.Module):
    """`score = price * count + bonus`, and what else a server must carry."""

    def __init__(self, bonus: float):
        super().__init__()
        self.bonus = tf.Variable(float(bonus))

    @tf.function(
        input_signature=[
            Spec([None], tf.string, "item"),
            Spec([None], tf.float32, "price"),
            Spec([None, 2], tf.int64, "count"),
        ]
    )
    def score(self, item, price, count):
        total = tf.reduce_sum(count, 1)
        return {
            "score": price * tf.cast(total, tf.float32) + self.bonus,
            "label": tf.strings.join(["<", item, ">"]),
            "count": total,
        }

    @tf.function(input_signature=[Spec(None, tf.string, "text")])
    def text(self, text):
        return {"text": text}

    @tf.function(input_signature=[Spec(None, tf.string, "text")])
    def raw(self, text):
        return {"raw_bytes": text}

    @tf.function(
        input_signature=[
            Spec([None], tf.bool, "yes"),
            Spec([None], tf.float64, "exact"),
            Spec([None], tf.int32, "small"),
            Spec([None], tf.uint8, "byte"),
        ]
    )
    def types(self, yes, exact, small, byte):
        return {"yes": yes, "exact": exact, "small": small, "byte": byte}

    # Padding must not count: the length says what is valid.
    @tf.function(input_signature=[Spec([None, None], tf.float32, "values"), Spec([None], tf.int32, "length")])
    def mean(self, values, length):
        valid = tf.sequence_mask(length, tf.shape(values)[1], tf.float32)
        return {
            "mean": tf.reduce_sum(values * valid, 1) / tf.cast(length, tf.float32),
            "width": tf.fill(tf.shape(length), tf.shape(values)[1]),
            "rows": tf.fill(tf.shape(length), tf.shape(values)[0]),
        }

    @tf.function(input_signature=[Spec([None], tf.float32, "x")])
    def total(self, x):
        return {"total": tf.reduce_sum(x)}

    @tf.function(input_signature=[Spec([None], tf.int32, "steps")])
    def slow(self, steps):
        square = tf.eye(200)
        for _ in tf.range(tf.reduce_max(steps)):
            square = tf.linalg.matmul(square, square)
        return {"done": tf.cast(steps, tf.float32) + 0.0 * square[0, 0] + self.bonus}

    @tf.function(input_signature=[Spec([None], tf.string, "inputs")])
    def regress(self, inputs):
        return {"outputs": tf.io.parse_example(inputs, {"x": tf.io.FixedLenFeature([], tf.float32)})["x"]}

    @tf.function(input_signature=[Spec([None], tf.string, "inputs")])
    def classify(self, inputs):
        x = tf.io.parse_example(inputs, {"x": tf.io.FixedLenFeature([], tf.float32)})["x"]
        classes = tf.tile(tf.constant([["yes", "no"]]), [tf.shape(x)[0], 1])
        return {"classes": classes, "scores": tf.stack([x, 1.0 - x], 1)}

    def export(self, path: Path) -> None:
        names = ("text", "raw", "types", "mean", "total", "slow", "regress", "classify")
        signatures = {"serving_default": self.score} | {name: getattr(self, name) for name in names}
        tf.saved_model.save(self, str(path), signatures=signatures)


@pytest.fixture(scope="session")
def exported(tmp_path_factory):
    """Version 1 (bonus 0) and version 2 (bonus 100) of a model; copy them, do not change them."""
    root = tmp_path_factory.mktemp("exported")
    for version, bonus in (("1", 0.0), ("2", 100.0)):
        Basket(bonus).export(root / version)
    return root


@pytest.fixture(scope="session")
def http_call():
    """Sends one HTTP request: `http_call(port, method, path, body) -> (status, decoded body)`."""

    def call(port, method, path, body=None, headers=None):
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data, headers or {}, method=method)
        try:
            with urllib.request.urlopen(request, timeout=30) as response:
                return response.status, json.loads(response.read())
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.loads(error.read())

    return call
