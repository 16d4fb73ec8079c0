"""Vector operations of the kernel "filters": register tiles whose rows lie at positions named by lists.

Arrays are one-dimensional and contiguous; positions count elements and are not checked. A row of a tile holds `vectors` vectors that
follow each other in memory. With NUMBA_DISABLE_JIT=1 the same names stand for numpy twins, so that kernels also run, and are tested,
uncompiled.
"""

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import binding, ir
from numba import config, types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

from fineprune.ops.simd import LANES, VECTOR, Emitter, Tile

_FEATURES = binding.get_host_cpu_features().flatten() if config.CPU_FEATURES is None else config.CPU_FEATURES
REGISTERS = 32 if "+avx512f" in _FEATURES else 8
"""Vectors of LANES floats that the CPU's registers hold: AVX2 has 16 registers of half a vector, NEON 32 of a quarter."""


def _sum(e: Emitter, a: Any, b: Any) -> Any:
    return e.builder.add(a, b, flags=("nsw",))


def _listed(e: Emitter, array: int, start: Any, row: int) -> Any:
    """array[start + row] as a position; the array holds int32."""
    value = e.builder.load(e.element(e.data(array), start, (row, ir.Constant(start.type, 1))))
    return e.builder.sext(value, start.type)


def _pair(e: Emitter, array: int, start: Any) -> tuple[Any, Any]:
    """array[start] and array[start + 1], by one load, because loads are what limits narrow tiles."""
    kind = ir.IntType(64)
    both = e.builder.load(e.builder.bitcast(e.element(e.data(array), start), kind.as_pointer()))
    both.align = 4
    low, high = e.builder.sext(e.builder.trunc(both, ir.IntType(32)), kind), e.builder.ashr(both, ir.Constant(kind, 32))
    return (low, high) if sys.byteorder == "little" else (high, low)


def _vectors(e: Emitter, pointer: Any, count: int) -> list[Any]:
    """Pointers to so many vectors that follow each other."""
    return [e.builder.gep(pointer, [ir.Constant(ir.IntType(64), v * LANES)], inbounds=True) for v in range(count)]


def _row_pointers(e: Emitter, tile: Tile, first: int) -> list[list[Any]]:
    """[row][vector] pointers; the arguments from `first` on are (array, start, index, table, slots)."""
    array, start, table, slots = e.data(first), e.args[first + 1], e.args[first + 3], e.args[first + 4]
    pointers = []
    for row in range(tile.rows):
        place = _sum(e, table, _listed(e, first + 2, slots, row))
        offset = _listed(e, first + 2, place, 0)
        pointers.append(_vectors(e, e.element(array, _sum(e, start, offset)), tile.vectors))
    return pointers


def _slot_pointers(e: Emitter, tile: Tile, first: int) -> list[list[Any]]:
    """[row][vector] pointers; the arguments from `first` on are (array, start, index, slots)."""
    array, start, slots = e.data(first), e.args[first + 1], e.args[first + 3]
    width = ir.Constant(start.type, tile.vectors * LANES)
    pointers = []
    for row in range(tile.rows):
        offset = e.builder.mul(_listed(e, first + 2, slots, row), width, flags=("nsw",))
        pointers.append(_vectors(e, e.element(array, _sum(e, start, offset)), tile.vectors))
    return pointers


@intrinsic(prefer_literal=True)
def _same_rows(typing: Any, array: Any, start: Any, rows: Any, vectors: Any) -> Any:
    tile = Tile(rows.literal_value, vectors.literal_value)

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        e = Emitter(context, builder, signature, args)
        line = [e.load(pointer) for pointer in _vectors(e, e.element(e.data(0), args[1]), tile.vectors)]
        return e.update(tile, ir.Constant(context.get_value_type(tile), ir.Undefined), lambda row, vector, _: line[vector])

    return tile(array, types.intp, rows, vectors), emit


@intrinsic(prefer_literal=True)
def _load_slots(typing: Any, array: Any, start: Any, index: Any, slots: Any, rows: Any, vectors: Any) -> Any:
    tile = Tile(rows.literal_value, vectors.literal_value)

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        e = Emitter(context, builder, signature, args)
        pointers = _slot_pointers(e, tile, 0)
        empty = ir.Constant(context.get_value_type(tile), ir.Undefined)
        return e.update(tile, empty, lambda row, vector, _: e.load(pointers[row][vector]))

    return tile(array, types.intp, index, types.intp, rows, vectors), emit


