"""Accuracy of classifiers, and perplexity of language models, as `compute_metrics` of a `Trainer`."""

import math

import numpy as np
from transformers import EvalPrediction


def compute_accuracy(prediction: EvalPrediction) -> dict[str, float]:
    """`compute_metrics` for a classifier: accuracy of the largest logit."""
    logits = prediction.predictions[0] if isinstance(prediction.predictions, tuple) else prediction.predictions
    return {"accuracy": float(np.mean(np.argmax(logits, axis=-1) == prediction.label_ids))}


def compute_perplexity(prediction: EvalPrediction) -> dict[str, float]:
    """`compute_metrics` for a language model: `exp` of the evaluation loss; wants `include_for_metrics=["loss"]`."""
    return {"perplexity": math.exp(float(np.mean(prediction.losses)))}
