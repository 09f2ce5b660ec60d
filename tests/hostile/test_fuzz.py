"""However a file is damaged: a clear error that names file or field, or a model that is what its files say."""

import random
import shutil
from collections import Counter

import pytest
from fuzz_cases import TARGETS, make_folder, names_of, outcome


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Undamaged folders, with one file of weights and with several."""
    folders = {}
    for sharded in (False, True):
        folders[sharded] = tmp_path_factory.mktemp("whole") / "model"
        make_folder(folders[sharded], sharded)
    return folders


def fuzz(target, whole, tmp_path, cases: int, first: int = 0) -> Counter:
    data = (whole[target.sharded] / target.name).read_bytes()
    known, found = names_of(data), Counter()
    for seed in range(first, first + cases):
        rng = random.Random(f"{target.name} {seed}")
        folder = tmp_path / "model"
        shutil.copytree(whole[target.sharded], folder)
        (folder / target.name).write_bytes(target.mutate(data, rng))
        try:
            found[outcome(target, folder, known, rng.choice(target.loaders))] += 1
        except BaseException as error:
            shutil.copytree(folder, tmp_path / "failed")
            raise AssertionError(f"seed {seed} of {target.name}, kept in {tmp_path / 'failed'}: {error!r}") from error
        shutil.rmtree(folder)
    return found


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_undamaged_files_are_accepted(target, whole, tmp_path):
    for loader in target.loaders:
        shutil.copytree(whole[target.sharded], tmp_path / loader.__name__)
        assert outcome(target, tmp_path / loader.__name__, set(), loader) == f"{target.name}: loaded"


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_some_damaged_files(target, whole, tmp_path):
    found = fuzz(target, whole, tmp_path, 30)
    assert sum(found.values()) == 30 and found[f"{target.name}: ValueError"] > 5


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_many_damaged_files(target, whole, tmp_path, capsys):
    found = fuzz(target, whole, tmp_path, 300, first=1000)
    with capsys.disabled():
        print(f"\n{dict(found)}")
    assert sum(found.values()) == 300
