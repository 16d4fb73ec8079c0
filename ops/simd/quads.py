"""Vectors of quads: LANES lanes of four bytes each, products of unsigned bytes with signed ones, and numbers put on grids.

    sum[lane] += x[lane,0] w[0] + x[lane,1] w[1] + x[lane,2] w[2] + x[lane,3] w[3]      x uint8, w int8, sums int32

A quad is a word of 32 bits, its byte k being bits 8k to 8k+7. Sums are int32 numbers; both lie in the vectors of a `Tile`, bit for bit.
One instruction multiplies a vector where the CPU has one (AVX-512 VNNI, AVX-VNNI, Arm's i8mm and dotprod); AVX2 takes two, older Arm
CPUs four, that add pairs in 16 bits: `fits` says which weights they add exactly, and others have to come as the sum of some that fit
(`split`). Where both factors have to be signed, x - LOWERED is multiplied, and whoever begins the sums adds LOWERED times the weights.
So every CPU makes the same integers.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import numba_door
from ..numba_door import ir
from . import registers
from .declare import LANES, VECTOR, Emitter, Float, Size, Tile, operation

VNNI512, VNNI256, MADD, USDOT, SDOT, SMULL, PLAIN = "avx512vnni", "avxvnni", "avx2", "i8mm", "dotprod", "neon", "plain"
_WORDS = ir.VectorType(ir.IntType(32), LANES)
_BITS = ir.IntType(LANES)
_LARGEST_PAIR, _LEAST_PAIR = 32767, -32768


def products(features: str) -> str:
    """How a CPU multiplies quads; features: LLVM's names of what it can do."""
    if "+avx512vnni" in features:
        return VNNI512
    for kind in (VNNI256, MADD, USDOT, SDOT, SMULL):
        if f"+{kind}" in features:
            return kind
    return PLAIN


HOST = products(numba_door.host_features())
LOWERED = 128 if HOST in (SDOT, SMULL) else 0
UNIT = max(8, registers.HOST.floats)
"""Lanes of which so many are computed as are needed: those of a register, or of two small ones."""


def fits(weights: NDArray[np.integer]) -> NDArray[np.bool_]:
    """[...]: whether quads weights[...,4] are of int8, and added exactly by any CPU: no pair leaves 16 bits, whatever it multiplies."""
    octets = (weights == weights.astype(np.int8)).all(-1)
    pairs = weights.astype(np.int64).reshape(*weights.shape[:-1], 2, 2)
    most, least = (255 * side(pairs, 0).sum(-1) for side in (np.maximum, np.minimum))
    return octets & ((most <= _LARGEST_PAIR) & (least >= _LEAST_PAIR)).all(-1)


def stock_exact(weights: NDArray[np.integer]) -> bool:
    """Whether ONNX Runtime adds products of bytes with such weights exactly on this CPU, too: without VNNI it adds any two neighbours in 16
    bits. False where nobody has compared its integers (Arm)."""
    return HOST in (VNNI512, VNNI256) or (HOST == MADD and 2 * 255 * int(np.abs(weights).max(initial=0)) <= _LARGEST_PAIR)


def split(weights: NDArray[np.integer]) -> tuple[NDArray[np.int64], NDArray[np.int8]]:
    """(rows, quads) of weights[n,...,4]: quads that fit; those of a row, which follow each other, sum to its weights."""
    rows = np.arange(len(weights))
    while not (good := fits(weights).all(axis=tuple(range(1, weights.ndim - 1)))).all():
        half = weights[~good] // 2
        rows, rest = np.concatenate([rows, rows[~good]]), weights[~good] - half
        weights = np.concatenate([weights, rest])
        weights[np.flatnonzero(~good)] = half
    order = np.argsort(rows, kind="stable")
    return rows[order], weights[order].astype(np.int8)


def words(quads: NDArray) -> NDArray[np.int32]:
    """Words of bytes quads[...,4]."""
    return np.ascontiguousarray(quads).view("<i4")[..., 0]


def _parts(e: Emitter, vector: Any, size: int) -> list[Any]:
    """A vector of words in pieces of `size`."""
    return [e.shuffle(vector, vector, range(start, start + size)) for start in range(0, LANES, size)]


def _joined(e: Emitter, parts: list[Any]) -> Any:
    while len(parts) > 1:
        width = 2 * parts[0].type.count
        parts = [e.shuffle(a, b, range(width)) for a, b in zip(parts[::2], parts[1::2], strict=True)]
    return parts[0]


