"""What is logged of growth: sizes, budget, candidates and time, at the start, at events and at the end."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from training_cases import Images, growth, train
from transformers import Trainer, TrainerState
from transformers.integrations import TensorBoardCallback, TrackioCallback, WandbCallback

from hf_saddle.growth import count_macs, count_parameters
from hf_saddle.training.artefacts import share_artefacts


@pytest.mark.parametrize("trainer_class", [Trainer, None])
def test_sizes_budget_and_time_are_logged_from_start_to_end(tmp_path, trainer_class):
    fields = {} if trainer_class is None else {"trainer_class": trainer_class}
    trainer = train(tmp_path, growth(significance=0.0), **fields)
    entries = [entry for entry in trainer.state.log_history if "growth_parameters" in entry]
    assert [entry["step"] for entry in entries] == [0, 3, 6, 9, 12]
    used = [entry["growth_budget_used"] for entry in entries]
    assert used[0] == 0.0 and used == sorted(used) and 0.98 < used[-1] <= 1.0
    assert entries[-1]["growth_parameters"] == count_parameters(trainer.model)
    assert entries[-1]["growth_macs"] == count_macs(trainer.model)
    assert entries[-1]["growth_events"] == 3
    for entry, event in zip(entries[1:4], trainer.model.growth_history["events"], strict=True):
        chosen = {name.removeprefix("growth_chosen_"): n for name, n in entry.items() if "growth_chosen_" in name}
        assert sum(chosen.values()) == entry["growth_neurons"] > 0
        assert {name: entry[f"growth_candidates_{name}"] for name in chosen} == event["candidates"]
        assert all(chosen[name] <= count for name, count in event["candidates"].items())
    assert 0 < entries[-1]["growth_time_share"] < 1


def test_every_entry_says_how_long_the_training_took_until_then(tmp_path):
    saving = {"save_strategy": "steps", "save_steps": 4}
    trainer = train(tmp_path / "a", growth(), eval_dataset=Images(16), **saving)
    trainer.evaluate()
    assert "training_seconds" not in trainer.state.log_history.pop()
    clock = [entry["training_seconds"] for entry in trainer.state.log_history]
    assert len(clock) == len(trainer.state.log_history) and clock == sorted(clock) and clock[0] >= 0
    resumed = train(tmp_path / "b", growth(), f"{tmp_path}/a/checkpoint-8")
    entries = resumed.state.log_history
    before = [entry["training_seconds"] for entry in entries if entry["step"] <= 8 and "growth_events" not in entry]
    after = [entry["training_seconds"] for entry in entries if entry["step"] > 8]
    assert max(before) < min(after)


class Writer:
    """Keeps what a `SummaryWriter` is given."""

    def __init__(self):
        self.texts, self.images, self.scalars = {}, {}, {}

    def add_text(self, name, text, step=None):
        self.texts[name] = text

    def add_image(self, name, image, step, dataformats):
        self.images[name] = (image.shape, step, dataformats)

    def add_scalar(self, name, value, step):
        self.scalars.setdefault(name, []).append((step, value))

    def flush(self):
        pass

    close = flush


class Board(TensorBoardCallback):
    """TensorBoard's callback with a writer that writes nothing."""

    def __init__(self):
        self.tb_writer, self.logging_dir, self.kept = Writer(), "unused", None
        self.kept = self.tb_writer


def test_tensorboard_sees_numbers_picture_and_history(tmp_path):
    board = Board()
    # Reporters are called before the callbacks of the user, as Trainer puts them.
    trainer = train(tmp_path, growth(), callbacks=[board], eval_dataset=Images(16), max_steps=10)
    kept = board.kept
    assert [step for step, _ in kept.scalars["train/growth_parameters"]] == [0, 3, 6, 9, 10]
    assert [step for step, _ in kept.scalars["train/growth_time_share"]] == [3, 6, 9, 10]
    (height, width, channels), step, order = kept.images["growth/architecture"]
    assert (channels, step, order) == (3, 10, "HWC") and min(height, width) > 300
    assert f"{count_parameters(trainer.model):,}" in kept.texts["growth/history"]


def test_other_reporters_get_what_they_keep(tmp_path, monkeypatch):
    trainer = train(tmp_path, growth(at=[3]), max_steps=5)
    seen = {}

    class Artifact:
        def __init__(self, name, type):
            self.name, self.type = name, type

        def add_file(self, path):
            seen["history"] = json.loads(Path(path).read_text())

    wandb = SimpleNamespace(
        log=lambda values: seen.update(wandb=values),
        Image=str,
        Artifact=Artifact,
        log_artifact=lambda artifact: seen.update(artifact=(artifact.name, artifact.type)),
        run=SimpleNamespace(id="r1"),
    )
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    trackio = SimpleNamespace(log=lambda values: seen.update(trackio=values), Image=str)
    monkeypatch.setitem(sys.modules, "trackio", trackio)
    reporters = [WandbCallback.__new__(WandbCallback), TrackioCallback.__new__(TrackioCallback)]
    share_artefacts(reporters, trainer.model, TrainerState(global_step=5))
    assert seen["artifact"] == ("growth-history-r1", "growth_history")
    assert seen["history"] == trainer.model.growth_history
    assert seen["wandb"]["growth/architecture"].endswith(".png") and "growth/architecture" in seen["trackio"]
