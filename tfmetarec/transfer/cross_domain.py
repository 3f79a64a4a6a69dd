"""From one domain to another: the verb, the data of both domains in one numbering, and what every method keeps to.

A method learns from all interactions of a source domain and the known ones of a target domain. It then recommends
target items to users of whom it may have seen nothing in the target: their source interactions are the support. So a
fitted method is a recommender like any other, with the two verbs `adapt` and `score`.

Letters for shapes: `T` users, `S` support rows, `N` candidates, `I` items of both domains, `D` dimensions.
"""

import ast
import functools
import importlib
import json
import os
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
import polars as pl
import tensorflow as tf

from tfmetarec.data.errors import DataError, nearest_name
from tfmetarec.data.interactions import Interactions
from tfmetarec.data.vocabulary import Vocabulary
from tfmetarec.models.baselines import Ratings
from tfmetarec.tasks.episode import Features, Support

_USERS = 128  # At once: their scores over the whole target are the largest array here.
_BLOCK = 2**22  # Numbers in the largest temporary array.


@dataclass(frozen=True, eq=False, repr=False)
class Domains:
    """Two domains in one numbering of users and one vocabulary of items and features.

    An item id that both domains have is one item, and a feature that both have is one feature: shared users, shared
    items and shared features alike are what knowledge travels along. Make it with `Domains.of`.

    Attributes:
        source: `Interactions` of the domain to transfer from.
        target: `Interactions` of the domain to transfer to, without those of users to be judged.
        joint: both, with a column `domain` of "source" and "target".
        vocabulary: `Vocabulary` of `joint`. All rows of items are its rows.
        user_ids: `(U - 1,)` raw ids; user row r is `user_ids[r - 1]`, and row 0 nobody.
        source_ratings: `Ratings` of the source, users and items by row.
        target_ratings: the same of the target, in the same numbering.

    Example:
    >>> import tfmetarec as tmr
    >>> shop = tmr.data.load("synthetic", n_users=9, n_items=12, interactions_per_user=3)
    >>> odd = pl.col("item_id") % 2 == 1
    >>> Domains.of(shop.filter(odd), shop.filter(~odd))
    Domains(source: ... rows, target: ... rows, ... users, ... of them in both, ... items)
    """

    source: Interactions
    target: Interactions
    joint: Interactions
    vocabulary: Vocabulary
    user_ids: pl.Series
    source_ratings: Ratings
    target_ratings: Ratings

    @classmethod
    def of(cls, source: Interactions, target: Interactions, *, min_item_users: int = 1) -> "Domains":
        """Numbers two domains alike.

        Args:
            source: interactions of the domain to transfer from.
            target: training interactions of the domain to transfer to.
            min_item_users: int, at least 1. Items that fewer users met get no row. Defaults to 1.

        Raises:
            DataError: if feedback, id types or the kind of a feature differ between the domains.
        """
        joint = _joined(source, target)
        vocabulary = Vocabulary.fit(joint, min_item_users=min_item_users)
        users = joint.table["user_id"].unique().sort()
        return cls(
            source,
            target,
            joint,
            vocabulary,
            users,
            _ratings(source, vocabulary, users),
            _ratings(target, vocabulary, users),
        )

    @property
    def feedback(self) -> str:
        """ "explicit" or "implicit"."""
        return self.vocabulary.specs.feedback

    @property
    def joint_ratings(self) -> Ratings:
        """Both domains' ratings, the source's first."""
        one, two = self.source_ratings, self.target_ratings
        user, item, label = (np.concatenate(pair) for pair in zip(one[:3], two[:3], strict=True))
        return Ratings(user, item, label, one.n_users, one.n_items)

    @property
    def target_rows(self) -> np.ndarray:
        """`(N,)` int32: rows of the items that the target has, in rising order. The candidates."""
        return np.unique(self.target_ratings.item[self.target_ratings.item > 0]).astype(np.int32)

    @property
    def source_rows(self) -> np.ndarray:
        """The same of the source."""
        return np.unique(self.source_ratings.item[self.source_ratings.item > 0]).astype(np.int32)

    @property
    def shared_users(self) -> np.ndarray:
        """Rows of the users whom both domains have, in rising order."""
        return np.intersect1d(self.source_ratings.user, self.target_ratings.user)

    def candidates(self) -> Features:
        """Features `(N, ...)` of the target's items, in the order of `target_rows`."""
        return {name: value[self.target_rows] for name, value in self.vocabulary.catalogue.items()}

    def support(self, users: Any, *interactions: Interactions, longest: int | None = None) -> Support:
        """What users did, as a support.

        Args:
            users: `(T,)` raw user ids, known or not: who has no interaction gets a length of 0.
            *interactions: where to look. Defaults to the source; give the source and more to add to it.
            longest: int, at least 1. How many of a user's last interactions are kept. Defaults to all.

        Raises:
            ValueError: if `longest` is below 1.
        """
        if longest is not None and longest < 1:
            raise ValueError(f"`longest` must be at least 1. Received: longest={longest}")
        ids = pl.Series("user_id", users).cast(self.user_ids.dtype)
        parts = interactions or (self.source,)
        common = ("user_id", "item_id", "label")
        table = pl.concat([part.table.select(common) for part in parts])
        rows = self.vocabulary.item_rows(table["item_id"])
        task = _places(ids, table["user_id"])
        kept = (rows > 0) & (task >= 0)
        label = np.ones(len(rows)) if self.feedback == "implicit" else table["label"].to_numpy()
        item, labels, count = _packed(task[kept], rows[kept], label[kept], len(ids), longest)
        features = {name: value[item] for name, value in self.vocabulary.catalogue.items()}
        return Support(self.vocabulary.encode_users(self.joint, ids), features, labels, count.astype(np.int32))

    def __repr__(self) -> str:
        return (
            f"Domains(source: {len(self.source):,} rows, target: {len(self.target):,} rows, "
            f"{len(self.user_ids):,} users, {len(self.shared_users):,} of them in both, "
            f"{self.vocabulary.n_items - 1:,} items)"
        )


