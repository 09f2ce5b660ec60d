"""One analysis from batches to layers: every layer is solved inside the last backward pass that reaches it."""

import logging
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .distributed import Ranks
from .layer import LayerAnalysis, Moments, Settings, seed_of
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
        batches: list[Any],
        max_tokens: int,
        settings: Settings,
        ranks: Ranks,
    ):
        self.model, self.linears, self.criteria, self.compute_loss = model, linears, criteria, loss
        self.batches, self.max_tokens, self.settings, self.ranks = batches, max_tokens, settings, ranks
        parameter = next(model.parameters(), None)
        self.device = torch.device("cpu") if parameter is None else parameter.device
        self.samples = [_samples(batch) for batch in batches]
        least, _ = min_and_max(len(batches), ranks, self.device)
        if least == 0:
            raise ValueError("The probe is empty: pass at least one batch (on every rank) to `batches`.")
        self.images = Images.divide(sum(self.samples), settings.seed, ranks, self.device)
        before, _ = ranks.before_and_total(torch.tensor(sum(self.samples), device=self.device))
        self.first_image = int(before)
        self.layers: list[LayerCurvature] = []
        self.skipped: dict[str, str] = {}
        self.loss = 0.0
        self.tokens = 0
        self._parts: dict[tuple[str, str], list[Tokens]] = {}
        self._moments: dict[tuple[str, str], Moments] = {}
        self._tokens_seen: Counter[str] = Counter()
        self._arrived: Counter[tuple[str, str]] = Counter()
        self._number = 0

    def execute(self) -> None:
        """Run the forward and backward passes of all batches."""
        problem = None
        total = 0.0
        with Probe(self.model, self.linears, self._receive, "width" in self.criteria) as probe:
            self._probe = probe
            for number, batch in enumerate(self.batches):
                self._number = number
                self._arrived = Counter()
                value = probe.forward(partial(self.compute_loss, self.model, batch), self.samples[number], self.device)
                problem = problem or _problem_of(value)
                self._count_tokens()
                last = number == len(self.batches) - 1
                if last:
                    self._agree(problem)
                    self._announce()
                elif problem is not None:
                    continue
                total += float(value.detach()) * self.samples[number]
                probe.backward(value)
                self._drop_unsplittable()
            for name, reason in probe.skipped.items():
                self._skip(name, reason)
        self._note_silent()
        summed = self.ranks.sum(torch.tensor(total, dtype=torch.float64, device=self.device))
        self.loss = float(summed) / self.images.total
        most = max(self._tokens_seen.values(), default=0)
        self.tokens = int(self.ranks.sum(torch.tensor(most, device=self.device)))

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
        moments = Moments.of(inputs, call.samples, call.pre_activation_square)
        self._moments[key] = self._moments[key].add(moments) if key in self._moments else moments
        if len(self.batches) > 1:
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

    def _count_tokens(self) -> None:
        for name, calls in self._probe.calls.items():
            self._tokens_seen[name] += sum(call.tokens for call in calls)

    def _agree(self, problem: str | None) -> None:
        _, worst = min_and_max(problem is not None, self.ranks, self.device)
        if worst:
            raise ValueError(problem or "The loss of another rank is not usable; see the error of that rank.")

    def _announce(self) -> None:
        options = self.settings.solver
        workspace, kept = 0.0, 0.0
        for name, calls in self._probe.calls.items():
            module = self.linears[name]
            size, neurons = module.in_features + 1, module.out_features
            tokens = sum(call.tokens for call in calls)
            if len(self.batches) > 1:
                tokens = min(tokens * len(self.batches), self.max_tokens)
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


def min_and_max(value: int, ranks: Ranks, device: torch.device) -> tuple[int, int]:
    """Smallest and largest of the ranks' values."""
    extremes = ranks.maximum(torch.tensor([-int(value), int(value)], device=device))
    return -int(extremes[0]), int(extremes[1])


def _problem_of(loss: Any) -> str | None:
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        return (
            "The loss is not a scalar tensor. Pass `loss=lambda model, batch: ...` that returns the mean loss of a "
            "batch; for a transformers model the batch must contain the labels."
        )
    if not bool(torch.isfinite(loss)):
        return f"The loss of a probe batch is {float(loss.detach())}. Check the batch and the model before growing it."
    if not loss.requires_grad:
        return "The loss does not depend on any of the chosen linear layers, or was computed under `torch.no_grad`."
    return None


def _samples(batch: Any) -> int:
    size = first_dimension(batch)
    if not size:
        raise ValueError(
            "A probe batch contains no tensor with a sample dimension, or has no samples: pass batches whose first "
            "tensor has shape (samples, ...)."
        )
    return size
