"""What a stranger's repo may contain: it is refused early, with the reason, and nothing is written elsewhere."""

import json

import hub_client as actions
import pytest
import torch
from hub_cases import build, grown
from hub_server import Repo


pytestmark = pytest.mark.hub


@pytest.fixture
def offer(hub, folder, request):
    """Put a good model into a repo, with some files and fields of the config changed."""

    def put(changes: dict[str, bytes | None], model=None, **fields) -> str:
        (model or build("deit-deeper")).save_pretrained(folder)
        files = {path.name: path.read_bytes() for path in folder.iterdir()} | changes
        config = json.loads(files["config.json"]) | fields
        files["config.json"] = json.dumps(config).encode()
        name = f"evil/{abs(hash(request.node.name))}"
        hub.repos[name] = Repo()
        hub.repos[name].commit("main", {path: data for path, data in files.items() if data is not None}, "upload")
        return name

    return put


@pytest.mark.thinned(3)
@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"hidden_size": 10**9}, "hidden_size"),
        ({"num_hidden_layers": 10**7}, "num_hidden_layers"),
        ({"image_size": 2**18, "patch_size": 1}, "image_size"),
        ({"per_layer_config": {"1": {"intermediate_size": 2**17}}, "hidden_size": 2**17}, "per_layer_config"),
        ({"per_layer_config": {"1": {"skip_sizes": {"mlp.fc1": [2**40]}}}}, "skip_sizes"),
        ({"per_layer_config": {"1": {"skip_sizes": {"../../fc1": [2]}}}}, "skip_sizes"),
    ],
)
def test_a_config_that_asks_for_terabytes(changes, named, offer, client, stranger, pixels):
    repo = offer({}, **changes)
    for process, options in ((client, {}), (stranger, {"trust_remote_code": True})):
        failure = process.failure(actions.logits, repo, pixels, **options)
        assert named in failure.message


def test_pickle_weights_are_refused(offer, client, stranger, pixels, tmp_path):
    torch.save(build("deit-deeper").state_dict(), tmp_path / "weights")
    repo = offer({"model.safetensors": None, "pytorch_model.bin": (tmp_path / "weights").read_bytes()})
    for process, options in ((client, {}), (stranger, {"trust_remote_code": True})):
        assert "safetensors" in process.failure(actions.logits, repo, pixels, **options).message


@pytest.mark.parametrize("path", ["../outside.txt", "../../../../outside.txt", "pictures/../../outside.txt"])
def test_a_path_that_leaves_the_folder(path, offer, client, tmp_path):
    repo = offer({path: b"outside"})
    target = tmp_path / "target" / "inner"
    client.failure(actions.snapshot, repo, local_dir=str(target))
    assert not list(tmp_path.rglob("outside.txt"))


def test_other_code_than_ours_is_not_run(offer, client, pixels, tmp_path):
    trap = tmp_path / "trap"
    code = f"open({str(trap)!r}, 'w')\n".encode()
    repo = offer({"modeling_saddle.py": code, "configuration_saddle.py": code})
    assert client(actions.logits, repo, pixels)[2] == "hf_saddle.models.modeling_saddle"
    assert not trap.exists()


@pytest.mark.parametrize(
    ("history", "message"),
    [(b"{", "not valid JSON"), (b"[]", "must be a JSON object"), (b"\xff", "not valid JSON")],
)
def test_a_history_that_cannot_be_read(history, message, offer, client, pixels):
    failure = client.failure(actions.logits, offer({"growth_history.json": history}), pixels)
    assert "ValueError" in failure.kinds
    assert message in failure.message


def test_a_history_of_another_model_is_not_passed_on(offer, client, hub, folder):
    offer({}, grown())
    stolen = (folder / "growth_history.json").read_bytes()
    build("deit-deeper").save_pretrained(folder)
    (folder / "growth_history.json").write_bytes(stolen)
    failure = client.failure(actions.push, str(folder), "tester/stolen")
    assert "does not lead to the shapes of this model" in failure.message
    assert not hub.repos["tester/stolen"].files()


@pytest.mark.parametrize("target", [-1, 40, 2**40])
def test_units_that_feed_a_neuron_that_is_not_there(target, offer, client, pixels):
    model = build("deit-deeper")
    model.deit.layers[1].mlp.fc1.skip.target[0] = target
    assert "target" in client.failure(actions.logits, offer({}, model), pixels).message
