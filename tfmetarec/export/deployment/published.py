"""What a base path holds for a server: versions, warm-up, and a request that the model answers."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from tfmetarec.export.publishing import versions

SIGNATURE = "adapt_and_recommend"
"""What the client examples ask for."""


@dataclass(frozen=True)
class Published:
    """The versions of a served model that are to be loaded.

    Attributes:
        folder: str. Name of the base path's own folder.
        stable: int. The version that clients get.
        canary: int or None. The one on trial beside it.
        batches: ascending ints. Batch sizes that warm up some version to be loaded.
        inputs: `(value, dtype)` by input name, values as nested lists: one user with a few items, nothing else known.
        feedback: `"implicit"` or `"explicit"`.
        size_bytes: int. Of the largest version to be loaded.
    """

    folder: str
    stable: int
    canary: int | None
    batches: tuple[int, ...]
    inputs: Mapping[str, tuple[Any, str]]
    feedback: str
    size_bytes: int

    @property
    def loaded(self) -> tuple[int, ...]:
        """Versions to be loaded, in order."""
        return tuple(sorted({self.stable, self.canary or self.stable}))


def read_published(base: Path, stable: int | None, canary: int | None) -> Published:
    """Reads what is published under `base`.

    Args:
        base: the served model's base path.
        stable: int or None for the newest.
        canary: int or None for none.

    Raises:
        ValueError: if nothing is published there, a version is not, or one was not exported by tfmetarec.
    """
    found = versions(base)
    if not found:
        raise ValueError(
            f"`model_base_path` must hold a published version, a folder named by its number. Received: {base}"
        )
    stable = found[-1] if stable is None else stable
    for name, version in (("stable", stable), ("canary", canary)):
        if version is not None and version not in found:
            known = ", ".join(map(str, found))
            raise ValueError(f"`{name}` must be a published version, one of {known}. Received: {name}={version}")
    if canary == stable:
        raise ValueError(f"`canary` must be another version than `stable`. Received: canary={canary}, stable={stable}")
    folders = [base / str(version) for version in sorted({stable, canary or stable})]
    cards = {folder.name: _card(folder) for folder in folders}
    batches = {size for card in cards.values() for size in card.get("warmup_batches", [1])}
    return Published(
        folder=base.resolve().name,
        stable=stable,
        canary=canary,
        batches=tuple(sorted(batches)),
        inputs=_example_inputs(base / str(stable), cards[str(stable)]),
        feedback=cards[str(stable)]["feedback"],
        size_bytes=max(sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) for folder in folders),
    )


def _card(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / "assets.extra" / "tfmetarec.json").read_text())
    except OSError:
        raise ValueError(
            f"every version must be an export of tfmetarec, with assets.extra/tfmetarec.json. Received: {folder}"
        ) from None


def _example_inputs(folder: Path, card: Mapping[str, Any]) -> dict[str, tuple[Any, str]]:
    """A user who met the first items of the catalogue, and of whose features nothing is known."""
    # The graph itself says which inputs it takes; what is written beside it can only repeat that.
    saved = saved_model_pb2.SavedModel.FromString((folder / "saved_model.pb").read_bytes())
    signatures = saved.meta_graphs[0].signature_def
    if SIGNATURE not in signatures:
        raise ValueError(f"the stable version must have the signature {SIGNATURE}. Received: {sorted(signatures)}")
    infos = signatures[SIGNATURE].inputs
    items = pl.scan_parquet(folder / "assets.extra" / "vocabulary" / "items.parquet").select("item_id").head(3)
    ids = items.collect()["item_id"].to_list()
    label = float(card["label_range"][1]) if card["feedback"] == "explicit" else 1.0
    values: dict[str, Any] = {"support": [ids], "support_labels": [[label] * len(ids)], "support_length": [len(ids)]}
    values |= {name: [_not_known(info)] for name, info in sorted(infos.items()) if name not in values}
    return {name: (value, tf.as_dtype(infos[name].dtype).name) for name, value in values.items()}


def _not_known(info: Any) -> Any:
    """Empty text, NaN or a length of 0; a list or a vector of that where the input has a second dimension."""
    dtype = tf.as_dtype(info.dtype)
    value: Any = "" if dtype == tf.string else math.nan if dtype.is_floating else 0
    sizes = [dimension.size for dimension in info.tensor_shape.dim][1:]
    # A list of nothing is one entry of padding: an empty JSON list would lose its dimension.
    return [value] * max(sizes[0], 1) if sizes else value
