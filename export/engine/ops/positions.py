"""Kernel "positions": a convolution with output positions in the SIMD lanes, for weights that each filter keeps of its own.

    y[f,p] = clip(bias[f] + residual[f,p] + sum over kept (c,u,v) of w[f,c,u,v] * patch[c,u,v,p]),   patch 0 where mask[c,p] is 0

As sparse matrix times dense matrix: a kept weight is broadcast and multiplied by vectors of its patch, so dropped ones cost nothing
and every lane is useful, whatever the weight masks look like. NCHW in and out. An FFP mask is exact; it saves time only where
a channel is masked in a whole tile of positions (some hundred of them).
"""

import numpy as np
from numpy.typing import NDArray

from fineprune.ops.simd import LANES

from ..ir import costs
from ..ir.conv import ConvShape, Epilogue, Op, View
from . import positions_kernel as kernel
from .positions_estimate import counts
from .positions_plan import (
    BLOCK_LINES,
    MASKED,
    Block,
    Lines,
    Lists,
    Tiling,
    blocks,
    channel_lines,
    channel_states,
    filter_sets,
    offsets_of,
    part_lanes,
    pieces,
    tile_masks,
    tilings,
    variants,
)
from .positions_simd import OFFSET_UNIT

__all__ = ["counts", "estimate", "forms", "plan", "run", "supports"]

run = kernel.run

_MOST_LINES = (1 << 16) // (LANES // OFFSET_UNIT) - 1 - BLOCK_LINES
"""Of a channel: offsets of 16 bits reach all patches of a block, which is a channel beyond BLOCK_LINES at most."""


def supports(shape: ConvShape, weights: NDArray, mask: NDArray | None) -> str | None:
    """None, or why this kernel cannot do it."""
    if min(shape.output) < 1:
        return f"no output positions: {shape.output}"
    taps, masked = np.ones(shape.kernel, bool), mask is not None
    if any(channel_lines(shape, t, taps, masked).count > _MOST_LINES for t in tilings(shape, shape.output[1])):
        return f"a kernel of {shape.kernel} is too large"
    return None


def forms(shape: ConvShape, weights: NDArray, mask: NDArray | None) -> list[Tiling]:
    """Those to choose from, where rows follow each other without margins."""
    return tilings(shape, shape.output[1])


def estimate(shape: ConvShape, weights: NDArray, mask: NDArray | None) -> float:
    """Expected seconds of a run on one thread."""
    return min(costs.seconds(counts(shape, weights, mask, t)) for t in forms(shape, weights, mask))


def plan(
    shape: ConvShape,
    weights: NDArray,
    mask: NDArray | None,
    bias: NDArray,
    x: View,
    y: View,
    epilogue: Epilogue,
    form: Tiling | None = None,
) -> Op:
    """weights: float32[F,C/groups,kh,kw], dropped ones 0; mask: bool[C,oh,ow] or None; bias: float32[F]; views in NCHW layout; form:
    None: the one that is expected to take least."""
    _check(shape, x, y, epilogue)
    pitch = y.row_stride if epilogue.residual is None or epilogue.residual.row_stride == y.row_stride else 0
    t = form or min(tilings(shape, pitch), key=lambda t: costs.seconds(counts(shape, weights, mask, t)))
    kept = weights != 0
    used = kept.reshape(shape.groups, -1, *kept.shape[1:]).any(1).reshape(shape.channels, *shape.kernel)
    states, variant_of_tile = variants(channel_states(mask, used.any((1, 2)), t, shape), int(kept.sum()))
    sets = filter_sets(shape, t)
    lists = Lists(rows=t.rows, records=[], halves=[], weights=[])
    parts = _Parts(shape, t, x, weights, used, sets, lists)
    bounds, works = [], []
    for state in states:
        first = len(parts.blocks)
        works.append(parts.add(state))
        bounds.append((first, len(parts.blocks) - first))
    masks = tile_masks(mask, t).reshape(-1) if mask is not None else np.zeros(0, np.int32)
    return _assemble(parts, [bounds[v] for v in variant_of_tile], [works[v] for v in variant_of_tile], masks, bias, y, epilogue)


