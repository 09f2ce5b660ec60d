"""Every command of `hf-saddle`: what it prints, what it writes, and how it refuses."""

import json
import subprocess
import sys

import numpy as np
import onnxruntime
import pytest
import torch
from transformers import (
    AutoModelForImageClassification,
    GPT2Config,
    GPT2LMHeadModel,
    ViTConfig,
    ViTForImageClassification,
)

from hf_saddle import (
    SaddleDeiTConfig,
    SaddleDeiTForImageClassification,
    SaddleViTConfig,
    SaddleViTForImageClassification,
)
from hf_saddle.growth import GrowthPlan, LayerGrowth, grow_
from hf_saddle_cli import main
from hf_saddle_cli.measure import _folded


SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 16, "patch_size": 4}
PIXELS = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def run(*arguments) -> int:
    """The exit code of a command."""
    with pytest.raises(SystemExit) as exit:
        main([str(argument) for argument in arguments])
    return int(exit.value.code or 0)


def logits(model) -> np.ndarray:
    with torch.no_grad():
        return model.eval()(PIXELS).logits.numpy()


def grow(model, *growths, neurons=range(3)):
    """Let a model grow by hand and fill in weights, so that none of them is zero."""
    grow_(model, GrowthPlan(tuple(LayerGrowth.by_hand(model, *growth, list(neurons)) for growth in growths)))
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model.eval()


@pytest.fixture
def deeper(tmp_path):
    """A DeiT that grew in depth and width, saved."""
    torch.manual_seed(0)
    model = SaddleDeiTForImageClassification(SaddleDeiTConfig(**SHAPE, intermediate_size=40, num_labels=10))
    grow(model, ("deit.layers.0.mlp.fc1", "split"), ("deit.layers.1.mlp.fc1", "zero_gain"))
    model.save_pretrained(tmp_path / "deeper")
    return model, tmp_path / "deeper"


@pytest.fixture
def wider(tmp_path):
    """A ViT that grew in width only, saved."""
    torch.manual_seed(0)
    model = SaddleViTForImageClassification(SaddleViTConfig(**SHAPE, intermediate_size=40, num_labels=10))
    grow(model, ("vit.layers.1.mlp.fc1", "split"))
    model.save_pretrained(tmp_path / "wider")
    return model, tmp_path / "wider"


# ----------------------------------------------------------------------------------------------------------- the whole
def test_help_names_every_command(capsys):
    assert run("--help") == 0
    printed = capsys.readouterr().out
    for command in ("inspect", "analyze", "grow", "card", "report", "push", "convert", "export"):
        assert command in printed


@pytest.mark.parametrize("command", ["inspect", "analyze", "card", "report", "push", "convert", "export"])
def test_every_command_explains_itself(command, capsys):
    assert run(command, "--help") == 0
    assert f"hf-saddle {command}" in capsys.readouterr().out.replace("\n", " ")


def test_a_folder_or_model_that_is_not_there_is_said_so(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert run("inspect", tmp_path / "empty") == 1
    assert "has no config.json: no model was saved there" in " ".join(capsys.readouterr().err.split())
    assert run("inspect", "outputs/not-there") == 1
    assert "There is no folder outputs/not-there, and no such model" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    "arguments",
    [["fly"], ["inspect"], ["inspect", "x", "--nonsense"], ["card", "/not/there"], ["grow", "--learning-rat", "1"]],
)
def test_a_command_that_is_not_understood(arguments):
    assert run(*arguments) == 2


def test_errors_are_one_line_without_a_traceback(tmp_path):
    command = [sys.executable, "-c", "from hf_saddle_cli import main; main()", "inspect", str(tmp_path / "nothing")]
    found = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert found.returncode == 1
    # On processors with AVX512-BF16 bitsandbytes says, when it is imported, which of its kernels are not installed.
    told = [line for line in found.stderr.splitlines() if "kernels-community" not in line]
    assert told[0].startswith("error: ")
    assert "Traceback" not in found.stderr
    assert not found.stdout


# ------------------------------------------------------------------------------------------------- inspect and analyze
def test_inspect_as_table(deeper, capsys):
    assert run("inspect", deeper[1]) == 0
    printed = capsys.readouterr().out
    assert f"{sum(parameter.numel() for parameter in deeper[0].parameters()):,} parameters" in printed
    assert "layers.1.mlp.fc1" in printed
    assert "1 growth events, 6 neurons" in printed


