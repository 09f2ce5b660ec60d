"""What new blocks would gain, measured: every output of a candidate behind a gate that is closed."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...curvature.capture.undisturbed import undisturbed
from ...curvature.loss import Loss, check_loss, own_loss_of, terms_per_sample
from ...curvature.ranks import Ranks
from ...curvature.samples import MINIMUM_SAMPLES, collect
from ...models.blocks import block_paths, orders_after, split_path
from ...models.descriptions import Block
from ...models.families import blocks_in
from ...models.modeling_saddle import GrowablePreTrainedModel
from ..costs import Cost
from ..records.block_records import NewBlock, places_of
from ..records.plan import GrowthPlan
from ..surgery.blocks import check_blocks, draft_blocks
from ..surgery.grow import Growing, added_by, check_model, growing_
from ..surgery.shell import to_be_asked
from .joint import held_out_gain


# Blocks that a candidate may have to be of, so that those behind it stay what they are (a Swin's alternate).
_PERIODS = (1, 2)


@dataclass(frozen=True)
class BlockCandidate:
    """
    New blocks at one place, as copies of the block before.

    Attributes:
        after (`str`): Path in the base model of the block that they would come after.
        number (`int`): Of how many blocks the candidate is.
        scores (`Tensor`): Shape `(samples, outputs)`, in nats: the slope of each sample's loss in the gate of each
            output, at closed gates.
        cost ([`Cost`]): Parameters, and multiply-accumulates per sample.
        gain (`float`): Decrease of the loss, in nats, that a natural step of the gates is expected to bring on samples
            that it was not fitted to.
        terms (`float`): Number of predictions that the loss of a sample is the mean of.
    """

    after: str
    number: int
    scores: Tensor
    cost: Cost
    gain: float
    terms: float = 1.0


def block_candidates(
    model: GrowablePreTrainedModel,
    batches: Iterable[Any],
    *,
    loss: Loss | None = None,
    places: Sequence[int] | None = None,
    how: str = "copy",
    ranks: Ranks | None = None,
    growing: Growing | None = None,
) -> list[BlockCandidate]:
    """
    Measure what a copy of each block, inserted behind it, would gain.

    All candidates are in the model at once while this runs, with their outputs behind gates of 0, so that it computes
    what it did and one backward pass gives all slopes. It takes the memory of as many further blocks. The model, its
    mode and the random generators are as before when this returns or raises.

    Args:
        model ([`GrowablePreTrainedModel`]): The model.
        batches (`Iterable`): Probe batches: at least four samples, better some hundred.
        loss (`Callable`, *optional*): Maps model and batch to the mean loss, as in [`~hf_saddle.analyze_curvature`].
        places (`Sequence[int]`, *optional*): Numbers of the blocks that candidates come after; all if `None`.
        how (`str`, *optional*, defaults to `"copy"`):
            How blocks are to be inserted; what is measured are copies in any case.
        ranks (`Ranks`, *optional*): Processes that share the probe samples.
        growing (`Callable`, *optional*):
            Lets the model have new blocks for a while, where it is sharded over `ranks`; by default one process has it
            whole.

    Returns:
        `list[BlockCandidate]`: In the order of the model; the best is that of the largest `gain`, or gain per
        parameter.

    Raises:
        ValueError: If no block can be followed by a copy that begins without an effect, or if there are too few
            samples.
    """
    if growing is None:
        check_model(model)
    ranks = ranks or Ranks()
    held, sizes = collect(batches)
    measured, grows = loss or own_loss_of(model, held, ranks), growing or growing_
    found, number = places_of_blocks(model, places, how)
    scores = ranks.together("Measuring blocks", lambda: _scores(model, found, number, held, sizes, measured, grows))
    everywhere = {path: torch.cat([part[path] for part in ranks.gather(scores)]) for path in found}
    if len(next(iter(everywhere.values()))) < MINIMUM_SAMPLES:
        raise ValueError(
            f"The probe has fewer than {MINIMUM_SAMPLES} samples: gates are fitted on one half of them and judged on "
            "the other. Pass more `batches`."
        )
    costs, terms = block_costs(model, found, number, how), terms_per_sample(model, held, ranks)
    return [
        BlockCandidate(path, number, scores, costs[path], held_out_gain(scores, terms), terms)
        for path, scores in everywhere.items()
    ]


def places_of_blocks(model: GrowablePreTrainedModel, places: Sequence[int] | None, how: str) -> tuple[list[str], int]:
    """
    The blocks that new ones can follow, and how many of them at once.

    Raises:
        ValueError: If there is none; the message says why.
    """
    paths = block_paths(model.base_model, model.config)
    paths = paths if places is None else [paths[place] for place in places]
    objections: list[ValueError] = []
    asked = to_be_asked(model)

    def fits(some: Sequence[str], number: int) -> bool:
        try:
            for way in dict.fromkeys((how, "copy")):
                plan = _copies(some, number, way)
                check_blocks(model, plan.blocks)
                draft_blocks(asked, plan)
        except ValueError as error:
            objections.append(error)
            return False
        return True

    best: tuple[list[str], int] = ([], 1)
    for number in _PERIODS:
        # Most models take a block anywhere; of others each place is tried, and then all that fit together.
        if fits(paths, number):
            return paths, number
        fitting = [path for path in paths if fits([path], number)]
        if len(fitting) > len(best[0]) and fits(fitting, number):
            best = fitting, number
    if not best[0]:
        raise ValueError(f"No block can be inserted. {objections[0]}")
    return best


def _copies(paths: Sequence[str], number: int, how: str) -> GrowthPlan:
    return GrowthPlan(blocks=tuple(NewBlock(path, how) for path in paths for _ in range(number)))


def block_costs(model: GrowablePreTrainedModel, paths: Sequence[str], number: int, how: str) -> dict[str, Cost]:
    """What `number` new blocks behind each of some blocks add to a model; equal blocks of a list are counted once."""
    counted: dict[Any, Cost] = {}
    found = {}
    for path in paths:
        sizes = tuple((name, x.shape) for name, x in model.base_model.get_submodule(path).named_parameters())
        key = (split_path(path)[0], sizes)
        if key not in counted:
            counted[key] = added_by(model, _copies([path], number, how))
        found[path] = counted[key]
    return found


def _scores(
    model: GrowablePreTrainedModel,
    paths: Sequence[str],
    number: int,
    batches: Sequence[Any],
    sizes: Sequence[int],
    loss: Loss,
    growing: Growing,
) -> dict[str, Tensor]:
    """Slopes of the loss of every sample in the gates of the outputs of each candidate, on the CPU."""
    kinds, plan = dict(blocks_in(model.base_model, model.config)), _copies(paths, number, "stack")
    places = places_of(orders_after(kinds, (block.after for block in plan.blocks)), plan.blocks)
    found: dict[str, list[Tensor]] = {path: [] for path in paths}
    with growing(model, plan), undisturbed(model):
        gated: dict[str, list[nn.Module]] = {path: [] for path in paths}
        for new, block in places.items():
            gated[block.after] += _outputs(model.base_model.get_submodule(new), kinds[block.after])
        for batch, size in zip(batches, sizes, strict=True):
            with _gates(gated, size, model) as gates:
                value = check_loss(loss(model, batch))
                slopes = torch.autograd.grad(value, [gate for own in gates.values() for gate in own])
            each = iter(slopes)
            for path, own in gates.items():
                found[path].append(torch.stack([size * next(each) for _ in own], 1).cpu())
    return {path: torch.cat(parts) for path, parts in found.items()}


def _outputs(block: nn.Module, kind: Block) -> list[nn.Module]:
    """The modules that all of what a block adds passes; where the last of it is a parameter, the layer before that."""
    modules = dict(block.named_modules())
    return [modules[name if name in modules else kind.linears[-1]] for name in kind.outputs]


@contextmanager
def _gates(
    gated: dict[str, list[nn.Module]], samples: int, model: GrowablePreTrainedModel
) -> Iterator[dict[str, list[Tensor]]]:
    """A gate of 0 for each sample behind every output."""
    gates: dict[str, list[Tensor]] = {}
    hooks = []
    try:
        for path, modules in gated.items():
            for module in modules:
                gate = torch.zeros(samples, device=model.device, requires_grad=True)
                gates.setdefault(path, []).append(gate)
                hooks.append(module.register_forward_hook(_closing(gate)))
        yield gates
    finally:
        for hook in hooks:
            hook.remove()


def _closing(gate: Tensor) -> Any:
    def close(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        # Of windows and choices there are several of each sample, one behind the other.
        own = gate.repeat_interleave(output.shape[0] // len(gate))
        return output * own.view(-1, *[1] * (output.dim() - 1)).to(output.dtype)

    return close