@intrinsic
def _store_slots(typing: Any, tile: Any, array: Any, start: Any, index: Any, slots: Any) -> Any:
    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        e = Emitter(context, builder, signature, args)
        _store(e, tile, _slot_pointers(e, tile, 1))
        return context.get_dummy_value()

    return types.void(tile, array, types.intp, index, types.intp), emit


@intrinsic
def _store_rows(typing: Any, tile: Any, array: Any, start: Any, index: Any, table: Any, slots: Any) -> Any:
    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        e = Emitter(context, builder, signature, args)
        _store(e, tile, _row_pointers(e, tile, 1))
        return context.get_dummy_value()

    return types.void(tile, array, types.intp, index, types.intp, types.intp), emit


def _store(e: Emitter, tile: Tile, pointers: list[list[Any]]) -> None:
    for row, line in enumerate(pointers):
        for vector, pointer in enumerate(line):
            e.store(e.builder.extract_value(e.args[0], row * tile.vectors + vector), pointer)


@intrinsic
def _add_rows(typing: Any, tile: Any, array: Any, start: Any, index: Any, table: Any, slots: Any) -> Any:
    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        e = Emitter(context, builder, signature, args)
        pointers = _row_pointers(e, tile, 1)
        return e.update(tile, args[0], lambda row, vector, old: builder.fadd(old, e.load(pointers[row][vector])))

    return tile(tile, array, types.intp, index, types.intp, types.intp), emit


@intrinsic
def _keep_lanes(typing: Any, tile: Any, array: Any, start: Any, index: Any, table: Any, slots: Any) -> Any:
    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        e, kind = Emitter(context, builder, signature, args), ir.VectorType(ir.IntType(32), LANES)
        other = e.load(e.element(e.data(1), args[2]))
        lanes = ir.Constant(kind, [1 << lane for lane in range(LANES)])

        def change(row: int, vector: int, old: Any) -> Any:
            bits = builder.load(e.element(e.data(3), _sum(e, args[4], _listed(e, 3, args[5], row))))
            first = builder.insert_element(ir.Constant(kind, ir.Undefined), bits, ir.Constant(ir.IntType(32), 0))
            kept = builder.and_(e.shuffle(first, first, [0] * LANES), lanes)
            return builder.select(builder.icmp_signed("!=", kept, ir.Constant(kind, [0] * LANES)), old, other)

        return e.update(Tile(signature.args[0].rows, 1), args[0], change)

    return tile(tile, array, types.intp, index, types.intp, types.intp), emit


@intrinsic
def _clip(typing: Any, tile: Any, low: Any, high: Any) -> Any:
    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        e = Emitter(context, builder, signature, args)
        limits = []
        for argument in (1, 2):
            first = builder.insert_element(ir.Constant(VECTOR, ir.Undefined), args[argument], ir.Constant(ir.IntType(32), 0))
            limits.append(e.shuffle(first, first, [0] * LANES))

        def change(row: int, vector: int, old: Any) -> Any:
            # Unordered comparisons keep a NaN, as the operators of ONNX do.
            raised = builder.select(builder.fcmp_ordered("<", old, limits[0]), limits[0], old)
            return builder.select(builder.fcmp_ordered(">", raised, limits[1]), limits[1], raised)

        return e.update(tile, args[0], change)

    return tile(tile, types.float32, types.float32), emit


def _adding(factor: Callable[[Emitter, Any], Any]) -> Any:
    """Multiply-add of an entry; factor makes the vector that a row is multiplied with from a pointer to its activation."""

    @intrinsic
    def add(typing: Any, tile: Any, x: Any, start: Any, index: Any, table: Any, slots: Any, entry: Any, weights: Any, first: Any) -> Any:
        def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            e = Emitter(context, builder, signature, args)
            x_data, x_start, table_start, slot_list = e.data(1), args[2], args[4], args[5]
            offset, weight = _pair(e, 3, args[6])
            line = [e.load(pointer) for pointer in _vectors(e, e.element(e.data(7), _sum(e, args[8], weight)), tile.vectors)]
            value = args[0]
            for row in range(tile.rows):
                # LLVM takes what doesn't depend on the tap out of the loop over taps: a pointer for each row stays in a register.
                place = _sum(e, table_start, _listed(e, 3, slot_list, row))
                patch = e.element(x_data, _sum(e, x_start, _listed(e, 3, place, 0)))
                activation = factor(e, builder.gep(patch, [offset], inbounds=True))
                for vector in range(tile.vectors):
                    k = row * tile.vectors + vector
                    value = builder.insert_value(value, e.multiply_add(activation, line[vector], builder.extract_value(value, k)), k)
            return value

        return tile(tile, x, types.intp, index, types.intp, types.intp, types.intp, weights, types.intp), emit

    return add


