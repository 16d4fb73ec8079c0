"""Kernel "quad_blocks": a convolution of integers with a block mask, with filters in the SIMD lanes.

    s[f,p] = bias[f] + sum over words c with M[c,p] != 0, and over the quads of c that one of the filters keeps, of
             w[f,c,u,v,0:4] . (M[c,p,0:4] & x[c, p + offset(u,v), 0:4])                                            int32, exact

A mask is a word of bytes that are 255 or 0: what it drops of x is 0, which is its zero point (passes/integers.py sees to it). A position
goes through a list of the words that its mask keeps something of; so a block costs nothing where those of all four channels of a word
are dropped. Where `planes` is set, a word is of four taps of a row of one channel instead (of a kernel of three columns a byte is spare):
x is of uint8, the words of a row overlap, and every block that is dropped is saved. A work item is a few positions for as many filters as
the registers hold sums of.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fineprune.ops.simd import LANES, at, pointer
from fineprune.ops.simd.quads import LOWERED, tile_add_masked, tile_words, words
from fineprune.ops.simd.registers import HOST, Registers
from fineprune.ops.simd.vectors import store

from ..ir.conv import Op, View
from ..ir.costs import Counts
from ..ir.network import kernel
from ..ir.record import INT, Record
from ..jit import jit
from .quad_filters import finish, lists
from .quad_results import FIELDS, biases, constants, facts

if TYPE_CHECKING:
    from .quads import QuadConv

TAPS = 4
"""Of a word."""
_POSITIONS = 16
"""Of a work item."""
_MOST_SETS = 4
"""Of LANES filters, whose sums hide what a quad takes besides; each number is compiled."""


def most_sets(registers: Registers) -> int:
    """Of sums in registers, beside a quad, its mask, a factor of ones and what is on its way."""
    return min(_MOST_SETS, registers.vectors(beside=6))


_MOST = most_sets(HOST)
_META = Record(x=INT, groups=INT, sets=INT, channels=INT, blocks=INT, tables=INT, bias=INT, starts=INT, places=INT, offsets=INT,
               weights=INT, filters=INT, **FIELDS)  # fmt: skip
"""x: its first byte; groups: of `sets` sets of LANES filters; channels: of words; blocks, tables, bias, starts, places, offsets, weights:
positions in index of the bounds of the positions' lists, of the entries of each word in each group, of biases, of the first tap of each
position (in bytes, as the entries' offsets), of its place in y, of offsets and weights."""
_fields = _META.fields


def _groups(conv: "QuadConv") -> tuple[int, int]:
    """(how many, sets of LANES filters in each)."""
    sets = -(-len(conv.weights) // LANES)
    groups = -(-sets // _MOST)
    return groups, -(-sets // groups)


def _blocks(conv: "QuadConv") -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int32]]:
    """(first block of each position and the end, the word c of each block, its mask).

    Where x is multiplied less LOWERED, what is dropped is no zero, and all blocks are there.
    """
    assert conv.mask is not None
    mask = words(np.where(conv.mask, np.uint8(255), np.uint8(0)))
    mask = mask.reshape(len(mask), -1).T
    p, c = np.nonzero(mask if LOWERED == 0 else np.ones_like(mask))
    return np.searchsorted(p, np.arange(len(mask) + 1)), c, mask[p, c]


def _tables(bounds: NDArray[np.int64], places: NDArray[np.int64], channels: int) -> NDArray[np.int64]:
    """[groups, channels + 1]: the first entry of each word in each group, and the end."""
    group = np.repeat(np.arange(len(bounds) - 1), np.diff(bounds))
    key = group * channels + places[:, 0]
    ends = np.arange(len(bounds) - 1)[:, None] * channels + np.arange(channels + 1)
    return np.searchsorted(key, ends)


def counts(conv: "QuadConv", height: int, width: int) -> Counts:
    """What it comes to."""
    groups, sets = _groups(conv)
    _, c, _ = _blocks(conv)
    bounds, places, _ = lists(conv, sets * LANES)
    entries = np.diff(_tables(bounds, places, conv.weights.shape[1])).sum(0)
    visited = int(entries @ np.bincount(c, minlength=len(entries)))
    return {
        "quad_blocks.operation": 1,
        "quad_blocks.product": visited * sets,
        "quad_blocks.entry": visited,
        "quad_blocks.block": groups * len(c),
        "quad_blocks.result": -(-len(conv.weights) // LANES) * height * width,
    }


def plan(conv: "QuadConv", x: View, residual: View | None, y: View) -> Op:
    """index: bounds of tiles, of blocks, tables, biases, places in x and in y, offsets, weights, blocks."""
    positions, (groups, sets) = y.height * y.width, _groups(conv)
    bounds, places, found = lists(conv, sets * LANES)
    starts, c, masks = _blocks(conv)
    tiles = -(-positions // _POSITIONS)
    tile_bounds = np.arange(tiles + 1) * positions // tiles
    rows, columns = np.divmod(np.arange(positions), y.width)
    (down, right), (dilation, step), unit = conv.strides, (conv.dilations[0], TAPS if conv.planes else conv.dilations[1]), x.dtype.itemsize
    tables = _tables(bounds, places, conv.weights.shape[1])
    index = [
        tile_bounds,
        starts,
        tables.reshape(-1),
        biases(conv, groups * sets * LANES),
        unit * (down * rows * x.row_stride + right * columns),
        rows * y.row_stride + columns,
        unit * (places @ np.array([x.channel_stride, dilation * x.row_stride, step])),
        words(found).reshape(-1),
        np.stack([c, masks], 1).reshape(-1),
    ]
    position = np.cumsum([0, *map(len, index)])
    index[1] = position[8] + 2 * starts
    meta = _META.pack(
        x=unit * x.at(0, -conv.pads[0], -conv.pads[1]),
        groups=groups,
        sets=sets,
        channels=conv.weights.shape[1],
        blocks=int(position[1]),
        tables=int(position[2]),
        bias=int(position[3]),
        starts=int(position[4]),
        places=int(position[5]),
        offsets=int(position[6]),
        weights=int(position[7]),
        filters=len(conv.weights),
        **facts(conv, y, residual),
    )
    return Op(
        kernel="quad_blocks",
        meta=meta,
        index=np.concatenate(index).astype(np.int32),
        constants=constants(conv, groups * sets * LANES),
        costs=_work(np.diff(tables)[:, c], starts[tile_bounds]).reshape(-1),
        scratch=sets * LANES + LANES,
    )


def _work(entries: NDArray[np.int64], bounds: NDArray[np.int64]) -> NDArray[np.float64]:
    """[tiles, groups]: how long each takes, by the entries [groups, n] of the blocks; bounds: of each tile's blocks."""
    before = np.pad(np.cumsum(entries, 1), ((0, 0), (1, 0)))[:, bounds]
    return 16.0 * _POSITIONS + np.diff(before).T


def _summed(sets: int) -> Callable[..., None]:
    """Sums of so many sets of LANES filters, or of fewer."""
    smaller = _summed(sets - 1) if sets > 1 else None

    @jit
    def position_sums(
        n: int, arena: Any, x: int, index: Any, block: int, end: int, table: int, offsets: int, weights: int, bias: int, scratch: int
    ) -> None:
        if smaller is not None and n < sets:
            smaller(n, arena, x, index, block, end, table, offsets, weights, bias, scratch)
        else:
            sums = tile_words(index, bias, sets)
            for b in range(block, end, 2):
                c = table + at(index, b)
                for e in range(np.int64(at(index, c)), np.int64(at(index, c + 1))):
                    sums = tile_add_masked(sums, arena, x + at(index, offsets + e), index, b + 1, weights + e * (sets * LANES))
            store(sums, arena, scratch)

    return position_sums


_sums = _summed(_MOST)


@kernel("quad_blocks")
def run(first: int, last: int, scratch: int, arena: NDArray, constants: NDArray, index: NDArray, meta: NDArray, op: int) -> None:
    """Kernel "quad_blocks"."""
    m = _fields(meta, op)
    memory, numbers = pointer(arena), pointer(index)
    offsets, weights, spare = m.index + m.offsets, m.index + m.weights, scratch + m.sets * LANES
    for item in range(first, last):
        tile, g = m.index + item // m.groups, item % m.groups
        table, bias = m.index + m.tables + g * (m.channels + 1), m.index + m.bias + g * m.sets * LANES
        for p in range(np.int64(index[tile]), np.int64(index[tile + 1])):
            x, place = m.x + np.int64(index[m.index + m.starts + p]), np.int64(index[m.index + m.places + p])
            bound = m.index + m.blocks + p
            block, end = m.index + np.int64(index[bound]), m.index + np.int64(index[bound + 1])
            _sums(m.sets, memory, x, numbers, block, end, table, offsets, weights, bias, scratch)
            for s in range(m.sets):
                finish(m, place, g * m.sets + s, scratch + s * LANES, spare, arena, constants)
