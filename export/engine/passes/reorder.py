"""A pass over the layers that gives the filters of convolutions another order: those that use the same inputs follow each other.

The kernel "filters" computes LANES filters at a time and skips the (channel, tap) pairs that none of them uses. Where groups of filters
share a mask (FWP with scope `group`: clusters of similar filters, anywhere in the file), a vector of filters from several groups keeps
most of the pairs, and a vector of one group those of its mask alone. In the order o

    y'[k] = y[o[k]]        a convolution that makes y' has                                       w'[k] = w[o[k]], bias'[k] = bias[o[k]]
                           one that reads y' has (a linear layer is a convolution, too)          w'[f,k] = w[f,o[k]], mask'[k] = mask[o[k]]

and everything is computed as before. Pools, means, functions of numbers, depthwise convolutions and joined channels pass the order of
what they read on. A sum or product of two tensors needs both in the same order: a residual that comes in another one is permuted first.
What is read from outside, or by layers that take channels apart, stays in the file's order.

Orders are chosen to minimise   sum of the expected times of convolutions   +   sum of the expected times of permutations.   An order
matters to the convolution that makes a tensor and to those whose outputs are added to it: one choice for each convolution, tied to few
others. From several starts (what is best for each alone; one order for all), single changes are made until none helps.
"""

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ..ir.network import Box, Channels, Layer, Order, Wish
from ..ops import permute

FILE = ""
"""Stands for a maker whose order is that of the file: None as an order."""
_MOST_ROUNDS = 10


def reorder(
    layers: Sequence[Layer], boxes: Mapping[str, Box], outputs: Collection[str], seconds: Callable[[Any], float]
) -> tuple[list[Layer], dict[str, Box]]:
    """(the layers with their filters in the orders chosen, sizes of their tensors); `seconds`: expected time of a convolution."""
    return with_orders(layers, boxes, choose(layers, boxes, outputs, seconds))


def with_orders(layers: Sequence[Layer], boxes: Mapping[str, Box], orders: Mapping[str, Order]) -> tuple[list[Layer], dict[str, Box]]:
    """Layers that compute the same with outputs of ungrouped convolutions in `orders`, and the sizes of all tensors."""
    result: list[Layer] = []
    sizes = dict(boxes)
    have: dict[str, Order] = {}
    permuted: dict[tuple[str, bytes], str] = {}

    def ordered(name: str, order: Order | None) -> str:
        """A tensor as it is, or its copy in that order (None: the file's)."""
        channels = boxes[name][0]
        old, new = (np.arange(channels) if o is None else o for o in (have.get(name), order))
        if np.array_equal(old, new):
            return name
        key = name, new.tobytes()
        if key not in permuted:
            permuted[key] = copy = _unused(f"{name} permuted", sizes)
            result.append(permute.Permute(name=copy, inputs=(name,), output=copy, order=np.argsort(old)[new]))
            sizes[copy] = boxes[name]
        return permuted[key]

    for layer in layers:
        x, channels = have.get(layer.inputs[0]), layer.channels(boxes)
        if channels in (Channels.FREE, Channels.FIRST):
            order = orders.get(layer.output) if channels is Channels.FREE else x
            inputs = (layer.inputs[0], *[ordered(name, order) for name in layer.inputs[1:]])
        elif channels is Channels.JOINED:
            order, inputs = _joined([have.get(name, np.arange(boxes[name][0])) for name in layer.inputs]), layer.inputs
        else:
            x = order = None
            inputs = tuple([ordered(name, None) for name in layer.inputs])
        result.append((layer if inputs == layer.inputs else replace(layer, inputs=inputs)).ordered(x, order))
        if order is not None:
            have[layer.output] = order
    return result, sizes


def makers_of(layers: Sequence[Layer], boxes: Mapping[str, Box]) -> dict[str, tuple[str, ...]]:
    """tensor -> outputs of convolutions whose orders it has, one after another, or FILE."""
    makers: dict[str, tuple[str, ...]] = defaultdict(lambda: (FILE,))
    for layer in layers:
        channels = layer.channels(boxes)
        if channels is Channels.FREE:
            makers[layer.output] = (layer.output,)
        elif channels is Channels.FIRST:
            makers[layer.output] = makers[layer.inputs[0]]
        elif channels is Channels.JOINED:
            makers[layer.output] = tuple(maker for name in layer.inputs for maker in makers[name])
    return makers


