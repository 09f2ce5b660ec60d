"""What the growable models have in common: layers of growable linears, conversion, loading into any shape."""

import copy
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete
from huggingface_hub.utils import filter_repo_objects
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file
from transformers.utils.hub import hf_api

from .branch_dropout import BranchDropout
from .branch_guard import branch_links, check_quantised
from .checkpoint_checks import check_headers, check_number_of_layers, check_regular, check_values, find_weights
from .configuration_saddle import SaddleConfig
from .growable import GrowableLinear, GrowableMLP, PairedLinear, SkipBranch, check_targets, growable_in
from .json_files import read_json
from .parameters import check_replaceable
from .resizing import take_shapes_
from .sites import FC1, LINEARS, Place, Site


HISTORY_NAME = "growth_history.json"
# What a push of a model writes, and what the next one replaces, or removes where it has no such file.
MODEL_FILES = (
    HISTORY_NAME,
    SAFE_WEIGHTS_NAME,
    SAFE_WEIGHTS_INDEX_NAME,
    "model-[0-9][0-9][0-9][0-9][0-9]-of-[0-9][0-9][0-9][0-9][0-9].safetensors",
)
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


# What `push_to_hub` of a growable model does before it uploads; code that was loaded from the Hub does nothing more.
_PUSH_STEPS: list[Callable[..., Sequence[str]]] = []


