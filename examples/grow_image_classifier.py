"""Grow an image classifier while it trains, save it with its card and pictures, reload it, and show what grew.

    python examples/grow_image_classifier.py --output_dir outputs/demo
    python examples/grow_image_classifier.py --output_dir outputs/fashion --dataset fashion-mnist --image_size 28
    torchrun --nproc_per_node 2 examples/grow_image_classifier.py --output_dir outputs/demo --use_cpu

Every field of `GrowthConfig` and of HF's `TrainingArguments` is an option; `--help` lists them. The steps are in
`hf_saddle/demo/run.py`.
"""

from hf_saddle.demo.run import run


if __name__ == "__main__":
    print(run())
