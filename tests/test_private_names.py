"""Every private name of another package that hf_saddle uses is listed, still used, and still there."""

import ast
import inspect
import pkgutil
import sys
import textwrap
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from private_names import PRIVATE_NAMES

import hf_saddle
import hf_saddle_cli


OWN = ("hf_saddle", "hf_saddle_cli")
FILES = sorted(path for package in (hf_saddle, hf_saddle_cli) for path in Path(package.__file__).parent.rglob("*.py"))
LISTED = [(owner, name) for owner, names in PRIVATE_NAMES.items() for name in names]


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name != "_"


def stored(tree: ast.AST) -> set[str]:
    """Private names that some code defines: functions, classes, arguments, variables, attributes of `self`."""
    found = set()
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name) | ast.arg(arg=name):
                found.add(name)
            case (
                ast.Name(id=name, ctx=ast.Store()) | ast.Attribute(value=ast.Name("self"), attr=name, ctx=ast.Store())
            ):
                found.add(name)
    return {name for name in found if is_private(name)}


def mentioned(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Private names that some code takes from elsewhere, and their lines; a string may be one for `getattr`."""
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(attr=name) | ast.keyword(arg=str(name)) | ast.Constant(value=str(name)):
                names = [name] if name.isidentifier() else []
            case ast.ImportFrom(module=module, level=0, names=aliases):
                names = [*str(module).split("."), *(alias.name for alias in aliases)]
            case ast.Import(names=aliases):
                names = [part for alias in aliases for part in alias.name.split(".")]
            case _:
                continue
        yield from ((name, node.lineno) for name in names if is_private(name))


def classes() -> Iterator[type]:
    """All classes of hf_saddle."""
    for package in (hf_saddle, hf_saddle_cli):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            for value in vars(import_module(module.name)).values():
                if isinstance(value, type) and value.__module__ == module.name:
                    yield value


@cache
def body(kind: type) -> ast.AST:
    """The source of a class; of one that is not written in Python, an empty one."""
    try:
        return ast.parse(textwrap.dedent(inspect.getsource(kind)))
    except (OSError, TypeError):
        return ast.Module([], [])


def overridden(kind: type) -> set[str]:
    """Private names that a class, or one it derives from here, takes over from one of another package."""
    here, elsewhere = set(), set()
    for base in kind.__mro__:
        package = base.__module__.split(".")[0]
        if package in OWN:
            here |= {name for name in stored(body(base)) if name in vars(base)}
        elif package not in sys.stdlib_module_names:
            elsewhere |= set(vars(base))
    return here & elsewhere


@cache
def used() -> dict[str, list[str]]:
    """Private names of other packages, and the places that use them."""
    trees = {path: ast.parse(path.read_text()) for path in FILES}
    own = set().union(*map(stored, trees.values()))
    found: dict[str, list[str]] = {}
    for path, tree in trees.items():
        for name, line in mentioned(tree):
            if name not in own:
                found.setdefault(name, []).append(f"{path.parents[1].name}/{path.parent.name}/{path.name}:{line}")
    for kind in classes():
        for name in overridden(kind):
            found.setdefault(name, []).append(f"{kind.__module__}.{kind.__qualname__}")
    return found


def has(owner: Any, name: str) -> bool:
    """Whether a module, class or function has a name, as an attribute (of instances, for a class) or an argument."""
    if hasattr(owner, name):
        return True
    if isinstance(owner, type):
        return any(name in of_instances(body(base)) for base in owner.__mro__)
    return callable(owner) and name in inspect.signature(owner).parameters


def of_instances(tree: ast.AST) -> set[str]:
    """Attributes that a class gives its instances only."""
    found = set()
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(value=ast.Name("self"), attr=name, ctx=ast.Store()):
                found.add(name)
            case ast.AnnAssign(target=ast.Name(id=name), value=None):
                found.add(name)
    return found


def test_every_private_name_is_listed():
    listed = {name for _, name in LISTED}
    missing = {name: places for name, places in used().items() if name not in listed}
    assert not missing, (
        "hf_saddle leans on private names that tests/private_names.py does not list. Do without them, or add each "
        f"under the class, module or function that has it: {missing}"
    )


@pytest.mark.parametrize(("owner", "name"), LISTED)
def test_a_private_name_is_still_there(owner, name):
    # Of TRL, which an extra installs.
    package = sys.modules.get(owner.split(".")[0]) or pytest.importorskip(owner.split(".")[0])
    assert name in used(), f"nothing uses `{name}` of {owner} any more; take it out of tests/private_names.py"
    assert has(pkgutil.resolve_name(owner), name), (
        f"{package.__name__} {package.__version__} has no `{name}` in {owner} any more; used in {used()[name]}"
    )


def test_the_scan_sees_every_way_to_use_a_private_name(tmp_path):
    code = "import a._b\nfrom a import _c\nfrom ._d import e\nx._f = g(_h=1)\nNAMES = ('_i', '_j k')\nx._f._k()"
    assert sorted(mentioned(ast.parse(code))) == [
        ("_b", 1),
        ("_c", 2),
        ("_f", 4),
        ("_f", 6),
        ("_h", 4),
        ("_i", 5),
        ("_k", 6),
    ]
    assert not has(hf_saddle.GrowthTrainer, "_save_chekpoint")
