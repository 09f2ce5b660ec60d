"""How neurons grow: each operator as a change of drafts, in an order that keeps the numbers of old neurons valid."""

import torch
from torch import Tensor
from transformers.activations import ACT2FN

from ..models.modeling_saddle import GrowablePreTrainedModel
from ..models.sites import LINEARS, READERS, Place
from .config import DEPTH_OPERATORS
from .drafts import LinearDraft, add_units_
from .plan import GrowthPlan, LayerGrowth, check_neurons


_KIND = {"zero_gain": "gain", "opposed_pair": "gain", "residual_pair": "residual_pair"}


def unit_kind(model: GrowablePreTrainedModel) -> str | None:
    """Kind of the model's branch units, or `None` if it has no branch."""
    branched = any(site.module.skip is not None for site in model.growable_linears())
    return model.config.skip_unit if branched else None


def can_widen(place: Place, operator: str, kind: str | None) -> bool:
    """Whether neurons of a linear can be copied: hidden ones of an MLP, and branch units that have gains."""
    if place.nested:
        return operator != "gradmax" and kind == "gain"
    return bool(place.readers)


def draft_growths(model: GrowablePreTrainedModel, plan: GrowthPlan) -> tuple[list[LinearDraft], str]:
    """
    Draft what a plan does to a model; the model is not changed.

    Args:
        model ([`GrowablePreTrainedModel`]): The model that is to grow.
        plan ([`GrowthPlan`]): What is to grow.

    Returns:
        `tuple[list[LinearDraft], str]`: One draft per linear of the base model (branches nested in it) that the plan
        may change, in canonical order, and the kind of branch units that the model will have.

    Raises:
        ValueError: If the plan does not fit the model.
    """
    kind = _check_plan(model, plan)
    sites = {site.path: site for site in model.growable_linears()}
    touched = {(sites[growth.linear].layer, sites[growth.linear].linear) for growth in plan.growths}
    # Hidden neurons that are copied change the rows of fc1 and the columns of fc2.
    touched |= {(layer, reader) for layer, linear in touched for reader in READERS.get(linear, ())}
    roots = {
        (site.layer, site.linear): LinearDraft.of(site.path, site.module)
        for site in sites.values()
        if (site.layer, site.linear) in touched and not site.nested
    }
    # fc2 before fc1, whose copies then copy the columns of new units of fc2 as well; within a linear the outer branch
    # first, so that a copied neuron takes along the units it had before the event.
    order = {path: index for index, path in enumerate(sites)}
    for linear in reversed(LINEARS):
        growths = [growth for growth in plan.growths if sites[growth.linear].linear == linear]
        for growth in sorted(growths, key=lambda growth: order[growth.linear]):
            _grow_(roots, sites[growth.linear], growth, model.config.hidden_act)
    return [roots[key] for key in sorted(roots, key=lambda key: (key[0], LINEARS.index(key[1])))], kind


def _check_plan(model: GrowablePreTrainedModel, plan: GrowthPlan) -> str:
    """Verify that a plan fits a model and return the kind of branch units it will have."""
    known = {site.path: site for site in model.growable_linears()}
    kind = unit_kind(model)
    seen: set[tuple[str, int]] = set()
    for growth in plan.growths:
        if growth.linear not in known:
            raise ValueError(
                f"The plan grows {growth.linear!r}, which is not a growable linear of this model. Plans fit the model "
                "they were made for, before it grows."
            )
        site, module = known[growth.linear], known[growth.linear].module
        check_neurons(growth.linear, growth.neurons, module.out_features)
        if growth.directions.shape[1] != module.in_features + 1:
            raise ValueError(
                f"`directions` of {growth.linear} must have {module.in_features + 1} columns (inputs and bias), got "
                f"{growth.directions.shape[1]}."
            )
        again = [neuron for neuron in growth.neurons if (growth.linear, neuron) in seen]
        if again:
            raise ValueError(
                f"The plan grows neurons {again[:5]} of {growth.linear} twice; a neuron grows once an event."
            )
        seen |= {(growth.linear, neuron) for neuron in growth.neurons}
        if growth.operator not in DEPTH_OPERATORS:
            if not can_widen(site, growth.operator, kind):
                raise ValueError(
                    f"`{growth.operator}` widens mlp.fc1 (all but `gradmax` also branch units with gains), not "
                    f"{growth.linear}. Give this linear an operator of depth: {', '.join(DEPTH_OPERATORS)}."
                )
            continue
        wanted = _KIND[growth.operator]
        if kind not in (None, wanted):
            raise ValueError(
                f"`{growth.operator}` makes units of kind {wanted!r}, but the model's branches are of kind {kind!r}. "
                "A model keeps one kind: use an operator of that kind, and merge pairs only after the last event."
            )
        if wanted == "residual_pair" and float(ACT2FN[model.config.hidden_act](torch.zeros(()))) != 0.0:
            raise ValueError(
                f"`residual_pair` keeps the function only for activations that are 0 at 0; "
                f"{model.config.hidden_act!r} is not. Use `zero_gain`."
            )
        kind = wanted
    return kind or model.config.skip_unit


