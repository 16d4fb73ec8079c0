"""Operations on the register tiles of ops/simd.py that only these kernels need, with what holds of all of them there.

With NUMBA_DISABLE_JIT=1 the same names stand for numpy twins, so that kernels also run, and are tested, uncompiled.
"""

from functools import reduce
from typing import Any

from llvmlite import ir
from numba import config, types
from numba.core import cgutils
from numba.extending import intrinsic

from ..simd import LANES, VECTOR, Emitter, Tile, row_factors
from . import twins


def _line(e: Emitter, array: int, row: int, vector: int) -> Any:
    """Pointer to a vector of rows of memory; the arguments from `array` on are (array, start, row_stride)."""
    start, stride = e.args[array + 1 : array + 3]
    return e.element(e.data(array), start, (row, stride), (vector, ir.Constant(start.type, LANES)))


def _limits(e: Emitter, array: int, tile: Tile) -> list[Any]:
    """A vector for each vector of a row of the tile, from the start of an array."""
    position = ir.IntType(64)
    return [e.load(e.element(e.data(array), ir.Constant(position, v * LANES))) for v in range(tile.vectors)]


@intrinsic
def _tile_store_first(typing: Any, tile: Any, array: Any, start: Any, count: Any) -> Any:
    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        e = Emitter(context, builder, signature, args)
        lane, kept = ir.VectorType(args[3].type, LANES), ir.VectorType(ir.IntType(1), LANES)
        first = builder.insert_element(ir.Constant(lane, ir.Undefined), args[3], ir.Constant(ir.IntType(32), 0))
        counts = builder.shuffle_vector(
            first, ir.Constant(lane, ir.Undefined), ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
        )
        chosen = builder.icmp_signed("<", ir.Constant(lane, list(range(LANES))), counts)
        pointer = builder.bitcast(e.element(e.data(1), args[2]), VECTOR.as_pointer())
        kind = ir.FunctionType(ir.VoidType(), [VECTOR, pointer.type, ir.IntType(32), kept])
        store = cgutils.get_or_insert_function(builder.module, kind, f"llvm.masked.store.v{LANES}f32.p0")
        builder.call(store, [builder.extract_value(args[0], 0), pointer, ir.Constant(ir.IntType(32), 4), chosen])
        return context.get_dummy_value()

    return types.void(tile, array, types.intp, types.intp), emit


@intrinsic(prefer_literal=True)
def _tile_add_outer(
    typing: Any, tile: Any, scales: Any, scale: Any, columns: Any, scale_stride: Any, scale_column: Any, array: Any, start: Any
) -> Any:
    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        e = Emitter(context, builder, signature, args)
        scale_data, data, lanes = e.data(1), e.data(6), ir.Constant(args[7].type, LANES)
        shared = [e.load(e.element(data, args[7], (vector, lanes))) for vector in range(tile.vectors)]
        factors = []
        for row in range(tile.rows):
            line, column = divmod(row, columns.literal_value)
            factors.append(e.broadcast(e.element(scale_data, args[2], (line, args[4]), (column, args[5]))))
        return e.update(tile, args[0], lambda row, vector, old: e.multiply_add(factors[row], shared[vector], old))

    return tile(tile, scales, types.intp, columns, types.intp, types.intp, array, types.intp), emit


@intrinsic
def _tile_add_scaled_tile(typing: Any, tile: Any, scales: Any, scale: Any, scale_stride: Any, other: Any) -> Any:
    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        e = Emitter(context, builder, signature, args)
        factors = row_factors(e, 1, tile)

        def change(row: int, vector: int, old: Any) -> Any:
            return e.multiply_add(factors[row], builder.extract_value(args[4], row * tile.vectors + vector), old)

        return e.update(tile, args[0], change)

    return tile(tile, scales, types.intp, types.intp, tile), emit


@intrinsic
def _tile_add(typing: Any, tile: Any, array: Any, start: Any, row_stride: Any) -> Any:
    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        e = Emitter(context, builder, signature, args)
        return e.update(tile, args[0], lambda row, vector, old: builder.fadd(old, e.load(_line(e, 1, row, vector))))

    return tile(tile, array, types.intp, types.intp), emit


