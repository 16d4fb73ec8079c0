"""Operations of the kernel "filters": register tiles whose rows lie at positions named by lists.

Declared as those of ops/simd/ are, of which these kernels use others. A row of a tile holds `vectors` vectors that follow each other in
memory; `index` holds int32.
"""

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fineprune.ops.numba_door import ir
from fineprune.ops.simd.declare import LANES, Emitter, Size, Tile, operation
from fineprune.ops.simd.registers import HOST


def _sum(e: Emitter, a: Any, b: Any) -> Any:
    return e.builder.add(a, b, flags=("nsw",))


def _listed(e: Emitter, array: int, start: Any, row: int) -> Any:
    """array[start + row] as a position; the array holds int32."""
    value = e.builder.load(e.element(e.data(array), start, (row, ir.Constant(start.type, 1))))
    return e.builder.sext(value, start.type)


def _pair(e: Emitter, array: int, start: Any) -> tuple[Any, Any]:
    """array[start] and array[start + 1], by one load, because loads are what limits narrow tiles. With few registers, once a turn."""
    kind = ir.IntType(64)
    both = e.builder.load(e.builder.bitcast(e.element(e.data(array), start), kind.as_pointer()))
    both.align = 4
    if HOST.vectors() < LANES:
        both = e.not_unrolled(both)
    low, high = e.builder.sext(e.builder.trunc(both, ir.IntType(32)), kind), e.builder.ashr(both, ir.Constant(kind, 32))
    return (low, high) if sys.byteorder == "little" else (high, low)


def _vectors(e: Emitter, pointer: Any, count: int) -> list[Any]:
    """Pointers to so many vectors that follow each other."""
    return [e.builder.gep(pointer, [ir.Constant(ir.IntType(64), v * LANES)], inbounds=True) for v in range(count)]


def _row_pointers(e: Emitter, first: int) -> list[list[Any]]:
    """[row][vector] pointers for the first argument, a tile; the arguments from `first` on are (array, start, index, table, slots)."""
    array, start, table, slots = e.data(first), e.args[first + 1], e.args[first + 3], e.args[first + 4]
    pointers = []
    for row in range(e.types[0].rows):
        place = _sum(e, table, _listed(e, first + 2, slots, row))
        offset = _listed(e, first + 2, place, 0)
        pointers.append(_vectors(e, e.element(array, _sum(e, start, offset)), e.types[0].vectors))
    return pointers


def _slot_pointers(e: Emitter, first: int, rows: int, vectors: int) -> list[list[Any]]:
    """[row][vector] pointers; the arguments from `first` on are (array, start, index, slots)."""
    array, start, slots = e.data(first), e.args[first + 1], e.args[first + 3]
    width = ir.Constant(start.type, vectors * LANES)
    pointers = []
    for row in range(rows):
        offset = e.builder.mul(_listed(e, first + 2, slots, row), width, flags=("nsw",))
        pointers.append(_vectors(e, e.element(array, _sum(e, start, offset)), vectors))
    return pointers


def _rows(start: int, index: NDArray, table: int, slots: int, tile: NDArray) -> NDArray:
    """[rows, width] positions of the numbers of a tile, for twins."""
    first = start + index[table + index[slots : slots + len(tile)]].astype(np.int64)
    return first[:, None] + np.arange(tile[0].size)


def _slots(start: int, index: NDArray, slots: int, rows: int, width: int) -> NDArray:
    """Likewise."""
    return start + index[slots : slots + rows, None].astype(np.int64) * width + np.arange(width)


def _same_rows(e: Emitter) -> Any:
    line = [e.load(pointer) for pointer in _vectors(e, e.element(e.data(0), e.args[1]), e.result.vectors)]
    return e.tile(lambda row, vector: line[vector])


@operation(_same_rows)
def same_rows(array: NDArray, start: int, rows: Size, vectors: Size) -> Tile:
    """tile[r,v] = array[start + v*LANES : + LANES]."""
    return np.tile(array[start : start + vectors * LANES].reshape(1, vectors, LANES), (rows, 1, 1))


