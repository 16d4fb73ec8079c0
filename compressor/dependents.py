"""Channels that nothing computes any more: where whole filters are dropped, the layers that read their maps drop what they read.

    dead[c]  <=>  every path from the inputs of the network to channel c passes a filter without weights
    Wmask[:,c] = 0 for every dead c of every layer; a filter that reads nothing but dead channels is one without weights, too

The paths are found by one forward pass in which the inputs are NaN, and so is the output of every filter that a kept weight joins to a NaN:
whatever comes between layers (sums, joins, normalisation, pooling, activations, code of your own) hands NaN on where it depends on it.
Where NaN gets lost (comparisons choose, fmax), two images of noise tell what depends on data: a channel in which they differ is not dead.
What is dropped with a filter is so all that comes of it, the shift of its BatchNorm included; where a sum joins a dropped filter with a
kept one, the channel stays.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from fineprune.calibrate.calls import Acting, Call, acting, seen
from fineprune.calibrate.convolutions import ConvSite, evaluating
from fineprune.calibrate.layers import layer_at
from fineprune.common.inputs import Shape, Structured, answer, mapped, tensors, zeros

from .bake import bake
from .masks import WEIGHTS
from .reconstruct.passes import Tap


class _Joined:
    """A layer that tells apart what depends on data (NaN) and what does not, under a mask of its weights."""

    def __init__(self, layer: nn.Module, kept: Tensor | None) -> None:
        self.layer, self.kept = layer, kept
        self.forward = seen(layer, layer.forward, self._join)
        self.reached: Tensor | None = None
        """bool [C]: input channels that depend on data, in any call."""

    def _join(self, call: Call) -> Tensor:
        y = call.output()
        reached = call.x.isnan().movedim(1, 0).flatten(1).any(1)
        self.reached = reached if self.reached is None else self.reached | reached
        groups, per_group = call.conv.groups, call.weight.shape[1]
        read = reached.view(groups, 1, per_group, 1).expand(-1, len(call.weight) // groups, -1, -1).reshape(-1, per_group, 1)
        joins = read.expand(call.weight.flatten(2).shape)
        depends = (joins if self.kept is None else joins & self.kept.to(joins.device).flatten(2)).flatten(1).any(1)
        return torch.where(depends.view(1, -1, 1, 1), y.new_full((), torch.nan), torch.zeros_like(y))


def dead_channels(model: nn.Module, sites: Sequence[ConvSite], input_shape: Shape, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """bool [C] for every site that reads dead channels under masks of weights bool [F,C/groups,kh,kw] by layer.

    None are found in networks whose inputs are no numbers in floating point, or that fail on NaN.
    """
    before, after = (_reached(model, sites, input_shape, masks) for masks in ({}, weights))
    dead = {name: before[name] & ~reached for name, reached in after.items() if name in before}  # constants of the network's own stay
    if not any(channels.any() for channels in dead.values()):
        return {}
    constant = _constant(bake(model, {WEIGHTS.name: weights}, input_shape=input_shape), sites, input_shape)
    return {name: found for name, channels in dead.items() if name in constant and (found := channels & constant[name]).any()}


def without_dead(model: nn.Module, sites: Sequence[ConvSite], input_shape: Shape, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The masks of weights with those of dead channels dropped, too, in every site."""
    masks = dict(weights)
    by_name = {site.name: site for site in sites}
    for name, dead in dead_channels(model, sites, input_shape, weights).items():
        site = by_name[name]
        alive = ~dead.cpu().view(site.groups, 1, -1, 1, 1).expand(-1, site.filters_per_group, -1, *site.kernel)
        alive = alive.reshape(site.weight_shape)
        masks[name] = masks[name] & alive if name in masks else alive.clone()
    return masks


def _reached(model: nn.Module, sites: Sequence[ConvSite], input_shape: Shape, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """bool [C] by layer: the input channels that depend on data; empty where that cannot be told."""
    actors = {site.name: _Joined(layer_at(model, site), weights.get(site.name)) for site in sites}
    if not _runs(model, actors.values(), input_shape, lambda tensor: torch.full_like(tensor, torch.nan)):
        return {}
    return {name: actor.reached for name, actor in actors.items() if actor.reached is not None}


def _constant(model: nn.Module, sites: Sequence[ConvSite], input_shape: Shape) -> dict[str, Tensor]:
    """bool [C] by layer: the input channels that two images of noise have in common; empty where that cannot be told."""
    generator = torch.Generator().manual_seed(0)
    read: list[dict[str, list[Tensor]]] = [{}, {}]
    for of_pass in read:

        def see(name: str, call: Call, found: dict[str, list[Tensor]] = of_pass) -> Tensor:
            found.setdefault(name, []).append(call.x.movedim(1, 0).flatten(1).clone())
            return call.output()

        taps = [Tap(layer_at(model, site), partial(see, site.name)) for site in sites]
        if not _runs(model, taps, input_shape, lambda tensor: torch.randn(tensor.shape, generator=generator).to(tensor)):
            return {}
    one, other = read
    return {name: torch.stack([(x == y).all(1) for x, y in zip(calls, other[name], strict=True)]).all(0) for name, calls in one.items()}


def _runs(model: nn.Module, actors: Iterable[Acting], input_shape: Shape, data: Callable[[Tensor], Tensor]) -> bool:
    """Whether a pass over one image that `data` makes, like a tensor of that shape, comes to its end."""
    inputs = zeros(input_shape, model)
    values = inputs.value if isinstance(inputs, Structured) else inputs
    if not all(tensor.is_floating_point() for tensor in tensors(values)):
        return False
    made = mapped(values, data)
    try:
        with evaluating(model), torch.no_grad(), acting(actors):
            answer(model, Structured(made, 1, inputs.forward) if isinstance(inputs, Structured) else made)
    except Exception:  # the network's own code may raise anything on NaN
        return False
    return True
