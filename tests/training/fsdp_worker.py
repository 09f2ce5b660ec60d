"""What `test_fsdp.py` runs in two processes: training with growth, sharded and as one process does it."""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
import transformers
from fsdp_cases import furthest, whole
from torch.distributed.fsdp import fully_shard
from torch.utils.data import default_collate
from training_cases import Images, growth, no_growth, tiny

from hf_saddle.training import growth_event_, probe_batches
from hf_saddle.training.sharding.sharded import growth_event_sharded_


STEPS, EVENTS = 8, (2, 4)


def shard(model):
    for layer in model.base_model.layers:
        fully_shard(layer)
    fully_shard(model)


def to_double(batch):
    return batch | {"pixel_values": batch["pixel_values"].double()}


def batch(step: int, share: slice):
    samples = [Images()[(16 * step + index) % 64] for index in range(16)]
    return to_double(default_collate(samples[share]))


def run(sharded: bool, config, optimizer_class=torch.optim.AdamW):
    """Two shards of eight samples, or one process with sixteen."""
    model = tiny(hidden_dropout_prob=0.0).double()  # rounding does not decide which neurons grow
    if sharded:
        shard(model)
    optimizer = optimizer_class(model.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 3, 0.5)
    rank = dist.get_rank()
    share = slice(8 * rank, 8 * rank + 8) if sharded else slice(None)
    losses, neurons = [], []
    for step in range(1, STEPS + 1):
        loss = model(**batch(step, share)).loss
        loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if step in EVENTS:
            number = EVENTS.index(step)
            if sharded:
                probe = probe_batches(Images(), config, event=number, rank=rank, world_size=2)
                probe = [to_double(batch) for batch in probe]
                same, event = growth_event_sharded_(model, optimizer, probe, config, shard=shard, event=number)
                assert same is model
            else:
                probe = probe_batches(Images(), config, event=number)
                probe = [to_double(batch) for batch in probe]
                event = growth_event_(model, optimizer, probe, config, event=number)
            neurons.append(event.neurons)
    return model, optimizer, losses, neurons


def undone(config, failure):
    """A model that cannot be measured once it has grown is as before, with its optimizer, and trains on so."""
    runs = []
    for fails in (True, False):
        model = tiny(hidden_dropout_prob=0.0).double()
        shard(model)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        parameters, message, share = list(model.parameters()), "", slice(8 * dist.get_rank(), 8 * dist.get_rank() + 8)

        def loss(model, batch):
            return failure(model(**batch).loss) if model.shapes().skip_sizes else model(**batch).loss

        for step in range(4):
            model(**batch(step, share)).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            if step == 1 and fails:
                probe = probe_batches(Images(), config, rank=dist.get_rank(), world_size=2)
                try:
                    probe = [to_double(part) for part in probe]
                    growth_event_sharded_(model, optimizer, probe, config, shard=shard, loss=loss)
                except (ArithmeticError, ValueError) as error:
                    message = str(error)
        same = all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
        runs.append((whole(model, optimizer), message, same, model.growth_history))
    (failed, message, same, history), (plain, *_) = runs
    distance = max(furthest(a, b) for a, b in zip(failed, plain, strict=True))
    return {"message": message, "same": same, "history": history, "distance": distance}


def not_finite(value):
    return value * float("nan")


def stop(value):
    raise ArithmeticError("no loss")


SOME = {"linears": ["mlp.fc1", "mlp.fc2"], "significance": 0.0}
CONFIGS = {
    # Half of the probe chooses, the other judges, the step is tried: units and splits that move at once.
    "moving": (torch.optim.AdamW, growth(**SOME, natural_step=0.5)),
    "at_rest": (torch.optim.SGD, growth(**SOME, criterion="depth", event_budget=400, max_growth=None)),
}


def compared(name):
    """A run on two processes, and what the first one finds if it does the same alone."""
    optimizer_class, config = CONFIGS[name]
    model, optimizer, losses, neurons = run(True, config, optimizer_class)
    both = [None, None]
    dist.all_gather_object(both, losses)
    weights, states = whole(model, optimizer)
    if dist.get_rank() > 0:
        return None
    one, one_optimizer, expected, one_neurons = run(False, config, optimizer_class)
    one_weights, one_states = whole(one, one_optimizer)
    of_events, of_one = (each.growth_history["events"] for each in (model, one))
    return {
        "sharded": [sum(pair) / 2 for pair in zip(*both, strict=True)],
        "one": expected,
        "neurons": [neurons, one_neurons],
        "operators": sorted({name for event in of_events for name in event["operators"]}),
        "gains": [[event["predicted_gain"] for event in events] for events in (of_events, of_one)],
        "weights": furthest(weights, one_weights),
        "states": furthest(states, one_states),
        "shapes": model.shapes() == one.shapes(),
        "groups": [len(g["params"]) for g in optimizer.param_groups]
        == [len(g["params"]) for g in one_optimizer.param_groups],
        "rates": [g["lr"] for g in optimizer.param_groups] == [g["lr"] for g in one_optimizer.param_groups],
    }


def main() -> None:
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    folder = Path(sys.argv[1])
    found = {name: compared(name) for name in CONFIGS}
    depth = CONFIGS["at_rest"][1]
    # A step that is tried without success is tried again; an error ends the event at the first trial.
    found["undone"] = {name: undone(depth, failure) for name, failure in {"trial": stop, "growth": not_finite}.items()}
    model, _, _, neurons = run(True, no_growth())
    found["empty"] = {"neurons": neurons, "events": len(model.growth_history["events"])}
    (folder / f"found_{dist.get_rank()}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
