"""Small float64 networks, their probe batches, and the captured curvature operators."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hf_saddle.curvature import CurvatureOperator, SolverOptions
from hf_saddle.curvature.capture.capture import capture
from hf_saddle.curvature.capture.described import describe
from hf_saddle.curvature.loss import Loss
from hf_saddle.curvature.ranks import Ranks
from hf_saddle.curvature.settings import Settings


# Every neuron on all tokens, until converged: the dense answer without forming a matrix.
EXACT = SolverOptions(
    screen_tokens=1, shortlist=1, screen_steps=60, refine_steps=1, leaders=1, polish_steps=60, tolerance=0
)


class SelfAttention(nn.Module):
    """Single-head attention whose projections read one shared tensor."""

    def __init__(self, width: int):
        super().__init__()
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, width)
        self.value, self.output = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        weights = torch.softmax(self.query(x) @ self.key(x).transpose(1, 2) / x.shape[-1] ** 0.5, dim=-1)
        return self.output(weights @ self.value(x))


class MLP(nn.Module):
    """Two linear layers around an activation."""

    def __init__(self, width: int, hidden: int, activation: nn.Module):
        super().__init__()
        self.fc1, self.activation, self.fc2 = nn.Linear(width, hidden), activation, nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.activation(self.fc1(x)))


class TinyTransformer(nn.Module):
    """One pre-norm block and a classifier on the mean token."""

    def __init__(self, width: int = 6, hidden: int = 7, classes: int = 3, activation: nn.Module | None = None):
        super().__init__()
        self.attention, self.mlp = SelfAttention(width), MLP(width, hidden, activation or nn.GELU())
        self.norm, self.dropout = nn.LayerNorm(width), nn.Dropout(0.5)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.dropout(self.attention(self.norm(x)))
        x = x + self.dropout(self.mlp(x))
        return self.head(x.mean(dim=1))


def cross_entropy(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """The mean loss of a batch."""
    return nn.functional.cross_entropy(model(batch["x"]), batch["y"])


@dataclass
class Case:
    """A model and a probe batch."""

    model: nn.Module
    batch: dict[str, Tensor]

    def loss(self) -> Tensor:
        """The mean loss in eval mode."""
        return cross_entropy(self.model.eval(), self.batch)


def transformer_case(seed: int = 0, samples: int = 8, tokens: int = 5, **kwargs) -> Case:
    """A `TinyTransformer` with large weights, so that curvatures are well above rounding."""
    torch.manual_seed(seed)
    model = TinyTransformer(**kwargs).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.7)
    width = model.norm.normalized_shape[0]
    batch = {"x": torch.randn(samples, tokens, width).double(), "y": torch.randint(3, (samples,))}
    return Case(model, batch)


def captured(case: Case, linear: str, kind: str) -> CurvatureOperator:
    """The operator of what is captured of one layer; `kind` is `"width"` or `"depth"`."""
    return captured_by(case.model.eval(), case.batch, cross_entropy, linear, kind)


def captured_by(model: nn.Module, batch: dict[str, Tensor], loss: Loss, linear: str, kind: str) -> CurvatureOperator:
    """The operator of what is captured of one layer of any model."""
    linears, settings = {linear: model.get_submodule(linear)}, Settings(criteria=(kind,), max_tokens=10**9)
    found = capture(model, linears, [batch], loss, settings=settings, ranks=Ranks(), described=describe(model))
    layers = list(found)
    assert layers, found.skipped
    tokens = layers[0].tokens()
    return CurvatureOperator([tokens.segment(torch.arange(len(tokens)))], 1 / found.samples.total, Ranks())
