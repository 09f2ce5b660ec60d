"""Stock models become growable ones, with every weight in its place."""

import copy
import os
import re
from typing import Any

from transformers import AutoConfig, PreTrainedModel


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


def convert_stock(cls: Any, model: PreTrainedModel | str | os.PathLike[str], **config_overrides: Any) -> Any:
    """A growable model of class `cls` with the weights of a stock one, see `GrowablePreTrainedModel.from_stock`."""
    if isinstance(model, PreTrainedModel):
        stock = model
        if type(stock) is not cls.stock_class:
            raise ValueError(
                f"`{cls.__name__}.from_stock` takes a {cls.stock_class.__name__}, got a {type(stock).__name__}."
            )
    else:
        stock = read_stock(cls, model)
    config = growable_config(cls, stock.config, **config_overrides)
    grown = cls._from_config(config, dtype=stock.dtype, attn_implementation=stock.config._attn_implementation)
    weights = stock.state_dict()
    expected = {name: tensor.shape for name, tensor in grown.state_dict().items()}
    resized = {name for name in expected.keys() & weights.keys() if expected[name] != weights[name].shape}
    # With another number of labels, a head of which a part has another shape starts anew as a whole.
    anew = tuple({f"{name.split('.')[0]}." for name in resized if is_head(name)})
    if anew and config.num_labels != stock.config.num_labels:
        weights = {name: tensor for name, tensor in weights.items() if not name.startswith(anew)}
        expected = {name: shape for name, shape in expected.items() if not name.startswith(anew)}
        resized &= expected.keys()
    missing, unused = sorted(expected.keys() - weights.keys()), sorted(weights.keys() - expected.keys())
    if missing or unused or resized:
        raise ValueError(
            f"Converting {stock.config.name_or_path or type(stock).__name__}: no source for {missing}, no use for "
            f"{unused}, other shapes for {sorted(resized)}. Override only config fields that keep the stock shapes."
        )
    grown.load_state_dict(weights, strict=False)
    if grown.can_generate():
        grown.generation_config = copy.deepcopy(stock.generation_config)
    return grown.train(stock.training)


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


def read_stock(cls: Any, path: str | os.PathLike[str], **source: Any) -> PreTrainedModel:
    """The stock model of a checkpoint for a growable class `cls`, see `GrowablePreTrainedModel.load_stock`."""
    stock_type = cls.stock_class.config_class.model_type
    found = AutoConfig.from_pretrained(path, **source)
    # A model of several, such as the images and texts of CLIP, of which one is wanted.
    part = stock_type in part_types(found).values()
    if found.model_type != stock_type and not part:
        raise ValueError(
            f"`{cls.__name__}.from_stock` takes checkpoints of model type {stock_type!r}, but {path} is "
            f"{found.model_type!r}."
        )
    stock, info = cls.stock_class.from_pretrained(
        path, key_mapping=cls.stock_key_mapping, output_loading_info=True, **source
    )
    keys = ("missing_keys", "unexpected_keys")
    missing, unused = (
        sorted(name for name in info[key] if not known(name))
        for key, known in zip(keys, (is_head, may_be_left_over), strict=True)
    )
    if missing or (unused and not part):
        raise ValueError(
            f"{path} does not fill a {cls.stock_class.__name__}: missing {missing}, unused {unused}. Use the "
            "Saddle class that matches the checkpoint's architecture."
        )
    return stock.eval()


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
