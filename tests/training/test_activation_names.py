"""A model with any activation of transformers grows, or is refused before the first step with what can be done."""

import pytest
from training_cases import growth, tiny, trainer_for
from transformers.activations import ACT2FN

from hf_saddle.growth import GrowthConfig, GrowthHistory
from hf_saddle.models.configuration_saddle import UNSUITED


GROWS = {
    "depth": {
        "gelu", "gelu_10", "gelu_accurate", "gelu_fast", "gelu_new", "gelu_python", "gelu_python_tanh",
        "gelu_pytorch_tanh", "hardswish", "mish", "quick_gelu", "relu", "silu", "swish",
    },
    "random": set(ACT2FN),
}  # fmt: skip
# Units start as GELUs where the activation of the model is piecewise linear or has parameters.
GROWS["depth"] |= set(UNSUITED)
GROWS["auto"] = GROWS["depth"]
# Neurons with a kink cannot be split; those of a Tanh can, but there is no curvature where its units would begin.
GROWS["width"] = GROWS["depth"] - {"hardswish", *UNSUITED}
GROWS["width"] |= {"laplace", "relu", "relu2", "sigmoid", "sqrtsoftplus", "tanh"}
CASES = [("auto", name) for name in ACT2FN]
CASES += [("width", name) for name in sorted(set(ACT2FN) - GROWS["depth"] | {"gelu_new", "hardswish"})]
CASES += [("width", name) for name in UNSUITED if name != "relu"]
CASES += [("depth", "hardswish"), ("depth", "tanh"), ("random", "leaky_relu"), ("random", "prelu")]


def training(folder, activation, **fields):
    config = GrowthConfig.from_dict(growth(at=[3]).to_dict() | fields)
    return trainer_for(folder, config, model=tiny(hidden_act=activation), max_steps=5)


@pytest.mark.thinned(3)
@pytest.mark.parametrize(("criterion", "name"), CASES)
def test_an_event_with_any_activation(tmp_path, criterion, name):
    trainer = training(tmp_path, name, criterion=criterion, significance=0.0)
    if name in GROWS[criterion]:
        trainer.train()
        history = GrowthHistory.from_model(trainer.model)
        history.check(trainer.model)
        assert len(history) == 1 and history.events[0].neurons > 0
        assert ("split" if criterion == "width" else "zero_gain") in history.events[0].operators
    else:
        field = "hidden_act" if criterion == "width" else "skip_activation"
        with pytest.raises(ValueError, match=f"cannot grow with `{field}='{name}'`: .*another `{field}`"):
            trainer.train()
        assert trainer.state.global_step == 0 and not trainer.state.log_history


@pytest.mark.parametrize("fields", [{"criterion": "paper_score"}, {"criterion": "depth", "operator": "residual_pair"}])
def test_pairs_need_an_activation_that_is_zero_at_zero(tmp_path, fields):
    trainer = training(tmp_path, "sigmoid", **fields)
    with pytest.raises(ValueError, match="residual pairs keep the function only"):
        trainer.train()
    assert trainer.state.global_step == 0
