"""The callback under `Trainer`: it leaves no trace unless it grows, and growing works in every mode of training."""

import copy
import logging
from types import SimpleNamespace

import pytest
import torch
from accelerate.utils import DistributedType
from torch import nn
from training_cases import (
    CHECKPOINTING,
    Images,
    Stream,
    assert_same_weights,
    events,
    growth,
    losses,
    no_growth,
    tiny,
    train,
    trainer_for,
)
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback, default_data_collator
from transformers.training_args import ParallelMode

from hf_saddle.curvature import analyze_curvature
from hf_saddle.growth import GrowthHistory, PaperGrowthConfig, grow_, halves, plan_growth
from hf_saddle.hub import TrainingRecord
from hf_saddle.training import GrowthCallback, GrowthTrainer, growth_event_, probe_batches, trainer_event
from hf_saddle.training.checks.trainer_checks import check_supported
from hf_saddle.training.events.probe import event_seed


def assert_grew(trainer, number: int = 3) -> None:
    """All events happened, each grew, the optimizer follows, and history, config and modules agree."""
    model = trainer.model
    history = GrowthHistory.from_model(model)
    history.check(model)
    assert len(history) == number and all(event.neurons > 0 for event in history.events)
    held = {parameter for group in trainer.optimizer.param_groups for parameter in group["params"]}
    assert held == {parameter for parameter in model.parameters() if parameter.requires_grad}
    assert model.config.per_layer_config[0].intermediate_size == model.shapes().widths["layers.0.mlp.fc1"]


# ------------------------------------------------------------------------------------------------------------ no trace
@pytest.mark.thinned(2)
@pytest.mark.parametrize("trainer_class", [Trainer, GrowthTrainer])
@pytest.mark.parametrize("noisy", [False, True], ids=["", "augmented"])
def test_empty_plans_leave_the_losses_exactly_as_without_the_callback(tmp_path, trainer_class, noisy):
    data = Images(noisy=noisy)
    without = train(tmp_path / "a", trainer_class=Trainer, train_dataset=data)
    trainer = train(tmp_path / "b", no_growth(), trainer_class=trainer_class, train_dataset=data)
    assert losses(trainer) == losses(without)
    assert_same_weights(trainer.model, without.model)
    assert [event["layers"] for event in events(trainer)] == [[], [], []]


def test_the_losses_up_to_the_first_growth_are_those_without_the_callback(tmp_path):
    without, grown = train(tmp_path / "a"), train(tmp_path / "b", growth())
    assert losses(grown)[:3] == losses(without)[:3]
    assert losses(grown)[3:] != losses(without)[3:]


def test_a_collator_with_a_generator_of_its_own_is_not_disturbed(tmp_path):
    class Mixup:
        def __init__(self):
            self.generator = torch.Generator().manual_seed(3)

        def __call__(self, samples):
            batch = default_data_collator(samples)
            share = torch.rand((), generator=self.generator)
            return batch | {
                "pixel_values": share * batch["pixel_values"] + (1 - share) * batch["pixel_values"].flip(0)
            }

    without = train(tmp_path / "a", data_collator=Mixup())
    trainer = train(tmp_path / "b", no_growth(), data_collator=Mixup())
    assert losses(trainer) == losses(without)


def test_the_callback_does_what_the_public_functions_do(tmp_path):
    """One event of the Trainer against the same step made by hand."""
    trainer = train(tmp_path, growth(at=[1]), max_steps=2)

    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step == 1

    other = trainer_for(tmp_path / "b", callbacks=[Stop()], max_steps=2)
    other.train()
    model, config = other.model, growth(at=[1])
    growth_event_(model, other.optimizer, probe_batches(Images(), config), config, step=1, epoch=0.125)
    assert events(other) == events(trainer)


@pytest.mark.parametrize("directions", ["whitened", "eigenvectors", "random"])
def test_an_event_plans_from_the_directions_that_the_config_names(directions):
    """Against a plan made by hand from an analysis of the samples that choose, with the same seed."""
    config = PaperGrowthConfig(**growth(at=[3]).to_dict() | {"directions": directions})
    batches = probe_batches(Images(), config)
    model, twin = tiny().train(), tiny().train()
    event = growth_event_(model, None, batches, config)
    paths = [site.path for site in twin.growable_linears() if site.block == 0]
    report = analyze_curvature(
        twin,
        halves(batches)[0],
        config.criteria,
        linears=paths,
        step_size=config.step_size,
        whiten=directions == "whitened",
        significance=config.significance,
        unit_activation=twin.config.hidden_act,
        seed=event_seed(config, 0),
    )
    grow_(twin, plan_growth(report, twin, config))
    assert event.neurons > 0
    assert_same_weights(model, twin)


