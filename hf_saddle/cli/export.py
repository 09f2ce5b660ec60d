"""`hf-saddle export`: a model as one file for deployment, whose outputs are compared with those of the model."""

import importlib.util
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor, nn
from transformers import PreTrainedModel

from .common import Revision, Source, load_model, quiet, sides


class _FirstOutput(nn.Module):
    """Pixels to logits, or to the last hidden state of a model without a head."""

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.model(pixel_values=pixel_values)[0]


class Format(StrEnum):
    """What is written."""

    torch = "torch"
    onnx = "onnx"


def export(
    source: Source,
    output: Annotated[Path, typer.Argument(help="The file to write, such as model.pt2 or model.onnx.")],
    format: Annotated[Format, typer.Option(help="'torch' for torch.export, 'onnx' for ONNX.")] = Format.torch,
    tolerance: Annotated[float, typer.Option(min=0.0, help="Largest difference of the logits allowed.")] = 1e-4,
    revision: Revision = None,
) -> None:
    """
    Write a classifier as one file, for batches of any size, and verify what the file computes.

    Example: `hf-saddle export outputs/demo model.onnx --format onnx`
    """
    quiet()
    if output.exists():
        raise ValueError(f"{output} exists; nothing is overwritten.")
    model = load_model(source, revision)

    torch.manual_seed(0)
    images = [torch.randn(number, model.config.num_channels, *sides(model)) for number in (2, 1, 3)]
    wrapped = _FirstOutput(model).eval()
    write = _write_torch if format is Format.torch else _write_onnx
    partial = output.with_name(f".partial-{output.name}")
    output.parent.mkdir(parents=True, exist_ok=True)
    try:
        with torch.no_grad():
            found = write(wrapped, images, partial)
            expected = [wrapped(image) for image in images]
        difference = max(float((a - b).abs().max()) for a, b in zip(found, expected, strict=True))
        if difference > tolerance:
            raise ValueError(f"The exported model differs by {difference:.2g}, more than {tolerance:.2g}.")
        partial.replace(output)
    finally:
        partial.unlink(missing_ok=True)
    typer.echo(f"wrote {output}; largest difference of the outputs on random images: {difference:.2g}")


def _write_torch(model: nn.Module, images: list[Tensor], path: Path) -> list[Tensor]:
    """Export, write, read again, and run what was read."""
    batch = {"pixel_values": {0: torch.export.Dim("batch", min=1, max=2**16)}}
    program = torch.export.export(model, (images[0],), dynamic_shapes=batch)
    with path.open("wb") as file:
        torch.export.save(program, file)
    with path.open("rb") as file:
        read = torch.export.load(file).module()
    return [read(image) for image in images]


def _write_onnx(model: nn.Module, images: list[Tensor], path: Path) -> list[Tensor]:
    """Export, write, read again, and run what was read."""
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(f"Export to ONNX needs `pip install {' '.join(missing)}`.")
    import onnxruntime

    batch = {"pixel_values": {0: torch.export.Dim("batch", min=1, max=2**16)}}
    program = torch.onnx.export(
        model,
        (images[0],),
        input_names=["pixel_values"],
        output_names=["logits"],
        dynamic_shapes=batch,
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    program.save(path, include_initializers=True, external_data=False)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return [torch.from_numpy(session.run(None, {"pixel_values": image.numpy()})[0]) for image in images]
