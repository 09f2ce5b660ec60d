"""A folder that has a model already: refused, or cleared of what an earlier training wrote."""

import os
import shutil
from pathlib import Path
from typing import Any

from huggingface_hub.utils import filter_repo_objects
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import sort_checkpoints
from transformers.utils import CONFIG_NAME

from ..hub.report_page import REPORT_NAME
from ..hub.sharing import CARD_FILES, CARD_NAME
from ..models.pushing import MODEL_FILES
from ..training.resuming.checkpoints import discard


_SIGNS = (CONFIG_NAME, *MODEL_FILES)
_WRITTEN = (
    *_SIGNS,
    *CARD_FILES,
    CARD_NAME,
    REPORT_NAME,
    "preprocessor_config.json",
    "processor_config.json",
    "trainer_state.json",
    "training_args.bin",
    "all_results.json",
    "test_results.json",
)


def is_used(folder: str | os.PathLike[str]) -> bool:
    """Whether a folder has a model or a checkpoint."""
    root = Path(folder)
    return root.is_dir() and bool(_found(root, _SIGNS) or sort_checkpoints(str(root)))


def check_overwrite(folder: str | os.PathLike[str], overwrite: bool, source: str | None) -> None:
    """
    Refuse a new training that may not take the place of what is in a used folder.

    Raises:
        ValueError: Without `overwrite`, or if the training is to start from `source`, and that is in the folder.
    """
    root = Path(folder)
    if not overwrite:
        raise ValueError(
            f"{root} has a model already. Go on with its training by `--resume-from-checkpoint last`, begin anew and "
            "remove it by `--overwrite`, or name another `--output-dir`."
        )
    if source is not None and Path(source).exists() and Path(source).resolve().is_relative_to(root.resolve()):
        raise ValueError(
            f"The training is to start from {source}, which lies in {root}, and `--overwrite` removes what is there. "
            "Name another `--output-dir`."
        )


class BeginAnew(TrainerCallback):  # type: ignore[misc]
    """
    Clears the folder of a training before its first step. As the last of the callbacks it does so once nothing is
    left that the others refuse.
    """

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        with args.main_process_first(local=False):
            begin_anew(args.output_dir)


def begin_anew(folder: str | os.PathLike[str]) -> None:
    """
    Remove what an earlier training wrote into a folder: model, history, card, pictures, results and checkpoints.

    Logs of reporters and all other files stay.
    """
    root = Path(folder)
    for checkpoint in sort_checkpoints(str(root)):
        discard(checkpoint)
    for path in _found(root, _WRITTEN):
        path.unlink()
    pictures = root / "pictures"
    if pictures.is_dir() and not any(pictures.iterdir()):
        shutil.rmtree(pictures)


def _found(root: Path, patterns: tuple[str, ...]) -> list[Path]:
    names = [
        path.relative_to(root).as_posix() for path in [*root.iterdir(), *root.glob("pictures/*")] if path.is_file()
    ]
    return [root / name for name in filter_repo_objects(names, allow_patterns=list(patterns))]
