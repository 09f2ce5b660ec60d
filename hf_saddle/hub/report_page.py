"""A growth history as one HTML page without scripts, files or addresses beside it, for light and dark."""

from collections.abc import Mapping, Sequence

from ..growth import GrowthEvent, GrowthHistory
from ..growth.block_records import block_texts
from .escape import markup, number, quantity
from .record import TrainingRecord
from .report_style import STYLE
from .states import (
    READING,
    Baseline,
    State,
    blocks_of,
    forecast,
    growths,
    last_step,
    linears,
    reached,
    seconds_at,
    series,
    states,
    width_text,
)
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
        _architecture(history, found[0], found[-1], neurons or {}),
        _course(found, log),
        _losses(history, found, log, baseline),
        _events(history),
        _eigenvalues(history),
        _settings(record),
    ]
    body = "".join(f"<section>{section}</section>" for section in sections if section)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<title>{markup(title)}: growth</title><style>{STYLE}</style></head>"
        f"<body><main><h1>{markup(title)}</h1><p>{markup(history.summary())}</p>{body}</main></body></html>\n"
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], kind: str = "") -> str:
    """A table of cells that are markup already."""
    top = "".join(f'<th scope="col">{cell}</th>' for cell in head)
    lines = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="wide"><table class="{kind}"><thead><tr>{top}</tr></thead><tbody>{lines}</tbody></table></div>'


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


def _architecture(history: GrowthHistory, first: State, last: State, neurons: Mapping[str, int]) -> str:
    layers, names, blocks = range(len(last.widths)), linears(history), blocks_of(history.shapes)
    most = max([last.units(i, linear) for i in layers for linear in names] + [1])
    widest = max([last.widths[i] - first.widths[i] for i in layers] + [1])

    def cell(kind: str, value: int, top: int, text: str) -> str:
        share = 0 if not value else 15 + round(70 * value / top)
        return f'<td class="{kind}" style="--share:{share}%">{text}</td>'

    rows = []
    added = [last.widths[i] - first.widths[i] for i in layers]
    texts = [width_text(first.widths[i], last.widths[i]) for i in layers]
    cells = "".join(cell("width", added[i], widest, texts[i]) for i in layers)
    rows.append(f'<tr><th scope="row">hidden neurons</th>{cells}</tr>')
    if any(last.heads):
        cells = "".join(cell("width", n, max(last.heads), f"+{n}" if n else "") for n in last.heads)
        rows.append(f'<tr><th scope="row">attention heads</th>{cells}</tr>')
    for linear in names:
        cells = ""
        for i in layers:
            sizes, total = last.branches[i].get(linear, []), neurons.get(f"{blocks[i]}.{linear}")
            text = f"+{' › '.join(map(str, sizes))}" + ("" if total is None else f" for {total}") if sizes else ""
            cells += cell("depth", sum(sizes), most, text)
        rows.append(f'<tr><th scope="row">{markup(linear)}</th>{cells}</tr>')
    head = "".join(f'<th scope="col">{i}</th>' for i in layers)
    return (
        "<h2>Where it grew</h2><p>Columns are layers. Width: hidden neurons added, of those at the start. Depth: skip "
        "units added to a linear, for its neurons; in <em>a › b</em>, b units feed the a units.</p>"
        f'<div class="wide"><table class="heat"><thead><tr><th scope="col">layer</th>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


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
    values = series(log, key)
    other = series(baseline.log, key) if baseline is not None else []
    sizes = [Line("this model", reached(list(found), values), dots=True)]
    if baseline is not None and other:
        sizes.append(Line("without growth", [(baseline.parameters, other[-1][1])], "second"))
    if history.events or other:
        parts.append(chart(f"{label} at each size", sizes, x_label="parameters", y_label=f"last {label} at each size"))
    clock = seconds_at(log, grew=bool(history.events))
    timed = [Line("this model", [(clock[step], value) for step, value in values if step in clock])]
    if baseline is not None and other:
        clock = seconds_at(baseline.log, grew=False)
        timed.append(Line("without growth", [(clock[s], v) for s, v in other if s in clock], "second"))
    timed = [line for line in timed if line.points]
    if timed:
        seconds = "seconds of training, growth included"
        parts.append(chart(f"{label} over the seconds", timed, x_label=seconds, y_label=label))
    return "<h2>Loss</h2>" + "".join(parts)


def _events(history: GrowthHistory) -> str:
    if not history.events:
        return "<h2>Events</h2><p>This model has not grown.</p>"
    head = ["event", "step", "chosen of candidates", "parameters", "predicted decrease", "probe loss", "seconds"]
    rows = [_event(index, event) for index, event in enumerate(history.events, 1)]
    notes = [
        f"<li>Event {index}: {markup(event.held_back, 1000)}</li>"
        for index, event in enumerate(history.events, 1)
        if event.held_back
    ]
    why = f"<h3>Why nothing grew</h3><ul>{''.join(notes)}</ul>" if notes else ""
    return f"<h2>Events</h2>{_table(head, rows, 'numbers')}{why}"


def _event(index: int, event: GrowthEvent) -> list[str]:
    chosen: dict[str, int] = {}
    for growth in growths(event):
        chosen[growth.operator] = chosen.get(growth.operator, 0) + growth.chosen
    operators = sorted({*chosen, *event.candidates})
    told = ", ".join(
        f"{markup(name)} {chosen.get(name, 0)}" + (f" of {event.candidates[name]}" if name in event.candidates else "")
        for name in operators
    )
    told = ", ".join([*([told] if told else []), *map(markup, block_texts(event.blocks))])
    losses = ["?" if loss is None else number(loss, 4) for loss in (event.loss_before, event.loss_after)]
    return [
        str(index),
        "" if event.step is None else number(event.step),
        told or "none",
        f"{number(event.parameters_before)} → {number(event.parameters_after)}",
        forecast(event),
        " → ".join(losses) if losses != ["?", "?"] else "",
        number(float(event.seconds)),
    ]


def _eigenvalues(history: GrowthHistory) -> str:
    rows = [
        [
            str(index),
            f"{growth.layer} {markup(growth.linear)}{' ›' * growth.nested}",
            markup(growth.operator),
            f"{growth.chosen} of {growth.candidates}",
            *(number(value) for value in growth.eigenvalues),
            number(growth.predicted_gain) if event.forecast else "",
        ]
        for index, event in enumerate(history.events, 1)
        if event.criterion is not None
        for growth in growths(event)
    ]
    if not rows:
        return ""
    head = [
        "event",
        "layer and linear",
        "operator",
        "chosen",
        "smallest",
        "mean",
        "largest eigenvalue",
        "predicted decrease",
    ]
    return (
        f"<h2>Eigenvalues</h2><p>{markup(READING, 400)}</p><details><summary>Every linear of every event"
        f"</summary>{_table(head, rows, 'numbers')}</details>"
    )


def _settings(record: TrainingRecord | None) -> str:
    if record is None:
        return ""
    facts = {"data set": record.dataset, "started from": record.base_model, "device": record.device}
    rows = [[markup(name), markup(value)] for name, value in facts.items() if value is not None]
    rows += [[f"{markup(record.split)} {markup(name)}", number(value, 4)] for name, value in record.results.items()]
    rows += [[markup(name), markup(value)] for name, value in record.settings.items()]
    rows += [[f"growth {markup(name)}", markup(value)] for name, value in record.growth.items()]
    return f"<h2>Training</h2><details><summary>Settings and results</summary>{_table(['', ''], rows)}</details>"
