"""Where neurons want more depth or width: the analysis of a model on a few batches, at the cost of a training step."""

import logging
import random
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from .activations import ACTIVATIONS
from .controls import CONTROLS
from .distributed import Ranks
from .layer import LayerAnalysis, Moments, Settings, seed_of
from .probe import LOSS_SCALE, Call, Probe, first_dimension
from .report import CurvatureReport, LayerCurvature, NullModel, nominal_rate
from .significance import Images
from .solver import SolverOptions
from .tokens import Tokens


logger = logging.getLogger(__name__)

CRITERIA = ("width", "depth", *CONTROLS)


def analyze_curvature(
    model: nn.Module,
    batches: Iterable[Any],
    criterion: str | Sequence[str] = "depth",
    *,
    loss: Callable[[nn.Module, Any], Tensor] | None = None,
    linears: Sequence[str] | None = None,
    step_size: float = 0.1,
    significance: float = 2.0,
    unit_activation: str = "gelu",
    solver: SolverOptions | None = None,
    max_tokens: int = 4096,
    seed: int = 0,
    warm_start: CurvatureReport | None = None,
    distributed: bool = False,
    group: "dist.ProcessGroup | None" = None,
) -> CurvatureReport:
    """
    Analyse where the neurons of a model want more depth or width.

    For every neuron of the chosen linear layers this finds an extreme eigenpair of `S = Σ_t ∂L/∂h φ''(z) x̂ x̂ᵀ`
    (width; arXiv 1910.02366) or of `D = Σ_t ∂L/∂z x̂ x̂ᵀ` (depth), judges it on images it was not fitted to and
    predicts what growing along it would gain. The loss is the mean over all samples of all batches. The model runs in
    eval mode; its parameters, gradients, modes, hooks and the states of the random generators are as before when this
    returns or raises. A negative eigenvalue of `S` does not say that the network sits at a saddle: the split creates
    one.

    Args:
        model (`nn.Module`): The model. A `DistributedDataParallel` wrapper is taken off.
        batches (`Iterable`): The probe batches. All are held in memory. The leading dimension of the first tensor in a
            batch is its number of samples.
        criterion (`str` or `Sequence[str]`, *optional*, defaults to `"depth"`): `"width"`, `"depth"` or one of the
            controls `"random"`, `"grad_norm"`, `"gradmax"`, `"paper_score"`; see [`LayerCurvature`].
        loss (`Callable`, *optional*): Maps model and batch to the mean loss over the samples of the batch. Defaults to
            `model(**batch).loss`.
        linears (`Sequence[str]`, *optional*): Names of the `nn.Linear` modules. Defaults to all whose parameters are
            not all frozen. Inputs must be grouped by sample along their first dimension.
        step_size (`float`, *optional*, defaults to 0.1): The step `ρ` along a direction, relative to the norm
            of the neuron's row `[w_i; b_i]`.
        significance (`float`, *optional*, defaults to 2.0): How many standard errors a held-out eigenvalue must
            exceed.
        unit_activation (`str`, *optional*, defaults to `"gelu"`): Activation of new depth units, for `gain`.
        solver (`SolverOptions`, *optional*): Work of the eigensolver.
        max_tokens (`int`, *optional*, defaults to 4096): With several batches, the number of tokens (importance
            sample, all ranks together) that are kept per layer. A single batch is used in full, without being kept.
        seed (`int`, *optional*, defaults to 0): Seed of folds, start vectors and samples.
        warm_start (`CurvatureReport`, *optional*): An earlier report whose directions are the start vectors. Its probe
            samples must be others than these: held-out estimates would inherit what they were fitted to.
        distributed (`bool`, *optional*, defaults to `False`): Whether every rank calls this with batches of its own,
            to obtain what one process obtains on all of them.
        group (`torch.distributed.ProcessGroup`, *optional*): The ranks, by default all.

    Returns:
        `CurvatureReport`: The same on every rank, but for `seconds`.

    Raises:
        ValueError: If an argument is out of range, the probe has fewer than four samples, a loss, activation or
        gradient
            is not finite, or no layer can be analysed.

    Example:

    ```python
    >>> import torch
    >>> from torch import nn
    >>> from hf_saddle.curvature import analyze_curvature

    >>> model = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 2))
    >>> batch = {"x": torch.randn(32, 8), "y": torch.randint(2, (32,))}
    >>> def loss(model, batch):
    ...     return nn.functional.cross_entropy(model(batch["x"]), batch["y"])
    >>> report = analyze_curvature(model, [batch], "width", loss=loss)
    >>> report["0", "width"].direction.shape
    torch.Size([16, 9])

    ```
    """
    settings = Settings(
        step_size, significance, unit_activation, seed, solver or SolverOptions(), warm_start, flip=False
    )
    return _analyze(model, batches, criterion, loss, linears, max_tokens, settings, Ranks(distributed, group))