_add_tap, _add_channels = _adding(Emitter.broadcast), _adding(Emitter.load)


@intrinsic
def _add_kept(typing: Any, tile: Any, x: Any, start: Any, zeros: Any, index: Any, base: Any, entry: Any, weights: Any, first: Any) -> Any:
    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        e = Emitter(context, builder, signature, args)
        offset, weight = _pair(e, 4, args[6])
        places = _sum(e, args[5], _listed(e, 4, _sum(e, args[6], ir.Constant(args[6].type, 2)), 0))
        line = [e.load(pointer) for pointer in _vectors(e, e.element(e.data(7), _sum(e, args[8], weight)), tile.vectors)]
        patches = builder.gep(e.element(e.data(1), args[2]), [offset], inbounds=True)
        value = args[0]
        for row in range(tile.rows):
            place = _listed(e, 4, places, row)
            place = builder.select(builder.icmp_signed("<", place, ir.Constant(place.type, 0)), args[3], place)
            activation = e.broadcast(builder.gep(patches, [place], inbounds=True))
            for vector in range(tile.vectors):
                k = row * tile.vectors + vector
                value = builder.insert_value(value, e.multiply_add(activation, line[vector], builder.extract_value(value, k)), k)
        return value

    return tile(tile, x, types.intp, types.intp, index, types.intp, types.intp, weights, types.intp), emit


@intrinsic
def _prefetch(typing: Any, array: Any, start: Any) -> Any:
    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        e, byte, flag = Emitter(context, builder, signature, args), ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [byte, flag, flag, flag])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        pointer = builder.bitcast(builder.gep(e.data(0), [args[1]]), byte)
        # To read, into the first-level cache, data.
        builder.call(function, [pointer, *(ir.Constant(flag, value) for value in (0, 3, 1))])
        return context.get_dummy_value()

    return types.void(array, types.intp), emit


def _numpy_rows(start: int, index: NDArray, table: int, slots: int, tile: NDArray) -> NDArray:
    """[rows, width] positions of the numbers of a tile."""
    first = start + index[table + index[slots : slots + len(tile)]].astype(np.int64)
    return first[:, None] + np.arange(tile[0].size)


def _numpy_slots(start: int, index: NDArray, slots: int, rows: int, width: int) -> NDArray:
    return start + index[slots : slots + rows, None].astype(np.int64) * width + np.arange(width)


def _numpy_same_rows(array: NDArray, start: int, rows: int, vectors: int) -> NDArray:
    return np.tile(array[start : start + vectors * LANES].reshape(1, vectors, LANES), (rows, 1, 1))


def _numpy_load_slots(array: NDArray, start: int, index: NDArray, slots: int, rows: int, vectors: int) -> NDArray:
    return array[_numpy_slots(start, index, slots, rows, vectors * LANES)].reshape(rows, vectors, LANES)


def _numpy_store_slots(tile: NDArray, array: NDArray, start: int, index: NDArray, slots: int) -> None:
    array[_numpy_slots(start, index, slots, len(tile), tile[0].size)] = tile.reshape(len(tile), -1)


def _numpy_store_rows(tile: NDArray, array: NDArray, start: int, index: NDArray, table: int, slots: int) -> None:
    array[_numpy_rows(start, index, table, slots, tile)] = tile.reshape(len(tile), -1)


def _numpy_add_rows(tile: NDArray, array: NDArray, start: int, index: NDArray, table: int, slots: int) -> NDArray:
    return tile + array[_numpy_rows(start, index, table, slots, tile)].reshape(tile.shape)


