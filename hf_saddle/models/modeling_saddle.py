"""What the growable models have in common: layers of growable linears, conversion, loading into any shape."""

import copy
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from transformers import AutoConfig, PreTrainedModel
from transformers import initialization as init
from transformers.utils import cached_file

from .branch_dropout import BranchDropout
from .branch_guard import branch_links, check_quantised
from .configuration_saddle import LINEARS, SaddleConfig
from .growable import GrowableLinear, GrowableMLP, PairedLinear, SkipBranch, check_targets, growable_in


HISTORY_NAME = "growth_history.json"
_HUB_KWARGS = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")
_LOADING_KEYS = ("missing_keys", "unexpected_keys")
_HEADS = ("classifier.", "cls_classifier.", "distillation_classifier.")


def build_layer_(layer: Any, config: SaddleConfig, layer_idx: int) -> None:
    """Give a stock encoder layer, built without sub-modules, its norms, growable attention linears and MLP."""
    shapes = config.per_layer_config[layer_idx]
    skip_sizes = shapes.skip_sizes or {}
    layer.layernorm_before = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
    layer.layernorm_after = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
    layer.mlp = GrowableMLP(
        config.hidden_size, shapes.intermediate_size, config.hidden_act, skip_sizes, config.skip_unit
    )
    last = max(config.num_hidden_layers - 1, 1)
    layer.dropout = BranchDropout(config.hidden_dropout_prob, config.drop_path_rate * layer_idx / last)


