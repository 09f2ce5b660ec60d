"""The table of experiments: every arm of the study, as data."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from itertools import starmap
from statistics import fmean
from typing import Any

from hf_saddle.growth import count_macs, count_parameters

from .cifar_arms import cifar, cifar_budgets, cifar_trials, cifar_tuning
from .event import Branch, run_branches, run_neurons
from .expansion_arms import expansion, expansion_timing, expansion_tuning
from .files import results
from .finetuning_arms import finetuning, finetuning_tuning, ranks, ranks_tuning
from .language_arms import language, language_timing, language_trials, language_tuning
from .shapes import ROUNDS, search, static_name, survivors, uneven
from .task import make_model, shape
from .training import BATCH, FILLED, PASSES, REFERENCE, Arm, run


@dataclass(frozen=True)
class Job:
    """One run: what it is called, its seed, and a function without arguments that carries it out."""

    name: str
    seed: int
    run: Callable[[], dict[str, Any]]


# Fields of the `GrowthConfig`. Every random control has the operator, the budget and the line search of its twin.
# Without a threshold of significance, every arm fills its budget, so that arms have equal sizes.
PROBE = {"probe_samples": 1_024, "probe_batch_size": 256, "directions": "eigenvectors"} | FILLED
WHITENED, DRAWN = {"directions": "whitened"}, {"directions": "random"}
# The recorded runs of these names took a line search along the slope of the gains instead of the natural step.
SEARCH = {"natural_step": 0.5}
SPLIT = {"criterion": "width", "operator": "split", "linears": ["mlp.fc1"]}
RANDOM_SPLIT = SPLIT | {"criterion": "random"}
DEPTH = {"criterion": "depth", "operator": "zero_gain"}
RANDOM_DEPTH = DEPTH | {"criterion": "random"}
GROWTHS = {
    "auto, whitened, line search": SEARCH | WHITENED,
    "auto, line search": SEARCH,
    "split, whitened, line search": SPLIT | SEARCH | WHITENED,
    "split, line search": SPLIT | SEARCH,
    "split, random, line search": RANDOM_SPLIT | SEARCH,
    "zero gain, whitened, line search": DEPTH | SEARCH | WHITENED,
    "zero gain, line search": DEPTH | SEARCH,
    "zero gain, random directions, line search": DEPTH | SEARCH | DRAWN,
    "zero gain, random, line search": RANDOM_DEPTH | SEARCH,
    "split, whitened": SPLIT | WHITENED,
    "split": SPLIT,
    "split, random": RANDOM_SPLIT,
    "zero gain, whitened": DEPTH | WHITENED,
    "zero gain": DEPTH,
    "zero gain, random": RANDOM_DEPTH,
    "zero gain, gradient norm": DEPTH | {"criterion": "grad_norm"},
    "opposed pair": DEPTH | {"operator": "opposed_pair"},
    "residual pair, paper score": {"criterion": "paper_score", "operator": "residual_pair"},
    "gradmax": {"criterion": "gradmax", "operator": "gradmax", "linears": ["mlp.fc1"]},
    "net2net, random": RANDOM_SPLIT | {"operator": "net2net"},
    "auto, line search, significant": SEARCH | {"significance": 2.0},
    "auto, line search, half the probe": SEARCH | {"probe_samples": 512},
    "auto, line search, twice the probe": SEARCH | {"probe_samples": 2_048},
    "auto, whitened, line search, significant": SEARCH | WHITENED | {"significance": 2.0},
    "default": WHITENED | {"significance": 2.0},
}

# Growth by curvature and its random controls.
HEADLINE = (
    "auto, whitened, line search",
    "auto, line search",
    "zero gain, whitened, line search",
    "zero gain, line search",
    "zero gain, random directions, line search",
    "zero gain, random, line search",
)

# What the other experiments are about, its control, and the same neurons along random directions.
BEST, CONTROL = "zero gain, whitened, line search", "zero gain, random, line search"
UNDIRECTED = "zero gain, random directions, line search"

TUNING_SEED = 100
# Peak learning rate: the large model has its lowest validation loss there, all others are a little lower at twice it.
LEARNING_RATE = 3.2e-2
SMALL, LARGE = shape(4), REFERENCE
LARGE_PARAMETERS, LARGE_MACS = 10_010, 45_024
TARGET = round(0.9 * LARGE_PARAMETERS)
STEPS = 1_200  # of the large model
COMPUTE = float(PASSES * BATCH * LARGE_MACS * STEPS)

# ------------------------------------------------------------------------------------------------- a single event
# Steps of the snapshot, of the whole schedule, and after which the losses are measured.
MOMENTS = {
    "early": (600, 1_600, (0, 10, 25, 50, 100, 200, 400)),
    "late": (1_300, 1_600, (0, 10, 25, 50, 100, 200, 300)),
}


def event() -> Iterable[Job]:
    """What one event of 10 % more parameters does, from one snapshot, at the peak and at the end of the schedule."""
    splits = [name for name in GROWTHS if name.startswith("split")]
    names = (*HEADLINE, *splits, "zero gain, whitened", "residual pair, paper score", "gradmax")
    branches = (Branch("none"), *(Branch(name, PROBE | {"max_growth": 1.1} | GROWTHS[name]) for name in names))
    for seed in range(4):
        for moment, times in MOMENTS.items():
            yield Job(moment, seed, partial(run_branches, SMALL, branches, seed, LEARNING_RATE, *times))


def neurons() -> Iterable[Job]:
    """Predicted against realised gains of single neurons."""
    for seed in range(3):
        for criterion in ("width", "depth"):
            for whiten in (False, True):
                name = f"{criterion}, whitened" if whiten else criterion
                yield Job(name, seed, partial(run_neurons, SMALL, criterion, whiten, seed, LEARNING_RATE))


# ----------------------------------------------------------------------------------------------- training from scratch
EARLY = (0.1, 0.25, 0.4)


def grown(name: str, growth: str, events: tuple[float, ...]) -> Arm:
    """The small model growing to 90 % of the parameters of the large one."""
    fields = PROBE | {"max_parameters": TARGET} | GROWTHS[growth]
    return Arm(name, SMALL, COMPUTE, learning_rate=LEARNING_RATE, events=events, growth=fields)


def uniform(name: str, fields: dict[str, Any]) -> Arm:
    """A model that does not grow."""
    return Arm(name, fields, COMPUTE, learning_rate=LEARNING_RATE)


def at_equal_steps(arm: Arm) -> Arm:
    """The same arm with as many steps as the large model has."""
    return replace(arm, budget=STEPS, unit="steps")


UNIFORM = (uniform("uniform, small", SMALL), uniform("uniform, 90 %", shape(48)), uniform("uniform, large", LARGE))


def tuning() -> Iterable[Job]:
    """Learning rates of uniform and grown arms, on the validation split and a seed that nothing else uses."""
    for arm in (UNIFORM[0], UNIFORM[-1], *(grown(name, name, EARLY) for name in (BEST, CONTROL, "auto, line search"))):
        for rate in (4e-3, 8e-3, 1.6e-2, 3.2e-2, 6.4e-2):
            tuned = replace(arm, name=f"{arm.name}, {rate:g}", learning_rate=rate)
            yield Job(tuned.name, TUNING_SEED, partial(run, tuned, TUNING_SEED))


def headline() -> Iterable[Job]:
    """The arms that answer whether growing pays at equal compute."""
    # By accuracy the small model does better at half the rate.
    slower = replace(UNIFORM[0], name="uniform, small, half the rate", learning_rate=LEARNING_RATE / 2)
    yield from _tested((*UNIFORM, slower, *(grown(name, name, EARLY) for name in HEADLINE)), seeds=range(5))


def confirmation() -> Iterable[Job]:
    """The best arms again, with seeds that nothing was chosen by; their number was fixed beforehand."""
    preserving = ("default", "zero gain, whitened", "zero gain, random")
    names = (BEST, UNDIRECTED, CONTROL, *preserving)
    arms = (UNIFORM[0], UNIFORM[-1], *(grown(name, name, EARLY) for name in names))
    yield from _tested(arms, seeds=range(5, 25))


def matched() -> Iterable[Job]:
    """Is it curvature, or the places, or the time? Twenty seeds that nothing was chosen by, as in `confirmation`."""
    arm = grown("default", "default", EARLY)
    elsewhere = PROBE | RANDOM_DEPTH | {"max_parameters": TARGET, "linears": ["attention.v_proj", "attention.o_proj"]}
    arms = (
        arm,
        replace(arm, name="default, random in the same linears", way="matched"),
        replace(arm, name="zero gain, random in v and o", growth=elsewhere),
        replace(UNIFORM[1], name="uniform, 90 %, the seconds of default", budget=steps_of_equal_time(), unit="steps"),
    )
    yield from _tested(arms, seeds=range(25, 45))


def steps_of_equal_time() -> int:
    """Steps of the uniform model of 90 % in the seconds of the default options, by the times of recorded runs."""

    def mean(experiment: str, arm: str, figure: Callable[[dict[str, Any]], float]) -> float:
        return fmean(figure(row) for row in results(experiment) if row["arm"] == arm)

    def pace(row: dict[str, Any]) -> float:
        return row["seconds"] / row["steps"]

    # The machine was not equally fast in both experiments: a ratio within each.
    ratio = mean("headline", "uniform, 90 %", pace) / mean("headline", "uniform, small", pace)
    seconds = mean("confirmation", "default", lambda row: row["seconds"])
    return round(seconds / (mean("confirmation", "uniform, small", pace) * ratio))


def longer() -> Iterable[Job]:
    """Four times the compute: nearer to the plateau of the uniform models."""
    for arm in (*UNIFORM, *(grown(name, name, EARLY) for name in (BEST, UNDIRECTED, CONTROL))):
        yield from _tested([replace(arm, budget=4 * COMPUTE)], seeds=range(3))


def steps() -> Iterable[Job]:
    """The same arms at equal steps."""
    arms = (*UNIFORM, *(grown(name, name, EARLY) for name in (BEST, UNDIRECTED, CONTROL)))
    yield from _tested(map(at_equal_steps, arms), seeds=range(5))


def one_shot() -> Iterable[Job]:
    """The final architectures of grown models, from scratch."""
    for row in results("headline"):
        if row["arm"] == BEST:
            yield from _tested([uniform("one shot", row["shape"])], seeds=[row["seed"]])


def choices() -> Iterable[Job]:
    """What each choice of the method contributes, in the same way on fewer seeds."""
    yield from _tested([grown(name, name, EARLY) for name in GROWTHS if name not in HEADLINE], seeds=range(3))


def _tested(arms: Iterable[Arm], seeds: Iterable[int]) -> Iterable[Job]:
    """Runs whose options are decided: the test split is read once, at the end of each."""
    for arm in arms:
        for seed in seeds:
            yield Job(arm.name, seed, partial(run, replace(arm, test=True), seed))


def timing() -> Iterable[Job]:
    """How many events, and when: the validation split decides."""
    moments = {
        "one event at 10 %": (0.1,),
        "one event at 60 %": (0.6,),
        "ten events from 5 % to 50 %": tuple(round(0.05 * index, 2) for index in range(1, 11)),
        "three events at 30, 45 and 60 %": (0.3, 0.45, 0.6),
        "three events at 80, 87 and 94 %": (0.8, 0.87, 0.94),
    }
    for name, events in moments.items():
        for growth in (BEST, CONTROL):
            label = name if growth == BEST else f"{name}, random"
            for seed in range(3):
                yield Job(label, seed, partial(run, grown(label, growth, events), seed))


BUDGETS = (6_500, 7_500, 12_000, 16_000)
INTERVALS = (10, 20, 30, 50)  # of 300 epochs, from epoch 50 to 290, as in arXiv 2402.12418


def budgets() -> Iterable[Job]:
    """Final sizes other than 90 % of the large model: the validation split decides."""
    for growth in ("default", "zero gain, random"):
        for size in BUDGETS:
            arm = grown(f"{growth}, {size:,}", growth, EARLY)
            arm = replace(arm, growth=arm.growth | {"max_parameters": size})
            for seed in range(3):
                yield Job(arm.name, seed, partial(run, arm, seed))


def intervals() -> Iterable[Job]:
    """Events in the paper's intervals, scaled to this training: the validation split decides."""
    for interval in INTERVALS:
        events = tuple(epoch / 300 for epoch in range(50, 291, interval))
        arm = grown(f"every {interval} of 300 epochs", "default", events)
        for seed in range(3):
            yield Job(arm.name, seed, partial(run, arm, seed))


