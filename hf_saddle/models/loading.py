"""Checkpoints are whole and fit, or are refused; and a model takes the shapes of what is loaded into it."""

import copy
import os
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedConfig

from .blocks import block_paths, check_kept, orders_of_config, orders_of_tensors, reorder_config_
from .branch_guard import check_quantised
from .checkpoint_checks import check_number_of_layers, check_values, find_weights, whole_numbers
from .growable import Growable, SkipBranch, check_targets
from .heads import fit_heads_
from .parameters import check_replaceable
from .resizing import expect_, retire_, take_shapes_
from .restacking import Restacking, assign_, restack, twin_of
from .shapes import Shapes
from .stock import is_head, may_be_left_over


_OPTIONAL = ("embeddings.mask_token", "embeddings.position_ids")


def check_files(
    cls: Any, path: str | os.PathLike[str] | None, source: dict[str, Any], options: Mapping[str, Any]
) -> None:
    """
    Verify what can be known before a model of a class is built: that its files in a folder or repo are complete, and
    enough for its layers. `source` are arguments such as `revision`, `options` the others of `from_pretrained`.

    Raises:
        ValueError: If not.
    """
    if path is None or os.path.isfile(path):
        return
    config = options.get("config")
    if not isinstance(config, PreTrainedConfig):
        fields, _ = cls.config_class.get_config_dict(path if config is None else config, **source)
    else:
        fields = vars(config)
    files = find_weights(path, source, fields.get("transformers_weights"), options.get("variant"))
    check_number_of_layers(fields | dict(options), files)
    if _splits_layers(options) or options.get("offload_buffers"):
        _check_whole(config if isinstance(config, PreTrainedConfig) else cls.config_class.from_dict(fields), options)


def _splits_layers(options: Mapping[str, Any]) -> bool:
    """Whether `from_pretrained` is asked for tensor parallelism."""
    asked = options.get("distributed_config") or {}
    values = {**(asked if isinstance(asked, Mapping) else vars(asked)), **options}
    return bool(values.get("tp_plan")) or (values.get("tp_size") or 1) > 1


def _check_whole(config: Any, options: Mapping[str, Any]) -> None:
    """Raise a `ValueError` for a model with branches that would be split, or lack the neurons that its units feed."""
    if not config.skip_sizes:
        return
    places = ", ".join(list(config.skip_sizes)[:3])
    if _splits_layers(options):
        raise ValueError(
            f"Tensor parallelism would split layers that have skip branches ({places}, …), whose units the plans of "
            "transformers do not know. Use `device_map`, FSDP2, or a model that grew in width only."
        )
    raise ValueError(
        f"With `offload_buffers=True` the numbers of the neurons that units of branches feed ({places}, …) would not "
        "be in memory where they are needed. Leave it out: weights are offloaded without it."
    )


def check_loaded(model: Any, info: Mapping[str, Any], path: str, *, ignore_sizes: bool) -> None:
    """
    Verify that a checkpoint has filled a model, as `info` of `from_pretrained` says, with values that weights have.

    Raises:
        ValueError: If not; the message names the tensor.
    """
    if info["mismatched_keys"] and not ignore_sizes:
        name, found, wanted = min(info["mismatched_keys"])
        raise ValueError(f"`{name}` in {path} has shape {tuple(found)}, but its config asks for {tuple(wanted)}.")
    for key, optional, complaint in (
        ("missing_keys", is_head, "lacks tensors that its config asks for"),
        ("unexpected_keys", may_be_left_over, "has tensors that its config lacks"),
    ):
        names = sorted(name for name in info[key] if not optional(name) and not name.endswith(_OPTIONAL))
        if names:
            raise ValueError(
                f"The checkpoint {path} {complaint}: {', '.join(names[:5])}{', …' if len(names) > 5 else ''}."
            )
    for name, module in model.named_modules():
        if isinstance(module, SkipBranch):
            module.check_targets_(f"{name}.target")
    if model.hf_quantizer is not None:
        check_quantised(model)
    else:
        check_values(model.state_dict(), path, whole_numbers(model.state_dict()))


