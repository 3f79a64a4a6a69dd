"""The floors: simple recommenders behind the two verbs of a meta-learner, `adapt` and `score`.

A meta-learner earns its place only above these. Three predict ratings (explicit feedback), four rank a catalogue
(implicit feedback), and each is fitted once and then adapts to users that it has never seen, from their support alone.

Only NumPy, SciPy and `implicit` are used. Letters for shapes: `T` tasks, `S` support rows, `N` candidates,
`D` dimensions. Rows are vocabulary rows: row 0 stands for what was never seen, so it is never trained on and
never recommended.
"""

from collections.abc import Iterator
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
import scipy.linalg
import scipy.sparse
from implicit.als import AlternatingLeastSquares
from implicit.nearest_neighbours import ItemItemRecommender
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from tfmetarec.tasks.episode import Features, Support

BLOCK_SIZE = 2**23
"""Numbers in the largest temporary array: 32 MB of float32, which keeps memory flat however many tasks come."""


class Ratings(NamedTuple):
    """What a baseline is fitted on: one row for each rating or purchase.

    Rows whose user or item is 0 are left out when fitting.

    Attributes:
        user: `(n,)` int, vocabulary rows of the users, at least 0 and below `n_users`.
        item: `(n,)` int, vocabulary rows of the items, at least 0 and below `n_items`.
        label: `(n,)` float32. The rating; for implicit feedback anything above 0 counts as an interaction.
        n_users: int. Size of the users' vocabulary, row 0 included.
        n_items: int. Size of the items' vocabulary, row 0 included.
    """

    user: np.ndarray
    item: np.ndarray
    label: np.ndarray
    n_users: int
    n_items: int


class Baseline:
    """A recommender that needs no meta-learning: fit it once, then `adapt` to new users and `score`.

    The state that `adapt` returns has one row for each task. A baseline of one's own sets `name` and `feedback`
    and writes three methods: `_fit(ratings)`; `_adapt(item, label, real)`, where `real` `(T, S)` marks the rows before
    each length and the others hold 0; and `_catalogue(state)`, the `(T, n_items)` scores of the whole catalogue.

    Attributes:
        name: str. What results tables call it.
        feedback: "explicit" if scores are predicted ratings, "implicit" if they only rank.
        n_items: int. Size of the items' vocabulary, row 0 included; set by `fit`.
    """

    name: ClassVar[str]
    feedback: ClassVar[str]
    n_items: int = 0

    def fit(self, ratings: Ratings) -> Self:
        """Learns from the interactions of known users.

        Args:
            ratings: `Ratings`, with at least one row whose user and item are not 0.

        Returns:
            The baseline itself.

        Raises:
            ValueError: if the arrays of `ratings` disagree in shape, hold a row outside their vocabulary or a label
                that is not finite, or if there is nothing to learn from.
        """
        ratings = _known_rows(ratings)
        if self.feedback == "implicit":
            bought = ratings.label > 0
            ratings = ratings._replace(
                user=ratings.user[bought], item=ratings.item[bought], label=ratings.label[bought]
            )
        if not ratings.item.size:
            raise ValueError(
                "`ratings` must hold at least one interaction of a known user with a known item (and, for implicit "
                "feedback, a label above 0). Received: none"
            )
        self._fit(ratings)
        self.n_items = ratings.n_items
        return self

    def adapt(self, support: Support) -> Any:
        """Fits the tasks' own parameters to their support.

        Args:
            support: `Support` of NumPy arrays, of which `item["item_id"]` `(T, S)`, `label` `(T, S)` and `length`
                `(T,)` are used. An empty support gives the unadapted prediction.

        Returns:
            The state, for `score`. It may be sliced by task.

        Raises:
            RuntimeError: before `fit`.
            ValueError: if shapes disagree, a length is outside 0 to S, or a row is outside the catalogue.
        """
        self._check_fitted("adapt")
        item, label, real = _real_rows(support, self.n_items)
        return self._adapt(item, label, real)

    def score(self, state: Any, item: Features | None = None) -> np.ndarray:
        """Scores the whole catalogue, or each task's own candidates.

        Args:
            state: what `adapt` returned.
            item: `None` for the whole catalogue, or features of which `item["item_id"]` is used: `(N,)` rows
                common to all tasks, or `(T, N)`.

        Returns:
            `(T, N)` float32, where the whole catalogue has N = `n_items`. Row 0 gets the prediction for an unknown
            item if feedback is explicit, and minus infinity if it is implicit. Ratings are not clipped, so that
            they rank without ties.

        Raises:
            RuntimeError: before `fit`.
            ValueError: if `item["item_id"]` is neither `(N,)` nor `(T, N)`, or holds a row outside the catalogue.
        """
        self._check_fitted("score")
        n_tasks = state.shape[0]
        candidates = None if item is None else _candidate_rows(item, n_tasks, self.n_items)
        width = self.n_items if candidates is None else candidates.shape[1]
        scores = np.empty((n_tasks, width), np.float32)
        for block in _blocks(n_tasks, self.n_items):
            catalogue = self._catalogue(state[block])
            if self.feedback == "implicit":
                catalogue[:, 0] = -np.inf
            scores[block] = (
                catalogue if candidates is None else np.take_along_axis(catalogue, candidates[block], axis=1)
            )
        return scores

    def _check_fitted(self, verb: str) -> None:
        if not self.n_items:
            raise RuntimeError(f"`{verb}` needs a fitted baseline; call `fit(ratings)` first.")

    def _fit(self, ratings: Ratings) -> None:
        raise NotImplementedError

    def _adapt(self, item: np.ndarray, label: np.ndarray, real: np.ndarray) -> Any:
        raise NotImplementedError

    def _catalogue(self, state: Any) -> np.ndarray:
        raise NotImplementedError


