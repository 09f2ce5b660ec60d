"""What is loaded when: the library without its extras, the command without the library, and what is said for want."""

import json
import logging
import subprocess
import sys

import pytest

import hf_saddle
from hf_saddle.demo.data import load_images
from hf_saddle.hub import save_pictures, write_model_card
from hf_saddle.hub.pictures import drawing as pictures
from hf_saddle.training import GrowthTrainer
from hf_saddle_cli import main


EXTRAS = {"matplotlib", "typer", "rich", "sklearn", "evaluate", "datasets"}


def loaded_after(code: str) -> set[str]:
    """The packages that a new process has loaded after some code."""
    code += "\nimport json, sys\nprint(json.dumps(list(sys.modules)), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    return {name.split(".")[0] for name in json.loads(done.stderr.splitlines()[-1])}


def test_the_library_loads_no_extra_and_its_models_are_known(deit, tmp_path):
    deit.save_pretrained(tmp_path)
    code = f"""
import hf_saddle, json, sys
early = {{name.split(".")[0] for name in sys.modules}} & {EXTRAS}
assert not early, early
assert not any(name in sys.modules for name in ("hf_saddle.curvature", "hf_saddle.growth", "hf_saddle.training"))
from transformers import AutoModel, AutoModelForImageClassification
model = AutoModelForImageClassification.from_pretrained({str(tmp_path)!r})
assert type(model) is hf_saddle.SaddleDeiTForImageClassification
assert type(AutoModel.from_config(model.config)) is hf_saddle.SaddleDeiTModel
assert hf_saddle.growth.GrowthConfig is hf_saddle.GrowthConfig
"""
    assert not loaded_after(code) & (EXTRAS - {"datasets"})


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["analyze", "--help"], ["fly"]], ids=" ".join)
def test_the_command_explains_itself_without_the_library(arguments):
    code = f"from hf_saddle_cli import main\ntry: main({arguments})\nexcept SystemExit: pass"
    assert not loaded_after(code) & {"torch", "transformers", "hf_saddle", "huggingface_hub", "numpy"}


def test_every_public_name_is_listed_and_found():
    assert set(hf_saddle.__all__) <= set(dir(hf_saddle))
    assert hf_saddle.GrowthTrainer is GrowthTrainer
    with pytest.raises(AttributeError, match="'hf_saddle' has no attribute 'GrowthTeacher'"):
        _ = hf_saddle.GrowthTeacher


@pytest.fixture
def without(monkeypatch):
    """Make packages look as if they were not installed."""
    pictures.can_draw.cache_clear()
    yield lambda *names: [monkeypatch.setitem(sys.modules, name, None) for name in names]
    pictures.can_draw.cache_clear()


def test_a_card_goes_without_pictures_where_matplotlib_is_missing(without, deit, tmp_path, caplog):
    without("matplotlib")
    with caplog.at_level(logging.WARNING, "hf_saddle"):
        text = write_model_card(tmp_path, deit).read_text()
        write_model_card(tmp_path, deit)
    assert [record.message.split(":")[0] for record in caplog.records] == ["Model cards are written without pictures"]
    assert "hf_saddle[plots]" in caplog.text
    assert "## " in text and "pictures/" not in text
    assert not (tmp_path / "pictures").exists()


def test_a_picture_that_is_asked_for_names_the_extra(without, tmp_path, capsys):
    without("matplotlib")
    with pytest.raises(ImportError, match=r"hf_saddle\[plots\]"):
        save_pictures(tmp_path, None)
    with pytest.raises(SystemExit, match="1"):
        main(["analyze", str(tmp_path), "digits", "--picture", "report.png"])
    assert "hf_saddle[plots]" in capsys.readouterr().err


def test_the_command_and_the_digits_name_their_extras(without):
    without("typer", "sklearn", "sklearn.datasets")
    with pytest.raises(SystemExit, match=r"hf_saddle\[cli\]"):
        main(["--help"])
    with pytest.raises(ImportError, match=r"hf_saddle\[demo\]"):
        load_images("digits")
