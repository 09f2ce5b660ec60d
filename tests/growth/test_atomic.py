"""An event happens as a whole or not at all, wherever it fails."""

import copy

import pytest
import torch
from growth_cases import LINEAR_NAMES, batch, logits, plan_for, tiny_model, train

from hf_saddle.growth import GrowthPlan, grow_, merge_pairs_, prepare_growth
from hf_saddle.growth.optimizer import state as optimizer_state
from hf_saddle.growth.optimizer import values as optimizer_values
from hf_saddle.growth.surgery import drafts, install, merge, snapshot
from hf_saddle.growth.surgery import grow as surgery
from hf_saddle.models.shapes import Shapes


class OutOfMemory(RuntimeError):
    """Stands for `torch.OutOfMemoryError`."""


def state_of(model, optimizer):
    """Everything that a growth may change, by identity and by value."""
    modules = [(name, id(module)) for name, module in model.named_modules()]
    tensors = [(n, id(t), t.detach().clone()) for n, t in model.state_dict(keep_vars=True).items()]
    sizes = [(s.module.in_features, s.module.out_features) for s in model.growable_linears()]
    branches = [site.module.skip for site in model.growable_linears() if site.module.skip]
    flags = [(branch.shared_targets, branch.neurons, branch.kind) for branch in branches]
    groups = [[id(p) for p in group["params"]] for group in optimizer.param_groups]
    state = [(id(p), {k: copy.deepcopy(v) for k, v in s.items()}) for p, s in optimizer.state.items()]
    return modules, tensors, sizes, flags, groups, state, model.config.to_dict(), copy.deepcopy(model.growth_history)


def same(first, second):
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, (list, tuple)):
        return len(first) == len(second) and all(map(same, first, second))
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    return first == second


def a_model_in_training(operator="zero_gain"):
    model = tiny_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    grow_(model, plan_for(model, operator, [1, 4], LINEAR_NAMES), optimizer)
    train(model, optimizer, 2)
    return model, optimizer


def a_plan(model):
    growths = plan_for(model, "split", [1, 2]).growths
    growths += plan_for(model, "zero_gain", [0, 3], ["mlp.fc2", "attention.q_proj"]).growths
    return GrowthPlan(growths + plan_for(model, "zero_gain", [1], ["attention.v_proj"], depth=1).growths)


def fail_at(monkeypatch, owner, name, call):
    """Let the `call`-th call of a function raise; returns a counter of calls."""
    original, calls = getattr(owner, name), []

    def wrapped(*args, **kwargs):
        calls.append(1)
        if len(calls) == call:
            raise OutOfMemory("simulated")
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, wrapped)
    return calls


STAGES = [
    (drafts.ParameterDraft, "copy_"),
    (drafts.ParameterDraft, "append_"),
    (drafts.LinearDraft, "copy_rows_"),
    (drafts.LinearDraft, "copy_neurons_"),
    (install, "install_"),
    (install, "_replacement"),
    (install, "_addition"),
    (install, "_new_branch"),
    (optimizer_state, "grown_state"),
    (optimizer_state, "_grown_groups"),
    (optimizer_values, "_carry"),
    (surgery, "install_"),
    (surgery, "carry_optimizer_state_"),
    (Shapes, "write_"),
    (Shapes, "to_json"),
    (surgery, "count_layer_macs"),
    (surgery, "layer_record"),
    (surgery.GrowthHistory, "append"),
    (surgery.GrowthHistory, "to_dict"),
    (surgery, "Snapshot"),
]


