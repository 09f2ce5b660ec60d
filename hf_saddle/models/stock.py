"""What configs and names of tensors say of stock models that become growable."""

import re
from typing import Any

from transformers import PreTrainedModel


# Parts beside the base model, which may start anew, or be left over, where a checkpoint was trained for another task.
_HEADS = (
    "classifier.",
    "cls_classifier.",
    "distillation_classifier.",
    "classification_head.",
    "cls.",
    "hidden_states_norms.",  # of backbones
    "decoder.0.",  # of masked images; the decoders of texts have no layer of this name
    "lm_head.",
    "multiple_choice_head.",
    "pre_classifier.",
    "projector.",
    "qa_outputs.",
    "score.",
    "visual_projection.",
    "vocab_layer_norm.",
    "vocab_projector.",
    "vocab_transform.",
)


def growable_config(cls: Any, stock: Any, **overrides: Any) -> Any:
    """The config of a growable class `cls` with the fields of a stock config and others that override them."""
    fields = stock.to_dict()
    if {"num_labels", "id2label"} & set(overrides):
        fields.pop("id2label", None)
        fields.pop("label2id", None)
    for derived in ("model_type", "architectures", "transformers_version"):
        fields.pop(derived, None)
    return cls.config_class(**(fields | overrides))


def replace_config_(model: PreTrainedModel, new: Any) -> None:
    """Put another config in the place of a model's, wherever the modules of the model hold it."""
    old: Any = model.config
    new._name_or_path, new._attn_implementation = old._name_or_path, old._attn_implementation
    for module in model.modules():
        for name, value in list(vars(module).items()):
            if value is old:
                vars(module)[name] = new


def part_types(config: Any) -> dict[str, str]:
    """The model types of the parts that a model is made of, by their field in its config; none if it is one."""
    parts = {field: getattr(config, field) for field in config.sub_configs}
    return {field: part.model_type for field, part in parts.items() if part is not None}


def may_be_left_over(name: str) -> bool:
    """Whether a tensor is part of a head, or the last norm, for which backbones have no use."""
    return is_head(name) or re.match(r"(\w+\.)?layernorm\.", name) is not None


def is_head(name: str) -> bool:
    """Whether a tensor is part of a head or a pooler."""
    return name.startswith(_HEADS) or "pooler." in name
