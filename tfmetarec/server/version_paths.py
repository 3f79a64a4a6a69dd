"""Which versions of a model the file system offers, and which of them a policy wants served."""

from __future__ import annotations

import re
from pathlib import Path

from google.protobuf.message import DecodeError
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow_serving.config.model_server_config_pb2 import ModelConfig

from tfmetarec.server.status import StatusError, invalid_argument

_VARIABLE_OPS = {"VarHandleOp", "VariableV2", "Variable", "AutoReloadVariable"}


def wanted_versions(model: ModelConfig) -> dict[int, Path]:
    """Lists the versions of `model` that its policy wants, with their directories.

    A version is a directory whose name is a number; anything else is ignored, so that a new version can be
    written beside the others and then renamed.

    Raises:
        StatusError: INVALID_ARGUMENT while the base path does not exist.
    """
    base_path = Path(model.base_path)
    try:
        names = sorted(child.name for child in base_path.iterdir() if child.is_dir())
    except OSError as error:
        raise invalid_argument(
            f"Could not find base path {model.base_path} for servable {model.name} with error {error.strerror}"
        ) from None
    found = {int(name): base_path / name for name in names if re.fullmatch("[0-9]{1,19}", name)}
    policy = model.model_version_policy
    choice = policy.WhichOneof("policy_choice")
    if choice == "all":
        return found
    if choice == "specific":
        return {version: found[version] for version in policy.specific.versions if version in found}
    newest = sorted(found, reverse=True)[: max(policy.latest.num_versions, 1)]
    return {version: found[version] for version in newest}


def missing_variables(path: Path) -> StatusError | None:
    """Says what a version lacks if its graph has variables and their files are not (all) there.

    TensorFlow Serving loads such a version, drops the good one and then fails every request. Half-copied
    versions look like this, so here the good version stays until the files are complete.

    Args:
        path: Path of the version's directory.
    """
    variables = path / "variables"
    if (variables / "variables.index").exists():
        shards = [re.fullmatch(r"variables\.data-\d{5}-of-(\d{5})", child.name) for child in variables.iterdir()]
        totals = [int(shard.group(1)) for shard in shards if shard]
        if totals and len(totals) == max(totals):
            return None
        return _incomplete(path, f"{len(totals)} of {max(totals, default=1)} data files in variables/")
    try:
        graph = saved_model_pb2.SavedModel.FromString((path / "saved_model.pb").read_bytes())
    except (OSError, DecodeError):
        return None  # The loader has the better error for this one.
    if any(node.op in _VARIABLE_OPS for meta in graph.meta_graphs for node in meta.graph_def.node):
        return _incomplete(path, "no variables/variables.index")
    return None


def _incomplete(path: Path, what: str) -> StatusError:
    return StatusError("FAILED_PRECONDITION", f"The version directory {path} is incomplete: it has {what}.")