def _load_slots(e: Emitter) -> Any:
    pointers = _slot_pointers(e, 0, e.result.rows, e.result.vectors)
    return e.tile(lambda row, vector: e.load(pointers[row][vector]))


@operation(_load_slots)
def load_slots(array: NDArray, start: int, index: NDArray, slots: int, rows: Size, vectors: Size) -> Tile:
    """A tile whose row r begins at array[start + index[slots + r] * vectors * LANES]."""
    return array[_slots(start, index, slots, rows, vectors * LANES)].reshape(rows, vectors, LANES)


def _store_slots(e: Emitter) -> None:
    pointers = _slot_pointers(e, 1, e.types[0].rows, e.types[0].vectors)
    e.store_tile(lambda row, vector: pointers[row][vector])


@operation(_store_slots)
def store_slots(tile: Tile, array: NDArray, start: int, index: NDArray, slots: int) -> None:
    """To where load_slots reads."""
    array[_slots(start, index, slots, len(tile), tile[0].size)] = tile.reshape(len(tile), -1)


def _store_rows(e: Emitter) -> None:
    pointers = _row_pointers(e, 1)
    e.store_tile(lambda row, vector: pointers[row][vector])


@operation(_store_rows)
def store_rows(tile: Tile, array: NDArray, start: int, index: NDArray, table: int, slots: int) -> None:
    """Row r begins at array[start + index[table + index[slots + r]]]."""
    array[_rows(start, index, table, slots, tile)] = tile.reshape(len(tile), -1)


def _add_rows(e: Emitter) -> Any:
    pointers = _row_pointers(e, 1)
    return e.update(lambda row, vector, old: e.builder.fadd(old, e.load(pointers[row][vector])))


@operation(_add_rows)
def add_rows(tile: Tile, array: NDArray, start: int, index: NDArray, table: int, slots: int) -> Tile:
    """tile += what store_rows would overwrite."""
    return tile + array[_rows(start, index, table, slots, tile)].reshape(tile.shape)


def _keep_lanes(e: Emitter) -> Any:
    builder, kind = e.builder, ir.VectorType(ir.IntType(32), LANES)
    other = e.load(e.element(e.data(1), e.args[2]))
    lanes = ir.Constant(kind, [1 << lane for lane in range(LANES)])

    def change(row: int, vector: int, old: Any) -> Any:
        bits = builder.load(e.element(e.data(3), _sum(e, e.args[4], _listed(e, 3, e.args[5], row))))
        first = builder.insert_element(ir.Constant(kind, ir.Undefined), bits, ir.Constant(ir.IntType(32), 0))
        kept = builder.and_(e.shuffle(first, first, [0] * LANES), lanes)
        return builder.select(builder.icmp_signed("!=", kept, ir.Constant(kind, [0] * LANES)), old, other)

    return e.update(change)


@operation(_keep_lanes)
def keep_lanes(tile: Tile, array: NDArray, start: int, index: NDArray, table: int, slots: int) -> Tile:
    """Of tiles of one vector: lane k of row r becomes array[start + k] where bit k of index[table + index[slots + r]] is 0."""
    bits = index[table + index[slots : slots + len(tile)]]
    return np.where(bits[:, None, None] >> np.arange(LANES) & 1, tile, array[start : start + LANES])


def _add(e: Emitter, activation: Callable[[int], Any], line: list[Any]) -> Any:
    """tile[r,v] += activation(r) * line[v]; what a row needs is computed when it is its turn."""
    vectors, value = e.types[0].vectors, e.args[0]
    for row in range(e.types[0].rows):
        factor = activation(row)
        for vector in range(vectors):
            k = row * vectors + vector
            value = e.builder.insert_value(value, e.multiply_add(factor, line[vector], e.builder.extract_value(value, k)), k)
    return value


