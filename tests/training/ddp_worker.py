"""What `test_ddp.py` runs in two processes: every function is one check, which leaves what it found as JSON."""

import copy
import json
import sys
import unittest
from pathlib import Path

import torch
import torch.distributed as dist
import transformers
from loss_cases import DISTRIBUTED, FirstImages, LayerWise, logged_and_probed
from test_loop_checkpoints import Loop
from test_rebinding import Meddler
from test_shared_heads_in_training import HEADS, Sequences, family_model
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import default_collate
from training_cases import (
    CHECKPOINTING,
    Images,
    Stream,
    across,
    events,
    growth,
    losses,
    no_growth,
    tiny,
    train,
    trainer_for,
)
from transformers import Trainer

from hf_saddle.growth import GrowthPlan, head_growth
from hf_saddle.training import (
    GrowthCallback,
    grow_by_plan_,
    growth_event_,
    probe_batches,
    rebind_,
    register_growth_checkpointing,
)
from hf_saddle.training.distributed import fingerprint
from hf_saddle.training.events import whole as whole_module
from hf_saddle.training.wrappers import follows


CONFIG = growth()


def doubles(batches):
    return [batch | {"pixel_values": batch["pixel_values"].double()} for batch in batches]


def probe(config=CONFIG):
    return probe_batches(Images(), config, rank=dist.get_rank(), world_size=dist.get_world_size())


def one_process_gradients(model, batches):
    """Of a copy, on the batches of all ranks."""
    twin = copy.deepcopy(model)
    for batch in batches:
        (twin(**batch).loss / len(batches)).backward()
    return [parameter.grad for parameter in twin.parameters()]


def largest_difference(model, expected):
    return max(
        0.0 if a.grad is None and b is None else float((a.grad - b).abs().max())
        for a, b in zip(model.parameters(), expected, strict=True)
    )


def same_everywhere(value):
    values = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values.count(values[0]) == len(values)


def gradients_after_growth(folder):
    """Gradients of DDP after each of two events, for every way of wrapping."""
    found = {}
    ways = {
        "plain": {},
        "unused": {"find_unused_parameters": True},
        "views": {"gradient_as_bucket_view": True},
        "static": {"static_graph": True},
        "small_buckets": {"bucket_cap_mb": 0.01},
        "no_sync": {},
        "comm_hook": {},
    }
    for way, arguments in ways.items():
        model = tiny(hidden_dropout_prob=0.0).double()
        wrapper = DistributedDataParallel(model, **arguments)
        calls = []
        wrapper.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        if way == "comm_hook":
            wrapper.register_comm_hook(None, allreduce_hook)
        optimizer = torch.optim.AdamW(wrapper.parameters(), lr=1e-2)
        shards = [[Images()[i] for i in range(start, start + 8)] for start in range(0, 32, 8)]
        batches = doubles([default_collate(shard) for shard in shards])
        mine = batches[dist.get_rank() :: 2]
        worst, same_decisions = 0.0, []
        for number in range(3):
            micro = mine if way == "no_sync" else mine[:1]
            used = batches if way == "no_sync" else batches[:2]
            expected = one_process_gradients(model, used)
            if way == "no_sync":
                with wrapper.no_sync():
                    (wrapper(**micro[0]).loss / 2).backward()
                (wrapper(**micro[1]).loss / 2).backward()
            else:
                wrapper(**micro[0]).loss.backward()
            worst = max(worst, largest_difference(model, expected))
            optimizer.step()
            optimizer.zero_grad()
            if number < 2:
                twin, mine_of_probe = copy.deepcopy(model), doubles(probe())
                event = growth_event_(wrapper, optimizer, mine_of_probe, CONFIG, event=number)
                one = growth_event_(twin, None, doubles(probe_batches(Images(), CONFIG)), CONFIG, event=number)
                assert event.neurons > 0
                same_decisions.append(
                    [layer["neurons"] for layer in event.layers] == [layer["neurons"] for layer in one.layers]
                )
        assert wrapper.module is model
        assert calls, "the forward hook of the wrapper was lost"
        assert len(wrapper._comm_hooks) == (way == "comm_hook")
        found[way] = {"difference": worst, "replicas_equal": same_everywhere(fingerprint(model, optimizer))}
        found[way]["same_decisions"] = all(same_decisions)
    return found


