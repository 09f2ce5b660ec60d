"""Trainer and Seq2SeqTrainer let language models grow, with their collators, metrics, checkpoints and resuming."""

import math

import pytest
import torch
from training_cases import assert_same_optimizer, assert_same_weights, events, growth, losses
from transformers import (
    DataCollatorForLanguageModeling,
    DataCollatorForSeq2Seq,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    Trainer,
    set_seed,
)

import hf_saddle.models as models
from hf_saddle.demo.metrics import compute_perplexity
from hf_saddle.demo.text import train_tokenizer
from hf_saddle.training import GrowthCallback, GrowthTrainer


WORDS = [
    "the",
    "small",
    "model",
    "grows",
    "where",
    "loss",
    "bends",
    "and",
    "text",
    "goes",
    "on",
    "with",
    "another",
    "word",
]
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
TOKENS = {"vocab_size": 270, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
MODELS = {
    "causal-llama": ("LlamaForCausalLM", SIZES | {"num_key_value_heads": 1}),
    "causal-gpt2": ("GPT2LMHeadModel", {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_inner": 24, "n_positions": 64}),
    "masked-bert": ("BertForMaskedLM", SIZES | {"max_position_embeddings": 64}),
    "seq2seq-t5": (
        "T5ForConditionalGeneration",
        {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2, "decoder_start_token_id": 2},
    ),
}


class GrowingSeq2SeqTrainer(GrowthTrainer, Seq2SeqTrainer):
    """A Seq2SeqTrainer with the checkpoints of a GrowthTrainer."""


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([" ".join(WORDS)], 270, enclose=False)


def rows(tokenizer, *, targets: bool) -> list[dict]:
    """Texts of unequal length, padded when batches are made."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for _ in range(48):
        length = int(torch.randint(3, 9, (1,), generator=generator))
        text = " ".join(WORDS[i] for i in torch.randint(len(WORDS), (length,), generator=generator))
        row = dict(tokenizer(text))
        found.append(row | {"labels": row["input_ids"][: length + 1]} if targets else row)
    return found


def collator_for(name: str, tokenizer, model):
    if name.startswith("seq2seq"):
        return DataCollatorForSeq2Seq(tokenizer, model=model)
    masked = name.startswith("masked")
    return DataCollatorForLanguageModeling(tokenizer, mlm=masked, mlm_probability=0.5 if masked else None)


def trainer_for(name, folder, tokenizer, config=None, trainer_class=None, **fields):
    set_seed(0)
    model_class = getattr(models, f"Saddle{MODELS[name][0]}")
    model = model_class(model_class.config_class(**MODELS[name][1], **TOKENS))
    sequences = name.startswith("seq2seq")
    data = rows(tokenizer, targets=sequences)
    defaults = {
        "output_dir": str(folder),
        "max_steps": 12,
        "per_device_train_batch_size": 8,
        "use_cpu": True,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "learning_rate": 1e-2,
        "disable_tqdm": True,
        "include_for_metrics": ["loss"],
    }
    kind = trainer_class or (GrowingSeq2SeqTrainer if sequences else GrowthTrainer)
    trainer = kind(
        model=model,
        args=Seq2SeqTrainingArguments(**defaults | fields),
        train_dataset=data,
        eval_dataset=data[:16],
        data_collator=collator_for(name, tokenizer, model),
        processing_class=tokenizer,
        compute_metrics=compute_perplexity,
        preprocess_logits_for_metrics=lambda logits, labels: labels,
    )
    if config is not None:
        trainer.add_callback(GrowthCallback(config, trainer=trainer))
    return trainer


# The masks of BERT are drawn when a batch is made, one ahead of the step: a resumed run draws others, in stock too.
@pytest.mark.parametrize("name", [name for name in MODELS if not name.startswith("masked")])
def test_a_resumed_run_is_the_straight_one(name, tmp_path, tokenizer):
    config = growth(layers=None)
    straight = trainer_for(name, tmp_path / "straight", tokenizer, config, save_strategy="steps", save_steps=5)
    straight.train()
    assert (
        len(events(straight)) == 3
        and events(straight)[0]["parameters_after"] > events(straight)[0]["parameters_before"]
    )
    resumed = trainer_for(name, tmp_path / "straight", tokenizer, config, save_strategy="steps", save_steps=5)
    resumed.train(resume_from_checkpoint=str(tmp_path / "straight" / "checkpoint-5"))
    assert losses(resumed) == losses(straight)
    assert events(resumed) == events(straight)
    assert_same_weights(resumed.model, straight.model)
    assert_same_optimizer(resumed.optimizer, straight.optimizer)


@pytest.mark.parametrize("name", MODELS)
def test_perplexity_is_that_of_the_evaluation_loss_and_picks_the_best(name, tmp_path, tokenizer):
    best = {"load_best_model_at_end": True, "metric_for_best_model": "perplexity", "greater_is_better": False}
    saving = {"eval_strategy": "steps", "eval_steps": 4, "save_strategy": "steps", "save_steps": 4}
    trainer = trainer_for(name, tmp_path, tokenizer, growth(layers=None), **best, **saving)
    trainer.train()
    evaluations = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    assert len(evaluations) == 3
    for entry in evaluations:
        assert entry["eval_perplexity"] == pytest.approx(math.exp(entry["eval_loss"]), rel=1e-6)
    if not name.startswith("masked"):  # whose masks are drawn anew
        again = trainer.evaluate()["eval_perplexity"]
        assert again == pytest.approx(min(entry["eval_perplexity"] for entry in evaluations), rel=1e-6)


@pytest.mark.parametrize("name", [name for name in MODELS if not name.startswith("masked")])
def test_the_probe_loss_is_the_logged_loss(name, tmp_path, tokenizer):
    """Of a probe that is the whole data, in one batch, as the evaluation takes it."""
    config = growth(at=[3], layers=None, probe_samples=48, probe_batch_size=48)
    trainer = trainer_for(name, tmp_path, tokenizer, config, max_steps=4, per_device_eval_batch_size=48)
    found = []

    def evaluate(*args, **kwargs):
        found.append(trainer.evaluate(trainer.train_dataset)["eval_loss"])

    callback = next(c for c in trainer.callback_handler.callbacks if isinstance(c, GrowthCallback))
    before = callback.on_step_end

    def measured(args, state, control, **kwargs):
        if state.global_step == 3:
            evaluate()
        return before(args, state, control, **kwargs)

    callback.on_step_end = measured
    trainer.train()
    assert events(trainer)[0]["loss_before"] == pytest.approx(found[0], rel=1e-5)


@pytest.mark.parametrize("name", ["causal-llama", "seq2seq-t5"])
def test_plain_trainers_let_them_grow(name, tmp_path, tokenizer):
    kind = Seq2SeqTrainer if name.startswith("seq2seq") else Trainer
    trainer = trainer_for(name, tmp_path, tokenizer, growth(layers=None), trainer_class=kind)
    trainer.train()
    assert sum(event["parameters_after"] > event["parameters_before"] for event in events(trainer)) > 0


def test_seq2seq_predicts_by_generating_after_growth(tmp_path, tokenizer):
    trainer = trainer_for("seq2seq-t5", tmp_path, tokenizer, growth(layers=None), predict_with_generate=True)
    trainer.compute_metrics = trainer.preprocess_logits_for_metrics = None
    trainer.train()
    predictions = torch.as_tensor(trainer.predict(trainer.eval_dataset, max_new_tokens=5).predictions)
    batch = trainer.data_collator(trainer.eval_dataset[:8])
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    expected = trainer.model.eval().generate(**inputs, max_new_tokens=5)
    assert len(predictions) == 16 and torch.equal(predictions[:8, : expected.shape[1]], expected)
