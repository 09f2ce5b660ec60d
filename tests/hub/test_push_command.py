"""`hf-saddle push` and the other commands with a repo in place of a folder."""

import json

import hub_client as actions
import numpy as np
import pytest
import torch
from hub_cases import grown
from hub_server import Fault, Repo


pytestmark = pytest.mark.hub


@pytest.fixture
def saved(folder):
    model = grown()
    model.save_pretrained(folder)
    # What lies in the folder of a training and is nobody else's concern.
    for name in (
        "training_args.bin",
        "optimizer.pt",
        "notes.py",
        "checkpoint-3/model.safetensors",
        "trainer_state.json",
        "tokens.json",
        "pictures/holiday.png",
        "pictures/more/holiday.png",
        "data/config.json",
        "other.safetensors",
    ):
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        (folder / name).write_text("private")
    return model, folder


def test_push(saved, hub, client, pixels):
    model, folder = saved
    code, output, _ = client(actions.command, "push", str(folder), "tester/command", "--private")
    assert code == 0
    assert "/tester/command/commit/" in output
    repo = hub.repos["tester/command"]
    assert repo.private
    uploaded = set(repo.files())
    assert {"README.md", "config.json", "growable.py", "growth_history.json", "model.safetensors"} <= uploaded
    assert not any(data == b"private" for data in repo.files().values())
    output, _, _ = client(actions.logits, "tester/command", pixels)
    with torch.no_grad():
        assert np.array_equal(output, model(torch.tensor(pixels)).logits.numpy())


def test_push_to_a_branch_and_as_a_request(saved, hub, client):
    assert client(actions.command, "push", str(saved[1]), "tester/ways", "--revision", "new")[0] == 0
    code, output, _ = client(actions.command, "push", str(saved[1]), "tester/ways", "--create-pr")
    assert code == 0
    assert output.strip().endswith("/discussions/1")
    repo = hub.repos["tester/ways"]
    assert not repo.files("main")
    assert "model.safetensors" in repo.files("new")
    assert "model.safetensors" in repo.files("refs/pr/1")


def test_push_to_a_pull_request_that_is_there(saved, hub, client):
    repo = hub.repos["tester/request-again"] = Repo()
    for branch in ("main", "refs/pr/1"):
        repo.commit(branch, {"preprocessor_config.json": b"{}", "training_record.json": b"{}"}, "by hand")
    code, _, errors = client(actions.command, "push", str(saved[1]), "tester/request-again", "--revision", "refs/pr/1")
    assert code == 0, errors
    assert "model.safetensors" in repo.files("refs/pr/1") and "model.safetensors" not in repo.files("main")
    # An image processor may have been pushed on its own, and stays.
    assert "preprocessor_config.json" in repo.files("refs/pr/1")


def test_a_push_that_breaks_off(saved, hub, client):
    hub.faults.append(Fault("POST", "/commit/", drop=True))
    code, output, errors = client(actions.command, "push", str(saved[1]), "tester/broken-command")
    assert (code, output) == (1, "")
    assert "run the same command again" in " ".join(errors.split())
    assert "Traceback" not in errors
    assert client(actions.command, "push", str(saved[1]), "tester/broken-command")[0] == 0
    assert "model.safetensors" in hub.repos["tester/broken-command"].files()


def test_a_refused_push(saved, hub, client):
    hub.faults.append(Fault("POST", "/api/repos/create", status=403))
    code, _, errors = client(actions.command, "push", str(saved[1]), "tester/forbidden")
    assert code == 1
    assert "403" in errors


def test_inspect_a_repo(saved, hub, client):
    client(actions.command, "push", str(saved[1]), "tester/inspected")
    code, output, _ = client(actions.command, "inspect", "tester/inspected", "--json")
    assert code == 0
    assert json.loads(output)["history"] == saved[0].growth_history


def test_a_repo_that_is_not_there(client):
    code, _, errors = client(actions.command, "inspect", "tester/nowhere")
    assert code == 1
    assert "tester/nowhere" in errors


@pytest.mark.parametrize(
    "name", ["growth_history.json", "README.md", "model.safetensors", "pictures", "growable.py", ".README.md.partial"]
)
def test_links_are_refused_by_name_and_not_followed(name, saved, hub, client, tmp_path):
    outside = tmp_path / "outside"
    if name == "pictures":
        outside.mkdir()
    elif (saved[1] / name).is_file():
        (saved[1] / name).rename(outside)
    else:
        outside.write_text("secret")
    before = outside.stat()
    (saved[1] / name).unlink(missing_ok=True) if name != "pictures" else (saved[1] / name).rename(tmp_path / "old")
    (saved[1] / name).symlink_to(outside)
    code, output, errors = client(actions.command, "push", str(saved[1]), f"tester/link-{name.strip('.')}")
    assert (code, output) == (1, "")
    assert f"{name} is a link to {outside}" in "".join(errors.splitlines())
    assert f"tester/link-{name.strip('.')}" not in hub.repos
    assert outside.stat() == before and not (outside.is_dir() and list(outside.iterdir()))


def test_shards_are_pushed_and_take_the_place_of_a_single_file(saved, hub, client, pixels):
    model, folder = saved
    assert client(actions.command, "push", str(folder), "tester/sharded")[0] == 0
    model.save_pretrained(folder, max_shard_size="20KB")
    (folder / "model.safetensors").unlink()  # transformers leaves it there, and prefers it when it loads
    assert client(actions.command, "push", str(folder), "tester/sharded")[0] == 0
    files = hub.repos["tester/sharded"].files()
    assert "model.safetensors" not in files and "model.safetensors.index.json" in files
    output, _, _ = client(actions.logits, "tester/sharded", pixels)
    with torch.no_grad():
        assert np.array_equal(output, model(torch.tensor(pixels)).logits.numpy())
