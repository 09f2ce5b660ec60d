"""What a growth cannot carry along with parameters is refused before anything happens."""

from collections.abc import Collection, Iterable

from ...models.heads import Attention
from ...models.modeling_saddle import GrowablePreTrainedModel
from ...models.parameters import check_replaceable, check_unattached


def check_attachments(
    model: GrowablePreTrainedModel, paths: Iterable[str], attentions: Collection[Attention] = ()
) -> None:
    """
    Verify that the layers of some blocks can exchange their parameters.

    `requires_grad` and attributes go on with the parameters that take their place. Where one layer grows in width,
    those change too that normalise or read its neurons, so that all of a block are checked.

    Args:
        model ([`GrowablePreTrainedModel`]): The model.
        paths (`Iterable[str]`): Layers that are to grow.
        attentions (`Collection[Attention]`): Attention modules that are to have more heads.

    Raises:
        ValueError: If parameters have hooks or tensors among their attributes, are shared by several modules, or were
            pruned or reparametrised.
    """
    grown = {*paths, *(row for attention in attentions for row in attention.heads.rows)}
    blocks = {site.block for site in model.growable_linears() if site.path in grown}
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    for table in {attention.heads.table for attention in attentions if attention.heads.table is not None}:
        parameter = model.get_parameter(table)
        check_unattached(table, parameter)
        _check_own(names[id(parameter)])
    for site in model.growable_linears():
        if site.block not in blocks:
            continue
        own = check_replaceable(site.path, site.module)
        for norm in site.neurons.norms if site.neurons is not None else ():
            own += check_replaceable(norm, model.get_submodule(norm))
        for _, parameter in own:
            _check_own(names[id(parameter)])


def _check_own(names: list[str]) -> None:
    """Raise a `ValueError` if a parameter has several names."""
    if len(names) > 1:
        raise ValueError(
            f"{' and '.join(names[:2])} are one parameter, and a growth would part them. Give each module its own."
        )
