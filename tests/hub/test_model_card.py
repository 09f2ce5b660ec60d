"""The card: metadata that the Hub takes, numbers that are in the files, code that runs, and no way in for markup."""

import json
import os
import re
import subprocess
import sys
from dataclasses import fields, replace
from types import SimpleNamespace

import pytest
import torch
import yaml
from hub_cases import build, grown, log
from huggingface_hub import ModelCard, ModelCardData
from huggingface_hub.repocard_data import model_index_to_eval_results
from markdown_it import MarkdownIt
from PIL import Image
from transformers import TrainerState, TrainingArguments, ViTImageProcessorPil

from hf_saddle.growth import GrowthConfig, GrowthEvent, GrowthHistory
from hf_saddle.hub import ModelCardMixin, TrainingRecord, render_model_card, write_model_card
from hf_saddle.hub.escape import markdown, number
from hf_saddle.hub.measured import emissions_in
from hf_saddle.hub.states import forecast
from hf_saddle.training.reports import growth_metrics


HOSTILE = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "![x](https://evil.example/x.png)",
    "[click](javascript:alert(1))",
    "https://evil.example",
    "a | b | c",
    "line\n---\nlicense: mit\n---\n# heading",
    "`code` **bold** {{ 7 * 7 }} {% raw %}",
    "]]></details><h1>",
    "`<img src=x onerror=alert(1)>`",
    "x" * 5000,
]


def record(model, tmp_path, **facts) -> TrainingRecord:
    """The record of a training with the log of `hub_cases.log`."""
    args = TrainingArguments(output_dir=str(tmp_path), max_steps=6, learning_rate=1e-3, report_to="none", use_cpu=True)
    state = TrainerState(log_history=log(), global_step=6)
    return TrainingRecord.of(model, args, state, growth=GrowthConfig(at=[3, 13], unit="steps"), **facts)


def parts(text: str) -> SimpleNamespace:
    """HTML, link targets and images of a Markdown text."""
    found = SimpleNamespace(html=[], links=[], images=[], headings=[])
    stack = MarkdownIt("commonmark", {"html": True}).enable("table").parse(text)
    for token in stack:
        if token.type == "html_block":
            found.html.append(token.content)
        if token.type == "heading_open":
            found.headings.append(token.tag)
        for child in token.children or []:
            if child.type == "html_inline":
                found.html.append(child.content)
            if child.type == "link_open":
                found.links.append(child.attrs["href"])
            if child.type == "image":
                found.images.append(child.attrs["src"])
    return found


def test_metadata_survive_the_hubs_own_parser(tmp_path):
    model = grown()
    facts = {"dataset": "tester/pictures", "license": "apache-2.0", "base_model": "facebook/deit-tiny-patch16-224"}
    card = render_model_card(model, record(model, tmp_path, **facts), name="demo", repo_id="tester/demo", tags=["own"])
    data = yaml.safe_load(re.match(r"---\n(.*?)\n---\n", str(card), re.DOTALL)[1])
    assert data["library_name"] == "transformers"
    assert data["pipeline_tag"] == "image-classification"
    assert data["license"] == "apache-2.0"
    assert data["base_model"] == "facebook/deit-tiny-patch16-224"
    assert data["base_model_relation"] in ("adapter", "merge", "quantized", "finetune")
    assert data["datasets"] == ["tester/pictures"]
    assert data["metrics"] == ["accuracy"]
    assert data["tags"] == ["hf-saddle", "growing-network", "vision", "arxiv:2402.12418", "deit", "own"]
    assert all(isinstance(tag, str) and len(tag) < 100 for tag in data["tags"])
    name, (result,) = model_index_to_eval_results(data["model-index"])
    assert (name, result.metric_type, result.metric_value) == ("demo", "accuracy", 0.75)
    assert ModelCard(str(card)).data.to_dict() == ModelCardData(**data).to_dict()


