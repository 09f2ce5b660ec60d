"""Options of a program from dataclasses: presets, a YAML file, `None`, examples, exit code 2 for what is unknown."""

import copy
import difflib
from argparse import Action, ArgumentDefaultsHelpFormatter, ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

import yaml
from transformers import HfArgumentParser

from ..growth import GrowthConfig, PaperGrowthConfig


# Fields of a GrowthConfig that say when it grows, and the values that leave it to the others.
TIMES: dict[str, Any] = {"at": None, "unit": "training"}
# Those that say how large the model may become.
LIMITS: dict[str, Any] = {"max_growth": 1.5, "max_parameters": None, "max_macs": None}

# For a training that starts from a checkpoint.
FINETUNING: dict[str, Any] = {
    "learning_rate": 5e-5,
    "num_train_epochs": 3,
    "warmup_steps": 0.1,
    "weight_decay": 0.01,
    "lr_scheduler_type": "linear",
}

PRESETS: dict[str, dict[str, Any]] = {
    # The times of arXiv 2402.12418 are those of 300 epochs.
    "paper": {**GrowthConfig.paper().to_dict(), "num_train_epochs": 300},
    # One early event was the best of those that docs/evidence.md compares.
    "early": {"at": [0.1]},
    "finetune": {**FINETUNING, "max_growth": 1.1},
}


class _Help(RawDescriptionHelpFormatter, ArgumentDefaultsHelpFormatter):
    """Examples as they stand, defaults, and every option once, with hyphens."""

    def _format_action_invocation(self, action: Action) -> str:
        shown = copy.copy(action)
        shown.option_strings = [name for name in action.option_strings if "_" not in name] or action.option_strings
        return super()._format_action_invocation(shown)


def parse(
    kinds: Sequence[type[Any]],
    words: Sequence[str],
    defaults: Mapping[str, Any],
    *,
    prog: str | None = None,
    usage: str | None = None,
    epilog: str | None = None,
) -> tuple[Any, ...]:
    """
    Read a command line.

    `--preset NAME` takes the values of a preset, `--config FILE` those of a YAML file; the file goes above the preset,
    and the command line above both. `--name None` gives an option that may be empty no value. Hyphens and underscores
    in names are the same.

    Args:
        kinds (`Sequence[type]`): Dataclasses whose fields are the options; of growth, a `GrowthConfig`.
        words (`Sequence[str]`): The command line.
        defaults (`Mapping[str, Any]`): Defaults that take the place of the dataclasses' own.
        prog, usage, epilog (`str`, *optional*): As in `argparse`.

    Returns:
        `tuple`: One object of each dataclass.

    Raises:
        ValueError: If the file has an unknown preset or option, or a value cannot be meant.
        SystemExit: With code 2, if the command line has an unknown preset or option, or a value of another type.
    """
    above = ArgumentParser(prog=prog, usage=usage, add_help=False, allow_abbrev=False)
    above.add_argument(
        "--preset", choices=list(PRESETS), help="Values for a purpose; all other options override them."
    )
    above.add_argument("--config", help="YAML file of options; those of the command line override it.")
    first, words = above.parse_known_args(words)
    file = first.config
    given = {} if file is None else _read(Path(file))
    preset = given.pop("preset", None) if first.preset is None else first.preset
    if preset is not None and preset not in PRESETS:
        raise ValueError(f"`preset` must be one of {', '.join(PRESETS)}, got {preset!r}.")
    if preset == "paper":
        kinds = [PaperGrowthConfig if kind is GrowthConfig else kind for kind in kinds]
    known = {item.name for kind in kinds for item in fields(kind) if item.init}
    unknown = [_alike(name, known) for name in given if name not in known]
    if unknown:
        raise ValueError(f"{file} has unknown options: {', '.join(unknown)}.")
    empty = _take_nones(words, kinds)

    parser = HfArgumentParser(
        kinds, parents=[above], prog=prog, usage=usage, epilog=epilog, formatter_class=_Help, allow_abbrev=False
    )
    named = {_name(word): word for word in words if word.startswith("--")}
    chosen = dict(defaults)
    for layer in (PRESETS.get(preset or "", {}), given, dict.fromkeys(empty), named):
        # Who says anything of when, or of how much, says it all: epochs of a preset do not mix with shares of a file.
        for group in (TIMES, LIMITS):
            if set(layer) & set(group):
                chosen |= {name: value for name, value in group.items() if name in known}
        if layer is not named:
            chosen |= layer
    parser.set_defaults(**chosen)
    *objects, _, rest = parser.parse_args_into_dataclasses(
        words, return_remaining_strings=True, look_for_args_file=False
    )
    if rest:
        # Without the values of unknown options, where it is these that are not understood.
        strange = [word for word in rest if word.startswith("--")] or rest
        parser.error(f"unknown: {', '.join(_alike(word, known) for word in strange)}")
    return tuple(objects)


def _name(word: str) -> str:
    """The field that an option of a command line is of."""
    return word.partition("=")[0].removeprefix("--").replace("-", "_")


def _take_nones(words: list[str], kinds: Iterable[type[Any]]) -> list[str]:
    """Take `--name None` out of a command line, for options that may be empty; returns their names."""
    optional = {name for kind in kinds for name, hint in get_type_hints(kind).items() if type(None) in get_args(hint)}
    names = []
    for index in reversed(range(len(words))):
        word = words[index]
        if not word.startswith("--") or _name(word) not in optional:
            continue
        if word.endswith("=None"):
            names.append(_name(word))
            del words[index]
        elif words[index + 1 : index + 2] == ["None"]:
            names.append(_name(word))
            del words[index : index + 2]
    return names


def _read(path: Path) -> dict[str, Any]:
    """The options of a YAML file, by the names of their fields."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no YAML file: {error}") from error
    if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
        raise ValueError(f"{path} must map names of options to values.")
    return {name.replace("-", "_"): value for name, value in values.items()}


def _alike(word: str, known: Iterable[str]) -> str:
    """An unknown option, with the known one that it may be meant for."""
    near = difflib.get_close_matches(_name(word), known, 1)
    return word + (f" (did you mean --{near[0].replace('_', '-')}?)" if near else "")
