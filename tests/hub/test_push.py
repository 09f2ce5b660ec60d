"""`push_to_hub` as users know it: files, repos, branches, pull requests, tokens, and a second push."""

import json

import hub_client as actions
import numpy as np
import pytest
import torch
from hub_cases import build
from hub_server import Repo

from hf_saddle.growth import GrowthHistory, GrowthPlan, LayerGrowth, grow_
from hf_saddle.hub import TrainingRecord, write_model_card
from hf_saddle.hub.record import fingerprint


pytestmark = pytest.mark.hub

CODE = {
    "blocks.py",
    "checkpointed.py",
    "config_fields.py",
    "descriptions.py",
    "growable_parts.py",
    "shape_checks.py",
    "stock_classes.py",
    "head_kinds.py",
    "heads.py",
    "restacking.py",
    "configuration_saddle.py",
    "branch_guard.py",
    "history_file.py",
    "loading.py",
    "pushing.py",
    "stock.py",
    "checkpoint_checks.py",
    "json_files.py",
    "families.py",
    "growable.py",
    "injection.py",
    "layouts.py",
    "vision.py",
    "modeling_saddle.py",
    "parameters.py",
    "resizing.py",
    "shapes.py",
    "sites.py",
}
BARE = {"config.json", "model.safetensors", "README.md", "pictures/architecture.png", "pictures/architecture.svg"}


def grown():
    """A model that grew twice."""
    model = build("deit-ungrown")
    for path in ("deit.layers.0.mlp.fc1", "deit.layers.0.mlp.fc1.skip.linear"):
        grow_(model, GrowthPlan((LayerGrowth.by_hand(model, path, "zero_gain", [0, 1]),)))
    return model.eval()


@pytest.fixture
def saved(folder):
    model = grown()
    model.save_pretrained(folder)
    return model, folder


def test_everything_is_uploaded(saved, hub, client):
    model, folder = saved
    client(actions.push, str(folder), "tester/files")
    files = hub.repos["tester/files"].files()
    timeline = {"growth_history.json", "pictures/timeline.png", "pictures/timeline.svg"}
    assert set(files) == BARE | CODE | timeline
    assert files["model.safetensors"] == (folder / "model.safetensors").read_bytes()
    assert files["growth_history.json"] == (folder / "growth_history.json").read_bytes()
    assert 'from_pretrained("tester/files", trust_remote_code=True)' in files["README.md"].decode()


def test_weights_and_pictures_go_through_lfs(saved, hub, client):
    client(actions.push, str(saved[1]), "tester/large")
    files = hub.repos["tester/large"].files()
    large = {path for path, data in files.items() if hub.is_large(data)}
    assert large == {path for path in files if path.endswith((".safetensors", ".png"))}


def test_the_pushed_model_computes_the_same(saved, hub, client, pixels):
    model, folder = saved
    client(actions.push, str(folder), "tester/same")
    output, history, _ = client(actions.logits, "tester/same", pixels)
    with torch.no_grad():
        assert np.array_equal(output, model(torch.tensor(pixels)).logits.numpy())
    assert history == model.growth_history
    GrowthHistory.from_dict(history).check(model)


def test_a_snapshot_is_what_was_pushed(saved, hub, client):
    client(actions.push, str(saved[1]), "tester/snapshot")
    path = client(actions.snapshot, "tester/snapshot")
    files = hub.repos["tester/snapshot"].files()
    for name, data in files.items():
        assert (type(saved[1])(path) / name).read_bytes() == data


def test_a_snapshot_in_the_cache_is_a_folder_whose_files_are_links(saved, hub, client, pixels):
    client(actions.push, str(saved[1]), "tester/links")
    path = client(actions.snapshot, "tester/links")
    assert (type(saved[1])(path) / "growth_history.json").is_symlink()
    assert client(actions.logits, path, pixels)[1] == saved[0].growth_history


def test_a_second_push_keeps_history_and_measured_numbers(saved, hub, client, tmp_path):
    model, folder = saved
    record = TrainingRecord(dataset="tester/pictures", results={"accuracy": 0.125}, weights=fingerprint(model))
    write_model_card(folder, model, record)
    model.save_pretrained(folder)
    client(actions.push, str(folder), "tester/twice")
    # From here on only the Hub knows the record.
    elsewhere = tmp_path / "elsewhere"
    model.save_pretrained(elsewhere)
    client(actions.push, str(elsewhere), "tester/twice")
    files = hub.repos["tester/twice"].files()
    assert json.loads(files["growth_history.json"]) == model.growth_history
    assert json.loads(files["training_record.json"])["results"] == {"accuracy": 0.125}
    assert "| accuracy | 0.125 |" in files["README.md"].decode()


