"""Kill a growing training at random moments, resume it, and see whether anything was lost or counted twice.

    python benchmarks/training_faults.py --trials 36

Trials aim at the probe, the surgery, the writing of a checkpoint, its upload (to a stand-in for the Hub), the removal
of an old one, and at any moment; the exact moment is random. After every kill all checkpoints that pass for whole are
compared with those of a run that nobody killed, bit for bit; every training that comes to its end too.
"""

import argparse
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path


ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "training")]
SERVER = """
import sys, time
sys.path.insert(0, sys.argv[1])
from hub_server import HubServer
with HubServer() as hub:
    print(hub.endpoint, flush=True)
    time.sleep(3600)
"""
PHASES = ("any", "probe", "surgery", "save", "upload", "removal")
STEPS = (3, 6, 9)


def train_until_done(folder: str, board) -> None:
    """The job: resume from the last whole checkpoint if there is one. `board` tells the killer where it is."""
    from training_cases import growth, trainer_for

    from hf_saddle.training import GrowthTrainer
    from hf_saddle.training import trainer as trainer_module
    from hf_saddle.training.events import measuring, whole
    from hf_saddle.training.resuming import checkpoints

    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(os.open(f"{folder}/../log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)

    def announce(owner, name: str, phase: str) -> None:
        original = getattr(owner, name)

        def announced(*args, **kwargs):
            board[PHASES.index(phase)] += 1
            return original(*args, **kwargs)

        setattr(owner, name, announced)

    announce(measuring, "analyze_curvature", "probe")
    announce(whole, "prepare_growth", "surgery")
    announce(GrowthTrainer, "save_model", "save")
    announce(GrowthTrainer, "_push_from_checkpoint", "upload")
    announce(trainer_module, "rotate_checkpoints", "removal")
    board[0] = 1
    hub = {"push_to_hub": True, "hub_strategy": "every_save", "hub_model_id": "user/killed", "hub_token": "hf_write"}
    saving = {"save_strategy": "steps", "save_steps": 1, "save_total_limit": 3}
    trainer = trainer_for(folder, growth(), **saving, **hub)
    trainer.train(resume_from_checkpoint=checkpoints.last_whole_checkpoint(folder))
    from transformers.trainer_utils import get_last_checkpoint

    Path(folder, "done.json").write_text(
        json.dumps({"losses": trainer.state.log_history, "at": get_last_checkpoint(folder)})
    )


def losses_of(history: list[dict]) -> list[float]:
    return [entry["loss"] for entry in history if "loss" in entry]


def same_checkpoint(folder: Path, reference: Path) -> bool:
    """Weights, optimizer, random state, history and state, bit for bit."""
    import torch
    from safetensors.torch import load_file

    ours, theirs = (load_file(path / "model.safetensors") for path in (folder, reference))
    same = ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    ours, theirs = (torch.load(path / "optimizer.pt", weights_only=True) for path in (folder, reference))
    same &= ours["param_groups"] == theirs["param_groups"] and all(
        torch.equal(torch.as_tensor(value), torch.as_tensor(theirs["state"][index][name]))
        for index, state in ours["state"].items()
        for name, value in state.items()
    )
    states = [json.loads((path / "trainer_state.json").read_text()) for path in (folder, reference)]
    done = [state["stateful_callbacks"]["GrowthCallback"]["attributes"]["events_done"] for state in states]
    step = states[0]["global_step"]
    same &= done[0] == done[1] == sum(event <= step for event in STEPS)
    history = folder / "growth_history.json"
    steps = [event["step"] for event in json.loads(history.read_text())["events"]] if history.is_file() else []
    same &= steps == [event for event in STEPS if event <= step]
    return bool(same and losses_of(states[0]["log_history"]) == losses_of(states[1]["log_history"]))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--trials", type=int, default=36)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", default=str(ROOT / "benchmarks" / "results" / "training_faults.json"))
    options = parser.parse_args()
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER, str(ROOT / "tests" / "hub")], stdout=subprocess.PIPE, text=True
    )
    work = Path(tempfile.mkdtemp())
    os.environ |= {
        "HF_ENDPOINT": server.stdout.readline().strip(),
        "HF_HOME": str(work / "home"),
        "HF_TOKEN": "hf_write",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }
    try:
        report = run_trials(options.trials, options.seed, work)
    finally:
        server.terminate()
        shutil.rmtree(work, ignore_errors=True)
    Path(options.output).write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))
    if report["wrong_checkpoints"] or report["wrong_runs"] or report["failed_resumes"]:
        raise SystemExit("Something was lost.")


def run_trials(trials: int, seed: int, work: Path) -> dict:
    import torch
    import transformers
    from training_cases import growth, train

    from hf_saddle.training.resuming.checkpoints import last_whole_checkpoint, missing_parts

    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    draw = random.Random(seed)
    reference = train(work / "reference", growth(), save_strategy="steps", save_steps=1)
    expected = losses_of(reference.state.log_history)
    fork = multiprocessing.get_context("fork")
    folder = work / "job"
    folder.mkdir()
    killed = dict.fromkeys(PHASES, 0)
    report = {"trials": 0, "partial_checkpoints": 0, "whole_checkpoints": 0, "wrong_checkpoints": 0}
    report |= {"runs_finished": 0, "wrong_runs": 0, "failed_resumes": 0, "resumed_at_step": []}
    while report["trials"] < trials:
        board = fork.RawArray("i", len(PHASES))
        aim = draw.choice(PHASES)
        occurrence = 1 if aim in ("probe", "surgery") else draw.randint(1, 3)
        delay = draw.uniform(0, 3.0) if aim == "any" else draw.uniform(0, 0.15)
        job = fork.Process(target=train_until_done, args=(str(folder), board))
        job.start()
        while job.is_alive() and board[PHASES.index(aim)] < (1 if aim == "any" else occurrence):
            time.sleep(0.0005)
        time.sleep(delay)
        if job.is_alive():
            os.kill(job.pid, signal.SIGKILL)
            job.join()
            killed[aim] += 1
            report["trials"] += 1
            for path in folder.glob("checkpoint-*"):
                if missing_parts(path):
                    report["partial_checkpoints"] += 1
                    continue
                report["whole_checkpoints"] += 1
                report["wrong_checkpoints"] += not same_checkpoint(path, work / "reference" / path.name)
            last = last_whole_checkpoint(folder)
            report["resumed_at_step"].append(0 if last is None else int(last.rsplit("-", 1)[1]))
            continue
        job.join()
        if job.exitcode != 0 or not (folder / "done.json").is_file():
            report["failed_resumes"] += 1
            print((work / "log.txt").read_text()[-2000:], file=sys.stderr)
        else:
            found = json.loads((folder / "done.json").read_text())
            report["runs_finished"] += 1
            right = losses_of(found["losses"]) == expected
            right &= same_checkpoint(Path(found["at"]), work / "reference" / "checkpoint-12")
            report["wrong_runs"] += not right
            if not right:
                print(found, file=sys.stderr)
        shutil.rmtree(folder)
        folder.mkdir()
    return report | {"killed_in": killed, "python": sys.version.split()[0], "torch": torch.__version__}


if __name__ == "__main__":
    main()