class GlobalMean(Baseline):
    """Predicts the mean of all training ratings for everyone and everything.

    Example:
    >>> ratings = Ratings(np.array([1, 1, 2]), np.array([1, 2, 2]), np.array([3.0, 4.0, 5.0]), 3, 3)
    >>> support = Support({}, {"item_id": np.array([[1]])}, np.array([[1.0]]), np.array([1]))
    >>> baseline = GlobalMean().fit(ratings)
    >>> baseline.score(baseline.adapt(support))
    array([[4., 4., 4.]], dtype=float32)
    """

    name = "global mean"
    feedback = "explicit"

    def _fit(self, ratings: Ratings) -> None:
        self.mean = float(ratings.label.mean(dtype=np.float64))

    def _adapt(self, item: np.ndarray, label: np.ndarray, real: np.ndarray) -> np.ndarray:
        return np.full((len(item), 1), self.mean, np.float32)

    def _catalogue(self, state: np.ndarray) -> np.ndarray:
        return np.repeat(state, self.n_items, axis=1)


class ItemUserBias(Baseline):
    """Predicts mean + item bias + user bias; a new user's bias is the shrunk mean residual of the support.

    A bias is a sum of residuals divided by their number plus a shrinkage: a mean that counts so many extra ratings
    without surprise. Items and users are fitted in turns until both agree.

    Args:
        item_shrinkage: float, at least 0. Defaults to 3.
        user_shrinkage: float, at least 0. Defaults to 5.
        iterations: int, at least 1. Turns over items and users. Defaults to 10.

    Example:
    >>> ratings = Ratings(np.array([1, 1, 2]), np.array([1, 2, 2]), np.array([3.0, 4.0, 5.0]), 3, 3)
    >>> support = Support({}, {"item_id": np.array([[0]])}, np.array([[5.0]]), np.array([1]))
    >>> baseline = ItemUserBias(user_shrinkage=1.0).fit(ratings)
    >>> baseline.score(baseline.adapt(support), {"item_id": np.array([[0]])})  # 4 + (5 - 4) / (1 + 1)
    array([[4.5]], dtype=float32)

    Reference: [Koren, 2010](https://doi.org/10.1145/1644873.1644874), section 2.1
    """

    name = "item+user bias"
    feedback = "explicit"

    def __init__(self, item_shrinkage: float = 3.0, user_shrinkage: float = 5.0, *, iterations: int = 10):
        self.item_shrinkage = _at_least("item_shrinkage", item_shrinkage, 0)
        self.user_shrinkage = _at_least("user_shrinkage", user_shrinkage, 0)
        self.iterations = _at_least("iterations", iterations, 1)

    def _fit(self, ratings: Ratings) -> None:
        self.mean = float(ratings.label.mean(dtype=np.float64))
        rest = ratings.label - self.mean
        user_bias = np.zeros(ratings.n_users)
        for _ in range(self.iterations):
            item_bias = _shrunk_means(
                ratings.item, rest - user_bias[ratings.user], ratings.n_items, self.item_shrinkage
            )
            user_bias = _shrunk_means(
                ratings.user, rest - item_bias[ratings.item], ratings.n_users, self.user_shrinkage
            )
        self.item_bias = item_bias

    def _adapt(self, item: np.ndarray, label: np.ndarray, real: np.ndarray) -> np.ndarray:
        residual = np.where(real, label - self.mean - self.item_bias[item], 0)
        # Without ratings and without shrinkage the mean residual is 0 / 0: an unknown user, so no bias.
        count = real.sum(axis=1) + self.user_shrinkage
        return (residual.sum(axis=1) / np.where(count > 0, count, 1))[:, None]

    def _catalogue(self, state: np.ndarray) -> np.ndarray:
        return (self.mean + self.item_bias + state).astype(np.float32)


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
        self.factors = _at_least("factors", factors, 1)
        self.regularization = _above("regularization", regularization, 0)
        self.fold_in_regularization = _above("fold_in_regularization", fold_in_regularization, 0)
        self.item_shrinkage = _above("item_shrinkage", item_shrinkage, 0)
        self.user_shrinkage = _above("user_shrinkage", user_shrinkage, 0)
        self.iterations = _at_least("iterations", iterations, 1)
        self.seed = _at_least("seed", seed, 0)

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
        items[:, -1] = _shrunk_means(item, rest, ratings.n_items, self.item_shrinkage)
        user_groups = list(_groups(user, self.factors + 1))
        item_groups = list(_groups(item, self.factors + 1))
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
        for block in _blocks(len(item), (self.factors + 1) * max(item.shape[1], self.factors + 1)):
            target = (label[block] - self.mean).astype(np.float32)
            penalty = np.full(len(target), self.fold_in_regularization)
            state[block] = _biased_ridge(self.items[item[block]], target, real[block], penalty, self.user_shrinkage)
        return state

    def _catalogue(self, state: np.ndarray) -> np.ndarray:
        vectors = state[:, :-1] @ self.items[:, :-1].T
        return (self.mean + self.items[:, -1] + state[:, -1:] + vectors).astype(np.float32)