@pytest.mark.thinned(2)
@pytest.mark.parametrize(("owner", "name"), STAGES, ids=[name for _, name in STAGES])
def test_a_failure_at_any_call_of_a_stage_leaves_everything_as_before(owner, name, monkeypatch):
    model, optimizer = a_model_in_training()
    plan = a_plan(model)
    before = state_of(model, optimizer)
    with monkeypatch.context() as patch:
        calls = fail_at(patch, owner, name, call=-1)
        prepare_growth(model, plan, optimizer)
        prepared = len(calls)
    assert prepared > 0 and same(before, state_of(model, optimizer))
    for call in {1, (prepared + 1) // 2, prepared}:
        with monkeypatch.context() as patch:
            fail_at(patch, owner, name, call)
            with pytest.raises(OutOfMemory):
                grow_(model, plan, optimizer)
        assert same(before, state_of(model, optimizer)), f"{name} at call {call}"
    grow_(model, plan, optimizer)
    train(model, optimizer, 2)


@pytest.mark.parametrize("done", [False, True], ids=["before", "after"])
def test_a_failure_before_or_after_any_assignment_is_undone(done, monkeypatch):
    model, optimizer = a_model_in_training()
    plan, original = a_plan(model), snapshot.put_back_
    before = state_of(model, optimizer)
    prepared = prepare_growth(model, plan, optimizer)
    for failing in range(len(prepared._after._held)):
        calls = []

        def put_back_(*args, failing=failing, calls=calls):
            calls.append(1)
            if len(calls) <= failing or len(calls) > failing + 1 or done:
                original(*args)
            if len(calls) == failing + 1:
                raise OutOfMemory("simulated")

        with monkeypatch.context() as patch, pytest.raises(OutOfMemory):
            patch.setattr(snapshot, "put_back_", put_back_)
            prepared.commit_()
        assert same(before, state_of(model, optimizer)), failing
    prepared.commit_()
    assert not same(before, state_of(model, optimizer))
    train(model, optimizer, 2)


def test_a_committed_growth_can_be_undone_as_long_as_nothing_was_trained():
    model, optimizer = a_model_in_training()
    before, outputs = state_of(model, optimizer), logits(model)
    prepared = prepare_growth(model, a_plan(model), optimizer, step=3)
    assert same(before, state_of(model, optimizer))
    event = prepared.commit_()
    assert event.step == 3 and not same(before, state_of(model, optimizer))
    prepared.rollback_()
    assert same(before, state_of(model, optimizer)) and torch.equal(outputs, logits(model))
    train(model, optimizer, 2)


def test_a_growth_can_be_undone_after_it_was_trained():
    """What the growth replaced has the values of before; what it did not touch goes on from where it is."""
    model, optimizer = a_model_in_training()

    def identities():
        _, tensors, sizes, flags, groups, state, config, history = state_of(model, optimizer)
        return [entry[:2] for entry in tensors], sizes, flags, groups, [key for key, _ in state], config, history

    before = identities()
    replaced = list(prepare_growth(model, a_plan(model), optimizer).event.replaced)
    values = [parameter.detach().clone() for parameter in replaced]
    prepared = prepare_growth(model, a_plan(model), optimizer)
    prepared.commit_()
    head = model.classifier.weight.detach().clone()
    train(model, optimizer, 3)
    prepared.rollback_()
    assert same(before, identities()) and all(map(torch.equal, replaced, values))
    assert not torch.equal(head, model.classifier.weight)
    train(model, optimizer, 2)


@pytest.mark.parametrize("name", ["_merged", "carry_optimizer_state_", "versions", "count_macs"])
def test_a_failed_merge_leaves_everything_as_before(name, monkeypatch):
    model, optimizer = a_model_in_training("residual_pair")
    before = state_of(model, optimizer)
    with monkeypatch.context() as patch:
        fail_at(patch, merge, name, 1)
        with pytest.raises(OutOfMemory):
            merge_pairs_(model, optimizer)
    assert same(before, state_of(model, optimizer))


def test_growing_draws_no_random_numbers_and_leaves_gradients_alone():
    model = tiny_model()
    model(**batch()).loss.backward()
    model.vit.layers[0].zero_grad()
    kept = model.classifier.weight.grad
    state = torch.get_rng_state()
    grow_(model, plan_for(model, "split", [1]))
    assert torch.equal(state, torch.get_rng_state()) and model.classifier.weight.grad is kept
