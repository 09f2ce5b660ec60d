"""`hf-saddle compare` and `hf-saddle grow --dry-run` on tiny settings of every task, and what they leave behind."""

import dataclasses
import json

import PIL.Image
import pytest
from transformers import DeiTConfig, DeiTForImageClassification, ViTImageProcessorPil

from hf_saddle.demo import compare
from hf_saddle.demo.arguments import ModelAndDataArguments
from hf_saddle.demo.program import read_options
from hf_saddle.demo.run import run
from hf_saddle.hub import Comparison
from hf_saddle.hub.comparison_text import settings_text


SMALL = ["--hidden-size", "16", "--num-hidden-layers", "1", "--intermediate-size", "8", "--num-attention-heads", "2"]
SHORT = ["--max-samples", "40", "--max-steps", "20", "--per-device-train-batch-size", "16", "--warmup-steps", "2"]
GROWTH = ["--probe-samples", "8", "--significance", "0", "--max-growth", "1.5", "--at", "0.3"]
COMMON = [*SMALL, *SHORT, *GROWTH, "--use-cpu", "--disable-tqdm", "true"]
TASKS = {
    "images": ["--image-size", "8"],
    "text-classification": ["--task", "text-classification", "--vocab-size", "300", "--block-size", "16"],
    "causal-lm": ["--task", "causal-lm", "--vocab-size", "300", "--block-size", "16"],
}


@pytest.mark.parametrize("task", TASKS)
def test_every_task_is_compared(task, tmp_path):
    words = ["--output-dir", str(tmp_path), *COMMON, *TASKS[task], "--cost", "macs", "--seeds", "2", "--points", "3"]
    text = compare.run(words)
    found = Comparison.load(tmp_path / "comparison.json")
    assert found.seeds == [42, 43] and len(found.runs) == 6 and found.split == "test"
    assert "growth − no growth" in text and " ± " in text and found.answer() in text
    assert found.metric == ("perplexity" if task == "causal-lm" else "accuracy")
    assert {path.name for path in tmp_path.iterdir()} == {"comparison.json", "comparison.png", "comparison.svg"}
    assert compare.run(words) == text  # of the file: nothing is left to train
    assert Comparison.load(tmp_path / "comparison.json") == found
    # Files of before tell growth, versions and device among the settings, too.
    assert not found.settings.keys() & found.conditions.keys() and "growth max_growth" in settings_text(found)
    repeated = ("learning_rate", "growth max_growth", "device", "torch")
    more = {name: found.conditions[name] for name in repeated}
    older = dataclasses.replace(found, settings=found.settings | more)
    older.save(tmp_path / "comparison.json")
    assert compare.run(words) == text
    assert sorted(settings_text(older).split(", ")) == sorted(settings_text(found).split(", "))
    with pytest.raises(ValueError, match=r"of other settings already: hidden_size 16 → 32, .*`--overwrite`"):
        compare.run([*words, "--hidden-size", "32"])


def test_the_card_of_a_grown_model_tells_the_comparison(tmp_path):
    grown, images = str(tmp_path / "grown"), [*COMMON, *TASKS["images"]]
    run(["--output-dir", grown, *images])
    words = ["--output-dir", str(tmp_path / "c"), *images, "--seeds", "1", "--cost", "macs", "--in-card", grown]
    compare.run(words)
    card = (tmp_path / "grown" / "README.md").read_text()
    assert "## Did growth help?" in card and "## What grew and why" in card
    assert str(tmp_path) not in (tmp_path / "grown" / "comparison.json").read_text()
    with pytest.raises(ValueError, match="`in_card` must be the folder of a saved model"):
        compare.run([*words[:-1], str(tmp_path / "nowhere")])


@pytest.mark.parametrize("program", [run, compare.run])
@pytest.mark.parametrize("words", [[], ["--output-dir", ""]])
def test_a_training_asks_for_its_folder(program, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="--output-dir"):
        program([*words, *COMMON, *TASKS["images"]])
    assert list(tmp_path.iterdir()) == []