def test_an_event_after_which_the_loss_is_not_finite_is_undone():
    model, config = tiny().train(), growth(at=[3])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    batches = probe_batches(Images(), config)
    model(**batches[0]).loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    before, held = copy.deepcopy(model), [p for group in optimizer.param_groups for p in group["params"]]
    size = sum(parameter.numel() for parameter in model.parameters())

    def loss(model, batch):
        grown = sum(parameter.numel() for parameter in model.parameters()) > size
        return model(**batch).loss * (torch.nan if grown else 1.0)

    with pytest.raises(ValueError, match="nan after the growth, which was undone"):
        growth_event_(model, optimizer, batches, config, loss=loss)
    assert_same_weights(model, before)
    assert model.growth_history is None and model.config.per_layer_config[0].skip_sizes is None
    parameters = list(model.parameters())
    now = [p for group in optimizer.param_groups for p in group["params"]]
    assert all(a is b is c for a, b, c in zip(parameters, held, now, strict=True))
    assert growth_event_(model, optimizer, batches, config).neurons > 0


# --------------------------------------------------------------------------------------------------- modes of training
MODES = {
    "accumulation": {"gradient_accumulation_steps": 2},
    "no_clipping": {"max_grad_norm": 0.0},
    "cosine": {"lr_scheduler_type": "cosine", "warmup_steps": 2},
    "bf16": {"bf16": True},
    "checkpointing": {CHECKPOINTING: True},
    "label_smoothing": {"label_smoothing_factor": 0.1},
    "epochs": {"max_steps": -1, "num_train_epochs": 2},
    "a_fraction_of_an_epoch": {"max_steps": -1, "num_train_epochs": 1.4},
    "a_last_batch_of_one": {"train_dataset": Images(33), "max_steps": -1, "num_train_epochs": 3},
    "eval_on_start": {"eval_on_start": True, "eval_dataset": Images(16)},
    "sgd": {"optim": "sgd", "optim_args": "momentum=0.9"},
    "adafactor": {"optim": "adafactor"},
    "workers": {"dataloader_num_workers": 1},
    "full_determinism": {"seed": 7, "data_seed": 8},
}


@pytest.mark.thinned(2)
@pytest.mark.parametrize("name", MODES)
def test_grows_in_mode(tmp_path, name):
    trainer = train(tmp_path, growth(), **MODES[name])
    assert_grew(trainer)
    assert all(loss < 10 for loss in losses(trainer))


@pytest.mark.thinned(2)
@pytest.mark.parametrize("kind", ["vit", "deit"])
@pytest.mark.parametrize("trainer_class", [Trainer, GrowthTrainer])
def test_grows_every_model_in_every_trainer(tmp_path, kind, trainer_class):
    assert_grew(train(tmp_path, growth(), model=tiny(kind), trainer_class=trainer_class))


def test_reduce_on_plateau(tmp_path):
    fields = {"eval_strategy": "steps", "eval_steps": 2, "metric_for_best_model": "loss"}
    plateau = {"lr_scheduler_type": "reduce_lr_on_plateau", "lr_scheduler_kwargs": {"patience": 0, "threshold": 10.0}}
    trainer = train(
        tmp_path, PaperGrowthConfig(**growth().to_dict(), schedule="lr"), eval_dataset=Images(16), **fields, **plateau
    )
    sizes = [
        event.parameters_after - event.parameters_before for event in GrowthHistory.from_model(trainer.model).events
    ]
    assert len(sizes) == 3 and sizes[0] > 3 * sizes[1]  # the rate fell to a tenth
    assert trainer.optimizer.param_groups[0]["lr"] < 1e-2


def test_a_gradient_scaler_is_not_disturbed():
    """What fp16 needs; a Trainer refuses fp16 on a CPU, so the loop is written by hand."""
    model, config = tiny(), growth()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)
    batches = probe_batches(Images(), config)
    for step in range(3):
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(**batches[0]).loss
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        assert growth_event_(model, optimizer, batches, config, event=step).neurons > 0
    assert scaler.get_scale() == 2.0**8