def test_a_model_without_measurements_claims_none(tmp_path):
    card = render_model_card(build("vit-ungrown"), name="plain")
    assert {"model-index", "metrics", "license", "datasets", "base_model"}.isdisjoint(card.data.to_dict())
    assert "has not grown" in card.text
    assert "No evaluation was recorded" in card.text
    assert "settings of the training were not recorded" in card.text
    assert "co2_eq_emissions" not in card.data.to_dict()


def test_numbers_are_those_of_history_and_log(tmp_path):
    model = grown()
    history = GrowthHistory.from_model(model)
    text = render_model_card(model, record(model, tmp_path, dataset="digits"), name="demo").text
    for event in history.events:
        assert f"{event.parameters_before:,} → {event.parameters_after:,}" in text
    assert f"| parameters | {history.initial.parameters:,} | {history.events[-1].parameters_after:,} |" in text
    assert "| 1.25 → 1.125 |" in text
    assert "| accuracy | 0.75 |" in text
    assert "On the validation split of digits at step 6" in text
    assert "in 12.5 s" in text
    assert "| `learning_rate` | 0.001 |" in text
    assert "| growth `at` | \\[3, 13\\] |" in text and "| growth `unit` | steps |" in text


def test_a_resumed_training_took_as_long_as_its_clock_says(tmp_path):
    model = grown()
    entries = [{"step": 4, "training_seconds": 20.5}, {"step": 6, "train_runtime": 4.0, "training_seconds": 24.5}]
    assert "in 24.5 s" in render_model_card(model, replace(record(model, tmp_path), log=entries), name="demo").text


def test_cards_are_in_utf_8_whatever_the_locale(tmp_path):
    build("vit-deeper-and-wider").save_pretrained(tmp_path)
    code = (
        "import sys; from hf_saddle import SaddleViTForImageClassification as kind; from hf_saddle.hub import "
        "write_model_card; write_model_card(sys.argv[1], kind.from_pretrained(sys.argv[1]))"
    )
    plain = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    for _ in range(2):  # the second one reads the first one's
        subprocess.run([sys.executable, "-c", code, str(tmp_path)], env=plain, check=True, capture_output=True)
    assert "×" in (tmp_path / "README.md").read_text(encoding="utf-8")


def test_only_repo_ids_are_data_sets_of_the_hub(tmp_path):
    model = grown()
    card = render_model_card(model, record(model, tmp_path, dataset="digits"), name="x")
    assert "datasets" not in card.data.to_dict()


def test_the_results_are_those_of_the_weights_that_are_shared(tmp_path):
    args = TrainingArguments(
        output_dir=str(tmp_path),
        load_best_model_at_end=True,
        save_strategy="steps",
        eval_strategy="steps",
        save_steps=2,
        eval_steps=2,
        use_cpu=True,
    )
    state = TrainerState(log_history=log(), global_step=6, best_global_step=4)
    best = TrainingRecord.of(build("deit-ungrown"), args, state)
    assert (best.split, best.results["accuracy"], best.results_step) == ("validation", 0.5, 4)
    state.log_history.append({"step": 6, "test_loss": 0.5, "test_accuracy": 0.625})
    tested = TrainingRecord.of(build("deit-ungrown"), args, state)
    assert (tested.split, tested.results["accuracy"]) == ("test", 0.625)


def test_measured_emissions_are_told_in_grams(tmp_path):
    (tmp_path / "emissions.csv").write_text("timestamp,duration,emissions\n2026-01-01,10,0.002\n")
    model = build("deit-ungrown")
    card = render_model_card(model, record(model, tmp_path), name="x")
    assert card.data.to_dict()["co2_eq_emissions"]["emissions"] == 2.0


