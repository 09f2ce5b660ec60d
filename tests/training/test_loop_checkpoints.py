"""A hand-written Accelerate loop that is resumed across growth goes on to the bit, whatever model it loads into."""

import json
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator, DataLoaderConfiguration, skip_first_batches
from accelerate.utils import DistributedType, set_seed
from torch.utils.data import DataLoader
from training_cases import Images, assert_same_optimizer, assert_same_weights, growth, tiny
from transformers import AutoModelForImageClassification, GPT2Config, GPT2LMHeadModel

from hf_saddle import growable
from hf_saddle.growth import GrowthHistory
from hf_saddle.training import growth_event_, probe_batches, register_growth_checkpointing
from hf_saddle.training.wrappers import unwrap


PER_EPOCH = 8  # 64 images in batches of 8


class Loop:
    """Twelve steps with three events, after which it saves if it is told to."""

    def __init__(self, config=None, register=True, model=None, **config_of_accelerator):
        set_seed(0)
        self.config = config or growth()
        # Mid-epoch, the order of the samples must be known without having drawn those before.
        loading = DataLoaderConfiguration(use_seedable_sampler=True)
        self.accelerator = Accelerator(cpu=True, dataloader_config=loading, **config_of_accelerator)
        model = tiny(hidden_dropout_prob=0.0) if model is None else model
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-2, 12)
        size = 8 // self.accelerator.num_processes
        loader = DataLoader(Images(), batch_size=size, shuffle=True)
        self.model, self.optimizer, self.loader = self.accelerator.prepare(model, optimizer, loader)
        self.accelerator.register_for_checkpointing(self.schedule)
        if register:
            register_growth_checkpointing(self.accelerator, self.model, self.optimizer)
        self.losses = []

    def run(self, folder=None, start=0, stop=12):
        for step in range(start, stop):
            if step == start or step % PER_EPOCH == 0:
                self.loader.set_epoch(step // PER_EPOCH)
                batches = iter(skip_first_batches(self.loader, step % PER_EPOCH))
            loss = self.model(**next(batches)).loss
            self.accelerator.backward(loss)
            self.optimizer.step()
            self.schedule.step()
            self.optimizer.zero_grad()
            self.losses.append(loss.item())
            done = len(GrowthHistory.from_model(unwrap(self.model)))
            if self.config.event_due(step + 1, done) and step + 1 < 12:
                place = {"rank": self.accelerator.process_index, "world_size": self.accelerator.num_processes}
                probe = probe_batches(Images(), self.config, event=done, **place)
                growth_event_(self.model, self.optimizer, probe, self.config, event=done, step=step + 1)
            if folder is not None:
                self.accelerator.save_state(f"{folder}/{step + 1}")
        return self


def assert_same_run(loop, other) -> None:
    ours, theirs = unwrap(loop.model), unwrap(other.model)
    assert loop.losses == other.losses[-len(loop.losses) :]
    assert_same_weights(ours, theirs)
    assert_same_optimizer(loop.optimizer, other.optimizer)
    assert loop.schedule.state_dict() == other.schedule.state_dict()
    histories = [json.loads(json.dumps(model.growth_history)) for model in (ours, theirs)]
    for history in histories:
        for event in history["events"]:
            del event["seconds"]
    assert histories[0] == histories[1]
    GrowthHistory.from_model(ours).check(ours)


CONFIGS = {
    "both": growth(),
    "width": growth(criterion="width", linears=["mlp.fc1"]),
    "pairs": growth(criterion="depth", operator="residual_pair"),
}


@pytest.fixture(scope="module", params=CONFIGS)
def whole(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    return CONFIGS[request.param], folder, Loop(CONFIGS[request.param]).run(folder)


# 2: before all growth; 3: right after the first event; 8: at the end of an epoch; 10: after the last event.
@pytest.mark.thinned(3)
@pytest.mark.parametrize("step", [2, 3, 8, 10])
def test_resuming_with_a_fresh_model(whole, step):
    config, folder, uninterrupted = whole
    resumed = Loop(config)
    resumed.accelerator.load_state(f"{folder}/{step}")
    assert_same_run(resumed.run(start=step), uninterrupted)


@pytest.mark.thinned(3)
@pytest.mark.parametrize("step", [2, 8])
def test_going_back_with_a_model_that_has_grown_further(whole, step):
    config, folder, uninterrupted = whole
    loop = Loop(config).run()
    loop.accelerator.load_state(f"{folder}/{step}")
    loop.losses.clear()
    assert_same_run(loop.run(start=step), uninterrupted)


@pytest.mark.parametrize("way", ["a_pickle", "the_same_shapes"])
def test_other_ways(tmp_path, way):
    loop = Loop().run(stop=7)
    loop.accelerator.save_state(str(tmp_path), safe_serialization=way != "a_pickle")
    resumed = Loop()
    if way == "the_same_shapes":
        resumed.run(stop=7)
        held = list(unwrap(resumed.model).parameters())
    resumed.accelerator.load_state(str(tmp_path))
    if way == "the_same_shapes":
        assert all(a is b for a, b in zip(held, unwrap(resumed.model).parameters(), strict=True))
    resumed.losses.clear()
    assert_same_run(resumed.run(start=7), loop.run(start=7))


def test_a_checkpoint_is_a_model(whole):
    """With weights, config and history, as `save_pretrained` writes them."""
    _, folder, loop = whole
    model = AutoModelForImageClassification.from_pretrained(folder / "12")
    assert_same_weights(model, loop.model)
    assert model.growth_history == loop.model.growth_history
    assert not (folder / "2" / "growth_history.json").exists()


def test_tied_weights_come_back_tied(tmp_path):
    texts = torch.arange(32).view(4, 8) % 20
    loops = []
    for growing in (True, False):
        model = growable(GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=20, n_positions=8)))
        accelerator = Accelerator(cpu=True)
        model, optimizer = accelerator.prepare(model, torch.optim.AdamW(model.parameters(), lr=1e-2))
        register_growth_checkpointing(accelerator, model, optimizer)
        if growing:
            batches = [{"input_ids": texts, "labels": texts}] * 4
            growth_event_(model, optimizer, batches, growth(at=[1], significance=0.0), event=0, step=1)
            accelerator.save_state(tmp_path)
        else:
            accelerator.load_state(tmp_path)
        loops.append(model.eval())
    assert len(GrowthHistory.from_model(loops[1])) == 1
    assert loops[1].lm_head.weight is loops[1].transformer.wte.weight
    assert torch.equal(loops[0](input_ids=texts).logits, loops[1](input_ids=texts).logits)


