"""`Trainer` pushes by every strategy: history, code, pictures and a card with the training's own numbers."""

import json

import hub_client as actions
import numpy as np
import pytest
from hub_server import Fault
from huggingface_hub import ModelCard


pytestmark = pytest.mark.hub

FILES = {
    "README.md",
    "config.json",
    "growable.py",
    "growth_history.json",
    "model.safetensors",
    "modeling_saddle.py",
    "preprocessor_config.json",
    "pictures/architecture.png",
    "pictures/loss.svg",
    "pictures/timeline.png",
    "training_record.json",
}


@pytest.fixture(scope="module", params=["end", pytest.param("every_save", marks=pytest.mark.slow), "checkpoint"])
def trained(request, hub, client, tmp_path_factory):
    strategy = request.param
    repo, folder = f"tester/trainer-{strategy.replace('_', '-')}", tmp_path_factory.mktemp(strategy)
    result = client(actions.train_and_push, str(folder), repo, strategy)
    return strategy, repo, folder, result


def test_everything_is_uploaded(trained, hub):
    _, repo, folder, result = trained
    assert not result["message"]
    files = hub.repos[repo].files()
    assert set(files) >= FILES
    assert len(json.loads(files["growth_history.json"])["events"]) == 1
    assert files["README.md"] == (folder / "README.md").read_bytes()


def test_the_pushed_model_computes_what_the_trained_one_did(trained, client, stranger):
    _, repo, _, result = trained
    for process, options in ((client, {}), (stranger, {"trust_remote_code": True})):
        output, history, _ = process(actions.logits, repo, result["pixels"], **options)
        assert np.array_equal(output, result["logits"])
        assert len(history["events"]) == 1


def test_the_card_has_the_numbers_of_the_log(trained, hub):
    _, repo, _, _ = trained
    files = hub.repos[repo].files()
    record = json.loads(files["training_record.json"])
    card = ModelCard(files["README.md"].decode())
    test = [entry for entry in record["log"] if "test_accuracy" in entry][-1]
    (result,) = card.data.eval_results
    assert result.metric_value == test["test_accuracy"]
    assert (result.dataset_name, result.dataset_split) == ("tester/pictures", "test")
    assert card.data.license == "apache-2.0"
    assert "generated_from_trainer" in card.data.tags
    assert f"| accuracy | {test['test_accuracy']:.4g} |" in card.text
    assert "| `max_steps` | 6 |" in card.text


def test_pushes_happen_when_the_strategy_says(trained, hub):
    strategy, repo, _, _ = trained
    titles = hub.repos[repo].titles
    steps = [title for title in titles if title.startswith("Training in progress, step")]
    expected = {"end": 0, "every_save": 3, "checkpoint": 6}[strategy]
    assert len(steps) == expected
    assert titles[-1] == "End of training"


def test_the_first_push_has_the_model_of_its_time(trained, hub):
    strategy, repo, _, _ = trained
    commits = list(hub.repos[repo].commits.values())
    early = next(files for files in commits if "model.safetensors" in files)
    late, grown = commits[-1], strategy == "end"
    assert ("growth_history.json" in early) == grown
    assert ("has not grown" in early["README.md"].decode()) != grown
    assert "AutoImageProcessor" in early["README.md"].decode()
    assert (len(early["model.safetensors"]) == len(late["model.safetensors"])) == grown


def test_a_checkpoint_is_complete(trained, hub):
    strategy, repo, _, _ = trained
    last = {path for path in hub.repos[repo].files() if path.startswith("last-checkpoint/")}
    assert bool(last) == (strategy == "checkpoint")
    if last:
        assert {"last-checkpoint/growth_history.json", "last-checkpoint/trainer_state.json"} <= last


def test_a_broken_last_push_loses_nothing(hub, client, folder):
    hub.faults.append(Fault("POST", "/commit/", drop=True))
    result = client(actions.train_and_push, str(folder), "tester/broken", "end", again=True)
    assert result["message"]
    assert set(hub.repos["tester/broken"].files()) >= FILES
    output, _, _ = client(actions.logits, "tester/broken", result["pixels"])
    assert np.array_equal(output, result["logits"])


def test_a_training_without_events_over_one_with(hub, client, tmp_path):
    client(actions.train_and_push, str(tmp_path / "grown"), "tester/trainer-over", "end")
    repo = hub.repos["tester/trainer-over"]
    assert {"growth_history.json", "pictures/timeline.png"} <= set(repo.files())
    repo.commit("main", repo.files() | {"notes.md": b"mine"}, "by hand")
    result = client(actions.train_and_push, str(tmp_path / "small"), "tester/trainer-over", "end", max_steps=2)
    files = repo.files()
    assert not {"growth_history.json", "pictures/timeline.png", "pictures/timeline.svg"} & set(files)
    assert files["notes.md"] == b"mine"
    output, history, _ = client(actions.logits, "tester/trainer-over", result["pixels"])
    assert np.array_equal(output, result["logits"]) and history is None
