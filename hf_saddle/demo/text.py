"""English text that every Python brings, any other text by its name, and tokens of it."""

from itertools import chain
from pydoc_data.topics import topics
from typing import Any

from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from .sources import pick_column, pick_label, read_source, refuse_gaps, three_splits, with_classes


# The documentation of the language that `help()` shows.
PYTHON_DOCS = "python-docs"
_CHAPTERS = 10
_SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "mask_token": "<mask>"}


def load_text(
    name: str,
    seed: int = 0,
    max_samples: int | None = None,
    *,
    labelled: bool = False,
    dataset_config: str | None = None,
    text_column: str | None = None,
    label_column: str | None = None,
) -> DatasetDict:
    """
    Load a data set of texts with the splits `train`, `validation` and `test`.

    Args:
        name (`str`):
            `"python-docs"` (the documentation of the Python language in the standard library; labelled, passages of
            its ten longest chapters), the name of a data set on the Hub, or a file of CSV, JSON, parquet or text.
        seed (`int`, *optional*, defaults to 0):
            Seed of the split, where the source has none.
        max_samples (`int`, *optional*):
            Keep at most that many texts of each split.
        labelled (`bool`, *optional*, defaults to `False`):
            Whether each text has a class.
        dataset_config (`str`, *optional*):
            Configuration, where a data set on the Hub has several.
        text_column (`str`, *optional*):
            The column of texts, where there are several.
        label_column (`str`, *optional*):
            The column of labels, where there are several.

    Returns:
        `DatasetDict`: columns `text` and, if `labelled`, `label` (`ClassLabel`).

    Raises:
        ValueError: If there is no such data set, it has no such column, or a row of it is empty.
    """
    if name == PYTHON_DOCS:
        splits = _python_docs(labelled)
    else:
        splits = read_source(name, dataset_config)
        features = splits["train"].features
        usual = ("text", "sentence", "content")
        text = pick_column(name, features, "text", lambda _, feature: _is_text(feature), usual, text_column)
        if not _is_text(features[text]):
            raise ValueError(f"The column {text!r} of the data set {name!r} has no text: it is {features[text]}.")
        columns = {text: "text"} | ({pick_label(name, features, label_column, text): "label"} if labelled else {})
        splits = splits.select_columns(list(columns)).rename_columns(columns)
        refuse_gaps(name, splits, "text", lambda text: text is None)
        splits = with_classes(name, splits) if labelled else splits
    return three_splits(name, splits, seed, max_samples, "label" if labelled else None)


def train_tokenizer(texts: list[str], vocab_size: int, *, enclose: bool) -> PreTrainedTokenizerFast:
    """
    A byte-level BPE tokenizer: every text can be written in its tokens, and read back.

    Args:
        texts (`list[str]`): What the merges are learnt from.
        vocab_size (`int`): Number of tokens, at least the 256 bytes and the special ones.
        enclose (`bool`):
            Whether texts stand between `<s>` and `</s>`, from which classifiers read; a text to be continued must not
            have an end.

    Raises:
        ValueError: If the vocabulary has no room for all bytes.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    if vocab_size < len(alphabet) + len(_SPECIAL):
        raise ValueError(f"`vocab_size` must be at least {len(alphabet) + len(_SPECIAL)}, got {vocab_size}.")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=list(_SPECIAL.values()), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    if enclose:
        marks = [(token, tokenizer.token_to_id(token)) for token in ("<s>", "</s>")]
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=marks)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, **_SPECIAL, model_input_names=["input_ids", "attention_mask"]
    )


def tokenize(splits: DatasetDict, tokenizer: PreTrainedTokenizerBase, max_length: int) -> DatasetDict:
    """Turn labelled texts into tokens, cut off after `max_length`, with `labels`. Batches are padded when made."""

    def to_tokens(batch: dict[str, Any]) -> dict[str, Any]:
        return {**tokenizer(batch["text"], truncation=True, max_length=max_length), "labels": batch["label"]}

    return splits.map(to_tokens, batched=True, remove_columns=["text", "label"], keep_in_memory=True)


def pack(splits: DatasetDict, tokenizer: PreTrainedTokenizerBase, block_size: int) -> DatasetDict:
    """
    Turn texts into blocks of `block_size` tokens, one text after the other with an end of text between them.

    Returns:
        `DatasetDict`: columns `input_ids` and `labels`, equal, as causal language models shift the labels themselves.

    Raises:
        ValueError: If a split has not enough text for one block.
    """
    end = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.sep_token_id

    def to_blocks(batch: dict[str, Any]) -> dict[str, Any]:
        texts = [
            ids if ids[-1:] == [end] or end is None else [*ids, end] for ids in tokenizer(batch["text"])["input_ids"]
        ]
        tokens = list(chain.from_iterable(texts))
        blocks = [tokens[i : i + block_size] for i in range(0, len(tokens) - block_size + 1, block_size)]
        return {"input_ids": blocks, "labels": blocks}

    packed = splits.map(to_blocks, batched=True, batch_size=None, remove_columns=["text"], keep_in_memory=True)
    for name, split in packed.items():
        if not len(split):
            raise ValueError(f"The split {name!r} has not enough text for one block of {block_size} tokens.")
    return packed.with_format("torch")


def _python_docs(labelled: bool) -> DatasetDict:
    if not labelled:
        texts = [passage for name in sorted(topics) for passage in _passages(topics[name], 2000)]
        return DatasetDict(train=Dataset.from_dict({"text": texts}))
    chapters = sorted(sorted(topics), key=lambda name: -len(topics[name]))[:_CHAPTERS]
    rows = [(text, label) for label, name in enumerate(chapters) for text in _passages(topics[name], 300)]
    columns = {"text": [text for text, _ in rows], "label": [label for _, label in rows]}
    features = Features({"text": Value("string"), "label": ClassLabel(names=chapters)})
    return DatasetDict(train=Dataset.from_dict(columns, features=features))


def _passages(text: str, size: int) -> list[str]:
    """Whole paragraphs together, up to about so many characters."""
    passages = [""]
    for paragraph in filter(None, map(str.strip, text.split("\n\n"))):
        if passages[-1] and len(passages[-1]) + len(paragraph) > size:
            passages.append("")
        passages[-1] += f"{paragraph}\n\n"
    return [passage.strip() for passage in passages]


def _is_text(feature: Any) -> bool:
    return getattr(feature, "dtype", None) in ("string", "large_string")
