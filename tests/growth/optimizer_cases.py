"""Optimizers for the tests: one that nobody knows, and a stand-in for Muon with Adam in one class."""

import torch


class Unknown(torch.optim.Optimizer):
    """SGD with an average whose meaning only its author knows."""

    def __init__(self, params, lr):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    state = self.state[p]
                    state.setdefault("average", torch.zeros_like(p)).lerp_(p.grad, 0.1)
                    p.sub_(state["average"], alpha=group["lr"])


class SingleDeviceMuonWithAuxAdam(torch.optim.Optimizer):
    """
    Of the name, the groups and the states of Keller Jordan's class, which is in no package index: matrices where a
    group says `use_muon`, Adam elsewhere.
    """

    def __init__(self, param_groups):
        super().__init__(param_groups, {})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if group["use_muon"]:
                    momentum = state.setdefault("momentum_buffer", torch.zeros_like(p)).lerp_(p.grad, 0.05)
                    u, _, v = torch.linalg.svd(momentum, full_matrices=False)  # raises for a vector
                    p.sub_(u @ v, alpha=group["lr"])
                    continue
                state.setdefault("step", 0)
                state["step"] += 1
                mean = state.setdefault("exp_avg", torch.zeros_like(p)).lerp_(p.grad, 0.1)
                square = state.setdefault("exp_avg_sq", torch.zeros_like(p)).lerp_(p.grad**2, 0.05)
                mean, square = mean / (1 - 0.9 ** state["step"]), square / (1 - 0.95 ** state["step"])
                p.sub_(mean / (square.sqrt() + 1e-10), alpha=group["lr"])


SingleDeviceMuonWithAuxAdam.__module__ = "muon"
MuonAndAdam = SingleDeviceMuonWithAuxAdam


def muon_groups(model, **options):
    """Matrices of the layers, what else is no vector, and vectors."""
    named = list(model.named_parameters())
    hidden = [p for n, p in named if "layers." in n and p.dim() == 2]
    others = [p for n, p in named if "layers." not in n and p.dim() > 1]
    vectors = [p for _, p in named if p.dim() == 1]
    return [
        {"params": hidden, "use_muon": True} | options,
        {"params": others, "use_muon": False} | options,
        {"params": vectors, "use_muon": False} | options,
    ]


def names_of(model, optimizer):
    """Names of the parameters of every group."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    return [[names[parameter] for parameter in group["params"]] for group in optimizer.param_groups]
