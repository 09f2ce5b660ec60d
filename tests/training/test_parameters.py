"""A Trainer refuses before its first step what could not follow a growth; a resumed one trains the same as before."""

import pytest
import torch
from torch.nn.utils import prune
from training_cases import assert_same_weights, growth, no_growth, tiny, train, trainer_for
from transformers import Trainer, TrainerCallback

from hf_saddle.growth import GrowthPlan, LayerGrowth, count_macs, count_parameters, grow_
from hf_saddle.training import GrowthTrainer


FC1 = "vit.layers.0.mlp.fc1"


class MustNotStep(TrainerCallback):
    def on_step_begin(self, *args, **kwargs):
        pytest.fail("a step was begun")


def with_branches(**fields):
    model = tiny(**fields)
    for path in (FC1, "vit.layers.1.attention.q_proj"):
        grow_(model, GrowthPlan((LayerGrowth.by_hand(model, path, "zero_gain", [0, 3], gains=0.5),)))
    return model


def flags(model):
    return {name: parameter.requires_grad for name, parameter in model.named_parameters()}


def freeze_(model, trained):
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(trained(name))
    return model


# ----------------------------------------------------------------------------------------------------------- refusals
HANGING = {
    "hook": (lambda linear: linear.weight.register_hook(torch.sign), "fc1.weight has hooks"),
    "optimizer in the backward pass": (
        lambda linear: linear.weight.register_post_accumulate_grad_hook(lambda parameter: None),
        "fc1.weight has hooks",
    ),
    "pruning": (lambda linear: prune.l1_unstructured(linear, "weight", 0.5), "fc1 has weight, weight_mask"),
}


@pytest.mark.parametrize("trainer_class", [Trainer, GrowthTrainer])
@pytest.mark.parametrize("case", HANGING)
def test_what_hangs_on_a_parameter_is_refused_before_the_first_step(tmp_path, case, trainer_class):
    hang, message = HANGING[case]
    trainer = trainer_for(tmp_path, growth(), trainer_class=trainer_class)
    hang(trainer.model.get_submodule(FC1))
    with pytest.raises(ValueError, match=message):
        trainer.train()
    assert trainer.state.global_step == 0


SIZE, MACS = count_parameters(tiny()), count_macs(tiny())
# A neuron of fc1 adds 65 parameters when it is split and 34 with a unit, one of another linear 34 or 26.
SPENT = {
    "parameters": ({"max_parameters": SIZE}, f"`max_parameters={SIZE}` leaves 0 parameters"),
    "fewer parameters": ({"max_parameters": SIZE - 100}, "leaves -100 parameters"),
    "no neuron": ({"max_parameters": SIZE + 25}, "leaves 25 parameters, and an event needs 26"),
    "no wider neuron": ({"max_parameters": SIZE + 64, "criterion": "width"}, "leaves 64 parameters, .* needs 65"),
    "MACs": ({"max_macs": MACS}, f"`max_macs={MACS}` leaves 0 MACs"),
    "event": ({"event_budget": 25}, "`event_budget=25` is below the 26 parameters"),
    "wide attention": ({"criterion": "width", "linears": ["attention.q_proj"]}, "No linear may grow in the way"),
    "no depth": ({"criterion": "depth", "max_depth": 0}, "No linear may grow in the way|`max_depth`"),
}


@pytest.mark.thinned(3)
@pytest.mark.parametrize("trainer_class", [Trainer, GrowthTrainer])
@pytest.mark.parametrize("case", SPENT)
def test_a_budget_for_no_neuron_is_refused_before_the_first_step(tmp_path, case, trainer_class):
    fields, message = SPENT[case]
    limit = {} if {"max_parameters", "max_macs"}.isdisjoint(fields) else {"max_growth": None}
    with pytest.raises(ValueError, match=message):
        trainer = trainer_for(tmp_path, growth(**limit | fields), trainer_class=trainer_class)
        trainer.add_callback(MustNotStep())
        trainer.train()


@pytest.mark.parametrize(
    ("fields", "added"),
    [
        ({"max_parameters": SIZE + 26, "linears": ["mlp.fc2"]}, 26),
        ({"max_parameters": SIZE + 65, "criterion": "width"}, 65),
    ],
)
def test_a_budget_for_one_neuron_is_spent(tmp_path, fields, added):
    trainer = train(tmp_path, growth(max_growth=None, significance=0.0, **fields))
    assert count_parameters(trainer.model) == SIZE + added


def test_a_training_that_has_spent_its_budget_is_resumed(tmp_path):
    config = growth(max_growth=None, max_parameters=SIZE + 65, criterion="width", significance=0.0)
    train(tmp_path, config, save_strategy="steps", save_steps=8)
    resumed = train(tmp_path, config, resume=str(tmp_path / "checkpoint-8"))
    assert resumed.state.global_step == 12 and count_parameters(resumed.model) == SIZE + 65


def test_layers_that_do_not_grow_may_have_hooks(tmp_path):
    trainer = trainer_for(tmp_path, growth(layers=[0]))
    seen = []
    trainer.model.get_submodule(FC1.replace("layers.0", "layers.1")).weight.register_hook(seen.append)
    trainer.train()
    assert len(trainer.model.growth_history["events"]) == 3 and len(seen) >= 12


class Layerwise(torch.optim.Optimizer):
    """An optimizer that nobody knows, as those of other libraries are."""

    def __init__(self, params):
        super().__init__(params, {"lr": 0.1})

    def step(self, closure=None):
        raise AssertionError("a step was made")


