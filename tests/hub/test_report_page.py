"""The page of a growth history: one well-formed file that asks for nothing, in which nobody's text is markup."""

import json
import re
from html.parser import HTMLParser

import pytest
from hub_cases import build, grown, log

from hf_saddle.growth import GrowthHistory
from hf_saddle.hub import TrainingRecord, render_report
from hf_saddle.hub.pictures.curves import Baseline, reached, seconds_at
from hf_saddle.hub.pictures.svg import Line, chart, ticks
from hf_saddle.hub.states import neuron_counts, states


HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>\u202e</style>"
VOID = {"meta", "line", "circle", "path"}


class Page(HTMLParser):
    """Elements, attributes and text of a page whose tags are closed in order."""

    def __init__(self, text: str):
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.attributes, self.text = [], [], [], ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def page(model=None, **fields) -> Page:
    model = grown() if model is None else model
    return Page(render_report(GrowthHistory.from_model(model), title="my model", **fields))


def test_it_tells_what_grew_when_and_by_how_much():
    model = grown()
    found = page(model, log=log(), neurons=neuron_counts(model), baseline=Baseline(14_000, log()))
    assert "+2 of 40" in found.text and "+2 › 2 for 40" in found.text
    for event in GrowthHistory.from_model(model).events:
        assert f"{event.parameters_before:,} → {event.parameters_after:,}" in found.text
    assert found.tags.count("svg") == 4 and "without growth" in found.text


@pytest.mark.parametrize("log_", [[], log()], ids=["no log", "log"])
@pytest.mark.parametrize(
    "model", [build("vit-ungrown"), grown(measured=False), grown()], ids=["new", "by hand", "grown"]
)
def test_every_history_gives_a_well_formed_page(model, log_):
    found = page(model, log=log_)
    assert ("This model has not grown." in found.text) == (not GrowthHistory.from_model(model).events)


def test_it_asks_for_nothing_and_runs_nothing():
    found = page(log=log(), record=TrainingRecord(dataset="digits", log=log()))
    assert not {"script", "link", "img", "iframe", "object", "base", "form"} & set(found.tags)
    assert not [name for name, _ in found.attributes if name in ("src", "href", "xlink:href") or name.startswith("on")]
    text = render_report(GrowthHistory.from_model(grown()), title="x")
    assert "url(" not in text and "@import" not in text and "prefers-color-scheme:dark" in text
    assert "default-src 'none'" in text


def test_texts_of_others_stay_texts():
    model = grown()
    history = GrowthHistory.from_model(model)
    history.events[0].held_back = HOSTILE
    history.events[0].criterion = HOSTILE
    record = TrainingRecord(
        dataset=HOSTILE,
        device=HOSTILE,
        settings={HOSTILE: HOSTILE},
        growth={HOSTILE: [HOSTILE]},
        results={HOSTILE: 1.0},
    )
    text = render_report(history, title=HOSTILE, log=log(), record=record)
    found, plain = Page(text), page(model, log=log(), record=TrainingRecord(dataset="a", device="b"))
    assert set(found.tags) == set(plain.tags) | {"h3"} and not [n for n, _ in found.attributes if n.startswith("on")]
    assert found.tags.count("style") == 1 and "alert(1)" in found.text and "\u202e" not in text
    assert text.count("<script") == 0


def test_the_page_says_why_nothing_grew():
    history = GrowthHistory.from_model(grown())
    history.events[1].held_back = "Significance: none of 24 neurons is a candidate."
    assert "Event 2: Significance: none of 24" in Page(render_report(history, title="x")).text


@pytest.mark.parametrize(("low", "high"), [(0, 1), (13_844, 27_687), (-1e-9, 3e-9), (5, 5), (0, 0), (1e300, 2e300)])
def test_ticks_span_what_there_is(low, high):
    found = ticks(low, high)
    assert 2 <= len(found) <= 9 and found == sorted(set(found))
    assert found[0] <= low + 1e-9 * abs(low) and found[-1] >= high - 1e-9 * abs(high)


def test_a_chart_lies_inside_of_its_frame():
    drawn = chart("c", [Line("a", [(0, -3.0), (7, 11.0)], dots=True)], x_label="x", y_label="y", marks=[(9, "<1>")])
    assert all(0 <= float(x) <= 640 for x in re.findall(r' (?:cx|x1|x2)="([^"]+)"', drawn))
    assert all(0 <= float(y) <= 244 for y in re.findall(r' (?:cy|y1|y2)="([^"]+)"', drawn))
    assert "&lt;1&gt;" in drawn


@pytest.mark.parametrize("points", [[(0, 1.0), (630, 2.0)], [(630, 1.0)], [(89_546, 1.0), (134_314, 2.0)]])
def test_a_chart_ends_with_its_last_point(points):
    drawn = chart("c", [Line("a", points, dots=True)], x_label="x", y_label="y")
    right = max(float(x) for x in re.findall(r' x2="([^"]+)"', drawn))
    assert float(re.findall(r' cx="([^"]+)"', drawn)[-1]) == right
    places = [float(x) for x in re.findall(r'middle" x="([^"]+)" y="219"', drawn)]
    assert places and places == sorted(places) and places[-1] <= right


def test_seconds_are_those_that_were_logged_or_in_proportion_where_nothing_grew():
    assert seconds_at(log(), grew=True) == {}
    assert seconds_at(log(), grew=False) == pytest.approx({step: 12.5 * step / 6 for step in range(1, 7)})
    timed = [entry | {"training_seconds": 2.0 * entry["step"]} for entry in log()]
    assert seconds_at(timed, grew=True) == {step: 2.0 * step for step in range(1, 7)}


def test_the_loss_at_a_size_is_the_last_before_it_grew():
    found = states(GrowthHistory.from_model(grown()))  # events at the ends of steps 3 and 5
    values = [(step, 10.0 - step) for step in range(1, 8)]
    assert reached(found, values) == [
        (found[0].parameters, 7.0),
        (found[1].parameters, 5.0),
        (found[2].parameters, 3.0),
    ]


def test_the_page_is_the_same_for_a_history_that_was_saved_and_read(tmp_path):
    history = GrowthHistory.from_model(grown())
    history.save(tmp_path / "history.json")
    again = GrowthHistory.from_dict(json.loads((tmp_path / "history.json").read_text()))
    assert render_report(again, title="x") == render_report(history, title="x")
