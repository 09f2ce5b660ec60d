"""Whatever gives the model other shapes while it is trained, the optimizer goes on with what the model holds."""

import copy
import logging

import pytest
import torch
from accelerate import Accelerator
from training_cases import (
    Images,
    assert_same_optimizer,
    assert_same_weights,
    events,
    growth,
    losses,
    tiny,
    train,
    trainer_for,
)
from transformers import Trainer, TrainerCallback

from hf_saddle.growth import GrowthHistory, GrowthPlan, LayerGrowth, grow_, merge_pairs_, prepare_growth
from hf_saddle.training import GrowthTrainer, growth_event_, probe_batches, rebind_


FC1 = "vit.layers.0.mlp.fc1"
WIDTH = {"criterion": "width", "linears": ["mlp.fc1"]}
CONFIGS = {"branches": growth(at=[3, 6]), "width": growth(at=[3, 6], **WIDTH)}
by_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)


class Meddler(TrainerCallback):
    """Notes the weights at one step, and loads them at another; `back` loads the present ones right after that."""

    def __init__(self, note=4, load=7, moment="on_step_end", back=False, state=None):
        self.note, self.load, self.back, self.noted = note, load, back, state
        self.begun = []
        setattr(self, moment, self.meddle)

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        self.begun.append({name: value.detach().clone() for name, value in model.named_parameters()})

    def meddle(self, args, state, control, model=None, **kwargs):
        if state.global_step == self.note and self.noted is None:
            self.noted = copy.deepcopy(model.state_dict())
        if state.global_step == self.load:
            present = copy.deepcopy(model.state_dict())
            model.load_state_dict(self.noted)
            if self.back:
                model.load_state_dict(present)


def held_by(optimizer) -> list[int]:
    return [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]


def assert_trains_all(model, optimizer, before) -> None:
    """The optimizer holds exactly the model's parameters, and all of them have moved since."""
    assert sorted(held_by(optimizer)) == sorted(map(id, model.parameters()))
    assert [name for name, value in model.named_parameters() if torch.equal(value, before[name])] == []


# ---------------------------------------------------------------------------------------------------- in a Trainer
@pytest.mark.thinned(3)
@pytest.mark.parametrize("trainer_class", [Trainer, GrowthTrainer])
@pytest.mark.parametrize("moment", ["on_step_end", "on_log"])
@by_config
def test_rolling_back_to_weights_of_before_an_event(tmp_path, trainer_class, moment, config, caplog):
    meddler = Meddler(moment=moment)
    with caplog.at_level(logging.WARNING, "hf_saddle"):
        trainer = train(tmp_path, config, trainer_class=trainer_class, callbacks=[meddler])
    assert_trains_all(trainer.model, trainer.optimizer, meddler.begun[7])
    assert trainer.state.global_step == 12 and len(events(trainer)) == 1
    GrowthHistory.from_model(trainer.model).check(trainer.model)
    (message,) = [r.getMessage() for r in caplog.records if "outside of a growth" in r.getMessage()]
    assert "before step 8" in message and "from 2 to 1 events" in message


@pytest.mark.thinned(3)
@pytest.mark.parametrize("trainer_class", [Trainer, GrowthTrainer])
@pytest.mark.parametrize("moment", ["on_step_end", "on_evaluate"])
def test_weights_of_an_older_shape_swapped_in_and_back_change_nothing(tmp_path, trainer_class, moment):
    fields = {"trainer_class": trainer_class, "eval_dataset": Images(16), "eval_strategy": "steps", "eval_steps": 1}
    plain = train(tmp_path / "a", growth(), **fields)
    swapped = train(tmp_path / "b", growth(), callbacks=[Meddler(moment=moment, back=True)], **fields)
    assert losses(swapped) == losses(plain) and events(swapped) == events(plain)
    assert_same_weights(swapped.model, plain.model)
    assert_same_optimizer(swapped.optimizer, plain.optimizer)
    assert sorted(held_by(swapped.optimizer)) == sorted(map(id, swapped.model.parameters()))


