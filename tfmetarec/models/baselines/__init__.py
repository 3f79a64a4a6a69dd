"""The floors: simple recommenders behind the two verbs of a meta-learner, `adapt` and `score`.

A meta-learner earns its place only above these. Four predict ratings (explicit feedback), four rank a catalogue
(implicit feedback), and each is fitted once and then adapts to users that it has never seen, from their support alone.

Only NumPy, SciPy, `implicit` and `threadpoolctl` are used. Letters for shapes: `T` tasks, `S` support rows, `N`
candidates, `D` dimensions. Rows are vocabulary rows: row 0 stands for what was never seen, so it is never trained on
and never recommended.
"""

from tfmetarec.models.baselines.base import Baseline, Ratings
from tfmetarec.models.baselines.bayesian_mf import BayesianMF
from tfmetarec.models.baselines.biased_mf import BiasedMF
from tfmetarec.models.baselines.ease import EASE
from tfmetarec.models.baselines.global_mean import GlobalMean
from tfmetarec.models.baselines.implicit_als import ImplicitALS
from tfmetarec.models.baselines.item_knn import ItemKNN
from tfmetarec.models.baselines.item_user_bias import ItemUserBias
from tfmetarec.models.baselines.popularity import Popularity

__all__ = [
    "EASE",
    "Baseline",
    "BayesianMF",
    "BiasedMF",
    "GlobalMean",
    "ImplicitALS",
    "ItemKNN",
    "ItemUserBias",
    "Popularity",
    "Ratings",
    "floors",
]


def floors(feedback: str, *, factors: int | None = None, seed: int = 0) -> list[Baseline]:
    """Fresh, unfitted baselines for one kind of feedback, the weakest idea first.

    Args:
        feedback: "explicit" (ratings to predict) or "implicit" (items to rank).
        factors: int, at least 1. Dimensions of the factorisations. Defaults to their own default.
        seed: int, at least 0. Defaults to 0.

    Raises:
        ValueError: if `feedback` is neither.

    Example:
    >>> [baseline.name for baseline in floors("implicit")]
    ['popularity', 'item-KNN', 'EASE', 'iALS fold-in']
    """
    chosen = {} if factors is None else {"factors": factors}
    if feedback == "explicit":
        factorizations = (kind(**chosen, seed=seed) for kind in (BiasedMF, BayesianMF))
        return [GlobalMean(), ItemUserBias(), *factorizations]
    if feedback == "implicit":
        return [Popularity(), ItemKNN(), EASE(), ImplicitALS(**chosen, seed=seed)]
    raise ValueError(f'`feedback` must be "explicit" or "implicit". Received: feedback={feedback!r}')
