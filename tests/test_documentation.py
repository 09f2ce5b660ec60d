"""Every Python block of the README runs, in order, as a reader would run them; public names have docstrings."""

import re
from pathlib import Path

import pytest

import hf_saddle


ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"


def test_readme_blocks_run(tmp_path, monkeypatch):
    blocks = re.findall(r"^```python\n(.*?)^```", README.read_text(), re.DOTALL | re.MULTILINE)
    assert blocks
    monkeypatch.chdir(tmp_path)
    namespace: dict = {}
    for number, block in enumerate(blocks):
        exec(compile(block, f"README.md block {number}", "exec"), namespace)


@pytest.mark.parametrize(("page", "folder"), [("docs/architecture.md", "hf_saddle"), ("CONTRIBUTING.md", "")])
def test_files_that_a_page_for_developers_names_exist(page, folder):
    named = set(re.findall(r"(?<![\w/<>_])(?:\w+/)+\w+\.(?:py|md)", (ROOT / page).read_text()))
    assert len(named) > 10
    assert [path for path in sorted(named) if not any((ROOT / base / path).is_file() for base in ("", folder))] == []


@pytest.mark.parametrize("name", hf_saddle.__all__)
def test_public_names_are_documented(name):
    member = getattr(hf_saddle, name)
    assert isinstance(member, str) or (member.__doc__ and not member.__doc__.startswith(f"{name}("))