class Popularity(Baseline):
    """Ranks the items by how many different users had them: the same list for everyone.

    Example:
    >>> ratings = Ratings(np.array([1, 1, 1, 2]), np.array([1, 1, 2, 2]), np.ones(4), 3, 3)
    >>> support = Support({}, {"item_id": np.array([[1]])}, np.ones((1, 1)), np.array([1]))
    >>> baseline = Popularity().fit(ratings)
    >>> baseline.score(baseline.adapt(support))
    array([[-inf,   1.,   2.]], dtype=float32)
    """

    name = "popularity"
    feedback = "implicit"

    def _fit(self, ratings: Ratings) -> None:
        self.popularity = _popularity(_user_item_matrix(ratings))

    def _adapt(self, item: np.ndarray, label: np.ndarray, real: np.ndarray) -> np.ndarray:
        return np.zeros((len(item), 0), np.float32)

    def _catalogue(self, state: np.ndarray) -> np.ndarray:
        return np.tile(self.popularity, (len(state), 1))


class ItemKNN(Baseline):
    """Ranks the items by their cosine similarity to the support, each item of it speaking for its neighbours.

    Items that no neighbour reaches come after the others, by popularity; with an empty support that is the
    popularity list.

    Args:
        neighbours: int, at least 1. Neighbours that each item keeps. Defaults to 100.

    Reference: [Sarwar et al., 2001](https://doi.org/10.1145/371920.372071)
    """

    name = "item-KNN"
    feedback = "implicit"

    def __init__(self, neighbours: int = 100):
        self.neighbours = _at_least("neighbours", neighbours, 1)

    def _fit(self, ratings: Ratings) -> None:
        matrix = _user_item_matrix(ratings)
        self.popularity = _popularity(matrix)
        # Between columns of length 1 the products are cosines. (implicit's CosineRecommender normalises too, but
        # hands its own COO matrix on, which then warns.)
        matrix.data = 1 / np.sqrt(self.popularity.astype(np.float64))[matrix.indices]
        # Every item is its own nearest neighbour, which says nothing: ask for one more and drop it.
        recommender = ItemItemRecommender(K=self.neighbours + 1)
        recommender.fit(matrix, show_progress=False)
        similarity = recommender.similarity.tocoo().astype(np.float32)
        similarity.data[similarity.row == similarity.col] = 0
        self.similarity = similarity.tocsr()

    def _adapt(self, item: np.ndarray, label: np.ndarray, real: np.ndarray) -> scipy.sparse.csr_matrix:
        return _support_matrix(item, label, real, self.n_items)

    def _catalogue(self, state: scipy.sparse.csr_matrix) -> np.ndarray:
        scores = (state @ self.similarity).toarray()
        # Similarities are above 0, so popularity moved to -1 .. 0 only orders what they leave tied.
        return np.where(scores > 0, scores, self.popularity / self.popularity.max() - 1)


