"""Matrix factorisation that averages over what its vectors may be; a new user is the posterior of the ratings shown."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import scipy.stats
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from tfmetarec.models.baselines.base import Baseline, Ratings, at_least
from tfmetarec.models.baselines.biased_mf import BiasedMF
from tfmetarec.models.baselines.blocks import blocks, groups

_STARTING_TURNS = 5  # Of the factorisation from which the chain starts.
_STARTING_PRECISION = 2.0  # Of the noise, before it is drawn, in ratings that deviate by about 1.
_MOST_PRECISION = 1e4  # A hundredth of the ratings' deviation as noise: with less, float32 could not factorise.
_PRIOR_COUNT = 2.0  # As if the hyperpriors had seen so many vectors at 0.


class Gaussian(NamedTuple):
    """A normal distribution of vectors: its mean `(D,)` and its precision `(D, D)`."""

    mean: np.ndarray
    precision: np.ndarray


class Packed(NamedTuple):
    """Ratings of owners who have about as many: `T` rows of owners, and of each the others' rows and the ratings."""

    rows: np.ndarray
    others: np.ndarray
    target: np.ndarray
    real: np.ndarray


class Draw(NamedTuple):
    """What a new user is folded into: one state of the chain, in the units of the ratings."""

    items: np.ndarray
    users: Gaussian
    noise_precision: float


class BayesianMF(Baseline):
    """Predicts ratings by Bayesian matrix factorisation: a mean over factorisations drawn from their posterior.

    The model is rating = mean + user vector · item vector + noise. Vectors of users come from one normal distribution
    and those of items from another; both distributions, with all their covariances, and the precision of the noise are
    unknown too and drawn along by Gibbs sampling. So what a user is like before the first rating, and how far each
    direction of taste may be trusted after a few, is learned from all users: the ridge penalty of a fold-in that has
    one number for it becomes a learned matrix. A new user's vector is its posterior mean in each draw,

        (P + a V' V)^-1 (P m + a V' (ratings - mean))

    with the draw's prior (m, P), noise precision a and item vectors V `(K, D)`, for all tasks in one batched solve; the
    prediction is the mean over draws. `BiasedMF` has one vector for each item and one penalty for all directions.

    Vectors have two dimensions more than `factors`, in which item and user biases find room; the chain starts from a
    `BiasedMF` of a few turns. An item without ratings has the items' mean vector. Ratings may have any scale: the chain
    sees them divided by a power of two that makes their standard deviation about 1, as the hyperpriors suppose.

    Args:
        factors: int, at least 1. Defaults to 32.
        draws: int, at least 1. Factorisations that are kept. Memory, and the time of adapting and scoring, grow with
            it. Defaults to 40.
        burn_in: int, at least 0. Turns over items and users before the first is kept. Defaults to 20.
        thinning: int, at least 1. Turns from one that is kept to the next: neighbours are alike. Defaults to 2.
        seed: int, at least 0. Of where the chain starts and of every draw. Defaults to 0.

    Example:
    >>> import tfmetarec as tmr
    >>> data = tmr.data.load("synthetic", n_users=64, feedback="explicit", seed=0)
    >>> vocabulary = tmr.data.Vocabulary.fit(data)
    >>> baseline = BayesianMF(4, draws=5).fit(tmr.evaluation.ratings_of(data, vocabulary))
    >>> baseline.items.shape == (vocabulary.n_items, 5 * (4 + 2))
    True

    Reference: [Salakhutdinov and Mnih, 2008](https://doi.org/10.1145/1390156.1390267), section 3, with the precision of
    the noise drawn from its own posterior; [Rendle et al., 2019](https://arxiv.org/abs/1905.01395) for how strong a
    baseline it is
    """

    name = "Bayesian MF"
    feedback = "explicit"

    def __init__(self, factors: int = 32, *, draws: int = 40, burn_in: int = 20, thinning: int = 2, seed: int = 0):
        self.factors = at_least("factors", factors, 1)
        self.draws = at_least("draws", draws, 1)
        self.burn_in = at_least("burn_in", burn_in, 0)
        self.thinning = at_least("thinning", thinning, 1)
        self.seed = at_least("seed", seed, 0)

    def _fit(self, ratings: Ratings) -> None:
        # Thousands of tiny systems: where cores are shared, BLAS threads cost more than they bring.
        with threadpool_limits(1, "blas"):
            self._draw(ratings)

    def _draw(self, ratings: Ratings) -> None:
        rng, width = np.random.default_rng(self.seed), self.factors + 2
        scale = power_of_two(ratings.label)
        start = BiasedMF(self.factors, iterations=_STARTING_TURNS, seed=self.seed)
        start.fit(ratings._replace(label=ratings.label / scale))
        self.mean = start.mean * scale
        target = (ratings.label / scale - start.mean).astype(np.float32)
        # The columns are vector, bias, and a one that meets the other side's bias.
        items = np.c_[start.items, np.ones(ratings.n_items)].astype(np.float32)
        users = np.zeros((ratings.n_users, width), np.float32)
        of_users = Gaussian(np.eye(width)[-2], np.diag([3.0] * self.factors + [100.0, 3.0]))
        precision = _STARTING_PRECISION
        of_each_user = packed(ratings.user, ratings.item, target, width)
        of_each_item = packed(ratings.item, ratings.user, target, width)
        known_users, known_items = np.unique(ratings.user), np.unique(ratings.item)
        unknown = np.setdiff1d(np.arange(ratings.n_items), known_items)
        self.items = np.empty((ratings.n_items, self.draws * width), np.float32)
        self._kept: list[Draw] = []
        draw_vectors(rng, users, of_each_user, items, of_users, precision)
        for turn in range(self.burn_in + self.draws * self.thinning):
            of_items = draw_prior(rng, items[known_items])
            draw_vectors(rng, items, of_each_item, users, of_items, precision)
            of_users = draw_prior(rng, users[known_users])
            draw_vectors(rng, users, of_each_user, items, of_users, precision)
            missed = target - inner_products(users, items, ratings)
            squares = float(np.square(missed, dtype=np.float64).sum())
            precision = min(rng.gamma(1 + len(target) / 2, 1 / (1 + squares / 2)), _MOST_PRECISION)
            if turn >= self.burn_in and (turn - self.burn_in + 1) % self.thinning == 0:
                place = len(self._kept) * width
                kept = self.items[:, place : place + width]  # A view: nothing is held twice.
                kept[:] = items
                kept[unknown] = of_items.mean
                kept *= scale
                self._kept.append(Draw(kept, of_users, precision / scale**2))

    def _adapt(self, item: np.ndarray, label: np.ndarray, real: np.ndarray) -> np.ndarray:
        width = self.factors + 2
        state = np.zeros((len(item), len(self._kept) * width), np.float32)
        with threadpool_limits(1, "blas"):
            for block in blocks(len(item), width * max(item.shape[1], width)):
                target = np.where(real[block], label[block] - self.mean, 0).astype(np.float32)
                for place, draw in enumerate(self._kept):
                    shown = draw.items[item[block]] * real[block][..., None]
                    precision, right = posterior(shown, target, draw.users, draw.noise_precision)
                    mean = np.linalg.solve(precision, right[..., None])[..., 0]
                    state[block, place * width : (place + 1) * width] = mean
        return state

    def _catalogue(self, state: np.ndarray) -> np.ndarray:
        return (self.mean + state @ self.items.T / len(self._kept)).astype(np.float32)


