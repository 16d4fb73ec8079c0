"""The type of a register tile, for Numba kernels with explicit SIMD vectors, and what writes its LLVM instructions.

A tile holds rows x vectors vectors of LANES float32 numbers; its size is part of its Numba type. LLVM fits vectors to the CPU: one
register a vector with AVX-512, two with AVX2, four with NEON. Importing this module imports Numba, and nothing else that is heavy.
"""

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import models, register_model

LANES = 16
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
