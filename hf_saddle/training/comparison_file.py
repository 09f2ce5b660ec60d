"""A comparison goes on where its file ends, with the seeds that are missing, and never with other settings."""

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..hub.comparison import AT_THE_START, Comparison


logger = logging.getLogger(__name__)

# By how much the losses at the start may differ, as sums do that are split between other threads.
_TOLERANCE = 1e-4


def gone_on(
    path: str | Path,
    wanted: Comparison,
    seeds: Sequence[int],
    conditions_of: Callable[[int], dict[str, Any]],
    overwrite: bool,
) -> Comparison:
    """
    What a comparison begins with: the trainings that its file has, or none.

    Args:
        path (`str` or `Path`): The file, which need not exist.
        wanted ([`~hf_saddle.hub.Comparison`]): The comparison that is asked for, without trainings.
        seeds (`Sequence[int]`): The seeds that are asked for.
        conditions_of (`Callable[[int], dict]`): What the trainings of a seed have in common, that of the file where
            there is one: it has to say today what it said then.
        overwrite (`bool`): Whether to remove the file and begin anew.

    Raises:
        ValueError: If the file has a comparison of other settings, or is damaged.
    """
    file = Path(path)
    if overwrite or not file.exists():
        wanted.conditions = conditions_of(seeds[0])
        file.unlink(missing_ok=True)  # once no setting has been refused
        return wanted
    found = Comparison.load(file)
    wanted.conditions = conditions_of(found.runs[0].seed)
    differing = _differences(_told(found), _told(wanted))
    if differing:
        raise ValueError(
            f"{file} has a comparison of other settings already: {', '.join(differing)}. Ask for those that it has to "
            "go on with it, begin anew and remove it by `--overwrite` (`overwrite=True`), or name another place."
        )
    missing = [seed for seed in seeds if seed not in found.seeds]
    left = f"{_named(missing)} left to train" if missing else "nothing is left to train"
    logger.info(f"Going on with {file}: {_named(found.seeds)} there, {left}.")
    wanted.runs = found.runs
    return wanted


def _told(comparison: Comparison) -> dict[str, Any]:
    """All but the trainings and the model that a card is about, by name, as a file has it."""
    fields = asdict(comparison)
    told = {name: fields[name] for name in ("cost", "metric", "greater_is_better", "split")}
    read: dict[str, Any] = json.loads(json.dumps(told | comparison.settings | comparison.conditions))
    return read


def _differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    names = [*before, *(name for name in now if name not in before)]
    pairs = [(name, before.get(name), now.get(name)) for name in names]
    return [f"{name} {old!r} → {new!r}" for name, old, new in pairs if not _alike(name, old, new)]


def _alike(name: str, before: Any, now: Any) -> bool:
    if name.endswith(AT_THE_START) and isinstance(before, float) and isinstance(now, float):
        return abs(before - now) <= _TOLERANCE * abs(before)
    return bool(before == now)


def _named(seeds: Sequence[int]) -> str:
    return f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))} {'are' if len(seeds) > 1 else 'is'}"
