"""What a model and its linears must be like for it to grow; else the remedy is named."""

from collections.abc import Collection
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from transformers.activations import ACT2FN

from ...curvature import activation_of, curvature_at_zero
from ...growth import GrowthConfig, head_growth
from ...growth.budget import in_unit, sizes
from ...growth.choice.block_gains import block_costs, places_of_blocks
from ...growth.choice.candidates import limit_of, operators_for
from ...growth.choice.head_scores import head_costs, measurable
from ...growth.choice.planner import check_where
from ...growth.costs import Cost, CostBook
from ...growth.kinds import Kinds
from ...growth.operators import DEPTH_OPERATORS
from ...growth.paper import QUOTAS
from ...growth.surgery.grow import check_model
from ...growth.surgery.head_drafts import stacks_of
from ...growth.surgery.heads import check_family
from ...models.configuration_saddle import SaddleConfig
from ...models.families import family_of
from ...models.modeling_saddle import GrowablePreTrainedModel
from ..wrappers import unwrap


def check_growable(model: nn.Module, sharded: bool = False) -> GrowablePreTrainedModel:
    """
    The growable model inside of the wrappers of DDP and `torch.compile`; FSDP2 may have sharded it if `sharded`.

    Raises:
        ValueError: If it is not a Saddle model, is quantised, sharded, or has adapters. The message tells what to do.
    """
    inner: Any = unwrap(model)
    check_model(inner, sharded)
    if inner._hf_peft_config_loaded:
        raise ValueError(
            "Adapters (`model.add_adapter`) have taken the place of layers, so that the model cannot grow. Remove "
            "them by `model.delete_adapter`, or train the adapters without a GrowthCallback."
        )
    return inner  # type: ignore[no-any-return]


def growable_paths(model: GrowablePreTrainedModel, config: GrowthConfig) -> list[str]:
    """
    Paths of the linears that may grow.

    Raises:
        ValueError: If there are none, the config names linears or layers that the model lacks, or it asks for what the
            model's activation cannot do.
    """
    if config.kinds.neurons:
        check_activation(model.config, config)
    check_where(model, config)
    paths = [site.path for site in model.growable_linears() if not limit_of(site, config)]
    if not paths:
        raise ValueError("No linear may grow: see `linears` and `layers` of the config, and whether all are frozen.")
    return paths


def growing_kinds(model: GrowablePreTrainedModel, config: GrowthConfig) -> Kinds:
    """
    The kinds of growth that a config names, or, where it asks for any, those of them that the model can.

    Raises:
        ValueError: If the model cannot grow by one that is named.
    """
    kinds = config.kinds
    if kinds.heads:
        try:
            check_family(model)
            if not heads_that_grow(model, config):
                raise ValueError(
                    "No attention heads may grow: see `layers` of the config, of T5 those of all blocks of a list, "
                    "and whether all are frozen."
                )
        except ValueError:
            if kinds.named:
                raise
            kinds = replace(kinds, heads=())
    if kinds.blocks is not None and not kinds.only_blocks:
        try:
            places_of_blocks(model, config.layers, kinds.blocks)
        except ValueError:
            if kinds.named:
                raise
            kinds = replace(kinds, blocks=None)
    return kinds


def heads_that_grow(model: GrowablePreTrainedModel, config: GrowthConfig) -> list[str]:
    """Paths of the attention modules whose heads may grow, see [`measurable`]; where several must, all or none."""
    known = measurable(model)
    free = {
        attention.path
        for attention in model.attentions()
        if attention.path in known
        and (config.layers is None or attention.block in config.layers)
        and all(model.get_submodule(row).weight.requires_grad for row in attention.heads.rows)
    }
    return [path for stack in stacks_of(model, known) if free >= {*stack} for path in stack]


