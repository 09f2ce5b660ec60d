"""Whether tuners and quantisers have left the skip branches that a config asks for in place, and unchanged."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from .growable import Growable, PairedLinear, SkipBranch, growable_in
from .sites import inner_path


Link = tuple[nn.Module, str, nn.Module]  # a parent, the name of its child, and the child
Known = tuple[nn.Module, str, nn.Module, type]  # the same, and the class that the child had

# Modules of PEFT's tuners that add to what the wrapped linear gives, and merge into its weight and bias. The others
# scale it, rotate its input, or compute with its weight alone: a branch would be scaled, fed with another input, or
# lost. By name, since this folder needs no PEFT.
_ADDITIVE = (
    "adalora",
    "adamss",
    "beft",
    "c3a",
    "delora",
    "fourierft",
    "gralora",
    "hira",
    "lily",
    "loha",
    "lokr",
    "lora",
    "miss",
    "osf",
    "peanut",
    "psoft",
    "pvera",
    "randlora",
    "tinylora",
    "unilora",
    "vera",
    "waveft",
)
ADDITIVE_TUNERS = frozenset(f"peft.tuners.{name}.layer" for name in _ADDITIVE)
# Containers without a computation of their own.
_NEUTRAL = ("peft.tuners._buffer_dict", "peft.utils.other")


def guarded(forward: Callable[..., Any]) -> Callable[..., Any]:
    """A model's forward pass, preceded by [`check_branches`] where it is that of the base model."""

    @functools.wraps(forward)
    def guarded_forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.base_model is self:
            check_branches(self)
        return forward(self, *args, **kwargs)

    return guarded_forward


def check_branches(base: Any) -> None:
    """
    Verify that every layer still has the branches that the config asks for.

    What quantisers and others do, to exchange linears for their own, makes branches disappear without an error. The
    way to each branch is followed anew only where the config's branches or a module on that way have changed;
    otherwise the modules on it are compared with those of the last pass.

    Raises:
        ValueError: If another module has taken the place of a layer with a branch, or wraps it in a way that changes
            the branch. The message names it and the remedy.
    """
    if torch.compiler.is_compiling():
        _verify(base)
        return
    # A new object whenever the branches of the layers are assigned.
    skip_sizes = base.config.skip_sizes
    if base._branch_links is None or not _unchanged(skip_sizes, *base._branch_links):
        links = tuple(branch_links(base))
        known = tuple((*link, type(link[2])) for link in (*_block_links(base), *links))
        base._branch_links = (skip_sizes, known, tuple(_containers(links)))


def _unchanged(
    skip_sizes: Any, known: Any, links: tuple[Known, ...], containers: tuple[tuple[dict[str, Any], int], ...]
) -> bool:
    if known is not skip_sizes:
        return False
    for parent, name, child, kind in links:
        if parent._modules.get(name) is not child or type(child) is not kind:
            return False
    return all(len(children) == number for children, number in containers)


def _block_links(base: Any) -> Iterator[Link]:
    """Every step of the way from a base model to the modules that hold layers with branches."""
    for root in base.config.skip_sizes or ():
        parent = base
        for name in root.split(".")[:-1]:
            child = parent.get_submodule(name)
            yield parent, name, child
            parent = child


def _containers(links: tuple[Link, ...]) -> Iterator[tuple[dict[str, Any], int]]:
    """The children of all modules of wrappers, with their number, which another adapter would raise."""
    for _, _, child in links:
        if not isinstance(child, (Growable, SkipBranch)):
            linear = growable_in(child)
            held = set() if linear is None else set(linear.modules())
            yield from ((module._modules, len(module._modules)) for module in child.modules() if module not in held)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _verify(base: Any) -> bool:
    """Runs while a graph is made, which is made anew once a module has another type."""
    for _ in branch_links(base):
        pass
    return True


def branch_links(base: Any) -> Iterator[Link]:
    """Every step of the way from what holds a base model's layers to the branches; errors as in `check_branches`."""
    for root, sizes in (base.config.skip_sizes or {}).items():
        parent, _, name = root.rpartition(".")
        yield from _links(base.get_submodule(parent), name, len(sizes), False, root)


