"""What trainings of equal cost came to without growth, with it, and with random growth in the same places."""

import os
from dataclasses import asdict, dataclass, field
from typing import Any

from ..growth.records import fields as checks
from ..models.config_fields import is_number
from ..models.json_files import read_json, write_json
from .intervals import mean_interval


COMPARISON_NAME = "comparison.json"
NONE, GROWTH, RANDOM = "no growth", "growth", "random growth"
ARMS = (NONE, GROWTH, RANDOM)
# How costs are counted, and their units.
COSTS = {"seconds": "seconds", "cpu-seconds": "seconds of the processor", "macs": "multiply-accumulates"}

# Conditions that end with this tell whether model and data are what they were.
AT_THE_START = "loss at the start"
# How those begin that are options of growth.
OF_GROWTH = "growth "


def _is_point(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(is_number, value))


_RUN: dict[str, checks.Check] = {
    "arm": checks.one_of(ARMS),
    **dict.fromkeys(("seed", "steps", "parameters", "parameters_before", "events"), checks.MACS),
    **dict.fromkeys(("spent", "growth_cost", "seconds"), checks.AMOUNT),
    "curve": checks.each(checks.must("a cost and a loss", _is_point)),
    "results": checks.mapping(checks.NUMBER, checks.TEXT),
}
_COMPARISON: dict[str, checks.Check] = {
    "cost": checks.one_of(COSTS),
    **dict.fromkeys(("metric", "split"), checks.TEXT),
    "greater_is_better": checks.FLAG,
    **dict.fromkeys(("settings", "conditions"), checks.mapping(checks.ANY, checks.TEXT)),
    "runs": checks.LIST,
    "weights": checks.optional(checks.TEXT),
}


@dataclass
class ArmRun:
    """
    One training of a comparison.

    Attributes:
        arm (`str`): One of `ARMS`.
        seed (`int`): Seed of the start, the data and growth.
        steps (`int`): Steps that the budget paid for.
        spent (`float`): What they and the growth cost.
        growth_cost (`float`): The part of it that the events of growth cost.
        seconds (`float`): Wall-clock time of the training, evaluations left out.
        parameters, parameters_before (`int`): Size at the end and at the start.
        events (`int`): Events in which something grew.
        curve (`list[list[float]]`): Cost and validation loss, in order.
        results (`dict[str, float]`): Metrics at the end, on the split that the comparison names.
    """

    arm: str
    seed: int
    steps: int
    spent: float
    growth_cost: float
    seconds: float
    parameters: int
    parameters_before: int
    events: int
    curve: list[list[float]]
    results: dict[str, float]

    def __post_init__(self) -> None:
        checks.check_attributes(self, _RUN)
        if "loss" not in self.results:
            raise ValueError("`results` of a comparison lack the `loss`.")


@dataclass
class Comparison:
    """
    Trainings of equal start, data, seed and cost, of which differences are taken within a seed.

    Attributes:
        cost (`str`): What was equal: `"seconds"`, `"cpu-seconds"` or `"macs"`.
        metric (`str`): What they are judged by besides the loss.
        greater_is_better (`bool`): Whether that metric is the better the greater it is.
        split (`str`): What `results` are of: `"test"`, else `"validation"`.
        settings (`dict`): Task and data, for the reader. Older files repeat some of the conditions there.
        runs (`list[ArmRun]`): All trainings.
        weights (`str`, *optional*): Fingerprint of the model whose card tells of the comparison.
        conditions (`dict`): Options of training and growth, device and versions, and the losses at the start, which
            further seeds must have in common with these, as the settings.

    Raises:
        ValueError: If a field is of another type than it is written with.
    """

    cost: str
    metric: str = "loss"
    greater_is_better: bool = False
    split: str = "validation"
    settings: dict[str, Any] = field(default_factory=dict)
    runs: list[ArmRun] = field(default_factory=list)
    weights: str | None = None
    conditions: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        checks.check_attributes(self, _COMPARISON)

    @property
    def metrics(self) -> tuple[str, ...]:
        """What the arms are judged by."""
        return ("loss",) if self.metric == "loss" else (self.metric, "loss")

    @property
    def seeds(self) -> list[int]:
        """Seeds of which all three arms are there."""
        found = [{run.seed for run in self.of(arm)} for arm in ARMS]
        return sorted(set.intersection(*found))

    def of(self, arm: str) -> list[ArmRun]:
        """The trainings of an arm, by seed."""
        return sorted((run for run in self.runs if run.arm == arm), key=lambda run: run.seed)

    def differences(self, metric: str, against: str) -> list[float]:
        """Growth minus another arm in a metric, one for each seed."""
        values = {
            arm: {run.seed: run.results[metric] for run in self.of(arm) if metric in run.results} for arm in ARMS
        }
        return [values[GROWTH][seed] - values[against][seed] for seed in self.seeds]

    def verdict(self, metric: str, against: str) -> str:
        """What the differences of a metric show: `"better"`, `"worse"`, or `"not shown"` if the interval holds 0."""
        mean, half = mean_interval(self.differences(metric, against))
        if half is None or abs(mean) <= half:
            return "not shown"
        return "better" if (mean > 0) == (self.greater_is_better and metric == self.metric) else "worse"

    def answer(self) -> str:
        """Whether growth helped, in a sentence for each of the arms that it is compared with."""
        told = []
        for against, said in (
            (NONE, "the same training without growth"),
            (RANDOM, "random growth in the same places"),
        ):
            verdicts = {metric: self.verdict(metric, against) for metric in self.metrics}
            found = ", ".join(f"{metric} {verdict}" for metric, verdict in verdicts.items())
            if "better" in verdicts.values() and "worse" not in verdicts.values():
                told.append(f"Growth helped against {said} ({found}).")
            elif "worse" in verdicts.values() and "better" not in verdicts.values():
                told.append(f"Growth did not help but harm against {said} ({found}).")
            else:
                told.append(f"That growth helped against {said} is not shown ({found}).")
        return " ".join(told)

    def to_dict(self) -> dict[str, Any]:
        """The comparison, fit for JSON."""
        return {"schema": 1, **asdict(self)}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it as JSON."""
        write_json(path, self.to_dict())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Comparison":
        """
        Read what `save` wrote.

        Raises:
            ValueError: If the file is damaged or of another version.
        """
        values = {"conditions": {}} | read_json(path, "The comparison")  # which not every file of this schema has
        try:
            if values.pop("schema", None) != 1 or values.keys() != _COMPARISON.keys():
                raise ValueError("it is not a comparison of this version.")
            runs = values.pop("runs")
            for run in runs if isinstance(runs, list) else [runs]:
                checks.check_fields(run, _RUN, "runs")
            found = cls(**values, runs=[ArmRun(**run) for run in runs])
            if not found.seeds or any(metric not in run.results for run in found.runs for metric in found.metrics):
                raise ValueError("a seed of all three arms, or a metric, is missing.")
            return found
        except ValueError as error:
            raise ValueError(f"The comparison {path} is damaged: {error}") from error
