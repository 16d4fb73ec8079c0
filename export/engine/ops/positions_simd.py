"""Vector operations of the kernel "positions", on the tiles of ops/simd.py: a row of a tile belongs to a filter, its lanes to positions.

With NUMBA_DISABLE_JIT=1 the same names stand for numpy twins. Their arguments are no arrays but pointers, since a call that passes
arrays counts references to each, which takes longer than to pack some vectors: to float32, but for `index` (int32), whose halves,
numbered by `half`, are short offsets. A position counts elements and is not checked.
"""

from collections.abc import Iterator
from typing import Any

from llvmlite import ir
from numba import config, types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

from fineprune.ops.simd import LANES, UNDEFINED, VECTOR, Emitter, Tile

from . import positions_twins as twins
from .positions_twins import OFFSET_UNIT

_BITS = ir.IntType(LANES)
_HALF = ir.IntType(16)
Pointer = NDArray


def _empty(context: Any, tile: Tile) -> Any:
    return ir.Constant(context.get_value_type(tile), ir.Undefined)


def _lanes(e: Emitter, count: int, of: int) -> Any:
    return ir.Constant(e.args[of].type, count)


@intrinsic
def _pointer(typing: Any, array: Any) -> Any:
    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return Emitter(context, builder, signature, args).data(0)

    return types.CPointer(array.dtype)(array), emit


@intrinsic
def _at(typing: Any, array: Any, position: Any) -> Any:
    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        e = Emitter(context, builder, signature, args)
        value = builder.load(e.element(e.args[0], args[1]))
        return builder.sext(value, args[1].type) if isinstance(array.dtype, types.Integer) else value

    return (types.intp if isinstance(array.dtype, types.Integer) else array.dtype)(array, types.intp), emit


@intrinsic(prefer_literal=True)
def _tile_broadcast(typing: Any, array: Any, start: Any, index: Any, position: Any, rows: Any, vectors: Any) -> Any:
    tile = Tile(rows.literal_value, vectors.literal_value)

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        e = Emitter(context, builder, signature, args)
        scalars = [e.broadcast(e.element(e.args[0], builder.add(args[1], number))) for number in _numbers(e, 2, tile.rows)]
        return e.update(tile, _empty(context, tile), lambda row, vector, _: scalars[row])

    return tile(array, types.intp, index, types.intp, rows, vectors), emit


def _numbers(e: Emitter, argument: int, count: int) -> list[Any]:
    """index[position], index[position + 1], ...; the arguments from `argument` on are (index, position)."""
    position = e.args[argument + 1]
    pointers = [e.element(e.args[argument], position, (k, _lanes(e, 1, argument + 1))) for k in range(count)]
    return [e.builder.sext(e.builder.load(pointer), position.type) for pointer in pointers]


def _row_starts(e: Emitter, argument: int, rows: int) -> list[Any]:
    """start + index[position + row] * stride; the arguments from `argument` on are (array, start, stride, index, position)."""
    start, stride = e.args[argument + 1 : argument + 3]
    return [e.builder.add(start, e.builder.mul(number, stride)) for number in _numbers(e, argument + 3, rows)]


@intrinsic(prefer_literal=True)
def _tile_load_rows(typing: Any, array: Any, start: Any, stride: Any, index: Any, position: Any, rows: Any, vectors: Any) -> Any:
    tile = Tile(rows.literal_value, vectors.literal_value)

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        e = Emitter(context, builder, signature, args)
        starts, lanes, data = _row_starts(e, 0, tile.rows), _lanes(e, LANES, 1), e.args[0]
        return e.update(tile, _empty(context, tile), lambda row, vector, _: e.load(e.element(data, starts[row], (vector, lanes))))

    return tile(array, types.intp, types.intp, index, types.intp, rows, vectors), emit


@intrinsic
def _tile_store_rows(typing: Any, tile: Any, array: Any, start: Any, stride: Any, index: Any, position: Any) -> Any:
    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        e = Emitter(context, builder, signature, args)
        starts, lanes, data = _row_starts(e, 1, tile.rows), _lanes(e, LANES, 2), e.args[1]
        for k in range(tile.rows * tile.vectors):
            row, vector = divmod(k, tile.vectors)
            e.store(builder.extract_value(args[0], k), e.element(data, starts[row], (vector, lanes)))
        return context.get_dummy_value()

    return types.void(tile, array, types.intp, types.intp, index, types.intp), emit