class Judged(NamedTuple):
    """Target interactions of `T` users with what they did in the source: what settings are chosen on.

    Attributes:
        users: `(T,)` raw ids.
        support: their source interactions.
        item: `(T, Q)` int32 rows; 0 where padded, and for a rated item that neither domain's training part has.
        label: `(T, Q)` float32.
        real: `(T, Q)` bool: what is no padding.
        candidates: `(N,)` int32 rows of the target's items.
    """

    users: pl.Series
    support: Support
    item: np.ndarray
    label: np.ndarray
    real: np.ndarray
    candidates: np.ndarray


def judged(domains: Domains, held_out: Interactions) -> Judged:
    """The users of `held_out` target interactions with what is asked about them.

    A rating of an unknown item is asked too, since a rating can be predicted for any item; with implicit feedback,
    where only the target's items are ranked, other items are left out.

    Raises:
        DataError: if nothing is left to judge on.
    """
    if domains.feedback == "implicit":
        known = np.isin(domains.vocabulary.item_rows(held_out.table["item_id"]), domains.target_rows)
        if not known.any():
            raise DataError("`held_out` must hold interactions with items that the target has. Received none")
        held_out = held_out.filter(pl.Series(known))
    users = held_out.table["user_id"].unique().sort()
    rows = domains.vocabulary.item_rows(held_out.table["item_id"])
    labels = held_out.table["label"].to_numpy()
    item, label, count = _packed(_places(users, held_out.table["user_id"]), rows, labels, len(users))
    return Judged(
        users, domains.support(users), item, label, np.arange(item.shape[1]) < count[:, None], domains.target_rows
    )


def user_losses(scores: np.ndarray, label: np.ndarray, real: np.ndarray) -> np.ndarray:
    """`(T,)` mean squared errors of the `real` predictions `(T, Q)` of each user."""
    return (np.square(scores - label) * real).sum(axis=1) / real.sum(axis=1)


def user_softmax_losses(scores: np.ndarray, place: np.ndarray, real: np.ndarray) -> np.ndarray:
    """`(T,)` mean of minus the logarithm of the softmax probability over `(T, N)` of each user's `place`s `(T, Q)`."""
    scores = scores - scores.max(axis=1, keepdims=True)
    scores = scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))
    return -(np.take_along_axis(scores, place, axis=1) * real).sum(axis=1) / real.sum(axis=1)


