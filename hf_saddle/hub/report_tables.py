"""The tables of the report page: where a model grew, by which events and eigenvalues, and under which settings."""

from collections.abc import Mapping, Sequence

from ..growth import GrowthEvent, GrowthHistory
from ..growth.block_records import block_texts
from .escape import markup, number
from .record import TrainingRecord
from .states import READING, State, blocks_of, expected, forecast, growths, linears, units_text, width_text


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], kind: str = "") -> str:
    """A table of cells that are markup already."""
    top = "".join(f'<th scope="col">{cell}</th>' for cell in head)
    lines = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="wide"><table class="{kind}"><thead><tr>{top}</tr></thead><tbody>{lines}</tbody></table></div>'


def architecture(history: GrowthHistory, first: State, last: State, neurons: Mapping[str, int]) -> str:
    """Units and neurons that were added, by layer and linear."""
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
            sizes = last.branches[i].get(linear, [])
            cells += cell("depth", sum(sizes), most, units_text(sizes, neurons.get(f"{blocks[i]}.{linear}")))
        rows.append(f'<tr><th scope="row">{markup(linear)}</th>{cells}</tr>')
    head = "".join(f'<th scope="col">{i}</th>' for i in layers)
    return (
        "<h2>Where it grew</h2><p>Columns are layers. Width: hidden neurons added, of those at the start. Depth: skip "
        "units added to a linear, for its neurons; in <em>a › b</em>, b units feed the a units.</p>"
        f'<div class="wide"><table class="heat"><thead><tr><th scope="col">layer</th>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def events(history: GrowthHistory) -> str:
    """The events, and why nothing grew in some."""
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
    for block in event.blocks if event.candidates else ():
        chosen[f"block_{block['how']}"] = chosen.get(f"block_{block['how']}", 0) + 1
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


def eigenvalues(history: GrowthHistory) -> str:
    """The eigenvalues of every linear of every event, as far as they were measured."""
    rows = [
        [
            str(index),
            f"{growth.layer} {markup(growth.linear)}{' ›' * growth.nested}",
            markup(growth.operator),
            f"{growth.chosen} of {growth.candidates}",
            *(number(value) for value in growth.eigenvalues),
            expected(event, growth),
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


def settings(record: TrainingRecord | None) -> str:
    """Settings and results of the training."""
    if record is None:
        return ""
    facts = {"data set": record.dataset, "started from": record.base_model, "device": record.device}
    rows = [[markup(name), markup(value)] for name, value in facts.items() if value is not None]
    rows += [[f"{markup(record.split)} {markup(name)}", number(value, 4)] for name, value in record.results.items()]
    rows += [[markup(name), markup(value)] for name, value in record.settings.items()]
    rows += [[f"growth {markup(name)}", markup(value)] for name, value in record.growth.items()]
    return f"<h2>Training</h2><details><summary>Settings and results</summary>{_table(['', ''], rows)}</details>"
