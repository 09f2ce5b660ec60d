"""From a plan to drafts: what each growth does to which layer, in an order that keeps old neurons' numbers valid."""

from collections.abc import Sequence

import torch
from torch import nn
from transformers.activations import ACT2FN

from ...models.modeling_saddle import GrowablePreTrainedModel
from ...models.sites import Site
from ..operators import DEPTH_OPERATORS, HEAD_OPERATORS, OPERATORS, Operator
from ..records.layer_growth import LayerGrowth
from ..records.plan import GrowthPlan
from ..rows import layers_of
from .drafts import LinearDraft
from .entries import EntriesDraft
from .head_drafts import check_heads, check_stacks_grow, draft_heads_, find_attention


def branch_kind(model: GrowablePreTrainedModel) -> str | None:
    """Kind of the model's branch units, or `None` if it has no branch."""
    branched = any(site.module.skip is not None for site in model.growable_linears())
    return model.config.skip_unit if branched else None


def draft_growths(model: GrowablePreTrainedModel, growths: Sequence[LayerGrowth]) -> list[LinearDraft]:
    """
    Draft what growths do to a model; the model is not changed.

    Args:
        model ([`GrowablePreTrainedModel`]): The model that is to grow.
        growths (`Sequence[LayerGrowth]`): What is to grow, checked by [`check_plan`].

    Returns:
        `list[LinearDraft]`: One draft per layer of the stock model (branches nested in it) that they may change, in
        canonical order.
    """
    sites = {site.path: site for site in model.growable_linears()}
    roots = {site.root: site for site in sites.values() if not site.nested}
    of_heads = [growth for growth in growths if growth.operator in HEAD_OPERATORS]
    of_neurons = [growth for growth in growths if growth.operator not in HEAD_OPERATORS]
    grown = {roots[sites[growth.linear].root].path for growth in of_neurons}
    hidden = {site.path: site.neurons for site in roots.values() if site.neurons is not None}
    # Hidden neurons that are copied change the rows of all layers that have one for each, and columns of readers.
    touched = grown | {path for root in grown & hidden.keys() for path in (*hidden[root].rows, *hidden[root].readers)}
    for growth in of_heads:
        heads = find_attention(model, growth.linear).heads
        touched |= {*heads.rows, heads.reader}
    drafts = {site.path: LinearDraft.of(site.path, site.module) for site in roots.values() if site.path in touched}
    for path in grown & hidden.keys():
        neurons, draft = hidden[path], drafts[path]
        draft.partners = [drafts[row] for row in neurons.rows[1:]]
        draft.readers = [drafts[reader] for reader in neurons.readers]
        draft.beside = [EntriesDraft(norm, model.get_submodule(norm)) for norm in neurons.norms]
    # Readers before the neurons that they read, whose copies then copy the columns of new units of the readers as
    # well; within a layer, and those that share its neurons, the outer branch first, so that a copied neuron takes
    # along the units it had before the event.
    first = {row: neurons.rows[0] for neurons in hidden.values() for row in neurons.rows}
    place = {path: index for index, path in enumerate(sites)}

    def order(growth: LayerGrowth) -> tuple[int, int, int]:
        site = sites[growth.linear]
        root = roots[site.root].path
        return -place[first.get(root, root)], site.depth, place[site.path]

    for growth in sorted(of_neurons, key=order):
        site = sites[growth.linear]
        draft = drafts[roots[site.root].path].nested(site.depth)
        device = draft.weight.device
        rows = (growth.directions * growth.steps[:, None]).to(device)
        OPERATORS[growth.operator].draft_(
            draft, torch.tensor(growth.neurons), rows, growth.gains.to(device), str(model.config.skip_activation)
        )
    draft_heads_(model, of_heads, drafts)
    return list(drafts.values())


def check_plan(model: GrowablePreTrainedModel, plan: GrowthPlan) -> str:
    """
    Verify that a plan fits a model.

    Returns:
        `str`: The kind of branch units that the model will have.

    Raises:
        ValueError: If it does not fit; the message names the layer and the remedy.
    """
    known = {site.path: site for site in model.growable_linears()}
    kind = branch_kind(model)
    seen: set[tuple[str, int]] = set()
    for growth in plan.growths:
        if growth.operator in HEAD_OPERATORS:
            check_heads(model, growth)
            again = [head for head in growth.neurons if (growth.linear, head) in seen]
            if again:
                raise ValueError(f"The plan grows heads {again[:5]} of {growth.linear} twice.")
            seen |= {(growth.linear, head) for head in growth.neurons}
            continue
        if growth.linear not in known:
            raise ValueError(
                f"The plan grows {growth.linear!r}, which is not a growable linear of this model. Plans fit the model "
                "they were made for, before it grows."
            )
        site, operator = known[growth.linear], OPERATORS[growth.operator]
        site.check_neurons(growth.neurons)
        if operator.deepens:
            _check_depth(growth, site, kind, str(model.config.skip_activation))
            kind = operator.kind
        else:
            _check_width(model, growth, site, kind)
        size = operator.row_size(site)
        if growth.directions.shape[1] != size:
            raise ValueError(
                f"`directions` of {growth.linear} must have {size} columns (inputs and bias"
                f"{', of each layer with rows of its neurons' if site.neurons is not None else ''}), got "
                f"{growth.directions.shape[1]}."
            )
        if not operator.deepens:
            _check_biases(model, growth, site)
        again = [neuron for neuron in growth.neurons if (growth.linear, neuron) in seen]
        if again:
            raise ValueError(
                f"The plan grows neurons {again[:5]} of {growth.linear} twice; a neuron grows once an event."
            )
        seen |= {(growth.linear, neuron) for neuron in growth.neurons}
    check_stacks_grow(model, plan)
    return kind or model.config.skip_unit


