"""All forward and backward passes of an analysis: what they show of each affine layer, token by token."""

import logging
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from ..loss import Loss, check_loss, own_loss_of
from ..ranks import Ranks, seed_of
from ..samples import Samples, collect
from ..settings import Settings, kind_of
from .calls import Call
from .choice import add_reason
from .described import Described
from .hooks import Hooks
from .inputs import Affine, group_count, input_size, neuron_count
from .moments import Moments
from .padding import POSITIONS_FOR_SCALE, masks_of
from .shown import Shown
from .tokens import Tokens


logger = logging.getLogger(__name__)

# Entries of a kernel up to which a layer of groups keeps as many patches as other layers keep tokens.
_KERNEL = 9
# Entries of a patch up to which a convolution does; of larger ones it keeps as many numbers.
_ENTRIES = 256


@dataclass
class CapturedLayer:
    """What one affine layer showed of its neurons, on this rank."""

    linear: str
    modules: tuple[Affine, ...]  # that the neurons are the rows of: the layer, or gate and up
    kind: str  # "width": gradients at φ(z), of neurons that can be split; "depth": gradients at z
    parts: list[Tokens]  # of one use of the layer each
    moments: Moments  # over all ranks, once the layer is handed out
    column: int  # number of weights that what reads the neurons has for each
    norms: int  # number of parameters that a batch normalisation has for each

    @property
    def module(self) -> Affine:
        return self.modules[0]

    def tokens(self) -> Tokens:
        """All tokens in one record, which takes the place of its parts."""
        self.parts = [Tokens.concatenate(self.parts)]
        return self.parts[0]


@dataclass
class Captured:
    """What the passes of an analysis showed. Iterating over it hands the layers over, which frees them one by one."""

    samples: Samples
    loss: float  # mean over the samples of all ranks
    tokens: int  # largest number of tokens that a layer saw, on all ranks
    layers: list[CapturedLayer]  # the same on all ranks
    skipped: dict[str, str]  # layers that cannot be analysed, or not for width, with the reason

    def __iter__(self) -> Iterator[CapturedLayer]:
        while self.layers:
            yield self.layers.pop(0)


