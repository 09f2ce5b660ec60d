"""From a plan to drafts: what each growth does to which linear, in an order that keeps old neurons' numbers valid."""

import torch
from transformers.activations import ACT2FN

from ..models.modeling_saddle import GrowablePreTrainedModel
from ..models.sites import LINEARS, READERS
from .drafts import LinearDraft
from .operators import DEPTH_OPERATORS, OPERATORS
from .plan import GrowthPlan, LayerGrowth, check_neurons


def branch_kind(model: GrowablePreTrainedModel) -> str | None:
    """Kind of the model's branch units, or `None` if it has no branch."""
    branched = any(site.module.skip is not None for site in model.growable_linears())
    return model.config.skip_unit if branched else None


def draft_growths(model: GrowablePreTrainedModel, plan: GrowthPlan) -> list[LinearDraft]:
    """
    Draft what a plan does to a model; the model is not changed.

    Args:
        model ([`GrowablePreTrainedModel`]): The model that is to grow.
        plan ([`GrowthPlan`]): What is to grow, checked by [`check_plan`].

    Returns:
        `list[LinearDraft]`: One draft per linear of the base model (branches nested in it) that the plan may change,
        in canonical order.
    """
    sites = {site.path: site for site in model.growable_linears()}
    touched = {(sites[growth.linear].layer, sites[growth.linear].linear) for growth in plan.growths}
    # Hidden neurons that are copied change the rows of fc1 and the columns of fc2.
    touched |= {(layer, reader) for layer, linear in touched for reader in READERS.get(linear, ())}
    roots = {
        (site.layer, site.linear): LinearDraft.of(site.path, site.module)
        for site in sites.values()
        if (site.layer, site.linear) in touched and not site.nested
    }
    for (layer, linear), root in roots.items():
        root.readers = [roots[layer, reader] for reader in READERS.get(linear, ())]
    # fc2 before fc1, whose copies then copy the columns of new units of fc2 as well; within a linear the outer branch
    # first, so that a copied neuron takes along the units it had before the event.
    order = {path: (-LINEARS.index(site.linear), index) for index, (path, site) in enumerate(sites.items())}
    for growth in sorted(plan.growths, key=lambda growth: order[growth.linear]):
        site = sites[growth.linear]
        draft = roots[site.layer, site.linear].nested(site.depth)
        device = draft.weight.device
        rows = (growth.directions * growth.steps[:, None]).to(device)
        OPERATORS[growth.operator].draft_(
            draft, torch.tensor(growth.neurons), rows, growth.gains.to(device), model.config.hidden_act
        )
    return list(roots.values())


def check_plan(model: GrowablePreTrainedModel, plan: GrowthPlan) -> str:
    """
    Verify that a plan fits a model.

    Returns:
        `str`: The kind of branch units that the model will have.

    Raises:
        ValueError: If it does not fit; the message names the linear and the remedy.
    """
    known = {site.path: site for site in model.growable_linears()}
    kind = branch_kind(model)
    seen: set[tuple[str, int]] = set()
    for growth in plan.growths:
        if growth.linear not in known:
            raise ValueError(
                f"The plan grows {growth.linear!r}, which is not a growable linear of this model. Plans fit the model "
                "they were made for, before it grows."
            )
        site, operator = known[growth.linear], OPERATORS[growth.operator]
        check_neurons(growth.linear, growth.neurons, site.module.out_features)
        if growth.directions.shape[1] != site.module.in_features + 1:
            raise ValueError(
                f"`directions` of {growth.linear} must have {site.module.in_features + 1} columns (inputs and bias), "
                f"got {growth.directions.shape[1]}."
            )
        again = [neuron for neuron in growth.neurons if (growth.linear, neuron) in seen]
        if again:
            raise ValueError(
                f"The plan grows neurons {again[:5]} of {growth.linear} twice; a neuron grows once an event."
            )
        seen |= {(growth.linear, neuron) for neuron in growth.neurons}
        if operator.deepens:
            _check_kind(growth, kind, model.config.hidden_act)
            kind = operator.kind
        elif not operator.can_widen(site, kind):
            raise ValueError(
                f"`{growth.operator}` widens mlp.fc1 (all but `gradmax` also branch units with gains), not "
                f"{growth.linear}. Give this linear an operator of depth: {', '.join(DEPTH_OPERATORS)}."
            )
    return kind or model.config.skip_unit


def _check_kind(growth: LayerGrowth, kind: str | None, activation: str) -> None:
    """Raise a `ValueError` if an operator makes units that a model of this kind and activation cannot have."""
    wanted = OPERATORS[growth.operator].kind
    if kind not in (None, wanted):
        raise ValueError(
            f"`{growth.operator}` makes units of kind {wanted!r}, but the model's branches are of kind {kind!r}. "
            "A model keeps one kind: use an operator of that kind, and merge pairs only after the last event."
        )
    if wanted == "residual_pair" and float(ACT2FN[activation](torch.zeros(()))) != 0.0:
        raise ValueError(
            f"`residual_pair` keeps the function only for activations that are 0 at 0; {activation!r} is not. Use "
            "`zero_gain`."
        )
