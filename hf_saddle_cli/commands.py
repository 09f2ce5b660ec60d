"""What every command asks for. What it does is loaded when it runs, so that `--help` need not wait for torch."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


Source = Annotated[str, typer.Argument(help="Folder of a saved model, or repo id on the Hub.")]
Folder = Annotated[Path, typer.Argument(help="Folder of a saved model.", exists=True, file_okay=False)]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of the repo.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]


class Target(StrEnum):
    """What a model is converted to."""

    saddle = "saddle"
    stock = "stock"
    per_layer = "per-layer"
    merged = "merged"


class Format(StrEnum):
    """What a model is exported as."""

    torch = "torch"
    onnx = "onnx"


def inspect(source: Source, revision: Revision = None, as_json: AsJson = False) -> None:
    """
    Show shapes, size and growth history of a model. The weights are not read.

    Example: `hf-saddle inspect outputs/demo`
    """
    from .measure import print_facts

    print_facts(source, revision, as_json)


def analyze(
    context: typer.Context,
    source: Source,
    dataset: Annotated[
        str, typer.Argument(help="'digits', 'fashion-mnist', 'python-docs', a data set on the Hub, a file or folder.")
    ],
    criterion: Annotated[
        list[str] | None,
        typer.Option(help="'width', 'depth' or a control; may be repeated. Default: width and depth."),
    ] = None,
    whiten: Annotated[
        bool, typer.Option(help="Directions relative to the second moments of the inputs, as growth has them.")
    ] = True,
    split: Annotated[str, typer.Option(help="Split of the data set.")] = "train",
    samples: Annotated[
        int | None, typer.Option(min=1, help="Number of samples that are drawn, `--probe-samples` in short.")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Samples of a batch, `--probe-batch-size` in short.")
    ] = None,
    max_samples: Annotated[
        int | None, typer.Option(min=1, help="Keep at most that many samples of each split.")
    ] = None,
    dataset_config: Annotated[str | None, typer.Option(help="Configuration of the data set on the Hub.")] = None,
    image_column: Annotated[str | None, typer.Option(help="Column of images, where there are several.")] = None,
    text_column: Annotated[str | None, typer.Option(help="Column of texts, where there are several.")] = None,
    label_column: Annotated[str | None, typer.Option(help="Column of labels, where there are several.")] = None,
    block_size: Annotated[int, typer.Option(min=1, help="Tokens of a text: packed, or at most.")] = 128,
    seed: Annotated[int, typer.Option(help="Seed of the training, by which data without splits are divided.")] = 42,
    picture: Annotated[Path | None, typer.Option(help="Also draw all eigenvalues into this PNG or SVG file.")] = None,
    revision: Revision = None,
    as_json: AsJson = False,
) -> None:
    """
    Measure where the neurons of a model want more depth or width. The model is not changed.

    It also says what an event would do now. Fields of `GrowthConfig` are options too, after the data set, and the same
    event is that of `hf-saddle grow` with the same options.
    Examples: `hf-saddle analyze outputs/demo digits`,
    `hf-saddle analyze outputs/demo digits --linears mlp.fc1 --significance 3`
    """
    from hf_saddle.demo.arguments import ModelAndDataArguments

    from .measure import print_curvature

    print_curvature(
        source,
        ModelAndDataArguments(
            dataset=dataset,
            dataset_config=dataset_config,
            image_column=image_column,
            text_column=text_column,
            label_column=label_column,
            block_size=block_size,
            max_samples=max_samples,
        ),
        criterion or [],
        whiten=whiten,
        split=split,
        seed=seed,
        defaults={
            name: value
            for name, value in {"probe_samples": samples, "probe_batch_size": batch_size}.items()
            if value is not None
        },
        picture=picture,
        revision=revision,
        as_json=as_json,
        growth=context.args,
    )


def grow(context: typer.Context) -> None:
    """
    Train a model that grows, on images or text, test it, save it with its card, and verify what was saved.

    All fields of `GrowthConfig` and `TrainingArguments` are options: `hf-saddle grow --help` lists them.
    Examples: `hf-saddle grow --output-dir outputs/demo`,
    `hf-saddle grow --output-dir outputs/text --task causal-lm --architecture llama`
    """
    from hf_saddle.demo.run import run

    typer.echo(run(context.args, prog="hf-saddle grow"))


def compare(context: typer.Context) -> None:
    """
    Tell whether growth helps: the same training without it, with it, and with random growth, at equal cost over seeds.

    All options of `hf-saddle grow` are options too: `hf-saddle compare --help` lists them.
    Examples: `hf-saddle compare --output-dir outputs/compare --seeds 3`,
    `hf-saddle compare --output-dir outputs/compare --cost macs --in-card outputs/demo`
    """
    from hf_saddle.demo.compare import run

    typer.echo(run(context.args, prog="hf-saddle compare"))


def card(
    folder: Folder,
    dataset: Annotated[
        str | None, typer.Option(help="Name or repo id of the data set that it was trained on.")
    ] = None,
    base_model: Annotated[
        str | None, typer.Option(help="Repo id of the model that the training started from.")
    ] = None,
    license: Annotated[str | None, typer.Option(help="Licence of the weights, such as apache-2.0.")] = None,
    repo_id: Annotated[str | None, typer.Option(help="Repo that the model will be in, for the example.")] = None,
) -> None:
    """
    Write the model card and its pictures into the folder of a saved model.

    Every number is taken from the files in the folder. Example: `hf-saddle card outputs/demo --license apache-2.0`
    """
    from .share import write_card

    given = {"dataset": dataset, "base_model": base_model, "license": license}
    typer.echo(f"wrote {write_card(folder, given, repo_id)}")


def report(
    folder: Folder,
    output: Annotated[
        Path | None, typer.Option(help="The page to write; growth_report.html in the folder if not given.")
    ] = None,
    baseline: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the same training without growth, to be drawn beside.", exists=True, file_okay=False
        ),
    ] = None,
) -> None:
    """
    Write one self-contained HTML page about what grew, when and why. The weights are not read.

    Example: `hf-saddle report outputs/demo`
    """
    from .report import write_report

    typer.echo(f"wrote {write_report(folder, output, baseline)}")


def push(
    folder: Folder,
    repo_id: Annotated[str, typer.Argument(help="Repo on the Hub, such as 'name/my-model'; made if it is not there.")],
    private: Annotated[bool, typer.Option("--private", help="Make the repo private, where it is new.")] = False,
    revision: Revision = None,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Open a pull request instead of a commit.")] = False,
    message: Annotated[str, typer.Option(help="Commit message.")] = "Upload a growable model",
) -> None:
    """
    Bring a saved model to the Hub: config, weights, history, code, pictures, card, image processor or tokenizer, by
    name, and nothing else. History, weights, record and pictures that an earlier push left there and this model has
    not are deleted; an image processor or tokenizer there stays.

    Log in before with `hf auth login`. Example: `hf-saddle push outputs/demo name/my-model --private`
    """
    from .share import push_folder

    typer.echo(push_folder(folder, repo_id, private, revision, create_pr, message))


def convert(
    source: Source,
    output: Annotated[Path, typer.Argument(help="New or empty folder for the result.")],
    to: Annotated[
        Target,
        typer.Option(
            help="'saddle': a growable model of a stock one. 'stock': a stock model of one that grew in width "
            "only, narrower layers filled up with neurons of weight zero. 'per-layer': the same with its own widths "
            "as plain `per_layer_config`, which stock classes refuse and other tools read. 'merged': residual pairs "
            "as single rows."
        ),
    ] = Target.saddle,
    revision: Revision = None,
) -> None:
    """
    Convert a model. The result computes the same, which is verified before it is written.

    Example: `hf-saddle convert facebook/deit-tiny-patch16-224 outputs/growable`
    """
    from .convert import convert_model

    difference, padding = convert_model(source, output, to, revision)
    typer.echo(f"wrote {output}; largest difference of the outputs on random inputs: {difference:.2g}")
    if to is Target.stock:
        typer.echo(f"{padding:,} of its parameters are padding: zeros that make every layer as wide as the widest")


def export(
    source: Source,
    output: Annotated[Path, typer.Argument(help="The file to write, such as model.pt2 or model.onnx.")],
    format: Annotated[Format, typer.Option(help="'torch' for torch.export, 'onnx' for ONNX.")] = Format.torch,
    tolerance: Annotated[float, typer.Option(min=0.0, help="Largest difference of the logits allowed.")] = 1e-4,
    revision: Revision = None,
) -> None:
    """
    Write a model as one file, for batches of any size and texts of any length, and verify what the file computes.

    Example: `hf-saddle export outputs/demo model.onnx --format onnx`
    """
    from .export import export_model

    found = export_model(source, output, format, tolerance, revision)
    typer.echo(f"wrote {output}, which takes {', '.join(found.inputs)} and gives {', '.join(found.outputs)}")
    typer.echo(f"largest difference of the outputs on random inputs: {found.difference:.2g}")
