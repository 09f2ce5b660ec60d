"""The whole job on tiny settings, as the example and the command line run it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    DeiTConfig,
    DeiTForImageClassification,
    TrainingArguments,
)

from hf_saddle import GrowthConfig, SaddleDeiTForImageClassification
from hf_saddle.demo.arguments import ModelAndDataArguments
from hf_saddle.demo.data import load_images
from hf_saddle.demo.job import build_model
from hf_saddle.demo.run import run, train_and_grow
from hf_saddle.demo.text import load_text


TINY = {"image_size": 8, "hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 16, "max_samples": 96}
GROWTH = {"unit": "steps", "at": [2, 4], "probe_samples": 32, "significance": 0.0}
GROWTH |= {"selection": "gain"}  # so little training supports no growth
TRAINING = {
    "max_steps": 6,
    "per_device_train_batch_size": 16,
    "report_to": "none",
    "disable_tqdm": True,
    "use_cpu": True,
}
ROOT = Path(__file__).parents[1]


def options(**values) -> list[str]:
    return [
        word
        for name, value in values.items()
        for word in (f"--{name}", *map(str, value if isinstance(value, list) else [value]))
    ]


def test_the_job_grows_saves_and_reloads_the_same_model(tmp_path):
    training = TrainingArguments(output_dir=str(tmp_path), **TRAINING)
    result = train_and_grow(ModelAndDataArguments(**TINY), GrowthConfig(**GROWTH), training)
    assert [event.step for event in result.history.events] == [2, 4]
    assert result.history.events[-1].parameters_after > result.history.initial.parameters
    assert result.reload_difference == 0.0
    assert 0 <= result.metrics["test_accuracy"] <= 1
    assert {"README.md", "growth_history.json", "model.safetensors", "preprocessor_config.json"} <= {
        path.name for path in tmp_path.iterdir()
    }


def test_the_report_tells_what_grew(tmp_path):
    report = run(options(output_dir=tmp_path, **TINY, **GROWTH, **TRAINING))
    history = json.loads((tmp_path / "growth_history.json").read_text())
    assert f"{history['events'][-1]['parameters_after']:,}" in report
    assert "after reloading: 0.0" in report


def test_a_run_goes_on_or_begins_anew(tmp_path, capsys):
    few = {**TRAINING, "max_steps": 4, "save_strategy": "steps", "save_steps": 3}
    words = options(output_dir=tmp_path, **TINY, **GROWTH, **few)
    run(words)
    with pytest.raises(ValueError, match="has a model already"):
        run(words)
    more = options(output_dir=tmp_path, **TINY, **GROWTH, **{**few, "max_steps": 6})
    run([*more, "--resume_from_checkpoint", "last"])
    state = json.loads((tmp_path / "trainer_state.json").read_text())
    assert state["global_step"] == 6
    assert [event["step"] for event in json.loads((tmp_path / "growth_history.json").read_text())["events"]] == [2, 5]
    run([*words, "--overwrite", "--save_strategy", "no", "--significance", "1e9"])
    assert not list(tmp_path.glob("checkpoint-*"))
    assert json.loads((tmp_path / "config.json").read_text()).get("per_layer_config") in (None, {})
    printed = capsys.readouterr().out
    assert "Growth: 1 of 2 events fall inside of this training" in printed and "nothing grows" in printed


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--dataset", "nope.csv"], "could not be loaded"),
        (["--model-name-or-path", "checkpoint-3"], "start from checkpoint-3, which lies in"),
        (["--architecture", "llama"], "`architecture` must be one of"),
        (["--event_budget", "1"], "`event_budget=1.0` is below"),
    ],
)
def test_a_model_is_removed_for_no_training_that_does_not_begin(words, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("config.json", "model.safetensors", "README.md", "checkpoint-3/model.safetensors"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("old")
    with pytest.raises(ValueError, match=message):
        run([*options(output_dir=tmp_path, **TINY, **GROWTH, **TRAINING), "--overwrite", *words])
    assert [path.read_text() for path in tmp_path.rglob("*.*") if path.is_file()] == ["old"] * 4


def test_a_stock_checkpoint_starts_with_its_backbone_and_new_labels(tmp_path):
    fields = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 16}
    stock = DeiTForImageClassification(DeiTConfig(**fields, image_size=8, patch_size=4))
    stock.save_pretrained(tmp_path)
    model = build_model(ModelAndDataArguments(model_name_or_path=str(tmp_path)), load_images("digits", max_samples=20))
    assert isinstance(model, SaddleDeiTForImageClassification)
    assert model.config.id2label[3] == "3" and model.config.num_labels == 10
    assert torch.equal(model.deit.layers[0].mlp.fc1.weight, stock.deit.layers[0].mlp.fc1.weight)


def test_a_saddle_checkpoint_starts_as_it_is(tmp_path):
    first = build_model(ModelAndDataArguments(**TINY), load_images("digits", max_samples=20))
    first.save_pretrained(tmp_path)
    again = build_model(ModelAndDataArguments(model_name_or_path=str(tmp_path)), load_images("digits", max_samples=20))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))


def test_an_unknown_architecture_is_refused():
    data = load_images("digits", max_samples=20)
    with pytest.raises(ValueError, match="`architecture` must be one of deit, vit, .* for image-classification"):
        build_model(ModelAndDataArguments(architecture="llama"), data)
    with pytest.raises(ValueError, match="`task` must be one of"):
        ModelAndDataArguments(task="translation")


def test_the_example_runs(tmp_path):
    example = ROOT / "examples" / "grow_image_classifier.py"
    command = [sys.executable, str(example), *options(output_dir=tmp_path, **TINY, **GROWTH, **TRAINING)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "after reloading: 0.0" in done.stdout


_SLOW = """
import time

