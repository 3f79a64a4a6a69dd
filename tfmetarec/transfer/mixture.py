"""Several recommenders as one, with weights that know how many interactions a user has shown."""

from collections.abc import Mapping
from typing import Any, Self

import numpy as np
import scipy.optimize
import scipy.special

from tfmetarec.data.vocabulary import Vocabulary
from tfmetarec.tasks.episode import Features, Support

_BATCH = 128  # Users at once: scores over the whole catalogue are the largest array here.
_DEPTH = 100  # Items at the top of each member's list that compete for places when weights are fitted.
_SOFTNESS = 0.2  # Of a comparison of two items, in standard deviations of a score.
_STEPS = 50  # Of the optimiser: few numbers are fitted, and each step ranks everything again.


class Mixture:
    """A weighted sum of what several recommenders say, whose weights depend on the length of the support.

    What is best without any history, after one interaction, and after twenty, are different things: here the gate

        w_m(K) = exp(a_m + b_m log(1 + K)) / (the sum of the same over all members)

    hands over from one to the next. It is fitted on validation users, by two numbers for each member. Ratings are a
    weighted mean that minimises the squared error. Scores that only rank are first brought to one scale, less their
    mean over the catalogue and divided by their standard deviation, user by user; then the weights maximise the nDCG
    of what users took next, among the items that any member has at the top of its list. To have a slope, the rank of
    an item is counted softly: the sum, over all others, of the chance that they stand before it. Cross-entropy over
    the catalogue would ask who is right about items far below any list, and silence members that are best at its top.
    A recommender that tells no items apart for a user, as those do that know nothing without a support, says nothing.

    Before `fit`, all weights are equal.

    Args:
        members: at least two recommenders, learners or baselines, by name.
        vocabulary: that of all of them. Defaults to that of the first member that has one.
        penalty: float, at least 0. Pulls the gate's numbers to equal weights; how many users such a pull counts as
            much as. Defaults to 1.

    Raises:
        ValueError: if there are fewer than two members, no vocabulary, or the penalty is negative.

    Example:
    >>> import tfmetarec as tmr
    >>> data = tmr.data.load("synthetic", n_users=64, seed=0)
    >>> vocabulary = tmr.data.Vocabulary.fit(data)
    >>> mixture = Mixture(tmr.evaluation.fitted_floors(data, vocabulary), vocabulary)
    >>> list(mixture.weights(5))
    ['popularity', 'item-KNN', 'EASE', 'iALS fold-in']

    Reference: [Jordan and Jacobs, 1994](https://doi.org/10.1162/neco.1994.6.2.181), with one gate and trained experts;
    the soft ranks are those of [Qin et al., 2010](https://doi.org/10.1007/s10791-009-9124-x)
    """

    def __init__(self, members: Mapping[str, Any], vocabulary: Vocabulary | None = None, *, penalty: float = 1.0):
        if len(members) < 2:
            raise ValueError(f"`members` must be at least 2 recommenders. Received: {list(members)}")
        if not penalty >= 0:
            raise ValueError(f"`penalty` must be at least 0. Received: penalty={penalty}")
        owned = (getattr(member, "vocabulary", None) for member in members.values())
        found = vocabulary or next((own for own in owned if own is not None), None)
        if found is None:
            raise ValueError("`vocabulary` must be given: none of the members has one of its own.")
        self.members, self.vocabulary, self.penalty = dict(members), found, penalty
        self.is_ranking = found.specs.feedback == "implicit"
        self.gate = np.zeros((2, len(members)))

    def weights(self, length: Any) -> dict[str, np.ndarray]:
        """The weights of the members at a length of the support, or at several.

        Args:
            length: int or ints, at least 0.
        """
        found = _weights(self.gate, np.asarray(length))
        return {name: found[..., place] for place, name in enumerate(self.members)}

    def fit(self, support: Support, item: Features, labels: Any = None) -> Self:
        """Fits the gate on users that no member was trained on.

        Args:
            support: of `T` users, of several lengths if the mixture is to serve several.
            item: what they met next, `(T, Q)` each: rated, or (implicit feedback) taken.
            labels: the ratings `(T, Q)`; `None` with implicit feedback.

        Raises:
            ValueError: if there are labels where there is nothing to rate, or none where there is; if there is no user.
        """
        if (labels is None) != self.is_ranking:
            what = "without `labels`" if self.is_ranking else "with `labels`, the ratings"
            raise ValueError(f"`fit` is called {what} for {self.vocabulary.specs.feedback} feedback.")
        length = np.asarray(support.length)
        if not len(length):
            raise ValueError("`support` must hold at least one user. Received: none")
        if self.is_ranking:
            said, real = self._contested(support, np.asarray(item["item_id"]))
            n_query = np.shape(item["item_id"])[1]
        else:
            said = self._ratings(support, item)
            labels = np.asarray(labels, np.float64)
        user = np.log1p(length)[:, None]

        def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
            gate = flat.reshape(2, -1)
            weights = _weights(gate, length)
            value, slope = 0.0, np.empty_like(weights)
            for part in _parts(len(length)):
                mixed = np.einsum("tnm,tm->tn", said[part], weights[part])
                if self.is_ranking:
                    gained, of_scores = soft_ndcg(mixed, n_query, real[part])
                    value -= gained.sum() / len(length)
                    of_scores = -of_scores / len(length)
                else:
                    error = mixed - labels[part]
                    value += (error**2).sum() / labels.size
                    of_scores = 2 * error / labels.size
                slope[part] = np.einsum("tn,tnm->tm", of_scores, said[part])
            slope = weights * (slope - (weights * slope).sum(1, keepdims=True))
            gradient = np.stack([slope.sum(0), (slope * user).sum(0)])
            pull = self.penalty / len(length)
            return value + pull * (gate**2).sum(), (gradient + 2 * pull * gate).ravel()

        start = np.zeros((2, len(self.members)))
        steps = {"maxiter": _STEPS} if self.is_ranking else {}
        found = scipy.optimize.minimize(loss, start.ravel(), jac=True, method="L-BFGS-B", options=steps)
        self.gate = found.x.reshape(2, -1)
        return self

    def adapt(self, support: Support) -> tuple[np.ndarray, list[Any]]:
        """What every member makes of the support, and its length."""
        return np.asarray(support.length), [member.adapt(support) for member in self.members.values()]

    def score(self, state: tuple[np.ndarray, list[Any]], item: Features) -> np.ndarray:
        """Scores `(T, N)` of the items `(N,)` or `(T, N)`."""
        length, states = state
        weights = _weights(self.gate, length)
        total: Any = 0.0
        for place, (member, own) in enumerate(zip(self.members.values(), states, strict=True)):
            scores = np.array(member.score(own, item), np.float32)
            if self.is_ranking:
                # The scale is that of the whole catalogue, whatever is asked.
                whole = scores if item is self.vocabulary.catalogue else member.score(own, self.vocabulary.catalogue)
                scores = _standard(scores, np.array(whole, np.float32))
            total = total + weights[:, place, None].astype(np.float32) * scores
        return total

    def _ratings(self, support: Support, item: Features) -> np.ndarray:
        """Predictions `(T, Q, M)`."""
        parts = []
        for part in _parts(len(support.length)):
            own, asked = Support(*(_slice(value, part) for value in support)), _slice(item, part)
            said = [member.score(member.adapt(own), asked) for member in self.members.values()]
            parts.append(np.stack([np.asarray(scores, np.float64) for scores in said], -1))
        return np.concatenate(parts)

    def _contested(self, support: Support, taken: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Scores `(T, Q + N, M)` of what was taken and of the members' lists, and which of these are real `(T, Q + N)`.

        An item comes once; the support is on no list, as it is not recommended.
        """
        depth = min(_DEPTH, self.vocabulary.n_items - 1)
        parts, kept = [], []
        for part in _parts(len(taken)):
            own = Support(*(_slice(value, part) for value in support))
            shown = np.asarray(own.item["item_id"])
            shown = np.where(np.arange(shown.shape[1]) < np.asarray(own.length)[:, None], shown, 0)
            told, rows = [], [taken[part]]
            for member in self.members.values():
                whole = np.array(member.score(member.adapt(own), self.vocabulary.catalogue), np.float32)
                told.append(_standard(whole, whole))
                open_ = told[-1].copy()
                np.put_along_axis(open_, shown, -np.inf, axis=1)
                open_[:, 0] = -np.inf
                top = np.argpartition(-open_, depth - 1, axis=1)[:, :depth]
                rows.append(np.where(np.isfinite(np.take_along_axis(open_, top, axis=1)), top, 0))
            row = np.concatenate(rows, 1)
            kept.append((row > 0) & _first_of_its_kind(row))
            said = np.stack([np.take_along_axis(scores, row, axis=1) for scores in told], -1)
            parts.append(np.where(kept[-1][..., None], said, 0))  # Baselines give row 0 minus infinity.
        return np.concatenate(parts), np.concatenate(kept)


def soft_ndcg(scores: np.ndarray, n_relevant: int, real: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """nDCG `(T,)` by soft ranks of the first `n_relevant` of the items, and its slope by the scores `(T, N)`.

    The rank of item i is 1 + sum over the others of 1 / (1 + exp((s_i - s_j) / softness)).

    Args:
        scores: `(T, N)`.
        n_relevant: int, at least 1. The first items of each row are relevant, the others are not.
        real: `(T, N)` bool. Items that are there; one that is not has no rank.
    """
    own, there = scores[:, :n_relevant], real[:, :n_relevant]
    before = scipy.special.expit((scores[:, None] - own[..., None]) / _SOFTNESS) * real[:, None]  # (T, Q, N)
    rank = before.sum(2) + 0.5  # An item stands before itself by half.
    gain = there / np.log2(1 + rank)
    ideal = np.cumsum(1 / np.log2(np.arange(2, n_relevant + 2)))
    ideal = ideal[np.maximum(there.sum(1), 1) - 1]
    by_rank = -(gain**2) / ((1 + rank) * np.log(2)) / ideal[:, None]
    by_difference = by_rank[..., None] * before * (1 - before) / _SOFTNESS
    slope = by_difference.sum(1)
    slope[:, :n_relevant] -= by_difference.sum(2)
    return gain.sum(1) / ideal, slope


def _weights(gate: np.ndarray, length: np.ndarray) -> np.ndarray:
    """`(..., M)`, which add up to 1."""
    return scipy.special.softmax(gate[0] + gate[1] * np.log1p(length)[..., None], axis=-1)


def _first_of_its_kind(rows: np.ndarray) -> np.ndarray:
    """Where `(T, N)` rows have a value for the first time."""
    order = np.argsort(rows, axis=1, kind="stable")
    ordered = np.take_along_axis(rows, order, axis=1)
    first = np.ones(rows.shape, bool)
    first[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    found = np.empty_like(first)
    np.put_along_axis(found, order, first, axis=1)
    return found


def _standard(scores: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Scores less the mean over the catalogue, divided by the standard deviation; 0 where that is 0."""
    known = whole[:, 1:]  # Row 0 is no item.
    spread = known.std(1, keepdims=True)
    told = spread > 1e-6 * np.abs(known).max(1, keepdims=True)
    return np.where(told, (scores - known.mean(1, keepdims=True)) / np.where(told, spread, 1), 0)


def _parts(n_users: int) -> list[slice]:
    return [slice(first, first + _BATCH) for first in range(0, n_users, _BATCH)]


def _slice(value: Any, part: slice) -> Any:
    return {name: inner[part] for name, inner in value.items()} if isinstance(value, dict) else value[part]
