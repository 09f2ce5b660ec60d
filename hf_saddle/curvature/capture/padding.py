"""Which positions of a batch of sequences are padding: those say nothing of how large inputs and steps are."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from .inputs import Affine
from .taps import Known


# What transformers' losses leave out.
IGNORED = -100


class Masks(NamedTuple):
    """Positions that are no padding, bool, shape `(samples, positions)`; `None` where all are meant."""

    own: Tensor | None  # of the model, or of the encoder
    decoder: Tensor | None


NO_MASKS = Masks(None, None)


def masks_of(batch: Any, samples: int) -> Masks:
    """
    The masks that a batch states.

    Those are `attention_mask` and `decoder_attention_mask`. A batch without the latter is taken at its labels: behind
    the last one that counts, a decoder reads what the loss does not depend on.
    """
    if not isinstance(batch, Mapping):
        return NO_MASKS
    own, decoder = (_mask(batch.get(name), samples) for name in ("attention_mask", "decoder_attention_mask"))
    labels = batch.get("labels")
    if "decoder_attention_mask" not in batch and isinstance(labels, Tensor) and _is_of_positions(labels, samples):
        counted = labels.ne(IGNORED).long()
        decoder = _mask(counted.flip(1).cumsum(1).flip(1), samples)
    return Masks(own, decoder)


def _mask(value: Any, samples: int) -> Tensor | None:
    if not _is_of_positions(value, samples) or bool((value != 0).all()):
        return None
    mask: Tensor = value.ne(0)
    return mask


def _is_of_positions(value: Any, samples: int) -> bool:
    return isinstance(value, Tensor) and value.dim() == 2 and len(value) == samples and not value.is_floating_point()


class Positions:
    """
    Which positions of a batch the layers of a model work on while it runs.

    Args:
        decoder (`nn.Module`, *optional*): What works on the second kind of positions of an encoder-decoder model.
    """

    def __init__(self, decoder: nn.Module | None):
        self._decoder = decoder
        self.start(NO_MASKS)

    def start(self, masks: Masks) -> None:
        """Begin the forward pass of a batch with these masks."""
        self._masks, self._in_decoder, self._encoded = masks, False, Known()

    def watch(self) -> list[RemovableHandle]:
        """Hooks that tell when the decoder runs, and on what of the encoder's."""
        if self._decoder is None:
            return []
        enter = self._decoder.register_forward_pre_hook(self._enter, with_kwargs=True)
        return [enter, self._decoder.register_forward_hook(self._leave)]

    def mask(self, module: Affine, inputs: Tensor, positions: int) -> Tensor | None:
        """The mask of the positions that a layer works on, if the batch has one."""
        across = self._encoded.get(inputs) is not None
        mask = self._masks.decoder if self._in_decoder and not across else self._masks.own
        fits = mask is not None and not isinstance(module, nn.Conv2d) and mask.shape[1] == positions
        return mask if fits else None

    def _enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._in_decoder = True
        states = kwargs.get("encoder_hidden_states")
        if isinstance(states, Tensor):
            self._encoded.add(states, True)

    def _leave(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self._in_decoder = False


# Positions per sample that are used where a root mean square is enough.
POSITIONS_FOR_SCALE = 16


def rows_for_scale(
    samples: int,
    positions: int,
    first: int,
    mask: Tensor | None,
    device: torch.device,
    wanted: int = POSITIONS_FOR_SCALE,
) -> Tensor:
    """
    Every so many positions of each sample, from another one on in each, so that all have their share, a class token
    too. Padding is left out: more of it changes nothing.

    Args:
        samples (`int`): Number of samples.
        positions (`int`): Number of positions of each.
        first (`int`): Number of samples before these.
        mask (`Tensor`, *optional*): Positions that are no padding, bool, shape `(samples, positions)`.
        device (`torch.device`): Where the result is.
        wanted (`int`, *optional*, defaults to 16): About how many positions of each sample.

    Returns:
        `Tensor`: Rows, int64, counted sample by sample.
    """
    if mask is None:
        stride = max(1, positions // wanted)
        if stride == 1:
            return torch.arange(samples * positions, device=device)
        sample = torch.arange(samples, device=device)[:, None]
        chosen = (first + sample + stride * torch.arange(positions // stride, device=device)) % positions
        return (sample * positions + chosen).flatten()
    mask = mask.to(device)
    sample = torch.arange(samples, device=device)[:, None]
    length = mask.sum(dim=1, keepdim=True)
    strides = (length // wanted).clamp_min(1)
    place = (mask.cumsum(dim=1) - 1 - first - sample) % length.clamp_min(1)
    taken = mask & (place % strides == 0) & (place < length // strides * strides)
    return taken.flatten().nonzero()[:, 0]
