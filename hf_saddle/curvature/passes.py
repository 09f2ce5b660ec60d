"""What modules are given and give in the passes of a probe."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import Cache

from ..models.modeling_saddle import GrowablePreTrainedModel
from .capture.undisturbed import undisturbed
from .loss import Loss, check_loss, own_loss_of
from .ranks import Ranks
from .samples import collect


def probe(
    model: GrowablePreTrainedModel, batches: Iterable[Any], loss: Loss | None
) -> Iterator[tuple[Any, int, Callable[[Any], Tensor]]]:
    """Yield probe batches with their numbers of samples, and what maps them to the sum of their samples' losses."""
    collected, sizes = collect(batches)
    measured = own_loss_of(model, collected, Ranks()) if loss is None else loss

    def total(batch: Any, count: int) -> Tensor:
        return check_loss(measured(model, batch)) * count

    for batch, count in zip(collected, sizes, strict=True):
        yield batch, count, partial(total, count=count)


@contextmanager
def twice_differentiable(model: GrowablePreTrainedModel) -> Iterator[None]:
    """Evaluation mode, and attention that can be differentiated twice, for a while."""
    before = model.config._attn_implementation
    with undisturbed(model), sdpa_kernel(SDPBackend.MATH):
        try:
            if before not in ("eager", "sdpa"):
                model.set_attn_implementation("eager")
            yield
        finally:
            if before not in ("eager", "sdpa"):
                model.set_attn_implementation(before)


@contextmanager
def inputs_of(modules: Mapping[str, nn.Module], *, leaves: bool = False) -> Iterator[dict[str, Tensor]]:
    """What modules are given while this lasts, by name; with `leaves` gradients at it can always be asked for."""
    found: dict[str, Tensor] = {}

    def note(name: str) -> Callable[..., Any]:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            if name in found:
                raise ValueError(
                    "An attention module is used twice in a forward pass: layers that are shared cannot be measured."
                )
            first = args[0]
            found[name] = first.detach().requires_grad_() if leaves and not first.requires_grad else first
            return (found[name], *args[1:])

        return hook

    with ExitStack() as hooks:
        for name, module in modules.items():
            hooks.enter_context(module.register_forward_pre_hook(note(name)))
        yield found


@contextmanager
def outputs_of(modules: Mapping[str, nn.Module]) -> Iterator[dict[str, Tensor]]:
    """What modules give while this lasts, by name, such that gradients at it can be asked for."""
    found: dict[str, Tensor] = {}

    def note(name: str) -> Callable[..., Any]:
        def hook(module: nn.Module, args: Any, output: Tensor) -> Tensor:
            found[name] = output if output.requires_grad else output.detach().requires_grad_()
            return found[name]

        return hook

    with ExitStack() as hooks:
        for name, module in modules.items():
            hooks.enter_context(module.register_forward_hook(note(name)))
        yield found


@contextmanager
def arguments_of(modules: Mapping[str, nn.Module]) -> Iterator[dict[str, tuple[Any, Any]]]:
    """All arguments that modules are given while this lasts, by name, fit for a second use."""
    found: dict[str, tuple[Any, Any]] = {}

    def note(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            found[name] = (tuple(map(_apart, args)), {key: _apart(value) for key, value in kwargs.items()})

        return hook

    with ExitStack() as hooks:
        for name, module in modules.items():
            hooks.enter_context(module.register_forward_pre_hook(note(name), with_kwargs=True))
        yield found


def _apart(value: Any) -> Any:
    """An argument for a second use: without its graph, and no cache, which the first has filled."""
    if isinstance(value, Tensor):
        return value.detach()
    if isinstance(value, (tuple, list)):
        return type(value)(map(_apart, value))
    return None if isinstance(value, Cache) else value
