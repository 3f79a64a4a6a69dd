"""Adaptive transfer: a learned gate per user that lets a helpful source in and shuts a harmful one out."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from scipy.optimize import minimize

from tfmetarec.data.errors import DataError
from tfmetarec.models.baselines import Ratings
from tfmetarec.tasks.episode import Features, Support
from tfmetarec.transfer.cross_domain import (
    CrossDomainMethod,
    Domains,
    Judged,
    load,
    user_losses,
    user_softmax_losses,
)

_PULL = 1e-3  # On the gate's weights: from a gate that is right already they would run off to infinity.


class AdaptedPair(NamedTuple):
    """`T` users adapted to.

    Attributes:
        transfer: state of the method that crosses.
        gate: `(T,)` in [0, 1]. How much of it is let in.
        centre: `(T,)` what is taken off the transferred scores before they are let in; 0 for ratings.
        scale: `(T,)` what they are divided by; 1 for ratings.
    """

    transfer: Any
    gate: np.ndarray
    centre: np.ndarray
    scale: np.ndarray


class AdaptiveTransfer(CrossDomainMethod):
    """Adds what a method transfers to what the target alone says, as far as a gate lets it in.

        score = alone + gate(user) * (transferred - alone)

    What the target alone says of somebody it has never seen is what an item is worth to anybody: its shrunk mean rating
    or, with implicit feedback, the logarithm of its popularity. The gate is a logistic function of how much the user
    did in the source, learned on validation users for these two domains. Rankings are brought to one scale first, each
    user's transferred scores to a mean of 0 and a deviation of 1, and both sides have a learned strength.

    What cannot prove itself stays out: unless the learned gate lowers the loss of validation users by more than
    `standard_errors` of the mean of their differences, it is shut, and the score is exactly what the target alone says.
    For a user without source interactions it is shut in any case. Half of the validation users choose the method's own
    settings and the other half the gate: on users that the method was tuned on, it would look better than it is.

    Args:
        transfer: `CrossDomainMethod`. It is fitted here.
        shrinkage: float, at least 0. Ratings of the mean that an item's own are shrunk with. Defaults to 3.
        standard_errors: float, at least 0. The proof that is asked of the gate. Defaults to 2.

    Example:
    >>> import tfmetarec as tmr
    >>> from tfmetarec.transfer.cross_domain import cross_domain
    >>> from tfmetarec.transfer.hierarchical import HierarchicalTransfer
    >>> shop = tmr.data.load("synthetic", n_users=40, n_items=20, interactions_per_user=9, feedback="explicit")
    >>> odd = pl.col("item_id") % 2 == 1
    >>> fitted = cross_domain(AdaptiveTransfer(HierarchicalTransfer()), shop.filter(odd), shop.filter(~odd))
    >>> fitted.is_open  # Who rates high rates high in both.
    True
    """

    name = "adaptive transfer"
    _arrays = ("alone", "weights", "open", "candidates")

    def __init__(
        self, transfer: CrossDomainMethod | None = None, *, shrinkage: float = 3.0, standard_errors: float = 2.0
    ):
        for name, value in (("shrinkage", shrinkage), ("standard_errors", standard_errors)):
            if not value >= 0:
                raise ValueError(f"`{name}` must be at least 0. Received: {name}={value}")
        self.transfer, self.shrinkage, self.standard_errors = transfer, shrinkage, standard_errors
        #: `(4,)` the gate's constant and slope, and the logarithms of both sides' strengths.
        self.weights = np.array([0.0, 0.0, 0.0, 0.0])
        self.open = False

    @property
    def is_open(self) -> bool:
        """Whether anything of the source is let in."""
        return bool(self.open)

    def get_config(self) -> dict[str, Any]:
        return {"shrinkage": self.shrinkage, "standard_errors": self.standard_errors}

    def fit(self, domains: Domains, validation: Any = None) -> "AdaptiveTransfer":
        """Fits the method, then the gate on validation users; without them the gate stays as it is, shut at first."""
        if self.transfer is None:
            raise ValueError("`transfer` must be given to fit. Received: transfer=None")
        for_gate = None
        if validation is not None:
            users = validation.table["user_id"].unique().sort()
            if len(users) < 4:
                raise DataError(f"`validation` must hold at least 4 users, of whom half choose. Received: {len(users)}")
            half = pl.col("user_id").is_in(users.gather_every(2).implode())
            validation, for_gate = validation.filter(half), validation.filter(~half)
        self.transfer.fit(domains, validation)
        return super().fit(domains, for_gate)

    def _fit(self, domains: Domains, validation: Judged | None) -> None:
        self.alone = target_alone(domains.target_ratings, domains.feedback, self.shrinkage)
        self.candidates = domains.target_rows
        if validation is not None:
            self._learn_gate(validation)

    def _learn_gate(self, validation: Judged) -> None:
        self.open, self.weights = True, np.zeros(4)
        state, ranking = self._adapt(validation.support), self._ranks
        rows = self.candidates if ranking else validation.item
        transferred = self._transferred(state, rows)
        alone = np.broadcast_to(self.alone[rows], transferred.shape)
        activity, real = _activity(validation.support), validation.real
        place = np.searchsorted(rows, np.where(real, validation.item, rows[0])) if ranking else rows

        def losses(weights: np.ndarray, shut: bool = False) -> np.ndarray:
            gate = np.zeros(len(activity)) if shut else _gate(weights, activity)
            scores = _mixed(alone, transferred, gate, weights, ranking)
            return user_softmax_losses(scores, place, real) if ranking else user_losses(scores, validation.label, real)

        # The strength of the target alone is part of the score without transfer too, so that the two compare fairly.
        shut = _minimum(lambda weights: losses(weights, shut=True).mean(), np.zeros(4))
        found = _minimum(lambda weights: losses(weights).mean(), shut)
        gain = losses(shut, shut=True) - losses(found)
        error = gain.std(ddof=1) / np.sqrt(len(gain)) if len(gain) > 1 else np.inf
        self.open = bool(gain.mean() > self.standard_errors * error)
        if self.open:
            self.weights = found

    @property
    def _ranks(self) -> bool:
        return self._fitted("score").specs.feedback == "implicit"

    @property
    def _transfer(self) -> CrossDomainMethod:
        assert self.transfer is not None  # `fit` and `load` have seen to it.
        return self.transfer

    def _adapt(self, support: Support) -> AdaptedPair:
        activity = _activity(support)
        gate = np.where(activity > 0, _gate(self.weights, activity), 0) if self.open else np.zeros(len(activity))
        state = self._transfer.adapt(support)
        centre, scale = np.zeros(len(gate)), np.ones(len(gate))
        if self._ranks and self.open:
            # Over the whole target, so that an item's score does not depend on what else is scored.
            known = {name: value[self.candidates] for name, value in self._fitted("adapt").catalogue.items()}
            scores = np.asarray(self._transfer.score(state, known), np.float64)
            centre, scale = scores.mean(axis=1), np.maximum(scores.std(axis=1), 1e-9)
        return AdaptedPair(state, gate, centre, scale)

    def _score(self, state: AdaptedPair, item: Features) -> np.ndarray:
        transferred = self._transferred(state, np.asarray(item["item_id"]), item)
        alone = np.broadcast_to(self.alone[np.asarray(item["item_id"])], transferred.shape)
        return _mixed(alone, transferred, state.gate, self.weights, self._ranks)

    def _transferred(self, state: AdaptedPair, rows: np.ndarray, item: Features | None = None) -> np.ndarray:
        if item is None:
            item = {name: value[rows] for name, value in self._fitted("score").catalogue.items()}
        scores = np.asarray(self._transfer.score(state.transfer, item), np.float64)
        scores = np.where(np.isfinite(scores), scores, state.centre[:, None])  # Of no item, which nobody may be shown.
        return (scores - state.centre[:, None]) / state.scale[:, None]

    def _save(self, folder: Path) -> None:
        super()._save(folder)
        self._transfer.save(folder / "transfer")

    def _restore(self, folder: Path) -> None:
        super()._restore(folder)
        self.transfer = load(folder / "transfer")


def target_alone(ratings: Ratings, feedback: str, shrinkage: float) -> np.ndarray:
    """`(I,)` what each item is worth to anybody: its shrunk mean rating, or the logarithm of its popularity."""
    count = np.bincount(ratings.item, minlength=ratings.n_items)
    if feedback == "implicit":
        return np.log(count + 0.5)  # Half a user for an item nobody met.
    mean = ratings.label.mean(dtype=np.float64)
    total = np.bincount(ratings.item, ratings.label - mean, minlength=ratings.n_items)
    return mean + total / np.maximum(count + shrinkage, 1e-9)


def _activity(support: Support) -> np.ndarray:
    return np.log1p(np.asarray(support.length, np.float64))


def _gate(weights: np.ndarray, activity: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-np.clip(weights[0] + weights[1] * activity, -30, 30)))


def _mixed(
    alone: np.ndarray, transferred: np.ndarray, gate: np.ndarray, weights: np.ndarray, ranking: bool
) -> np.ndarray:
    """`(T, N)` scores of both sides under each user's gate `(T,)`."""
    strength = np.exp(weights[2:]) if ranking else np.ones(2)
    alone, gate = strength[0] * alone, gate[:, None]
    if ranking:
        return np.where(gate > 0, alone + gate * strength[1] * transferred, alone)
    return np.where(gate > 0, alone + gate * (transferred - alone), alone)


def _minimum(loss: Any, start: np.ndarray) -> np.ndarray:
    """Where the loss, pulled a little towards the start, is least."""
    return minimize(lambda w: loss(w) + _PULL * float(np.square(w - start).sum()), start, method="L-BFGS-B").x
