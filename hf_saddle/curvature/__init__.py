"""Second-order growth decisions at first-order cost, for any `nn.Module`, batches and loss."""

from .activations import ACTIVATIONS, Activation
from .analyze import CRITERIA, analyze_curvature, check_null_model
from .eigenpairs import SolverOptions
from .operator import CurvatureOperator
from .recognition import activation_of, curvature_at_zero
from .report import CurvatureReport, LayerCurvature, NullModel
from .scores import Units, UnitScores, score_units


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
    "score_units",
]
