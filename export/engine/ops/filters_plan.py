"""Offline work of the kernel "filters": panels, blocks of positions, and the passes over them (filters_run.py says what those are)."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fineprune.ops.simd import LANES

from ..ir.conv import ConvShape, Epilogue, Op, View
from .filters_forms import CACHED_WEIGHTS, PASS_WEIGHTS, bounds, pace, panel_form, pass_seconds, taps_of, useful
from .filters_run import BIAS, DEPTHWISE, FROM_BIAS, HIGH, LOW, MASKED, META, TILES, TO_Y
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
        """[positions] first element of the patch of channel 0, relative to the first patch."""
        return self._grid(self.x, self.shape.strides)

    @property
    def first_patch(self) -> int:
        """Its first element, in the arena."""
        return self.x.at(0, -self.shape.pads[0], -self.shape.pads[1])

    def results(self, view: View) -> NDArray:
        """[positions] element of channel 0, relative to the view."""
        return self._grid(view, (1, 1))

    def _grid(self, view: View, strides: tuple[int, int]) -> NDArray:
        rows, columns = (np.arange(n) * stride for n, stride in zip(self.shape.output, strides, strict=True))
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
    weights, count = useful(shape, weights, mask), -(-shape.filters // LANES)
    positions = shape.output[0] * shape.output[1]
    kept = np.ones((shape.channels, positions), bool) if mask is None else mask.reshape(-1, positions)
    cuts = bounds(shape, kept, form)
    slots = int(np.diff(cuts).max())
    index, constants = Numbers(np.int32), Numbers(np.float32)
    index.add(np.arange(slots))
    numbers = np.zeros((1 + count) * LANES, np.float32)
    numbers[[LOW, HIGH]], numbers[BIAS : BIAS + shape.filters] = (epilogue.low, epilogue.high), bias
    constants.add(numbers)
    taps = layout.taps()
    make = _depthwise_panels if form.vectors == DEPTHWISE else _filter_panels
    made = make(shape, weights, kept, layout, form, cuts, index)
    views = [layout.patches(), layout.results(layout.y), *([layout.results(layout.residual)] if layout.residual else [])]
    items, lists = [], index.array()
    for panel in made:
        start = constants.add(panel.weights)
        for steps, block in zip(panel.passes, panel.blocks, strict=True):
            tables = [view[block.positions] for view in views]
            if form.vectors == DEPTHWISE:
                own = kept[panel.first : panel.first + LANES, block.positions]
                tables.insert(2, (1 << np.arange(len(own))) @ own)
            table, first = index.add(np.stack(tables)), index.add(steps)
            fetch = pace(panel.weights.size, steps, lists, panel.vectors) if weights.size > CACHED_WEIGHTS else 0
            items.append([panel.vectors, start, panel.first, first, first + steps.size, table, len(block.positions), fetch])
    lines = np.unique(taps // LANES) * LANES if mask is not None and form.vectors != DEPTHWISE else np.zeros(0, int)
    zeros, first_item = index.add(lines), index.add(np.array(items))
    sums = slots * max(1, form.vectors) * LANES
    meta = META.pack(
        x=layout.first_patch,
        y=layout.y.start,
        residual=layout.residual.start if layout.residual else -1,
        items=first_item,
        zeros=sums,
        zero_lines=zeros,
        zero_lines_end=zeros + len(lines),
    )
    costs = np.array([pass_seconds(steps, lists, panel.vectors) for panel in made for steps in panel.passes])
    scratch = sums + int(lines.max(initial=-LANES)) + LANES
    return Op(kernel="filters", meta=meta, index=index.array(), constants=constants.array(), costs=costs, scratch=scratch)


class PlannedPanel(NamedTuple):
    """A panel as the kernel takes it: weights of its entries, and its passes over each block of positions."""

    first: int
    vectors: int
    weights: NDArray
    blocks: list[Block]
    passes: list[NDArray]


def _filter_panels(
    shape: ConvShape, weights: NDArray, kept: NDArray, layout: Layout, form: Form, cuts: NDArray, index: Numbers
) -> list[PlannedPanel]:
    patches, taps, known, made = layout.patches(), layout.taps(), {}, []
    cut: dict[int, list[Block]] = {}
    for panel in panels(shape, weights, form.vectors):
        if panel.vectors not in cut:
            cut[panel.vectors] = blocks(kept, cuts, panel_form(panel.vectors), taps_of(shape, weights, form))
        key = panel.vectors, panel.kept.tobytes()
        entries = Entries.of(panel.kept, cut[panel.vectors][0])
        if key not in known:
            line = panel.vectors * LANES
            offsets = np.stack([taps[entries.pairs], np.arange(len(entries.pairs[0])) * line], 1)
            most = max(1, PASS_WEIGHTS // line)
            known[key] = [passes(entries, offsets, block, patches[block.positions], most, index) for block in cut[panel.vectors]]
        made.append(PlannedPanel(panel.first, panel.vectors, panel.weights[entries.pairs], cut[panel.vectors], known[key]))
    return made


def _depthwise_panels(
    shape: ConvShape, weights: NDArray, kept: NDArray, layout: Layout, form: Form, cuts: NDArray, index: Numbers
) -> list[PlannedPanel]:
    """One pass over the positions that keep any channel of a panel, one without entries over the others. The mask of a channel multiplies
    its whole sum, so that the lanes that a position drops are taken out at its end."""
    cut, made, taps = blocks(np.zeros((1, kept.shape[1]), bool), cuts, form, np.ones(1)), [], layout.taps()
    count = taps.shape[1]
    entries = index.add(np.stack([taps[0], np.arange(count) * LANES], 1))
    for first in range(0, shape.filters, LANES):
        part, own = weights[first : first + LANES].reshape(-1, count), kept[first : first + LANES]
        packed = np.zeros((count, LANES), np.float32)
        packed[:, : len(part)] = part.T
        mode = FROM_BIAS | TO_Y | (0 if own.all() else MASKED)
        steps = []
        for block in cut:
            used = own[:, block.positions].any(0)
            members = [(np.nonzero(used)[0], entries + 2 * count, mode), (np.nonzero(~used)[0], entries, FROM_BIAS | TO_Y)]
            steps.append(np.array([[how, entries, end, index.add(slots), len(slots)] for slots, end, how in members if len(slots)]))
        made.append(PlannedPanel(first, DEPTHWISE, packed, cut, steps))
    return made
