"""All or nothing: pointers to all that a growth may exchange, to be put back. No tensor is copied."""

from collections.abc import Iterable, Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.optim import Optimizer

from ...models.growable import Growable, SkipBranch
from ...models.layouts import LAYOUTS
from ...models.modeling_saddle import GrowablePreTrainedModel
from ...models.restacking import Assignment, put_back_
from ..optimizer_rules import inner_optimizer


# Plain attributes that a growth changes. `skip` is one of them while it is None, and a registered module afterwards.
_SIZES = tuple(name for layout in LAYOUTS.values() for name in (layout.inputs, layout.outputs))
_OF_MODULES = (*_SIZES, "groups", "num_features", "skip", "kind", "neurons", "shared_targets")


class Snapshot:
    """
    The parameters, buffers, branches and sizes that the growable layers of a model and the norms of their neurons
    have, its config and history, and what its optimizer trains, as pointers.

    Args:
        model ([`GrowablePreTrainedModel`]): The model.
        optimizer (`Optimizer` or `AcceleratedOptimizer`, *optional*): The optimizer that trains it.
        also (`Iterable`, *optional*): Further mappings, each with the names that are held of it, or `None` for all.

    Raises:
        ValueError: If the optimizer is of a kind whose state cannot be carried through a growth.
    """

    def __init__(
        self,
        model: GrowablePreTrainedModel,
        optimizer: Optimizer | None = None,
        also: Iterable[tuple[MutableMapping[Any, Any], tuple[str, ...] | None]] = (),
    ):
        self._held: list[Assignment] = []
        self._lists: list[tuple[list[nn.Parameter], list[nn.Parameter]]] = []
        self._hold(model.__dict__, ("growth_history",))
        self._hold(model.config.__dict__)
        for holder, names_of in also:
            self._hold(holder, names_of)
        norms = {norm for site in model.growable_linears() if site.neurons is not None for norm in site.neurons.norms}
        for name, module in model.named_modules():
            if name in norms or isinstance(module, (Growable, SkipBranch)):
                for registered in (module._parameters, module._buffers, module._modules):
                    self._hold(registered)
                self._hold(module.__dict__, _OF_MODULES)
        for attention in model.attentions():
            self._hold(attention.module.__dict__, (*attention.heads.counts, *attention.heads.widths))
            if attention.heads.table is not None:
                owner = model.get_submodule(attention.heads.table.rpartition(".")[0])
                self._hold(owner._parameters)
                self._hold(owner.__dict__, ("embedding_dim",))
        if optimizer is not None:
            inner = inner_optimizer(optimizer)
            self._hold(inner.state)
            for group in inner.param_groups:
                self._hold(group, ("param_names",))
                self._lists.append((group["params"], list(group["params"])))

    def _hold(self, holder: MutableMapping[Any, Any], names: tuple[str, ...] | None = None) -> None:
        values = {name: value for name, value in holder.items() if names is None or name in names}
        self._held.append((holder, values, names))

    def restore(self) -> None:
        """Put everything back as it was."""
        for holder, values, names in self._held:
            put_back_(holder, values, names)
        for parameters, values_before in self._lists:
            parameters[:] = values_before


@contextmanager
def all_or_nothing(model: GrowablePreTrainedModel, optimizer: Optimizer | None = None) -> Iterator[None]:
    """Put everything back if what is done to a model and its optimizer in this context fails."""
    before = Snapshot(model, optimizer)
    try:
        yield
    except BaseException:
        before.restore()
        raise
