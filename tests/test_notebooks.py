"""The notebooks run from top to bottom on tiny settings, and are kept without outputs."""

import json
from pathlib import Path

import pytest

from hf_saddle import GrowthHistory


FOLDER = Path(__file__).parents[1] / "examples" / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
# What takes the place of the settings in the cell that is tagged `parameters`, as papermill does.
TINY = {
    "grow_an_image_classifier": {"steps": 50, "seeds": 1, "at": [0.25], "max_samples": 200, "probe_samples": 200},
    "grow_a_language_model": {"steps": 10, "block_size": 16, "max_samples": 40, "probe_samples": 32},
}
SAID = {"grow_an_image_classifier": "growth − no growth", "grow_a_language_model": "computes the same: True"}


def cells(notebook: Path) -> list[dict]:
    return [cell for cell in json.loads(notebook.read_text())["cells"] if cell["cell_type"] == "code"]


def test_every_notebook_is_known():
    assert {notebook.stem for notebook in NOTEBOOKS} == set(TINY)


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_have_no_outputs(notebook):
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells(notebook))


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_run(notebook, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    namespace: dict = {}
    for number, cell in enumerate(cells(notebook)):
        exec(compile("".join(cell["source"]), f"{notebook.name} cell {number}", "exec"), namespace)
        if "parameters" in cell["metadata"].get("tags", []):
            assert set(TINY[notebook.stem]) <= set(namespace)
            namespace |= TINY[notebook.stem]
    printed = capsys.readouterr().out
    assert SAID[notebook.stem] in printed
    assert list(tmp_path.glob("outputs/*/model.safetensors"))
    assert any(event.layers for event in GrowthHistory.from_model(namespace["trainer"].model).events)
