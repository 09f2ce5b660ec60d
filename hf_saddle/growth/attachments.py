"""What a growth cannot carry along with parameters is refused before anything happens."""

from collections.abc import Collection

from ..models.modeling_saddle import GrowablePreTrainedModel
from ..models.parameters import check_replaceable, own_parameters


def check_attachments(model: GrowablePreTrainedModel, paths: Collection[str]) -> None:
    """
    Verify that the linears of some layers can exchange their parameters.

    `requires_grad` and attributes go on with the parameters that take their place. Where the first of several linears
    grows in width, the next one changes too, so that all of a layer are checked.

    Args:
        model ([`GrowablePreTrainedModel`]): The model.
        paths (`Collection[str]`): Linears that are to grow.

    Raises:
        ValueError: If parameters have hooks or tensors among their attributes, are shared by several modules, or were
            pruned or reparametrised.
    """
    layers = {site.layer for site in model.growable_linears() if site.path in paths}
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    for site in model.growable_linears():
        if site.layer not in layers:
            continue
        check_replaceable(site.path, site.module)
        for _, parameter in own_parameters(site.path, site.module):
            if len(names[id(parameter)]) > 1:
                raise ValueError(
                    f"{' and '.join(names[id(parameter)][:2])} are one parameter, and a growth would part them. Give "
                    "each module its own."
                )