from hf_saddle import GrowthTrainer
from hf_saddle.demo.run import run

save = GrowthTrainer.save_model


def slowly(self, *given, **named):
    if self.is_world_process_zero():
        time.sleep(5)
    save(self, *given, **named)


GrowthTrainer.save_model = slowly
print(run())
"""


@pytest.mark.distributed
def test_all_processes_wait_for_the_model_that_the_first_one_saves(tmp_path):
    script, launcher = tmp_path / "slow.py", ["-m", "torch.distributed.run", "--nproc_per_node=2"]
    script.write_text(_SLOW)
    words = options(output_dir=tmp_path / "out", **TINY, **GROWTH, **TRAINING, save_strategy="no")
    done = subprocess.run(
        [sys.executable, *launcher, str(script), *words], capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "after reloading: 0.0" in done.stdout


def test_one_class_is_refused(tmp_path):
    (tmp_path / "rows.csv").write_text("text,label\n" + "".join(f"text {index},pos\n" for index in range(40)))
    arguments = ModelAndDataArguments(task="text-classification", dataset=str(tmp_path / "rows.csv"))
    with pytest.raises(ValueError, match=r"two classes at least; the data set \S+rows.csv' has \['pos'\]"):
        build_model(arguments, load_text(arguments.dataset, labelled=True))


@pytest.mark.parametrize(("kind", "positions"), [("bert", 16), ("gpt2", 16), ("roberta", 14), ("llama", None)])
def test_samples_fit_the_positions_of_a_checkpoint(kind, positions, tmp_path):
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    fields = shape | {"vocab_size": 300, "max_position_embeddings": 16, "pad_token_id": 1}
    config = AutoConfig.for_model(kind, **fields)
    task = "causal-lm" if kind in ("gpt2", "llama") else "text-classification"
    (AutoModelForCausalLM if task == "causal-lm" else AutoModelForSequenceClassification).from_config(
        config
    ).save_pretrained(tmp_path)
    splits = load_text("python-docs", labelled=task == "text-classification", max_samples=4)

    def build(block_size: int):
        return build_model(
            ModelAndDataArguments(task=task, model_name_or_path=str(tmp_path), block_size=block_size), splits
        )

    if positions is None:  # rotary
        assert build(128).config.max_position_embeddings == 16
        return
    with pytest.raises(ValueError, match=f"for {positions} tokens, .* `--block-size {positions}`"):
        build(positions + 1)
    with torch.no_grad():
        assert build(positions)(torch.full((1, positions), 7)).logits.isfinite().all()
