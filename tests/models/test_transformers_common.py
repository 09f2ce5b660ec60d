"""Growable models pass transformers' own common tests, which come with the source of the installed version."""

import os
import subprocess
import sys
import tarfile
from pathlib import Path
from xml.etree import ElementTree

import pytest
import transformers
from read_guard import with_guard


pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

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
MINIMUM = 90
CASES = [
    "StockDeiTTest",
    "SaddleDeiTUngrownTest",
    "SaddleDeiTGrownGainTest",
    "SaddleDeiTGrownResidualPairTest",
    "SaddleDeiTGrownResidualTest",
    "StockViTTest",
    "SaddleViTUngrownTest",
    "SaddleViTGrownGainTest",
]


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


@pytest.mark.parametrize("case", CASES)
def test_common(case, upstream, tmp_path, record_property):
    here = Path(__file__).parent
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    report = tmp_path / "report.xml"
    paths = [str(upstream), str(here), str(here.parents[1])]
    result = subprocess.run(
        [sys.executable, "-m", "pytest", str(here / "transformers_common.py"), "-k", case, "-c", "pytest.ini"]
        + [
            "--rootdir",
            ".",
            "--noconftest",
            "-q",
            "-p",
            "no:cacheprovider",
            "--junitxml",
            str(report),
            "-W",
            "ignore",
        ],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": with_guard(*paths)},
        capture_output=True,
        text=True,
        timeout=800,
    )
    assert report.exists(), result.stdout + result.stderr
    # Sub-tests are cases of their own in the report, under the name of their test.
    outcomes: dict[str, set[str]] = {}
    for found in ElementTree.parse(report).iter("testcase"):
        kinds = {child.tag for child in found} & {"failure", "error", "skipped"} or {"passed"}
        outcomes.setdefault(found.get("name"), set()).update(kinds)
    failed = [name for name, kinds in outcomes.items() if kinds & {"failure", "error"}]
    passed = [name for name, kinds in outcomes.items() if "passed" in kinds and name not in failed]
    skipped = len(outcomes) - len(failed) - len(passed)
    print(f"{case}: {len(passed)} passed, {skipped} skipped, {len(failed)} failed")
    record_property("counts", {"passed": len(passed), "skipped": skipped, "failed": len(failed)})
    assert not failed, result.stdout
    assert result.returncode == 0, result.stdout
    assert len(passed) >= MINIMUM, result.stdout