class EASE(Baseline):
    """Ranks the items by a ridge regression of every item on all others, in closed form.

    The weights are B = I - P / diag(P) with P = (X'X + regularization I)^-1, zero on the diagonal. With an empty
    support the ranking is the popularity list.

    Cost: with fewer items than users P is formed, `n_items`² float32 (0.9 GB at 15,000 items) and `n_items`³ / 2
    multiplications; with fewer users the same weights come from a `n_users`² system and take `n_users` x `n_items`
    float32. Nothing approximate happens in either case.

    Args:
        regularization: float, greater than 0. Defaults to 5000: a short support needs far more than the few hundred
            that suit long histories.

    Reference: [Steck, 2019](https://arxiv.org/abs/1905.03375), equation 8
    """

    name = "EASE"
    feedback = "implicit"

    def __init__(self, regularization: float = 5000.0):
        self.regularization = _above("regularization", regularization, 0)

    def _fit(self, ratings: Ratings) -> None:
        matrix = _user_item_matrix(ratings)
        self.popularity = _popularity(matrix)
        matrix = matrix[np.diff(matrix.indptr) > 0]
        self.low_rank = matrix.shape[0] < matrix.shape[1]
        if self.low_rank:
            self.factor, self.diagonal = _ease_factor(matrix, self.regularization)
        else:
            self.weights = _ease_weights(matrix, self.regularization)

    def _adapt(self, item: np.ndarray, label: np.ndarray, real: np.ndarray) -> scipy.sparse.csr_matrix:
        return _support_matrix(item, label, real, self.n_items)

    def _catalogue(self, state: scipy.sparse.csr_matrix) -> np.ndarray:
        if self.low_rank:
            # x B with B = I - P / diag(P), where P is (I - W'W) / regularization and W the factor.
            dense = state.toarray()
            scores = dense - (dense - (state @ self.factor.T) @ self.factor) / self.diagonal
        else:
            scores = state @ self.weights
        return _popular_if_empty(scores, np.diff(state.indptr) > 0, self.popularity)


