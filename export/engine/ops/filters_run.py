"""The compiled loops of the kernel "filters" (filters.py).

A work item has a block of output positions (its *slots*) and a panel of `vectors` vectors of filters. It goes through *passes*: a pass has
entries, which are (channel, tap) pairs with the weights of the panel, and a list of slots, and does

    sum[slot, :] += x[position of slot + offset of entry] * weights[entry, :]        for its entries and its slots

A tile of several slots stays in registers over the entries of the pass. The sums of a block live in the first-level cache (scratch) from
pass to pass; a pass with FROM_BIAS begins with the bias, and one with TO_Y ends with residual, clip and the store to y.

In a pass with OWN every tile has entries of its own, which name the places of its slots in x. A slot that drops the channel of an entry,
while enough others of its tile keep it, reads zeros there: they lie in scratch, as far apart as the activations of entries.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fineprune.ops.simd import LANES
from fineprune.ops.simd.registers import HOST, Registers
from fineprune.ops.simd.vectors import clipped

from ..ir.network import kernel
from ..ir.record import INT, Record
from ..jit import jit, jit_merged
from .filters_simd import (
    add_channels,
    add_kept,
    add_rows,
    add_tap,
    keep_lanes,
    load_slots,
    prefetch,
    same_rows,
    store_rows,
    store_slots,
)

META = Record(x=INT, y=INT, residual=INT, items=INT, zeros=INT, zero_lines=INT, zero_lines_end=INT)
"""First element of the first patch of x in the arena, of y and residual (none: -1), of the work items in the index; where in scratch the
zeros begin, and index[zero_lines:zero_lines_end], the vectors among them that are read."""
_fields = META.fields
VECTORS, WEIGHTS, FILTER, FIRST_PASS, LAST_PASS, TABLES, SLOTS, PACE, ITEM = range(9)
"""Integers of a work item: vectors of its panel; where its weights begin in the constants, and its filters among all; its passes;
tables of the positions of its slots in x, y and residual, one after another, of SLOTS integers each, for depthwise convolutions with
bits of the channels that a slot keeps after y. PACE: floats from a line of weights that an entry fetches for later to the next, of as
many as it has vectors; 0: it fetches none."""
MODE, ENTRIES, ENTRIES_END, LIST, COUNT, PASS = range(6)
"""Integers of a pass: index[ENTRIES:ENTRIES_END] holds its entries, pairs of offsets in a patch and in the panel's weights; LIST and
COUNT are its slots. With OWN, from ENTRIES_END on lies for each tile where its entries end."""
KEPT = 3
"""Integers of an entry of a pass with OWN: the pair, and where the places in x of its slots lie, negative where a slot reads zeros."""
FROM_BIAS, TO_Y, OWN, MASKED = 1, 2, 4, 8
"""Modes of a pass, added up. MASKED: where a position drops a channel of a depthwise convolution, the sum is its bias."""
AHEAD = 4096
"""Floats from the first weights of a panel to the first that it fetches."""
LIST_AHEAD = 512
"""Integers from an entry to what is fetched of the lists, which large layers read from beyond the caches."""
LOW, HIGH, BIAS = 0, 1, LANES
"""Positions in the constants."""
_MOST_ROWS = {1: 8, 2: 6, 4: 4}
"""Rows of a tile that are worth while, by its vectors."""


def tiles(registers: Registers) -> dict[int, tuple[int, int, int]]:
    """Numbers of rows of the register tiles, by vectors: as many as the registers hold beside weights and an activation, fewer for slots
    that are left over."""
    most = {vectors: min(rows, registers.vectors(beside=1) // vectors - 1) for vectors, rows in _MOST_ROWS.items()}
    return {vectors: (rows, 1 << (rows // 2).bit_length() - 1, 1) for vectors, rows in most.items() if rows > 1}


TILES = tiles(HOST)
WIDEST = max(TILES)
"""Vectors of the widest panels."""
DEPTHWISE = 0
"""Stands for the vectors of a panel of LANES channels of a depthwise convolution, whose activations are in the lanes too."""


@jit_merged
def fetch(constants: NDArray, ahead: int, pace: int, count: int) -> int:
    """Fetch so many lines of weights; where to go on."""
    for k in range(count):
        prefetch(constants, ahead + k * pace)
    return ahead + count * pace


def _tiles(rows: int, vectors: int, add: Callable[..., Any]) -> Any:
    """As many whole tiles as a list of slots has."""
    depthwise = add is add_channels

    def tiles(
        at: int,
        stop: int,
        mode: int,
        first: int,
        last: int,
        weights: int,
        bias: int,
        sums: int,
        x: int,
        y: int,
        residual: int,
        tables: int,
        slots: int,
        arena: NDArray,
        constants: NDArray,
        index: NDArray,
        low: float,
        high: float,
    ) -> int:
        while at + rows <= stop:
            tile = same_rows(constants, bias, rows, vectors) if mode & FROM_BIAS else load_slots(arena, sums, index, at, rows, vectors)
            for entry in range(first, last, 2):
                tile = add(tile, arena, x, index, tables, at, entry, constants, weights)
            if depthwise and mode & MASKED:
                tile = keep_lanes(tile, constants, bias, index, tables + 2 * slots, at)
            if mode & TO_Y:
                if residual >= 0:
                    tile = add_rows(tile, arena, residual, index, tables + (3 if depthwise else 2) * slots, at)
                tile = clipped(tile, low, high)
                store_rows(tile, arena, y, index, tables + slots, at)
            else:
                store_slots(tile, arena, sums, index, at)
            at += rows
        return at

    return jit_merged(tiles)


def _own(rows: int, vectors: int) -> Any:
    """The tiles of a pass with OWN."""
    fetches = vectors == WIDEST

    def tiles(
        at: int,
        stop: int,
        mode: int,
        base: int,
        first: int,
        ends: int,
        weights: int,
        bias: int,
        sums: int,
        x: int,
        zeros: int,
        y: int,
        residual: int,
        tables: int,
        slots: int,
        ahead: int,
        pace: int,
        arena: NDArray,
        constants: NDArray,
        index: NDArray,
        low: float,
        high: float,
    ) -> int:
        while at < stop:
            tile = same_rows(constants, bias, rows, vectors) if mode & FROM_BIAS else load_slots(arena, sums, index, at, rows, vectors)
            middle, last = base + index[ends], base + index[ends + 1]
            if pace:
                for entry in range(first, middle, 2):
                    ahead = fetch(constants, ahead, pace, vectors)
                    tile = add_tap(tile, arena, x, index, tables, at, entry, constants, weights)
                for entry in range(middle, last, KEPT):
                    ahead = fetch(constants, ahead, pace, vectors)
                    tile = add_kept(tile, arena, x, zeros, index, base, entry, constants, weights)
            else:
                for entry in range(first, middle, 2):
                    if fetches:
                        prefetch(index, entry + LIST_AHEAD)
                    tile = add_tap(tile, arena, x, index, tables, at, entry, constants, weights)
                for entry in range(middle, last, KEPT):
                    if fetches:
                        prefetch(index, entry + LIST_AHEAD)
                    tile = add_kept(tile, arena, x, zeros, index, base, entry, constants, weights)
            first = last
            if mode & TO_Y:
                if residual >= 0:
                    tile = add_rows(tile, arena, residual, index, tables + 2 * slots, at)
                tile = clipped(tile, low, high)
                store_rows(tile, arena, y, index, tables + slots, at)
            else:
                store_slots(tile, arena, sums, index, at)
            at += rows
            ends += 2
        return ahead

    return jit_merged(tiles)


def _item(vectors: int, add: Callable[..., Any] = add_tap) -> Any:
    large, small, one = (_tiles(rows, vectors, add) for rows in TILES[vectors])
    own = _own(TILES[vectors][0], vectors)
    has_own = add is add_tap

    def item(
        work: int,
        base: int,
        numbers: int,
        sums: int,
        x: int,
        zeros: int,
        y: int,
        residual: int,
        arena: NDArray,
        constants: NDArray,
        index: NDArray,
    ) -> None:
        """work: position of the item's integers; base and numbers: of the operation's index and constants; zeros: relative to x."""
        weights, offset = numbers + index[work + WEIGHTS], index[work + FILTER]
        tables, slots = base + index[work + TABLES], np.intp(index[work + SLOTS])
        bias, low, high = numbers + BIAS + offset, constants[numbers + LOW], constants[numbers + HIGH]
        y += offset
        ahead, pace = weights + AHEAD, np.intp(index[work + PACE])
        if residual >= 0:
            residual += offset
        for p in range(base + index[work + FIRST_PASS], base + index[work + LAST_PASS], PASS):
            mode, first, last = np.intp(index[p + MODE]), base + index[p + ENTRIES], base + index[p + ENTRIES_END]
            at = base + index[p + LIST]
            stop = at + index[p + COUNT]
            if has_own and mode & OWN:
                ahead = own(
                    at, stop, mode, base, first, last, weights, bias, sums, x, zeros, y, residual,
                    tables, slots, ahead, pace, arena, constants, index, low, high,
                )  # fmt: skip
                continue
            if pace:
                end = ahead + (last - first) // 2 * vectors * pace
                for line in range(ahead, end, LANES):
                    prefetch(constants, line)
                ahead = end
            at = large(at, stop, mode, first, last, weights, bias, sums, x, y, residual, tables, slots, arena, constants, index, low, high)
            at = small(at, stop, mode, first, last, weights, bias, sums, x, y, residual, tables, slots, arena, constants, index, low, high)
            one(at, stop, mode, first, last, weights, bias, sums, x, y, residual, tables, slots, arena, constants, index, low, high)

    return jit(item)


_one, _two = _item(1), _item(2)
_widest = _item(WIDEST) if WIDEST > 2 else _two
_depthwise = _item(1, add_channels)


@kernel("filters")
def run(first: int, last: int, scratch: int, arena: NDArray, constants: NDArray, index: NDArray, meta: NDArray, op: int) -> None:
    m = _fields(meta, op)
    base, numbers, x, y, residual, zeros = m.index, m.constants, m.x, m.y, m.residual, scratch + m.zeros
    for k in range(base + m.zero_lines, base + m.zero_lines_end):
        for lane in range(LANES):
            arena[zeros + index[k] + lane] = 0
    for k in range(first, last):
        work = base + m.items + k * ITEM
        vectors = index[work + VECTORS]
        if vectors == WIDEST:
            _widest(work, base, numbers, scratch, x, zeros - x, y, residual, arena, constants, index)
        elif vectors == 2:
            _two(work, base, numbers, scratch, x, zeros - x, y, residual, arena, constants, index)
        elif vectors == DEPTHWISE:
            _depthwise(work, base, numbers, scratch, x + index[work + FILTER], 0, y, residual, arena, constants, index)
        else:
            _one(work, base, numbers, scratch, x, zeros - x, y, residual, arena, constants, index)
