"""What growing costs a training: the idle callback, one event, a whole schedule, and two processes.

    OMP_NUM_THREADS=1 python benchmarks/training_overhead.py
    OMP_NUM_THREADS=1 python benchmarks/training_overhead.py --only processes

Everything is a ratio of times measured in one run, alternating. On one thread the time of the processor is taken for
steps and events, which other programs on the machine disturb less than the time of the clock. The model is the reduced
DeiT-S from which arXiv 2402.12418 starts, at batch 64 and 224 × 224 pixels; two processes train a smaller one.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import torch
import torch.distributed as dist
import transformers
from transformers import TrainerControl, TrainerState

from hf_saddle.growth import GrowthConfig
from hf_saddle.models import SaddleViTConfig, SaddleViTForImageClassification
from hf_saddle.training import GrowthCallback, growth_event_, rebuild_ddp_
from hf_saddle.training.distributed import fingerprint
from hf_saddle.training.events import carry_out, decision, measuring, whole


BATCH = 64
IMAGENET, EPOCHS, EVENTS = 1_281_167, 300, 9
PARTS = {
    "analysis": (measuring, "analyze_curvature"),
    "scores": (measuring, "score_growths"),
    "plan": (decision, "choose_growths"),
    "trial": (measuring, "measured_step"),
    "loss_before": (decision, "loss_before"),
    "surgery": (whole, "prepare_growth"),
    "loss_afterwards": (carry_out, "loss_afterwards"),
}


def reduced_deit_s() -> SaddleViTForImageClassification:
    torch.manual_seed(0)
    return SaddleViTForImageClassification(SaddleViTConfig.reduced_deit_small(num_labels=1000))


def random_batch(size: int, side: int, labels: int) -> dict[str, torch.Tensor]:
    return {"pixel_values": torch.randn(size, 3, side, side), "labels": torch.randint(0, labels, (size,))}


def training_step(model, optimizer, batch, clock=time.process_time) -> float:
    started = clock()
    model(**batch).loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return clock() - started


def idle(step_seconds: float) -> dict[str, float]:
    """Time of `on_step_end` when no event is due, for epochs and steps, relative to a step."""
    state, control = TrainerState(global_step=5, epoch=0.5, max_steps=1000), TrainerControl()
    seconds = 0.0
    for unit in ("steps", "epochs"):
        callback = GrowthCallback(GrowthConfig(at=[1000], unit=unit))
        rounds = []
        for _ in range(5):
            started = time.perf_counter()
            for _ in range(10_000):
                callback.on_step_end(SimpleNamespace(), state, control)
            rounds.append((time.perf_counter() - started) / 10_000)
        seconds = max(seconds, min(rounds))
    return {"idle_seconds": seconds, "idle_share_of_a_step": seconds / step_seconds}


@contextmanager
def timed_parts() -> Iterator[dict[str, float]]:
    """Seconds of the parts of an event."""
    seconds = dict.fromkeys(PARTS, 0.0)

    def timed(part: str, function):
        def call(*args, **kwargs):
            started = time.process_time()
            result = function(*args, **kwargs)
            seconds[part] += time.process_time() - started
            return result

        return call

    with ExitStack() as stack:
        for part, (module, name) in PARTS.items():
            stack.enter_context(patch.object(module, name, timed(part, getattr(module, name))))
        yield seconds


def one_event(repeats: int) -> dict:
    """Events of the default and of the paper's criterion on one batch, in training steps measured around them."""
    found = {}
    for name, config in {
        "default": GrowthConfig(probe_samples=BATCH, probe_batch_size=BATCH, significance=0.0),
        "paper": GrowthConfig.paper(),
    }.items():
        steps, events = [], []
        for _ in range(repeats):
            model = reduced_deit_s().train()
            optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
            batch = random_batch(BATCH, 224, 1000)
            training_step(model, optimizer, batch)  # the first is slower
            steps.append(training_step(model, optimizer, batch))
            started = time.process_time()
            fingerprint(model, optimizer)  # which several processes compare before and after
            seconds = {"two_fingerprints": 2 * (time.process_time() - started)}
            with timed_parts() as parts:
                started = time.process_time()
                done = growth_event_(model, optimizer, [batch], config)
                seconds |= {"all": time.process_time() - started} | parts
            events.append(seconds)
            steps.append(training_step(model, optimizer, batch))
            print(f"{name}: steps {steps[-2]:.2f}, {steps[-1]:.2f} s, event {seconds['all']:.2f} s", flush=True)
        step, best = min(steps[::2]), min(events, key=lambda event: event["all"])  # of the model before it grows
        found[name] = {
            "step_seconds": steps,
            "event_seconds": [event["all"] for event in events],
            "event_in_steps": best["all"] / step,
            "parts_in_steps": {part: best[part] / step for part in (*PARTS, "two_fingerprints")},
            "neurons": done.neurons,
            "parameters": done.parameters_after - done.parameters_before,
        }
    return found