class CrossDomainMethod:
    """What every way to cross keeps to: `fit` once, then `adapt` to users and `score` target items.

    With `validation`, `fit` chooses the settings that it can choose (epochs, gates) on users whose target
    interactions it has not learned from. Fitted again without, it keeps what it chose and learns from everything.

    A method of one's own writes `_fit(domains, validation)`, `_adapt(support)` and `_score(state, item)`, names what it
    has learned in `_arrays`, and lists its settings in `get_config`.

    Attributes:
        name: str. What results tables call it.
        kinds: the kinds of feedback that it takes.
        vocabulary: `Vocabulary` of both domains; set by `fit`.
    """

    name: ClassVar[str]
    kinds: ClassVar[tuple[str, ...]] = ("explicit", "implicit")
    _arrays: ClassVar[tuple[str, ...]] = ()
    vocabulary: Vocabulary | None = None

    def fit(self, domains: Domains, validation: Interactions | None = None) -> Self:
        """Learns from both domains.

        Args:
            domains: `Domains`.
            validation: target interactions of users whom `domains.target` does not have. Optional.

        Returns:
            The method itself.

        Raises:
            ValueError: if the method cannot take this kind of feedback, or needs users in both domains and has none.
            DataError: if `domains.target` has a user of `validation`, or none of its items is known.
        """
        if domains.feedback not in self.kinds:
            raise ValueError(
                f"{self.name} takes {' or '.join(self.kinds)} feedback. Received: {domains.feedback} feedback"
            )
        held_out = None
        if validation is not None:
            both = validation.table["user_id"].unique()
            seen = int(both.is_in(domains.target.table["user_id"].unique().implode()).sum())
            if seen:
                raise DataError(
                    f"`validation` must hold users whom the target training part does not. Received: {seen:,} of both"
                )
            held_out = judged(domains, validation)
        self.vocabulary = domains.vocabulary
        self._fit(domains, held_out)
        return self

    def adapt(self, support: Support) -> Any:
        """What `score` needs to know of `T` users.

        Args:
            support: `Support` whose items are rows of `vocabulary`, of the source, the target or both. A length of 0
                gives the prediction for somebody unknown.

        Raises:
            RuntimeError: before `fit`.
            ValueError: if shapes disagree, a length is outside 0 to S, or a row is outside the vocabulary.
        """
        size = self._fitted("adapt").n_items
        item, label, length = (np.asarray(value) for value in (support.item["item_id"], support.label, support.length))
        if item.ndim != 2 or item.shape != label.shape or length.shape != item.shape[:1]:
            raise ValueError(
                '`support` must have `item["item_id"]` and `label` of shape (T, S) and `length` of shape (T,). '
                f"Received: shapes {item.shape}, {label.shape} and {length.shape}"
            )
        if length.size and not 0 <= length.min() <= length.max() <= item.shape[1]:
            raise ValueError(
                f"`length` of `support` must be between 0 and {item.shape[1]}. "
                f"Received: {length.min()} to {length.max()}"
            )
        _check_rows("support", item[np.arange(item.shape[1]) < length[:, None]], size)
        return self._adapt(support)

    def score(self, state: Any, item: Features | None = None) -> np.ndarray:
        """Scores `(T, N)` of items: predicted ratings where feedback is explicit.

        Args:
            state: what `adapt` returned.
            item: features of items common to all users, `(N, ...)`, or of each user's own, `(T, N, ...)`. `None` for
                all rows of `vocabulary`, both domains' items.

        Raises:
            RuntimeError: before `fit`.
            ValueError: if `item["item_id"]` has neither shape, or holds a row outside the vocabulary.
        """
        vocabulary = self._fitted("score")
        item = vocabulary.catalogue if item is None else item
        rows = np.asarray(item["item_id"])
        if rows.ndim not in (1, 2):
            raise ValueError(f'`item["item_id"]` must have shape (N,) or (T, N). Received: shape {rows.shape}')
        _check_rows("item", rows, vocabulary.n_items)
        scores = np.array(self._score(state, item), np.float32)
        if vocabulary.specs.feedback == "implicit":
            scores = np.where(rows == 0, -np.inf, scores)
        return scores

    def save(self, folder: str | os.PathLike) -> None:
        """Writes the fitted method to a new folder: its settings, its arrays and its vocabulary.

        Raises:
            RuntimeError: before `fit`.
            DataError: if the folder exists.
        """
        vocabulary, folder = self._fitted("save"), Path(folder)
        if folder.exists():
            raise DataError(f"`folder` must not exist yet. Received: folder={str(folder)!r}")
        folder.mkdir(parents=True)
        vocabulary.save(folder / "vocabulary")
        self._save(folder)
        method = {"method": type(self).__module__.rsplit(".", 1)[1], "config": self.get_config()}
        (folder / "method.json").write_text(json.dumps(method, indent=1), encoding="utf-8")

    def validation_loss(self, validation: Judged, adapt: Callable[[slice], Any] | None = None) -> float:
        """The mean over users of the squared error or, with implicit feedback, of the softmax loss over the target.

        Args:
            validation: from `judged`.
            adapt: the state of some of its users, for a method that need not do all of adapting again after each
                epoch. Defaults to adapting to their support.
        """
        vocabulary = self._fitted("validation_loss")
        catalogue, ranking = vocabulary.catalogue, vocabulary.specs.feedback == "implicit"
        losses = []
        for start in range(0, len(validation.users), _USERS):
            part = slice(start, start + _USERS)
            if adapt is None:
                state = self._adapt(tf.nest.map_structure(lambda value, part=part: value[part], validation.support))
            else:
                state = adapt(part)
            rows = validation.candidates if ranking else validation.item[part]
            scores = np.asarray(self._score(state, {name: value[rows] for name, value in catalogue.items()}))
            real = validation.real[part]
            if ranking:
                place = np.searchsorted(rows, np.where(real, validation.item[part], rows[0]))
                losses.append(user_softmax_losses(scores.astype(np.float64), place, real))
            else:
                losses.append(user_losses(scores, validation.label[part], real))
        return float(np.concatenate(losses).mean())

    def get_config(self) -> dict[str, Any]:
        """The constructor's own arguments, as plain JSON."""
        raise NotImplementedError

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """A method, not yet fitted, with the settings of `get_config`."""
        return cls(**config)

    def _fit(self, domains: Domains, validation: Judged | None) -> None:
        raise NotImplementedError

    def _adapt(self, support: Support) -> Any:
        raise NotImplementedError

    def _score(self, state: Any, item: Features) -> Any:
        raise NotImplementedError

    def _save(self, folder: Path) -> None:
        arrays = {name: np.asarray(getattr(self, name)) for name in self._arrays}
        np.savez(folder / "arrays.npz", **arrays)  # type: ignore[arg-type]

    def _restore(self, folder: Path) -> None:
        with np.load(folder / "arrays.npz") as arrays:
            for name in self._arrays:
                value = arrays[name]
                setattr(self, name, value if value.ndim else value.item())

    def _fitted(self, verb: str) -> Vocabulary:
        if self.vocabulary is None:
            raise RuntimeError(f"`{verb}` needs a fitted method; call `fit(domains)` first.")
        return self.vocabulary