def _grow_(roots: dict[tuple[int, str], LinearDraft], place: Place, growth: LayerGrowth, activation: str) -> None:
    """Apply one growth to the draft of its linear and, for hidden neurons, of the linear behind it."""
    readers = [reader for name in place.readers for reader in roots[place.layer, name].chain()]
    parent, linear = None, roots[place.layer, place.linear]
    for _ in range(place.depth):
        assert linear.branch is not None
        parent, linear = linear.branch, linear.branch.linear
    neurons = torch.tensor(growth.neurons)
    rows = (growth.directions * growth.steps[:, None]).to(linear.weight.device)
    if growth.operator in DEPTH_OPERATORS:
        _deepen_(linear, neurons, rows, growth, activation)
    elif growth.operator == "gradmax":
        linear.parameters["weight"].append_(rows[:, :-1])
        linear.parameters["bias"].append_(rows[:, -1])
        for reader in readers:
            _each_weight(
                reader, lambda weight: weight.append_(weight.value.new_zeros(len(weight.value), len(rows)), 1)
            )
    else:
        values = _copies(linear, neurons, rows, both=growth.operator == "split")
        if parent is not None:
            parent.split_units_(neurons, values)
            return
        linear.copy_rows_(neurons, values)
        for reader in readers:
            _each_weight(reader, lambda weight: weight.copy_(1, neurons, scale=0.5))


def _each_weight(linear: LinearDraft, change) -> None:
    for name in ("weight", "twin_weight"):
        if name in linear.parameters:
            change(linear.parameters[name])


def _deepen_(linear: LinearDraft, neurons: Tensor, rows: Tensor, growth: LayerGrowth, activation: str) -> None:
    if growth.operator == "residual_pair":
        add_units_(linear, neurons, rows, None, paired=True)
        return
    gains = growth.gains.to(linear.weight.device)
    if growth.operator == "opposed_pair":
        twice = [part for pair in zip(range(len(neurons)), range(len(neurons)), strict=True) for part in pair]
        signs = torch.tensor([1.0, -1.0]).repeat(len(neurons)).to(gains)
        add_units_(linear, neurons[twice], rows[twice], gains[twice] * signs, paired=False)
        return
    add_units_(linear, neurons, rows, gains, paired=False)
    if bool((growth.gains != 0).any()):
        # What a finite gain adds to first order in p, the neuron's own row takes back: what is left is curvature.
        shift = -slope_at_zero(activation) * gains[:, None] * rows
        linear.parameters["weight"].add_(neurons, shift[:, :-1])
        if "bias" in linear.parameters:
            linear.parameters["bias"].add_(neurons, shift[:, -1])


def _copies(linear: LinearDraft, neurons: Tensor, rows: Tensor, both: bool) -> tuple[Tensor, Tensor]:
    """Weights and biases of originals and copies: `w + p` and `w - p`, or `w` and `w + p` if not `both`."""
    own = neurons.to(linear.weight.device)
    names = ("weight", "bias")
    precision = torch.promote_types(linear.weight.dtype, torch.float32)
    weight, bias = (linear.parameters[name].value.index_select(0, own).to(precision) for name in names)
    first, second = (rows, -rows) if both else (torch.zeros_like(rows), rows)
    weights = torch.cat([weight + first[:, :-1], weight + second[:, :-1]])
    return weights, torch.cat([bias + first[:, -1], bias + second[:, -1]])


def slope_at_zero(activation: str) -> float:
    """The derivative of an activation, a name in transformers' `ACT2FN`, at 0."""
    point = torch.zeros((), dtype=torch.float64)
    return float(torch.func.jvp(ACT2FN[activation], (point,), (torch.ones_like(point),))[1])
