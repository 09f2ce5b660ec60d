"""What a training leaves for the model card: settings, log, data set and versions, as JSON beside the weights."""

import hashlib
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, TrainerState, TrainingArguments

from ..growth import GrowthConfig
from ..growth.records import fields as checks
from ..growth.surgery.grow import versions
from ..models.json_files import read_json, write_json
from .measured import device_of, duration, emissions_in, numbers_only, results_of, settings_of, told_of_growth
from .names import public_name


RECORD_NAME = "training_record.json"
_FIELDS: dict[str, checks.Check] = {
    **dict.fromkeys(("dataset", "base_model", "license", "weights", "device"), checks.optional(checks.TEXT)),
    "split": checks.TEXT,
    **dict.fromkeys(("settings", "growth"), checks.mapping(checks.ANY, checks.TEXT)),
    "results": checks.mapping(checks.NUMBER, checks.TEXT),
    "results_step": checks.optional(checks.NUMBER),
    "processes": checks.NUMBER,
    "emissions_grams": checks.optional(checks.NUMBER),
    "versions": checks.mapping(checks.TEXT, checks.TEXT),
    "log": checks.each(checks.mapping(checks.ANY, checks.ANY)),
}


@dataclass
class TrainingRecord:
    """
    The measured facts of one training, which a card may state.

    Raises:
        ValueError: If a field is of another type than it is written with.
    """

    dataset: str | None = None  # repo id on the Hub, or any name
    base_model: str | None = None  # repo id of the model that the training started from
    license: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    growth: dict[str, Any] = field(default_factory=dict)
    log: list[dict[str, float]] = field(default_factory=list)
    split: str = "validation"  # what `results` are of
    results: dict[str, float] = field(default_factory=dict)
    results_step: int | None = None
    weights: str | None = None  # `fingerprint` of the model that was measured
    device: str | None = None
    processes: int = 1
    emissions_grams: float | None = None  # CO2 equivalent as codecarbon measured it
    versions: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        checks.check_attributes(self, _FIELDS)
        self.dataset, self.base_model = (value and public_name(value) for value in (self.dataset, self.base_model))
        self.log = numbers_only(self.log)

    @classmethod
    def of(
        cls,
        model: PreTrainedModel,
        args: TrainingArguments,
        state: TrainerState,
        *,
        growth: GrowthConfig | None = None,
        dataset: str | None = None,
        base_model: str | None = None,
        license: str | None = None,
    ) -> "TrainingRecord":
        """
        The record of a training by HF `Trainer`.

        Args:
            model (`PreTrainedModel`): The model as it will be shared.
            args (`TrainingArguments`): The trainer's `args`.
            state (`TrainerState`): The trainer's `state`; its log gives losses and metrics.
            growth ([`~hf_saddle.GrowthConfig`], *optional*): When, where, how and how much the model grew.
            dataset (`str`, *optional*): Repo id of the data set, or its name.
            base_model (`str`, *optional*):
                Repo id or folder of the model that the training started from. Defaults to where `model` was loaded.
            license (`str`, *optional*): Licence of the weights, as the Hub spells it.
        """
        log = numbers_only(state.log_history)
        split, results = results_of(log, state.best_global_step if args.load_best_model_at_end else None)
        return cls(
            dataset=dataset,
            base_model=base_model or model.name_or_path or None,
            license=license,
            settings=settings_of(args),
            growth={} if growth is None else told_of_growth(growth.to_dict()),
            log=log,
            split=split,
            results={name: value for name, value in results.items() if name not in ("step", "epoch")},
            results_step=results.get("step"),
            weights=fingerprint(model),
            device=device_of(args),
            processes=args.world_size,
            emissions_grams=emissions_in(Path(args.output_dir or ".")),
            versions=versions(),
        )

    def seconds(self) -> float | None:
        """Duration of the training."""
        return duration(self.log)

    def save(self, folder: Path) -> None:
        """Write the record into a folder."""
        write_json(folder / RECORD_NAME, asdict(self))

    @classmethod
    def load(cls, folder: Path) -> "TrainingRecord | None":
        """
        The record in a folder, or `None`.

        Raises:
            ValueError: If the file is damaged or of another version.
        """
        path = folder / RECORD_NAME
        if not path.is_file():
            return None
        values = read_json(path, "The training record")
        if not values.keys() <= _FIELDS.keys():
            raise ValueError(f"{path} is not a training record of this version.")
        try:
            return cls(**values)
        except ValueError as error:
            raise ValueError(f"The training record {path} is damaged: {error}") from error


def fingerprint(model: PreTrainedModel) -> str:
    """SHA-256 of all tensors of a model: a record belongs to the weights that were measured, and to no others."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        values = tensor.detach().cpu().flatten().clone(memory_format=torch.contiguous_format)
        digest.update(values.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
