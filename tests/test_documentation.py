"""Every Python block of the README runs, in order, as a reader would run them; public names have docstrings."""

import re
from pathlib import Path

import pytest

import hf_saddle


README = Path(__file__).parents[1] / "README.md"


def test_readme_blocks_run(tmp_path, monkeypatch):
    blocks = re.findall(r"^```python\n(.*?)^```", README.read_text(), re.DOTALL | re.MULTILINE)
    assert blocks
    monkeypatch.chdir(tmp_path)
    namespace: dict = {}
    for number, block in enumerate(blocks):
        exec(compile(block, f"README.md block {number}", "exec"), namespace)


@pytest.mark.parametrize("name", hf_saddle.__all__)
def test_public_names_are_documented(name):
    member = getattr(hf_saddle, name)
    assert isinstance(member, str) or (member.__doc__ and not member.__doc__.startswith(f"{name}("))
