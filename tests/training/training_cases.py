"""Tiny models, data and runs for the tests of training."""

import os
import subprocess
import sys
from dataclasses import fields as fields_of
from pathlib import Path

import torch
from read_guard import with_guard
from torch.utils.data import Dataset, IterableDataset
from transformers import Trainer, TrainingArguments, set_seed

from hf_saddle.growth import GrowthConfig
from hf_saddle.models import (
    SaddleDeiTConfig,
    SaddleDeiTForImageClassification,
    SaddleViTConfig,
    SaddleViTForImageClassification,
)
from hf_saddle.training import GrowthCallback, GrowthTrainer


TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "image_size": 8,
    "patch_size": 4,
    "num_labels": 4,
    "hidden_dropout_prob": 0.1,
}
MODELS = {
    "deit": (SaddleDeiTConfig, SaddleDeiTForImageClassification),
    "vit": (SaddleViTConfig, SaddleViTForImageClassification),
}
# transformers 5.23 renamed the option and deprecated the old name.
_NEW_NAME = "activation_checkpointing"
CHECKPOINTING = _NEW_NAME if _NEW_NAME in {f.name for f in fields_of(TrainingArguments)} else "gradient_checkpointing"
# Three events in twelve steps.
GROWING = {"at": [3, 6, 9], "unit": "steps", "significance": 0.5, "max_growth": 2.0}
PROBE = {"probe_samples": 32, "probe_batch_size": 16, "layers": [0]}


class Images(Dataset):
    """Random images whose label can be told from their mean."""

    def __init__(self, size: int = 64, noisy: bool = False):
        generator = torch.Generator().manual_seed(0)
        self.labels = torch.randint(0, 4, (size,), generator=generator)
        self.pixels = torch.randn(size, 3, 8, 8, generator=generator) + self.labels[:, None, None, None] / 2
        self.noisy = noisy

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index):
        pixels = self.pixels[index]
        # An augmentation that draws from the global generator, as torchvision's do.
        pixels = pixels + 0.1 * torch.randn(pixels.shape) if self.noisy else pixels
        return {"pixel_values": pixels, "labels": self.labels[index]}


class Stream(IterableDataset):
    """The same images without length."""

    def __init__(self, size: int = 64):
        self.images = Images(size)

    def __iter__(self):
        yield from (self.images[index] for index in range(len(self.images)))


# Images and labels are noise, of which held-out samples would support no growth.
RANKED = {"selection": "gain", "natural_step": 0.0}


def growth(**fields) -> GrowthConfig:
    ranked = {} if str(fields.get("operator")).startswith("block") else RANKED
    return GrowthConfig(**GROWING | PROBE | ranked | fields)


def across(**fields) -> GrowthConfig:
    """All kinds compete; whatever held-out samples gain by grows."""
    defaults = {"operator": "any", "layers": None, "significance": 0.0, "max_growth": 4.0}
    return GrowthConfig(**GROWING | PROBE | defaults | fields)


def no_growth(**fields) -> GrowthConfig:
    """Nothing is ever significant enough."""
    return growth(significance=1e9, **fields)


def tiny(kind: str = "vit", seed: int = 0, **fields):
    config_class, model_class = MODELS[kind]
    torch.manual_seed(seed)
    return model_class(config_class(**TINY | fields))


def arguments(folder, **fields) -> TrainingArguments:
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
        "dataloader_pin_memory": False,
    }
    return TrainingArguments(**defaults | fields)


def trainer_for(folder, config=None, trainer_class: type[Trainer] = GrowthTrainer, callbacks=(), **fields):
    """A trainer of a tiny model; fields that `Trainer` does not take are training arguments."""
    own = {"model", "model_init", "train_dataset", "eval_dataset", "data_collator", "optimizers", "compute_loss_func"}
    given = {name: fields.pop(name) for name in own & set(fields)}
    set_seed(0)
    if "model_init" not in given:
        given.setdefault("model", tiny())
    given.setdefault("train_dataset", Images())
    trainer = trainer_class(args=arguments(folder, **fields), callbacks=[*callbacks], **given)
    if config is not None:
        trainer.add_callback(GrowthCallback(config, trainer=trainer))
    return trainer


def train(folder, config=None, resume=None, **fields):
    trainer = trainer_for(folder, config, **fields)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def losses(trainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def events(trainer) -> list[dict]:
    """The history without what differs from run to run."""
    history = trainer.model.growth_history
    found = [] if history is None else history["events"]
    return [{key: value for key, value in event.items() if key != "seconds"} for event in found]


def assert_same_weights(model, other) -> None:
    ours, theirs = model.state_dict(), other.state_dict()
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name


def assert_same_optimizer(optimizer, other) -> None:
    ours, theirs = optimizer.state_dict(), other.state_dict()
    assert ours["param_groups"] == theirs["param_groups"]
    assert ours["state"].keys() == theirs["state"].keys()
    for index, state in ours["state"].items():
        for name, value in state.items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(theirs["state"][index][name])), (index, name)


def launch(
    script: str, *words: str, processes: int = 2, timeout: float = 240, restarts: int = 0
) -> subprocess.CompletedProcess:
    """Run a script of this folder in several processes."""
    path = Path(__file__).parent / script
    options = [f"--nproc_per_node={processes}", f"--max-restarts={restarts}"]
    options += ["--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0"]
    command = [sys.executable, "-m", "torch.distributed.run", *options, str(path), *words]
    root = Path(__file__).parents[2]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": with_guard(root, path.parent)}
    environment["CUDA_VISIBLE_DEVICES"] = ""  # a machine with GPUs is to find the same
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout)
