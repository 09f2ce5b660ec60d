"""The cards in `model_cards/` are what their JSON files say; recipes say that they were not run."""

import importlib.util
import re
import shlex
import sys
from pathlib import Path

import pytest

from hf_saddle.growth import GrowthHistory, count_parameters
from hf_saddle.hub import TrainingRecord


CARDS = Path(__file__).parents[2] / "model_cards"
RECIPES = sorted((CARDS / "recipes").glob("*.md"))
sys.path.append(str(CARDS.parent / "benchmarks" / "paper_scale"))
import train as paper_scale  # noqa: E402


spec = importlib.util.spec_from_file_location("render", CARDS / "render.py")
render = importlib.util.module_from_spec(spec)
spec.loader.exec_module(render)


@pytest.mark.parametrize("folder", render.trained(), ids=lambda folder: folder.name)
def test_a_card_is_what_its_files_say(folder):
    # Which transformers the code needs is that of the day the card was written.
    versions = re.compile(r"`transformers>=[^`]*`")
    found, expected = render.render(folder), (folder / "README.md").read_text()
    assert versions.sub("", found) == versions.sub("", expected)
    GrowthHistory.from_model(render.load(folder)).check(render.load(folder))
    record = TrainingRecord.load(folder)
    assert record.results and record.weights and record.log
    for picture in re.findall(r"\]\((pictures/\S+)\)", (folder / "README.md").read_text()):
        assert (folder / picture).is_file()
        assert (folder / picture).with_suffix(".svg").is_file()


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_a_recipe_says_that_it_was_not_run(recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = recipe.read_text()
    assert text.index("**NOT YET RUN.**") < 200
    (start,) = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    namespace: dict = {}
    exec(start, namespace)
    if "model" in namespace:
        assert count_parameters(namespace["model"]) == 11_071_204
    (command,) = re.findall(r"benchmarks/paper_scale/train.py (.*?)\n```", text, re.DOTALL)
    arguments, growth, training = paper_scale.parse([*_words(command), "--use_cpu"])
    assert (arguments.arm, growth.event_budget, training.num_train_epochs) == ("default", 580_000, 300)
    assert arguments.dataset in ("clane9/imagenet-100", "uoft-cs/cifar100")
    (config,) = re.findall(r"--config_file (\S+)", text)
    assert (CARDS.parent / config).is_file()


def _words(command: str) -> list[str]:
    """The command's options; bf16 needs a GPU."""
    return [word for word in shlex.split(command.replace("\\\n", " ")) if word != "--bf16"]


def test_the_list_names_every_card():
    listed = set(re.findall(r"\]\((\S+?)\)", (CARDS / "README.md").read_text()))
    cards = {f"{folder.name}/README.md" for folder in render.trained()}
    assert listed == cards | {f"recipes/{recipe.name}" for recipe in RECIPES}
