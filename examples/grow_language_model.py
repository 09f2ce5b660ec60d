"""Grow a small Llama on English text while it trains; it generates text, and is saved with its card.

    python examples/grow_language_model.py --output_dir outputs/llama
    python examples/grow_language_model.py --output_dir outputs/poems --dataset poems.txt

The text is the documentation of the Python language, which every Python brings. Every field of `GrowthConfig` and of
HF's `TrainingArguments` is an option; `--help` lists them.

One run on a 2-core AMD EPYC, one thread: 320,352 to 374,581 parameters, test perplexity 1,024 to 41, 162 s.
"""

import math
from dataclasses import dataclass

import torch
from transformers import AutoModelForCausalLM, HfArgumentParser, TrainingArguments, set_seed

from hf_saddle import GrowthCallback, GrowthConfig, GrowthHistory, GrowthTrainer
from hf_saddle.demo.architectures import DECODERS
from hf_saddle.demo.text import load_text, pack, train_tokenizer
from hf_saddle.models import SaddleLlamaForCausalLM  # every class of every family can be imported by such a name


@dataclass
class Options:
    """Text and model."""

    dataset: str = "python-docs"
    max_samples: int | None = None
    prompt: str = "The function returns"
    vocab_size: int = 1024
    block_size: int = 128
    hidden_size: int = 96
    num_hidden_layers: int = 4
    num_attention_heads: int = 4
    intermediate_size: int = 64


DEFAULTS = {
    "num_train_epochs": 8,
    "per_device_train_batch_size": 16,
    "per_device_eval_batch_size": 32,
    "learning_rate": 3e-3,
    "warmup_steps": 40,
    "lr_scheduler_type": "cosine",
    "eval_strategy": "epoch",
    "logging_steps": 50,
    "save_strategy": "no",
    "report_to": "none",
    "dataloader_pin_memory": torch.accelerator.is_available(),
    "at": [1, 2, 3],
    "unit": "epochs",
    "max_growth": 1.5,
}


def main() -> None:
    parser = HfArgumentParser((Options, GrowthConfig, TrainingArguments))
    parser.set_defaults(**DEFAULTS)
    options, growth, training = parser.parse_args_into_dataclasses()
    set_seed(training.seed)

    texts = load_text(options.dataset, max_samples=options.max_samples)
    tokenizer = train_tokenizer(texts["train"]["text"], options.vocab_size, enclose=False)
    blocks = pack(texts, tokenizer, options.block_size)
    model = SaddleLlamaForCausalLM(SaddleLlamaForCausalLM.config_class(**DECODERS["llama"](options, tokenizer)))

    trainer = GrowthTrainer(
        model=model,
        args=training,
        train_dataset=blocks["train"],
        eval_dataset=blocks["validation"],
        processing_class=tokenizer,
        callbacks=[GrowthCallback(growth)],
    )
    trainer.card_facts = {"dataset": options.dataset}
    before = trainer.evaluate(blocks["test"], metric_key_prefix="test")["test_loss"]
    trainer.train()
    after = trainer.evaluate(blocks["test"], metric_key_prefix="test")["test_loss"]
    trainer.save_model()
    trainer.create_model_card()

    model = AutoModelForCausalLM.from_pretrained(training.output_dir).eval()
    prompt = tokenizer(options.prompt, return_tensors="pt")
    tokens = model.generate(**prompt, max_new_tokens=40, do_sample=True, top_k=20)
    print(GrowthHistory.from_model(model).table())
    for name, loss in (("before", before), ("after", after)):
        print(f"{name}: test loss {loss:.4f}, perplexity {math.exp(loss):.1f}")
    print(f"generated: {tokenizer.decode(tokens[0], skip_special_tokens=True)!r}")
    print(f"saved to {training.output_dir}")


if __name__ == "__main__":
    main()