def power_of_two(ratings: np.ndarray) -> float:
    """The one next to the standard deviation: dividing by it rounds nothing. 1 where all ratings are the same."""
    if ratings.min() == ratings.max():
        return 1.0
    return float(2 ** np.round(np.log2(ratings.std(dtype=np.float64))))


def packed(owner: np.ndarray, other: np.ndarray, target: np.ndarray, width: int) -> list[Packed]:
    """The ratings `target` `(n,)` by owner, in blocks for batched solves of `width` dimensions."""
    return [
        Packed(rows, other[members], np.where(real, target[members], 0), real)
        for rows, members, real in groups(owner, width)
    ]


def inner_products(users: np.ndarray, items: np.ndarray, ratings: Ratings) -> np.ndarray:
    """What vectors say of each rating, `(n,)`."""
    said = np.empty(len(ratings.user), np.float32)
    for block in blocks(len(said), users.shape[1]):
        said[block] = np.einsum("nd,nd->n", users[ratings.user[block]], items[ratings.item[block]])
    return said


def draw_vectors(
    rng: np.random.Generator,
    vectors: np.ndarray,
    ratings: Iterable[Packed],
    others: np.ndarray,
    prior: Gaussian,
    noise_precision: float,
) -> None:
    """Draws the vectors of one side anew, in place, given those of the other side."""
    for block in ratings:
        shown = others[block.others] * block.real[..., None]
        precision, right = posterior(shown, block.target, prior, noise_precision)
        # With precision = F F', F'^-1 (F^-1 right + noise) has the mean and the covariance that are wanted.
        factor = np.linalg.cholesky(precision)
        noise = rng.standard_normal(right.shape).astype(np.float32)
        drawn = np.linalg.solve(factor, right[..., None]) + noise[..., None]
        vectors[block.rows] = np.linalg.solve(factor.swapaxes(1, 2), drawn)[..., 0]


def posterior(
    shown: np.ndarray, target: np.ndarray, prior: Gaussian, noise_precision: float
) -> tuple[np.ndarray, np.ndarray]:
    """The posterior after `shown` `(T, S, D)`: its precision `(T, D, D)`, and the same times its mean `(T, D)`.

    Padding is a row of zeros.
    """
    own = prior.precision.astype(np.float32)
    transposed = np.float32(noise_precision) * shown.swapaxes(1, 2)
    right = (transposed @ target[..., None])[..., 0] + own @ prior.mean.astype(np.float32)
    return transposed @ shown + own, right


def draw_prior(rng: np.random.Generator, vectors: np.ndarray) -> Gaussian:
    """A normal distribution that such vectors `(n, D)` may come from, under a normal-Wishart hyperprior.

    The hyperprior has mean 0, and of the precision the identity matrix with as many degrees of freedom as dimensions.
    """
    vectors = vectors.astype(np.float64)
    size, width = vectors.shape
    mean = vectors.mean(0)
    spread = (vectors - mean).T @ (vectors - mean)
    count = _PRIOR_COUNT + size
    scale = np.linalg.inv(np.eye(width) + spread + _PRIOR_COUNT * size / count * np.outer(mean, mean))
    precision = np.atleast_2d(scipy.stats.wishart.rvs(width + size, (scale + scale.T) / 2, random_state=rng))
    # A draw of N(., (count precision)^-1), by the factor of the precision.
    factor = np.linalg.cholesky(count * precision)
    return Gaussian(size * mean / count + np.linalg.solve(factor.T, rng.standard_normal(width)), precision)
