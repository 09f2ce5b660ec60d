"""Files that were damaged at random, from a seed, and what must hold if one of them is accepted all the same."""

import copy
import json
import random
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageClassification

from hf_saddle import SaddleDeiTConfig, SaddleDeiTForImageClassification
from hf_saddle.growth import GrowthHistory, GrowthPlan, LayerGrowth, grow_
from hf_saddle.hub import TrainingRecord, render_model_card
from hf_saddle.hub.record import fingerprint
from hf_saddle.training.resuming.checkpoints import missing_parts, write_manifest


SHAPE = {
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 12,
    "image_size": 8,
    "patch_size": 4,
    "num_labels": 3,
}
VALUES: tuple[Any, ...] = (
    None, True, False, -5, 0, 1, 3, 4096, 2**18, 10**30, 10**400, 0.5, -0.5, 1e300, float("nan"), float("inf"),
    "", "x", "1", "float8_e4m3fn", "int64", "complex64", "../x", "\0", "é", "１", [], [0], [[]], [None], {}, {"a": 1},
    {"1": None}, [1, 2, 3], "model-00001-of-00002.safetensors",
)  # fmt: skip
TEXTS = (
    b"", b"null", b"3", b"[]", b'"config"', b"{}", b"true", b"NaN", b"{", b"\xff\xfe", b"\x00", b"[" * 100_000,
    b'{"a":' * 5000 + b"1" + b"}" * 5000, b'{"hidden_size": ' + b"9" * 5000 + b"}", b'{"events": 1e999}',
)  # fmt: skip


def make_model() -> tuple[SaddleDeiTForImageClassification, GrowthPlan]:
    """A tiny model that grew in every way, and the plan of its last event."""
    torch.manual_seed(0)
    model = SaddleDeiTForImageClassification(SaddleDeiTConfig(**SHAPE))
    plans = [
        [("deit.layers.0.mlp.fc1", "split"), ("deit.layers.1.attention.v_proj", "opposed_pair")],
        [("deit.layers.1.attention.v_proj.skip.linear", "zero_gain"), ("deit.layers.0.mlp.fc2", "zero_gain")],
    ]
    for step, growths in enumerate(plans):
        plan = GrowthPlan(tuple(LayerGrowth.by_hand(model, *growth, [0, 2]) for growth in growths), "auto", 1.5)
        grow_(model, plan, step=step, epoch=step / 2, loss_before=1.25)
    return model.eval(), plan


def make_folder(folder: Path, sharded: bool) -> None:
    """A checkpoint with every file that is read again."""
    model, plan = make_model()
    model.save_pretrained(folder, max_shard_size="4KB" if sharded else "1GB")
    record = TrainingRecord(dataset="a/b", settings={"seed": 1}, results={"accuracy": 0.5}, versions={"torch": "2"})
    record.weights, record.log = fingerprint(model), [{"step": 1, "loss": 0.5}, {"step": 2, "train_runtime": 1.5}]
    record.save(folder)
    (folder / "plan.json").write_text(plan.to_json())
    write_manifest(folder)


# ----------------------------------------------------------------------------------------------------------- mutations
def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """All `(container, key)` of a JSON document."""
    for key in list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield value, key
        yield from places(value[key])


def mutate_document(document: Any, rng: random.Random) -> bytes:
    """One to three changes of a JSON document, or of its text."""
    document = copy.deepcopy(document)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        found = list(places(document))
        if not found:
            break
        container, key = rng.choice(found)
        kind = rng.randrange(8)
        if kind <= 3:
            container[key] = copy.deepcopy(rng.choice(VALUES))
        elif kind == 4:
            del container[key]
        elif kind == 5:
            other, name = rng.choice(found)
            container[key] = copy.deepcopy(other[name]) if name in range(len(other)) or name in other else None
        elif isinstance(container, dict):
            container[str(rng.choice(VALUES))] = container.pop(key) if kind == 6 else copy.deepcopy(container[key])
        elif kind == 6:
            container.reverse()
        else:
            container.insert(key, copy.deepcopy(container[key]))
    return json.dumps(document).encode()


def mutate_bytes(data: bytes, rng: random.Random, start: int = 0, stop: int | None = None) -> bytes:
    """Truncated, or with bytes changed, doubled or taken out, between `start` and `stop`."""
    stop = len(data) if stop is None else stop
    place = rng.randrange(start, max(stop, start + 1))
    size = rng.choice((1, 2, 8, 64))
    kind = rng.randrange(4)
    if kind == 0:
        return data[:place]
    middle = (rng.randbytes(size), b"", data[place : place + size] * 2)[kind - 1]
    return data[:place] + middle + data[place + size :]


def mutate_json(data: bytes, rng: random.Random) -> bytes:
    """A document that was damaged as a document, as text, or altogether."""
    kind = rng.randrange(8)
    if kind == 0:
        return rng.choice(TEXTS)
    return mutate_bytes(data, rng) if kind == 1 else mutate_document(json.loads(data), rng)


def mutate_weights(data: bytes, rng: random.Random) -> bytes:
    """A safetensors file with a damaged length, header or body."""
    size = struct.unpack("<Q", data[:8])[0]
    header, body = data[8 : 8 + size], data[8 + size :]
    kind = rng.randrange(6)
    if kind == 0:
        return struct.pack("<Q", rng.choice((0, 1, size - 1, size + 8, 2**31, 2**63))) + data[8:]
    if kind == 1:
        return mutate_bytes(data, rng, 8, 8 + size)
    if kind == 2:
        return data[: 8 + size] + mutate_bytes(body, rng)
    if kind == 3:
        return data[: 8 + size] + body[:-8] + struct.pack("<ff", *rng.choices((float("nan"), 1.5, 1e30), k=2))
    if kind == 4:
        fields = json.loads(header)
        name = rng.choice(list(fields))
        fields[name]["dtype"] = rng.choice(("I32", "U32", "I64", "C64", "BOOL", "F8_E4M3", "BF16", "F64", "X"))
        new = json.dumps(fields).encode()
    else:
        new = mutate_document(json.loads(header), rng)
    return struct.pack("<Q", len(new)) + new + body


