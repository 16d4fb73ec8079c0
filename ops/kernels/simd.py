"""Operations on register tiles that only these kernels and the ranking need, declared as those of ops/simd/ are."""

from functools import reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..numba_door import ir
from ..simd.declare import LANES, VECTOR, Emitter, Size, Tile, operation, twin_of
from ..simd.tiles import lines, row_numbers, tile_load

_rows = twin_of(tile_load)


def _store_first(e: Emitter) -> None:
    count = e.args[3]
    lane = ir.VectorType(count.type, LANES)
    first = e.builder.insert_element(ir.Constant(lane, ir.Undefined), count, ir.Constant(ir.IntType(32), 0))
    counts = e.shuffle(first, ir.Constant(lane, ir.Undefined), [0] * LANES)
    chosen = e.builder.icmp_signed("<", ir.Constant(lane, list(range(LANES))), counts)
    pointer = e.builder.bitcast(e.element(e.data(1), e.args[2]), VECTOR.as_pointer())
    e.call(f"llvm.masked.store.v{LANES}f32.p0", ir.VoidType(), [e.vector(0, 0), pointer, ir.Constant(ir.IntType(32), 4), chosen])


@operation(_store_first)
def tile_store_first(tile: Tile, array: NDArray, start: int, count: int) -> None:
    """The first numbers of a tile of one vector."""
    array[start : start + count] = tile[0, 0, :count]


def _add_outer(e: Emitter) -> Any:
    tile, scales, data = e.types[0], e.data(1), e.data(6)
    shared = [e.load(e.element(data, e.args[7], (vector, e.lanes(7)))) for vector in range(tile.vectors)]
    factors = []
    for row in range(tile.rows):
        line, column = divmod(row, e.size(3))
        factors.append(e.broadcast(e.element(scales, e.args[2], (line, e.args[4]), (column, e.args[5]))))
    return e.update(lambda row, vector, old: e.multiply_add(factors[row], shared[vector], old))


