"""Register tiles for Numba kernels with explicit SIMD vectors: their type, the operations that all kernels share, and what writes the
LLVM instructions of these and of others.

A tile holds rows x vectors vectors of LANES float32 numbers; its size is part of its Numba type. LLVM fits vectors to the CPU: one
register a vector with AVX-512, two with AVX2, four with NEON. Importing this module imports Numba, and nothing else that is heavy.

Arrays are one-dimensional, contiguous and float32 (`at`: any type). A position counts elements and is not checked. With NUMBA_DISABLE_JIT=1
the operations are their numpy twins.
"""

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from numba import config, types
from numba.core import cgutils
from numba.extending import intrinsic, models, register_model

from . import simd_twins as twins
from .simd_twins import LANES

VECTOR = ir.VectorType(ir.FloatType(), LANES)
UNDEFINED = ir.Constant(VECTOR, ir.Undefined)


class Tile(types.Type):
    """Numba type of a tile."""

    def __init__(self, rows: int, vectors: int) -> None:
        self.rows, self.vectors = rows, vectors
        super().__init__(name=f"Tile({rows}, {vectors})")


@register_model(Tile)
class _TileModel(models.PrimitiveModel):
    def __init__(self, manager: Any, tile: Tile) -> None:
        # LLVM splits an array value that is only indexed by constants into its elements: every vector gets a register.
        super().__init__(manager, tile, ir.ArrayType(VECTOR, tile.rows * tile.vectors))


class Emitter:
    """Writes the LLVM instructions of one intrinsic's call."""

    def __init__(self, context: Any, builder: Any, signature: Any, args: Sequence[Any]) -> None:
        self.context, self.builder, self.types, self.args = context, builder, signature.args, args

    def data(self, argument: int) -> Any:
        return self.context.make_array(self.types[argument])(self.context, self.builder, self.args[argument]).data

    def element(self, data: Any, start: Any, *steps: tuple[int, Any]) -> Any:
        """Pointer to data[start + sum of count * stride]."""
        for count, stride in steps:
            if count:
                start = self.builder.add(start, self.builder.mul(stride, ir.Constant(stride.type, count), flags=("nsw",)), flags=("nsw",))
        return self.builder.gep(data, [start], inbounds=True)

    def load(self, pointer: Any) -> Any:
        vector = self.builder.load(self.builder.bitcast(pointer, VECTOR.as_pointer()))
        vector.align = 4
        return vector

    def store(self, vector: Any, pointer: Any) -> None:
        self.builder.store(vector, self.builder.bitcast(pointer, VECTOR.as_pointer())).align = 4

    def broadcast(self, pointer: Any) -> Any:
        first = self.builder.insert_element(UNDEFINED, self.builder.load(pointer), ir.Constant(ir.IntType(32), 0))
        return self.shuffle(first, UNDEFINED, [0] * LANES)

    def shuffle(self, low: Any, high: Any, lanes: Sequence[int]) -> Any:
        return self.builder.shuffle_vector(low, high, ir.Constant(ir.VectorType(ir.IntType(32), LANES), list(lanes)))

    def multiply_add(self, a: Any, b: Any, c: Any) -> Any:
        kind = ir.FunctionType(VECTOR, [VECTOR] * 3)
        return self.builder.call(cgutils.get_or_insert_function(self.builder.module, kind, f"llvm.fma.v{LANES}f32"), [a, b, c])

    def lane_sum(self, vector: Any) -> Any:
        kind = ir.FunctionType(ir.FloatType(), [ir.FloatType(), VECTOR])
        function = cgutils.get_or_insert_function(self.builder.module, kind, f"llvm.vector.reduce.fadd.v{LANES}f32")
        return self.builder.call(function, [ir.Constant(ir.FloatType(), -0.0), vector], fastmath=("reassoc",))

    def update(self, tile: Tile, value: Any, change: Callable[[int, int, Any], Any]) -> Any:
        for row in range(tile.rows):
            for vector in range(tile.vectors):
                k = row * tile.vectors + vector
                value = self.builder.insert_value(value, change(row, vector, self.builder.extract_value(value, k)), k)
        return value


def row_factors(e: Emitter, array: int, tile: Tile) -> list[Any]:
    """A broadcast scalar for each row of the tile; the arguments from `array` on are (array, start, stride)."""
    start, stride = e.args[array + 1 : array + 3]
    return [e.broadcast(e.element(e.data(array), start, (row, stride))) for row in range(tile.rows)]