def blocks(folder):
    """Gradients of DDP after an event that inserts blocks, and the blocks themselves."""
    config = growth(operator="block_copy", max_growth=None, event_budget=20_000, layers=None)
    model = tiny(hidden_dropout_prob=0.0).double()
    wrapper, twin = DistributedDataParallel(model), copy.deepcopy(model)
    optimizer = torch.optim.AdamW(wrapper.parameters(), lr=1e-2)
    event = growth_event_(wrapper, optimizer, doubles(probe(config)), config)
    one = growth_event_(twin, None, doubles(probe_batches(Images(), config)), config)
    worst = 0.0
    for start in (0, 16):
        batches = [default_collate([Images()[i] for i in range(at, at + 8)]) for at in (start, start + 8)]
        expected = one_process_gradients(model, doubles(batches))
        wrapper(**doubles(batches)[dist.get_rank()]).loss.backward()
        worst = max(worst, largest_difference(model, expected))
        optimizer.step()
        optimizer.zero_grad()
    found = {"difference": worst, "replicas_equal": same_everywhere(fingerprint(model, optimizer))}
    return found | {"same_blocks": bool(event.blocks) and places(event) == places(one)}


def places(event):
    return [block["after"] for block in event.blocks]


def step_both_(wrapper, twin, optimizers, batches):
    """A step on the batch of each process, and of its twin on both."""
    wrapper(**batches[dist.get_rank()]).loss.backward()
    for batch in batches:
        (twin(**batch).loss / 2).backward()
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()


def heads(folder):
    """New heads and splits by a plan, on two processes and on one."""
    model = tiny(hidden_dropout_prob=0.0).double()
    wrapper, twin = DistributedDataParallel(model), copy.deepcopy(model)
    optimizers = [torch.optim.AdamW(each.parameters(), lr=1e-2) for each in (model, twin)]
    rank = dist.get_rank()
    batches = doubles([default_collate([Images()[i] for i in range(start, start + 8)]) for start in (0, 8)])
    for number, how in enumerate(("new", "split", None)):
        step_both_(wrapper, twin, optimizers, batches)
        if how is not None:
            # That of the first process decides.
            plans = [GrowthPlan((head_growth(model, "layers.1.attention", 1, how, seed=seed),)) for seed in range(2)]
            event = grow_by_plan_(wrapper, optimizers[0], plans[rank], [batches[rank]], step=number)
            one = grow_by_plan_(twin, optimizers[1], plans[0], batches, step=number)
            assert event.heads == 1 and abs(event.loss_after - one.loss_after) < 1e-12
    pairs = zip(model.parameters(), twin.parameters(), strict=True)
    return {
        "difference": max(float((a - b).abs().max()) for a, b in pairs),
        "replicas_equal": same_everywhere(fingerprint(model, optimizers[0])),
        "heads": model.config.heads,
    }


def kinds(folder):
    """An event that all kinds compete for, and gradients after it, on two processes and on one."""
    config = across(event_budget=30_000)
    model = tiny(hidden_dropout_prob=0.0).double()
    wrapper, twin = DistributedDataParallel(model), copy.deepcopy(model)
    optimizer = torch.optim.AdamW(wrapper.parameters(), lr=1e-2)
    event = growth_event_(wrapper, optimizer, doubles(probe(config)), config)
    one = growth_event_(twin, None, doubles(probe_batches(Images(), config)), config)
    batches = doubles([default_collate([Images()[i] for i in range(at, at + 8)]) for at in (0, 8)])
    expected = one_process_gradients(model, batches)
    wrapper(**batches[dist.get_rank()]).loss.backward()
    return {
        "difference": largest_difference(model, expected),
        "replicas_equal": same_everywhere(fingerprint(model, optimizer)),
        "operators": event.operators,
        "same": [(layer["linear"], layer["operator"], layer["neurons"]) for layer in event.layers]
        == [(layer["linear"], layer["operator"], layer["neurons"]) for layer in one.layers]
        and places(event) == places(one),
        "gains": [event.predicted_gain, one.predicted_gain],
    }


