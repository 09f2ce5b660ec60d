"""Whether weight files can be those of a config, decided from their headers, before memory or time is spent."""

import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file

from .config_fields import LAYER_FIELDS
from .json_files import read_json


# safetensors' names of the dtypes that weights and targets of branches may have.
WEIGHT_DTYPES = ("F16", "BF16", "F32", "F64")
TARGET_DTYPE = "I64"
# What a checkpoint may lack beside its own number of parameters: heads and poolers that start anew.
SPARE_PARAMETERS = 2**22


def find_weights(
    path: str | os.PathLike[str], source: Mapping[str, Any], name: str | None = None, variant: str | None = None
) -> list[str]:
    """
    The weight files of a folder or repo; empty if there are none, or not yet in the cache and not to be had.

    Args:
        path (`str` or `os.PathLike`): The folder or repo.
        source (`Mapping[str, Any]`): Arguments such as `revision`.
        name (`str`, *optional*): Name of the file or index, where a config gives one (`transformers_weights`).
        variant (`str`, *optional*): As in `from_pretrained`.

    Raises:
        ValueError: If the index of the shards is damaged, or names files outside of its folder, or lacking ones.
    """
    if os.path.isdir(path) and any(Path(path, source.get("subfolder") or "").glob("shard-*-model-*.safetensors")):
        raise ValueError(
            f"{path} is a distributed checkpoint, whose shapes cannot be checked. Save the whole model "
            "(`save_pretrained`) and load that."
        )
    names = [SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME] if name is None else [name]
    if variant is not None and name is None:
        names = [f"{first}.{variant}.{rest}" for first, _, rest in (name.partition(".") for name in names)]
    options = {**source, "_raise_exceptions_for_missing_entries": False}
    for name in names:
        file = cached_file(path, name, **options)
        if file is not None and not name.endswith(".index.json"):
            return [file]
        if file is not None:
            shards = shard_names(file)
            found = [
                cached_file(path, shard, _raise_exceptions_for_missing_entries=False, **source) for shard in shards
            ]
            if None in found:
                raise ValueError(f"{path} lacks the shard {shards[found.index(None)]} that {file} names.")
            return [file for file in found if file is not None]
    return []


def shard_names(index: str | os.PathLike[str]) -> list[str]:
    """
    The files that an index of shards names, in order.

    Raises:
        ValueError: If the index is not one, or names anything but safetensors files beside itself.
    """
    values = read_json(index, "The index of shards")
    shards = values.get("weight_map")
    if not isinstance(shards, dict) or not shards or not isinstance(values.get("metadata"), dict):
        raise ValueError(f"The index of shards {index} must have the objects `metadata` and `weight_map`.")
    for tensor, name in shards.items():
        plain = isinstance(name, str) and name.endswith(".safetensors") and not set(name) & set("/\\\0")
        if not plain:
            raise ValueError(
                f"`weight_map[{tensor!r}]` of the index of shards {index} must be the name of a safetensors file "
                f"beside it, got {name!r}."
            )
    return sorted(set(shards.values()))


def check_number_of_layers(fields: Mapping[str, Any], files: Sequence[str]) -> None:
    """
    Raise a `ValueError` for a config of more layers than the files have tensors for; each needs at least two.

    Building a layer takes a hundred times longer than reading its part of a header, so this comes first.
    """
    tensors = 0
    for file in files:
        with safe_open(file, framework="pt") as weights:
            tensors += len(weights.keys())
    for name in (*LAYER_FIELDS, "depths"):
        value = fields.get(name)
        layers = sum(value) if name == "depths" and isinstance(value, list) else value
        if files and isinstance(layers, int) and 2 * layers > tensors:
            raise ValueError(
                f"The config asks for {layers} layers (`{name}`), but {_names(files)} has only {tensors} tensors."
            )


