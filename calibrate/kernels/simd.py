"""Register tiles for Numba: a block of SIMD vectors that stays in registers while a kernel adds to it.

A tile holds rows x vectors vectors of LANES float32 numbers; its size is part of its Numba type. Its operations are LLVM vector
instructions, which LLVM fits to the CPU: one register a vector with AVX-512, two with AVX2, four with NEON. With NUMBA_DISABLE_JIT=1
the same names stand for numpy twins, so that kernels also run, and are tested, uncompiled.

Arrays are one-dimensional, contiguous and float32 (`at`: any type). A position counts elements and is not checked.
"""

from collections.abc import Iterable
from functools import reduce
from typing import Any

import numpy as np
from llvmlite import ir
from numba import config, types
from numba.extending import intrinsic
from numpy.typing import NDArray

from ...common.simd import LANES, Emitter, Tile


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
def _tile_add_scaled(typing: Any, tile: Any, scales: Any, scale: Any, array: Any, start: Any) -> Any:
    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        e = Emitter(context, builder, signature, args)
        scale_data, data, lanes = e.data(1), e.data(3), ir.Constant(args[4].type, LANES)
        one = ir.Constant(args[2].type, 1)
        factors = [e.broadcast(e.element(scale_data, args[2], (row, one))) for row in range(tile.rows)]
        shared = [e.load(e.element(data, args[4], (vector, lanes))) for vector in range(tile.vectors)]
        return e.update(tile, args[0], lambda row, vector, old: e.multiply_add(factors[row], shared[vector], old))

    return tile(tile, scales, types.intp, array, types.intp), emit


@intrinsic(prefer_literal=True)
def _tile_add_products(
    typing: Any, tile: Any, a: Any, a_start: Any, a_stride: Any, b: Any, b_start: Any, columns: Any, b_stride: Any, b_column: Any
) -> Any:
    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        e = Emitter(context, builder, signature, args)
        a_data, b_data = e.data(1), e.data(4)
        left = [e.load(e.element(a_data, args[2], (row, args[3]))) for row in range(tile.rows)]
        right = []
        for vector in range(tile.vectors):
            line, column = divmod(vector, columns.literal_value)
            right.append(e.load(e.element(b_data, args[5], (line, args[7]), (column, args[8]))))
        return e.update(tile, args[0], lambda row, vector, old: e.multiply_add(left[row], right[vector], old))

    return tile(tile, a, types.intp, types.intp, b, types.intp, columns, types.intp, types.intp), emit


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
def _tile_lane_sums(typing: Any, tile: Any, out: Any, start: Any) -> Any:
    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        e = Emitter(context, builder, signature, args)
        data, one = e.data(1), ir.Constant(args[2].type, 1)
        for k in range(tile.rows * tile.vectors):
            builder.store(e.lane_sum(builder.extract_value(args[0], k)), e.element(data, args[2], (k, one)))
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
def _transpose(typing: Any, source: Any, start: Any, stride: Any, out: Any, out_start: Any, out_stride: Any) -> Any:
    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        e = Emitter(context, builder, signature, args)
        source_data, data = e.data(0), e.data(3)
        rows = [e.load(e.element(source_data, args[1], (row, args[2]))) for row in range(LANES)]
        for row, vector in enumerate(_transposed(e, rows)):
            e.store(vector, e.element(data, args[4], (row, args[5])))
        return context.get_dummy_value()

    return types.void(source, types.intp, types.intp, out, types.intp, types.intp), emit


def _transposed(e: Emitter, rows: list[Any]) -> Iterable[Any]:
    """Swap the off-diagonal halves of ever smaller squares of the matrix."""
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


def _numpy_lines(array: NDArray, start: int, stride: int, count: int) -> NDArray:
    return np.stack([array[start + k * stride : start + k * stride + LANES] for k in range(count)])


def _numpy_at(array: NDArray, position: int) -> Any:
    return array[position]


def _numpy_tile_zeros(rows: int, vectors: int) -> NDArray:
    return np.zeros((rows, vectors, LANES), np.float32)


def _numpy_tile_load(array: NDArray, start: int, row_stride: int, rows: int, vectors: int) -> NDArray:
    return np.stack([_numpy_lines(array, start + row * row_stride, LANES, vectors) for row in range(rows)])


