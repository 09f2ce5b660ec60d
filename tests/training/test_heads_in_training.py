"""A training during which heads come, resumed, is the uninterrupted one."""

import pytest
from test_resume import SAVING, assert_same_run, checkpoint
from training_cases import no_growth, train
from transformers import Trainer, TrainerCallback

from hf_saddle.growth import grow_heads_
from hf_saddle.training import GrowthTrainer


class Heads(TrainerCallback):
    """A new head after the second step, a split after the fourth."""

    def on_step_end(self, args, state, control, model=None, optimizer=None, **kwargs):
        how = {2: "new", 4: "split"}.get(state.global_step)
        if how is not None:
            grow_heads_(model, {"layers.0.attention": 1}, how, optimizer, seed=state.global_step)


def run(folder, **fields):
    return train(folder, no_growth(), callbacks=[Heads()], max_steps=6, **SAVING, **fields)


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    return run(tmp_path_factory.mktemp("full"))


@pytest.mark.parametrize("step", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("trainer_class", [GrowthTrainer, Trainer])
def test_a_resumed_run_is_the_straight_one(full, tmp_path, step, trainer_class):
    resumed = run(tmp_path, resume=checkpoint(full, step), trainer_class=trainer_class)
    assert list(resumed.model.config.heads) == ["layers.0.attention"]
    assert (
        sum(event["operators"] in (["new_head"], ["split_head"]) for event in resumed.model.growth_history["events"])
        == 2
    )
    assert_same_run(resumed, full)
