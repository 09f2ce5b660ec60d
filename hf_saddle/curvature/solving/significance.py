"""Which curvatures exceed the noise of the probe: two folds of samples, each judging the other's directions."""

import torch
from torch import Tensor

from ..ranks import Ranks
from ..samples import Samples


def held_out_estimate(forms: Tensor, samples: Samples, ranks: Ranks) -> tuple[Tensor, Tensor]:
    """
    The mean of per-sample quadratic forms and its standard error.

    A sample's tokens are correlated, so the sample, not the token, is the unit. The two folds' means are dependent:
    each fold chooses the direction that the other one judges, and both choose the neurons that are looked at. Their
    standard errors are therefore added as if they were fully correlated, so that judging both ways steadies the
    estimate but does not count as more evidence than one held-out half. (With independent folds, the null model is
    selected at two to three times its nominal rate.)

    Args:
        forms (`Tensor`): `vᵀ S_sample v` with a direction `v` fitted without that sample, shape `(samples, n)`, this
            rank.
        samples (`Samples`): The probe's samples.
        ranks (`Ranks`): Processes that share them.

    Returns:
        `tuple[Tensor, Tensor]`: Estimate and standard error, float64, shape `(n,)`.
    """
    forms = forms.double()
    estimate, error = torch.zeros_like(forms[0]), torch.zeros_like(forms[0])
    for fold in (0, 1):
        own, size = forms[samples.fold == fold], samples.size(fold)
        mean = ranks.sum(own.sum(dim=0)) / size
        variance = ranks.sum((own - mean).square().sum(dim=0)) / (size - 1)
        estimate += mean * (size / samples.total)
        error += (variance / size).sqrt() * (size / samples.total)
    return estimate, error


def beyond_noise(estimate: Tensor, standard_error: Tensor, largest: Tensor, significance: float) -> Tensor:
    """
    Whether a held-out estimate has the fitted sign and exceeds `significance` standard errors, bool, shape `(n,)`.

    Of neurons without curvature at most about 2.3 % pass at `significance = 2` where the end of the spectrum is given
    (width), and twice as many where the data choose it (depth).
    """
    signed = torch.where(largest, estimate, -estimate)
    return signed > significance * standard_error
