"""What `test_fsdp_kinds.py` runs in two processes: heads and blocks grow sharded, and as in one process."""

import json
import sys
import traceback
from pathlib import Path

import torch
import torch.distributed as dist
import transformers
from fsdp_cases import furthest, whole
from torch.distributed.fsdp import fully_shard
from torch.utils.data import default_collate
from training_cases import Images, across, growth, tiny

from hf_saddle.growth import GrowthPlan, LayerGrowth, NewBlock, head_growth
from hf_saddle.training import (
    grow_by_plan_,
    grow_by_plan_sharded_,
    growth_event_,
    growth_event_sharded_,
    probe_batches,
)


STEPS, SAMPLES = 8, 16


def shard(model):
    for layer in model.base_model.layers:
        fully_shard(layer)
    fully_shard(model)


def to_double(batch):
    return batch | {"pixel_values": batch["pixel_values"].double()}


def share(sharded):
    rank = dist.get_rank()
    return slice(8 * rank, 8 * rank + 8) if sharded else slice(None)


def batch(step, sharded):
    samples = [Images()[(SAMPLES * step + index) % 64] for index in range(SAMPLES)]
    return to_double(default_collate(samples[share(sharded)]))


def groups(model):
    """As in a Trainer, matrices decay and vectors do not."""
    parameters = list(model.parameters())
    matrices = [parameter for parameter in parameters if parameter.dim() > 1]
    vectors = [parameter for parameter in parameters if parameter.dim() < 2]
    return [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]


def measured(config):
    def grow(model, optimizer, sharded, number):
        rank, size = (dist.get_rank(), 2) if sharded else (0, 1)
        probe = probe_batches(Images(), config, event=number, rank=rank, world_size=size)
        probe = [to_double(each) for each in probe]
        if not sharded:
            return growth_event_(model, optimizer, probe, config, event=number)
        return growth_event_sharded_(model, optimizer, probe, config, shard=shard, event=number)[1]

    return grow


def by_hand(*plans):
    """Plans are in single precision, whose rounding is that of the sharded model's: the other grows by the same ones."""
    made = []

    def grow(model, optimizer, sharded, number):
        probe = [batch(9, sharded)]
        if not sharded:
            return grow_by_plan_(model, optimizer, GrowthPlan.from_json(made[number]), probe)
        made.append(plans[number](model).to_json())
        return grow_by_plan_sharded_(model, optimizer, GrowthPlan.from_json(made[-1]), probe, shard=shard)[1]

    return grow


def all_kinds(model):
    """Blocks in all ways, heads and neurons, beside each other."""
    blocks = [
        NewBlock("layers.0", "identity"),
        NewBlock("layers.0", "identity"),
        NewBlock("layers.0", "average"),
        NewBlock("layers.1", "copy", scale=0.5),
    ]
    growths = [
        head_growth(model, "layers.0.attention", [1], "split", seed=1),
        head_growth(model, "layers.1.attention", 1, "new", seed=2),
        LayerGrowth.by_hand(model, "vit.layers.0.mlp.fc1", "split", neurons=[3, 5]),
        LayerGrowth.by_hand(model, "vit.layers.1.mlp.fc2", "zero_gain", neurons=[0, 7]),
        LayerGrowth.by_hand(model, "vit.layers.1.attention.v_proj", "zero_gain", neurons=[1, 20]),
    ]
    return GrowthPlan(tuple(growths), blocks=tuple(blocks), seed=3)


def again(model):
    """What has grown grows once more."""
    growths = (
        head_growth(model, "layers.0.attention", [2], "split", seed=4),
        head_growth(model, "layers.3.attention", 1, "new", seed=5),
        LayerGrowth.by_hand(model, "vit.layers.4.mlp.fc2", "zero_gain", neurons=[1]),
    )
    return GrowthPlan(growths, blocks=(NewBlock("layers.4", "stack"),), seed=6)


def frozen(model):
    return GrowthPlan(blocks=(NewBlock("layers.1", "copy"), NewBlock("layers.5", "identity")), freeze=True)


RUNS = {
    "by_hand": (by_hand(all_kinds, again, frozen), (2, 4, 6)),
    "heads": (measured(across(operator=["new_head", "split_head"])), (2, 4)),
    "blocks": (measured(growth(operator="block_copy", max_growth=4.0, event_budget=20_000, layers=None)), (2, 4)),
    "any": (measured(across(event_budget=20_000)), (2, 4)),
}


def run(grow, events, sharded):
    """Two shards of eight samples, or one process with sixteen."""
    model = tiny(hidden_dropout_prob=0.0).double()
    if sharded:
        shard(model)
    optimizer = torch.optim.AdamW(groups(model), lr=1e-2)
    losses, done = [], []
    for step in range(1, STEPS + 1):
        loss = model(**batch(step, sharded)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if step in events:
            done.append(grow(model, optimizer, sharded, events.index(step)))
    return model, optimizer, losses, done


def described(model, optimizer, losses, done):
    """What must be the same."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {
        "losses": losses,
        "gains": [[event.predicted_gain, event.loss_before, event.loss_after] for event in done],
        "events": [
            {key: event[key] for key in ("operators", "blocks", "parameters_after", "macs_after", "shapes", "frozen")}
            | {"layers": [[layer["linear"], layer["operator"], layer["neurons"]] for layer in event["layers"]]}
            for event in model.growth_history["events"]
        ],
        "groups": [[names[parameter] for parameter in group["params"]] for group in optimizer.param_groups],
        "trained": [name for name, parameter in model.named_parameters() if parameter.requires_grad],
        "added": [sorted(event.added) for event in done],
        "replaced": [len(event.replaced) for event in done],
        "config": {name: getattr(model.config, name) for name in ("num_hidden_layers", "heads", "widths")},
    }


def compared(name):
    """A run on two processes, and what the first one finds if it does the same alone."""
    model, optimizer, losses, done = run(*RUNS[name], sharded=True)
    both = [None, None]
    dist.all_gather_object(both, losses)
    weights, states = whole(model, optimizer)
    ours = described(model, optimizer, [sum(pair) / 2 for pair in zip(*both, strict=True)], done)
    if dist.get_rank() > 0:
        return None
    one = run(*RUNS[name], sharded=False)
    one_weights, one_states = whole(one[0], one[1])
    return {
        "sharded": ours,
        "one": described(*one),
        "weights": furthest(weights, one_weights),
        "states": furthest(states, one_states),
    }


def main() -> None:
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    folder, *checks = Path(sys.argv[1]), *sys.argv[2:]
    for check in checks:
        try:
            found = compared(check) if check in RUNS else globals()[check]()
        except Exception:
            found = {"failed": traceback.format_exc()}
        (folder / f"{check}_{dist.get_rank()}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
