"""The compiled loops of the kernel "filters" (filters.py).

A work item has a block of output positions (its *slots*) and a panel of `vectors` vectors of filters. It goes through *passes*: a pass has
entries, which are (channel, tap) pairs with the weights of the panel, and a list of slots, and does

    sum[slot, :] += x[position of slot + offset of entry] * weights[entry, :]        for its entries and its slots

A tile of several slots stays in registers over the entries of the pass. The sums of a block live in the first-level cache (scratch) from
pass to pass; a pass with FROM_BIAS begins with the bias, and one with TO_Y ends with residual, clip and the store to y.

The items of an operation may read their activations from a copy of the patches, in scratch too, in which what the mask drops is zero:
then a pass may have slots that drop some of its channels. Items that follow each other share the copy of their block.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from ...common.simd import LANES
from .conv import CONSTANTS, HEADER, INDEX
from .filters_simd import (
    REGISTERS,
    add_channels,
    add_rows,
    add_tap,
    clip,
    copy_lanes,
    load_slots,
    prefetch,
    same_rows,
    store_rows,
    store_slots,
)

X, Y, RESIDUAL, ITEMS, COPIES, CHANNEL_STRIDE = range(HEADER, HEADER + 6)
"""Positions in meta: first elements of the tensors in the arena (no residual: -1), and of the work items in the index; first element of
copies in scratch, and the stride of the channels of x."""
META = HEADER + 6
VECTORS, WEIGHTS, FILTER, FIRST_PASS, LAST_PASS, TABLES, SLOTS, COPY, COPY_END, ITEM = range(10)
"""Integers of a work item: vectors of its panel; where its weights begin in the constants, and its filters among all; its passes;
tables of the positions of its slots in x, y and residual, one after another, of SLOTS integers each; index[COPY:COPY_END] holds a pair
for each vector of channels that is copied: its first element in x, and a word whose bits are set for the channels that are kept."""
MODE, ENTRIES, ENTRIES_END, LIST, COUNT, PASS = range(6)
"""Integers of a pass: index[ENTRIES:ENTRIES_END] holds its entries, pairs of offsets in a patch and in the panel's weights; LIST and
COUNT are its slots."""
FROM_BIAS, TO_Y, PREFETCH = 1, 2, 4
"""Modes of a pass, added up. PREFETCH: fetch the weights of passes to come."""
AHEAD = 9216
"""Floats from the weights of a pass to those that it fetches."""
LOW, HIGH, BIAS = 0, 1, LANES
"""Positions in the constants."""
TILES = {1: (8, 4, 1), 2: (8, 4, 1), 4: (4, 2, 1)} if REGISTERS >= 32 else {1: (6, 2, 1), 2: (2, 1, 1)}
"""Numbers of rows of the register tiles, by vectors: as many as the registers hold beside weights and an activation."""
WIDEST = max(TILES)
"""Vectors of the widest panels."""
DEPTHWISE = 0
"""Stands for the vectors of a panel of LANES channels of a depthwise convolution, whose activations are in the lanes too."""


_OPTIONS = {"nogil": True, "boundscheck": False, "error_model": "numpy"}


def _tiles(rows: int, vectors: int, add: Callable[..., Any]) -> Any:
    """As many whole tiles as a list of slots has."""
    fetches = (rows, vectors) == (TILES[WIDEST][0], WIDEST)

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
            if fetches and mode & PREFETCH:
                # A line of an entry's weights in each tile: a few tiles fetch all of them.
                ahead = weights + AHEAD + at // rows % vectors * LANES
                for entry in range(first, last, 2):
                    prefetch(constants, ahead + index[entry + 1])
                    tile = add(tile, arena, x, index, tables, at, entry, constants, weights)
            else:
                for entry in range(first, last, 2):
                    tile = add(tile, arena, x, index, tables, at, entry, constants, weights)
            if mode & TO_Y:
                if residual >= 0:
                    tile = add_rows(tile, arena, residual, index, tables + 2 * slots, at)
                tile = clip(tile, low, high)
                store_rows(tile, arena, y, index, tables + slots, at)
            else:
                store_slots(tile, arena, sums, index, at)
            at += rows
        return at

    return njit(forceinline=True, **_OPTIONS)(tiles)


def _item(vectors: int, add: Callable[..., Any] = add_tap) -> Any:
    large, small, one = (_tiles(rows, vectors, add) for rows in TILES[vectors])

    def item(
        work: int, base: int, numbers: int, sums: int, x: int, y: int, residual: int, arena: NDArray, constants: NDArray, index: NDArray
    ) -> None:
        """work: position of the item's integers; base and numbers: of the operation's index and constants."""
        weights, offset = numbers + index[work + WEIGHTS], index[work + FILTER]
        tables, slots = base + index[work + TABLES], np.intp(index[work + SLOTS])
        bias, low, high = numbers + BIAS + offset, constants[numbers + LOW], constants[numbers + HIGH]
        y += offset
        if residual >= 0:
            residual += offset
        for p in range(base + index[work + FIRST_PASS], base + index[work + LAST_PASS], PASS):
            mode, first, last = np.intp(index[p + MODE]), base + index[p + ENTRIES], base + index[p + ENTRIES_END]
            at = base + index[p + LIST]
            stop = at + index[p + COUNT]
            at = large(at, stop, mode, first, last, weights, bias, sums, x, y, residual, tables, slots, arena, constants, index, low, high)
            at = small(at, stop, mode, first, last, weights, bias, sums, x, y, residual, tables, slots, arena, constants, index, low, high)
            one(at, stop, mode, first, last, weights, bias, sums, x, y, residual, tables, slots, arena, constants, index, low, high)

    return njit(**_OPTIONS)(item)


_one, _two = _item(1), _item(2)
_widest = _item(WIDEST) if WIDEST > 2 else _two
_depthwise = _item(1, add_channels)


@njit(**_OPTIONS)
def _copy(to: int, first: int, last: int, x: int, stride: int, arena: NDArray, index: NDArray) -> None:
    if stride == 1:
        for pair in range(first, last, 2):
            copy_lanes(arena, to, x + index[pair], index[pair + 1])
            to += LANES
    else:
        for pair in range(first, last, 2):
            for lane in range(LANES):
                kept = index[pair + 1] >> lane & 1
                arena[to + lane] = arena[x + index[pair] + lane * stride] if kept else np.float32(0)
            to += LANES


@njit(**_OPTIONS)
def run(first: int, last: int, scratch: int, arena: NDArray, constants: NDArray, index: NDArray, meta: NDArray, op: int) -> None:
    base, numbers = meta[op + INDEX], meta[op + CONSTANTS]
    x, y, residual, copied = meta[op + X], meta[op + Y], meta[op + RESIDUAL], np.int32(-1)
    for k in range(first, last):
        work = base + meta[op + ITEMS] + k * ITEM
        vectors = index[work + VECTORS]
        if index[work + COPY] < index[work + COPY_END]:
            x = scratch + meta[op + COPIES]
            if index[work + COPY] != copied:
                copied = index[work + COPY]
                _copy(x, base + copied, base + index[work + COPY_END], meta[op + X], meta[op + CHANNEL_STRIDE], arena, index)
        if vectors == WIDEST:
            _widest(work, base, numbers, scratch, x, y, residual, arena, constants, index)
        elif vectors == 2:
            _two(work, base, numbers, scratch, x, y, residual, arena, constants, index)
        elif vectors == DEPTHWISE:
            _depthwise(work, base, numbers, scratch, x + index[work + FILTER], y, residual, arena, constants, index)
        else:
            _one(work, base, numbers, scratch, x, y, residual, arena, constants, index)
