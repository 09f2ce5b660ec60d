"""Growable models of every family for the tests of growth, and what the curvature says that a growth will change."""

import importlib
import sys
from pathlib import Path

import torch
import transformers
from torch import nn
from transformers.activations import ACT2FN
from transformers.models.resnet.modeling_resnet import ResNetConvLayer
from transformers.models.t5.modeling_t5 import T5Attention

import hf_saddle
from hf_saddle.growth import GrowthPlan, LayerGrowth
from hf_saddle.growth.operators import OPERATORS
from hf_saddle.growth.surgery.drafting import widening_objection


sys.path.append(str(Path(__file__).parents[1] / "models"))
from families_cases import CASES, grown_model, inputs, one_block, outputs, stock_model  # noqa: E402, F401


# Of every kind of layer, neuron and model, what takes the time of a small test.
KINDS = (
    "BertForSequenceClassification",
    "GPT2LMHeadModel",
    "LlamaForCausalLM",
    "Dinov2Model",
    "SwinForImageClassification",
    "ConvNextForImageClassification",
    "ResNetModel",
    "ResNetForImageClassification",
    "T5ForConditionalGeneration",
    "WhisperForConditionalGeneration",
)
# One of every family, and both kinds of ResNets.
EVERY = [*dict(reversed([(case[0], name) for name, case in CASES.items() if name not in ("Dinov2Model",)])).values()]
EVERY += sorted({"Dinov2Model", "ResNetModel", "ResNetForImageClassification"} - {*EVERY})
SMOOTH = {name: {"feed_forward_proj": "gelu"} for name in CASES if CASES[name][0] == "t5"}
SMOOTH |= {"T5ForConditionalGeneration": {}}


def family_model(name, dtype=torch.float32, smooth=True, **config):
    """A growable model; `smooth` gives ResNets, whose inner activations are ReLU whatever the config says, SiLU."""
    model = hf_saddle.growable(stock_model(name, **(SMOOTH.get(name, {}) if smooth else {}), **config)).to(dtype)
    for module in model.modules():
        if smooth and isinstance(module, ResNetConvLayer) and isinstance(module.activation, nn.ReLU):
            module.activation = nn.SiLU()
    return model


def answers(model, name):
    """All outputs as one vector."""
    batch = {key: value.to(model.dtype) if value.is_floating_point() else value for key, value in inputs(name).items()}
    return torch.cat([part.flatten() for part in outputs(model, batch)])


def paths(model, operator, depth=0):
    """Layers that an operator can grow, nested `depth` times."""
    operator = OPERATORS[operator]
    kind = "gain" if any(site.nested for site in model.growable_linears()) else None
    return [
        site.path
        for site in model.growable_linears()
        if site.depth == depth
        and (operator.can_deepen(site) or operator.can_widen(site, kind))
        and (operator.deepens or widening_objection(model, site, operator) is None)
    ]


def family_plan(model, operator, neurons, depth=0, **kwargs):
    """The same neurons of all layers that an operator can grow."""
    found = paths(model, operator, depth)
    return GrowthPlan(tuple(LayerGrowth.by_hand(model, path, operator, neurons, **kwargs) for path in found))


def exact_norms_(monkeypatch):
    """Let norms and rotary embeddings that compute in float32 compute in float64, so that small changes are seen."""
    for path in {getattr(transformers, name).__module__ for name in CASES}:
        module = importlib.import_module(path)
        for kind in [value for value in vars(module).values() if isinstance(value, type)]:
            if kind.__name__.endswith(("RMSNorm", "T5LayerNorm")):
                monkeypatch.setattr(kind, "forward", _exact_norm(float("Gemma" in kind.__name__)))
            if kind.__name__.endswith("RotaryEmbedding"):
                monkeypatch.setattr(kind, "forward", _doubled(kind.forward))


def _exact_norm(one):
    def forward(self, x):
        eps = vars(self).get("variance_epsilon", vars(self).get("eps"))
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * (one + self.weight)

    return forward


def _doubled(forward):
    def doubled(self, *args, **kwargs):
        return tuple(part.double() for part in forward(self, *args, **kwargs))

    return doubled


def loss_of(name):
    """A smooth loss of all outputs, in the precision of the model."""

    def loss(model):
        kwargs = {key: v.to(model.dtype) if v.is_floating_point() else v for key, v in inputs(name).items()}
        found = model(**kwargs)
        answer = found.get("logits", found.get("last_hidden_state"))
        weights = torch.randn(answer.shape, generator=torch.Generator().manual_seed(4), dtype=answer.dtype)
        return torch.log_softmax(answer, -1).mul(weights).sum() / len(answer)

    return loss


def captured(model, modules, loss):
    """Inputs, outputs and the gradients at both, of modules by their paths."""
    found, hooks = {}, []
    for path, module in modules.items():

        def note(module, args, output, path=path):
            found[path] = (args[0], output)

        hooks.append(module.register_forward_hook(note))
    value = loss(model)
    for hook in hooks:
        hook.remove()
    tensors = [tensor for pair in found.values() for tensor in pair]
    gradients = torch.autograd.grad(value, tensors, allow_unused=True)
    both = zip(gradients[::2], gradients[1::2], strict=True)
    return {path: (*pair, *own) for (path, pair), own in zip(found.items(), both, strict=True)}


