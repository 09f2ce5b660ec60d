"""Growth that measures nothing: all blocks twice (stacking), blocks evenly, and neurons in uneven halves (LEMON)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch.optim import Optimizer

from hf_saddle import grow_
from hf_saddle.growth import GrowthConfig, GrowthEvent, GrowthPlan, LayerGrowth, event_budget, probe_loss
from hf_saddle.growth.choice.block_gains import block_costs
from hf_saddle.growth.costs import CostBook
from hf_saddle.growth.operators import OPERATORS
from hf_saddle.growth.records.block_records import NewBlock
from hf_saddle.growth.rows import find_site
from hf_saddle.growth.surgery.expand import place_blocks
from hf_saddle.models.blocks import block_paths
from hf_saddle.training.events.probe import event_seed


# Of the outgoing weights of a neuron, what the first of its two copies keeps.
SHARE = 0.75


def stacked_event_(
    model: Any, optimizer: Optimizer, batches: Sequence[Any], config: GrowthConfig, *, event: int, step: int
) -> GrowthEvent:
    """Each block is followed by a plain copy of itself (progressive stacking, where there is one block)."""
    blocks = tuple(NewBlock(path, "stack") for path in block_paths(model.base_model, model.config))
    return carried_out_(model, GrowthPlan(blocks=blocks, seed=config.growth_seed), optimizer, batches, step)


def even_event_(
    model: Any, optimizer: Optimizer, batches: Sequence[Any], config: GrowthConfig, *, event: int, step: int
) -> GrowthEvent:
    """As many blocks as the budget of the event pays for, at even distances; each is a silent copy."""
    paths = block_paths(model.base_model, model.config)
    price = block_costs(model, paths[:1], 1, "copy")[paths[0]].parameters
    places = place_blocks(model, "even", int(event_budget(model, config, event) // price))
    blocks = tuple(NewBlock(path, "copy") for path in places)
    return carried_out_(model, GrowthPlan(blocks=blocks, seed=config.growth_seed), optimizer, batches, step)


def uneven_event_(
    model: Any, optimizer: Optimizer, batches: Sequence[Any], config: GrowthConfig, *, event: int, step: int
) -> GrowthEvent:
    """
    Random neurons of all MLPs become two exact copies each, of which one keeps `SHARE` of the outgoing weights and the
    other gets the rest (LEMON, arXiv 2310.07999): the function stays, and copies learn different things. As many as
    the budget of the event pays for. What the optimizer knows is that of even halves.
    """
    book, left = CostBook(model), event_budget(model, config, event)
    paths = [site.path for site in model.growable_linears() if site.neurons is not None and not site.nested]
    all_of = [(path, neuron) for path in paths for neuron in range(find_site(model, path).module.neurons)]
    generator = torch.Generator().manual_seed(event_seed(config, event) % 2**63)
    chosen: dict[str, list[int]] = {}
    for index in torch.randperm(len(all_of), generator=generator).tolist():
        path, neuron = all_of[index]
        price = book.cost(path, OPERATORS["net2net"], neuron).parameters
        if price <= left:
            left -= price
            book.book_(path, OPERATORS["net2net"], neuron)
            chosen.setdefault(path, []).append(neuron)
    growths = [
        LayerGrowth.by_hand(model, path, "net2net", sorted(neurons), steps=0.0) for path, neurons in chosen.items()
    ]
    widths = {path: find_site(model, path).module.neurons for path in paths}
    done = carried_out_(model, GrowthPlan(tuple(growths), seed=config.growth_seed), optimizer, batches, step)
    for growth in growths:
        first = torch.tensor(growth.neurons)
        second = widths[growth.linear] + torch.arange(len(first))
        for reader in map(model.get_submodule, find_site(model, growth.linear).neurons.readers):
            columns = reader.layout.matrix(reader.weight.data)
            columns[:, first] *= 2 * SHARE
            columns[:, second] *= 2 * (1 - SHARE)
    return done


def carried_out_(model: Any, plan: GrowthPlan, optimizer: Optimizer, batches: Sequence[Any], step: int) -> GrowthEvent:
    """The event of a plan, with the loss of the probe before and after it."""
    done = grow_(model, plan, optimizer, step=step, loss_before=probe_loss(model, batches))
    done.loss_after = probe_loss(model, batches)
    return done
