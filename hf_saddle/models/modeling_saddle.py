"""Growable models of every family: those of stock, whose layers grow; made when they are asked for by name."""

import importlib
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from huggingface_hub import CommitInfo
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from transformers import CONFIG_MAPPING, MODEL_MAPPING, PreTrainedModel
from transformers import initialization as init
from transformers.models.auto import modeling_auto
from transformers.models.auto.auto_factory import _BaseAutoModelClass
from transformers.utils.output_capturing import _CAN_RECORD_REGISTRY

from .blocks import block_siblings
from .branch_guard import branch_links, check_quantiser, guarded
from .checkpoint_checks import check_headers, check_values, whole_numbers
from .configuration_saddle import SaddleConfig, config_class
from .families import FAMILIES, family_of
from .growable import Growable, PairedLinear, SkipBranch, linear_at
from .heads import Attention, attentions_in, heads_of
from .history_file import read_history, write_history
from .injection import inject_
from .loading import check_files, check_loaded, resize_to_
from .pushing import upload
from .resizing import retire_
from .shapes import Shapes, grown_heads
from .sites import Site, sites_in
from .stock import convert_stock, growable_config, part_types, read_stock, replace_config_
from .vision import STOCK_KEYS, init_tokens_


_HUB_KWARGS = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")


class GrowablePreTrainedModel(PreTrainedModel):
    """
    What is growable in a model, whose class is made of this one and of the stock class.

    `growth_history` is the record of the growth events, a JSON document that is saved and loaded with the model as
    `growth_history.json`; it is `None` for a model that never grew.
    """

    config: SaddleConfig
    stock_class: type[PreTrainedModel]
    stock_key_mapping: dict[str, str] | None = None
    growth_history: dict[str, Any] | None = None
    # What has quantised the model, where `from_pretrained` was asked for it.
    hf_quantizer: Any = None
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

    # ---------------------------------------------------------------------------------------------- growable linears
    def growable_linears(self) -> Iterator[Site]:
        """
        Yield every growable linear in canonical order, branches right after the linear they feed.

        Where a tuner has wrapped a linear, the one inside is yielded, under the path of the wrapper.

        Raises:
            ValueError: If another module has taken the place of a linear, as quantisers do.
        """
        for site in self.linear_places():
            yield replace(site, module=linear_at(site.path, site.module))

    def linear_places(self) -> Iterator[Site]:
        """Yield every place of a growable linear with what is there, be it wrapped or exchanged."""
        prefix = "" if self.base_model is self else f"{self.base_model_prefix}."
        yield from sites_in(self.base_model, prefix)

    def get_submodule(self, target: str) -> nn.Module:
        """
        As in torch.

        Raises:
            ValueError: If the path leads into the branch of a linear whose place a tuner or a quantiser has taken, as
                happens where they go on to the branch. The message tells what to do.
        """
        try:
            module: nn.Module = super().get_submodule(target)
            return module
        except AttributeError as error:
            path, in_branch, _ = target.rpartition(".skip")
            place = super().get_submodule(path) if in_branch else None
            if place is None or isinstance(place, Growable):
                raise
            raise ValueError(
                f"A {type(place).__name__} has taken the place of {path}, so that {target} is out of reach. "
                'Leave branches out: for adapters of PEFT by `exclude_modules=["skip.linear"]`, for quantisers by '
                "naming the linears that have a branch in `modules_to_not_convert` or its like. A part of the linears "
                "has been exchanged by now: load the model anew."
            ) from error

    def check_linears(self, sharded: bool = False) -> None:
        """
        Verify that the growable linears are as they were built: not wrapped, exchanged or quantised.

        Args:
            sharded (`bool`, *optional*, defaults to `False`): Whether their weights may be shards (FSDP2).

        Raises:
            ValueError: If an adapter or a quantiser has taken the place of one. The message tells what to do.
        """
        for site in self.linear_places():
            path, module, linear = site.path, site.module, linear_at(site.path, site.module)
            if module is not linear:
                raise ValueError(
                    f"A {type(module).__name__} has taken the place of the linear {path}, which cannot change then. "
                    "Merge adapters first (`merge_and_unload()` of a PeftModel), or remove them (`unload()` of a "
                    "PeftModel, `model.delete_adapter` after `model.add_adapter`)."
                )
            weight: Tensor = linear.weight
            if sharded and isinstance(weight, DTensor):
                weight = weight.to_local()
            if is_traceable_wrapper_subclass(weight):
                raise ValueError(
                    f"The weights of {path} are no plain tensors but {type(weight).__name__}, and cannot be "
                    "changed. Change the model as it was before it was quantised or sharded."
                )

    def shapes(self) -> Shapes:
        """The shapes that the modules have."""
        sites = list(self.growable_linears())  # which raises where linears were exchanged
        return Shapes.of_modules(sites, grown_heads(self.config, heads_of(self.base_model)))

    def attentions(self) -> Iterator[Attention]:
        """Yield every self-attention module whose heads can grow."""
        prefix = "" if self.base_model is self else f"{self.base_model_prefix}."
        yield from attentions_in(self.base_model, prefix)

    def update_config_(self) -> None:
        """Write the shapes of the modules into the config."""
        self.shapes().write_(self.config, self.config.skip_unit)

    # ------------------------------------------------------------------------------------------------------- loading
    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *model_args: Any, **kwargs: Any) -> Any:
        """
        As in transformers, with three additions: only safetensors are read, the growth history is loaded too, and a
        checkpoint that lacks a tensor, has one too many, or whose tensors do not fit, is refused. Only a head, a
        pooler or a mask token may be missing, and start anew, or be left over. The config is compared with the headers
        of the weight files before anything is built, so that loading never takes more than they can fill.

        Raises:
            ValueError: If the checkpoint is truncated, of another shape than its config, or of another model type, or
                if weights are not floating point numbers, or not finite.
        """
        want_info = kwargs.pop("output_loading_info", False)
        source = {key: kwargs[key] for key in _HUB_KWARGS if key in kwargs}
        ignore_sizes = kwargs.pop("ignore_mismatched_sizes", False)
        fixed = {"use_safetensors": True, "ignore_mismatched_sizes": True, "output_loading_info": True}
        try:
            check_files(cls, pretrained_model_name_or_path, source, kwargs)
            model, info = super().from_pretrained(pretrained_model_name_or_path, *model_args, **kwargs | fixed)
        except SafetensorError as error:
            raise ValueError(f"The weights in {pretrained_model_name_or_path} are damaged: {error}") from error
        check_loaded(model, info, str(pretrained_model_name_or_path), ignore_sizes=ignore_sizes)
        if pretrained_model_name_or_path is not None:
            origin = pretrained_model_name_or_path
            if model._hf_peft_config_loaded:
                # The folder was that of an adapter, and the history is with its base.
                origin, source = model.config.name_or_path, source | {"revision": None, "subfolder": ""}
            model.growth_history = read_history(origin, source)
        return (model, info) if want_info else model

    @staticmethod
    def _load_pretrained_model(
        model: Any, state_dict: Any, checkpoint_files: Any, load_config: Any, *args: Any, **kwargs: Any
    ) -> Any:
        # The model is still on the meta device; tensors that do not fit would be made next, others cast to its dtype.
        if checkpoint_files is not None and load_config.hf_quantizer is None:
            check_headers(model.state_dict(), f"{model.base_model_prefix}.", checkpoint_files)
        # A quantiser has exchanged modules by now, but nothing is read yet.
        for _ in branch_links(model.base_model):
            pass
        if load_config.hf_quantizer is not None:
            check_quantiser(model, load_config.hf_quantizer)
        return PreTrainedModel._load_pretrained_model(
            model, state_dict, checkpoint_files, load_config, *args, **kwargs
        )

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Tensor], prefix: str, local_metadata: dict[str, Any], *args: Any
    ) -> None:
        # `Trainer` resumes, and reloads its best model, by `load_state_dict`, where the checkpoint may be smaller or
        # larger than the model: the modules take the shapes of the incoming tensors before those are copied.
        own = {name: tensor for name, tensor in state_dict.items() if name.startswith(prefix)}
        whole = whole_numbers(self.state_dict(), prefix)
        more = {name for name in whole_numbers(own) if not whole.isdisjoint(block_siblings(name))}
        check_values(own, "the checkpoint", whole | more)
        resize_to_(self, state_dict, prefix)
        if local_metadata.get("assign_to_params_buffers", False):
            # `load_state_dict(assign=True)` puts those of the checkpoint in place of the parameters.
            incoming = ((old, state_dict.get(prefix + name)) for name, old in self.named_parameters())
            retire_(old for old, new in incoming if new is not None and new is not old and new.shape == old.shape)
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)

    # -------------------------------------------------------------------------------------------------------- saving
    def save_pretrained(
        self, save_directory: str | os.PathLike[str], is_main_process: bool = True, **kwargs: Any
    ) -> None:
        """As in transformers; the growth history is written beside the weights."""
        if is_main_process and not os.path.isfile(save_directory):
            self.save_growth_history(save_directory)
            # With `trust_remote_code=True`, every Auto class that fits loads it, and the bare base model too.
            model_type = self.config.model_type.removeprefix("saddle_")
            autos = [name for name, stock in auto_classes(model_type) if self.stock_class.__name__ in stock]
            base = model_class(MODEL_MAPPING[CONFIG_MAPPING[model_type]], model_type)
            self.config.auto_map = {"AutoConfig": _code(type(self.config)), "AutoModel": _code(base)}
            self.config.auto_map |= dict.fromkeys(autos, _code(type(self)))
        sharded: Any = type(self)
        try:
            # transformers saves the code of the class, which is not that of FSDP2.
            self.__class__ = _own_class(sharded)
            super().save_pretrained(save_directory, is_main_process=is_main_process, **kwargs)
        finally:
            self.__class__ = sharded

    def save_growth_history(self, folder: str | os.PathLike[str]) -> None:
        """Write the growth history into a folder; without one, a history that is there is removed."""
        write_history(self.growth_history, folder)

    def _upload_modified_files(
        self,
        working_dir: str | os.PathLike[str],
        repo_id: str,
        files_timestamps: dict[str, float],
        commit_message: str | None = None,
        **options: Any,
    ) -> CommitInfo:
        """As in transformers; the same commit deletes what an earlier push of a model left and this one has not."""
        return upload(
            self, working_dir, repo_id, files_timestamps, commit_message=commit_message or "Upload model", **options
        )

    # ---------------------------------------------------------------------------------------------------- conversion
    @classmethod
    def from_stock(cls, model: PreTrainedModel | str | os.PathLike[str], **config_overrides: Any) -> Any:
        """
        Build a growable model with the weights of a stock one; its outputs equal the stock model's bit for bit.

        Args:
            model (`PreTrainedModel` or `str` or `os.PathLike`):
                A stock model of the matching class, a folder, or a repo id on the Hub. Checkpoints of a folder or
                repo may have the key names of any transformers version, and may be those of a model of several of
                which this is one: `SaddleCLIPVisionModel` takes its part of a whole CLIP.
            config_overrides:
                Fields of the config to change. With another `num_labels` (or `id2label`) the head starts anew.

        Raises:
            ValueError: If the model is of another type, or if a tensor of it would not be used.
        """
        return convert_stock(cls, model, **config_overrides)

    @classmethod
    def load_stock(cls, path: str | os.PathLike[str], **source: Any) -> PreTrainedModel:
        """
        The stock model of a checkpoint, with every weight restored; `source` are arguments such as `revision`.

        Raises:
            ValueError: If the checkpoint is of another type, or does not fill the stock class.
        """
        return read_stock(cls, path, **source)


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


