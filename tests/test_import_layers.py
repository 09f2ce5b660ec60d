"""Imports go down only: models stands alone, curvature knows only models."""

import ast
from pathlib import Path

import pytest

import hf_saddle


PACKAGE = Path(hf_saddle.__file__).parent
# What each folder may import from the package.
BELOW = {
    "models": set(),
    "curvature": {"models"},
    "growth": {"models", "curvature", "version"},
    "hub": {"models", "curvature", "growth"},
    "training": {"models", "curvature", "growth", "hub"},
    "demo": {"models", "growth", "training", "hub"},
}
# What folders inside of these may not import, so that each can be read without those after it.
NOT_INSIDE = {
    "curvature/capture": {"curvature.solving"},
    "growth/records": {"growth.surgery", "growth.optimizer", "growth.choice"},
    "growth/surgery": {"growth.choice"},
    "growth/optimizer": {"growth.choice", "growth.records"},
    "training/checks": {"training.resuming"},
}
# Uploaded code may import only what every user of transformers has.
ALONE = {
    "models": {"torch", "transformers", "safetensors", "huggingface_hub"},
    "curvature": {"torch", "numpy", "transformers"},
}
MODULES = sorted(path for folder in BELOW for path in (PACKAGE / folder).rglob("*.py"))


def imports(path: Path) -> set[str]:
    """Absolute names of the modules that a file imports."""
    parents = ["hf_saddle", *path.relative_to(PACKAGE).parent.parts]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = parents[: len(parents) - node.level + 1] if node.level else []
            found.add(".".join([*base, *([node.module] if node.module else [])]))
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_only_layers_below_it(path):
    folder = path.relative_to(PACKAGE).parts[0]
    for name in imports(path):
        if name.startswith("hf_saddle"):
            layer = name.split(".")[1] if "." in name else ""
            assert layer in BELOW[folder] | {folder}, f"{path} imports {name}"


@pytest.mark.parametrize("folder", NOT_INSIDE)
def test_folders_inside_of_a_layer_are_layers_too(folder):
    modules = sorted((PACKAGE / folder).glob("*.py"))
    assert modules
    for path in modules:
        inside = {".".join(name.split(".")[1:3]) for name in imports(path) if name.startswith("hf_saddle.")}
        assert not inside & NOT_INSIDE[folder], f"{path} imports {inside & NOT_INSIDE[folder]}"


@pytest.mark.parametrize("path", [p for p in MODULES if p.relative_to(PACKAGE).parts[0] in ALONE], ids=str)
def test_models_and_curvature_need_few_packages(path):
    folder = path.relative_to(PACKAGE).parts[0]
    standard = {"__future__", *__import__("sys").stdlib_module_names}
    foreign = {name.split(".")[0] for name in imports(path)} - standard - {"hf_saddle"}
    assert foreign <= ALONE[folder], f"{path} imports {foreign - ALONE[folder]}"


def test_uploaded_code_is_flat():
    """`register_for_auto_class` uploads only siblings that are imported as `from .name import …`."""
    for path in (PACKAGE / "models").rglob("*.py"):
        assert path.parent == PACKAGE / "models"
        assert not any(name.startswith("hf_saddle.") and name.count(".") > 2 for name in imports(path))
