"""What the tests of FSDP2 share: double precision, in which sums hardly depend on their order, and whole tensors."""

import json
import sys
import traceback
from pathlib import Path

import torch
import torch.distributed as dist
import transformers
from torch.distributed.tensor import DTensor
from torch.utils.data import Dataset, default_collate
from training_cases import across, growth
from transformers import LlamaConfig, LlamaForCausalLM

from hf_saddle import growable


def doubles(samples):
    batch = default_collate(samples)
    return batch | {"pixel_values": batch["pixel_values"].double()}


# Units and splits that move at once, tried on the half of the probe that judges; in steps 3 and 6.
MOVING = {"layers": None, "natural_step": 0.5, "significance": 0.0, "at": [3, 6]}
# By this seed of the probe both events gain clearly.
CONFIG = growth(**MOVING, growth_seed=3, linears=["attention.v_proj", "mlp.fc1", "mlp.fc2"])
# As by default, of all linears, chosen by what they add to those already chosen.
PURSUIT = growth(**MOVING, selection="pursuit")
# Neurons, heads and blocks compete.
KINDS = across(at=[3, 6], event_budget=20_000, natural_step=0.5)
# New blocks only are trained.
FREEZING = growth(operator="block_copy", layers=None, at=[3, 6], max_growth=4.0, event_budget=12_000, freeze=True)
OWN_FIELDS = {"data_collator": doubles}


def whole(model, optimizer):
    """Weights and the optimizer's states by name, on every process."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    states = {
        f"{names[parameter]}.{key}": full(value)
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
        if isinstance(value, torch.Tensor)
    }
    return {name: full(tensor) for name, tensor in model.state_dict().items()}, states


def full(tensor):
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def write_what_is_found_by(run, **options):
    """
    What a worker does: `run` takes the folder and the name of a check, both of the command line, and what it returns
    is written, by check and process. The options are those of the process group.
    """
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    dist.init_process_group("gloo", **options)
    folder, *checks = Path(sys.argv[1]), *sys.argv[2:]
    for check in checks:
        try:
            found = run(folder, check)
        except Exception:
            found = {"failed": traceback.format_exc()}
        (folder / f"{check}_{dist.get_rank()}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


def furthest(tensors, others) -> float:
    assert tensors.keys() == others.keys()
    return max(((tensor - others[name]).abs().max().item() for name, tensor in tensors.items()), default=0.0)


class Sentences(Dataset):
    """Tokens that repeat those before them."""

    def __init__(self):
        halves = torch.randint(0, 32, (64, 6), generator=torch.Generator().manual_seed(0))
        self.rows = torch.cat([halves, halves], dim=1)

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return {"input_ids": self.rows[index], "labels": self.rows[index]}


def llama_model():
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    return growable(LlamaForCausalLM(LlamaConfig(vocab_size=32, tie_word_embeddings=True, **sizes)).double())
