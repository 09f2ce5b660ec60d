"""Models that grow along with the one that is trained, such as an average of its weights."""

import copy
from collections.abc import Sequence

from torch import nn

from ...growth.optimizer.rebind import same_shapes
from ...models.modeling_saddle import GrowablePreTrainedModel


def check_followers(model: GrowablePreTrainedModel, followers: Sequence[nn.Module]) -> None:
    """
    Verify that models can follow the growth of another one.

    Raises:
        ValueError: If one is not a Saddle model, has other shapes, or shares parameters with the model.
    """
    held = dict(model.named_parameters())
    for index, follower in enumerate(followers):
        if not isinstance(follower, GrowablePreTrainedModel):
            raise ValueError(
                f"`followers[{index}]` is a {type(follower).__name__}, but only Saddle models grow. Pass the model "
                "inside of it, such as `ema.module`."
            )
        if not same_shapes(follower, held):
            raise ValueError(
                f"`followers[{index}]` has other shapes than the model that it follows. Load the state that was saved "
                "with the model (`follower.load_state_dict` takes its shapes), or begin a new average of the model."
            )
        if not set(held.values()).isdisjoint(follower.parameters()):
            raise ValueError(f"`followers[{index}]` shares parameters with the model; give a copy (`copy.deepcopy`).")


def adopt_history_(model: GrowablePreTrainedModel, followers: Sequence[GrowablePreTrainedModel]) -> None:
    """Give the followers of a model its growth history, which is theirs."""
    for follower in followers:
        follower.growth_history = copy.deepcopy(model.growth_history)