def test_a_checkpoint_right_after_a_roll_back_is_resumed_exactly(tmp_path):
    whole = train(tmp_path / "a", growth(), callbacks=[Meddler()], save_strategy="steps", save_steps=1)
    resumed = train(tmp_path / "b", growth(), str(tmp_path / "a" / "checkpoint-7"))
    assert losses(resumed) == losses(whole) and events(resumed) == events(whole)
    assert_same_weights(resumed.model, whole.model)
    assert_same_optimizer(resumed.optimizer, whole.optimizer)


def test_events_go_on_after_a_roll_back_in_the_step_of_an_event(tmp_path):
    class First(GrowthTrainer):
        """The other callback acts before the GrowthCallback."""

        def __init__(self, *args, callbacks=(), **kwargs):
            super().__init__(*args, callbacks=list(reversed(callbacks)), **kwargs)

    trainer = train(tmp_path, growth(), trainer_class=First, callbacks=[Meddler(load=9)])
    assert [event["step"] for event in events(trainer)] == [3, 9]
    GrowthHistory.from_model(trainer.model).check(trainer.model)


@pytest.mark.parametrize("config", [growth(), growth(at=[11, 14, 17])], ids=["a_history", "no_history"])
def test_shapes_that_no_history_leads_to_are_refused_before_the_next_step(tmp_path, config):
    foreign = tiny(intermediate_size=40).state_dict()
    meddler = Meddler(state=foreign)
    trainer = trainer_for(tmp_path, config, callbacks=[meddler])
    with pytest.raises(ValueError, match="its growth history does not lead there"):
        trainer.train()
    assert trainer.state.global_step == 7  # the eighth step was not made


def test_a_change_of_shapes_that_loses_gradients_is_refused(tmp_path):
    meddler = Meddler(moment="on_substep_end")
    with pytest.raises(RuntimeError, match="after its gradients were computed"):
        train(tmp_path, growth(), callbacks=[meddler], gradient_accumulation_steps=2)


@pytest.mark.slow
@pytest.mark.parametrize("trainer_class", [Trainer, GrowthTrainer])
def test_a_compiled_model_is_compiled_anew(tmp_path, trainer_class):
    fields = {"trainer_class": trainer_class, "model": tiny(hidden_dropout_prob=0.0)}
    plain = train(tmp_path / "a", growth(), callbacks=[Meddler()], **fields)
    fields["model"] = tiny(hidden_dropout_prob=0.0)
    backend = {"torch_compile": True, "torch_compile_backend": "eager"}
    compiled = train(tmp_path / "b", growth(), callbacks=[Meddler()], **fields, **backend)
    assert losses(compiled) == pytest.approx(losses(plain), rel=1e-4)


# ------------------------------------------------------------------------------------------ in a hand-written loop
def batches():
    return probe_batches(Images(), growth())


def steps(model, optimizer, number=2) -> list[float]:
    found = []
    for step in range(number):
        loss = model(**batches()[step % 2]).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        found.append(loss.item())
    return found


