"""The compiled part of the kernel "positions": packing of patches, sparse weights times patches, and the epilogue.

A tile of the output is a strip of `segment` columns; each of its vectors holds LANES / segment rows of the strip, `span` rows apart.
Its patches are packed, block of channels by block of channels, so that the vectors of a tap are aligned loads from the first-level
cache. Without a neighbourhood, in pointwise convolutions, positions are one run instead, in which a line is LANES of them, whatever
rows they lie in. Positions in constants and index count from those of the operation.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fineprune.ops.simd import LANES, pointer, tile_store
from fineprune.ops.simd.registers import HOST, Registers
from fineprune.ops.simd.vectors import clipped, store

from ..ir.network import kernel
from ..ir.record import INT, Record, group
from ..jit import jit
from .positions_simd import (
    Pointer,
    all_lanes,
    at,
    copy,
    pack_line,
    put,
    tile_add_maps,
    tile_add_patches,
    tile_add_whole_maps,
    tile_broadcast,
    tile_keep,
    tile_load_rows,
    tile_store_maps,
    tile_store_rows,
    tile_store_whole_maps,
)

TABLES = ("tile_lanes", "tile_pieces", "pieces", "tile_blocks", "blocks", "jobs", "set_starts", "records", "halves")
"""Parts of the index, in this order."""
META = Record(
    vectors=INT, segment=INT, span=INT, padded_span=INT, lines=INT, strips=INT, strip_tiles=INT, sets=INT, filters=INT, patches=INT,
    x=group("start", "row", "strip"), row_step=INT, column_step=INT,
    y=group("start", "channel", "row"), has_residual=INT, residual=group("start", "channel", "row"),
    tables=group(*TABLES),
)  # fmt: skip
_fields = META.fields

_HEIGHTS, _MOST_ROWS, _MOST_SUMS, _BESIDE = (8, 7, 4, 1), 8, 16, 2
"""Vectors that a tile may have, filters at a time and sums that are worth while: sixteen hide the latency of multiply-adds. Beside sums,
registers hold a factor and a part of a patch."""


def tiles(registers: Registers) -> dict[int, int]:
    """Vectors of a tile -> filters at a time, a power of two, whose sums the registers hold. Several share patches in pairs."""
    sums = min(_MOST_SUMS, registers.vectors(beside=_BESIDE))
    return {vectors: 1 << (min(_MOST_ROWS, sums // vectors)).bit_length() - 1 for vectors in _HEIGHTS if vectors <= sums}


ROWS_OF = tiles(HOST)
_MASKS = HOST.masks
_HALF, _QUARTER = LANES // 2, LANES // 4
_HALF_BITS, _QUARTER_BITS = (1 << _HALF) - 1, (1 << _QUARTER) - 1
JOB, PIECE, BLOCK, SET_START = 5, 2, 5, 3
"""Integers of a packing job (source, how far its last line lies behind, the source in the map's last row, lines, mask or -1), of a piece
of a run (source, destination), of a block of channels (first job, jobs, whether it begins and ends its filters' sums, set starts), and of
a set's start in a block (record, half, weight)."""


@cache
def _packer(segment: int, step: int) -> Callable[..., None]:
    """Packs what a block of channels shows under the tile that begins at vector `top` of a strip. `step` 0: any step between columns."""

    @jit
    def pack(arena: Pointer, index: Pointer, m: Any, block: int, strip: int, top: int, out: int) -> None:
        advance = m.row_step * m.x.row
        jump, base = m.span * advance, m.x.start + strip * m.x.strip
        begin = base + top * advance
        job = m.index + m.tables.jobs + at(index, block) * JOB
        masks = m.index + strip * m.padded_span + top
        for _ in range(at(index, block + 1)):
            start, reach, limit = begin + at(index, job), at(index, job + 1), base + at(index, job + 2)
            count, mask = at(index, job + 3), at(index, job + 4)
            lines = count
            if start + reach > limit:
                lines = (limit - start) // advance + 1  # those below the map are never stored
            place, stop, bits = out, out + lines * LANES, masks + mask
            if step == 0:
                bits = bits if mask >= 0 else -1
                _pack_any(arena, start, advance, jump, limit, lines, index, bits, out, m.segment, m.column_step)
            elif mask < 0:
                while place < stop:
                    store(pack_line(arena, start, jump, limit, segment, step), arena, place)
                    start, place = start + advance, place + LANES
            else:
                while place < stop:
                    store(tile_keep(pack_line(arena, start, jump, limit, segment, step), at(index, bits)), arena, place)
                    start, place, bits = start + advance, place + LANES, bits + 1
            out += count * LANES
            job += JOB

    return pack


@jit
def _pack_any(
    arena: Pointer,
    start: int,
    advance: int,
    jump: int,
    limit: int,
    lines: int,
    index: Pointer,
    mask: int,
    out: int,
    segment: int,
    step: int,
) -> None:
    """Number by number."""
    for line in range(lines):
        bits = at(index, mask + line) if mask >= 0 else -1
        for lane in range(LANES):
            begin = min(start + line * advance + lane // segment * jump, limit)
            value = at(arena, begin + lane % segment * step)
            put(arena, out + line * LANES + lane, value if bits >> lane & 1 else np.float32(0))


_pack_16, _pack_8, _pack_4 = _packer(16, 1), _packer(8, 1), _packer(4, 1)
_pack_16_by_2, _pack_8_by_2, _pack_4_by_2 = _packer(16, 2), _packer(8, 2), _packer(4, 2)
_pack_by_any = _packer(16, 0)


@jit
def _pack_run(arena: Pointer, index: Pointer, m: Any, block: int, tile: int, out: int) -> None:
    """Positions in one run, row after row: what a piece copies too much, the next one overwrites."""
    start, lines = m.index, m.vectors
    pieces = start + m.tables.tile_pieces + tile
    first = start + m.tables.pieces + at(index, pieces) * PIECE
    end = start + m.tables.pieces + at(index, pieces + 1) * PIECE
    masks = start + tile * lines
    job = start + m.tables.jobs + at(index, block) * JOB
    for _ in range(at(index, block + 1)):
        source, mask = m.x.start + at(index, job), at(index, job + 4)
        for piece in range(first, end, PIECE):
            store(pack_line(arena, source + at(index, piece), 0, 0, LANES, 1), arena, out + at(index, piece + 1))
        if mask >= 0:
            for line in range(lines):
                vector = tile_keep(pack_line(arena, out + line * LANES, 0, 0, LANES, 1), at(index, masks + mask + line))
                store(vector, arena, out + line * LANES)
        out += lines * LANES
        job += JOB


@jit
def _pack_block(arena: Pointer, index: Pointer, m: Any, block: int, strip: int, top: int, tile: int, out: int) -> None:
    segment, step = m.segment, m.column_step
    if m.tables.pieces > m.tables.tile_pieces:
        _pack_run(arena, index, m, block, tile, out)
    elif step == 1 and segment == 16:
        _pack_16(arena, index, m, block, strip, top, out)
    elif step == 1 and segment == 8:
        _pack_8(arena, index, m, block, strip, top, out)
    elif step == 1:
        _pack_4(arena, index, m, block, strip, top, out)
    elif step == 2 and segment == 16:
        _pack_16_by_2(arena, index, m, block, strip, top, out)
    elif step == 2 and segment == 8:
        _pack_8_by_2(arena, index, m, block, strip, top, out)
    elif step == 2:
        _pack_4_by_2(arena, index, m, block, strip, top, out)
    else:
        _pack_by_any(arena, index, m, block, strip, top, out)


@jit
def _copy_lanes(arena: Pointer, start: int, to: int, stride: int, index: Pointer, lanes: int, vectors: int) -> None:
    """The lanes whose bits are set, of so many vectors: as many at once as lie together."""
    for vector in range(vectors):
        bits, source, target = at(index, lanes + vector), start + vector * LANES, to + vector * stride
        for half in range(0, LANES, _HALF):
            if bits >> half & _HALF_BITS == _HALF_BITS:
                copy(arena, source + half, target + half, _HALF)
            elif bits >> half & _HALF_BITS:
                for quarter in range(half, half + _HALF, _QUARTER):
                    if bits >> quarter & _QUARTER_BITS == _QUARTER_BITS:
                        copy(arena, source + quarter, target + quarter, _QUARTER)
                    elif bits >> quarter & _QUARTER_BITS:
                        for lane in range(quarter, quarter + _QUARTER):
                            if bits >> lane & 1:
                                put(arena, target + lane, at(arena, source + lane))


@cache
def _multiplier(vectors: int, rows: int) -> Callable[..., None]:
    pairs, size = rows // 2, vectors * LANES

    @jit
    def multiply(
        arena: Pointer, constants: Pointer, index: Pointer, m: Any, block: int, begin: int, end: int, patches: int,
        strip: int, top: int,
    ) -> None:  # fmt: skip
        """Adds what a block of channels gives to the filters of the sets begin <= s < end, and finishes them in the last block."""
        first, bias = m.index, m.constants
        limits = bias + m.filters
        done = patches + m.patches
        sums = done + rows * size
        opens, closes, has_residual = at(index, block + 2), at(index, block + 3), m.has_residual
        sets = first + m.tables.set_starts + at(index, block + 4)
        record = first + m.tables.records + at(index, sets + begin * SET_START)
        stop = first + m.tables.records + at(index, sets + end * SET_START)
        half = 2 * (first + m.tables.halves) + at(index, sets + begin * SET_START + 1)
        weight = limits + 2 + at(index, sets + begin * SET_START + 2)
        segment, lines = m.segment, m.lines
        y_channel, y_row, r_channel, r_row = m.y.channel, m.y.row, m.residual.channel, m.residual.row
        lanes = first + m.tables.tile_lanes + strip * m.padded_span + top
        y_start, y_part = m.y.start + strip * segment + top * y_row, m.span * y_row - segment
        r_start, r_part = m.residual.start + strip * segment + top * r_row, m.span * r_row - segment
        while record < stop:
            if opens:
                tile = tile_broadcast(constants, bias, index, record, rows, vectors)
            else:
                tile = tile_load_rows(arena, sums, size, index, record, rows, vectors)
            if pairs:
                for _ in range(at(index, record + rows)):
                    tile = tile_add_patches(tile, constants, weight, arena, patches, index, half, 2)
                    weight, half = weight + rows, half + pairs
            for _ in range(at(index, record + rows + 1)):
                tile = tile_add_patches(tile, constants, weight, arena, patches, index, half, 1)
                weight, half = weight + rows, half + rows
            if closes:
                whole = not _MASKS and all_lanes(index, lanes, vectors)
                if has_residual and whole:
                    tile = tile_add_whole_maps(tile, arena, r_start, r_channel, r_row, index, record)
                elif has_residual:
                    for part in range(LANES // segment):
                        tile = tile_add_maps(tile, arena, r_start + part * r_part, r_channel, r_row, index, record, lanes + part * lines)
                # Loaded here, they take no registers from the sums.
                tile = clipped(tile, at(constants, limits), at(constants, limits + 1))
                if whole:
                    tile_store_whole_maps(tile, arena, y_start, y_channel, y_row, index, record)
                elif _MASKS:
                    for part in range(LANES // segment):
                        tile_store_maps(tile, arena, y_start + part * y_part, y_channel, y_row, index, record, lanes + part * lines)
                else:
                    tile_store(tile, arena, done, size)
                    for part in range(LANES // segment):
                        start, part_lanes = y_start + part * y_part, lanes + part * lines
                        for row in range(rows):
                            _copy_lanes(
                                arena, done + row * size, start + at(index, record + row) * y_channel, y_row, index, part_lanes, vectors
                            )
            else:
                tile_store_rows(tile, arena, sums, size, index, record)
            record += rows + 2

    return multiply


def _chosen(vectors: int, this: Callable[..., None], others: Callable[..., None]) -> Callable[..., None]:
    """`this` for tiles of so many vectors."""

    @jit
    def multiply(
        arena: Pointer, constants: Pointer, index: Pointer, m: Any, block: int, begin: int, end: int, patches: int,
        strip: int, top: int,
    ) -> None:  # fmt: skip
        if m.vectors == vectors:
            this(arena, constants, index, m, block, begin, end, patches, strip, top)
        else:
            others(arena, constants, index, m, block, begin, end, patches, strip, top)

    return multiply


(_vectors, _rows), *_others = sorted(ROWS_OF.items())
_multiply = _multiplier(_vectors, _rows)
for _vectors, _rows in _others:
    _multiply = _chosen(_vectors, _multiplier(_vectors, _rows), _multiply)


@jit
def _run(first: int, last: int, scratch: int, arena: Pointer, constants: Pointer, index: Pointer, m: Any) -> None:
    sets, strips, strip_tiles, vectors = m.sets, m.strips, m.strip_tiles, m.vectors
    start = m.index
    item = first
    while item < last:
        band, begin = item // sets, item % sets
        end = min(sets, begin + last - item)
        strip, tile = band % strips, band // strips
        top, tile = tile * vectors, tile + strip * strip_tiles
        blocks = start + m.tables.tile_blocks + 2 * tile
        for number in range(at(index, blocks + 1)):
            block = start + m.tables.blocks + (at(index, blocks) + number) * BLOCK
            _pack_block(arena, index, m, block, strip, top, tile, scratch)
            _multiply(arena, constants, index, m, block, begin, end, scratch, strip, top)
        item += end - begin


@kernel("positions")
def run(first: int, last: int, scratch: int, arena: NDArray, constants: NDArray, index: NDArray, meta: NDArray, op: int) -> None:
    """See ir/conv.py. Work item: a set of filters in a tile; sets of the same tile share its patches. Tiles side by side follow each other:
    threads that share the rows of a map write to the same cache lines at the ends of their shares only."""
    _run(first, last, scratch, pointer(arena), pointer(constants), pointer(index), _fields(meta, op))
