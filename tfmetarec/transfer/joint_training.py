"""Joint training: one factorisation of both domains, in which a user has one vector for all that the user does.

Reference: [Singh and Gordon, 2008](https://doi.org/10.1145/1401890.1401969)
"""

from typing import Any

import numpy as np

from tfmetarec.models.baselines import BiasedMF, ImplicitALS
from tfmetarec.tasks.episode import Features, Support
from tfmetarec.transfer.cross_domain import CrossDomainMethod, Domains, Judged, inner_products


class JointTraining(CrossDomainMethod):
    """Factorises the ratings of both domains together; the shared users tie the two catalogues to each other.

    Ratings: `BiasedMF`, with one bias and one vector for a user in both domains. Implicit feedback: `ImplicitALS`. A
    cold user is folded in by least squares from the source, and his vector then meets the target's items.

    Args:
        factors: int, at least 1. Dimensions. Defaults to 16.
        regularization: float, greater than 0, or `None` for the default of the factorisation.
        iterations: int, at least 1. Defaults to 15.
        seed: int, at least 0. Defaults to 0.
    """

    name = "joint training"
    _arrays = ("items", "popularity", "mean", "penalty")

    def __init__(self, factors: int = 16, regularization: float | None = None, *, iterations: int = 15, seed: int = 0):
        self.factors, self.regularization, self.iterations, self.seed = factors, regularization, iterations, seed
        self._factorisation("explicit")  # Refuses settings out of range, in its own words.

    def get_config(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("factors", "regularization", "iterations", "seed")}

    def _factorisation(self, feedback: str) -> BiasedMF | ImplicitALS:
        return factorisation(feedback, self.factors, self.regularization, iterations=self.iterations, seed=self.seed)

    def _fit(self, domains: Domains, validation: Judged | None) -> None:
        fitted = self._factorisation(domains.feedback).fit(domains.joint_ratings)
        self.items = fitted.items
        self.mean = getattr(fitted, "mean", 0.0)
        self.penalty = getattr(fitted, "penalty", 0.0)
        counts = np.bincount(domains.target_ratings.item, minlength=domains.vocabulary.n_items)
        self.popularity = counts.astype(np.float32)
        self._model = fitted

    def _restore(self, folder: Any) -> None:
        super()._restore(folder)
        self._model = self._factorisation(self._fitted("load").specs.feedback)
        for name in ("items", "mean", "penalty", "popularity"):
            setattr(self._model, name, getattr(self, name))
        self._model.n_items = len(self.items)

    def _adapt(self, support: Support) -> np.ndarray:
        return self._model.adapt(support)

    def _score(self, state: np.ndarray, item: Features) -> np.ndarray:
        rows = np.asarray(item["item_id"])
        if self._fitted("score").specs.feedback == "explicit":
            constant = self.mean + self.items[rows, -1] + state[:, -1:]
            return constant + inner_products(state[:, :-1], self.items[:, :-1], rows)
        scores = inner_products(state, self.items, rows)
        return np.where(np.any(state, axis=1)[:, None], scores, self.popularity[rows])


def factorisation(
    feedback: str, factors: int, regularization: float | None = None, **options: Any
) -> BiasedMF | ImplicitALS:
    """The factorisation for a kind of feedback; a regularization of `None` is its own default."""
    kind = BiasedMF if feedback == "explicit" else ImplicitALS
    if regularization is not None:
        options["regularization"] = regularization
    return kind(factors, **options)