def resize_to_(model: Any, state_dict: Mapping[str, Tensor], prefix: str) -> None:
    """
    Give a model as many blocks as a checkpoint has, and its growable linears the shapes; everything is checked before
    it is changed. `prefix` precedes the names of the model's tensors in the checkpoint.

    Raises:
        ValueError: If the tensors are not those of one model.
    """
    inner = prefix + model.inner_prefix
    if any(not isinstance(site.module, Growable) for site in model.linear_places()):
        # Adapters or a quantiser have taken the place of linears, so that tensors have to fit as they are.
        _check_tensors(state_dict, prefix, model.state_dict())
        return
    sites, present = list(model.growable_linears()), model.config.skip_unit
    blocks = block_paths(model.base_model, model.config)
    orders = orders_of_tensors(state_dict, inner, blocks) if _has_rest(model, blocks, state_dict, inner) else {}
    check_kept(model.config, orders)
    config = copy.deepcopy(model.config)
    reorder_config_(config, orders)
    reordered = twin_of(model, config) if orders else model
    incoming, kinds = Shapes.of_tensors(
        state_dict, inner, reordered.growable_linears() if orders else sites, reordered.base_model
    )
    if len(kinds) > 1:
        raise ValueError(f"The checkpoint mixes kinds of branch units: {sorted(kinds)}.")
    kind = kinds.pop() if kinds else present
    if not orders and incoming == model.shapes() and kind == present:
        _check_tensors(state_dict, prefix, model.state_dict())
        return
    if any(isinstance(site.module.weight, DTensor) for site in sites):
        raise ValueError(
            "The model is sharded, and the checkpoint has other shapes, which it cannot take then. Load it before the "
            "model is sharded; a GrowthTrainer does so when it resumes."
        )
    stacks = restack(model, orders, config, to_be_loaded=True) if orders else Restacking()
    incoming.write_(config, kind)
    twin = twin_of(model, config)
    _check_tensors(state_dict, prefix, twin.state_dict())
    undo = assign_(stacks.assignments)
    try:
        _take_shapes_(model, twin, incoming, kind)
    except BaseException:
        assign_(undo)
        raise
    _watch(stacks)


def fit_blocks_(model: Any, config: Any) -> None:
    """
    Give a model the blocks of a config, as many and of the same kinds, before the weights that belong to it are
    loaded: these do not tell the kinds of blocks (`layer_types`).
    """
    orders = orders_of_config(config, block_paths(model.base_model, model.config))
    if not orders:
        return
    wanted = copy.deepcopy(model.config)
    reorder_config_(wanted, orders)
    if isinstance(vars(config).get("layer_types"), list):
        wanted.layer_types = list(config.layer_types)
    if "stage_names" in vars(config):
        wanted.set_output_features_output_indices(None, list(config.out_indices))
    stacks = restack(model, orders, wanted, to_be_loaded=True)
    assign_(stacks.assignments)
    _watch(stacks)


def _watch(stacks: Restacking) -> None:
    """Let optimizers that were not told of other blocks raise."""
    retire_(parameter for block in stacks.removed for parameter in block.parameters())
    for made, like in stacks.made.values():
        known = dict(like.named_parameters())
        expect_((new, known[name]) for name, new in made.named_parameters() if name in known)


def _has_rest(model: Any, blocks: list[str], state_dict: Mapping[str, Tensor], inner: str) -> bool:
    """Whether a checkpoint has all parameters of a base model but those in blocks, and is not a part of one."""
    found: dict[nn.Parameter, bool] = {}
    for name, parameter in model.base_model.named_parameters(remove_duplicate=False):
        if not name.startswith(tuple(f"{path}." for path in blocks)):
            found[parameter] = found.get(parameter, False) or f"{inner}{name}" in state_dict
    return all(found.values())


def _take_shapes_(model: Any, twin: Any, shapes: Shapes, kind: str) -> None:
    """Give the growable layers of a model, and the norms of their neurons, the shapes of a twin."""
    sites = list(model.growable_linears())
    roots = [site.path for site in sites if not site.nested]
    layers = [*roots, *(path for site in sites if site.neurons is not None for path in site.neurons.norms)]
    changed = [path for path in layers if _differ(model.get_submodule(path), twin.get_submodule(path))]
    for path in changed:
        nested = (site for site in sites if site.path.startswith(f"{path}."))
        for name, layer in ((path, model.get_submodule(path)), *((site.path, site.module) for site in nested)):
            check_replaceable(name, layer)
    shapes.write_(model.config, kind)
    for path in changed:
        take_shapes_(model.get_submodule(path), twin.get_submodule(path))
    fit_heads_(model.base_model)


def _differ(layer: nn.Module, other: nn.Module) -> bool:
    """Whether two layers of the same kind have tensors of other names or shapes."""
    first, second = ({name: x.shape for name, x in each.state_dict().items()} for each in (layer, other))
    return first != second


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
    # Where it there is a bias, by that: the weight of a `Conv1D`, which always has one, is transposed.
    layer = target.removesuffix("skip.target")
    bias = state_dict.get(f"{layer}bias")
    return len(state_dict[f"{layer}weight"] if bias is None else bias)
