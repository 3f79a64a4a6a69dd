"""Pre-train on the source, then fine-tune on the target, with layers frozen or thawed by their names."""

import re
from typing import Any

import keras

from tfmetarec.tasks.batching import user_episodes
from tfmetarec.transfer.cross_domain import Domains, Judged
from tfmetarec.transfer.learner_transfer import LearnerTransfer, MakeLearner


def freeze(model: keras.Model, pattern: str) -> list[str]:
    """Makes the variables whose path matches untrainable, and returns their paths.

    Compile anew afterwards: an optimizer built before knows nothing of it.

    Args:
        model: any Keras model or learner.
        pattern: regular expression searched for in paths, which are made of the names of layers: "item_encoder".

    Raises:
        ValueError: if nothing matches.

    Example:
    >>> layers = [keras.layers.Dense(3, name="body"), keras.layers.Dense(1, name="top")]
    >>> model = keras.Sequential([keras.Input((2,)), *layers], name="model")
    >>> freeze(model, "body")
    ['body/kernel', 'body/bias']
    >>> [variable.path for variable in model.trainable_variables]
    ['model/top/kernel', 'model/top/bias']
    """
    return _set_trainable(model, pattern, False)


def thaw(model: keras.Model, pattern: str = "") -> list[str]:
    """Undoes `freeze` for the variables whose path matches, by default all. Arguments and result as there."""
    return _set_trainable(model, pattern, True)


class FineTuning(LearnerTransfer):
    """Trains a learner on the source's users, then on the target, where named layers keep what they learned.

    Fine-tuning uses tasks that cross (source support, target query) where the domains share users, and the target's own
    users where they share only items or features.

    Args:
        learner: function from a `Vocabulary` to a learner built on it.
        frozen: str, optional. Regular expression: the variables that do not move in the target, such as "user" or
            "item_encoder/.*embedding". Defaults to none.
        thaw_after: int, at least 0, optional. Epochs in the target after which everything moves. Defaults to never.
        source_epochs: int, at least 1. Defaults to 5.
        **options: of `LearnerTransfer`.

    Reference: [Yosinski et al., 2014](https://arxiv.org/abs/1411.1792)
    """

    name = "pre-training, fine-tuning"

    def __init__(
        self,
        learner: MakeLearner | None = None,
        *,
        frozen: str | None = None,
        thaw_after: int | None = None,
        source_epochs: int = 5,
        **options: Any,
    ):
        super().__init__(learner, **options)
        if source_epochs < 1:
            raise ValueError(f"`source_epochs` must be at least 1. Received: source_epochs={source_epochs}")
        if thaw_after is not None and (frozen is None or thaw_after < 0):
            raise ValueError(
                "`thaw_after` must be at least 0, and needs `frozen`. "
                f"Received: thaw_after={thaw_after}, frozen={frozen!r}"
            )
        self.frozen, self.thaw_after, self.source_epochs = frozen, thaw_after, source_epochs

    def get_config(self) -> dict[str, Any]:
        own = {name: getattr(self, name) for name in ("frozen", "thaw_after", "source_epochs")}
        return {**own, **super().get_config()}

    def _fit(self, domains: Domains, validation: Judged | None) -> None:
        learner = self.learner = self.made_learner(domains.vocabulary)
        source = user_episodes(domains.source, domains.vocabulary, **self.episode_options)
        learner.fit(source, epochs=self.source_epochs, verbose=0)
        if len(domains.shared_users):
            target = self.crossing_episodes(domains)
        else:
            target = user_episodes(domains.target, domains.vocabulary, **self.episode_options)
        most = self.epochs if validation is not None else self.chosen_epochs or self.epochs
        frozen_epochs = most
        if self.frozen is not None:
            freeze(learner.model, self.frozen)
            frozen_epochs = most if self.thaw_after is None else min(self.thaw_after, most)
        _compile_anew(learner)
        if frozen_epochs == most:
            self.chosen_epochs = self.train(target, most, validation, self.chosen_epochs)
        else:
            if frozen_epochs:
                learner.fit(target, epochs=frozen_epochs, verbose=0)
            self._thaw()
            chosen = self.train(target, most - frozen_epochs, validation, None)
            self.chosen_epochs = self.chosen_epochs if chosen is None else frozen_epochs + chosen
        self._thaw()  # From here on it is a learner like any other.

    def _thaw(self) -> None:
        if self.frozen is not None:
            thaw(self.learner.model, self.frozen)
            _compile_anew(self.learner)


def named_variables(model: keras.Model) -> dict[str, keras.Variable]:
    """The variables that were made to be trained by path: the names of the layers they lie in, and their own.

    Keras's own paths know no layer above one that was built outside a call.
    """
    found: dict[int, tuple[str, keras.Variable]] = {}

    def walk(layer: keras.layers.Layer, prefix: str) -> None:
        for inner in layer._layers:
            walk(inner, f"{prefix}{inner.name}/")
        for variable in layer._trainable_variables:  # Which keeps its members when they are frozen.
            found.setdefault(id(variable), (prefix + variable.name, variable))

    walk(model, "")
    return dict(found.values())


def _set_trainable(model: keras.Model, pattern: str, trainable: bool) -> list[str]:
    variables = named_variables(model)
    chosen = [path for path in variables if re.search(pattern, path)]
    if not chosen:
        names = sorted({path.split("/")[0] for path in variables})
        raise ValueError(
            f"`pattern` must match the path of a variable, such as {', '.join(names)}. Received: {pattern!r}"
        )
    for path in chosen:
        variables[path].trainable = trainable
    return chosen


def _compile_anew(learner: Any) -> None:
    """With a fresh optimizer, which is built on the variables that are trainable now."""
    learner.compile_from_config(learner.get_compile_config())
