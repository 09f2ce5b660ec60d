"""What a model costs and what growing one more neuron adds to that: exact counts, not estimates."""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache

import torch
from torch.utils.flop_counter import FlopCounterMode

from ..models.configuration_saddle import sides
from ..models.modeling_saddle import GrowablePreTrainedModel
from ..models.sites import Site
from .operators import OPERATORS, Operator
from .plan import LayerGrowth


def count_parameters(model: GrowablePreTrainedModel) -> int:
    """Number of parameters, frozen ones included."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_macs(model: GrowablePreTrainedModel) -> int:
    """
    Multiply-accumulates of the forward pass of one image: half of what `torch.utils.flop_counter` counts, that is
    linear layers, attention products and the patch convolution.

    A model of the same config is run on the meta device, so that nothing is computed, and once for each config.
    """
    # mypy takes the hash of the instances for that of the class.
    return _count_macs(type(model), model.config.to_json_string(use_diff=False))  # type: ignore[arg-type]


@lru_cache(maxsize=64)
def _count_macs(model_class: type[GrowablePreTrainedModel], fields: str) -> int:
    config = model_class.config_class.from_dict(json.loads(fields))
    with torch.device("meta"), torch.no_grad():
        model = model_class(config).eval()
        pixels = torch.empty(1, config.num_channels, *sides(config.image_size))
        with FlopCounterMode(display=False) as counter:
            model(pixel_values=pixels)
    return int(counter.get_total_flops()) // 2


def tokens_per_image(model: GrowablePreTrainedModel) -> int:
    """Tokens of one image that every linear of the encoder sees."""
    return int(model.base_model.embeddings.position_embeddings.shape[1])


@dataclass(frozen=True)
class Cost:
    """Parameters, and multiply-accumulates per image."""

    parameters: int
    macs: int


@dataclass
class _Counts:
    """Counts of one linear of the base model with the branches nested in it."""

    inputs: int
    rows: int = 0  # weight rows, where a pair counts twice
    products: int = 0  # rows that are multiplied, where a pair counts once
    units: dict[str, dict[int, int]] = field(default_factory=dict)  # path -> neuron -> units that feed it, all levels


def _rows(kind: str | None) -> int:
    """Weight rows of a branch unit."""
    return 2 if kind == "residual_pair" else 1


def _unit_size(kind: str | None, width: int) -> int:
    """Parameters of a branch unit whose rows have `width` of them, bias included."""
    return _rows(kind) * width + (1 if kind == "gain" else 0)


class CostBook:
    """
    Marginal costs of growths of one event, given those that were already chosen.

    Copying a hidden neuron also copies its column in every row that fc2 and its branches have by then, and the units
    that feed the neuron; a unit for fc2 has as many inputs as there are hidden neurons by then.

    Args:
        model ([`GrowablePreTrainedModel`]): The model before the event.
    """

    def __init__(self, model: GrowablePreTrainedModel):
        self.tokens = tokens_per_image(model)
        self.kind = model.config.skip_unit
        self.sites: dict[str, Site] = {site.path: site for site in model.growable_linears()}
        self.counts: dict[tuple[int, str], _Counts] = {}
        for site in self.sites.values():
            counts = self.counts.setdefault((site.layer, site.linear), _Counts(site.module.in_features))
            counts.rows += site.module.out_features * (_rows(self.kind) if site.nested else 1)
            counts.products += site.module.out_features
            counts.units[site.path] = {}
        for site in reversed(self.sites.values()):
            if site.module.skip is not None:
                units = self.counts[site.layer, site.linear].units
                fed, nested = units[site.path], units[site.branch.path]
                for unit, neuron in enumerate(site.module.skip.target.tolist()):
                    fed[neuron] = fed.get(neuron, 0) + 1 + nested.get(unit, 0)

    def cost(self, path: str, operator: Operator, neuron: int) -> Cost:
        """What growing one more neuron adds."""
        site = self.sites[path]
        counts = self.counts[site.layer, site.linear]
        width = counts.inputs + 1
        if operator.deepens:
            units = operator.units
            return Cost(units * _unit_size(operator.kind, width), units * counts.inputs * self.tokens)
        copied = counts.units[path].get(neuron, 0) if operator.copies else 0
        parameters = width + copied * _unit_size(self.kind, width)
        products = counts.inputs * (1 + copied)
        if site.nested:
            return Cost(parameters + 1, products * self.tokens)  # its gain
        readers = self._readers(site)
        parameters += sum(reader.rows for reader in readers)
        return Cost(parameters, (products + sum(reader.products for reader in readers)) * self.tokens)

    def book_(self, path: str, operator: Operator, neuron: int) -> None:
        """Note that a neuron grows."""
        site = self.sites[path]
        counts = self.counts[site.layer, site.linear]
        if operator.deepens:
            counts.rows += operator.units * _rows(operator.kind)
            counts.products += operator.units
        elif site.nested:
            copied = 1 + counts.units[path].get(neuron, 0)
            counts.rows += copied
            counts.products += copied
        for reader in () if operator.deepens else self._readers(site):
            reader.inputs += 1

    def _readers(self, site: Site) -> list[_Counts]:
        return [self.counts[site.layer, linear] for linear in site.readers]


def plan_cost(model: GrowablePreTrainedModel, growths: Iterable[LayerGrowth]) -> Cost:
    """What growths add to a model, in parameters and multiply-accumulates per image."""
    book, parameters, macs = CostBook(model), 0, 0
    for growth in growths:
        operator = OPERATORS[growth.operator]
        for neuron in growth.neurons:
            cost = book.cost(growth.linear, operator, neuron)
            book.book_(growth.linear, operator, neuron)
            parameters, macs = parameters + cost.parameters, macs + cost.macs
    return Cost(parameters, macs)
