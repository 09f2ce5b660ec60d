"""What an exporter writes of a growable linear computes what the linear does, whichever neurons have units."""

from collections.abc import Callable, Iterable
from itertools import product
from pathlib import Path

import onnxruntime
import pytest
import torch
from model_cases import UNITS, branched, build, output, randomize_
from torch import Tensor, nn

from hf_saddle.models import GrowableLinear, SkipBranch


NEURONS, INPUTS = 8, 5
# The neurons that the units of a branch feed; an optimizer of graphs must not take the addition for an assignment.
TARGETS = {
    "every neuron, in order": [0, 1, 2, 3, 4, 5, 6, 7],
    "every neuron, permuted": [3, 0, 7, 5, 1, 6, 2, 4],
    "every neuron, some twice": [0, 1, 2, 3, 4, 5, 6, 7, 2, 7],
    "some neurons": [6, 0, 3],
    "some neurons, one twice": [6, 0, 6],
    "one neuron": [7],
}
Run = Callable[[Tensor], Tensor]


class Linears(nn.Module):
    """For each of `TARGETS` a linear with a branch, and one whose branch has another on every unit; `(case, …, n)`."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.linears = nn.ModuleList()
        for target, nested in product(TARGETS.values(), (False, True)):
            sizes, unit = [len(target)] * (1 + nested), UNITS[len(self.linears) % len(UNITS)]
            self.linears.append(branched(GrowableLinear(INPUTS, NEURONS), sizes, unit))
        randomize_(self, scale=0.7)
        for linear, (target, _) in zip(self.linears, product(TARGETS.values(), (False, True)), strict=True):
            aim_(linear.skip, target)
            if linear.skip.linear.skip is not None:
                aim_(linear.skip.linear.skip, range(len(target)))

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([linear(x) for linear in self.linears])


class Logits(nn.Module):
    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> Tensor:
        return self.model(pixels, return_dict=False)[0]


def aim_(branch: SkipBranch, target: Iterable[int]) -> None:
    branch.target.copy_(torch.tensor(list(target)))
    branch.check_targets_("target")


def exported(model: nn.Module, x: Tensor, strict: bool = False) -> torch.export.ExportedProgram:
    return torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},), strict=strict)


def by_torch_export(model: nn.Module, x: Tensor, folder: Path) -> Run:
    return exported(model, x).module()


def by_strict_torch_export(model: nn.Module, x: Tensor, folder: Path) -> Run:
    return exported(model, x, strict=True).module()


def by_onnx(model: nn.Module, x: Tensor, folder: Path) -> Run:
    dynamic = ({0: torch.export.Dim("batch")},)
    torch.onnx.export(model, (x,), folder / "model.onnx", dynamo=True, dynamic_shapes=dynamic, verbose=False)
    return session(folder / "model.onnx")


def by_onnx_of_an_exported_program(model: nn.Module, x: Tensor, folder: Path) -> Run:
    torch.onnx.export(exported(model, x), (x,), folder / "model.onnx", dynamo=True, verbose=False)
    return session(folder / "model.onnx")


def by_the_older_onnx_exporter(model: nn.Module, x: Tensor, folder: Path) -> Run:
    names = {"input_names": ["x"], "dynamic_axes": {"x": {0: "batch"}}}
    torch.onnx.export(model, (x,), str(folder / "model.onnx"), dynamo=False, **names)
    return session(folder / "model.onnx")


def session(path: Path) -> Run:
    """The function that onnxruntime computes."""
    loaded = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    name = loaded.get_inputs()[0].name
    return lambda x: torch.from_numpy(loaded.run(None, {name: x.numpy()})[0])


every_exporter = pytest.mark.parametrize(
    "export",
    [by_torch_export, by_strict_torch_export, by_onnx, by_onnx_of_an_exported_program, by_the_older_onnx_exporter],
    ids=lambda export: export.__name__,
)


@every_exporter
def test_no_exporter_loses_a_response(export, tmp_path):
    model = Linears().eval()
    run = export(model, torch.randn(3, 4, INPUTS), tmp_path)
    x = torch.randn(6, 4, INPUTS)
    with torch.no_grad():
        found, expected = run(x), model(x)
        without = torch.stack([linear.project(x) for linear in model.linears])
    cases = [f"{name}{nested}" for name in TARGETS for nested in ("", ", nested")]
    differences = dict(zip(cases, ((found - expected).abs() / (1 + expected.abs())).amax((1, 2, 3)), strict=True))
    assert {case: float(value) for case, value in differences.items() if value > 1e-5} == {}
    assert (expected - without).abs().amax((1, 2, 3)).min() > 0.1


@pytest.mark.parametrize("export", [by_onnx, by_the_older_onnx_exporter], ids=lambda export: export.__name__)
def test_a_model_with_a_unit_on_every_neuron(export, tmp_path):
    sizes = {"mlp.fc1": [37, 37], "attention.q_proj": [32], "mlp.fc2": [32]}
    model = build(grown={1: {"skip_sizes": sizes}})
    for branch in model.modules():
        if isinstance(branch, SkipBranch):
            aim_(branch, range(branch.neurons))
    run, pixels = export(Logits(model), torch.randn(2, 3, 30, 30), tmp_path), torch.randn(3, 3, 30, 30)
    torch.testing.assert_close(run(pixels), output(model, pixels), rtol=1e-5, atol=1e-5)
