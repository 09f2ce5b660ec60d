"""A growth history as one HTML page without scripts, files or addresses beside it, for light and dark."""

from collections.abc import Mapping, Sequence

from markupsafe import Markup

from ..growth import GrowthEvent, GrowthHistory
from ..growth.records.block_records import block_texts
from .escape import number, quantity
from .pages import PAGES
from .pictures.curves import Baseline, cost_curves, last_step, series
from .pictures.svg import Line, chart
from .record import TrainingRecord
from .states import READING, State, expected, forecast, gains, growths, losses_text, states


REPORT_NAME = "growth_report.html"
_METRICS = (("eval_loss", "validation loss"), ("loss", "training loss"))


def render_report(
    history: GrowthHistory,
    *,
    title: str,
    log: Sequence[Mapping[str, float]] = (),
    record: TrainingRecord | None = None,
    neurons: Mapping[str, int] | None = None,
    baseline: Baseline | None = None,
) -> str:
    """
    The report of a growth history.

    Args:
        history ([`~hf_saddle.GrowthHistory`]): What grew.
        title (`str`): Heading of the page.
        log (`Sequence[Mapping]`, *optional*): The `log_history` of the training, for the curves.
        record ([`TrainingRecord`], *optional*): Settings and results of the training.
        neurons (`Mapping[str, int]`, *optional*): Neurons of every linear, see [`neuron_counts`].
        baseline ([`Baseline`], *optional*): The same training without growth.

    Returns:
        `str`: HTML. Everything that a file said is escaped.

    Raises:
        ValueError: If a record of the history is damaged.
    """
    found = states(history)
    return PAGES.get_template("growth_report.html").render(
        title=title,
        summary=history.summary(),
        tiles=_tiles(found, history),
        rows=gains(history, neurons or {}),
        size_chart=_size_chart(found, log),
        loss_charts=_loss_charts(history, found, log, baseline),
        events=[_event_row(index, event) for index, event in enumerate(history.events, 1)],
        held_back=[(index, event.held_back) for index, event in enumerate(history.events, 1) if event.held_back],
        reading=READING,
        eigenvalues=_eigenvalues(history),
        settings=[] if record is None else _settings(record),
    )


def _tiles(found: Sequence[State], history: GrowthHistory) -> list[tuple[str, str]]:
    first, last = found[0], found[-1]
    grew = sum(bool(event.layers or event.blocks) for event in history.events)
    return [
        ("parameters", f"{quantity(first.parameters)} → {quantity(last.parameters)}"),
        ("multiply-accumulates", f"{quantity(first.macs)} → {quantity(last.macs)}"),
        ("events that grew", f"{grew} of {len(history.events)}"),
        ("seconds of growth", number(float(sum(event.seconds for event in history.events)))),
    ]


def _marks(found: Sequence[State]) -> list[tuple[float, str]]:
    return [(state.step, str(index)) for index, state in enumerate(found[1:], 1)]


def _size_chart(found: Sequence[State], log: Sequence[Mapping[str, float]]) -> Markup | None:
    if len(found) == 1:
        return None
    end = max(last_step(log), found[-1].step + 1)
    points = [(float(state.step), float(state.parameters)) for state in found]
    line = Line("parameters", [*points, (end, points[-1][1])], steps=True)
    marks = _marks(found)
    return chart("Parameters over the training", [line], x_label="step", y_label="parameters", marks=marks)


def _loss_charts(
    history: GrowthHistory, found: Sequence[State], log: Sequence[Mapping[str, float]], baseline: Baseline | None
) -> list[Markup]:
    lines = []
    for (key, label), colour in zip(_METRICS, ("second", "first"), strict=True):
        if series(log, key):
            lines.append(Line(label, series(log, key), colour))
    if not lines:
        return []
    charts = [chart("Loss over the training", lines, x_label="step", y_label="loss", marks=_marks(found))]
    key, label = next(metric for metric in _METRICS if series(log, metric[0]))
    sizes, timed = cost_curves(history, log, key, baseline)
    colours = {"this model": "first", "without growth": "second"}
    if history.events or len(sizes) > 1:
        lines = [Line(name, points, colours[name], dots=name == "this model") for name, points in sizes.items()]
        charts.append(
            chart(f"{label} at each size", lines, x_label="parameters", y_label=f"last {label} at each size")
        )
    if timed:
        lines, seconds = [Line(name, points, colours[name]) for name, points in timed.items()], "seconds of training"
        charts.append(chart(f"{label} over the seconds", lines, x_label=f"{seconds}, growth included", y_label=label))
    return charts


def _event_row(index: int, event: GrowthEvent) -> list[str]:
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


def _eigenvalues(history: GrowthHistory) -> list[list[str]]:
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


def _settings(record: TrainingRecord) -> list[tuple[str, object]]:
    """Settings and results of the training."""
    facts = {"data set": record.dataset, "started from": record.base_model, "device": record.device}
    return [
        *((name, value) for name, value in facts.items() if value is not None),
        *((f"{record.split} {name}", number(value, 4)) for name, value in record.results.items()),
        *record.settings.items(),
        *((f"growth {name}", value) for name, value in record.growth.items()),
    ]
