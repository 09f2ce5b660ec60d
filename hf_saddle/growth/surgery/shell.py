"""A model without values: what a growth adds to it can be told, where no process has the values of the model whole."""

from ...models.modeling_saddle import GrowablePreTrainedModel
from ...models.parameters import is_sharded
from ...models.restacking import twin_of


def shell_of(model: GrowablePreTrainedModel) -> GrowablePreTrainedModel:
    """
    Of a model that is spread over processes one of the same shapes on the meta device, without its hooks; else the
    model itself. The buffers are those of the model: the neurons that units feed are no matter of shapes alone.
    """
    if not is_sharded(model):
        return model
    shell: GrowablePreTrainedModel = twin_of(model, model.config)
    for name, buffer in model.named_buffers(remove_duplicate=False):
        path, _, leaf = name.rpartition(".")
        shell.get_submodule(path)._buffers[leaf] = buffer
    return shell