def _halves(e: Emitter, argument: int, count: int) -> list[Any]:
    """Numbers of 16 bits; the arguments from `argument` on are (index, half). Four at a time are loaded as one integer: loads cost."""
    builder, position = e.builder, e.args[argument + 1]
    together = min(4, count)
    kind, data = ir.IntType(16 * together), builder.bitcast(e.args[argument], _HALF.as_pointer())
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
        pointer = builder.bitcast(e.element(e.args[1], e.args[2], (begin, _lanes(e, 1, 2))), kind.as_pointer())
        numbers = builder.load(pointer)
        numbers.align = 4
        spread = _shuffled(builder, numbers, numbers, list(range(together)) * (LANES // together))
        fence = cgutils.get_or_insert_function(builder.module, ir.FunctionType(VECTOR, [VECTOR]), f"llvm.arithmetic.fence.v{LANES}f32")
        spread = builder.call(fence, [spread])
        factors += [_shuffled(builder, spread, spread, [lane // together * together + k for lane in range(LANES)]) for k in range(together)]
    return factors


@intrinsic(prefer_literal=True)
def _tile_add_patches(
    typing: Any, tile: Any, weights: Any, weight: Any, patches: Any, base: Any, index: Any, half: Any, sharing: Any
) -> Any:
    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        e = Emitter(context, builder, signature, args)
        share, size = sharing.literal_value, args[4].type
        factors = _factors(e, tile.rows)
        first = builder.gep(e.args[3], [args[4]], inbounds=True)
        value = args[0]
        for begin, offset in enumerate(_halves(e, 5, tile.rows // share)):
            wide = builder.mul(builder.zext(offset, size), ir.Constant(size, OFFSET_UNIT), flags=("nuw", "nsw"))
            patch = builder.gep(first, [wide], inbounds=True)
            for vector in range(tile.vectors):
                shared = e.load(builder.gep(patch, [ir.Constant(size, vector * LANES)], inbounds=True))
                for row in range(begin * share, begin * share + share):
                    k = row * tile.vectors + vector
                    value = builder.insert_value(value, e.multiply_add(factors[row], shared, builder.extract_value(value, k)), k)
        return value

    return tile(tile, weights, types.intp, patches, types.intp, index, types.intp, sharing), emit


@intrinsic(prefer_literal=True)
def _pack_line(typing: Any, array: Any, start: Any, jump: Any, limit: Any, segment: Any, stride: Any) -> Any:
    lanes, step, tile = segment.literal_value, stride.literal_value, Tile(1, 1)

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        e = Emitter(context, builder, signature, args)
        kind = ir.VectorType(ir.FloatType(), lanes)

        def part(number: int) -> Any:
            begin = args[1]
            if number:
                begin = builder.add(begin, builder.mul(args[2], _lanes(e, number, 2)))
                begin = builder.select(builder.icmp_signed("<", begin, args[3]), begin, args[3])
            loads = []
            for k in range(step):
                pointer = e.element(args[0], begin, (k, _lanes(e, lanes, 1)))
                loads.append(builder.load(builder.bitcast(pointer, kind.as_pointer())))
                loads[-1].align = 4
            return _shuffled(builder, loads[0], loads[-1], [step * lane for lane in range(lanes)]) if step > 1 else loads[0]

        parts = [part(k) for k in range(LANES // lanes)]
        while len(parts) > 1:
            width = LANES // len(parts)
            parts = [_shuffled(builder, a, b, list(range(2 * width))) for a, b in zip(parts[::2], parts[1::2], strict=True)]
        return builder.insert_value(_empty(context, tile), parts[0], 0)

    size = types.intp
    return tile(array, size, size, size, segment, stride), emit


def _shuffled(builder: Any, low: Any, high: Any, lanes: list[int]) -> Any:
    return builder.shuffle_vector(low, high, ir.Constant(ir.VectorType(ir.IntType(32), len(lanes)), lanes))


@intrinsic
def _tile_keep(typing: Any, tile: Any, bits: Any) -> Any:
    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        e = Emitter(context, builder, signature, args)
        chosen = builder.bitcast(builder.trunc(args[1], _BITS), ir.VectorType(ir.IntType(1), LANES))
        zero = ir.Constant(VECTOR, [0.0] * LANES)
        return e.update(tile, args[0], lambda row, vector, old: builder.select(chosen, old, zero))

    return tile(tile, types.intp), emit


@intrinsic
def _tile_clip(typing: Any, tile: Any, low: Any, high: Any) -> Any:
    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        e = Emitter(context, builder, signature, args)

        def everywhere(value: Any) -> Any:
            return e.shuffle(builder.insert_element(UNDEFINED, value, ir.Constant(ir.IntType(32), 0)), UNDEFINED, [0] * LANES)

        low, high = everywhere(args[1]), everywhere(args[2])

        def change(row: int, vector: int, old: Any) -> Any:
            raised = builder.select(builder.fcmp_ordered("<", old, low), low, old)
            return builder.select(builder.fcmp_ordered(">", raised, high), high, raised)

        return e.update(tile, args[0], change)

    return tile(tile, types.float32, types.float32), emit


def _map_lines(e: Emitter, tile: Tile, argument: int) -> Iterator[tuple[Any, Any]]:
    """(pointer to a vector, its chosen lanes) for each vector of a tile; see `tile_store_maps` for the arguments from `argument` on."""
    builder = e.builder
    array, start, channel, stride, index, _, lanes = e.args[argument : argument + 7]
    chosen = []
    for vector in range(tile.vectors):
        bits = builder.load(builder.gep(index, [builder.add(lanes, ir.Constant(lanes.type, vector))], inbounds=True))
        chosen.append(builder.bitcast(builder.trunc(bits, _BITS), ir.VectorType(ir.IntType(1), LANES)))
    for number in _numbers(e, argument + 4, tile.rows):
        map_start = builder.add(start, builder.mul(number, channel))
        for vector in range(tile.vectors):
            yield builder.bitcast(e.element(array, map_start, (vector, stride)), VECTOR.as_pointer()), chosen[vector]


def _masked(e: Emitter, name: str, result: Any, arguments: list[Any]) -> Any:
    kind = ir.FunctionType(result, [argument.type for argument in arguments])
    function = cgutils.get_or_insert_function(e.builder.module, kind, f"llvm.masked.{name}.v{LANES}f32.p0")
    return e.builder.call(function, arguments)


_ALIGNMENT = ir.Constant(ir.IntType(32), 4)


@intrinsic
def _tile_add_maps(typing: Any, tile: Any, array: Any, start: Any, channel: Any, stride: Any, index: Any, record: Any, lanes: Any) -> Any:
    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        e = Emitter(context, builder, signature, args)
        places, zero = _map_lines(e, tile, 1), ir.Constant(VECTOR, [0.0] * LANES)

        def change(row: int, vector: int, old: Any) -> Any:
            pointer, lanes = next(places)
            return builder.fadd(old, _masked(e, "load", VECTOR, [pointer, _ALIGNMENT, lanes, zero]))

        return e.update(tile, args[0], change)

    size = types.intp
    return tile(tile, array, size, size, size, index, size, size), emit


@intrinsic
def _tile_store_maps(typing: Any, tile: Any, array: Any, start: Any, channel: Any, stride: Any, index: Any, record: Any, lanes: Any) -> Any:
    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        e = Emitter(context, builder, signature, args)
        for k, (pointer, lanes) in enumerate(_map_lines(e, tile, 1)):
            _masked(e, "store", ir.VoidType(), [builder.extract_value(args[0], k), pointer, _ALIGNMENT, lanes])
        return context.get_dummy_value()

    size = types.intp
    return types.void(tile, array, size, size, size, index, size, size), emit


@intrinsic
def _tile_store(typing: Any, tile: Any, array: Any, start: Any) -> Any:
    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        e = Emitter(context, builder, signature, args)
        e.store(builder.extract_value(args[0], 0), e.element(e.args[1], args[2]))
        return context.get_dummy_value()

    return types.void(tile, array, types.intp), emit


@intrinsic
def _put(typing: Any, array: Any, position: Any, value: Any) -> Any:
    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.store(args[2], Emitter(context, builder, signature, args).element(args[0], args[1]))
        return context.get_dummy_value()

    return types.void(array, types.intp, array.dtype), emit


pointer = twins.pointer if config.DISABLE_JIT else _pointer
"""pointer(array): to the first element of a one-dimensional, contiguous array."""
put = twins.put if config.DISABLE_JIT else _put
"""put(array, position, value)"""
at = twins.at if config.DISABLE_JIT else _at
"""at(array, position): array[position], where a negative position does not count from the end."""
tile_broadcast = twins.tile_broadcast if config.DISABLE_JIT else _tile_broadcast
"""tile_broadcast(array, start, index, position, rows, vectors): tile[r,v] = array[start + index[position + r]] in all lanes."""
tile_load_rows = twins.tile_load_rows if config.DISABLE_JIT else _tile_load_rows
"""tile_load_rows(array, start, stride, index, position, rows, vectors): row r is array[start + index[position + r] * stride : ...]."""
tile_store_rows = twins.tile_store_rows if config.DISABLE_JIT else _tile_store_rows
"""tile_store_rows(tile, array, start, stride, index, position)"""
tile_add_patches = twins.tile_add_patches if config.DISABLE_JIT else _tile_add_patches
"""tile_add_patches(tile, weights, weight, patches, base, index, half, sharing):
tile[r,v] += weights[weight + r] * patches[base + offset[half + r//sharing] * OFFSET_UNIT + v*LANES : + LANES], offset: halves of index."""
pack_line = twins.pack_line if config.DISABLE_JIT else _pack_line
"""pack_line(array, start, jump, limit, segment, stride): a vector of segments; segment k is array[begin : : stride] with
begin = min(start + k*jump, limit), the first begin = start; stride 1 or 2."""
tile_keep = twins.tile_keep if config.DISABLE_JIT else _tile_keep
"""tile_keep(tile, bits): lane l stays if bit l is set, else it is 0, whatever it was."""
tile_clip = twins.tile_clip if config.DISABLE_JIT else _tile_clip
"""tile_clip(tile, low, high); NaN stays NaN."""
tile_add_maps = twins.tile_add_maps if config.DISABLE_JIT else _tile_add_maps
"""tile_add_maps(tile, array, start, channel, stride, index, record, lanes): tile[r,v] += what lies where tile_store_maps(the same)
would store it."""
tile_store_maps = twins.tile_store_maps if config.DISABLE_JIT else _tile_store_maps
"""tile_store_maps(tile, array, start, channel, stride, index, record, lanes): lanes of tile[r,v] whose bits are set in index[lanes + v]
go to array[start + index[record + r]*channel + v*stride + lane]. Nothing else is touched."""
tile_store = twins.tile_store if config.DISABLE_JIT else _tile_store
"""tile_store(tile, array, start): one vector."""
