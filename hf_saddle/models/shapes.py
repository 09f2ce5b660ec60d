"""The shapes of a growable model in one form, by path; to and from configs, JSON, checkpoints and modules."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from transformers import PreTrainedConfig

from .sites import FC1, LINEARS, READERS, Site, root_path


# Bounds that no vision transformer comes near (ViT-22B, arXiv 2302.05442, is the largest published): a config beyond
# them is corrupt or hostile and is refused before any memory is taken.
MAX_SIZE = 2**18
MAX_LAYERS = 2**12
MAX_SKIP_DEPTH = 32


@dataclass(frozen=True)
class Shapes:
    """
    Sizes of everything that grows, by the path in the encoder of the linear whose neurons or branches they are.

    Configs and JSON keep them as `per_layer_config`: a mapping from layers to `intermediate_size` and `skip_sizes`.

    Attributes:
        widths (`dict[str, int]`): Hidden neurons, as `{"layers.0.mlp.fc1": 130}`, in the order of the layers.
        skip_sizes (`dict[str, list[int]]`):
            Widths of the nested branches, outermost first, of linears that have any, as
            `{"layers.0.mlp.fc1": [4, 2]}`.
    """

    widths: dict[str, int] = field(default_factory=dict)
    skip_sizes: dict[str, list[int]] = field(default_factory=dict)

    @property
    def layers(self) -> int:
        """Number of encoder layers."""
        return len(self.widths)

    def sizes(self, root: str) -> list[int]:
        """Neurons of a linear and of the branches nested in it; of those whose width is the model's, 0."""
        return [self.widths.get(root, 0), *self.skip_sizes.get(root, ())]

    @classmethod
    def of_modules(cls, sites: Iterable[Site]) -> "Shapes":
        """The shapes of a model's linears, as [`GrowablePreTrainedModel.growable_linears`] yields them."""
        roots = [site for site in sites if not site.nested]
        widths = {site.root: site.module.out_features for site in roots if site.linear in READERS}
        return cls(widths, {site.root: site.module.skip_sizes for site in roots if site.module.skip is not None})

    @classmethod
    def of_config(cls, config: PreTrainedConfig) -> "Shapes":
        """The shapes that a config asks for."""
        layers = (config.per_layer_config[layer] for layer in range(config.num_hidden_layers))
        fields = ((layer.intermediate_size, layer.skip_sizes) for layer in layers)
        return cls.of_layers(
            {index: {"intermediate_size": width, "skip_sizes": sizes} for index, (width, sizes) in enumerate(fields)}
        )

    @classmethod
    def of_layers(cls, layers: Mapping[Any, Mapping[str, Any]]) -> "Shapes":
        """The shapes in a `per_layer_config` that has all fields of all layers, see [`check_layers`]."""
        items = sorted((int(layer), values) for layer, values in layers.items())
        widths = {root_path(layer, FC1): values["intermediate_size"] for layer, values in items}
        skip_sizes = {
            root_path(layer, linear): list(sizes)
            for layer, values in items
            for linear, sizes in (values["skip_sizes"] or {}).items()
        }
        return cls(widths, skip_sizes)

    @classmethod
    def of_json(cls, value: Any, name: str) -> "Shapes":
        """
        The inverse of `to_json`; `name` is how messages call the value.

        Raises:
            ValueError: If it is not what `to_json` gives.
        """
        check_layers(name, value)
        return cls.of_layers(value)

    @classmethod
    def of_tensors(cls, tensors: Mapping[str, Tensor], prefix: str, default: "Shapes") -> tuple["Shapes", set[str]]:
        """
        The shapes that the tensors of a checkpoint have, and the kinds of their branch units.

        Args:
            tensors (`Mapping[str, Tensor]`): The checkpoint.
            prefix (`str`): What precedes paths in the encoder, as `"deit."`.
            default ([`Shapes`]): Has the layers of the model; those that the checkpoint lacks are as there.
        """
        widths, skip_sizes, kinds = {}, {}, set()
        for layer in range(default.layers):
            hidden = root_path(layer, FC1)
            known = f"{prefix}{hidden}.weight" in tensors
            widths[hidden] = len(tensors[f"{prefix}{hidden}.weight"]) if known else default.widths[hidden]
            for root in (root_path(layer, linear) for linear in LINEARS):
                sizes, branch = [], f"{prefix}{root}.skip."
                while known and f"{branch}linear.weight" in tensors:
                    sizes.append(len(tensors[f"{branch}linear.weight"]))
                    gain, twin = f"{branch}gain" in tensors, f"{branch}linear.twin_weight" in tensors
                    kinds.add("gain" if gain else "residual_pair" if twin else "residual")
                    branch = f"{branch}linear.skip."
                sizes = sizes if known else default.skip_sizes.get(root, [])
                if sizes:
                    skip_sizes[root] = sizes
        return cls(widths, skip_sizes), kinds

    def to_layers(self) -> dict[int, dict[str, Any]]:
        """The `per_layer_config` that says the same, with every layer explicit."""
        layers = {}
        for layer, width in enumerate(self.widths.values()):
            sizes = {name: self.skip_sizes.get(root_path(layer, name)) for name in LINEARS}
            branches = {name: list(widths) for name, widths in sizes.items() if widths}
            layers[layer] = {"intermediate_size": width, "skip_sizes": branches or None}
        return layers

    def to_json(self) -> dict[str, Any]:
        """As `to_layers`, fit for JSON, whose keys are strings."""
        return {str(layer): values for layer, values in self.to_layers().items()}

    def write_(self, config: PreTrainedConfig, kind: str) -> None:
        """Let a config ask for these shapes and a kind of branch units; without `per_layer_config` if it can."""
        config.skip_unit = kind
        config.per_layer_config = self.to_layers()
        if not config.per_layer_attributes:
            config.per_layer_config = None


def is_index(key: Any) -> bool:
    """Whether a key of JSON, or of a dictionary that was made of it, is a whole number in ASCII digits."""
    text = str(key)
    return text.isascii() and text.isdecimal()


def check_size(field: str, value: Any, low: int = 1, high: int = MAX_SIZE) -> None:
    """Raise a `ValueError` that names the field if a size is not an integer in `[low, high]`."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ValueError(f"`{field}` must be an integer in [{low}, {high}], got {value!r}.")


def check_skip_sizes(field: str, skip_sizes: Any) -> None:
    """Raise a `ValueError` that names the field if this is not `None` or widths of branches by linear."""
    if skip_sizes is None:
        return
    if not isinstance(skip_sizes, Mapping):
        raise ValueError(f"`{field}` must map linear names to lists of branch widths, got {skip_sizes!r}.")
    for linear, widths in skip_sizes.items():
        if linear not in LINEARS:
            raise ValueError(f"`{field}` names the linear {linear!r}; growable linears are {', '.join(LINEARS)}.")
        if not isinstance(widths, (list, tuple)) or not 0 < len(widths) <= MAX_SKIP_DEPTH:
            raise ValueError(
                f"`{field}[{linear!r}]` must be a list of 1 to {MAX_SKIP_DEPTH} branch widths, outermost first, "
                f"got {widths!r}."
            )
        for width in widths:
            check_size(f"{field}[{linear!r}]", width)


def check_layers(field: str, value: Any, layers: int | None = None) -> None:
    """
    Verify that a value is a `per_layer_config`.

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
    "MAX_LAYERS",
    "MAX_SIZE",
    "MAX_SKIP_DEPTH",
    "Shapes",
    "check_layers",
    "check_size",
    "check_skip_sizes",
    "is_index",
]
