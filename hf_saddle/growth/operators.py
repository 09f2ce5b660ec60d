"""How neurons and heads grow: one object for each operator, which is all that the others know of it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN

from ..models.sites import Site
from .surgery.drafts import LinearDraft, add_units_


# Changes the draft of a layer, or of the heads of an attention module (`head_drafts.py`): neurons or heads (k,), their
# `p = step · direction` (k, d + 1), gains (k,), activation of units. Of hidden neurons with rows in several layers,
# and of heads, `p` has d + 1 entries for each row.
Draft = Callable[[Any, Tensor, Tensor, Tensor, str], None]


@dataclass(frozen=True)
class Operator:
    """
    A way for neurons or heads to grow. What it costs and how often a neuron counts follow from these fields.

    Attributes:
        name (`str`): As in plans, configs and histories.
        draft_ (`Callable`): What it does to neurons of a linear, or to heads of an attention module.
        of (`str`, *optional*, defaults to `"neurons"`): What grows, `"neurons"` or `"heads"`.
        kind (`str`, *optional*): Deepens by branch units of this kind, one of `SKIP_UNITS`; `None` if it widens.
        units (`int`, *optional*, defaults to 1): Neurons, or units of a branch, that are new for each that grows.
        copies (`bool`, *optional*, defaults to `True`):
            Whether a new neuron is a copy of that which grows, with the units that feed it.
        gain (`float`, *optional*, defaults to 0.0): Gain of the units at the start.
        scaled (`str`, *optional*):
            What a natural step sets: `"steps"`, whose gain is of second order, or `"gains"`, of first order.
    """

    name: str
    draft_: Draft
    of: Literal["neurons", "heads"] = "neurons"
    kind: str | None = None
    units: int = 1
    copies: bool = True
    gain: float = 0.0
    scaled: Literal["steps", "gains"] | None = None

    @property
    def deepens(self) -> bool:
        """Whether it adds units to a branch; otherwise it widens."""
        return self.kind is not None

    def can_widen(self, site: Site, kind: str | None) -> bool:
        """Whether it widens a layer, in a model with branches of a kind: hidden neurons, and units with gains."""
        if self.deepens or self.of != "neurons":
            return False
        if site.nested:
            return self.copies and kind == "gain"
        # Nothing is known of what a normalisation would make of a neuron that is no copy.
        return site.neurons is not None and (self.copies or not site.neurons.norms)

    def row_size(self, site: Site) -> int:
        """Entries of the direction of a neuron that it grows: weights and bias, of each layer with a row of it."""
        layers = 1 if self.deepens or site.neurons is None else len(site.neurons.rows)
        return layers * (int(site.module.weight.numel()) // int(site.module.neurons) + 1)

    def can_deepen(self, site: Site) -> bool:
        """Whether it feeds neurons of a layer by units; pairs, whose rows are added, are those of matrices only."""
        return self.deepens and (self.kind == "gain" or not isinstance(site.module, nn.Conv2d))


def _zero_gain_(linear: LinearDraft, neurons: Tensor, rows: Tensor, gains: Tensor, activation: str) -> None:
    """One unit `gain · φ(p · x̂)`; a gain other than 0 is compensated for by `w -= φ'(0) · gain · p`."""
    add_units_(linear, neurons, rows, gains, paired=False)
    if gains.is_meta or bool((gains != 0).any()):
        # What a finite gain adds to first order in p, the neuron's own row takes back: what is left is curvature.
        weight, bias = linear.native(-slope_at_zero(activation) * gains[:, None] * rows)
        linear.parameters["weight"].add_(neurons, weight, linear.layout.rows)
        if "bias" in linear.parameters:
            linear.parameters["bias"].add_(neurons, bias, 0)


def _residual_pair_(linear: LinearDraft, neurons: Tensor, rows: Tensor, gains: Tensor, activation: str) -> None:
    """One unit `s + φ(s)` whose row is stored as `p` and `-p` (arXiv 2402.12418, Eq. 3)."""
    add_units_(linear, neurons, rows, None, paired=True)


def _opposed_pair_(linear: LinearDraft, neurons: Tensor, rows: Tensor, gains: Tensor, activation: str) -> None:
    """Two units with row `p` and gains `gain` and `-gain` (Network Morphism)."""
    twice = torch.arange(len(neurons)).repeat_interleave(2)
    signs = torch.tensor([1.0, -1.0]).repeat(len(neurons)).to(gains)
    add_units_(linear, neurons[twice], rows[twice], gains[twice] * signs, paired=False)


def _split_(grown: Any, neurons: Tensor, rows: Tensor, gains: Tensor, activation: str) -> None:
    """Two copies `w ± p` of a neuron, or head, with half the outgoing weights each (arXiv 1910.02366)."""
    own = grown.affine(neurons)
    grown.copy_neurons_(neurons, torch.cat([own + rows, own - rows]))


def _net2net_(linear: LinearDraft, neurons: Tensor, rows: Tensor, gains: Tensor, activation: str) -> None:
    """A copy `w + p` of `w`, half the outgoing weights each (arXiv 1511.05641)."""
    own = linear.affine(neurons)
    linear.copy_neurons_(neurons, torch.cat([own, own + rows]))


def _gradmax_(grown: Any, neurons: Tensor, rows: Tensor, gains: Tensor, activation: str) -> None:
    """A new hidden neuron, or head, with row `p` and no outgoing weights (arXiv 2201.05125, outgoing side zero)."""
    grown.append_neurons_(rows)


OPERATORS = {
    operator.name: operator
    for operator in (
        Operator("zero_gain", _zero_gain_, kind="gain", scaled="gains"),
        Operator("residual_pair", _residual_pair_, kind="residual_pair"),
        Operator("opposed_pair", _opposed_pair_, kind="gain", units=2, gain=1.0),
        Operator("split", _split_, scaled="steps"),
        Operator("net2net", _net2net_),
        Operator("gradmax", _gradmax_, copies=False),
        Operator("new_head", _gradmax_, of="heads", copies=False),
        Operator("split_head", _split_, of="heads", scaled="steps"),
    )
}
NEURON_OPERATORS, HEAD_OPERATORS = (
    tuple(name for name, operator in OPERATORS.items() if operator.of == what) for what in ("neurons", "heads")
)
# How heads come, as `grow_heads_` and `score_heads` name it, and by which operator that is.
HEAD_WAYS = {name.partition("_")[0]: name for name in HEAD_OPERATORS}
DEPTH_OPERATORS = tuple(name for name in NEURON_OPERATORS if OPERATORS[name].deepens)
WIDTH_OPERATORS = tuple(name for name in NEURON_OPERATORS if not OPERATORS[name].deepens)

# Of all that grows, what a natural step sets; what is not here starts at rest.
SCALED = {name: operator.scaled for name, operator in OPERATORS.items() if operator.scaled}

# What `operator="auto"` stands for: by the criterion that ranks, else by the kind of units that the model has.
_OF_CRITERION = {"width": "split", "gradmax": "gradmax"}
_OF_KIND = {None: "zero_gain", "gain": "zero_gain", "residual_pair": "residual_pair"}


def default_operator(criterion: str, kind: str | None) -> str | None:
    """The operator for neurons that a criterion ranks, in a model with branches of a kind; `None` if there is none."""
    if criterion == "paper_score" and kind is None:
        return "residual_pair"
    return _OF_CRITERION.get(criterion) or _OF_KIND.get(kind)


def slope_at_zero(activation: str) -> float:
    """The derivative of an activation, a name in transformers' `ACT2FN`, at 0."""
    point = torch.zeros((), dtype=torch.float64)
    return float(torch.func.jvp(ACT2FN[activation], (point,), (torch.ones_like(point),))[1])
