"""What new units would do to the loss of each sample, to first order: the same currency for depth and for splits."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .capture.described import describe
from .capture.hooks import Hooks
from .capture.inputs import Affine
from .capture.moments import LARGEST_CHANGE
from .capture.padding import masks_of
from .capture.shown import Shown
from .capture.undisturbed import undisturbed
from .loss import Loss, check_loss, own_loss_of, terms_per_sample
from .ranks import Ranks
from .samples import collect
from .solving.operator import quadratic_forms, responses


# Tokens of one slice, which bounds the memory beside that of a forward and backward pass.
_SLICE = 4096


@dataclass(frozen=True, eq=False)
class Units:
    """
    Units that could be added to one linear layer. Neurons may occur more than once.

    Attributes:
        linear (`str`): Path of the layer; of gated neurons that of the gate.
        kind (`str`): `"depth"`, units that feed neurons, or `"width"`, splits of neurons.
        neurons (`Tensor`): The neurons, int64, shape `(k,)`.
        rows (`Tensor`): `p = step · direction`, shape `(k, d + 1)`, of gated neurons that are split `(k, 2 (d + 1))`.
    """

    linear: str
    kind: str
    neurons: Tensor
    rows: Tensor


@dataclass(frozen=True, eq=False)
class UnitScores:
    """
    What units would do, sample by sample.

    A coefficient is the gain `α` of a depth unit `α (φ(p · x̂) - φ'(0) p · x̂)`, or the square of the factor of the
    step of a split. With coefficients `c` the loss of sample `n` changes by `Σ_j values[n, j] c_j` to first order.

    Attributes:
        values (`Tensor`): Shape `(samples, units)`, the samples of all ranks, units in the order that was asked for.
        judges (`Tensor`): Samples that neither directions nor coefficients may be fitted to, bool, `(samples,)`.
        largest (`Tensor`): Coefficient at which the pre-activation of the neuron changes by half of its root mean
            square, shape `(units,)`. The first order is not to be trusted beyond.
        splits (`Tensor`): Whether a unit is a split, whose coefficient is not negative, bool, `(units,)`.
        terms (`float`): Number of predictions that the loss of a sample is the mean of. The Fisher information is that
            of a prediction, and predictions of a sample are uncorrelated where the model is right, so that of the mean
            loss is `terms · E[u uᵀ]`.
        loss (`float`): Mean loss of the samples that judge.
        probe_loss (`float`): Mean loss of all samples.
    """

    values: Tensor
    judges: Tensor
    largest: Tensor
    splits: Tensor
    terms: float = 1.0
    loss: float = math.nan
    probe_loss: float = math.nan

    def of(self, columns: Sequence[int]) -> "UnitScores":
        """The scores of some of the units."""
        chosen = torch.as_tensor(columns, dtype=torch.int64, device=self.values.device)
        parts = {name: getattr(self, name).index_select(0, chosen) for name in ("largest", "splits")}
        return replace(self, values=self.values.index_select(1, chosen), **parts)


def score_units(
    model: nn.Module,
    batches: Iterable[Any],
    units: Sequence[Units],
    unit_activation: Callable[[Tensor], Tensor],
    *,
    judging: Iterable[Any] = (),
    loss: Loss | None = None,
    distributed: bool = False,
    group: "dist.ProcessGroup | None" = None,
) -> UnitScores:
    """
    Score units by one forward and backward pass over all tokens of the probe.

    The memory is that of a pass and of samples × units. The model is used and left as by [`analyze_curvature`].

    Args:
        model (`nn.Module`): The model.
        batches (`Iterable`): The probe batches of this rank that the units come from.
        units (`Sequence[Units]`): The units, by layer.
        unit_activation (`Callable`): The activation `φ` of depth units.
        judging (`Iterable`, *optional*): Batches of this rank whose samples judge, see [`UnitScores`].
        loss (`Callable`, *optional*): Maps model and batch to the mean loss over the samples of the batch. Defaults to
            `model(**batch).loss`.
        distributed (`bool`, *optional*, defaults to `False`): Whether every rank calls this with batches of its own.
        group (`torch.distributed.ProcessGroup`, *optional*): The ranks, by default all.

    Returns:
        `UnitScores`: The same on every rank.

    Raises:
        ValueError: If there is no sample, or a loss or score is not finite.
        RuntimeError: If another rank failed.
    """
    ranks = Ranks(distributed, group)
    if isinstance(model, nn.parallel.DistributedDataParallel):
        model = model.module
    parameter = next(model.parameters())
    device = parameter.device
    dtype = torch.promote_types(parameter.dtype, torch.float32)
    choosing, judges = list(batches), list(judging)
    collected, sizes = ranks.together("Collecting the probe batches", partial(collect, [*choosing, *judges]))
    judge = torch.tensor([index >= len(choosing) for index in range(len(sizes))]).repeat_interleave(
        torch.tensor(sizes)
    )
    start = int(ranks.before_and_total(torch.tensor(len(judge), device=device))[0])
    starts = torch.tensor([0, *(len(part.neurons) for part in units)]).cumsum(0).tolist()
    places = {(part.linear, part.kind): (part, slice(*starts[i : i + 2])) for i, part in enumerate(units)}
    if len(places) < len(units):
        raise ValueError("`units` has two entries of one layer and kind: join them.")
    values = torch.zeros(len(judge), starts[-1], dtype=dtype, device=device)
    losses: list[float] = []
    # Sums of squares of what a coefficient of 1 changes, and of the pre-activations.
    change, size = (torch.zeros(starts[-1], dtype=torch.float64, device=device) for _ in range(2))
    zero, one = torch.tensor([0.0, 1.0], dtype=torch.float64)
    slope = float(torch.func.jvp(unit_activation, (zero,), (one,))[1])

    def bent(response: Tensor, part: Units, module: Affine) -> Tensor:
        """What a gain of 1 adds beside what the neuron's own row takes back, which may have no bias."""
        if module.bias is None:
            return unit_activation(response + part.rows[:, -1].to(response)) - slope * response
        return unit_activation(response) - slope * response

    def receive(shown: Shown) -> None:
        call = shown.call
        if (call.linear, shown.kind) not in places:
            return
        part, place = places[call.linear, shown.kind]
        owners, width, module = shown.owners(start), shown.kind == "width", call.module
        neurons, vectors = part.neurons.to(owners.device), part.rows.to(owners.device, dtype).t().contiguous()
        # Of a convolution only some patches are unfolded at a time; other layers' tokens need no copy.
        whole = None if isinstance(module, nn.Conv2d) else shown.tokens(owners)

        def segment(rows: Tensor) -> tuple[Tensor, Tensor]:
            if whole is not None:
                return whole.segment(rows, neurons)
            return shown.tokens(owners, rows).segment(torch.arange(len(rows), device=rows.device), neurons)

        for rows in torch.split(torch.arange(call.tokens, device=owners.device), _SLICE):
            inputs, coefficients = segment(rows)
            if width:
                score = 0.5 * quadratic_forms(inputs, coefficients, vectors)
            else:
                score = coefficients * bent(responses(inputs, coefficients, vectors), part, module)
            values[:, place].index_add_(0, owners.index_select(0, rows), score.to(dtype))
        inputs, coefficients = segment(call.rows)
        response = responses(inputs, coefficients, vectors)
        if not width:
            response = bent(response, part, module)
        change[place] += response.double().square().flatten(0, -2).sum(dim=0)
        size[place] += shown.square.double().sum(dim=0).index_select(0, neurons)

    def passes() -> None:
        modules = dict(model.named_modules())
        linears = {part.linear: modules[part.linear] for part in units}
        measured, first = own if loss is None else loss, start
        splits = any(part.kind == "width" for part in units)
        with Hooks(model, linears, receive, splits, describe(model)) as hooks:
            for batch, count in zip(collected, sizes, strict=True):
                forward = partial(measured, model, batch)
                value = check_loss(hooks.forward(forward, count, device, first, masks_of(batch, count)))
                losses.append(float(value.detach()))
                hooks.backward(value)
                first += count

    with undisturbed(model):
        own, terms = own_loss_of(model, collected, ranks), terms_per_sample(model, collected, ranks)
        ranks.together("Scoring the units", passes)
    change, size = ranks.sum(change), ranks.sum(size)
    splits = torch.cat([torch.full((len(part.neurons),), part.kind == "width") for part in units]).to(device)
    largest = LARGEST_CHANGE * (size / change).sqrt()
    largest = torch.where(splits, largest.square(), largest)
    everyone = torch.cat([part.to(device) for part in ranks.gather(values.cpu())])
    held_out = torch.cat([part.to(device) for part in ranks.gather(judge)])
    sums = [value * size for value, size in zip(losses, sizes, strict=True)]
    total, judged = map(sum, zip(*ranks.gather((sum(sums), sum(sums[len(choosing) :]))), strict=True))
    if not bool(torch.isfinite(everyone).all()):
        raise ValueError("The scores of some units are not finite. Check the model's loss, or probe in float64.")
    # A unit that answers nothing anywhere cannot be told anything about.
    largest, mean = (
        torch.where(change > 0, largest, 0.0),
        judged / int(held_out.sum()) if bool(held_out.any()) else math.nan,
    )
    return UnitScores(everyone, held_out, largest, splits, terms, mean, total / len(held_out))