class ImplicitALS(Baseline):
    """Ranks the items by weighted matrix factorisation; a new user's vector is one more least-squares solve.

    Folding in solves the equation that the training solves for its own users, for all tasks in one batch: the
    Gram matrix of all items stands for everything a user did not buy. With an empty support the vector is 0, so the
    ranking is the popularity list.

    Args:
        factors: int, at least 1. Defaults to 64.
        regularization: float, greater than 0, or `None`: 0.2 times `alpha` times the largest singular value of the
            user-item matrix. With short supports it matters more than anything else: far below this value the
            ranking falls behind popularity, and far above it all vectors vanish. Defaults to `None`.
        alpha: float, greater than 0. Confidence of an interaction, where its absence has 1. Defaults to 1.
        iterations: int, at least 1. Defaults to 15.
        seed: int, at least 0. Where the vectors start. Defaults to 0.

    Reference: [Hu et al., 2008](https://doi.org/10.1109/ICDM.2008.22), equation 4
    """

    name = "iALS fold-in"
    feedback = "implicit"

    def __init__(
        self,
        factors: int = 64,
        regularization: float | None = None,
        alpha: float = 1.0,
        *,
        iterations: int = 15,
        seed: int = 0,
    ):
        self.factors = _at_least("factors", factors, 1)
        self.regularization = None if regularization is None else _above("regularization", regularization, 0)
        self.alpha = _above("alpha", alpha, 0)
        self.iterations = _at_least("iterations", iterations, 1)
        self.seed = _at_least("seed", seed, 0)

    def _fit(self, ratings: Ratings) -> None:
        matrix = _user_item_matrix(ratings)
        # With alpha = 1 this is a soft-thresholded singular value decomposition: directions below it are gone.
        penalty = 0.2 * self.alpha * _largest_singular_value(matrix)
        self.penalty = penalty if self.regularization is None else self.regularization
        # implicit runs its own threads and warns when BLAS brings more, so BLAS gets one while it trains.
        with threadpool_limits(1, "blas"):
            model = AlternatingLeastSquares(
                factors=self.factors,
                regularization=self.penalty,
                alpha=self.alpha,
                iterations=self.iterations,
                random_state=self.seed,
                use_gpu=False,  # Its vectors would not be NumPy arrays.
            )
            model.fit(matrix, show_progress=False)
        self.items = np.asarray(model.item_factors)
        self.popularity = _popularity(matrix)

    def _adapt(self, item: np.ndarray, label: np.ndarray, real: np.ndarray) -> np.ndarray:
        bought = _distinct(item, real & (label > 0)).astype(np.float32)
        gram = self.items.T @ self.items + self.penalty * np.eye(self.factors, dtype=np.float32)
        state = np.zeros((len(item), self.factors), np.float32)
        for block in _blocks(len(item), self.factors * max(item.shape[1], self.factors)):
            seen = bought[block]
            # Equation 4 has confidence alpha where an interaction is; 1 of it is in the Gram matrix already.
            state[block] = _ridge(self.items[item[block]], (self.alpha - 1) * seen, self.alpha * seen, gram)
        return state

    def _catalogue(self, state: np.ndarray) -> np.ndarray:
        return _popular_if_empty(state @ self.items.T, np.any(state, axis=1), self.popularity)


def floors(feedback: str, *, factors: int | None = None, seed: int = 0) -> list[Baseline]:
    """Fresh, unfitted baselines for one kind of feedback, the weakest idea first.

    Args:
        feedback: "explicit" (ratings to predict) or "implicit" (items to rank).
        factors: int, at least 1. Dimensions of the factorisation. Defaults to its own default.
        seed: int, at least 0. Defaults to 0.

    Raises:
        ValueError: if `feedback` is neither.

    Example:
    >>> [baseline.name for baseline in floors("implicit")]
    ['popularity', 'item-KNN', 'EASE', 'iALS fold-in']
    """
    chosen = {} if factors is None else {"factors": factors}
    if feedback == "explicit":
        return [GlobalMean(), ItemUserBias(), BiasedMF(**chosen, seed=seed)]
    if feedback == "implicit":
        return [Popularity(), ItemKNN(), EASE(), ImplicitALS(**chosen, seed=seed)]
    raise ValueError(f'`feedback` must be "explicit" or "implicit". Received: feedback={feedback!r}')


def _ridge(features: np.ndarray, weight: np.ndarray, target: np.ndarray, penalty: np.ndarray) -> np.ndarray:
    """Solves (X' diag(weight) X + penalty) w = X' target for each of `T` tasks: `(T, S, D)` ... -> `(T, D)`."""
    transposed = features.swapaxes(1, 2)
    # Thousands of tiny systems: where cores are shared, BLAS threads made this seven times slower than one did.
    with threadpool_limits(1, "blas"):
        system = transposed @ (features * weight[..., None]) + penalty  # (T, D, S) (T, S, D) -> (T, D, D)
        right = transposed @ target[..., None]  # (T, D, S) (T, S, 1) -> (T, D, 1)
        return np.linalg.solve(system, right)[..., 0]


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
    return _ridge(features, real.astype(np.float32), target, penalties)


def _ease_weights(matrix: scipy.sparse.csr_matrix, regularization: float) -> np.ndarray:
    """B `(n_items, n_items)` of EASE; one matrix of that size is all it holds."""
    columns = matrix.tocsc()
    n_items = matrix.shape[1]
    inverse = np.zeros((n_items, n_items), np.float32, order="F")
    for block in _blocks(n_items, n_items):
        inverse[:, block] = (columns.T @ columns[:, block]).toarray()
    np.fill_diagonal(inverse, inverse.diagonal() + regularization)
    inverse, failed = scipy.linalg.lapack.spotrf(inverse, lower=0, overwrite_a=1)
    if failed:
        raise ValueError(
            "`regularization` must be large enough for the item Gram matrix to be positive definite in float32. "
            f"Received: regularization={regularization}"
        )
    inverse, _ = scipy.linalg.lapack.spotri(inverse, lower=0, overwrite_c=1)
    for block in _blocks(n_items, n_items):  # LAPACK leaves the lower triangle out: mirror the upper one.
        inverse[block, : block.start] = inverse[: block.start, block].T
        corner = np.triu(inverse[block, block])
        inverse[block, block] = corner + np.triu(corner, 1).T
    inverse /= -inverse.diagonal()
    np.fill_diagonal(inverse, 0)
    return inverse


