"""Kernel "quad_positions": a convolution of integers with positions in the SIMD lanes, four channels of a position in each.

    s[f,p] = bias[f] + sum over the quads that filter f keeps of  w[f,c,u,v,0:4] . x[c, p + offset(u,v), 0:4]           int32, exact

A weight quad is broadcast and multiplied by vectors of positions: what a filter drops costs nothing, whatever the others keep. A work
item is a tile of positions, as many as the registers hold sums of, for four filters, one after another; their sums wait in scratch and
become quads together (quad_results.py).
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fineprune.ops.simd import LANES, at, pointer
from fineprune.ops.simd.quads import UNIT, chosen, packed, real_bytes, tile_add_quads, tile_same_word, whole
from fineprune.ops.simd.registers import HOST, Registers
from fineprune.ops.simd.vectors import load, same, store, words_of

from ..ir.conv import Op, View
from ..ir.costs import Counts
from ..ir.network import kernel
from ..ir.record import INT, Record, laid_out
from ..jit import jit
from .margins import word_of
from .quad_results import FACTORS, FIELDS, biases, constants, facts, part, ratios, scaled, total

if TYPE_CHECKING:
    from .quads import QuadConv

FILTERS = 4
_MOST_UNITS = 12
"""Of a tile: enough to hide what a list entry takes besides; each size is compiled."""


def most_units(registers: Registers) -> int:
    """Of sums in registers, beside a weight, a factor of ones and what is on its way."""
    return min(_MOST_UNITS, (registers.count - 4) * registers.floats // UNIT)


_MOST, _TOGETHER = most_units(HOST), LANES // UNIT
_META = Record(x=INT, sets=INT, filters=INT, tiles=INT, entries=INT, bias=INT, bits=INT, word=INT, lists=INT, **FIELDS)
"""sets: of FILTERS filters; tiles, entries, bias, bits, word, lists: positions in index of the bounds of tiles and lists, of biases, of the
lanes that are positions, of what stands between rows, and of the offset and weights of each entry."""
_fields = _META.fields


def counts(conv: "QuadConv", height: int, width: int) -> Counts:
    """What it comes to, on rows that are a column apart."""
    line = (height - 1) * (width + 1) + width
    units, sets = -(-line // UNIT), -(-len(conv.weights) // FILTERS)
    entries, vectors = len(conv.lists[2]), -(-line // LANES)
    tiles = len(_tiles(line)) - 1
    return {
        "quad_positions.operation": 1,
        "quad_positions.product": entries * units * UNIT / LANES,
        "quad_positions.entry": entries * tiles,
        "quad_positions.result": sets * vectors,
        "quad_positions.item": sets * tiles,
        "quad_weights.line": 2 * entries / LANES,
    }


def plan(conv: "QuadConv", x: View, residual: View | None, y: View) -> Op:
    """Its index has the parts that `_META` names."""
    F = len(conv.weights)
    sets = -(-F // FILTERS)
    bounds, places, entries = conv.lists
    offsets = places @ np.array([x.channel_stride, conv.dilations[0] * x.row_stride, conv.dilations[1]])
    line = (y.height - 1) * y.row_stride + y.width
    tiles = _tiles(line)
    first = bounds[np.minimum(np.arange(sets * FILTERS + 1), F)]
    index, starts = laid_out(
        tiles=tiles,
        entries=2 * first,
        bias=biases(conv, sets * FILTERS),
        bits=lanes_of(line, y.row_stride, y.width),
        word=np.array([word_of(conv.zero)]),
        lists=np.stack([offsets, entries], 1).reshape(-1),
    )
    meta = _META.pack(
        x=x.at(0, -conv.pads[0], -conv.pads[1]),
        sets=sets,
        filters=F,
        **starts,
        **facts(conv, y, residual),
    )
    work = 16.0 + np.diff(first[::FILTERS]).astype(np.float64)
    return Op(
        kernel="quad_positions",
        meta=meta,
        index=index,
        constants=constants(conv, sets * FILTERS),
        costs=(np.diff(tiles)[:, None] * work).reshape(-1),
        scratch=FILTERS * (_MOST * UNIT + LANES),
    )


def _tiles(line: int) -> NDArray[np.int64]:
    """Bounds of tiles of whole vectors, but for the last, in units: as few as possible, of about one size."""
    vectors = -(-line // LANES)
    count = -(-vectors // (_MOST // _TOGETHER))
    bounds = np.arange(count + 1) * vectors // count * _TOGETHER
    bounds[-1] = -(-line // UNIT)
    return bounds


def lanes_of(line: int, row: int, width: int) -> NDArray[np.int64]:
    """[vectors]: lanes that are positions of rows of `width`, `row` apart, not of a gap between them or behind the last one."""
    places = np.arange(-(-line // LANES) * LANES)
    there = (places % row < width) & (places < line)
    return there.reshape(-1, LANES) @ (1 << np.arange(LANES))


def _summed(units: int) -> Callable[..., None]:
    """Sums of a filter for so many units of positions, or for fewer."""
    smaller, vectors = _summed(units - 1) if units > 1 else None, -(-units // _TOGETHER)

    @jit
    def filter_sums(n: int, arena: Any, x: int, index: Any, entry: int, end: int, bias: int, scratch: int) -> None:
        if smaller is not None and n < units:
            smaller(n, arena, x, index, entry, end, bias, scratch)
        else:
            total = tile_same_word(index, bias, vectors)
            for e in range(entry, end, 2):
                total = tile_add_quads(total, arena, x + at(index, e), index, e + 1, units)
            store(total, arena, scratch)

    return filter_sums


_sums = _summed(_MOST)


@kernel("quad_positions")
def run(first: int, last: int, scratch: int, arena: NDArray, constants: NDArray, index: NDArray, meta: NDArray, op: int) -> None:
    """Kernel "quad_positions"."""
    m = _fields(meta, op)
    memory, numbers = pointer(arena), pointer(index)
    for item in range(first, last):
        k, begin, n = part(m, index, item)
        f, start = k * FILTERS, begin * UNIT
        step = (n + _TOGETHER - 1) // _TOGETHER * LANES
        for r in range(FILTERS):
            bound = m.index + m.entries + f + r
            entry, end = m.index + m.lists + np.int64(index[bound]), m.index + m.lists + np.int64(index[bound + 1])
            _sums(n, memory, m.x + start, numbers, entry, end, m.index + m.bias + f + r, scratch + r * step)
        if m.reals == 0:
            finish(m, step, start, k, scratch, arena, constants, index)
        else:
            single(m, step, k, scratch, arena, constants)


@jit
def single(m: Any, step: int, k: int, scratch: int, arena: NDArray, constants: NDArray) -> None:
    """Sums of four filters at the one position become float32 numbers."""
    sums, f = words_of(arena), k * FILTERS
    for r in range(min(FILTERS, m.filters - f)):
        arena[m.y.start + (f + r) * m.y.channel] = np.float32(sums[scratch + r * step]) * constants[m.constants + FACTORS + f + r]


def _finishing(adds: bool, after: int) -> Callable[..., None]:
    """Makes quads of sums, and of a residual where one is added, in one of two orders."""

    @jit
    def line(m: Any, step: int, start: int, k: int, scratch: int, memory: Any, constants: NDArray, numbers: Any) -> None:
        f = m.constants + FACTORS + k * FILTERS
        f0, f1, f2, f3 = same(constants[f], 1), same(constants[f + 1], 1), same(constants[f + 2], 1), same(constants[f + 3], 1)
        between, bits = tile_same_word(numbers, m.index + m.word, 1), m.index + m.bits + start // LANES
        y, residual = m.y.start + k * m.y.channel + start, m.residual.start + k * m.residual.channel + start
        zero, low, high = m.first.zero, m.first.low, m.first.high  # read once: what is stored might be the record, for all that LLVM knows
        least, most, last_low, last_high = np.float32(low - zero), np.float32(high - zero), m.last.low, m.last.high
        ratio = ratios(m, constants)
        for p in range(0, step, LANES):
            s = scratch + p
            x0, x1 = scaled(load(memory, s, 1), f0), scaled(load(memory, s + step, 1), f1)
            x2, x3 = scaled(load(memory, s + 2 * step, 1), f2), scaled(load(memory, s + 3 * step, 1), f3)
            if adds:
                r = load(memory, residual + p, 1)
                x0 = total(whole(x0, least, most, zero), real_bytes(r, 0), ratio, after)
                x1 = total(whole(x1, least, most, zero), real_bytes(r, 1), ratio, after)
                x2 = total(whole(x2, least, most, zero), real_bytes(r, 2), ratio, after)
                x3 = total(whole(x3, least, most, zero), real_bytes(r, 3), ratio, after)
                word = packed(x0, x1, x2, x3, 0, last_low, last_high)
            else:
                word = packed(x0, x1, x2, x3, zero, low, high)
            store(chosen(word, int(at(numbers, bits + p // LANES)), between), memory, y + p)

    return line


_made, _added, _added_after = _finishing(False, 0), _finishing(True, 0), _finishing(True, 1)


@jit
def finish(m: Any, step: int, start: int, k: int, scratch: int, arena: NDArray, constants: NDArray, index: NDArray) -> None:
    """Sums of four filters, `step` positions from `start` on, become quads."""
    memory, numbers = pointer(arena), pointer(index)
    if m.residual.start < 0:
        _made(m, step, start, k, scratch, memory, constants, numbers)
    elif m.after == 0:
        _added(m, step, start, k, scratch, memory, constants, numbers)
    else:
        _added_after(m, step, start, k, scratch, memory, constants, numbers)
