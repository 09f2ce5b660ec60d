"""`hf-saddle export` of grown models of every family: what the file computes, for sizes that it was not made with."""

import sys
from pathlib import Path

import onnxruntime
import pytest
import torch
from test_commands import run


sys.path.append(str(Path(__file__).parents[1] / "models"))
from families_cases import every_family, every_family_slowly, grown_model, inputs  # noqa: E402


def prepared(name: str, folder: Path) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Save a grown model; inputs in the order of a file, and the first of its outputs."""
    model, batch = grown_model(name), inputs(name)
    model.save_pretrained(folder)
    options = {"use_cache": False} if hasattr(model.config, "use_cache") else {}
    with torch.no_grad():
        return list(batch.values()), model(**batch, **options)[0]


def assert_close(found, wanted) -> None:
    found, wanted = (list(value) if isinstance(value, (tuple, list)) else [value] for value in (found, wanted))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


@every_family_slowly
def test_files_of_torch_compute_the_same(name, tmp_path, capsys):
    batch, wanted = prepared(name, tmp_path)
    assert run("export", tmp_path, tmp_path / "model.pt2") == 0
    assert "which takes " in capsys.readouterr().out
    assert_close(torch.export.load(tmp_path / "model.pt2").module()(*batch), wanted)


@pytest.mark.parametrize("name", ["LlamaForCausalLM", "T5ForConditionalGeneration"])
def test_files_of_onnx_compute_the_same(name, tmp_path):
    onnx_is_right(name, tmp_path)


@pytest.mark.slow
@every_family
def test_files_of_onnx_compute_the_same_for_every_family(name, tmp_path):
    onnx_is_right(name, tmp_path)


def onnx_is_right(name: str, folder: Path) -> None:
    batch, wanted = prepared(name, folder)
    assert run("export", folder, folder / "model.onnx", "--format", "onnx") == 0
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    names = [place.name for place in session.get_inputs()]
    found = session.run(None, {name: tensor.numpy() for name, tensor in zip(names, batch, strict=True)})
    assert_close([torch.from_numpy(array) for array in found], wanted)


def test_both_logits_of_questions_are_written(tmp_path):
    model, batch = grown_model("LlamaForQuestionAnswering"), inputs("LlamaForQuestionAnswering")
    model.save_pretrained(tmp_path)
    assert run("export", tmp_path, tmp_path / "model.pt2") == 0
    with torch.no_grad():
        wanted = model(**batch)
    found = torch.export.load(tmp_path / "model.pt2").module()(*batch.values())
    assert_close(found, (wanted.start_logits, wanted.end_logits))
