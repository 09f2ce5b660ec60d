"""Rows of the tables of the report page: events, eigenvalues and settings."""

from ..growth import GrowthEvent, GrowthHistory
from ..growth.records.block_records import block_texts
from .escape import number
from .record import TrainingRecord
from .states import expected, forecast, growths, losses_text


def event_row(index: int, event: GrowthEvent) -> list[str]:
    """An event: number, step, what was chosen, parameters, prediction, losses of the probe, seconds."""
    told = [
        f"{name} {chosen:,}" + (f" of {event.candidates[name]:,}" if name in event.candidates else "")
        for name, chosen in sorted((dict.fromkeys(event.candidates, 0) | event.chosen).items())
    ]
    return [
        str(index),
        "" if event.step is None else number(event.step),
        ", ".join([*told, *block_texts(event.blocks)]) or "none",
        f"{number(event.parameters_before)} → {number(event.parameters_after)}",
        forecast(event),
        losses_text(event),
        number(float(event.seconds)),
    ]


def eigenvalues(history: GrowthHistory) -> list[list[str]]:
    """The eigenvalues of every linear of every event, as far as they were measured."""
    return [
        [
            str(index),
            f"{growth.layer} {growth.linear}{' ›' * growth.nested}",
            growth.operator,
            f"{growth.chosen} of {growth.candidates}",
            *(number(value) for value in growth.eigenvalues),
            expected(event, growth),
        ]
        for index, event in enumerate(history.events, 1)
        if event.criterion is not None
        for growth in growths(event)
    ]


def settings(record: TrainingRecord) -> list[tuple[str, object]]:
    """Settings and results of the training."""
    facts = {"data set": record.dataset, "started from": record.base_model, "device": record.device}
    return [
        *((name, value) for name, value in facts.items() if value is not None),
        *((f"{record.split} {name}", number(value, 4)) for name, value in record.results.items()),
        *record.settings.items(),
        *((f"growth {name}", value) for name, value in record.growth.items()),
    ]
