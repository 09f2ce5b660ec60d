"""A hand-written Accelerate loop in which the model grows, on one or several processes.

    python examples/accelerate_loop.py
    torchrun --nproc_per_node 2 examples/accelerate_loop.py
    accelerate launch --config_file examples/launch_configs/two_gpus.yaml examples/accelerate_loop.py

With `--output_dir` it saves its state every `--save_steps` steps; `--resume` goes on from the last one.

The lines about growth are those marked with `# growth`; all else is the loop of Accelerate's tutorial.
"""

import argparse
from pathlib import Path

import torch
from accelerate import Accelerator, DataLoaderConfiguration, skip_first_batches
from accelerate.utils import set_seed
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, TensorDataset, random_split

from hf_saddle.growth import GrowthConfig, GrowthHistory
from hf_saddle.models import SaddleViTConfig, SaddleViTForImageClassification
from hf_saddle.training import growth_event_, probe_batches, register_growth_checkpointing


def digits() -> TensorDataset:
    """scikit-learn's 1,797 hand-written digits as images of shape `(3, 8, 8)`."""
    bunch = load_digits()
    pixels = torch.tensor(bunch.images, dtype=torch.float32)[:, None].expand(-1, 3, -1, -1) / 8 - 1
    return TensorDataset(pixels, torch.tensor(bunch.target))


def collate(samples: list[tuple[torch.Tensor, torch.Tensor]]) -> dict[str, torch.Tensor]:
    pixels, labels = zip(*samples, strict=True)
    return {"pixel_values": torch.stack(pixels), "labels": torch.stack(labels)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--batch-size", "--batch_size", type=int, default=64, help="of all processes together")
    parser.add_argument(
        "--output-dir", "--output_dir", help="where to save the model and, below `state`, the state of the training"
    )
    parser.add_argument("--save-steps", "--save_steps", type=int, default=50)
    parser.add_argument("--resume", action="store_true", help="go on from the state in `output_dir`")
    parser.add_argument("--use-cpu", "--use_cpu", action="store_true")
    options = parser.parse_args()

    # A seedable sampler, because a run that is resumed in the middle of an epoch must find its order of samples.
    accelerator = Accelerator(
        cpu=options.use_cpu or not torch.cuda.is_available(),
        dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True),
    )
    set_seed(0)
    train_set, test_set = random_split(digits(), [1437, 360], torch.Generator().manual_seed(0))
    size = options.batch_size // accelerator.num_processes
    train_loader = DataLoader(train_set, batch_size=size, shuffle=True, collate_fn=collate, drop_last=True)
    test_loader = DataLoader(test_set, batch_size=size, collate_fn=collate)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    model = SaddleViTForImageClassification(SaddleViTConfig(**shape, image_size=8, patch_size=2, num_labels=10))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, options.epochs * len(train_loader))
    model, optimizer, train_loader, test_loader = accelerator.prepare(model, optimizer, train_loader, test_loader)

    progress = Progress()
    accelerator.register_for_checkpointing(schedule, progress)
    register_growth_checkpointing(accelerator, model, optimizer)  # growth
    state = None if options.output_dir is None else Path(options.output_dir, "state")
    if options.resume:
        accelerator.load_state(state)

    growth = GrowthConfig(at=[1, 3], unit="epochs", probe_samples=512)  # growth
    events = len(GrowthHistory.from_model(accelerator.unwrap_model(model)))  # growth
    per_epoch = len(train_loader)
    for epoch in range(progress.step // per_epoch, options.epochs):
        model.train()
        train_loader.set_epoch(epoch)
        for batch in skip_first_batches(train_loader, progress.step % per_epoch):
            loss = model(**batch).loss
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            progress.step += 1
            done = progress.step / per_epoch
            if done < options.epochs and growth.event_due(done, events):  # growth
                probe = probe_batches(  # growth
                    train_set,
                    growth,
                    event=events,
                    collate_fn=collate,
                    device=accelerator.device,
                    rank=accelerator.process_index,
                    world_size=accelerator.num_processes,
                )
                when = {"event": events, "step": progress.step, "epoch": done}  # growth
                event = growth_event_(model, optimizer, probe, growth, **when)  # growth
                events += 1  # growth
                accelerator.print(f"  {event.neurons} neurons grow, {event.parameters_after:,} parameters")  # growth
            if state is not None and progress.step % options.save_steps == 0:
                accelerator.save_state(state)
        accelerator.print(f"epoch {epoch + 1}: accuracy {accuracy(accelerator, model, test_loader):.3f}")

    unwrapped = accelerator.unwrap_model(model)
    accelerator.print(GrowthHistory.from_model(unwrapped).table())
    if options.output_dir and accelerator.is_main_process:
        unwrapped.save_pretrained(options.output_dir)
    accelerator.end_training()


class Progress:
    """How far the training is, for its checkpoints."""

    def __init__(self) -> None:
        self.step = 0

    def state_dict(self) -> dict[str, int]:
        return {"step": self.step}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.step = state["step"]


@torch.no_grad()
def accuracy(accelerator: Accelerator, model: torch.nn.Module, loader: DataLoader) -> float:
    model.eval()
    right = [
        accelerator.gather_for_metrics(model(pixel_values=batch["pixel_values"]).logits.argmax(-1) == batch["labels"])
        for batch in loader
    ]
    return torch.cat(right).float().mean().item()


if __name__ == "__main__":
    main()
