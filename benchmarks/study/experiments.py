"""The table of experiments: every arm of the study, as data."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from hf_saddle.growth import count_macs, count_parameters

from .event import Branch, run_branches, run_neurons
from .task import make_model
from .training import BATCH, PASSES, Arm, run


@dataclass(frozen=True)
class Job:
    """One run: what it is called, its seed, and a function without arguments that carries it out."""

    name: str
    seed: int
    run: Callable[[], dict[str, Any]]


def shape(width: int, hidden: int = 32, layers: int = 2) -> dict[str, Any]:
    """Fields of a `SaddleViTConfig`; `width` is that of the MLPs."""
    return {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "patch_size": 14,
        "intermediate_size": width,
    }


# Fields of the `GrowthConfig`. Every random control has the operator, the budget and the line search of its twin.
# Without a threshold of significance, every arm fills its budget, so that arms have equal sizes.
PROBE = {"probe_samples": 512, "probe_batch_size": 256, "significance": 0.0}
SEARCH = {"line_search": True}
LARGER_PROBE = {"probe_samples": 2_048, "significance": 2.0}
SPLIT = {"criterion": "width", "operator": "split", "linears": ["mlp.fc1"]}
RANDOM_SPLIT = SPLIT | {"criterion": "random"}
DEPTH = {"criterion": "depth", "operator": "zero_gain"}
RANDOM_DEPTH = DEPTH | {"criterion": "random"}
GROWTHS = {
    "split": SPLIT,
    "split, line search": SPLIT | SEARCH,
    "split, random directions": SPLIT | {"random_directions": True},
    "split, random": RANDOM_SPLIT,
    "split, random, line search": RANDOM_SPLIT | SEARCH,
    "net2net, random": RANDOM_SPLIT | {"operator": "net2net"},
    "gradmax": {"criterion": "gradmax", "operator": "gradmax", "linears": ["mlp.fc1"]},
    "zero gain": DEPTH,
    "zero gain, line search": DEPTH | SEARCH,
    "zero gain, random directions, line search": DEPTH | SEARCH | {"random_directions": True},
    "zero gain, random": RANDOM_DEPTH,
    "zero gain, random, line search": RANDOM_DEPTH | SEARCH,
    "zero gain, gradient norm": DEPTH | {"criterion": "grad_norm"},
    "opposed pair": DEPTH | {"operator": "opposed_pair"},
    "residual pair, paper score": {"criterion": "paper_score", "operator": "residual_pair"},
    "auto, line search": SEARCH,
    "auto, line search, significant": SEARCH | {"significance": 2.0},
}

# ------------------------------------------------------------------------------------------------- a single event
# Steps of the snapshot, of the whole schedule, and after which the losses are measured.
MOMENTS = {
    "early": (800, 3_000, (0, 10, 25, 50, 100, 200, 400)),
    "late": (2_700, 3_000, (0, 10, 25, 50, 100, 200, 300)),
}


def event() -> Iterable[Job]:
    """What one event of 3 % more parameters does, from one snapshot, at the peak and at the end of the schedule."""
    growths = GROWTHS | {"auto, line search, significant, 4 times the probe": SEARCH | LARGER_PROBE}
    branches = (Branch("none"), *(Branch(name, PROBE | {"budget": 1.03} | fields) for name, fields in growths.items()))
    for seed in range(4):
        for moment, times in MOMENTS.items():
            yield Job(moment, seed, partial(run_branches, shape(64), branches, seed, LEARNING_RATE, *times))


def neurons() -> Iterable[Job]:
    """Predicted against realised gains of single neurons."""
    for seed in range(3):
        for criterion in ("width", "depth"):
            yield Job(criterion, seed, partial(run_neurons, shape(64), criterion, seed, LEARNING_RATE))


# ----------------------------------------------------------------------------------------------- training from scratch
# Peak learning rate, chosen by the experiment `tuning` on the validation split.
LEARNING_RATE = 4e-3
SMALL, LARGE = shape(16), shape(128)
LARGE_PARAMETERS, LARGE_MACS = 32_298, 151_488
COMPUTE = float(PASSES * BATCH * LARGE_MACS * 2_000)
TARGET = round(0.9 * LARGE_PARAMETERS)
EVENTS = (0.1, 0.25, 0.4)


def grown(name: str, growth: dict[str, Any], events: tuple[float, ...] = EVENTS, start: dict[str, Any] = SMALL) -> Arm:
    """The small model growing to 90 % of the parameters of the large one."""
    return Arm(name, start, COMPUTE, LEARNING_RATE, events, PROBE | {"budget": TARGET} | growth)


UNIFORM = (
    Arm("uniform, small", SMALL, COMPUTE, LEARNING_RATE),
    Arm("uniform, large", LARGE, COMPUTE, LEARNING_RATE),
    Arm("uniform, 90 %", shape(103), COMPUTE, LEARNING_RATE),
)


def tuning() -> Iterable[Job]:
    """Learning rates of three arms, on the validation split and a seed that nothing else uses."""
    for arm in (*UNIFORM[:2], grown("auto, line search", GROWTHS["auto, line search"])):
        for rate in (2e-3, 4e-3, 8e-3):
            tuned = replace(arm, name=f"{arm.name}, {rate:g}", learning_rate=rate)
            yield Job(tuned.name, 100, partial(run, tuned, 100))


HEADLINE = (
    "split, line search",
    "split, random, line search",
    "zero gain, line search",
    "zero gain, random, line search",
    "auto, line search",
)


def headline() -> Iterable[Job]:
    """The arms that answer whether growing pays; the test split is read once, at the end of each run."""
    yield from _tested((*UNIFORM, *(grown(name, GROWTHS[name]) for name in HEADLINE)), seeds=5)


def choices() -> Iterable[Job]:
    """What each choice of the method contributes, in the same way on fewer seeds."""
    yield from _tested([grown(name, growth) for name, growth in GROWTHS.items() if name not in HEADLINE], seeds=3)


def _tested(arms: Iterable[Arm], seeds: int) -> Iterable[Job]:
    for arm in arms:
        for seed in range(seeds):
            yield Job(arm.name, seed, partial(run, replace(arm, test=True), seed))


def timing() -> Iterable[Job]:
    """How many events, and when: the validation split decides."""
    moments = {
        "one event, early": (0.1,),
        "one event, late": (0.6,),
        "ten events": tuple(round(0.05 * index, 2) for index in range(1, 11)),
        "three events, late": (0.5, 0.65, 0.8),
        "three events, at the end": (0.7, 0.8, 0.9),
    }
    for name, events in moments.items():
        for seed in range(3):
            arm = grown(name, GROWTHS["auto, line search"], events)
            yield Job(name, seed, partial(run, arm, seed))


SIZES = {"16 wide": (16, 2), "24 wide": (24, 2), "48 wide": (48, 2)}


def sizes() -> Iterable[Job]:
    """Three sizes of the residual stream, each at the compute of 1,500 steps of its own large model."""
    for name, (hidden, layers) in SIZES.items():
        large = shape(4 * hidden, hidden, layers)
        model = make_model(0, large)
        compute = float(PASSES * BATCH * count_macs(model) * 1_500)
        budget = round(0.9 * count_parameters(model))
        for kind in ("uniform, small", "uniform, large", "auto, line search", "zero gain, random, line search"):
            start = large if kind == "uniform, large" else shape(hidden // 2, hidden, layers)
            growth = {} if kind.startswith("uniform") else PROBE | {"budget": budget} | GROWTHS[kind]
            arm = Arm(f"{name}: {kind}", start, compute, LEARNING_RATE, EVENTS if growth else (), growth)
            for seed in range(2):
                yield Job(arm.name, seed, partial(run, arm, seed))


EXPERIMENTS: dict[str, Callable[[], Iterable[Job]]] = {
    "tuning": tuning,
    "event": event,
    "neurons": neurons,
    "headline": headline,
    "choices": choices,
    "timing": timing,
    "sizes": sizes,
}
