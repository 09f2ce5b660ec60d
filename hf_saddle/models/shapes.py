"""The shapes of a growable model in one form, by path; to and from configs, JSON, checkpoints and modules."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from transformers import MODEL_MAPPING

from .families import blocks_in
from .heads import heads_in_tensors, heads_of
from .layouts import layout_of
from .shape_checks import check_layers, check_shapes
from .sites import FC1, Site, root_path


@dataclass(frozen=True)
class Shapes:
    """
    Sizes of everything that grows, by the path in the base model of the layer whose neurons or branches they are.

    Attributes:
        widths (`dict[str, int]`):
            All hidden neurons, by the first layer that they are the rows of, as `{"layers.0.mlp.fc1": 130}`.
        skip_sizes (`dict[str, list[int]]`):
            Widths of the nested branches, outermost first, of layers that have any, as
            `{"layers.0.mlp.fc1": [4, 2]}`.
        heads (`dict[str, int]`):
            Heads, or key-value heads, of the attention modules that have another number of them than in stock, as
            `{"layers.0.attention": 5}`.
    """

    widths: dict[str, int] = field(default_factory=dict)
    skip_sizes: dict[str, list[int]] = field(default_factory=dict)
    heads: dict[str, int] = field(default_factory=dict)

    def sizes(self, root: str) -> list[int]:
        """Neurons of a layer and of the branches nested in it; of those whose width is the model's, 0."""
        return [self.widths.get(root, 0), *self.skip_sizes.get(root, ())]

    @classmethod
    def of_config(cls, config: Any) -> "Shapes":
        """The shapes that a growable config asks for."""
        sizes = {root: list(widths) for root, widths in (config.skip_sizes or {}).items()}
        return cls(stock_widths(config) | (config.widths or {}), sizes, grown_heads(config, config.heads or {}))

    @classmethod
    def of_json(cls, value: Any, name: str) -> "Shapes":
        """
        The inverse of `to_json`, which also reads the form of older versions, by layers; `name` is how messages call
        the value.

        Raises:
            ValueError: If it is neither.
        """
        if isinstance(value, Mapping) and set(value) - {"heads"} == {"widths", "skip_sizes"}:
            for part in value:
                check_shapes(f"{name}.{part}", value[part])
                if value[part] is None:
                    raise ValueError(f"`{name}.{part}` must map paths of layers to their sizes, got None.")
            sizes = {root: list(sizes) for root, sizes in value["skip_sizes"].items()}
            return cls(dict(value["widths"]), sizes, dict(value.get("heads", {})))
        check_layers(name, value)
        layers = {int(layer): shapes for layer, shapes in sorted(value.items(), key=lambda item: int(item[0]))}
        skip_sizes = {
            root_path(layer, linear): list(sizes)
            for layer, shapes in layers.items()
            for linear, sizes in (shapes["skip_sizes"] or {}).items()
        }
        return cls({root_path(index, FC1): layer["intermediate_size"] for index, layer in layers.items()}, skip_sizes)

    @classmethod
    def of_tensors(
        cls, tensors: Mapping[str, Tensor], prefix: str, sites: Iterable[Site], base: Any
    ) -> tuple["Shapes", set[str]]:
        """
        The shapes that the tensors of a checkpoint have, and the kinds of their branch units. `prefix` precedes paths
        in the base model, as `"deit."`; layers that the checkpoint lacks are as in the model.
        """
        widths, skip_sizes, kinds = {}, {}, set()
        for site in sites:
            if site.nested:
                continue
            weight = tensors.get(f"{prefix}{site.root}.weight")
            if site.neurons is not None:
                rows = site.module.layout.rows
                fits = weight is not None and weight.dim() > rows
                widths[site.root] = weight.shape[rows] if weight is not None and fits else site.module.neurons
            sizes, branch = [], f"{prefix}{site.root}.skip."
            while weight is not None and f"{branch}linear.weight" in tensors:
                sizes.append(len(tensors[f"{branch}linear.weight"]))
                gain, twin = f"{branch}gain" in tensors, f"{branch}linear.twin_weight" in tensors
                kinds.add("gain" if gain else "residual_pair" if twin else "residual")
                branch = f"{branch}linear.skip."
            sizes = site.module.skip_sizes if weight is None else sizes
            if sizes:
                skip_sizes[site.root] = sizes
        return cls(widths, skip_sizes, grown_heads(base.config, heads_in_tensors(base, tensors, prefix))), kinds

    def to_json(self) -> dict[str, Any]:
        """Fit for JSON."""
        sizes = {"widths": dict(self.widths), "skip_sizes": {root: list(s) for root, s in self.skip_sizes.items()}}
        return sizes | ({"heads": dict(self.heads)} if self.heads else {})

    def write_(self, config: Any, kind: str) -> None:
        """Let a config ask for these shapes and a kind of branch units."""
        stock = stock_widths(config)
        config.skip_unit = kind
        config.widths = {root: width for root, width in self.widths.items() if stock.get(root) != width} or None
        config.skip_sizes = {root: list(sizes) for root, sizes in self.skip_sizes.items()} or None
        config.heads = dict(self.heads) or None


def grown_heads(config: Any, heads: Mapping[str, int]) -> dict[str, int]:
    """Those of some numbers of heads, by attention module, that are not the ones of a growable config's stock."""
    stock = config.stock()
    kind: Any = type(stock)
    known = _sizes(kind, stock.to_json_string(use_diff=False))[1] if heads else {}
    return {root: number for root, number in heads.items() if known.get(root, number) != number}


def stock_widths(config: Any) -> dict[str, int]:
    """The widths that the hidden neurons of a growable config have before anything grows."""
    return widths_of(config.stock())


def widths_of(stock: Any) -> dict[str, int]:
    """The widths of the hidden neurons that a stock config asks for."""
    kind: Any = type(stock)
    return dict(_sizes(kind, stock.to_json_string(use_diff=False))[0])


@lru_cache(maxsize=64)
def _sizes(kind: Any, fields: str) -> tuple[dict[str, int], dict[str, int]]:
    """Widths and numbers of heads, read from the base model of a stock config, built on the meta device."""
    with torch.device("meta"):
        base = MODEL_MAPPING[kind](kind.from_dict(json.loads(fields)))
    widths = {}
    for path, block in blocks_in(base, base.config):
        for neurons in block.neurons:
            layer = base.get_submodule(f"{path}.{neurons.rows[0]}")
            widths[f"{path}.{neurons.rows[0]}"] = int(getattr(layer, layout_of(layer).outputs))
    return widths, heads_of(base)