def shared_heads(folder):
    """Events that let heads of a T5 grow by measurement, with training in between, on two processes and on one."""
    config, rank = across(operator=HEADS), dist.get_rank()
    model = family_model("T5ForConditionalGeneration", torch.float64, dropout_rate=0.0)
    wrapper, twin = DistributedDataParallel(model), copy.deepcopy(model)
    optimizers = [torch.optim.AdamW(each.parameters(), lr=1e-2) for each in (model, twin)]
    batches = [default_collate([Sequences()[i] for i in range(start, start + 8)]) for start in (0, 8)]
    found = []
    for number in range(2):
        step_both_(wrapper, twin, optimizers, batches)
        share = probe_batches(Sequences(), config, event=number, rank=rank, world_size=2)
        event = growth_event_(wrapper, optimizers[0], share, config, event=number)
        one = growth_event_(
            twin, optimizers[1], probe_batches(Sequences(), config, event=number), config, event=number
        )
        found.append([[each.operators, each.predicted_gain, each.loss_after] for each in (event, one)])
    pairs = zip(model.parameters(), twin.parameters(), strict=True)
    return {
        "difference": max(float((a - b).abs().max()) for a, b in pairs),
        "replicas_equal": same_everywhere(fingerprint(model, optimizers[0])),
        "heads": [model.config.heads, twin.config.heads],
        "events": found,
    }


def uneven_shares(folder):
    """The probe samples are no multiple of the processes, nor is the data set of the Trainer."""
    model = tiny(hidden_dropout_prob=0.0).double()
    wrapper, twin = DistributedDataParallel(model), copy.deepcopy(model)
    event = growth_event_(wrapper, None, doubles(probe()), CONFIG)
    one = growth_event_(twin, None, doubles(probe_batches(Images(), CONFIG)), CONFIG)
    ranks = range(dist.get_world_size())
    batches = doubles([default_collate([Images()[i] for i in range(8 * rank, 8 * rank + 8)]) for rank in ranks])
    wrapper(**batches[dist.get_rank()]).loss.backward()
    trainer = train(folder, CONFIG, train_dataset=Images(65))
    return {
        "share": sum(len(batch["labels"]) for batch in probe()),
        "same_decisions": [layer["neurons"] for layer in event.layers] == [layer["neurons"] for layer in one.layers],
        "difference": largest_difference(model, one_process_gradients(twin, batches)),
        "events": len(events(trainer)),
        "replicas_equal": same_everywhere(fingerprint(trainer.model, trainer.optimizer)),
    }


def losses_and_samples(folder):
    """The probe's loss and the logged one, and the samples of samplers that know their rank or do not."""
    found = {"losses": {}}
    for name, fields in DISTRIBUTED.items():
        found["losses"][name] = logged_and_probed(folder / name, 3, processes=dist.get_world_size(), **fields)
    trainer = train(folder / "own", CONFIG, trainer_class=LayerWise)
    found["own_optimizer"] = {
        "events": len(events(trainer)),
        "replicas_equal": same_everywhere(fingerprint(trainer.model, trainer.optimizer)),
    }
    trainer = train(folder / "plain", CONFIG, trainer_class=Trainer)
    found["plain"] = {
        "events": len(events(trainer)),
        "replicas_equal": same_everywhere(fingerprint(trainer.model, trainer.optimizer)),
    }
    trainer = train(folder / "sampler", CONFIG, trainer_class=FirstImages)
    found["sampler"] = {"probed": trainer.probed_images()[-16:], "events": len(events(trainer))}
    return found


def trainer_runs(folder):
    """What a run with two processes finds, to be compared with one process and with a resumed run."""
    trainer = train(folder / "full", CONFIG, save_strategy="steps", save_steps=1, per_device_train_batch_size=8)
    resumed = {}
    for step in (2, 3, 7):
        other = train(folder / f"from{step}", CONFIG, resume=str(folder / "full" / f"checkpoint-{step}"))
        same = all(
            torch.equal(a, b)
            for a, b in zip(other.model.state_dict().values(), trainer.model.state_dict().values(), strict=True)
        )
        resumed[step] = losses(other) == losses(trainer) and events(other) == events(trainer) and same
    return {
        "losses": losses(trainer),
        "events": events(trainer),
        "resumed": resumed,
        "replicas_equal": same_everywhere(fingerprint(trainer.model, trainer.optimizer)),
    }


