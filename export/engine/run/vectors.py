"""Vectors of LANES float32 numbers for the simple kernels: dot products with filters in the lanes, transposition.

A tile holds 1 x n vectors. With NUMBA_DISABLE_JIT=1 the same names stand for numpy twins.

    zeros(n)                                 a tile of zeros
    load(array, start, n)                    n vectors of array from start on
    add_scaled(tile, x, k, w, start)         tile + x[k] * w[start:...]
    same(value, n)                           n vectors of one number
    added(tile, tile), multiplied(tile, tile), multiply_added(tile, tile, tile)
    maximum(old, new)                        the larger number; NaN if one is
    clipped(tile, low, high)                 low and high are numbers; NaN stays
    sigmoid(tile)                            1 / (1 + exp(-x))
    store(tile, array, start)
    transpose_lines(source, start, index, lines, out, out_start, out_lines)    transposes LANES lines of LANES numbers, which lie at
                                             start + index[lines + k]; likewise in out

exp(x) = 2^k * exp(r), k = round(x / ln 2), |r| <= ln 2 / 2, exp(r) by its Taylor polynomial of degree 6: within 3e-7 of itself.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import config, types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

from fineprune.ops.simd import LANES, VECTOR, Emitter, Tile, transposed

_LOG2E = 1.4426950408889634
_LN2_HIGH, _LN2_LOW = 0.693359375, -2.1219444005469057e-4  # the first has few digits: its multiples are exact
_LEAST, _MOST = -87.0, 87.0
"""exp and 1 / (1 + exp) of these are normal numbers: subnormal ones take a hundred times as long."""
_ENDLESS = 89.0
"""What stands for all above _MOST: its exp is infinite here, so that sigmoid is zero there, and -inf * sigmoid(-inf) no number."""
_ROUNDS = 1.5 * 2.0**23
"""Added and subtracted, it rounds to whole numbers; after the addition the last bits are the whole number."""
_TAYLOR = (1 / 720, 1 / 120, 1 / 24, 1 / 6, 0.5, 1.0, 1.0)
_ONE_BITS, _EXPONENT_SHIFT = 0x3F800000, 23


@intrinsic(prefer_literal=True)
def _zeros(typing: Any, vectors: Any) -> Any:
    tile = Tile(1, vectors.literal_value)

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return ir.Constant(context.get_value_type(tile), None)

    return tile(vectors), emit


@intrinsic(prefer_literal=True)
def _load(typing: Any, array: Any, start: Any, vectors: Any) -> Any:
    tile = Tile(1, vectors.literal_value)

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        e = Emitter(context, builder, signature, args)
        empty = ir.Constant(context.get_value_type(tile), ir.Undefined)
        lanes = ir.Constant(args[1].type, LANES)
        return e.update(tile, empty, lambda row, vector, _: e.load(e.element(e.data(0), args[1], (vector, lanes))))

    return tile(array, types.intp, vectors), emit


@intrinsic
def _add_scaled(typing: Any, tile: Any, scales: Any, scale: Any, array: Any, start: Any) -> Any:
    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        e = Emitter(context, builder, signature, args)
        factor, data, lanes = e.broadcast(e.element(e.data(1), args[2])), e.data(3), ir.Constant(args[4].type, LANES)
        return e.update(
            tile, args[0], lambda row, vector, old: e.multiply_add(factor, e.load(e.element(data, args[4], (vector, lanes))), old)
        )

    return tile(tile, scales, types.intp, array, types.intp), emit


@intrinsic(prefer_literal=True)
def _same(typing: Any, value: Any, vectors: Any) -> Any:
    tile = Tile(1, vectors.literal_value)

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        vector = _splat(Emitter(context, builder, signature, args), args[0])
        return Emitter(context, builder, signature, args).update(
            tile, ir.Constant(context.get_value_type(tile), ir.Undefined), lambda row, k, _: vector
        )

    return tile(types.float32, vectors), emit


def _splat(e: Emitter, value: Any) -> Any:
    first = e.builder.insert_element(ir.Constant(VECTOR, ir.Undefined), value, ir.Constant(ir.IntType(32), 0))
    return e.shuffle(first, ir.Constant(VECTOR, ir.Undefined), [0] * LANES)


def _constant(value: float) -> Any:
    return ir.Constant(VECTOR, [float(np.float32(value))] * LANES)


def _one(change: Callable[[Emitter, Any], Any]) -> Any:
    """A function of a tile, vector by vector."""

    @intrinsic
    def function(typing: Any, tile: Any) -> Any:
        def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            e = Emitter(context, builder, signature, args)
            return e.update(tile, args[0], lambda row, vector, old: change(e, old))

        return tile(tile), emit

    return function


def _two(change: Callable[[Emitter, Any, Any], Any]) -> Any:
    """A function of two tiles, vector by vector."""

    @intrinsic
    def function(typing: Any, a: Any, b: Any) -> Any:
        def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            e = Emitter(context, builder, signature, args)
            return e.update(a, args[0], lambda row, vector, old: change(e, old, builder.extract_value(args[1], vector)))

        return a(a, b), emit

    return function


_added = _two(lambda e, a, b: e.builder.fadd(a, b))
_multiplied = _two(lambda e, a, b: e.builder.fmul(a, b))


def _larger(e: Emitter, old: Any, new: Any) -> Any:
    b = e.builder
    return b.select(b.or_(b.fcmp_ordered(">", new, old), b.fcmp_unordered("uno", new, new)), new, old)


_maximum = _two(_larger)


@intrinsic
def _multiply_added(typing: Any, a: Any, b: Any, c: Any) -> Any:
    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        e, take = Emitter(context, builder, signature, args), builder.extract_value
        return e.update(a, args[0], lambda row, vector, old: e.multiply_add(old, take(args[1], vector), take(args[2], vector)))

    return a(a, b, c), emit


@intrinsic
def _clipped(typing: Any, tile: Any, low: Any, high: Any) -> Any:
    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        e = Emitter(context, builder, signature, args)
        bounds = _splat(e, args[1]), _splat(e, args[2])
        return e.update(tile, args[0], lambda row, vector, old: _within(e, old, *bounds))

    return tile(tile, types.float32, types.float32), emit


def _within(e: Emitter, value: Any, low: Any, high: Any) -> Any:
    value = e.builder.select(e.builder.fcmp_ordered("<", value, low), low, value)
    return e.builder.select(e.builder.fcmp_ordered(">", value, high), high, value)


def _emit_sigmoid(e: Emitter, x: Any) -> Any:
    b, integers = e.builder, ir.VectorType(ir.IntType(32), LANES)
    x = b.fsub(_constant(-0.0), x)
    x = b.select(b.fcmp_ordered("<", x, _constant(_LEAST)), _constant(_LEAST), x)
    x = b.select(b.fcmp_ordered(">", x, _constant(_MOST)), _constant(_ENDLESS), x)
    shifted = e.multiply_add(x, _constant(_LOG2E), _constant(_ROUNDS))
    k = b.fsub(shifted, _constant(_ROUNDS))
    r = e.multiply_add(k, _constant(-_LN2_LOW), e.multiply_add(k, _constant(-_LN2_HIGH), x))
    p = _constant(_TAYLOR[0])
    for factor in _TAYLOR[1:]:
        p = e.multiply_add(p, r, _constant(factor))
    bits = b.shl(b.bitcast(shifted, integers), ir.Constant(integers, [_EXPONENT_SHIFT] * LANES))
    power = b.bitcast(b.add(bits, ir.Constant(integers, [_ONE_BITS] * LANES)), VECTOR)
    return b.fdiv(_constant(1.0), e.multiply_add(p, power, _constant(1.0)))


_sigmoid = _one(_emit_sigmoid)


@intrinsic
def _store(typing: Any, tile: Any, array: Any, start: Any) -> Any:
    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        e = Emitter(context, builder, signature, args)
        for vector in range(tile.vectors):
            e.store(builder.extract_value(args[0], vector), e.element(e.data(1), args[2], (vector, ir.Constant(args[2].type, LANES))))
        return context.get_dummy_value()

    return types.void(tile, array, types.intp), emit


@intrinsic
def _transpose_lines(typing: Any, source: Any, start: Any, index: Any, lines: Any, out: Any, out_start: Any, out_lines: Any) -> Any:
    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        e = Emitter(context, builder, signature, args)

        def line(data: Any, first: Any, table: Any, row: int) -> Any:
            offset = builder.load(builder.gep(e.data(2), [builder.add(table, ir.Constant(table.type, row))]))
            return e.element(data, builder.add(first, builder.sext(offset, first.type)))

        rows = transposed(e, [e.load(line(e.data(0), args[1], args[3], row)) for row in range(LANES)])
        for row, vector in enumerate(rows):
            e.store(vector, line(e.data(4), args[5], args[6], row))
        return context.get_dummy_value()

    return types.void(source, types.intp, index, types.intp, out, types.intp, types.intp), emit


@intrinsic
def _floats(typing: Any, address: Any, size: Any) -> Any:
    kind = types.Array(types.float32, 1, "C")

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        array = context.make_array(kind)(context, builder)
        item = ir.Constant(args[1].type, 4)
        context.populate_array(
            array,
            data=builder.inttoptr(args[0], ir.FloatType().as_pointer()),
            shape=cgutils.pack_array(builder, [args[1]]),
            strides=cgutils.pack_array(builder, [item]),
            itemsize=item,
            meminfo=None,
        )
        return array._getvalue()

    return kind(types.intp, types.intp), emit


def _numpy_zeros(vectors: int) -> NDArray:
    return np.zeros(vectors * LANES, np.float32)


def _numpy_load(array: NDArray, start: int, vectors: int) -> NDArray:
    return array[start : start + vectors * LANES].copy()


def _numpy_add_scaled(tile: NDArray, scales: NDArray, scale: int, array: NDArray, start: int) -> NDArray:
    return tile + scales[scale] * array[start : start + tile.size]


def _numpy_same(value: Any, vectors: int) -> NDArray:
    return np.full(vectors * LANES, value, np.float32)


def _numpy_multiply_added(a: NDArray, b: NDArray, c: NDArray) -> NDArray:
    return a * b + c


def _numpy_maximum(old: NDArray, new: NDArray) -> NDArray:
    return np.where((new > old) | np.isnan(new), new, old)


def _numpy_clipped(tile: NDArray, low: Any, high: Any) -> NDArray:
    return np.clip(tile, np.float32(low), np.float32(high))


def _numpy_sigmoid(tile: NDArray) -> NDArray:
    x = np.maximum(-tile, np.float32(_LEAST))
    x = np.where(x > _MOST, np.float32(_ENDLESS), x)
    k = np.rint(x * np.float32(_LOG2E))
    r = (x - k * np.float32(_LN2_HIGH)) - k * np.float32(_LN2_LOW)
    p = np.full_like(x, _TAYLOR[0])
    for factor in _TAYLOR[1:]:
        p = p * r + np.float32(factor)
    with np.errstate(invalid="ignore", over="ignore"):  # the whole number of NaN; what is infinite on purpose
        power = np.ldexp(np.float32(1), k.astype(np.int32))
    return np.float32(1) / (np.float32(1) + p * power)


def _numpy_store(tile: NDArray, array: NDArray, start: int) -> None:
    array[start : start + tile.size] = tile


def _numpy_transpose_lines(source: NDArray, start: int, index: NDArray, lines: int, out: NDArray, out_start: int, out_lines: int) -> None:
    values = [source[start + index[lines + k] :][:LANES].copy() for k in range(LANES)]
    for row, line in enumerate(np.stack(values).T):
        out[out_start + index[out_lines + row] :][:LANES] = line


def _numpy_floats(address: int, size: int) -> NDArray:
    import ctypes

    return np.ctypeslib.as_array((ctypes.c_float * int(size)).from_address(int(address)))


zeros = _numpy_zeros if config.DISABLE_JIT else _zeros
load = _numpy_load if config.DISABLE_JIT else _load
add_scaled = _numpy_add_scaled if config.DISABLE_JIT else _add_scaled
same = _numpy_same if config.DISABLE_JIT else _same
added = np.add if config.DISABLE_JIT else _added
multiplied = np.multiply if config.DISABLE_JIT else _multiplied
multiply_added = _numpy_multiply_added if config.DISABLE_JIT else _multiply_added
maximum = _numpy_maximum if config.DISABLE_JIT else _maximum
clipped = _numpy_clipped if config.DISABLE_JIT else _clipped
sigmoid = _numpy_sigmoid if config.DISABLE_JIT else _sigmoid
store = _numpy_store if config.DISABLE_JIT else _store
transpose_lines = _numpy_transpose_lines if config.DISABLE_JIT else _transpose_lines
floats = _numpy_floats if config.DISABLE_JIT else _floats
"""floats(address, size): the float32 numbers at an address as an array; its owner has to keep them."""
