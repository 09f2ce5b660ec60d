"""A model without values: what a growth adds to it can be told, where no process has the values of the model whole."""

from ...models.modeling_saddle import GrowablePreTrainedModel
from ...models.parameters import is_sharded
from ...models.restacking import twin_of


def shell_of(model: GrowablePreTrainedModel) -> GrowablePreTrainedModel:
    """
    A model of the same shapes on the meta device, without hooks. The buffers are those of the model: which neurons its
    units feed is no matter of shapes alone.
    """
    shell: GrowablePreTrainedModel = twin_of(model, model.config)
    for name, buffer in model.named_buffers(remove_duplicate=False):
        path, _, leaf = name.rpartition(".")
        shell.get_submodule(path)._buffers[leaf] = buffer
    return shell


def to_be_asked(model: GrowablePreTrainedModel) -> GrowablePreTrainedModel:
    """What tells how a growth of a model would turn out: the model itself, or its shell if it is sharded."""
    return shell_of(model) if is_sharded(model) else model
