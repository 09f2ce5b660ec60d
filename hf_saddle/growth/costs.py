"""What a model costs and what growing one more neuron adds to that: exact counts, not estimates."""

import json
from dataclasses import dataclass, field
from functools import lru_cache

import torch
from torch.utils.flop_counter import FlopCounterMode

from ..models.configuration_saddle import sides
from ..models.modeling_saddle import GrowablePreTrainedModel
from ..models.sites import Site
from .config import DEPTH_OPERATORS


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
    return counter.get_total_flops() // 2


def tokens_per_image(model: GrowablePreTrainedModel) -> int:
    """Tokens of one image that every linear of the encoder sees."""
    return model.base_model.embeddings.position_embeddings.shape[1]


@dataclass
class _Family:
    """Counts of one linear of the base model and of the branches nested in it."""

    inputs: int
    rows: int  # weight rows, where a pair counts twice
    products: int  # rows that are multiplied, where a pair counts once
    units: dict[str, dict[int, int]] = field(default_factory=dict)  # path -> neuron -> units that feed it, all levels


@dataclass(frozen=True)
class Cost:
    """Parameters, and multiply-accumulates per image."""

    parameters: int
    macs: int


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
        self.sites: dict[str, Site] = {site.path: site for site in model.growable_linears()}
        self.families: dict[tuple[int, str], _Family] = {}
        for site in self.sites.values():
            family = self.families.setdefault((site.layer, site.linear), _Family(site.module.in_features, 0, 0))
            paired = site.nested and model.config.skip_unit == "residual_pair"
            family.rows += site.module.out_features * (2 if paired else 1)
            family.products += site.module.out_features
            family.units[site.path] = {}
        self.unit_rows = 2 if model.config.skip_unit == "residual_pair" else 1
        self.unit_gain = 1 if model.config.skip_unit == "gain" else 0
        for site in reversed(self.sites.values()):
            if site.module.skip is not None:
                family = self.families[site.layer, site.linear]
                counts, nested = family.units[site.path], family.units[site.branch.path]
                for unit, neuron in enumerate(site.module.skip.target.tolist()):
                    counts[neuron] = counts.get(neuron, 0) + 1 + nested.get(unit, 0)

    def cost(self, path: str, operator: str, neuron: int) -> Cost:
        """What growing one more neuron adds."""
        site = self.sites[path]
        family = self.families[site.layer, site.linear]
        width = family.inputs + 1
        fed = family.units[path].get(neuron, 0)
        if operator == "zero_gain":
            return Cost(width + 1, family.inputs * self.tokens)
        if operator == "residual_pair":
            return Cost(2 * width, family.inputs * self.tokens)
        if operator == "opposed_pair":
            return Cost(2 * (width + 1), 2 * family.inputs * self.tokens)
        copied = 0 if operator == "gradmax" else fed
        parameters = width + copied * (self.unit_rows * width + self.unit_gain)
        macs = family.inputs * (1 + copied)
        if site.nested:
            return Cost(parameters + 1, macs * self.tokens)
        readers = [self.families[site.layer, linear] for linear in site.readers]
        parameters += sum(reader.rows for reader in readers)
        return Cost(parameters, (macs + sum(reader.products for reader in readers)) * self.tokens)

    def book_(self, path: str, operator: str, neuron: int) -> None:
        """Note that a neuron grows."""
        site = self.sites[path]
        family = self.families[site.layer, site.linear]
        if operator in DEPTH_OPERATORS:
            family.rows += 1 if operator == "zero_gain" else 2
            family.products += 2 if operator == "opposed_pair" else 1
        elif site.readers:
            for linear in site.readers:
                self.families[site.layer, linear].inputs += 1
        else:
            fed = family.units[path].get(neuron, 0)
            family.rows += 1 + fed
            family.products += 1 + fed


def plan_cost(model: GrowablePreTrainedModel, growths) -> Cost:
    """What growths add to a model, in parameters and multiply-accumulates per image."""
    book, parameters, macs = CostBook(model), 0, 0
    for growth in growths:
        for neuron in growth.neurons:
            cost = book.cost(growth.linear, growth.operator, neuron)
            book.book_(growth.linear, growth.operator, neuron)
            parameters, macs = parameters + cost.parameters, macs + cost.macs
    return Cost(parameters, macs)
