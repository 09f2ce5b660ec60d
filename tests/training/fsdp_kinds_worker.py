"""What `test_fsdp_kinds.py` runs in two processes: heads and blocks grow sharded, and as in one process."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from fsdp_cases import Sentences, furthest, llama_model, whole, write_what_is_found_by
from test_shared_heads_in_training import Sequences
from torch.distributed.fsdp import fully_shard
from torch.utils.data import Dataset, default_collate
from training_cases import Images, across, growth, tiny

from hf_saddle.growth import GrowthPlan, LayerGrowth, NewBlock, block_candidates, grow_, grow_heads_, score_heads
from hf_saddle.growth.optimizer_rules import OPTIMIZERS, Rules, State
from hf_saddle.growth.surgery import blocks as making
from hf_saddle.growth.surgery.heads import head_growth
from hf_saddle.models.blocks import block_paths
from hf_saddle.training import (
    grow_by_plan_,
    grow_by_plan_sharded_,
    growth_event_,
    growth_event_sharded_,
    probe_batches,
)


sys.path.append(str(Path(__file__).parents[1] / "growth"))
from family_cases import family_model  # noqa: E402


SAMPLES = 16


def shard(model):
    for path in block_paths(model.base_model, model.config):
        fully_shard(model.base_model.get_submodule(path))
    fully_shard(model)


def shard_as_one(model):
    fully_shard(model)


def shard_parts(model):
    for layer in model.base_model.layers:
        fully_shard(layer.attention)
    shard(model)


def vit():
    return tiny(hidden_dropout_prob=0.0).double()


def family(name, **config):
    return lambda: family_model(name, torch.float64, smooth=False, **config).train()


class Told(Sequences):
    """The same tokens, and which class they are of."""

    def __getitem__(self, index):
        tokens = super().__getitem__(index)["input_ids"]
        return {"input_ids": tokens, "labels": tokens[0] % 2}


class LargeImages(Images):
    """Images of sixteen pixels."""

    def __getitem__(self, index):
        sample = super().__getitem__(index)
        return {"pixel_values": sample["pixel_values"].repeat(1, 2, 2), "labels": sample["labels"] % 2}


@dataclass
class Case:
    """A training of some steps, with growth after some of them."""

    grow: Any
    at: tuple[int, ...] = (2, 4)
    steps: int = 6
    model: Any = vit
    data: Dataset = Images()
    shard: Any = shard

    def share(self, sharded):
        rank = dist.get_rank()
        return slice(8 * rank, 8 * rank + 8) if sharded else slice(None)

    def batch(self, step, sharded):
        samples = [self.data[(SAMPLES * step + index) % 64] for index in range(SAMPLES)]
        return to_double(default_collate(samples[self.share(sharded)]))


def to_double(batch):
    return {key: value.double() if value.is_floating_point() else value for key, value in batch.items()}


def groups(model):
    """As in a Trainer, matrices decay and vectors do not."""
    parameters = list(model.parameters())
    matrices = [parameter for parameter in parameters if parameter.dim() > 1]
    vectors = [parameter for parameter in parameters if parameter.dim() < 2]
    return [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]


def measured(config):
    def grow(case, model, optimizer, sharded, number):
        rank, size = (dist.get_rank(), 2) if sharded else (0, 1)
        probe = probe_batches(case.data, config, event=number, rank=rank, world_size=size)
        probe = [to_double(each) for each in probe]
        if not sharded:
            return growth_event_(model, optimizer, probe, config, event=number)
        return growth_event_sharded_(model, optimizer, probe, config, shard=case.shard, event=number)[1]

    return grow


def by_hand(*plans):
    """Plans are in single precision, and round what the sharded model has: the other model grows by the same ones."""
    made = []

    def grow(case, model, optimizer, sharded, number):
        probe = [case.batch(9, sharded)]
        if not sharded:
            return grow_by_plan_(model, optimizer, GrowthPlan.from_json(made[number]), probe)
        made.append(plans[number](model).to_json())
        plan = GrowthPlan.from_json(made[-1])
        return grow_by_plan_sharded_(model, optimizer, plan, probe, shard=case.shard)[1]

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


def frozen_early(model):
    return GrowthPlan(blocks=(NewBlock("layers.1", "copy"),), freeze=True)


def frozen(model):
    return GrowthPlan(blocks=(NewBlock("layers.1", "copy"), NewBlock("layers.5", "identity")), freeze=True)


def pairs(model):
    """A Swin takes two blocks at a time."""
    path = block_paths(model.base_model, model.config)[1]
    return GrowthPlan(blocks=(NewBlock(path, "copy", scale=0.5),) * 2)


def fresh_pairs(model):
    path = block_paths(model.base_model, model.config)[-1]
    return GrowthPlan(blocks=(NewBlock(path, "identity"),) * 2, seed=2)


HEADS = measured(across(operator=["new_head", "split_head"]))
ANY = measured(across(event_budget=20_000))
BLOCKS = measured(growth(operator="block_copy", max_growth=4.0, event_budget=20_000, layers=None))
T5 = family("T5ForConditionalGeneration", dropout_rate=0.0)
SWIN = family("SwinForImageClassification", depths=[2, 2], drop_path_rate=0.0)
RUNS = {
    "by_hand": Case(by_hand(all_kinds, again, frozen), at=(2, 4, 6), steps=8),
    "any": Case(ANY),
    "heads": Case(HEADS, shard=shard_as_one),
    "blocks": Case(BLOCKS),
    "t5": Case(HEADS, model=T5, data=Sequences()),
    "t5_blocks": Case(BLOCKS, model=T5, data=Sequences()),
    "bert": Case(
        HEADS,
        model=family("BertForSequenceClassification", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0),
        data=Told(),
    ),
    "gpt2": Case(
        ANY, model=family("GPT2LMHeadModel", resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0), data=Sequences()
    ),
    "llama": Case(ANY, model=llama_model, data=Sentences()),
    "swin": Case(ANY, model=SWIN, data=LargeImages()),
    "swin_blocks": Case(by_hand(pairs, fresh_pairs), model=SWIN, data=LargeImages()),
}


def run(case, sharded):
    """Two shards of eight samples, or one process with sixteen."""
    model = case.model()
    if sharded:
        case.shard(model)
    optimizer = torch.optim.AdamW(groups(model), lr=1e-2)
    losses, done = [], []
    for step in range(1, case.steps + 1):
        losses.append(trained(case, model, optimizer, step, sharded))
        if step in case.at:
            done.append(case.grow(case, model, optimizer, sharded, case.at.index(step)))
    return model, optimizer, losses, done


def trained(case, model, optimizer, step, sharded):
    loss = model(**case.batch(step, sharded)).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return loss.item()


def described(model, optimizer, losses, done):
    """What must be the same."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {
        "losses": losses,
        "gains": [[event.predicted_gain, event.loss_before, event.loss_after] for event in done],
        "shares": [block["predicted_gain"] for event in model.growth_history["events"] for block in event["blocks"]],
        "events": [
            {key: event[key] for key in ("operators", "parameters_after", "macs_after", "shapes", "frozen")}
            | {"layers": [[layer["linear"], layer["operator"], layer["neurons"]] for layer in event["layers"]]}
            | {"blocks": [[block["after"], block["how"], block["scale"]] for block in event["blocks"]]}
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
    model, optimizer, losses, done = run(RUNS[name], sharded=True)
    both = [None, None]
    dist.all_gather_object(both, losses)
    weights, states = whole(model, optimizer)
    ours = described(model, optimizer, [sum(pair) / 2 for pair in zip(*both, strict=True)], done)
    if dist.get_rank() > 0:
        return None
    one = run(RUNS[name], sharded=False)
    one_weights, one_states = whole(one[0], one[1])
    return {
        "sharded": ours,
        "one": described(*one),
        "weights": furthest(weights, one_weights),
        "states": furthest(states, one_states),
    }


def undone(plan, loss=None, broken=None):
    """A growth that fails leaves all as before: the training goes on as one without it."""
    runs, case = [], Case(None)
    for fails in (True, False):
        model = vit()
        shard(model)
        optimizer = torch.optim.AdamW(groups(model), lr=1e-2)
        parameters, names, message = list(model.parameters()), [name for name, _ in model.named_parameters()], ""
        blocks = list(model.base_model.layers)
        for step in range(4):
            trained(case, model, optimizer, step, True)
            if step == 1 and fails:
                with pytest.MonkeyPatch.context() as monkey:
                    if broken is not None and dist.get_rank() == 1:
                        monkey.setattr(making, broken, no_memory)
                    try:
                        probe = [case.batch(9, True)]
                        grow_by_plan_sharded_(model, optimizer, plan(model), probe, shard=shard, loss=loss)
                    except (MemoryError, RuntimeError, ValueError) as error:
                        message = f"{type(error).__name__}: {error}"
        now = dict(model.named_parameters())
        same = all(a is b and a.requires_grad for a, b in zip(now.values(), parameters, strict=True))
        same = same and list(now) == names and blocks == list(model.base_model.layers)
        runs.append((whole(model, optimizer), message, same, model.growth_history))
    (failed, message, same, history), (plain, *_) = runs
    distance = max(furthest(a, b) for a, b in zip(failed, plain, strict=True))
    return {"message": message, "same": same, "history": history, "distance": distance}


def no_memory(made, *others):
    """Instead of what is done with the values of a block, once it has some."""
    if not next(made.parameters()).is_meta:
        raise MemoryError("no memory left")


def not_finite(model, batch):
    """Of a model that has grown."""
    return model(**batch).loss * (float("nan") if model.growth_history else 1.0)


def failing():
    return {
        "kinds": undone(all_kinds, loss=not_finite),
        "frozen": undone(frozen_early, loss=not_finite),
        "one_rank": undone(all_kinds, broken="_scale_outputs_"),
    }


class Grouped(torch.optim.SGD):
    """Counts its steps by group, as ScheduleFree does."""

    def step(self, closure=None):
        return super().step(closure)


def refused():
    """What a sharded model does not do, with the message that each attempt meets."""
    case, config = Case(None), across()
    model, parts = vit(), vit()
    shard(model)
    shard_parts(parts)
    OPTIMIZERS[f"{__name__}.Grouped"] = Rules({"momentum_buffer": State.GRADIENTS}, shared_steps=True)
    adamw, grouped = (kind(model.parameters(), lr=1e-2) for kind in (torch.optim.AdamW, Grouped))
    probe, path = [case.batch(0, True)], "layers.0.attention"
    heads, blocks = GrowthPlan((head_growth(model, path, 1),)), GrowthPlan(blocks=(NewBlock("layers.0", "copy"),))
    sharded: dict[str, Any] = {"shard": shard}
    attempts = {
        "in_place": lambda: growth_event_(model, adamw, probe, config),
        "plan": lambda: grow_by_plan_(model, adamw, heads, probe),
        "new_heads": lambda: grow_heads_(model, {path: 1}),
        "head_scores": lambda: score_heads(model, probe),
        "block_scores": lambda: block_candidates(model, probe),
        "alone": lambda: grow_(model, blocks),
        "seconds": lambda: growth_event_sharded_(model, adamw, probe, across(budget_unit="seconds"), **sharded),
        "grouped": lambda: growth_event_sharded_(model, grouped, probe, config, **sharded),
        "grouped_plan": lambda: grow_by_plan_sharded_(model, grouped, blocks, probe, **sharded),
        "parts": lambda: growth_event_sharded_(
            parts, torch.optim.AdamW(parts.parameters()), probe, config, shard=shard_parts
        ),
        "whole": lambda: grow_by_plan_sharded_(vit(), adamw, blocks, probe, **sharded),
    }
    before, found = whole(model, adamw), {}
    for name, attempt in attempts.items():
        try:
            found[name] = f"did it: {attempt()}"
        except ValueError as error:
            found[name] = str(error)
    found["distance"] = max(furthest(a, b) for a, b in zip(whole(model, adamw), before, strict=True))
    return found


if __name__ == "__main__":
    write_what_is_found_by(lambda folder, check: compared(check) if check in RUNS else globals()[check]())
