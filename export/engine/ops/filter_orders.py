"""Which order of its filters is best for a convolution alone, as the kernel "filters" runs it (passes/reorder.py says why)."""

from collections import defaultdict
from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fineprune.ops.simd import LANES

from ..ir.network import Order
from . import filters, linear

if TYPE_CHECKING:
    from .conv import Conv

_FILTERS_PER_MASK = 4
"""On the average, at least; else filters have masks of their own, and hardly any two are alike."""
_LEAST_GAIN = 0.15
"""Of the expected time of a convolution: what kernels are expected to take is not known better."""


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


class FilterWish:
    """The order that is best for a convolution alone, and what it takes in others."""

    def __init__(self, layer: "Conv", seconds: Callable[["Conv"], float]) -> None:
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
