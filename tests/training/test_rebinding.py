"""Whatever gives the model other shapes while it is trained, the optimizer goes on with what the model holds."""

import copy
import logging

import pytest
import torch
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

from hf_saddle.growth import GrowthHistory
from hf_saddle.training import GrowthTrainer


WIDTH = {"criterion": "width", "linears": ["mlp.fc1"]}


class Meddler(TrainerCallback):
    """Notes the weights at the end of one step, and loads what was noted at the given moments."""

    def __init__(self, note=2, load=(7,), moment="on_step_end", back=False):
        self.note, self.load, self.back = note, load, back
        self.noted, self.steps = None, []
        setattr(self, moment, self._meddle)

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        self.steps.append({name: value.detach().clone() for name, value in model.named_parameters()})

    def _meddle(self, args, state, control, model=None, **kwargs):
        if state.global_step == self.note and self.noted is None:
            self.noted = copy.deepcopy(model.state_dict())
        if state.global_step in self.load:
            present = copy.deepcopy(model.state_dict())
            model.load_state_dict(self.noted)
            if self.back:
                model.load_state_dict(present)


def assert_trains_all(trainer, before) -> None:
    """The optimizer holds exactly the model's parameters, and all of them have moved since."""
    held = [parameter for group in trainer.optimizer.param_groups for parameter in group["params"]]
    assert {id(parameter) for parameter in held} == {id(parameter) for parameter in trainer.model.parameters()}
    at_rest = [name for name, value in trainer.model.named_parameters() if torch.equal(value, before[name])]
    assert at_rest == []


@pytest.mark.parametrize("trainer_class", [Trainer, GrowthTrainer])
@pytest.mark.parametrize("moment", ["on_step_end", "on_log"])
@pytest.mark.parametrize("config", [growth(num_events=2), growth(num_events=2, **WIDTH)], ids=["depth", "width"])
def test_rolling_back_to_weights_of_before_an_event(tmp_path, trainer_class, moment, config, caplog):
    meddler = Meddler(note=4, moment=moment)
    with caplog.at_level(logging.WARNING, "hf_saddle"):
        trainer = train(tmp_path, config, trainer_class=trainer_class, callbacks=[meddler])
    assert_trains_all(trainer, meddler.steps[7])
    assert trainer.state.global_step == 12 and len(events(trainer)) == 1
    GrowthHistory.from_model(trainer.model).check(trainer.model)
    (message,) = [r.getMessage() for r in caplog.records if "outside of a growth" in r.getMessage()]
    assert "from 2 to 1 events" in message