def cross_domain(
    method: str | CrossDomainMethod,
    source: Interactions,
    target: Interactions,
    *,
    validation_share: float = 0.1,
    min_item_users: int = 1,
    seed: int = 0,
    **options: Any,
) -> CrossDomainMethod:
    """Fits a way to cross from one domain to another, its settings chosen on held-out users.

    A share of the users whom both domains have is set aside: without their target interactions the method is fitted and
    chooses what it can choose on them. Then it is fitted again on everything, with what it chose.

    Args:
        method: str, one of `available()`, or a `CrossDomainMethod`.
        source: interactions of the domain to transfer from.
        target: training interactions of the domain to transfer to.
        validation_share: float in [0, 1). The share of the shared users; 0 chooses nothing. Defaults to 0.1.
        min_item_users: int, at least 1. See `Domains.of`.
        seed: int, at least 0. Draws the users.
        **options: for the constructor of a method given by its name.

    Returns:
        The fitted method: `adapt` and `score` recommend, and `Domains.support` makes supports for it.

    Raises:
        ValueError: if there is no such method, or options come with a method that is made already.
        DataError: if the domains do not fit together, or no user would be left to choose on.

    Example:
    >>> import tfmetarec as tmr
    >>> shop = tmr.data.load("synthetic", n_users=30, n_items=20, interactions_per_user=9, feedback="explicit")
    >>> odd = pl.col("item_id") % 2 == 1
    >>> fitted = tmr.transfer.cross_domain("hierarchical", shop.filter(odd), shop.filter(~odd))
    >>> domains = tmr.transfer.Domains.of(shop.filter(odd), shop.filter(~odd))
    >>> fitted.score(fitted.adapt(domains.support([0, 1])), domains.candidates()).shape
    (2, 10)
    """
    if isinstance(method, str):
        method = method_class(method)(**options)
    elif options:
        raise ValueError(f"`options` are for a method given by its name. Received: {', '.join(options)}")
    domains = Domains.of(source, target, min_item_users=min_item_users)
    if not validation_share:
        return method.fit(domains)
    if not 0 < validation_share < 1:
        raise ValueError(
            f"`validation_share` must be at least 0 and below 1. Received: validation_share={validation_share}"
        )
    if seed < 0:
        raise ValueError(f"`seed` must be at least 0. Received: seed={seed}")
    shared = domains.shared_users
    drawn = np.random.default_rng(seed).permutation(shared)[: int(validation_share * len(shared))]
    if not len(drawn):
        raise DataError(
            f"`validation_share` leaves no user to choose on, of {len(shared):,} whom both domains have. "
            f"Received: validation_share={validation_share}"
        )
    held_out = pl.col("user_id").is_in(domains.user_ids[(drawn - 1).tolist()].implode())
    rest = Domains.of(source, target.filter(~held_out), min_item_users=min_item_users)
    method.fit(rest, target.filter(held_out))
    return method.fit(domains)