# ------------------------------------------------------------------------------------------------------------- readers
def check_model(folder: Path, loader: Any) -> None:
    """What was loaded is what the file says, can be saved, and is the same when it is loaded again."""
    model = loader.from_pretrained(folder)
    stored = {name: tensor for file in folder.glob("model*.safetensors") for name, tensor in load_file(file).items()}
    tensors = model.state_dict()
    assert all(torch.equal(tensors[name], stored[name].to(tensor.dtype)) for name, tensor in tensors.items())
    assert all(tensor.isfinite().all() for tensor in tensors.values())
    config = json.loads((folder / "config.json").read_text())
    assert {name: getattr(model.config, name) for name in ("hidden_size", "num_hidden_layers")} == {
        name: config.get(name, SHAPE[name]) for name in ("hidden_size", "num_hidden_layers")
    }
    model.save_pretrained(folder / "again")
    again = SaddleDeiTForImageClassification.from_pretrained(folder / "again")
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in tensors.items())
    # transformers lets `label2id` say something else than `id2label`, and saves neither where one has default names.
    said, again_said = (each.config.to_dict() | {"label2id": None, "_name_or_path": ""} for each in (model, again))
    assert again.growth_history == model.growth_history and again_said == said


def check_history(folder: Path, loader: Any) -> None:
    history = GrowthHistory.load(folder / "growth_history.json")
    said = json.loads((folder / "growth_history.json").read_text())
    assert history.to_dict() == said
    history.table(), history.summary()
    history.save(folder / "again.json")
    assert GrowthHistory.load(folder / "again.json").to_dict() == said
    check_model(folder, loader)


def check_plan(folder: Path, loader: Any) -> None:
    plan = GrowthPlan.from_json((folder / "plan.json").read_text(errors="replace"))
    assert GrowthPlan.from_json(plan.to_json()).digest() == plan.digest()
    said = json.loads((folder / "plan.json").read_text())
    assert [growth.neurons for growth in plan.growths] == [tuple(growth["neurons"]) for growth in said["growths"]]


def check_record(folder: Path, loader: Any) -> None:
    record = TrainingRecord.load(folder)
    assert record is not None
    render_model_card(make_model()[0], record, name="x")
    (folder / "again").mkdir()
    record.save(folder / "again")
    assert TrainingRecord.load(folder / "again") == record


def check_manifest(folder: Path, loader: Any) -> None:
    missing = missing_parts(folder)
    if missing:
        raise ValueError(f"checkpoint_manifest.json: {missing}")
    sizes = json.loads((folder / "checkpoint_manifest.json").read_text())["files"]
    assert sizes and all((folder / name).stat().st_size == size for name, size in sizes.items())


def check_index(folder: Path, loader: Any) -> None:
    (folder / "checkpoint_manifest.json").unlink()
    assert all(isinstance(name, str) for name in missing_parts(folder))
    check_model(folder, loader)


@dataclass(frozen=True)
class Target:
    """A file, how it is damaged, and what has to hold if it is read without an error."""

    name: str
    mutate: Callable[[bytes, random.Random], bytes]
    check: Callable[[Path, Any], None]
    sharded: bool = False
    # transformers reads `config.json` itself before it knows whose it is, so that only our own classes can refuse it.
    loaders: tuple[Any, ...] = (SaddleDeiTForImageClassification, AutoModelForImageClassification)


TARGETS = (
    Target("config.json", mutate_json, check_model, loaders=(SaddleDeiTForImageClassification,)),
    Target("model.safetensors", mutate_weights, check_model),
    Target("growth_history.json", mutate_json, check_history),
    Target("model.safetensors.index.json", mutate_json, check_index, sharded=True),
    Target("checkpoint_manifest.json", mutate_json, check_manifest),
    Target("plan.json", mutate_json, check_plan),
    Target("training_record.json", mutate_json, check_record),
)


def names_of(data: bytes) -> set[str]:
    """Every name that an error about a file can mention: its keys, or the tensors of its header; none if damaged."""
    if data[:1] != b"{":
        data = data[8 : 8 + int.from_bytes(data[:8], "little")]
    try:
        return {f"{key}" for _, key in places(json.loads(data)) if isinstance(key, str)}
    except (ValueError, RecursionError):
        return set()


def outcome(target: Target, folder: Path, known: set[str], loader: Any) -> str:
    """
    How reading a damaged file ends.

    Raises whatever is not a clear error: of another kind, without a name in it, or after more than five seconds.
    """
    started = time.process_time()
    try:
        target.check(folder, loader)
        end = "loaded"
    except (ValueError, OSError) as error:
        end = type(error).__name__ if type(error) in (ValueError, OSError) else "OSError or ValueError"
        fields = {f"`{name}" for name in known | names_of((folder / target.name).read_bytes())}
        # A plan is a text that came from another process: there is no file to be named.
        if not any(name in str(error) for name in fields | {target.name, str(folder), "growth plan"}):
            raise AssertionError(f"The error names neither file nor field: {error}") from error
    assert time.process_time() - started < 5
    return f"{target.name}: {end}"
