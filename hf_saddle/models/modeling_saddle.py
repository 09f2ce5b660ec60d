"""Growable models of every family: those of stock, whose layers grow; made when they are asked for by name."""

from functools import cache
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.utils.output_capturing import _CAN_RECORD_REGISTRY

from .branch_guard import guarded
from .checkpointed import CheckpointedModel
from .configuration_saddle import config_class
from .families import FAMILIES, blocks_in, family_of, unknown_class
from .growable import PairedLinear, SkipBranch
from .growable_parts import GrowableParts
from .injection import inject_
from .stock import growable_config, part_types, replace_config_
from .stock_classes import auto_classes, stock_named
from .vision import STOCK_KEYS, init_tokens_


class GrowablePreTrainedModel(GrowableParts, CheckpointedModel):
    """What is growable in a model, whose class is made of this one and of the stock class."""

    _no_split_modules: Any
    # What `check_branches` found at the last forward pass.
    _branch_links: tuple[Any, tuple[Any, ...], tuple[Any, ...]] | None = None

    def post_init(self) -> None:
        """As in transformers, where it ends the constructors; the layers become growable before it."""
        base = self.base_model
        if not isinstance(base, GrowablePreTrainedModel):
            stock: Any = type(base)
            take_class_(base, model_class(stock, self.config.model_type.removeprefix("saddle_")))
        if inject_(base, self.config):
            # Stock constructors have initialised them in the shapes of stock.
            for module in self.modules():
                module._is_hf_initialized = False
        super().post_init()
        if not self._no_split_modules:
            # Such stock models are spread over devices by their layers, which is too fine for those with a branch.
            paths = (path for path, _ in blocks_in(base, self.config))
            self._no_split_modules = {type(base.get_submodule(path)).__name__ for path in paths}

    @classmethod
    def is_custom_code(cls) -> bool:
        """
        As of stock classes. For others transformers passes over modules without parameters of their own, and with them
        over what the rules of stock say of those that they hold; `_init_weights` leaves alone what was loaded.
        """
        return False

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        init_tokens_(module, self.config)

    @torch.no_grad()
    def initialize_weights(self) -> None:
        """As in transformers; branches too, which may be in stacks that are models of stock by themselves."""
        parts = [part for part in self.modules() if isinstance(part, (PairedLinear, SkipBranch))]
        waiting = [part for part in parts if not vars(part).get("_is_hf_initialized", False)]
        super().initialize_weights()
        for part in waiting:
            if isinstance(part, PairedLinear):
                init.copy_(part.twin_weight, -part.weight)
                init.copy_(part.twin_bias, -part.bias)
            else:
                if part.gain is not None:
                    init.zeros_(part.gain)
                init.copy_(part.target, torch.arange(part.target.numel()) % part.neurons)

    def _get_dtype_plan(self, dtype: torch.dtype) -> dict[str, torch.dtype]:
        plan: dict[str, torch.dtype] = super()._get_dtype_plan(dtype)
        # Layers that are kept in single precision have whole numbers, too: the neurons that units feed.
        return {r"*\.skip\.target$": torch.int64} | plan if plan else plan


def take_class_(model: Any, kind: type[GrowablePreTrainedModel]) -> None:
    """Make a stock model one of a growable class, in place; its layers stay what they are."""
    records = model._can_record_outputs
    model.__class__ = kind
    # Filled in the constructor, under the name of the class.
    _CAN_RECORD_REGISTRY[model] = records


@cache
def model_class(stock: Any, model_type: str) -> type[GrowablePreTrainedModel]:
    """The growable class of a stock model class, for the configs of a model type."""
    root = next(kind for kind in stock.__mro__ if PreTrainedModel in kind.__bases__)
    bases = (GrowablePreTrainedModel, stock) if stock is root else (model_class(root, model_type), stock)
    name = f"Saddle{stock.__name__}"
    autos = (auto for auto, known in auto_classes(model_type) if stock.__name__ in known)
    body: dict[str, Any] = {
        "__module__": __name__,
        "__qualname__": name,
        "__doc__": f"Growable [`~transformers.{stock.__name__}`], with its arguments and outputs.",
        "config_class": config_class(model_type),
        "stock_class": stock,
        "stock_key_mapping": STOCK_KEYS.get(stock.__name__),
    }
    if stock is not root:
        body["forward"] = guarded(stock.forward)
    made: Any = type(name, bases, body)
    made.register_for_auto_class(next(autos, "AutoModel"))
    return made  # type: ignore[no-any-return]


def growable(model: PreTrainedModel) -> Any:
    """
    Turn a stock model into its growable twin, in place; its outputs stay the same, bit for bit.

    Parameters, hooks, dtype, device and mode stay, so that an optimizer goes on with them.

    Args:
        model (`PreTrainedModel`): A model of a class that transformers has, of any family in `FAMILIES`.

    Returns:
        [`GrowablePreTrainedModel`]: The model itself.

    Raises:
        ValueError: If it is of another family or class, or a layer of it was exchanged, as adapters and quantisers do.

    Example:

    ```python
    >>> from transformers import AutoModelForCausalLM
    >>> import hf_saddle

    >>> model = hf_saddle.growable(AutoModelForCausalLM.from_pretrained("openai-community/gpt2"))
    ```"""
    if isinstance(model, GrowablePreTrainedModel):
        return model
    if not isinstance(model, PreTrainedModel):
        raise ValueError(_no_twin(model))
    model_type = model.config.model_type
    parts = [field for field, kind in part_types(model.config).items() if kind in FAMILIES]
    if model_type not in FAMILIES and parts:
        raise ValueError(
            f"A {type(model).__name__} is made of several models, and only one by itself grows: that of its "
            f"`{parts[0]}`. Load it from the same checkpoint by `from_stock` of its Saddle class, such as "
            "`hf_saddle.SaddleCLIPVisionModel.from_stock(folder or repo)` for the images of CLIP."
        )
    family_of(model_type)
    if stock_named(type(model).__name__) is not type(model):
        raise ValueError(_no_twin(model))
    own: Any = type(model)
    kind = model_class(own, model_type)
    inject_(model.base_model, growable_config(kind, model.config))
    base = model.base_model
    replace_config_(model, growable_config(kind, model.config))
    for part in {base, model}:
        stock: Any = type(part)
        take_class_(part, model_class(stock, model_type))
    return model


def _no_twin(model: object) -> str:
    return (
        f"A {type(model).__name__} is not a model class of transformers, so that it has no growable twin. Unwrap it, "
        "merge adapters, or load it with the class of transformers."
    )


def __getattr__(name: str) -> Any:
    stock = stock_named(name.removeprefix("Saddle")) if name.startswith("Saddle") else None
    if stock is not None and stock.config_class is not None and stock.config_class.model_type in FAMILIES:
        return model_class(stock, stock.config_class.model_type)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}{unknown_class(name)}")