@pytest.mark.parametrize(
    ("text", "grams"),
    [
        ("", None),
        ("timestamp,emissions\n", None),
        ("timestamp,emissions\n2026-01-01,\n", None),
        ("timestamp,emissions\n2026-01-01\n", None),
        ("timestamp,emissions\n2026-01-01,nan\n", None),
        ("timestamp,emissions\n2026-01-01,many\n", None),
        ('project_name,emissions\n"one,\ntwo",0.002\n', 2.0),
    ],
)
def test_an_unfinished_or_quoted_table_of_emissions_ends_no_training(text, grams, tmp_path):
    (tmp_path / "emissions.csv").write_text(text)
    assert emissions_in(tmp_path) == grams


@pytest.mark.thinned(2)
@pytest.mark.parametrize("with_processor", [True, False])
@pytest.mark.parametrize("make", [grown, lambda: build("vit-deeper-and-wider")], ids=["deit", "vit"])
def test_the_code_in_the_card_runs(make, with_processor, tmp_path, monkeypatch, capsys):
    model = make()
    model.growth_history = model.growth_history if make is grown else None
    folder = tmp_path / "my-model"
    model.save_pretrained(folder)
    if with_processor:
        ViTImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(folder)
    write_model_card(folder, model)
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (20, 24), (200, 30, 30)).save("image.png")
    exec(code, {})
    assert capsys.readouterr().out.strip() in model.config.id2label.values()


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_markup_in_foreign_text_stays_text(text, tmp_path):
    model = grown()
    clean = render_model_card(model, record(model, tmp_path, dataset="digits"), name="demo", pictures=["loss"])
    model.config.id2label = {0: text, 1: "dog", 2: "ship"}
    for event in model.growth_history["events"]:
        event["criterion"] = text
        event["versions"] = {text: text}
    dirty = record(model, tmp_path, dataset=text)
    dirty.settings |= {text: text}
    dirty.versions, dirty.device = {}, text
    card = render_model_card(model, dirty, name=text, pictures=["loss"], tags=[text])
    before, after = parts(clean.text), parts(card.text)
    assert (after.html, after.links, after.images) == (before.html, before.links, before.images)
    assert after.headings == before.headings
    assert "https://evil" not in re.sub(r"```python.*?```|`.*?`", "", card.text, flags=re.DOTALL)
    expected = set(clean.data.to_dict())
    assert set(yaml.safe_load(str(card).split("\n---\n")[0].removeprefix("---\n"))) == expected
    assert max(map(len, card.text.splitlines())) < 2000


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_escaped_text_renders_as_itself(text):
    rendered = MarkdownIt("commonmark").renderInline(markdown(text))
    assert "<" not in rendered.replace("&lt;", "")


def test_a_text_in_place_of_a_number_is_refused():
    with pytest.raises(ValueError, match="where a card needs a number"):
        number("<b>")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"linear": "deit.layers.0.evil"}, "damaged"),
        ({"operator": "<script>"}, "damaged"),
        ({"eigenvalue": {"min": "x", "mean": 0, "max": 0}}, "damaged"),
        ({"predicted_gain": None}, "damaged"),
    ],
)
def test_a_damaged_history_is_refused(change, message):
    model = grown()
    model.growth_history["events"][0]["layers"][0] |= change
    with pytest.raises(ValueError, match=message):
        render_model_card(model, name="demo")


def test_the_history_of_another_model_is_refused(tmp_path):
    model = build("deit-deeper")
    model.growth_history = grown().growth_history
    with pytest.raises(ValueError, match="does not lead to the shapes of this model"):
        write_model_card(tmp_path, model)
    assert not (tmp_path / "README.md").exists()


def test_another_head_is_no_other_history(tmp_path):
    model = grown()
    model.classifier = torch.nn.Linear(32, 7)
    model.config.num_labels = 7
    text = write_model_card(tmp_path, model).read_text()
    assert f"{sum(parameter.numel() for parameter in model.parameters()):,} |" in text


def test_a_card_written_by_hand_is_kept(tmp_path):
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n# My own words\n")
    write_model_card(tmp_path, grown())
    assert "My own words" in (tmp_path / "README.md").read_text()


