"""Tiny models, data and plans for the tests of growth."""

import torch

from hf_saddle.curvature import CurvatureReport, LayerCurvature
from hf_saddle.growth import GrowthPlan, LayerGrowth
from hf_saddle.models import (
    SaddleDeiTConfig,
    SaddleDeiTForImageClassification,
    SaddleViTConfig,
    SaddleViTForImageClassification,
)


MODELS = {
    "deit": (SaddleDeiTConfig, SaddleDeiTForImageClassification),
    "vit": (SaddleViTConfig, SaddleViTForImageClassification),
}
LINEAR_NAMES = ("attention.q_proj", "attention.k_proj", "attention.v_proj", "attention.o_proj", "mlp.fc1", "mlp.fc2")
TINY = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "image_size": 8,
    "patch_size": 4,
    "num_labels": 4,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
FC1 = "{}.layers.0.mlp.fc1"


def tiny_model(kind="vit", seed=0, **fields):
    """A model whose weights are large enough to be far from linear."""
    config_class, model_class = MODELS[kind]
    torch.manual_seed(seed)
    model = model_class(config_class(**TINY | fields))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2:
                parameter.copy_(torch.randn_like(parameter) * parameter.shape[1] ** -0.5)
            elif "norm" not in name:
                parameter.copy_(torch.randn_like(parameter) * 0.1)
    return model


def batch(size=6, seed=1, dtype=torch.float32):
    """Random images and labels."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randn(size, 3, 8, 8, generator=generator).to(dtype)
    return {"pixel_values": pixels, "labels": torch.randint(4, (size,), generator=generator)}


@torch.no_grad()
def logits(model, seed=1):
    return model(pixel_values=batch(seed=seed, dtype=model.dtype)["pixel_values"]).logits


@torch.no_grad()
def wake_(model, seed=5):
    """Move the branch units away from where they answer nothing."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if ".skip." in name:
            parameter.add_(torch.randn(parameter.shape, generator=generator).to(parameter) * 0.3)


def path_of(model, linear, layer=0, depth=0):
    """Path of a linear of an encoder layer, or of a branch of it."""
    prefix = model.base_model_prefix
    return f"{prefix}.layers.{layer}.{linear}" + ".skip.linear" * depth


def plan_for(model, operator, neurons, linears=("mlp.fc1",), depth=0, **kwargs):
    paths = [path_of(model, name, depth=depth) for name in linears]
    return GrowthPlan(tuple(LayerGrowth.by_hand(model, path, operator, neurons, **kwargs) for path in paths))


def train(model, optimizer, steps, seed=10, scheduler=None):
    """Full steps on changing batches; gradients are gone afterwards."""
    losses = []
    for step in range(steps):
        loss = model(**batch(seed=seed + step)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def entry_for(model, path, criterion="depth", gain=None, significant=None, eigenvalue=None, seed=0):
    """What an analysis could have found for a linear."""
    module = model.get_submodule(path)
    generator = torch.Generator().manual_seed(seed)
    n, d = module.out_features, module.in_features + 1
    direction = torch.randn(n, d, generator=generator)
    zeros = torch.zeros(n)
    gain = torch.rand(n, generator=generator) if gain is None else torch.as_tensor(gain, dtype=torch.float32)
    return LayerCurvature(
        linear=path,
        criterion=criterion,
        eigenvalue=-gain if eigenvalue is None else eigenvalue,
        standard_error=zeros,
        residual=zeros,
        direction=direction / direction.norm(dim=1, keepdim=True),
        response=zeros + 10.0,  # with the step, a unit whose pre-activation is of the size 1
        step=zeros + 0.1,
        gain=gain,
        significant=gain > 0 if significant is None else significant,
        fit_eigenvalue=-gain,
        refined=gain > 0,
        cost_parameters=d + 1,
        cost_macs=d,
    )


def report_for(model, *entries):
    entries = entries or [
        entry_for(model, site.path, criterion, seed=index)
        for index, site in enumerate(model.growable_linears())
        for criterion in ("width", "depth")
        if criterion == "depth" or (site.linear == "mlp.fc1" and not site.nested)
    ]
    return CurvatureReport(tuple(entries), samples=8, tokens=40, loss=1.0, seconds=0.0, seed=0, skipped={})
