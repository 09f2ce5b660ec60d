"""A Trainer with adapters on a growable model: its best model and its resumed runs are those of the stock way."""

import peft
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from training_cases import Images, assert_same_weights, growth, losses, tiny, train, trainer_for
from transformers import Trainer

from hf_saddle.training import GrowthTrainer


GROWN = {0: {"intermediate_size": 30, "skip_sizes": {"mlp.fc1": [4, 2], "attention.q_proj": [3]}}}
every_growth = pytest.mark.parametrize("grown", [None, GROWN], ids=["ungrown", "grown"])
every_trainer = pytest.mark.parametrize("trainer_class", [Trainer, GrowthTrainer])
LORA = LoraConfig(r=2, target_modules=["q_proj", "fc1", "fc2"], modules_to_save=["classifier"])


def wrapped(grown):
    torch.manual_seed(0)
    return get_peft_model(tiny(per_layer_config=grown, hidden_dropout_prob=0.0), LORA)


def added(grown):
    """Adapters by transformers itself."""
    model = tiny(per_layer_config=grown)
    model.add_adapter(LoraConfig(r=2, target_modules=["q_proj", "fc1", "fc2"]))
    return model


@every_growth
@every_trainer
def test_a_resumed_run_ends_as_an_uninterrupted_one(tmp_path, grown, trainer_class):
    whole = train(tmp_path, trainer_class=trainer_class, model=wrapped(grown), save_strategy="steps", save_steps=6)
    again = train(
        tmp_path / "again", trainer_class=trainer_class, model=wrapped(grown), resume=str(tmp_path / "checkpoint-6")
    )
    assert losses(again) == losses(whole)
    assert_same_weights(again.model, whole.model)


@every_growth
@every_trainer
def test_the_best_model_is_loaded_at_the_end(tmp_path, grown, trainer_class):
    trainer = train(
        tmp_path,
        trainer_class=trainer_class,
        model=wrapped(grown),
        eval_dataset=Images(16),
        eval_strategy="steps",
        eval_steps=3,
        save_strategy="steps",
        save_steps=3,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        greater_is_better=True,  # so that it is not the last one
    )
    evaluated = {entry["step"]: entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry}
    step = trainer.state.best_global_step
    assert step < 12
    assert evaluated[step] == max(evaluated.values()) > evaluated[12]
    assert trainer.evaluate()["eval_loss"] == evaluated[step]


@every_growth
def test_what_a_trainer_saved_is_loaded_onto_the_base(tmp_path, grown):
    base = tiny(per_layer_config=grown, hidden_dropout_prob=0.0)
    base.save_pretrained(tmp_path / "base")
    trainer = train(tmp_path / "run", trainer_class=Trainer, model=get_peft_model(base, LORA))
    trainer.save_model()
    loaded = PeftModel.from_pretrained(type(base).from_pretrained(tmp_path / "base"), tmp_path / "run").eval()
    pixels = Images().pixels[:4]
    with torch.no_grad():
        assert torch.equal(loaded(pixels).logits, trainer.model.eval()(pixels).logits)
    merged = trainer.model.merge_and_unload()
    grown_on = train(tmp_path / "more", growth(), model=merged.requires_grad_(True))
    assert grown_on.model.growth_history["events"]


@pytest.mark.parametrize("make", [wrapped, added, lambda grown: peft.inject_adapter_in_model(LORA, tiny())])
def test_growing_under_adapters_is_refused_before_the_first_step(tmp_path, make):
    trainer = trainer_for(tmp_path, growth(), model=make(None))
    with pytest.raises(ValueError, match="merge_and_unload|delete_adapter"):
        trainer.train()
    assert trainer.state.global_step == 0
