"""`hf-saddle export`: a model as one file for deployment, whose outputs are compared with those of the model."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from hf_saddle.models import GrowablePreTrainedModel

from .commands import Format
from .common import load_model, quiet, random_inputs


Inputs = dict[str, Tensor]


class Exported(NamedTuple):
    """
    What a file takes and gives.

    Attributes:
        inputs (`tuple[str, ...]`): Names of its inputs, in order.
        outputs (`tuple[str, ...]`): Names of its outputs, in order.
        difference (`float`): The largest difference between them and those of the model, for random inputs.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    difference: float


class _Answer(nn.Module):
    """What a model answers, as tensors: all its logits, or the states, images or feature maps of one without."""

    def __init__(self, model: GrowablePreTrainedModel, names: Sequence[str]):
        super().__init__()
        self.model, self.names = model, tuple(names)
        # A cache is no tensor. Models without one do not know the word.
        self.options = {"use_cache": False} if "use_cache" in model.config.to_dict() else {}

    def forward(self, *tensors: Tensor) -> Tensor | tuple[Tensor, ...]:
        found = list(self._answers(tensors).values())
        return found[0] if len(found) == 1 else tuple(found)

    def _answers(self, tensors: Sequence[Tensor]) -> dict[str, Tensor]:
        found = self.model(**dict(zip(self.names, tensors, strict=True)), **self.options, return_dict=True)
        logits = {name: value for name, value in found.items() if name.endswith("logits")}
        if logits:
            return logits
        name, first = next(iter(found.items()))
        return {name: first} if isinstance(first, Tensor) else {f"{name}_{i}": one for i, one in enumerate(first)}

    def output_names(self, sample: Inputs) -> tuple[str, ...]:
        return tuple(self._answers(list(sample.values())))


def export_model(source: str, output: Path, format: Format, tolerance: float, revision: str | None) -> Exported:
    """
    Write a model as one file, in single precision, and read it again.

    Raises:
        ValueError: If the file exists, or computes something else.
        ImportError: If a package for the format is missing.
    """
    quiet()
    if output.exists():
        raise ValueError(f"{output} exists; nothing is overwritten.")
    model = load_model(source, revision).float()
    torch.manual_seed(0)
    samples = [_sample(model, number, cut) for number, cut in ((2, 0), (1, 1), (3, 3))]
    answer = _Answer(model, tuple(samples[0])).eval()
    write = _write_torch if format is Format.torch else _write_onnx
    partial = output.with_name(f".partial-{output.name}")
    output.parent.mkdir(parents=True, exist_ok=True)
    try:
        with torch.no_grad():
            names = answer.output_names(samples[0])
            found = write(answer, samples, names, partial)
            expected = [_listed(answer(*sample.values())) for sample in samples]
        pairs = (pair for one, other in zip(found, expected, strict=True) for pair in zip(one, other, strict=True))
        # Of which `max` of Python would pass over one that is no number.
        difference = float(torch.stack([(one - other).abs().max() for one, other in pairs]).max())
        if not difference <= tolerance:
            raise ValueError(f"The exported model differs by {difference:.2g}, more than {tolerance:.2g}.")
        partial.replace(output)
    finally:
        partial.unlink(missing_ok=True)
    return Exported(tuple(samples[0]), names, difference)


def _sample(model: GrowablePreTrainedModel, number: int, cut: int) -> Inputs:
    """Random inputs, texts with a mask and without their first tokens, so that all lengths differ."""
    found: Inputs = {}
    for name, tensor in random_inputs(model, number).items():
        if not tensor.is_floating_point() and tensor.dim() == 3:
            tensor = tensor.repeat(1, 2 + cut, 1)  # texts to choose among; torch takes a size of 1 for a constant
        # Tensors of their own: an export of views would only take views.
        found[name] = tensor if tensor.is_floating_point() else tensor[..., cut + (name != "input_ids") :].clone()
        if name == "input_ids":
            found["attention_mask"] = torch.ones_like(found[name])
            # Not the first: what a token answers that may look at none is left to the runtime.
            found["attention_mask"][-1, ..., 1:2] = 0
    return found


def _dimensions(sample: Inputs) -> dict[str, Any]:
    """Which sizes may be others: that of the batch, numbers and lengths of texts as far as the model takes them."""
    batch, others = torch.export.Dim("batch", min=1, max=2**16), torch.export.Dim.AUTO
    sizes = [
        {0: batch} | dict.fromkeys(range(1, 1 if tensor.is_floating_point() else tensor.dim()), others)
        for tensor in sample.values()
    ]
    return {"tensors": tuple(sizes)}


def _listed(answer: Tensor | Sequence[Tensor]) -> list[Tensor]:
    return [answer] if isinstance(answer, Tensor) else list(answer)


def _write_torch(answer: nn.Module, samples: list[Inputs], names: Sequence[str], path: Path) -> list[list[Tensor]]:
    """Export, write, read again, and run what was read."""
    program = torch.export.export(answer, tuple(samples[0].values()), dynamic_shapes=_dimensions(samples[0]))
    with path.open("wb") as file:
        torch.export.save(program, file)
    with path.open("rb") as file:
        read = torch.export.load(file).module()
    return [_listed(read(*sample.values())) for sample in samples]


def _write_onnx(answer: nn.Module, samples: list[Inputs], names: Sequence[str], path: Path) -> list[list[Tensor]]:
    """Export, write, read again, and run what was read."""
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(f"Export to ONNX needs `pip install {' '.join(missing)}`.")
    import onnxruntime

    program = torch.onnx.export(
        answer,
        tuple(samples[0].values()),
        input_names=list(samples[0]),
        output_names=list(names),
        dynamic_shapes=_dimensions(samples[0]),
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    program.save(path, include_initializers=True, external_data=False)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    given = ({name: tensor.numpy() for name, tensor in sample.items()} for sample in samples)
    return [[torch.from_numpy(array) for array in session.run(None, sample)] for sample in given]
