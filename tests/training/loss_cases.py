"""Trainers that define their loss, their optimizer or their samples in ways that occur in the wild."""

import torch
from torch import nn
from torch.utils.data import WeightedRandomSampler
from training_cases import Images, growth, losses, tiny, train

from hf_saddle.training import GrowthTrainer


# The weights do not move, all samples are in each step and in the probe, and there is no dropout.
STILL = {"learning_rate": 0.0, "max_steps": 2}
SIZE = 16


class Unlabelled(Images):
    """Every third image counts for nothing, those of one half more than those of the other."""

    def __init__(self):
        super().__init__(SIZE)
        self.labels[[0, 1, 2, 3, 4, 9]] = -100


def summed(outputs, labels, num_items_in_batch=None):
    return 3 * nn.functional.cross_entropy(outputs.logits, labels, reduction="sum") / num_items_in_batch


def averaged(outputs, labels, num_items_in_batch=None):
    return 3 * nn.functional.cross_entropy(outputs.logits, labels)


class Summed(GrowthTrainer):
    """Takes the labels out of the batch, and needs to know how many there are."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        loss = summed(outputs, labels, num_items_in_batch)
        return (loss, outputs) if return_outputs else loss


class Counting(GrowthTrainer):
    """Does without the number of labels where there is none."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        outputs = model(pixel_values=inputs["pixel_values"])
        total = nn.functional.cross_entropy(outputs.logits, inputs["labels"], reduction="sum")
        loss = total / (num_items_in_batch or 1)
        return (loss, outputs) if return_outputs else loss


class Averaged(GrowthTrainer):
    """Does not want to know the number of labels."""

    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        outputs = model(**inputs)
        loss = outputs.loss + 1e-3 * sum(p.square().sum() for p in model.parameters())
        return (loss, outputs) if return_outputs else loss


class NoLossArguments(Averaged):
    """As models whose forward takes no keyword arguments."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.model_accepts_loss_kwargs = False


class Autocast(GrowthTrainer):
    """Mixed precision of its own making."""

    def compute_loss_context_manager(self):
        return torch.autocast("cpu", torch.bfloat16)


class Prepared(GrowthTrainer):
    """Changes the batch on its way to the model."""

    def _prepare_inputs(self, inputs):
        inputs = super()._prepare_inputs(inputs)
        return inputs | {"pixel_values": 2 * inputs["pixel_values"]}


class LayerWise(GrowthTrainer):
    """An optimizer of its own, and `create_optimizer` of no other class is called."""

    def create_optimizer(self, model=None):
        if self.optimizer is None:
            groups: dict[str, list] = {"early": [], "late": []}
            for name, parameter in self.model.named_parameters():
                groups["early" if "layers.0." in name else "late"].append(parameter)
            rates = {"early": self.args.learning_rate / 2, "late": self.args.learning_rate}
            self.optimizer = torch.optim.AdamW([{"params": groups[name], "lr": rates[name]} for name in groups])
        return self.optimizer


class LayerWiseSummed(LayerWise, Summed):
    """As in the wild: both."""


CASES = {
    "the_model_s": {},
    "compute_loss_func": {"compute_loss_func": summed},
    "compute_loss_func_without_count": {"compute_loss_func": averaged},
    "label_smoothing": {"label_smoothing_factor": 0.2},
    "summed": {"trainer_class": Summed},
    "counting": {"trainer_class": Counting},
    "averaged": {"trainer_class": Averaged},
    "no_loss_arguments": {"trainer_class": NoLossArguments},
    "autocast": {"trainer_class": Autocast},
    "bf16": {"bf16": True},
    "prepared": {"trainer_class": Prepared},
    "own_create_optimizer": {"trainer_class": LayerWiseSummed},
    "not_averaged_across_devices": {"average_tokens_across_devices": False},
    "ignored_labels": {"train_dataset": Unlabelled()},
    "ignored_labels_summed": {"train_dataset": Unlabelled(), "trainer_class": Summed},
    "ignored_labels_smoothed": {"train_dataset": Unlabelled(), "label_smoothing_factor": 0.2},
}


DISTRIBUTED = {name: CASES[name] for name in ("the_model_s", "summed", "label_smoothing", "averaged")} | {
    "ignored_labels": CASES["ignored_labels"],
    "ignored_labels_smoothed": CASES["ignored_labels_smoothed"],
    "not_averaged_across_devices": CASES["not_averaged_across_devices"],
    "accumulated": {"train_dataset": Unlabelled(), "trainer_class": Summed, "accumulation": 2},
}


class FirstImages(GrowthTrainer):
    """Each process has a generator of its own for the samples; there are 8 that are drawn."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.probed = []

    def _get_train_sampler(self, train_dataset=None):
        generator = torch.Generator().manual_seed(self.args.process_index)
        return WeightedRandomSampler([1.0] * 8 + [0.0] * 56, 64, generator=generator)

    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        if not model.training:
            self.probed.append(inputs["pixel_values"])
        return super().compute_loss(model, inputs, return_outputs=return_outputs, **kwargs)

    def probed_images(self) -> list[int]:
        pixels = torch.cat(self.probed)
        return [int((Images().pixels == image).flatten(1).all(dim=1).nonzero()) for image in pixels]


def logged_and_probed(folder, probe_batch_size: int = SIZE, accumulation: int = 1, processes: int = 1, **fields):
    """The loss that a Trainer logs for a step on all samples, and that of a probe with all samples right after it."""
    size = SIZE // (accumulation * processes)
    fields = STILL | {"train_dataset": Images(SIZE), "model": tiny(hidden_dropout_prob=0.0)} | fields
    fields |= {"gradient_accumulation_steps": accumulation, "per_device_train_batch_size": size}
    config = growth(at=[1], probe_samples=SIZE, probe_batch_size=probe_batch_size)
    trainer = train(folder, config, **fields)
    (event,) = [entry for entry in trainer.state.log_history if "growth_event" in entry]
    return losses(trainer)[0], event["growth_probe_loss"]