def _numpy_keep_lanes(tile: NDArray, array: NDArray, start: int, index: NDArray, table: int, slots: int) -> NDArray:
    bits = index[table + index[slots : slots + len(tile)]]
    return np.where(bits[:, None, None] >> np.arange(LANES) & 1, tile, array[start : start + LANES])


def _numpy_clip(tile: NDArray, low: float, high: float) -> NDArray:
    return np.clip(tile, low, high)


def _numpy_add_tap(
    tile: NDArray, x: NDArray, start: int, index: NDArray, table: int, slots: int, entry: int, weights: NDArray, first: int
) -> NDArray:
    factors = x[start + index[table + index[slots : slots + len(tile)]].astype(np.int64) + index[entry]]
    weight = first + index[entry + 1]
    return tile + factors[:, None, None] * weights[weight : weight + tile[0].size].reshape(1, -1, LANES)


def _numpy_add_channels(
    tile: NDArray, x: NDArray, start: int, index: NDArray, table: int, slots: int, entry: int, weights: NDArray, first: int
) -> NDArray:
    activations, weight = x[_numpy_rows(start + index[entry], index, table, slots, tile)], first + index[entry + 1]
    return tile + activations.reshape(tile.shape) * weights[weight : weight + LANES]


def _numpy_add_kept(
    tile: NDArray, x: NDArray, start: int, zeros: int, index: NDArray, base: int, entry: int, weights: NDArray, first: int
) -> NDArray:
    rows = base + index[entry + 2]
    places = index[rows : rows + len(tile)].astype(np.int64)
    factors, weight = x[start + np.where(places < 0, zeros, places) + index[entry]], first + index[entry + 1]
    return tile + factors[:, None, None] * weights[weight : weight + tile[0].size].reshape(1, -1, LANES)


def _numpy_prefetch(array: NDArray, start: int) -> None:
    pass


same_rows = _numpy_same_rows if config.DISABLE_JIT else _same_rows
"""same_rows(array, start, rows, vectors): a tile; tile[r,v] = array[start + v*LANES : + LANES]."""
load_slots = _numpy_load_slots if config.DISABLE_JIT else _load_slots
"""load_slots(array, start, index, slots, rows, vectors): a tile; its row r begins at array[start + index[slots + r] * vectors * LANES]."""
store_slots = _numpy_store_slots if config.DISABLE_JIT else _store_slots
"""store_slots(tile, array, start, index, slots): to where load_slots reads."""
store_rows = _numpy_store_rows if config.DISABLE_JIT else _store_rows
"""store_rows(tile, array, start, index, table, slots): row r begins at array[start + index[table + index[slots + r]]]."""
add_rows = _numpy_add_rows if config.DISABLE_JIT else _add_rows
"""add_rows(tile, array, start, index, table, slots): tile += what store_rows would overwrite."""
keep_lanes = _numpy_keep_lanes if config.DISABLE_JIT else _keep_lanes
"""keep_lanes(tile, array, start, index, table, slots), of tiles of one vector: lane k of row r becomes array[start + k] where bit k of
index[table + index[slots + r]] is 0."""
clip = _numpy_clip if config.DISABLE_JIT else _clip
"""clip(tile, low, high)"""
add_tap = _numpy_add_tap if config.DISABLE_JIT else _add_tap
"""add_tap(tile, x, start, index, table, slots, entry, weights, first), with (offset, weight) = index[entry : entry + 2]:
tile[r,v] += x[start + index[table + index[slots + r]] + offset] * weights[first + weight + v*LANES : + LANES]."""
add_channels = _numpy_add_channels if config.DISABLE_JIT else _add_channels
"""The same for channels in the lanes and tiles of one vector: tile[r,0] += x[... : + LANES] * weights[... : + LANES]."""
add_kept = _numpy_add_kept if config.DISABLE_JIT else _add_kept
"""add_kept(tile, x, start, zeros, index, base, entry, weights, first), with (offset, weight, places) = index[entry : entry + 3] and
place = index[base + places + r], or zeros where that is negative:
tile[r,v] += x[start + place + offset] * weights[first + weight + v*LANES : + LANES]."""
prefetch = _numpy_prefetch if config.DISABLE_JIT else _prefetch
"""prefetch(array, start): hint that the cache line of this position, which may lie outside the array, will be read."""
