"""Where LoRA's rank goes: shared among linears by what their neurons would gain by depth."""

from .report import CurvatureReport, LayerCurvature


def lora_ranks(report: CurvatureReport, parameters: int) -> dict[str, int]:
    """
    The rank of a LoRA adapter for each linear, to be the `rank_pattern` of PEFT's `LoraConfig`.

    The parameters of the adapters of a linear are in proportion to the summed gains of its significant neurons, see
    [`LayerCurvature`], rounded down to whole ranks; what is left goes to the largest remainders. A linear that gains
    too little for one rank gets no adapter.

    Args:
        report ([`CurvatureReport`]): An analysis under `"depth"` of the linears that may get adapters; along whitened
            directions (`whiten=True`) gains of different linears compare.
        parameters (`int`): What all adapters have at most. One rank takes as many as the linear has inputs and
            neurons, of convolutions inputs of a patch.

    Returns:
        `dict[str, int]`: Rank by path, at least 1, in the order of the model.

    Raises:
        ValueError: If nothing in the report is of depth, no neuron is significant, or the parameters do not suffice
            for one rank.
    """
    layers = {layer.linear: layer for layer in report if layer.criterion == "depth"}
    if not layers:
        raise ValueError("The report has no curvature of depth. Call `analyze_curvature(model, batches, 'depth')`.")
    gains = {path: float(layer.gain[layer.significant].sum()) for path, layer in layers.items()}
    if not sum(gains.values()) > 0:
        raise ValueError("No neuron of the report is significant: measure on more samples.")
    return shared_ranks(gains, {path: _rank_parameters(layer) for path, layer in layers.items()}, parameters)


def shared_ranks(gains: dict[str, float], costs: dict[str, int], parameters: int) -> dict[str, int]:
    """
    Ranks whose parameters are in proportion to gains.

    Args:
        gains (`dict[str, float]`): By path, not all of them 0.
        costs (`dict[str, int]`): Parameters of one rank, by path.
        parameters (`int`): What all ranks have at most.

    Raises:
        ValueError: If the parameters do not suffice for one rank.
    """
    total = sum(gains.values())
    wished = {path: parameters * gain / total / costs[path] for path, gain in gains.items() if gain > 0}
    ranks = {path: int(wish) for path, wish in wished.items()}
    left = parameters - sum(rank * costs[path] for path, rank in ranks.items())
    for path in sorted(wished, key=lambda path: ranks[path] - wished[path]):
        if costs[path] <= left:
            ranks[path], left = ranks[path] + 1, left - costs[path]
    if not any(ranks.values()):
        least = min(costs[path] for path in wished)
        raise ValueError(f"{parameters} parameters do not suffice for one rank, which takes {least}.")
    return {path: rank for path, rank in ranks.items() if rank > 0}


def _rank_parameters(layer: LayerCurvature) -> int:
    """Parameters of an adapter of rank 1."""
    return layer.direction.shape[1] - 1 + layer.neurons