def choose(
    layers: Sequence[Layer], boxes: Mapping[str, Box], outputs: Collection[str], seconds: Callable[[Any], float]
) -> dict[str, Order]:
    """Orders of the outputs of convolutions that are better off in another one than the file's."""
    fixed, ties = _bonds(layers, boxes, outputs)
    free = [layer for layer in layers if layer.channels(boxes) is Channels.FREE and layer.output not in fixed]
    wishes = {layer.output: layer.wish(seconds) for layer in free}
    chosen: dict[str, Order] = {}
    left = dict(wishes)
    for start, wish in wishes.items():
        if wish.order is None or start not in left:
            continue
        together, waiting = {start: left.pop(start)}, [start]
        while waiting:
            for other, _ in ties[waiting.pop()]:
                if other in left:
                    together[other] = left.pop(other)
                    waiting.append(other)
        chosen |= _settled(together, ties)
    return chosen


Ties = Mapping[str, Sequence[tuple[str, float]]]
"""Those to whose outputs a convolution's is added, with the time of a permutation, should the orders differ."""


def _bonds(layers: Sequence[Layer], boxes: Mapping[str, Box], outputs: Collection[str]) -> tuple[set[str], Ties]:
    """(the makers whose order stays that of the file, ties of the others)."""
    makers = makers_of(layers, boxes)
    fixed = {maker for name in outputs for maker in makers[name]}
    ties: dict[str, list[tuple[str, float]]] = defaultdict(list)
    for layer in layers:
        channels = layer.channels(boxes)
        if channels in (Channels.FREE, Channels.FIRST):
            for name in layer.inputs[1:]:
                one, other, toll = makers[layer.output], makers[name], permute.estimate(*boxes[name])
                if one != other and len(one) == len(other) == 1:
                    ties[one[0]].append((other[0], toll))
                    ties[other[0]].append((one[0], toll))
                elif one != other:
                    fixed |= {*one, *other}
        elif channels is not Channels.JOINED:
            fixed |= {maker for name in layer.inputs for maker in makers[name]}
    return fixed, ties


def _settled(wishes: Mapping[str, Wish], ties: Ties) -> dict[str, Order]:
    """The best orders found for convolutions that are tied to each other."""
    distinct = {wish.order.tobytes(): wish.order for wish in wishes.values() if wish.order is not None}
    own = {name: None if wish.order is None else distinct[wish.order.tobytes()] for name, wish in wishes.items()}
    orders = [None, *distinct.values()]

    def cost(name: str, order: Order | None, state: Mapping[str, Order | None]) -> float:
        return wishes[name].seconds(order) + sum(toll for other, toll in ties[name] if state.get(other) is not order)

    def improved(start: Mapping[str, Order | None]) -> tuple[float, dict[str, Order]]:
        state = dict(start)
        for _ in range(_MOST_ROUNDS):
            before = dict(state)
            for name in wishes:
                options = [state[name], own[name], None, *[state.get(other) for other, _ in ties[name]]]
                state[name] = min(options, key=lambda order: cost(name, order, state))
            if all(state[name] is before[name] for name in wishes):
                break
        chosen = {name: order for name, order in state.items() if order is not None}
        ends = [(name, other, toll) for name in wishes for other, toll in ties[name]]
        tolls = sum(toll / (2 if other in wishes else 1) for name, other, toll in ends if state.get(other) is not state[name])
        return sum(wishes[name].seconds(state[name]) for name in wishes) + tolls, chosen

    starts = [own, *[dict.fromkeys(wishes, order) for order in orders]]
    return min([improved(start) for start in starts], key=lambda result: result[0])[1]


def _joined(orders: Sequence[Order]) -> Order | None:
    starts = np.cumsum([0, *map(len, orders)])
    order: Order = np.concatenate([start + order for start, order in zip(starts, orders, strict=False)])
    return None if np.array_equal(order, np.arange(len(order))) else order


def _unused(name: str, taken: Collection[str]) -> str:
    while name in taken:
        name += "'"
    return name