def available() -> dict[str, str]:
    """The names that `cross_domain` knows, each with one line about it."""
    return dict(_found())


@functools.cache
def _found() -> dict[str, str]:
    # Parsed, not imported: a list must not fail for one method's missing package.
    folder = Path(__file__).parent
    found = {}
    for module in pkgutil.iter_modules([str(folder)]):
        tree = ast.parse((folder / f"{module.name}.py").read_text(encoding="utf-8"))
        if any(isinstance(node, ast.ClassDef) and _is_method(node) for node in tree.body):
            found[module.name] = (ast.get_docstring(tree) or "").split("\n")[0]
    return found


def method_class(name: str) -> type[CrossDomainMethod]:
    """The class of a method by the name of its file.

    Raises:
        ValueError: if there is none of this name.
    """
    names = available()
    if name not in names:
        raise ValueError(
            f"`method` must be one of {', '.join(names)}{nearest_name(name, names)}. Received: method={name!r}"
        )
    module = importlib.import_module(f"tfmetarec.transfer.{name}")
    own = (
        member for member in vars(module).values() if isinstance(member, type) and member.__module__ == module.__name__
    )
    return next(member for member in own if issubclass(member, CrossDomainMethod))


def load(folder: str | os.PathLike) -> CrossDomainMethod:
    """The fitted method that `save` wrote.

    Raises:
        DataError: if the folder was not written by `save`.
    """
    folder = Path(folder)
    try:
        written = json.loads((folder / "method.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"`folder` must have been written by `save`. Received: folder={str(folder)!r}") from error
    method = method_class(written["method"]).from_config(written["config"])
    method.vocabulary = Vocabulary.load(folder / "vocabulary")
    method._restore(folder)
    return method


def inner_products(vectors: np.ndarray, items: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """`(T, N)` products of users' vectors `(T, D)` and those of items `(I, D)` by rows `(N,)` or `(T, N)`."""
    if rows.ndim == 1:
        return vectors @ items[rows].T
    products = np.empty(rows.shape, np.float32)
    step = max(1, _BLOCK // max(1, rows.shape[1] * items.shape[1]))
    for start in range(0, len(rows), step):
        part = slice(start, start + step)
        products[part] = np.einsum("td,tnd->tn", vectors[part], items[rows[part]])
    return products


def _is_method(node: ast.ClassDef) -> bool:
    """Whether a class is a method and not only a base of some: it says what tables call it."""
    bases = {base.id for base in node.bases if isinstance(base, ast.Name)}
    names = {target.id for line in node.body if isinstance(line, ast.Assign) for target in line.targets}  # type: ignore
    return bool(bases & {"CrossDomainMethod", "LearnerTransfer"}) and "name" in names


def _joined(source: Interactions, target: Interactions) -> Interactions:
    if source.schema.feedback != target.schema.feedback:
        raise DataError(
            "`source` and `target` must have one kind of feedback. "
            f"Received: {source.schema.feedback} and {target.schema.feedback}"
        )
    kinds: dict[str, str] = {}
    for side in ("user", "item"):
        for feature in (*getattr(source.schema, side)[1:], *getattr(target.schema, side)[1:]):
            if kinds.setdefault(f"{side}.{feature.name}", feature.kind) != feature.kind:
                raise DataError(
                    f"feature {feature.name!r} must be of one kind in both domains. "
                    f"Received: {kinds[f'{side}.{feature.name}']!r} and {feature.kind!r}"
                )
    common = [c for c in source.table.columns if c in target.table.columns and c not in ("domain", "behavior")]
    parts = [
        interactions.table.select(common).with_columns(domain=pl.lit(name))
        for name, interactions in (("source", source), ("target", target))
    ]
    try:
        table = pl.concat(parts)
        users, items = _features(source, target, "user"), _features(source, target, "item")
    except pl.exceptions.PolarsError as error:
        raise DataError(f"`source` and `target` must have ids and features of one type: {error}") from error
    names = {schema.item_name for schema in (source.schema, target.schema)} - {None}
    return Interactions.from_frames(
        table,
        users,
        items,
        feedback=source.schema.feedback,
        kinds=kinds,
        item_name=names.pop() if len(names) == 1 else None,
        duplicates="first",  # A user who met an item twice, once a behavior.
        name=f"{source.name} to {target.name}" if source.name != target.name else source.name,
    )


def _features(source: Interactions, target: Interactions, side: str) -> pl.DataFrame | None:
    frames = [getattr(part, f"{side}s") for part in (source, target)]
    frames = [frame for frame in frames if frame is not None]
    if not frames:
        return None
    return pl.concat(frames, how="diagonal").unique(f"{side}_id", keep="first", maintain_order=True)


def _ratings(interactions: Interactions, vocabulary: Vocabulary, users: pl.Series) -> Ratings:
    table = interactions.table.unique(["user_id", "item_id"], keep="first", maintain_order=True)
    rows = vocabulary.item_rows(table["item_id"])
    known = rows > 0
    label = table["label"].to_numpy().astype(np.float32)
    if interactions.schema.feedback == "implicit":
        label = np.ones_like(label)
    user = _places(users, table["user_id"]) + 1
    return Ratings(user[known], rows[known], label[known], len(users) + 1, vocabulary.n_items)


def _packed(
    task: np.ndarray, rows: np.ndarray, label: np.ndarray, n_tasks: int, longest: int | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Items and labels side by side, `(T, S)`, in each task's own order, and how many each task has, `(T,)`."""
    order = np.argsort(task, kind="stable")
    task, rows, label = task[order], rows[order], label[order]
    count = np.bincount(task, minlength=n_tasks)
    kept = count if longest is None else np.minimum(count, longest)
    place = np.arange(len(task)) - np.repeat(np.cumsum(count) - kept, count)
    last = place >= 0
    item = np.zeros((n_tasks, max(1, int(kept.max(initial=0)))), np.int32)
    labels = np.zeros(item.shape, np.float32)
    item[task[last], place[last]], labels[task[last], place[last]] = rows[last], label[last]
    return item, labels, kept


def _places(values: pl.Series, column: pl.Series) -> np.ndarray:
    """Where each entry of `column` stands in `values`, -1 where it does not."""
    places = pl.DataFrame({"value": values, "place": np.arange(len(values), dtype=np.int64)})
    found = pl.DataFrame({"value": column}).join(places, on="value", how="left", maintain_order="left")["place"]
    return found.fill_null(-1).to_numpy()


def _check_rows(argument: str, rows: np.ndarray, size: int) -> None:
    if not np.issubdtype(rows.dtype, np.integer):
        raise ValueError(f'`item["item_id"]` of `{argument}` must hold integers. Received: {rows.dtype}')
    if rows.size and not 0 <= rows.min() <= rows.max() < size:
        raise ValueError(
            f"`{argument}` must come from the catalogue of both domains, which has {size:,} rows. "
            f"Received: row {rows.max():,}, of a catalogue of at least {rows.max() + 1:,}"
        )
