"""What an event costs, in training steps; what a grown model costs, compared to a uniform one of equal MACs.

    python benchmarks/growth_cost.py --output benchmarks/results/growth_cost.json

Both ratios are taken within one run, from alternating measurements, so that other load on the machine hits both sides.
"""

import argparse
import copy
import json
import platform
import statistics
import time
from pathlib import Path

import torch
import transformers

from hf_saddle import SaddleViTConfig, SaddleViTForImageClassification
from hf_saddle.curvature import CurvatureReport, LayerCurvature
from hf_saddle.growth import GrowthConfig, GrowthPlan, LayerGrowth, count_macs, grow_, plan_growth
from hf_saddle.growth.costs import CostBook


FIELDS = {"hidden_size": 384, "num_attention_heads": 6, "num_labels": 100}
NEURONS = 60  # in each layer


def deit_small(intermediate_size: int = 1536, layers: int = 12) -> SaddleViTForImageClassification:
    """Plain DeiT-S, of the given width and number of layers."""
    fields = FIELDS | {"intermediate_size": intermediate_size, "num_hidden_layers": layers}
    return SaddleViTForImageClassification(SaddleViTConfig(**fields))


def seconds(action, device: str) -> float:
    """Duration of a call, on a GPU until it has finished."""
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    action()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def batch(size: int, device: str) -> dict[str, torch.Tensor]:
    pixels = torch.randn(size, 3, 224, 224, device=device)
    return {"pixel_values": pixels, "labels": torch.randint(100, (size,), device=device)}


def report(model: SaddleViTForImageClassification, criterion: str) -> CurvatureReport:
    """A report on fc1 of all layers with random numbers: planning costs the same whatever was measured."""
    layers = []
    for site in model.growable_linears():
        path, module = site.path, site.module
        if site.linear != "mlp.fc1" or site.nested:
            continue
        n, d = module.out_features, module.in_features + 1
        direction = torch.nn.functional.normalize(torch.randn(n, d), dim=1)
        gain, ones = torch.rand(n), torch.ones(n)
        gain[torch.randperm(n)[:NEURONS]] += 1  # these grow, and the others are weighed too
        layers.append(
            LayerCurvature(
                linear=path,
                criterion=criterion,
                eigenvalue=-gain,
                standard_error=0.1 * ones,
                residual=0.1 * ones,
                direction=direction,
                response=ones,
                step=0.1 * ones,
                gain=gain,
                significant=ones.bool(),
                fit_eigenvalue=-gain,
                refined=ones.bool(),
                cost_parameters=d + 1,
                cost_macs=d,
            )
        )
    return CurvatureReport(tuple(layers), samples=64, tokens=64 * 197, loss=4.6, seconds=0.0, seed=0, skipped={})


def event_cost(criterion: str, batch_size: int, repeats: int, device: str) -> dict:
    """Planning and growing (with a fused AdamW) against a training step, alternating."""
    data = batch(batch_size, device)
    steps, plans, growths = [], [], []
    base = deit_small().to(device)
    for repeat in range(repeats + 1):
        model = copy.deepcopy(base)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

        def step(model=model, optimizer=optimizer):
            model(**data).loss.backward()
            optimizer.step()
            optimizer.zero_grad()

        found = report(model, criterion)
        fc1 = found.layers[0].linear
        price = CostBook(model).cost(fc1, {"width": "split", "depth": "zero_gain"}[criterion], 0).parameters
        config = GrowthConfig(criterion=criterion, at=[0.5], max_growth=None, event_budget=12 * NEURONS * price)
        plan: list[GrowthPlan] = []
        times = (
            seconds(step, device),
            seconds(lambda: plan.append(plan_growth(found, model, config)), device),  # noqa: B023
            seconds(lambda: grow_(model, plan[0], optimizer), device),  # noqa: B023
        )
        assert [len(growth.neurons) for growth in plan[0].growths] == [NEURONS] * 12
        if repeat:  # the first round warms up
            for values, value in zip((steps, plans, growths), times, strict=True):
                values.append(value)
    ratios = [(plan + growth) / step for step, plan, growth in zip(steps, plans, growths, strict=True)]
    return {
        "criterion": criterion,
        "batch_size": batch_size,
        "step_seconds": steps,
        "plan_seconds": plans,
        "grow_seconds": growths,
        "ratio_median": statistics.median(ratios),
        "ratio_max": max(ratios),
    }


def grown_cost(operator: str, batch_size: int, repeats: int, layers: int, device: str) -> dict:
    """Forward and backward of a grown model against a uniform one of equal MACs, alternating."""
    grown = deit_small(layers=layers)
    base = count_macs(grown)
    paths = [site.path for site in grown.growable_linears() if site.linear == "mlp.fc1"]
    rows = range(0, 1536, 1536 // NEURONS)[:NEURONS]
    gains = {"zero_gain": 0.1}.get(operator)
    growths = [LayerGrowth.by_hand(grown, path, operator, list(rows), gains=gains) for path in paths]
    grow_(grown, GrowthPlan(tuple(growths)))
    # A hidden neuron of the uniform model costs 2 · 384 products per token, a unit of a branch 384.
    target = count_macs(grown)
    width = 1536 + round((target - base) / (2 * 384 * 197 * layers))
    uniform = deit_small(width, layers)
    models = {"grown": grown.to(device), "uniform": uniform.to(device)}
    data, times = batch(batch_size, device), {name: [] for name in models}

    def forward_backward(model):
        model(**data).loss.backward()
        model.zero_grad(set_to_none=True)

    for repeat in range(repeats + 1):
        names = list(models) if repeat % 2 else list(reversed(models))
        for name in names:
            value = seconds(lambda: forward_backward(models[name]), device)  # noqa: B023
            if repeat:
                times[name].append(value)
    ratios = [g / u for g, u in zip(times["grown"], times["uniform"], strict=True)]
    return {
        "operator": operator,
        "batch_size": batch_size,
        "layers": layers,
        "macs": {"grown": target, "uniform": count_macs(uniform)},
        "uniform_width": width,
        "seconds": times,
        "ratio_median": statistics.median(ratios),
        "ratio_of_minima": min(times["grown"]) / min(times["uniform"]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/growth_cost.json"))
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--model_batch_size", type=int, default=8, help="Batch of the grown against uniform part.")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--model_repeats", type=int, default=9)
    parser.add_argument("--model_layers", type=int, default=12)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    transformers.logging.set_verbosity_error()
    torch.manual_seed(0)
    result = {
        "event": [
            event_cost(c, arguments.batch_size, arguments.repeats, arguments.device) for c in ("width", "depth")
        ],
        "model": [
            grown_cost(
                operator,
                arguments.model_batch_size,
                arguments.model_repeats,
                arguments.model_layers,
                arguments.device,
            )
            for operator in ("split", "zero_gain", "residual_pair")
        ],
        "aims": {"event_ratio": 0.5, "model_ratio": 1.05},
        "machine": {
            "device": arguments.device,
            "processor": platform.processor() or platform.machine(),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(result, indent=2) + "\n")
    for event in result["event"]:
        size = event["batch_size"]
        print(f"event, {event['criterion']}: {event['ratio_median']:.3f} training steps of batch {size} (aim 0.5)")
    for model in result["model"]:
        print(f"grown by {model['operator']}: {model['ratio_median']:.3f} × uniform (aim 1.05)")
    print(f"written to {arguments.output}")


if __name__ == "__main__":
    main()
