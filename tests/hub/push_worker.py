"""One of the processes of `test_two_processes.py`: trains and pushes after every save."""

import sys

import hub_client
import torch.distributed as dist


if __name__ == "__main__":
    result = hub_client.train_and_push(sys.argv[1], sys.argv[2], "every_save")
    assert not result["message"], result["message"]
    dist.destroy_process_group()
