"""What a model costs and what growing one more neuron adds to that: exact counts, not estimates."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from ..models.modeling_saddle import GrowablePreTrainedModel
from ..models.sites import Site, inner_path
from .counting import count_positions
from .operators import OPERATORS, Operator
from .records.layer_growth import LayerGrowth


@dataclass(frozen=True)
class Cost:
    """Parameters, and multiply-accumulates per sample."""

    parameters: int
    macs: int


@dataclass
class _Counts:
    """Counts of one layer of the stock model with the branches nested in it."""

    columns: int  # inputs, or input channels
    entries: int  # weights of a row for each of them: of a convolution those of its kernel
    bias: bool
    positions: int  # of a sample at which it acts
    rows: int = 0  # weight rows, where a pair counts twice
    products: int = 0  # rows that are multiplied, where a pair counts once
    units: dict[str, dict[int, int]] = field(default_factory=dict)  # path -> neuron -> units that feed it, all levels

    @property
    def width(self) -> int:
        """Weights of a row."""
        return self.columns * self.entries


def _rows(kind: str | None) -> int:
    """Weight rows of a branch unit."""
    return 2 if kind == "residual_pair" else 1


def _unit_size(kind: str | None, width: int) -> int:
    """Parameters of a branch unit whose rows have `width` weights: with a bias each, and a gain."""
    return _rows(kind) * (width + 1) + (1 if kind == "gain" else 0)


class CostBook:
    """
    Marginal costs of growths of one event, given those that were already chosen.

    Copying a hidden neuron also copies its column in every row that its readers and their branches have by then, and
    the units that feed the neuron; a unit for a reader has as many inputs as there are hidden neurons by then.

    Args:
        model ([`GrowablePreTrainedModel`]): The model before the event.
    """

    def __init__(self, model: GrowablePreTrainedModel):
        self.kind = model.config.skip_unit
        self.sites: dict[str, Site] = {site.path: site for site in model.growable_linears()}
        self.counts: dict[str, _Counts] = {}  # by path in the base model
        self.roots = {site.path: site.root for site in self.sites.values()}
        self.norms: dict[str, int] = {}  # parameters of a channel
        positions = count_positions(model)
        for site in self.sites.values():
            module = site.module
            if not site.nested:
                columns = module.weight.shape[module.layout.columns]
                entries = module.weight.numel() // (module.neurons * columns)
                self.counts[site.root] = _Counts(columns, entries, module.bias is not None, positions[site.root])
            counts = self.counts[site.root]
            counts.rows += module.neurons * (_rows(self.kind) if site.nested else 1)
            counts.products += module.neurons
            counts.units[site.path] = {}
            if site.neurons is not None:
                norms = map(model.get_submodule, site.neurons.norms)
                self.norms[site.path] = sum(len(list(norm.parameters(recurse=False))) for norm in norms)
        for site in reversed(self.sites.values()):
            if site.module.skip is not None:
                units = self.counts[site.root].units
                fed, nested = units[site.path], units[inner_path(site.path)]
                for unit, neuron in enumerate(site.module.skip.target.tolist()):
                    fed[neuron] = fed.get(neuron, 0) + 1 + nested.get(unit, 0)

    def cost(self, path: str, operator: Operator, neuron: int) -> Cost:
        """What growing one more neuron adds."""
        site = self.sites[path]
        counts = self.counts[site.root]
        if operator.deepens:
            units = operator.units
            return Cost(units * _unit_size(operator.kind, counts.width), units * counts.width * counts.positions)
        parameters = macs = 0
        for row, own in self._rows_of(site):
            copied = own.units[row].get(neuron, 0) if operator.copies else 0
            parameters += own.width + (own.bias or site.nested) + copied * _unit_size(self.kind, own.width)
            macs += own.width * (1 + copied) * own.positions
        if site.nested:
            return Cost(parameters + 1, macs)  # its gain
        parameters += self.norms[path]
        for reader in self._readers(site):
            parameters += reader.rows * reader.entries
            macs += reader.products * reader.entries * reader.positions
        return Cost(parameters, macs)

    def book_(self, path: str, operator: Operator, neuron: int) -> None:
        """Note that a neuron grows."""
        site = self.sites[path]
        if operator.deepens:
            counts = self.counts[site.root]
            counts.rows += operator.units * _rows(operator.kind)
            counts.products += operator.units
            return
        for row, own in self._rows_of(site):
            copied = own.units[row].get(neuron, 0) if operator.copies else 0
            own.rows += 1 + copied * _rows(self.kind)
            own.products += 1 + copied
        for reader in self._readers(site):
            reader.columns += 1

    def _rows_of(self, site: Site) -> list[tuple[str, _Counts]]:
        """The layers that have a row of each neuron that is widened."""
        rows = [site.path] if site.neurons is None else site.neurons.rows
        return [(row, self.counts[self.roots[row]]) for row in rows]

    def _readers(self, site: Site) -> list[_Counts]:
        readers = () if site.neurons is None else site.neurons.readers
        return [self.counts[self.roots[reader]] for reader in readers]


def plan_cost(model: GrowablePreTrainedModel, growths: Iterable[LayerGrowth]) -> Cost:
    """What growths add to a model, in parameters and multiply-accumulates per sample."""
    book, parameters, macs = CostBook(model), 0, 0
    for growth in growths:
        operator = OPERATORS[growth.operator]
        for neuron in growth.neurons:
            cost = book.cost(growth.linear, operator, neuron)
            book.book_(growth.linear, operator, neuron)
            parameters, macs = parameters + cost.parameters, macs + cost.macs
    return Cost(parameters, macs)