SIZES = (8, 16, 32)


def sizes() -> Iterable[Job]:
    """Three widths of the residual stream, each at the compute of 1,000 steps of its own large model."""
    for hidden in SIZES:
        small, large = shape(hidden // 4, hidden), shape(4 * hidden, hidden)
        model = make_model(0, large)
        compute = float(PASSES * BATCH * count_macs(model) * 1_000)
        limit = {"max_parameters": round(0.9 * count_parameters(model))}
        arms = [uniform("uniform, small", small), uniform("uniform, large", large)]
        for name in (BEST, CONTROL):
            arm = grown(name, name, EARLY)
            arms.append(replace(arm, shape=small, growth=arm.growth | limit))
        for arm in arms:
            for seed in range(3):
                sized = replace(arm, name=f"{hidden} wide: {arm.name}", budget=compute)
                yield Job(sized.name, seed, partial(run, sized, seed))


def digits_tuning() -> Iterable[Job]:
    """Learning rates for scikit-learn's digits, on the validation split and seeds that nothing else uses."""
    for arm in (UNIFORM[0], UNIFORM[-1], *(grown(name, name, EARLY) for name in (BEST, CONTROL))):
        for rate in DIGITS_RATES:
            tuned = replace(on_digits(arm), name=f"{arm.name}, {rate:g}", learning_rate=rate)
            for seed in range(TUNING_SEED, TUNING_SEED + 3):  # the split is small
                yield Job(tuned.name, seed, partial(run, tuned, seed))


def digits() -> Iterable[Job]:
    """The main arms on another task."""
    arms = (*UNIFORM, *(grown(name, name, EARLY) for name in (BEST, UNDIRECTED, CONTROL)))
    yield from _tested(map(on_digits, arms), seeds=range(10))


# How neurons are chosen, and how far they go at once.
CHOICES = {
    "ranked, at rest": {},
    "ranked, natural step": {"natural_step": 0.5},
    "pursuit, at rest": {"selection": "pursuit"},
    "pursuit, natural step": {"selection": "pursuit", "natural_step": 0.5},
}
CHOSEN = WHITENED | CHOICES["pursuit, natural step"]  # today's default


def chosen() -> list[Arm]:
    """Neurons ranked one by one, or chosen by what they add to others, and random ones in the same linears."""
    default = PROBE | WHITENED | {"max_parameters": TARGET}
    arms = [replace(UNIFORM[0], name=name, events=EARLY, growth=default | fields) for name, fields in CHOICES.items()]
    return [*arms, replace(arms[-1], name="pursuit, natural step, random in the same linears", way="matched")]


def gains() -> Iterable[Job]:
    """Choices and steps on digits."""
    yield from _tested(map(on_digits, chosen()), seeds=range(10, 18))


def choice() -> Iterable[Job]:
    """The same arms but one on Fashion-MNIST, with seeds that nothing was chosen by."""
    yield from _tested([arm for arm in chosen() if arm.name != "ranked, natural step"], seeds=range(50, 60))


ONE_EVENT = PROBE | WHITENED | {"max_growth": 1.1}
STEP = {"selection": "pursuit", "natural_step": 0.5}
# About as many parameters, in a trial with another seed.
SECONDS = {"budget_unit": "seconds", "max_growth": 1.35}
RANKINGS = (
    Branch("none"),
    *(Branch(name, ONE_EVENT | fields) for name, fields in CHOICES.items()),
    Branch("pursuit, natural step, two directions", ONE_EVENT | STEP, "several"),
    Branch("pursuit, natural step, per second", ONE_EVENT | STEP | SECONDS),
    Branch("significance alone, natural step", ONE_EVENT | {"natural_step": 0.5}, "significant"),
    Branch("pursuit, natural step, random in the same linears", ONE_EVENT | STEP, "matched"),
)


def rankings() -> Iterable[Job]:
    """What is left of one event at once, after 100 and after all remaining steps, by what chose the neurons."""
    for seed in range(60, 70):
        arguments = (SMALL, RANKINGS, seed, LEARNING_RATE, 600, 1_600, (0, 25, 100, 400, 1_000))
        yield Job("rankings", seed, partial(run_branches, *arguments))


# ------------------------------------------------------------------------------------------------- in equal seconds
SECONDS_BUDGET = 2 * STEPS  # in steps of the large model
SECONDS_RATES = (1.6e-2, 3.2e-2, 6.4e-2)
# Where the best was the lowest of these, a lower one was tried as well.
FURTHER = dict.fromkeys(("growth, per second", "growth, width", "gromo", "static, MLPs 72 and 24 wide"), (8e-3,))
# The default options but for the data's own batch of the probe; the last two may make a step 1.3 times as long.
DEFAULTS = {"probe_samples": 1_024, "probe_batch_size": 256}
PER_SECOND = DEFAULTS | {"budget_unit": "seconds", "max_growth": 1.3}
# Splits of MLPs. That they begin at rest was decided by a first trial; in `width_trials` a step at once ends lower, by
# less than seeds differ.
WIDTH: dict[str, Any] = {"criterion": "width"} | FILLED
# What CIFAR-100 showed, as it was there: the best uniform model begins with half of its blocks.
DOUBLED = "1 block, silent copy at 0.4"


def in_seconds() -> list[Arm]:
    """Uniform models of all widths, the best shape of a search, and ways to grow, that spend as many seconds."""
    small = default_in_seconds()
    timed = replace(small, name="growth, per second", growth=PER_SECOND)
    arms = [
        small,
        timed,
        replace(timed, name="growth, per second, once", events=(0.1,)),
        replace(timed, name="growth, per second, random in the same linears", way="matched"),
        replace(small, name="gromo", way="gromo"),
        widened := replace(small, name="growth, width", growth=small.growth | WIDTH),
        replace(widened, name="growth, width, random in the same linears", way="matched"),
        replace(widened, name="uneven halves", way="uneven"),
        replace(small, name=DOUBLED, shape=best_uniform().shape | {"num_hidden_layers": 1}, events=(0.4,), way="even"),
    ]
    return [*uniform_in_seconds(), best_static(), *arms]


def default_in_seconds() -> Arm:
    """Growth by the default options."""
    arm = replace(uniform("growth", SMALL), events=EARLY, growth=DEFAULTS | {"max_parameters": TARGET})
    return replace(arm, budget=SECONDS_BUDGET, unit="seconds")


def uniform_in_seconds() -> list[Arm]:
    """The uniform models among them."""
    arms = (uniform(f"uniform, MLPs {width} wide", shape(width)) for width in (4, 16, 48, 64))
    return [replace(arm, budget=SECONDS_BUDGET, unit="seconds") for arm in arms]


def width_trials() -> Iterable[Job]:
    """Ways to grow in width alone, on the validation split and one seed, at the rate that is best for most arms."""
    by_name = {arm.name: arm for arm in in_seconds()}
    trials = {
        "selection by pursuit, the default": {"criterion": "width"},
        "significant splits": WIDTH | {"significance": 2.0, "natural_step": 0.5},
        "all splits": WIDTH | {"natural_step": 0.5},
        "all splits, at rest": WIDTH,
        "all neurons by net2net": WIDTH | {"natural_step": 0.5, "operator": "net2net"},
    }
    for name, fields in trials.items():
        arm = replace(by_name["growth"], name=name, growth=by_name["growth"].growth | fields, learning_rate=0.032)
        yield Job(name, TUNING_SEED, partial(run, arm, TUNING_SEED))


def best_static() -> Arm:
    """The shape that the search ended with."""
    (pair,) = survivors("shapes", TARGET)
    return replace(uniform_in_seconds()[0], name=static_name(pair), shape=uneven(pair))


def shape_search(experiment: str) -> Iterable[Job]:
    """A round of the search."""
    return starmap(Job, search(experiment, uniform_in_seconds()[0], TARGET, TUNING_SEED))


def seconds_tuning() -> Iterable[Job]:
    """Learning rates of all of them, on the validation split and two seeds that nothing else uses."""
    for seed in (TUNING_SEED, TUNING_SEED + 1):
        for arm in in_seconds():
            for rate in (*SECONDS_RATES, *FURTHER.get(arm.name, ())):
                tuned = replace(arm, name=f"{arm.name}, {rate:g}", learning_rate=rate)
                yield Job(tuned.name, seed, partial(run, tuned, seed))


def seconds() -> Iterable[Job]:
    """Each arm at its own best rate, with seeds that nothing was chosen by."""
    yield from _tested([replace(arm, learning_rate=best_rate(arm)) for arm in in_seconds()], seeds=range(70, 80))


def best_rate(arm: Arm) -> float:
    """The rate of the lowest mean validation loss in `seconds_tuning`."""
    losses = _tuned_losses(arm)
    return min(losses, key=losses.__getitem__, default=arm.learning_rate)


def best_uniform() -> Arm:
    """The uniform model of the lowest mean validation loss in `seconds_tuning`, at its best rate."""
    return min(uniform_in_seconds(), key=lambda arm: min(_tuned_losses(arm).values(), default=0.0))


def _tuned_losses(arm: Arm) -> dict[float, float]:
    """Mean validation losses by rate."""
    losses: dict[float, list[float]] = {}
    for row in results("seconds_tuning"):
        if row["arm"] == f"{arm.name}, {row['learning_rate']:g}":
            losses.setdefault(row["learning_rate"], []).append(row["validation"]["loss"])
    return {rate: fmean(found) for rate, found in losses.items()}


def cared_for() -> list[Arm]:
    """Growth in equal seconds: how new parameters are trained, several plans, and how far; with the uniform model."""
    growing, plain = (replace(arm, learning_rate=best_rate(arm)) for arm in (default_in_seconds(), best_uniform()))
    start = count_parameters(make_model(0, SMALL))
    return [
        growing,
        replace(growing, name="growth, new parameters at 3 times the rate", newcomers=3.0),
        replace(growing, name="growth, new parameters at a third of the rate", newcomers=1 / 3),
        replace(growing, name="growth, rate rises again over 5 % of the seconds", rewarm=0.05),
        *(replace(growing, name=f"growth, plans tried for {n} steps", tried=n) for n in (50, 100)),
        *(
            replace(growing, name=f"growth, up to {n:g} times", growth=DEFAULTS | {"max_parameters": int(n * start)})
            for n in (1.1, 2, 4)
        ),
        replace(growing, name="growth, constant rate, then decay", decay="constant"),
        plain,
        replace(plain, name=f"{plain.name}, constant rate, then decay", decay="constant"),
    ]


def aftercare() -> Iterable[Job]:
    """Five seeds of each that nothing else uses, on the validation split."""
    return (Job(arm.name, seed, partial(run, arm, seed)) for seed in range(110, 115) for arm in cared_for())


STACKED = {"stacked after a tenth": 0.1, "stacked after a quarter": 0.25, "stacked after half": 0.5}


def others() -> list[Arm]:
    """Baselines that others propose: the large model stacked from one block, and uneven splits; and our default."""
    shallow, growth = LARGE | {"num_hidden_layers": 1}, PROBE | {"max_parameters": TARGET}
    stacked = [
        replace(UNIFORM[-1], name=name, shape=shallow, events=(share,), growth=PROBE, way="stacked")
        for name, share in STACKED.items()
    ]
    uneven = replace(UNIFORM[0], name="uneven splits", events=EARLY, growth=growth, way="uneven")
    default = replace(UNIFORM[0], name="pursuit, natural step", events=EARLY, growth=growth | CHOSEN)
    return [*stacked, uneven, default, *UNIFORM]


DEEP = SMALL | {"num_hidden_layers": 4}


def of_kinds() -> list[Arm]:
    """Neurons alone or with heads and blocks; two blocks at measured places or at even ones."""
    size, block = (count_parameters(make_model(0, shape)) for shape in (DEEP, DEEP | {"num_hidden_layers": 5}))
    fields = {name: PROBE[name] for name in ("probe_samples", "probe_batch_size", "significance")}
    neurons = fields | CHOSEN | {"max_parameters": TARGET}
    blocks = fields | {"operator": "block_copy", "max_parameters": size + 2 * (block - size)}
    deep = uniform("four blocks", DEEP)
    arms = [
        replace(UNIFORM[0], name="neurons", events=EARLY, growth=neurons),
        replace(UNIFORM[0], name="neurons, heads and blocks", events=EARLY, growth=neurons | {"operator": "any"}),
        replace(deep, name="blocks, measured", events=(0.25,), growth=blocks),
        replace(deep, name="blocks, even", events=(0.25,), growth=blocks, way="even"),
        deep,
    ]
    return [on_digits(arm) for arm in arms]


def kinds() -> Iterable[Job]:
    """Does it help to choose among kinds, or between places?"""
    yield from _tested(of_kinds(), seeds=range(30, 40))


def baselines() -> Iterable[Job]:
    """Stacking and uneven splits on digits."""
    yield from _tested(map(on_digits, others()), seeds=range(20, 30))


DIGITS_RATES = (2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2, 6.4e-2)
DIGITS_RATE = 3.2e-2  # the lowest validation loss of both uniform models


def on_digits(arm: Arm) -> Arm:
    """The same arm on digits, with half the compute and half the probe."""
    growth = arm.growth | {"probe_samples": 512} if arm.growth else {}
    return replace(arm, task="digits", budget=COMPUTE / 2, learning_rate=DIGITS_RATE, growth=growth)


EXPERIMENTS: dict[str, Callable[[], Iterable[Job]]] = {
    "tuning": tuning,
    "event": event,
    "headline": headline,
    "confirmation": confirmation,
    "matched": matched,
    "longer": longer,
    "steps": steps,
    "one_shot": one_shot,
    "neurons": neurons,
    "choices": choices,
    "timing": timing,
    "intervals": intervals,
    "budgets": budgets,
    "sizes": sizes,
    "digits_tuning": digits_tuning,
    "digits": digits,
    "gains": gains,
    "choice": choice,
    "rankings": rankings,
    "baselines": baselines,
    "kinds": kinds,
    **{name: partial(shape_search, name) for name in ROUNDS},
    "width_trials": width_trials,
    "seconds_tuning": seconds_tuning,
    "seconds": seconds,
    "aftercare": aftercare,
    "cifar_budgets": lambda: starmap(Job, cifar_budgets()),
    "cifar_trials": lambda: starmap(Job, cifar_trials()),
    "cifar_tuning": lambda: starmap(Job, cifar_tuning()),
    "cifar": lambda: starmap(Job, cifar()),
    "finetuning_tuning": lambda: starmap(Job, finetuning_tuning()),
    "finetuning": lambda: starmap(Job, finetuning()),
    "ranks_tuning": lambda: starmap(Job, ranks_tuning("digits")),
    "ranks": lambda: starmap(Job, ranks("digits")),
    "glosses_tuning": lambda: starmap(Job, ranks_tuning("glosses")),
    "glosses": lambda: starmap(Job, ranks("glosses")),
    "language_timing": lambda: starmap(Job, language_timing()),
    "language_tuning": lambda: starmap(Job, language_tuning()),
    "language_trials": lambda: starmap(Job, language_trials()),
    "language": lambda: starmap(Job, language()),
    "expansion_timing": lambda: starmap(Job, expansion_timing()),
    "expansion_tuning": lambda: starmap(Job, expansion_tuning()),
    "expansion": lambda: starmap(Job, expansion()),
}
