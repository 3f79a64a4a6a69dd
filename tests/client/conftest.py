"""Servers for the client: one that gives listed answers, and a real one with small shops worked out by hand."""

import http.server
import threading
import time
from typing import NamedTuple

import numpy as np
import pytest

from tfmetarec.client import Client


class Answers(http.server.BaseHTTPRequestHandler):
    """Answers requests with `server.pages` in turn: a status and a body, or seconds to stay silent."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.server.requests += 1
        page = self.server.pages.pop(0) if len(self.server.pages) > 1 else self.server.pages[0]
        if isinstance(page, float):
            time.sleep(page)
            self.close_connection = True
            return
        status, body = page
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET

    def log_message(self, *args):
        pass


@pytest.fixture
def answering():
    """Starts HTTP servers that give the answers listed: `answering(*pages) -> server`."""
    started = []

    def start(*pages):
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers)
        server.pages, server.requests = list(pages), 0
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        started.append(server)
        return server

    yield start
    for server in started:
        server.shutdown()
        server.server_close()


def make_shop(ids, number, width, signatures=None):
    """A model with the signatures that `tfmetarec.export` writes, whose answers a reader can work out.

    Item `i` of 1 to 6 scores `i / 10`, plus a hundredth of the user's age. Each interaction with an item adds its label to
    the item after it and takes a quarter of it from the item before. Recommendations hold 5 items at most. A new item
    scores its price, 10 for every tag, 100 times its first taste, and the labels of the support.

    Args:
        ids: 7 raw ids, the first the one of no item.
        number: of the version, which marks its states.
        width: of a state, at least 8.
        signatures: names; `None` for all.
    """
    import tensorflow as tf

    spec = tf.TensorSpec
    id_type = tf.string if isinstance(ids[1], str) else tf.int64
    moves = np.zeros((7, 7), np.float32)
    moves[range(1, 6), range(2, 7)] = 1.0
    moves[range(2, 7), range(1, 6)] = -0.25
    departments = tf.constant(["", "tea", "tea", "jam", "jam", "tea", ""])
    tags = tf.constant([["", ""], ["red", "hot"], ["red", ""], ["blue", ""], ["hot", ""], ["", ""], ["", ""]])

    class Shop(tf.Module):
        def __init__(self):
            super().__init__()
            self.ids = tf.constant(ids, id_type)
            self.base = tf.Variable(np.arange(7, dtype=np.float32) / 10)

        def rows(self, raw):
            return tf.argmax(tf.cast(raw[..., None] == self.ids, tf.int32), -1)

        def contributions(self, support, labels, length):
            """What each interaction adds to each item: (B, S, 7)."""
            real = tf.sequence_mask(length, tf.shape(support)[1], tf.float32)
            return tf.gather(tf.constant(moves), self.rows(support)) * (labels * real)[:, :, None]

        def scores(self, inputs):
            age = inputs["user_age"]
            age = tf.where(tf.math.is_nan(age), 0.0, age)[:, None] / 100
            added = self.contributions(inputs["support"], inputs["support_labels"], inputs["support_length"])
            return self.base + age + tf.reduce_sum(added, 1)

        def met(self, ids, length):
            real = tf.sequence_mask(length, tf.shape(ids)[1])
            return tf.reduce_any((self.ids == ids[:, :, None]) & real[:, :, None], 1)

        def best(self, scores, out, count=5):
            scores = tf.where(out | (tf.range(7) == 0), -np.inf, scores)
            scores, place = tf.math.top_k(scores, count)
            fits = tf.math.is_finite(scores)
            return tf.where(fits, tf.gather(self.ids, place), self.ids[0]), scores, place

        def filtered(self, scores, inputs, out):
            out |= self.met(inputs["exclude"], inputs["exclude_length"])
            for name, have in (("only_department", departments[:, None]), ("only_shop_tags", tags)):
                asked = inputs[name]
                has = (asked[:, None, :, None] == have[:, None, :]) & (have[:, None, :] != "")
                out |= ~tf.reduce_any(has, (2, 3)) & tf.reduce_any(asked != "", 1, keepdims=True)
            top_k = tf.clip_by_value(inputs["top_k"], 1, 5)
            items, scores, _ = self.best(scores, out, tf.reduce_max(top_k))
            return {"items": items, "scores": scores}

        def adapt_and_score(self, **inputs):
            return {"scores": tf.gather(self.scores(inputs), self.rows(inputs["candidates"]), batch_dims=1)}

        def adapt_and_recommend(self, **inputs):
            items, scores, _ = self.best(self.scores(inputs), self.met(inputs["support"], inputs["support_length"]))
            return {"items": items, "scores": scores}

        def adapt_and_recommend_filtered(self, **inputs):
            return self.filtered(self.scores(inputs), inputs, self.met(inputs["support"], inputs["support_length"]))

        def explain(self, **inputs):
            items, scores, place = self.best(self.scores(inputs), self.met(inputs["support"], inputs["support_length"]))
            added = self.contributions(inputs["support"], inputs["support_labels"], inputs["support_length"])
            return {
                "items": items,
                "scores": scores,
                "contributions": tf.gather(tf.transpose(added, [0, 2, 1]), place, batch_dims=1),
            }

        def adapt(self, **inputs):
            scores = self.scores(inputs)
            mark = tf.fill([tf.shape(scores)[0], width - 7], number / 10)
            return {"state": tf.concat([scores, mark], 1)}

        def unpacked(self, state):
            return tf.reshape(state, [-1, width])  # Nothing else refuses a state of another width.

        def own(self, state, scores):
            return tf.where(state[:, 7:8] == tf.constant(number / 10), scores, np.nan)

        def score_with_state(self, **inputs):
            state = self.unpacked(inputs["state"])
            scores = tf.gather(state[:, :7], self.rows(inputs["candidates"]), batch_dims=1)
            return {"scores": self.own(state, scores)}

        def recommend_with_state(self, **inputs):
            state = self.unpacked(inputs["state"])
            answer = self.filtered(state[:, :7], inputs, tf.zeros_like(state[:, :7], tf.bool))
            return answer | {"scores": self.own(state, answer["scores"])}

        def score_new_items(self, **inputs):
            price, taste = inputs["item_price"], inputs["item_taste"][..., 0]
            price = tf.where(tf.math.is_nan(price), 0.0, price)
            taste = tf.where(tf.math.is_nan(taste), 0.0, taste)
            listed = tf.sequence_mask(inputs["item_tags_length"], tf.shape(inputs["item_tags"])[2])
            tags = tf.reduce_sum(tf.cast(listed & (inputs["item_tags"] != ""), tf.float32), 2)
            bought = tf.sequence_mask(inputs["support_length"], tf.shape(inputs["support"])[1], tf.float32)
            labels = tf.reduce_sum(inputs["support_labels"] * bought, 1, keepdims=True)
            return {"scores": price + 10 * tags + 100 * taste + labels}

    support = {
        "support": spec([None, None], id_type),
        "support_labels": spec([None, None], tf.float32),
        "support_length": spec([None], tf.int32),
        "user_age": spec([None], tf.float32),
    }
    options = {
        "exclude": spec([None, None], id_type),
        "exclude_length": spec([None], tf.int32),
        "top_k": spec([None], tf.int32),
        "only_department": spec([None, None], tf.string),
        "only_shop_tags": spec([None, None], tf.string),
    }
    candidates = {"candidates": spec([None, None], id_type)}
    state = {"state": spec([None, width], tf.float32)}
    new = {
        "item_price": spec([None, None], tf.float32),
        "item_blurb": spec([None, None], tf.string),
        "item_tags": spec([None, None, None], tf.string),
        "item_tags_length": spec([None, None], tf.int32),
        "item_taste": spec([None, None, 2], tf.float32),
    }
    inputs = {
        "adapt_and_score": support | candidates,
        "adapt_and_recommend": support,
        "adapt_and_recommend_filtered": support | options,
        "adapt": support,
        "score_with_state": state | candidates,
        "recommend_with_state": state | options,
        "score_new_items": support | new,
        "explain": support,
    }
    shop = Shop()

    def concrete(name):
        named = {key: spec(s.shape, s.dtype, key) for key, s in inputs[name].items()}
        return tf.function(getattr(shop, name)).get_concrete_function(**named)

    return shop, {name: concrete(name) for name in signatures or inputs}


class Shops(NamedTuple):
    """Models of a running server: `numbers` and `words` by the type of their ids, `old` with few signatures.

    `numbers` has version 1, version 2 for states alone, and version 3 whose states are longer.
    """

    rest_port: int
    grpc_port: int

    def client(self, model="numbers", protocol="rest", **settings):
        port = self.rest_port if protocol == "rest" else self.grpc_port
        return Client(f"127.0.0.1:{port}", model=model, protocol=protocol, **settings)


@pytest.fixture(scope="session")
def shops(tmp_path_factory):
    import tensorflow as tf

    from tfmetarec.server import Server

    root = tmp_path_factory.mktemp("shops")
    numbers = list(range(7))
    words = ["", *(f"w{number}" for number in numbers[1:])]
    of_state = ("adapt", "score_with_state", "recommend_with_state")
    for model, number, ids, width, names in (
        ("numbers", 1, numbers, 8, None),
        ("numbers", 2, numbers, 8, of_state),
        ("numbers", 3, numbers, 9, None),
        ("words", 1, words, 8, None),
        ("old", 1, numbers, 8, ("adapt_and_score", "adapt_and_recommend", "explain")),
    ):
        shop, signatures = make_shop(ids, number, width, names)
        tf.saved_model.save(shop, str(root / model / str(number)), signatures=signatures)
    models = "".join(
        f'config {{ name: "{name}" base_path: "{root / name}" model_platform: "tensorflow" '
        "model_version_policy { all {} } }\n"
        for name in ("numbers", "words", "old")
    )
    (root / "models.config").write_text(f"model_config_list {{ {models} }}")
    with Server(model_config_file=root / "models.config") as running:
        yield Shops(running.rest_api_port, running.port)


@pytest.fixture(params=["rest", "grpc"])
def client(request, shops):
    """A client of version 1 of the shop with numbers, over either protocol."""
    with shops.client(protocol=request.param, version=1) as made:
        yield made
