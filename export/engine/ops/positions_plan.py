"""Plans of the kernel "positions": how the output is tiled, which patches are packed, and who multiplies them with what.

Patches. Output vector t of a strip and tap (u,v) need the input rows sh*t + u*dh of column shift v*dw. With u*dh = sh*q + p that is
line t + q of rows p, p + sh, p + 2*sh, ..., so that taps of a column whose rows have the same phase p share their lines. A channel
with masked positions cannot share them: each tap has lines of its own, zero where the mask says so. Blocks of channels fit the
first-level cache.

Weights. Filters are taken in pairs that keep many taps in common, since a shared patch is loaded once for two multiply-adds:
first the taps that both keep, then one tap each, filled up with zero weights. Where `rows` filters go together, pairs of equal counts do.
Where registers hold the sums of one filter alone, it goes through what it keeps.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fineprune.ops.simd import LANES
from fineprune.ops.simd.registers import CACHES

from ..ir.conv import ConvShape
from .positions_kernel import ROWS_OF
from .positions_simd import OFFSET_UNIT

BLOCK_LINES = CACHES.first * 15 // 16 // (4 * LANES)
"""Vectors of patches that a block of channels may have: they leave the first-level cache some room for weights and sums."""
MOST_FILTERS = 64
"""Filters of a set. Pairs are sought within a set; more find better ones, and take longer."""
FEWEST_ITEMS, FEWEST_FILTERS = 4, 16
"""An operation is divided into so many work items, unless sets of filters became smaller."""
WASTE = 1.35
"""Vectors of a tiling over those of the one that has fewest: others are not thought of."""
VARIANT_ENTRIES = CACHES.second // 8
"""Weights that lists made for particular tiles may hold together, so that they stay in the second-level cache; beyond that, all tiles
share one list: 28 lists of a 64x64 layer took 10 % longer to fetch than its whole patches took to mask."""
DROPPED, WHOLE, MASKED = 0, 1, 2
"""What becomes of a channel in a tile."""

SHARED_LOADS, SINGLE_LOADS = 3, 4
"""Loads of a tap that two filters share, one patch and two weights, and of one tap each."""


@dataclass(frozen=True, kw_only=True)
class Tiling:
    """Strips of `segment` columns; a vector has LANES / segment rows, `span` rows apart; a tile has `vectors` vectors.

    With a `pitch`: one strip of `span` vectors, in which a row of the map begins every `pitch` positions.
    """

    vectors: int
    segment: int
    span: int
    strips: int
    pitch: int = 0

    @property
    def rows(self) -> int:
        """Filters at a time."""
        return ROWS_OF[self.vectors]

    @property
    def strip_tiles(self) -> int:
        return -(-self.span // self.vectors)

    @property
    def tiles(self) -> int:
        return self.strips * self.strip_tiles


def tilings(shape: ConvShape, pitch: int) -> list[Tiling]:
    """Those that waste about the fewest lanes. pitch: of rows in memory, 0: several."""
    oh, ow = shape.output
    cuts = [(segment, -(-oh // (LANES // segment)), -(-ow // segment), 0) for segment in (16, 8, 4)]
    if pitch and (shape.kernel, shape.strides, shape.pads) == ((1, 1), (1, 1), (0, 0, 0, 0)):
        cuts.append((LANES, -(-((oh - 1) * pitch + ow) // LANES), 1, pitch))
    found = [
        Tiling(vectors=vectors, segment=segment, span=span, strips=strips, pitch=pitch)
        for segment, span, strips, pitch in cuts
        for vectors in ROWS_OF
    ]
    least = min(t.tiles * t.vectors for t in found)
    return [t for t in found if t.tiles * t.vectors <= WASTE * least]


def tile_masks(mask: NDArray, t: Tiling) -> NDArray[np.int32]:
    """bits[channel, strip, vector]: bit l is the mask at lane l; lanes outside of the map are 0. mask: bool[C,oh,ow]."""
    channels, height, width = mask.shape
    parts, lines = LANES // t.segment, t.strip_tiles * t.vectors
    if t.pitch:
        spread = np.zeros((channels, height, t.pitch), bool)
        spread[..., :width] = mask
        run = np.zeros((channels, lines * LANES), bool)
        count = min(lines * LANES, height * t.pitch)
        run[:, :count] = spread.reshape(channels, -1)[:, :count]
        lanes = run.reshape(channels, 1, lines, LANES)
    else:
        padded = np.zeros((channels, parts, lines, t.strips * t.segment), bool)
        for part in range(parts):
            rows = mask[:, part * t.span : (part + 1) * t.span]
            padded[:, part, : rows.shape[1], :width] = rows
        lanes = padded.reshape(channels, parts, -1, t.strips, t.segment).transpose(0, 3, 2, 1, 4).reshape(channels, t.strips, -1, LANES)
    return (lanes << np.arange(LANES)).sum(-1).astype(np.int32)


def part_lanes(shape: ConvShape, t: Tiling) -> NDArray[np.int32]:
    """bits[part, strip, vector]: the lanes of the k-th segment of a vector that lie in the map."""
    inside = tile_masks(np.ones((1, *shape.output), bool), t)
    part = (1 << t.segment) - 1 << np.arange(0, LANES, t.segment)
    return (inside & part[:, None, None]).astype(np.int32)


def pieces(shape: ConvShape, t: Tiling, row_stride: int) -> tuple[NDArray, NDArray]:
    """(pieces [source, destination] of all tiles, where those of each tile begin) that copy a run of positions out of an input's rows."""
    found: list[tuple[int, int]] = []
    starts = [0]
    height, width = shape.output
    size = t.vectors * LANES
    for first in range(0, t.tiles * size, size):
        for row in range(first // t.pitch, min(height, -(-(first + size) // t.pitch))):
            begin, end = (min(max(place - row * t.pitch, 0), width) for place in (first, first + size))
            columns = range(begin, end, LANES)
            found += [(row * row_stride + column, row * t.pitch + column - first) for column in columns]
        starts.append(len(found))
    return np.array(found), np.array(starts)


def channel_states(mask: NDArray | None, used: NDArray, t: Tiling, shape: ConvShape) -> NDArray[np.int8]:
    """states[tile, channel]; used[channel]: whether any filter has a weight for it."""
    states = np.full((t.tiles, shape.channels), WHOLE, np.int8)
    if mask is not None:
        bits = tile_masks(mask, t).reshape(shape.channels, t.tiles, t.vectors)
        whole = tile_masks(np.ones_like(mask), t).reshape(bits.shape)
        states[(bits != whole).any(-1).T] = MASKED
        states[(bits == 0).all(-1).T] = DROPPED
    states[:, ~used] = DROPPED
    return states


def variants(states: NDArray, entries: int) -> tuple[NDArray, NDArray]:
    """(states of each variant, variant of each tile): tiles with the same channels share their lists; if that takes too many, all do."""
    kinds, of_tile = np.unique(states, axis=0, return_inverse=True)
    if len(kinds) * entries <= max(entries, VARIANT_ENTRIES):
        return kinds, of_tile.reshape(-1)
    common = np.where((states == states[0]).all(0), states[0], MASKED).astype(states.dtype)
    return common[None], np.zeros(len(states), np.int64)


@dataclass(frozen=True, kw_only=True)
class Lines:
    """Patches of a channel: runs (column, first row, lines) of packed vectors, and where each tap finds its first (-1: unused)."""

    runs: tuple[tuple[int, int, int], ...]
    taps: NDArray[np.int64]

    @property
    def count(self) -> int:
        return sum(lines for _, _, lines in self.runs)


def channel_lines(shape: ConvShape, t: Tiling, used: NDArray, masked: bool) -> Lines:
    """used: bool[kh,kw], taps that any filter keeps."""
    runs: list[tuple[int, int, int]] = []
    taps = np.full(shape.kernel, -1, np.int64)
    start = 0
    for v in range(shape.kernel[1]):
        for phase, steps in _phases(shape, np.flatnonzero(used[:, v]), t, masked):
            first = min(q for _, q in steps)
            lines = t.vectors + max(q for _, q in steps) - first
            runs.append((v * shape.dilations[1], phase + shape.strides[0] * first, lines))
            for u, q in steps:
                taps[u, v] = start + q - first
            start += lines
    return Lines(runs=tuple(runs), taps=taps)


def _phases(shape: ConvShape, taps: NDArray, t: Tiling, masked: bool) -> Iterator[tuple[int, list[tuple[int, int]]]]:
    """(phase p, [(u, q)]) of the taps u of a column that share lines."""
    rows = [(int(u), *divmod(int(u) * shape.dilations[0], shape.strides[0])) for u in taps]
    for phase in sorted({p for _, _, p in rows}):
        steps = [(u, q) for u, q, p in rows if p == phase]
        reach = max(q for _, q in steps) - min(q for _, q in steps)
        if masked or t.vectors + reach > t.vectors * len(steps):
            yield from ((phase, [step]) for step in steps)
        else:
            yield phase, steps


@dataclass(frozen=True, kw_only=True)
class Block:
    """Channels whose patches are packed together; `opens` and `closes` the sums of the filters that read them."""

    channels: tuple[int, ...]
    filters: range
    opens: bool
    closes: bool


def blocks(shape: ConvShape, lines: NDArray) -> list[Block]:
    """lines[channel]: packed vectors of each, 0 for a dropped channel. Small groups share a block, large ones are divided evenly."""
    inputs, outputs = shape.channels // shape.groups, shape.filters // shape.groups
    result: list[Block] = []
    group = 0
    while group < shape.groups:
        last = group + 1
        while last < shape.groups and lines[group * inputs : (last + 1) * inputs].sum() <= BLOCK_LINES:
            last += 1
        filters = range(group * outputs, last * outputs)
        kept = group * inputs + np.flatnonzero(lines[group * inputs : last * inputs])
        parts = _even_parts(kept, lines[kept])
        for k, part in enumerate(parts):
            channels = tuple(int(c) for c in part)
            result.append(Block(channels=channels, filters=filters, opens=k == 0, closes=k == len(parts) - 1))
        group = last
    return result


def _even_parts(channels: NDArray, lines: NDArray) -> list[NDArray]:
    total = lines.sum()
    count = max(1, -(-int(total) // BLOCK_LINES))
    cuts = np.searchsorted(np.cumsum(lines), total * np.arange(1, count) / count)
    return [part for part in np.split(channels, np.unique(cuts)) if len(part)] or [channels]


def filter_sets(shape: ConvShape, t: Tiling) -> list[range]:
    """Contiguous filters, sets of about the same size, of whole groups of `rows` filters."""
    wanted = max(-(-shape.filters // MOST_FILTERS), -(-FEWEST_ITEMS // t.tiles))
    sets = max(1, min(wanted, shape.filters // FEWEST_FILTERS))
    size = -(-shape.filters // sets)
    size = -(-size // t.rows) * t.rows
    return [range(first, min(first + size, shape.filters)) for first in range(0, shape.filters, size)]


@dataclass
class Lists:
    """Records (filters, pairs of taps, single taps), the offsets of their patches and their weights, one after another."""

    rows: int
    records: list[list[int]]
    halves: list[NDArray]
    weights: list[NDArray]
    half: int = 0
    weight: int = 0

    def position(self) -> tuple[int, int, int]:
        return len(self.records) * (self.rows + 2), self.half, self.weight

    def add(self, filters: NDArray, weights: NDArray, offsets: NDArray) -> None:
        """filters[n], weights[n,taps] (dropped ones 0), offsets[taps] of patches."""
        kept = weights != 0
        if self.rows == 1:
            rows, taps = np.nonzero(kept)
            self.records += [[filter_, 0, count] for filter_, count in zip(filters.tolist(), kept.sum(1).tolist(), strict=True)]
            self._append(offsets[taps], weights[rows, taps])
            return
        found = pairs(kept)
        found.sort(key=lambda pair: (-max(kept[pair].sum(1)), -kept[pair].all(0).sum()))
        at_once = self.rows // 2
        for k in range(0, len(found), at_once):
            self._record(found[k : k + at_once], filters, weights, kept, offsets)

    def _record(self, pairs: list[list[int]], filters: NDArray, weights: NDArray, kept: NDArray, offsets: NDArray) -> None:
        whole = [[pair[0], pair[-1]] for pair in pairs]
        whole += whole[:1] * (self.rows // 2 - len(whole))  # where filters are missing, others are done twice: nobody has to ask
        both = [np.flatnonzero(kept[pair].all(0)) for pair in whole]
        shared = min(len(taps) for taps in both)
        rows: list[tuple[int, NDArray, NDArray]] = []
        for pair, taps in zip(whole, both, strict=True):
            for row in pair:
                own = kept[row].copy()
                own[taps[:shared]] = False
                rows.append((row, taps[:shared], np.flatnonzero(own)))
        single = max(len(own) for _, _, own in rows)
        paired_offsets, paired_weights = np.zeros((shared, self.rows // 2), np.uint16), np.zeros((shared, self.rows), np.float32)
        single_offsets, single_weights = np.zeros((single, self.rows), np.uint16), np.zeros((single, self.rows), np.float32)
        for k, (row, taps, own) in enumerate(rows):
            paired_offsets[: len(taps), k // 2] = offsets[taps]
            paired_weights[: len(taps), k] = weights[row, taps]
            # What fills up a list reads a patch that the filter reads anyway: zero times infinity must not come from anywhere else.
            any_tap = np.concatenate([taps, own])[:1]
            single_offsets[:, k] = offsets[any_tap[0]] if len(any_tap) else 0
            single_offsets[: len(own), k] = offsets[own]
            single_weights[: len(own), k] = weights[row, own]
        self.records.append([*(int(filters[row]) for row, _, _ in rows), shared, single])
        self._append(
            np.r_[paired_offsets.reshape(-1), single_offsets.reshape(-1)], np.r_[paired_weights.reshape(-1), single_weights.reshape(-1)]
        )

    def _append(self, offsets: NDArray, weights: NDArray) -> None:
        self.halves.append(offsets.astype(np.uint16))
        self.weights.append(weights)
        self.half += offsets.size
        self.weight += weights.size


def pairs(kept: NDArray) -> list[list[int]]:
    """Filters in pairs, greedily the best first: many taps in common and equal counts. kept: bool[n,taps]. One may stay alone."""
    n = len(kept)
    as_numbers = kept.astype(np.float32)
    common, counts = as_numbers @ as_numbers.T, as_numbers.sum(1)
    one, other = np.triu_indices(n, 1)
    # A pair takes SHARED_LOADS * common + SINGLE_LOADS * (longer list - common): the gain over two filters of which each takes half a list.
    gain = (SINGLE_LOADS - SHARED_LOADS) * common[one, other] - SINGLE_LOADS / 2 * np.abs(counts[one] - counts[other])
    free = np.ones(n, bool)
    found = []
    for k in np.argsort(-gain, kind="stable"):
        if free[one[k]] and free[other[k]]:
            free[one[k]] = free[other[k]] = False
            found.append([int(one[k]), int(other[k])])
            if 2 * len(found) >= n - 1:
                break
    return found + [[int(k)] for k in np.flatnonzero(free)]


def offsets_of(lines: int | NDArray) -> NDArray:
    """What `tile_add_patches` is told of a packed vector."""
    return np.asarray(lines) * (LANES // OFFSET_UNIT)
