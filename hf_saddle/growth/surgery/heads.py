"""More attention heads: new ones that nothing reads yet, and heads that become two, in place and all or nothing."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from ...models.families import family_of
from ...models.modeling_saddle import GrowablePreTrainedModel
from ..operators import HEAD_WAYS
from ..records.event import GrowthEvent
from ..records.layer_growth import LayerGrowth
from ..records.plan import GrowthPlan
from .attachments import check_attachments
from .grow import check_model, grow_
from .head_drafts import HeadsDraft, find_attention


# Length of the step of a split relative to the head, where none is given.
STEP = 0.1


def grow_heads_(
    model: GrowablePreTrainedModel,
    heads: Mapping[str, int | Sequence[int]],
    how: str = "new",
    optimizer: Optimizer | None = None,
    *,
    step_size: float = STEP,
    seed: int = 0,
    **record: Any,
) -> GrowthEvent:
    """
    Give attention modules more heads, in place, together with config, history and optimizer, all or nothing.

    A head is a group of neurons of the layers of queries, keys and values; where key-value heads serve groups of
    queries, it is one of them with its queries. `"new"` appends heads with random rows that nothing reads yet: the
    model computes the same, bit for bit, and learns what to read. `"split"` replaces heads by two copies, moved apart
    by a random step, whose outgoing weights are halved: the same to second order in the step. Both are controls for
    heads and directions that are chosen by measurement, see [`score_heads`] and [`plan_heads`].

    Args:
        model ([`GrowablePreTrainedModel`]): The model, not its wrapper.
        heads (`Mapping[str, int | Sequence[int]]`):
            For paths of attention modules, in the base model or in the model, how many heads are to come; for splits
            also the heads, where a number stands for the first ones.
        how (`str`, *optional*, defaults to `"new"`): `"new"` or `"split"`.
        optimizer (`Optimizer` or `AcceleratedOptimizer`, *optional*): The optimizer that trains the model.
        step_size (`float`, *optional*, defaults to 0.1):
            Length of the step of a split relative to the norm of the head's rows. At 0 copies would stay the same.
        seed (`int`, *optional*, defaults to 0): Seed of what is random.
        record: `step`, `epoch` and `loss_before`, for the record.

    Returns:
        [`GrowthEvent`]: The record, see [`grow_`].

    Raises:
        ValueError: If the heads of the model, or of one of the modules, cannot grow. Nothing has changed then.

    Example:

    ```python
    >>> from hf_saddle.growth import grow_heads_

    >>> event = grow_heads_(model, {"layers.0.attention": 2}, optimizer=optimizer)
    >>> model.config.heads
    {'layers.0.attention': 5}
    ```"""
    if how not in HEAD_WAYS:
        raise ValueError(f"`how` must be {' or '.join(map(json.dumps, HEAD_WAYS))}, got {how!r}.")
    check_model(model)
    growths = tuple(
        head_growth(model, path, chosen, how, step_size=step_size, seed=seed + index)
        for index, (path, chosen) in enumerate(heads.items())
    )
    return grow_(model, GrowthPlan(growths, seed=seed), optimizer, **record)


def head_growth(
    model: GrowablePreTrainedModel,
    path: str,
    heads: int | Sequence[int],
    how: str = "new",
    *,
    directions: Tensor | None = None,
    step_size: float = STEP,
    seed: int = 0,
) -> LayerGrowth:
    """
    The growth of heads of one attention module, for a plan; arguments and errors are those of [`grow_heads_`].

    The rows of a model that FSDP2 has sharded are gathered: all processes have to call this.

    Args:
        directions (`Tensor`, *optional*):
            Of splits, shape `(k, R)`, as [`HeadsDraft.affine`] has the rows of a head; random ones if `None`.
    """
    check_family(model)
    roots = {attention.root: attention.path for attention in model.attentions()}
    attention = find_attention(model, roots.get(path, path))
    check_attachments(model, (), [attention])
    draft = HeadsDraft.of(model, attention)
    chosen = _chosen(attention.path, heads, how, draft.number)
    generator = torch.Generator().manual_seed(seed)
    own = draft.affine(torch.arange(draft.number)).float().cpu()
    free = torch.cat([_weights(layer.parameters, size) for layer, size in zip(draft.layers, draft.sizes, strict=True)])
    if how == "new":
        # As large as what is there, without biases.
        rows = torch.zeros(len(chosen), own.shape[1])
        widths = [count * size for count, size in draft.sizes]
        parts = zip(torch.split(rows, widths, 1), torch.split(own, widths, 1), draft.sizes, strict=True)
        for part, like, (count, size) in parts:
            weights = part.view(len(chosen), count, size)[..., :-1]
            scale = like.reshape(draft.number, count, size)[..., :-1].square().mean().sqrt()
            weights.copy_(torch.randn(weights.shape, generator=generator) * scale)
        steps = torch.ones(len(chosen))
    else:
        drawn = torch.randn(len(chosen), own.shape[1], generator=generator) * free
        rows = drawn if directions is None else directions.detach().float().cpu()
        rows = rows / rows.norm(dim=1, keepdim=True)
        steps = step_size * own[list(chosen)].norm(dim=1)
    zeros = torch.zeros(len(chosen))
    return LayerGrowth(
        linear=attention.path,
        operator=HEAD_WAYS[how],
        neurons=chosen,
        directions=rows,
        steps=steps,
        gains=zeros,
        predicted_gain=zeros,
        eigenvalues=zeros,
        candidates=len(chosen),
    )


def check_family(model: GrowablePreTrainedModel) -> None:
    """Raise a `ValueError` that says why, if this model cannot grow, or the heads of no model of its type."""
    check_model(model, sharded=True)
    heads = family_of(model.config.model_type).heads
    if isinstance(heads, str):
        raise ValueError(f"Heads of {type(model).__name__} models cannot grow: {heads}.")


def _chosen(path: str, heads: int | Sequence[int], how: str, number: int) -> tuple[int, ...]:
    """The heads that are meant: new ones have the numbers that follow."""
    if isinstance(heads, bool) or (how == "new" and not isinstance(heads, int)):
        raise ValueError(f"`heads` of {path} must be a number of new heads, got {heads!r}.")
    if isinstance(heads, int):
        if heads < 1 or (how == "split" and heads > number):
            most = f"to {number}, since a head becomes two in an event" if how == "split" else "or more"
            raise ValueError(f"`heads` of {path} must be 1 {most}, got {heads}.")
        first = number if how == "new" else 0
        return tuple(range(first, first + heads))
    chosen = tuple(int(head) for head in heads)
    if not chosen or not all(0 <= head < number for head in chosen):
        raise ValueError(f"`heads` of {path} must be heads in [0, {number}), got {chosen}.")
    return chosen


def _weights(parameters: Mapping[str, Any], size: tuple[int, int]) -> Tensor:
    """1 for the entries of the rows of a head in a layer, but 0 for biases that there are not."""
    mask = torch.ones(size)
    mask[:, -1] = float("bias" in parameters)
    return mask.flatten()