@intrinsic
def _tile_count(typing: Any, tile: Any, array: Any, start: Any, row_stride: Any, limits: Any) -> Any:
    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        e = Emitter(context, builder, signature, args)
        bounds = _limits(e, 4, tile)
        one = ir.Constant(VECTOR, [1.0] * LANES)

        def change(row: int, vector: int, old: Any) -> Any:
            reached = builder.fcmp_ordered(">=", e.load(_line(e, 1, row, vector)), bounds[vector])
            return builder.select(reached, builder.fadd(old, one), old)

        return e.update(tile, args[0], change)

    return tile(tile, array, types.intp, types.intp, limits), emit


@intrinsic
def _tile_where(typing: Any, tile: Any, array: Any, start: Any, row_stride: Any, limits: Any, other: Any) -> Any:
    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        e = Emitter(context, builder, signature, args)
        bounds = _limits(e, 4, tile)

        def change(row: int, vector: int, old: Any) -> Any:
            reached = builder.fcmp_ordered(">=", e.load(_line(e, 1, row, vector)), bounds[vector])
            return builder.select(reached, old, builder.extract_value(args[5], row * tile.vectors + vector))

        return e.update(tile, args[0], change)

    return tile(tile, array, types.intp, types.intp, limits, tile), emit


@intrinsic
def _tile_load_bytes(typing: Any, array: Any, start: Any) -> Any:
    tile = Tile(1, 1)

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        e = Emitter(context, builder, signature, args)
        pointer = builder.bitcast(e.element(e.data(0), args[1]), ir.VectorType(ir.IntType(8), LANES).as_pointer())
        values = builder.uitofp(builder.load(pointer, align=1), VECTOR)
        return builder.insert_value(ir.Constant(context.get_value_type(tile), ir.Undefined), values, 0)

    return tile(array, types.intp), emit


@intrinsic
def _tile_store_bytes(typing: Any, tile: Any, array: Any, start: Any) -> Any:
    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        e = Emitter(context, builder, signature, args)
        kind = ir.VectorType(ir.IntType(8), LANES)
        for k in range(tile.rows * tile.vectors):
            pointer = e.element(e.data(1), args[2], (k, ir.Constant(args[2].type, LANES)))
            values = builder.fptoui(builder.extract_value(args[0], k), kind)
            builder.store(values, builder.bitcast(pointer, kind.as_pointer())).align = 1
        return context.get_dummy_value()

    return types.void(tile, array, types.intp), emit


@intrinsic
def _tile_add_gathered(typing: Any, tile: Any, a: Any, a_start: Any, b: Any, b_start: Any, offsets: Any, first: Any) -> Any:
    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        e = Emitter(context, builder, signature, args)
        a_data, b_data, offset_data = e.data(1), e.data(3), e.data(5)
        one, lanes = ir.Constant(args[2].type, 1), ir.Constant(args[2].type, LANES)
        left = [e.load(e.element(a_data, args[2], (row, lanes))) for row in range(tile.rows)]
        starts = []
        for vector in range(tile.vectors):
            offset = builder.sext(builder.load(e.element(offset_data, args[6], (vector, one))), args[4].type)
            starts.append(builder.add(args[4], offset, flags=("nsw",)))
        return e.update(
            tile,
            args[0],
            lambda row, vector, old: e.multiply_add(left[row], e.load(e.element(b_data, starts[vector], (row, lanes))), old),
        )

    return tile(tile, a, types.intp, b, types.intp, offsets, types.intp), emit


@intrinsic
def _tile_row_sums(typing: Any, tile: Any, out: Any, start: Any) -> Any:
    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        e = Emitter(context, builder, signature, args)
        for vector in range(tile.vectors):
            rows = [builder.extract_value(args[0], row * tile.vectors + vector) for row in range(tile.rows)]
            e.store(reduce(builder.fadd, rows), e.element(e.data(1), args[2], (vector, ir.Constant(args[2].type, LANES))))
        return context.get_dummy_value()

    return types.void(tile, out, types.intp), emit


