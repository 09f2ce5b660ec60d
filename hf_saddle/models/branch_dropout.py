"""Dropout of residual branches, in part (dropout) and as a whole (stochastic depth)."""

from torch import Tensor, nn


class BranchDropout(nn.Dropout):
    """
    Dropout at the end of a residual branch: of single values, and of the whole branch (stochastic depth, drop-path).

    Stock layers apply their `dropout` exactly where both branches end, so that they need no other forward pass.

    Args:
        p (`float`): Probability that a value is dropped.
        drop_path (`float`): Probability that the branch of a sample is dropped.
    """

    def __init__(self, p: float, drop_path: float):
        super().__init__(p)
        self.drop_path = drop_path

    def forward(self, branch: Tensor) -> Tensor:
        """Drop parts of `branch`, of shape `(batch, …)`, while training; what is kept is scaled to the same mean."""
        branch = super().forward(branch)
        if not self.training or self.drop_path == 0:
            return branch
        keep = 1 - self.drop_path
        kept = branch.new_empty(len(branch), *[1] * (branch.dim() - 1)).bernoulli_(keep)
        return branch * (kept / keep)

    def extra_repr(self) -> str:
        """As in `nn.Dropout`, with the second probability."""
        return f"{super().extra_repr()}, drop_path={self.drop_path:g}"