def widening_objection(model: GrowablePreTrainedModel, site: Site, operator: Operator) -> str | None:
    """Why neurons that an operator might widen by its own rules cannot be widened by it in this model, or `None`."""
    hidden = site.neurons
    if site.nested or hidden is None:
        return None
    layers = map(model.get_submodule, (*hidden.rows, *hidden.readers))
    if any(isinstance(layer, nn.Conv2d) and layer.groups > 1 for layer in layers):
        return "its convolution has groups, which a new channel would not fit"
    if operator.scaled == "steps" and is_piecewise_linear(model.get_submodule(hidden.activation)):
        return "the splitting matrix of piecewise linear neurons is 0, so that no direction is better than another"
    return None


def is_piecewise_linear(activation: nn.Module) -> bool:
    """Whether an element-wise activation has no curvature anywhere but at its kinks, as ReLU and leaky ReLU."""
    points = torch.tensor([-7.1, -2.3, -0.9, -0.3, 0.4, 0.8, 2.1, 6.7], dtype=torch.float64, requires_grad=True)
    with torch.enable_grad():
        points = points.clone()  # hooks of a counter of operations refuse gradients at leaves
        (slope,) = torch.autograd.grad(activation(points).sum(), points, create_graph=True)
        if not slope.requires_grad:
            return True
        (curvature,) = torch.autograd.grad(slope.sum(), points, allow_unused=True)
    return curvature is None or not bool(curvature.any())


def _check_width(model: GrowablePreTrainedModel, growth: LayerGrowth, site: Site, kind: str | None) -> None:
    """Raise a `ValueError` if neurons cannot be widened as a growth says."""
    operator = OPERATORS[growth.operator]
    remedy = f"Give this linear an operator of depth: {', '.join(DEPTH_OPERATORS)}."
    if not operator.can_widen(site, kind):
        raise ValueError(
            f"`{growth.operator}` widens hidden neurons (all but `gradmax` also those behind a batch normalisation, "
            "which has no statistics of a neuron that is no copy, and branch units with gains), not "
            f"{growth.linear}. {remedy}"
        )
    objection = widening_objection(model, site, operator)
    if objection is not None:
        raise ValueError(f"`{growth.operator}` cannot widen {growth.linear}: {objection}. {remedy}")


def _check_biases(model: GrowablePreTrainedModel, growth: LayerGrowth, site: Site) -> None:
    """Raise a `ValueError` if the rows of neurons that are widened would change in biases that there are not."""
    layers = layers_of(model, site, OPERATORS[growth.operator])
    parts = growth.directions.chunk(len(layers), dim=1)
    if any(layer.bias is None and bool(part[:, -1].any()) for layer, part in zip(layers, parts, strict=True)):
        raise ValueError(
            f"`directions` of {growth.linear} change a bias, which the layer does not have: the last entry of each "
            "must be 0."
        )


def _check_depth(growth: LayerGrowth, site: Site, kind: str | None, activation: str) -> None:
    """Raise a `ValueError` if an operator makes units that a layer, or a model of this kind, cannot have."""
    operator = OPERATORS[growth.operator]
    if kind not in (None, operator.kind):
        raise ValueError(
            f"`{growth.operator}` makes units of kind {operator.kind!r}, but the model's branches are of kind "
            f"{kind!r}. A model keeps one kind: use an operator of that kind, and merge pairs only after the last "
            "event."
        )
    if not operator.can_deepen(site):
        raise ValueError(
            f"`{growth.operator}` makes pairs of rows, which a convolution such as {growth.linear} does not have. Use "
            "`zero_gain`."
        )
    if operator.kind == "residual_pair" and float(ACT2FN[activation](torch.zeros(()))) != 0.0:
        raise ValueError(
            f"`residual_pair` keeps the function only for activations that are 0 at 0; {activation!r} is not. Use "
            "`zero_gain`."
        )
