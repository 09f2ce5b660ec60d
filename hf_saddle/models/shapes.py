"""The shapes of a growable model in one form, by path; to and from configs, JSON, checkpoints and modules."""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from transformers import MODEL_MAPPING

from .families import blocks_in, family_of
from .heads import heads_in_tensors, heads_of
from .layouts import layout_of
from .sites import FC1, LINEARS, Site, root_path


# Bounds that no transformer comes near: a config beyond them is corrupt or hostile and is refused before any memory is
# taken.
MAX_SIZE = 2**18
MAX_LAYERS = 2**12
MAX_SKIP_DEPTH = 32
MAX_HEADS = 2**12


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
    def of_modules(cls, sites: Iterable[Site], heads: Mapping[str, int] | None = None) -> "Shapes":
        """
        The shapes of a model's layers, as [`GrowablePreTrainedModel.growable_linears`] yields them, with the heads of
        its attention modules that are not those of stock, see [`grown_heads`].
        """
        roots = [site for site in sites if not site.nested]
        widths = {site.root: site.module.neurons for site in roots if site.neurons is not None}
        sizes = {site.root: site.module.skip_sizes for site in roots if site.module.skip is not None}
        return cls(widths, sizes, dict(heads or {}))

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
        The shapes that the tensors of a checkpoint have, and the kinds of their branch units.

        Args:
            tensors (`Mapping[str, Tensor]`): The checkpoint.
            prefix (`str`): What precedes paths in the base model, as `"deit."`.
            sites (`Iterable[Site]`): The layers of the model; those that the checkpoint lacks are as there.
            base (`PreTrainedModel`): The base model.
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


def is_index(key: Any) -> bool:
    """Whether a key of JSON, or of a dictionary that was made of it, is a whole number in ASCII digits."""
    text = str(key)
    return text.isascii() and text.isdecimal()


def check_size(field: str, value: Any, low: int = 1, high: int = MAX_SIZE) -> None:
    """Raise a `ValueError` that names the field if a size is not an integer in `[low, high]`."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ValueError(f"`{field}` must be an integer in [{low}, {high}], got {value!r}.")


def check_shapes(field: str, value: Any) -> None:
    """
    Raise a `ValueError` that names the field if this is neither `None` nor a mapping from paths to widths, or to
    lists of widths of branches where the field is one of `skip_sizes`.
    """
    if value is None:
        return
    if not isinstance(value, Mapping) or not all(isinstance(path, str) for path in value):
        raise ValueError(f"`{field}` must map paths of layers to their sizes, got {value!r}.")
    for path, sizes in value.items():
        name = f"{field}[{path!r}]"
        if not field.endswith("skip_sizes"):
            check_size(name, sizes, high=MAX_HEADS if field.endswith("heads") else MAX_SIZE)
            continue
        if not isinstance(sizes, (list, tuple)) or not 0 < len(sizes) <= MAX_SKIP_DEPTH:
            raise ValueError(
                f"`{name}` must be a list of 1 to {MAX_SKIP_DEPTH} branch widths, outermost first, got {sizes!r}."
            )
        for width in sizes:
            check_size(name, width)


def check_paths(config: Any, field: str, paths: Iterable[str] | None) -> None:
    """Raise a `ValueError` if `widths` and the like of a config would name layers that its family does not have."""
    family, known = family_of(config.model_type), []
    if field == "heads" and paths and isinstance(family.heads, str):
        raise ValueError(f"Heads of {config.model_type} models cannot grow: {family.heads}.")
    for block in family.blocks(config) if paths else ():
        names: dict[str, Iterable[str]] = {"skip_sizes": block.linears}
        names["widths"] = [neurons.rows[0] for neurons in block.neurons]
        names["heads"] = [] if block.heads is None else [block.heads.path]
        known += [f"{block.path}.{name}" for name in names[field]]
    pattern = re.compile("|".join(re.escape(path).replace(r"\*", "[0-9]+") for path in known), re.ASCII)
    for path in paths or ():
        if not pattern.fullmatch(path):
            raise ValueError(f"`{field}` names {path!r}; what it can name are {', '.join(known)}.")


def check_skip_sizes(field: str, skip_sizes: Any) -> None:
    """Raise a `ValueError` that names the field if this is not `None` or widths of branches by name in a layer."""
    check_shapes(field, skip_sizes)
    for linear in skip_sizes or ():
        if linear not in LINEARS:
            raise ValueError(f"`{field}` names the linear {linear!r}; growable linears are {', '.join(LINEARS)}.")


def check_layers(field: str, value: Any, layers: int | None = None) -> None:
    """
    Verify that a value is a `per_layer_config`, the form of ViT's and DeiT's shapes in older versions.

    Args:
        field (`str`): How messages call it.
        value (`Any`): What is to be checked.
        layers (`int`, *optional*):
            Layers that the model has, each of which may be left out, as may its fields. By default the value decides
            how many there are, and has to name all.

    Raises:
        ValueError: If it is not; the message names the layer and its field.
    """
    if not isinstance(value, Mapping) or (layers is None and not 0 < len(value) <= MAX_LAYERS):
        raise ValueError(f"`{field}` must map layers to their shapes, got {value!r}.")
    number = len(value) if layers is None else layers
    indices = [int(layer) for layer in value if is_index(layer)]
    if layers is None and (len(indices) < number or sorted(indices) != list(range(number))):
        raise ValueError(f"`{field}` must have the layers 0 to {number - 1}: {list(value)}.")
    if len(set(indices)) < len(indices):
        raise ValueError(f"`{field}` names a layer twice: {list(value)}.")
    known = {"intermediate_size", "skip_sizes"}
    for layer, shapes in value.items():
        name = f"{field}[{layer}]"
        if not is_index(layer) or int(layer) >= number:
            raise ValueError(f"`{name}`: the layer index must be an integer in [0, {number}).")
        if not isinstance(shapes, Mapping):
            raise ValueError(f"`{name}` must map field names to values, got {shapes!r}.")
        if set(shapes) - known:
            raise ValueError(
                f"`{name}` has {sorted(set(shapes) - known)}: only `intermediate_size` and `skip_sizes` may differ "
                "per layer."
            )
        if layers is None and known - set(shapes):
            raise ValueError(f"`{name}` lacks {sorted(known - set(shapes))}.")
        if "intermediate_size" in shapes:
            check_size(f"{name}.intermediate_size", shapes["intermediate_size"])
        check_skip_sizes(f"{name}.skip_sizes", shapes.get("skip_sizes"))


__all__ = [
    "MAX_HEADS",
    "MAX_LAYERS",
    "MAX_SIZE",
    "MAX_SKIP_DEPTH",
    "Shapes",
    "check_layers",
    "check_paths",
    "check_shapes",
    "check_size",
    "check_skip_sizes",
    "grown_heads",
    "is_index",
    "stock_widths",
    "widths_of",
]
