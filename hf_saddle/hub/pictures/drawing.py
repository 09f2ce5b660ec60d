"""The doors to the pictures: matplotlib, which is an extra, is loaded when the first one is drawn."""

import logging
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from ...growth import GrowthHistory
from ..comparison import Comparison


logger = logging.getLogger(__name__)

DRAWINGS = ("architecture", "timeline", "eigenvalues", "loss", "cost")
COMPARISON = "comparison"
# Pictures of earlier versions, which are removed where one is found.
RETIRED = ("accuracy",)
SUFFIXES = (".svg", ".png")
_REMEDY = "pictures need matplotlib; `pip install 'hf_saddle[plots]'` brings it."


@cache
def can_draw() -> bool:
    """Whether matplotlib is installed; that cards go without pictures otherwise is said once."""
    if find_spec("matplotlib") is None:
        logger.warning(f"Model cards are written without pictures: {_REMEDY}")
        return False
    return True


def check_matplotlib() -> None:
    """
    Verify that pictures can be drawn.

    Raises:
        ImportError: If not; the message names the extra.
    """
    if find_spec("matplotlib") is None:
        raise ImportError(f"Nothing can be drawn: {_REMEDY}")


def name_pictures(history: GrowthHistory, log: Sequence[dict[str, float]] = ()) -> list[str]:
    """Names, without suffix, of the pictures that [`save_pictures`] draws; nothing is drawn."""
    check_matplotlib()
    from .plots import drawings_of

    return list(drawings_of(history, log, {}))


def save_pictures(
    folder: Path,
    history: GrowthHistory,
    log: Sequence[dict[str, float]] = (),
    *,
    neurons: Mapping[str, int] | None = None,
) -> list[str]:
    """
    Draw what the history and the training log hold, each picture as SVG and PNG. Pictures that were drawn for another
    model and are not drawn again are removed.

    Args:
        folder (`Path`): Where to write; made if missing.
        history ([`~hf_saddle.GrowthHistory`]): What grew.
        log (`Sequence[dict]`, *optional*): The `log_history` of the training.
        neurons (`Mapping[str, int]`, *optional*): Neurons of every linear, see [`neuron_counts`].

    Returns:
        `list[str]`: Names of the pictures, without suffix. Pictures without anything to show are left out.

    Raises:
        ImportError: If matplotlib, the extra `plots`, is not installed.
    """
    check_matplotlib()
    from .plots import draw_pictures

    for name in (*DRAWINGS, *RETIRED):
        for suffix in SUFFIXES:
            (folder / f"{name}{suffix}").unlink(missing_ok=True)
    return draw_pictures(folder, history, log, neurons or {})


def save_comparison(folder: Path, comparison: Comparison) -> str:
    """
    Draw the validation loss of the arms of a comparison over what it has cost, as SVG and PNG.

    Args:
        folder (`Path`): Where to write; made if missing.
        comparison ([`Comparison`]): The trainings.

    Returns:
        `str`: Name of the picture, without suffix.

    Raises:
        ImportError: If matplotlib, the extra `plots`, is not installed.
    """
    check_matplotlib()
    from .comparison_plot import draw_comparison

    folder.mkdir(parents=True, exist_ok=True)
    draw_comparison([folder / f"{COMPARISON}{suffix}" for suffix in SUFFIXES], comparison)
    return COMPARISON
