"""Grow convolutional nets on the digits while they train: a ResNet, whose ReLU layers grow in depth, and a ConvNeXt.

    python examples/grow_convnet.py --output_dir outputs/convnets
    python examples/grow_convnet.py --output_dir outputs/fashion --dataset fashion-mnist --image_size 28

The options are those of `hf-saddle grow`, which does the same for one of them; each net gets a folder of its own.

One run on a 2-core AMD EPYC, one thread: the ResNet grew from 45,146 to 67,576 parameters (test accuracy 0.986, 89 s),
the ConvNeXt from 60,082 to 90,109 (0.958, 89 s), while others used the machine.
"""

import argparse
from pathlib import Path

from hf_saddle.demo.run import run


# Small pixels: a ResNet divides their number by 16 before its first block.
SETTINGS = {
    "resnet": ["--image_size", "32", "--hidden_size", "16"],
    "convnext": ["--image_size", "16", "--patch_size", "2", "--hidden_size", "24"],
}
COMMON = ["--num_train_epochs", "6", "--unit", "epochs", "--at", "1", "3"]


def main() -> None:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--output-dir", "--output_dir", required=True)
    options, rest = parser.parse_known_args()
    for architecture, settings in SETTINGS.items():
        folder = Path(options.output_dir, architecture)
        words = ["--architecture", architecture, "--output_dir", str(folder), *COMMON, *settings, *rest]
        print(f"{architecture}\n{run(words)}\n")


if __name__ == "__main__":
    main()