def test_iterable_data(tmp_path):
    with pytest.raises(ValueError, match="unit='steps'"):
        train(tmp_path / "a", growth(at=[1, 4, 7], unit="epochs"), train_dataset=Stream())
    without = train(tmp_path / "b", train_dataset=Stream())
    assert losses(train(tmp_path / "c", no_growth(), train_dataset=Stream())) == losses(without)
    assert_grew(train(tmp_path / "d", growth(), train_dataset=Stream()))


def test_a_stream_that_cannot_be_copied_needs_a_probe_dataset(tmp_path):
    class Pipe(Stream):
        def __init__(self):
            super().__init__()
            self.source = (sample for sample in Images())

        def __iter__(self):
            return self.source

    with pytest.raises(ValueError, match="probe_dataset"):
        train(tmp_path / "a", growth(), train_dataset=Pipe(), max_steps=6)
    callback = GrowthCallback(growth(at=[3]), probe_dataset=Images(32))
    assert_grew(train(tmp_path / "b", train_dataset=Pipe(), max_steps=6, callbacks=[callback]), 1)


def test_soft_labels_of_mixup_with_a_loss_of_the_trainer(tmp_path):
    def mixup(samples):
        batch = default_data_collator(samples)
        soft = nn.functional.one_hot(batch["labels"], 4).float()
        share = torch.rand(())
        return {
            "pixel_values": share * batch["pixel_values"] + (1 - share) * batch["pixel_values"].flip(0),
            "labels": share * soft + (1 - share) * soft.flip(0),
        }

    def soft_loss(outputs, labels, num_items_in_batch=None):
        return nn.functional.cross_entropy(outputs.logits, labels)

    fields = {"data_collator": mixup, "compute_loss_func": soft_loss}
    assert losses(train(tmp_path / "a", no_growth(), **fields)) == losses(train(tmp_path / "b", **fields))
    assert_grew(train(tmp_path / "c", growth(), **fields))


def test_a_probe_larger_than_the_data_takes_every_sample_once():
    batches = probe_batches(Images(10), growth(probe_samples=1000, probe_batch_size=4))
    assert [len(batch["labels"]) for batch in batches] == [4, 4, 2]
    drawn = torch.cat([batch["pixel_values"] for batch in batches])
    assert torch.equal(drawn.sum((1, 2, 3)).sort().values, Images(10).pixels.sum((1, 2, 3)).sort().values)


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_every_rank_refuses_data_with_fewer_samples_than_ranks(rank):
    with pytest.raises(ValueError, match="fewer than the 3 processes"):
        probe_batches(Images(2), growth(), rank=rank, world_size=3)


def test_early_stopping(tmp_path):
    stop = EarlyStoppingCallback(early_stopping_patience=1, early_stopping_threshold=10.0)
    fields = {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2}
    best = {"load_best_model_at_end": True, "metric_for_best_model": "loss"}
    trainer = train(tmp_path, growth(), callbacks=[stop], eval_dataset=Images(16), **fields, **best)
    assert trainer.state.global_step == 4
    GrowthHistory.from_model(trainer.model).check(trainer.model)


def test_model_init_and_a_second_training(tmp_path):
    trainer = trainer_for(tmp_path, growth(), model_init=lambda: tiny())
    trainer.train()
    first, weights = losses(trainer), copy.deepcopy(trainer.model)
    assert_grew(trainer)
    trainer.train()
    assert losses(trainer) == first
    assert_same_weights(trainer.model, weights)


@pytest.mark.slow
def test_hyperparameter_search_starts_every_trial_with_a_fresh_model_and_schedule(tmp_path):
    trainer = trainer_for(tmp_path, growth(), model_init=lambda: tiny(), eval_dataset=Images(16), max_steps=10)
    grown = []

    class Watch(TrainerCallback):
        def on_train_end(self, args, state, control, **kwargs):
            grown.append([entry["step"] for entry in state.log_history if "growth_event" in entry])

    trainer.add_callback(Watch())
    trainer.hyperparameter_search(lambda trial: {"learning_rate": trial.suggest_float("lr", 1e-3, 1e-2)}, n_trials=2)
    assert grown == [[3, 6, 9], [3, 6, 9]]