def test_tags_of_the_card_before_are_kept(tmp_path):
    write_model_card(tmp_path, grown(), tags=["birds"])
    write_model_card(tmp_path, grown())
    tags = ModelCard.load(tmp_path / "README.md").data.tags
    assert tags.count("birds") == 1
    assert tags.count("hf-saddle") == 1


def test_activation_checkpointing_is_recorded_once_by_its_present_name(tmp_path):
    names = [item.name for item in fields(TrainingArguments) if item.name.endswith("_checkpointing")]
    name = "activation_checkpointing" if "activation_checkpointing" in names else "gradient_checkpointing"
    for wanted in (True, False):
        args = TrainingArguments(str(tmp_path), report_to="none", use_cpu=True, **{name: wanted})
        settings = TrainingRecord.of(build("deit-deeper"), args, TrainerState()).settings
        assert [key for key in settings if key in names] == [name] * wanted


def test_a_record_survives_saving(tmp_path):
    model = grown()
    written = record(model, tmp_path, dataset="digits")
    written.save(tmp_path)
    assert TrainingRecord.load(tmp_path) == written
    json.loads((tmp_path / "training_record.json").read_text())


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"unknown": 1}', '{"log": "x"}', '{"settings": []}', '{"dataset": 3}', '{"log": [1]}']
)
def test_a_damaged_record_is_refused(content, tmp_path):
    (tmp_path / "training_record.json").write_text(content)
    with pytest.raises(ValueError, match="record"):
        TrainingRecord.load(tmp_path)


def test_a_licence_that_the_hub_does_not_take_is_refused(tmp_path):
    model = grown()
    with pytest.raises(ValueError, match="license"):
        render_model_card(model, record(model, tmp_path, license="Do what you like\nevil: 1"), name="x")


def test_a_licence_that_is_refused_is_not_kept(tmp_path):
    with pytest.raises(ValueError, match="license"):
        write_model_card(tmp_path / "model", grown(), TrainingRecord(license="Apache 2.0"))
    assert not (tmp_path / "model").exists()
    trainer = ModelCardMixin()
    trainer.model, trainer.state, trainer.processing_class, trainer.hub_model_id = grown(), TrainerState(), None, None
    trainer.args = TrainingArguments(str(tmp_path / "trained"), report_to="none", use_cpu=True)
    with pytest.raises(ValueError, match="license"):
        trainer.create_model_card(license="Apache 2.0")
    assert not trainer.card_facts and not (tmp_path / "trained" / "training_record.json").exists()


@pytest.mark.parametrize("metadata", ["library_name: [transformers", "- transformers", "1: transformers"])
def test_a_card_whose_metadata_cannot_be_read_is_named_before_anything_is_written(metadata, tmp_path):
    (tmp_path / "README.md").write_text(f"---\n{metadata}\n---\n<!-- Written by hf-saddle -->\n")
    with pytest.raises(ValueError, match=r"README\.md cannot be read: .* Mend them, or remove the file"):
        write_model_card(tmp_path, grown(), TrainingRecord())
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]


def test_only_what_held_out_samples_gained_stands_as_predicted():
    """Not the rank of neurons, which can be any number, such as 1.9 where the loss is 0.57."""
    event = GrowthEvent(criterion="auto", predicted_gain=1.9)
    assert forecast(event) == "" and not any("change" in name for name in growth_metrics(event))
    event = replace(event, predicted_gain=0.0312, forecast="event")
    assert forecast(event) == "0.0312" and growth_metrics(event)["growth_predicted_change"] == -0.0312
    measured = replace(event, predicted_error=0.00451)
    assert forecast(measured) == "0.0312 ± 0.0045" and growth_metrics(measured)["growth_predicted_error"] == 0.00451
    with pytest.raises(ValueError, match="predicted_error"):
        replace(measured, predicted_error=-1.0).check()
    event = replace(event, forecast="next step")
    assert forecast(event) == "0.0312 (next step)"
    assert "growth_predicted_change" not in growth_metrics(event)
    assert growth_metrics(event)["growth_next_step_change"] == -0.0312