def resume_from_one(folder):
    """A checkpoint that a single process wrote, in `one/` beside this folder."""
    trainer = train(folder, CONFIG, resume=str(folder.parent / "one" / "checkpoint-7"))
    return {
        "events": events(trainer),
        "replicas_equal": same_everywhere(fingerprint(trainer.model, trainer.optimizer)),
    }


def modes(folder):
    """Runs of the Trainer whose only claim is that the replicas stay equal and all events happen."""
    found = {}
    options = {
        "accumulation": {"gradient_accumulation_steps": 2, "max_grad_norm": 0.5},
        "bf16": {"bf16": True},
        "stream": {"train_dataset": Stream()},
        "compiled": {"torch_compile": True, "torch_compile_backend": "eager", "max_steps": 10},
        "unused_off": {"ddp_find_unused_parameters": False},
        "unused_on": {"ddp_find_unused_parameters": True},
        "checkpointing": {CHECKPOINTING: True, "ddp_find_unused_parameters": False},
        "last_batch_of_one": {"train_dataset": Images(33), "max_steps": 12},
    }
    for name, fields in options.items():
        trainer = train(folder / name, CONFIG, **fields)
        equal = same_everywhere(fingerprint(trainer.model, trainer.optimizer))
        found[name] = {"replicas_equal": equal, "events": len(events(trainer))}
    return found


def shapes_from_outside(folder):
    """A model that goes back to earlier weights under DDP: in a loop, in a Trainer, and by `load_state`."""
    model = tiny(hidden_dropout_prob=0.0).double()
    wrapper = DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(wrapper.parameters(), lr=1e-2)
    noted = copy.deepcopy(model.state_dict())
    growth_event_(wrapper, optimizer, doubles(probe()), CONFIG)
    held = dict(model.named_parameters())
    model.load_state_dict(noted)
    found = {}
    try:
        growth_event_(wrapper, None, doubles(probe()), CONFIG)
    except ValueError as error:
        found["not_told"] = str(error)
    rebind_(wrapper, optimizer, held)
    batches = doubles([default_collate([Images()[i] for i in range(8 * rank, 8 * rank + 8)]) for rank in range(2)])
    expected = one_process_gradients(model, batches)
    wrapper(**batches[dist.get_rank()]).loss.backward()
    found["difference"] = largest_difference(model, expected)
    meddler = Meddler()
    trainer = train(folder / "trainer", growth(at=[3, 6]), callbacks=[meddler])
    before = meddler.begun[7]
    found["at_rest"] = [name for name, value in trainer.model.named_parameters() if torch.equal(value, before[name])]
    found["events"] = [event["step"] for event in events(trainer)]
    found["replicas_equal"] = same_everywhere(fingerprint(trainer.model, trainer.optimizer))
    whole = Loop().run(folder / "loop")
    try:
        register_growth_checkpointing(whole.accelerator, whole.model.module, whole.optimizer)
    except ValueError as error:
        found["unwrapped"] = str(error)
    resumed = Loop()
    resumed.accelerator.load_state(str(folder / "loop" / "4"))
    resumed.run(start=4)
    further = Loop().run()
    further.accelerator.load_state(str(folder / "loop" / "4"))
    further.losses.clear()
    further.run(start=4)
    for name, loop in (("resumed", resumed), ("further", further)):
        same = fingerprint(loop.model.module, loop.optimizer) == fingerprint(whole.model.module, whole.optimizer)
        found[name] = same and loop.losses == whole.losses[4:] and follows(loop.model)
    found["loop_replicas_equal"] = same_everywhere(fingerprint(resumed.model.module, resumed.optimizer))
    return found


def followers(folder):
    """A follower that cannot grow on one rank."""
    wrapper, follower = DistributedDataParallel(tiny()), tiny(seed=3)
    before = fingerprint(wrapper.module)
    if dist.get_rank() == 1:
        with torch.no_grad():
            follower.vit.layers[0].mlp.fc1.weight.fill_(torch.nan)
    found = {}
    try:
        growth_event_(wrapper, None, probe(), growth(criterion="width"), followers=[follower])
    except (ValueError, RuntimeError) as error:
        found["refused"] = f"{type(error).__name__}: {error}"
    found["unchanged"] = fingerprint(wrapper.module) == before and follower.growth_history is None
    follower = tiny(seed=3)
    growth_event_(wrapper, None, probe(), growth(criterion="width"), followers=[follower])
    found["same_shapes"] = follower.shapes() == wrapper.module.shapes() != tiny().shapes()
    found["replicas_equal"] = same_everywhere(fingerprint(follower))
    return found


