"""Two camps of users and items, and the shapes in which baselines are asked about them."""

import numpy as np
import pytest

from tfmetarec.models.baselines import Ratings
from tfmetarec.tasks.episode import Support


@pytest.fixture(scope="session")
def support_of():
    """A support from its items, and maybe labels (1 by default) and lengths (all of it by default)."""

    def support(items, labels=None, length=None) -> Support:
        items = np.asarray(items)
        labels = np.ones(items.shape, np.float32) if labels is None else np.asarray(labels, np.float32)
        length = np.full(len(items), items.shape[1]) if length is None else np.asarray(length)
        return Support({"user_id": np.zeros(len(items), int)}, {"item_id": items}, labels, length)

    return support


@pytest.fixture(scope="session")
def ratings() -> Ratings:
    """40 users and 24 items in two camps; users mostly have, and like, the items of their own."""
    generator = np.random.default_rng(0)
    user, item = np.meshgrid(np.arange(1, 41), np.arange(1, 25), indexing="ij")
    same_camp = user % 2 == item % 2
    kept = generator.random(user.shape) < np.where(same_camp, 0.5, 0.1)
    label = np.where(same_camp, 4.5, 1.5) + generator.normal(0, 0.3, user.shape)
    return Ratings(user[kept], item[kept], label[kept].astype(np.float32), 41, 25)


@pytest.fixture(scope="session")
def matrix_of():
    """1 where a user had an item, `(n_users, n_items)`, as a dense array."""

    def matrix(ratings: Ratings) -> np.ndarray:
        dense = np.zeros((ratings.n_users, ratings.n_items))
        dense[ratings.user, ratings.item] = 1
        return dense

    return matrix