def test_inspect_as_json(deeper, capsys):
    assert run("inspect", deeper[1], "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["parameters"] == sum(parameter.numel() for parameter in deeper[0].parameters())
    assert facts["shapes"]["widths"]["layers.0.mlp.fc1"] == 43
    assert facts["shapes"]["skip_sizes"] == {"layers.1.mlp.fc1": [3]}
    assert facts["history"] == deeper[0].growth_history


def test_inspect_says_that_a_history_does_not_fit(deeper, wider, capsys):
    (deeper[1] / "growth_history.json").write_text((wider[1] / "growth_history.json").read_text())
    assert run("inspect", deeper[1]) == 0
    assert "does not fit this model" in capsys.readouterr().out


def test_inspect_reads_no_weights(deeper):
    (deeper[1] / "model.safetensors").unlink()
    assert run("inspect", deeper[1]) == 0


def change_config(folder, **fields):
    """Overwrite fields of the config of a saved model."""
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def test_inspect_compares_the_number_of_layers_with_the_weights_before_it_builds_them(deeper, capsys):
    change_config(deeper[1], num_hidden_layers=64)
    assert run("inspect", deeper[1]) == 1
    assert "asks for 64 layers" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("architectures", "message"),
    [
        ([5], "must be a list of names of classes, got [5]"),
        ({"a": 1}, "must be a list of names of classes"),
        (["SaddleDeiTConfig"], "is no model class of hf_saddle"),
        (["SaddleLlamaForCausalLM"], "is no model class of hf_saddle for configs of type 'saddle_deit'"),
        (["Saddle\x1b[31mDeiT\n"], "is a Saddle [31mDeiT , which is no model class"),
    ],
)
def test_a_config_of_no_model_class_is_refused_by_name(deeper, architectures, message, capsys):
    change_config(deeper[1], architectures=architectures)
    assert run("inspect", deeper[1]) == 1
    error = capsys.readouterr().err
    assert message in error and "\x1b" not in error and error.count("\n") == 1


def test_analyze(deeper, tmp_path, capsys):
    picture = tmp_path / "report.svg"
    arguments = ["digits", "--samples", "32", "--criterion", "depth", "--picture", picture]
    assert run("analyze", deeper[1], *arguments, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert {layer["criterion"] for layer in report["layers"]} == {"depth"}
    assert "deit.layers.1.mlp.fc1.skip.linear" in {layer["linear"] for layer in report["layers"]}
    assert picture.read_text().startswith("<?xml")
    assert bool(report["event"]["growths"]) != bool(report["event"]["held_back"])
    assert run("analyze", deeper[1], "digits", "--samples", "32", "--criterion", "grad_norm", "--json") == 0
    assert json.loads(capsys.readouterr().out)["event"] is None  # no event ranks by it


def test_analyze_with_options_of_growth_plans_an_event(deeper, capsys):
    where = ["--linears", "mlp.fc1", "--layers", "0", "--significance", "0", "--max_growth", "3"]
    # So small and untrained a model supports no growth by samples that chose nothing.
    where += ["--selection", "gain", "--natural-step", "0"]
    assert run("analyze", deeper[1], "digits", "--samples", "32", *where) == 0
    printed = capsys.readouterr().out
    assert "An event now would grow" in printed and "by a half natural step after it" in printed
    assert "deit.layers.0.mlp.fc1" in printed and "layers.1" not in printed
    assert run("analyze", deeper[1], "digits", "--samples", "32", "--significance", "1e9") == 0
    printed = capsys.readouterr().out
    assert "An event now would not grow anything. Significance: none of" in printed
    assert "The event chooses on one half of the samples that the table is of." in printed
    alone = ["--operator", "new_head", "--significance", "0", "--max_growth", "3"]
    assert run("analyze", deeper[1], "digits", "--samples", "32", *alone) == 0
    printed = capsys.readouterr().out
    assert "by new_head" in printed and "attention heads: " in printed and "neurons: " not in printed
    assert run("analyze", deeper[1], "digits", "--significanc", "1") == 2
    assert capsys.readouterr().err.strip().endswith("unknown: --significanc (did you mean --significance?)")


def test_analyze_folds_what_it_skipped_into_one_line():
    assert _folded({"a": "no width", "b": "no width", "c": "frozen"}) == "skipped 3 layers: 2 × no width; 1 × frozen"


def test_report(deeper, tmp_path, capsys):
    assert run("report", deeper[1]) == 0
    assert "has no log of its training" in capsys.readouterr().err
    page = (deeper[1] / "growth_report.html").read_text()
    assert page.startswith("<!DOCTYPE html>") and "1 growth events, 6 neurons" in page
    assert run("report", deeper[1], "--output", tmp_path / "a" / "page.html", "--baseline", deeper[1]) == 1
    assert "has grown: a baseline is the same training without growth" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["digits", "--split", "night"], "no split 'night'"),
        (["digits", "--criterion", "luck"], "luck"),
        (["digits", "--picture", "report.exe"], "must end in .png or .svg"),
    ],
)
def test_analyze_refuses(deeper, arguments, message, capsys):
    assert run("analyze", deeper[1], *arguments) == 1
    assert message in " ".join(capsys.readouterr().err.split())


