"""Kernel "quad_blocks": a convolution of integers with a block mask, with filters in the SIMD lanes.

    s[f,p] = bias[f] + sum over words c with M[c,p] != 0, and over the quads of c that one of LANES filters keeps, of
             w[f,c,u,v,0:4] . (M[c,p,0:4] & x[c, p + offset(u,v), 0:4])                                            int32, exact

A mask is a word of bytes that are 255 or 0: what it drops of x is 0, which is its zero point (passes/integers.py sees to it). Each word c
goes through a list of the positions at which its mask keeps something, with a few of its weights in registers; so a block costs nothing
where those of all four channels of a word are dropped. Where `planes` is set, a word is of four taps of a row of one channel instead (of
a kernel of three columns a byte is spare): x is of uint8, the words of a row overlap, and every block that is dropped is saved. A work
item is LANES filters at a tile of positions, whose sums are in scratch; as the kernel "quad_positions", it makes y as one line, with the
gaps between its rows.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fineprune.ops.simd import LANES, at, pointer, transpose
from fineprune.ops.simd.quads import LOWERED, tile_add_words, tile_words, words
from fineprune.ops.simd.vectors import load, store

from ..ir.conv import Op, View
from ..ir.costs import Counts
from ..ir.network import kernel
from ..ir.record import INT, Record, laid_out
from ..jit import jit
from .margins import word_of
from .quad_filters import lists
from .quad_positions import FILTERS, finish, lanes_of
from .quad_results import FIELDS, biases, constants, facts

if TYPE_CHECKING:
    from .quads import QuadConv

TAPS = 4
"""Of a word."""
_POSITIONS = 128
"""Of a tile: their sums fit a cache."""
_TOGETHER = 3
"""Quads of a word whose weights are in registers: they add to sums that are loaded and stored once."""
_META = Record(x=INT, sets=INT, filters=INT, channels=INT, step=INT, tiles=INT, blocks=INT, tables=INT, bias=INT, starts=INT, bits=INT,
               word=INT, offsets=INT, weights=INT, lists=INT, **FIELDS)  # fmt: skip
"""x: its first byte; sets: of LANES filters; channels: of words; step: 2 where the lists have masks, else 1. From `tiles` on, positions in
index: of the bounds of tiles, of the lists of each tile and word, and of the entries of each set and word; of biases, of the first tap of
each position (in bytes, as the entries' offsets), of the lanes that are positions, the words between rows, of offsets, weights, lists."""
_fields = _META.fields


def _tiles(line: int) -> NDArray[np.int64]:
    """Bounds, of whole vectors, of about one size."""
    vectors = -(-line // LANES)
    count = -(-vectors * LANES // _POSITIONS)
    return np.arange(count + 1) * vectors // count * LANES


def _lists(conv: "QuadConv", row: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int32]]:
    """(first block of each tile and word [tiles * C + 1], the position of each block in its tile, its mask); row: distance of rows.

    Where x is multiplied less LOWERED, what is dropped is no zero, and all blocks are there.
    """
    assert conv.mask is not None
    mask = words(np.where(conv.mask, np.uint8(255), np.uint8(0)))
    C, height, width = mask.shape
    kept = np.pad(np.ones_like(mask) if LOWERED else mask, ((0, 0), (0, 0), (0, row - width))).reshape(C, -1)
    tiles = _tiles((height - 1) * row + width)
    found = [np.nonzero(part) for part in np.split(kept, tiles[1:-1], 1)]
    bounds = np.cumsum([0, *(n for c, _ in found for n in np.bincount(c, minlength=C))])
    masks = [mask[c, *divmod(start + p, row)] for start, (c, p) in zip(tiles, found, strict=False)]
    return bounds, np.concatenate([p for _, p in found]), np.concatenate(masks)


def _tables(bounds: NDArray[np.int64], places: NDArray[np.int64], channels: int) -> NDArray[np.int64]:
    """[sets, C + 1]: the first entry of each word in each set, and the end."""
    sets = np.repeat(np.arange(len(bounds) - 1), np.diff(bounds))
    ends = np.arange(len(bounds) - 1)[:, None] * channels + np.arange(channels + 1)
    return np.searchsorted(sets * channels + places[:, 0], ends)


def counts(conv: "QuadConv", height: int, width: int) -> Counts:
    """What it comes to."""
    bounds, places, _ = lists(conv, LANES)
    entries = np.diff(_tables(bounds, places, conv.weights.shape[1]))
    blocks = np.diff(_lists(conv, width + 1)[0]).reshape(-1, entries.shape[1])
    runs = entries // _TOGETHER + entries % _TOGETHER
    return {
        "quad_blocks.operation": 1,
        "quad_blocks.product": int((entries @ blocks.T).sum()),
        "quad_blocks.block": int((runs @ blocks.T).sum()),
        "quad_blocks.list": int((runs @ (blocks > 0).T).sum()),
        "quad_blocks.result": len(entries) * -(-height * (width + 1) // LANES),
    }


def plan(conv: "QuadConv", x: View, residual: View | None, y: View) -> Op:
    """Its index has the parts that `_META` names."""
    F, C = len(conv.weights), conv.weights.shape[1]
    bounds, places, found = lists(conv, LANES)
    line = (y.height - 1) * y.row_stride + y.width
    tables, tiles = _tables(bounds, places, C), _tiles(line)
    blocks, p, masks = _lists(conv, y.row_stride)
    rows, columns = np.divmod(np.arange(line), y.row_stride)
    (down, right), unit = conv.strides, x.dtype.itemsize
    steps = [x.channel_stride, conv.dilations[0] * x.row_stride, TAPS if conv.planes else conv.dilations[1]]
    step = 1 if conv.planes and not LOWERED else 2
    index, parts = laid_out(
        tiles=tiles,
        blocks=step * blocks,
        tables=tables.reshape(-1),
        bias=biases(conv, len(tables) * LANES),
        starts=unit * (down * rows * x.row_stride + right * columns),
        bits=lanes_of(line, y.row_stride, y.width),
        word=np.array([word_of(conv.zero)]),
        offsets=unit * (places @ np.array(steps)),
        weights=words(found).reshape(-1),
        lists=np.stack([p, masks], 1)[:, :step].reshape(-1),
    )
    meta = _META.pack(
        x=unit * x.at(0, -conv.pads[0], -conv.pads[1]),
        sets=len(tables),
        filters=F,
        channels=C,
        step=step,
        **parts,
        **facts(conv, y, residual),
    )
    return Op(
        kernel="quad_blocks",
        meta=meta,
        index=index,
        constants=constants(conv, len(tables) * LANES),
        costs=(np.diff(tiles)[:, None] + np.diff(blocks).reshape(-1, C) @ np.diff(tables).T).reshape(-1),
        scratch=(_POSITIONS + LANES) * LANES,
    )


def _adding(quads: int, masked: bool) -> Callable[..., None]:
    """Adds so many quads of a word to the sums of a list of positions."""

    @jit
    def add(arena: Any, x: int, index: Any, block: int, end: int, starts: int, offset: int, weights: int, sums: int) -> None:
        w = tile_words(index, weights, quads)
        first = x + at(index, offset)
        second, third = (x + at(index, offset + 1), x + at(index, offset + 2)) if quads > 1 else (first, first)
        for b in range(block, end, 2 if masked else 1):
            p = int(at(index, b))
            start, place = int(at(index, starts + p)), sums + p * LANES
            mask = int(at(index, b + 1)) if masked else -1
            store(tile_add_words(load(arena, place, 1), arena, first + start, second + start, third + start, mask, w), arena, place)

    return add


_one, _three, _one_masked, _three_masked = (_adding(quads, masked) for masked in (False, True) for quads in (1, _TOGETHER))


@kernel("quad_blocks")
def run(first: int, last: int, scratch: int, arena: NDArray, constants: NDArray, index: NDArray, meta: NDArray, op: int) -> None:
    """Kernel "quad_blocks"."""
    m = _fields(meta, op)
    memory, numbers, starts, spare = pointer(arena), pointer(index), m.index + m.starts, scratch + _POSITIONS * LANES
    for item in range(first, last):
        tile, k = item // m.sets, item % m.sets
        bound = m.index + m.tiles + tile
        begin, n = np.int64(index[bound]), np.int64(index[bound + 1]) - np.int64(index[bound])
        bias = tile_words(index, m.index + m.bias + k * LANES, 1)
        for p in range(n):
            store(bias, arena, scratch + p * LANES)
        for c in range(m.channels):
            bound, table = m.index + m.blocks + tile * m.channels + c, m.index + m.tables + k * (m.channels + 1) + c
            block, end = m.index + m.lists + np.int64(index[bound]), m.index + m.lists + np.int64(index[bound + 1])
            e, stop = np.int64(index[table]), np.int64(index[table + 1])
            while e < stop:
                offset, weights = m.index + m.offsets + e, m.index + m.weights + e * LANES
                few = stop - e < _TOGETHER
                if few and m.step == 1:
                    _one(memory, m.x, numbers, block, end, starts + begin, offset, weights, scratch)
                elif few:
                    _one_masked(memory, m.x, numbers, block, end, starts + begin, offset, weights, scratch)
                elif m.step == 1:
                    _three(memory, m.x, numbers, block, end, starts + begin, offset, weights, scratch)
                else:
                    _three_masked(memory, m.x, numbers, block, end, starts + begin, offset, weights, scratch)
                e += 1 if few else _TOGETHER
        quads = min(LANES, m.filters - k * LANES + FILTERS - 1) // FILTERS
        for p in range(0, n, LANES):
            transpose(memory, scratch + p * LANES, LANES, memory, spare, LANES)
            for f in range(quads):
                finish(m, LANES, begin + p, k * (LANES // FILTERS) + f, spare + f * FILTERS * LANES, arena, constants, index)
