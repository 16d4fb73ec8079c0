"""Which input channels of a layer make a unit: those that are worth much, or little, at the same taps of the same filters.

    worth = sum over units Q of max(0, sum_{q in Q} (s_q - price * c_q))

s_q: what a tap is worth (`Criterion.profile`); c_q: what it costs; price: what the last kept unit is worth per multiply-add, where channels
that follow each other make the units. A unit adds what it is worth beyond its price, or nothing. Two channels of different units change
places where that raises the sum, each channel in its turn with the one that raises it most, until none does: a local optimum. The idea is
that of Ji et al., Tetris (NeurIPS 2018), for blocks of weights; an engine packs a layer's input anyway, in whatever order.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from fineprune.ops.channel_groups import aligned_order, alike

from .config import Part
from .ranked import Layer
from .selection import select

WORK = 1 << 28
"""Additions of a round, about; in layers that take more, evenly spread taps speak for all."""
ROUNDS = 20
"""At most."""


def in_clusters(
    layers: Sequence[Layer], config: Part, *, outputs: Collection[str] = (), carried: Mapping[str, Tensor] | None = None
) -> list[Layer]:
    """The layers with the order of their channels, for what `select` would keep of them.

    Units that a carried mask has made stay units: channels change places where it treats both alike.
    """
    carried, size = carried or {}, config.ranked.channels
    same = {name: torch.from_numpy(alike(mask.numpy())) for name, mask in carried.items()}
    orders = {name: aligned_order(mask.numpy(), size) for name, mask in carried.items()}
    layers = [replace(layer, order=None if (found := orders.get(layer.site.name)) is None else torch.from_numpy(found)) for layer in layers]
    masks = select(layers, config, outputs=outputs, carried=carried)
    arranged = []
    for layer in layers:
        name, channels = layer.site.name, layer.weight.shape[1]
        start = torch.arange(channels) if layer.order is None else layer.order
        alone = torch.zeros(channels) if orders.get(name) is None else same[name]
        if name in masks:
            start = clustered(_beyond_price(layer, masks[name]), size, start, alone)
        arranged.append(replace(layer, order=start))
    return arranged


def _beyond_price(layer: Layer, mask: Tensor) -> Tensor:
    """s - price * c, float64 [C/groups,Q,kh,kw]."""
    unit, worth, costs = layer.config.ranked, layer.config.method.profile(layer), layer.over_sets(layer.macs.double())
    rates = (unit.total(worth, layer) / unit.total(costs, layer).clamp_min(1)).flatten()
    price = rates.sort(descending=True).values[int(unit.alive(mask, layer).sum().clamp_min(1)) - 1]
    return (worth - price * costs).movedim(1, 0)


def clustered(values: Tensor, size: int, order: Tensor, alone: Tensor) -> Tensor:
    """The order int64 [C] in which `size` channels that follow each other make a unit, from values [C,...] and the order to start from.

    alone: [C]; only channels of the same number change places. Where `size` does not divide C, the last unit has fewer.
    """
    channels = len(values)
    flat = values.flatten(1).float()
    flat = flat[:, :: max(1, channels * channels * flat.shape[1] // WORK)]
    order, unit = order.clone(), torch.arange(channels) // size
    for _ in range(ROUNDS):
        before = order.clone()
        for place in range(channels):
            v = flat[order]
            sums = torch.zeros(int(unit[-1]) + 1, v.shape[1]).index_add_(0, unit, v)
            worth, mine = sums.clamp_min(0).sum(1), unit[place]
            there, here = sums[unit] - v + v[place], sums[mine] - v[place] + v
            gain = there.clamp_min_(0).sum(1) + here.clamp_min_(0).sum(1) - worth[unit] - worth[mine]
            gain[(unit == mine) | (alone[order] != alone[order[place]])] = 0
            best = int(gain.argmax())
            if gain[best] > 1e-5 * worth.sum():
                order[[place, best]] = order[[best, place]]
        if torch.equal(order, before):
            break
    return order
