"""The documentation: its Python runs, every public name is in the reference, and its commands exist."""

import re
from pathlib import Path

import pytest
import yaml

import hf_saddle
from hf_saddle_cli.app import app


ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs").glob("*.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_on_a_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace: dict = {}
    for number, block in enumerate(re.findall(r"^```python\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)):
        exec(compile(block, f"{page.name} block {number}", "exec"), namespace)


def test_every_public_name_is_in_the_reference():
    pages = "".join(page.read_text() for page in (ROOT / "docs" / "api").glob("*.md"))
    documented = {name.split(".")[-1] for name in re.findall(r"^::: (\S+)$", pages, re.MULTILINE)}
    # The classes of families are made when they are asked for; the page of models says how they are called.
    made = {name for name in hf_saddle.__all__ if name.startswith("Saddle") and not name.endswith("Config")}
    assert "hf_saddle.SaddleLlamaForCausalLM" in pages
    assert set(hf_saddle.__all__) - {"__version__"} - made <= documented


def test_every_command_is_documented():
    text = (ROOT / "docs" / "command-line.md").read_text()
    names = [command.name or command.callback.__name__ for command in app.registered_commands]
    assert re.findall(r"^## hf-saddle (\w+)$", text, re.MULTILINE) == names
    assert set(re.findall(r"^hf-saddle (\w+)", text, re.MULTILINE)) == set(names)


def test_the_citation_is_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == hf_saddle.__version__
    assert {reference["identifiers"][0]["value"] for reference in citation["references"]} >= {"arXiv:2402.12418"}