def test_a_checkpoint_without_registration_is_refused_before_anything_is_loaded(tmp_path):
    Loop(register=False).run(tmp_path, stop=4)
    resumed = Loop()
    before = {name: value.clone() for name, value in resumed.model.state_dict().items()}
    with pytest.raises(ValueError, match="without `register_growth_checkpointing`.*Put the `config.json`"):
        resumed.accelerator.load_state(f"{tmp_path}/4")
    assert all(torch.equal(before[name], value) for name, value in resumed.model.state_dict().items())


def test_a_history_of_another_checkpoint_is_refused(tmp_path):
    Loop().run(tmp_path, stop=4)
    (tmp_path / "4" / "growth_history.json").unlink()
    resumed = Loop()
    resumed.model.growth_history = None
    (tmp_path / "4" / "growth_history.json").write_bytes((tmp_path / "3" / "growth_history.json").read_bytes())
    resumed.accelerator.load_state(f"{tmp_path}/4")  # the same event
    other = Loop().run(tmp_path / "b", stop=7)
    (tmp_path / "4" / "growth_history.json").write_bytes((tmp_path / "b" / "7" / "growth_history.json").read_bytes())
    with pytest.raises(ValueError, match="does not lead to the shapes"):
        Loop().accelerator.load_state(f"{tmp_path}/4")
    assert len(other.losses) == 7


def test_what_cannot_be_registered_is_refused():
    loop = Loop(register=False)
    with pytest.raises(ValueError, match="was not prepared by this accelerator"):
        register_growth_checkpointing(loop.accelerator, tiny(), loop.optimizer)
    sharded = SimpleNamespace(distributed_type=DistributedType.FSDP, _models=[loop.model])
    with pytest.raises(ValueError, match="one process or DDP"):
        register_growth_checkpointing(sharded, loop.model, loop.optimizer)
