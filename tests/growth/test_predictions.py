"""The loss falls by what the curvature predicts, the better the smaller the step."""

import copy
from dataclasses import replace

import pytest
import torch
from growth_cases import batch, logits, path_of, tiny_model

from hf_saddle.curvature import analyze_curvature
from hf_saddle.growth import (
    GrowthConfig,
    GrowthPlan,
    LayerGrowth,
    PaperGrowthConfig,
    grow_,
    halves,
    plan_growth,
    probe_loss,
    score_growths,
    take_natural_step,
)


PROBE = [batch(32, seed=3, dtype=torch.float64)]
LINEARS = ("mlp.fc1", "mlp.fc2", "attention.v_proj", "attention.q_proj", "attention.o_proj")


def trained(seed=0):
    model = tiny_model(seed=seed).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for _ in range(5):
        model(**PROBE[0]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def measured(model, growth, factor):
    """Loss change and prediction with the step times `factor`."""
    steps = growth.steps * factor
    grown = copy.deepcopy(model)
    grow_(grown, GrowthPlan((replace(growth, steps=steps),)))
    change = probe_loss(grown, PROBE) - probe_loss(model, PROBE)
    return change, -float(growth.predicted_gain.double().sum()) * factor**2


def growth_of(model, linear, criterion, whiten):
    report = analyze_curvature(model, PROBE, criterion, linears=[linear], step_size=0.1, whiten=whiten)
    entry = report[linear, criterion]
    value = entry.fit_eigenvalue  # the probe set is the one it was fitted to
    strongest = torch.argsort(value if criterion == "width" else -value.abs())[:3].tolist()
    steps, eigenvalues = entry.step[strongest].float(), value[strongest].float()
    # ½ ε² λ for a split; ½ φ''(0) ε² λ for a unit, and GELU has φ''(0) = 2 · pdf(0).
    slope = 0.5 if criterion == "width" else (2 * torch.pi) ** -0.5
    return LayerGrowth(
        linear=linear,
        operator="split" if criterion == "width" else "zero_gain",
        neurons=tuple(strongest),
        directions=entry.direction[strongest].float(),
        steps=steps,
        gains=torch.zeros(3) if criterion == "width" else -torch.sign(eigenvalues),
        predicted_gain=slope * steps**2 * eigenvalues.abs(),
        eigenvalues=eigenvalues,
        candidates=3,
    )


CASES = [("mlp.fc1", "width"), *((linear, "depth") for linear in LINEARS)]


@pytest.mark.parametrize("whiten", [False, True], ids=["plain", "whitened"])
@pytest.mark.parametrize(("linear", "criterion"), CASES, ids=lambda value: value)
def test_measured_loss_change_approaches_the_prediction(linear, criterion, whiten):
    model = trained()
    growth = growth_of(model, path_of(model, linear), criterion, whiten)
    if criterion == "width":
        assert bool((growth.eigenvalues < 0).all())
    ratios = []
    for factor in (1.0, 0.5, 0.25, 0.125):
        change, prediction = measured(model, growth, factor)
        assert change < 0 and prediction < 0
        ratios.append(change / prediction)
    print(linear, criterion, " ".join(f"{ratio:.5f}" for ratio in ratios))
    errors = [abs(ratio - 1) for ratio in ratios]
    assert errors[-1] < 0.01
    assert all(later < earlier * 0.5 for earlier, later in zip(errors, errors[1:], strict=False) if earlier > 1e-4)


def test_a_plan_from_a_report_lowers_the_loss_and_zero_gain_leaves_it():
    model = trained()
    report = analyze_curvature(model, PROBE, ("width", "depth"), step_size=0.3, significance=0.0)
    before = probe_loss(model, PROBE)
    for settings, falls in ({"criterion": "width"}, True), ({"criterion": "depth"}, False):
        config = GrowthConfig(at=[0.5], significance=0.0, **settings)
        plan = plan_growth(report, model, config)
        assert plan and plan.parameters <= plan.budget
        grown = copy.deepcopy(model)
        grow_(grown, plan)
        after = probe_loss(grown, PROBE)
        assert (after < before) if falls else (after == before)
        assert bool((logits(grown) == logits(model)).all()) != falls


def nudged(model, plan, index, unit, **values):
    """The probe loss with one value of one unit changed and the others at rest."""
    growth = plan.growths[index].of([unit])
    grown = copy.deepcopy(model)
    grow_(grown, replace(plan, growths=(replace(growth, **{k: torch.tensor([v]) for k, v in values.items()}),)))
    return probe_loss(grown, PROBE)


@pytest.mark.parametrize("bias", ["trained", "frozen", "none"])
def test_scores_of_units_are_the_slopes_of_the_loss_in_their_gains(bias):
    model = trained() if bias != "none" else tiny_model(qkv_bias=False).double()
    for module in (site.module for site in model.growable_linears()):
        if bias == "frozen":
            module.bias.requires_grad_(False)
    fc1, query = (path_of(model, name) for name in ("mlp.fc1", "attention.q_proj"))
    plan = GrowthPlan(tuple(LayerGrowth.by_hand(model, p, "zero_gain", [0, 3, 7], steps=0.5) for p in (fc1, query)))
    scores = score_growths(model, plan.growths, PROBE)
    slopes = [
        (nudged(model, plan, index, unit, gains=1e-3) - nudged(model, plan, index, unit, gains=-1e-3)) / 2e-3
        for index in range(2)
        for unit in range(3)
    ]
    torch.testing.assert_close(scores.values.mean(dim=0), torch.tensor(slopes).double(), rtol=1e-3, atol=1e-7)


def test_scores_of_splits_are_what_small_steps_do():
    model = trained()
    plan = GrowthPlan((LayerGrowth.by_hand(model, path_of(model, "mlp.fc1"), "split", [1, 4, 6]),))
    scores = score_growths(model, plan.growths, PROBE)
    before, size = probe_loss(model, PROBE), 0.01
    changes = [
        (nudged(model, plan, 0, unit, steps=size * float(plan.growths[0].steps[unit])) - before) / size**2
        for unit in range(3)
    ]
    torch.testing.assert_close(scores.values.mean(dim=0), torch.tensor(changes).double(), rtol=2e-3, atol=1e-7)


@pytest.mark.parametrize("activation", ["mish", "gelu_new", "tanh", "sigmoid", "laplace", "relu2", "leaky_relu"])
def test_units_of_any_activation_begin_as_nothing_and_start_downhill(activation):
    """Also where the activation has no curvature at zero, or is not zero there."""
    model = tiny_model(hidden_act=activation).double()
    paths = [site.path for site in model.growable_linears()]
    plan = GrowthPlan(tuple(LayerGrowth.by_hand(model, path, "zero_gain", [0, 3], steps=0.5) for path in paths))
    before, answer = probe_loss(model, PROBE), logits(model)
    grown = copy.deepcopy(model)
    grow_(grown, plan)
    assert torch.equal(logits(grown), answer)
    scores = score_growths(model, plan.growths, *halves(PROBE))
    gains = take_natural_step(plan, scores, 1e-4).growths
    expected = -float(scores.values.mean(dim=0) @ torch.cat([growth.gains for growth in gains]).double())
    grow_(model, replace(plan, growths=gains))
    assert before - probe_loss(model, PROBE) == pytest.approx(expected, rel=0.02)
    assert expected > 0


def test_a_natural_step_lowers_the_loss_and_scoring_leaves_the_model():
    model = trained()
    report = analyze_curvature(model, PROBE, "depth", step_size=0.2, significance=0.0)
    plan = plan_growth(report, model, GrowthConfig(at=[0.5], criterion="depth", max_growth=1.1))
    state, config = copy.deepcopy(model.state_dict()), model.config.to_dict()
    moved = take_natural_step(plan, score_growths(model, plan.growths, *halves(PROBE)), 0.5)
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
    assert model.growth_history is None and model.config.to_dict() == config
    before = probe_loss(model, PROBE)
    grow_(model, moved)
    assert probe_loss(model, PROBE) < before
    assert moved.growths[0].gains.abs().max() > 0


def test_at_rest_only_the_prediction_changes():
    model = trained()
    plan = GrowthPlan((LayerGrowth.by_hand(model, path_of(model, "mlp.fc1"), "zero_gain", [1, 2], steps=0.5),))
    scores = score_growths(model, plan.growths, *halves(PROBE))
    resting, half = (take_natural_step(plan, scores, share) for share in (0.0, 0.5))
    assert not bool(resting.growths[0].gains.any()) and bool(half.growths[0].gains.all())
    assert resting.predicted_gain == half.predicted_gain != 0.0


@pytest.mark.parametrize("operator", ["split", "zero_gain"])
def test_scores_refuse_a_probe_that_tells_nothing(operator):
    model = trained()
    growths = [LayerGrowth.by_hand(model, path_of(model, "mlp.fc1"), operator, [1, 2])]
    with pytest.raises(ValueError, match="loss .*nan"):
        score_growths(model, growths, PROBE, loss=lambda model, batch: model(**batch).loss * float("nan"))
    with pytest.raises(ValueError, match="probe is empty"):
        score_growths(model, growths, [])
    with pytest.raises(ValueError, match="score the growths with `judging`"):
        take_natural_step(GrowthPlan(tuple(growths)), score_growths(model, growths, PROBE), 0.5)
    assert model.shapes() == trained().shapes() and model.growth_history is None


def test_scores_of_several_growths_of_one_linear_keep_their_order():
    model = trained()
    fc1, fc2 = path_of(model, "mlp.fc1"), path_of(model, "mlp.fc2")
    whole = LayerGrowth.by_hand(model, fc1, "zero_gain", [0, 1, 2, 3, 4], steps=1.0)
    between = LayerGrowth.by_hand(model, fc2, "zero_gain", [5], steps=1.0)
    together = score_growths(model, [whole, between], PROBE).values
    apart = score_growths(model, [whole.of([0, 1]), between, whole.of([2, 3, 4])], PROBE).values
    torch.testing.assert_close(apart, together[:, [0, 1, 5, 2, 3, 4]])


def test_the_probe_loss_weights_batches_by_their_samples():
    """Also where a batch is a tensor, or where its first tensor has no samples or lies deeper."""
    model, pixels = trained(), PROBE[0]["pixel_values"]

    def loss(model, batch):
        while not isinstance(batch, torch.Tensor):
            batch = batch["inputs"]
        return model(pixel_values=batch).logits.square().mean()

    expected = float(loss(model, pixels).detach())
    for wrap in (
        lambda x: x,
        lambda x: {"scale": torch.tensor(1.0), "inputs": x},
        lambda x: {"inputs": {"inputs": x}},
    ):
        batches = [wrap(part) for part in pixels.split((29, 3))]
        assert probe_loss(model, batches, loss) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("directions", ["whitened", "eigenvectors", "random"])
def test_the_pre_activations_of_new_units_have_a_root_mean_square_of_one(directions):
    model = trained()
    fields = {"criterion": "depth", "significance": 0.0, "at": [0.5], "max_growth": 1.3}
    config = PaperGrowthConfig(**fields, directions=directions)
    whiten = directions == "whitened"
    report = analyze_curvature(model, PROBE, config.criteria, whiten=whiten, significance=0.0)
    grow_(model, plan_growth(report, model, config))
    sizes = {}
    for name, module in model.named_modules():
        if name.endswith(".skip.linear"):
            module.register_forward_hook(lambda module, inputs, output, name=name: sizes.update({name: output}))
    model(**PROBE[0])
    assert sizes
    for output in sizes.values():
        scale = output.flatten(0, -2).square().mean(dim=0).sqrt()
        torch.testing.assert_close(scale, torch.ones_like(scale), rtol=1e-4, atol=0)


def test_an_operator_without_a_natural_step_cannot_be_scored():
    model = trained()
    growth = LayerGrowth.by_hand(model, path_of(model, "mlp.fc1"), "opposed_pair", [1])
    with pytest.raises(ValueError, match="`opposed_pair` .* has no natural step"):
        score_growths(model, [growth], PROBE)
