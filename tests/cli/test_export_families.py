"""`hf-saddle export` of grown models of every family: what the file computes, for sizes that it was not made with."""

import sys
from pathlib import Path

import onnxruntime
import pytest
import torch
from test_commands import run

from hf_saddle.growth.counting import sample_of


sys.path.append(str(Path(__file__).parents[1] / "models"))
from families_cases import CASES, grown_model, inputs  # noqa: E402


def cases(*daily: str) -> pytest.MarkDecorator:
    """All kinds of models, which take minutes together; daily some of them."""
    return pytest.mark.parametrize(
        "name", [pytest.param(name, marks=[] if name in daily else pytest.mark.slow) for name in CASES]
    )


def prepared(name: str, folder: Path) -> tuple[dict[str, torch.Tensor], list[torch.Tensor]]:
    """Save a grown model; inputs of other sizes than those of the export, and what the model answers to them."""
    model, batch = grown_model(name), inputs(name)
    if "pixel_values" in batch:
        # Nets that take images of any size are exported for one.
        batch["pixel_values"] = torch.randn(3, *sample_of(model)["pixel_values"].shape[1:])
    model.save_pretrained(folder)
    options = {"use_cache": False} if hasattr(model.config, "use_cache") else {}
    with torch.no_grad():
        found = model(**batch, **options, return_dict=True)
    logits = [value for key, value in found.items() if key.endswith("logits")]
    return batch, logits or (list(found[0]) if isinstance(found[0], tuple) else [found[0]])


def assert_close(found: list[torch.Tensor], wanted: list[torch.Tensor], batch: dict[str, torch.Tensor]) -> None:
    """Compare answers, but for those to padding on the left, which may look at no token, so that they mean nothing."""
    mask = batch.get("attention_mask", torch.empty(0))
    found, wanted = ([x[mask == 1] if x.shape[:2] == mask.shape else x for x in each] for each in (found, wanted))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


@cases("LlamaForQuestionAnswering", "ResNetBackbone", "T5ForConditionalGeneration", "WhisperForConditionalGeneration")
def test_files_of_torch_compute_the_same(name, tmp_path, capsys):
    batch, wanted = prepared(name, tmp_path)
    assert run("export", tmp_path, tmp_path / "model.pt2") == 0
    assert f"takes {', '.join(batch)} and gives" in capsys.readouterr().out
    found = torch.export.load(tmp_path / "model.pt2").module()(*batch.values())
    assert_close([found] if isinstance(found, torch.Tensor) else list(found), wanted, batch)


@cases("GPT2LMHeadModel")
def test_files_of_onnx_compute_the_same(name, tmp_path):
    batch, wanted = prepared(name, tmp_path)
    assert run("export", tmp_path, tmp_path / "model.onnx", "--format", "onnx") == 0
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    assert [place.name for place in session.get_inputs()] == list(batch)
    found = session.run(None, {key: tensor.numpy() for key, tensor in batch.items()})
    assert_close([torch.from_numpy(array) for array in found], wanted, batch)


def test_models_in_half_precision_are_written_in_single(tmp_path):
    model, batch = grown_model("GPT2LMHeadModel").to(torch.bfloat16), inputs("GPT2LMHeadModel")
    model.save_pretrained(tmp_path)
    assert run("export", tmp_path, tmp_path / "model.pt2") == 0
    found = torch.export.load(tmp_path / "model.pt2").module()(*batch.values())
    with torch.no_grad():
        assert_close([found], [model.float()(**batch).logits], batch)
