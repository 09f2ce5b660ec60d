"""The page of a growth history as a browser shows it, light and dark, where Chromium is installed."""

import shutil
import subprocess

import pytest
from hub_cases import grown, log
from PIL import Image

from hf_saddle.growth import GrowthHistory
from hf_saddle.hub import render_report
from hf_saddle.hub.pictures.curves import Baseline
from hf_saddle.hub.states import neuron_counts


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
# Blink's `preferredColorScheme`, and the ground that the style sheet has for it.
SCHEMES = {"light": (1, (0xFC, 0xFC, 0xFB)), "dark": (0, (0x16, 0x16, 0x15))}


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_browser_draws_the_page_in_both_schemes(scheme, tmp_path):
    model, page, picture = grown(), tmp_path / "page.html", tmp_path / "page.png"
    facts = {"log": log(), "neurons": neuron_counts(model), "baseline": Baseline(14_000, log())}
    page.write_text(render_report(GrowthHistory.from_model(model), title="my model", **facts))
    number, ground = SCHEMES[scheme]
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    command += [f"--blink-settings=preferredColorScheme={number}", "--window-size=900,2600", "--hide-scrollbars"]
    command += [f"--screenshot={picture}", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert picture.is_file(), done.stderr[-2000:]
    shown = Image.open(picture).convert("RGB")
    assert shown.getpixel((2, 2)) == ground
    # Text and lines of both colours are there: a page that is empty or broken has few.
    assert len(shown.getcolors(1 << 20)) > 100