def capture(
    model: nn.Module,
    linears: dict[str, Affine],
    batches: Iterable[Any],
    loss: Loss | None,
    *,
    settings: Settings,
    ranks: Ranks,
    described: Described | None = None,
) -> Captured:
    """
    Run a model forwards and backwards on all batches, and keep some tokens of each layer.

    Nothing is communicated during the passes. What fails in one of them, or in collecting the batches, fails on all
    ranks.

    Args:
        model (`nn.Module`): The model; it is used as it is (eval mode is the caller's business).
        linears (`dict[str, Affine]`): The layers, by name.
        batches, loss: As in [`analyze_curvature`], of this rank.
        settings ([`Settings`]): The criteria, how many tokens are kept, by which seed, and whether second moments are
            to be as good as these, for whitening.
        ranks (`Ranks`): Processes that share the analysis.
        described ([`Described`], *optional*): What is known of the model.

    Raises:
        ValueError: If there are too few samples, a loss is not finite, or the ranks' batches use different layers.
        RuntimeError: If another rank failed.
    """
    parameter = next(model.parameters(), None)
    device = torch.device("cpu") if parameter is None else parameter.device
    collected, sizes = ranks.together("Collecting the probe batches", partial(collect, batches))
    samples = Samples.divide(sum(sizes), settings.seed, ranks, device)
    measured = own_loss_of(model, collected, ranks) if loss is None else loss
    kinds = {kind_of(criterion) for criterion in settings.criteria}
    layers: dict[tuple[str, str], CapturedLayer] = {}

    def receive(shown: Shown) -> None:
        call, kind = shown.call, shown.kind
        if kind not in kinds or call.linear not in linears or (kind == "width" and call.why_no_width() is not None):
            return
        key = (call.linear, kind)
        budget = max(1, _token_limit(call.module, settings.max_tokens) * call.samples // samples.total)
        tokens = shown.drawn(samples.first, budget, seed_of(settings.seed, *key, call.first))
        moments = Moments.of(shown.inputs, call.module, call.rows, shown.square)
        earlier = layers.get(key)
        if earlier is not None:
            moments = earlier.moments.add(moments)
        partner = () if kind == "depth" or call.partner is None else (call.partner.module,)
        layers[key] = CapturedLayer(
            linear=call.linear,
            modules=(call.module, *partner),
            kind=kind,
            parts=[tokens] if earlier is None else [*earlier.parts, tokens],
            moments=moments,
            column=sum(call.consumers.values()),
            norms=call.norms,
        )

    def positions(module: Affine) -> int:
        # A matrix of second moments needs more tokens than the mean squares that steps are relative to, and more than
        # the space that directions are looked for in has dimensions.
        limit = _token_limit(module, settings.max_tokens)
        wanted = max(limit, min(2 * limit, 2 * input_size(module), settings.max_tokens)) if settings.whiten else 0
        of_each = min(POSITIONS_FOR_SCALE, math.ceil(settings.max_tokens / samples.total))
        return max(of_each, math.ceil(wanted / samples.total))

    seen = dict.fromkeys(linears, 0)
    unsplittable: dict[str, str] = {}

    def passes() -> tuple[float, dict[str, str], set[str]]:
        total, first = 0.0, samples.first
        with Hooks(model, linears, receive, "width" in kinds, described, positions) as hooks:
            for batch, size in zip(collected, sizes, strict=True):
                forward = partial(measured, model, batch)
                value = check_loss(hooks.forward(forward, size, device, first, masks_of(batch, size)))
                if first == samples.first:
                    _announce(hooks.calls, kinds, samples.local / size, settings.max_tokens)
                total, first = total + float(value.detach()) * size, first + size
                hooks.backward(value)
                for name, calls in hooks.calls.items():
                    if name not in linears:
                        continue  # the second layer of gated neurons
                    seen[name] += sum(call.valid() for call in calls)
                    # Functional readers of z show only when its gradient has come, after that behind the activation.
                    reasons = [reason for call in calls if (reason := call.why_no_width()) is not None]
                    if reasons and "width" in kinds:
                        unsplittable.setdefault(name, f"width: {reasons[0]}")
                        layers.pop((name, "width"), None)
        return total, hooks.skipped, hooks.partial

    total, skipped, partly = ranks.together("The curvature analysis", passes)
    kept, reasons = _agreed(layers, list(linears), unsplittable, skipped, partly, ranks)
    for layer in kept:
        layer.moments = layer.moments.reduced(ranks)
    summed = ranks.sum(torch.tensor(total, dtype=torch.float64, device=device))
    most = ranks.sum(torch.tensor(max(seen.values(), default=0), device=device))
    return Captured(
        samples=samples, loss=float(summed) / samples.total, tokens=int(most), layers=kept, skipped=reasons
    )


def _agreed(
    layers: dict[tuple[str, str], CapturedLayer],
    names: list[str],
    unsplittable: dict[str, str],
    skipped: dict[str, str],
    partly: set[str],
    ranks: Ranks,
) -> tuple[list[CapturedLayer], dict[str, str]]:
    """The layers that all ranks can analyse, in the order of `names`, and why others cannot be on one of them."""
    everyone = ranks.gather((sorted(layers), unsplittable, skipped, sorted(partly)))
    never = {(name, "width") for _, note, *_ in everyone for name in note}
    never |= {(name, kind) for *_, names_of in everyone for name in names_of for kind in ("width", "depth")}
    used = [set(keys) - never for keys, *_ in everyone]
    analysed = {name for name, _ in set().union(*used)}
    reasons: dict[str, str] = {}
    for _, of_width, of_layers, _ in everyone:
        # A use that adds nothing to the gradient, under `torch.no_grad`, leaves what the others show complete.
        missing = {name: reason for name, reason in of_layers.items() if name not in analysed}
        for name, reason in (*of_width.items(), *missing.items()):
            add_reason(reasons, name, reason)
    if any(other != used[0] for other in used):
        raise ValueError(
            "The ranks' probe batches use different layers of the model, so that their sums cannot be formed. Pass "
            "`linears` that every rank's batches use, and inputs of one kind."
        )
    kept = [layers[name, kind] for name in names for kind in ("width", "depth") if (name, kind) in used[0]]
    for name in set(names) - {layer.linear for layer in kept} - set(reasons):
        reasons[name] = "the loss does not depend on it"
    return kept, reasons


def _token_limit(module: Affine, max_tokens: int) -> int:
    """How many tokens of a layer are kept: of convolutions with large patches or kernels fewer."""
    kernel = module.kernel_size[0] * module.kernel_size[1] if isinstance(module, nn.Conv2d) else 1
    share = 1.0 if kernel == 1 else min(1.0, _KERNEL / kernel, _ENTRIES / input_size(module))
    return max(1, int(max_tokens * share))


def _announce(calls: dict[str, list[Call]], kinds: set[str], batches: float, max_tokens: int) -> None:
    """Say how much memory the kept tokens will take, before they do; `batches` are of the size of the one that ran."""
    kept = 0.0
    for uses in calls.values():
        module = uses[0].module
        tokens = min(sum(call.tokens for call in uses) * batches, _token_limit(module, max_tokens))
        inputs, outputs = group_count(module) * input_size(module), neuron_count(module)
        kept += tokens * (inputs + outputs) * ("depth" in kinds)
        if "width" in kinds and all(call.why_no_width() is None for call in uses):
            kept += tokens * (inputs + (2 if uses[0].partner is None else 3) * outputs)
    logger.info(
        "Curvature of %d layers: up to %.0f MiB of tokens are kept beside what a forward and backward pass takes.",
        len(calls),
        kept * 4 / 2**20,
    )