class _Parts:
    """Blocks, packing jobs and lists of the variants of an operation, as they grow."""

    def __init__(self, shape: ConvShape, t: Tiling, x: View, weights: NDArray, used: NDArray, sets: list[range], lists: Lists) -> None:
        self.shape, self.t, self.x, self.weights, self.used, self.sets, self.lists = shape, t, x, weights, used, sets, lists
        self.blocks: list[list[int]] = []
        self.jobs: list[list[int]] = []
        self.set_starts: list[tuple[int, int, int]] = []
        self.lines = 0

    def add(self, state: NDArray) -> NDArray[np.float64]:
        """Append the blocks of a variant, of which state[channel] says what becomes of each channel; the work of its sets."""
        lines = {int(c): channel_lines(self.shape, self.t, self.used[c], state[c] == MASKED) for c in np.flatnonzero(state)}
        counts = np.array([lines[c].count if c in lines else 0 for c in range(self.shape.channels)])
        work = np.zeros(len(self.sets))
        for block in blocks(self.shape, counts):
            first_job, starts = len(self.jobs), len(self.set_starts) * kernel.SET_START
            offsets = self._pack(block, lines, state)
            self.lines = max(self.lines, int(counts[list(block.channels)].sum()))
            for k, filters in enumerate(self.sets):
                self.set_starts.append(self.lists.position())
                chosen = np.array([f for f in filters if f in block.filters], np.int64)
                before = self.lists.weight
                if len(chosen):
                    self.lists.add(chosen, self._weights(block, chosen, offsets), offsets_of(offsets[offsets >= 0]))
                work[k] += self.lists.weight - before + 8 * len(chosen)
            self.set_starts.append(self.lists.position())
            self.blocks.append([first_job, len(self.jobs) - first_job, int(block.opens), int(block.closes), starts])
        return work

    def _pack(self, block: Block, lines: dict[int, Lines], state: NDArray) -> NDArray:
        """Append the packing jobs of a block; the packed vector where each tap begins, [channels,kh,kw], -1 where nobody needs it."""
        masks_of_channel = self.t.strips * self.t.strip_tiles * self.t.vectors
        starts = np.full((len(block.channels), *self.shape.kernel), -1, np.int64)
        start = 0
        for k, c in enumerate(block.channels):
            mask = c * masks_of_channel if state[c] == MASKED else -1
            self.jobs += [self._job(c, *run, mask) for run in lines[c].runs]
            starts[k] = np.where(lines[c].taps >= 0, lines[c].taps + start, -1)
            start += lines[c].count
        return starts

    def _job(self, channel: int, column: int, row: int, count: int, mask: int) -> list[int]:
        stride, last = self.x.row_stride, self.shape.height + self.shape.pads[0] + self.shape.pads[2] - 1
        start = channel * self.x.channel_stride + column
        return [start + row * stride, (count - 1) * self.shape.strides[0] * stride, start + last * stride, count, mask]

    def _weights(self, block: Block, filters: NDArray, starts: NDArray) -> NDArray[np.float32]:
        """[filters, taps that are packed]"""
        inputs = self.shape.channels // self.shape.groups
        group_of = filters // (self.shape.filters // self.shape.groups)
        result = np.zeros((len(filters), *starts.shape), np.float32)
        for k, c in enumerate(block.channels):
            readers = group_of == c // inputs
            result[readers, k] = self.weights[filters[readers], c % inputs]
        return result[:, starts >= 0]


def _check(shape: ConvShape, x: View, y: View, epilogue: Epilogue) -> None:
    for name, view in (("x", x), ("y", y), ("residual", epilogue.residual)):
        if view is not None and view.pixel_stride != 1:
            raise ValueError(f"{name} has pixel stride {view.pixel_stride}: the kernel wants NCHW")
    if any(have < need for have, need in zip(x.margins, shape.pads, strict=True)):
        raise ValueError(f"margins {x.margins} of x are smaller than the padding {shape.pads}")


def _assemble(
    parts: _Parts,
    tile_blocks: list[tuple[int, int]],
    works: list[NDArray],
    masks: NDArray,
    bias: NDArray,
    y: View,
    epilogue: Epilogue,
) -> Op:
    shape, t, x, lists, residual = parts.shape, parts.t, parts.x, parts.lists, epilogue.residual
    halves = np.concatenate([*lists.halves, np.zeros(2, np.uint16)])
    halves = halves[: len(halves) // 2 * 2].view(np.int32)
    jobs = np.array(parts.jobs, np.int64).reshape(-1, kernel.JOB)
    run_pieces, pieces_of_tile = pieces(shape, t, x.row_stride) if t.pitch else (np.zeros(0), np.zeros(0))
    tables = {
        "tile_lanes": part_lanes(shape, t),
        "tile_pieces": pieces_of_tile,
        "pieces": run_pieces,
        "tile_blocks": np.array(tile_blocks),
        "blocks": np.array(parts.blocks),
        "jobs": jobs,
        "set_starts": np.array(parts.set_starts),
        "records": np.array(lists.records),
        "halves": halves,
    }
    index = [masks, *(tables[name].reshape(-1) for name in kernel.TABLES)]
    whole = all(opens and closes for _, _, opens, closes, _ in parts.blocks)
    row = t.vectors * LANES
    patches = (parts.lines + 1) * LANES  # what the last piece of a run copies too much is not seen
    meta = kernel.META.pack(
        vectors=t.vectors,
        segment=t.segment,
        span=t.span,
        padded_span=t.strip_tiles * t.vectors,
        lines=t.strips * t.strip_tiles * t.vectors,
        strips=t.strips,
        strip_tiles=t.strip_tiles,
        sets=len(parts.sets),
        filters=shape.filters,
        patches=patches,
        x=(x.at(0, -shape.pads[0], -shape.pads[1]), x.row_stride, t.segment * shape.strides[1]),
        row_step=shape.strides[0],
        column_step=shape.strides[1],
        y=(y.start, y.channel_stride, LANES if t.pitch else y.row_stride),
        has_residual=int(residual is not None),
        residual=(residual.start, residual.channel_stride, LANES if t.pitch else residual.row_stride) if residual else (0, 0, 0),
        tables=tuple(np.cumsum([table.size for table in index])[:-1].tolist()),
    )
    constants = [bias, np.array([epilogue.low, epilogue.high]), *lists.weights]
    return Op(
        kernel="positions",
        meta=meta,
        index=np.concatenate(index).astype(np.int32),
        constants=np.concatenate(constants).astype(np.float32),
        costs=np.concatenate([works[strip * t.strip_tiles + k] for k in range(t.strip_tiles) for strip in range(t.strips)]),
        scratch=patches + t.rows * row + (0 if whole else shape.filters * row),
    )