def _ease_factor(matrix: scipy.sparse.csr_matrix, regularization: float) -> tuple[np.ndarray, np.ndarray]:
    """W `(n_users, n_items)` and the diagonal of I - W'W, which is regularization times EASE's P.

    By the Woodbury identity (X'X + r I)^-1 = (I - X'(XX' + r I)^-1 X) / r, and with XX' + r I = LL' and W = L^-1 X
    the bracket is I - W'W.
    """
    n_users, n_items = matrix.shape
    system = (matrix @ matrix.T).toarray().astype(np.float64)
    np.fill_diagonal(system, system.diagonal() + regularization)
    lower = scipy.linalg.cholesky(system, lower=True, overwrite_a=True)
    columns = matrix.tocsc()
    factor = np.empty((n_users, n_items), np.float32)
    diagonal = np.empty(n_items, np.float32)
    for block in _blocks(n_items, n_users):
        # In float64, for the diagonal is what is left of 1 after a sum that may come close to it.
        part = scipy.linalg.solve_triangular(lower, columns[:, block].toarray().astype(np.float64), lower=True)
        diagonal[block] = 1 - np.einsum("un,un->n", part, part)
        factor[:, block] = part
    return factor, diagonal


def _largest_singular_value(matrix: scipy.sparse.csr_matrix) -> float:
    """By power iteration, which a matrix without negative entries lets start from ones."""
    vector = np.ones(matrix.shape[1])
    for _ in range(30):
        vector = matrix.T @ (matrix @ (vector / np.linalg.norm(vector)))
    return float(np.sqrt(np.linalg.norm(vector)))


def _popular_if_empty(scores: np.ndarray, has_support: np.ndarray, popularity: np.ndarray) -> np.ndarray:
    return np.where(has_support[:, None], scores, popularity).astype(np.float32)


def _popularity(matrix: scipy.sparse.csr_matrix) -> np.ndarray:
    return np.bincount(matrix.indices, minlength=matrix.shape[1]).astype(np.float32)


def _user_item_matrix(ratings: Ratings) -> scipy.sparse.csr_matrix:
    """1 where a user had an item at least once, `(n_users, n_items)`."""
    return _ones(ratings.user, ratings.item, (ratings.n_users, ratings.n_items))


def _support_matrix(item: np.ndarray, label: np.ndarray, real: np.ndarray, n_items: int) -> scipy.sparse.csr_matrix:
    """1 where a task's support has a known item with a label above 0, `(T, n_items)`."""
    task, position = np.nonzero(real & (label > 0) & (item > 0))
    return _ones(task, item[task, position], (len(item), n_items))


def _ones(row: np.ndarray, column: np.ndarray, shape: tuple[int, int]) -> scipy.sparse.csr_matrix:
    matrix = scipy.sparse.csr_matrix((np.ones(len(row), np.float32), (row, column)), shape=shape)
    matrix.sum_duplicates()
    matrix.data[:] = 1
    return matrix


