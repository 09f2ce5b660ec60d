"""Train one arm of the comparison of arXiv 2402.12418: a small, a full or a growing DeiT-S with DeiT's recipe.

    pip install -e '.[recipes]'
    accelerate launch --config_file examples/launch_configs/four_gpus.yaml benchmarks/paper_scale/train.py \
        --arm default --seed 0 --bf16 --output_dir outputs/default-0
    python benchmarks/paper_scale/train.py --arm default --augmentation none --dataset digits --image_size 16 \
        --patch_size 4 --per_device_train_batch_size 64 --num_train_epochs 2 --at 0.1 0.25 0.4 \
        --output_dir outputs/tried --use_cpu
    python benchmarks/paper_scale/compare.py outputs/*

Arms: `uniform-small` (q, k, v and fc1 halved), `uniform-full` (DeiT-S), and three that grow from the small one at the
same times under the same budgets: `paper` (the paper's criterion and operator), `default` (this library's), `random`
(neurons and directions by chance). Every field of `PaperGrowthConfig` and `TrainingArguments` is an option, with the
arm's and DeiT's values as defaults. `--learning_rate` is meant for a batch of 512 on all processes and is scaled with
it. A job that was stopped goes on with `--resume_from_checkpoint last`.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import arms
import numpy as np
import torch
from accelerate.utils import set_seed
from augmentation import (
    MixingCollator,
    RepeatedAugmentationSampler,
    evaluation_processor,
    training_transform,
    with_pixels,
)
from datasets import Dataset
from results import save_result
from torch import Tensor, nn
from transformers import EvalPrediction, HfArgumentParser, TrainingArguments, default_data_collator

from hf_saddle import GrowthCallback, GrowthConfig, GrowthTrainer, SaddleViTConfig, SaddleViTForImageClassification
from hf_saddle.demo.data import published_splits
from hf_saddle.growth import PaperGrowthConfig


# DeiT's settings (facebookresearch/deit, main.py), which the paper's released code keeps, without its average of
# weights (EMA), which it turned off.
RECIPE = {
    "num_train_epochs": 300,
    "per_device_train_batch_size": 256,
    "per_device_eval_batch_size": 256,
    "learning_rate": 5e-4,
    "lr_scheduler_type": "cosine_with_min_lr",
    "lr_scheduler_kwargs": {"min_lr": 1e-5},
    "warmup_steps": 5 / 300,
    "weight_decay": 0.05,
    "label_smoothing_factor": 0.1,
    "max_grad_norm": 0.0,
    "seed": 0,
    "eval_strategy": "epoch",
    "save_strategy": "epoch",
    "save_total_limit": 2,
    "logging_steps": 50,
    "dataloader_num_workers": 10,
    "dataloader_pin_memory": torch.accelerator.is_available(),
    "remove_unused_columns": False,  # images are turned into pixels when they are read
    "report_to": "none",
}


@dataclass
class RecipeArguments:
    """Which arm is trained on which data, with which augmentation."""

    arm: str = field(default="default", metadata={"help": f"One of {', '.join(arms.ARMS)}."})
    dataset: str = field(
        default="clane9/imagenet-100", metadata={"help": "Data set on the Hub, such as uoft-cs/cifar100, or 'digits'."}
    )
    max_samples: int | None = field(default=None, metadata={"help": "Keep at most that many samples of each split."})
    augmentation: str = field(
        default="deit", metadata={"help": "'deit' (random crop, flip, RandAugment, erasing; needs timm) or 'none'."}
    )
    repeats: int = field(default=3, metadata={"help": "Repeated augmentation: times that an image comes in a row."})
    mixup: float = field(default=0.8, metadata={"help": "Mixup's parameter, 0 turns it off."})
    cutmix: float = field(default=1.0, metadata={"help": "CutMix's parameter, 0 turns it off."})
    drop_path_rate: float = field(default=0.1, metadata={"help": "Stochastic depth in the last layer."})
    image_size: int = field(default=224, metadata={"help": "Side of the model's input in pixels."})
    patch_size: int = field(default=16, metadata={"help": "Side of a patch in pixels."})
    hidden_size: int = field(default=384, metadata={"help": "Width of the residual stream."})
    num_hidden_layers: int = field(default=12, metadata={"help": "Number of layers."})
    num_attention_heads: int = field(default=6, metadata={"help": "Number of heads."})

    def __post_init__(self) -> None:
        for name, allowed in (("arm", tuple(arms.ARMS)), ("augmentation", ("deit", "none"))):
            if getattr(self, name) not in allowed:
                raise ValueError(f"`{name}` must be one of {', '.join(allowed)}, got {getattr(self, name)!r}.")


class RecipeTrainer(GrowthTrainer):
    """A `GrowthTrainer` on mixed images with repeated augmentation; positions and class token do not decay."""

    repeats: int = 1

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        # The loss is the mean of a batch, and does not count labels, of which a mixed image has many.
        self.model_accepts_loss_kwargs = False

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> RepeatedAugmentationSampler:
        return RepeatedAugmentationSampler(
            len(self.train_dataset), self.repeats, self.args.train_batch_size, self.args.world_size, self.args.seed
        )

    def get_eval_dataloader(self, eval_dataset: Dataset | None = None):
        """As in `Trainer`; images are mixed for training only."""
        mixing, self.data_collator = self.data_collator, default_data_collator
        try:
            return super().get_eval_dataloader(eval_dataset)
        finally:
            self.data_collator = mixing

    def compute_loss(self, model: nn.Module, inputs: dict[str, Tensor], return_outputs: bool = False, **kwargs: Any):
        """Cross-entropy to class probabilities (training, growth) or to class indices (evaluation)."""
        outputs = model(pixel_values=inputs["pixel_values"])
        loss = nn.functional.cross_entropy(outputs.logits, inputs["labels"])
        return (loss, outputs) if return_outputs else loss

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """As in `Trainer`, without the embeddings that DeiT does not decay either."""
        names = super().get_decay_parameter_names(model)
        return [name for name in names if not name.endswith(("position_embeddings", "cls_token"))]


def load_data(name: str, seed: int, max_samples: int | None) -> tuple[Dataset, Dataset]:
    """The published training split, and the labelled one that results are reported on."""
    splits = published_splits(name)
    if len(splits) == 1:
        splits = splits["train"].train_test_split(0.2, seed=seed, stratify_by_column="label")
    pair = splits["train"], splits["validation" if "validation" in splits else "test"]
    if max_samples is None:
        return pair
    train, held_out = (split.shuffle(seed=seed).select(range(min(max_samples, len(split)))) for split in pair)
    return train, held_out


def build_model(arguments: RecipeArguments, names: list[str]) -> SaddleViTForImageClassification:
    """DeiT's shape, or the paper's start: its heads and MLPs at half the width, with the scale of the full heads."""
    full_head = arguments.hidden_size // arguments.num_attention_heads
    part = 2 if arms.ARMS[arguments.arm].halved else 1
    shapes = ("image_size", "patch_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "drop_path_rate")
    config = SaddleViTConfig(
        **{name: getattr(arguments, name) for name in shapes},
        head_dim=full_head // part,
        attention_scaling=full_head**-0.5,
        intermediate_size=4 * arguments.hidden_size // part,
        layer_norm_eps=1e-6,
        id2label=dict(enumerate(names)),
        label2id={name: index for index, name in enumerate(names)},
    )
    return SaddleViTForImageClassification(config)


def largest_five(logits: Tensor, labels: Tensor) -> Tensor:
    """All that the metrics need of the logits."""
    return logits.topk(min(5, logits.shape[-1])).indices


def compute_accuracies(prediction: EvalPrediction) -> dict[str, float]:
    """Top-1 and top-5 accuracy from [`largest_five`]."""
    hits = prediction.predictions == np.asarray(prediction.label_ids)[:, None]
    return {"accuracy": float(hits[:, 0].mean()), "top5_accuracy": float(hits.any(axis=1).mean())}


def train(arguments: RecipeArguments, growth: GrowthConfig | None, training: TrainingArguments) -> RecipeTrainer:
    """Train an arm, evaluate it, and write model, card and `result.json` into the output folder."""
    set_seed(training.seed)
    images, held_out = load_data(arguments.dataset, training.seed, arguments.max_samples)
    names = images.features["label"].names
    model = build_model(arguments, names)
    processor = evaluation_processor(arguments.image_size)
    transform = None if arguments.augmentation == "none" else training_transform(arguments.image_size)
    batch = training.train_batch_size * training.gradient_accumulation_steps * training.world_size
    training.learning_rate *= batch / 512
    trainer = RecipeTrainer(
        model=model,
        args=training,
        data_collator=MixingCollator(len(names), arguments.mixup, arguments.cutmix, training.label_smoothing_factor),
        train_dataset=with_pixels(images, transform, processor),
        eval_dataset=with_pixels(held_out, None, processor),
        processing_class=processor,
        compute_metrics=compute_accuracies,
        preprocess_logits_for_metrics=largest_five,
        callbacks=[] if growth is None else [GrowthCallback(growth)],
    )
    trainer.repeats = arguments.repeats
    trainer.card_facts = {"dataset": arguments.dataset}
    # Processes drop branches and mix images each in its own way.
    set_seed(training.seed, device_specific=True)
    resume = training.resume_from_checkpoint
    seconds = trainer.train(resume_from_checkpoint=True if resume == "last" else resume).metrics["train_runtime"]
    metrics = trainer.evaluate()
    trainer.save_model()
    trainer.save_state()
    trainer.create_model_card()
    if trainer.is_world_process_zero():
        save_result(trainer, asdict(arguments), growth, metrics, batch, seconds)
    return trainer


def parse(words: Sequence[str] | None = None) -> tuple[RecipeArguments, PaperGrowthConfig | None, TrainingArguments]:
    """
    Read a command line, that of the process if `None`, with the arm's and DeiT's values as defaults.

    Raises:
        ValueError: If an arm that does not grow is given options of growth.
    """
    parser = HfArgumentParser((RecipeArguments, PaperGrowthConfig, TrainingArguments))
    parser.set_defaults(**RECIPE)
    arm = arms.ARMS.get(parser.parse_known_args(words)[0].arm)
    default = PaperGrowthConfig() if arm is None or arm.growth is None else arm.growth
    parser.set_defaults(**asdict(default))
    if parser.parse_known_args(words)[0].at != default.at:
        # A trial at shares of its training leaves the epochs of the paper out.
        parser.set_defaults(unit="training")
    arguments, growth, training = parser.parse_args_into_dataclasses(words)
    if arms.ARMS[arguments.arm].growth is not None:
        return arguments, growth, training
    if growth != default:
        raise ValueError(f"`--arm {arguments.arm}` does not grow: leave the options of GrowthConfig out.")
    return arguments, None, training


if __name__ == "__main__":
    train(*parse())
