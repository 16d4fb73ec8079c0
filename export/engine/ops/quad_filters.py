"""Kernel "quad_filters": a convolution of integers with filters in the SIMD lanes, four channels of a position in each product.

    s[f,p] = bias[f] + sum over the quads that one of LANES filters keeps of  w[f,c,u,v,0:4] . x[c, p + offset(u,v), 0:4]       int32, exact

A quad of x is broadcast and multiplied by weights of LANES filters: every lane is useful however small the maps are, down to a linear
layer's one position, but a quad is saved only where all LANES filters drop it. A work item is LANES filters at a tile of positions,
as many as the registers hold sums of; they become bytes, and four of them words of y (quad_results.py).
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fineprune.ops.simd import LANES, pointer, tile_store
from fineprune.ops.simd.quads import real_byte_run, split, store_bytes, tile_add_filters, tile_same_words, whole, words
from fineprune.ops.simd.registers import HOST, Registers
from fineprune.ops.simd.vectors import load, store, words_of

from ..ir.conv import Op, View
from ..ir.costs import Counts
from ..ir.network import kernel
from ..ir.record import INT, Record, laid_out
from ..jit import jit
from .quad_results import FACTORS, FIELDS, biases, constants, facts, part, ratios, scaled, total

if TYPE_CHECKING:
    from .quads import QuadConv

_MOST_POSITIONS = 8
"""Of a tile: enough to hide what an entry takes besides, and their places fit the registers for integers; each size is compiled."""


def most_positions(registers: Registers) -> int:
    """Of sums in registers, beside weights (two registers of AVX2), a factor of ones, a quad and its products."""
    return min(_MOST_POSITIONS, registers.vectors(beside=6))


_MOST, _QUAD = most_positions(HOST), 4
_META = Record(sets=INT, filters=INT, tiles=INT, entries=INT, bias=INT, x=INT, places=INT, offsets=INT, weights=INT, **FIELDS)
"""sets: of LANES filters; tiles, entries, bias, x, places, offsets, weights: positions in index of the bounds of tiles and of lists, of
biases, of the first tap of each position, of its place in y (and in a residual, whose rows are at the same distance), and of the offsets
and weights of the entries."""
_fields = _META.fields


def lists(conv: "QuadConv", lanes: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int8]]:
    """(first entry of each set of so many filters and the end, places (c,u,v) of the entries [n,3], weights [n,lanes,4])."""
    F, *sizes, _ = conv.weights.shape
    sets = -(-F // lanes)
    weights = np.concatenate([conv.weights, np.zeros((sets * lanes - F, *sizes, _QUAD), np.int16)])
    weights = weights.reshape(sets, lanes, *sizes, _QUAD).transpose(0, 2, 3, 4, 1, 5)  # [sets,c,u,v,lanes,4]
    k, *place = np.nonzero(weights.any((-1, -2)))
    rows, found = split(weights[k, place[0], place[1], place[2]])
    k, place = k[rows], [axis[rows] for axis in place]
    return np.searchsorted(k, np.arange(sets + 1)), np.stack(place, 1), found


def sets_of(conv: "QuadConv") -> tuple[int, int]:
    """(sets of LANES filters, their entries)."""
    F = len(conv.weights)
    sets = -(-F // LANES)
    kept = np.pad(conv.weights.any(-1), ((0, sets * LANES - F), (0, 0), (0, 0), (0, 0)))
    return sets, int(kept.reshape(sets, LANES, -1).any(1).sum())


def counts(conv: "QuadConv", height: int, width: int) -> Counts:
    """What it comes to."""
    positions, (sets, entries) = height * width, sets_of(conv)
    tiles = -(-positions // _MOST)
    return {
        "quad_filters.operation": 1,
        "quad_filters.product": entries * positions,
        "quad_filters.entry": entries * tiles,
        "quad_filters.result": sets * positions,
        "quad_filters.item": sets * tiles,
        "quad_weights.line": entries * (LANES + 1) / LANES,
    }


def plan(conv: "QuadConv", x: View, residual: View | None, y: View) -> Op:
    """Its index has the parts that `_META` names."""
    F, positions = len(conv.weights), y.height * y.width
    bounds, places, found = lists(conv, LANES)
    sets, tiles = len(bounds) - 1, -(-positions // _MOST)
    offsets = places @ np.array([x.channel_stride, conv.dilations[0] * x.row_stride, conv.dilations[1]])
    rows, columns = np.divmod(np.arange(positions), y.width)
    index, starts = laid_out(
        tiles=np.arange(tiles + 1) * positions // tiles,
        entries=bounds,
        bias=biases(conv, sets * LANES),
        x=x.at(0, -conv.pads[0], -conv.pads[1]) + rows * x.row_stride + columns,
        places=rows * y.row_stride + columns,
        offsets=offsets,
        weights=words(found).reshape(-1),
    )
    meta = _META.pack(
        sets=sets,
        filters=F,
        **starts,
        **facts(conv, y, residual),
    )
    return Op(
        kernel="quad_filters",
        meta=meta,
        index=index,
        constants=constants(conv, sets * LANES),
        costs=np.tile(16.0 + np.diff(bounds), tiles),
        scratch=_MOST * LANES + LANES,
    )


def _summed(positions: int) -> Callable[..., None]:
    """Sums of LANES filters at so many positions, or at fewer."""
    smaller = _summed(positions - 1) if positions > 1 else None

    @jit
    def set_sums(n: int, arena: Any, index: Any, places: int, entry: int, end: int, weights: int, bias: int, scratch: int) -> None:
        if smaller is not None and n < positions:
            smaller(n, arena, index, places, entry, end, weights, bias, scratch)
        else:
            sums = tile_same_words(index, bias, positions)
            for e in range(entry, end):
                sums = tile_add_filters(sums, arena, index, places, e, weights)
                weights += LANES
            tile_store(sums, arena, scratch, LANES)

    return set_sums


_sums = _summed(_MOST)


@kernel("quad_filters")
def run(first: int, last: int, scratch: int, arena: NDArray, constants: NDArray, index: NDArray, meta: NDArray, op: int) -> None:
    """Kernel "quad_filters"."""
    m = _fields(meta, op)
    memory, numbers = pointer(arena), pointer(index)
    offsets = m.index + m.offsets
    for item in range(first, last):
        k, begin, n = part(m, index, item)
        bound = m.index + m.entries + k
        entry, end = np.int64(index[bound]), np.int64(index[bound + 1])
        weights, bias = m.index + m.weights + entry * LANES, m.index + m.bias + k * LANES
        _sums(n, memory, numbers, m.index + m.x + begin, offsets + entry, offsets + end, weights, bias, scratch)
        for p in range(n):
            place = np.int64(index[m.index + m.places + begin + p])
            finish(m, place, k, scratch + p * LANES, scratch + n * LANES, arena, constants)


@jit
def finish(m: Any, place: int, k: int, sums: int, spare: int, arena: NDArray, constants: NDArray) -> None:
    """Sums of LANES filters at a position become words, or float32 numbers of the one position."""
    if m.reals == 0:
        _finish(m, place, k, sums, spare, arena, constants)
    else:
        store(scaled(load(arena, sums, 1), load(constants, m.constants + FACTORS + k * LANES, 1)), arena, spare)
        for f in range(min(LANES, m.filters - k * LANES)):
            arena[m.y.start + (k * LANES + f) * m.y.channel] = arena[spare + f]


@jit
def _finish(m: Any, place: int, k: int, sums: int, spare: int, arena: NDArray, constants: NDArray) -> None:
    """Sums of LANES filters at a position become words."""
    word, count = words_of(arena), min(LANES, m.filters - k * LANES + _QUAD - 1) // _QUAD
    zero = m.first.zero
    factors, least, most = (
        load(constants, m.constants + FACTORS + k * LANES, 1),
        np.float32(m.first.low - zero),
        np.float32(m.first.high - zero),
    )
    q = whole(scaled(load(arena, sums, 1), factors), least, most, zero)
    if m.residual.start >= 0:
        r = m.residual.start + k * (LANES // _QUAD) * m.residual.channel + place
        for c in range(count):
            word[spare + c] = word[r + c * m.residual.channel]
        y = total(q, real_byte_run(arena, spare), ratios(m, constants), m.after)
        q = whole(y, np.float32(m.last.low), np.float32(m.last.high), 0)
    store_bytes(q, arena, spare)
    for c in range(count):
        word[m.y.start + (k * (LANES // _QUAD) + c) * m.y.channel + place] = word[spare + c]