def test_unknown_optimizers_are_refused_before_the_first_step(tmp_path):
    model = tiny()
    trainer = trainer_for(tmp_path, growth(), model=model, optimizers=(Layerwise(model.parameters()), None))
    with pytest.raises(ValueError, match="Layerwise cannot be carried through a growth"):
        trainer.train()
    assert trainer.state.global_step == 0


def test_an_optimizer_that_misses_what_may_grow_is_refused_before_the_first_step(tmp_path):
    model = tiny()
    held = [parameter for name, parameter in model.named_parameters() if not name.startswith(FC1)]
    trainer = trainer_for(tmp_path, growth(), model=model, optimizers=(torch.optim.AdamW(held), None))
    with pytest.raises(ValueError, match=f"does not hold {FC1}.weight"):
        trainer.train()
    assert trainer.state.global_step == 0


@pytest.mark.thinned(2)
@pytest.mark.parametrize("name", ["schedule_free_adamw", "schedule_free_sgd"])
def test_schedule_free_optimizers_grow_in_a_trainer(tmp_path, name):
    pytest.importorskip("schedulefree")
    fields = {"optim": name, "lr_scheduler_type": "constant", "save_strategy": "steps", "save_steps": 4}
    full = train(tmp_path / "full", growth(), **fields)
    assert len(full.model.growth_history["events"]) == 3
    resumed = train(tmp_path / "again", growth(), str(tmp_path / "full" / "checkpoint-8"), **fields)
    assert_same_weights(resumed.model, full.model)


# ----------------------------------------------------------------------------------------------- what is trained stays
TRAINED = {
    "biases": lambda name: name.endswith("bias"),
    "units": lambda name: ".skip." in name or name.startswith("classifier"),
    "rows of a branch": lambda name: name.endswith("skip.linear.weight") or name.startswith("classifier"),
}


@pytest.mark.parametrize("trained", TRAINED.values(), ids=TRAINED)
def test_a_run_that_trains_some_parameters_resumes(tmp_path, trained):
    """From a model of the same shapes, and from a smaller one whose branches are to be trained as well."""
    fields = {"save_strategy": "steps", "save_steps": 4, "max_steps": 8}
    full = train(tmp_path / "full", model=freeze_(with_branches(), trained), **fields)
    model = freeze_(with_branches(seed=1), trained)
    resumed = train(tmp_path / "again", None, str(tmp_path / "full" / "checkpoint-4"), model=model, **fields)
    assert flags(resumed.model) == flags(full.model) == {name: trained(name) for name in flags(model)}
    assert_same_weights(resumed.model, full.model)


def test_resuming_trains_the_branches_of_a_smaller_model_as_the_neurons_they_feed(tmp_path):
    biases = TRAINED["biases"]
    fields = {"save_strategy": "steps", "save_steps": 4, "max_steps": 8}
    full = train(tmp_path / "full", model=freeze_(with_branches(), biases), **fields)
    model = freeze_(tiny(), biases)
    resumed = train(tmp_path / "again", None, str(tmp_path / "full" / "checkpoint-4"), model=model, **fields)
    assert flags(resumed.model) == flags(full.model)
    assert_same_weights(resumed.model, full.model)


def test_resuming_where_other_parameters_are_trained_tells_what_to_do(tmp_path):
    """Units only, from a model without units: nothing says that they are to be trained."""
    fields = {"save_strategy": "steps", "save_steps": 4, "max_steps": 8}
    train(tmp_path / "full", model=freeze_(with_branches(), TRAINED["units"]), **fields)
    checkpoint = str(tmp_path / "full" / "checkpoint-4")
    small = freeze_(tiny(), TRAINED["units"])
    with pytest.raises(ValueError, match="from_pretrained.*requires_grad"):
        train(tmp_path / "again", None, checkpoint, model=small, **fields)
    model = freeze_(type(small).from_pretrained(checkpoint), TRAINED["units"])
    resumed = train(tmp_path / "again", None, checkpoint, model=model, **fields)
    assert resumed.state.global_step == 8


@pytest.mark.parametrize("trained", TRAINED.values(), ids=TRAINED)
def test_the_best_model_is_trained_as_it_was(tmp_path, trained):
    """It may have fewer or more units than the last one."""
    trainer = trainer_for(tmp_path, no_growth(), model=with_branches())
    trainer.state.best_model_checkpoint = str(tmp_path / "best")
    better = with_branches(seed=3)
    grow_(better, GrowthPlan((LayerGrowth.by_hand(better, FC1, "zero_gain", [1, 2, 5], gains=0.5),)))
    better.save_pretrained(tmp_path / "best")
    freeze_(trainer.model, trained)
    before = flags(trainer.model)
    trainer._load_best_model()
    assert flags(trainer.model) == before
    assert_same_weights(trainer.model, better)


def test_branches_on_frozen_linears_grow(tmp_path):
    """The linears stay as they are; their units, which are trained, get units of their own."""
    model = freeze_(with_branches(), lambda name: ".skip." in name or name.startswith("classifier"))
    frozen = {name: p.detach().clone() for name, p in model.named_parameters() if not p.requires_grad}
    trainer = train(tmp_path, growth(layers=None, max_depth=2, significance=0.0), model=model)
    named = dict(trainer.model.named_parameters())
    assert all(torch.equal(named[name], value) and not named[name].requires_grad for name, value in frozen.items())
    assert any(
        event["parameters_after"] > event["parameters_before"] for event in trainer.model.growth_history["events"][2:]
    )
    assert all(p.requires_grad for name, p in named.items() if ".skip." in name)
