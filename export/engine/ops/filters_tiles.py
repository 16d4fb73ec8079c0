"""Which positions share a register tile in the kernel "filters", and the passes over them.

Positions that keep about the same channels share tiles. A tile goes through the channels that enough of its slots keep, in one pass in
which the sums stay in registers; slots that drop one of them read zeros for it. Channels that fewer keep go first, a pass for each.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..ir import costs
from .filters_costs import KEPT_ENTRY, left_over
from .filters_run import FROM_BIAS, OWN, PASS, TILES, TO_Y


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


class Form(NamedTuple):
    """How an operation is planned: vectors of its panels (or DEPTHWISE), slots of a tile."""

    vectors: int
    tile: int


@dataclass(frozen=True)
class Block:
    """The positions of a work item, its slots, cut into tiles."""

    positions: NDArray
    form: Form
    cuts: NDArray
    """[tiles + 1] where tiles begin and end. The last ones may have fewer slots."""
    kept: NDArray
    """bool [C,slots]"""
    together: NDArray
    """bool [tiles,C]: channels that a whole tile goes through."""
    rest: NDArray
    """bool [C,slots]: what else is kept."""

    @property
    def drops(self) -> NDArray:
        """[tiles,C] integers: a bit is set for each slot of the tile that drops the channel."""
        rank = np.arange(len(self.positions)) - self.cuts[:-1].repeat(np.diff(self.cuts))
        drops: NDArray = np.add.reduceat(~self.kept * (1 << rank), self.cuts[:-1], 1).T
        return drops

    def alone(self, tile: int) -> bool:
        """One or two slots that are left over cost less one by one than as a tile."""
        return self.cuts[tile + 1] - self.cuts[tile] == 1 < self.form.tile


def blocks(kept: NDArray, bounds: NDArray, form: Form, taps: NDArray) -> list[Block]:
    """Successive positions, cut at the bounds; kept: bool [C,positions]; taps: [C] how many a channel has, about."""
    return [block(kept[:, first:last], first, form, taps) for first, last in pairwise(bounds)]


def block(kept: NDArray, first: int, form: Form, taps: NDArray) -> Block:
    """The block of these positions; kept: bool [C,slots], the first slot at position `first`."""
    order = alike(kept, form)
    kept, slots = kept[:, order], len(order)
    whole = slots - slots % form.tile
    # One or two slots that are left over cost less one by one than as a tile.
    starts = np.r_[np.arange(0, whole, form.tile), np.arange(whole, slots, 1 if slots - whole <= 2 else form.tile)]
    sizes = np.diff(starts, append=slots)
    counts = np.add.reduceat(kept, starts, 1, dtype=np.int16)
    together = (counts >= np.minimum(_enough(counts, form, taps)[:, None], sizes)) & (counts > 0)
    return Block(first + order, form, np.r_[starts, slots], kept, together.T, kept & ~together.repeat(sizes, 1))


def _enough(counts: NDArray, form: Form, taps: NDArray) -> NDArray:
    """[C] how many slots of a tile have to keep a channel for all of them to go through it, so that this takes least; counts: [C,tiles]
    slots that keep it."""
    best, least = np.full(len(taps), np.inf), np.full(len(taps), form.tile)
    if form.vectors not in TILES:
        return least
    table = costs.current()
    # Where all keep it, that is no question.
    whole, alone = form.tile * table[KEPT_ENTRY[form.vectors]] * taps, left_over(form.vectors, taps)
    counts = np.where(counts == form.tile, 0, counts)
    for enough in range(1, form.tile + 1):
        rest = np.where(counts < enough, counts, 0).sum(1)
        time = (counts >= enough).sum(1) * whole + rest * alone + (rest > 0) * table["filters.pass"]
        least, best = np.where(time < best, enough, least), np.minimum(best, time)
    return least


def alike(kept: NDArray, form: Form) -> NDArray:
    """An order of the slots in which those of a tile keep many channels together; kept: bool [C,slots]."""
    slots = kept.shape[1]
    if form.tile == 1 or (kept == kept[:, :1]).all():
        return np.arange(slots)
    columns = kept.T.astype(np.float32)
    sizes, free = columns.sum(1), np.ones(slots, bool)
    # Together they keep, of a slot: most channels in common, and among those, the slot that loses least by it.
    weight = 1 / (len(kept) + 1)
    order: list[int] = []
    for first in np.argsort(-sizes, kind="stable"):
        if not free[first]:
            continue
        common, free[first] = columns[first].copy(), False
        order.append(first)
        for _ in range(min(form.tile - 1, slots - len(order))):
            best = int(np.where(free, columns @ common - sizes * weight, -np.inf).argmax())
            common *= columns[best]
            free[best] = False
            order.append(best)
    return np.array(order)


@dataclass(frozen=True)
class Entries:
    """(channel, tap) pairs in the order in which the first tile uses them, so that their weights are a stream. But channels with as many
    taps follow each other: the processor predicts the length of a loop by the last ones."""

    pairs: tuple[NDArray, NDArray]
    channels: NDArray
    """Those that have entries."""
    bounds: NDArray
    """[channels,2]: first <= entry < last."""

    @classmethod
    def of(cls, kept: NDArray, first: Block) -> "Entries":
        """kept: bool [C,taps]; first: the first block."""
        counts = kept.sum(1)
        order = np.lexsort((first.drops[0], ~first.together[0], -counts))[: np.count_nonzero(counts)]
        k, tap = np.nonzero(kept[order])
        last = counts[order].cumsum()
        return cls((order[k], tap), order, np.stack([last - counts[order], last], 1))

    def parts(self, used: NDArray, most: int) -> list[NDArray]:
        """The `used` channels (as rows of bounds) in parts of at most so many entries, but at least one channel; at least one part."""
        before = np.diff(self.bounds[used], axis=1)[:, 0].cumsum() if len(used) else used
        return np.split(used, np.nonzero(np.diff(before // most))[0] + 1)


def passes(entries: Entries, offsets: NDArray, block: Block, sources: NDArray, most: int, index: Numbers) -> NDArray:
    """[passes, PASS] integers; a pass takes at most so many entries, but at least a channel. offsets: [entries,2], those of the kernel;
    sources: [slots] places of the patches in x."""
    own = _Own(entries, offsets, block, sources, index)
    listed = index.add(offsets)
    rest = block.rest[entries.channels]
    used = np.nonzero(block.together[:, entries.channels].any(0) | rest.any(1))[0]
    parts = entries.parts(used, most)
    touches = np.array([np.logical_or.reduceat(rest[part].any(0), block.cuts[:-1]) for part in parts])
    touched = touches.any(0)
    rows: list[list[int]] = []
    if touched.any():
        rows.append([FROM_BIAS, 0, 0, *_padded(np.nonzero(touched.repeat(np.diff(block.cuts)))[0], block.form, index)])
    # A tile goes through the parts in which it has entries, and is stored to y in the last one that touches it.
    has = np.array([block.together[:, entries.channels[part]].any(1) for part in parts])
    begin, end = has.argmax(0), np.where((has | touches).any(0), len(parts) - 1 - (has | touches)[::-1].argmax(0), 0)
    has[end, np.arange(len(end))] = True
    for number, part in enumerate(parts):
        for k in part[rest[part].any(1)]:
            first, last = listed + 2 * entries.bounds[k]
            rows.append([0, first, last, *_padded(np.nonzero(rest[k])[0], block.form, index)])
        modes = FROM_BIAS * ((begin == number) & ~touched) + TO_Y * (end == number)
        for mode in np.unique(modes[has[number]]):
            rows += own.passes(part, np.nonzero(has[number] & (modes == mode))[0], int(mode))
    return np.array(rows, int).reshape(-1, PASS)


def _padded(slots: NDArray, form: Form, index: Numbers) -> tuple[int, int]:
    """LIST and COUNT of a pass. A slot may stand there twice in a tile: both do the same."""
    rows = TILES[form.vectors][1]
    more = -len(slots) % rows
    if more < rows - 1:
        slots = np.r_[slots, slots[-1:].repeat(more)]
    return index.add(slots), len(slots)


class _Own:
    """Passes with OWN over a block."""

    def __init__(self, entries: Entries, offsets: NDArray, block: Block, sources: NDArray, index: Numbers) -> None:
        self._entries, self._offsets, self._block, self._index, self._sources = entries, offsets, block, index, sources
        self._drops = block.drops

    def passes(self, part: NDArray, tiles: NDArray, mode: int) -> list[list[int]]:
        """The channels `part` in these tiles."""
        block, index, channels = self._block, self._index, self._entries.channels[part]
        lists: list[NDArray] = []
        slots: list[NDArray] = []
        singles = []
        for tile in tiles:
            first, last = block.cuts[tile : tile + 2]
            together = block.together[tile, channels]
            used = part[together]
            if block.alone(tile):
                entries = self._listed(used)
                start = index.add(entries)
                singles.append([mode, start, start + entries.size, index.add(np.array([first])), 1])
            else:
                slots.append(np.minimum(np.arange(first, first + block.form.tile), last - 1))
                lists += self._tile(used, self._drops[tile, channels[together]], slots[-1])
        if not lists:
            return singles
        start = index.add(np.concatenate(lists))
        ends = index.add(start + np.cumsum([entries.size for entries in lists]))
        return [[mode | OWN, start, ends, index.add(np.concatenate(slots)), len(slots) * block.form.tile], *singles]

    def _tile(self, used: NDArray, drops: NDArray, slots: NDArray) -> list[NDArray]:
        """Entries of a tile that goes through the channels `used`: pairs, and those that some slots drop; drops: the bits of these."""
        whole, part = self._listed(used[drops == 0]), used[drops != 0]
        patterns, which = np.unique(drops[drops != 0], return_inverse=True)
        places = [self._index.add(np.where(drop >> (slots - slots[0]) & 1, -1, self._sources[slots])) for drop in patterns]
        sizes = np.diff(self._entries.bounds[part], axis=1)[:, 0] if len(part) else part
        return [whole.reshape(-1), np.column_stack([self._listed(part), np.array(places, int)[which].repeat(sizes)]).reshape(-1)]

    def _listed(self, used: NDArray) -> NDArray:
        """[entries,2] of these channels."""
        return np.concatenate([self._offsets[:0], *(self._offsets[a:b] for a, b in self._entries.bounds[used])])
