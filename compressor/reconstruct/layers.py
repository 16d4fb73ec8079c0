"""Which layers of a masked network can be refitted, in the order in which they run."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from fineprune.calibrate.calls import Call, acting, filters_of, groups_of
from fineprune.calibrate.convolutions import Skipped
from fineprune.common.inputs import Inputs

from ..bake import masked_layers
from ..layers import MaskedLayer
from .passes import Tap, forward


class Output(NamedTuple):
    """What a call of a layer puts out."""

    filters: int
    positions: int
    """Of a map."""
    places: int
    """Of all maps of an image: attention may cut images into windows, or put them where positions are."""

    @classmethod
    def of(cls, y: Tensor, images: int) -> Self:
        """Of y[N,F,oh,ow] for so many images."""
        positions = y.shape[2] * y.shape[3]
        return cls(y.shape[1], positions, -(-len(y) * positions // images))


Outputs = dict[str, list[Output]]
"""By layer, in the order of their first calls: the output of each call."""


@dataclass(frozen=True, kw_only=True)
class Shared:
    """A weight that is refitted: the layers that compute with it (nearly always one), and the outputs of all their calls in one pass."""

    names: tuple[str, ...]
    outputs: list[Output]
    inputs: int
    """Weights of a filter."""

    @property
    def name(self) -> str:
        """That of its first layer."""
        return self.names[0]


def refittable(model: nn.Module, outputs: Outputs) -> tuple[list[Shared], list[Skipped]]:
    """The weights of masked convolutions in the order of their first use, and the layers that keep theirs, with reasons.

    Layers that share a weight are refitted together, for which they must have the same weight masks, groups and bias.
    """
    masked = dict(masked_layers(model))
    owners: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                owners.setdefault(id(parameter), []).append(name)
    found: list[Shared] = []
    left: list[Skipped] = []
    for name, module in model.named_modules():
        if name not in masked:
            if isinstance(module, nn.Linear | _ConvNd):
                left.append(Skipped(name=name, reason="it carries no masks"))
            continue
        if masked[name].computed:
            left.append(Skipped(name=name, reason="it computes its weight (parametrized, standardised)"))
            continue
        sharing = owners[id(masked[name].own_weight)]
        if reason := _why_not(name, sharing, masked, outputs):
            left.append(Skipped(name=name, reason=reason))
        elif name == min(sharing, key=list(outputs).index):
            names = (name, *(other for other in sharing if other != name))
            found.append(Shared(names=names, outputs=[o for n in names for o in outputs[n]], inputs=kept(masked[name])[0].numel()))
    return sorted(found, key=lambda shared: list(outputs).index(shared.name)), left


def _why_not(name: str, sharing: list[str], masked: dict[str, MaskedLayer], outputs: Outputs) -> str | None:
    if name not in outputs:
        return "the forward pass does not call it"
    if not outputs[name]:
        return "its forward does not give its product the layer's bias"
    layer = masked[name]
    for other in sharing:
        if other not in masked or not outputs.get(other):
            return f"it shares its weight with {other}, which carries no masks or is not called"
        twin = masked[other]
        if twin.bias is not layer.bias or groups_of(twin) != groups_of(layer) or not torch.equal(kept(twin), kept(layer)):
            return f"it shares its weight with {other}, which has other weight masks, groups or another bias"
    return None


def kept(layer: MaskedLayer) -> Tensor:
    """bool [F,C/groups,kh,kw]: the weights that stay."""
    mask = layer.weight_mask
    return torch.ones_like(filters_of(layer, layer.weight), dtype=torch.bool) if mask is None else mask


def outputs_of(model: nn.Module, images: Inputs, names: Iterable[str]) -> Outputs:
    """What the layers `names` of `model` put out, seen in one pass of a batch; nothing where a forward adds its bias itself."""
    found: Outputs = {}
    biased: set[str] = set()

    def see(name: str, call: Call) -> Tensor:
        y = call.output()
        found.setdefault(name, []).append(Output.of(y, len(images)))
        if call.bias is not model.get_submodule(name)._parameters.get("bias"):
            biased.add(name)
        return y

    with acting([Tap(model.get_submodule(name), partial(see, name)) for name in names]):
        forward(model, images)
    return {name: [] if name in biased else calls for name, calls in found.items()}
