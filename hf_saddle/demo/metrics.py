"""Accuracy as an `evaluate` metric that needs no download, and perplexity."""

import math

import datasets
import evaluate
import numpy as np
from transformers import EvalPrediction


class Accuracy(evaluate.Metric):  # type: ignore[misc]  # evaluate has no types
    """Share of correct predictions; what `evaluate.load("accuracy")` would fetch from the Hub."""

    def _info(self) -> evaluate.MetricInfo:
        features = datasets.Features({"predictions": datasets.Value("int32"), "references": datasets.Value("int32")})
        return evaluate.MetricInfo(
            description="Accuracy of class predictions.",
            citation="",
            inputs_description="Predicted and true class indices.",
            features=features,
        )

    def _compute(self, predictions: list[int], references: list[int]) -> dict[str, float]:
        return {"accuracy": float(np.mean(np.equal(predictions, references)))}


def compute_accuracy(prediction: EvalPrediction) -> dict[str, float]:
    """`compute_metrics` for a classifier: accuracy of the largest logit."""
    logits = prediction.predictions[0] if isinstance(prediction.predictions, tuple) else prediction.predictions
    result: dict[str, float] = Accuracy().compute(
        predictions=np.argmax(logits, axis=-1), references=prediction.label_ids
    )
    return result


def compute_perplexity(prediction: EvalPrediction) -> dict[str, float]:
    """`compute_metrics` for a language model: `exp` of the evaluation loss; wants `include_for_metrics=["loss"]`."""
    loss = float(np.mean(prediction.losses))
    try:
        return {"perplexity": math.exp(loss)}
    except OverflowError:  # of a training that diverges
        return {"perplexity": math.inf}
