"""Training goes on undisturbed: old entries keep their state and place, and follow an ungrown twin exactly."""

import copy

import pytest
import torch
from accelerate import Accelerator
from growth_cases import LINEAR_NAMES, batch, path_of, plan_for, tiny_model, train
from transformers import Trainer, TrainingArguments
from transformers.optimization import Adafactor as HfAdafactor

from hf_saddle.growth import GrowthPlan, grow_, merge_pairs_
from hf_saddle.growth.optimizer_rules import OPTIMIZERS, Rules, State, rules_of


class Lion(torch.optim.Optimizer):
    """A third-party optimizer: sign of an average, one state tensor, decoupled decay (arXiv 2302.06675)."""

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.99), weight_decay=0.01):
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                state.setdefault("exp_avg", torch.zeros_like(p))
                update = state["exp_avg"].lerp(p.grad, 1 - group["betas"][0]).sign()
                p.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-group["lr"])
                state["exp_avg"].lerp_(p.grad, 1 - group["betas"][1])


class Strange(torch.optim.SGD):
    """Keeps a statistic that no rule can carry."""

    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p]["gram"] = torch.zeros(p.shape[0], p.shape[0] + 1)
        return super().step(closure)


@pytest.fixture(autouse=True)
def rules_of_home_made_optimizers(monkeypatch):
    monkeypatch.setitem(OPTIMIZERS, f"{__name__}.Lion", Rules({"exp_avg": State.GRADIENTS}))
    monkeypatch.setitem(OPTIMIZERS, f"{__name__}.Strange", Rules({"momentum_buffer": State.GRADIENTS}))


OPTIMIZER_KINDS = {
    "adamw-loop": lambda p: torch.optim.AdamW(p, lr=1e-2, foreach=False),
    "adamw-foreach": lambda p: torch.optim.AdamW(p, lr=1e-2, foreach=True),
    "adamw-fused": lambda p: torch.optim.AdamW(p, lr=1e-2, fused=True),
    "adamw-amsgrad": lambda p: torch.optim.AdamW(p, lr=1e-2, amsgrad=True),
    "nadam": lambda p: torch.optim.NAdam(p, lr=1e-2),
    "sgd": lambda p: torch.optim.SGD(p, lr=1e-1, momentum=0.9, weight_decay=1e-3),
    "sgd-plain": lambda p: torch.optim.SGD(p, lr=1e-1),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=1e-3, momentum=0.9),
    "lion": lambda p: Lion(p, lr=1e-3),
}
ADAFACTORS = {
    "torch": lambda p: torch.optim.Adafactor(p, lr=1e-2),
    "transformers": lambda p: HfAdafactor(p, lr=1e-2, relative_step=False, scale_parameter=False, beta1=0.9),
}


def groups(model, lr_names=("bias", "norm")):
    """Decay and no-decay groups in canonical order, as the Trainer makes them."""
    named = list(model.named_parameters())
    plain = [p for n, p in named if any(part in n for part in lr_names)]
    return [
        {"params": [p for n, p in named if not any(part in n for part in lr_names)], "weight_decay": 0.1},
        {"params": plain, "weight_decay": 0.0},
    ]


def mask_units_(model):
    """Keep the units that grow at zero: their gains and rows see no gradient."""
    for name, parameter in model.named_parameters():
        if ".skip." in name:
            parameter.register_hook(torch.zeros_like)


@pytest.mark.thinned(2)
@pytest.mark.parametrize("make", OPTIMIZER_KINDS.values(), ids=OPTIMIZER_KINDS)
def test_a_grown_model_with_masked_units_trains_exactly_like_its_ungrown_twin(make):
    model = tiny_model()
    optimizer = make(groups(model))
    train(model, optimizer, 5)
    twin = copy.deepcopy(model)
    twin_optimizer = make(groups(twin))
    twin_optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    grow_(model, plan_for(model, "zero_gain", [0, 2, 5], LINEAR_NAMES), optimizer)
    grow_(model, plan_for(model, "zero_gain", [0, 1], LINEAR_NAMES, depth=1), optimizer)
    mask_units_(model)
    assert train(model, optimizer, 20) == train(twin, twin_optimizer, 20)
    grown = dict(model.named_parameters())
    for name, parameter in twin.named_parameters():
        assert torch.equal(parameter, grown[name]), name
        for key, value in twin_optimizer.state[parameter].items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(optimizer.state[grown[name]][key])), (name, key)


