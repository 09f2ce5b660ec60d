"""What sizes may be: checks of those that others have written, before memory is taken for them."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from .families import family_of
from .sites import LINEARS


# Bounds that no transformer comes near: a config beyond them is corrupt or hostile and is refused before any memory is
# taken.
MAX_SIZE = 2**18
MAX_LAYERS = 2**12
MAX_SKIP_DEPTH = 32
MAX_HEADS = 2**12


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
        names["heads"] = [heads.path for heads in block.heads]
        known += [f"{block.path}.{name}" for name in names[field]]
    pattern = re.compile("|".join(re.escape(path).replace(r"\*", "[0-9]+") for path in known), re.ASCII)
    for path in paths or ():
        if not pattern.fullmatch(path):
            raise ValueError(f"`{field}` names {path!r}; what it can name are {', '.join(known)}.")


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
        branches = shapes.get("skip_sizes")
        check_shapes(f"{name}.skip_sizes", branches)
        for linear in branches or ():
            if linear not in LINEARS:
                raise ValueError(
                    f"`{name}.skip_sizes` names the linear {linear!r}; growable linears are {', '.join(LINEARS)}."
                )
