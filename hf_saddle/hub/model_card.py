"""The model card: metadata that the Hub understands, and text whose every number comes from the model's own files."""

import json
import re
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ..growth import GrowthHistory, count_macs, count_parameters
from ..growth.records.block_records import block_texts
from ..growth.surgery.grow import versions
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
    history = GrowthHistory.leading_to(model)
    config, task = model.config, card_task(model)
    source = json.dumps(repo_id if repo_id is not None else plain(name), ensure_ascii=False).replace("`", "'")
    trained_with = record.versions if record is not None else {}
    grown_with = history.events[-1].versions if history.events else versions()
    labels = sorted(config.id2label.items()) if task.labelled and config.num_labels else []
    first = history.initial
    context: dict[str, Any] = {
        "title": markdown(name),
        "summary": _summary(model, history),
        "pictures": pictures or [],
        "folder": PICTURES,
        "sizes": [
            ("parameters", first.parameters, count_parameters(model)),
            (f"multiply-accumulates per {sample_name(model)}", first.macs, count_macs(model)),
        ],
        "repo_id": repo_id,
        "source": source,
        "processed": has_processor,
        "sample_shape": tuple(meta_sample(model)[model.main_input_name].shape),
        "task": task,
        "transformers_range": TRANSFORMERS_RANGE,
        "transformers_version": versions()["transformers"],
        "labels": [label for _, label in labels],
        "stock_class": model.stock_class.__name__,
        "is_deit": config.model_type in ("saddle_deit", "saddle_vit"),
        "history": history,
        "record": record,
        "comparison": None if comparison is None else comparison_text(comparison),
        "compared": "" if comparison is None else markdown(settings_text(comparison), 1000),
        "versions": trained_with or grown_with,
    }
    card: ModelCard = ModelCard.from_template(
        _metadata(model, record, name, tags or []), str(TEMPLATE), **context, **_WORDING
    )
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


def _code(name: str) -> str:
    """A name as code, in a table."""
    return f"`{plain(name).translate(_NO_CODE)}`"


# What the template says numbers and texts by: all that others wrote passes through one of these.
_WORDING: dict[str, Any] = {
    "block_texts": block_texts,
    "blocks_of": blocks_of,
    "code": _code,
    "expected": expected,
    "forecast": forecast,
    "growths": growths,
    "losses_text": losses_text,
    "markdown": markdown,
    "number": number,
}