def before_push(add_files: Callable[..., Sequence[str]]) -> None:
    """
    Let every `push_to_hub` of a growable model upload more files, such as a model card.

    Args:
        add_files (`Callable`):
            Called with the model, the folder that is about to be uploaded, the repo id and the token; writes files
            into the folder and returns the names of all that it may write. Those that the folder lacks are deleted
            in the repo, where an earlier push left them.
    """
    _PUSH_STEPS.append(add_files)


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
    def growable_linears(self) -> Iterator[Site]:
        """
        Yield every growable linear in canonical order, branches right after the linear they feed.

        Where a tuner has wrapped a linear, the one inside is yielded, under the path of the wrapper.

        Raises:
            ValueError: If another module has taken the place of a linear, as quantisers do.
        """
        for place, module in self.linear_places():
            yield Site(place.layer, place.linear, place.depth, place.path, _linear_at(place.path, module))

    def linear_places(self) -> Iterator[tuple[Place, nn.Module]]:
        """Yield every place of a growable linear and what is there, be it wrapped or exchanged."""
        prefix = "" if self.base_model is self else f"{self.base_model_prefix}."
        for layer_idx, layer in enumerate(self.base_model.layers):
            for linear in LINEARS:
                place = Place(layer_idx, linear, 0, f"{prefix}layers.{layer_idx}.{linear}")
                module: nn.Module | None = layer.get_submodule(linear)
                while module is not None:
                    yield place, module
                    found = growable_in(module)
                    place, module = place.branch, None if found is None or found.skip is None else found.skip.linear

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
        for place, module in self.linear_places():
            path, linear = place.path, _linear_at(place.path, module)
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

    def shapes(self) -> dict[int, dict[str, Any]]:
        """The `per_layer_config` that describes the modules as they are, with every layer explicit."""
        shapes = {}
        for layer_idx, layer in enumerate(self.base_model.layers):
            linears = {name: _linear_at(f"layers.{layer_idx}.{name}", layer.get_submodule(name)) for name in LINEARS}
            skip_sizes = {name: linear.skip_sizes for name, linear in linears.items() if linear.skip is not None}
            shapes[layer_idx] = {
                "intermediate_size": linears[FC1].out_features,
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
            cls._check_files(pretrained_model_name_or_path, source, kwargs)
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
        else:
            check_values(model.state_dict(), str(pretrained_model_name_or_path))
        if pretrained_model_name_or_path is not None:
            origin = pretrained_model_name_or_path
            if model._hf_peft_config_loaded:
                # The folder was that of an adapter, and the history is with its base.
                origin, source = model.config.name_or_path, source | {"revision": None, "subfolder": ""}
            model.growth_history = read_history(origin, source)
        return (model, info) if want_info else model

    @classmethod
    def _check_files(cls, path: str | os.PathLike | None, source: dict[str, Any], kwargs: Mapping[str, Any]) -> None:
        """What can be known before the model is built: that its files are complete, and enough for its layers."""
        if path is None or os.path.isfile(path):
            return
        config = kwargs.get("config")
        if not isinstance(config, PreTrainedConfig):
            fields, _ = cls.config_class.get_config_dict(path if config is None else config, **source)
        else:
            fields = vars(config)
        layers = kwargs.get("num_hidden_layers", fields.get("num_hidden_layers"))
        files = find_weights(path, source, fields.get("transformers_weights"), kwargs.get("variant"))
        check_number_of_layers(layers, len(LINEARS), files)

    @staticmethod
    def _load_pretrained_model(model, state_dict, checkpoint_files, load_config, *args, **kwargs):
        # The model is still on the meta device; tensors that do not fit would be made next, others cast to its dtype.
        if checkpoint_files is not None and load_config.hf_quantizer is None:
            check_headers(model.state_dict(), f"{model.base_model_prefix}.", checkpoint_files)
        # A quantiser has exchanged modules by now, but nothing is read yet.
        for _ in branch_links(model.base_model):
            pass
        return PreTrainedModel._load_pretrained_model(
            model, state_dict, checkpoint_files, load_config, *args, **kwargs
        )

    def _load_from_state_dict(self, state_dict, prefix, *args):
        # `Trainer` resumes, and reloads its best model, by `load_state_dict`, where the checkpoint may be smaller or
        # larger than the model: the modules take the shapes of the incoming tensors before those are copied.
        check_values(
            {name: tensor for name, tensor in state_dict.items() if name.startswith(prefix)}, "the checkpoint"
        )
        self._resize_to_(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _resize_to_(self, state_dict: Mapping[str, Tensor], prefix: str) -> None:
        """Resize the growable linears to the tensors of a checkpoint; everything is checked before it is changed."""
        inner = prefix if self.base_model is self else f"{prefix}{self.base_model_prefix}."
        if any(not isinstance(module, GrowableLinear) for _, module in self.linear_places()):
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
        changed = {layer for layer in incoming if incoming[layer] != current[layer] or unit != self.config.skip_unit}
        for site in self.growable_linears():
            if site.layer in changed:
                check_replaceable(site.path, site.module)
        self.config.skip_unit = unit
        set_shapes(self.config, incoming)
        for layer_idx, layer in enumerate(self.base_model.layers):
            if incoming[layer_idx] == current[layer_idx] and not incoming[layer_idx]["skip_sizes"]:
                continue
            with torch.random.fork_rng(devices=[]):
                fresh = type(layer)(self.config, layer_idx)
            for name in LINEARS:
                take_shapes_(layer.get_submodule(name), fresh.get_submodule(name))

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

    def _upload_modified_files(
        self,
        working_dir: str | os.PathLike,
        repo_id: str,
        files_timestamps: dict[str, float],
        commit_message: str | None = None,
        token: bool | str | None = None,
        create_pr: bool = False,
        revision: str | None = None,
        commit_description: str | None = None,
    ) -> CommitInfo:
        """As in transformers; the same commit deletes what an earlier push of a model left and this one has not."""
        root, api = Path(working_dir), hf_api()
        written, replaceable = {HISTORY_NAME}, list(MODEL_FILES)
        for add_files in _PUSH_STEPS:
            names = add_files(self, root, repo_id, token)
            written |= {name.partition("/")[0] for name in names}
            replaceable += names
        changed = [
            path
            for path in sorted(root.iterdir())
            if path.name in written or path.stat().st_mtime > files_timestamps.get(path.name, -math.inf)
        ]
        # As transformers does: files in folders too, but not in folders of folders.
        files = [file for path in changed for file in (sorted(path.iterdir()) if path.is_dir() else [path])]
        if revision is not None and not create_pr and not revision.startswith("refs/pr"):
            api.create_branch(repo_id, branch=revision, token=token, exist_ok=True)
        known = api.list_repo_files(repo_id, revision=None if create_pr else revision, token=token)
        replaced = filter_repo_objects(known, allow_patterns=replaceable)
        operations: list[CommitOperationAdd | CommitOperationDelete] = [
            CommitOperationDelete(name) for name in replaced if not (root / name).is_file()
        ]
        operations += [CommitOperationAdd(path.relative_to(root).as_posix(), path) for path in files if path.is_file()]
        return api.create_commit(
            repo_id,
            operations,
            commit_message=commit_message or "Upload model",
            commit_description=commit_description,
            token=token,
            create_pr=create_pr,
            revision=revision,
        )

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
    if os.path.isdir(path):
        check_regular(Path(path, source.get("subfolder") or "", HISTORY_NAME), "The growth history")
    file = cached_file(path, HISTORY_NAME, _raise_exceptions_for_missing_entries=False, **source)
    return None if file is None else read_json(file, "The growth history")


__all__ = [
    "HISTORY_NAME",
    "MODEL_FILES",
    "GrowablePreTrainedModel",
    "before_push",
    "build_attention_",
    "build_layer_",
    "read_history",
    "set_shapes",
]
