"""Sharding by FSDP2 taken back in place, which torch has nothing for, and done anew on the same module objects."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.distributed._composable.contract import REGISTRY_KEY, STATE_KEY
from torch.distributed._composable_state import _module_state_mapping
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from ...models.parameters import follow_


def show_shards_(model: nn.Module) -> None:
    """Let all modules of a model that FSDP2 has sharded hold their shards, whatever a forward pass left gathered."""
    if not isinstance(model, FSDPModule):
        return
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def take_back_(model: nn.Module) -> dict[str, nn.Parameter]:
    """
    Take back what `fully_shard` did to a model. No process gathers anything: parameters on the meta device, which hold
    no values, take the places of the shards.

    Args:
        model (`nn.Module`): A model that FSDP2 has sharded, between two steps.

    Returns:
        `dict[str, nn.Parameter]`: The sharded parameters by name, a shared one by each of its names.
    """
    show_shards_(model)
    shards = dict(model.named_parameters(remove_duplicate=False))
    for module in model.modules():
        if isinstance(module, FSDPModule):
            _forget_(module)
    place_(model, placeholders(shards))
    return shards


def placeholders(parameters: Mapping[str, nn.Parameter]) -> dict[str, nn.Parameter]:
    """Parameters without values in the shapes of others, shared where those are."""
    made: dict[nn.Parameter, nn.Parameter] = {}
    for parameter in parameters.values():
        if parameter not in made:
            empty = torch.empty(parameter.shape, dtype=parameter.dtype, device="meta")
            made[parameter] = follow_(nn.Parameter(empty), parameter)
    return {name: made[parameter] for name, parameter in parameters.items()}


def place_(model: nn.Module, parameters: Mapping[str, nn.Parameter]) -> None:
    """Put parameters into a model by their names, at the places of those that are there."""
    for name, parameter in parameters.items():
        path, _, leaf = name.rpartition(".")
        model.get_submodule(path)._parameters[leaf] = parameter


def shard_anew_(model: nn.Module, shard: Callable[[nn.Module], Any], shards: Mapping[str, nn.Parameter]) -> None:
    """
    Shard a model whose parameters are placeholders, and give it its shards. All processes have to call this.

    Args:
        model (`nn.Module`): The model.
        shard (`Callable`): Shards it in place, as it was done before the training.
        shards (`Mapping[str, nn.Parameter]`): What it holds afterwards, by name.
    """
    shard(model)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        wanted: Any = shards[name]
        if not isinstance(parameter, DTensor) or parameter.placements != wanted.placements:
            raise ValueError(
                f"`shard` leaves {name} sharded in another way than it was. It has to shard as it did before the "
                "training began."
            )
    # As `load_state_dict(assign=True)` does, which is how FSDP2 takes the values of a model on the meta device.
    place_(model, shards)


def _forget_(module: Any) -> None:
    """Remove what `fully_shard` has left in one module, but for its parameters."""
    sharding: Any = fully_shard
    state = sharding.state(module)
    handles: list[Any] = [state._pre_forward_hook_handle, state._post_forward_hook_handle]
    for group in state._fsdp_param_groups:
        handles += group._module_to_pre_save_state_dict_hook_handle.values()
        handles += group._module_to_pre_load_state_dict_hook_handle.values()
        handles += [parameter._post_load_hook_handle for parameter in group.fsdp_params]
    for handle in handles:
        handle.remove()
    module.__class__ = next(base for base in type(module).__mro__ if not issubclass(base, FSDPModule))
    del vars(module)[STATE_KEY][sharding.__wrapped__], vars(module)[REGISTRY_KEY][sharding.__name__]
    del _module_state_mapping[module]
