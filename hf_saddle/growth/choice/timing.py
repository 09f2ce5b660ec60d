"""Kinds of growth are timed: the model grows for the while, and steps with and without it alternate."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ...curvature.capture.undisturbed import undisturbed
from ...curvature.loss import Loss
from ...models.modeling_saddle import GrowablePreTrainedModel
from ..counting import count_macs
from ..records.plan import GrowthPlan
from ..records.timing_record import Timing
from ..surgery.grow import prepare_growth


# Rounds of one step of each; the fastest counts, since what disturbs a step only makes it slower. More than the fewest
# while a comparison has not taken this many seconds.
_FEWEST, _MOST, _ENOUGH = 5, 25, 3.0


@dataclass(frozen=True)
class Kind:
    """
    Growths of one kind that are timed.

    Attributes:
        much ([`GrowthPlan`]): So much that it can be seen.
        first ([`GrowthPlan`], *optional*):
            Of units, one in every layer that has no branch, whose call takes time however many units there are.
    """

    much: GrowthPlan
    first: GrowthPlan | None = None


def time_kinds(
    model: GrowablePreTrainedModel, batch: Any, loss: Loss, kinds: Mapping[str, Kind], known: Timing | None = None
) -> Timing:
    """
    Time what kinds of growth add to a training step.

    Where that drowns in what else the machine does, a kind is taken to cost as much per multiply-accumulate as the
    model does.

    Args:
        model ([`GrowablePreTrainedModel`]): The model, which is as before afterwards.
        batch: A probe batch.
        loss (`Callable`): Maps model and batch to the loss.
        kinds (`Mapping[str, Kind]`): What is timed, by operator.
        known ([`Timing`], *optional*): What was measured before; it stays.

    Returns:
        [`Timing`]: With rates of these kinds, too.
    """
    if known is not None and not kinds:
        return known
    fastest, rates, calls = _seconds(model, batch, loss), {}, {}
    mean = fastest / count_macs(model)
    for name, kind in kinds.items():
        without, more, macs = _compared(model, kind.much, batch, loss)
        fastest = min(fastest, without)
        if kind.first is None:
            rates[name] = max(mean, more / max(1, macs))
            continue
        _, one, least = _compared(model, kind.first, batch, loss)
        rates[name] = max(mean, (more - one) / max(1, macs - least))
        calls[name] = max(0.0, one - rates[name] * least) / len(kind.first.growths)
    if known is None:
        return Timing(fastest, 0.0, rates, calls)
    return Timing(known.step, known.added, known.rates | rates, known.calls | calls)


def _compared(model: GrowablePreTrainedModel, plan: GrowthPlan, batch: Any, loss: Loss) -> tuple[float, float, int]:
    """Seconds of a step as it is, what a plan adds to them, and the multiply-accumulates that it adds."""
    prepared = prepare_growth(model, plan)
    with_, without = list[float](), list[float]()
    while len(with_) < _FEWEST or (len(with_) < _MOST and sum(with_) + sum(without) < _ENOUGH):
        without.append(_seconds(model, batch, loss))
        prepared.commit_()
        try:
            with_.append(_seconds(model, batch, loss))
        finally:
            prepared.rollback_()
    added = prepared.event.macs_after - prepared.event.macs_before
    return min(without), min(with_) - min(without), added


def _seconds(model: GrowablePreTrainedModel, batch: Any, loss: Loss) -> float:
    """Of a forward and backward pass, which leaves no gradients."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with undisturbed(model):
        _wait(model)
        started = time.perf_counter()
        torch.autograd.grad(loss(model, batch), trained, allow_unused=True)
        _wait(model)
        return time.perf_counter() - started


def _wait(model: GrowablePreTrainedModel) -> None:
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