@intrinsic
def _tile_column_sums(typing: Any, tile: Any, out: Any, start: Any) -> Any:
    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        e = Emitter(context, builder, signature, args)
        data, one = e.data(1), ir.Constant(args[2].type, 1)
        for vector in range(tile.vectors):
            column = [builder.extract_value(args[0], row * tile.vectors + vector) for row in range(tile.rows)]
            builder.store(e.lane_sum(reduce(builder.fadd, column)), e.element(data, args[2], (vector, one)))
        return context.get_dummy_value()

    return types.void(tile, out, types.intp), emit


@intrinsic
def _halve(typing: Any, low: Any, high: Any, middle: Any, counts: Any, wanted: Any) -> Any:
    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        e = Emitter(context, builder, signature, args)
        kind = ir.VectorType(ir.IntType(32), LANES)
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

    return types.boolean(low, high, middle, counts, wanted), emit


tile_store_first = twins.tile_store_first if config.DISABLE_JIT else _tile_store_first
"""tile_store_first(tile, array, start, count): the first numbers of a tile of one vector."""
tile_add_outer = twins.tile_add_outer if config.DISABLE_JIT else _tile_add_outer
"""tile_add_outer(tile, scales, scale, columns, scale_stride, scale_column, array, start):
tile[r,v] += scales[scale + r//columns*scale_stride + r%columns*scale_column] * array[start + v*LANES : + LANES]."""
tile_add_scaled_tile = twins.tile_add_scaled_tile if config.DISABLE_JIT else _tile_add_scaled_tile
"""tile_add_scaled_tile(tile, scales, scale, scale_stride, other): tile[r,v] += scales[scale + r*scale_stride] * other[r,v]."""
tile_add = twins.tile_add if config.DISABLE_JIT else _tile_add
"""tile_add(tile, array, start, row_stride): tile[r,v] += array[start + r*row_stride + v*LANES : + LANES]."""
tile_count = twins.tile_count if config.DISABLE_JIT else _tile_count
"""tile_count(tile, array, start, row_stride, limits): tile[r,v] += 1 where those numbers are at least limits[v*LANES : + LANES]."""
tile_where = twins.tile_where if config.DISABLE_JIT else _tile_where
"""tile_where(tile, array, start, row_stride, limits, other): tile[r,v] where those numbers reach their limits, elsewhere other[r,v]."""
tile_load_bytes = twins.tile_load_bytes if config.DISABLE_JIT else _tile_load_bytes
"""tile_load_bytes(array, start): LANES numbers of an array of uint8, as a tile of one vector."""
tile_store_bytes = twins.tile_store_bytes if config.DISABLE_JIT else _tile_store_bytes
"""tile_store_bytes(tile, array, start): a tile of numbers from 0 to 255 in an array of uint8, vector after vector."""
tile_add_gathered = twins.tile_add_gathered if config.DISABLE_JIT else _tile_add_gathered
"""tile_add_gathered(tile, a, a_start, b, b_start, offsets, first):
tile[r,v] += a[a_start + r*LANES : + LANES] * b[b_start + offsets[first + v] + r*LANES : + LANES]."""
tile_column_sums = twins.tile_column_sums if config.DISABLE_JIT else _tile_column_sums
"""tile_column_sums(tile, out, start): out[start + v] = sum over the rows and lanes of tile[:,v]."""
halve = twins.halve if config.DISABLE_JIT else _halve
"""halve(low, high, middle, counts, wanted): one step of LANES bisections of int32 numbers for the largest that at least `wanted` things
reach, as `counts` of them reach middle. Narrows low..high, at once to low, low+1 where the count is as wanted, and sets the next middle;
whether any lane is open. counts and wanted are float32."""
tile_row_sums = twins.tile_row_sums if config.DISABLE_JIT else _tile_row_sums
"""tile_row_sums(tile, out, start): out[start + v*LANES : + LANES] = sum over the rows of tile[:,v]."""
