"""Whole checkpoints: a manifest written last tells those that were finished from those that a killed job left."""

import os
import shutil
import zipfile
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import nn
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME, TRAINER_STATE_NAME
from transformers.trainer_utils import sort_checkpoints
from transformers.utils import CONFIG_NAME, SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from ...models.checkpoint_checks import shard_names
from ...models.json_files import read_json, write_json


MANIFEST_NAME = "checkpoint_manifest.json"


def write_manifest(folder: str | os.PathLike[str]) -> None:
    """Note the sizes of all files of a checkpoint, once all of them are written."""
    root = Path(folder)
    files = sorted(path for path in root.rglob("*") if path.is_file() and path.name != MANIFEST_NAME)
    sizes = {path.relative_to(root).as_posix(): path.stat().st_size for path in files}
    write_json(root / MANIFEST_NAME, {"files": sizes})


def missing_parts(folder: str | os.PathLike[str]) -> list[str]:
    """
    What a checkpoint lacks to resume a training from it.

    A checkpoint of [`GrowthTrainer`] has a manifest, which decides. Without one, the files that every `Trainer` writes
    must be there and readable to their end.

    Returns:
        `list[str]`: Names of files that are missing or truncated; empty for a whole checkpoint.
    """
    root = Path(folder)
    manifest = root / MANIFEST_NAME
    if not manifest.is_file():
        return _unreadable(root)
    try:
        sizes = read_json(manifest).get("files")
    except ValueError:
        return [MANIFEST_NAME]
    if not isinstance(sizes, dict) or not sizes:
        return [MANIFEST_NAME]
    return [
        name for name, size in sizes.items() if not (root / name).is_file() or (root / name).stat().st_size != size
    ]


def last_whole_checkpoint(output_dir: str | os.PathLike[str]) -> str | None:
    """
    The checkpoint of the highest step that is whole, or `None`.

    transformers' `get_last_checkpoint` takes the highest step, even if the job was killed while it was written.
    """
    if not Path(output_dir).is_dir():
        return None
    folders: list[str] = sort_checkpoints(str(output_dir))
    for folder in reversed(folders):
        if not missing_parts(folder):
            return folder
    return None


def check_filled(model: nn.Module, result: Any) -> None:
    """
    Verify that the weights of a checkpoint are all that a model has, from what a load that was not strict returned.

    Raises:
        ValueError: If some are missing, but for tied weights, of which one is saved, or unexpected.
    """
    named = dict(model.named_parameters(remove_duplicate=False))
    filled = {named[name] for name in named.keys() - set(result.missing_keys)}
    missing = [name for name in result.missing_keys if named.get(name) not in filled]
    if missing or result.unexpected_keys:
        raise ValueError(
            f"The checkpoint does not fill the model: missing {missing[:5]}, not used {result.unexpected_keys[:5]}. "
            "It belongs to a model of another class or head."
        )


def discard(folder: str | os.PathLike[str]) -> None:
    """Remove a checkpoint such that it is never taken for whole while it is being removed."""
    root = Path(folder)
    if not root.is_dir():
        return
    (root / MANIFEST_NAME).unlink(missing_ok=True)
    (root / TRAINER_STATE_NAME).unlink(missing_ok=True)
    shutil.rmtree(root)


def _unreadable(root: Path) -> list[str]:
    bad = [name for name in (CONFIG_NAME, TRAINER_STATE_NAME) if not _is_json(root / name)]
    names = [SAFE_WEIGHTS_NAME]
    if (root / SAFE_WEIGHTS_INDEX_NAME).is_file():
        try:
            names = shard_names(root / SAFE_WEIGHTS_INDEX_NAME)
        except ValueError:
            names = [SAFE_WEIGHTS_INDEX_NAME]
    bad += [name for name in names if not _is_safetensors(root / name)]
    random_states = sorted(path.name for path in root.glob("rng_state*.pth"))
    pickles = [OPTIMIZER_NAME, SCHEDULER_NAME, *(random_states or ["rng_state.pth"])]
    if not random_states and not any((root / name).exists() for name in pickles):
        return bad  # of `save_only_model`
    return bad + [name for name in pickles if not zipfile.is_zipfile(root / name)]


def _is_json(path: Path) -> bool:
    try:
        read_json(path)
    except (OSError, ValueError):
        return False
    return True


def _is_safetensors(path: Path) -> bool:
    try:
        with safe_open(path, "pt"):
            return True
    except (OSError, SafetensorError):
        return False
