"""The model card: metadata that the Hub understands, and text whose every number comes from the model's own files."""

import json
import re
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ..growth import GrowthEvent, GrowthHistory, count_macs, count_parameters
from ..growth.block_records import block_texts
from ..growth.surgery import versions
from ..models.configuration_saddle import TRANSFORMERS_RANGE
from ..models.modeling_saddle import GrowablePreTrainedModel
from .card_task import card_task, meta_sample, sample_name
from .comparison import Comparison
from .comparison_text import comparison_text, settings_text
from .escape import markdown, number, plain, quantity
from .names import is_repo_id
from .record import TrainingRecord
from .states import blocks_of, expected, forecast, growths, losses_text


TEMPLATE = Path(__file__).with_name("model_card_template.md")
PICTURES = "pictures"
MARK = "<!-- Written by hf-saddle"
_TAGS = ("hf-saddle", "growing-network")
_KINDS = {"deit": "distilled DeiT (class and distillation token)"}
_PAPER = "arxiv:2402.12418"
# What a metric is called, where the Hub has a name for it.
_METRICS = {"accuracy": "Accuracy", "perplexity": "Perplexity"}
_MAX_LABELS = 20
_NO_CODE = str.maketrans("`|", "''")


def render_model_card(
    model: GrowablePreTrainedModel,
    record: TrainingRecord | None = None,
    *,
    name: str,
    repo_id: str | None = None,
    pictures: list[str] | None = None,
    comparison: Comparison | None = None,
    has_processor: bool = False,
    tags: list[str] | None = None,
) -> ModelCard:
    """
    The card of a model.

    Args:
        model ([`GrowablePreTrainedModel`]): The model; its weights are not read.
        record ([`TrainingRecord`], *optional*): What was measured while it was trained.
        name (`str`): Title of the card, and the folder to load from where there is no `repo_id`.
        repo_id (`str`, *optional*): The repo on the Hub.
        pictures (`list[str]`, *optional*): Names of the pictures in the folder `pictures` beside the card.
        comparison ([`Comparison`], *optional*): What the same training came to without growth and with random growth.
        has_processor (`bool`, *optional*, defaults to `False`): Whether its processor or tokenizer is beside the card.
        tags (`list[str]`, *optional*): More tags.

    Raises:
        ValueError: If the growth history does not lead to this model, or is damaged.
    """
    history = GrowthHistory.from_model(model)
    if not history.matches(model):
        history.check(model)
    config, task = model.config, card_task(model)
    source = json.dumps(repo_id if repo_id is not None else plain(name), ensure_ascii=False).replace("`", "'")
    context: dict[str, Any] = {
        "title": markdown(name),
        "summary": _summary(model, history),
        "pictures": pictures or [],
        "folder": PICTURES,
        "sizes": _sizes(model, history),
        "repo_id": repo_id,
        "source": source,
        "processed": has_processor,
        "sample_shape": tuple(meta_sample(model)[model.main_input_name].shape),
        "task": task,
        "transformers_range": TRANSFORMERS_RANGE,
        "transformers_version": versions()["transformers"],
        "labels": _labels(config.id2label) if task.labelled and config.num_labels else "",
        "stock_class": model.stock_class.__name__,
        "is_deit": config.model_type in ("saddle_deit", "saddle_vit"),
        "growth_sentence": history.summary(),
        "events": [_event(index, event) for index, event in enumerate(history.events, 1)],
        "rows": [row for index, event in enumerate(history.events, 1) for row in _rows(index, event)],
        "record": record,
        "comparison": None if comparison is None else comparison_text(comparison),
        "compared": "" if comparison is None else markdown(settings_text(comparison), 1000),
        "versions": _versions(history, record),
    }
    context |= _training(record) if record is not None else {"results": []}
    card: ModelCard = ModelCard.from_template(_metadata(model, record, name, tags or []), str(TEMPLATE), **context)
    return card


def _metadata(
    model: GrowablePreTrainedModel, record: TrainingRecord | None, name: str, tags: list[str]
) -> ModelCardData:
    task = card_task(model)
    own = [*_TAGS, task.modality, _PAPER, model.config.model_type.removeprefix("saddle_")]
    fields: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": task.pipeline,
        "tags": [*own, *(plain(tag) for tag in tags if tag not in own)],
    }
    if record is None:
        return ModelCardData(**fields)
    if record.license is not None:
        if not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", record.license):
            raise ValueError(f"`license` must be a name that the Hub knows, as 'apache-2.0', got {record.license!r}.")
        fields["license"] = record.license
    if record.base_model is not None and is_repo_id(record.base_model):
        fields |= {"base_model": plain(record.base_model), "base_model_relation": "finetune"}
    if record.dataset is not None and is_repo_id(record.dataset):
        fields["datasets"] = [record.dataset]
    if record.emissions_grams is not None:
        kind = "pre-training" if record.base_model is None else "fine-tuning"
        emissions = {"emissions": record.emissions_grams, "source": "codecarbon", "training_type": kind}
        fields["co2_eq_emissions"] = emissions
    measured = [metric for metric in _METRICS if metric in record.results and task.metric == metric]
    if record.dataset is not None and measured:
        fields |= {"metrics": measured, "model_name": plain(name)}
        fields["eval_results"] = [
            EvalResult(
                task_type=task.pipeline,
                task_name=task.title,
                dataset_type=plain(record.dataset),
                dataset_name=plain(record.dataset),
                dataset_split=plain(record.split),
                metric_type=metric,
                metric_name=_METRICS[metric],
                metric_value=float(record.results[metric]),
            )
            for metric in measured
        ]
    return ModelCardData(**fields)