@operation(_add_outer)
def tile_add_outer(
    tile: Tile, scales: NDArray, scale: int, columns: Size, scale_stride: int, scale_column: int, array: NDArray, start: int
) -> Tile:
    """tile[r,v] += scales[scale + r//columns*scale_stride + r%columns*scale_column] * array[start + v*LANES : + LANES]."""
    factors = [scales[scale + row // columns * scale_stride + row % columns * scale_column] for row in range(len(tile))]
    return tile + np.array(factors, np.float32)[:, None, None] * lines(array, start, LANES, tile.shape[1])


def _add_scaled_tile(e: Emitter) -> Any:
    factors = e.row_factors(1, e.types[0].rows)
    return e.update(lambda row, vector, old: e.multiply_add(factors[row], e.vector(row, vector, tile=4), old))


@operation(_add_scaled_tile)
def tile_add_scaled_tile(tile: Tile, scales: NDArray, scale: int, scale_stride: int, other: Tile) -> Tile:
    """tile[r,v] += scales[scale + r*scale_stride] * other[r,v]."""
    return tile + row_numbers(scales, scale, scale_stride, len(tile)) * other


@operation(lambda e: e.update(lambda row, vector, old: e.builder.fadd(old, e.load(e.place(1, row, vector)))))
def tile_add(tile: Tile, array: NDArray, start: int, row_stride: int) -> Tile:
    """tile[r,v] += array[start + r*row_stride + v*LANES : + LANES]."""
    return tile + _rows(array, start, row_stride, *tile.shape[:2])


def _limits(e: Emitter, array: int) -> list[Any]:
    """A vector for each vector of a row of the tile, from the start of an array."""
    return [e.load(e.element(e.data(array), ir.Constant(ir.IntType(64), v * LANES))) for v in range(e.types[0].vectors)]


def _reached(tile: NDArray, array: NDArray, start: int, row_stride: int, limits: NDArray) -> NDArray:
    return _rows(array, start, row_stride, *tile.shape[:2]) >= lines(limits, 0, LANES, tile.shape[1])


def _count(e: Emitter) -> Any:
    bounds, one = _limits(e, 4), ir.Constant(VECTOR, [1.0] * LANES)

    def change(row: int, vector: int, old: Any) -> Any:
        reached = e.builder.fcmp_ordered(">=", e.load(e.place(1, row, vector)), bounds[vector])
        return e.builder.select(reached, e.builder.fadd(old, one), old)

    return e.update(change)


@operation(_count)
def tile_count(tile: Tile, array: NDArray, start: int, row_stride: int, limits: NDArray) -> Tile:
    """tile[r,v] += 1 where array[start + r*row_stride + v*LANES : + LANES] is at least limits[v*LANES : + LANES]."""
    return tile + _reached(tile, array, start, row_stride, limits).astype(np.float32)


def _where(e: Emitter) -> Any:
    bounds = _limits(e, 4)

    def change(row: int, vector: int, old: Any) -> Any:
        reached = e.builder.fcmp_ordered(">=", e.load(e.place(1, row, vector)), bounds[vector])
        return e.builder.select(reached, old, e.vector(row, vector, tile=5))

    return e.update(change)


@operation(_where)
def tile_where(tile: Tile, array: NDArray, start: int, row_stride: int, limits: NDArray, other: Tile) -> Tile:
    """tile[r,v] where tile_count would count, elsewhere other[r,v]."""
    return np.where(_reached(tile, array, start, row_stride, limits), tile, other)


_BYTES = ir.VectorType(ir.IntType(8), LANES)


def _load_bytes(e: Emitter) -> Any:
    pointer = e.builder.bitcast(e.element(e.data(0), e.args[1]), _BYTES.as_pointer())
    return e.tile(lambda row, vector: e.builder.uitofp(e.builder.load(pointer, align=1), VECTOR))


@operation(_load_bytes)
def tile_load_bytes(array: NDArray, start: int) -> Tile:
    """LANES numbers of an array of uint8, as a tile of one vector."""
    return array[None, None, start : start + LANES].astype(np.float32)


def _store_bytes(e: Emitter) -> None:
    for k in range(e.types[0].rows * e.types[0].vectors):
        pointer = e.element(e.data(1), e.args[2], (k, e.lanes(2)))
        values = e.builder.fptoui(e.builder.extract_value(e.args[0], k), _BYTES)
        e.builder.store(values, e.builder.bitcast(pointer, _BYTES.as_pointer())).align = 1


@operation(_store_bytes)
def tile_store_bytes(tile: Tile, array: NDArray, start: int) -> None:
    """A tile of numbers from 0 to 255 in an array of uint8, vector after vector."""
    array[start : start + tile.size] = tile.reshape(-1)


def _add_gathered(e: Emitter) -> Any:
    tile, a, b, offsets = e.types[0], e.data(1), e.data(3), e.data(5)
    left = [e.load(e.element(a, e.args[2], (row, e.lanes(2)))) for row in range(tile.rows)]
    starts = []
    for vector in range(tile.vectors):
        offset = e.builder.sext(e.builder.load(e.element(offsets, e.args[6], (vector, e.lanes(6, 1)))), e.args[4].type)
        starts.append(e.builder.add(e.args[4], offset, flags=("nsw",)))
    return e.update(lambda row, vector, old: e.multiply_add(left[row], e.load(e.element(b, starts[vector], (row, e.lanes(2)))), old))


@operation(_add_gathered)
def tile_add_gathered(tile: Tile, a: NDArray, a_start: int, b: NDArray, b_start: int, offsets: NDArray, first: int) -> Tile:
    """tile[r,v] += a[a_start + r*LANES : + LANES] * b[b_start + offsets[first + v] + r*LANES : + LANES]; offsets: int32."""
    left = lines(a, a_start, LANES, len(tile))
    right = [lines(b, b_start + offset, LANES, len(tile)) for offset in offsets[first : first + tile.shape[1]]]
    return tile + left[:, None] * np.stack(right, 1)


def _column(e: Emitter, vector: int) -> Any:
    """Sum over the rows."""
    return reduce(e.builder.fadd, [e.vector(row, vector) for row in range(e.types[0].rows)])


def _row_sums(e: Emitter) -> None:
    for vector in range(e.types[0].vectors):
        e.store(_column(e, vector), e.element(e.data(1), e.args[2], (vector, e.lanes(2))))


@operation(_row_sums)
def tile_row_sums(tile: Tile, out: NDArray, start: int) -> None:
    """out[start + v*LANES : + LANES] = sum over the rows of tile[:,v]."""
    out[start : start + tile[0].size] = tile.sum(0).reshape(-1)


def _column_sums(e: Emitter) -> None:
    for vector in range(e.types[0].vectors):
        arguments = [ir.Constant(ir.FloatType(), -0.0), _column(e, vector)]
        total = e.call(f"llvm.vector.reduce.fadd.v{LANES}f32", ir.FloatType(), arguments, fastmath=("reassoc",))
        e.builder.store(total, e.element(e.data(1), e.args[2], (vector, e.lanes(2, 1))))


@operation(_column_sums)
def tile_column_sums(tile: Tile, out: NDArray, start: int) -> None:
    """out[start + v] = sum over the rows and lanes of tile[:,v]."""
    out[start : start + tile.shape[1]] = tile.sum((0, 2))


def _halve(e: Emitter) -> Any:
    builder, kind = e.builder, ir.VectorType(ir.IntType(32), LANES)
    one = ir.Constant(kind, [1] * LANES)
    pointers = [builder.bitcast(e.data(k), kind.as_pointer()) for k in range(3)]
    below, above, tried = (builder.load(pointer, align=4) for pointer in pointers)
    count, aim = e.load(e.data(3)), e.load(e.data(4))
    reached = builder.fcmp_ordered(">=", count, aim)
    below, above = builder.select(reached, tried, below), builder.select(reached, above, tried)
    above = builder.select(builder.fcmp_ordered("==", count, aim), builder.add(tried, one), above)
    width = builder.sub(above, below)
    for value, pointer in zip((below, above, builder.add(below, builder.lshr(width, one))), pointers, strict=True):
        builder.store(value, pointer, align=4)
    is_open = builder.bitcast(builder.icmp_signed(">", width, one), ir.IntType(LANES))
    return builder.icmp_unsigned("!=", is_open, ir.Constant(ir.IntType(LANES), 0))


@operation(_halve)
def halve(low: NDArray, high: NDArray, middle: NDArray, counts: NDArray, wanted: NDArray) -> bool:
    """One step of LANES bisections of int32 numbers for the largest that at least `wanted` things reach, as `counts` of them reach middle.

    Narrows low..high, at once to low, low+1 where the count is as wanted, and sets the next middle; whether any lane is open.
    counts and wanted are float32.
    """
    reached, exact = counts >= wanted, counts == wanted
    low[:], high[:] = np.where(reached, middle, low), np.where(exact, middle + 1, np.where(reached, high, middle))
    middle[:] = low + (high - low) // 2
    return bool((high - low > 1).any())
