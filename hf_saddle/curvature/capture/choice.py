"""Which affine layers of a model are analysed, and why others are not."""

from collections import Counter
from collections.abc import Sequence

from torch import nn

from .described import Described
from .inputs import Affine


def choose(
    model: nn.Module, names: Sequence[str] | None, described: Described | None = None
) -> tuple[dict[str, Affine], dict[str, str]]:
    """
    The affine layers to be analysed, by name, and the reasons for leaving out others. Without `names` these are all
    that can grow by the description of the model's type, with what is nested in them, or all where there is none;
    frozen ones are left out.

    Raises:
        ValueError: If a name is not that of an affine layer.
    """
    modules = {name: module for name, module in model.named_modules() if isinstance(module, Affine)}
    unknown = [] if names is None else [name for name in names if name not in modules]
    if unknown:
        raise ValueError(
            f"`linears` names {unknown}, which are no `nn.Linear`, `Conv1D` or `nn.Conv2d` of the model. It has "
            f"{list(modules)}."
        )
    uses = Counter(id(parameter) for module in model.modules() for parameter in module.parameters(recurse=False))
    chosen: dict[str, Affine] = {}
    skipped: dict[str, str] = {}
    if names is not None:
        wanted = list(names)
    elif described is None:
        wanted = list(modules)
    else:
        known = set(described.linears)
        wanted = [name for name in modules if not known.isdisjoint(_around(name))]
    for name in wanted:
        module = modules[name]
        if uses[id(module.weight)] > 1:
            skipped[name] = "its weight is tied to another module's, which growing one of them would undo"
        elif module.weight.is_meta:
            skipped[name] = "its weight is not in memory (offloaded by `device_map`): load the model without"
        elif names is None and not any(parameter.requires_grad for parameter in module.parameters(recurse=False)):
            skipped[name] = "its parameters are frozen (name it in `linears` to analyse it all the same)"
        else:
            chosen[name] = module
    return chosen, skipped


def _around(name: str) -> list[str]:
    """A path and those of all modules around it."""
    parts = name.split(".")
    return [".".join(parts[: count + 1]) for count in range(len(parts))]


def add_reason(skipped: dict[str, str], name: str, reason: str) -> None:
    """Note why a layer is not analysed, beside what is known already."""
    known = skipped.get(name)
    if known is None:
        skipped[name] = reason
    elif reason not in known:
        skipped[name] = f"{known}; {reason}"


def nothing_to_analyse(criteria: tuple[str, ...], skipped: dict[str, str]) -> ValueError:
    """The error that tells why no layer is left."""
    reasons = "; ".join(f"{name}: {reason}" for name, reason in skipped.items()) or "it has none"
    return ValueError(f"No layer of the model can be analysed for {', '.join(criteria)}. {reasons}.")
