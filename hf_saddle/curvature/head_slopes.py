"""What new attention heads would do once they are read: the slopes of the loss in their outgoing weights."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ..models.heads import heads_of
from ..models.modeling_saddle import GrowablePreTrainedModel
from .capture.undisturbed import undisturbed
from .loss import Loss
from .passes import inputs_of, outputs_of, probe
from .ranks import Ranks


def outgoing_scores(
    model: GrowablePreTrainedModel,
    batches: Iterable[Any],
    stacks: Sequence[Sequence[str]],
    number: int,
    loss: Loss | None = None,
    outgoing: Sequence[Sequence[Tensor]] | None = None,
    ranks: Ranks | None = None,
) -> tuple[list[tuple[Tensor, ...]], Tensor]:
    """
    What the last heads of attention modules would do, which nothing reads yet, sample by sample.

    Args:
        model, batches, loss, ranks: As in [`analyze_curvature`].
        stacks (`Sequence[Sequence[str]]`): The modules, by path in the model, those together that get heads together.
        number (`int`): How many heads of each are meant.
        outgoing (`Sequence[Sequence[Tensor]]`, *optional*):
            Outgoing weights `A` of each of the heads, in each of its modules, shape `(d, columns)`; by default those
            of steepest descent on these batches, of norm 1 over its modules.
        ranks ([`Ranks`], *optional*): Processes that share the probe.

    Returns:
        `tuple[list[tuple[Tensor, ...]], Tensor]`: The weights, and the slopes of the losses of this rank's samples in
        `c` where the outgoing weights are `c A`, shape `(samples, heads)`.
    """
    known = {attention.path: attention for attention in model.attentions()}
    paths = [path for stack in stacks for path in stack]
    readers = {path: model.get_submodule(known[path].heads.reader) for path in paths}
    numbers = heads_of(model.base_model)
    kept = list(batches)

    def passes() -> Iterator[list[list[tuple[Tensor, Tensor]]]]:
        """Of each batch, for each head and module, what it answers and the gradients at what reads it, by sample."""
        for batch, count, measure in probe(model, kept, loss):
            with inputs_of(readers) as inputs, outputs_of(readers) as outputs:
                value = measure(batch)
            slopes = torch.autograd.grad(value, [outputs[path] for path in paths])
            parts = dict[str, list[tuple[Tensor, Tensor]]]()
            for path, slope in zip(paths, slopes, strict=True):
                heads = numbers[known[path].root]
                answers = inputs[path].detach()
                answers = answers.reshape(count, -1, heads, answers.shape[-1] // heads)
                of_samples = slope.reshape(count, -1, slope.shape[-1])
                parts[path] = [(answers[:, :, heads - number + place], of_samples) for place in range(number)]
            yield [[parts[path][place] for path in stack] for stack in stacks for place in range(number)]

    def steepest() -> list[list[Tensor]]:
        sums = [
            [[torch.einsum("nto,ntc->oc", slope, own) for own, slope in modules] for modules in heads]
            for heads in passes()
        ]
        return [
            [torch.stack(batches).sum(dim=0) for batches in zip(*modules, strict=True)]
            for modules in zip(*sums, strict=True)
        ]

    def slopes(weights: Sequence[Sequence[Tensor]]) -> Tensor:
        return torch.cat(
            [torch.stack([_slope(*head) for head in zip(weights, heads, strict=True)], dim=1) for heads in passes()]
        )

    ranks = ranks or Ranks()
    with undisturbed(model):
        if outgoing is None:
            found = ranks.together("Measuring new heads", steepest)
            outgoing = [_downhill([ranks.sum(mean) for mean in means]) for means in found]
        weights = [tuple(head) for head in outgoing]
        return weights, ranks.together("Scoring new heads", lambda: slopes(weights))


def _downhill(slopes: Sequence[Tensor]) -> list[Tensor]:
    """The opposite of slopes, of norm 1 together."""
    norm = torch.cat([slope.flatten() for slope in slopes]).norm()
    return [-slope / norm.clamp_min(torch.finfo(slope.dtype).tiny) for slope in slopes]


def _slope(weights: Sequence[Tensor], modules: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Slope of each sample's loss in the size of the outgoing weights of one head."""
    both = zip(weights, modules, strict=True)
    return torch.stack([torch.einsum("nto,oc,ntc->n", slope, weight, own) for weight, (own, slope) in both]).sum(dim=0)
