"""Growth by GroMo (TINY, Verbockhaven et al. 2024): MLPs get the neurons that first-order statistics ask for."""

import importlib
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from hf_saddle.growth import GrowthConfig, GrowthEvent, count_macs, count_parameters, event_budget, probe_loss
from hf_saddle.growth.optimizer.state import carry_optimizer_state_
from hf_saddle.growth.surgery.changes import Changes, Replaced
from hf_saddle.growth.surgery.slices import NEW, Axis

from .backbone import optional


# What the documentation of GroMo 0.1.0 names to reproduce TINY.
TINY = {
    "compute_delta": False,
    "use_covariance": True,
    "alpha_zero": False,
    "omega_zero": False,
    "use_projection": True,
    "ignore_singular_values": False,
}
# What its tutorial tries, but for 0, at which new neurons get no gradient; the largest is doubled while that helps.
SCALES = (0.1, 0.5, 1.0)


def gromo_event_(
    model: Any, optimizer: Optimizer, batches: Sequence[Any], config: GrowthConfig, *, event: int, step: int
) -> GrowthEvent:
    """
    The MLPs of all layers get equally many neurons, as many as the budget of the event pays for. GroMo's blocks take
    their places while it measures, searches its scaling factor on the probe and applies its change; between events
    the model has its own linears, whose steps take no longer than those of any other MLPs.

    Raises:
        ImportError: If GroMo is not installed.
    """
    started, loss_before = time.perf_counter(), probe_loss(model, batches)
    parameters, macs = count_parameters(model), count_macs(model)
    layers = model.base_model.layers
    mlps = [layer.mlp for layer in layers]
    widths = [mlp.fc1.out_features for mlp in mlps]
    cost = len(mlps) * (mlps[0].fc1.in_features + 1 + mlps[0].fc2.out_features)  # of a neuron in each
    blocks = [block_of(mlp) for mlp in mlps]
    place_(layers, blocks)
    propose_(model, blocks, batches, int(event_budget(model, config, event) // cost))
    loss_after = apply_(model, blocks, batches)
    place_(layers, mlps)
    take_over_(model, optimizer, blocks)
    added = [
        {"linear": f"{model.base_model_prefix}.layers.{index}.mlp.fc1", "operator": "tiny", "chosen": new - old}
        for index, (old, new) in enumerate(zip(widths, (mlp.fc1.out_features for mlp in mlps), strict=True))
    ]
    return GrowthEvent(
        layers=added,
        step=step,
        loss_before=loss_before,
        loss_after=loss_after,
        parameters_before=parameters,
        parameters_after=count_parameters(model),
        macs_before=macs,
        macs_after=count_macs(model),
        seconds=time.perf_counter() - started,
    )


def block_of(mlp: nn.Module) -> Any:
    """GroMo's block of the same function; both use the exact GELU."""
    optional("gromo")
    kind = importlib.import_module("gromo.containers.growing_mlp_mixer").GrowingMLPBlock
    block = kind(mlp.fc1.in_features, mlp.fc1.out_features)
    block.first_layer.layer.load_state_dict(mlp.fc1.state_dict())
    block.second_layer.layer.load_state_dict(mlp.fc2.state_dict())
    return block


def place_(layers: nn.ModuleList, mlps: Sequence[nn.Module]) -> None:
    """Put MLPs into the layers of a model."""
    for layer, mlp in zip(layers, mlps, strict=True):
        layer.mlp = mlp


def propose_(model: nn.Module, blocks: Sequence[Any], batches: Sequence[Any], neurons: int) -> None:
    """Statistics of the probe, and the new neurons that follow from them, at most `neurons` in each block."""
    training = model.training
    model.eval()
    for block in blocks:
        block.init_computation()
    for batch in batches:
        (model(**batch).loss * len(batch["labels"])).backward()  # a sum, as GroMo divides by the samples itself
        for block in blocks:
            block.update_computation()
    for block in blocks:
        block.compute_optimal_updates(maximum_added_neurons=neurons, **TINY)
        block.reset_computation()
    model.zero_grad()
    model.train(training)


def apply_(model: nn.Module, blocks: Sequence[Any], batches: Sequence[Any]) -> float:
    """Widen the blocks at the scaling factor of the lowest loss of the probe, which is returned."""

    def loss(scale: float) -> float:
        for block in blocks:
            block.set_scaling_factor(scale)
        return probe_loss(model, batches)

    for block in blocks:
        block.forward = block.extended_forward
    losses = {scale: loss(scale) for scale in SCALES}
    while (best := min(losses, key=losses.__getitem__)) == max(losses):
        losses[2 * best] = loss(2 * best)
    for block in blocks:
        block.set_scaling_factor(best)
        block.dummy_select_update()
        block.apply_change()
    return losses[best]


def take_over_(model: Any, optimizer: Optimizer, blocks: Sequence[Any]) -> None:
    """Give a model and its optimizer what the blocks have become; old entries keep their moments."""
    held, state = dict(model.named_parameters()), model.state_dict()
    for index, block in enumerate(blocks):
        for name, layer in (("fc1", block.first_layer), ("fc2", block.second_layer)):
            path = f"{model.base_model_prefix}.layers.{index}.mlp.{name}"
            state |= {f"{path}.weight": layer.weight.detach(), f"{path}.bias": layer.bias.detach()}
    model.load_state_dict(state)
    changes = Changes(
        [
            Replaced(name, held[name], new, tuple(map(_extended, held[name].shape, new.shape)))
            for name, new in model.named_parameters()
            if new is not held[name]
        ]
    )
    carry_optimizer_state_(optimizer, changes, list(model.parameters()))


def _extended(old: int, new: int) -> Axis:
    """Old slices, and new ones behind them."""
    source = torch.arange(new)
    source[old:] = NEW
    return Axis(source, torch.ones(new), torch.ones(new))
