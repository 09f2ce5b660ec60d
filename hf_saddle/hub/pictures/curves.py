"""What a log tells of a training: metrics over steps, over the size of the model, and over seconds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ...growth import GrowthHistory
from ..measured import CLOCK, duration
from ..states import State, states


@dataclass(frozen=True)
class Baseline:
    """The same training without growth."""

    parameters: int
    log: list[dict[str, float]]


def series(log: Sequence[Mapping[str, float]], key: str) -> list[tuple[int, float]]:
    """Steps and values of a metric in a log."""
    return [(int(entry["step"]), float(entry[key])) for entry in log if key in entry and "step" in entry]


def last_step(log: Sequence[Mapping[str, float]]) -> int:
    """The step at which a training ended; 0 where its log does not tell."""
    return max((int(entry["step"]) for entry in log if "step" in entry), default=0)


def seconds_at(log: Sequence[Mapping[str, float]], *, grew: bool) -> dict[int, float]:
    """
    Seconds of a training at the steps of its log; empty where it does not tell. Where no model grew, all steps take
    equally long, so that the duration is enough.
    """
    clock = {int(entry["step"]): entry[CLOCK] for entry in log if CLOCK in entry and "step" in entry}
    if clock or grew:
        return clock
    total, end = duration(log), last_step(log)
    if total is None or not end:
        return {}
    return {step: total * step / end for step in {int(entry["step"]) for entry in log if "step" in entry}}


def reached(found: list[State], values: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """Parameters and the last value of a metric at each size of a model: before the next event, and at the end."""
    last: dict[int, float] = {}
    for step, value in values:
        last[parameters_at(found, step)] = value
    return sorted(last.items())


def cost_curves(
    history: GrowthHistory, log: Sequence[Mapping[str, float]], key: str, baseline: Baseline | None
) -> tuple[dict[str, list[tuple[float, float]]], dict[str, list[tuple[float, float]]]]:
    """A metric over what it has cost, parameters and seconds, by name of the training, as far as logs tell."""
    values = series(log, key)
    sizes: dict[str, list[tuple[float, float]]] = {"this model": [*reached(states(history), values)]}
    clock = seconds_at(log, grew=bool(history.events))
    timed = {"this model": [(clock[step], value) for step, value in values if step in clock]}
    other = [] if baseline is None else series(baseline.log, key)
    if baseline is not None and other:
        sizes["without growth"] = [(baseline.parameters, other[-1][1])]
        clock = seconds_at(baseline.log, grew=False)
        timed["without growth"] = [(clock[step], value) for step, value in other if step in clock]
    return sizes, {name: points for name, points in timed.items() if points}


def parameters_at(found: list[State], step: int) -> int:
    """Parameters of the model at a training step; a growth counts from the step after it."""
    return next(state.parameters for state in reversed(found) if state.step < step or state is found[0])