def schedule(event_in_steps: float) -> dict[str, float]:
    """Nine events in 300 epochs of ImageNet at batch 1024, whose probe is one batch of 1024: parts, scaled."""
    steps = EPOCHS * IMAGENET / 1024
    return {"schedule_share": EVENTS * event_in_steps / steps, "steps_of_the_run": steps}


def worker(folder: str) -> None:
    """Throughput of this group of processes, with and without growth."""
    torch.set_num_threads(1)
    processes = int(os.environ.get("WORLD_SIZE", 1))
    torch.manual_seed(0)
    shape = {"hidden_size": 192, "num_hidden_layers": 6, "num_attention_heads": 3, "intermediate_size": 384}
    model = SaddleViTForImageClassification(SaddleViTConfig(**shape, image_size=64, patch_size=8, num_labels=100))
    wrapped = model
    if processes > 1:
        dist.init_process_group("gloo")
        wrapped = torch.nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(wrapped.parameters(), lr=1e-3)
    batch = random_batch(16, 64, 100)  # per process: the union batch grows with the processes
    found = {}
    config = GrowthConfig(probe_samples=16, probe_batch_size=16, significance=0.0, at=[0.5])
    for name, growing in {"without": False, "with": True}.items():
        if growing:
            # Every process alone, from the same batch: one and two processes then train the same model.
            done = growth_event_(model, optimizer, [batch], config)
            found["neurons"] = done.neurons
            if processes > 1:
                rebuild_ddp_(wrapped)
        training_step(wrapped, optimizer, batch)
        used = time.process_time()
        times = [training_step(wrapped, optimizer, batch, time.perf_counter) for _ in range(30)]
        used = (time.process_time() - used) / len(times)
        # The fastest step is the one that other programs disturbed least.
        found[name] = {"samples_per_second": processes * len(batch["labels"]) / min(times), "cpu_seconds": used}
    if int(os.environ.get("RANK", 0)) == 0:
        Path(folder, f"{processes}.json").write_text(json.dumps(found))
    if processes > 1:
        dist.destroy_process_group()


def two_processes(repeats: int) -> dict:
    """Samples per second of two processes relative to one, alternating."""
    rounds = []
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as folder:
            for processes in (1, 2):
                launcher = [] if processes == 1 else ["-m", "torch.distributed.run", "--nproc_per_node=2"]
                command = [sys.executable, *launcher, __file__, "--worker", folder]
                subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True)
            one, two = (json.loads(Path(folder, f"{n}.json").read_text()) for n in (1, 2))
        rounds.append({"one": one, "two": two, "load_average": os.getloadavg()[0]})
    found: dict = {"rounds": rounds}
    for name in ("without", "with"):
        best = {n: max(each[n][name]["samples_per_second"] for each in rounds) for n in ("one", "two")}
        used = {n: min(each[n][name]["cpu_seconds"] for each in rounds) for n in ("one", "two")}
        found[f"speedup_{name}_growth"] = best["two"] / best["one"]
        # What two processes would reach on two cores of their own, if none waited for the other.
        found[f"speedup_{name}_growth_by_cpu_time"] = 2 * used["one"] / used["two"]
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--worker")
    parser.add_argument("--only", choices=["event", "processes"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", default=str(Path(__file__).parent / "results" / "training_overhead.json"))
    options = parser.parse_args()
    transformers.logging.set_verbosity_error()
    if options.worker:
        worker(options.worker)
        return
    path = Path(options.output)
    report = json.loads(path.read_text()) if path.is_file() else {}
    report |= {"torch": str(torch.__version__), "threads": torch.get_num_threads(), "cores": os.cpu_count()}
    if options.only != "processes":
        report["event"] = one_event(options.repeats)
        worst = max(found["event_in_steps"] for found in report["event"].values())
        report |= idle(min(report["event"]["default"]["step_seconds"])) | schedule(worst)
        report["load_average"] = os.getloadavg()[0]
    if options.only != "event":
        report["processes"] = two_processes(options.repeats)
    path.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
