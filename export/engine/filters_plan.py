"""Offline work of the kernel "filters": panels, blocks of positions, and the passes over them (filters_run.py says what those are)."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...common.simd import LANES
from .conv import ConvShape, Epilogue, Op, View
from .filters_forms import CACHED_WEIGHTS, PASS_WEIGHTS, bounds, copied, copy_cycles, pass_cycles
from .filters_run import (
    BIAS,
    CHANNEL_STRIDE,
    COPIES,
    DEPTHWISE,
    FROM_BIAS,
    HIGH,
    ITEMS,
    LOW,
    META,
    RESIDUAL,
    TILES,
    TO_Y,
    X,
    Y,
)
from .filters_tiles import Block, Entries, Form, Numbers, blocks, passes


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
    shape: ConvShape, weights: NDArray, mask: NDArray | None, bias: NDArray, layout: Layout, epilogue: Epilogue, form: Form
) -> Op:
    """Plan a convolution."""
    count = -(-shape.filters // LANES)
    positions = shape.output[0] * shape.output[1]
    kept = np.ones((shape.channels, positions), bool) if mask is None else mask.reshape(-1, positions)
    cuts = bounds(shape, kept, form)
    slots = int(np.diff(cuts).max())
    index, constants = Numbers(np.int32), Numbers(np.float32)
    index.add(np.arange(slots))
    numbers = np.zeros((1 + count) * LANES, np.float32)
    numbers[[LOW, HIGH]], numbers[BIAS : BIAS + shape.filters] = (epilogue.low, epilogue.high), bias
    constants.add(numbers)
    line = copied(shape) if form.copies else 0
    taps = layout.taps()
    offsets = np.arange(shape.channels)[:, None] if form.copies else taps
    make = _depthwise_panels if form.vectors == DEPTHWISE else _filter_panels
    cut, made = make(shape, weights, kept, offsets, form, cuts, index)
    results = [layout.results(layout.y), *([layout.results(layout.residual)] if layout.residual else [])]
    ends = []
    for block in cut:
        chosen = block.positions
        sources, copies = layout.patches()[chosen], np.zeros(0, int)
        if form.copies:
            # In the order of the positions, as x lies in memory.
            order = chosen.argsort()
            copies = _copies(kept[:, chosen[order]], sources[order], layout.x.channel_stride)
            sources = order.argsort() * line
        table, copy = index.add(np.stack([sources, *(view[chosen] for view in results)])), index.add(copies)
        ends.append([table, len(chosen), copy, copy + copies.size])
    starts = [constants.add(panel.weights) for panel in made]
    items, costs = [], []
    for panel, number in _order(len(made), len(cut), form):
        steps, vectors = made[panel].passes[number], made[panel].vectors
        first = index.add(steps)
        items.append([vectors, starts[panel], made[panel].first, first, first + steps.size, *ends[number]])
        first_of_copy = form.copies and panel == 0
        costs.append(pass_cycles(steps, form, vectors) + first_of_copy * copy_cycles(shape, len(cut[number].positions)))
    meta, sums = np.zeros(META, np.int64), slots * max(1, form.vectors) * LANES
    meta[[X, Y, RESIDUAL]] = layout.x.start, layout.y.start, layout.residual.start if layout.residual else -1
    meta[[COPIES, CHANNEL_STRIDE, ITEMS]] = sums, layout.x.channel_stride, index.add(np.array(items))
    scratch = sums + slots * line
    return Op(kernel="filters", meta=meta, index=index.array(), constants=constants.array(), costs=np.array(costs), scratch=scratch)


def _order(panels: int, blocks: int, form: Form) -> list[tuple[int, int]]:
    """(panel, block) of each work item. A thread needs few panels' weights, or, where there are copies, few blocks' copies."""
    if form.copies:
        return [(panel, block) for block in range(blocks) for panel in range(panels)]
    return [(panel, block) for panel in range(panels) for block in range(blocks)]


def _copies(kept: NDArray, sources: NDArray, stride: int) -> NDArray:
    """[positions,vectors,2] what the kernel copies; kept: bool [C,positions]; sources: [positions] where the channels begin."""
    lanes = np.zeros((-(-len(kept) // LANES) * LANES, kept.shape[1]), np.int64)
    lanes[: len(kept)] = kept
    words = (lanes.reshape(-1, LANES, kept.shape[1]) << np.arange(LANES)[:, None]).sum(1).T
    return np.stack([sources[:, None] + np.arange(words.shape[1]) * LANES * stride, words], 2)


class PlannedPanel(NamedTuple):
    """A panel as the kernel takes it: weights of its entries, and its passes over each block of positions."""

    first: int
    vectors: int
    weights: NDArray
    passes: list[NDArray]


def _filter_panels(
    shape: ConvShape, weights: NDArray, kept: NDArray, taps: NDArray, form: Form, cuts: NDArray, index: Numbers
) -> tuple[list[Block], list[PlannedPanel]]:
    cut, made, known = blocks(kept, cuts, form), [], {}
    for panel in panels(shape, weights, form.vectors):
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
    shape: ConvShape, weights: NDArray, kept: NDArray, taps: NDArray, form: Form, cuts: NDArray, index: Numbers
) -> tuple[list[Block], list[PlannedPanel]]:
    """Positions that keep the same channels of a panel share a pass, whose weights are zero for the other channels."""
    cut, made, count = blocks(np.zeros((1, kept.shape[1]), bool), cuts, form), [], taps.shape[1]
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