@pytest.mark.parametrize("make", OPTIMIZER_KINDS.values(), ids=OPTIMIZER_KINDS)
def test_longer_parameters_keep_the_state_of_every_old_entry(make):
    model = tiny_model()
    optimizer = make(groups(model))
    grow_(model, plan_for(model, "opposed_pair", [0, 2], LINEAR_NAMES), optimizer)
    train(model, optimizer, 4)
    before = {n: (p, copy.deepcopy(optimizer.state[p])) for n, p in model.named_parameters() if ".skip." in n}
    grow_(model, plan_for(model, "opposed_pair", [1, 2, 7], LINEAR_NAMES), optimizer)
    for name, parameter in model.named_parameters():
        if name not in before or before[name][0] is parameter:
            continue
        for key, value in before[name][1].items():
            now = optimizer.state[parameter][key]
            if not isinstance(value, torch.Tensor) or value.dim() == 0:
                assert torch.equal(torch.as_tensor(now), torch.as_tensor(value))
                continue
            assert now.shape == parameter.shape and torch.equal(now[:4], value)
            from_mean = rules_of(optimizer).states[key] is State.SQUARES
            expected = value.mean() if from_mean else torch.zeros(())
            assert torch.equal(now[4:], expected.expand_as(now[4:]))
    train(model, optimizer, 2)


@pytest.mark.parametrize(("neurons", "depth"), [([5, 9], 0), ([1], 1)], ids=["neuron", "unit"])
def test_moments_follow_the_gradient_that_copies_see(neurons, depth):
    """At step size 0 a copied row sees half of the old gradient, its column all of it: moments are scaled alike."""
    model = tiny_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0)
    grow_(model, plan_for(model, "zero_gain", [5, 6], gains=0.5), optimizer)
    grow_(model, plan_for(model, "zero_gain", [0, 1], depth=1, gains=0.5), optimizer)
    train(model, optimizer, 1)
    grow_(model, plan_for(model, "split", neurons, depth=depth, steps=0.0), optimizer)
    model(**batch(seed=10)).loss.backward()
    base = path_of(model, "mlp")
    for name, parameter in model.named_parameters():
        if not name.startswith(base):
            continue
        moment = optimizer.state[parameter]["exp_avg"]
        assert torch.allclose(moment, 0.1 * parameter.grad, atol=1e-7), name  # of the same batch
        assert torch.allclose(optimizer.state[parameter]["exp_avg_sq"], 1e-3 * parameter.grad**2, atol=1e-9), name


@pytest.mark.parametrize("make", ADAFACTORS.values(), ids=ADAFACTORS)
def test_adafactor_keeps_its_estimate_of_every_old_entry(make):
    model = tiny_model()
    optimizer = make(groups(model))
    grow_(model, plan_for(model, "zero_gain", [0, 2], ["mlp.fc1", "mlp.fc2"]), optimizer)
    train(model, optimizer, 4)
    before = {n: estimate(optimizer.state[p]) for n, p in model.named_parameters() if p.dim() == 2}
    plan = plan_for(model, "split", [3, 9]).growths + plan_for(model, "zero_gain", [1, 2], ["mlp.fc2"]).growths
    grow_(model, GrowthPlan(plan), optimizer)
    for name, parameter in model.named_parameters():
        if name not in before or not optimizer.state[parameter]:
            continue
        rows, columns = before[name].shape
        now = estimate(optimizer.state[parameter])
        expected = before[name].clone()
        if name.endswith("layers.0.mlp.fc1.weight"):
            expected[[3, 9]] *= 0.25
        assert now.shape == parameter.shape
        assert torch.allclose(now[:rows, :columns], expected, rtol=1e-4), name
    train(model, optimizer, 3)


def estimate(state):
    """Adafactor's second moment of every entry of a matrix."""
    for rows, columns in (("row_var", "col_var"), ("exp_avg_sq_row", "exp_avg_sq_col")):
        if rows in state:
            row, column = state[rows].flatten(), state[columns].flatten()
            return row[:, None] * column[None, :] / row.mean()
    raise AssertionError(f"not Adafactor's state: {list(state)}")


def test_parameter_order_and_groups_equal_those_of_a_fresh_trainer(tmp_path):
    model = tiny_model()
    model.vit.layers[0].attention.q_proj.weight.requires_grad_(False)
    args = TrainingArguments(str(tmp_path), use_cpu=True, report_to="none", weight_decay=0.05)
    optimizer = Trainer(model=model, args=args).create_optimizer()
    train(model, optimizer, 2)
    for depth in (0, 1):
        grow_(model, plan_for(model, "residual_pair", [0, 2, 3][: 3 - depth], LINEAR_NAMES, depth=depth), optimizer)
    grow_(model, plan_for(model, "split", [0, 2]), optimizer)
    train(model, optimizer, 1)
    fresh = Trainer(model=model, args=args).create_optimizer()
    for group, expected in zip(optimizer.param_groups, fresh.param_groups, strict=True):
        assert [id(p) for p in group["params"]] == [id(p) for p in expected["params"]]
        assert group["weight_decay"] == expected["weight_decay"]
    fresh.load_state_dict(optimizer.state_dict())  # what resuming from a checkpoint does
    train(model, fresh, 1)
    assert not model.vit.layers[0].attention.q_proj.skip.linear.weight.requires_grad


