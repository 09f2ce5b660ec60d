"""Models that load only what is theirs and whole, start from stock, and save their growth history with them."""

import copy
import os
from collections.abc import Mapping
from typing import Any

from huggingface_hub import CommitInfo
from safetensors import SafetensorError
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from transformers import CONFIG_MAPPING, MODEL_MAPPING, AutoConfig, PreTrainedModel

from .blocks import block_siblings
from .branch_guard import branch_links, check_quantiser
from .checkpoint_checks import check_headers, check_values, whole_numbers
from .configuration_saddle import SaddleConfig
from .history_file import read_history, write_history
from .loading import check_files, check_loaded, resize_to_
from .parameters import take_dtypes_
from .pushing import upload
from .resizing import retire_
from .stock import growable_config, is_head, may_be_left_over, part_types
from .stock_classes import auto_classes


_HUB_KWARGS = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")


class CheckpointedModel(PreTrainedModel):
    """
    The part of [`GrowablePreTrainedModel`] that loads, saves and converts it.

    `growth_history` is the record of the growth events, a JSON document that is saved and loaded with the model as
    `growth_history.json`; it is `None` for a model that never grew.
    """

    config: SaddleConfig
    stock_class: type[PreTrainedModel]
    stock_key_mapping: dict[str, str] | None = None
    growth_history: dict[str, Any] | None = None
    # What has quantised the model, where `from_pretrained` was asked for it.
    hf_quantizer: Any = None

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
        if pretrained_model_name_or_path is not None or kwargs.get("state_dict"):  # else all of it is to start anew
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
            base = MODEL_MAPPING[CONFIG_MAPPING[model_type]].__name__
            self.config.auto_map = {
                "AutoConfig": _code(type(self.config)),
                "AutoModel": f"modeling_saddle.Saddle{base}",
            }
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
        if isinstance(model, PreTrainedModel):
            stock = model
            if type(stock) is not cls.stock_class:
                raise ValueError(
                    f"`{cls.__name__}.from_stock` takes a {cls.stock_class.__name__}, got a {type(stock).__name__}."
                )
        else:
            stock = cls.load_stock(model)
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
                f"{unused}, other shapes for {sorted(resized)}. Override only config fields that keep the stock "
                "shapes."
            )
        take_dtypes_(grown, weights)
        grown.load_state_dict(weights, strict=False)
        if grown.can_generate():
            grown.generation_config = copy.deepcopy(stock.generation_config)
        return grown.train(stock.training)

    @classmethod
    def load_stock(cls, path: str | os.PathLike[str], **source: Any) -> PreTrainedModel:
        """
        The stock model of a checkpoint, with every weight restored; `source` are arguments such as `revision`.

        Raises:
            ValueError: If the checkpoint is of another type, or does not fill the stock class.
        """
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


def _own_class(kind: Any) -> Any:
    """The class of a model; FSDP2 puts one of its own in front of it."""
    return next(base for base in kind.__mro__ if not issubclass(base, FSDPModule))


def _code(kind: type) -> str:
    """A class as `auto_map` names it."""
    own = _own_class(kind)
    return f"{own.__module__.split('.')[-1]}.{own.__name__}"
