"""Growable models pass transformers' own common tests, which come with the source of the installed version."""

import os
import subprocess
import sys
import tarfile
from collections.abc import Collection
from pathlib import Path
from xml.etree import ElementTree

import pytest
import transformers
from read_guard import with_guard
from upstream_cases import DIFFERENCES, ROWS, UNITS, VARIANTS


CACHE = Path(__file__).parents[2] / ".cache"
COMMON = ("test_modeling_common.py", "test_configuration_common.py")
# What the common tests import and the source distribution lacks.
ABSENT = {
    "exporters/test_export.py": "class ExportTesterMixin:\n    pass\n",
    "generation/test_utils.py": "class GenerationTesterMixin:\n    pass\n",
    "utils/test_configuration_utils.py": (
        "config_common_kwargs = {'return_dict': False, 'output_hidden_states': True, 'dtype': 'float16', "
        "'chunk_size_feed_forward': 5, 'architectures': ['SomeModel'], 'id2label': {0: 'label'}, "
        "'label2id': {'label': 0}, 'problem_type': 'regression'}\n"
    ),
}
MINIMUM = 60
# Families whose kinds of models differ most, and tests of what growable models do themselves, for a quick look.
QUICK = ("llama", "resnet")
OWN = "config or init or load or save or tied or training or hidden_states or batching"


def pip(*arguments: str) -> None:
    # Isolated, so also of the guard: pip reads its settings and caches where the machine has them.
    command = [sys.executable, "-I", "-m", "pip", *arguments, "--quiet", "--no-deps", "--disable-pip-version-check"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    if result.returncode:
        pytest.skip(f"cannot fetch transformers' tests: {(result.stderr.strip().splitlines() or ['no reason'])[-1]}")


@pytest.fixture(scope="session")
def upstream(tmp_path_factory) -> Path:
    """A folder on the import path with transformers' common tests as the package `upstream`."""
    folder = CACHE / f"transformers-{transformers.__version__}-tests"
    if folder.exists():
        return folder
    CACHE.mkdir(parents=True, exist_ok=True)
    work = tmp_path_factory.mktemp("fetch")
    pip("download", f"transformers=={transformers.__version__}", "--no-binary", "transformers", "--dest", str(work))
    pip("install", "parameterized>=0.9", "--target", str(work / "tree"))
    package = work / "tree" / "upstream"
    for name, text in ABSENT.items():
        (package / name).parent.mkdir(parents=True)
        (package / name).write_text(text)
        (package / name).with_name("__init__.py").touch()
    (package / "__init__.py").touch()
    with tarfile.open(next(work.glob("transformers-*.tar.gz"))) as archive:
        root = archive.getnames()[0].split("/")[0]
        for name in COMMON:
            (package / name).write_bytes(archive.extractfile(f"{root}/tests/{name}").read())
    work = (work / "tree").rename(work / folder.name)
    try:
        work.rename(folder)
    except OSError:  # another file system, or another process was first
        return work
    return folder


def run(row: str, variants: Collection[str], tests: str, upstream: Path, folder: Path) -> dict[str, dict[str, str]]:
    """The outcome of every test of a row of the table, for each kind of models."""
    here = Path(__file__).parent
    root = here.parents[1]
    (folder / "pytest.ini").write_text("[pytest]\n")
    chosen = [f"{here / 'transformers_common.py'}::{row}_{variant}" for variant in variants]
    options = ["-k", tests, "-c", "pytest.ini", "--rootdir", str(root), "--confcutdir", str(root), "--noconftest"]
    result = subprocess.run(
        [sys.executable, "-m", "pytest", *chosen, *options]
        + ["-q", "-p", "no:cacheprovider", "--junitxml", "report.xml", "-W", "ignore"],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": with_guard(str(upstream), str(here), str(root))},
        capture_output=True,
        text=True,
        timeout=1700,
    )
    print(result.stdout)
    assert (folder / "report.xml").exists(), result.stdout + result.stderr
    outcomes: dict[str, dict[str, str]] = {variant: {} for variant in variants}
    for case in ElementTree.parse(folder / "report.xml").iter("testcase"):
        variant = case.get("classname").rpartition("_")[2]
        found = {child.tag for child in case}
        outcome = "failed" if found & {"failure", "error"} else "skipped" if "skipped" in found else "passed"
        # Sub-tests are cases of their own in the report, under the name of their test.
        known = outcomes[variant].get(case.get("name"), "skipped")
        outcomes[variant][case.get("name")] = min(known, outcome, key=("failed", "passed", "skipped").index)
    return outcomes


def check(outcomes: dict[str, dict[str, str]], row: str, whole: bool) -> None:
    """The growable models pass what the stock ones pass, and differ nowhere else, but for what has a reason."""
    stock = outcomes.pop("Stock")
    named = {name for name, (_, rows) in DIFFERENCES.items() if row in rows}
    expected = named if whole else named & stock.keys()
    for variant, own in outcomes.items():
        counts = {kind: sum(outcome == kind for outcome in own.values()) for kind in ("passed", "skipped", "failed")}
        print(row, variant, counts)
        assert own.keys() == stock.keys()
        assert {name for name in own if own[name] != stock[name]} == expected, variant
        assert not whole or counts["passed"] >= MINIMUM


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("row", QUICK)
def test_growable_models_do_as_stock(row, upstream, tmp_path):
    check(run(row, VARIANTS, OWN, upstream, tmp_path), row, whole=False)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("row", ROWS)
def test_growable_models_pass_what_stock_passes(row, upstream, tmp_path):
    check(run(row, VARIANTS, "test", upstream, tmp_path), row, whole=True)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_other_kinds_of_units_pass_what_stock_passes(upstream, tmp_path):
    check(run("deit", ["Stock", *UNITS], "test", upstream, tmp_path), "deit", whole=True)
