"""A push that breaks at any stage: a clear error, repo and local files as before, and a second push completes."""

import zlib

import hub_client as actions
import numpy as np
import pytest
import torch
from hub_cases import build
from hub_server import Fault


pytestmark = pytest.mark.hub

# More than the client makes before it gives up, of all files together.
ATTEMPTS = 100
STAGES = {
    "create": ("POST", "/api/repos/create"),
    "preupload": ("POST", "/preupload/"),
    "batch": ("POST", "/info/lfs/objects/batch"),
    "large file": ("PUT", "/lfs/"),
    "commit": ("POST", "/commit/"),
}
QUICK = ("large file", "commit")


@pytest.fixture
def saved(folder, request):
    """A model that no other test has: the Hub asks for a large file only if it does not have it yet."""
    model = build("deit-deeper", seed=zlib.crc32(request.node.name.encode()))
    model.save_pretrained(folder)
    return model, folder, {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def check_recovery(hub, client, saved, repo, pixels):
    """Nothing arrived, nothing is lost, and the next push completes."""
    model, folder, before = saved
    assert repo not in hub.repos or not hub.repos[repo].files()
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before
    hub.faults.clear()
    client(actions.push, str(folder), repo)
    output, _, _ = client(actions.logits, repo, pixels)
    with torch.no_grad():
        assert np.array_equal(output, model(torch.tensor(pixels)).logits.numpy())


@pytest.mark.parametrize(
    "stage", [pytest.param(stage, marks=() if stage in QUICK else pytest.mark.slow) for stage in STAGES]
)
def test_a_dropped_connection(stage, saved, hub, client, pixels):
    repo = f"tester/dropped-{stage.replace(' ', '-')}"
    hub.faults.append(Fault(*STAGES[stage], times=ATTEMPTS, drop=True))
    failure = client.failure(actions.push, str(saved[1]), repo)
    # The error itself, or, from the threads that send large files, one that names the first file that failed.
    large = ("model.safetensors", "pictures/")
    assert "disconnected" in failure.message or any(f"uploading '{name}" in failure.message for name in large)
    assert "RemoteProtocolError" in failure.traceback
    check_recovery(hub, client, saved, repo, pixels)


@pytest.mark.parametrize(
    "code", [500, 403, pytest.param(401, marks=pytest.mark.slow), pytest.param(404, marks=pytest.mark.slow)]
)
def test_a_refused_commit(code, saved, hub, client, pixels):
    repo = f"tester/refused-{code}"
    hub.faults.append(Fault("POST", "/commit/", times=ATTEMPTS, status=code))
    failure = client.failure(actions.push, str(saved[1]), repo)
    assert "HfHubHTTPError" in failure.kinds
    assert str(code) in failure.message
    assert "/commit/" in failure.message
    check_recovery(hub, client, saved, repo, pixels)


def test_a_server_that_fails_for_a_moment(saved, hub, client):
    hub.faults.append(Fault("PUT", "/lfs/", times=2, status=503))
    client(actions.push, str(saved[1]), "tester/moment")
    assert "model.safetensors" in hub.repos["tester/moment"].files()


def test_a_push_does_not_forget_numbers_that_it_cannot_read(saved, hub, client):
    client(actions.push, str(saved[1]), "tester/unread")
    before = hub.repos["tester/unread"].files()
    hub.faults.append(Fault("HEAD", "training_record.json", times=20, status=500))
    assert "Error" in client.failure(actions.push, str(saved[1]), "tester/unread").kinds[0]
    assert hub.repos["tester/unread"].files() == before


def test_a_slow_server(saved, hub, client):
    hub.faults.append(Fault("POST", "/commit/", delay=1.5))
    client(actions.push, str(saved[1]), "tester/slow")
    assert "model.safetensors" in hub.repos["tester/slow"].files()


def test_an_interrupted_download_is_not_taken_for_a_model(saved, hub, client, pixels):
    client(actions.push, str(saved[1]), "tester/download")
    hub.faults.append(Fault("GET", "/lfs/", times=20, drop=True))
    assert "Error" in client.failure(actions.logits, "tester/download", pixels).kinds[0]
    hub.faults.clear()
    assert client(actions.logits, "tester/download", pixels)[0].shape == (2, 3)
