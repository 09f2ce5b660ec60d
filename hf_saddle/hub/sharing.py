"""Files that travel with the weights: history, code, pictures, record and card, for a model and for a `Trainer`."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any

import huggingface_hub
import yaml
from huggingface_hub import ModelCard
from huggingface_hub.errors import RemoteEntryNotFoundError
from transformers.dynamic_module_utils import custom_object_save
from transformers.utils.hub import hf_api

from ..growth import GrowthHistory
from ..models.modeling_saddle import GrowablePreTrainedModel
from ..models.pushing import MODEL_FILES
from .card_task import has_processor
from .comparison import COMPARISON_NAME, Comparison
from .escape import plain
from .model_card import MARK, PICTURES, render_model_card
from .pictures.drawing import (
    COMPARISON,
    DRAWINGS,
    RETIRED,
    SUFFIXES,
    can_draw,
    name_pictures,
    save_comparison,
    save_pictures,
)
from .record import RECORD_NAME, TrainingRecord, fingerprint
from .states import neuron_counts


logger = logging.getLogger(__name__)

CARD_NAME = "README.md"
# What this package writes beside model and card: the next push replaces it, or removes it where there is none.
CARD_FILES = (
    RECORD_NAME,
    COMPARISON_NAME,
    *(f"{PICTURES}/{name}{suffix}" for name in (*DRAWINGS, COMPARISON, *RETIRED) for suffix in SUFFIXES),
)
# Texts of cards that a program wrote, and that may be replaced: ours, that of `push_to_hub`, that of `Trainer`.
_REPLACEABLE = (MARK, "card has been automatically generated", "card has been generated automatically")


def write_model_card(
    folder: str | Path,
    model: GrowablePreTrainedModel,
    record: TrainingRecord | None = None,
    *,
    repo_id: str | None = None,
    tags: list[str] | None = None,
) -> Path:
    """
    Write `README.md`, its pictures and `training_record.json` into a folder that has, or will have, the weights.

    A `comparison.json` in the folder that is of exactly these weights becomes the section "Did growth help?".

    A card that somebody has edited, that is, one without the comment that this function puts into it, is left alone.
    Nothing is written unless all that the card would state is valid.

    Args:
        folder (`str` or `Path`): Where the model is saved.
        model ([`GrowablePreTrainedModel`]): The model.
        record ([`TrainingRecord`], *optional*):
            What was measured while it was trained. Defaults to the `training_record.json` in `folder`, or where the
            model was loaded from, if it was measured with exactly these weights.
        repo_id (`str`, *optional*): The repo on the Hub, for the example of how to load the model.
        tags (`list[str]`, *optional*): More tags, besides those of a card that is already there.

    Returns:
        `Path`: The card.

    Raises:
        ValueError: If the growth history does not lead to this model, the record has a licence that the Hub does not
            take, or a file is damaged.
    """
    folder = Path(folder)
    card_path = folder / CARD_NAME
    history = GrowthHistory.leading_to(model)
    weights = cache(partial(fingerprint, model))  # of large models it takes long, and is not always asked for
    if record is None:
        record = _find_record(weights, [folder, Path(model.name_or_path or folder)])
    comparison = _find_comparison(weights, folder)
    log = record.log if record is not None else ()
    pictures = name_pictures(history, log) if can_draw() else []
    if comparison is not None and can_draw():
        pictures.append(COMPARISON)
    old = card_path.read_text(encoding="utf-8") if card_path.is_file() else None
    by_hand = old is not None and not any(text in old for text in _REPLACEABLE)
    known_tags = [] if old is None or by_hand else _tags(card_path, old)
    card = render_model_card(
        model,
        record,
        name=(repo_id or folder.resolve().name).split("/")[-1],
        repo_id=repo_id,
        pictures=pictures,
        comparison=comparison,
        has_processor=has_processor(folder, model),
        tags=[*known_tags, *(tags or [])],
    )
    folder.mkdir(parents=True, exist_ok=True)
    if record is not None:
        record.save(folder)
    if can_draw():
        save_pictures(folder / PICTURES, history, log, neurons=neuron_counts(model))
        if comparison is not None:
            save_comparison(folder / PICTURES, comparison)
    if by_hand:
        logger.warning(f"{card_path} was written by hand and is kept. Remove it to have a card written.")
        return card_path
    unfinished = card_path.with_name(f".{CARD_NAME}.partial")
    unfinished.write_text(str(card), encoding="utf-8")
    unfinished.replace(card_path)
    return card_path


def prepare_push(
    model: GrowablePreTrainedModel, folder: Path, repo_id: str, token: str | bool | None
) -> tuple[str, ...]:
    """Write the card into a folder that `model.push_to_hub` is about to upload; returns what belongs to cards."""
    known = (folder / RECORD_NAME).exists()
    write_model_card(folder, model, None if known else _fetch_record(model, repo_id, token), repo_id=repo_id)
    return (CARD_NAME, *CARD_FILES)


def write_companions(model: GrowablePreTrainedModel, folder: str | Path) -> list[str]:
    """Write what `save_pretrained` puts beside config and weights: history and code. Returns the names of the code."""
    model.save_growth_history(folder)
    return [Path(path).name for path in custom_object_save(model, folder)]


class ModelCardMixin:
    """
    For a `Trainer` of a growable model, before `Trainer` in the bases: every push carries history, code and card.

    Set `card_facts` to keyword arguments of [`TrainingRecord.of`] (`growth`, `dataset`, `base_model`, `license`), as
    far as they are known.
    """

    card_facts: dict[str, Any] = {}
    model: Any
    args: Any
    state: Any
    processing_class: Any
    hub_model_id: str | None
    push_in_progress: Any

    def create_model_card(
        self,
        language: str | None = None,
        license: str | None = None,
        tags: str | list[str] | None = None,
        model_name: str | None = None,
        finetuned_from: str | None = None,
        tasks: str | list[str] | None = None,
        dataset_tags: str | list[str] | None = None,
        dataset: str | list[str] | None = None,
        dataset_args: str | list[str] | None = None,
    ) -> None:
        """As in `Trainer`; the card tells what grew, and its numbers are those of the training's log."""
        if not self.state.is_world_process_zero:
            return
        given = {"license": license, "base_model": finetuned_from, "dataset": _first(dataset or dataset_tags)}
        facts = self.card_facts | {key: value for key, value in given.items() if value is not None}
        record = TrainingRecord.of(self.model, self.args, self.state, **facts)
        write_companions(self.model, self.args.output_dir)
        if self.processing_class is not None:
            self.processing_class.save_pretrained(self.args.output_dir)
        more = [tags] if isinstance(tags, str) else list(tags or [])
        write_model_card(
            self.args.output_dir,
            self.model,
            record,
            repo_id=self.hub_model_id or self.args.hub_model_id,
            tags=["generated_from_trainer", *more],
        )
        self.card_facts = facts  # once a card has been written with them: every later one has them too

    def push_to_hub(self, *args: Any, **kwargs: Any) -> Any:
        """As in `Trainer`; the same commit deletes what an earlier push of a model left and this one has not."""
        with _replacing():
            return super().push_to_hub(*args, **kwargs)  # type: ignore[misc]

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        pushes = self.state.is_world_process_zero and self.args.hub_strategy != "end"
        # A push that is still going on reads the files that would be written here.
        if pushes and (self.args.hub_always_push or self.push_in_progress is None or self.push_in_progress.is_done()):
            self.create_model_card()
        with _replacing():
            super()._push_from_checkpoint(checkpoint_folder)  # type: ignore[misc]