def _native(e: Emitter, size: int, total: Any, x: Any, w: Any, lanes: int, step: Any) -> Any:
    """step(words of the sum, bytes of x, bytes of w) for each piece of `size` words of the first `lanes`."""
    octets = ir.VectorType(ir.IntType(8), 4 * size)
    pieces = zip(range(0, LANES, size), _parts(e, total, size), _parts(e, x, size), _parts(e, w, size), strict=True)
    return _joined(e, [step(t, e.builder.bitcast(a, octets), e.builder.bitcast(b, octets)) if k < lanes else t for k, t, a, b in pieces])


def _dot(e: Emitter, total: Any, x: Any, w: Any, lanes: int = LANES) -> Any:
    """total + the products of x and w, summed within the first lanes."""
    builder = e.builder
    if HOST in (VNNI512, VNNI256):
        size = 16 if HOST == VNNI512 else 8
        name = f"llvm.x86.avx512.vpdpbusd.{32 * size}"
        return _native(e, size, total, x, w, lanes, lambda t, a, b: e.call(name, t.type, [t, a, b]))
    if HOST == USDOT:
        return _native(e, 4, total, x, w, lanes, lambda t, a, b: e.call("llvm.aarch64.neon.usdot.v4i32.v16i8", t.type, [t, a, b]))
    if HOST in (SDOT, SMULL):
        x = builder.xor(x, ir.Constant(_WORDS, [-0x7F7F7F80] * LANES))  # each byte less LOWERED, as a signed one
        return _native(e, 4, total, x, w, lanes, lambda t, a, b: _sdot(e, t, a, b) if HOST == SDOT else _smull(e, t, a, b))
    if HOST == MADD:
        pairs = ir.VectorType(ir.IntType(16), 16)
        ones = ir.Constant(pairs, [1] * 16)

        def step(t: Any, a: Any, b: Any) -> Any:
            short = e.call("llvm.x86.avx2.pmadd.ub.sw", pairs, [a, b])
            return builder.add(t, e.call("llvm.x86.avx2.pmadd.wd", t.type, [short, ones]))

        return _native(e, 8, total, x, w, lanes, step)
    for k in range(4):
        total = builder.add(total, builder.mul(_byte(e, x, k), _byte(e, w, k, signed=True)))
    return total


def _sdot(e: Emitter, total: Any, x: Any, w: Any) -> Any:
    return e.call("llvm.aarch64.neon.sdot.v4i32.v16i8", total.type, [total, x, w])


def _smull(e: Emitter, total: Any, x: Any, w: Any) -> Any:
    """Products of 16 bits, sums of pairs of them, which fit, and those of pairs of pairs."""
    half = ir.VectorType(ir.IntType(16), 8)
    low, high = (
        e.call("llvm.aarch64.neon.smull.v8i16", half, [e.shuffle(x, x, range(k, k + 8)), e.shuffle(w, w, range(k, k + 8))]) for k in (0, 8)
    )
    pairs = e.call("llvm.aarch64.neon.addp.v8i16", half, [low, high])
    return e.builder.add(total, e.call("llvm.aarch64.neon.saddlp.v4i32.v8i16", total.type, [pairs]))


def _byte(e: Emitter, vector: Any, k: int, signed: bool = False) -> Any:
    """Byte k of each word, as a word."""
    up = e.builder.shl(vector, ir.Constant(_WORDS, [24 - 8 * k] * LANES)) if k < 3 else vector
    return (e.builder.ashr if signed else e.builder.lshr)(up, ir.Constant(_WORDS, [24] * LANES))


def _as_words(e: Emitter, vector: Any) -> Any:
    return e.builder.bitcast(vector, _WORDS)


def _as_numbers(e: Emitter, vector: Any) -> Any:
    return e.builder.bitcast(vector, VECTOR)


def _word(e: Emitter, array: int, position: Any) -> Any:
    """array[position], a word, in all lanes."""
    data = e.builder.bitcast(e.data(array), ir.IntType(32).as_pointer())
    first = e.builder.insert_element(ir.Constant(_WORDS, ir.Undefined), e.builder.load(e.element(data, position)), ir.IntType(32)(0))
    return e.shuffle(first, first, [0] * LANES)


def _add_quads(e: Emitter) -> Any:
    w, lanes = _word(e, 3, e.args[4]), e.size(5) * UNIT
    x = [e.load(e.element(e.data(1), e.args[2], (vector, e.lanes(2)))) for vector in range(e.types[0].vectors)]
    return e.update(lambda row, vector, old: _as_numbers(e, _dot(e, _as_words(e, old), _as_words(e, x[vector]), w, lanes - vector * LANES)))


