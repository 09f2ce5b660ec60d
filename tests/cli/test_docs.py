"""The documentation: its Python runs, every public name is in the reference, and its commands exist."""

import re
from dataclasses import fields
from pathlib import Path

import pytest
import yaml
from transformers import TrainingArguments
from typer.main import get_command

import hf_saddle
from hf_saddle import GrowthConfig
from hf_saddle.demo.arguments import ModelAndDataArguments
from hf_saddle.demo.compare import ComparisonArguments
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


def options_of(command: str) -> set[str]:
    """The names of a command's options, with hyphens."""
    own = {name for parameter in get_command(app).commands[command].params for name in parameter.opts}
    kinds = {"grow": PROGRAM, "compare": [*PROGRAM, ComparisonArguments], "analyze": [GrowthConfig]}.get(command, [])
    fields_ = [item.name for kind in kinds for item in fields(kind) if item.init]
    more = ["preset", "config", "help"] if kinds else ["help"]
    return own | {f"--{name.replace('_', '-')}" for name in (*fields_, *more)}


PROGRAM = [ModelAndDataArguments, GrowthConfig, TrainingArguments]
COMMAND = re.compile(r"hf-saddle (\w+)((?: [^\n`#|]*)?)")


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=lambda page: page.name)
def test_options_of_commands_on_a_page_exist(page):
    commands = {command.name or command.callback.__name__ for command in app.registered_commands}
    for command, rest in COMMAND.findall(page.read_text()):
        if command in commands:
            named = {f"--{name.replace('_', '-')}" for name in re.findall(r"(?<!\S)--([a-z][\w-]*)", rest)}
            assert named <= options_of(command), f"hf-saddle {command}{rest}"


# Of other programs: scripts that a span begins with, and `benchmarks/paper_scale`. Any option is `--name`.
SCRIPTS = re.compile("make|torchrun|examples/|benchmarks/|python")
OTHERS = {"--version", "--name", "--augmentation", "--nnodes"}


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=lambda page: page.name)
def test_options_in_the_text_of_a_page_exist(page):
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    spans = " ".join(span for span in re.findall(r"`([^`\n]+)`", text) if not SCRIPTS.match(span))
    named = {f"--{name.replace('_', '-')}" for name in re.findall(r"(?<!\S)--([a-z][\w-]*)", spans)}
    commands = [command.name or command.callback.__name__ for command in app.registered_commands]
    assert named - OTHERS <= set().union(*map(options_of, commands))


def test_the_options_that_a_page_recommends_are_those_of_a_growth_config():
    table = (ROOT / "docs" / "choosing.md").read_text().partition("## Which options, which value")[2]
    named = [name for row in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)]
    assert set(named) <= {item.name for item in fields(GrowthConfig)} and len(named) > 8