def _distinct(item: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Keeps of `chosen` `(T, S)` the first place of each known item."""
    rows = np.where(chosen, item, 0)
    order = np.argsort(rows, axis=1, kind="stable")
    ordered = np.take_along_axis(rows, order, axis=1)
    first = np.ones(rows.shape, bool)
    first[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    kept = np.zeros(rows.shape, bool)
    np.put_along_axis(kept, order, first & (ordered > 0), axis=1)
    return kept


def _shrunk_means(index: np.ndarray, values: np.ndarray, size: int, shrinkage: float) -> np.ndarray:
    count = np.bincount(index, minlength=size) + shrinkage
    return np.bincount(index, values, minlength=size) / np.where(count > 0, count, 1)


def _groups(owner: np.ndarray, width: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Packs the rows of each owner into padded blocks, so that a batched solve replaces a loop over owners.

    Yields owners `(T,)`, the positions of their rows `(T, S)` and which of these are real `(T, S)`. Owners with
    similar counts go together: little is padding.
    """
    order = np.argsort(owner, kind="stable")
    owners, start, count = np.unique(owner[order], return_index=True, return_counts=True)
    by_count = np.argsort(count, kind="stable")
    owners, start, count = owners[by_count], start[by_count], count[by_count]
    while len(owners):
        # Counts rise, so the last owner of a block says how wide the block is.
        cost = np.arange(1, len(owners) + 1) * np.maximum(count, width) * width
        size = max(1, int(np.searchsorted(cost, BLOCK_SIZE, side="right")))
        place = np.arange(count[size - 1])
        real = place < count[:size, None]
        yield owners[:size], order[np.where(real, start[:size, None] + place, 0)], real
        owners, start, count = owners[size:], start[size:], count[size:]


def _blocks(size: int, width: int) -> Iterator[slice]:
    step = max(1, BLOCK_SIZE // max(1, width))
    return (slice(start, min(start + step, size)) for start in range(0, size, step))


def _known_rows(ratings: Ratings) -> Ratings:
    """Checks the arrays and leaves row 0 of either vocabulary out."""
    user, item, label = (np.asarray(values) for values in ratings[:3])
    if not (user.ndim == 1 and user.shape == item.shape == label.shape):
        raise ValueError(
            "`user`, `item` and `label` of `ratings` must be vectors of one length. "
            f"Received: shapes {user.shape}, {item.shape} and {label.shape}"
        )
    for name, rows, size in (("user", user, ratings.n_users), ("item", item, ratings.n_items)):
        _check_rows(f"`{name}` of `ratings`", rows, size)
    label = label.astype(np.float32)
    if not np.isfinite(label).all():
        raise ValueError(
            f"`label` of `ratings` must be finite. Received: {(~np.isfinite(label)).sum()} values that are not"
        )
    known = (user > 0) & (item > 0)
    return Ratings(user[known], item[known], label[known], ratings.n_users, ratings.n_items)


def _real_rows(support: Support, n_items: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The support's items and labels with 0 in every padding, and where they are real, `(T, S)` each."""
    item, label = np.asarray(support.item["item_id"]), np.asarray(support.label)
    length = np.asarray(support.length)
    if item.ndim != 2 or item.shape != label.shape or length.shape != item.shape[:1]:
        raise ValueError(
            '`support` must have `item["item_id"]` and `label` of shape (T, S) and `length` of shape (T,). '
            f"Received: shapes {item.shape}, {label.shape} and {length.shape}"
        )
    if length.size and not 0 <= length.min() <= length.max() <= item.shape[1]:
        raise ValueError(
            f"`length` of `support` must be between 0 and {item.shape[1]}. Received: {length.min()} to {length.max()}"
        )
    real = np.arange(item.shape[1]) < length[:, None]
    item = np.where(real, item, 0)
    _check_rows('`item["item_id"]` of `support`', item, n_items)
    return item, np.where(real, label, 0).astype(np.float32), real


def _candidate_rows(item: Features, n_tasks: int, n_items: int) -> np.ndarray:
    rows = np.asarray(item["item_id"])
    if rows.ndim == 1:  # Candidates common to all tasks.
        rows = np.broadcast_to(rows, (n_tasks, len(rows)))
    if rows.ndim != 2 or len(rows) != n_tasks:
        raise ValueError(
            f'`item["item_id"]` must have shape (N,) or (T, N) with T={n_tasks} tasks. Received: shape {rows.shape}'
        )
    _check_rows('`item["item_id"]`', rows, n_items)
    return rows


def _check_rows(name: str, rows: np.ndarray, size: int) -> None:
    if not np.issubdtype(rows.dtype, np.integer):
        raise ValueError(f"{name} must hold integers. Received: {rows.dtype}")
    if rows.size and not 0 <= rows.min() <= rows.max() < size:
        raise ValueError(f"{name} must hold rows between 0 and {size - 1}. Received: {rows.min()} to {rows.max()}")


def _at_least(name: str, value: Any, low: int) -> Any:
    if not value >= low:
        raise ValueError(f"`{name}` must be at least {low}. Received: {name}={value}")
    return value


def _above(name: str, value: Any, low: int) -> Any:
    if not value > low:
        raise ValueError(f"`{name}` must be greater than {low}. Received: {name}={value}")
    return value
