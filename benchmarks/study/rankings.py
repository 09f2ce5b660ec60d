"""Other ways to choose what grows: by significance alone, and from several directions of every neuron."""

import copy
import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from hf_saddle import CurvatureReport, grow_
from hf_saddle.curvature.capture.capture import capture
from hf_saddle.curvature.capture.choice import choose
from hf_saddle.curvature.capture.described import describe
from hf_saddle.curvature.capture.undisturbed import undisturbed
from hf_saddle.curvature.loss import own_loss
from hf_saddle.curvature.ranks import Ranks
from hf_saddle.curvature.settings import Settings
from hf_saddle.curvature.solving.operator import CurvatureOperator
from hf_saddle.growth import (
    GrowthConfig,
    GrowthEvent,
    GrowthPlan,
    LayerGrowth,
    candidate_growths,
    halves,
    plan_growth,
    probe_loss,
    score_growths,
)
from hf_saddle.growth.budget import Budget, event_budget
from hf_saddle.growth.choice.candidates import NeuronCandidate
from hf_saddle.growth.choice.joint import judge
from hf_saddle.growth.choice.natural_step import columns_of, stepped
from hf_saddle.growth.choice.pursuit import choose_together
from hf_saddle.growth.choice.trial import measured_step
from hf_saddle.growth.costs import CostBook
from hf_saddle.growth.operators import OPERATORS
from hf_saddle.models.sites import Site
from hf_saddle.training.distributed import Replicas
from hf_saddle.training.events.measuring import measure_neurons
from hf_saddle.training.events.probe import event_seed
from hf_saddle.training.events.random_growth import stepped_at_random

from .baselines import carried_out_


def significant_event_(
    model: Any, optimizer: Optimizer, batches: Sequence[Any], config: GrowthConfig, *, event: int, step: int
) -> GrowthEvent:
    """One event of the neurons whose eigenvalues are the most standard errors from 0, per parameter."""
    choosing, _ = halves(batches)
    report = measure_neurons(model, choosing, config, event=event, loss=own_loss, replicas=Replicas())
    ranked = [dataclasses.replace(entry, gain=entry.eigenvalue.abs() / entry.standard_error) for entry in report]
    plan = plan_growth(dataclasses.replace(report, layers=tuple(ranked)), model, config, event=event)
    plan = stepped_at_random(model, plan, batches, config, own_loss)
    return carried_out_(model, plan, optimizer, batches, step)


class _Again(NeuronCandidate):
    """A further unit of a neuron, along another direction."""

    def __init__(self, *arguments: Any):
        super().__init__(*arguments)
        self.once = f"{self.entry.linear}, again", self.neuron


def several_event_(
    model: Any, optimizer: Optimizer, batches: Sequence[Any], config: GrowthConfig, *, event: int, step: int
) -> GrowthEvent:
    """
    One event in which pursuit chooses among two directions of every neuron for depth, and one for width.

    What comes along second directions grows first, as a neuron grows once in a plan: both take one joint step.
    """
    choosing, judging = halves(batches)
    report = measure_neurons(model, choosing, config, event=event, loss=own_loss, replicas=Replicas())
    sites = {site.path: site for site in model.growable_linears()}
    first = list(candidate_growths(report, model, config))
    second = second_directions(model, choosing, report, event_seed(config, event))
    offered = [*first, *second]
    candidates = [
        _candidate(report, sites[growth.linear], growth, neuron, NeuronCandidate if index < len(first) else _Again)
        for index, growth in enumerate(offered)
        for neuron in growth.neurons
    ]
    scores = score_growths(model, offered, choosing, judging)
    budget = Budget(CostBook(model), config, event_budget(model, config, event))
    chosen, _ = choose_together(candidates, columns_of(scores), budget, config.natural_step, config.significance)
    growths, order, start, again = [], list[int](), 0, 0
    for index, growth in enumerate(offered):
        places = sorted(column - start for column in chosen if 0 <= column - start < len(growth.neurons))
        if places:
            growths.append(growth.of(places))
            order += [start + place for place in places]
            again += index >= len(first)
        start += len(growth.neurons)
    plan = GrowthPlan(tuple(growths), criterion="two directions")
    found = judge(columns_of(scores.of(order)), config.natural_step)

    def loss_of(tried: GrowthPlan) -> float:
        grown = copy.deepcopy(model)
        for part in parts(tried, again):
            grow_(grown, part)
        return probe_loss(grown, judging)

    factor, gain = measured_step(plan, found, scores.loss, loss_of)
    plan = stepped(plan, found, factor, gain, found.error * factor)
    done = [
        grow_(model, part, optimizer, step=step, loss_before=scores.probe_loss)
        for part in parts(plan, again) or [plan]
    ]
    return dataclasses.replace(
        done[-1],
        parameters_before=done[0].parameters_before,
        macs_before=done[0].macs_before,
        layers=[layer for event in done for layer in event.layers],
        predicted_gain=plan.predicted_gain,
        loss_after=probe_loss(model, batches),
    )


def parts(plan: GrowthPlan, again: int) -> list[GrowthPlan]:
    """The second units of neurons, which are the last growths of a plan, and then the first ones."""
    cut = len(plan.growths) - again
    return [dataclasses.replace(plan, growths=part) for part in (plan.growths[cut:], plan.growths[:cut]) if part]


def _candidate(
    report: CurvatureReport, site: Site, growth: LayerGrowth, neuron: int, kind: type[NeuronCandidate]
) -> NeuronCandidate:
    way = OPERATORS[growth.operator]
    return kind(report[growth.linear, "depth" if way.deepens else "width"], site, way, neuron, 0.0)


def second_directions(
    model: nn.Module, batches: Sequence[Any], report: CurvatureReport, seed: int
) -> list[LayerGrowth]:
    """
    Units along the second of the generalised eigenvectors of every neuron, by the magnitude of the eigenvalue; from
    dense matrices.
    """
    described = describe(model)
    linears, _ = choose(model, [entry.linear for entry in report if entry.criterion == "depth"], described)
    settings = Settings(criteria=("depth",), whiten=True, seed=seed)
    with undisturbed(model):
        captured = capture(model, linears, batches, None, settings=settings, ranks=Ranks(), described=described)
    growths = []
    for layer in captured:
        tokens, bias = layer.tokens(), layer.module.bias is not None
        segment = tokens.segment(torch.arange(len(tokens)))
        matrices = CurvatureOperator([segment], 1 / captured.samples.total, Ranks()).dense().double()
        inverse = torch.linalg.inv(layer.moments.factor(layer.linear, bias)[0].double())
        values, vectors = torch.linalg.eigh(inverse @ matrices @ inverse.t())
        place = values.abs().argsort(dim=1, descending=True)[:, 1]
        chosen = vectors.gather(2, place[:, None, None].expand(-1, vectors.shape[1], 1))[:, :, 0]
        directions = torch.nn.functional.normalize(chosen @ inverse, dim=1).float()
        response = layer.moments.response(directions.t().to(segment[0].dtype)).float()
        zeros = torch.zeros(len(directions))
        growths.append(
            LayerGrowth(
                linear=layer.linear,
                operator="zero_gain",
                neurons=tuple(range(len(directions))),
                directions=directions,
                steps=1.0 / response,
                gains=zeros,
                predicted_gain=zeros,
                eigenvalues=values.gather(1, place[:, None])[:, 0].float(),
                candidates=len(directions),
            )
        )
    return growths
