"""Matrix factorisation of ratings, into which new users are folded by ridge regression."""

import numpy as np

from tfmetarec.models.baselines.base import Baseline, Ratings, above, at_least
from tfmetarec.models.baselines.blocks import blocks, groups
from tfmetarec.models.baselines.linear_algebra import ridge, shrunk_means


class BiasedMF(Baseline):
    """Predicts ratings by biased matrix factorisation; a new user's vector and bias are a ridge solution.

    The model is mean + item bias + user bias + user vector · item vector, trained by alternating least squares with
    the vectors' penalty weighted by their number of ratings. Folding in regresses the support's labels, less mean and
    item biases, on the item vectors and a column of ones, for all tasks in one batched solve. Its penalty is
    constant: a weighted one would all but vanish where the support is short and caution is needed most.

    Args:
        factors: int, at least 1. Defaults to 32.
        regularization: float, greater than 0. Training's ridge penalty on a vector, per rating. Defaults to 0.1.
        fold_in_regularization: float, greater than 0. Ridge penalty on a new user's vector. Defaults to 1.5.
        item_shrinkage: float, greater than 0. Ridge penalty on an item's bias. Defaults to 3.
        user_shrinkage: float, greater than 0. Ridge penalty on a user's bias. Defaults to 5.
        iterations: int, at least 1. Turns over users and items. Defaults to 15.
        seed: int, at least 0. Where the item vectors start. Defaults to 0.

    Reference: [Koren et al., 2009](https://doi.org/10.1109/MC.2009.263), equation 5; the weighted penalty is that of
    [Zhou et al., 2008](https://doi.org/10.1007/978-3-540-68880-8_32)
    """

    name = "MF fold-in"
    feedback = "explicit"

    def __init__(
        self,
        factors: int = 32,
        regularization: float = 0.1,
        fold_in_regularization: float = 1.5,
        *,
        item_shrinkage: float = 3.0,
        user_shrinkage: float = 5.0,
        iterations: int = 15,
        seed: int = 0,
    ):
        self.factors = at_least("factors", factors, 1)
        self.regularization = above("regularization", regularization, 0)
        self.fold_in_regularization = above("fold_in_regularization", fold_in_regularization, 0)
        self.item_shrinkage = above("item_shrinkage", item_shrinkage, 0)
        self.user_shrinkage = above("user_shrinkage", user_shrinkage, 0)
        self.iterations = at_least("iterations", iterations, 1)
        self.seed = at_least("seed", seed, 0)

    def _fit(self, ratings: Ratings) -> None:
        user, item = ratings.user, ratings.item
        self.mean = float(ratings.label.mean(dtype=np.float64))
        rest = (ratings.label - self.mean).astype(np.float32)
        # The last column of these two is the bias, so that one ridge finds vector and bias together.
        items = np.zeros((ratings.n_items, self.factors + 1), np.float32)
        users = np.zeros((ratings.n_users, self.factors + 1), np.float32)
        rated = np.unique(item)
        start = np.random.default_rng(self.seed).normal(0, 0.1, (len(rated), self.factors))
        items[rated, :-1] = start  # The others, row 0 first of all, stay at 0: an unknown item.
        items[:, -1] = shrunk_means(item, rest, ratings.n_items, self.item_shrinkage)
        user_groups = list(groups(user, self.factors + 1))
        item_groups = list(groups(item, self.factors + 1))
        for _ in range(self.iterations):
            for rows, members, real in user_groups:
                penalty = self.regularization * real.sum(axis=1)
                users[rows] = _biased_ridge(items[item[members]], rest[members], real, penalty, self.user_shrinkage)
            for rows, members, real in item_groups:
                penalty = self.regularization * real.sum(axis=1)
                items[rows] = _biased_ridge(users[user[members]], rest[members], real, penalty, self.item_shrinkage)
        self.items = items

    def _adapt(self, item: np.ndarray, label: np.ndarray, real: np.ndarray) -> np.ndarray:
        state = np.zeros((len(item), self.factors + 1), np.float32)
        for block in blocks(len(item), (self.factors + 1) * max(item.shape[1], self.factors + 1)):
            target = (label[block] - self.mean).astype(np.float32)
            penalty = np.full(len(target), self.fold_in_regularization)
            state[block] = _biased_ridge(self.items[item[block]], target, real[block], penalty, self.user_shrinkage)
        return state

    def _catalogue(self, state: np.ndarray) -> np.ndarray:
        vectors = state[:, :-1] @ self.items[:, :-1].T
        return (self.mean + self.items[:, -1] + state[:, -1:] + vectors).astype(np.float32)


def _biased_ridge(
    others: np.ndarray, target: np.ndarray, real: np.ndarray, penalty: np.ndarray, shrinkage: float
) -> np.ndarray:
    """Vectors and biases `(T, D + 1)` for `target` `(T, S)`, given those of the other side `(T, S, D + 1)`."""
    width = others.shape[2]
    features = others.copy()
    features[..., -1] = 1  # What the other side's own bias says is known already: it moves to the target.
    target = np.where(real, target - others[..., -1], 0)
    diagonal = np.repeat(penalty[:, None], width, axis=1)
    diagonal[:, -1] = shrinkage
    penalties = (diagonal[:, :, None] * np.eye(width)).astype(np.float32)  # (T, D + 1) -> (T, D + 1, D + 1)
    return ridge(features, real.astype(np.float32), target, penalties)