def _add_entry(e: Emitter, factor: Callable[[Any], Any]) -> Any:
    """Multiply-add of an entry; factor makes the vector that a row is multiplied with from a pointer to its activation."""
    x, x_start, table, slots = e.data(1), e.args[2], e.args[4], e.args[5]
    # LLVM takes what doesn't depend on the tap out of the loop over taps: a pointer for each row stays in a register.
    places = [_listed(e, 3, _sum(e, table, _listed(e, 3, slots, row)), 0) for row in range(e.types[0].rows)]
    offset, weight = _pair(e, 3, e.args[6])

    def activation(row: int) -> Any:
        return factor(e.builder.gep(e.element(x, _sum(e, x_start, places[row])), [offset], inbounds=True))

    return _add(e, activation, [e.load(p) for p in _vectors(e, e.element(e.data(7), _sum(e, e.args[8], weight)), e.types[0].vectors)])


@operation(lambda e: _add_entry(e, e.broadcast))
def add_tap(tile: Tile, x: NDArray, start: int, index: NDArray, table: int, slots: int, entry: int, weights: NDArray, first: int) -> Tile:
    """With (offset, weight) = index[entry : entry + 2]:
    tile[r,v] += x[start + index[table + index[slots + r]] + offset] * weights[first + weight + v*LANES : + LANES]."""
    factors = x[start + index[table + index[slots : slots + len(tile)]].astype(np.int64) + index[entry]]
    weight = first + index[entry + 1]
    return tile + factors[:, None, None] * weights[weight : weight + tile[0].size].reshape(1, -1, LANES)


@operation(lambda e: _add_entry(e, e.load))
def add_channels(
    tile: Tile, x: NDArray, start: int, index: NDArray, table: int, slots: int, entry: int, weights: NDArray, first: int
) -> Tile:
    """As add_tap, for channels in the lanes and tiles of one vector: tile[r,0] += x[... : + LANES] * weights[... : + LANES]."""
    activations, weight = x[_rows(start + index[entry], index, table, slots, tile)], first + index[entry + 1]
    return tile + activations.reshape(tile.shape) * weights[weight : weight + LANES]


def _add_kept(e: Emitter) -> Any:
    builder = e.builder
    offset, weight = _pair(e, 4, e.args[6])
    places = _sum(e, e.args[5], _listed(e, 4, _sum(e, e.args[6], ir.Constant(e.args[6].type, 2)), 0))
    line = [e.load(pointer) for pointer in _vectors(e, e.element(e.data(7), _sum(e, e.args[8], weight)), e.types[0].vectors)]
    patches = builder.gep(e.element(e.data(1), e.args[2]), [offset], inbounds=True)

    def activation(row: int) -> Any:
        place = _listed(e, 4, places, row)
        place = builder.select(builder.icmp_signed("<", place, ir.Constant(place.type, 0)), e.args[3], place)
        return e.broadcast(builder.gep(patches, [place], inbounds=True))

    return _add(e, activation, line)


@operation(_add_kept)
def add_kept(tile: Tile, x: NDArray, start: int, zeros: int, index: NDArray, base: int, entry: int, weights: NDArray, first: int) -> Tile:
    """With (offset, weight, places) = index[entry : entry + 3], place = index[base + places + r], or zeros where that is negative:
    tile[r,v] += x[start + place + offset] * weights[first + weight + v*LANES : + LANES]."""
    rows = base + index[entry + 2]
    places = index[rows : rows + len(tile)].astype(np.int64)
    factors, weight = x[start + np.where(places < 0, zeros, places) + index[entry]], first + index[entry + 1]
    return tile + factors[:, None, None] * weights[weight : weight + tile[0].size].reshape(1, -1, LANES)


def _prefetch(e: Emitter) -> None:
    pointer = e.builder.bitcast(e.builder.gep(e.data(0), [e.args[1]]), ir.IntType(8).as_pointer())
    # To read, into the first-level cache, data.
    e.call("llvm.prefetch.p0", ir.VoidType(), [pointer, *(ir.Constant(ir.IntType(32), value) for value in (0, 3, 1))])


@operation(_prefetch)
def prefetch(array: NDArray, start: int) -> None:
    """Hint that the cache line of this position, which may lie outside the array, will be read."""
