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
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from fineprune.ops.simd import LANES

from ..ir.network import Assemble, Box, Conv, Layer, Map, Mean, Permute, Piece, Pool
from ..ops import filters, linear, permute

Order = NDArray[np.int64]

FILE = ""
"""Stands for a maker whose order is that of the file: None as an order."""
_FILTERS_PER_MASK = 4
"""On the average, at least; else filters have masks of their own, and hardly any two are alike."""
_LEAST_GAIN = 0.15
"""Of the expected time of a convolution: what kernels are expected to take is not known better."""
_MOST_ROUNDS = 10


def reorder(
    layers: Sequence[Layer], boxes: Mapping[str, Box], outputs: Collection[str], seconds: Callable[[Conv], float]
) -> tuple[list[Layer], dict[str, Box]]:
    """(the layers with their filters in the orders chosen, sizes of their tensors); `seconds`: expected time of a convolution."""
    return with_orders(layers, boxes, choose(layers, boxes, outputs, seconds))


def filter_order(used: NDArray[np.uint8]) -> Order | None:
    """Filters in vectors of LANES that use few pairs together, similar vectors beside each other; None where masks are not shared.

    used: [F, bytes], a bit for each (channel, tap) pair.
    """
    alike: dict[bytes, list[int]] = defaultdict(list)
    for f, row in enumerate(used):
        alike[row.tobytes()].append(f)
    if not 1 < len(alike) <= len(used) // _FILTERS_PER_MASK:
        return None
    vectors, left = [], []
    for group in alike.values():
        whole = len(group) // LANES * LANES
        vectors += [group[first : first + LANES] for first in range(0, whole, LANES)]
        left += [group[whole:]] if whole < len(group) else []
    vectors += _mixed(used, left)
    order: Order = np.concatenate(_neighbours(used, _neighbours(used, vectors)))
    return order


def pairs_used(used: NDArray[np.uint8], order: Order | None, vectors: int = 1) -> int:
    """(channel, tap) pairs of all panels of so many vectors; used: as above."""
    rows = used if order is None else used[order]
    panels = np.pad(rows, ((0, -len(rows) % (vectors * LANES)), (0, 0))).reshape(-1, vectors * LANES, rows.shape[1])
    return int(np.bitwise_count(np.bitwise_or.reduce(panels, 1)).sum())


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
            result.append(Permute(name=copy, inputs=(name,), output=copy, order=np.argsort(old)[new]))
            sizes[copy] = boxes[name]
        return permuted[key]

    for layer in layers:
        x = have.get(layer.inputs[0])
        if _is_free(layer) or _passes_on(layer):
            order = orders.get(layer.output) if _is_free(layer) else x
            inputs = (layer.inputs[0], *[ordered(name, order) for name in layer.inputs[1:]])
        elif _joins(layer, boxes):
            order, inputs = _joined([have.get(name, np.arange(boxes[name][0])) for name in layer.inputs]), layer.inputs
        else:
            x = order = None
            inputs = tuple([ordered(name, None) for name in layer.inputs])
        result.append(_permuted(layer, inputs, x, order))
        if order is not None:
            have[layer.output] = order
    return result, sizes


def makers_of(layers: Sequence[Layer], boxes: Mapping[str, Box]) -> dict[str, tuple[str, ...]]:
    """tensor -> outputs of convolutions whose orders it has, one after another, or FILE."""
    makers: dict[str, tuple[str, ...]] = defaultdict(lambda: (FILE,))
    for layer in layers:
        if _is_free(layer):
            makers[layer.output] = (layer.output,)
        elif _passes_on(layer):
            makers[layer.output] = makers[layer.inputs[0]]
        elif _joins(layer, boxes):
            makers[layer.output] = tuple(maker for name in layer.inputs for maker in makers[name])
    return makers


def choose(
    layers: Sequence[Layer], boxes: Mapping[str, Box], outputs: Collection[str], seconds: Callable[[Conv], float]
) -> dict[str, Order]:
    """Orders of the outputs of convolutions that are better off in another one than the file's."""
    fixed, ties = _bonds(layers, boxes, outputs)
    free = [layer for layer in layers if isinstance(layer, Conv) and _is_free(layer) and layer.output not in fixed]
    wishes = {layer.output: _Wish(layer, seconds) for layer in free}
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
        if _is_free(layer) or _passes_on(layer):
            for name in layer.inputs[1:]:
                one, other, toll = makers[layer.output], makers[name], permute.estimate(*boxes[name])
                if one != other and len(one) == len(other) == 1:
                    ties[one[0]].append((other[0], toll))
                    ties[other[0]].append((one[0], toll))
                elif one != other:
                    fixed |= {*one, *other}
        elif not _joins(layer, boxes):
            fixed |= {maker for name in layer.inputs for maker in makers[name]}
    return fixed, ties


def _settled(wishes: Mapping[str, "_Wish"], ties: Ties) -> dict[str, Order]:
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


