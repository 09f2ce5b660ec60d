"""What several commands need: quiet libraries, a model from a folder or repo, data, tables."""

from pathlib import Path
from typing import Any

import datasets
import torch
from huggingface_hub.utils import disable_progress_bars
from rich.console import Console
from rich.table import Table
from rich.text import Text
from safetensors import SafetensorError
from transformers import AutoConfig, AutoProcessor, PreTrainedConfig
from transformers.utils import CONFIG_NAME, cached_file, has_file, logging

from hf_saddle import models
from hf_saddle.demo.arguments import ModelAndDataArguments
from hf_saddle.demo.tasks import TASKS
from hf_saddle.growth.counting import sample_of
from hf_saddle.hub.escape import plain
from hf_saddle.models import FAMILIES, GrowablePreTrainedModel, SaddleConfig
from hf_saddle.models.history_file import read_history
from hf_saddle.models.json_files import read_json
from hf_saddle.models.loading import check_files
from hf_saddle.models.stock_classes import auto_classes


# Of image processors, tokenizers and both together, as transformers names them.
PROCESSOR_FILES = (
    "preprocessor_config.json", "processor_config.json", "tokenizer_config.json", "tokenizer.json",
    "special_tokens_map.json", "added_tokens.json", "vocab.txt", "vocab.json", "merges.txt", "tokenizer.model",
    "spiece.model", "chat_template.jinja",
)  # fmt: skip


