"""`hf-saddle card` and `hf-saddle push`: describe a saved model and bring it to the Hub."""

from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HTTPError

from hf_saddle.hub import TrainingRecord, write_companions, write_model_card
from hf_saddle.hub.record import fingerprint

from .common import load_model, quiet


# What a reader of the model needs. Checkpoints, optimizer states and pickles, such as training_args.bin, stay here.
UPLOADED = ["*.json", "*.safetensors", "README.md", "pictures/*.png", "pictures/*.svg"]
NOT_UPLOADED = ["checkpoint-*", "runs/*", "trainer_state.json"]


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
    if record is None or record.weights != fingerprint(model):
        record = TrainingRecord(weights=fingerprint(model))
    for name, value in given.items():
        if value is not None:
            setattr(record, name, value)
    return write_model_card(folder, model, record, repo_id=repo_id)


def push_folder(folder: Path, repo_id: str, private: bool, revision: str | None, create_pr: bool, message: str) -> str:
    """
    Upload a saved model with its card and code.

    Returns:
        `str`: Address of the commit or pull request.

    Raises:
        ConnectionError: If the upload broke off; the folder is complete.
    """
    quiet()
    model = load_model(str(folder))
    code = write_companions(model, folder)
    write_card(folder, {}, repo_id)
    api = HfApi()
    try:
        repo = api.create_repo(repo_id, private=private or None, exist_ok=True)
        if revision is not None and not create_pr:
            api.create_branch(repo.repo_id, branch=revision, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo.repo_id,
            folder_path=folder,
            commit_message=message,
            revision=revision,
            create_pr=create_pr,
            allow_patterns=[*UPLOADED, *code],
            ignore_patterns=NOT_UPLOADED,
        )
    except (HTTPError, RuntimeError) as error:
        raise ConnectionError(
            f"{error} The model in {folder} is complete; once the reason is gone, run the same command again."
        ) from error
    return str(commit.pr_url if create_pr else commit.commit_url)