def build_attention_(attention: Any, config: SaddleConfig, layer_idx: int) -> None:
    """Give a stock attention, built without sub-modules, growable linears; it keeps the global config."""
    skip_sizes = config.per_layer_config[layer_idx].skip_sizes or {}
    width = config.num_attention_heads * config.head_dim
    attention.config = config
    attention.num_attention_heads = config.num_attention_heads
    attention.head_dim = config.head_dim
    attention.attention_dropout = config.attention_probs_dropout_prob
    attention.scaling = attention.head_dim**-0.5 if config.attention_scaling is None else config.attention_scaling
    attention.is_causal = False

    def linear(name: str, fan_in: int, fan_out: int, bias: bool) -> GrowableLinear:
        sizes = skip_sizes.get(f"attention.{name}", ())
        return GrowableLinear(fan_in, fan_out, bias, sizes, config.skip_unit, config.hidden_act)

    attention.q_proj = linear("q_proj", config.hidden_size, width, config.qkv_bias)
    attention.k_proj = linear("k_proj", config.hidden_size, width, config.qkv_bias)
    attention.v_proj = linear("v_proj", config.hidden_size, width, config.qkv_bias)
    attention.o_proj = linear("o_proj", width, config.hidden_size, True)


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
    # Called before an upload with the folder, the repo id and the token; adds files and returns their names. hf_saddle
    # sets it, so that a model card is pushed too; code that was loaded from the Hub has none.
    prepare_push: Callable[..., list[str]] | None = None
    # What has quantised the model, where `from_pretrained` was asked for it.
    hf_quantizer: Any = None
    # What `check_branches` found at the last forward pass.
    _branch_links: tuple[Any, tuple, tuple] | None = None

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
    def growable_linears(self) -> Iterator[tuple[int, str, str, GrowableLinear]]:
        """
        Yield every growable linear in canonical order, branches right after the linear they feed.

        Each item is `(layer_idx, linear, path, module)`: the linear's name as in `LINEARS`, and its path in this
        model, such as `"deit.layers.3.mlp.fc1"` or `"deit.layers.3.mlp.fc1.skip.linear"`. Where a tuner has wrapped a
        linear, the one inside is yielded, under the path of the wrapper.

        Raises:
            ValueError: If another module has taken the place of a linear, as quantisers do.
        """
        for layer_idx, linear, path, place in self.linear_places():
            yield layer_idx, linear, path, _linear_at(path, place)

    def linear_places(self) -> Iterator[tuple[int, str, str, nn.Module]]:
        """Yield what is in the place of every growable linear, be it wrapped or exchanged."""
        prefix = "" if self.base_model is self else f"{self.base_model_prefix}."
        for layer_idx, layer in enumerate(self.base_model.layers):
            for linear in LINEARS:
                path, place = f"{prefix}layers.{layer_idx}.{linear}", layer.get_submodule(linear)
                while place is not None:
                    yield layer_idx, linear, path, place
                    module = growable_in(place)
                    branch = None if module is None else module.skip
                    path, place = f"{path}.skip.linear", None if branch is None else branch.linear

    def get_submodule(self, target: str) -> nn.Module:
        """
        As in torch.

        Raises:
            ValueError: If the path leads into the branch of a linear whose place a tuner or a quantiser has taken, as
                happens where they go on to the branch. The message tells what to do.
        """
        try:
            return super().get_submodule(target)
        except AttributeError as error:
            path, in_branch, _ = target.rpartition(".skip")
            place = super().get_submodule(path) if in_branch else None
            if place is None or isinstance(place, GrowableLinear):
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
        for _, _, path, place in self.linear_places():
            linear = _linear_at(path, place)
            if place is not linear:
                raise ValueError(
                    f"A {type(place).__name__} has taken the place of the linear {path}, which cannot change then. "
                    "Merge adapters first (`merge_and_unload()` of a PeftModel), or remove them (`unload()` of a "
                    "PeftModel, `model.delete_adapter` after `model.add_adapter`)."
                )
            if is_traceable_wrapper_subclass(linear.weight):
                raise ValueError(
                    f"The weights of {path} are no plain tensors but {type(linear.weight).__name__}, and cannot be "
                    "changed. Change the model as it was before it was quantised or sharded."
                )

    def shapes(self) -> dict[int, dict[str, Any]]:
        """The `per_layer_config` that describes the modules as they are, with every layer explicit."""
        shapes = {}
        for layer_idx, layer in enumerate(self.base_model.layers):
            linears = {name: _linear_at(f"layers.{layer_idx}.{name}", layer.get_submodule(name)) for name in LINEARS}
            skip_sizes = {name: linear.skip_sizes for name, linear in linears.items() if linear.skip is not None}
            shapes[layer_idx] = {
                "intermediate_size": linears["mlp.fc1"].out_features,
                "skip_sizes": skip_sizes or None,
            }
        return shapes

    def update_config_(self) -> None:
        """Write the shapes of the modules into `config.per_layer_config`."""
        set_shapes(self.config, self.shapes())

    # ------------------------------------------------------------------------------------------------------- loading
    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, **kwargs):
        """
        As in transformers, with three additions: only safetensors are read, the growth history is loaded too, and a
        checkpoint that lacks a tensor, has one too many, or whose tensors do not fit, is refused. Only a head, a
        pooler or a mask token may be missing, and start anew, or be left over.

        Raises:
            ValueError: If the checkpoint is truncated, of another shape than its config, or of another model type.
        """
        want_info = kwargs.pop("output_loading_info", False)
        source = {key: kwargs[key] for key in _HUB_KWARGS if key in kwargs}
        ignore_sizes = kwargs.pop("ignore_mismatched_sizes", False)
        fixed = {"use_safetensors": True, "ignore_mismatched_sizes": True, "output_loading_info": True}
        try:
            model, info = super().from_pretrained(pretrained_model_name_or_path, *model_args, **kwargs | fixed)
        except SafetensorError as error:
            raise ValueError(f"The weights in {pretrained_model_name_or_path} are damaged: {error}") from error
        if info["mismatched_keys"] and not ignore_sizes:
            name, found, wanted = min(info["mismatched_keys"])
            raise ValueError(
                f"`{name}` in {pretrained_model_name_or_path} has shape {tuple(found)}, but its config asks for "
                f"{tuple(wanted)}."
            )
        for key, complaint in (
            ("missing_keys", "lacks tensors that its config asks for"),
            ("unexpected_keys", "has tensors that its config lacks"),
        ):
            names = sorted(name for name in info[key] if not _is_optional(name))
            if names:
                raise ValueError(
                    f"The checkpoint {pretrained_model_name_or_path} {complaint}: "
                    f"{', '.join(names[:5])}{', …' if len(names) > 5 else ''}."
                )
        for path, module in model.named_modules():
            if isinstance(module, SkipBranch):
                module.check_targets_(f"{path}.target")
        if model.hf_quantizer is not None:
            check_quantised(model)
        if pretrained_model_name_or_path is not None:
            origin = pretrained_model_name_or_path
            if model._hf_peft_config_loaded:
                # The folder was that of an adapter, and the history is with its base.
                origin, source = model.config.name_or_path, source | {"revision": None, "subfolder": ""}
            model.growth_history = read_history(origin, source)
        return (model, info) if want_info else model

    @staticmethod
    def _load_pretrained_model(model, state_dict, checkpoint_files, *args, **kwargs):
        # A quantiser has exchanged modules by now, but nothing is read yet.
        for _ in branch_links(model.base_model):
            pass
        # Everything is cast to the dtype of the model while it is read; a target that had to be is not one.
        for file in checkpoint_files or ():
            with safe_open(file, framework="pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118 (not a mapping)
                    if name.endswith("skip.target") and tensors.get_slice(name).get_dtype() != "I64":
                        raise ValueError(
                            f"`{name}` must be int64, got {tensors.get_slice(name).get_dtype()} in {file}."
                        )
        return PreTrainedModel._load_pretrained_model(model, state_dict, checkpoint_files, *args, **kwargs)

    def _load_from_state_dict(self, state_dict, prefix, *args):
        # `Trainer` resumes, and reloads its best model, by `load_state_dict`, where the checkpoint may be smaller or
        # larger than the model: the modules take the shapes of the incoming tensors before those are copied.
        self._resize_to_(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _resize_to_(self, state_dict: Mapping[str, Tensor], prefix: str) -> None:
        """Resize the growable linears to the tensors of a checkpoint; everything is checked before it is changed."""
        inner = prefix if self.base_model is self else f"{prefix}{self.base_model_prefix}."
        if any(not isinstance(place, GrowableLinear) for *_, place in self.linear_places()):
            # Adapters or a quantiser have taken the place of linears, so that tensors have to fit as they are.
            _check_tensors(state_dict, prefix, self.state_dict())
            return
        current = self.shapes()
        incoming, units = _shapes_of(state_dict, f"{inner}layers.", current)
        if len(units) > 1:
            raise ValueError(f"The checkpoint mixes kinds of branch units: {sorted(units)}.")
        unit = units.pop() if units else self.config.skip_unit
        if incoming == current and unit == self.config.skip_unit:
            _check_tensors(state_dict, prefix, self.state_dict())
            return
        config = copy.deepcopy(self.config)
        config.skip_unit = unit
        set_shapes(config, incoming)
        with torch.device("meta"):
            _check_tensors(state_dict, prefix, type(self)(config).state_dict())
        self.config.skip_unit = unit
        set_shapes(self.config, incoming)
        for layer_idx, layer in enumerate(self.base_model.layers):
            if incoming[layer_idx] == current[layer_idx] and not incoming[layer_idx]["skip_sizes"]:
                continue
            fresh = type(layer)(self.config, layer_idx).train(layer.training)
            for name in LINEARS:
                old, new = layer.get_submodule(name), fresh.get_submodule(name)
                if old.weight.shape != new.weight.shape or old.skip is not None or new.skip is not None:
                    new.to(device=old.weight.device, dtype=old.weight.dtype).requires_grad_(old.weight.requires_grad)
                    layer.set_submodule(name, new)

    # -------------------------------------------------------------------------------------------------------- saving
    def save_pretrained(self, save_directory: str | os.PathLike, is_main_process: bool = True, **kwargs) -> None:
        """As in transformers; the growth history is written beside the weights."""
        if is_main_process and not os.path.isfile(save_directory):
            self.save_growth_history(save_directory)
            # With `trust_remote_code=True`, the bare encoder of a classifier loads too.
            base = type(self.base_model)
            encoder = {"AutoModel": f"{base.__module__.split('.')[-1]}.{base.__name__}"}
            self.config.auto_map = (getattr(self.config, "auto_map", None) or {}) | encoder
        super().save_pretrained(save_directory, is_main_process=is_main_process, **kwargs)

    def save_growth_history(self, folder: str | os.PathLike) -> None:
        """Write the growth history into a folder; without one, a history that is there is removed."""
        path = Path(folder) / HISTORY_NAME
        path.parent.mkdir(parents=True, exist_ok=True)
        if self.growth_history is None:
            path.unlink(missing_ok=True)
            return
        partial = path.with_name(f".{HISTORY_NAME}.partial")
        partial.write_text(json.dumps(self.growth_history, indent=2, allow_nan=False) + "\n")
        partial.replace(path)

    def _upload_modified_files(self, working_dir, repo_id, files_timestamps, *args, **kwargs):
        # The history is written before transformers notes which files of the folder are old.
        files_timestamps.pop(HISTORY_NAME, None)
        if self.prepare_push is not None:
            for name in self.prepare_push(Path(working_dir), repo_id, kwargs.get("token")):
                files_timestamps.pop(name, None)
        return super()._upload_modified_files(working_dir, repo_id, files_timestamps, *args, **kwargs)

    # ---------------------------------------------------------------------------------------------------- conversion
    @classmethod
    def from_stock(cls, model: PreTrainedModel | str | os.PathLike, **config_overrides: Any):
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
        if isinstance(model, PreTrainedModel):
            stock = model
            if type(stock) is not cls.stock_class:
                raise ValueError(
                    f"`{cls.__name__}.from_stock` takes a {cls.stock_class.__name__}, got a {type(stock).__name__}."
                )
        else:
            stock = cls.load_stock(model)
        fields = stock.config.to_dict()
        if {"num_labels", "id2label"} & set(config_overrides):
            fields.pop("id2label", None)
            fields.pop("label2id", None)
        for derived in ("model_type", "architectures", "transformers_version"):
            fields.pop(derived, None)
        config = cls.config_class(**(fields | config_overrides))
        grown = cls._from_config(config, dtype=stock.dtype, attn_implementation=stock.config._attn_implementation)
        weights = stock.state_dict()
        if config.num_labels != stock.config.num_labels:
            weights = {name: tensor for name, tensor in weights.items() if not name.startswith(_HEADS)}
        expected = {name: tensor.shape for name, tensor in grown.state_dict().items()}
        missing = sorted(name for name in expected.keys() - weights.keys() if not name.startswith(_HEADS))
        unused = sorted(weights.keys() - expected.keys())
        resized = sorted(name for name in expected.keys() & weights.keys() if expected[name] != weights[name].shape)
        if missing or unused or resized:
            raise ValueError(
                f"Converting {stock.config.name_or_path or type(stock).__name__}: no source for {missing}, no use for "
                f"{unused}, other shapes for {resized}. Override only config fields that keep the stock shapes."
            )
        grown.load_state_dict(weights, strict=False)
        return grown.train(stock.training)

    @classmethod
    def load_stock(cls, path: str | os.PathLike, **source: Any) -> PreTrainedModel:
        """
        The stock model of a checkpoint, with every weight restored; `source` are arguments such as `revision`.

        Raises:
            ValueError: If the checkpoint is of another type, or does not fill the stock class.
        """
        stock_type = cls.stock_class.config_class.model_type
        found = AutoConfig.from_pretrained(path, **source).model_type
        if found != stock_type:
            raise ValueError(
                f"`{cls.__name__}.from_stock` takes checkpoints of model type {stock_type!r}, but {path} is {found!r}."
            )
        stock, info = cls.stock_class.from_pretrained(
            path, key_mapping=cls.stock_key_mapping, output_loading_info=True, **source
        )
        missing, unused = (sorted(name for name in info[key] if not _is_head(name)) for key in _LOADING_KEYS)
        if missing or unused:
            raise ValueError(
                f"{path} does not fill a {cls.stock_class.__name__}: missing {missing}, unused {unused}. Use the "
                "Saddle class that matches the checkpoint's architecture."
            )
        return stock.eval()


def _linear_at(path: str, place: nn.Module) -> GrowableLinear:
    """The growable linear in a module that should be one, or wrap one."""
    linear = growable_in(place)
    if linear is None:
        raise ValueError(
            f"{path} is a {type(place).__name__}, which has taken the place of a growable linear, as quantisers do. "
            "Such a model computes and saves, but has no shapes and does not grow: use the model as it was before."
        )
    return linear


def _is_head(name: str) -> bool:
    return name.startswith(_HEADS) or "pooler." in name


def _is_optional(name: str) -> bool:
    return _is_head(name) or name.endswith("embeddings.mask_token")


def _check_tensors(state_dict: Mapping[str, Tensor], prefix: str, expected: Mapping[str, Tensor]) -> None:
    """Raise a `ValueError` if tensors of a checkpoint have another shape, or if its branches are not complete."""
    for name, tensor in expected.items():
        incoming = state_dict.get(prefix + name)
        if incoming is not None and incoming.shape != tensor.shape:
            raise ValueError(
                f"The checkpoint's `{prefix + name}` has shape {tuple(incoming.shape)}, but its other tensors ask for "
                f"{tuple(tensor.shape)}."
            )
        if incoming is not None and name.endswith("skip.target"):
            check_targets(prefix + name, incoming, _neurons(expected, name))
    branches = {name for name in state_dict if name.startswith(prefix) and ".skip." in name}
    wanted = {prefix + name for name in expected if ".skip." in name}
    # A layer that the checkpoint does not have at all keeps its branches.
    lost = {name for name in wanted - branches if f"{name.split('.skip.')[0]}.weight" in state_dict}
    if lost or branches - wanted:
        raise ValueError(f"The checkpoint lacks {sorted(lost)} and has {sorted(branches - wanted)} too many.")


def _neurons(state_dict: Mapping[str, Tensor], target: str) -> int:
    """Number of neurons of the linear that the branch with this `target` feeds."""
    return len(state_dict[f"{target.removesuffix('skip.target')}weight"])


def set_shapes(config: SaddleConfig, shapes: dict[int, dict[str, Any]]) -> None:
    """Assign `per_layer_config`, or remove it where every layer has the global shapes."""
    config.per_layer_config = shapes
    if not config.per_layer_attributes:
        config.per_layer_config = None


def _shapes_of(
    state_dict: Mapping[str, Tensor], prefix: str, default: dict[int, dict[str, Any]]
) -> tuple[dict[int, dict[str, Any]], set[str]]:
    """Per-layer shapes that a checkpoint's tensors have (`default` for layers it lacks) and its kinds of unit."""
    shapes, units = {}, set()
    for layer_idx, current in default.items():
        layer = f"{prefix}{layer_idx}."
        if f"{layer}mlp.fc1.weight" not in state_dict:
            shapes[layer_idx] = current
            continue
        skip_sizes: dict[str, list[int]] = {}
        for linear in LINEARS:
            branch = f"{layer}{linear}.skip."
            while f"{branch}linear.weight" in state_dict:
                skip_sizes.setdefault(linear, []).append(len(state_dict[f"{branch}linear.weight"]))
                gain, twin = f"{branch}gain" in state_dict, f"{branch}linear.twin_weight" in state_dict
                units.add("gain" if gain else "residual_pair" if twin else "residual")
                branch = f"{branch}linear.skip."
        width = len(state_dict[f"{layer}mlp.fc1.weight"])
        shapes[layer_idx] = {"intermediate_size": width, "skip_sizes": skip_sizes or None}
    return shapes, units


def read_history(path: str | os.PathLike, source: dict[str, Any]) -> dict[str, Any] | None:
    """The growth history in a folder or repo, or `None`; `source` are arguments such as `revision`."""
    file = cached_file(path, HISTORY_NAME, _raise_exceptions_for_missing_entries=False, **source)
    if file is None:
        return None
    try:
        history = json.loads(Path(file).read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"The growth history {file} is not valid JSON: {error}") from error
    if not isinstance(history, dict):
        raise ValueError(f"The growth history {file} must be a JSON object.")
    return history


__all__ = ["HISTORY_NAME", "GrowablePreTrainedModel", "build_attention_", "build_layer_", "read_history", "set_shapes"]
