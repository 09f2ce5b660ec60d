"""Expand a small language model by whole blocks and go on training on other text; what becomes of the old text?

    python examples/expand_language_model.py --output_dir outputs/expanded
    python examples/expand_language_model.py --output_dir outputs/poems --new_dataset poems.txt --where even

A Llama is trained on the documentation of the Python language, which every Python brings. Then new blocks, which
change nothing at first, are inserted where they would gain most on the new text (by default the source code of
Python's library), and only they are trained on it. Beside it the model without new blocks is trained as a whole on the
same text. The losses on both texts are printed before, right after the expansion, and after the training.
"""

import copy
import os
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import torch
from datasets import Dataset, DatasetDict
from transformers import HfArgumentParser, Trainer, TrainingArguments, set_seed

from hf_saddle.demo.architectures import DECODERS
from hf_saddle.demo.sources import three_splits
from hf_saddle.demo.text import load_text, pack, train_tokenizer
from hf_saddle.growth import GrowthHistory, block_candidates, count_parameters, insert_blocks_
from hf_saddle.models import SaddleLlamaForCausalLM


@dataclass
class Options:
    """Texts, model and expansion."""

    dataset: str = "python-docs"
    new_dataset: str = "python-sources"
    max_samples: int | None = None
    vocab_size: int = 1024
    block_size: int = 64
    hidden_size: int = 96
    num_hidden_layers: int = 4
    num_attention_heads: int = 4
    intermediate_size: int = 256
    new_blocks: int = 2
    how: Literal["copy", "identity", "average", "stack"] = "copy"
    where: Literal["measured", "even"] = "measured"
    freeze: bool = True  # train only the new blocks
    probe_samples: int = 256
    test_samples: int = 512  # of each text


DEFAULTS = {
    "max_steps": 300,
    "per_device_train_batch_size": 16,
    "per_device_eval_batch_size": 32,
    "learning_rate": 2e-3,
    "warmup_steps": 20,
    "lr_scheduler_type": "cosine",
    "logging_steps": 50,
    "save_strategy": "no",
    "report_to": "none",
    "dataloader_pin_memory": torch.accelerator.is_available(),
}


def load(name: str, max_samples: int | None) -> DatasetDict:
    """A text with its splits."""
    if name != "python-sources":
        return load_text(name, max_samples=max_samples)
    files = sorted(Path(os.__file__).parent.glob("*.py"))
    texts = [file.read_text(encoding="utf-8", errors="replace") for file in files]
    return three_splits(name, DatasetDict(train=Dataset.from_dict({"text": texts})), 0, max_samples, None)


def trained(model: Any, text: DatasetDict, arguments: TrainingArguments) -> Any:
    """The model, trained on a text in place."""
    set_seed(arguments.seed)
    Trainer(model=model, args=arguments, train_dataset=text["train"]).train()
    return model


def losses(model: Any, texts: dict[str, DatasetDict], arguments: TrainingArguments) -> dict[str, float]:
    """The loss on the test split of each text."""
    trainer = Trainer(model=model, args=arguments)
    return {name: trainer.evaluate(text["test"])["eval_loss"] for name, text in texts.items()}


def best_places(model: Any, text: Dataset, options: Options) -> list[int]:
    """The blocks behind which copies would gain most on a text."""
    samples = list(islice(text, options.probe_samples))
    batches = [
        {
            key: torch.stack([sample[key] for sample in samples[start : start + 16]]).to(model.device)
            for key in samples[0]
        }
        for start in range(0, len(samples), 16)
    ]
    found = block_candidates(model, batches, how=options.how)
    for candidate in found:
        print(f"a block after {candidate.after}: {candidate.gain:.4f} nats, {candidate.cost.parameters:,} parameters")
    best = sorted(range(len(found)), key=lambda place: -found[place].gain)
    return [best[index % len(best)] for index in range(options.new_blocks)]


def main() -> None:
    parser = HfArgumentParser((Options, TrainingArguments))
    parser.set_defaults(**DEFAULTS)
    options, arguments = parser.parse_args_into_dataclasses()
    set_seed(arguments.seed)

    raw = {"old": load(options.dataset, options.max_samples), "new": load(options.new_dataset, options.max_samples)}
    tokenizer = train_tokenizer(raw["old"]["train"]["text"], options.vocab_size, enclose=False)
    texts = {name: pack(text, tokenizer, options.block_size) for name, text in raw.items()}
    for text in texts.values():
        text["test"] = text["test"].select(range(min(options.test_samples, len(text["test"]))))
    config = SaddleLlamaForCausalLM.config_class(**DECODERS["llama"](options, tokenizer))
    model = trained(SaddleLlamaForCausalLM(config), texts["old"], arguments)
    rows = {"trained on the old text": losses(model, texts, arguments)}

    whole = copy.deepcopy(model)
    places: Any = "even" if options.where == "even" else best_places(model, texts["new"]["train"], options)
    number = options.new_blocks if options.where == "even" else None
    insert_blocks_(model, places, options.how, number=number, freeze=options.freeze)
    rows["expanded"] = losses(model, texts, arguments)
    rows["expanded, trained on the new text"] = losses(trained(model, texts["new"], arguments), texts, arguments)
    rows["not expanded, trained on the new text"] = losses(trained(whole, texts["new"], arguments), texts, arguments)

    print(GrowthHistory.from_model(model).table())
    for name, found in rows.items():
        print(f"{name}: loss on the old text {found['old']:.4f}, on the new text {found['new']:.4f}")
    print(f"{count_parameters(whole):,} → {count_parameters(model):,} parameters")
    model.save_pretrained(arguments.output_dir)
    tokenizer.save_pretrained(arguments.output_dir)
    print(f"saved to {arguments.output_dir}")


if __name__ == "__main__":
    main()
