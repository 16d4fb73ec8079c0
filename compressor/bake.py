"""Masks become part of a network, and leave it again."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from fineprune.calibrate.strides import answer_as_nchw, wants_nchw
from fineprune.common.copies import copied
from fineprune.common.errors import UsageError
from fineprune.common.inputs import Shape
from fineprune.ops.as_conv2d import product_of

from .attention import IN_PROJ, join, split
from .layers import MaskedLayer, mask, unmask
from .masks import KINDS
from .masks.kind import buffer

Masks = Mapping[str, Mapping[str, Tensor]]
"""Masks by kind ("ffp", "fwp") and layer."""


def bake(model: nn.Module, masks: Masks, *, input_shape: Shape | None = None) -> nn.Module:
    """A copy of `model` whose layers named in `masks` carry them, beside those that they carry already: what either drops is dropped.

    masks: {"ffp": {layer: bool [C,oh,ow]}, "fwp": {layer: bool [F,C/groups,kh,kw]}}.
    input_shape: of a sample, by which it is found out whether block-masked layers must answer as NCHW (`wants_nchw`).
    UsageError for a name that is no layer with masks, a mask of the wrong shape or a layer whose forward was exchanged.
    """
    masked = copied(model)
    given = _by_layer(masks)
    _put_on(masked, given)
    blocked = [layer for name, layer in masked_layers(masked) if name in given and layer.block_mask is not None]
    if input_shape is not None and wants_nchw(masked, blocked, input_shape):
        answer_as_nchw(blocked)
    return masked


def remask(model: nn.Module, masks: Masks) -> None:
    """Give `model` itself `masks` in place of those that it carries; weights that were dropped keep the values that they have.

    UsageError as in `bake`.
    """
    for _, layer in masked_layers(model):
        for kind in KINDS:
            setattr(layer, buffer(kind), None)
    _put_on(model, _by_layer(masks))


def zero_dropped(model: nn.Module) -> None:
    """Make the parameters of dropped weights of `model` zero, in layers that do not compute their weight."""
    with torch.no_grad():
        for _, layer in masked_layers(model):
            if (kept := layer.own_weight_mask) is not None and not layer.computed:
                layer.own_weight.mul_(kept)


def _by_layer(masks: Masks) -> dict[str, dict[str, Tensor]]:
    """The masks by layer, then by the names of the buffers."""
    by_layer: dict[str, dict[str, Tensor]] = {}
    for kind in KINDS:
        for name, one in masks.get(kind.name, {}).items():
            by_layer.setdefault(name, {})[buffer(kind)] = one
    return by_layer


def _put_on(model: nn.Module, masks: Mapping[str, Mapping[str, Tensor]]) -> None:
    for name, of_layer in masks.items():
        try:
            above, _, own = name.rpartition(".")
            if own == IN_PROJ and own not in model.get_submodule(above)._modules:
                split(model.get_submodule(above))
            layer = model.get_submodule(name)
        except AttributeError:
            raise UsageError(f"the masks name a layer {name!r} that the network does not have") from None
        if product_of(type(layer)) is None:
            raise UsageError(f"the masks name {name!r}, which is a {type(layer).__name__} and no layer that can carry masks")
        try:
            mask(layer, **of_layer)
        except UsageError as error:
            raise UsageError(f"{name}: {error}") from error


def dense_twin(model: nn.Module) -> nn.Module:
    """A copy of `model` without masks, dropped weights being zeros in it: what a dense runtime would have to compute."""
    dense = copied(model)
    for _, layer in list(masked_layers(dense)):
        unmask(layer)
    join(dense)
    return dense


def masked_layers(model: nn.Module) -> Iterator[tuple[str, MaskedLayer]]:
    """(name, layer) of every masked layer."""
    for name, module in model.named_modules():
        if isinstance(module, MaskedLayer):
            yield name, module


def masks_of(model: nn.Module) -> dict[str, dict[str, Tensor]]:
    """The masks that a network carries, on the CPU, by kind and layer."""
    layers = [(name, layer.masks) for name, layer in masked_layers(model)]
    return {kind.name: {name: masks[kind.name].cpu() for name, masks in layers if kind.name in masks} for kind in KINDS}
