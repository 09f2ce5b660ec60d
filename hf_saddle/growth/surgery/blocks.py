"""Whole blocks are inserted into a model: what can be, and the values that they start with."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ...models.blocks import block_paths, orders_after, reorder_config_, split_path
from ...models.descriptions import Block
from ...models.families import blocks_in, family_of
from ...models.growable import Growable
from ...models.modeling_saddle import GrowablePreTrainedModel
from ...models.parameters import follow_
from ...models.restacking import Restacking, restack
from ..records.block_records import NewBlock, bare_of, blocks_with, places_of
from ..records.history import GrowthHistory
from ..records.plan import GrowthPlan
from .attachments import check_attachments
from .changes import Added, Changes


class Values:
    """
    What new blocks start from: the values of the blocks of a model that one process has whole.

    Args:
        device (`torch.device`): Where they are.
    """

    def __init__(self, device: torch.device):
        self.device = device

    @contextmanager
    def of(self, made: nn.Module, like: nn.Module, others: Sequence[nn.Module]) -> Iterator[None]:
        """A new block has the values of that which it is made like, and others have theirs, while this lasts."""
        yield


@torch.no_grad()
def draft_blocks(
    model: GrowablePreTrainedModel, plan: GrowthPlan, values: Values | None = None
) -> tuple[Restacking, Changes]:
    """
    The new blocks of a plan, with their values, and what is to be assigned so that they become part of a model. The
    random generators of torch are left as they are.

    Args:
        model ([`GrowablePreTrainedModel`]): The model, which is not changed.
        plan ([`GrowthPlan`]): What is to be inserted; its seed is that of fresh weights.
        values ([`Values`], *optional*): What new blocks start from; by default the values of the model.

    Raises:
        ValueError: If a block cannot be inserted; the message says why and what can be done.
    """
    blocks = plan.blocks
    if not blocks:
        return Restacking(), Changes()
    check_blocks(model, blocks)
    found = dict(blocks_in(model.base_model, model.config))
    orders = orders_after(found, (block.after for block in blocks))
    asked, config = places_of(orders, blocks), copy.deepcopy(model.config)
    reorder_config_(config, orders, bare_of(orders, blocks))
    anew = [path for path, block in asked.items() if block.how == "identity"]
    stacks, changes = restack(model, orders, config, anew), Changes()
    values = values or Values(model.device)
    devices = [values.device] if values.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.default_generator.manual_seed(plan.seed)
        for device in devices:
            torch.cuda.default_generators[device.index].manual_seed(plan.seed)
        for path, (made, like) in stacks.made.items():
            block, kind = asked[path], found[asked[path].after]
            others = [_next(model, block)] if block.how == "average" else []
            with values.of(made, like, others):
                if block.how == "identity":
                    _start_anew_(model, made)
                for other in others:
                    _average_(made, other)
                if block.share < 1:
                    _scale_outputs_(made, kind, family_of(model.config.model_type).silence, block.share)
            known = dict(like.named_parameters())
            for name, new in made.named_parameters():
                changes.added.append(
                    Added(f"{model.inner_prefix}{path}.{name}", follow_(new, known[name]), known[name])
                )
                new.requires_grad_(new.requires_grad or plan.freeze)
    heads = _alignment_heads(model, blocks)
    if heads is not None:
        held = model.generation_config.__dict__
        stacks.assignments.append((held, {"alignment_heads": heads}, ("alignment_heads",)))
    return stacks, changes


def inserted_blocks(history: GrowthHistory) -> list[str]:
    """Paths in the base model of the blocks that the events of a history have inserted."""
    found: list[str] = []
    shapes = history.initial.shapes
    for event in history.events:
        found = blocks_with(found, shapes, event.new_blocks)
        shapes = event.shapes
    return found


def trained_outside(model: GrowablePreTrainedModel, blocks: Sequence[str]) -> list[nn.Parameter]:
    """Parameters that require a gradient and are in none of some blocks, which are named by their paths."""
    inside = {parameter for path in blocks for parameter in model.base_model.get_submodule(path).parameters()}
    return [parameter for parameter in model.parameters() if parameter.requires_grad and parameter not in inside]


def freeze_as_before_(model: GrowablePreTrainedModel, history: GrowthHistory) -> None:
    """Let a model that was loaded train only its inserted blocks, if an event has asked for that."""
    if any(event.frozen for event in history.events):
        for parameter in trained_outside(model, inserted_blocks(history)):
            parameter.requires_grad_(False)


def rename_in_optimizer_(optimizer: Optimizer, model: nn.Module, before: dict[nn.Parameter, str]) -> None:
    """Where the groups of an optimizer have names of parameters, let them be those that the model has now."""
    now = {parameter: name for name, parameter in model.named_parameters()}
    for group in optimizer.param_groups:
        if group.get("param_names"):
            group["param_names"] = [
                now[parameter] if name == before.get(parameter) else name
                for parameter, name in zip(group["params"], group["param_names"], strict=True)
            ]


def _alignment_heads(model: GrowablePreTrainedModel, blocks: Sequence[NewBlock]) -> list[list[int]] | None:
    """The heads whose cross-attention tells times (Whisper), by the new numbers of their blocks; `None` if none."""
    heads = vars(model.generation_config).get("alignment_heads") if model.can_generate() else None
    paths = [path for path in block_paths(model.base_model, model.config) if path.startswith("decoder.")]
    order = orders_after(paths, (block.after for block in blocks if block.after in paths))
    if not heads or not order:
        return None
    (places,) = order.values()
    return [[places.index(layer), head] for layer, head in heads]


def check_blocks(model: GrowablePreTrainedModel, blocks: Sequence[NewBlock]) -> None:
    """Raise a `ValueError` for what cannot be inserted, before anything is made."""
    found = dict(blocks_in(model.base_model, model.config))
    for block in blocks:
        if block.after not in found:
            raise ValueError(f"The model has no block {block.after!r}; it has {', '.join(found)}.")
    objection = family_of(model.config.model_type).audible(model.config)
    silent = {block.how for block in blocks if not block.share}
    if objection is not None and silent:
        raise ValueError(
            f"A new block of a {type(model).__name__} cannot begin without an effect ({', '.join(sorted(silent))}): "
            f"{objection}. `how='stack'` inserts plain copies, which change what the model computes, in any model."
        )
    names: dict[nn.Parameter, list[str]] = {}
    for name, parameter in model.base_model.named_parameters(remove_duplicate=False):
        names.setdefault(parameter, []).append(name)
    for named in names.values():
        if len(named) > 1 and any(name.startswith(tuple(f"{path}." for path in found)) for name in named):
            raise ValueError(
                f"{named[0]} and {named[1]} are one parameter: blocks that share their weights cannot have others "
                "between them. Give each its own."
            )
    for path in dict.fromkeys(block.after for block in blocks):
        for name, module in model.base_model.get_submodule(path).named_modules():
            if "forward" in vars(module):
                raise ValueError(
                    f"The forward pass of {path}.{name} was replaced on the module itself, as `device_map` and "
                    "offloading do, and a copy would go on calling it. Load the model without."
                )
        start = f"{path}."
        check_attachments(model, {site.path for site in model.growable_linears() if site.root.startswith(start)})


def _next(model: GrowablePreTrainedModel, block: NewBlock) -> nn.Module:
    """The block that follows that which a new one comes after."""
    stack, index = split_path(block.after)
    children = list(model.base_model.get_submodule(stack).children())
    if index + 1 == len(children):
        raise ValueError(
            f"{block.after} is the last block of its list, so that there is no other one to average it with. Use "
            "`how='copy'` there."
        )
    following: nn.Module = children[index + 1]
    return following


def _average_(made: nn.Module, other: nn.Module) -> None:
    """Let a copy of one neighbour be the mean of both."""
    first, second = made.state_dict(keep_vars=True), other.state_dict(keep_vars=True)
    if {name: x.shape for name, x in first.items()} != {name: x.shape for name, x in second.items()} or any(
        not torch.equal(x, second[name]) for name, x in first.items() if name.endswith("skip.target")
    ):
        raise ValueError(
            "The neighbours of the new block differ in width or branches, so that they have no mean. Use `how='copy'`."
        )
    for name, tensor in first.items():
        if tensor.is_floating_point():
            tensor.copy_((tensor.double() + second[name].double()) / 2)


def _start_anew_(model: GrowablePreTrainedModel, made: nn.Module) -> None:
    """Fresh weights, as those of a new model; no branches."""
    for module in made.modules():
        if isinstance(module, Growable):
            module.skip = None
    floating: list[Tensor] = [x for x in (*made.parameters(), *made.buffers()) if x.is_floating_point()]
    for tensor in floating:
        tensor.fill_(torch.nan)  # what is not initialised shall be seen
        vars(tensor).pop("_is_hf_initialized", None)  # of buffers that were loaded
    base: Any = model.base_model
    made.apply(base._init_weights)
    if not all(tensor.is_meta or bool(torch.isfinite(tensor).all()) for tensor in floating):
        raise ValueError(
            f"transformers does not say how to initialise a block of a {type(model).__name__}. Use `how='copy'`."
        )


def _scale_outputs_(made: nn.Module, kind: Block, silence: float, share: float) -> None:
    """
    Let the outputs of a new block add a share of what they would. Those that add nothing learn from the first step on.
    """
    for name, parameter in made.named_parameters():
        if not any(name == output or name.startswith(f"{output}.") for output in kind.outputs):
            continue
        if "skip." in name and _has_gains(made, name) and (name.count("skip.") > 1 or not name.endswith("gain")):
            continue  # units whose gains are 0 are silent, and would not learn if they had no rows
        if share and "skip." in name and not _has_gains(made, name):
            raise ValueError(
                "Residual pairs have no gains, by which a new block could keep a share of what they answer: use "
                "`how='stack'`, leave `scale` out, or let the model grow units with gains."
            )
        parameter.copy_(silence + share * (parameter.double() - silence))


def _has_gains(made: nn.Module, name: str) -> bool:
    """Whether the outermost branch that a parameter is of has gains."""
    branch: Any = made.get_submodule(f"{name.partition('skip.')[0]}skip")
    return branch.gain is not None
