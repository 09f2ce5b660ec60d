"""Runs what the table of experiments lists and the result files lack; can be stopped and started again at any time.

    python -m benchmarks.study.run                          # everything that is missing, on all cores
    python -m benchmarks.study.run headline --processes 1   # one experiment
    python -m benchmarks.study.run --list                   # what is done and what is missing

Every finished run is one line of benchmarks/study/results/<experiment>.jsonl.
"""

import argparse
import math
import multiprocessing
import os
import time
from collections.abc import Iterator
from typing import Any

from .experiments import EXPERIMENTS, Job
from .files import results, store


def missing(experiment: str) -> Iterator[Job]:
    """What the result file lacks, first the first seeds of all arms."""
    done = {(row["arm"], row["seed"]) for row in results(experiment)}
    jobs = [job for job in EXPERIMENTS[experiment]() if (job.name, job.seed) not in done]
    yield from sorted(jobs, key=lambda job: job.seed)


def execute(job: Job) -> dict[str, Any]:
    """One run, in a process of its own."""
    return job.run() | {"arm": job.name, "seed": job.seed}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiments", nargs="*", help=f"of {', '.join(EXPERIMENTS)}; all if none is named")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--seeds", type=int, default=None, help="leave out seeds from this number on")
    parser.add_argument("--list", action="store_true")
    options = parser.parse_args()
    unknown = set(options.experiments) - set(EXPERIMENTS)
    if unknown:
        parser.error(f"unknown experiments {', '.join(sorted(unknown))}; there are {', '.join(EXPERIMENTS)}")
    chosen = options.experiments or list(EXPERIMENTS)
    if options.list:
        for name in chosen:
            print(f"{name}: {len(results(name))} done, {len(list(missing(name)))} missing")
        return
    os.environ["OMP_NUM_THREADS"] = "1"  # one run per core; read by torch in the processes that are started below
    started = time.time()
    with multiprocessing.get_context("spawn").Pool(options.processes, maxtasksperchild=20) as pool:
        for name in chosen:  # in turn, as an experiment may start from what an earlier one found
            tasks = [job for job in missing(name) if job.seed < (options.seeds or math.inf)]
            for count, row in enumerate(pool.imap_unordered(execute, tasks), start=1):
                store(name, row)
                minutes = (time.time() - started) / 60
                done = f"{count}/{len(tasks)} of {name}"
                print(f"{done} after {minutes:.1f} min: {row['arm']} seed {row['seed']}", flush=True)


if __name__ == "__main__":
    main()
