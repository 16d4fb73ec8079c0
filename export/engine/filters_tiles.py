"""Which positions share a register tile in the kernel "filters", and the passes over them.

Positions that keep the same channels share tiles: the channels that a whole tile keeps go through one pass, in which the sums stay in
registers. What is left over, channels that only some positions of a tile keep, goes first, a pass for each channel.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .filters_run import FROM_BIAS, PASS, PREFETCH, TO_Y


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
    """How an operation is planned: vectors of its panels (or DEPTHWISE); slots of a tile; how many of them have to keep a channel for all
    to go through it together. Where that is not all, what they drop has to be zero: it is read from a copy of the patches."""

    vectors: int
    tile: int
    least: int

    @property
    def copies(self) -> bool:
        return self.least < self.tile


@dataclass(frozen=True)
class Block:
    """The positions of a work item, its slots, cut into tiles of as many slots each (the last one may have fewer)."""

    positions: NDArray
    tile: int
    common: NDArray
    """bool [tiles,C]: channels that all slots of a tile go through."""
    rest: NDArray
    """bool [C,slots]: what else is kept."""


def blocks(kept: NDArray, bounds: NDArray, form: Form) -> list[Block]:
    """Successive positions, cut at the bounds; kept: bool [C,positions]."""
    return [block(kept[:, first:last], first, form) for first, last in pairwise(bounds)]


def block(kept: NDArray, first: int, form: Form) -> Block:
    """The block of these positions; kept: bool [C,slots], the first slot at position `first`."""
    order = alike(kept, form)
    kept = kept[:, order]
    starts = np.arange(0, len(order), form.tile)
    sizes = np.diff(starts, append=len(order))
    common = np.add.reduceat(kept, starts, 1, dtype=np.int16) >= np.minimum(form.least, sizes)
    rest = kept & ~common.repeat(sizes, 1)
    return Block(first + order, form.tile, common.T, rest)


def alike(kept: NDArray, form: Form) -> NDArray:
    """An order of the slots in which those of a tile keep many channels together; kept: bool [C,slots]."""
    slots = kept.shape[1]
    if form.tile == 1 or (kept == kept[:, :1]).all():
        return np.arange(slots)
    columns = kept.T.astype(np.float32)
    sizes, free = columns.sum(1), np.ones(slots, bool)
    # Together they keep, of a slot: most channels in common, and among those, the slot that loses least by it; or, where a tile goes
    # through all that any slot keeps: the slot that differs least.
    weight = 0.5 if form.copies else 1 / (len(kept) + 1)
    order: list[int] = []
    for first in np.argsort(-sizes, kind="stable"):
        if not free[first]:
            continue
        common, free[first] = columns[first].copy(), False
        order.append(first)
        for _ in range(min(form.tile - 1, slots - len(order))):
            best = int(np.where(free, columns @ common - sizes * weight, -np.inf).argmax())
            common = np.maximum(common, columns[best]) if form.copies else common * columns[best]
            free[best] = False
            order.append(best)
    return np.array(order)


@dataclass(frozen=True)
class Entries:
    """(channel, tap) pairs in the order of use. Channels with as many taps follow each other: the processor predicts the length of a loop
    by the last ones."""

    pairs: tuple[NDArray, NDArray]
    channels: NDArray
    """Those that have entries."""
    bounds: NDArray
    """[channels,2]: first <= entry < last."""

    @classmethod
    def of(cls, kept: NDArray) -> "Entries":
        """kept: bool [C,taps]"""
        counts = kept.sum(1)
        order = np.argsort(-counts, kind="stable")[: np.count_nonzero(counts)]
        k, tap = np.nonzero(kept[order])
        last = counts[order].cumsum()
        return cls((order[k], tap), order, np.stack([last - counts[order], last], 1))

    def parts(self, most: int) -> list[NDArray]:
        """The channels (as rows of bounds) in parts of at most so many entries, but at least one channel; at least one part."""
        if not len(self.channels):
            return [np.zeros(0, int)]
        return np.split(np.arange(len(self.channels)), np.nonzero(np.diff(self.bounds[:, 0] // most))[0] + 1)


def passes(entries: Entries, offsets: NDArray, block: Block, most: int, fetch: bool, index: Numbers) -> NDArray:
    """[passes, PASS] integers; a pass takes at most so many entries, but at least a channel. offsets: [entries,2], those of the kernel.
    fetch: let passes fetch the weights of later ones."""
    slots = len(block.positions)
    everywhere, listed = index.add(np.arange(slots)), index.add(offsets)
    parts = entries.parts(most)
    counts = block.rest.sum(1)
    rows: list[list[int]] = []
    begun = False
    for number, part in enumerate(parts):
        left_over = part[counts[entries.channels[part]] > 0]
        if len(left_over) and not begun:
            rows.append([FROM_BIAS, 0, 0, everywhere, slots])
            begun = True
        for k in left_over:
            channel, (first, last) = entries.channels[k], listed + 2 * entries.bounds[k]
            rows.append([PREFETCH * fetch, first, last, index.add(np.nonzero(block.rest[channel])[0]), counts[channel]])
        mode = (0 if begun else FROM_BIAS) | (TO_Y if number == len(parts) - 1 else 0) | PREFETCH * fetch
        common = block.common[:, entries.channels[part]]
        changes = np.nonzero((common[1:] != common[:-1]).any(1))[0] + 1
        for tile, stop in zip([0, *changes], [*changes, len(common)], strict=True):
            used = part[common[tile]]
            if len(used) or mode & (FROM_BIAS | TO_Y):
                own = np.concatenate([offsets[:0], *(offsets[first:last] for first, last in entries.bounds[used])])
                start, slot = index.add(own), tile * block.tile
                rows.append([mode, start, start + own.size, everywhere + slot, min(stop * block.tile, slots) - slot])
        begun = True
    return np.array(rows, int).reshape(-1, PASS)
