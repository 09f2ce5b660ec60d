"""An average of the weights grows with the model, at the same time or not at all."""

import copy

import pytest
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from training_cases import Images, assert_same_weights, events, growth, losses, tiny, train
from transformers import Trainer, TrainerCallback

from hf_saddle.curvature.loss import own_loss
from hf_saddle.growth import GrowthHistory
from hf_saddle.training import GrowthCallback, GrowthTrainer, growth_event_, probe_batches


class Average(TrainerCallback):
    """What a user writes: an exponential average after every step."""

    def __init__(self, model):
        self.ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5))

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.ema.update_parameters(model)


def averaged(config=None, first=False):
    model = tiny()
    average = Average(model)
    callbacks = [GrowthCallback(config or growth(), followers=[average.ema.module])]
    callbacks.insert(0 if first else 1, average)
    return model, average, callbacks


def batches():
    return probe_batches(Images(), growth())


def configured(model):
    """What the config says about shapes."""
    return model.config.widths, model.config.skip_sizes, model.config.skip_unit


@torch.no_grad()
def logits(model):
    return model.eval()(pixel_values=Images().pixels).logits


@pytest.mark.parametrize("trainer_class", [Trainer, GrowthTrainer])
@pytest.mark.parametrize("first", [False, True], ids=["after_growth", "before_growth"])
def test_the_average_keeps_the_shapes_and_the_history_of_the_model(tmp_path, trainer_class, first):
    model, average, callbacks = averaged(first=first)
    for callback in callbacks:
        if isinstance(callback, GrowthCallback) and trainer_class is Trainer:
            callback.loss = own_loss
    trainer = train(tmp_path, model=model, callbacks=callbacks, trainer_class=trainer_class)
    follower = average.ema.module
    assert len(events(trainer)) == 3
    assert follower.shapes() == trainer.model.shapes()
    assert configured(follower) == configured(trainer.model) != configured(tiny())
    assert follower.growth_history == trainer.model.growth_history
    GrowthHistory.from_model(follower).check(follower)
    assert losses(trainer) == losses(train(tmp_path / "without", growth(), trainer_class=trainer_class))
    reloaded = tmp_path / "ema"
    follower.save_pretrained(reloaded)
    assert_same_weights(type(follower).from_pretrained(reloaded), follower)


def test_a_follower_computes_the_same_before_and_after_an_event():
    """Its weights are others than the model's; the same plan leaves its function as it was."""
    model, follower = tiny(), tiny(seed=3)
    before, weights = logits(follower), copy.deepcopy(follower.state_dict())
    event = growth_event_(model, None, batches(), growth(criterion="depth"), followers=[follower])
    assert event.neurons > 0 and follower.shapes() == model.shapes()
    assert torch.equal(logits(follower), before)
    assert all(torch.equal(follower.state_dict()[name], value) for name, value in weights.items())
    # Nothing is shared: what is trained in the model does not move the follower.
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    assert torch.equal(logits(follower), before)


def test_if_a_follower_cannot_grow_nothing_does():
    model, follower = tiny(), tiny(seed=3)
    optimizer = torch.optim.AdamW(model.parameters())
    with torch.no_grad():
        follower.vit.layers[0].mlp.fc1.weight.fill_(torch.nan)
    before = [copy.deepcopy(model), copy.deepcopy(follower)]
    config = growth(criterion="width")
    with pytest.raises(ValueError, match="not finite after the growth"):
        growth_event_(model, optimizer, batches(), config, followers=[follower])
    for now, then in zip((model, follower), before, strict=True):
        assert now.shapes() == then.shapes() and now.growth_history is None
        assert configured(now) == configured(then)
    assert_same_weights(model, before[0])
    held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    assert all(a is b for a, b in zip(held, model.parameters(), strict=True))
    assert growth_event_(model, optimizer, batches(), config).neurons > 0


def test_an_event_that_is_undone_is_undone_in_the_followers():
    model, follower = tiny(), tiny(seed=3)
    size = sum(parameter.numel() for parameter in model.parameters())

    def loss(model, batch):
        grown = sum(parameter.numel() for parameter in model.parameters()) > size
        return model(**batch).loss * (torch.nan if grown else 1.0)

    before = copy.deepcopy(follower)
    with pytest.raises(ValueError, match="which was undone"):
        growth_event_(model, None, batches(), growth(), loss=loss, followers=[follower])
    assert_same_weights(follower, before)
    assert follower.growth_history is None and configured(follower) == configured(before)


WRONG = {
    "a_wrapper": (lambda model: AveragedModel(model), r"is a AveragedModel.*such as `ema.module`"),
    "other_shapes": (lambda model: tiny(intermediate_size=40), "other shapes than the model"),
    "another_class": (lambda model: tiny("deit"), "other shapes than the model"),
    "the_model": (lambda model: model, "shares parameters with the model"),
}


@pytest.mark.parametrize(("make", "message"), WRONG.values(), ids=WRONG)
def test_what_cannot_follow_is_refused_before_the_first_step(tmp_path, make, message):
    model = tiny()
    callbacks = [GrowthCallback(growth(), followers=[make(model)])]
    with pytest.raises(ValueError, match=message):
        train(tmp_path, model=model, callbacks=callbacks)
    with pytest.raises(ValueError, match=message):
        growth_event_(model, None, batches(), growth(), followers=[make(model)])


@pytest.mark.parametrize("restore", [False, True])
def test_resuming_with_the_average(tmp_path, restore):
    """The user saves and loads the average's weights; the callback gives it its history."""
    model, average, callbacks = averaged(first=True)

    class Save(TrainerCallback):
        def on_save(self, args, state, control, **kwargs):
            torch.save(average.ema.state_dict(), tmp_path / f"ema-{state.global_step}.pt")

    saving = {"save_strategy": "steps", "save_steps": 1}
    whole = train(tmp_path / "a", model=model, callbacks=[*callbacks, Save()], **saving)
    checkpoint = str(tmp_path / "a" / "checkpoint-7")
    fields = {"resume": checkpoint, "restore_callback_states_from_checkpoint": restore}
    with pytest.raises(ValueError, match="gave `followers` to GrowthCallback"):
        train(tmp_path / "b", growth(), **fields)
    model, again, callbacks = averaged(first=True)
    again.ema.load_state_dict(torch.load(tmp_path / "ema-7.pt", weights_only=True))
    resumed = train(tmp_path / "c", model=model, callbacks=callbacks, **fields)
    assert losses(resumed) == losses(whole)
    assert_same_weights(again.ema, average.ema)
    assert again.ema.module.growth_history == resumed.model.growth_history


def test_a_roll_back_without_the_follower_is_refused(tmp_path):
    model, average, callbacks = averaged()

    class Back(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            if state.global_step == 2:
                self.noted = copy.deepcopy(model.state_dict())
            if state.global_step == 5:
                model.load_state_dict(self.noted)

    with pytest.raises(ValueError, match=r"followers\[0\]` has other shapes"):
        train(tmp_path, model=model, callbacks=[callbacks[0], Back()])
