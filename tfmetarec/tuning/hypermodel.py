"""Meta-learners as keras-tuner tunes models: what it gets is a compiled learner, and a figure after adapting."""

from collections.abc import Callable, Mapping
from typing import Any

import keras
import keras_tuner as kt

from tfmetarec.tuning.space import Dimension, ask, ordered
from tfmetarec.tuning.stopping import Diverged

Values = dict[str, Any]


class MetaHyperModel(kt.HyperModel):
    """A space of meta-learners, each trained on the same episodes and judged on the same validation users.

    Works with every tuner of keras-tuner: `tuner.search(epochs=5)`. The objective is what `validation` logs, after
    adapting to users whom nothing was trained on. All random choices of building and training restart with `seed`, so
    two trials differ by their values alone. `tfmetarec.experiment.hyper_model` makes one of a configuration.

    Args:
        build_learner: gives the compiled learner for the values of a trial, which are a dict by the names of `space`. A
            name whose condition does not hold is not among them.
        episodes: what to fit: `Episodes`, or a function of the values.
        space: name -> `Range` or `Choice`.
        defaults: name -> value of the first trial. A name that is missing gets the low end, or the first choice.
        validation: a callback that logs the objective, such as `ColdStartValidation`. It is shared by all trials.
        seed: int.
        name: str.

    Raises:
        ValueError: if the space is empty, or a condition in it asks for what is not there.

    Example:
    >>> import keras_tuner as kt
    >>> import tfmetarec as tmr
    >>> data = tmr.data.load("synthetic", n_users=100, seed=0)
    >>> split = tmr.data.cold_users(data, seed=0)
    >>> vocabulary = tmr.data.Vocabulary.fit(split.train)
    >>> def learner(values):
    ...     made = tmr.meta.MAML(
    ...         tmr.models.TwoTower(vocabulary, 8), inner_learning_rate=values["inner_learning_rate"], contrast=20
    ...     )
    ...     made.compile(optimizer=keras.optimizers.Adam(values["learning_rate"]))
    ...     return made
    >>> hypermodel = tmr.tuning.MetaHyperModel(
    ...     learner,
    ...     tmr.tasks.user_episodes(split.train, vocabulary, support=(0, 5), query=5, negatives=20),
    ...     space={
    ...         "learning_rate": tmr.tuning.Range(1e-3, 1e-1, log=True),
    ...         "inner_learning_rate": tmr.tuning.Range(0.01, 10.0, log=True),
    ...     },
    ...     validation=tmr.evaluation.ColdStartValidation(split.validation, shots=(0, 5), query=5, top_k=5),
    ... )
    >>> _ = hypermodel.build(kt.HyperParameters())
    """

    def __init__(
        self,
        build_learner: Callable[[Values], keras.Model],
        episodes: Any,
        *,
        space: Mapping[str, Dimension],
        defaults: Mapping[str, Any] | None = None,
        validation: keras.callbacks.Callback | None = None,
        seed: int = 0,
        name: str | None = None,
    ):
        super().__init__(name=name)
        if not space:
            raise ValueError("`space` must have at least one name. Received: none")
        self.build_learner, self.episodes = build_learner, episodes
        self.space, self.defaults = ordered(space), dict(defaults or {})
        self.validation, self.seed = validation, seed

    def values(self, hp: kt.HyperParameters) -> Values:
        """What a trial has been given, by the names of the space."""
        return ask(hp, self.space, self.defaults)

    def declare_hyperparameters(self, hp: kt.HyperParameters) -> None:
        """Tells the oracle the whole space before anything is built; keras-tuner calls this."""
        self.values(hp)

    def build(self, hp: kt.HyperParameters) -> keras.Model:
        """The compiled learner of a trial."""
        values = self.values(hp)
        keras.utils.set_random_seed(self.seed)
        return self.build_learner(values)

    def fit(self, hp: kt.HyperParameters, model: keras.Model, *args: Any, callbacks: Any = None, **options: Any) -> Any:
        """Trains the learner; `epochs`, `initial_epoch` and the rest are those of its own `fit`.

        Raises:
            ValueError: for data, which the hypermodel has itself.
        """
        if args or "x" in options:
            raise ValueError("`search` of a `MetaHyperModel` takes no data: the episodes are those it was made with.")
        episodes = self.episodes(self.values(hp)) if callable(self.episodes) else self.episodes
        judged = [] if self.validation is None else [self.validation]
        # First: there is no judging of what has diverged.
        return model.fit(episodes, callbacks=[Diverged("loss"), *judged, *(callbacks or [])], **options)