def grown_twice(config):
    """A model without dropout between two events, its state after the first, and its optimizer."""
    model = tiny(hidden_dropout_prob=0.0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    steps(model, optimizer)
    growth_event_(model, optimizer, batches(), config)
    steps(model, optimizer)
    noted = copy.deepcopy(model.state_dict())
    growth_event_(model, optimizer, batches(), config, event=1)
    steps(model, optimizer)
    return model, optimizer, noted


@by_config
def test_after_a_roll_back_the_run_is_that_of_a_model_trained_from_there(config):
    """Against a second model, whose optimizer has the state of the parameters that kept their shape."""
    model, optimizer, noted = grown_twice(config)
    held = dict(model.named_parameters())
    states = {name: copy.deepcopy(optimizer.state[parameter]) for name, parameter in held.items()}
    model.load_state_dict(noted)
    rebind_(model, optimizer, held)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    twin = copy.deepcopy(model)
    fresh = torch.optim.AdamW(twin.parameters(), lr=1e-2, weight_decay=0.1)
    kept = 0
    for name, parameter in twin.named_parameters():
        if parameter.shape == held[name].shape:
            fresh.state[parameter] = states[name]
            kept += 1
    assert 0 < kept < len(before)
    assert steps(model, optimizer, 4) == steps(twin, fresh, 4)
    assert_same_weights(model, twin)
    assert_same_optimizer(optimizer, fresh)
    assert_trains_all(model, optimizer, before)
    assert growth_event_(model, optimizer, batches(), config, event=1).neurons > 0


@by_config
def test_an_optimizer_that_was_not_told_raises_before_its_step(config):
    model, optimizer, noted = grown_twice(config)
    model.load_state_dict(noted)
    model(**batches()[0]).loss.backward()
    before = copy.deepcopy(model)
    with pytest.raises(RuntimeError, match="no longer in the model"):
        optimizer.step()
    assert_same_weights(model, before)
    optimizer.zero_grad()
    with pytest.raises(ValueError, match="made for other parameters"):
        growth_event_(model, optimizer, batches(), config, event=1)
    # An optimizer that is made anew works, and so does any other one.
    steps(model, torch.optim.AdamW(model.parameters()))


def by_hand(operator):
    """A growth by two neurons of a tiny model that knows no optimizer."""
    return lambda model: grow_(model, GrowthPlan((LayerGrowth.by_hand(model, FC1, operator, [0, 1]),)))


def load_deeper(model):
    deeper = tiny()
    by_hand("zero_gain")(deeper)
    model.load_state_dict(deeper.state_dict())


def merge(model):
    merge_pairs_(model)


UNTOLD = {
    "wider": by_hand("split"),
    "deeper": by_hand("zero_gain"),
    "pairs": by_hand("residual_pair"),
    "an_event": lambda model: growth_event_(model, None, batches(), growth()),
    "merged": merge,
    "deeper_weights": load_deeper,
    "assigned": lambda model: model.load_state_dict(copy.deepcopy(model.state_dict()), assign=True),
}


@pytest.mark.parametrize("name", UNTOLD)
def test_parameters_that_no_optimizer_was_told_of_do_not_stay_at_rest(name):
    model = tiny()
    if name == "merged":
        by_hand("residual_pair")(model)
    optimizer = torch.optim.AdamW(model.parameters())
    steps(model, optimizer, 1)
    UNTOLD[name](model)
    with pytest.raises(RuntimeError, match="no longer in the model|that no optimizer trains"):
        steps(model, optimizer, 2)
    optimizer.zero_grad()
    steps(model, torch.optim.AdamW(model.parameters()), 3)


def test_branches_may_have_an_optimizer_of_their_own():
    model = tiny()
    by_hand("zero_gain")(model)
    own = {"skip": [], "rest": []}
    for name, parameter in model.named_parameters():
        own["skip" if ".skip." in name else "rest"].append(parameter)
    rest, skip = torch.optim.AdamW(own["rest"]), torch.optim.SGD(own["skip"], lr=0.1)
    for _ in range(3):
        model(**batches()[0]).loss.backward()
        rest.step()
        skip.step()
        model.zero_grad()


@pytest.mark.parametrize("operator", ["split", "zero_gain"])
def test_an_undone_growth_leaves_optimizers_alone(operator):
    model = tiny()
    optimizer = torch.optim.AdamW(model.parameters())
    for bound in (optimizer, None):
        plan = GrowthPlan((LayerGrowth.by_hand(model, FC1, operator, [0, 1]),))
        prepared = prepare_growth(model, plan, bound)
        prepared.commit_()
        prepared.rollback_()
        steps(model, optimizer, 3)


@pytest.mark.parametrize("with_history", [False, True], ids=["no_history", "history"])
@pytest.mark.parametrize(
    ("name", "error", "message"),
    [("width", RuntimeError, "no longer in the model"), ("branches", ValueError, "parameter group")],
)
def test_load_state_without_registration_never_goes_wrong_silently(tmp_path, name, error, message, with_history):
    model, optimizer, _ = grown_twice(CONFIGS[name])
    accelerator = Accelerator(cpu=True)
    model, optimizer = accelerator.prepare(model, optimizer)
    accelerator.save_state(str(tmp_path))
    fresh = tiny(hidden_dropout_prob=0.0)
    if with_history:
        fresh.growth_history = model.growth_history
    accelerator = Accelerator(cpu=True)
    fresh, optimizer = accelerator.prepare(fresh, torch.optim.AdamW(fresh.parameters(), lr=1e-2))
    with pytest.raises(error, match=message):
        accelerator.load_state(str(tmp_path))
        steps(fresh, optimizer)
