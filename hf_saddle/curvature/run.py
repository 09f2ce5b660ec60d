"""One analysis from batches to layers: every layer is solved inside the last backward pass that reaches it."""

import logging
from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .distributed import Ranks
from .layer import LayerAnalysis, Settings, seed_of
from .moments import Moments
from .probe import LOSS_SCALE, Call, Probe, first_dimension
from .report import LayerCurvature
from .significance import Images
from .tokens import Tokens


logger = logging.getLogger(__name__)


class Run:
    """One analysis: layers are solved inside the last backward pass, as soon as all of their tokens have come."""

    def __init__(
        self,
        model: nn.Module,
        linears: dict[str, nn.Linear],
        criteria: tuple[str, ...],
        loss: Callable[[nn.Module, Any], Tensor],
        batches: Iterable[Any],
        max_tokens: int,
        settings: Settings,
        ranks: Ranks,
    ):
        self.model, self.linears, self.criteria, self.compute_loss = model, linears, criteria, loss
        self.max_tokens, self.settings, self.ranks = max_tokens, settings, ranks
        parameter = next(model.parameters(), None)
        self.device = torch.device("cpu") if parameter is None else parameter.device
        self.batches, self.samples = ranks.together("Collecting the probe batches", partial(_collect, batches))
        self.images = Images.divide(sum(self.samples), settings.seed, ranks, self.device)
        before, _ = ranks.before_and_total(torch.tensor(sum(self.samples), device=self.device))
        self.first_image = int(before)
        self.layers: list[LayerCurvature] = []
        self.skipped: dict[str, str] = {}
        self.loss = 0.0
        self.tokens = 0
        self._total = 0.0
        self._parts: dict[tuple[str, str], list[Tokens]] = {}
        self._moments: dict[tuple[str, str], Moments] = {}
        self._tokens_seen: Counter[str] = Counter()
        self._arrived: Counter[tuple[str, str]] = Counter()
        self._number = 0

    def execute(self) -> None:
        """Run the forward and backward passes of all batches."""
        with Probe(self.model, self.linears, self._receive, "width" in self.criteria) as probe:
            self._probe = probe
            # Only the last backward pass communicates. What fails before it fails on all ranks.
            loss = self.ranks.together("The curvature analysis", self._all_but_the_last_backward)
            self._check_same_layers()
            self._announce()
            self._backward(loss)
            for name, reason in probe.skipped.items():
                self._skip(name, reason)
        self._note_silent()
        summed = self.ranks.sum(torch.tensor(self._total, dtype=torch.float64, device=self.device))
        self.loss = float(summed) / self.images.total
        most = max(self._tokens_seen.values(), default=0)
        self.tokens = int(self.ranks.sum(torch.tensor(most, device=self.device)))

    def _all_but_the_last_backward(self) -> Tensor:
        loss = self._forward(0)
        for number in range(1, len(self.batches)):
            self._backward(loss)
            loss = self._forward(number)
        return loss

    def _forward(self, number: int) -> Tensor:
        self._number = number
        self._arrived = Counter()
        compute_loss = partial(self.compute_loss, self.model, self.batches[number])
        first = self.first_image + sum(self.samples[:number])
        loss = _usable(self._probe.forward(compute_loss, self.samples[number], self.device, first))
        for name, calls in self._probe.calls.items():
            self._tokens_seen[name] += sum(call.tokens for call in calls)
        return loss

    def _backward(self, loss: Tensor) -> None:
        self._total += float(loss.detach()) * self.samples[self._number]
        self._probe.backward(loss)
        self._drop_unsplittable()

    def _receive(self, call: Call, kind: str, inputs: Tensor, gradient: Tensor, pre_activation: Tensor | None) -> None:
        wanted = [name for name in self.criteria if (name == "width") == (kind == "width")]
        if not wanted or (kind == "width" and call.why_no_width() is not None):
            return
        key = (call.linear, kind)
        offset = sum(self.samples[: self._number])
        image = torch.arange(call.samples, device=inputs.device) + offset
        tokens = Tokens(
            inputs,
            gradient,
            LOSS_SCALE,
            image.repeat_interleave(len(inputs) // call.samples),
            pre_activation=pre_activation,
            activation=call.activation if kind == "width" else None,
        )
        moments = Moments.of(inputs, call)
        self._moments[key] = self._moments[key].add(moments) if key in self._moments else moments
        tokens = self._thin(tokens, key)
        self._parts.setdefault(key, []).append(tokens)
        self._arrived[key] += 1
        calls = self._probe.calls[call.linear]
        expected = len(calls) if kind == "depth" else sum(use.why_no_width() is None for use in calls)
        if self._number == len(self.batches) - 1 and self._arrived[key] == expected:
            self._solve(key, wanted, sum(call.consumers.values()))

    def _thin(self, tokens: Tokens, key: tuple[str, str]) -> Tokens:
        budget = max(1, self.max_tokens * self.samples[self._number] // self.images.total)
        if len(tokens) <= budget or not bool(tokens.importance().sum() > 0):
            return tokens
        first = self.first_image + int(tokens.image[0])
        generator = torch.Generator().manual_seed(seed_of(self.settings.seed, *key, first))
        return tokens.sample(budget, float(torch.rand((), generator=generator, dtype=torch.float64)))

    def _solve(self, key: tuple[str, str], criteria: list[str], consumer_width: int) -> None:
        name, _ = key
        tokens, moments = Tokens.concatenate(self._parts.pop(key)), self._moments.pop(key)
        for criterion in criteria:
            analysis = LayerAnalysis(name, self.linears[name], criterion, self.settings, self.images, self.ranks)
            result = analysis.run(tokens, moments, consumer_width)
            if isinstance(result, str):
                self._skip(name, result)
            else:
                self.layers.append(result)

    def _drop_unsplittable(self) -> None:
        # Functional readers of z show only when its gradient has come, after the layer was solved for width.
        for name, calls in self._probe.calls.items():
            reasons = [reason for call in calls if (reason := call.why_no_width()) is not None]
            if reasons and "width" in self.criteria:
                self._skip(name, f"width: {reasons[0]}")
                self.layers = [layer for layer in self.layers if (layer.linear, layer.criterion) != (name, "width")]
                self._parts.pop((name, "width"), None)

    def _skip(self, name: str, reason: str) -> None:
        known = self.skipped.get(name)
        if known is None:
            self.skipped[name] = reason
        elif reason not in known:
            self.skipped[name] = f"{known}; {reason}"

    def _note_silent(self) -> None:
        done = {layer.linear for layer in self.layers}
        for name in self.linears:
            if name not in done and name not in self.skipped:
                self.skipped[name] = "the loss does not depend on it"

    def _check_same_layers(self) -> None:
        used = self.ranks.gather([(name, len(calls)) for name, calls in self._probe.calls.items()])
        if any(other != used[0] for other in used):
            raise ValueError(
                "The ranks' last probe batches use different layers of the model, or in another order, so that their "
                "sums cannot be formed. Pass `linears` that every batch uses, and inputs of one kind."
            )

    def _announce(self) -> None:
        options = self.settings.solver
        workspace, kept = 0.0, 0.0
        for name, calls in self._probe.calls.items():
            module = self.linears[name]
            size, neurons = module.in_features + 1, module.out_features
            tokens = min(sum(call.tokens for call in calls) * len(self.batches), self.max_tokens)
            if len(self.batches) > 1:
                kept += tokens * (size + neurons)
            refined = min(neurons, max(options.shortlist * neurons, options.shortlist_floor))
            sampled = options.screen_tokens * tokens
            vectors = (options.screen_steps + 12) * size * neurons
            workspace = max(workspace, tokens * (size + 2 * refined) + sampled * (size + 3 * neurons) + vectors)
        logger.info(
            "Curvature of %d layers on %d samples: up to %.0f MiB beside what the forward and backward pass takes.",
            len(self._probe.calls),
            self.images.total,
            (workspace + kept) * 4 / 2**20,
        )


def _usable(loss: Any) -> Tensor:
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        raise ValueError(
            "The loss is not a scalar tensor. Pass `loss=lambda model, batch: ...` that returns the mean loss of a "
            "batch; for a transformers model the batch must contain the labels."
        )
    if not bool(torch.isfinite(loss)):
        raise ValueError(
            f"The loss of a probe batch is {float(loss.detach())}. Check the batch and the model before growing it."
        )
    if not loss.requires_grad:
        raise ValueError(
            "The loss does not depend on any of the chosen linear layers, or was computed under `torch.no_grad`."
        )
    return loss


def _collect(batches: Iterable[Any]) -> tuple[list[Any], list[int]]:
    collected = list(batches)
    if not collected:
        raise ValueError("The probe is empty: pass at least one batch (on every rank) to `batches`.")
    return collected, [_samples(batch) for batch in collected]


def _samples(batch: Any) -> int:
    size = first_dimension(batch)
    if not size:
        raise ValueError(
            "A probe batch contains no tensor with a sample dimension, or has no samples: pass batches whose first "
            "tensor has shape (samples, ...)."
        )
    return size
