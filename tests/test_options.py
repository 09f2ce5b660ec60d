"""Options of the demo: presets below a file below the command line, `None`, and folders that have a model already."""

import pytest
from transformers import TrainingArguments

from hf_saddle import GrowthConfig
from hf_saddle.demo.arguments import ModelAndDataArguments
from hf_saddle.demo.options import PRESETS, parse
from hf_saddle.demo.used import begin_anew, check_overwrite, is_used
from hf_saddle.growth import PaperGrowthConfig


def read(*words, **defaults):
    """Growth and training of a command line."""
    return parse([GrowthConfig, TrainingArguments], [*words, "--use-cpu"], defaults)


def test_presets_are_values_that_all_else_overrides(tmp_path):
    growth, training = read("--preset", "paper")
    assert growth == GrowthConfig.paper() and training.num_train_epochs == 300
    growth, training = read("--preset=paper", "--at", "0.1", "0.5", "--num-train-epochs", "4")
    assert isinstance(growth, PaperGrowthConfig) and growth.at == [0.1, 0.5] and growth.quotas
    assert training.num_train_epochs == 4
    assert read("--preset", "early")[0] == GrowthConfig(at=[0.1])
    growth, training = read("--preset", "finetune", learning_rate=2e-3)
    assert training.learning_rate == 5e-5 and growth.max_growth == 1.1
    assert read("--preset", "finetune", "--max-parameters", "9009")[0] == GrowthConfig(max_parameters=9009)
    assert read("--preset", "paper", "--at", "3", "13", "--unit", "steps")[0].unit == "steps"


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_can_be_meant(preset):
    assert read("--preset", preset)[0].at


def test_a_file_lies_between_preset_and_command_line(tmp_path):
    file = tmp_path / "options.yaml"
    file.write_text(
        "preset: early\nlearning-rate: 1e-3\nat: [0.2, 0.3]\nmax_growth: null\nevent_budget: 500\nseed: 3\n"
    )
    growth, training = read("--config", file.as_posix(), "--seed", "4")
    assert growth == GrowthConfig(at=[0.2, 0.3], max_growth=None, event_budget=500)
    assert (training.learning_rate, training.seed) == (1e-3, 4)
    assert read("--config", file.as_posix(), "--at", "0.4")[0].at == [0.4]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learning_rat: 1", "unknown options: learning_rat .did you mean --learning-rate"),
        ("[1, 2]", "must map names"),
        ("a: [", "no YAML"),
        ("preset: luck", "`preset` must be one of"),
    ],
)
def test_a_file_that_cannot_be_meant_is_refused(tmp_path, text, message):
    (tmp_path / "options.yaml").write_text(text)
    with pytest.raises(ValueError, match=message):
        read("--config", f"{tmp_path}/options.yaml")


@pytest.mark.parametrize("words", [["--max-growth", "None"], ["--max_growth=None"], ["--max_growth", "None"]])
def test_none_empties_an_option(words):
    assert read(*words, "--event-budget", "5")[0] == GrowthConfig(max_growth=None, event_budget=5)
    assert read("--at", "None")[0] == GrowthConfig()


@pytest.mark.parametrize(
    "words", [["--learning-rat", "1"], ["--max-step", "5"], ["word"], ["--step-size", "None"], ["--seed", "x"]]
)
def test_what_is_unknown_exits_with_2(words, capsys):
    with pytest.raises(SystemExit, match="2"):
        read(*words)
    assert capsys.readouterr().err


def test_a_used_folder_is_refused_or_cleared_of_what_a_training_wrote(tmp_path):
    assert not is_used(tmp_path) and not is_used(tmp_path / "nowhere")
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "accuracy.png").write_text("old")
    assert not is_used(tmp_path)
    for name in ("config.json", "model-00001-of-00002.safetensors", "README.md", "growth_history.json"):
        (tmp_path / name).write_text("x")
    (tmp_path / "checkpoint-7").mkdir()
    (tmp_path / "checkpoint-7" / "model.safetensors").write_text("x")
    assert is_used(tmp_path)
    with pytest.raises(ValueError, match="--resume-from-checkpoint last.*--overwrite"):
        check_overwrite(tmp_path, False, None)
    for source in (tmp_path, tmp_path / "checkpoint-7", tmp_path / ".." / tmp_path.name):
        with pytest.raises(ValueError, match="start from .*, which lies in .*`--overwrite` removes"):
            check_overwrite(tmp_path, True, str(source))
    for source in (None, tmp_path.parent, tmp_path / "no" / "folder"):  # the last may be a name on the Hub
        check_overwrite(tmp_path, True, None if source is None else str(source))
    assert (tmp_path / "checkpoint-7").is_dir()
    begin_anew(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(
    ("name", "value", "task"),
    [
        ("max_samples", 0, "image-classification"),
        ("max_samples", -5, "causal-lm"),
        ("hidden_size", 0, "image-classification"),
        ("num_attention_heads", 0, "text-classification"),
        ("block_size", 0, "text-classification"),
        ("block_size", 1, "causal-lm"),
    ],
)
def test_sizes_of_nothing_are_refused(name, value, task):
    with pytest.raises(
        ValueError, match=f"`{name}` must be at least {2 if task == 'causal-lm' and value == 1 else 1} "
    ):
        ModelAndDataArguments(task=task, **{name: value})
    assert ModelAndDataArguments(task="text-classification", block_size=1, max_samples=1).max_samples == 1