def _shape(model: GrowablePreTrainedModel) -> str:
    """`A ViT of 4 blocks, 64 wide, 4 heads`, as far as the config has such fields."""
    config = model.config
    family = config.model_type.removeprefix("saddle_")
    kind = _KINDS.get(family, model.stock_class.config_class.__name__.removesuffix("Config"))
    blocks = 1 + max(site.block for site in model.growable_linears())
    fields = config.to_dict()
    width, heads = (
        fields.get(config.attribute_map.get(name, name)) for name in ("hidden_size", "num_attention_heads")
    )
    told = [f"A {kind} of {blocks} blocks"]
    told += [f"{width} wide"] if isinstance(width, int) else []
    told += [f"{heads} heads"] if isinstance(heads, int) else []
    return ", ".join(told)


def _summary(model: GrowablePreTrainedModel, history: GrowthHistory) -> str:
    shape, size = _shape(model), history.initial.parameters
    if not history.events:
        return f"{shape}, with {quantity(size)} parameters. It is growable and has not grown."
    return (
        f"{shape}, that grew while it was trained: from {quantity(size)} to "
        f"{quantity(count_parameters(model))} parameters in {len(history.events)} events."
    )


def _sizes(model: GrowablePreTrainedModel, history: GrowthHistory) -> list[tuple[str, str, str, str]]:
    first = history.initial
    rows = (
        ("parameters", first.parameters, count_parameters(model)),
        (f"multiply-accumulates per {sample_name(model)}", first.macs, count_macs(model)),
    )
    return [(name, number(start), number(end), f"{end / start:.3f}") for name, start, end in rows]


def _labels(id2label: dict[int, str]) -> str:
    shown = [markdown(id2label[index], 40) for index in sorted(id2label)[:_MAX_LABELS]]
    rest = len(id2label) - len(shown)
    return ", ".join(shown) + (f" and {rest} more" if rest else "")


def _optional(value: float | None, digits: int = 4) -> str:
    return "" if value is None else number(value, digits)


def _event(index: int, event: GrowthEvent) -> dict[str, str]:
    return {
        "number": str(index),
        "step": _optional(event.step),
        "epoch": _optional(event.epoch),
        "criterion": markdown(event.criterion or "by hand"),
        "operators": markdown(", ".join([*map(str, event.operators), *block_texts(event.blocks)]) or "none"),
        "neurons": number(event.neurons) + (f" and {number(event.heads)} heads" if event.heads else ""),
        "gain": forecast(event),
        "losses": losses_text(event),
        "parameters": f"{number(event.parameters_before)} → {number(event.parameters_after)}",
        "seconds": number(event.seconds),
    }


def _rows(index: int, event: GrowthEvent) -> list[dict[str, str]]:
    event_blocks = blocks_of(event.shapes)
    return [
        {
            "event": str(index),
            "block": f"`{event_blocks[growth.layer]}`",
            "linear": f"`{growth.linear}{'.skip.linear' * growth.nested}`",
            "operator": f"`{growth.operator}`",
            "chosen": f"{number(growth.chosen)} of {number(growth.candidates)}",
            "eigenvalues": ", ".join(number(value) for value in growth.eigenvalues) if event.criterion else "",
            "gain": expected(event, growth),
        }
        for growth in growths(event)
    ]


def _training(record: TrainingRecord) -> dict[str, Any]:
    sentence = "Trained"
    sentence += f" on {markdown(record.dataset)}" if record.dataset is not None else " on data that were not recorded"
    if record.base_model is not None:
        sentence += f", starting from {markdown(record.base_model)}"
    if record.device is not None:
        sentence += f", on {number(record.processes)} × {markdown(record.device)}"
    seconds = record.seconds()
    sentence += "." if seconds is None else f", in {number(seconds)} s (growth and validation included)."
    settings = [(_code(key), markdown(value)) for key, value in record.settings.items()]
    settings += [(f"growth {_code(key)}", markdown(value)) for key, value in record.growth.items()]
    of_dataset = "" if record.dataset is None else f" of {markdown(record.dataset)}"
    return {
        "training_sentence": sentence,
        "settings": settings,
        "results": [(markdown(key), number(value, 4)) for key, value in record.results.items()],
        "split": markdown(record.split),
        "of_dataset": of_dataset + ("" if record.results_step is None else f" at step {number(record.results_step)}"),
    }


def _code(name: str) -> str:
    """A name as code, in a table."""
    return f"`{plain(name).translate(_NO_CODE)}`"


def _versions(history: GrowthHistory, record: TrainingRecord | None) -> str:
    """Of the training, where they are known; else of the last growth; else of the library that writes."""
    found = history.events[-1].versions if history.events else versions()
    if record is not None and record.versions:
        found = record.versions
    return ", ".join(f"{markdown(name)} {markdown(version)}" for name, version in found.items())
