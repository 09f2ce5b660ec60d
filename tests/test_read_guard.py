"""The guard bites: what is neither of the repository nor of its environment cannot be read, nor be ignored."""

import os
import pwd
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
import read_guard


ROOT = Path(__file__).parents[1]
HOME = Path(pwd.getpwuid(os.getuid()).pw_dir)  # not that of the run
READS = {
    "open": lambda path: path.open(),
    "read_bytes": Path.read_bytes,
    "os.open": lambda path: os.open(path, os.O_RDONLY),
    "list": os.listdir,
    "scan": os.scandir,
    "sqlite": sqlite3.connect,
}
FORBIDDEN = ("/usr/share/datasets/fashion-mnist/train-images-idx3-ubyte.gz", "/usr/share/dict/words", "/srv/data")


@pytest.mark.parametrize("path", [*map(Path, FORBIDDEN), HOME / ".cache" / "huggingface"], ids=str)
@pytest.mark.parametrize("read", READS.values(), ids=READS)
def test_a_read_elsewhere_is_refused(read, path, reads):
    with pytest.raises(PermissionError, match=f"Tests may not open {path}"):
        read(path)
    assert reads == [str(path)]
    reads.clear()


@pytest.mark.parametrize("read", [READS["open"], READS["os.open"]], ids=["open", "os.open"])
def test_a_link_leads_no_further(read, tmp_path, reads):
    (tmp_path / "link").symlink_to("/srv")
    with pytest.raises(PermissionError, match="Tests may not open"):
        read(tmp_path / "link" / "data")
    assert reads == [str(tmp_path / "link" / "data")]
    reads.clear()


def test_a_process_of_a_test_is_guarded(tmp_path):
    done = subprocess.run([sys.executable, "-c", "open('/srv/data')"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1 and "PermissionError: Tests may not open /srv/data" in done.stderr


@pytest.mark.parametrize("environment", [{}, {"PYTHONPATH": str(ROOT)}], ids=["empty", "other"])
def test_a_process_without_the_guard_is_refused(environment):
    with pytest.raises(PermissionError, match="guarded processes only"):
        subprocess.run([sys.executable, "-c", ""], env=environment)


def test_what_a_test_may_read(tmp_path, reads):
    (tmp_path / "own").write_text("mine")
    for path in (tmp_path / "own", ROOT / "pyproject.toml", Path(os.__file__), Path(pytest.__file__)):
        assert path.read_bytes()
    assert os.listdir(ROOT) and os.listdir(Path.home()) is not None and not reads


def test_the_home_folder_is_an_empty_one_of_the_run():
    names = ("HOME", "HF_HOME", "MPLCONFIGDIR", "XDG_CACHE_HOME")
    assert all(read_guard.is_allowed(os.environ[name]) and "hf_saddle-home-" in os.environ[name] for name in names)
    inside = subprocess.run(
        [sys.executable, "-c", "from huggingface_hub.constants import HF_HOME; print(HF_HOME)"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert inside.stdout.strip() == os.environ["HF_HOME"]


@pytest.mark.thinned(2)
@pytest.mark.parametrize("body", ["Path('/srv/data').read_text()", "suppressed()"], ids=["plain", "caught"])
def test_the_test_that_reads_elsewhere_fails(body, tmp_path):
    """In a run of its own, with the conftest of this run, where one of two tests reads."""
    (tmp_path / "test_it.py").write_text(
        "from contextlib import suppress\nfrom pathlib import Path\n\n"
        "def suppressed():\n    with suppress(OSError):\n        Path('/srv/data').read_text()\n\n"
        f"def test_bad():\n    {body}\n\ndef test_good():\n    assert Path(__file__).read_text()\n"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "conftest", "-p", "no:cacheprovider", "-rfE", "test_it.py"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 1, run.stdout + run.stderr
    assert "/srv/data" in run.stdout and "::test_bad" in run.stdout and "::test_good" not in run.stdout