@operation(_add_quads)
def tile_add_quads(tile: Tile, array: NDArray, start: int, weights: NDArray, position: int, units: Size) -> Tile:
    """tile[0,v] += products of the quads array[start + v*LANES : + LANES] with weights[position], in the first `units` of UNIT lanes.

    Other lanes are as they were, or the same. Arrays are of any type of four bytes.
    """
    x = np.ascontiguousarray(array[start : start + tile.size]).view(np.uint8).reshape(*tile.shape, 4).astype(np.int32) - LOWERED
    w = np.ascontiguousarray(weights[position : position + 1]).view(np.int8).astype(np.int32)
    return (tile.view(np.int32) + (x * w).sum(-1, dtype=np.int32)).view(np.float32)


def _add_shared(e: Emitter) -> Any:
    rows, size, start = (e.size(5), e.size(6)), e.args[4].type, e.not_unrolled(e.args[2])
    x = [_as_words(e, e.load(e.element(e.data(1), start, (vector, e.lanes(2))))) for vector in range(e.types[0].vectors)]
    w = {row: _word(e, 3, e.builder.add(e.args[4], ir.Constant(size, k))) for k, row in enumerate(dict.fromkeys(rows))}
    return e.update(lambda row, vector, old: _as_numbers(e, _dot(e, _as_words(e, old), x[vector], w[row])) if row in w else old)


@operation(_add_shared)
def tile_add_shared(tile: Tile, array: NDArray, start: int, weights: NDArray, position: int, first: Size, second: Size) -> Tile:
    """tile[r,v] += products of the quads array[start + v*LANES : + LANES] with a word of weights: weights[position] for row `first`,
    weights[position + 1] for row `second`, where that is another one.

    Arrays are of any type of four bytes.
    """
    x = np.ascontiguousarray(array[start : start + tile[0].size]).view(np.uint8).reshape(*tile.shape[1:], 4).astype(np.int32) - LOWERED
    sums = tile.view(np.int32).copy()
    for k, row in enumerate(dict.fromkeys((first, second))):
        w = np.ascontiguousarray(weights[position + k : position + k + 1]).view(np.int8).astype(np.int32)
        sums[row] += (x * w).sum(-1, dtype=np.int32)
    return sums.view(np.float32)


def _row_words(e: Emitter) -> Any:
    size = e.args[1].type
    values = [_as_numbers(e, _word(e, 0, e.builder.add(e.args[1], ir.Constant(size, row)))) for row in range(e.result.rows)]
    return e.tile(lambda row, vector: values[row])


@operation(_row_words)
def tile_row_words(array: NDArray, position: int, rows: Size, vectors: Size) -> Tile:
    """array[position + r] in all lanes of row r, bit for bit."""
    words = array[position : position + rows].view(np.float32)
    return np.broadcast_to(words[:, None, None], (rows, vectors, LANES)).copy()


def _same_word(e: Emitter) -> Any:
    value = _as_numbers(e, _word(e, 0, e.args[1]))
    return e.tile(lambda row, vector: value)


@operation(_same_word)
def tile_same_word(array: NDArray, position: int, vectors: Size) -> Tile:
    """array[position] in all lanes, bit for bit."""
    return np.broadcast_to(array[position : position + 1].view(np.float32), (1, vectors, LANES)).copy()


def _words_at(e: Emitter, array: int, start: Any) -> Any:
    """LANES words of array[start:]."""
    pointer = e.builder.bitcast(e.element(e.data(array), start), _WORDS.as_pointer())
    vector = e.builder.load(pointer)
    vector.align = 4
    return vector


def _same_words(e: Emitter) -> Any:
    value = _as_numbers(e, _words_at(e, 0, e.args[1]))
    return e.tile(lambda row, vector: value)


@operation(_same_words)
def tile_same_words(array: NDArray, position: int, rows: Size) -> Tile:
    """Rows of array[position : + LANES], bit for bit."""
    return np.repeat(array[position : position + LANES].view(np.float32)[None, None], rows, 0)


def _word_run(e: Emitter) -> Any:
    first, size = e.args[1], e.args[1].type
    return e.tile(lambda row, vector: _as_numbers(e, _words_at(e, 0, e.builder.add(first, ir.Constant(size, vector * LANES)))))


@operation(_word_run)
def tile_words(array: NDArray, position: int, vectors: Size) -> Tile:
    """array[position : + vectors * LANES], bit for bit."""
    return array[position : position + vectors * LANES].view(np.float32).reshape(1, vectors, LANES).copy()


