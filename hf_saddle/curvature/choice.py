"""Which linear layers of a model are analysed, and why others are not."""

from collections import Counter
from collections.abc import Sequence

from torch import nn


def choose(model: nn.Module, names: Sequence[str] | None) -> tuple[dict[str, nn.Linear], dict[str, str]]:
    """
    The linear layers to be analysed, by name, and the reasons for leaving out others.

    Args:
        model (`nn.Module`): The model.
        names (`Sequence[str]`, *optional*): What is wanted. Defaults to all that are not frozen.

    Raises:
        ValueError: If a name is not that of an `nn.Linear`.
    """
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


def add_reason(skipped: dict[str, str], name: str, reason: str) -> None:
    """Note why a layer is not analysed, beside what is known already."""
    known = skipped.get(name)
    if known is None:
        skipped[name] = reason
    elif reason not in known:
        skipped[name] = f"{known}; {reason}"


def nothing_to_analyse(criteria: tuple[str, ...], skipped: dict[str, str]) -> ValueError:
    """The error that tells why no layer is left."""
    reasons = "; ".join(f"{name}: {reason}" for name, reason in skipped.items()) or "it has no `nn.Linear`"
    return ValueError(f"No layer of the model can be analysed for {', '.join(criteria)}. {reasons}.")
