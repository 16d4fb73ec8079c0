"""How an operation of the kernels is declared: as a function, its numpy twin, decorated with what it compiles to.

    @operation(lambda e: e.update(lambda row, vector, old: e.builder.fadd(old, old)))
    def doubled(tile: Tile) -> Tile:
        '''tile + tile'''
        return tile + tile

In compiled code a call becomes the LLVM instructions that the emitter writes, in the middle of the caller's. With NUMBA_DISABLE_JIT=1 the
name stands for the twin, so that kernels also run, and are tested, uncompiled; tests compare the two.

The annotations are the types: `Size` is a constant of the source, `int` a position or number of 64 bits, a `Float` is a float32; a `Tile`
that is returned is of the size of the first one given, else of the sizes `rows` and `vectors`, one of each where there is none. All else
is taken as it comes: arrays are one-dimensional and contiguous, of float32 unless said. A position counts elements and is not checked.
Where references to arrays shall not be counted, which takes longer than to load some vectors, kernels pass pointers (`tiles.pointer`).
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Annotated, Any, TypeVar

import numpy as np
from numba import config, types
from numpy.typing import NDArray

from .. import numba_door
from ..numba_door import ir

LANES = 16
"""Numbers of a vector. LLVM fits vectors to the CPU: one register a vector with AVX-512, two with AVX2, four with NEON."""

VECTOR = ir.VectorType(ir.FloatType(), LANES)
UNDEFINED = ir.Constant(VECTOR, ir.Undefined)

Tile = Annotated[NDArray[np.float32], "[rows, vectors, LANES]"]
"""A register tile: rows x vectors vectors of LANES float32 numbers."""
Size = Annotated[int, "constant"]
"""A number that is part of the compiled code."""

Float = float | np.float32

F = TypeVar("F", bound=Callable[..., Any])


# LLVM splits an array value that is only indexed by constants into its elements: every vector gets a register.
@numba_door.registered(lambda tile: ir.ArrayType(VECTOR, tile.rows * tile.vectors))
class TileType(types.Type):
    """Numba type of a tile; its size is part of it."""

    def __init__(self, rows: int, vectors: int) -> None:
        self.rows, self.vectors = rows, vectors
        super().__init__(name=f"Tile({rows}, {vectors})")


class Emitter:
    """Writes the LLVM instructions of a call: `args` are the values of its arguments, `types` their Numba types, `result` its own."""

    def __init__(self, context: Any, builder: Any, signature: Any, args: Sequence[Any]) -> None:
        self.context, self.builder, self.types, self.args = context, builder, signature.args, args
        self.result, self._data = signature.return_type, dict[int, Any]()

    def size(self, argument: int) -> int:
        """Value of an argument that is a `Size`."""
        return int(self.types[argument].literal_value)

    def lanes(self, argument: int, count: int = LANES) -> Any:
        """So many elements, as a number of the type of an argument."""
        return ir.Constant(self.args[argument].type, count)

    def data(self, argument: int) -> Any:
        """Pointer to the first element of an array, or what was given as one."""
        if argument not in self._data:
            kind, value = self.types[argument], self.args[argument]
            pointer = value if isinstance(kind, types.CPointer) else numba_door.array_data(self.context, self.builder, kind, value)
            self._data[argument] = pointer
        return self._data[argument]

    def element(self, data: Any, start: Any, *steps: tuple[int, Any]) -> Any:
        """Pointer to data[start + sum of count * stride]."""
        for count, stride in steps:
            if count:
                start = self.builder.add(start, self.builder.mul(stride, ir.Constant(stride.type, count), flags=("nsw",)), flags=("nsw",))
        return self.builder.gep(data, [start], inbounds=True)

    def place(self, array: int, row: int, vector: int) -> Any:
        """Pointer to a vector of rows of memory; the arguments from `array` on are (array, start, row_stride)."""
        start, stride = self.args[array + 1 : array + 3]
        return self.element(self.data(array), start, (row, stride), (vector, self.lanes(array + 1)))

    def load(self, pointer: Any) -> Any:
        vector = self.builder.load(self.builder.bitcast(pointer, VECTOR.as_pointer()))
        vector.align = 4
        return vector

    def store(self, vector: Any, pointer: Any) -> None:
        self.builder.store(vector, self.builder.bitcast(pointer, VECTOR.as_pointer())).align = 4

    def splat(self, value: Any) -> Any:
        """A number in all lanes."""
        first = self.builder.insert_element(UNDEFINED, value, ir.Constant(ir.IntType(32), 0))
        return self.shuffle(first, UNDEFINED, [0] * LANES)

    def broadcast(self, pointer: Any) -> Any:
        """The number at a pointer in all lanes."""
        return self.splat(self.builder.load(pointer))

    def row_factors(self, array: int, rows: int) -> list[Any]:
        """A number in all lanes for each row; the arguments from `array` on are (array, start, stride)."""
        start, stride = self.args[array + 1 : array + 3]
        return [self.broadcast(self.element(self.data(array), start, (row, stride))) for row in range(rows)]

    def shuffle(self, low: Any, high: Any, lanes: Sequence[int]) -> Any:
        return self.builder.shuffle_vector(low, high, ir.Constant(ir.VectorType(ir.IntType(32), len(lanes)), list(lanes)))

    def multiply_add(self, a: Any, b: Any, c: Any) -> Any:
        return self.call(f"llvm.fma.v{LANES}f32", VECTOR, [a, b, c])

    def call(self, name: str, result: Any, arguments: Sequence[Any], **options: Any) -> Any:
        """Of a function of LLVM or the C library."""
        function = numba_door.declared(self.builder, name, result, [argument.type for argument in arguments])
        return self.builder.call(function, arguments, **options)

    def not_unrolled(self, number: Any) -> Any:
        """The integer as it is; a loop in which it is computed is not unrolled, as if a function were called. Where registers are few,
        LLVM would load for the next turn early, and spill."""
        same = self.builder.asm(ir.FunctionType(number.type, [number.type]), "", "=r,0", [number], False)
        same.attributes.add("readnone")
        return same

    def vector(self, row: int, vector: int, tile: int = 0) -> Any:
        """Of the tile that is argument number `tile`."""
        return self.builder.extract_value(self.args[tile], row * self.types[tile].vectors + vector)

    def tile(self, make: Callable[[int, int], Any]) -> Any:
        """The resulting tile, from make(row, vector)."""
        empty = ir.Constant(self.context.get_value_type(self.result), ir.Undefined)
        return self._each(self.result, empty, lambda row, vector, _: make(row, vector))

    def update(self, change: Callable[[int, int, Any], Any]) -> Any:
        """The first argument, a tile, with change(row, vector, old vector) for each of its vectors."""
        return self._each(self.types[0], self.args[0], change)

    def _each(self, tile: TileType, value: Any, change: Callable[[int, int, Any], Any]) -> Any:
        for row in range(tile.rows):
            for vector in range(tile.vectors):
                k = row * tile.vectors + vector
                value = self.builder.insert_value(value, change(row, vector, self.builder.extract_value(value, k)), k)
        return value

    def store_tile(self, pointer: Callable[[int, int], Any]) -> None:
        """The first argument, a tile: each vector to pointer(row, vector)."""
        for row in range(self.types[0].rows):
            for vector in range(self.types[0].vectors):
                self.store(self.vector(row, vector), pointer(row, vector))


def operation(emit: Callable[[Emitter], Any], typed: Callable[..., Any] | None = None) -> Callable[[F], F]:
    """Decorator of the numpy twin of an operation that compiles to what `emit` writes, which returns the result's value.

    typed: Numba types of the arguments -> Numba signature, where the annotations cannot tell.
    """

    def declare(twin: F) -> F:
        if config.DISABLE_JIT:
            return twin
        literal = any(parameter.annotation == Size for parameter in inspect.signature(twin).parameters.values())
        return numba_door.inlined(twin, typed or _typed(twin), lambda *call: emit(Emitter(*call)), literal)  # type: ignore[return-value]

    return declare


def twin_of(declared: F) -> F:
    """The numpy twin of an operation."""
    return inspect.unwrap(declared)


_NUMBERS = {int: types.intp, Float: types.float32}
_RESULTS = {None: types.void, bool: types.boolean, int: types.intp}


def _typed(twin: Callable[..., Any]) -> Callable[..., Any]:
    signature = inspect.signature(twin)
    names, annotations = list(signature.parameters), [parameter.annotation for parameter in signature.parameters.values()]

    def typed(*kinds: Any) -> Any:
        given = [_NUMBERS.get(annotation, kind) for annotation, kind in zip(annotations, kinds, strict=True)]
        if signature.return_annotation != Tile:
            return _RESULTS[signature.return_annotation](*given)
        if Tile in annotations:
            return given[annotations.index(Tile)](*given)
        rows, vectors = (kinds[names.index(name)].literal_value if name in names else 1 for name in ("rows", "vectors"))
        return TileType(rows, vectors)(*given)

    return typed
