"""Operations of the kernel "positions" on the tiles of ops/simd/: a row of a tile belongs to a filter, its lanes to positions.

Its arrays are pointers: to float32, but for `index` (int32), whose halves, numbered by `half`, are short offsets.
"""

import functools
from collections.abc import Iterator
from typing import Any

import numpy as np
from numba import types
from numpy.typing import NDArray

from fineprune.ops.numba_door import ir
from fineprune.ops.simd.declare import LANES, VECTOR, Emitter, Size, Tile, operation

OFFSET_UNIT = 2
"""Floats that an offset of a patch vector counts: eight bytes, the largest factor of an x86 address, so that 16 bits reach 512 KiB."""

_BITS = ir.IntType(LANES)
_HALF = ir.IntType(16)
_ALIGNMENT = ir.Constant(ir.IntType(32), 4)
Pointer = NDArray


def _at(e: Emitter) -> Any:
    value = e.builder.load(e.element(e.data(0), e.args[1]))
    return value if e.result == e.types[0].dtype else e.builder.sext(value, e.args[1].type)


@operation(_at, lambda array, position: (types.intp if isinstance(array.dtype, types.Integer) else array.dtype)(array, types.intp))
def at(array: Pointer, position: int) -> Any:
    """As tiles.at, but integers become those of 64 bits at once, however they are used."""
    return int(array[position]) if array.dtype.kind == "i" else array[position]


def _put(e: Emitter) -> None:
    e.builder.store(e.args[2], e.element(e.data(0), e.args[1]))


@operation(_put, lambda array, position, value: types.void(array, types.intp, array.dtype))
def put(array: Pointer, position: int, value: Any) -> None:
    """array[position] = value"""
    array[position] = value


def _numbers(e: Emitter, argument: int, count: int) -> list[Any]:
    """index[position], index[position + 1], ...; the arguments from `argument` on are (index, position)."""
    position = e.args[argument + 1]
    pointers = [e.element(e.data(argument), position, (k, e.lanes(argument + 1, 1))) for k in range(count)]
    return [e.builder.sext(e.builder.load(pointer), position.type) for pointer in pointers]


def _row_starts(e: Emitter, argument: int, rows: int) -> list[Any]:
    """start + index[position + row] * stride; the arguments from `argument` on are (array, start, stride, index, position)."""
    start, stride = e.args[argument + 1 : argument + 3]
    return [e.builder.add(start, e.builder.mul(number, stride)) for number in _numbers(e, argument + 3, rows)]


def _lines(array: NDArray, starts: NDArray, vectors: int) -> NDArray:
    return np.stack([array[start : start + vectors * LANES] for start in starts]).reshape(-1, vectors, LANES)


def _broadcast(e: Emitter) -> Any:
    scalars = [e.broadcast(e.element(e.data(0), e.builder.add(e.args[1], number))) for number in _numbers(e, 2, e.result.rows)]
    return e.tile(lambda row, vector: scalars[row])


@operation(_broadcast)
def tile_broadcast(array: Pointer, start: int, index: Pointer, position: int, rows: Size, vectors: Size) -> Tile:
    """tile[r,v] = array[start + index[position + r]] in all lanes."""
    return np.repeat(array[start + index[position : position + rows]], vectors * LANES).reshape(rows, vectors, LANES)


def _load_rows(e: Emitter) -> Any:
    starts = _row_starts(e, 0, e.result.rows)
    return e.tile(lambda row, vector: e.load(e.element(e.data(0), starts[row], (vector, e.lanes(1)))))


@operation(_load_rows)
def tile_load_rows(array: Pointer, start: int, stride: int, index: Pointer, position: int, rows: Size, vectors: Size) -> Tile:
    """Row r is array[start + index[position + r] * stride : ...]."""
    return _lines(array, start + index[position : position + rows] * stride, vectors)


def _store_rows(e: Emitter) -> None:
    starts = _row_starts(e, 1, e.types[0].rows)
    e.store_tile(lambda row, vector: e.element(e.data(1), starts[row], (vector, e.lanes(2))))