def test_a_second_training_goes_on_with_the_grown_model(tmp_path):
    trainer = trainer_for(tmp_path, growth(at=[3, 6], max_growth=None, event_budget=500), max_steps=8)
    trainer.train()
    assert_grew(trainer, 2)
    trainer.train()
    assert_grew(trainer, 4)


def test_an_optimizer_of_the_user(tmp_path):
    model = tiny()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 5)
    assert_grew(train(tmp_path, growth(), model=model, optimizers=(optimizer, schedule)))


def test_an_optimizer_made_for_other_parameters_is_refused(tmp_path):
    model = tiny()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    plan_source = train(tmp_path / "a", growth()).model
    model.load_state_dict(plan_source.state_dict())  # takes other shapes
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 5)
    with pytest.raises(ValueError, match="made for other parameters"):
        train(tmp_path / "b", growth(), model=model, optimizers=(optimizer, schedule))


def test_no_event_at_the_last_step(tmp_path):
    trainer = train(tmp_path, growth(at=[12, 15, 18]))
    assert trainer.model.growth_history is None


@pytest.mark.slow
@pytest.mark.parametrize("trainer_class", [Trainer, GrowthTrainer])
def test_torch_compile_compiles_anew_after_each_of_more_than_eight_events(tmp_path, trainer_class):
    compiled_at = []

    handler = torch._dynamo.callback.callback_handler

    class Watch(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            handler.clear()  # a reset of the compiler clears it too
            handler.register_start_callback(lambda _: compiled_at.append(state.global_step))

    config = growth(at=[1, 2, 3, 4, 5, 6, 7, 8, 9, 10], max_growth=None, event_budget=300)
    fields = {"trainer_class": trainer_class, "max_steps": 13, "model": tiny(hidden_dropout_prob=0.0)}
    backend = {"torch_compile": True, "torch_compile_backend": "eager"}
    compiled = train(tmp_path / "a", config, callbacks=[Watch()], **backend, **fields)
    handler.clear()
    assert_grew(compiled, 10)
    # In the first step, and in the step after each of the events; never given up.
    assert set(compiled_at) == set(range(11))
    fields["model"] = tiny(hidden_dropout_prob=0.0)
    assert losses(compiled) == pytest.approx(losses(train(tmp_path / "b", config, **fields)), rel=1e-4)


# -------------------------------------------------------------------------------------------------------------- output
def test_metrics_go_through_the_log_of_the_trainer_without_taking_the_step_s_own(tmp_path):
    class Reporter(TrainerCallback):
        def __init__(self):
            self.logs = []

        def on_log(self, args, state, control, logs=None, **kwargs):
            self.logs.append((state.global_step, dict(logs)))

    reporter = Reporter()
    trainer = train(tmp_path, growth(), callbacks=[reporter])
    grown = [(step, logs) for step, logs in reporter.logs if "growth_event" in logs]
    assert [(step, logs["growth_event"]) for step, logs in grown] == [(3, 1), (6, 2), (9, 3)]
    assert {"growth_parameters", "growth_macs", "growth_eigenvalue_min", "growth_seconds"} <= set(grown[0][1])
    assert grown[-1][1]["growth_parameters"] == sum(p.numel() for p in trainer.model.parameters())
    assert [step for step, logs in reporter.logs if "loss" in logs] == list(range(1, 13))


def test_a_plain_trainer_keeps_the_metrics_in_its_log_history(tmp_path, caplog):
    trainer = train(tmp_path, growth(), trainer_class=Trainer)
    assert [entry["step"] for entry in trainer.state.log_history if "growth_event" in entry] == [3, 6, 9]


@pytest.mark.parametrize("selection", ["gain", "pursuit"])
def test_the_progress_bar_of_a_probe_comes_to_its_end(tmp_path, monkeypatch, selection):
    bars = []

    class Bar(trainer_event.tqdm):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            bars.append(self)

    monkeypatch.setattr(trainer_event, "tqdm", Bar)
    config = growth(at=[3], criterion="depth", selection=selection, natural_step=0.5)
    train(tmp_path, config, max_steps=4, disable_tqdm=False)
    (bar,) = bars
    assert bar.n == bar.total and bar.delay > 1


def test_an_event_is_a_readable_line(tmp_path, caplog):
    with caplog.at_level(logging.INFO, "hf_saddle.training"):
        train(tmp_path, growth(at=[3]))
    (line,) = [record.getMessage() for record in caplog.records if "Growth event" in record.getMessage()]
    assert (
        line.startswith("Growth event 1 at step 3 (epoch 0.38): ") and "parameters (×" in line and "probe loss" in line
    )


# ------------------------------------------------------------------------------------------------------------ refusals
def test_a_wrapped_model_is_refused(tmp_path):
    class Adapter(nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, **batch):
            return self.model(**batch)

    with pytest.raises(ValueError, match="merge_and_unload"):
        train(tmp_path, growth(), model=Adapter(tiny()))


def test_a_model_with_adapters_is_refused(tmp_path):
    model = tiny()
    model._hf_peft_config_loaded = True  # what `add_adapter` sets
    with pytest.raises(ValueError, match="delete_adapter"):
        train(tmp_path, growth(), model=model)


@pytest.mark.parametrize("trainer_class", [Trainer, GrowthTrainer])
def test_a_second_callback_is_refused(tmp_path, trainer_class):
    callbacks = [GrowthCallback(growth()), GrowthCallback(growth(at=[5, 8, 11]))]
    with pytest.raises(ValueError, match="one GrowthCallback"):
        train(tmp_path, callbacks=callbacks, trainer_class=trainer_class)


@pytest.mark.parametrize(
    ("fields", "layers", "frozen", "message"),
    [
        ({"optim": "adagrad"}, [0], False, "Adagrad cannot be carried"),
        ({}, [0], True, "No linear may grow"),
        ({}, [0, 7], False, r"names \[7\], but the model has 2"),
    ],
    ids=["optimizer", "frozen", "layers"],
)
def test_what_could_not_grow_is_refused_before_the_first_step(tmp_path, fields, layers, frozen, message):
    model = tiny()
    model.vit.requires_grad_(not frozen)
    trainer = trainer_for(tmp_path, growth(layers=layers), model=model, **fields)
    with pytest.raises(ValueError, match=message):
        trainer.train()
    assert trainer.state.global_step == 0


@pytest.mark.parametrize(
    ("fields", "remedy"),
    [
        ({"deepspeed": "zero2.json"}, "growth_event_sharded_"),
        ({"distributed_state": SimpleNamespace(distributed_type=DistributedType.FSDP)}, "growth_event_sharded_"),
        ({"parallel_mode": ParallelMode.NOT_DISTRIBUTED}, "torchrun"),
        ({"parallel_mode": ParallelMode.DISTRIBUTED}, "Use GrowthTrainer"),
    ],
    ids=["deepspeed", "fsdp", "data_parallel", "ddp_in_a_plain_trainer"],
)
def test_ways_of_training_that_are_refused(fields, remedy):
    alone = {"deepspeed": None, "auto_find_batch_size": False, "parallel_mode": ParallelMode.NOT_PARALLEL}
    alone["distributed_state"] = SimpleNamespace(distributed_type=DistributedType.NO)
    check_supported(SimpleNamespace(**alone), trainer=None)
    with pytest.raises(ValueError, match=remedy):
        check_supported(SimpleNamespace(**alone | fields), trainer=None)


def test_a_config_may_come_as_a_dict():
    assert GrowthCallback(growth().to_dict()).config == growth()


def test_arguments_of_the_trainer_stay_as_they_are(tmp_path):
    trainer = trainer_for(tmp_path, growth(), save_strategy="steps", save_steps=4, save_total_limit=1)
    trainer.train()
    assert trainer.args.save_total_limit == 1
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-12"]


def test_the_card_of_the_trainer_tells_what_grew(tmp_path):
    trainer = train(tmp_path, growth())
    trainer.save_model()
    trainer.create_model_card()
    card = (tmp_path / "README.md").read_text()
    assert GrowthHistory.from_model(trainer.model).summary() in card and "growth `at`" in card


def test_what_other_data_come_to_is_not_told_as_validation(tmp_path):
    trainer = trainer_for(tmp_path, eval_dataset=Images(8))
    validation = trainer.evaluate()
    trainer.evaluate(Images(16))
    record = TrainingRecord.of(trainer.model, trainer.args, trainer.state)
    assert (record.split, record.results["loss"]) == ("validation", validation["eval_loss"])
    assert [entry["eval_loss"] for entry in record.log] == [validation["eval_loss"]]