@intrinsic
def _at(typing: Any, array: Any, position: Any) -> Any:
    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        e = Emitter(context, builder, signature, args)
        return builder.load(e.element(e.data(0), args[1]))

    return array.dtype(array, types.intp), emit


@intrinsic(prefer_literal=True)
def _tile_zeros(typing: Any, rows: Any, vectors: Any) -> Any:
    tile = Tile(rows.literal_value, vectors.literal_value)

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return ir.Constant(context.get_value_type(tile), None)

    return tile(rows, vectors), emit


@intrinsic(prefer_literal=True)
def _tile_load(typing: Any, array: Any, start: Any, row_stride: Any, rows: Any, vectors: Any) -> Any:
    tile = Tile(rows.literal_value, vectors.literal_value)

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        e = Emitter(context, builder, signature, args)
        data, lanes = e.data(0), ir.Constant(args[1].type, LANES)
        empty = ir.Constant(context.get_value_type(tile), ir.Undefined)
        return e.update(tile, empty, lambda row, vector, _: e.load(e.element(data, args[1], (row, args[2]), (vector, lanes))))

    return tile(array, types.intp, types.intp, rows, vectors), emit


@intrinsic
def _tile_store(typing: Any, tile: Any, array: Any, start: Any, row_stride: Any) -> Any:
    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        e = Emitter(context, builder, signature, args)
        data, lanes = e.data(1), ir.Constant(args[2].type, LANES)
        for k in range(tile.rows * tile.vectors):
            row, vector = divmod(k, tile.vectors)
            e.store(builder.extract_value(args[0], k), e.element(data, args[2], (row, args[3]), (vector, lanes)))
        return context.get_dummy_value()

    return types.void(tile, array, types.intp, types.intp), emit


@intrinsic
def _tile_add_scaled(typing: Any, tile: Any, scales: Any, scale: Any, scale_stride: Any, array: Any, start: Any) -> Any:
    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        e = Emitter(context, builder, signature, args)
        data, lanes = e.data(4), ir.Constant(args[5].type, LANES)
        factors = row_factors(e, 1, tile)
        shared = [e.load(e.element(data, args[5], (vector, lanes))) for vector in range(tile.vectors)]
        return e.update(tile, args[0], lambda row, vector, old: e.multiply_add(factors[row], shared[vector], old))

    return tile(tile, scales, types.intp, types.intp, array, types.intp), emit


@intrinsic
def _transpose(typing: Any, source: Any, start: Any, stride: Any, out: Any, out_start: Any, out_stride: Any) -> Any:
    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        e = Emitter(context, builder, signature, args)
        source_data, data = e.data(0), e.data(3)
        rows = [e.load(e.element(source_data, args[1], (row, args[2]))) for row in range(LANES)]
        for row, vector in enumerate(transposed(e, rows)):
            e.store(vector, e.element(data, args[4], (row, args[5])))
        return context.get_dummy_value()

    return types.void(source, types.intp, types.intp, out, types.intp, types.intp), emit


def transposed(e: Emitter, rows: list[Any]) -> list[Any]:
    """The columns of a matrix, from its rows: swap the off-diagonal halves of ever smaller squares."""
    size = LANES // 2
    while size:
        low = [lane + (LANES - size if lane & size else 0) for lane in range(LANES)]
        high = [lane + (LANES if lane & size else size) for lane in range(LANES)]
        swapped = list(rows)
        for row in range(LANES):
            if not row & size:
                swapped[row] = e.shuffle(rows[row], rows[row + size], low)
                swapped[row + size] = e.shuffle(rows[row], rows[row + size], high)
        rows, size = swapped, size // 2
    return rows


at = twins.at if config.DISABLE_JIT else _at
"""at(array, position): array[position], where a negative position does not count from the end (which costs three instructions)."""
tile_zeros = twins.tile_zeros if config.DISABLE_JIT else _tile_zeros
"""tile_zeros(rows, vectors)"""
tile_load = twins.tile_load if config.DISABLE_JIT else _tile_load
"""tile_load(array, start, row_stride, rows, vectors): the vectors of a row follow each other."""
tile_store = twins.tile_store if config.DISABLE_JIT else _tile_store
"""tile_store(tile, array, start, row_stride)"""
tile_add_scaled = twins.tile_add_scaled if config.DISABLE_JIT else _tile_add_scaled
"""tile_add_scaled(tile, scales, scale, scale_stride, array, start):
tile[r,v] += scales[scale + r*scale_stride] * array[start + v*LANES : + LANES]."""
transpose = twins.transpose if config.DISABLE_JIT else _transpose
"""transpose(source, start, stride, out, out_start, out_stride): LANES rows of LANES numbers, transposed."""
