"""The history is JSON that can be checked, replayed, rewound and printed."""

import copy
import json

import pytest
import torch
from growth_cases import LINEAR_NAMES, plan_for, tiny_model

from hf_saddle.growth import GrowthEvent, GrowthHistory, GrowthPlan, grow_, merge_pairs_, record_


def grown(operator="zero_gain"):
    model = tiny_model()
    start = copy.deepcopy(model)
    grow_(model, plan_for(model, operator, [0, 2, 5], LINEAR_NAMES), step=10, epoch=1.0, loss_before=2.0)
    grow_(model, GrowthPlan(criterion="depth"), step=20)
    grow_(model, plan_for(model, "split", [1, 2]), step=30)
    return model, start


@pytest.mark.parametrize("operator", ["zero_gain", "residual_pair"])
def test_replaying_on_the_ungrown_config_gives_the_grown_model(operator):
    model, start = grown(operator)
    history = GrowthHistory.from_model(model)
    config = history.apply(start.config)
    assert config == model.config and start.config != model.config
    type(model)(config).load_state_dict(model.state_dict())
    with pytest.raises(ValueError, match="not what the history starts from"):
        history.apply(model.config)


def test_json_round_trip_through_files(tmp_path):
    model, _ = grown()
    history = GrowthHistory.from_model(model)
    history.save(tmp_path / "history.json")
    assert GrowthHistory.load(tmp_path / "history.json").to_dict() == history.to_dict()
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    loaded.save_pretrained(tmp_path / "again")
    assert GrowthHistory.load(tmp_path / "again" / "growth_history.json").to_dict() == history.to_dict()
    GrowthHistory.from_model(loaded).check(loaded)
    (tmp_path / "history.json").write_text("{")
    with pytest.raises(ValueError, match="not valid JSON"):
        GrowthHistory.load(tmp_path / "history.json")


def test_an_entry_holds_what_happened():
    model, start = grown()
    first, empty, last = GrowthHistory.from_model(model).to_dict()["events"]
    assert (first["step"], first["epoch"], first["loss_before"], first["operators"]) == (10, 1.0, 2.0, ["zero_gain"])
    assert [layer["linear"] for layer in first["layers"]] == [f"vit.layers.0.{name}" for name in LINEAR_NAMES]
    assert first["layers"][0].keys() == {
        "linear", "operator", "candidates", "chosen", "neurons", "eigenvalue", "predicted_gain"
    }  # fmt: skip
    assert empty["layers"] == [] and empty["parameters_before"] == empty["parameters_after"]
    assert last["parameters_before"] == first["parameters_after"] > first["parameters_before"]
    assert first["versions"]["torch"] == str(torch.__version__)
    assert first["macs_after"] > first["macs_before"] and first["seconds"] > 0
    assert GrowthHistory.from_model(model).initial.shapes == start.shapes()


def test_what_is_known_later_is_recorded():
    model = tiny_model()
    event = grow_(model, plan_for(model, "split", [1]))
    event.loss_after = 1.5
    record_(model, event)
    assert [e.loss_after for e in GrowthHistory.from_model(model).events] == [1.5]


def test_a_model_that_went_back_is_noticed_and_the_history_rewound():
    model, start = grown()
    early = copy.deepcopy(model.state_dict())
    grow_(model, plan_for(model, "split", [3]))
    model.load_state_dict(early)
    with pytest.raises(ValueError, match="rewound_to"):
        grow_(model, plan_for(model, "split", [3]))
    history = GrowthHistory.from_model(model).rewound_to(model)
    assert len(history) == 3
    history.attach_(model)
    GrowthHistory.from_model(model).check(model)
    grow_(model, plan_for(model, "split", [3]))
    assert len(GrowthHistory.from_model(model).rewound_to(start)) == 0
    with pytest.raises(ValueError, match="another one"):
        history.rewound_to(tiny_model(intermediate_size=40))