class _Wish:
    """The order that is best for a convolution alone, and what it takes in others."""

    def __init__(self, layer: Conv, seconds: Callable[[Conv], float]) -> None:
        """`order` is None where the file's is best."""
        self.order: Order | None = None
        self._layer, self._time, self._gain = layer, seconds, 0.0
        self._known: dict[int, tuple[Order | None, int]] = {}
        order = filter_order(self._used) if self._matters else None
        if order is not None and self._pairs(order) < self._pairs(None):
            gain = seconds(layer) - filters.estimate(layer.shape, layer.weights[order], layer.mask)
            if gain > _LEAST_GAIN * seconds(layer):
                self.order, self._gain = order, gain

    def seconds(self, order: Order | None) -> float:
        """Expected time, less that in the file's order; others than these two by the pairs that are used."""
        if order is None or not self._matters:
            return 0.0
        less = self._pairs(None) - self._pairs(order)
        if self.order is None:
            return -self._time(self._layer) * less / max(1, self._pairs(None))
        return -self._gain * less / (self._pairs(None) - self._pairs(self.order))

    @cached_property
    def _matters(self) -> bool:
        """Not of a single vector; nor where the weights are read but once, which takes its time in any order."""
        layer = self._layer
        return layer.shape.filters > LANES and linear.supports(layer.shape, layer.weights, layer.mask) is not None

    @cached_property
    def _used(self) -> NDArray[np.uint8]:
        return np.packbits((self._layer.weights != 0).reshape(len(self._layer.weights), -1), 1)

    def _pairs(self, order: Order | None) -> int:
        if id(order) not in self._known:
            self._known[id(order)] = order, sum(pairs_used(self._used, order, vectors) for vectors in (1, 2))
        return self._known[id(order)][1]


def _mixed(used: NDArray[np.uint8], left: list[list[int]]) -> list[list[int]]:
    """Vectors of filters that are too few for vectors of their own; `left`: lists of filters alike."""
    left = sorted(left, key=len)
    vectors = []
    while left:
        vector = left.pop()
        union = used[vector[0]]
        while left and len(vector) < LANES:
            k = int(np.bitwise_count(used[[others[0] for others in left]] & ~union).sum(1).argmin())
            taken, left[k] = left[k][: LANES - len(vector)], left[k][LANES - len(vector) :]
            vector, union = vector + taken, union | used[taken[0]]
            left = [others for others in left if others]
        vectors.append(vector)
    return vectors


def _neighbours(used: NDArray[np.uint8], parts: list[list[int]]) -> list[list[int]]:
    """Parts of equal size joined two by two, each with the one that it uses the fewest pairs together with; what is left over is last."""
    unions = [np.bitwise_or.reduce(used[part], 0) for part in parts]
    waiting = [k for k, part in enumerate(parts) if len(part) == len(parts[0])]
    joined = []
    while len(waiting) > 1:
        k = waiting.pop(0)
        other = min(waiting, key=lambda number: int(np.bitwise_count(unions[k] | unions[number]).sum()))
        waiting.remove(other)
        joined.append(parts[k] + parts[other])
    return joined + [parts[k] for k in waiting] + [part for part in parts if len(part) != len(parts[0])]


def _is_free(layer: Layer) -> bool:
    """Whether it can make its output in any order."""
    return isinstance(layer, Conv) and layer.shape.groups == 1


def _passes_on(layer: Layer) -> bool:
    """Whether the order of its output is that of its first input."""
    if isinstance(layer, Conv):
        return 1 < layer.shape.groups == layer.shape.channels == layer.shape.filters
    return isinstance(layer, Pool | Mean | Map)


def _joins(layer: Layer, boxes: Mapping[str, Box]) -> bool:
    """Whether its output is its inputs, whole and one after another."""
    if not isinstance(layer, Assemble):
        return False
    starts = np.cumsum([0, *[boxes[name][0] for name in layer.inputs]])
    whole = [Piece(source=k, size=boxes[name], to=(int(starts[k]), 0, 0)) for k, name in enumerate(layer.inputs)]
    return list(layer.pieces) == whole and boxes[layer.output] == (int(starts[-1]), *whole[0].size[1:])


def _joined(orders: Sequence[Order]) -> Order | None:
    starts = np.cumsum([0, *map(len, orders)])
    order: Order = np.concatenate([start + order for start, order in zip(starts, orders, strict=False)])
    return None if np.array_equal(order, np.arange(len(order))) else order


def _permuted(layer: Layer, inputs: tuple[str, ...], x: Order | None, y: Order | None) -> Layer:
    """The layer that reads its first input in order x and makes its output in order y."""
    layer = layer if inputs == layer.inputs else replace(layer, inputs=inputs)
    if isinstance(layer, Conv):
        weights, mask = layer.weights, layer.mask
        if x is not None:
            weights = np.take(weights, x, 1) if layer.shape.groups == 1 else weights
            mask = mask if mask is None else mask[x]
        if y is not None:
            return replace(layer, weights=weights[y], bias=layer.bias[y], mask=mask)
        return layer if x is None else replace(layer, weights=weights, mask=mask)
    if isinstance(layer, Map) and x is not None and layer.scale is not None and layer.shift is not None:
        return replace(layer, scale=layer.scale[x], shift=layer.shift[x])
    return layer


def _unused(name: str, taken: Collection[str]) -> str:
    while name in taken:
        name += "'"
    return name
