"""An audit hook: what a bare machine lacks, such as a data set or a cache in the home folder, cannot be opened."""

import mimetypes
import os
import site
import sys
import sysconfig
import tempfile
from collections.abc import Mapping
from pathlib import Path


ROOT = Path(__file__).parents[1]
# Where the standard library and matplotlib look on any machine, and do without what is not there.
SYSTEM = (
    "/dev",
    "/proc",
    "/sys",
    "/etc/os-release",
    "/etc/ssl",
    "/usr/lib/os-release",
    "/usr/lib/ssl",
    "/usr/share/zoneinfo",
)
MIME_TYPES = mimetypes.knownfiles
FONTS = (
    "/usr/share/fonts",
    "/usr/local/share/fonts",
    "/usr/X11/lib/X11/fonts",
    "/usr/X11R6/lib/X11/fonts",
    "/usr/lib/openoffice/share/fonts",
    "/Library/Fonts",
    "/System/Library/Fonts",
)

# Has a `sitecustomize.py`, by which the guard starts in every Python that has this folder on its path.
CHILDREN = str(Path(__file__).parent)

reads: list[str] = []
_allowed: set[str] = set()
_active = False


def start() -> None:
    """
    From now on, refuse to open files or to list folders outside of [`allow`]ed ones, and note it in `reads`. The same
    holds in processes started from here, whose reads are refused but not noted; `PYTHONPATH` takes it there.
    """
    global _active
    if _active:
        return
    os.environ["PYTHONPATH"] = with_guard(*filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep)))
    # Not `sys.base_prefix`, which is /usr where the system's Python is used.
    python = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib", "scripts")]
    environment = [sys.prefix] if sys.prefix != sys.base_prefix else []
    packages = [*site.getsitepackages(), *filter(None, map(os.path.abspath, sys.path))]
    allow(ROOT, tempfile.gettempdir(), *python, *environment, *packages, *SYSTEM, *MIME_TYPES, *FONTS)
    _active = True
    sys.addaudithook(_hook)


def stop() -> None:
    """Let files be opened again, as a hook cannot be removed."""
    global _active
    _active = False


def allow(*folders: str | Path) -> None:
    """Let what lies in folders be opened."""
    for folder in folders:
        _allowed.update((os.path.abspath(folder), os.path.realpath(folder)))


def with_guard(*folders: str | Path) -> str:
    """The value of `PYTHONPATH` for a process of a test: it is guarded, and imports from folders."""
    others = [str(folder) for folder in folders if str(folder) != CHILDREN]
    return os.pathsep.join([CHILDREN, *others])


def is_allowed(path: str) -> bool:
    """Whether a path may be opened: neither it nor what its links lead to lies outside."""
    return all(
        any(path == folder or path.startswith(folder.rstrip(os.sep) + os.sep) for folder in _allowed)
        for path in {path, os.path.realpath(path)}
    )


def _hook(event: str, arguments: tuple) -> None:
    """What C++, Rust and other programs open by themselves is not seen."""
    if _active and event == "subprocess.Popen":
        _check_child(arguments[3])
    if not _active or event not in ("open", "os.listdir", "os.scandir", "sqlite3.connect"):
        return
    if not isinstance(arguments[0], str | bytes | os.PathLike):  # a descriptor, or the working directory
        return
    path = os.path.abspath(os.fsdecode(arguments[0]))
    if not is_allowed(path):
        reads.append(path)
        raise PermissionError(f"Tests may not open {path}: it is neither of the repository nor of its environment.")


def _check_child(environment: Mapping[str, str] | None) -> None:
    path = (os.environ if environment is None else environment).get("PYTHONPATH", "")
    if path.split(os.pathsep)[0] != CHILDREN:
        raise PermissionError("Tests may start guarded processes only: `PYTHONPATH` is to be `with_guard(…)`.")
