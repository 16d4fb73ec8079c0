"""Vectors of LANES float32 numbers for the simple kernels: dot products with filters in the lanes, transposition.

A tile holds 1 x n vectors. With NUMBA_DISABLE_JIT=1 the same names stand for numpy twins.

    zeros(n)                                 a tile of zeros
    load(array, start, n)                    n vectors of array from start on
    add_scaled(tile, x, k, w, start)         tile + x[k] * w[start:...]
    added(tile, tile)
    store(tile, array, start)
    transpose(source, start, stride, out, out_start, out_stride)    LANES lines of LANES numbers
    power_of_two(k)                          2.0 ** k for an int32 k of a normal float32
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import config, types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

from ...common.simd import LANES, Emitter, Tile


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


@intrinsic
def _added(typing: Any, a: Any, b: Any) -> Any:
    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        e = Emitter(context, builder, signature, args)
        return e.update(a, args[0], lambda row, vector, old: builder.fadd(old, builder.extract_value(args[1], vector)))

    return a(a, b), emit


@intrinsic
def _store(typing: Any, tile: Any, array: Any, start: Any) -> Any:
    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        e = Emitter(context, builder, signature, args)
        for vector in range(tile.vectors):
            e.store(builder.extract_value(args[0], vector), e.element(e.data(1), args[2], (vector, ir.Constant(args[2].type, LANES))))
        return context.get_dummy_value()

    return types.void(tile, array, types.intp), emit


@intrinsic
def _transpose(typing: Any, source: Any, start: Any, stride: Any, out: Any, out_start: Any, out_stride: Any) -> Any:
    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        e = Emitter(context, builder, signature, args)
        source_data, data = e.data(0), e.data(3)
        rows = [e.load(e.element(source_data, args[1], (row, args[2]))) for row in range(LANES)]
        size = LANES // 2
        while size:  # swap the off-diagonal halves of ever smaller squares of the matrix
            low = [lane + (LANES - size if lane & size else 0) for lane in range(LANES)]
            high = [lane + (LANES if lane & size else size) for lane in range(LANES)]
            for row in range(LANES):
                if not row & size:
                    top, bottom = rows[row], rows[row + size]
                    rows[row], rows[row + size] = e.shuffle(top, bottom, low), e.shuffle(top, bottom, high)
            size //= 2
        for row, vector in enumerate(rows):
            e.store(vector, e.element(data, args[4], (row, args[5])))
        return context.get_dummy_value()

    return types.void(source, types.intp, types.intp, out, types.intp, types.intp), emit


@intrinsic
def _power_of_two(typing: Any, exponent: Any) -> Any:
    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        i32 = ir.IntType(32)
        return builder.bitcast(builder.shl(builder.add(args[0], ir.Constant(i32, 127)), ir.Constant(i32, 23)), ir.FloatType())

    return types.float32(types.int32), emit


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


def _numpy_added(a: NDArray, b: NDArray) -> NDArray:
    return a + b


def _numpy_store(tile: NDArray, array: NDArray, start: int) -> None:
    array[start : start + tile.size] = tile


def _numpy_transpose(source: NDArray, start: int, stride: int, out: NDArray, out_start: int, out_stride: int) -> None:
    lines = np.stack([source[start + k * stride : start + k * stride + LANES] for k in range(LANES)])
    for row, values in enumerate(lines.T):
        out[out_start + row * out_stride : out_start + row * out_stride + LANES] = values


def _numpy_power_of_two(exponent: Any) -> np.float32:
    return np.float32(2.0**exponent)


def _numpy_floats(address: int, size: int) -> NDArray:
    import ctypes

    return np.ctypeslib.as_array((ctypes.c_float * int(size)).from_address(int(address)))


zeros = _numpy_zeros if config.DISABLE_JIT else _zeros
load = _numpy_load if config.DISABLE_JIT else _load
add_scaled = _numpy_add_scaled if config.DISABLE_JIT else _add_scaled
added = _numpy_added if config.DISABLE_JIT else _added
store = _numpy_store if config.DISABLE_JIT else _store
transpose = _numpy_transpose if config.DISABLE_JIT else _transpose
power_of_two = _numpy_power_of_two if config.DISABLE_JIT else _power_of_two
floats = _numpy_floats if config.DISABLE_JIT else _floats
"""floats(address, size): the float32 numbers at an address as an array; its owner has to keep them."""
