"""Which curvatures exceed the noise of the probe: two folds of images, each judging the other's directions."""

from dataclasses import dataclass

import torch
from torch import Tensor

from .distributed import Ranks


MINIMUM_IMAGES = 4


@dataclass(frozen=True)
class Images:
    """
    The images (independent samples) of a probe and their division into two folds.

    The division depends on the seed and on the position of an image in the union of all ranks' images, not on how they
    are spread over ranks and batches.
    """

    total: int  # on all ranks
    local: int  # on this rank
    fold: Tensor  # (local,) int64, 0 or 1
    sign: Tensor  # (local,) ±1 at random, for the null model

    @classmethod
    def divide(cls, local: int, seed: int, ranks: Ranks, device: torch.device) -> "Images":
        """
        Draw the folds.

        Raises:
            ValueError: If there are fewer than four images: neither fold would have a standard error.
        """
        before, total = (int(count) for count in ranks.before_and_total(torch.tensor(local, device=device)))
        if total < MINIMUM_IMAGES:
            raise ValueError(
                f"The probe has {total} sample(s). Directions are fitted on one half of the samples and judged on the "
                f"other, which needs at least {MINIMUM_IMAGES}, better some hundred: pass more or larger `batches`."
            )
        generator = torch.Generator().manual_seed(seed)
        fold = torch.empty(total, dtype=torch.int64)
        fold[torch.randperm(total, generator=generator)] = torch.arange(total) % 2
        sign = torch.randint(0, 2, (total,), generator=generator) * 2 - 1
        own = slice(before, before + local)
        return cls(total, local, fold[own].to(device), sign[own].to(device))

    def size(self, fold: int) -> int:
        """Number of images of a fold on all ranks."""
        return self.total - self.total // 2 if fold == 0 else self.total // 2


def held_out_estimate(forms: Tensor, images: Images, ranks: Ranks) -> tuple[Tensor, Tensor]:
    """
    The mean of per-image quadratic forms and its standard error.

    An image's tokens are correlated, so the image, not the token, is the unit. The two folds' means are dependent:
    each fold chooses the direction that the other one judges, and both choose the neurons that are looked at. Their
    standard errors are therefore added as if they were fully correlated, so that judging both ways steadies the
    estimate but does not count as more evidence than one held-out half. (With independent folds, the null model is
    selected at two to three times its nominal rate.)

    Args:
        forms (`Tensor`): `vᵀ S_image v` with a direction `v` fitted without that image, shape `(images, n)`, this
            rank.

    Returns:
        `tuple[Tensor, Tensor]`: Estimate and standard error, float64, shape `(n,)`.
    """
    forms = forms.double()
    estimate, error = torch.zeros_like(forms[0]), torch.zeros_like(forms[0])
    for fold in (0, 1):
        own, size = forms[images.fold == fold], images.size(fold)
        mean = ranks.sum(own.sum(dim=0)) / size
        variance = ranks.sum((own - mean).square().sum(dim=0)) / (size - 1)
        estimate += mean * (size / images.total)
        error += (variance / size).sqrt() * (size / images.total)
    return estimate, error


def beyond_noise(estimate: Tensor, standard_error: Tensor, largest: Tensor, significance: float) -> Tensor:
    """
    Whether a held-out estimate has the fitted sign and exceeds `significance` standard errors, bool, shape `(n,)`.

    Of neurons without curvature at most about 2.3 % pass at `significance = 2` where the end of the spectrum is given
    (width), and twice as many where the data choose it (depth).
    """
    signed = torch.where(largest, estimate, -estimate)
    return signed > significance * standard_error
