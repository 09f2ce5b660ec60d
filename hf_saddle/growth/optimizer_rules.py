"""What the states of known optimizers mean, which decides how they are carried through a growth."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from accelerate.optimizer import AcceleratedOptimizer
from torch.optim import Optimizer


class State(Enum):
    """What a state of a parameter is. All but numbers and factored means have the shape of the parameter."""

    GRADIENTS = "an average of gradients: entries follow their share of the gradient, new ones start from 0"
    SQUARES = "an average of squared gradients: entries follow the share squared, new ones start from the mean"
    SIZES = "a running maximum of gradients: entries follow their share of the gradient, new ones start from the mean"
    UPDATES = "an average of normalised updates, which no share changes: new entries start from 0"
    WEIGHTS = "a copy of the weights, which grows as the weights do"
    ROW_MEANS = "means of squared gradients over the last dimension"
    COLUMN_MEANS = "means of squared gradients over the dimension before the last"
    NUMBER = "a number for the whole parameter, which is kept"


@dataclass(frozen=True)
class Rules:
    """
    How an optimizer is carried through a growth.

    Args:
        states (`Mapping[str, State]`): What each of its states is. A state that is not named is refused.
        matrices_only (`Callable`, *optional*): Whether a parameter group can hold matrices only.
        shared_steps (`bool`, *optional*, defaults to `False`):
            Whether steps are counted by group instead of by parameter, so that moments that start from 0 late in a
            training would not be corrected.
        objection (`Callable`, *optional*): What about an optimizer of this class stands in the way, or `None`.
    """

    states: Mapping[str, State]
    matrices_only: Callable[[dict[str, Any]], bool] | None = None
    shared_steps: bool = False
    objection: Callable[[Any], str | None] | None = None

    def holds_vectors(self, group: dict[str, Any]) -> bool:
        """Whether a parameter group can."""
        return self.matrices_only is None or not self.matrices_only(group)


def _of_bitsandbytes(optimizer: Any) -> str | None:
    if optimizer.args.optim_bits != 32 or optimizer.is_paged:
        return "its state is quantised or paged (use `optim_bits=32, is_paged=False`)"
    if optimizer.mng.pid2config or optimizer.mng.index2config or optimizer.mng.module_weight_config_triple:
        return "its `GlobalOptimManager` has options for single parameters"
    return None


_STEP = {"step": State.NUMBER}
_AVERAGE = {"exp_avg": State.GRADIENTS}
_SQUARES = {"exp_avg_sq": State.SQUARES}
_ADAM_STATES = _STEP | _AVERAGE | _SQUARES | {"max_exp_avg_sq": State.SQUARES}
_ADAM = Rules(_ADAM_STATES)
_WEIGHTS = {"z": State.WEIGHTS}
_ONE = _STEP | {"state1": State.GRADIENTS, "unorm_vec": State.NUMBER}
_TWO = Rules(_ONE | {"state2": State.SQUARES}, objection=_of_bitsandbytes)

# By module and name of the class, so that none of these packages is needed. A line of one's own adds an optimizer.
OPTIMIZERS: dict[str, Rules] = {
    "torch.optim.adam.Adam": _ADAM,
    "torch.optim.adamw.AdamW": _ADAM,
    "torch.optim.nadam.NAdam": Rules(_ADAM_STATES | {"mu_product": State.NUMBER}),
    "torch.optim.radam.RAdam": _ADAM,
    "torch.optim.adamax.Adamax": Rules(_STEP | _AVERAGE | {"exp_inf": State.SIZES}),
    "torch.optim.sgd.SGD": Rules({"momentum_buffer": State.GRADIENTS}),
    # The momentum is one of gradients that were divided by the root of their squares.
    "torch.optim.rmsprop.RMSprop": Rules(
        _STEP | {"square_avg": State.SQUARES, "grad_avg": State.GRADIENTS, "momentum_buffer": State.UPDATES}
    ),
    "torch.optim.Adafactor": Rules(
        _STEP | {"row_var": State.ROW_MEANS, "col_var": State.COLUMN_MEANS, "variance": State.SQUARES}
    ),
    "torch.optim.Muon": Rules({"momentum_buffer": State.GRADIENTS}, matrices_only=lambda group: True),
    "transformers.optimization.Adafactor": Rules(
        _STEP
        | {"exp_avg": State.UPDATES, "exp_avg_sq": State.SQUARES, "RMS": State.NUMBER}
        | {"exp_avg_sq_row": State.ROW_MEANS, "exp_avg_sq_col": State.COLUMN_MEANS}
    ),
    "lion_pytorch.lion_pytorch.Lion": Rules(_AVERAGE),
    "muon.SingleDeviceMuonWithAuxAdam": Rules(
        _STEP | _AVERAGE | _SQUARES | {"momentum_buffer": State.GRADIENTS},
        matrices_only=lambda group: group["use_muon"],
    ),
    "schedulefree.adamw_schedulefree.AdamWScheduleFree": Rules(_WEIGHTS | _SQUARES, shared_steps=True),
    "schedulefree.radam_schedulefree.RAdamScheduleFree": Rules(_WEIGHTS | _SQUARES, shared_steps=True),
    "schedulefree.sgd_schedulefree.SGDScheduleFree": Rules(_WEIGHTS, shared_steps=True),
    "bitsandbytes.optim.adam.Adam": _TWO,
    "bitsandbytes.optim.adamw.AdamW": _TWO,
    "bitsandbytes.optim.lamb.LAMB": _TWO,
    "bitsandbytes.optim.lion.Lion": Rules(_ONE, objection=_of_bitsandbytes),
    "bitsandbytes.optim.sgd.SGD": Rules(_ONE, objection=_of_bitsandbytes),
    "bitsandbytes.optim.rmsprop.RMSprop": Rules(_ONE | {"state1": State.SQUARES}, objection=_of_bitsandbytes),
}


def rules_of(optimizer: Any) -> Rules:
    """
    The rules of an optimizer, which those of its subclasses are too, as long as they have the same `step`.

    Raises:
        ValueError: If it is not known, or of a kind that cannot be carried; or if it has no group for vectors.
    """
    kind: Any = type(optimizer)
    known = [base for base in kind.__mro__ if f"{base.__module__}.{base.__qualname__}" in OPTIMIZERS]
    # torch wraps the method of a class when an optimizer of it is made.
    if not known or inspect.unwrap(kind.step) is not inspect.unwrap(known[0].step):
        raise _refusal(kind, "there is no rule for it")
    rules = OPTIMIZERS[f"{known[0].__module__}.{known[0].__qualname__}"]
    objection = None if rules.objection is None else rules.objection(optimizer)
    if objection is not None:
        raise _refusal(kind, objection)
    if not all(map(rules.holds_vectors, optimizer.param_groups)) and vector_group(optimizer, rules) is None:
        raise ValueError(
            f"{kind.__name__} has no group for gains and biases, which a growth adds. Use AdamW, or one optimizer for "
            "matrices and vectors (`muon.SingleDeviceMuonWithAuxAdam`)."
        )
    return rules


def inner_optimizer(optimizer: Optimizer) -> Optimizer:
    """
    The optimizer inside of Accelerate's wrapper.

    Raises:
        ValueError: If it is of a kind whose state cannot be carried through a growth.
    """
    while isinstance(optimizer, AcceleratedOptimizer):
        optimizer = optimizer.optimizer
    rules_of(optimizer)
    return optimizer


def vector_group(optimizer: Optimizer, rules: Rules) -> dict[str, Any] | None:
    """The first group that is not for matrices only and holds a vector."""
    for group in optimizer.param_groups:
        if rules.holds_vectors(group) and any(parameter.dim() < 2 for parameter in group["params"]):
            return group
    return None


def _refusal(kind: type, reason: str) -> ValueError:
    packages: dict[str, list[str]] = {}
    for known in sorted(OPTIMIZERS):
        packages.setdefault(known.partition(".")[0], []).append(known.rpartition(".")[2])
    listed = "; ".join(f"{', '.join(names)} of {package}" for package, names in packages.items())
    name = f"{kind.__module__}.{kind.__qualname__}"
    return ValueError(
        f"The state of {name} cannot be carried through a growth: {reason}. Known are {listed}. If it wraps another "
        "optimizer, give that one. If it is your own, tell what its states are: "
        f"`hf_saddle.growth.optimizer_rules.OPTIMIZERS[{name!r}] = Rules(...)`."
    )
