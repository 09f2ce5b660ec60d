"""What the growable models have in common: growable linears, shapes, loading, saving and conversion."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from huggingface_hub import CommitInfo
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from transformers import PreTrainedModel
from transformers import initialization as init

from .branch_guard import branch_links
from .checkpoint_checks import check_headers, check_values
from .configuration_saddle import SaddleConfig
from .growable import Growable, PairedLinear, SkipBranch, linear_at
from .history_file import read_history, write_history
from .loading import check_files, check_loaded, resize_to_
from .pushing import upload
from .resizing import retire_
from .shapes import Shapes
from .sites import Site, sites_in
from .stock import convert_stock, read_stock


_HUB_KWARGS = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")


class GrowablePreTrainedModel(PreTrainedModel):
    """
    Base of the growable models.

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

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, PairedLinear):
            init.copy_(module.twin_weight, -module.weight)
            init.copy_(module.twin_bias, -module.bias)
        elif isinstance(module, SkipBranch):
            if module.gain is not None:
                init.zeros_(module.gain)
            init.copy_(module.target, torch.arange(module.target.numel()) % module.neurons)

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

    def check_linears(self) -> None:
        """
        Verify that the growable linears are as they were built: not wrapped, exchanged or quantised.

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
            if is_traceable_wrapper_subclass(linear.weight):
                raise ValueError(
                    f"The weights of {path} are no plain tensors but {type(linear.weight).__name__}, and cannot be "
                    "changed. Change the model as it was before it was quantised or sharded."
                )

    def shapes(self) -> Shapes:
        """The shapes that the modules have."""
        return Shapes.of_modules(self.growable_linears())

    def update_config_(self) -> None:
        """Write the shapes of the modules into `config.per_layer_config`."""
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
        return PreTrainedModel._load_pretrained_model(
            model, state_dict, checkpoint_files, load_config, *args, **kwargs
        )

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Tensor], prefix: str, local_metadata: dict[str, Any], *args: Any
    ) -> None:
        # `Trainer` resumes, and reloads its best model, by `load_state_dict`, where the checkpoint may be smaller or
        # larger than the model: the modules take the shapes of the incoming tensors before those are copied.
        check_values(
            {name: tensor for name, tensor in state_dict.items() if name.startswith(prefix)}, "the checkpoint"
        )
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
            # With `trust_remote_code=True`, the bare encoder of a classifier loads too.
            base = type(self.base_model)
            encoder = {"AutoModel": f"{base.__module__.split('.')[-1]}.{base.__name__}"}
            self.config.auto_map = (getattr(self.config, "auto_map", None) or {}) | encoder
        super().save_pretrained(save_directory, is_main_process=is_main_process, **kwargs)

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
                repo may have the key names of any transformers version.
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


__all__ = ["GrowablePreTrainedModel"]
