"""What `test_fsdp_trainer.py` runs in several processes: a GrowthTrainer whose model FSDP2 shards, on gloo."""

import gc
import os
import signal
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
import transformers
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from fsdp_cases import (
    CONFIG,
    FREEZING,
    KINDS,
    OWN_FIELDS,
    PURSUIT,
    Sentences,
    furthest,
    llama_model,
    whole,
    write_what_is_found_by,
)
from torch.distributed.fsdp import FSDPModule
from training_cases import CHECKPOINTING, events, growth, losses, tiny, trainer_for

from hf_saddle.training import GrowthTrainer, last_whole_checkpoint
from hf_saddle.training.sharding import course, sharded, sharded_growth


def sharded_trainer(folder, config=CONFIG, state_dict_type="FULL_STATE_DICT", fsdp=None, **fields):
    """
    A GrowthTrainer that shards. Accelerate does so only where it takes the processes for those of GPUs, and a Trainer
    on CPUs goes on with DDP; this is the only thing that it is told wrongly here.
    """
    AcceleratorState._reset_state(reset_partial_state=True)
    fields = OWN_FIELDS | {"per_device_train_batch_size": 16 // dist.get_world_size()} | fields
    fields.setdefault("model", tiny(hidden_dropout_prob=0.0).double())
    # Of a ViT, Accelerate would shard the embeddings by default, and then once more what is in them, which fails.
    fsdp_config = {"version": 2, "transformer_layer_cls_to_wrap": ["ViTLayer"], "state_dict_type": state_dict_type}
    fsdp_config |= fsdp or {}
    original = transformers.Trainer.create_accelerator_and_postprocess

    def create(trainer):
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
        original(trainer)

    transformers.Trainer.create_accelerator_and_postprocess = create
    try:
        return trainer_for(folder, config, fsdp=True, fsdp_config=fsdp_config, **fields)
    finally:
        transformers.Trainer.create_accelerator_and_postprocess = original


def run(folder, config=CONFIG, resume=None, **fields):
    trainer = sharded_trainer(folder, config, **fields)
    trainer.train(resume_from_checkpoint=resume)
    assert isinstance(trainer.model, FSDPModule) and trainer.model is trainer.model_wrapped
    return trainer


def told(trainer, folder, name):
    """What a run came to; the first process writes weights and states."""
    weights, states = whole(trainer.model, trainer.optimizer.optimizer)
    if dist.get_rank() == 0:
        torch.save((weights, states), folder / f"{name}.pt")
    return {
        "losses": losses(trainer),
        "events": events(trainer),
        "rates": [group["lr"] for group in trainer.optimizer.param_groups],
    }


def distance(trainer, other):
    ours, theirs = whole(trainer.model, trainer.optimizer.optimizer), whole(other.model, other.optimizer.optimizer)
    return max(furthest(a, b) for a, b in zip(ours, theirs, strict=True))


class Watch:
    """The most bytes that all tensors together hold in the growth of a sharded model, beyond what they did before."""

    def __init__(self, monkey):
        self.most, self._before = 0, 0
        grow, fingerprint = sharded.grow_sharded_, course.fingerprint

        def growing(*args, **kwargs):
            self._before = bytes_held()
            return grow(*args, **kwargs)

        def looking(*args, **kwargs):
            # A grown block is beside what it was.
            self.most = max(self.most, bytes_held() - self._before)
            return fingerprint(*args, **kwargs)

        for module in (sharded, sharded_growth):  # the growth itself, and its trials
            monkey.setattr(module, "grow_sharded_", growing)
        monkey.setattr(course, "fingerprint", looking)


def bytes_held():
    tensors = [thing for thing in gc.get_objects() if type(thing) in (torch.Tensor, torch.nn.Parameter)]
    storages = [tensor.untyped_storage() for tensor in tensors if tensor.device.type == "cpu"]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def resumed(through, folder, step, **fields):
    """A run that resumes from what another one saved, beside it."""
    again = run(folder, resume=f"{folder}/checkpoint-{step}", **fields)
    return {
        "distance": distance(again, through),
        "losses": losses(again) == losses(through),
        "events": events(again) == events(through),
    }


def shards(folder):
    """A run that saves shards, in steps 4 and 8, and one that resumes before its second event."""
    kind = {"state_dict_type": "SHARDED_STATE_DICT"}
    through = run(folder / "shards", save_strategy="steps", save_steps=4, **kind)
    return told(through, folder, "shards") | {"resumed": resumed(through, folder / "shards", 4, **kind)}


def full(folder):
    """A run that saves whole checkpoints, and one that resumes after its second event."""
    through = run(folder / "full", save_strategy="steps", save_steps=8)
    through.save_model(folder / "saved")
    return told(through, folder, "full") | {"resumed": resumed(through, folder / "full", 8)}


def kinds(folder):
    """Neurons, heads and blocks compete; shards in step 4, between two events."""
    return saved_and_resumed(folder, "kinds", KINDS)


def freezing(folder):
    """Only new blocks are trained, also by a run that resumes between two events."""
    return saved_and_resumed(folder, "freezing", FREEZING)


def saved_and_resumed(folder, name, config):
    kind = {"state_dict_type": "SHARDED_STATE_DICT", "config": config}
    through = run(folder / name, save_strategy="steps", save_steps=4, **kind)
    return told(through, folder, name) | {"resumed": resumed(through, folder / name, 4, **kind)}


def options(folder):
    """Neurons by pursuit; a frozen part, and what a training may do beside."""
    options = {"gradient_accumulation_steps": 2, "max_grad_norm": 0.05, CHECKPOINTING: True}
    options |= {"per_device_train_batch_size": 4, "lr_scheduler_type": "cosine", "warmup_steps": 2}
    options["model"] = tiny(hidden_dropout_prob=0.0).double()
    options["model"].vit.embeddings.requires_grad_(False)
    return told(run(folder / "options", PURSUIT, **options), folder, "options")


ONCE = {"layers": None, "significance": 0.0, "max_growth": 3.0, "at": [3]}


def memory(folder):
    deep = tiny(hidden_dropout_prob=0.0, num_hidden_layers=6).double()
    with pytest.MonkeyPatch.context() as monkey:
        watch = Watch(monkey)
        trainer = run(folder / "memory", model=deep, config=growth(**ONCE))
    layers = trainer.model.vit.layers
    return {
        "most": watch.most,
        "block": max(sum(p.numel() * p.element_size() for p in layer.parameters()) for layer in layers),
        "all": sum(p.numel() * p.element_size() for p in trainer.model.parameters()),
        "layers": len({layer["linear"].split(".")[2] for event in events(trainer) for layer in event["layers"]}),
    }


def mixed(folder):
    return in_halves(folder, "mixed", CONFIG)


def mixed_kinds(folder):
    return in_halves(folder, "mixed_kinds", KINDS)


def in_halves(folder, name, config):
    """A run that computes in bfloat16, and one that resumes."""

    def once(resume=None, **saving):
        model = tiny(hidden_dropout_prob=0.0)
        return run(folder / name, config, resume, model=model, data_collator=None, bf16=True, **saving)

    through = once(save_strategy="steps", save_steps=4)
    again = once(f"{folder}/{name}/checkpoint-8")
    facts = {"distance": distance(again, through), "dtype": str(next(through.model.parameters()).dtype)}
    return told(through, folder, name) | facts


def llama(folder):
    """A language model with tied embeddings, sharded as Accelerate does it by default."""
    fsdp = {"transformer_layer_cls_to_wrap": None}
    fields = {"model": llama_model(), "train_dataset": Sentences(), "data_collator": None}
    return told(run(folder / "llama", PURSUIT, fsdp=fsdp, **fields), folder, "llama")


def refused(folder):
    """What is refused before the first step."""
    cases = {
        "fsdp_activation_checkpointing": {"fsdp": {"activation_checkpointing": True}},
        "cpu_ram_efficient_loading": {"fsdp": {"cpu_ram_efficient_loading": True}},
        "seconds": {"config": growth(budget_unit="seconds", selection="pursuit", layers=None)},
        "best": {"load_best_model_at_end": True, "eval_strategy": "steps", "save_strategy": "steps"},
        "batch_size": {"auto_find_batch_size": True},
        "optimizer": {"optim": "adafactor"},
        "probe": {"config": growth(layers=None, probe_samples=33, probe_batch_size=16)},
        "halves": {"config": growth(layers=None, probe_samples=34, probe_batch_size=16)},
        "plain": {"trainer_class": transformers.Trainer},
    }
    found = {}
    for case, fields in cases.items():
        trainer = sharded_trainer(folder / case, **{"eval_dataset": Sentences()} | fields)
        try:
            trainer.train()
            message = "trained"
        except ValueError as error:
            message = str(error)
        found[case] = [message, trainer.state.global_step]
    return found


class Killed(GrowthTrainer):
    """Whose second process is killed while it saves the optimizer the second time, but not once it was restarted."""

    def _save_optimizer_and_scheduler(self, output_dir):
        if self.state.global_step == 8 and dist.get_rank() == 1 and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
            os.kill(os.getpid(), signal.SIGKILL)
        super()._save_optimizer_and_scheduler(output_dir)


def killed(folder):
    saving = {"state_dict_type": "SHARDED_STATE_DICT", "save_strategy": "steps", "save_steps": 4}
    last = last_whole_checkpoint(folder / "killed")
    trainer = run(folder / "killed", resume=last, trainer_class=Killed, **saving)
    return told(trainer, folder, "killed") | {"from": last, "restarts": os.environ["TORCHELASTIC_RESTART_COUNT"]}


def four_full(folder):
    """In four processes, from the last checkpoint of two."""
    return told(run(folder / "four_full", resume=f"{folder}/full/checkpoint-8"), folder, "four_full")


def four_shards(folder):
    """In four processes, from a checkpoint that two have saved as shards before the second event."""
    kind = {"state_dict_type": "SHARDED_STATE_DICT"}
    return told(run(folder / "four_shards", resume=f"{folder}/shards/checkpoint-4", **kind), folder, "four_shards")


if __name__ == "__main__":
    write_what_is_found_by(lambda folder, check: globals()[check](folder), timeout=timedelta(seconds=60))
