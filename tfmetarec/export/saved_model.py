"""Publishing a learner as a version of a served model: whole, checked, or not at all."""

import json
import platform
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import tensorflow as tf

from tfmetarec.export import gate
from tfmetarec.export.clusters import WORTH_IT, TwoStage, fit
from tfmetarec.export.example_requests import example_request
from tfmetarec.export.holdout import Holdout, PrecisionCost, precision_cost, queries
from tfmetarec.export.publishing import check_keep, next_version, prune, publish, staging
from tfmetarec.export.quiet import quietly
from tfmetarec.export.signatures import DESCRIPTIONS, ServedLearner
from tfmetarec.export.small_products import rewrite_small_products
from tfmetarec.export.warmup import write_warmup
from tfmetarec.meta.learner import MetaLearner


@dataclass(frozen=True)
class Export:
    """A version of a served model.

    Attributes:
        base: base path of the served model.
        path: its folder, `BASE/VERSION`; `None` after a dry run.
        version: int. The number it has, or would have.
        differences: largest absolute difference from the live model, per signature.
        search: one sentence about how the catalogue is searched.
        precision: what fewer bits cost on held-out users, if there are fewer and there were users.
        removed: older versions that were deleted.
    """

    base: Path
    path: Path | None
    version: int
    differences: dict[str, float]
    search: str
    precision: PrecisionCost | None = None
    removed: tuple[int, ...] = ()


def saved_model(
    learner: MetaLearner,
    path: str | Path,
    *,
    top_k: int = 20,
    warmup_batches: tuple[int, ...] = (1,),
    weights: str = "float32",
    search: TwoStage | None = None,
    holdout: Holdout | None = None,
    new_items: pl.DataFrame | None = None,
    keep: int | None = None,
    dry_run: bool = False,
) -> Export:
    """Writes `learner` as the next version under `path`, ready for TensorFlow Serving.

    The version is staged beside the others under a name that servers ignore, checked against the live model in
    a clean process (see `tfmetarec.export.gate`), flushed to disk and then renamed to its number: a server
    that watches `path` sees all of it or nothing, and a crash at any point leaves what was there.

    Inside, under `assets.extra/`: warm-up requests of every signature, `tfmetarec.json` (what this is, signatures,
    schema, settings, versions) and the vocabulary with the items' names.

    Args:
        learner: `MetaLearner` over users, with a vocabulary.
        path: base path of the served model; its last part is usually the model's name.
        top_k: int, at least 1. The most items a recommendation holds.
        warmup_batches: ints. Batch sizes to warm up; a server refuses a version whose warm-up exceeds its
            `max_batch_size`. Defaults to 1.
        weights: "float32", "float16" or "int8": how the catalogue's vectors are stored. With fewer bits the version
            is smaller on disk and in memory, and an exact search slower, since it decodes them.
        search: `TwoStage` for large catalogues of models that score by a dot product. Needs `holdout`. Where the
            recall asked for would take a large part of the catalogue, the search stays exact and `Export.search`
            says so. Requests that filter by category are always searched exactly.
        holdout: users to measure on what `search` and fewer bits give up.
        new_items: polars DataFrame with `item_id` and features of items that training never saw, to be recommended
            beside the others by their content; no weight changes, and states that clients keep stay valid.
        keep: int, at least 1. Delete all but so many of the newest versions afterwards, whatever label a server's
            configuration gives them. Defaults to keeping all.
        dry_run: bool. Do everything but publish.

    Raises:
        GateError: if the export does not answer as the live model does, or holds what a server refuses. Nothing is
            published then.
        ValueError: if the learner has no vocabulary, an option is out of range, or new items do not fit the catalogue.
    """
    check_keep(keep)
    if not warmup_batches or min(warmup_batches) < 1:
        raise ValueError(f"`warmup_batches` must hold sizes of at least 1. Received: warmup_batches={warmup_batches}")
    served, searching = _served(learner, top_k, weights, search, holdout, new_items)
    precision = precision_cost(served, holdout) if holdout is not None and weights != "float32" else None
    base = Path(path)
    with staging(base) as staged:
        signatures = served.signatures()
        with quietly():
            tf.saved_model.save(served.resources(signatures), str(staged), signatures=signatures)
        rewrite_small_products(staged)
        requests = [
            (name, example_request(served, name, batch=batch, support=20, candidates=100, seed=0))
            for name in signatures
            for batch in warmup_batches
        ]
        write_warmup(staged, base.name, requests)
        served.vocabulary.save(staged / "assets.extra" / "vocabulary")
        card = _card(served, warmup_batches, searching)
        (staged / "assets.extra" / "tfmetarec.json").write_text(json.dumps(card, indent=1))
        differences = gate.check(staged, served)
        if dry_run:
            return Export(base, None, next_version(base), differences, searching, precision)
        version = publish(staged, base)
    removed = tuple(prune(base, keep)) if keep is not None else ()
    return Export(base, base / str(version), version, differences, searching, precision, removed)


