"""Second-order growth decisions at first-order cost, for any `nn.Module`, batches and loss."""

from .activations import ACTIVATIONS, Activation
from .analyze import analyze_curvature
from .lora import lora_ranks
from .null_model import check_null_model
from .recognition import activation_of, curvature_at_zero
from .report import CurvatureReport, LayerCurvature, NullModel
from .scores import Units, UnitScores, score_units
from .settings import CRITERIA, SolverOptions
from .solving.operator import CurvatureOperator


__all__ = [
    "ACTIVATIONS",
    "CRITERIA",
    "Activation",
    "CurvatureOperator",
    "CurvatureReport",
    "LayerCurvature",
    "NullModel",
    "SolverOptions",
    "UnitScores",
    "Units",
    "activation_of",
    "analyze_curvature",
    "check_null_model",
    "curvature_at_zero",
    "lora_ranks",
    "score_units",
]