def auto_classes(model_type: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield the Auto classes that know a stock model type, each with the names of its model classes."""
    for name, kind in vars(modeling_auto).items():
        if isinstance(kind, type) and issubclass(kind, _BaseAutoModelClass):
            auto: Any = kind
            # The truth of a mapping would import all that it has.
            found = () if auto._model_mapping is None else auto._model_mapping._model_mapping.get(model_type, ())
            names = (found,) if isinstance(found, str) else tuple(found)
            if names:
                yield name, names


def stock_named(name: str) -> Any:
    """The stock model class of a name, of the families that are described; `None` if there is none."""
    for model_type in FAMILIES:
        config = CONFIG_MAPPING[model_type]
        if not name.startswith(re.sub("(Text|Vision)?Config$", "", config.__name__)):
            continue
        # Not all of them are exported by transformers itself.
        code = importlib.import_module(config.__module__.replace(".configuration_", ".modeling_"))
        found = vars(code).get(name)
        if isinstance(found, type) and issubclass(found, PreTrainedModel):
            return found
    return None


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
        raise ValueError(
            f"A {type(model).__name__} is not a model class of transformers, so that it has no growable twin. Unwrap "
            "it, merge adapters, or load it with the class of transformers."
        )
    own: Any = type(model)
    kind = model_class(own, model_type)
    inject_(model.base_model, growable_config(kind, model.config))
    base = model.base_model
    replace_config_(model, growable_config(kind, model.config))
    for part in {base, model}:
        stock: Any = type(part)
        take_class_(part, model_class(stock, model_type))
    return model


def _own_class(kind: Any) -> Any:
    """The class of a model; FSDP2 puts one of its own in front of it."""
    return next(base for base in kind.__mro__ if not issubclass(base, FSDPModule))


def _code(kind: type) -> str:
    """A class as `auto_map` names it."""
    own = _own_class(kind)
    return f"{own.__module__.split('.')[-1]}.{own.__name__}"


def __getattr__(name: str) -> Any:
    stock = stock_named(name.removeprefix("Saddle")) if name.startswith("Saddle") else None
    if stock is not None and stock.config_class is not None and stock.config_class.model_type in FAMILIES:
        return model_class(stock, stock.config_class.model_type)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = ["GrowablePreTrainedModel", "auto_classes", "growable", "model_class"]