def _served(
    learner: MetaLearner,
    top_k: int,
    weights: str,
    search: TwoStage | None,
    holdout: Holdout | None,
    new_items: pl.DataFrame | None,
) -> tuple[ServedLearner, str]:
    """What is exported, and one sentence about its search."""
    vocabulary = learner.vocabulary
    if vocabulary is not None and new_items is not None:
        vocabulary = vocabulary.with_items(new_items)
    served = ServedLearner(learner, top_k, weights=weights, vocabulary=vocabulary)
    exact = f"exact over {_items(served)}"
    if search is None:
        return served, exact
    if not learner.is_retrieval:
        raise ValueError(
            "`search` in two stages needs a model that scores by a dot product. "
            f"Received: {type(learner.model).__name__}"
        )
    if holdout is None:
        raise ValueError("`search` needs a `holdout`: its recall is measured on users. Received: holdout=None")
    vectors = np.asarray(served.catalogue.whole())
    clusters = fit(vectors, queries(learner, holdout), served.top_k, search)
    found = f"recall@{served.top_k} {clusters.recall:.3f} on held-out users"
    if not clusters.is_worth_it:
        return served, (
            f"{exact}: in two stages {found} would take {clusters.share:.0%} of the catalogue, and more than "
            f"{WORTH_IT:.0%} is no faster"
        )
    served = ServedLearner(learner, top_k, weights=weights, clusters=clusters, vocabulary=vocabulary)
    return served, (
        f"two stages: {clusters.probes} of {len(clusters.centroids):,} clusters, {clusters.share:.1%} of "
        f"{_items(served)}, {found}"
    )


def _items(served: ServedLearner) -> str:
    added = f" ({served.added_items:,} of them added)" if served.added_items else ""
    return f"{served.catalogue.size:,} items{added}"


def _card(served: ServedLearner, warmup_batches: tuple[int, ...], searching: str) -> dict[str, Any]:
    vocabulary, learner = served.vocabulary, served.learner
    packages = ("tfmetarec", "tensorflow", "keras", "tensorflow-recommenders")
    return {
        "learner": type(learner).__name__,
        "settings": {name: value for name, value in learner.get_config().items() if name != "model"},
        "model": type(learner.model).__name__,
        "data": vocabulary.name,
        "feedback": learner.feedback,
        "schema": vocabulary.schema.to_dict(),
        "items": served.catalogue.size,
        "added_items": served.added_items,
        "label_range": vocabulary.label_range,
        "top_k": served.top_k,
        "weights": served.weights,
        "search": searching,
        "warmup_batches": list(warmup_batches),
        "signatures": {name: DESCRIPTIONS[name] for name in served.inputs},
        "user_inputs": served.user_inputs,
        "item_inputs": served.item_inputs,
        "filters": served.filters,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {"python": platform.python_version(), **{name: installed_version(name) for name in packages}},
    }
