"""`hf-saddle card` and `hf-saddle push`: describe a saved model and bring it to the Hub."""

import glob
from pathlib import Path
from typing import Annotated

import typer
from huggingface_hub import HfApi
from huggingface_hub.errors import HTTPError
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from ..hub import TrainingRecord, write_companions, write_model_card
from ..hub.model_card import PICTURES
from ..hub.record import fingerprint
from ..hub.sharing import CARD_FILES, CARD_NAME
from ..models.checkpoint_checks import shard_names
from ..models.modeling_saddle import HISTORY_NAME, MODEL_FILES
from .common import Revision, load_model, quiet


Folder = Annotated[Path, typer.Argument(help="Folder of a saved model.", exists=True, file_okay=False)]

# What a reader of the model needs, beside its weights and its code.
UPLOADED = ("config.json", HISTORY_NAME, CARD_NAME, "preprocessor_config.json", "processor_config.json", *CARD_FILES)


def card(
    folder: Folder,
    dataset: Annotated[
        str | None, typer.Option(help="Name or repo id of the data set that it was trained on.")
    ] = None,
    base_model: Annotated[
        str | None, typer.Option(help="Repo id of the model that the training started from.")
    ] = None,
    license: Annotated[str | None, typer.Option(help="Licence of the weights, such as apache-2.0.")] = None,
    repo_id: Annotated[str | None, typer.Option(help="Repo that the model will be in, for the example.")] = None,
) -> None:
    """
    Write the model card and its pictures into the folder of a saved model.

    Every number is taken from the files in the folder. Example: `hf-saddle card outputs/demo --license apache-2.0`
    """
    quiet()
    typer.echo(f"wrote {_write_card(folder, dataset, base_model, license, repo_id)}")


def _write_card(
    folder: Path, dataset: str | None, base_model: str | None, license: str | None, repo_id: str | None
) -> Path:
    model = load_model(str(folder))
    record = TrainingRecord.load(folder)
    if record is None or record.weights != fingerprint(model):
        record = TrainingRecord(weights=fingerprint(model))
    given = {"dataset": dataset, "base_model": base_model, "license": license}
    for name, value in given.items():
        if value is not None:
            setattr(record, name, value)
    return write_model_card(folder, model, record, repo_id=repo_id)


def push(
    folder: Folder,
    repo_id: Annotated[str, typer.Argument(help="Repo on the Hub, such as 'name/my-model'; made if it is not there.")],
    private: Annotated[bool, typer.Option("--private", help="Make the repo private, where it is new.")] = False,
    revision: Revision = None,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Open a pull request instead of a commit.")] = False,
    message: Annotated[str, typer.Option(help="Commit message.")] = "Upload a growable model",
) -> None:
    """
    Bring a saved model to the Hub: config, weights, history, code, pictures, card and image processor, by name, and
    nothing else. What an earlier push left there and this model has not is deleted.

    Log in before with `hf auth login`. Example: `hf-saddle push outputs/demo name/my-model --private`
    """
    quiet()
    _refuse_links(folder)
    model = load_model(str(folder))
    code = write_companions(model, folder)
    _write_card(folder, None, None, None, repo_id)
    names = [*UPLOADED, *code, *_weights(folder)]
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
            allow_patterns=[glob.escape(name) for name in names],
            delete_patterns=[*MODEL_FILES, *CARD_FILES],
        )
    except (HTTPError, RuntimeError) as error:
        raise ConnectionError(
            f"{error} The model in {folder} is complete; once the reason is gone, run the same command again."
        ) from error
    typer.echo(str(commit.pr_url if create_pr else commit.commit_url))


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