def test_analyze_refuses_data_with_more_labels(deeper, tmp_path, capsys):
    model = SaddleViTForImageClassification(SaddleViTConfig(**SHAPE, intermediate_size=40, num_labels=3))
    model.save_pretrained(tmp_path / "three")
    assert run("analyze", tmp_path / "three", "digits") == 1
    assert "10 labels" in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------------- card and convert
def test_card(deeper, capsys):
    options = ["--dataset", "digits", "--license", "apache-2.0", "--repo-id", "name/my-model"]
    assert run("card", deeper[1], *options) == 0
    text = (deeper[1] / "README.md").read_text()
    assert "license: apache-2.0" in text
    assert 'from_pretrained("name/my-model"' in text
    assert (deeper[1] / "pictures" / "architecture.png").is_file()


def test_card_refuses_a_foreign_history(deeper, wider, capsys):
    (deeper[1] / "growth_history.json").write_text((wider[1] / "growth_history.json").read_text())
    assert run("card", deeper[1]) == 1
    assert "does not lead to the shapes of this model" in " ".join(capsys.readouterr().err.split())


def test_convert_stock_to_growable(tmp_path):
    torch.manual_seed(0)
    stock = ViTForImageClassification(ViTConfig(**SHAPE, intermediate_size=40, num_labels=3))
    stock.save_pretrained(tmp_path / "stock")
    assert run("convert", tmp_path / "stock", tmp_path / "growable") == 0
    growable = AutoModelForImageClassification.from_pretrained(tmp_path / "growable")
    assert isinstance(growable, SaddleViTForImageClassification)
    assert np.array_equal(logits(growable), logits(stock))


def test_convert_a_model_whose_end_of_texts_is_no_token_of_it(tmp_path):
    config = GPT2Config(vocab_size=100, n_positions=16, n_embd=16, n_layer=1, n_head=2)
    assert config.eos_token_id >= config.vocab_size
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "stock")
    assert run("convert", tmp_path / "stock", tmp_path / "growable") == 0


@pytest.mark.parametrize(
    ("name", "text"), [("tokenizer.json", "{}"), ("preprocessor_config.json", "{not json")], ids=["text", "image"]
)
def test_convert_refuses_a_processor_that_cannot_be_loaded(wider, tmp_path, name, text, capsys):
    (wider[1] / name).write_text(text)
    assert run("convert", wider[1], tmp_path / "stock", "--to", "stock") == 1
    assert f"has {name}, of which no image processor or tokenizer can be loaded" in capsys.readouterr().err
    assert not (tmp_path / "stock").exists()


def test_convert_takes_no_number_that_is_none_for_verified(tmp_path, capsys):
    stock = ViTForImageClassification(ViTConfig(**SHAPE, intermediate_size=40, num_labels=3))
    for parameter in stock.parameters():
        parameter.data.fill_(1e38)
    stock.save_pretrained(tmp_path / "stock")
    assert run("convert", tmp_path / "stock", tmp_path / "growable") == 1
    assert "computes something else (by nan)" in capsys.readouterr().err
    assert not (tmp_path / "growable").exists()


@pytest.mark.parametrize("architectures", [["Config"], ["ViTConfig"], [5], ["PreTrainedModel"]])
def test_convert_refuses_what_is_no_stock_model_class(tmp_path, architectures, capsys):
    ViTConfig(**SHAPE).save_pretrained(tmp_path)
    change_config(tmp_path, architectures=architectures)
    assert run("convert", tmp_path, tmp_path / "growable") == 1
    message = "must be a list of names" if architectures == [5] else "only stock models of these types become growable"
    assert message in capsys.readouterr().err


def test_convert_a_wider_model_to_stock(wider, tmp_path, capsys):
    assert run("convert", wider[1], tmp_path / "stock", "--to", "stock") == 0
    assert f"{3 * (32 + 1 + 32)} of its parameters are padding" in capsys.readouterr().out
    stock = AutoModelForImageClassification.from_pretrained(tmp_path / "stock")
    assert type(stock) is ViTForImageClassification
    assert stock.config.intermediate_size == 43
    assert stock.config.to_dict().keys() <= ViTConfig(**SHAPE).to_dict().keys() | {"architectures", "dtype"}
    assert np.allclose(logits(stock), logits(wider[0]), atol=1e-6)


def test_convert_a_wider_model_to_plain_widths(wider, tmp_path):
    assert run("convert", wider[1], tmp_path / "plain", "--to", "per-layer") == 0
    config = json.loads((tmp_path / "plain" / "config.json").read_text())
    assert config["model_type"] == "vit"
    assert config["per_layer_config"] == {"1": {"intermediate_size": 43}}
    assert "auto_map" not in config
    again = SaddleViTForImageClassification.from_pretrained(
        tmp_path / "plain", config=SaddleViTConfig.from_pretrained(wider[1])
    )
    assert np.array_equal(logits(again), logits(wider[0]))


