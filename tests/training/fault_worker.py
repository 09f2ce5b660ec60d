"""What `test_faults.py` runs: rank 1 fails, hangs or is killed in the middle of an event."""

import os
import signal
import sys
import time
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from training_cases import Images, growth, tiny

from hf_saddle.training import growth_event_, probe_batches


def main() -> None:
    fault, folder = sys.argv[1:]
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=timedelta(seconds=8))
    rank = dist.get_rank()
    wrapper = DistributedDataParallel(tiny())
    optimizer = torch.optim.AdamW(wrapper.parameters(), lr=1e-2)

    def loss(model, batch):
        if rank == 1 and fault == "raises":
            raise OSError("the disk of rank 1 is gone")
        if rank == 1 and fault == "hangs":
            time.sleep(600)
        if rank == 1 and fault == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        return model(**batch).loss

    probe = probe_batches(Images(), growth(), rank=rank, world_size=2)
    growth_event_(wrapper, optimizer, probe, growth(), loss=loss)
    open(f"{folder}/trained_on_{rank}", "w").close()


if __name__ == "__main__":
    main()
