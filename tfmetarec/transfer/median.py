"""Predicted ratings that keep their order and miss by less: a score becomes the median of the ratings it stands for."""

from typing import Any, Self

import numpy as np
import scipy.special

from tfmetarec.tasks.episode import Features, Support


class MedianRatings:
    """Turns a recommender's scores, which are means, into medians, which is what absolute error asks for.

    Ratings are whole numbers, and the median of those behind a score of 3.6 may well be 4. With a threshold between
    each two ratings, a score becomes

        low + sum over thresholds of step * sigmoid((score - threshold) / width) + slope * (score - middle),

    a staircase with worn steps: it rises everywhere, so that the order of items, and with it every ranking metric,
    stays as it was. Squared error is the worse for it.

    Args:
        recommender: anything with `adapt` and `score`, of explicit feedback.
        ratings: the values that ratings have, rising, e.g. `(1, 2, 3, 4, 5)`.
        width: float, greater than 0, in rating points. Small is nearer to the median itself. Defaults to 0.03.
        slope: float, greater than 0. What is left of the score within a step. Defaults to 0.01.

    Example:
    >>> medians = MedianRatings(None, (1, 2, 3)).fit_scores([1.2, 1.4, 2.2, 2.4, 2.9], [1, 1, 2, 3, 3])
    >>> medians.of(np.array([1.3, 2.1, 2.8])).round(1).tolist()
    [1.0, 2.0, 3.0]
    """

    def __init__(self, recommender: Any, ratings: tuple[float, ...], *, width: float = 0.03, slope: float = 0.01):
        if len(ratings) < 2 or not (np.diff(ratings) > 0).all():
            raise ValueError(f"`ratings` must be two or more, rising. Received: ratings={ratings}")
        for name, value in (("width", width), ("slope", slope)):
            if not value > 0:
                raise ValueError(f"`{name}` must be greater than 0. Received: {name}={value}")
        self.recommender, self.ratings, self.width, self.slope = recommender, np.asarray(ratings, float), width, slope
        self.thresholds = (self.ratings[1:] + self.ratings[:-1]) / 2

    @property
    def vocabulary(self) -> Any:
        """Of the recommender, if it has one."""
        return getattr(self.recommender, "vocabulary", None)

    def fit(self, support: Support, item: Features, labels: Any) -> Self:
        """Finds the thresholds on users held out for that: where a rating above becomes likelier than not.

        Args:
            support: of `T` users.
            item: features of the items `(T, Q, ...)` that they rated besides.
            labels: `(T, Q)`, their ratings.
        """
        return self.fit_scores(self.recommender.score(self.recommender.adapt(support), item), labels)

    def fit_scores(self, scores: Any, labels: Any) -> Self:
        """The same from scores and their labels, of one shape."""
        scores, labels = np.ravel(np.asarray(scores, float)), np.ravel(np.asarray(labels, float))
        if scores.shape != labels.shape or not len(scores):
            raise ValueError(
                f"`scores` and `labels` must have one shape, not empty. Received: {scores.shape} and {labels.shape}"
            )
        order = np.argsort(scores, kind="stable")
        scores, labels = scores[order], labels[order]
        cuts = np.concatenate([[scores[0] - 1], (scores[1:] + scores[:-1]) / 2, [scores[-1] + 1]])
        found = []
        for rating in self.ratings[1:]:
            # A cut puts what is below it under `rating`: it costs one for each label on the wrong side.
            above = np.concatenate([[0], np.cumsum(labels >= rating)])
            below = np.concatenate([[0], np.cumsum(labels < rating)])
            found.append(cuts[int(np.argmin(above + below[-1] - below))])
        self.thresholds = np.maximum.accumulate(found)
        return self

    def of(self, scores: Any) -> np.ndarray:
        """The ratings `(...)` that scores `(...)` stand for."""
        scores = np.asarray(scores, float)
        steps = np.diff(self.ratings)
        low = self.ratings[0]
        stairs = scipy.special.expit((scores[..., None] - self.thresholds) / self.width) @ steps
        return low + stairs + self.slope * (scores - (self.ratings[-1] + low) / 2)

    def adapt(self, support: Support) -> Any:
        """As the recommender does."""
        return self.recommender.adapt(support)

    def score(self, state: Any, item: Features) -> np.ndarray:
        """Ratings `(T, N)`."""
        return self.of(self.recommender.score(state, item))