def test_a_loaded_checkpoint_trains_on_exactly(tmp_path):
    model = tiny_model()
    optimizer = torch.optim.AdamW(groups(model), lr=1e-2)
    train(model, optimizer, 3)
    growths = plan_for(model, "split", [0, 2]).growths
    growths += plan_for(model, "zero_gain", [1], ["attention.v_proj"]).growths
    grow_(model, GrowthPlan(growths), optimizer)
    train(model, optimizer, 2)
    model.save_pretrained(tmp_path)
    resumed = type(model).from_pretrained(tmp_path)
    resumed_optimizer = torch.optim.AdamW(groups(resumed), lr=1e-2)
    resumed_optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert train(resumed.train(), resumed_optimizer, 4) == train(model.train(), optimizer, 4)


def test_names_of_parameters_follow():
    model = tiny_model()
    optimizer = torch.optim.AdamW(list(model.named_parameters()))
    grow_(model, plan_for(model, "zero_gain", [0, 2]), optimizer)
    assert optimizer.param_groups[0]["param_names"] == [name for name, _ in model.named_parameters()]


def test_accelerate_and_its_scheduler_go_on():
    accelerator = Accelerator(cpu=True)
    model = tiny_model()
    inner = torch.optim.AdamW(groups(model), lr=1e-2)
    model, optimizer = accelerator.prepare(model, inner)
    scheduler = torch.optim.lr_scheduler.LambdaLR(inner, lambda step: 0.9**step)
    train(model, optimizer, 2)
    event = grow_(model, plan_for(model, "split", [0, 2]), optimizer)
    train(model, optimizer, 1)
    scheduler.step()
    assert all(parameter in inner.state for parameter in event.replaced.values())
    assert inner.param_groups[0]["lr"] == pytest.approx(9e-3)


def test_merged_pairs_leave_the_optimizer():
    model = tiny_model()
    optimizer = torch.optim.AdamW(groups(model), lr=1e-2)
    grow_(model, plan_for(model, "residual_pair", [0, 2], LINEAR_NAMES), optimizer)
    train(model, optimizer, 3)
    merge_pairs_(model, optimizer)
    fresh = groups(model)
    for group, expected in zip(optimizer.param_groups, fresh, strict=True):
        assert [id(p) for p in group["params"]] == [id(p) for p in expected["params"]]
    assert set(optimizer.state) == set(model.parameters())
    train(model, optimizer, 2)


REFUSALS = {
    "unknown state": (lambda m: Strange(m.parameters(), lr=0.1), "'gram'"),
    "lbfgs": (lambda m: torch.optim.LBFGS(m.parameters()), "LBFGS cannot be carried"),
    "another model": (lambda m: torch.optim.AdamW(tiny_model().parameters()), "does not hold"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_what_cannot_be_carried_is_refused_before_anything_changes(case):
    model = tiny_model()
    make, message = REFUSALS[case]
    optimizer = make(model)
    if case == "unknown state":
        train(model, optimizer, 1)
    parameters, members = list(model.parameters()), list(optimizer.param_groups[0]["params"])
    with pytest.raises(ValueError, match=message):
        grow_(model, plan_for(model, "split", [1]), optimizer)
    assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))
    assert all(a is b for a, b in zip(members, optimizer.param_groups[0]["params"], strict=True))
    assert model.growth_history is None


def test_state_of_another_shape_is_refused():
    """Fused AdamW would read past its end."""
    model = tiny_model()
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    train(model, optimizer, 1)
    weight = model.get_submodule(path_of(model, "mlp.fc1")).weight
    optimizer.state[weight]["exp_avg"] = torch.zeros(3, 3)
    with pytest.raises(ValueError, match="'exp_avg'"):
        grow_(model, plan_for(model, "split", [1]), optimizer)


def test_first_updates_of_new_entries_are_not_oversized():
    """Second moments start from the parameter's mean: the first updates stay near the learning rate."""
    largest = {}
    for fill in ("mean", "zero"):
        model = tiny_model()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
        grow_(model, plan_for(model, "zero_gain", list(range(12)), gains=0.1), optimizer)
        train(model, optimizer, 50)
        for state in optimizer.state.values():  # as after a long training
            state["exp_avg_sq"] /= 1 - 0.999**50
            state["step"].fill_(5000.0)
        grow_(model, plan_for(model, "zero_gain", list(range(12, 24)), gains=0.1), optimizer)
        branch = model.get_submodule(path_of(model, "mlp.fc1")).skip
        if fill == "zero":
            for parameter in branch.parameters():
                optimizer.state[parameter]["exp_avg_sq"][12:] = 0.0
        moved = []
        for step in range(15):
            old = branch.linear.weight[12:].detach().clone()
            train(model, optimizer, 1, seed=100 + step)
            moved.append((branch.linear.weight[12:] - old).abs().max().item() / 1e-3)
        largest[fill] = max(moved)
    print(largest)
    assert largest["mean"] < 2.5 < largest["zero"]
