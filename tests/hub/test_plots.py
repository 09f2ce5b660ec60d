"""Pictures of histories of every kind, without a display, with the same bytes every time."""

import numpy as np
import pytest
from hub_cases import build, grown, log
from PIL import Image

from hf_saddle.growth import GrowthHistory
from hf_saddle.hub import save_pictures
from hf_saddle.hub.pictures.curves import parameters_at
from hf_saddle.hub.pictures.drawing import name_pictures
from hf_saddle.hub.pictures.style import BLUE, GROUND, INK, MUTED, ORANGE
from hf_saddle.hub.states import states


ALL = ["architecture", "timeline", "eigenvalues", "loss", "cost"]


def luminance(colour: str) -> float:
    """Relative luminance as in WCAG 2."""
    channels = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def test_every_picture_is_drawn(tmp_path):
    history = GrowthHistory.from_model(grown())
    assert save_pictures(tmp_path, history, log()) == ALL
    for name in ALL:
        image = np.asarray(Image.open(tmp_path / f"{name}.png").convert("L"))
        assert min(image.shape) > 300
        assert image.std() > 5  # something is on it
        assert (tmp_path / f"{name}.svg").read_text().startswith("<?xml")


def test_the_same_history_gives_the_same_bytes(tmp_path):
    history = GrowthHistory.from_model(grown())
    for folder in ("first", "second"):
        save_pictures(tmp_path / folder, history, log())
    for name in ALL:
        for suffix in (".svg", ".png"):
            first, second = ((tmp_path / folder / name).with_suffix(suffix) for folder in ("first", "second"))
            assert first.read_bytes() == second.read_bytes()


def test_only_what_there_is_to_show_is_drawn(tmp_path):
    assert save_pictures(tmp_path, GrowthHistory.from_model(build("vit-ungrown"))) == ["architecture"]
    by_hand = GrowthHistory.from_model(grown(measured=False))
    assert save_pictures(tmp_path, by_hand) == name_pictures(by_hand) == ["architecture", "timeline"]


@pytest.mark.parametrize("colour", [INK, MUTED, BLUE, ORANGE])
def test_everything_stands_out_from_the_ground(colour):
    assert (luminance(GROUND) + 0.05) / (luminance(colour) + 0.05) > 3


def test_growth_counts_from_the_step_after_it():
    found = states(GrowthHistory.from_model(grown()))
    assert [state.step for state in found] == [0, 3, 5]
    assert [parameters_at(found, step) for step in (0, 3, 4, 6)] == [
        found[0].parameters,
        found[0].parameters,
        found[1].parameters,
        found[2].parameters,
    ]
    assert found[2].units(1, "mlp.fc1") == 4
    assert found[2].widths == (42, 40)
