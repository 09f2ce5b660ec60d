"""What grows in a model: its layers and attention heads in their places, and the shapes that they have."""

from collections.abc import Iterator
from dataclasses import replace

from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from transformers import PreTrainedModel

from .configuration_saddle import SaddleConfig
from .families import blocks_in
from .growable import Growable, growable_in
from .heads import Attention, attentions_in, heads_of
from .shapes import Shapes, grown_heads
from .sites import Site, inner_path, linear_at


class GrowableParts(PreTrainedModel):
    """The part of [`GrowablePreTrainedModel`] that knows where the model grows."""

    config: SaddleConfig

    @property
    def inner_prefix(self) -> str:
        """What precedes paths in the base model in this one, as `"bert."`; nothing where it is the base model."""
        return "" if self.base_model is self else f"{self.base_model_prefix}."

    def growable_linears(self) -> Iterator[Site]:
        """
        Yield every growable linear in canonical order, branches right after the linear they feed.

        Where a tuner has wrapped a linear, the one inside is yielded, under the path of the wrapper.

        Raises:
            ValueError: If another module has taken the place of a linear, as quantisers do.
        """
        for site in self.linear_places():
            yield replace(site, module=linear_at(site.path, site.module))

    def linear_places(self) -> Iterator[Site]:
        """
        Yield every place of a growable linear with what is there, be it wrapped or exchanged.

        Raises:
            ValueError: If a module is not there at all.
        """
        base, prefix = self.base_model, self.inner_prefix
        for number, (block_path, block) in enumerate(blocks_in(base, base.config)):
            hidden = {entry.rows[0]: entry.at(f"{prefix}{block_path}") for entry in block.neurons}
            for name in block.linears:
                root = f"{block_path}.{name}"
                path, depth, neurons = prefix + root, 0, hidden.get(name)
                module: nn.Module | None = base.get_submodule(root)
                while module is not None:
                    yield Site(path, root, number, name, depth, module, neurons)
                    found = growable_in(module)
                    path, depth, neurons = inner_path(path), depth + 1, None
                    module = None if found is None or found.skip is None else found.skip.linear

    def get_submodule(self, target: str) -> nn.Module:
        """
        As in torch.

        Raises:
            ValueError: If the path leads into the branch of a linear whose place a tuner or a quantiser has taken, as
                happens where they go on to the branch. The message tells what to do.
        """
        try:
            module: nn.Module = super().get_submodule(target)
            return module
        except AttributeError as error:
            path, in_branch, _ = target.rpartition(".skip")
            place = super().get_submodule(path) if in_branch else None
            if place is None or isinstance(place, Growable):
                raise
            raise ValueError(
                f"A {type(place).__name__} has taken the place of {path}, so that {target} is out of reach. "
                'Leave branches out: for adapters of PEFT by `exclude_modules=["skip.linear"]`, for quantisers by '
                "naming the linears that have a branch in `modules_to_not_convert` or its like. A part of the linears "
                "has been exchanged by now: load the model anew."
            ) from error

    def check_linears(self, sharded: bool = False) -> None:
        """
        Verify that the growable linears are as they were built: not wrapped, exchanged, quantised or offloaded.

        Args:
            sharded (`bool`, *optional*, defaults to `False`): Whether their weights may be shards (FSDP2).

        Raises:
            ValueError: If an adapter or a quantiser has taken the place of one, or its weights are fetched for each
                forward pass. The message tells what to do.
        """
        for site in self.linear_places():
            path, module, linear = site.path, site.module, linear_at(site.path, site.module)
            if module is not linear:
                raise ValueError(
                    f"A {type(module).__name__} has taken the place of the linear {path}, which cannot change then. "
                    "Merge adapters first (`merge_and_unload()` of a PeftModel), or remove them (`unload()` of a "
                    "PeftModel, `model.delete_adapter` after `model.add_adapter`)."
                )
            weight: Tensor = linear.weight
            if sharded and isinstance(weight, DTensor):
                weight = weight.to_local()
            if is_traceable_wrapper_subclass(weight):
                raise ValueError(
                    f"The weights of {path} are no plain tensors but {type(weight).__name__}, and cannot be "
                    "changed. Change the model as it was before it was quantised or sharded."
                )
            # As accelerate leaves it; a model that is on meta as a whole is one of shapes only, and may change.
            if weight.is_meta and "forward" in vars(linear):
                raise ValueError(
                    f"The weights of {path} are not in memory but fetched for each forward pass (`device_map` with "
                    "layers that are offloaded), and would come back in the old shape. Load the model without."
                )

    def shapes(self) -> Shapes:
        """The shapes that the modules have."""
        roots = [site for site in self.growable_linears() if not site.nested]
        widths = {site.root: site.module.neurons for site in roots if site.neurons is not None}
        sizes = {site.root: site.module.skip_sizes for site in roots if site.module.skip is not None}
        return Shapes(widths, sizes, grown_heads(self.config, heads_of(self.base_model)))

    def attentions(self) -> Iterator[Attention]:
        """Yield every attention module whose heads can grow."""
        yield from attentions_in(self.base_model, self.inner_prefix)
