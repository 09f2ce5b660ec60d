"""What `dist/` holds is what it should, and the README's blocks run from the installed wheel: `… PYTHON` of it."""

import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path


ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("hf_saddle", "hf_saddle_cli")
PACKAGE = {
    path.relative_to(ROOT).as_posix()
    for name in PACKAGES
    for path in (ROOT / name).rglob("*")
    if path.is_file() and "__pycache__" not in path.parts
}
FOLDERS = (".ci", "benchmarks", "docs", "examples", *PACKAGES, "model_cards", "tests")
FILES = {
    "CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "LICENSE", "Makefile", "PKG-INFO", "README.md",
    "constraints-oldest.txt", "constraints.txt", "mkdocs.yml", "pyproject.toml", ".gitignore",
}  # fmt: skip
METADATA = {"METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE"}
# Where the imported package lies is printed, as the checkout must not be what runs.
QUICKSTART = """
import re, sys
import hf_saddle
namespace, text = {}, open(sys.argv[1]).read()
for number, block in enumerate(re.findall(r"^```python\\n(.*?)^```", text, re.DOTALL | re.MULTILINE)):
    exec(compile(block, f"README.md block {number}", "exec"), namespace)
print(hf_saddle.__file__)
"""


def same(what: str, found: set[str], wanted: set[str]) -> None:
    if found != wanted:
        raise SystemExit(f"{what} lacks {sorted(wanted - found)} and should not hold {sorted(found - wanted)}")
    print(f"{what}: {len(found)} files")


def main() -> None:
    (wheel,), (sdist,) = ((ROOT / "dist").glob(kind) for kind in ("*.whl", "*.tar.gz"))
    name = re.sub(r"-py3-none-any\.whl$", "", wheel.name)
    with zipfile.ZipFile(wheel) as archive:
        same(wheel.name, set(archive.namelist()), PACKAGE | {f"{name}.dist-info/{file}" for file in METADATA})
    with tarfile.open(sdist) as archive:
        held = {member.name.removeprefix(f"{name}/") for member in archive if not member.isdir()}
    listing = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    source = set(subprocess.run(listing, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines())
    same(sdist.name, held, {path for path in source if path.split("/")[0] in FOLDERS} | FILES)

    python = Path.cwd() / sys.argv[1]
    with tempfile.TemporaryDirectory() as folder:
        command = [python, "-c", QUICKSTART, ROOT / "README.md"]
        output = subprocess.run(command, cwd=folder, check=True, stdout=subprocess.PIPE, text=True).stdout
        subprocess.run([python.with_name("hf-saddle"), "inspect", "digits-grown"], cwd=folder, check=True)
    location = Path(output.splitlines()[-1])
    if ROOT / "hf_saddle" in location.parents:
        raise SystemExit(f"the checkout was run, not the wheel: {location}")
    print(f"the README's blocks run from {location}")


if __name__ == "__main__":
    main()
