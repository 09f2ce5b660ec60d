"""Single growth events under a microscope: arms that branch off one trained model and go on with the same batches."""

import copy
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hf_saddle import CurvatureReport, LayerGrowth, analyze_curvature
from hf_saddle.growth import GrowthPlan, PaperGrowthConfig, grow_

from .probe import macs_of_an_event, probe
from .task import evaluate, fashion_mnist, make_model
from .training import WAYS, grow, parameter_groups, schedule, summary, train_step_, training_batches


NEURON_SNAPSHOT, NEURON_TOTAL = 600, 1_600
NEURONS, NEURON_STEPS = 24, 100


@dataclass(frozen=True)
class Branch:
    """
    An arm: how the model grows at the snapshot, as fields of a `PaperGrowthConfig`, `None` for not at all, in one of
    the `WAYS`.
    """

    name: str
    growth: dict[str, Any] | None = None
    way: str = "measured"


class Snapshot:
    """
    A model in the middle of its training, with its optimizer; copies of it go on along different branches.

    Args:
        shape (`dict`): Fields of the model's config.
        seed (`int`): Of the initial weights and the order of the data.
        learning_rate (`float`): Peak of the schedule.
        step (`int`): Steps before the snapshot.
        total (`int`): Steps that the schedule is made for.
    """

    def __init__(self, shape: dict[str, Any], seed: int, learning_rate: float, step: int, total: int):
        torch.set_num_threads(1)
        self.splits, self.learning_rate, self.step, self.total = fashion_mnist(), learning_rate, step, total
        self.model = make_model(seed, shape).train()
        groups = parameter_groups(self.model)
        self.optimizer = torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.98), fused=True)
        batches = training_batches(self.splits["train"], seed)
        self.train(self.model, self.optimizer, batches, 0, step)
        self.later = [next(batches) for _ in range(total - step)]

    def train(self, model: nn.Module, optimizer, batches: Iterator, start: int, stop: int) -> None:
        """Steps `start` to `stop` of the schedule."""
        for step in range(start, stop):
            train_step_(model, optimizer, next(batches), self.learning_rate * schedule(step / self.total))

    def copy(self) -> tuple[Any, Any]:
        """Model and optimizer as they were at the snapshot."""
        return copy.deepcopy((self.model, self.optimizer))

    def loss(self, model: Any) -> float:
        """Validation loss, which no decision is based on."""
        return evaluate(model, self.splits["validation"])["loss"]


def run_branches(
    shape: dict[str, Any],
    branches: tuple[Branch, ...],
    seed: int,
    learning_rate: float,
    step: int,
    total: int,
    after: tuple[int, ...],
) -> dict[str, Any]:
    """Validation losses of all branches `after` so many steps from their event at `step`."""
    snapshot = Snapshot(shape, seed, learning_rate, step, total)
    found: dict[str, Any] = {"before": snapshot.loss(snapshot.model), "after": after, "branches": {}}
    for branch in branches:
        model, optimizer = snapshot.copy()
        record: dict[str, Any] = {}
        if branch.growth is not None:
            config = PaperGrowthConfig(at=[0.5], growth_seed=seed, **branch.growth)
            event = grow(model, optimizer, snapshot.splits["train"], config, seed, 0, step, WAYS[branch.way])
            record = summary(event) | {"macs": macs_of_an_event(config, event)}
        losses, batches, seconds = [], iter(snapshot.later), 0.0
        for start, stop in zip((0, *after), after, strict=False):
            began = time.process_time()
            snapshot.train(model, optimizer, batches, step + start, step + stop)
            seconds += time.process_time() - began
            losses.append(snapshot.loss(model))
        found["branches"][branch.name] = record | {"losses": losses, "training_seconds": seconds}
    return found


