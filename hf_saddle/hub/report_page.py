"""A growth history as one HTML page without scripts, files or addresses beside it, for light and dark."""

from collections.abc import Mapping, Sequence

from ..growth import GrowthHistory
from .escape import markup, number, quantity
from .record import TrainingRecord
from .report_style import STYLE
from .report_tables import architecture, eigenvalues, events, settings
from .states import Baseline, State, cost_curves, last_step, series, states
from .svg import Line, chart


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
    sections = [
        _sizes(found, history),
        architecture(history, found[0], found[-1], neurons or {}),
        _course(found, log),
        _losses(history, found, log, baseline),
        events(history),
        eigenvalues(history),
        settings(record),
    ]
    body = "".join(f"<section>{section}</section>" for section in sections if section)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<title>{markup(title)}: growth</title><style>{STYLE}</style></head>"
        f"<body><main><h1>{markup(title)}</h1><p>{markup(history.summary())}</p>{body}</main></body></html>\n"
    )


def _sizes(found: Sequence[State], history: GrowthHistory) -> str:
    first, last = found[0], found[-1]
    seconds = sum(event.seconds for event in history.events)
    tiles = [
        ("parameters", f"{quantity(first.parameters)} → {quantity(last.parameters)}"),
        ("multiply-accumulates", f"{quantity(first.macs)} → {quantity(last.macs)}"),
        (
            "events that grew",
            f"{sum(bool(event.layers or event.blocks) for event in history.events)} of {len(history.events)}",
        ),
        ("seconds of growth", number(float(seconds))),
    ]
    return '<dl class="tiles">' + "".join(f"<div><dt>{k}</dt><dd>{v}</dd></div>" for k, v in tiles) + "</dl>"


def _marks(found: Sequence[State]) -> list[tuple[float, str]]:
    return [(state.step, str(index)) for index, state in enumerate(found[1:], 1)]


def _course(found: Sequence[State], log: Sequence[Mapping[str, float]]) -> str:
    if len(found) == 1:
        return ""
    end = max(last_step(log), found[-1].step + 1)
    points = [(float(state.step), float(state.parameters)) for state in found]
    line = Line("parameters", [*points, (end, points[-1][1])], steps=True)
    marks = _marks(found)
    drawn = chart("Parameters over the training", [line], x_label="step", y_label="parameters", marks=marks)
    return f"<h2>Size over the training</h2><p>Dotted: growth events.</p>{drawn}"


def _losses(
    history: GrowthHistory, found: Sequence[State], log: Sequence[Mapping[str, float]], baseline: Baseline | None
) -> str:
    lines = []
    for (key, label), colour in zip(_METRICS, ("second", "first"), strict=True):
        if series(log, key):
            lines.append(Line(label, series(log, key), colour))
    if not lines:
        return ""
    parts = [chart("Loss over the training", lines, x_label="step", y_label="loss", marks=_marks(found))]
    key, label = next(metric for metric in _METRICS if series(log, metric[0]))
    sizes, timed = cost_curves(history, log, key, baseline)
    colours = {"this model": "first", "without growth": "second"}
    if history.events or len(sizes) > 1:
        lines = [Line(name, points, colours[name], dots=name == "this model") for name, points in sizes.items()]
        parts.append(chart(f"{label} at each size", lines, x_label="parameters", y_label=f"last {label} at each size"))
    if timed:
        lines, seconds = [Line(name, points, colours[name]) for name, points in timed.items()], "seconds of training"
        parts.append(chart(f"{label} over the seconds", lines, x_label=f"{seconds}, growth included", y_label=label))
    return "<h2>Loss</h2>" + "".join(parts)
