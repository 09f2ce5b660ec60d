"""`hf-saddle card` and `hf-saddle push`: describe a saved model and bring it to the Hub."""

import glob
from dataclasses import replace
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub.errors import HTTPError
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from hf_saddle.hub import TrainingRecord, write_companions, write_model_card
from hf_saddle.hub.model_card import PICTURES
from hf_saddle.hub.record import fingerprint
from hf_saddle.hub.sharing import CARD_FILES, CARD_NAME
from hf_saddle.models.checkpoint_checks import shard_names
from hf_saddle.models.history_file import HISTORY_NAME
from hf_saddle.models.pushing import MODEL_FILES, make_branch

from .common import PROCESSOR_FILES, load_model, quiet


# What a reader of the model needs, beside its weights and its code.
UPLOADED = ("config.json", "generation_config.json", HISTORY_NAME, CARD_NAME, *PROCESSOR_FILES, *CARD_FILES)


def write_card(folder: Path, given: dict[str, str | None], repo_id: str | None) -> Path:
    """
    Write the card and its pictures into a folder from the files in it.

    Args:
        folder (`Path`): Folder of a saved model.
        given (`dict`): Fields of the [`~hf_saddle.hub.TrainingRecord`] to set, as far as they are not `None`.
        repo_id (`str`, *optional*): Repo that the model will be in.
    """
    quiet()
    model = load_model(str(folder))
    record = TrainingRecord.load(folder)
    weights = fingerprint(model)
    if record is None or record.weights != weights:
        record = TrainingRecord(weights=weights)
    facts: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    record = replace(record, **facts)
    return write_model_card(folder, model, record, repo_id=repo_id)


def push_folder(folder: Path, repo_id: str, private: bool, revision: str | None, create_pr: bool, message: str) -> str:
    """
    Upload a saved model: config, weights, history, code, pictures, card, image processor or tokenizer, by
    name. History, weights, record and pictures of an earlier push that this model has not are deleted.

    Returns:
        `str`: Address of the commit or pull request.

    Raises:
        ValueError: If one of the files is a link.
        ConnectionError: If the upload broke off; the folder is complete.
    """
    quiet()
    _refuse_links(folder)
    model = load_model(str(folder))
    code = write_companions(model, folder)
    write_card(folder, {}, repo_id)
    names = [*UPLOADED, *code, *_weights(folder)]
    api = HfApi()
    try:
        repo = api.create_repo(repo_id, private=private or None, exist_ok=True)
        if not create_pr:
            make_branch(api, repo.repo_id, revision)
        commit = api.upload_folder(
            repo_id=repo.repo_id,
            folder_path=folder,
            commit_message=message,
            revision=revision,
            create_pr=create_pr,
            allow_patterns=[glob.escape(name) for name in names],
            delete_patterns=[*MODEL_FILES, *CARD_FILES],
        )
    except (HTTPError, RuntimeError) as error:
        raise ConnectionError(
            f"{str(error).rstrip('.')}. The model in {folder} is complete; once the reason is gone, run the same "
            "command again."
        ) from error
    return str(commit.pr_url if create_pr else commit.commit_url)


def _weights(folder: Path) -> list[str]:
    """Names of the weight files, and of their index where there are several."""
    if (folder / SAFE_WEIGHTS_NAME).is_file():
        return [SAFE_WEIGHTS_NAME]
    return [SAFE_WEIGHTS_INDEX_NAME, *shard_names(folder / SAFE_WEIGHTS_INDEX_NAME)]


def _refuse_links(folder: Path) -> None:
    """
    Raise a `ValueError` if a file that would be written or published is a link: it may lead to any file.
    """
    for path in sorted([folder / PICTURES, *folder.iterdir(), *folder.glob(f"{PICTURES}/*")]):
        name = path.relative_to(folder).as_posix()
        ours = name in (PICTURES, SAFE_WEIGHTS_INDEX_NAME, *UPLOADED)
        if path.is_symlink() and (ours or path.suffix in (".py", ".safetensors", ".partial")):
            raise ValueError(f"{path} is a link to {path.resolve()}. Put the file itself there, or remove the link.")
