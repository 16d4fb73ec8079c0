"""Offline work of the kernel "filters": panels, blocks of positions, and the passes over them (filters_run.py says what those are)."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...common.simd import LANES
from .conv import ConvShape, Epilogue, Op, View
from .filters_run import BIAS, COUNT, DEPTHWISE, ENTRIES, ENTRIES_END, FROM_BIAS, HIGH, ITEMS, LOW, META, RESIDUAL, TILES, TO_Y, X, Y
from .filters_tiles import Block, Entries, Numbers, blocks, passes

SUMS = 4096
"""Floats of the sums of a block of positions: they have to stay in the first-level cache."""
PASS_WEIGHTS = 6144
"""Floats of weights that a pass may take, for the same reason."""
CACHED_WEIGHTS = 2**18
"""Weights of a convolution that stay in the caches between uses; more are prefetched."""
LEAST_SLOTS = 16
"""Slots of a block, where there are as many positions."""
ITEMS_WANTED = 2
"""Work items of an operation at least, where it has enough positions, so that threads find about equal shares."""


@dataclass(frozen=True)
class Panel:
    """Successive filters; kept: bool [C,taps], the pairs that any of them uses."""

    first: int
    vectors: int
    weights: NDArray
    """[C,taps,filters]"""

    @property
    def kept(self) -> NDArray:
        return (self.weights != 0).any(2)


def panels(shape: ConvShape, weights: NDArray, vectors: int) -> list[Panel]:
    """Cut the filters into panels of so many vectors; what is left over into narrower ones."""
    filters, per_group = shape.filters // shape.groups, shape.channels // shape.groups
    result, first = [], 0
    while first < shape.filters:
        vectors = max(v for v in TILES if v == 1 or (v <= vectors and (v - 1) * LANES < shape.filters - first))
        dense = np.zeros((shape.channels, weights[0, 0].size, vectors * LANES), np.float32)
        for lane, f in enumerate(range(first, min(first + vectors * LANES, shape.filters))):
            channel = f // filters * per_group
            dense[channel : channel + per_group, :, lane] = weights[f].reshape(per_group, -1)
        result.append(Panel(first, vectors, dense))
        first += vectors * LANES
    return result


@dataclass(frozen=True)
class Layout:
    """Where patches and results lie."""

    shape: ConvShape
    x: View
    y: View
    residual: View | None

    def __post_init__(self) -> None:
        if any(margin < pad for margin, pad in zip(self.x.margins, self.shape.pads, strict=True)):
            raise ValueError(f"padding {self.shape.pads} needs margins of zeros as wide, got {self.x.margins}")

    def patches(self) -> NDArray:
        """[positions] first element of the patch of channel 0, relative to x."""
        s = self.shape
        return self._grid(self.x, s.strides, s.pads[:2])

    def results(self, view: View) -> NDArray:
        """[positions] element of channel 0, relative to the view."""
        return self._grid(view, (1, 1), (0, 0))

    def _grid(self, view: View, strides: tuple[int, int], origin: tuple[int, int]) -> NDArray:
        rows, columns = (np.arange(n) * stride - first for n, stride, first in zip(self.shape.output, strides, origin, strict=True))
        return (rows[:, None] * view.row_stride + columns * view.pixel_stride).reshape(-1)

    def taps(self) -> NDArray:
        """[C,taps] offsets in a patch."""
        s = self.shape
        rows, columns = (np.arange(n) * dilation for n, dilation in zip(s.kernel, s.dilations, strict=True))
        taps = (rows[:, None] * self.x.row_stride + columns * self.x.pixel_stride).reshape(-1)
        return np.arange(s.channels)[:, None] * self.x.channel_stride + taps


def operation(
    shape: ConvShape, weights: NDArray, mask: NDArray | None, bias: NDArray, layout: Layout, epilogue: Epilogue, vectors: int
) -> Op:
    """Plan a convolution with panels of so many vectors, or, with DEPTHWISE, of channels."""
    count = -(-shape.filters // LANES)
    width = max(v for v in TILES if v <= max(1, min(vectors, count)))
    positions = shape.output[0] * shape.output[1]
    slots = _slots(positions, count, width)
    kept = np.ones((shape.channels, positions), bool) if mask is None else mask.reshape(-1, positions)
    index, constants = Numbers(np.int32), Numbers(np.float32)
    index.add(np.arange(slots))
    numbers = np.zeros((1 + count) * LANES, np.float32)
    numbers[[LOW, HIGH]], numbers[BIAS : BIAS + shape.filters] = (epilogue.low, epilogue.high), bias
    constants.add(numbers)
    make = _depthwise_panels if vectors == DEPTHWISE else _filter_panels
    cut, made = make(shape, weights, kept, layout.taps(), width, slots, index)
    views = [layout.patches(), layout.results(layout.y), *([layout.results(layout.residual)] if layout.residual else [])]
    tables = [index.add(np.stack([view[block.positions] for view in views])) for block in cut]
    items, costs = [], []
    for panel in made:
        start = constants.add(panel.weights)
        for block, table, steps in zip(cut, tables, panel.passes, strict=True):
            first = index.add(steps)
            items.append([panel.vectors, start, panel.first, first, first + steps.size, table, len(block.positions)])
            costs.append(_cycles(steps, panel.vectors))
    meta = np.zeros(META, np.int64)
    residual = layout.residual.start if layout.residual else -1
    meta[[X, Y, RESIDUAL, ITEMS]] = layout.x.start, layout.y.start, residual, index.add(np.array(items))
    return Op(
        kernel="filters", meta=meta, index=index.array(), constants=constants.array(), costs=np.array(costs), scratch=slots * width * LANES
    )


def _slots(positions: int, count: int, width: int) -> int:
    """Positions of a block, for `count` vectors of filters in panels of `width`."""
    wanted = max(LEAST_SLOTS, -(-positions * count // (width * ITEMS_WANTED)))
    return min(SUMS // (width * LANES), wanted, positions)


class PlannedPanel(NamedTuple):
    """A panel as the kernel takes it: weights of its entries, and its passes over each block of positions."""

    first: int
    vectors: int
    weights: NDArray
    passes: list[NDArray]


def _filter_panels(
    shape: ConvShape, weights: NDArray, kept: NDArray, taps: NDArray, width: int, slots: int, index: Numbers
) -> tuple[list[Block], list[PlannedPanel]]:
    cut, made, known = blocks(kept, slots, TILES[width][0]), [], {}
    for panel in panels(shape, weights, width):
        key = panel.vectors, panel.kept.tobytes()
        entries = Entries.of(panel.kept)
        if key not in known:
            line = panel.vectors * LANES
            fetch = weights.size > CACHED_WEIGHTS
            offsets = np.stack([taps[entries.pairs], np.arange(len(entries.pairs[0])) * line], 1)
            known[key] = [passes(entries, offsets, block, max(1, PASS_WEIGHTS // line), fetch, index) for block in cut]
        made.append(PlannedPanel(panel.first, panel.vectors, panel.weights[entries.pairs], known[key]))
    return cut, made


def _depthwise_panels(
    shape: ConvShape, weights: NDArray, kept: NDArray, taps: NDArray, width: int, slots: int, index: Numbers
) -> tuple[list[Block], list[PlannedPanel]]:
    """Positions that keep the same channels of a panel share a pass, whose weights are zero for the other channels."""
    cut, made, count = blocks(np.zeros((1, kept.shape[1]), bool), slots, 1), [], taps.shape[1]
    for first in range(0, shape.filters, LANES):
        part = weights[first : first + LANES].reshape(-1, count)
        patterns, which = np.unique(kept[first : first + LANES], axis=1, return_inverse=True)
        packed = np.zeros((patterns.shape[1], count, LANES), np.float32)
        packed[:, :, : len(part)] = patterns.T[:, None] * part.T
        steps = []
        for block in cut:
            rows = []
            for pattern in np.unique(which[block.positions]):
                entries = index.add(np.stack([taps[0], (pattern * count + np.arange(count)) * LANES], 1))
                members = np.nonzero(which[block.positions] == pattern)[0]
                end = entries + 2 * count * patterns[:, pattern].any()
                rows.append([FROM_BIAS | TO_Y, entries, end, index.add(members), len(members)])
            steps.append(np.array(rows))
        made.append(PlannedPanel(first, DEPTHWISE, packed, steps))
    return cut, made


PER_ENTRY = {DEPTHWISE: 0.8, 1: 0.69, 2: 1.05, 4: 2.05}
"""Cycles of an entry at a position, by the vectors of the panel; these and the next were measured with AVX-512 (Zen 5)."""
PER_SLOT, PER_PASS, PER_WEIGHT = 2.0, 75.0, 0.6
"""Cycles of a vector of results; of a pass of a channel; of a weight that comes from memory."""


def _cycles(steps: NDArray, vectors: int) -> float:
    """Expected time of the passes of a work item."""
    entries = (steps[:, ENTRIES_END] - steps[:, ENTRIES]) // 2
    return float((steps[:, COUNT] * (entries * PER_ENTRY[vectors] + PER_SLOT)).sum() + PER_PASS / 4 * len(steps))


def depthwise_cycles(shape: ConvShape) -> float:
    """Expected time of a depthwise convolution."""
    positions, vectors = shape.output[0] * shape.output[1], -(-shape.channels // LANES)
    return PER_PASS + positions * vectors * (shape.kernel[0] * shape.kernel[1] * PER_ENTRY[DEPTHWISE] + PER_SLOT)


def filter_cycles(shape: ConvShape, weights: NDArray, mask: NDArray | None, vectors: int) -> float:
    """Expected time with panels of so many vectors."""
    positions, count = shape.output[0] * shape.output[1], -(-shape.filters // LANES)
    slots = _slots(positions, count, vectors)
    kept = np.ones((shape.channels, positions), bool) if mask is None else mask.reshape(-1, positions)
    active = np.add.reduceat(kept, np.arange(0, positions, slots), 1, dtype=np.int64)
    sizes = np.diff(np.arange(0, positions, slots), append=positions)
    partly = ((active > 0) & (active < sizes)).sum(1)
    total = PER_PASS + PER_SLOT * positions * count
    for panel in panels(shape, weights, vectors):
        taps = panel.kept.sum(1)
        total += float(active.sum(1) @ taps * PER_ENTRY[panel.vectors] + partly @ (taps > 0) * PER_PASS)
        if weights.size > CACHED_WEIGHTS:
            total += float(taps.sum() * panel.vectors * LANES * PER_WEIGHT)
    return total
