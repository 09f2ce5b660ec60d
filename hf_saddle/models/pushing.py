"""What a push of a model uploads, and what it removes of those before it."""

import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.utils import filter_repo_objects
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME
from transformers.utils.hub import hf_api

from .history_file import HISTORY_NAME


# What a push of a model writes, and what the next one replaces, or removes where it has no such file.
MODEL_FILES = (
    HISTORY_NAME,
    SAFE_WEIGHTS_NAME,
    SAFE_WEIGHTS_INDEX_NAME,
    "model-[0-9][0-9][0-9][0-9][0-9]-of-[0-9][0-9][0-9][0-9][0-9].safetensors",
)

# What `push_to_hub` of a growable model does before it uploads; code that was loaded from the Hub does nothing more.
_PUSH_STEPS: list[Callable[..., Sequence[str]]] = []


def before_push(add_files: Callable[..., Sequence[str]]) -> None:
    """
    Let every `push_to_hub` of a growable model upload more files, such as a model card.

    Args:
        add_files (`Callable`):
            Called with the model, the folder that is about to be uploaded, the repo id and the token; writes files
            into the folder and returns the names of all that it may write. Those that the folder lacks are deleted
            in the repo, where an earlier push left them.
    """
    _PUSH_STEPS.append(add_files)


def upload(
    model: Any,
    working_dir: str | os.PathLike[str],
    repo_id: str,
    files_timestamps: dict[str, float],
    *,
    commit_message: str,
    token: bool | str | None = None,
    create_pr: bool = False,
    revision: str | None = None,
    commit_description: str | None = None,
) -> CommitInfo:
    """
    Commit the files of a folder that are newer than `files_timestamps`, and delete what an earlier push of a model
    left and this one has not. Arguments as in transformers' `push_to_hub`.
    """
    root, api = Path(working_dir), hf_api()
    written, replaceable = {HISTORY_NAME}, list(MODEL_FILES)
    for add_files in _PUSH_STEPS:
        names = add_files(model, root, repo_id, token)
        written |= {name.partition("/")[0] for name in names}
        replaceable += names
    changed = [
        path
        for path in sorted(root.iterdir())
        if path.name in written or path.stat().st_mtime > files_timestamps.get(path.name, -math.inf)
    ]
    # As transformers does: files in folders too, but not in folders of folders.
    files = [file for path in changed for file in (sorted(path.iterdir()) if path.is_dir() else [path])]
    if not create_pr:
        make_branch(api, repo_id, revision, token)
    known = api.list_repo_files(repo_id, revision=None if create_pr else revision, token=token)
    replaced = filter_repo_objects(known, allow_patterns=replaceable)
    operations: list[CommitOperationAdd | CommitOperationDelete] = [
        CommitOperationDelete(name) for name in replaced if not (root / name).is_file()
    ]
    operations += [CommitOperationAdd(path.relative_to(root).as_posix(), path) for path in files if path.is_file()]
    commit: CommitInfo = api.create_commit(
        repo_id,
        operations,
        commit_message=commit_message,
        commit_description=commit_description,
        token=token,
        create_pr=create_pr,
        revision=revision,
    )
    return commit


def make_branch(api: HfApi, repo_id: str, revision: str | None, token: bool | str | None = None) -> None:
    """Make the branch that a commit names, unless it is there; pull requests (`refs/pr/1`) are made otherwise."""
    if revision is not None and not revision.startswith("refs/pr"):
        api.create_branch(repo_id, branch=revision, token=token, exist_ok=True)
