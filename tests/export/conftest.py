"""A shop whose ids are words and whose users have features of every kind."""

import json
import urllib.request

import numpy as np
import polars as pl
import pytest

import tfmetarec as tmr

N_ITEMS = 12


def _shop(feedback):
    rng = np.random.default_rng(0)
    users = [f"zq-secret-{number}" for number in range(20)]
    items = np.array([f"artículo-{number:02d}" for number in range(N_ITEMS)])
    rows = [(user, item) for user in users for item in rng.choice(items, 5, replace=False)]
    table = pl.DataFrame(rows, schema=["user_id", "item_id"], orient="row").with_columns(
        label=pl.Series(rng.integers(1, 6, len(rows)).astype(float)), timestamp=pl.Series(np.arange(len(rows)))
    )
    hobbies = np.array(["chess", "boats", "gardens", "föhn"])
    about_users = pl.DataFrame(
        {
            "user_id": users,
            "age": rng.uniform(18, 80, 20),
            "hobbies": [rng.choice(hobbies, size, replace=False).tolist() for size in rng.integers(0, 4, 20)],
            "bio": [f"likes {word}" for word in rng.choice(hobbies, 20)],
            "taste": rng.normal(size=(20, 3)).tolist(),
            "city": rng.choice(["Ulm", "Lyon"], 20),
        }
    )
    words = [f"word{number}" for number in range(37)]
    about_items = pl.DataFrame(
        {
            "item_id": items,
            "price": rng.uniform(1, 9, N_ITEMS),
            "blurb": [" ".join(words[3 * n : 3 * n + 4]) for n in range(N_ITEMS)],
            "shelf": [("high", "low", "middle")[n % 3] for n in range(N_ITEMS)],
            "marks": [[[], ["new"], ["new", "cheap"], ["cheap"]][n % 4] for n in range(N_ITEMS)],
        }
    )
    data = tmr.data.Interactions.from_frames(
        table, about_users, about_items, feedback=feedback, kinds={"bio": "text", "blurb": "text"}, name="shop"
    )
    return data, tmr.data.Vocabulary.fit(data)


@pytest.fixture(scope="session")
def shops():
    return {feedback: _shop(feedback) for feedback in ("implicit", "explicit")}


def _learner(vocabulary, model=tmr.models.TwoTower, **options):
    if model is tmr.models.Ranker:
        options["hidden"] = (5,)
    made = model(vocabulary, 4, **options)
    rng = np.random.default_rng(0)
    for variable in made.trainable_variables:
        variable.assign(0.3 * rng.normal(size=variable.shape))
    return tmr.meta.MAML(made, inner_steps=2, inner_learning_rate=0.2)


@pytest.fixture(scope="session")
def make_learner():
    return _learner


@pytest.fixture
def http_get():
    def get(port, path):
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=30) as response:
            return json.loads(response.read())

    return get
