"""What `hf-saddle grow` is told about model and data."""

from dataclasses import dataclass, field


TASK_NAMES = ("image-classification", "text-classification", "causal-lm")

_SIZES = (
    "max_samples",
    "image_size",
    "patch_size",
    "block_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
)


@dataclass
class ModelAndDataArguments:
    """Which model starts on which data, for which task. The default is a small, narrow model from scratch."""

    _argument_group_name = "model and data"

    task: str = field(default=TASK_NAMES[0], metadata={"help": f"One of {', '.join(TASK_NAMES)}."})
    dataset: str | None = field(
        default=None,
        metadata={
            "help": "'digits' or 'fashion-mnist' (images), 'python-docs' (text), a data set on the Hub, a folder of "
            "images in folders by class, or a CSV, JSON, parquet or text file. Default: 'digits' or 'python-docs'."
        },
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of the data set on the Hub."})
    image_column: str | None = field(default=None, metadata={"help": "Column of images, where there are several."})
    text_column: str | None = field(default=None, metadata={"help": "Column of texts, where there are several."})
    label_column: str | None = field(default=None, metadata={"help": "Column of labels, where there are several."})
    max_samples: int | None = field(default=None, metadata={"help": "Keep at most that many samples of each split."})
    model_name_or_path: str | None = field(
        default=None, metadata={"help": "Stock or Saddle checkpoint (folder or repo id) to start from."}
    )
    architecture: str | None = field(
        default=None,
        metadata={"help": "Family of a model from scratch, as 'vit', 'resnet', 'bert', 'llama'. Default: by task."},
    )
    image_size: int = field(default=16, metadata={"help": "Side of the model's input in pixels, from scratch."})
    patch_size: int = field(default=4, metadata={"help": "Side of a patch in pixels, from scratch."})
    vocab_size: int = field(default=1024, metadata={"help": "Tokens of the byte-level tokenizer, from scratch."})
    block_size: int = field(default=128, metadata={"help": "Tokens of a sample: packed, or at most."})
    hidden_size: int = field(default=64, metadata={"help": "Width of the residual stream, from scratch."})
    num_hidden_layers: int = field(default=4, metadata={"help": "Number of layers, from scratch."})
    num_attention_heads: int = field(default=4, metadata={"help": "Number of heads, from scratch."})
    intermediate_size: int = field(
        default=32, metadata={"help": "Initial width of every MLP, from scratch, where the family leaves a choice."}
    )
    overwrite: bool = field(
        default=False, metadata={"help": "Train anew in a folder that has a model or comparison, and remove that."}
    )
    dry_run: bool = field(
        default=False,
        metadata={"help": "Say what would grow when, and what it would cost, without training or writing anything."},
    )

    def __post_init__(self) -> None:
        if self.task not in TASK_NAMES:
            raise ValueError(f"`task` must be one of {', '.join(TASK_NAMES)}, got {self.task!r}.")
        for name in _SIZES:
            value = getattr(self, name)
            # What follows a token is what a language model learns.
            least = 2 if name == "block_size" and self.task == "causal-lm" else 1
            if value is not None and value < least:
                raise ValueError(f"`{name}` must be at least {least} for {self.task}, got {value}.")
