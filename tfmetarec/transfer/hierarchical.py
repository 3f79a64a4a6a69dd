"""Correlated user effects: how high somebody rates in one domain says how high in another, as far as it really does.

What most of a rating is made of is how good the item is and how high the user rates. Both are random effects here, so
all shrinkage is learned from the data in closed form; a user's effects in the two domains are drawn together, with a
covariance that is learned too. If the source says nothing, the covariance vanishes and with it what is transferred.
"""

from typing import Any, NamedTuple

import numpy as np

from tfmetarec.models.baselines import Ratings
from tfmetarec.models.baselines.base import above, at_least
from tfmetarec.tasks.episode import Features, Support
from tfmetarec.transfer import ordinal
from tfmetarec.transfer.cross_domain import CrossDomainMethod, Domains, Judged

SOURCE, TARGET = 0, 1


class Effects(NamedTuple):
    """The learned model.

    Attributes:
        mean: `(2,)` of each domain.
        item: `(2, I)` effects of items in each domain, 0 where an item is unknown.
        item_variance: `(2, I)` of what is not known of them.
        covariance: `(2, 2)` of a user's effects in the two domains.
        precision: `(2,)` of the noise of each domain.
    """

    mean: np.ndarray
    item: np.ndarray
    item_variance: np.ndarray
    covariance: np.ndarray
    precision: np.ndarray


