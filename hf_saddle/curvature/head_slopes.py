"""What new attention heads would do once they are read: the slopes of the loss in their outgoing weights."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ..models.heads import heads_of
from ..models.modeling_saddle import GrowablePreTrainedModel
from .loss import Loss
from .passes import inputs_of, outputs_of, probe
from .undisturbed import undisturbed


def outgoing_scores(
    model: GrowablePreTrainedModel,
    batches: Iterable[Any],
    paths: Sequence[str],
    number: int,
    loss: Loss | None = None,
    outgoing: Sequence[Tensor | None] | None = None,
) -> tuple[list[Tensor], Tensor]:
    """
    What the last heads of attention modules would do, which nothing reads yet, sample by sample.

    Args:
        model ([`GrowablePreTrainedModel`]): The model that has them.
        batches (`Iterable`): The probe batches.
        paths (`Sequence[str]`): The modules, by path in the model.
        number (`int`): How many heads of each are meant.
        loss (`Callable`, *optional*): Maps model and batch to the mean loss over the samples of the batch.
        outgoing (`Sequence[Tensor]`, *optional*):
            Outgoing weights `A` of each of the heads, shape `(d, columns)`; by default those of steepest descent on
            these batches, of norm 1.

    Returns:
        `tuple[list[Tensor], Tensor]`: The weights, and the slopes of the samples' losses in `c` where the outgoing
        weights are `c A`, shape `(samples, heads)`.
    """
    known = {attention.path: attention for attention in model.attentions()}
    readers = {path: model.get_submodule(known[path].heads.reader) for path in paths}
    numbers = heads_of(model.base_model)
    kept = list(batches)

    def passes() -> Iterator[list[tuple[Tensor, Tensor]]]:
        """Of each batch, for each head, what it answers and the gradients at what reads it, sample by sample."""
        for batch, count, measure in probe(model, kept, loss):
            with inputs_of(readers) as inputs, outputs_of(readers) as outputs:
                value = measure(batch)
            slopes = torch.autograd.grad(value, [outputs[path] for path in paths])
            parts = []
            for path, slope in zip(paths, slopes, strict=True):
                heads = numbers[known[path].root]
                answers = inputs[path].detach()
                answers = answers.reshape(count, -1, heads, answers.shape[-1] // heads)
                of_samples = slope.reshape(count, -1, slope.shape[-1])
                parts += [(answers[:, :, heads - number + place], of_samples) for place in range(number)]
            yield parts

    with undisturbed(model):
        if outgoing is None:
            sums = [[torch.einsum("nto,ntc->oc", slope, own) for own, slope in parts] for parts in passes()]
            means = [torch.stack(parts).sum(dim=0) for parts in zip(*sums, strict=True)]
            outgoing = [-mean / mean.norm().clamp_min(torch.finfo(mean.dtype).tiny) for mean in means]
        weights = [weight for weight in outgoing if weight is not None]
        scores = [
            torch.stack(
                [
                    torch.einsum("nto,oc,ntc->n", slope, weight, own)
                    for weight, (own, slope) in zip(weights, parts, strict=True)
                ],
                dim=1,
            )
            for parts in passes()
        ]
    return weights, torch.cat(scores)