def run_neurons(
    shape: dict[str, Any], criterion: str, whiten: bool, seed: int, learning_rate: float
) -> dict[str, Any]:
    """
    Predicted and realised gains of single neurons, at once and after some training.

    Neurons are taken at even ranks of the predicted gain; each grows alone in a copy of the model.
    """
    snapshot = Snapshot(shape, seed, learning_rate, NEURON_SNAPSHOT, NEURON_TOTAL)
    stop = NEURON_SNAPSHOT + NEURON_STEPS
    config = PaperGrowthConfig(probe_samples=2_048, probe_batch_size=256)
    batches = probe(snapshot.splits["train"], config, seed, 0)
    report = analyze_curvature(
        snapshot.model, batches, criterion, step_size=config.step_size, whiten=whiten, seed=seed
    )
    known = {site.path: site.module for site in snapshot.model.growable_linears()}
    rows = sorted(
        (float(layer.gain[neuron]), layer.linear, neuron)
        for layer in report
        if layer.linear in known and (criterion == "depth" or layer.linear.endswith("fc1"))
        for neuron in range(layer.neurons)
    )
    picked = [rows[round(index * (len(rows) - 1) / (NEURONS - 1))] for index in range(NEURONS)]
    before = snapshot.loss(snapshot.model)
    model, optimizer = snapshot.copy()
    snapshot.train(model, optimizer, iter(snapshot.later), NEURON_SNAPSHOT, stop)
    baseline = snapshot.loss(model)
    found = []
    for gain, linear, neuron in picked:
        layer = report[linear, criterion]
        growth = LayerGrowth(
            linear=linear,
            operator="split" if criterion == "width" else "zero_gain",
            neurons=(neuron,),
            directions=layer.direction[[neuron]].float(),
            steps=layer.step[[neuron]].float(),
            gains=-torch.sign(layer.eigenvalue[[neuron]].float()) * (criterion == "depth"),
            predicted_gain=torch.tensor([gain], dtype=torch.float32),
            eigenvalues=layer.eigenvalue[[neuron]].float(),
            candidates=1,
        )
        model, optimizer = snapshot.copy()
        grow_(model, GrowthPlan((growth,)), optimizer)
        at_once = before - snapshot.loss(model)
        snapshot.train(model, optimizer, iter(snapshot.later), NEURON_SNAPSHOT, stop)
        found.append(
            {
                "linear": linear,
                "neuron": neuron,
                "eigenvalue": float(layer.eigenvalue[neuron]),
                "significant": bool(layer.significant[neuron]),
                "predicted": gain,
                "at_once": at_once,
                "later": baseline - snapshot.loss(model),
            }
        )
    drawn = analyze_curvature(snapshot.model, batches, "random", seed=seed)
    return {
        "criterion": criterion,
        "neurons": found,
        "similarity": similarity(snapshot.model, batches, report),
        "similarity_random": similarity(snapshot.model, batches, drawn),
    }


@torch.no_grad()
def similarity(model: nn.Module, batches: list[dict[str, Tensor]], report: CurvatureReport) -> dict[str, float]:
    """For every layer the mean absolute cosine between the pre-activations of units along its directions."""
    inputs: dict[str, list[Tensor]] = {layer.linear: [] for layer in report}
    handles = [
        model.get_submodule(name).register_forward_hook(
            lambda module, args, output, name=name: inputs[name].append(args[0].flatten(0, -2))
        )
        for name in inputs
    ]
    model.eval()
    for batch in batches:
        model(**batch)
    model.train()
    for handle in handles:
        handle.remove()
    found = {}
    for layer in report:
        extended = nn.functional.pad(torch.cat(inputs[layer.linear]), (0, 1), value=1.0)
        found[layer.linear] = mean_cosine(layer.direction.float() @ extended.t())
    return found


def mean_cosine(rows: Tensor) -> float:
    """Mean absolute cosine between different rows."""
    unit = rows / rows.norm(dim=1, keepdim=True)
    cosines, count = (unit @ unit.t()).abs(), len(unit)
    return float((cosines.sum() - count) / (count * (count - 1)))