def _links(parent: nn.Module, name: str, depth: int, paired: bool, place: str) -> Iterator[Link]:
    """The way to a linear that has `depth` nested branches, or whose rows are stored as pairs, and on from there."""
    if not depth and not paired:
        return
    found = parent.get_submodule(name)
    linear = growable_in(found)
    if (
        linear is None
        or (depth and not isinstance(linear.skip, SkipBranch))
        or (paired and not isinstance(linear, PairedLinear))
    ):
        what = f"`{place}` should be a linear {'with a skip branch' if depth else 'of paired rows'}"
        raise ValueError(
            f"{what}, as the config says, but a {type(found).__name__} without it has taken its place: "
            "the model would compute something else. Quantise only linears without branches (name the others in "
            "`modules_to_not_convert` or its like), or a model that grew in width only. If another model that shares "
            "this config object has grown, give each its own copy of the config."
        )
    if found is not linear:
        check_wrapper(found, linear, place)
    yield parent, name, found
    for name in _way(found, linear):
        parent, found = found, found.get_submodule(name)
        yield parent, name, found
    if depth:
        branch = linear.skip
        assert isinstance(branch, SkipBranch)
        yield linear, "skip", branch
        yield from _links(branch, "linear", depth - 1, branch.kind == "residual_pair", inner_path(place))


def _way(wrapper: nn.Module, linear: Growable) -> list[str]:
    """Names of the children that lead from a wrapper to the linear in it; none if they are the same."""
    path = next(path for path, module in wrapper.named_modules() if module is linear)
    return path.split(".") if path else []


def check_wrapper(wrapper: nn.Module, linear: Growable, place: str) -> None:
    """Refuse a tuner of PEFT that would change the branch; other wrappers are trusted to call what they hold."""
    own = set(linear.modules())
    for module in wrapper.modules():
        origin = type(module).__module__
        if module in own or not origin.startswith("peft.") or origin in ADDITIVE_TUNERS or origin in _NEUTRAL:
            continue
        raise ValueError(
            f"`{place}` has a skip branch (or paired rows), which {type(module).__name__} of {origin} would change or "
            "lose, and which would differ once more after a merge. Use a tuner that only adds to the output of the "
            "linear, such as LoRA without `use_dora`, or leave this linear out of `target_modules`."
        )


def check_quantiser(model: Any, quantiser: Any) -> None:
    """
    Verify, before weights are read, that a quantiser does what `from_pretrained` was asked for.

    Raises:
        ValueError: If it passes over all growable linears. Other layers it may leave, as in stock models.
    """
    places = list(model.linear_places())
    linears = [site for site in places if isinstance(site.module, nn.Linear)]
    exchanged = any(not isinstance(site.module, Growable) for site in places)
    # Some keep the modules, and exchange weights while they are read.
    named = (f"{site.path}.weight" for site in linears)
    if linears and not exchanged and not any(quantiser.param_needs_quantization(model, at) for at in named):
        method = quantiser.quantization_config.quant_method
        raise ValueError(
            f"The quantiser {method} has left every growable linear as it was, as those do that exchange plain "
            "`nn.Linear` only. Use one that takes subclasses too (torchao, quanto), or quantise the stock model that "
            "`hf-saddle convert --to stock` makes of one that grew in width only."
        )


def check_quantised(model: Any) -> None:
    """
    Verify what a quantiser has made of a model's weights.

    Raises:
        ValueError: If it quantised one of two rows that are to be added.
    """
    method = model.hf_quantizer.quantization_config.quant_method
    paired = (site.module for site in model.linear_places() if isinstance(site.module, PairedLinear))
    if any(is_traceable_wrapper_subclass(linear.weight) for linear in paired):
        raise ValueError(
            f"The quantiser {method} cannot quantise residual pairs, whose rows are added. Merge them first: "
            "`hf-saddle convert --to merged`."
        )