@contextmanager
def _replacing() -> Iterator[None]:
    """
    Let uploads of folders also delete what an earlier model left in the repo.

    `Trainer` uploads its whole folder by transformers' client of the Hub, and passes no `delete_patterns`.
    """
    api = hf_api()
    upload = api.upload_folder
    api.upload_folder = partial(upload, delete_patterns=[*MODEL_FILES, *CARD_FILES])
    try:
        yield
    finally:
        del api.upload_folder


def _first(value: str | list[str] | None) -> str | None:
    return value[0] if isinstance(value, list) and value else value if isinstance(value, str) else None


def _tags(path: Path, card: str) -> list[str]:
    """The tags in the metadata of a card."""
    try:
        return ModelCard(card, ignore_metadata_errors=True).data.get("tags") or []
    except (yaml.YAMLError, TypeError, ValueError) as error:
        raise ValueError(
            f"The metadata at the top of {path} cannot be read: {plain(error)}. Mend them, or remove the file to have "
            "a new card written."
        ) from error


def _find_record(weights: Callable[[], str], folders: list[Path]) -> TrainingRecord | None:
    """The record that was measured with exactly these weights, of which the fingerprint is asked for where needed."""
    found = (record for record in map(TrainingRecord.load, folders) if record is not None)
    return next((record for record in found if record.weights == weights()), None)


def _find_comparison(weights: Callable[[], str], folder: Path) -> Comparison | None:
    """The comparison in a folder, if it was put there for exactly these weights."""
    path = folder / COMPARISON_NAME
    comparison = Comparison.load(path) if path.is_file() else None
    return comparison if comparison is not None and comparison.weights == weights() else None


def _fetch_record(model: GrowablePreTrainedModel, repo_id: str, token: str | bool | None) -> TrainingRecord | None:
    """
    The record of an earlier push of these weights, which the card of a later one still needs; a new repo has none.

    One that cannot be read is left out, or a repo with it could not be pushed to again.
    """
    try:
        path = huggingface_hub.hf_hub_download(repo_id, RECORD_NAME, token=token)
        return _find_record(partial(fingerprint, model), [Path(path).parent])
    except RemoteEntryNotFoundError:
        return None
    except ValueError as error:
        logger.warning(f"The {RECORD_NAME} in {repo_id} is left out, and its numbers are not on the card: {error}")
        return None