def empty_plans(folder):
    """Losses without the callback, and with one whose plans are empty."""
    return {"without": losses(train(folder / "a")), "with": losses(train(folder / "b", no_growth()))}


def second_training(folder):
    """`train()` twice, with the best and smaller model loaded in between."""
    best = {"load_best_model_at_end": True, "metric_for_best_model": "loss", "greater_is_better": True}  # the worst
    every = {"save_strategy": "steps", "save_steps": 2, "eval_strategy": "steps", "eval_steps": 2}
    trainer = trainer_for(folder, CONFIG, eval_dataset=Images(16), **best, **every)
    trainer.train()
    after_first = len(events(trainer))
    trainer.train()
    return {
        "best_step": trainer.state.best_global_step,
        "events_of_best": after_first,
        "events_of_second": sum("growth_event" in entry for entry in trainer.state.log_history),
        "losses": losses(trainer),
        "replicas_equal": same_everywhere(fingerprint(trainer.model)),
    }


def refusals(folder):
    """What is refused, by its message, on this rank."""
    found = {}
    try:
        callbacks = [GrowthCallback(CONFIG, loss=lambda model, batch: model(**batch).loss)]
        train(folder / "plain", callbacks=callbacks, trainer_class=Trainer)
    except ValueError as error:
        found["plain_trainer"] = str(error)
    try:
        train(folder / "apart", CONFIG, use_cpu=False)
    except ValueError as error:
        found["apart"] = str(error)
    with unittest.TestCase().assertLogs("hf_saddle.training") as logs:
        growth_event_(tiny(), None, probe(), CONFIG)
    found["unwrapped"] = logs.output

    class Broken(Images):
        def __getitem__(self, index):
            if dist.get_rank() == 1:
                raise OSError("the disk of rank 1 is gone")
            return super().__getitem__(index)

    try:
        train(folder / "broken", callbacks=[GrowthCallback(CONFIG, probe_dataset=Broken())])
    except (OSError, RuntimeError) as error:
        found["no_samples_on_one_rank"] = f"{type(error).__name__}: {error}"
    wrapper = DistributedDataParallel(tiny())
    optimizer = torch.optim.AdamW(wrapper.parameters(), lr=1e-2)
    before = fingerprint(wrapper.module)
    if dist.get_rank() == 1:
        with torch.no_grad():
            wrapper.module.classifier.bias += 1e-6
    try:
        growth_event_(wrapper, optimizer, probe(), CONFIG)
    except RuntimeError as error:
        found["drift"] = str(error)
    if dist.get_rank() == 1:
        with torch.no_grad():
            wrapper.module.classifier.bias -= 1e-6
    wrapper = DistributedDataParallel(tiny())
    optimizer = torch.optim.AdamW(wrapper.parameters(), lr=1e-2)
    original = whole_module.prepare_growth

    def fails(*args, **kwargs):
        raise MemoryError("no memory left for the growth")

    if dist.get_rank() == 1:
        whole_module.prepare_growth = fails
    try:
        growth_event_(wrapper, optimizer, probe(), CONFIG)
    except (MemoryError, RuntimeError) as error:
        found["one_rank_fails"] = f"{type(error).__name__}: {error}"
    whole_module.prepare_growth = original
    size = sum(parameter.numel() for parameter in wrapper.parameters())

    def loss(model, batch):
        broken = dist.get_rank() == 1 and sum(parameter.numel() for parameter in model.parameters()) > size
        return model(**batch).loss * (torch.nan if broken else 1.0)

    try:
        growth_event_(wrapper, optimizer, probe(), CONFIG, loss=loss)
    except (ValueError, RuntimeError) as error:
        found["one_loss_is_nan"] = f"{type(error).__name__}: {error}"
    found["unchanged"] = fingerprint(wrapper.module) == before
    return found


def main() -> None:
    transformers.logging.set_verbosity_error()
    folder, names = Path(sys.argv[1]), sys.argv[2:]
    torch.set_num_threads(1)
    if not dist.is_initialized():
        dist.init_process_group("gloo")
    found = {}
    for name in names:
        found[name] = globals()[name](folder / name)
    (folder / f"found_{dist.get_rank()}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