class HierarchicalTransfer(CrossDomainMethod):
    """Predicts a cold user's ratings from how high the user rates in the source, shrunk as the data say.

    The model is mean + item effect + user effect + noise in each domain. Effects are normal; a user's two effects
    have a common covariance, and each user has a noise of his own, so that a careless rater counts less. It is fitted
    by expectation maximisation (with items and users in turns, as in variational Bayes), whose every step is in
    closed form.

    Two gates are then learned on validation users, by ridge regression that pulls them to 1: how much of the items' and
    how much of the users' effects is passed on. With them comes the distribution over the steps of the rating scale,
    whose median (`median`) minimises the absolute error where `score`, the mean, minimises the squared one.

    Args:
        iterations: int, at least 1. Turns over items and users: the most that are tried where there are validation
            users, else how many. Defaults to 12.
        noise_prior: float, greater than 0. Ratings that a user's own noise is believed to be known by before the
            first one. Defaults to 8.
        gate_prior: float, at least 0. Validation ratings that the pull of the gates to 1 counts as. Defaults to 100.

    Reference: the model is that of [Robinson, 1991](https://doi.org/10.1214/ss/1177011926), crossed and correlated
    """

    name = "hierarchical transfer"
    kinds = ("explicit",)
    _arrays = ("mean", "item", "item_variance", "covariance", "precision", "gates", "levels", "steps", "own", "turns")

    def __init__(self, iterations: int = 12, noise_prior: float = 8.0, gate_prior: float = 100.0):
        self.iterations = at_least("iterations", iterations, 1)
        self.noise_prior = above("noise_prior", noise_prior, 0)
        self.gate_prior = at_least("gate_prior", gate_prior, 0)
        self.turns = 0  # None chosen yet.
        self.gates = np.array([0.0, 1.0, 1.0])
        self.steps = np.zeros(0)

    def get_config(self) -> dict[str, Any]:
        return {"iterations": self.iterations, "noise_prior": self.noise_prior, "gate_prior": self.gate_prior}

    def _fit(self, domains: Domains, validation: Judged | None) -> None:
        ratings = (domains.source_ratings, domains.target_ratings)
        # A support row is of the source wherever the source knows the item: cold users have no others.
        self.own = np.full(domains.vocabulary.n_items, -1)
        self.own[domains.target_rows], self.own[domains.source_rows] = TARGET, SOURCE
        levels = np.unique(domains.target_ratings.label)
        if len(levels) < 2:
            raise ValueError(f"ratings must have at least two steps to be told apart. Received: {levels.tolist()}")
        self.levels = levels.astype(np.float64)
        best = np.inf
        turns = self.turns or self.iterations
        for turn, effects in enumerate(fitted_effects(ratings, turns, self.noise_prior), start=1):
            if validation is None:
                continue
            self._take(effects)
            loss = self._choose_gates(validation)
            if loss < best:
                best, kept = loss, (turn, self.gates, effects)
        if validation is None:
            self._take(effects)
        else:
            self.turns, self.gates, effects = kept
            self._take(effects)
            self._choose_steps(validation)
        if len(self.steps) != len(self.levels) + 1:
            self.steps = ordinal.default(self.levels)

    def _take(self, effects: Effects) -> None:
        self.mean, self.item, self.item_variance, self.covariance, self.precision = effects

    def _choose_gates(self, validation: Judged) -> float:
        """Fits the gates; returns the validation users' squared error under them."""
        user = self._adapt(validation.support)[:, 0]
        task, _ = np.nonzero(validation.real)
        rows, label = validation.item[validation.real], validation.label[validation.real]
        features = np.stack([np.ones(len(rows)), self.item[TARGET][rows], user[task]], axis=1)
        residual = label - self.mean[TARGET] - features[:, 1] - features[:, 2]
        # The gates are 1 + what this ridge finds; the constant is pulled to 0 likewise.
        pull = self.gate_prior * np.diag(np.maximum(np.square(features).mean(axis=0), 1e-6))
        found = np.linalg.solve(features.T @ features + pull, features.T @ residual)
        self.gates = np.array([0.0, 1.0, 1.0]) + found
        return float(np.square(residual - features @ found).mean())

    def _choose_steps(self, validation: Judged) -> None:
        if len(self.levels) > ordinal.MOST_LEVELS:
            return
        state = self._adapt(validation.support)
        mean, deviation = self._moments(state, validation.item)
        real = validation.real & np.isin(validation.label, self.levels)
        self.steps = ordinal.fit(mean[real], deviation[real], validation.label[real], self.levels)

    def _adapt(self, support: Support) -> np.ndarray:
        """`(T, 3)`: the user's target effect, its variance, and the precision of the user's noise."""
        item, label = np.asarray(support.item["item_id"]), np.asarray(support.label, np.float64)
        real = (np.arange(item.shape[1]) < np.asarray(support.length)[:, None]) & (item > 0)
        domain = self.own[item]
        count, first, second = np.zeros((3, 2, len(item)))
        for side in (SOURCE, TARGET):
            here = real & (domain == side)
            residual = np.where(here, label - self.mean[side] - self.item[side][item], 0)
            count[side], first[side] = here.sum(axis=1), residual.sum(axis=1)
            second[side] = (np.square(residual) + np.where(here, self.item_variance[side][item], 0)).sum(axis=1)
        noise = np.ones(len(item))
        for _ in range(4):  # Effects and noise in turns, as in training; more turns change nothing that shows.
            user, spread = _user_effects(count, first, self.covariance, self.precision[:, None] * noise)
            noise = _user_noise(count, first, second, user, spread, self.precision, self.noise_prior)
        return np.stack([user[:, TARGET], spread[:, TARGET, TARGET], noise], axis=1)

    def _score(self, state: np.ndarray, item: Features) -> np.ndarray:
        rows = np.asarray(item["item_id"])
        return self._moments(state, rows if rows.ndim == 2 else rows[None])[0]

    def median(self, state: np.ndarray, item: Features | None = None) -> np.ndarray:
        """The ratings `(T, N)` that are as likely too high as too low. Arguments as for `score`."""
        return ordinal.median(self.distribution(state, item), self.levels)

    def distribution(self, state: np.ndarray, item: Features | None = None) -> np.ndarray:
        """`(T, N, L)` probability of each of the `levels`. Arguments as for `score`."""
        vocabulary = self._fitted("distribution")
        rows = np.asarray((vocabulary.catalogue if item is None else item)["item_id"])
        mean, deviation = self._moments(state, rows if rows.ndim == 2 else rows[None])
        return ordinal.probabilities(self.steps, mean, deviation)

    def _moments(self, state: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """`(T, N)` means and deviations of ratings of items `(1, N)` or `(T, N)`."""
        constant, of_item, of_user = self.gates
        mean = self.mean[TARGET] + constant + of_item * self.item[TARGET][rows] + of_user * state[:, :1]
        variance = self.item_variance[TARGET][rows] + state[:, 1:2] + 1 / (self.precision[TARGET] * state[:, 2:])
        return mean, np.sqrt(variance)


def fitted_effects(ratings: tuple[Ratings, Ratings], turns: int, noise_prior: float) -> Any:
    """Yields `Effects` after each of `turns` turns over the items and users of two domains."""
    n_users, n_items = ratings[0].n_users, ratings[0].n_items
    count = np.stack([np.bincount(part.user, minlength=n_users) for part in ratings]).astype(np.float64)  # (2, U)
    met = np.stack([np.bincount(part.item, minlength=n_items) for part in ratings]) > 0  # (2, I)
    both = (count > 0).all(axis=0)
    if not both.any():
        raise ValueError("correlated effects need users whom both domains have. Received: none")
    mean = np.array([part.label.mean(dtype=np.float64) for part in ratings])
    variance = np.array([part.label.var(dtype=np.float64) for part in ratings])
    precision = 2 / np.maximum(variance, 1e-6)
    item_prior = variance / 4
    covariance = np.diag(variance / 4) + np.sqrt(variance.prod()) / 8 * (1 - np.eye(2))
    item = np.zeros((2, n_items))
    item_variance = np.repeat(item_prior[:, None], n_items, axis=1)
    user, noise = np.zeros((n_users, 2)), np.ones(n_users)
    for _ in range(turns):
        for side, part in enumerate(ratings):
            weight = precision[side] * noise[part.user]
            residual = part.label - mean[side] - user[part.user, side]
            item_variance[side] = 1 / (1 / item_prior[side] + np.bincount(part.item, weight, n_items))
            item[side] = item_variance[side] * np.bincount(part.item, weight * residual, n_items)
            known = met[side]
            # The items' own mean is no effect of theirs: it moves to the domain's.
            shift = item[side][known].mean()
            mean[side] += shift
            item[side] = np.where(known, item[side] - shift, 0)
            item_prior[side] = max(1e-6, (np.square(item[side]) + item_variance[side])[known].mean())
            item_variance[side][~known] = item_prior[side]
        first, second = np.zeros((2, 2, n_users))
        for side, part in enumerate(ratings):
            residual = part.label - mean[side] - item[side][part.item]
            first[side] = np.bincount(part.user, residual, n_users)
            second[side] = np.bincount(part.user, np.square(residual) + item_variance[side][part.item], n_users)
        user, spread = _user_effects(count, first, covariance, precision[:, None] * noise)
        covariance = (user[both, :, None] * user[both, None, :] + spread[both]).mean(axis=0) + 1e-9 * np.eye(2)
        noise = _user_noise(count, first, second, user, spread, precision, noise_prior)
        error = _squared_errors(count, first, second, user, spread)
        precision = count.sum(axis=1) / np.maximum((noise * error).sum(axis=1), 1e-9)
        yield Effects(mean.copy(), item.copy(), item_variance.copy(), covariance, precision)


def _user_effects(
    count: np.ndarray, first: np.ndarray, covariance: np.ndarray, weight: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Means `(U, 2)` and covariances `(U, 2, 2)` of users' effects, from the sums `(2, U)` of their residuals."""
    evidence = (weight * count).T  # (U, 2)
    # cov - cov (cov + 1/evidence)^-1 cov, written so that no evidence and no covariance are both allowed.
    spread = np.linalg.solve(
        np.eye(2) + covariance * evidence[:, None, :], np.broadcast_to(covariance, (len(evidence), 2, 2))
    )
    user = np.einsum("uij,uj->ui", spread, (weight * first).T)
    return user, spread


def _squared_errors(
    count: np.ndarray, first: np.ndarray, second: np.ndarray, user: np.ndarray, spread: np.ndarray
) -> np.ndarray:
    """Expected squared errors `(2, U)`, from the sums of residuals and of their squares."""
    own = np.square(user.T) + np.diagonal(spread, axis1=1, axis2=2).T
    return np.maximum(second - 2 * user.T * first + count * own, 0)


def _user_noise(
    count: np.ndarray,
    first: np.ndarray,
    second: np.ndarray,
    user: np.ndarray,
    spread: np.ndarray,
    precision: np.ndarray,
    prior: float,
) -> np.ndarray:
    """How much more precise than others each user rates, `(U,)`; 1 without ratings."""
    error = (precision[:, None] * _squared_errors(count, first, second, user, spread)).sum(axis=0)
    return (prior + count.sum(axis=0)) / (prior + error)
