"""Several recommenders as one, with weights that know how many interactions a user has shown."""

from collections.abc import Mapping
from typing import Any, Self

import numpy as np
import scipy.optimize
import scipy.special

from tfmetarec.data.vocabulary import Vocabulary
from tfmetarec.tasks.episode import Features, Support

_BATCH = 128  # Users at once: scores over the whole catalogue are the largest array here.
_NEGATIVES = 1000  # Items that stand for the catalogue when weights are fitted.


class Mixture:
    """A weighted sum of what several recommenders say, whose weights depend on the length of the support.

    What is best without any history, after one interaction, and after twenty, are different things: here the gate

        w_m(K) = exp(a_m + b_m log(1 + K))

    hands over from one to the next. It is fitted on validation users, by two numbers for each member. Ratings are a
    weighted mean (the weights add up to 1) that minimises the squared error. Scores that only rank are first brought
    to one scale, less their mean over the catalogue and divided by their standard deviation, user by user; then the
    weights minimise the cross-entropy of what users took among what they might have taken. A recommender that tells
    no items apart for a user, as those do that know nothing without a support, says nothing.

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

    Reference: [Jordan and Jacobs, 1994](https://doi.org/10.1162/neco.1994.6.2.181), with one gate and trained experts
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
        found = self._weights(self.gate, np.asarray(length))
        return {name: found[..., place] for place, name in enumerate(self.members)}

    def fit(self, support: Support, item: Features, labels: Any = None, *, seed: int = 0) -> Self:
        """Fits the gate on users that no member was trained on.

        Args:
            support: of `T` users, of several lengths if the mixture is to serve several.
            item: what they met next, `(T, Q)` each: rated, or (implicit feedback) taken.
            labels: the ratings `(T, Q)`; `None` with implicit feedback.
            seed: int, of the items that stand for the catalogue.

        Raises:
            ValueError: if there are labels where there is nothing to rate, or none where there is.
        """
        if (labels is None) != self.is_ranking:
            what = "without `labels`" if self.is_ranking else "with `labels`, the ratings"
            raise ValueError(f"`fit` is called {what} for {self.vocabulary.specs.feedback} feedback.")
        length = np.asarray(support.length)
        if self.is_ranking:
            said = self._sampled(support, np.asarray(item["item_id"]), seed)
            n_query = np.shape(item["item_id"])[1]
        else:
            said = self._ratings(support, item)
            labels = np.asarray(labels, np.float64)
        user = np.log1p(length)[:, None]

        def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
            gate = flat.reshape(2, -1)
            weights = self._weights(gate, length)
            mixed = np.einsum("tnm,tm->tn", said, weights)
            if self.is_ranking:
                logarithm = scipy.special.log_softmax(mixed, axis=1)
                value = -logarithm[:, :n_query].mean()
                slope = np.exp(logarithm)
                slope[:, :n_query] -= 1 / n_query
                slope = np.einsum("tn,tnm->tm", slope, said) * weights / len(length)
            else:
                error = mixed - labels
                value = (error**2).mean()
                slope = 2 * np.einsum("tn,tnm->tm", error, said) / error.size
                slope = weights * (slope - (weights * slope).sum(1, keepdims=True))
            gradient = np.stack([slope.sum(0), (slope * user).sum(0)])
            pull = self.penalty / len(length)
            return value + pull * (gate**2).sum(), (gradient + 2 * pull * gate).ravel()

        start = np.zeros((2, len(self.members)))
        found = scipy.optimize.minimize(loss, start.ravel(), jac=True, method="L-BFGS-B")
        self.gate = found.x.reshape(2, -1)
        return self

    def adapt(self, support: Support) -> tuple[np.ndarray, list[Any]]:
        """What every member makes of the support, and its length."""
        return np.asarray(support.length), [member.adapt(support) for member in self.members.values()]

    def score(self, state: tuple[np.ndarray, list[Any]], item: Features) -> np.ndarray:
        """Scores `(T, N)` of the items `(N,)` or `(T, N)`."""
        length, states = state
        weights = self._weights(self.gate, length)
        total: Any = 0.0
        for place, (member, own) in enumerate(zip(self.members.values(), states, strict=True)):
            scores = np.array(member.score(own, item), np.float32)
            if self.is_ranking:
                # The scale is that of the whole catalogue, whatever is asked.
                whole = scores if item is self.vocabulary.catalogue else member.score(own, self.vocabulary.catalogue)
                scores = _standard(scores, np.array(whole, np.float32))
            total = total + weights[:, place, None].astype(np.float32) * scores
        return total

    def _weights(self, gate: np.ndarray, length: np.ndarray) -> np.ndarray:
        """`(..., M)`."""
        exponents = gate[0] + gate[1] * np.log1p(length)[..., None]
        if self.is_ranking:
            return np.exp(exponents)
        shares = np.exp(exponents - exponents.max(-1, keepdims=True))
        return shares / shares.sum(-1, keepdims=True)

    def _ratings(self, support: Support, item: Features) -> np.ndarray:
        """Predictions `(T, Q, M)`."""
        parts = []
        for part in _parts(len(support.length)):
            own, asked = Support(*(_slice(value, part) for value in support)), _slice(item, part)
            said = [member.score(member.adapt(own), asked) for member in self.members.values()]
            parts.append(np.stack([np.asarray(scores, np.float64) for scores in said], -1))
        return np.concatenate(parts)

    def _sampled(self, support: Support, taken: np.ndarray, seed: int) -> np.ndarray:
        """Scores `(T, Q + N, M)` of what was taken, and of items drawn from the catalogue."""
        rng = np.random.default_rng(seed)
        n_items = self.vocabulary.n_items
        parts = []
        for part in _parts(len(taken)):
            own = Support(*(_slice(value, part) for value in support))
            drawn = rng.integers(1, n_items, (len(taken[part]), min(_NEGATIVES, n_items - 1)))
            rows = np.concatenate([taken[part], drawn], 1)
            said = []
            for member in self.members.values():
                whole = np.array(member.score(member.adapt(own), self.vocabulary.catalogue), np.float32)
                said.append(np.take_along_axis(_standard(whole, whole), rows, axis=1))
            parts.append(np.stack(said, -1))
        return np.concatenate(parts)


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