def check_headers(expected: Mapping[str, Tensor], prefix: str, files: Sequence[str]) -> None:
    """
    Compare the tensors of a model that is not in memory yet with those of its weight files.

    Args:
        expected (`Mapping[str, Tensor]`): The model's tensors, on the meta device.
        prefix (`str`): What names of the encoder's tensors may have or lack, as `"deit."`.
        files (`Sequence[str]`): The weight files.

    Raises:
        ValueError: If a tensor has a dtype that weights do not have, or is in two files, or if the model is so much
            larger than the files that they cannot be meant for it.
    """
    whole = {
        alias
        for name, tensor in expected.items()
        if not tensor.is_floating_point()
        for alias in (name, f"{prefix}{name}", name.removeprefix(prefix))
    }
    where: dict[str, str] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for file in files:
        with safe_open(file, framework="pt") as weights:
            for name in weights.keys():  # noqa: SIM118 (not a mapping)
                header = weights.get_slice(name)
                dtype = header.get_dtype()
                if name.endswith("skip.target") and dtype != TARGET_DTYPE:
                    raise ValueError(f"`{name}` must be int64, got {dtype} in {file}.")
                if name not in whole and not name.endswith("skip.target") and dtype not in WEIGHT_DTYPES:
                    raise ValueError(f"`{name}` must be one of {', '.join(WEIGHT_DTYPES)}, got {dtype} in {file}.")
                if name in where:
                    raise ValueError(f"`{name}` is both in {where[name]} and in {file}.")
                where[name], shapes[name] = file, tuple(header.get_shape())
    found = sum(torch.Size(shape).numel() for shape in shapes.values())
    wanted = sum(tensor.numel() for tensor in expected.values())
    if wanted <= 2 * found + SPARE_PARAMETERS:
        return
    for name, tensor in expected.items():
        for alias in (name, f"{prefix}{name}", name.removeprefix(prefix)):
            if alias in shapes and shapes[alias] != tuple(tensor.shape):
                raise ValueError(
                    f"`{alias}` in {where[alias]} has shape {shapes[alias]}, but its config asks for "
                    f"{tuple(tensor.shape)}."
                )
    raise ValueError(
        f"The config asks for {wanted:,} parameters, but {_names(files)} has {found:,}. Check `num_labels`, "
        "`pooler_output_size` and the sizes of the layers."
    )


def check_values(tensors: Mapping[str, Any], where: str, whole: Collection[str] = ()) -> None:
    """
    Raise a `ValueError` for a tensor that cannot be weights: of another kind of number, or with values not finite.

    Those in `whole` are counts or indices. Tensors that are not in memory, or only in part (meta device, shards of
    several processes), are passed over.
    """
    for name, tensor in tensors.items():
        if type(tensor) not in (Tensor, torch.nn.Parameter) or tensor.is_meta:
            continue
        if name in whole or name.endswith("skip.target"):
            continue
        if not tensor.dtype.is_floating_point or tensor.element_size() == 1:
            raise ValueError(f"`{name}` in {where} has dtype {tensor.dtype}; weights are floating point numbers.")
        # Both ends are NaN if any value is, and no temporary tensor is made.
        if tensor.numel() and not bool(torch.stack(torch.aminmax(tensor.detach())).isfinite().all()):
            raise ValueError(
                f"`{name}` in {where} has values that are not finite. The file is damaged, or the training that wrote "
                "it had diverged: use an earlier checkpoint."
            )


def whole_numbers(tensors: Mapping[str, Tensor], prefix: str = "") -> set[str]:
    """Names, after a prefix, of the tensors of a model that are counts or indices."""
    return {prefix + name for name, tensor in tensors.items() if not tensor.is_floating_point()}


def check_regular(file: str | os.PathLike[str], what: str) -> None:
    """
    Raise a `ValueError` for a folder, a device or a link in place of a file; nothing there is fine.

    Links of the Hub's cache, from a snapshot to a blob of the same repo, are files.
    """
    path, target = Path(file), Path(file).resolve()
    blob = target.parent.name == "blobs" and target.parent.parent in path.parent.resolve().parents
    regular = path.is_file() if path.exists() else not path.is_symlink()
    if not regular or (path.is_symlink() and not blob):
        raise ValueError(f"{what} {file} must be a file, not a folder or a link.")


def _names(files: Sequence[str]) -> str:
    first, *rest = files
    return f"{first} and {len(rest)} more" if rest else first