def _add_filters(e: Emitter) -> Any:
    builder, size = e.builder, e.args[3].type
    weights = _words_at(e, 2, e.args[5])
    offset = builder.sext(builder.load(e.element(e.data(2), e.args[4])), size)
    first = builder.gep(e.data(1), [offset], inbounds=True)

    def change(row: int, vector: int, old: Any) -> Any:
        place = builder.sext(builder.load(e.element(e.data(2), builder.add(e.args[3], ir.Constant(size, row)))), size)
        x = _as_words(e, e.broadcast(builder.gep(first, [place], inbounds=True)))
        return _as_numbers(e, _dot(e, _as_words(e, old), x, weights))

    return e.update(change)


@operation(_add_filters)
def tile_add_filters(tile: Tile, array: NDArray, index: NDArray, places: int, offset: int, weights: int) -> Tile:
    """tile[r,0] += products of the quad array[index[places + r] + index[offset]] with index[weights : + LANES], one for each lane.

    index: int32.
    """
    at = index[places : places + len(tile)].astype(np.int64) + int(index[offset])
    x = np.ascontiguousarray(array[at]).view(np.uint8).reshape(len(tile), 1, 1, 4).astype(np.int32) - LOWERED
    w = np.ascontiguousarray(index[weights : weights + LANES]).view(np.int8).reshape(LANES, 4).astype(np.int32)
    return (tile.view(np.int32) + (x * w).sum(-1, dtype=np.int32)).view(np.float32)