def test_a_history_of_another_model_does_not_pass():
    model, _ = grown()
    history = GrowthHistory.from_model(model)
    with pytest.raises(ValueError, match="does not lead to the shapes"):
        history.check(tiny_model())
    model.classifier = torch.nn.Linear(16, 9)
    with pytest.raises(ValueError, match="such as the head"):
        history.check(model)


def broken(change):
    values = GrowthHistory.from_model(grown()[0]).to_dict()
    change(values)
    return values


FC1, LAYER = "layers.0.mlp.fc1", {"intermediate_size": 24, "skip_sizes": None}
DAMAGE = {
    "schema": (lambda v: v.update(schema_version=99), "schema_version"),
    "no initial": (lambda v: v.pop("initial"), "lacks `initial`"),
    "no events": (lambda v: v.update(events={}), r"history\.events` must be a list"),
    "unknown field": (lambda v: v["events"][0].update(colour=1), "wrong fields"),
    "missing field": (lambda v: v["events"][0].pop("layers"), "wrong fields"),
    "parameters": (lambda v: v["events"][0].update(parameters_after=v["events"][0]["parameters_before"]), "damaged"),
    "negative": (lambda v: v["events"][0].update(macs_before=-1), "whole number"),
    "loss": (lambda v: v["events"][0].update(loss_before="2"), "loss_before"),
    "gain": (lambda v: v["events"][0].update(predicted_gain=float("nan")), "predicted_gain"),
    "operators": (lambda v: v["events"][0].update(operators=None), "operators"),
    "record": (lambda v: v["events"][0].update(layers=[1]), "layers"),
    "no size": (lambda v: v["initial"].update(parameters="many"), "initial.parameters"),
    "silent change": (lambda v: v["events"][1].update(parameters_after=10**9), "without layers"),
    "unit": (lambda v: v["events"][0].update(skip_unit="pair"), "skip_unit"),
    "shrinking width": (lambda v: v["events"][2]["shapes"]["widths"].update({FC1: 3}), "shrinks"),
    "shrinking depth": (lambda v: v["events"][2]["shapes"].update(skip_sizes={}), "shrinks"),
    "layers": (lambda v: v["events"][2]["shapes"]["widths"].pop("layers.1.mlp.fc1"), "other layers"),
    "shapes": (lambda v: v["events"][2].update(shapes=[]), "must map layers"),
    "history": (lambda v: v.update(note=1), "has `note` too many"),
    "schema as text": (lambda v: v.update(schema_version=True), "schema_version"),
    "initial parameters": (lambda v: v["initial"].update(parameters=10**30), r"initial\.parameters.*whole number"),
    "initial unit": (lambda v: v["initial"].update(skip_unit=["gain"]), r"initial\.skip_unit"),
    "initial layers": (lambda v: v["initial"]["shapes"]["widths"].update({"layers.7.mlp.fc1": 24}), "other layers"),
    "digits": (lambda v: v["initial"].update(shapes={"0": LAYER, "１": LAYER}), "layers 0 to 1"),
    "event parameters": (lambda v: v["events"][2].update(parameters_after=10**30), "parameters_after"),
    "event is a text": (lambda v: v["events"].insert(0, "event"), "must be an object"),
    "missing first event": (lambda v: v["events"].pop(0), "An event is missing"),
    "missing event without shapes": (lambda v: v["events"][2].update(macs_before=1), "`macs_before`"),
    "order": (lambda v: v["events"].reverse(), "An event is missing"),
    "chosen": (lambda v: v["events"][0]["layers"][0].update(chosen=-5), r"layers\[0\]\.chosen"),
    "chosen too many": (lambda v: v["events"][0]["layers"][0].update(chosen=4), "`neurons` has 3"),
    "neurons twice": (lambda v: v["events"][0]["layers"][0].update(neurons=[0, 2, 2]), "`neurons` has 2"),
    "neuron": (lambda v: v["events"][0]["layers"][0].update(neurons=[0, 2, -5]), r"layers\[0\]\.neurons"),
    "path": (lambda v: v["events"][0]["layers"][0].update(linear="vit.layers.9.mlp.fc1"), "no growable linear"),
    "eigenvalue": (lambda v: v["events"][0]["layers"][0]["eigenvalue"].update(min="0"), r"eigenvalue\.min"),
    "operator": (lambda v: v["events"][0]["layers"][0].update(operator="grow"), r"layers\[0\]\.operator"),
    "operator as list": (lambda v: v["events"][0]["layers"][0].update(operator=[1]), r"layers\[0\]\.operator.*text"),
    "neuron beyond": (lambda v: v["events"][2]["layers"][0].update(neurons=[1, 999]), "names neuron 999 of"),
    "fewer candidates": (lambda v: v["events"][0]["layers"][0].update(candidates=2), r"layers\[0\]\.candidates.*is 2"),
    "falling eigenvalues": (
        lambda v: v["events"][0]["layers"][0]["eigenvalue"].update(min=5.0),
        "must rise from `min`",
    ),
    "unit of another event": (lambda v: v["events"][1].update(skip_unit="residual"), "lead to 'gain'"),
    "unit of its operators": (lambda v: v["events"][0].update(skip_unit="residual_pair"), "its operators add 'gain'"),
    "operators of another": (lambda v: v["events"][0].update(operators=["split"]), "those of its layers"),
    "record field": (lambda v: v["events"][0]["layers"][0].update(note=1), "has `note` too many"),
    "forgotten record": (lambda v: v["events"][0]["layers"].pop(), "records lead from"),
    "step": (lambda v: v["events"][0].update(step=1.5), "`step`.*whole number"),
    "epoch": (lambda v: v["events"][0].update(epoch=-1.0), "epoch"),
    "criterion": (lambda v: v["events"][0].update(criterion=1), "criterion"),
    "versions": (lambda v: v["events"][0].update(versions="2.8"), "versions"),
    "version": (lambda v: v["events"][0]["versions"].update(torch=2.8), r"versions\[torch\]"),
    "width": (lambda v: v["events"][2]["shapes"]["widths"].update({FC1: True}), r"widths\['layers.0.mlp.fc1'\]"),
    "branch": (lambda v: v["events"][2]["shapes"]["skip_sizes"].update({FC1: ["3"]}), "skip_sizes"),
    "linear": (lambda v: v["events"][2]["shapes"].update(skip_sizes={"layers.0.mlp.fc3": [1]}), "is damaged"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_a_damaged_history_is_refused(case):
    change, message = DAMAGE[case]
    with pytest.raises(ValueError, match=message):
        GrowthHistory.from_dict(json.loads(json.dumps(broken(change))))


@pytest.mark.parametrize("index", [None, 0])
def test_parameters_that_nothing_accounts_for_are_told(index, caplog):
    values = broken(lambda v: None)
    GrowthHistory.from_dict(values)
    assert not caplog.records
    place, name = (values["initial"], "parameters") if index is None else (values["events"][index], "parameters_after")
    right = place[name]
    place[name] += 7
    GrowthHistory.from_dict(values)
    assert f"starts at {right} parameters, but what was before left {right + 7}." in caplog.text


def test_table_and_summary():
    model, _ = grown()
    history = GrowthHistory.from_model(model)
    table = history.table().splitlines()
    assert len(table) == 6 and "| 10 | 1.00 | 18 | zero_gain |" in table[3] and "| none |" in table[4]
    assert "2.0000 → ?" in table[3]
    assert history.summary().startswith("3 growth events, 20 neurons: ")
    assert "0 neurons" in GrowthHistory.from_model(tiny_model()).summary()


def test_events_compare_by_what_is_saved():
    model = tiny_model()
    event = grow_(model, plan_for(model, "split", [1]))
    assert GrowthEvent.from_dict(json.loads(json.dumps(event.to_dict()))) == event


def test_a_merge_is_an_event():
    model, start = grown("residual_pair")
    merge_pairs_(model)
    history = GrowthHistory.from_model(model)
    history.check(model)
    assert history.events[-1].is_merge and history.apply(start.config) == model.config