def tokens(module, z):
    """Outputs of a layer as `(positions, neurons)`."""
    return z.movedim(1, -1).flatten(0, -2) if isinstance(module, nn.Conv2d) else z.flatten(0, -2)


def extended(module, x):
    """Inputs `[x; 1]` of a layer, `(positions, groups, d + 1)`: of a convolution unfolded patches."""
    if isinstance(module, nn.Conv2d):
        x = nn.functional.unfold(x, module.kernel_size, module.dilation, module.padding, module.stride)
        x = x.transpose(1, 2).flatten(0, 1).unflatten(1, (module.groups, -1))
    else:
        x = x.flatten(0, -2)[:, None]
    return torch.cat([x, torch.ones_like(x[..., :1])], -1)


def derivative(function, x, order):
    """The derivative of an element-wise function."""
    x = x.detach().requires_grad_(True)
    value = function(x)
    for _ in range(order):
        (value,) = torch.autograd.grad(value.sum(), x, create_graph=True)
    return value.detach()


def predicted_by_splitting(model, growths, loss):
    """`½ Σ pᵀ S p` of steps `p` of hidden neurons: by the closed forms, none of which the library is asked for."""
    sites = {site.path: site.neurons for site in model.growable_linears()}
    modules = {
        path: model.get_submodule(path)
        for growth in growths
        for path in (*sites[growth.linear].rows, *sites[growth.linear].readers)
    }
    found, total = captured(model, modules, loss), 0.0
    for growth in growths:
        hidden, chosen = sites[growth.linear], list(growth.neurons)
        layer, activation = modules[growth.linear], model.get_submodule(hidden.activation)
        steps = (growth.directions * growth.steps[:, None]).double().chunk(len(hidden.rows), 1)
        x, z = found[growth.linear][:2]
        x, z = extended(layer, x.detach())[:, 0], tokens(layer, z.detach())[:, chosen]
        slope = tokens(layer, found[hidden.readers[0]][2])[:, chosen]
        scale = 1.0
        for norm in map(model.get_submodule, hidden.norms):
            scale = (norm.weight / torch.sqrt(norm.running_var + norm.eps)).detach()[chosen]
            z = (z - norm.running_mean[chosen]) * scale + norm.bias.detach()[chosen]
        first = x @ steps[0].T * scale
        change = derivative(activation, z, 2) * first**2
        if len(hidden.rows) == 2:
            up = tokens(layer, found[hidden.rows[1]][1].detach())[:, chosen]
            change = change * up + 2 * derivative(activation, z, 1) * first * (x @ steps[1].T)
        total += 0.5 * float((slope * change).sum())
    return total


def predicted_by_units(model, growths, loss):
    """The slope of the loss in the size of all gains, at gains of 0, after the own rows took their share of it."""
    modules = {growth.linear: model.get_submodule(growth.linear) for growth in growths}
    activation = ACT2FN[model.config.skip_activation]
    zero = torch.zeros(1, dtype=torch.float64)
    at_zero, total = derivative(activation, zero, 1), 0.0
    for growth in growths:
        layer = modules[growth.linear]
        x, _, _, slope = captured(model, {growth.linear: layer}, loss)[growth.linear]
        x, slope = extended(layer, x.detach()), tokens(layer, slope)
        neurons = slope.shape[1]
        for neuron, gain, row in zip(
            growth.neurons, growth.gains, growth.directions * growth.steps[:, None], strict=True
        ):
            patch = x[:, neuron * x.shape[1] // neurons]
            row = row.double()
            taken = row if layer.bias is not None else torch.cat([row[:-1], zero])
            response = activation(patch @ row) - at_zero * (patch @ taken)
            total += float(gain) * float((slope[:, neuron] * response).sum())
    return total


def assert_state_is_that_of_a_twin_that_grew_before(make, grow_, name, momentum, rtol, atol):
    """
    Two steps and a split at step size 0 lead to the state that the split and two steps lead to, in training mode:
    copies see half of the gradient, what reads them all of it. Returns both models.
    """

    def trained(split_first):
        model = make(name, dtype=torch.float64).train()
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
            if isinstance(module, T5Attention):
                module.dropout = 0.0
        kind, options = (torch.optim.SGD, {"momentum": 0.9}) if momentum else (torch.optim.AdamW, {})
        optimizer = kind(model.parameters(), lr=0.0, **options)

        def steps():
            for _ in range(2):
                loss_of(name)(model).backward()
                optimizer.step()
                optimizer.zero_grad()

        for action in (
            (lambda: grow_(model, optimizer), steps) if split_first else (steps, lambda: grow_(model, optimizer))
        ):
            action()
        return model, optimizer

    (model, optimizer), (twin, other) = trained(False), trained(True)
    own = dict(model.named_parameters())
    for key, parameter in twin.named_parameters():
        assert torch.equal(parameter, own[key])
        for field, value in other.state[parameter].items():
            if value is not None:
                torch.testing.assert_close(optimizer.state[own[key]][field], value, rtol=rtol, atol=atol)
    return model, twin