def test_numbers_of_other_weights_are_not_repeated(saved, hub, client, tmp_path):
    model, folder = saved
    write_model_card(folder, model, TrainingRecord(results={"accuracy": 0.125}, weights=fingerprint(model)))
    client(actions.push, str(folder), "tester/other")
    with torch.no_grad():
        model.classifier.bias.add_(1.0)
    model.save_pretrained(tmp_path / "trained-on")
    client(actions.push, str(tmp_path / "trained-on"), "tester/other")
    files = hub.repos["tester/other"].files()
    assert "0.125" not in files["README.md"].decode()


def test_a_record_that_cannot_be_read_does_not_block_a_push(saved, hub, client):
    repo = hub.repos["tester/unreadable"] = Repo()
    repo.commit("main", {"training_record.json": b'{"of a later version": 1}'}, "by hand")
    client(actions.push, str(saved[1]), "tester/unreadable")
    assert "model.safetensors" in repo.files() and "training_record.json" not in repo.files()


def test_save_pretrained_can_push(saved, hub, client):
    client(actions.save_and_push, str(saved[1]), "tester/saved")
    assert {"README.md", "growth_history.json", "model.safetensors"} <= set(hub.repos["tester/saved"].files())


def test_a_private_repo_stays_private(saved, hub, client, pixels):
    client(actions.push, str(saved[1]), "tester/private", private=True)
    assert hub.repos["tester/private"].private
    failure = client.failure(actions.snapshot, "tester/private", token=False)
    assert "RepositoryNotFoundError" in failure.kinds
    assert client(actions.logits, "tester/private", pixels)[0].shape == (2, 3)


def test_a_branch_leaves_main_alone(saved, hub, client, pixels):
    client(actions.push, str(saved[1]), "tester/branch", revision="grown")
    repo = hub.repos["tester/branch"]
    assert not repo.files("main")
    assert "model.safetensors" in repo.files("grown")
    assert client(actions.logits, "tester/branch", pixels, revision="grown")[0].shape == (2, 3)
    assert "Error" in client.failure(actions.logits, "tester/branch", pixels, revision="other").kinds[0]


def test_a_pull_request_leaves_main_alone(saved, hub, client):
    url = client(actions.push, str(saved[1]), "tester/request", create_pr=True)
    repo = hub.repos["tester/request"]
    assert not repo.files("main")
    assert "model.safetensors" in repo.files("refs/pr/1")
    assert url


@pytest.mark.parametrize(("token", "code"), [(False, "401"), ("hf_wrong", "401"), ("hf_read", "403")])
def test_without_the_right_token_the_reader_is_told_and_nothing_is_lost(saved, hub, client, token, code):
    before = {path.name: path.read_bytes() for path in saved[1].iterdir() if path.is_file()}
    failure = client.failure(actions.push, str(saved[1]), "tester/refused", token=token)
    assert "HfHubHTTPError" in failure.kinds
    assert code in failure.message
    assert "tester/refused" not in hub.repos
    assert before == {path.name: path.read_bytes() for path in saved[1].iterdir() if path.is_file()}


def test_an_ungrown_model_replaces_a_grown_one_in_one_commit(saved, hub, client, pixels, tmp_path):
    model, folder = saved
    write_model_card(folder, model, TrainingRecord(results={"accuracy": 0.125}, weights=fingerprint(model)))
    client(actions.push, str(folder), "tester/over")
    repo = hub.repos["tester/over"]
    mine = {
        "notes.md": b"mine",
        "pictures/cat.png": b"mine",
        "data.json": b"mine",
        "last/growth_history.json": b"mine",
    }
    old = {"model-00001-of-00001.safetensors": b"old", "model.safetensors.index.json": b"old"}
    repo.commit("main", repo.files() | mine | old, "by hand")
    commits = len(repo.commits)
    small = build("deit-ungrown", seed=3)
    small.save_pretrained(tmp_path / "small")
    client(actions.push, str(tmp_path / "small"), "tester/over")
    files = repo.files()
    assert len(repo.commits) == commits + 1
    assert set(files) == BARE | CODE | set(mine)
    assert all(files[name] == data for name, data in mine.items())
    output, history, _ = client(actions.logits, "tester/over", pixels)
    with torch.no_grad():
        assert np.array_equal(output, small(torch.tensor(pixels)).logits.numpy())
    assert history is None


def test_without_hf_saddle_a_push_removes_the_history_too(saved, hub, client, stranger, tmp_path):
    client(actions.push, str(saved[1]), "tester/over-by-stranger")
    build("deit-ungrown").save_pretrained(tmp_path / "small")
    client(actions.push, str(tmp_path / "small"), "tester/small")
    stranger(actions.push, "tester/small", "tester/over-by-stranger", trust_remote_code=True)
    files = hub.repos["tester/over-by-stranger"].files()
    assert "growth_history.json" not in files and "pictures/architecture.png" in files
