"""Offline work of the kernel "filters": panels, blocks of positions, and the passes over them (filters_run.py says what those are)."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...common.simd import LANES
from .conv import ConvShape, Epilogue, Op, View
from .filters_run import (
    BIAS,
    COUNT,
    DEPTHWISE,
    FIRST_ENTRY,
    FROM_BIAS,
    HIGH,
    ITEMS,
    LAST_ENTRY,
    LOW,
    META,
    MODE,
    PASS,
    RESIDUAL,
    TILES,
    TO_Y,
    X,
    Y,
)

SUMS = 4096
"""Floats of the sums of a block of positions: they have to stay in the first-level cache."""
PASS_WEIGHTS = 6144
"""Floats of weights that a pass may take, for the same reason."""
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


class Numbers:
    """An array that grows; equal parts are stored once."""

    def __init__(self, dtype: type) -> None:
        self._parts: list[NDArray] = []
        self._known: dict[bytes, int] = {}
        self._dtype, self._size = dtype, 0

    def add(self, values: NDArray | list[int]) -> int:
        """Position of these values."""
        part: NDArray = np.asarray(values, self._dtype).reshape(-1)
        key = part.tobytes()
        if key not in self._known:
            self._known[key] = self._size
            self._parts.append(part)
            self._size += part.size
        return self._known[key]

    def array(self) -> NDArray:
        return np.concatenate([np.zeros(0, self._dtype), *self._parts])


@dataclass(frozen=True)
class Block:
    """Successive positions, the slots of a work item. Channel c is kept at counts[c] of them, listed from lists[c] in the index on."""

    first: int
    slots: int
    everywhere: int
    """List of all slots."""
    lists: NDArray
    counts: NDArray


def blocks(shape: ConvShape, mask: NDArray | None, slots: int, index: Numbers) -> list[Block]:
    """Cut the positions into blocks of at most so many slots, and add their lists to the index."""
    positions = shape.output[0] * shape.output[1]
    everywhere = index.add(np.arange(slots))
    result = []
    for first in range(0, positions, slots):
        size = min(slots, positions - first)
        lists, counts = np.full(shape.channels, everywhere), np.full(shape.channels, size)
        if mask is not None:
            part = mask.reshape(shape.channels, -1)[:, first : first + size]
            counts = part.sum(1)
            lists = np.where(counts == size, everywhere, index.add(np.nonzero(part)[1]) + np.cumsum(counts) - counts)
        result.append(Block(first, size, everywhere, lists, counts))
    return result


@dataclass(frozen=True)
class Entries:
    """(channel, tap) pairs in the order of use. Channels with as many taps follow each other: the processor predicts the length of a loop
    by the last ones."""

    pairs: tuple[NDArray, NDArray]
    channels: NDArray
    ends: NDArray
    """Entries of channels[k] end before ends[k] and begin where those of its predecessor end."""

    @classmethod
    def of(cls, kept: NDArray) -> "Entries":
        counts = kept.sum(1)
        order = np.argsort(-counts, kind="stable")
        k, tap = np.nonzero(kept[order])
        return cls((order[k], tap), order, counts[order].cumsum())


def passes(entries: Entries, block: Block, most: int) -> NDArray:
    """[passes, PASS] integers; a pass takes at most so many entries, but at least a channel."""
    first = np.concatenate([[0], entries.ends[:-1]])
    count, start = block.counts[entries.channels], block.lists[entries.channels]
    used = (first < entries.ends) & (count > 0)
    first, last, count, start = first[used], entries.ends[used], count[used], start[used]
    if not len(first):
        return _with_ends(np.zeros((0, PASS), int), block)
    joined = np.zeros(len(first), bool)
    joined[1:] = (start[1:] == start[:-1]) & (count[1:] == count[:-1]) & (first[1:] == last[:-1])
    run = np.maximum.accumulate(np.where(joined, 0, np.arange(len(first))))
    part = (first - first[run]) // most
    joined[1:] &= part[1:] == part[:-1]
    begins = np.nonzero(~joined)[0]
    ends = np.append(begins[1:], len(first)) - 1
    return _with_ends(np.stack([np.zeros_like(begins), first[begins], last[ends], start[begins], count[begins]], 1), block)


def _with_ends(table: NDArray, block: Block) -> NDArray:
    """Let the first pass begin with the bias and the last one finish; both have to go over all slots."""
    full = np.nonzero(table[:, COUNT] == block.slots)[0]
    middle, whole = np.delete(table, full[[0, -1]] if len(full) else full, 0), [0, 0, 0, block.everywhere, block.slots]
    first = table[full[0]] if len(full) else whole
    last = [table[full[-1]]] if len(full) > 1 else [whole] if len(middle) else []
    table = np.stack([first, *middle, *last])
    table[0, MODE] |= FROM_BIAS
    table[-1, MODE] |= TO_Y
    return table


def operation(
    shape: ConvShape, weights: NDArray, mask: NDArray | None, bias: NDArray, layout: Layout, epilogue: Epilogue, vectors: int
) -> Op:
    """Plan a convolution with panels of so many vectors, or, with DEPTHWISE, of channels."""
    mask = None if mask is None or mask.all() else mask
    width = max(1, min(vectors, -(-shape.filters // LANES)))
    count = -(-shape.filters // (width * LANES))
    positions = shape.output[0] * shape.output[1]
    wanted = max(LEAST_SLOTS, -(-positions * count // ITEMS_WANTED))
    slots = min(SUMS // (width * LANES), wanted, positions)
    index, constants = Numbers(np.int32), Numbers(np.float32)
    index.add(np.arange(slots))
    numbers = np.zeros((1 + count * width) * LANES, np.float32)
    numbers[[LOW, HIGH]], numbers[BIAS : BIAS + shape.filters] = (epilogue.low, epilogue.high), bias
    constants.add(numbers)
    views = [layout.patches(), layout.results(layout.y), *([layout.results(layout.residual)] if layout.residual else [])]
    tables = [index.add(np.stack([view[first : first + slots] for view in views])) for first in range(0, positions, slots)]
    panel_passes = _depthwise_passes if vectors == DEPTHWISE else _filter_passes
    items, costs = [], []
    for panel_vectors, first, packed, offsets, blocks in panel_passes(shape, weights, mask, layout.taps(), width, slots, index):
        start, taps = constants.add(packed), index.add(offsets)
        for k, table in enumerate(blocks):
            passes = index.add(table)
            size = min(slots, positions - k * slots)
            items.append([panel_vectors, start, first, taps, passes, passes + table.size, tables[k], size])
            costs.append(cycles(table, max(1, panel_vectors)))
    meta = np.zeros(META, np.int64)
    residual = layout.residual.start if layout.residual else -1
    meta[[X, Y, RESIDUAL, ITEMS]] = layout.x.start, layout.y.start, residual, index.add(np.array(items))
    return Op(
        kernel="filters", meta=meta, index=index.array(), constants=constants.array(), costs=np.array(costs), scratch=slots * width * LANES
    )


PanelPasses = tuple[int, int, NDArray, NDArray, list[NDArray]]
"""Vectors and first filter of a panel, its packed weights, the offsets of its entries, and the passes of each block of positions."""


def _filter_passes(
    shape: ConvShape, weights: NDArray, mask: NDArray | None, taps: NDArray, width: int, slots: int, index: Numbers
) -> Iterator[PanelPasses]:
    cut = blocks(shape, mask, slots, index)
    for panel in panels(shape, weights, width):
        entries = Entries.of(panel.kept)
        most = max(1, PASS_WEIGHTS // (panel.vectors * LANES))
        yield (
            panel.vectors,
            panel.first,
            panel.weights[entries.pairs],
            taps[entries.pairs],
            [passes(entries, block, most) for block in cut],
        )


def _depthwise_passes(
    shape: ConvShape, weights: NDArray, mask: NDArray | None, taps: NDArray, width: int, slots: int, index: Numbers
) -> Iterator[PanelPasses]:
    """Positions that keep the same channels of a panel share a pass, whose weights are zero for the other channels."""
    positions = shape.output[0] * shape.output[1]
    for first in range(0, shape.filters, LANES):
        part = weights[first : first + LANES].reshape(-1, taps.shape[1])
        kept = np.ones((len(part), positions), bool) if mask is None else mask.reshape(-1, positions)[first : first + LANES]
        patterns, which = np.unique(kept, axis=1, return_inverse=True)
        packed = np.zeros((patterns.shape[1], taps.shape[1], LANES), np.float32)
        packed[:, :, : len(part)] = patterns.T[:, None] * part.T
        tables = []
        for start in range(0, positions, slots):
            block = which[start : start + slots]
            rows = []
            for pattern in np.unique(block):
                entries = pattern * taps.shape[1] + np.array([0, taps.shape[1] * patterns[:, pattern].any()])
                members = np.nonzero(block == pattern)[0]
                rows.append([FROM_BIAS | TO_Y, *entries, index.add(members), len(members)])
            tables.append(np.array(rows))
        yield DEPTHWISE, first, packed, np.tile(taps[0], patterns.shape[1]), tables


def cycles(steps: NDArray, vectors: int) -> float:
    """Expected time of the passes of a work item."""
    entries, count = steps[:, LAST_ENTRY] - steps[:, FIRST_ENTRY], steps[:, COUNT]
    return float((entries * count * vectors / 2 + count * vectors).sum() + 10 * len(steps))


def depthwise_cycles(shape: ConvShape) -> float:
    positions, vectors = shape.output[0] * shape.output[1], -(-shape.channels // LANES)
    return positions * vectors * (shape.kernel[0] * shape.kernel[1] * 0.7 + 2)


def filter_cycles(shape: ConvShape, weights: NDArray, mask: NDArray | None, vectors: int) -> float:
    """Expected time with panels of so many vectors."""
    positions = shape.output[0] * shape.output[1]
    counts = np.full(shape.channels, positions) if mask is None else mask.reshape(shape.channels, -1).sum(1)
    total = 100.0 + 2.0 * positions * -(-shape.filters // LANES)
    for panel in panels(shape, weights, vectors):
        per_entry = {1: 0.66, 2: 1.1, 4: 2.1}[panel.vectors]
        total += float(counts @ panel.kept.sum(1)) * per_entry
    return total
