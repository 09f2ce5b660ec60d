"""Inserting whole blocks by hand, or evenly."""

from collections.abc import Sequence

from torch.optim import Optimizer

from ...models.blocks import block_paths
from ...models.modeling_saddle import GrowablePreTrainedModel
from ..records.block_records import NewBlock
from ..records.event import GrowthEvent
from ..records.plan import GrowthPlan
from .grow import check_model, grow_


def insert_blocks_(
    model: GrowablePreTrainedModel,
    after: Sequence[int] | str,
    how: str = "copy",
    optimizer: Optimizer | None = None,
    *,
    number: int | None = None,
    scale: float = 0.0,
    freeze: bool = False,
    seed: int = 0,
) -> GrowthEvent:
    """
    Insert whole blocks into a model, in place, with its config, history and optimizer; all or nothing.

    Unless `how` is `"stack"`, or there is a `scale`, what the model computes stays the same, to the last bit: the
    outputs of new blocks add nothing until they have been trained. The blocks behind them keep parameters and
    optimizer state; new parameters join the groups of those that they are like, without state. Call it after
    `optimizer.step()` and `optimizer.zero_grad()`.

    Args:
        model ([`GrowablePreTrainedModel`]): The model, not its wrapper.
        after (`Sequence[int]` or `str`):
            The block before each new one, counted from 0 over all stages and over encoder and decoder, as `[3, 7]`;
            twice the same for two blocks. Or `"even"`, for `number` blocks at about the same distance, the last one at
            the end.
        how (`str`, *optional*, defaults to `"copy"`):
            `"copy"`: like the block before, with silent outputs (LLaMA-Pro); `"identity"`: fresh weights, silent
            outputs; `"average"`: the mean of both neighbours, silent outputs; `"stack"`: a plain copy, which changes
            what the model computes.
        optimizer (`Optimizer` or `AcceleratedOptimizer`, *optional*): The optimizer that trains the model.
        number (`int`, *optional*): Number of new blocks, with `after="even"`.
        scale (`float`, *optional*, defaults to 0.0):
            The share of their outputs that new blocks keep in place of silence, in [0, 1]: from 0 for silent copies to
            1 for plain ones. With it the model computes something else at once.
        freeze (`bool`, *optional*, defaults to `False`): Train only inserted blocks from now on.
        seed (`int`, *optional*, defaults to 0): Seed of fresh weights.

    Returns:
        [`GrowthEvent`]: The record, which is also appended to `model.growth_history`.

    Raises:
        ValueError: If a block cannot be inserted there, or the optimizer cannot follow; the message says why and what
            can be done. Nothing has changed then.

    Example:

    ```python
    >>> from hf_saddle.growth import insert_blocks_

    >>> event = insert_blocks_(model, after=[3, 7], how="copy", optimizer=optimizer)
    ```"""
    check_model(model)
    places = place_blocks(model, after, number)
    blocks = tuple(NewBlock(place, how, scale=scale) for place in places)
    return grow_(model, GrowthPlan(blocks=blocks, freeze=freeze, seed=seed), optimizer)


def place_blocks(model: GrowablePreTrainedModel, after: Sequence[int] | str, number: int | None = None) -> list[str]:
    """
    Paths of blocks that new ones are to come after.

    Args:
        model ([`GrowablePreTrainedModel`]): The model.
        after (`Sequence[int]` or `str`):
            Numbers of blocks, counted from 0 over all stages and over encoder and decoder, once for each new block; or
            `"even"` for `number` places that divide the blocks into parts of about the same length.
        number (`int`, *optional*): Number of new blocks, for `"even"` only.

    Raises:
        ValueError: If there is no such block, or it is not said how many blocks are meant.
    """
    paths = block_paths(model.base_model, model.config)
    if isinstance(after, str):
        if after != "even" or isinstance(number, bool) or not isinstance(number, int) or number < 1:
            raise ValueError(
                f"`after` must be a list of numbers of blocks, or 'even' with the `number` of new ones, got {after!r} "
                f"and {number!r}."
            )
        return [paths[max(0, round((index + 1) * len(paths) / number) - 1)] for index in range(number)]
    if number is not None:
        raise ValueError("`number` goes with `after='even'` only: a list of places says how many blocks are new.")
    if not after:
        raise ValueError("`after` names no block: give the number of the block before each new one, as `[3, 7]`.")
    for place in after:
        if isinstance(place, bool) or not isinstance(place, int) or not 0 <= place < len(paths):
            raise ValueError(
                f"`after` names block {place!r}, but the model has {len(paths)}, counted from 0 to {len(paths) - 1} "
                "over all stages, and over encoder and decoder."
            )
    return [paths[place] for place in sorted(after)]
