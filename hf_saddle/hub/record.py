"""What a training leaves for the model card: settings, log, data set and versions, as JSON beside the weights."""

import hashlib
import json
import platform
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.utils import HFValidationError, validate_repo_id
from transformers import PreTrainedModel, TrainerState, TrainingArguments

from ..growth import GrowthConfig
from ..growth.surgery import versions
from ..growth.values import is_number
from ..models.json_files import read_json


RECORD_NAME = "training_record.json"

# Settings that a reader always needs, and those that matter only where they are not the default.
_ALWAYS = (
    "learning_rate",
    "per_device_train_batch_size",
    "num_train_epochs",
    "optim",
    "weight_decay",
    "lr_scheduler_type",
    "seed",
)
# Seconds of the training so far, in entries of its log.
CLOCK = "training_seconds"
_KNOWN = {item.name for item in fields(TrainingArguments)}
_UNLESS_DEFAULT = (
    "max_steps",
    "warmup_steps",
    "gradient_accumulation_steps",
    "max_grad_norm",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "label_smoothing_factor",
    "lr_scheduler_kwargs",
    "optim_args",
    "bf16",
    "fp16",
    "torch_compile",
    # transformers 5.23 renamed the option; since then the old name is a deprecated alias.
    *[name for name in ("activation_checkpointing", "gradient_checkpointing") if name in _KNOWN][:1],
)
_SPEEDS = ("runtime", "samples_per_second", "steps_per_second", "model_preparation_time", CLOCK)


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
        for name in ("dataset", "base_model", "license", "split", "weights", "device"):
            value = getattr(self, name)
            if not isinstance(value, str) and (value is not None or name == "split"):
                raise ValueError(f"`{name}` of a training record must be text, got {value!r}.")
        self.dataset, self.base_model = (value and public_name(value) for value in (self.dataset, self.base_model))
        for name in ("settings", "growth", "results", "versions"):
            value = getattr(self, name)
            if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
                raise ValueError(f"`{name}` of a training record must be an object, got {value!r}.")
        numbers = {f"results[{key}]": value for key, value in self.results.items()}
        numbers |= {name: getattr(self, name) for name in ("results_step", "processes", "emissions_grams")}
        for name, value in numbers.items():
            if not is_number(value) and (value is not None or name not in ("results_step", "emissions_grams")):
                raise ValueError(f"`{name}` of a training record must be a finite number, got {value!r}.")
        if not all(isinstance(version, str) for version in self.versions.values()):
            raise ValueError(f"`versions` of a training record must be texts, got {self.versions!r}.")
        if not isinstance(self.log, list) or not all(isinstance(entry, Mapping) for entry in self.log):
            raise ValueError("`log` of a training record must be a list of objects.")
        self.log = _numbers_only(self.log)

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
        settings = {name: _plain(getattr(args, name)) for name in _ALWAYS}
        defaults = {item.name: item.default for item in fields(args)}
        for name in _UNLESS_DEFAULT:
            value = getattr(args, name)
            if value not in (defaults[name], None, {}, False):
                settings[name] = _plain(value)
        if "max_steps" in settings:
            settings.pop("num_train_epochs")
        log = _numbers_only(state.log_history)
        split, results = _results(log, state.best_global_step if args.load_best_model_at_end else None)
        return cls(
            dataset=dataset,
            base_model=base_model or model.name_or_path or None,
            license=license,
            settings=settings,
            growth=_differences(growth),
            log=log,
            split=split,
            results={name: value for name, value in results.items() if name not in ("step", "epoch")},
            results_step=results.get("step"),
            weights=fingerprint(model),
            device=_device(args),
            processes=args.world_size,
            emissions_grams=_emissions(Path(args.output_dir or ".")),
            versions=versions(),
        )

    def seconds(self) -> float | None:
        """Duration of the training."""
        return next((entry["train_runtime"] for entry in reversed(self.log) if "train_runtime" in entry), None)

    def save(self, folder: Path) -> None:
        """Write the record into a folder."""
        (folder / RECORD_NAME).write_text(json.dumps(asdict(self), indent=2, allow_nan=False) + "\n")

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
        if not set(values) <= {item.name for item in fields(cls)}:
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


def is_repo_id(name: str) -> bool:
    """Whether a name can be that of a repo on the Hub; folders are not, and neither are names without a namespace."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return "/" in name and not Path(name).exists()


def public_name(source: str) -> str:
    """What may be told of where something came from: the id of a repo, or the last part of a path."""
    if is_repo_id(source):
        return source
    return Path(source).name or Path(source).resolve().name


def _plain(value: Any) -> Any:
    """Enumerations as their value; everything else fit for JSON is kept."""
    return getattr(value, "value", value)


def _differences(growth: GrowthConfig | None) -> dict[str, Any]:
    """When a model grew is always told; other options only where they are not the default."""
    if growth is None:
        return {}
    default = type(growth)().to_dict()
    times = ("warmup", "interval", "unit", "num_events")
    own, other = (times, ("at",)) if growth.at is None else (("at",), times)
    always = (*own, "criterion", "operator", "max_growth")
    told = {
        name: value
        for name, value in growth.to_dict().items()
        if name not in other and (name in always or value != default[name])
    }
    if told["max_growth"] is None:
        del told["max_growth"]  # another limit is told
    return told


def _results(log: list[dict[str, float]], best_step: int | None) -> tuple[str, dict[str, Any]]:
    """
    The metrics that the shared weights have: those of a test after the training, else of the last validation, or of
    that at the step of the best checkpoint, where it was loaded in the end.
    """
    ends = [index for index, entry in enumerate(log) if "train_runtime" in entry]
    tests = [entry for entry in log[ends[-1] :] if "test_loss" in entry] if ends else []
    evaluations = [entry for entry in log if "eval_loss" in entry and best_step in (None, entry.get("step"))]
    for split, prefix, found in (("test", "test_", tests), ("validation", "eval_", evaluations)):
        if found:
            metrics = {key.removeprefix(prefix): value for key, value in found[-1].items()}
            return split, {key: value for key, value in metrics.items() if key not in _SPEEDS}
    return "validation", {}


def _numbers_only(log: Iterable[Mapping[str, Any]]) -> list[dict[str, float]]:
    """Entries without texts, lists and values that are not finite, which JSON and pictures cannot hold."""
    entries = [{str(key): value for key, value in entry.items() if is_number(value)} for entry in log]
    return [entry for entry in entries if entry]


def _device(args: TrainingArguments) -> str:
    if args.device.type == "cuda":
        return torch.cuda.get_device_name(args.device)
    return f"{args.device.type} ({platform.machine()})"


def _emissions(folder: Path) -> float | None:
    """Grams of CO2 equivalent in codecarbon's `emissions.csv`, where its callback wrote one."""
    path = folder / "emissions.csv"
    if not path.is_file():
        return None
    header, *_, last = path.read_text().splitlines()
    kilograms = dict(zip(header.split(","), last.split(","), strict=False)).get("emissions")
    return None if kilograms is None else 1000 * float(kilograms)
