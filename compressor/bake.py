"""Masks become part of a network, and leave it again."""

from collections.abc import Iterator, Mapping, Sequence

from torch import Tensor, nn

from fineprune.calibrate.strides import answer_as_nchw, wants_nchw
from fineprune.common.copies import copied
from fineprune.common.errors import UsageError

from .layers import MaskedConv2d, mask, unmask


def bake(
    model: nn.Module,
    *,
    ffp_masks: Mapping[str, Tensor] | None = None,
    fwp_masks: Mapping[str, Tensor] | None = None,
    input_shape: Sequence[int] | None = None,
) -> nn.Module:
    """A copy of `model` whose convolutions named in the masks carry them (bool [C,oh,ow] and [F,C/groups,kh,kw]).

    input_shape: (C,H,W) of a sample, by which it is found out whether block-masked layers must answer as NCHW (`wants_nchw`).
    UsageError for a name that is no Conv2d, a mask of the wrong shape or a layer with a forward of its own.
    """
    ffp_masks, fwp_masks = ffp_masks or {}, fwp_masks or {}
    masked = copied(model)
    for name in dict.fromkeys([*ffp_masks, *fwp_masks]):
        try:
            conv = masked.get_submodule(name)
        except AttributeError:
            raise UsageError(f"the masks name a layer {name!r} that the network does not have") from None
        if not isinstance(conv, nn.Conv2d):
            raise UsageError(f"the masks name {name!r}, which is a {type(conv).__name__} and not a Conv2d")
        try:
            mask(conv, ffp_mask=ffp_masks.get(name), fwp_mask=fwp_masks.get(name))
        except UsageError as error:
            raise UsageError(f"{name}: {error}") from error
    blocked = [masked.get_submodule(name) for name in ffp_masks]
    if input_shape is not None and wants_nchw(masked, blocked, input_shape):
        answer_as_nchw(blocked)
    return masked


def dense_twin(model: nn.Module) -> nn.Module:
    """A copy of `model` without masks, dropped weights being zeros in it: what a dense runtime would have to compute."""
    dense = copied(model)
    for _, layer in list(masked_layers(dense)):
        unmask(layer)
    return dense


def masked_layers(model: nn.Module) -> Iterator[tuple[str, MaskedConv2d]]:
    """(name, layer) of every masked convolution."""
    for name, module in model.named_modules():
        if isinstance(module, MaskedConv2d):
            yield name, module


def masks_of(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The FFP and the FWP masks that a baked network carries, by layer."""
    layers = list(masked_layers(model))
    ffp = {name: layer.ffp_mask for name, layer in layers if layer.ffp_mask is not None}
    fwp = {name: layer.fwp_mask for name, layer in layers if layer.fwp_mask is not None}
    return ffp, fwp