def test_convert_merges_pairs(tmp_path):
    torch.manual_seed(0)
    config = SaddleDeiTConfig(**SHAPE, intermediate_size=40, num_labels=10, skip_unit="residual_pair")
    model = SaddleDeiTForImageClassification(config)
    grow(model, ("deit.layers.0.mlp.fc1", "residual_pair"))
    model.save_pretrained(tmp_path / "pairs")
    assert run("convert", tmp_path / "pairs", tmp_path / "merged", "--to", "merged") == 0
    merged = AutoModelForImageClassification.from_pretrained(tmp_path / "merged")
    assert merged.config.skip_unit == "residual"
    assert np.array_equal(logits(merged), logits(model))


@pytest.mark.parametrize(
    ("to", "message"), [("stock", "grown in depth"), ("merged", "no residual pairs"), ("saddle", "only stock")]
)
def test_convert_refuses_what_cannot_be(deeper, tmp_path, to, message, capsys):
    assert run("convert", deeper[1], tmp_path / "out", "--to", to) == 1
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()


def test_convert_overwrites_nothing(deeper, wider):
    before = (deeper[1] / "config.json").read_bytes()
    assert run("convert", wider[1], deeper[1], "--to", "stock") == 1
    assert (deeper[1] / "config.json").read_bytes() == before


# ----------------------------------------------------------------------------------------------------- export and grow
@pytest.mark.slow
def test_export_runs_without_hf_saddle(deeper, tmp_path):
    assert run("export", deeper[1], tmp_path / "model.pt2") == 0
    torch.save(PIXELS, tmp_path / "pixels.pt")
    script = (
        "import sys, torch; sys.modules['hf_saddle'] = None\n"
        f"model = torch.export.load({str(tmp_path / 'model.pt2')!r}).module()\n"
        f"torch.save(model(torch.load({str(tmp_path / 'pixels.pt')!r})), {str(tmp_path / 'logits.pt')!r})\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)
    assert np.allclose(torch.load(tmp_path / "logits.pt").detach().numpy(), logits(deeper[0]), atol=1e-6)


def test_export(deeper, tmp_path):
    assert run("export", deeper[1], tmp_path / "model.pt2") == 0
    exported = torch.export.load(tmp_path / "model.pt2").module()
    assert np.allclose(exported(PIXELS).detach().numpy(), logits(deeper[0]), atol=1e-6)


def test_export_overwrites_nothing(deeper, tmp_path, capsys):
    (tmp_path / "model.pt2").write_text("mine")
    assert run("export", deeper[1], tmp_path / "model.pt2") == 1
    assert (tmp_path / "model.pt2").read_text() == "mine"


@pytest.mark.thinned(2)
@pytest.mark.parametrize("neurons", [3, 40], ids=["some", "every"])
def test_export_to_onnx(neurons, tmp_path):
    torch.manual_seed(0)
    model = SaddleDeiTForImageClassification(SaddleDeiTConfig(**SHAPE, intermediate_size=40, num_labels=10))
    grow(model, ("deit.layers.0.mlp.fc1", "zero_gain"), neurons=range(neurons)).save_pretrained(tmp_path)
    assert run("export", tmp_path, tmp_path / "model.onnx", "--format", "onnx") == 0
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    found = session.run(None, {"pixel_values": PIXELS.numpy()})[0]
    assert np.allclose(found, logits(model), atol=1e-5)


def test_grow(tmp_path, capsys):
    folder = tmp_path / "grown"
    short = ["--max_steps", "4", "--max_samples", "40", "--unit", "steps", "--at", "2"]
    small = ["--hidden_size", "16", "--num_hidden_layers", "2", "--intermediate_size", "8", "--probe_samples", "16"]
    main_options = ["--output_dir", folder, "--use_cpu", "--disable_tqdm", "true", *short, *small]
    assert run("grow", *main_options, "--significance", "0") == 0
    assert "largest difference of logits after reloading: 0.0" in capsys.readouterr().out
    assert "| growth `at` | \\[2" in (folder / "README.md").read_text()
    assert json.loads((folder / "growth_history.json").read_text())["events"]


def test_grow_lists_its_options(capsys):
    assert run("grow", "--help") == 0
    printed = capsys.readouterr().out
    assert "--probe-samples" in printed and "--learning-rate" in printed and "--probe_samples" not in printed
    assert "examples:" in printed and "growth:" in printed and "model and data:" in printed


def test_grow_refuses(tmp_path, capsys):
    assert run("grow", "--output_dir", tmp_path, "--criterion", "luck") == 1
    assert "`criterion` must be one of" in " ".join(capsys.readouterr().err.split())