def check_activation(model: SaddleConfig, config: GrowthConfig) -> None:
    """
    Verify that the activations of a model may be those of branch units and of neurons that are split, and have the
    curvature that they are ranked by.

    Raises:
        ValueError: If not; the message tells why and what to do.
    """
    named = {*config.kinds.neurons}
    as_measured = named == {"auto"}
    deepens = bool(named & {*DEPTH_OPERATORS}) or (as_measured and not {*config.ranking} <= {"width", "gradmax"})
    field, name = "skip_activation", str(model.skip_activation)
    if not deepens:
        field = family_of(model.model_type).activation
        name = getattr(model, field)
    activation = ACT2FN[name]
    remedy = f"Use an operator of width, or another `{field}`."
    try:
        if deepens and any(True for _ in activation.parameters()):
            raise ValueError("branch units with an activation that has parameters of its own are not supported")
        pairs = "residual_pair" in named or (as_measured and config.ranking == ("paper_score",))
        if pairs and float(activation(torch.zeros(()))) != 0:
            raise ValueError("residual pairs keep the function only for activations that are 0 at 0")
        if "depth" in config.ranking:
            remedy = f"Use `criterion='width'`, or another `{field}`."
            curvature_at_zero(activation)
        elif config.ranking == ("width",):
            remedy = f"Use `criterion='depth'` where depth units may have this activation, or another `{field}`."
            activation_of(activation)
    except ValueError as error:
        raise ValueError(f"The model cannot grow with `{field}={name!r}`: {error}. {remedy}") from error


def check_budget(model: GrowablePreTrainedModel, paths: Collection[str], config: GrowthConfig) -> None:
    """
    Verify that a training which begins can add a neuron at all; else its events would be empty.

    Args:
        model ([`GrowablePreTrainedModel`]): The model.
        paths (`Collection[str]`): The linears that may grow.
        config ([`GrowthConfig`]): How, and how much.

    Raises:
        ValueError: If no operator fits these linears, or the budget of a model that has not grown is below what the
            cheapest neuron adds.
    """
    kinds, book = growing_kinds(model, config), CostBook(model)
    if config.budget_unit == "seconds":
        return  # what a neuron takes is measured by the first event
    costs: list[Cost] = []
    if kinds.blocks is not None:
        found, number = places_of_blocks(model, config.layers, kinds.blocks)
        costs += block_costs(model, found, number, kinds.blocks).values()
    headed = stacks_of(model, heads_that_grow(model, config)) if kinds.heads else []
    for way in kinds.ways:
        costs += head_costs(model, [tuple(head_growth(model, path, 1, way) for path in stack) for stack in headed])
    for site in model.growable_linears() if kinds.neurons else ():
        for operator in operators_for(model, site, config) if site.path in paths else ():
            costs += [book.cost(site.path, operator, neuron) for neuron in range(site.module.neurons)]
    prices = [in_unit(cost, config.budget_unit) for cost in costs]
    if not prices:
        raise ValueError(
            "No linear may grow in the way that the GrowthConfig asks for: only hidden neurons of MLPs and units "
            "with gains widen, and branches are nested at most `max_depth` deep. Change `criterion`, `operator`, "
            "`linears` or `max_depth`."
        )
    # Quotas are shares of an event; the last event may take all that is left.
    share = len(QUOTAS) if config.quotas else 1
    size, _, final = sizes(model, config)
    what = " or ".join(
        ["a neuron"] * bool(kinds.neurons) + ["a head"] * bool(kinds.heads) + ["a block"] * bool(kinds.blocks)
    )
    left, price, unit = final - size, min(prices) * share, "MACs" if config.budget_unit == "macs" else "parameters"
    # A model that has grown may go on without growth; that its budget is spent is said when the training begins.
    if left < price and model.growth_history is None:
        limit = next(
            name for name in ("max_growth", "max_macs", "max_parameters") if getattr(config, name) is not None
        )
        raise ValueError(
            f"Nothing would grow: `{limit}={getattr(config, limit)}` leaves {left:,.0f} {unit}, and an event needs "
            f"{price:,} for {what}. It is the final size, counted from that before the model's first event. Raise "
            "it, or train without a GrowthCallback."
        )
    if config.event_budget is not None and config.event_budget < price:
        raise ValueError(
            f"Nothing would grow: `event_budget={config.event_budget}` is below the {price:,} {unit} that an event "
            f"needs for {what}. Raise it, or leave it out."
        )