@operation(_store_rows)
def tile_store_rows(tile: Tile, array: Pointer, start: int, stride: int, index: Pointer, position: int) -> None:
    """To where tile_load_rows reads."""
    for row, number in zip(tile, index[position : position + len(tile)], strict=True):
        array[start + number * stride : start + number * stride + row.size] = row.reshape(-1)


def _halves(e: Emitter, argument: int, count: int) -> list[Any]:
    """Numbers of 16 bits; the arguments from `argument` on are (index, half). Four at a time are loaded as one integer: loads cost."""
    builder, position = e.builder, e.args[argument + 1]
    together = min(4, count)
    kind, data = ir.IntType(16 * together), builder.bitcast(e.data(argument), _HALF.as_pointer())
    numbers = []
    for k in range(0, count, together):
        pointer = builder.gep(data, [builder.add(position, ir.Constant(position.type, k))], inbounds=True)
        word = builder.load(builder.bitcast(pointer, kind.as_pointer()))
        word.align = 2
        shifted = [builder.lshr(word, ir.Constant(kind, 16 * n)) for n in range(together)]
        numbers += [builder.trunc(bits, _HALF) if together > 1 else bits for bits in shifted]
    return numbers


def _factors(e: Emitter, count: int) -> list[Any]:
    """weights[weight], weights[weight + 1], ..., each in all lanes. Four come by one load and are spread within registers: loads cost."""
    builder, factors = e.builder, []
    together = min(4, count)
    kind = ir.VectorType(ir.FloatType(), together)
    for begin in range(0, count, together):
        pointer = builder.bitcast(e.element(e.data(1), e.args[2], (begin, e.lanes(2, 1))), kind.as_pointer())
        numbers = builder.load(pointer)
        numbers.align = 4
        spread = e.shuffle(numbers, numbers, list(range(together)) * (LANES // together))
        spread = e.call(f"llvm.arithmetic.fence.v{LANES}f32", VECTOR, [spread])
        factors += [e.shuffle(spread, spread, [lane // together * together + k for lane in range(LANES)]) for k in range(together)]
    return factors


def _add_patches(e: Emitter) -> Any:
    builder, tile, share, size = e.builder, e.types[0], e.size(7), e.args[4].type
    factors = _factors(e, tile.rows)
    first = builder.gep(e.data(3), [e.args[4]], inbounds=True)
    value = e.args[0]
    for begin, offset in enumerate(_halves(e, 5, tile.rows // share)):
        wide = builder.mul(builder.zext(offset, size), ir.Constant(size, OFFSET_UNIT), flags=("nuw", "nsw"))
        patch = builder.gep(first, [wide], inbounds=True)
        for vector in range(tile.vectors):
            shared = e.load(builder.gep(patch, [ir.Constant(size, vector * LANES)], inbounds=True))
            for row in range(begin * share, begin * share + share):
                k = row * tile.vectors + vector
                value = builder.insert_value(value, e.multiply_add(factors[row], shared, builder.extract_value(value, k)), k)
    return value


@operation(_add_patches)
def tile_add_patches(
    tile: Tile, weights: Pointer, weight: int, patches: Pointer, base: int, index: Pointer, half: int, sharing: Size
) -> Tile:
    """With offset = the halves of index:
    tile[r,v] += weights[weight + r] * patches[base + offset[half + r//sharing] * OFFSET_UNIT + v*LANES : + LANES]."""
    offsets = index.view(np.uint16)[half : half + len(tile) // sharing].astype(np.int64) * OFFSET_UNIT
    lines = _lines(patches, base + np.repeat(offsets, sharing), tile.shape[1])
    return tile + weights[weight : weight + len(tile), None, None] * lines


def _pack_line(e: Emitter) -> Any:
    builder, lanes, step = e.builder, e.size(4), e.size(5)
    kind = ir.VectorType(ir.FloatType(), lanes)

    def part(number: int) -> Any:
        begin = e.args[1]
        if number:
            begin = builder.add(begin, builder.mul(e.args[2], e.lanes(2, number)))
            begin = builder.select(builder.icmp_signed("<", begin, e.args[3]), begin, e.args[3])
        loads = []
        for k in range(step):
            pointer = e.element(e.data(0), begin, (k, e.lanes(1, lanes)))
            loads.append(builder.load(builder.bitcast(pointer, kind.as_pointer())))
            loads[-1].align = 4
        return e.shuffle(loads[0], loads[-1], [step * lane for lane in range(lanes)]) if step > 1 else loads[0]

    parts = [part(k) for k in range(LANES // lanes)]
    while len(parts) > 1:
        width = LANES // len(parts)
        parts = [e.shuffle(a, b, list(range(2 * width))) for a, b in zip(parts[::2], parts[1::2], strict=True)]
    return e.tile(lambda row, vector: parts[0])


@operation(_pack_line)
def pack_line(array: Pointer, start: int, jump: int, limit: int, segment: Size, stride: Size) -> Tile:
    """A vector of segments; segment k is array[begin : : stride] with begin = min(start + k*jump, limit), the first begin = start;
    stride 1 or 2."""
    starts = [start, *(min(start + k * jump, limit) for k in range(1, LANES // segment))]
    return np.concatenate([array[begin : begin + segment * stride : stride] for begin in starts]).reshape(1, 1, LANES)


def _keep(e: Emitter) -> Any:
    chosen = e.builder.bitcast(e.builder.trunc(e.args[1], _BITS), ir.VectorType(ir.IntType(1), LANES))
    zero = ir.Constant(VECTOR, [0.0] * LANES)
    return e.update(lambda row, vector, old: e.builder.select(chosen, old, zero))


@operation(_keep)
def tile_keep(tile: Tile, bits: int) -> Tile:
    """Lane l stays if bit l is set, else it is 0, whatever it was."""
    return np.where(bits >> np.arange(LANES) & 1, tile, np.float32(0))


def _map_places(e: Emitter) -> list[list[Any]]:
    """Pointers [row][vector] of a tile to its places in maps; see `tile_store_maps` for the arguments."""
    builder, start, channel, stride = e.builder, *e.args[2:5]
    starts = [builder.add(start, builder.mul(number, channel)) for number in _numbers(e, 5, e.types[0].rows)]
    return [[e.element(e.data(1), line, (vector, stride)) for vector in range(e.types[0].vectors)] for line in starts]


def _bits(e: Emitter, index: int, lanes: int, vectors: int) -> list[Any]:
    """Of the lanes that are there, for each vector."""
    return [e.builder.load(e.element(e.data(index), e.args[lanes], (vector, e.lanes(lanes, 1)))) for vector in range(vectors)]


def _chosen(e: Emitter, bits: Any) -> Any:
    return e.builder.bitcast(e.builder.trunc(bits, _BITS), ir.VectorType(ir.IntType(1), LANES))


def _masked(e: Emitter) -> Iterator[tuple[Any, Any]]:
    """(pointer to a vector, its chosen lanes) for each vector of a tile."""
    bits = _bits(e, 5, 7, e.types[0].vectors)
    for line in _map_places(e):
        for pointer, word in zip(line, bits, strict=True):
            yield e.builder.bitcast(pointer, VECTOR.as_pointer()), _chosen(e, word)


def _all_lanes(e: Emitter) -> Any:
    every = functools.reduce(e.builder.and_, _bits(e, 0, 1, e.size(2)))
    return e.builder.icmp_unsigned("==", e.builder.trunc(every, _BITS), ir.Constant(_BITS, -1))


@operation(_all_lanes)
def all_lanes(index: Pointer, lanes: int, vectors: Size) -> bool:
    """Whether all bits of lanes are set in index[lanes], index[lanes + 1], ... of so many vectors."""
    return all(int(bits) & (1 << LANES) - 1 == (1 << LANES) - 1 for bits in index[lanes : lanes + vectors])


def _positions(
    tile: NDArray, start: int, channel: int, stride: int, index: NDArray, record: int, lanes: int
) -> Iterator[tuple[int, int, NDArray, NDArray]]:
    """(row, vector, positions, lanes) of the numbers that are there."""
    for row, vector in np.ndindex(*tile.shape[:2]):
        chosen = np.flatnonzero(int(index[lanes + vector]) >> np.arange(LANES) & 1)
        yield row, vector, start + int(index[record + row]) * channel + vector * stride + chosen, chosen


def _add_maps(e: Emitter) -> Any:
    builder, zero = e.builder, ir.Constant(VECTOR, [0.0] * LANES)
    places = _masked(e)

    def change(row: int, vector: int, old: Any) -> Any:
        pointer, lanes = next(places)
        return builder.fadd(old, e.call(f"llvm.masked.load.v{LANES}f32.p0", VECTOR, [pointer, _ALIGNMENT, lanes, zero]))

    return e.update(change)


@operation(_add_maps)
def tile_add_maps(tile: Tile, array: Pointer, start: int, channel: int, stride: int, index: Pointer, record: int, lanes: int) -> Tile:
    """tile[r,v] += what lies where tile_store_maps(the same) would store it."""
    tile = tile.copy()
    for row, vector, positions, chosen in _positions(tile, start, channel, stride, index, record, lanes):
        tile[row, vector, chosen] += array[positions]
    return tile


def _store_maps(e: Emitter) -> None:
    for k, (pointer, lanes) in enumerate(_masked(e)):
        vector = e.builder.extract_value(e.args[0], k)
        e.call(f"llvm.masked.store.v{LANES}f32.p0", ir.VoidType(), [vector, pointer, _ALIGNMENT, lanes])


@operation(_store_maps)
def tile_store_maps(tile: Tile, array: Pointer, start: int, channel: int, stride: int, index: Pointer, record: int, lanes: int) -> None:
    """Lanes of tile[r,v] whose bits are set in index[lanes + v] go to array[start + index[record + r]*channel + v*stride + lane].

    Nothing else is touched.
    """
    for row, vector, positions, chosen in _positions(tile, start, channel, stride, index, record, lanes):
        array[positions] = tile[row, vector, chosen]


def _add_whole_maps(e: Emitter) -> Any:
    places = _map_places(e)
    return e.update(lambda row, vector, old: e.builder.fadd(old, e.load(places[row][vector])))


@operation(_add_whole_maps)
def tile_add_whole_maps(tile: Tile, array: Pointer, start: int, channel: int, stride: int, index: Pointer, record: int) -> Tile:
    """As tile_add_maps, where all lanes are there."""
    starts = start + index[record : record + len(tile), None].astype(np.int64) * channel + np.arange(tile.shape[1]) * stride
    return tile + array[starts[..., None] + np.arange(LANES)]


def _store_whole_maps(e: Emitter) -> None:
    places = _map_places(e)
    e.store_tile(lambda row, vector: places[row][vector])


@operation(_store_whole_maps)
def tile_store_whole_maps(tile: Tile, array: Pointer, start: int, channel: int, stride: int, index: Pointer, record: int) -> None:
    """As tile_store_maps, where all lanes are there."""
    starts = start + index[record : record + len(tile), None].astype(np.int64) * channel + np.arange(tile.shape[1]) * stride
    array[starts[..., None] + np.arange(LANES)] = tile


def _copy(e: Emitter) -> None:
    kind = ir.VectorType(ir.FloatType(), e.size(3)).as_pointer()
    source, target = (e.builder.bitcast(e.element(e.data(0), e.args[k]), kind) for k in (1, 2))
    numbers = e.builder.load(source)
    numbers.align = 4
    e.builder.store(numbers, target).align = 4


@operation(_copy)
def copy(array: Pointer, start: int, to: int, count: Size) -> None:
    """array[to : to + count] = array[start : start + count]"""
    array[to : to + count] = array[start : start + count].copy()
