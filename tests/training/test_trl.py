"""TRL's SFTTrainer lets language models grow, with packing."""

import pytest
from datasets import Dataset
from training_cases import growth

from hf_saddle.demo.text import load_text, train_tokenizer
from hf_saddle.growth import GrowthHistory
from hf_saddle.models import SaddleLlamaForCausalLM
from hf_saddle.training import GrowthCallback


trl = pytest.importorskip("trl", reason="trl is not installed; make test-pretrained installs it")


@pytest.mark.pretrained
@pytest.mark.filterwarnings("ignore::FutureWarning")  # TRL sets an option of transformers by its older name
@pytest.mark.parametrize("packing", [False, True])
def test_supervised_fine_tuning_grows(packing, tmp_path):
    texts = load_text("python-docs", max_samples=40)["train"]["text"]
    tokenizer = train_tokenizer(texts, 300, enclose=False)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    tokens = {"vocab_size": len(tokenizer), "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    config_class = SaddleLlamaForCausalLM.config_class
    model = SaddleLlamaForCausalLM(config_class(**sizes, **tokens, num_key_value_heads=2, max_position_embeddings=64))
    trainer = trl.SFTTrainer(
        model=model,
        args=trl.SFTConfig(
            output_dir=str(tmp_path),
            max_steps=12,
            per_device_train_batch_size=4,
            max_length=64,
            packing=packing,
            use_cpu=True,
            bf16=False,
            report_to="none",
            disable_tqdm=True,
            logging_steps=1,
            save_strategy="no",
        ),
        train_dataset=Dataset.from_dict({"text": [text[:400] for text in texts]}),
        processing_class=tokenizer,
    )
    # Packed without padding, a batch is one sequence, and counts as one sample.
    trainer.add_callback(GrowthCallback(growth(layers=None, probe_batch_size=1 if packing else 16), trainer=trainer))
    trainer.train()
    history = GrowthHistory.from_model(trainer.model)
    history.check(trainer.model)
    assert len(history) == 3 and sum(event.neurons for event in history.events) > 0
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert history.events[0].loss_before == pytest.approx(losses[3], rel=0.1)
