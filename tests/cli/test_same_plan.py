"""What `analyze` and a dry run say of an event, and what the event does."""

import re

import pytest
import torch
from transformers import TrainingArguments

from hf_saddle import GrowthConfig, GrowthHistory, growth_event_, plan_event
from hf_saddle.demo.arguments import ModelAndDataArguments
from hf_saddle.demo.job import build_trainer, load_run_data
from hf_saddle.demo.run import run as grow
from hf_saddle.growth import halves, probe_loss
from hf_saddle_cli import main


SMALL = {"image_size": 8, "patch_size": 4, "hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 16}
GROWTH = ["--probe-samples", "512", "--max-growth", "1.3"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model that has learned enough to know where it wants to grow."""
    path = tmp_path_factory.mktemp("ungrown")
    fields = {"max_steps": 60, "learning_rate": 3e-3, "per_device_train_batch_size": 64, "report_to": "none"}
    training = TrainingArguments(str(path), **fields, save_strategy="no", disable_tqdm=True, use_cpu=True)
    arguments = ModelAndDataArguments(**SMALL)
    trainer = build_trainer(arguments, training, load_run_data(arguments, training.seed))
    trainer.train()
    trainer.save_model()
    return path


def told(text: str) -> list[str]:
    """The lines of the linears that grow, and what is predicted."""
    predicted = re.findall(r"predicted -[0-9.]+ ± [0-9.]+ of samples that chose nothing", text)
    return [*re.findall(r"\S+: \d+ of \d+ by \w+", text), *predicted]


def test_analyze_a_dry_run_and_the_event_say_the_same(folder, tmp_path, capsys):
    with pytest.raises(SystemExit) as exit:
        main(["analyze", str(folder), "digits", *GROWTH])
    assert not exit.value.code
    analyzed = told(capsys.readouterr().out)
    # Without a learning rate the model of the event is that of the folder.
    words = ["--model-name-or-path", str(folder), "--learning-rate", "0", "--max-steps", "10", *GROWTH]
    words += ["--output-dir", str(tmp_path / "run"), "--per-device-train-batch-size", "64", "--use-cpu"]
    assert told(grow([*words, "--dry-run"])) == analyzed
    capsys.readouterr()
    grow(words)
    first = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("Growth event 1 "))
    event = GrowthHistory.load(tmp_path / "run" / "growth_history.json").events[0]
    grown = "{linear}: {chosen} of {candidates} by {operator}"
    assert [*(grown.format(**layer) for layer in event.layers), *told(first)] == analyzed and len(analyzed) > 2
    error = analyzed[-1].split()[3]
    assert float(error) == pytest.approx(event.predicted_error, rel=0.05)
    measured, places = event.loss_after - event.loss_before, len(error) - len("0.")
    assert f", measured {measured:+.{places}f} (probe loss {event.loss_before:.4f} → {event.loss_after:.4f})" in first


def test_the_losses_of_an_event_are_measured_on_the_same_batches(folder):
    """Also of a loss whose mean over batches depends on them."""
    arguments = ModelAndDataArguments(model_name_or_path=str(folder))
    training = TrainingArguments(str(folder), use_cpu=True, report_to="none")
    trainer = build_trainer(arguments, training, load_run_data(arguments, 1))
    model, data = trainer.model, trainer.train_dataset
    batches = [data[start : start + 64] for start in range(0, 512, 64)]

    asked = []

    def loss(model, batch):
        asked.append(len(batch["labels"]))
        return model(**batch).loss * len(batch["labels"]) ** 0.5

    measured = [batch for half in halves(batches) for batch in half]
    before = probe_loss(model, measured, loss)
    asked.clear()
    event = growth_event_(model, None, batches, GrowthConfig(max_growth=1.3), loss=loss)
    # Directions or the trial, scores, and the loss afterwards; the trial took one step.
    assert sum(asked) == 3 * 512 and set(asked) == {32}
    assert event.layers and event.loss_before == pytest.approx(before, rel=1e-6)
    assert event.loss_after == pytest.approx(probe_loss(model, measured, loss), rel=1e-6)


def test_a_planned_event_is_that_of_the_loop_and_leaves_the_model(folder):
    arguments = ModelAndDataArguments(model_name_or_path=str(folder))
    training = TrainingArguments(str(folder), use_cpu=True, report_to="none")
    trainer = build_trainer(arguments, training, load_run_data(arguments, 1))
    model, data = trainer.model, trainer.train_dataset
    batches = [data[start : start + 64] for start in range(0, 512, 64)]
    before, drawn = {name: value.clone() for name, value in model.state_dict().items()}, torch.random.get_rng_state()
    plan = plan_event(model, batches, GrowthConfig(max_growth=1.3))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert torch.equal(drawn, torch.random.get_rng_state()) and model.growth_history is None
    event = growth_event_(model, None, batches, GrowthConfig(max_growth=1.3))
    planned = {(growth.linear, growth.operator): list(growth.neurons) for growth in plan.growths}
    assert planned == {(layer["linear"], layer["operator"]): layer["neurons"] for layer in event.layers} and planned
    assert event.parameters_after - event.parameters_before == plan.parameters
    assert (event.predicted_gain, event.predicted_error) == (plan.predicted_gain, plan.predicted_error)