def test_a_comparison_is_no_dry_run(tmp_path):
    with pytest.raises(ValueError, match="`--dry-run` is an option of `hf-saddle grow`"):
        compare.run(["--output-dir", str(tmp_path), *COMMON, *TASKS["images"], "--dry-run"])
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_needs_no_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "Nothing was trained or written" in run([*COMMON, *TASKS["images"], "--dry-run"])
    assert list(tmp_path.iterdir()) == []


def test_options_of_today_may_have_names_that_once_were_others():
    words = ["--output-dir", "out", "--use-cpu", "--budget-unit", "seconds"]
    kinds = (ModelAndDataArguments, compare.ComparisonArguments)
    _, comparison, growth, _ = read_options(kinds, [*words, "--budget", "600"], None, epilog="")
    assert (comparison.budget, growth.budget_unit) == (600, "seconds")
    with pytest.raises(ValueError, match="`--budget` is no option since version 0.2"):
        read_options((ModelAndDataArguments,), [*words, "--budget", "600"], None, epilog="")


@pytest.mark.parametrize("task", ["images", "causal-lm"])
def test_a_dry_run_says_what_would_grow_and_writes_nothing(task, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    told = run(["--output-dir", "out", *COMMON, *TASKS[task], "--dry-run"])
    assert "1 of 1 events fall inside of this training, at step 6 of 20" in told
    assert "by zero_gain" in told or "by split" in told
    assert "parameters" in told and "steps; a step took" in told
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_says_that_nothing_would_grow(tmp_path):
    words = ["--output-dir", str(tmp_path / "out"), *COMMON, *TASKS["images"], "--dry-run"]
    assert "Significance: none of" in run([*words, "--significance", "1e9"])
    late = [word for word in words if word not in ("--at", "0.3")]
    assert "0 of 1 events fall inside" in run([*late, "--unit", "steps", "--at", "99"])


def test_a_checkpoint_has_the_defaults_of_fine_tuning():
    def read(*words):
        given = ["--output-dir", "out", *words, "--use-cpu"]
        return read_options((ModelAndDataArguments,), given, None, epilog="")[-1]

    scratch, tuned = read(), read("--model-name-or-path", "some/model")
    assert (scratch.learning_rate, scratch.num_train_epochs, scratch.lr_scheduler_type) == (2e-3, 30, "cosine")
    assert (tuned.learning_rate, tuned.num_train_epochs, tuned.lr_scheduler_type) == (5e-5, 3, "linear")
    assert read("--model-name-or-path", "some/model", "--learning-rate", "0.1").learning_rate == 0.1


def test_no_file_that_is_shared_tells_where_things_lie(tmp_path):
    """A fine-tuning from a local checkpoint on a local folder, in a place with a name of its own."""
    place = tmp_path / "secret-place"
    for name in ("cats", "dogs"):
        (place / "photos" / name).mkdir(parents=True)
        for index in range(20):
            PIL.Image.new("RGB", (8, 8), (10 * index, 0, 0)).save(place / "photos" / name / f"{index}.png")
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    DeiTForImageClassification(DeiTConfig(**shape, image_size=8, patch_size=4)).save_pretrained(place / "start")
    ViTImageProcessorPil(size={"height": 8, "width": 8}, image_mean=[0.485] * 3).save_pretrained(place / "start")
    out = place / "out"
    words = ["--dataset", str(place / "photos"), "--model-name-or-path", str(place / "start"), *SHORT, *GROWTH]
    run(["--output-dir", str(out), *words, "--use-cpu", "--disable-tqdm", "true"])
    shared = [path for path in out.iterdir() if path.suffix in (".json", ".md", ".py")]
    shared = [path for path in shared if path.name != "trainer_state.json"]  # is not uploaded
    assert {"README.md", "config.json", "training_record.json", "preprocessor_config.json"} <= {p.name for p in shared}
    assert [path.name for path in shared if "secret-place" in path.read_text()] == []
    record = json.loads((out / "training_record.json").read_text())
    assert (record["dataset"], record["base_model"]) == ("photos", "start")
    assert json.loads((out / "preprocessor_config.json").read_text())["image_mean"] == [0.485] * 3