def check_null_model(
    model: nn.Module,
    batches: Iterable[Any],
    criterion: str = "depth",
    *,
    loss: Callable[[nn.Module, Any], Tensor] | None = None,
    linears: Sequence[str] | None = None,
    significance: float = 2.0,
    solver: SolverOptions | None = None,
    max_tokens: int = 4096,
    seed: int = 0,
    distributed: bool = False,
    group: "dist.ProcessGroup | None" = None,
) -> NullModel:
    """
    Run the analysis where there is nothing to be found, to see how many neurons it selects all the same.

    The coefficients of every image get a common random sign. That leaves their sizes and the correlation of an image's
    tokens as they are, but makes every expected curvature zero. (Shuffling them over tokens would keep their mean,
    which is a curvature, and break the correlation.) Arguments are those of [`analyze_curvature`].

    Returns:
        `NullModel`: Its `fraction` should not exceed its `nominal` rate by more than chance.
    """
    if criterion not in ("width", "depth"):
        raise ValueError(f'The null model is for the criteria "width" and "depth", got {criterion!r}.')
    settings = Settings(0.1, significance, "gelu", seed, solver or SolverOptions(), None, flip=True)
    report = _analyze(model, batches, criterion, loss, linears, max_tokens, settings, Ranks(distributed, group))
    selected = sum(layer.candidates for layer in report)
    return NullModel(selected, sum(layer.neurons for layer in report), nominal_rate(criterion, significance), report)


def _analyze(
    model: nn.Module,
    batches: Iterable[Any],
    criterion: str | Sequence[str],
    loss: Callable[[nn.Module, Any], Tensor] | None,
    linears: Sequence[str] | None,
    max_tokens: int,
    settings: Settings,
    ranks: Ranks,
) -> CurvatureReport:
    started = time.perf_counter()
    criteria = (criterion,) if isinstance(criterion, str) else tuple(criterion)
    _check(criteria, settings, max_tokens)
    if isinstance(model, nn.parallel.DistributedDataParallel):
        model = model.module
    chosen, skipped = _choose(model, linears)
    if not chosen:
        raise _nothing_to_analyse(criteria, skipped)
    with _undisturbed(model):
        run = _Run(model, chosen, criteria, loss or _own_loss, list(batches), max_tokens, settings, ranks)
        run.skipped |= skipped
        run.execute()
    order = {name: position for position, (name, _) in enumerate(model.named_modules())}
    layers = sorted(run.layers, key=lambda layer: (order[layer.linear], criteria.index(layer.criterion)))
    for name, reason in run.skipped.items():
        logger.info("No curvature for %s: %s.", name, reason)
    if not layers:
        raise _nothing_to_analyse(criteria, run.skipped)
    seconds = time.perf_counter() - started
    return CurvatureReport(
        tuple(layers), run.images.total, run.tokens, run.loss, seconds, settings.seed, dict(run.skipped)
    )


def _nothing_to_analyse(criteria: tuple[str, ...], skipped: dict[str, str]) -> ValueError:
    reasons = "; ".join(f"{name}: {reason}" for name, reason in skipped.items()) or "it has no `nn.Linear`"
    return ValueError(f"No layer of the model can be analysed for {', '.join(criteria)}. {reasons}.")


class _Run:
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


def _own_loss(model: nn.Module, batch: Any) -> Tensor:
    return model(**batch).loss


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


def _check(criteria: tuple[str, ...], settings: Settings, max_tokens: int) -> None:
    unknown = [name for name in criteria if name not in CRITERIA]
    if unknown or not criteria or len(set(criteria)) < len(criteria):
        raise ValueError(f"`criterion` must be one or several different ones of {CRITERIA}, got {criteria}.")
    if not settings.step_size > 0:
        raise ValueError(f"`step_size` must be positive, got {settings.step_size}.")
    if not settings.significance >= 0:
        raise ValueError(f"`significance` must not be negative, got {settings.significance}.")
    if max_tokens < 1:
        raise ValueError(f"`max_tokens` must be at least 1, got {max_tokens}.")
    name = settings.unit_activation
    if name not in ACTIVATIONS:
        raise ValueError(f"`unit_activation` must be one of {tuple(ACTIVATIONS)}, got {name!r}.")
    if float(ACTIVATIONS[name].second(torch.zeros(()))) == 0:
        raise ValueError(f"Depth units with {name!r} have no curvature at zero; use an activation such as 'gelu'.")


def _choose(model: nn.Module, names: Sequence[str] | None) -> tuple[dict[str, nn.Linear], dict[str, str]]:
    """The linear layers to be analysed, by name, and the reasons for leaving out others."""
    modules = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    unknown = [] if names is None else [name for name in names if name not in modules]
    if unknown:
        raise ValueError(f"`linears` names {unknown}, which are no `nn.Linear` of the model. It has {list(modules)}.")
    uses = Counter(id(parameter) for module in model.modules() for parameter in module.parameters(recurse=False))
    chosen, skipped = {}, {}
    for name in modules if names is None else names:
        module = modules[name]
        if uses[id(module.weight)] > 1:
            skipped[name] = "its weight is tied to another module's, which growing one of them would undo"
        elif names is None and not any(parameter.requires_grad for parameter in module.parameters(recurse=False)):
            skipped[name] = "its parameters are frozen (name it in `linears` to analyse it all the same)"
        else:
            chosen[name] = module
    return chosen, skipped


@contextmanager
def _undisturbed(model: nn.Module) -> Iterator[None]:
    """Eval mode and gradients on for a while; modes and the states of all random generators are put back."""
    modes = {module: module.training for module in model.modules()}
    devices = {parameter.device for parameter in model.parameters() if parameter.is_cuda}
    python_state, numpy_state = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[device.index for device in devices]):
        try:
            model.eval()
            with torch.inference_mode(False), torch.enable_grad():
                yield
        finally:
            for module, training in modes.items():
                module.training = training
            random.setstate(python_state)
            np.random.set_state(numpy_state)
