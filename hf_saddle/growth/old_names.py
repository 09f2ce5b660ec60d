"""Options of a `GrowthConfig` as version 0.1 named them, in saved files and, with a warning, in code."""

import functools
import warnings
from collections.abc import Collection, Iterable, Mapping
from dataclasses import fields
from typing import Any, TypeVar, cast

from ..models.config_fields import is_number
from .values import is_int


Config = TypeVar("Config")

# What filled up events at regular times that were given in part, and what stood for events that were not.
_PERIODIC: dict[str, Any] = {"warmup": 10, "interval": 10, "num_events": 5}
_NO_TIMES: dict[str, Any] = {"warmup": None, "interval": None, "num_events": -1}

# Up to here the old `budget` was a multiple of the size before the first event, above it a size.
_MAX_MULTIPLE = 100

_BUDGET = "a multiple of the first size is `max_growth`, a size is `max_parameters` or `max_macs`"
_SEARCH = "splits and gains take a share of the natural step, `natural_step`"
_UNIT = "multiply-accumulates are limited by `max_macs`, in whose unit `event_budget` is then"
_TIMES = "list the times of the events in `at`, with `unit='epochs'` or 'steps'"
_PAPER = "it is a field of `hf_saddle.growth.PaperGrowthConfig`"
# The value that has no effect, and what does the same today.
_LEFT_OUT: dict[str, tuple[Any, str]] = {
    "stop": (None, "list the events in `at`"),
    "max_per_layer": (None, "limit where it grows by `linears` and `layers`, and how much by `event_budget`"),
    "unit_scale": (1.0, "it is always 1"),
    "gain_init": (0.0, "`natural_step` gives gains a size"),
    "both_ends": (True, "depth follows eigenvalues of both signs"),
    "layer_threshold": (1, _PAPER),
    "quotas": (False, _PAPER),
    "schedule": ("constant", _PAPER),
    "directions": ("whitened", _PAPER),
    "step_size": (0.2, _PAPER),
}


def current_names(values: Mapping[str, Any], own: Collection[str]) -> tuple[dict[str, Any], dict[str, str]]:
    """
    Options under the names that they have today.

    Args:
        values (`Mapping[str, Any]`): Options under old and present names, not necessarily all.
        own (`Collection[str]`): Names of the fields that there are; an old name among them is left as it is.

    Returns:
        `tuple[dict[str, Any], dict[str, str]]`: The options that can be kept, and for each of the others what to do
        instead. An old option that has no effect is neither.
    """
    current, lost = dict(values), {}
    # `budget_unit` is also a field of today; without a word of today's beside it, it is that of version 0.1.
    limited = {"max_growth", "max_parameters", "max_macs"} & set(current)
    is_new = "budget" not in current and (limited or current.get("budget_unit") in ("auto", "seconds"))
    if ("budget" in current or "budget_unit" in current) and not is_new:
        budget, unit = current.pop("budget", 1.5), current.pop("budget_unit", "parameters")
        size = isinstance(budget, (int, float)) and budget > _MAX_MULTIPLE
        if unit == "parameters":
            limits = {"max_growth": None, "max_parameters": budget} if size else {"max_growth": budget}
        elif unit == "macs" and size:
            limits = {"max_growth": None, "max_macs": budget}
        else:
            limits, lost["budget_unit"] = {}, _UNIT
        twice = sorted({"max_growth", "max_parameters", "max_macs"} & set(values))
        if twice:
            lost["budget" if "budget" in values else "budget_unit"] = f"`{twice[0]}` is given too"
        current |= limits
    given = {name: current.pop(name) for name in _PERIODIC if name in current}
    if any(given[name] != idle for name, idle in _NO_TIMES.items() if name in given):
        times = _PERIODIC | {name: value for name, value in given.items() if value != _NO_TIMES[name]}
        if current.get("at") is not None:
            lost |= dict.fromkeys(given, "`at` is given too")
        elif is_int(times["num_events"]) and is_number(times["warmup"]) and is_number(times["interval"]):
            current["at"] = [times["warmup"] + event * times["interval"] for event in range(times["num_events"])]
            current["unit"] = current.get("unit") or "epochs"
        else:
            lost |= dict.fromkeys(given, _TIMES)
    elif "unit" in current and current["unit"] is None:
        del current["unit"]
    if "line_search" in current:
        # What took a step along the gradient of the gains takes a natural one; what took none stays without.
        searched = current.pop("line_search")
        if not isinstance(searched, bool):
            lost["line_search"] = _SEARCH
        current = {"selection": "gain", "natural_step": 0.5 if searched else 0.0} | current
    for name, (idle, instead) in _LEFT_OUT.items():
        if name in current and name not in own and current.pop(name) != idle:
            lost[name] = instead
    return current, lost


def refuse(values: Mapping[str, Any], lost: Mapping[str, str]) -> None:
    """
    Raise if there are options that have no counterpart today.

    Raises:
        ValueError: If so; the message names each with its value and what to do instead.
    """
    if lost:
        told = "; ".join(f"`{name}={values.get(name)!r}`: {instead}" for name, instead in lost.items())
        raise ValueError(f"GrowthConfig has other options since version 0.2. {told}.")


def refuse_options(words: Iterable[str], known: Collection[str] = ()) -> None:
    """
    Refuse options of a command line that were renamed or left out, which a parser only calls unknown.

    Args:
        words (`Iterable[str]`): The command line.
        known (`Collection[str]`, *optional*): Options of the program today, some by a name that was another one's.

    Raises:
        ValueError: If there is one; the message says what to do instead.
    """
    instead = {"budget": _BUDGET, "budget_unit": _UNIT, "line_search": _SEARCH} | dict.fromkeys(_PERIODIC, _TIMES)
    instead |= {name: text for name, (_, text) in _LEFT_OUT.items()}
    for word in words:
        name = word.partition("=")[0].removeprefix("--").replace("-", "_")
        if word.startswith("--") and name in instead and name not in known:
            raise ValueError(f"`--{name}` is no option since version 0.2: {instead[name]}.")


def accepts_old_names(config_class: type[Config]) -> type[Config]:
    """Let a dataclass be made with old names for one more version, with a `FutureWarning` that says the new ones."""
    init, own = config_class.__init__, {item.name for item in fields(cast(Any, config_class))}

    @functools.wraps(init)
    def __init__(self: Any, *args: Any, **given: Any) -> None:
        current, lost = current_names(given, own)
        refuse(given, lost)
        old = sorted(set(given) - set(current))
        if old:
            added = {name: value for name, value in current.items() if name not in given}
            # A size takes the place of the default multiple by itself.
            needed = {name: value for name, value in added.items() if value is not None} or added
            new = ", ".join(f"{name}={value!r}" for name, value in needed.items())
            warnings.warn(
                f"`{'`, `'.join(old)}` of {type(self).__name__} will be an error in version 0.3. "
                + (f"Write {new} instead." if new else "Leave it out: it has no effect."),
                FutureWarning,
                stacklevel=2,
            )
        init(self, *args, **current)

    config_class.__init__ = __init__  # type: ignore[method-assign]
    return config_class
