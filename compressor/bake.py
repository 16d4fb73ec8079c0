"""Masks become part of a network: each masked convolution is exchanged for one that applies its masks."""

from collections.abc import Iterator, Mapping
from copy import deepcopy

from torch import Tensor, nn

from ..calibrate.convolutions import replace_modules
from ..common.errors import UsageError
from .layers import MaskedConv2d


def bake(model: nn.Module, *, ffp_masks: Mapping[str, Tensor] | None = None, fwp_masks: Mapping[str, Tensor] | None = None) -> nn.Module:
    """A copy of `model` whose convolutions named in the masks carry them (bool [C,oh,ow] and [F,C/groups,kh,kw]).

    UsageError for a name that is no Conv2d or a mask of the wrong shape.
    """
    ffp_masks, fwp_masks = ffp_masks or {}, fwp_masks or {}
    masked = deepcopy(model)
    layers: dict[str, nn.Module] = {}
    for name in dict.fromkeys([*ffp_masks, *fwp_masks]):
        try:
            conv = masked.get_submodule(name)
        except AttributeError:
            raise UsageError(f"the masks name a layer {name!r} that the network does not have") from None
        if not isinstance(conv, nn.Conv2d):
            raise UsageError(f"the masks name {name!r}, which is a {type(conv).__name__} and not a Conv2d")
        try:
            layers[name] = MaskedConv2d.wrap(conv, ffp_mask=ffp_masks.get(name), fwp_mask=fwp_masks.get(name))
        except UsageError as error:
            raise UsageError(f"{name}: {error}") from error
    replace_modules(masked, layers)
    return masked


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
