"""`hf-saddle export`: a model as one file for deployment, whose outputs are compared with those of the model."""

import importlib.util
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from .commands import Format
from .common import load_model, quiet, random_inputs


class _FirstOutput(nn.Module):
    """Pixels to logits, or to the last hidden state of a model without a head."""

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> Tensor:
        output: Tensor = self.model(pixel_values=pixel_values)[0]
        return output


def export_model(source: str, output: Path, format: Format, tolerance: float, revision: str | None) -> float:
    """
    Write a model as one file.

    Returns:
        `float`: The largest difference between the outputs of the file and of the model for random images.

    Raises:
        ValueError: If the file exists, or computes something else.
        ImportError: If a package for the format is missing.
    """
    quiet()
    if output.exists():
        raise ValueError(f"{output} exists; nothing is overwritten.")
    model = load_model(source, revision)
    if model.main_input_name != "pixel_values":
        raise ValueError(
            f"`hf-saddle export` writes models of images, and {source} is a {type(model).__name__}. `torch.export` "
            "and `torch.onnx.export` take it with example inputs of your own; one that grew in width only becomes a "
            "stock model for other tools by `hf-saddle convert --to stock`."
        )

    torch.manual_seed(0)
    images = [random_inputs(model, number)["pixel_values"] for number in (2, 1, 3)]
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
    return difference


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
