"""The probe's samples are drawn as the training draws its own, which goes on as if nothing had been drawn."""

import random
from collections import Counter

import numpy as np
import pytest
import torch
from datasets import Dataset
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    RandomSampler,
    Sampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
    default_collate,
)
from training_cases import Images, Stream, assert_same_weights, events, growth, losses, no_growth, train, trainer_for
from transformers.trainer_pt_utils import LengthGroupedSampler

from hf_saddle.training import GrowthCallback, GrowthTrainer, probe_batches, training_indices


DATA = Images()
OF_CLASS = [(DATA.labels == label).nonzero().flatten().tolist() for label in range(4)]


class Watching(GrowthTrainer):
    """Keeps the images that its growth is decided on, which come in evaluation mode."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.probed = []

    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        if not model.training:
            self.probed.append(inputs["pixel_values"])
        return super().compute_loss(model, inputs, return_outputs=return_outputs, **kwargs)

    def probed_indices(self) -> set[int]:
        pixels = torch.cat(self.probed)
        return {int((DATA.pixels == image).flatten(1).all(dim=1).nonzero()) for image in pixels}


class Weighted(Watching):
    """Trains on the classes 1 and 2 only."""

    def _get_train_sampler(self, train_dataset=None):
        weights = ((DATA.labels == 1) | (DATA.labels == 2)).double()
        return WeightedRandomSampler(weights, len(DATA), generator=torch.Generator().manual_seed(5))


class ByClass(BatchSampler):
    """Batches of one class each, of three of the four."""

    def __init__(self):
        super().__init__(range(len(DATA)), 8, drop_last=False)

    def __iter__(self):
        for label in torch.randperm(3).tolist():
            yield OF_CLASS[label][:8]

    def __len__(self):
        return 3


class Curriculum(Sampler):
    """A class more in every epoch."""

    epoch = 0

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __iter__(self):
        allowed = [index for label in range(min(self.epoch + 1, 4)) for index in OF_CLASS[label]]
        yield from (allowed[int(i)] for i in torch.randint(len(allowed), (len(DATA),)))

    def __len__(self):
        return len(DATA)


class Endless(Sampler):
    """Has a generator of its own and no length."""

    def __init__(self, make=lambda: np.random.default_rng(0)):
        self.generator = make()

    def __iter__(self):
        while True:
            yield OF_CLASS[3][int(self.generator.random() * len(OF_CLASS[3]))]


def sampled(make_sampler):
    class WithSampler(Watching):
        def _get_train_sampler(self, train_dataset=None):
            return make_sampler()

    return WithSampler


def loaded(make_loader):
    class WithLoader(Watching):
        def get_train_dataloader(self):
            return make_loader()

    return WithLoader


ALL, FIRST_TWO = set(range(len(DATA))), set(OF_CLASS[1] + OF_CLASS[2])
THREE = {index for label in range(3) for index in OF_CLASS[label][:8]}
TRAINERS = {
    "weighted": (Weighted, FIRST_TWO),
    "subset": (sampled(lambda: SubsetRandomSampler(OF_CLASS[0])), set(OF_CLASS[0])),
    "endless": (sampled(Endless), set(OF_CLASS[3])),
    "random_module": (sampled(lambda: Endless(lambda: random.Random(3))), set(OF_CLASS[3])),
    "with_replacement": (sampled(lambda: RandomSampler(DATA, replacement=True)), ALL),
    "curriculum": (sampled(Curriculum), set(OF_CLASS[0])),
    "own_loader": (
        loaded(lambda: DataLoader(DATA, batch_size=8, sampler=SubsetRandomSampler(OF_CLASS[2]))),
        set(OF_CLASS[2]),
    ),
    "batch_sampler": (loaded(lambda: DataLoader(DATA, batch_sampler=ByClass())), THREE),
    "by_length": (sampled(lambda: LengthGroupedSampler(8, lengths=DATA.labels.tolist())), ALL),
    "sequential": (sampled(lambda: SequentialSampler(DATA)), ALL),
}


@pytest.mark.thinned(3)
@pytest.mark.parametrize("name", TRAINERS)
def test_the_probe_draws_from_what_the_training_draws(tmp_path, name):
    """And the training is the one without growth, to the bit."""
    trainer_class, allowed = TRAINERS[name]
    fields = {"trainer_class": trainer_class, "train_dataset": DATA, "max_steps": 6}
    trainer = train(tmp_path / "a", no_growth(at=[2, 4]), **fields)
    drawn = trainer.probed_indices()
    assert drawn <= allowed and len(drawn) >= min(12, len(allowed) // 2)
    without = train(tmp_path / "b", **fields)
    assert losses(trainer) == losses(without)
    assert_same_weights(trainer.model, without.model)


# Samplers that draw from the global generator draw otherwise in an epoch that is resumed in its middle, growth or not;
# those with a generator of their own in a later epoch.
@pytest.mark.thinned(3)
@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("weighted", 5),
        ("with_replacement", 5),
        ("batch_sampler", 6),
        ("curriculum", 8),
        ("by_length", 8),
    ],
)
def test_a_resumed_run_draws_the_same(tmp_path, name, step):
    fields = {"trainer_class": TRAINERS[name][0], "train_dataset": DATA, "max_steps": 13}
    config = growth(at=[4, 11])
    whole = train(tmp_path / "a", config, save_strategy="steps", save_steps=step, **fields)
    resumed = train(tmp_path / "b", config, f"{tmp_path}/a/checkpoint-{step}", **fields)
    assert [event["step"] for event in events(whole)] == [4, 11]
    assert events(resumed) == events(whole) and losses(resumed) == losses(whole)


def test_a_curriculum_is_followed(tmp_path):
    """Four batches an epoch; the events are in the first and in the third."""
    config = no_growth(at=[2, 18])
    fields = {"trainer_class": sampled(Curriculum), "train_dataset": DATA}
    trainer = train(tmp_path, config, max_steps=20, **fields)
    first, later = (DATA.labels[torch.tensor(sorted(part))] for part in _by_event(trainer))
    assert set(first.tolist()) == {0} and set(later.tolist()) == {0, 1, 2}


def _by_event(trainer):
    """The images of the first event and of all; each event measures its batches once, as nothing grows."""
    everything, half = trainer.probed, len(trainer.probed) // 2
    trainer.probed = everything[:half]
    first = trainer.probed_indices()
    trainer.probed = everything[half:]
    return first, trainer.probed_indices()


@pytest.mark.parametrize("wrap", [lambda loader: loader, None], ids=["plain", "accelerate"])
def test_where_all_samples_are_equally_likely_no_sampler_is_read(tmp_path, wrap):
    loader = DataLoader(DATA, batch_size=8, shuffle=True)
    if wrap is None:
        loader = trainer_for(tmp_path, train_dataset=DATA).get_train_dataloader()
    assert training_indices(loader, growth()) is None
    assert training_indices(DataLoader(Stream(), batch_size=8), growth()) is None


def test_a_sampler_is_read_as_often_as_it_takes_a_sample():
    """Repeated augmentation, for example; the part of an epoch that is drawn has its shares."""
    sampler = [index for index in range(16) for _ in range(3)]
    indices = training_indices(DataLoader(DATA, batch_size=8, sampler=sampler), growth())
    assert Counter(indices) == dict.fromkeys(range(16), 3)
    (batch,) = probe_batches(DATA, growth(probe_samples=48, probe_batch_size=48), indices=indices)
    assert torch.equal(batch["labels"].bincount(), 3 * DATA.labels[:16].bincount())


def test_events_draw_other_samples_and_an_event_always_the_same():
    loader = DataLoader(DATA, batch_size=8, sampler=WeightedRandomSampler(torch.ones(64), 32))
    first, again, second = (training_indices(loader, growth(), event=event) for event in (0, 0, 1))
    assert first == again != second


def test_the_data_are_not_copied():
    class Large(Images):
        def __deepcopy__(self, memo):
            raise AssertionError("copied")

    data = Large()
    assert training_indices(DataLoader(data, batch_size=8), growth()) == list(range(64))


class Collating(Images):
    """A data set that makes its batches."""

    def __deepcopy__(self, memo):
        raise TypeError("cannot copy a connection")

    def collate(self, samples):
        return default_collate(samples)


def test_what_collates_may_belong_to_the_data_but_must_be_copied_otherwise(tmp_path):
    data = Collating()
    (event,) = events(train(tmp_path, growth(at=[3]), train_dataset=data, data_collator=data.collate, max_steps=6))
    assert event["layers"]
    trainer = trainer_for(tmp_path, growth(at=[3]), train_dataset=Collating(), data_collator=data.collate, max_steps=6)
    with pytest.raises(ValueError, match="collates.*cannot be copied.*connection"):
        trainer.train()
    assert trainer.state.global_step == 0


def test_a_probe_has_the_columns_that_the_training_has(tmp_path):
    images = Images()
    columns = {"pixel_values": images.pixels.tolist(), "labels": images.labels.tolist(), "text": ["a"] * 64}
    data = Dataset.from_dict(columns)

    def stacked(samples):
        return {name: torch.tensor([sample[name] for sample in samples]) for name in samples[0]}

    callback = GrowthCallback(growth(at=[3]), probe_dataset=data.select(range(32)))
    fields = {"train_dataset": data, "data_collator": stacked, "max_steps": 6}
    (event,) = events(train(tmp_path, callbacks=[callback], **fields))
    assert event["layers"]


# ---------------------------------------------------------------------------------------------- what cannot be reached
class Unknown:
    """A loader that is no `DataLoader`."""

    def __iter__(self):
        return iter(DataLoader(DATA, batch_size=8))

    def __len__(self):
        return 8


class Batches(Images):
    """A data set whose elements are batches."""

    def __getitem__(self, index):
        return next(iter(DataLoader(DATA, batch_size=8)))


UNREACHABLE = {
    "sampler": (lambda: DataLoader(DATA, batch_size=8, sampler=(i for i in range(64))), "cannot be copied"),
    "no_data_loader": (Unknown, "Unknown that makes no batches"),
    "made_batches": (lambda: DataLoader(Batches(), batch_size=None), "DataLoader that makes no batches"),
}


@pytest.mark.parametrize("name", UNREACHABLE)
def test_samples_that_cannot_be_drawn_are_refused_before_the_first_step(tmp_path, name):
    make, message = UNREACHABLE[name]
    fields = {"trainer_class": loaded(make), "train_dataset": DATA, "max_steps": 6}
    trainer = trainer_for(tmp_path / "a", growth(), **fields)
    with pytest.raises(ValueError, match=f"(?s){message}.*`probe_dataset`"):
        trainer.train()
    assert trainer.state.global_step == 0
    callback = GrowthCallback(growth(at=[3]), probe_dataset=Images(32))
    (event,) = events(train(tmp_path / "b", callbacks=[callback], **fields))
    assert event["layers"]