def _numpy_tile_store(tile: NDArray, array: NDArray, start: int, row_stride: int) -> None:
    for row, values in enumerate(tile):
        array[start + row * row_stride : start + row * row_stride + values.size] = values.reshape(-1)


def _numpy_tile_add_scaled(tile: NDArray, scales: NDArray, scale: int, array: NDArray, start: int) -> NDArray:
    return tile + scales[scale : scale + len(tile), None, None] * _numpy_lines(array, start, LANES, tile.shape[1])


def _numpy_tile_add_products(
    tile: NDArray, a: NDArray, a_start: int, a_stride: int, b: NDArray, b_start: int, columns: int, b_stride: int, b_column: int
) -> NDArray:
    lines = [_numpy_lines(b, b_start + line * b_stride, b_column, columns) for line in range(tile.shape[1] // columns)]
    return tile + _numpy_lines(a, a_start, a_stride, len(tile))[:, None] * np.concatenate(lines)


def _numpy_tile_add_gathered(tile: NDArray, a: NDArray, a_start: int, b: NDArray, b_start: int, offsets: NDArray, first: int) -> NDArray:
    left = _numpy_lines(a, a_start, LANES, len(tile))
    right = [_numpy_lines(b, b_start + offset, LANES, len(tile)) for offset in offsets[first : first + tile.shape[1]]]
    return tile + left[:, None] * np.stack(right, 1)


def _numpy_tile_lane_sums(tile: NDArray, out: NDArray, start: int) -> None:
    out[start : start + tile.shape[0] * tile.shape[1]] = tile.sum(-1).reshape(-1)


def _numpy_tile_column_sums(tile: NDArray, out: NDArray, start: int) -> None:
    out[start : start + tile.shape[1]] = tile.sum((0, 2))


def _numpy_transpose(source: NDArray, start: int, stride: int, out: NDArray, out_start: int, out_stride: int) -> None:
    for row, values in enumerate(_numpy_lines(source, start, stride, LANES).T):
        out[out_start + row * out_stride : out_start + row * out_stride + LANES] = values


at = _numpy_at if config.DISABLE_JIT else _at
"""at(array, position): array[position], where a negative position does not count from the end (which costs three instructions)."""
tile_zeros = _numpy_tile_zeros if config.DISABLE_JIT else _tile_zeros
"""tile_zeros(rows, vectors)"""
tile_load = _numpy_tile_load if config.DISABLE_JIT else _tile_load
"""tile_load(array, start, row_stride, rows, vectors): the vectors of a row follow each other."""
tile_store = _numpy_tile_store if config.DISABLE_JIT else _tile_store
"""tile_store(tile, array, start, row_stride)"""
tile_add_scaled = _numpy_tile_add_scaled if config.DISABLE_JIT else _tile_add_scaled
"""tile_add_scaled(tile, scales, scale, array, start): tile[r,v] += scales[scale + r] * array[start + v*LANES : + LANES]."""
tile_add_products = _numpy_tile_add_products if config.DISABLE_JIT else _tile_add_products
"""tile_add_products(tile, a, a_start, a_stride, b, b_start, columns, b_stride, b_column):
tile[r,v] += a[a_start + r*a_stride : + LANES] * b[b_start + v//columns*b_stride + v%columns*b_column : + LANES]."""
tile_add_gathered = _numpy_tile_add_gathered if config.DISABLE_JIT else _tile_add_gathered
"""tile_add_gathered(tile, a, a_start, b, b_start, offsets, first):
tile[r,v] += a[a_start + r*LANES : + LANES] * b[b_start + offsets[first + v] + r*LANES : + LANES]."""
tile_lane_sums = _numpy_tile_lane_sums if config.DISABLE_JIT else _tile_lane_sums
"""tile_lane_sums(tile, out, start): out[start + r*vectors + v] = sum over the lanes of tile[r,v]."""
tile_column_sums = _numpy_tile_column_sums if config.DISABLE_JIT else _tile_column_sums
"""tile_column_sums(tile, out, start): out[start + v] = sum over the rows and lanes of tile[:,v]."""
transpose = _numpy_transpose if config.DISABLE_JIT else _transpose
"""transpose(source, start, stride, out, out_start, out_stride): LANES rows of LANES numbers, transposed."""