def _add_expanded(e: Emitter) -> Any:
    builder, size, run, index = e.builder, e.args[3].type, e.size(6), e.data(2)
    offset, bits = (builder.load(e.element(index, builder.add(e.args[4], ir.Constant(size, k)))) for k in (0, 1))
    lanes = builder.bitcast(builder.trunc(bits, _BITS), ir.VectorType(ir.IntType(1), LANES))
    kept = builder.bitcast(e.element(index, e.args[5]), ir.IntType(32).as_pointer())
    weights = e.call(f"llvm.masked.expandload.v{LANES}i32", _WORDS, [kept, lanes, ir.Constant(_WORDS, [0] * LANES)])
    first, starts = builder.gep(e.data(1), [builder.sext(offset, size)], inbounds=True), dict[int, Any]()

    def change(row: int, vector: int, old: Any) -> Any:
        if row % run == 0:
            place = builder.load(e.element(index, builder.add(e.args[3], ir.Constant(size, row // run))))
            starts[row // run] = builder.gep(first, [builder.sext(place, size)], inbounds=True)
        x = _as_words(e, e.broadcast(builder.gep(starts[row // run], [ir.Constant(size, row % run)], inbounds=True)))
        return _as_numbers(e, _dot(e, _as_words(e, old), x, weights))

    return e.update(change)


@operation(_add_expanded)
def tile_add_expanded(tile: Tile, array: NDArray, index: NDArray, places: int, entry: int, weights: int, run: Size) -> Tile:
    """tile[r,0] += products of the quad array[index[places + r // run] + r % run + index[entry]] with weights, one for each lane: those of
    lanes of which the bit is set in index[entry + 1] follow each other from index[weights] on, others are 0.

    index: int32.
    """
    rows = np.arange(len(tile))
    at = index[places + rows // run].astype(np.int64) + rows % run + int(index[entry])
    x = np.ascontiguousarray(array[at]).view(np.uint8).reshape(len(tile), 1, 1, 4).astype(np.int32) - LOWERED
    w, lanes = np.zeros(LANES, np.int32), int(index[entry + 1]) >> np.arange(LANES) & 1 == 1
    w[lanes] = index[weights : weights + lanes.sum()]
    return (tile.view(np.int32) + (x * w.view(np.int8).reshape(LANES, 4).astype(np.int32)).sum(-1, dtype=np.int32)).view(np.float32)


@operation(lambda e: e.builder.zext(e.builder.ctpop(e.builder.load(e.element(e.data(0), e.args[1]))), e.args[1].type))
def bits_set(index: NDArray, position: int) -> int:
    """How many bits of index[position], int32."""
    return int(index[position] & 0xFFFFFFFF).bit_count()


def _add_words(e: Emitter) -> Any:
    builder, word = e.builder, ir.IntType(32)
    octets, mask = builder.bitcast(e.data(1), ir.IntType(8).as_pointer()), builder.trunc(e.args[5], word)

    def change(row: int, vector: int, old: Any) -> Any:
        for k in range(e.types[6].vectors):
            quad = builder.load(builder.bitcast(e.element(octets, e.args[2 + k]), word.as_pointer()))
            quad.align = 1
            first = builder.insert_element(ir.Constant(_WORDS, ir.Undefined), builder.and_(quad, mask), word(0))
            x, weights = e.shuffle(first, first, [0] * LANES), _as_words(e, e.vector(0, k, tile=6))
            old = _as_numbers(e, _dot(e, _as_words(e, old), x, weights))
        return old

    return e.update(change)


@operation(_add_words)
def tile_add_words(tile: Tile, array: NDArray, first: int, second: int, third: int, mask: int, weights: Tile) -> Tile:
    """tile + products of the four bytes of array from byte `first` on, & mask, with weights[0,0], one for each lane; likewise from
    `second` and `third` on with weights[0,1] and weights[0,2], where they are given. A tile of one vector.
    """
    octets, total = array.view(np.uint8), tile.view(np.int32)
    for place, w in zip((first, second, third), weights[0].view(np.int8).reshape(-1, LANES, 4).astype(np.int32), strict=False):
        x = (octets[place : place + 4].view(np.uint32) & np.uint32(mask & 0xFFFFFFFF)).view(np.uint8).astype(np.int32) - LOWERED
        total = total + (x * w).sum(-1, dtype=np.int32)
    return total.view(np.float32)


def _real_byte_run(e: Emitter) -> Any:
    octets = ir.VectorType(ir.IntType(8), LANES)
    value = e.builder.load(e.builder.bitcast(e.element(e.data(0), e.args[1]), octets.as_pointer()))
    value.align = 4
    vector = e.builder.sitofp(e.builder.zext(value, _WORDS), VECTOR)
    return e.tile(lambda row, k: vector)


@operation(_real_byte_run)
def real_byte_run(array: NDArray, position: int) -> Tile:
    """LANES bytes that follow each other from array[position] on, as float32 numbers."""
    bytes_ = np.ascontiguousarray(array[position : position + LANES // 4]).view(np.uint8)
    return bytes_.astype(np.float32).reshape(1, 1, LANES)


def _store_bytes(e: Emitter) -> None:
    octets = ir.VectorType(ir.IntType(8), LANES)
    value = e.builder.trunc(_as_words(e, e.vector(0, 0)), octets)
    e.builder.store(value, e.builder.bitcast(e.element(e.data(1), e.args[2]), octets.as_pointer())).align = 4


@operation(_store_bytes)
def store_bytes(tile: Tile, array: NDArray, position: int) -> None:
    """int32 numbers from 0 to 255 as LANES bytes that follow each other from array[position] on."""
    array[position : position + LANES // 4] = tile.view(np.int32).astype(np.uint8).reshape(-1).view(array.dtype)


_ALL_BYTES = ir.VectorType(ir.IntType(8), 4 * LANES)
_BLOCKS = LANES // 4


def _four(e: Emitter, array: int, position: Any, kind: Any) -> Any:
    """array[position : position + 4], over and over."""
    vector = e.builder.load(e.builder.bitcast(e.element(e.data(array), position), ir.VectorType(kind, 4).as_pointer()))
    vector.align = 4
    return e.shuffle(vector, vector, list(range(4)) * _BLOCKS)


def _same_words_of_four(e: Emitter) -> Any:
    value = _as_numbers(e, _four(e, 0, e.args[1], ir.IntType(32)))
    return e.tile(lambda row, vector: value)


@operation(_same_words_of_four)
def tile_same_words_of_four(array: NDArray, position: int, rows: Size) -> Tile:
    """Rows of array[position : position + 4], over and over, bit for bit."""
    return np.tile(array[position : position + 4].view(np.float32), (rows, 1, _BLOCKS))


def _same_four(e: Emitter) -> Any:
    value = _four(e, 0, e.args[1], ir.FloatType())
    return e.tile(lambda row, vector: value)


@operation(_same_four)
def same_four(array: NDArray, position: int) -> Tile:
    """array[position : position + 4], float32, over and over."""
    return np.tile(array[position : position + 4], (1, 1, _BLOCKS))


def _interleaved(e: Emitter, a: Any, b: Any, high: bool) -> Any:
    """The elements of the lower or upper halves of each block of 128 bits of a and b in turn."""
    size = a.type.count // _BLOCKS
    first = size // 2 if high else 0
    lanes = [n * size + first + k + side * a.type.count for n in range(_BLOCKS) for k in range(size // 2) for side in (0, 1)]
    return e.shuffle(a, b, lanes)


def _add_taps(e: Emitter) -> Any:
    builder, size, index, step = e.builder, e.args[2].type, e.data(3), e.size(6)
    x = []
    for t in range(4):
        offset = builder.sext(builder.load(e.element(index, builder.add(e.args[4], ir.Constant(size, t)))), size)
        start = builder.add(e.args[2], offset)
        parts = [e.load(e.element(e.data(1), start, (k, e.lanes(2)))) for k in range(step)]
        words = e.shuffle(parts[0], parts[-1], range(0, step * LANES, step)) if step > 1 else parts[0]
        x.append(builder.bitcast(words, _ALL_BYTES))
    weights = _four(e, 3, e.args[5], ir.IntType(32))
    halves = ir.VectorType(ir.IntType(16), 2 * LANES)
    pairs = [[builder.bitcast(_interleaved(e, a, b, high), halves) for high in (False, True)] for a, b in (x[:2], x[2:])]
    fours = [_as_words(e, _interleaved(e, pairs[0][k // 2], pairs[1][k // 2], k % 2 == 1)) for k in range(4)]
    return e.update(lambda row, vector, old: _as_numbers(e, _dot(e, _as_words(e, old), fours[row], weights)))


@operation(_add_taps)
def tile_add_taps(tile: Tile, array: NDArray, start: int, index: NDArray, offsets: int, weights: int, step: Size) -> Tile:
    """tile[k,0,4L+c] += sum over t of byte c of array[start + index[offsets + t] + (4L + k)*step] times byte t of index[weights + c].

    A tile of four rows; index: int32; step: 1 or 2.
    """
    starts = start + index[offsets : offsets + 4].astype(np.int64)
    x = np.stack([array[first : first + LANES * step : step] for first in starts])
    taps = np.ascontiguousarray(x).view(np.uint8).reshape(4, _BLOCKS, 4, 4).astype(np.int32) - LOWERED  # [tap, block, k, channel]
    w = np.ascontiguousarray(index[weights : weights + 4]).view(np.int8).reshape(4, 4).astype(np.int32)
    return (tile.view(np.int32) + np.einsum("tbkc,ct->kbc", taps, w).reshape(tile.shape)).view(np.float32)


def _real_positions(e: Emitter) -> Any:
    k = e.size(1)

    def change(row: int, vector: int, old: Any) -> Any:
        found = e.builder.bitcast(old, _ALL_BYTES)
        chosen = e.shuffle(found, found, [16 * block + 4 * k + c for block in range(_BLOCKS) for c in range(4)])
        return e.builder.sitofp(e.builder.zext(chosen, _WORDS), VECTOR)

    return e.update(change)


@operation(_real_positions)
def real_positions(tile: Tile, k: Size) -> Tile:
    """Lane 4L + c: byte c of word 4L + k, as a float32 number."""
    found = tile.view(np.uint8).reshape(_BLOCKS, 4, 4)[:, k]
    return found.astype(np.float32).reshape(tile.shape)


def _real(e: Emitter) -> Any:
    return e.update(lambda row, vector, old: e.builder.sitofp(_as_words(e, old), VECTOR))


@operation(_real)
def real(tile: Tile) -> Tile:
    """int32 numbers as float32 ones, to the nearest."""
    return tile.view(np.int32).astype(np.float32)


def _real_bytes(e: Emitter) -> Any:
    k = e.size(1)
    return e.update(lambda row, vector, old: e.builder.sitofp(_byte(e, _as_words(e, old), k), VECTOR))


@operation(_real_bytes)
def real_bytes(tile: Tile, k: Size) -> Tile:
    """Byte k of each quad as a float32 number."""
    return (tile.view(np.uint32) >> np.uint32(8 * k) & np.uint32(255)).astype(np.float32)


def _shifted_byte(e: Emitter) -> Any:
    bits = e.builder.trunc(e.args[1], ir.IntType(32))
    first = e.builder.insert_element(ir.Constant(_WORDS, ir.Undefined), bits, ir.IntType(32)(0))
    count = e.shuffle(first, first, [0] * LANES)

    def change(row: int, vector: int, old: Any) -> Any:
        return _as_numbers(e, e.builder.and_(e.builder.lshr(_as_words(e, old), count), ir.Constant(_WORDS, [255] * LANES)))

    return e.update(change)


@operation(_shifted_byte)
def shifted_byte(tile: Tile, bits: int) -> Tile:
    """The byte from bit `bits` on of each word, as an int32 number."""
    return (tile.view(np.uint32) >> np.uint32(bits) & np.uint32(255)).view(np.float32)


def _divided(e: Emitter) -> Any:
    return e.update(lambda row, vector, old: e.builder.fdiv(old, e.vector(row, vector, tile=1)))


@operation(_divided)
def divided(a: Tile, b: Tile) -> Tile:
    """a / b"""
    return a / b


def _whole_words(e: Emitter, number: Any, low: Any, high: Any, up: Any) -> Any:
    """clip(round(number), low, high) + up; low, high, up in all lanes."""
    builder = e.builder
    raised = builder.select(builder.fcmp_ordered(">", number, low), number, low)
    held = builder.select(builder.fcmp_ordered("<", raised, high), raised, high)
    return builder.add(_nearest(e, held), up)


def _nearest(e: Emitter, number: Any) -> Any:
    return e.call(f"llvm.lrint.v{LANES}i32.v{LANES}f32", _WORDS, [number])


def _in_all(e: Emitter, argument: int, bits: int, count: int) -> Any:
    """An integer as one of so many bits, in all lanes."""
    kind = ir.VectorType(ir.IntType(bits), count)
    first = e.builder.insert_element(ir.Constant(kind, ir.Undefined), e.builder.trunc(e.args[argument], kind.element), ir.IntType(32)(0))
    return e.shuffle(first, first, [0] * count)


def _whole(e: Emitter) -> Any:
    low, high, up = e.splat(e.args[1]), e.splat(e.args[2]), _in_all(e, 3, 32, LANES)
    return e.update(lambda row, vector, old: _as_numbers(e, _whole_words(e, old, low, high, up)))


@operation(_whole)
def whole(tile: Tile, low: Float, high: Float, up: int) -> Tile:
    """clip(round(x), low, high) + up as int32 numbers, round half to even, low <= high whole; of what is no number low + up."""
    held = np.where(tile > low, tile, np.float32(low))
    return (np.rint(np.where(held < high, held, np.float32(high))).astype(np.int32) + np.int32(up)).view(np.float32)


def _packed(e: Emitter, turned: bool) -> Any:
    """Words of bytes clip(round(x) + up, low, high) of four vectors x; `turned`: byte k is of vector k, else block k of four lanes is."""
    builder, numbers = e.builder, [e.vector(0, 0, tile=k) for k in range(4)]
    if HOST not in (VNNI512, VNNI256, MADD):
        up = _in_all(e, 4, 32, LANES)
        least, most = (builder.sitofp(builder.sub(_in_all(e, k, 32, LANES), up), VECTOR) for k in (5, 6))
        found = [builder.trunc(_whole_words(e, x, least, most, up), ir.VectorType(ir.IntType(8), LANES)) for x in numbers]
        first, second = (e.shuffle(a, b, range(2 * LANES)) for a, b in (found[:2], found[2:]))
        if turned:
            return e.shuffle(first, second, [k * LANES + lane for lane in range(LANES) for k in range(4)])
        return e.shuffle(first, second, [k * LANES + 4 * block + c for block in range(_BLOCKS) for k in range(4) for c in range(4)])
    size = 16 if HOST == VNNI512 else 8
    most = ir.Constant(VECTOR, [32767.0] * LANES)  # what is larger would be the least integer
    found = [_parts(e, _nearest(e, builder.select(builder.fcmp_ordered("<", most, x), most, x)), size) for x in numbers]
    name = "llvm.x86.avx512.{}.512" if size == 16 else "llvm.x86.avx2.{}"
    shorts, octets = ir.VectorType(ir.IntType(16), 2 * size), ir.VectorType(ir.IntType(8), 4 * size)
    up, low, high = _in_all(e, 4, 16, 2 * size), _in_all(e, 5, 8, 4 * size), _in_all(e, 6, 8, 4 * size)

    def packed(a: Any, b: Any, c: Any, d: Any) -> Any:
        pairs = [e.call(name.format("packssdw"), shorts, pair) for pair in ([a, b], [c, d])]
        raised = [e.call(f"llvm.sadd.sat.v{2 * size}i16", shorts, [pair, up]) for pair in pairs]
        value = e.call(name.format("packuswb"), octets, raised)
        value = builder.select(builder.icmp_unsigned(">", value, low), value, low)
        return builder.select(builder.icmp_unsigned("<", value, high), value, high)

    every = _joined(e, [packed(*parts) for parts in zip(*found, strict=True)])
    blocks = [16 * block + 4 * k + c for block in range(_BLOCKS) for c in range(4) for k in range(4)]
    return e.shuffle(every, every, blocks) if turned else every


@operation(lambda e: e.update(lambda row, vector, old: _as_numbers(e, _packed(e, turned=True))))
def packed(a: Tile, b: Tile, c: Tile, d: Tile, up: int, low: int, high: int) -> Tile:
    """Words of which byte k is clip(round(x) + up, low, high) of tile k, one vector: round half to even; of what is no number low.

    up, low, high: from 0 to 255.
    """
    parts = (clipped.astype(np.uint32) << np.uint32(8 * k) for k, clipped in enumerate(_clipped((a, b, c, d), up, low, high)))
    return np.bitwise_or.reduce(list(parts)).view(np.float32)


@operation(lambda e: e.update(lambda row, vector, old: _as_numbers(e, _packed(e, turned=False))))
def packed_positions(a: Tile, b: Tile, c: Tile, d: Tile, up: int, low: int, high: int) -> Tile:
    """The same bytes in another order: byte n of word 4L + k is that of lane 4L + n of tile k."""
    parts = np.stack([clipped.reshape(_BLOCKS, 4) for clipped in _clipped((a, b, c, d), up, low, high)], 1)
    return parts.astype(np.uint8).reshape(-1).view(np.float32).reshape(a.shape)


def _clipped(tiles: tuple[Tile, ...], up: int, low: int, high: int) -> list[NDArray[np.float32]]:
    limit = np.float32(1 << 15)
    return [np.clip(np.rint(np.where(np.abs(x) < limit, x, np.where(x > 0, limit, -limit))) + up, low, high) for x in tiles]


def _quads(e: Emitter) -> Any:
    def change(row: int, vector: int, old: Any) -> Any:
        word = _as_words(e, old)
        for k in range(1, 4):
            byte = _as_words(e, e.vector(row, vector, tile=k))
            word = e.builder.or_(word, e.builder.shl(byte, ir.Constant(_WORDS, [8 * k] * LANES)))
        return _as_numbers(e, word)

    return e.update(change)


@operation(_quads)
def quads(a: Tile, b: Tile, c: Tile, d: Tile) -> Tile:
    """Quads of int32 numbers from 0 to 255, bytes 0 to 3."""
    parts = (tile.view(np.uint32) << np.uint32(8 * k) for k, tile in enumerate((a, b, c, d)))
    return np.bitwise_or.reduce(list(parts)).view(np.float32)


def _chosen(e: Emitter) -> Any:
    lanes = e.builder.bitcast(e.builder.trunc(e.args[1], _BITS), ir.VectorType(ir.IntType(1), LANES))
    return e.update(lambda row, vector, old: e.builder.select(lanes, old, e.vector(row, vector, tile=2)))


@operation(_chosen)
def chosen(tile: Tile, bits: int, other: Tile) -> Tile:
    """Lane l of `tile` where bit l is set, else that of `other`, bit for bit."""
    return np.where(bits >> np.arange(LANES) & 1 == 1, tile.view(np.int32), other.view(np.int32)).view(np.float32)


def _store_octets(e: Emitter) -> None:
    octets = e.builder.bitcast(e.vector(0, 0), _ALL_BYTES)
    data = e.builder.bitcast(e.data(1), ir.IntType(8).as_pointer())
    for k in range(4):
        place = e.element(data, e.args[2], (k, e.args[3]))
        part = e.shuffle(octets, octets, range(k, 4 * e.size(4), 4))
        e.builder.store(part, e.builder.bitcast(place, part.type.as_pointer())).align = 1


@operation(_store_octets)
def store_octets(tile: Tile, array: NDArray, place: int, stride: int, count: Size) -> None:
    """Byte k of each of the first words as `count` bytes that follow each other from byte place + k*stride of array on."""
    parts, memory = tile.view(np.uint8).reshape(LANES, 4), array.view(np.uint8)
    for k in range(4):
        memory[place + k * stride : place + k * stride + count] = parts[:count, k]


def _larger_bytes(e: Emitter) -> Any:
    octets = ir.VectorType(ir.IntType(8), 4 * LANES)

    def change(row: int, vector: int, old: Any) -> Any:
        a, b = (e.builder.bitcast(value, octets) for value in (old, e.vector(row, vector, tile=1)))
        return _as_numbers(e, e.builder.bitcast(e.builder.select(e.builder.icmp_unsigned(">", a, b), a, b), _WORDS))

    return e.update(change)


@operation(_larger_bytes)
def larger_bytes(a: Tile, b: Tile) -> Tile:
    """The larger of each two unsigned bytes."""
    return np.maximum(a.view(np.uint8), b.view(np.uint8)).view(np.float32)