def quiet() -> None:
    """No progress bars and warnings between the lines of a table."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    datasets.disable_progress_bars()
    disable_progress_bars()


def load_config(source: str, revision: str | None = None) -> PreTrainedConfig:
    """
    The config of a model.

    Raises:
        ValueError: If there is no such folder or repo, or no config in it.
    """
    if not Path(source).is_dir() and (Path(source).exists() or source.count("/") > 1 or source.startswith((".", "/"))):
        raise ValueError(f"{source} is not a folder with a saved model.")
    if Path(source).is_dir() and not Path(source, CONFIG_NAME).exists():
        raise ValueError(f"The folder {source} has no {CONFIG_NAME}: no model was saved there.")
    try:
        file = cached_file(source, CONFIG_NAME, **at(revision))
    except OSError as error:
        if Path(source).is_dir():
            raise
        raise ValueError(f"There is no folder {source}, and no such model was found on the Hub: {error}") from error
    if file is not None:
        read_json(file, "The config")  # transformers' own errors for what is no JSON object name no file
    return AutoConfig.from_pretrained(source, **at(revision), trust_remote_code=False)


def load_model(source: str, revision: str | None = None) -> GrowablePreTrainedModel:
    """
    A growable model in eval mode.

    Raises:
        ValueError: If it is of another kind, damaged, or not there.
    """
    kind = model_class(load_config(source, revision), source)
    model: GrowablePreTrainedModel = kind.from_pretrained(source, **at(revision)).eval()
    return model


def load_shape(source: str, revision: str | None = None) -> GrowablePreTrainedModel:
    """
    A growable model without its weights, with its growth history; errors as in [`load_model`].

    Weights in a folder are not read, but must be enough for the layers of the config, before these are built.
    """
    config = load_config(source, revision)
    kind = model_class(config, source)
    if Path(source).is_dir():
        try:
            check_files(kind, source, {}, {"config": config})
        except SafetensorError as error:
            raise ValueError(f"The weights in {source} are damaged: {error}") from error
    with torch.device("meta"):
        model = kind(config)
    model.growth_history = read_history(source, at(revision))
    return model


def model_class(config: PreTrainedConfig, source: str) -> type[GrowablePreTrainedModel]:
    """
    The growable class that a config was saved with.

    Raises:
        ValueError: If it was none.
    """
    name = architecture(config, source)
    if not isinstance(config, SaddleConfig) or not name.startswith("Saddle"):
        raise ValueError(
            f"{source} is a {name or config.model_type}, which does not grow. Make a growable model of a stock one "
            f"with `hf-saddle convert`; it knows {', '.join(FAMILIES)}."
        )
    kind = growable_class(name)
    if kind is None or kind.config_class is not type(config):
        raise ValueError(
            f"{source} is a {name}, which is no model class of hf_saddle for configs of type {config.model_type!r}."
        )
    return kind


def architecture(config: PreTrainedConfig, source: str) -> str:
    """
    The name of the class that a model was saved with, or an empty one where its config does not tell.

    Raises:
        ValueError: If the config has something else in its place.
    """
    names = config.architectures or [""]
    if not isinstance(names, list) or not isinstance(names[0], str):
        raise ValueError(
            f"`architectures` in the config of {source} must be a list of names of classes, got {plain(names)}."
        )
    return names[0]


def growable_class(name: str) -> type[GrowablePreTrainedModel] | None:
    """The growable model class of a name, as `SaddleGPT2LMHeadModel`; `None` if there is none."""
    found = getattr(models, name, None)
    return found if isinstance(found, type) and issubclass(found, GrowablePreTrainedModel) else None


def at(revision: str | None) -> dict[str, str]:
    """Keyword arguments of `from_pretrained` for a revision; none for a folder or the main branch."""
    return {} if revision is None else {"revision": revision}


def find_processor(source: str, revision: str | None) -> Any:
    """
    The image processor, tokenizer or both that were saved with a model; `None` where it was saved without.

    Raises:
        ValueError: If there are files of one, but it cannot be loaded.
    """
    try:
        return AutoProcessor.from_pretrained(source, **at(revision))
    except Exception as error:  # of many kinds: tokenizers raises bare ones
        found = [name for name in PROCESSOR_FILES if has_file(source, name, **at(revision))]
        if not found:
            return None
        raise ValueError(
            f"{source} has {', '.join(found)}, of which no image processor or tokenizer can be loaded: {error}"
        ) from error


def load_data(
    revision: str | None, model: GrowablePreTrainedModel, arguments: ModelAndDataArguments, split: str, seed: int
) -> tuple[datasets.Dataset, Any]:
    """
    Preprocessed samples of a split of a data set, as a training with a seed has them, and what makes batches. The
    image processor or tokenizer is the model's own.

    Raises:
        ValueError: If there is no such data set or split, or the model does not know its labels.
    """
    task = TASKS[arguments.task]
    splits = task.load(arguments, seed)
    if split not in splits:
        raise ValueError(f"The data set {arguments.dataset!r} has no split {split!r}; it has {', '.join(splits)}.")
    if "label" in splits[split].features:
        labels = splits[split].features["label"].num_classes
        if labels > model.config.num_labels:
            raise ValueError(
                f"The data set {arguments.dataset!r} has {labels} labels, the model {model.config.num_labels}."
            )
    processor = task.processor(arguments, splits, **at(revision))
    wanted = datasets.DatasetDict(train=splits[split])
    return task.prepare(wanted, processor, arguments)["train"], task.collator(processor)


def task_of(model: GrowablePreTrainedModel) -> str:
    """
    The task that a model is trained for.

    Raises:
        ValueError: If the commands have no data for it.
    """
    known = dict(auto_classes(model.config.model_type.removeprefix("saddle_")))
    for name, task in TASKS.items():
        if model.stock_class.__name__ in known.get(task.auto_class.__name__, ()):
            return name
    raise ValueError(
        f"There are no data for a {type(model).__name__}: the command knows {', '.join(TASKS)}. Call "
        "`hf_saddle.analyze_curvature` with batches of your own."
    )


def random_inputs(model: GrowablePreTrainedModel, number: int) -> dict[str, torch.Tensor]:
    """Random inputs for a model, as many samples as are wanted: pixels, tokens or features of sound."""
    found, fields = {}, model.config.to_dict()
    for name, tensor in sample_of(model).items():
        if tensor.is_floating_point():
            found[name] = torch.randn(number, *tensor.shape[1:])
            continue
        # Not of all positions: those of RoBERTa begin behind its padding token.
        length = (tensor.shape[-1] + 1) // 2
        tokens = torch.randint(fields["vocab_size"], (number, *tensor.shape[1:-1], length))
        end = fields.get("eos_token_id")
        # Sizes are often changed without the number of the token at the end, which then lies beyond them.
        if isinstance(end, int) and 0 <= end < fields["vocab_size"] and fields["vocab_size"] > 1:
            # T5 classifies at the end of sequences, and wants as many ends in each.
            tokens[tokens == end] = (end + 1) % fields["vocab_size"]
            tokens[..., -1] = end
        found[name] = tokens
    return found


def print_table(title: str, columns: list[str], rows: list[list[str]]) -> None:
    """A table on the terminal; numbers to the right. Foreign text is not taken for markup."""
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, justify="left" if column in ("linear", "depth") else "right")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    Console().print(table)
