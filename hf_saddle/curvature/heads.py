"""Attention heads by the general rule: splitting matrices of groups of neurons that answer together."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.func import functional_call, jvp

from ..models.heads import Attention, heads_of, rows_of
from ..models.layouts import layout_of
from ..models.modeling_saddle import GrowablePreTrainedModel
from ..models.parameters import whole
from .loss import Loss
from .passes import arguments_of, inputs_of, probe, twice_differentiable
from .ranks import Ranks
from .solving.lanczos import lanczos


@dataclass(frozen=True, eq=False)
class HeadPairs:
    """
    The lowest eigenpair of the splitting matrix of each head of an attention module.

    Attributes:
        values (`Tensor`): Eigenvalues, shape `(heads,)`.
        vectors (`Tensor`): Unit eigenvectors, all rows of a head layer by layer, weights and bias, `(heads, R)`.
        residuals (`Tensor`): Within which some eigenvalue lies, shape `(heads,)`.
    """

    values: Tensor
    vectors: Tensor
    residuals: Tensor


@dataclass(frozen=True, eq=False)
class _Use:
    """One use of an attention module: its arguments, and the gradient of the samples' losses at what is read."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    gradient: Tensor  # (..., heads · columns)
    samples: int


class HeadSplits:
    """
    The splitting matrices of the heads of an attention module, as products with one vector for each.

    The output of a head is read linearly, so with the gradients `G` at it frozen the matrix is the Hessian of
    `mean_n Σ_t ⟨G_t, o_t(θ)⟩` in its rows `θ` of all layers. Heads do not meet in it: one product is that of all.

    Of a module whose parameters are spread over processes all of them are gathered while products are computed.

    Args:
        model ([`GrowablePreTrainedModel`]): The model.
        attention ([`Attention`]): The module.
        uses (`Sequence`): Its uses in the forward passes of the probe of this rank.
        ranks ([`Ranks`], *optional*): Processes that share the probe, all of which ask for products and pairs.
    """

    def __init__(
        self,
        model: GrowablePreTrainedModel,
        attention: Attention,
        uses: Sequence[_Use],
        ranks: Ranks | None = None,
    ):
        self.model, self.attention, self.uses, self.ranks = model, attention, uses, ranks or Ranks()
        self.number = heads_of(model.base_model)[attention.root]
        self.inside = attention.heads.reader.startswith(f"{attention.path}.")
        self.reader = model.get_submodule(attention.heads.reader)
        self.layers: dict[str, Any] = {
            row.removeprefix(f"{attention.path}."): model.get_submodule(row) for row in attention.heads.rows
        }
        self.samples = self.ranks.total(sum(use.samples for use in uses))
        self._held: dict[str, Tensor] | None = None

    def __call__(self, vectors: Tensor) -> Tensor:
        """The products `S_h v_h`, shape `(R, heads)` as `vectors`."""
        tangents, total = self._by_parameter(vectors.t()), torch.zeros_like(vectors)
        with self._gathered():
            for use in self.uses:
                with twice_differentiable(self.model):
                    values = {name: value.detach().requires_grad_() for name, value in self._values()}
                    form = (self._answer(use, values) * use.gradient).sum()
                    slopes = torch.autograd.grad(form, list(values.values()), create_graph=True)
                    pairs = zip(values, slopes, strict=True)
                    along = torch.stack([(slope * tangents[name]).sum() for name, slope in pairs]).sum()
                    products = torch.autograd.grad(along, list(values.values()))
                total += self._by_head(dict(zip(values, products, strict=True))).t()
        return self.ranks.sum(total) / self.samples

    def forms(self, steps: Tensor) -> Tensor:
        """
        Each sample's change of its loss by splits, to second order: `½ pᵀ S p` with the own matrices of the samples of
        this rank, shape `(samples, heads)`. The `steps` are `p = step · direction` of every head, shape `(heads, R)`.
        """
        with self._gathered():
            tangents, values, found = self._by_parameter(steps), dict(self._values()), []
            for use in self.uses:

                def moved(size: Tensor, use: _Use = use) -> Tensor:
                    return self._answer(use, {name: value + size * tangents[name] for name, value in values.items()})

                def slope(size: Tensor, moved: Any = moved) -> Tensor:
                    return jvp(moved, (size,), (torch.ones_like(size),))[1]  # type: ignore[no-any-return]

                zero = use.gradient.new_zeros(())
                with twice_differentiable(self.model):
                    bend = jvp(slope, (zero,), (torch.ones_like(zero),))[1]
                change = 0.5 * (bend * use.gradient)
                found.append(change.reshape(use.samples, -1, self.number, change.shape[-1] // self.number).sum((1, 3)))
        return torch.cat(found).detach() if found else steps.new_zeros(0, self.number)

    def pairs(self, steps: int, seed: int) -> HeadPairs:
        """Lowest eigenpairs from as many Lanczos steps, which start at random vectors."""
        with self._gathered():
            like = self._by_head(dict(self._values()))
            start = torch.randn(like.shape, generator=torch.Generator().manual_seed(seed)).to(like)
            # Entries of biases that there are not stay out.
            start = start * self._by_head({name: torch.ones_like(value) for name, value in self._values()})
            ritz = lanczos(self, start.t().contiguous(), steps).ritz(torch.zeros(self.number, dtype=torch.bool))
        return HeadPairs(ritz.value, ritz.vector.t().contiguous(), ritz.residual)

    @contextmanager
    def _gathered(self) -> Iterator[None]:
        """The parameters of the module are there, whole, while this lasts."""
        outer = self._held
        if outer is None:
            self._held = {name: whole(value) for name, value in self.attention.module.named_parameters()}
        try:
            yield
        finally:
            self._held = outer

    def _values(self) -> Iterator[tuple[str, Tensor]]:
        """Weights and biases of the rows, while they are gathered."""
        assert self._held is not None
        for name in self.layers:
            for kind in ("weight", "bias"):
                if f"{name}.{kind}" in self._held:
                    yield f"{name}.{kind}", self._held[f"{name}.{kind}"]

    def _answer(self, use: _Use, values: Mapping[str, Tensor]) -> Tensor:
        """What reads the heads is given, with other rows than those that they have."""
        assert self._held is not None
        # Under mixed precision FSDP2 gives modules another precision than that of the parameters between steps.
        dtype = next(iter(values.values())).dtype
        args, kwargs = _in_precision(use.args, dtype), {key: _in_precision(x, dtype) for key, x in use.kwargs.items()}
        parameters = self._held | dict(values)
        if not self.inside:
            return functional_call(self.attention.module, parameters, args, kwargs)[0]  # type: ignore[no-any-return]
        with inputs_of({"reader": self.reader}) as found:
            functional_call(self.attention.module, parameters, args, kwargs)
        return found["reader"]

    def _rows(self, layer: Any, parts: int) -> tuple[Tensor, int]:
        """Numbers of the rows of all heads, head by head, and how many entries each has, the bias among them."""
        layout = layout_of(layer)
        unit = int(getattr(layer, layout.outputs)) // (self.number * parts)
        rows = rows_of(torch.arange(self.number), unit, self.number, parts)
        return rows, int(getattr(layer, layout.inputs)) + 1

    def _by_head(self, values: Mapping[str, Tensor]) -> Tensor:
        """Tensors of the shapes of the parameters as rows of heads, shape `(heads, R)`."""
        parts = []
        for (name, layer), count in zip(self.layers.items(), self.attention.heads.parts, strict=True):
            rows, _ = self._rows(layer, count)
            weight = layout_of(layer).matrix(values[f"{name}.weight"].detach())
            bias = values.get(f"{name}.bias", weight.new_zeros(len(weight))).detach()
            whole = torch.cat([weight, bias[:, None]], 1)
            whole = whole.to(torch.promote_types(whole.dtype, torch.float32))
            parts.append(whole.index_select(0, rows.to(whole.device)).reshape(self.number, -1))
        return torch.cat(parts, 1)

    def _by_parameter(self, heads: Tensor) -> dict[str, Tensor]:
        """The inverse of `_by_head`."""
        found, start = {}, 0
        for (name, layer), parts in zip(self.layers.items(), self.attention.heads.parts, strict=True):
            rows, size = self._rows(layer, parts)
            part = heads[:, start : start + len(rows) // self.number * size].reshape(len(rows), size)
            start += len(rows) // self.number * size
            part = part.to(layer.weight.dtype)
            whole = torch.empty_like(part).index_copy(0, rows.to(part.device), part)
            found[f"{name}.weight"] = layout_of(layer).weight(whole[:, :-1], layer.weight)
            found[f"{name}.bias"] = whole[:, -1]
        return found


def capture_heads(
    model: GrowablePreTrainedModel,
    batches: Iterable[Any],
    paths: Sequence[str],
    loss: Loss | None = None,
    ranks: Ranks | None = None,
) -> dict[str, HeadSplits]:
    """
    Run a model on the probe batches of this rank, in evaluation mode, and keep what its attention modules meet, by
    their paths in the model. Nothing of it changes.

    Raises:
        ValueError: If a loss is not finite, a module was not used exactly once in a forward pass, or FSDP2 shards one
            by itself.
        RuntimeError: If another rank failed.
    """
    ranks = ranks or Ranks()
    known = {attention.path: attention for attention in model.attentions()}
    check_sharding(known[path] for path in paths)
    uses: dict[str, list[_Use]] = {path: [] for path in paths}
    modules = {path: known[path].module for path in paths}
    readers = {path: model.get_submodule(known[path].heads.reader) for path in paths}

    def meet() -> None:
        with twice_differentiable(model):
            for batch, count, measure in probe(model, batches, loss):
                with arguments_of(modules) as met, inputs_of(readers, leaves=True) as inputs:
                    value = measure(batch)
                if met.keys() != uses.keys():
                    raise ValueError(f"The forward pass does not reach {', '.join(sorted(uses.keys() - met.keys()))}.")
                gradients = torch.autograd.grad(value, [inputs[path] for path in paths])
                for path, gradient in zip(paths, gradients, strict=True):
                    args, kwargs = met[path]
                    uses[path].append(_Use(args, kwargs, gradient, count))

    ranks.together("Measuring heads", meet)
    return {path: HeadSplits(model, known[path], uses[path], ranks) for path in paths}


def check_sharding(attentions: Iterable[Attention]) -> None:
    """Raise a `ValueError` if FSDP2 shards an attention module, or a part of it, by itself."""
    for attention in attentions:
        if any(isinstance(part, FSDPModule) for part in attention.module.modules()):
            raise ValueError(
                f"{attention.path} is sharded by itself, and would gather its parameters whenever heads of it are "
                "measured. Let `fully_shard` take blocks, not parts of them."
            )


def _in_precision(value: Any, dtype: torch.dtype) -> Any:
    """An argument whose numbers have some precision."""
    if isinstance(value, Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    if isinstance(value, (tuple, list)):
        return type(value)(_in_precision(each, dtype) for each in value)
    return value
