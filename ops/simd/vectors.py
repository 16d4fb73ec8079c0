"""Functions of the numbers in tiles, and short forms for tiles of one row, as simple kernels have them.

exp(x) = 2^k * exp(r), k = round(x / ln 2), |r| <= ln 2 / 2, exp(r) by its Taylor polynomial of degree 6: within 3e-7 of itself.
"""

import ctypes
from typing import Any

import numpy as np
from numba import types
from numpy.typing import NDArray

from .. import numba_door
from ..numba_door import ir
from .declare import LANES, VECTOR, Emitter, Float, Size, Tile, operation
from .tiles import transposed

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


@operation(lambda e: e.tile(lambda row, vector: e.load(e.element(e.data(0), e.args[1], (vector, e.lanes(1))))))
def load(array: NDArray, start: int, vectors: Size) -> Tile:
    """A tile of one row: so many vectors from array[start] on."""
    return array[start : start + vectors * LANES].reshape(1, vectors, LANES).copy()


@operation(lambda e: e.store_tile(lambda row, vector: e.element(e.data(1), e.args[2], (vector, e.lanes(2)))))
def store(tile: Tile, array: NDArray, start: int) -> None:
    """A tile of one row, from array[start] on."""
    array[start : start + tile.size] = tile.reshape(-1)


def _same(e: Emitter) -> Any:
    vector = e.splat(e.args[0])
    return e.tile(lambda row, k: vector)


@operation(_same)
def same(value: Float, vectors: Size) -> Tile:
    """A tile of one row, all of one number."""
    return np.full((1, vectors, LANES), value, np.float32)


@operation(lambda e: e.update(lambda row, vector, old: e.builder.fadd(old, e.vector(row, vector, tile=1))))
def added(a: Tile, b: Tile) -> Tile:
    """a + b"""
    return a + b


@operation(lambda e: e.update(lambda row, vector, old: e.builder.fmul(old, e.vector(row, vector, tile=1))))
def multiplied(a: Tile, b: Tile) -> Tile:
    """a * b"""
    return a * b


@operation(lambda e: e.update(lambda row, vector, old: e.multiply_add(old, e.vector(row, vector, tile=1), e.vector(row, vector, tile=2))))
def multiply_added(a: Tile, b: Tile, c: Tile) -> Tile:
    """a * b + c, rounded once."""
    return (a.astype(np.float64) * b + c).astype(np.float32)


def _maximum(e: Emitter) -> Any:
    b = e.builder

    def larger(row: int, vector: int, old: Any) -> Any:
        new = e.vector(row, vector, tile=1)
        return b.select(b.or_(b.fcmp_ordered(">", new, old), b.fcmp_unordered("uno", new, new)), new, old)

    return e.update(larger)


@operation(_maximum)
def maximum(old: Tile, new: Tile) -> Tile:
    """The larger number of each two; NaN if one is."""
    return np.where((new > old) | np.isnan(new), new, old)


def _clipped(e: Emitter) -> Any:
    low, high = e.splat(e.args[1]), e.splat(e.args[2])

    def change(row: int, vector: int, old: Any) -> Any:
        raised = e.builder.select(e.builder.fcmp_ordered("<", old, low), low, old)
        return e.builder.select(e.builder.fcmp_ordered(">", raised, high), high, raised)

    return e.update(change)


@operation(_clipped)
def clipped(tile: Tile, low: Float, high: Float) -> Tile:
    """The numbers, from low to high; NaN stays NaN, as in the operators of ONNX."""
    raised = np.where(tile < low, np.float32(low), tile)
    return np.where(raised > high, np.float32(high), raised)


def _constant(value: float) -> Any:
    return ir.Constant(VECTOR, [float(np.float32(value))] * LANES)


def _sigmoid(e: Emitter, x: Any) -> Any:
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


@operation(lambda e: e.update(lambda row, vector, old: _sigmoid(e, old)))
def sigmoid(tile: Tile) -> Tile:
    """1 / (1 + exp(-x))"""
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


def _transpose_lines(e: Emitter) -> None:
    index = e.data(2)

    def line(data: Any, first: Any, table: Any, row: int) -> Any:
        offset = e.builder.load(e.builder.gep(index, [e.builder.add(table, ir.Constant(table.type, row))]))
        return e.element(data, e.builder.add(first, e.builder.sext(offset, first.type)))

    rows = transposed(e, [e.load(line(e.data(0), e.args[1], e.args[3], row)) for row in range(LANES)])
    for row, vector in enumerate(rows):
        e.store(vector, line(e.data(4), e.args[5], e.args[6], row))


@operation(_transpose_lines)
def transpose_lines(source: NDArray, start: int, index: NDArray, lines: int, out: NDArray, out_start: int, out_lines: int) -> None:
    """LANES lines of LANES numbers, which lie at source[start + index[lines + k]], transposed; likewise in out. index: int32."""
    values = [source[start + index[lines + k] :][:LANES].copy() for k in range(LANES)]
    for row, line in enumerate(np.stack(values).T):
        out[out_start + index[out_lines + row] :][:LANES] = line


_FLOATS = types.Array(types.float32, 1, "C")


def _array(kind: Any) -> Any:
    return operation(lambda e: numba_door.array_at(e.context, e.builder, kind, *e.args), lambda address, size: kind(types.intp, types.intp))


@_array(_FLOATS)
def floats(address: int, size: int) -> NDArray:
    """The float32 numbers at an address as an array; its owner has to keep them."""
    return np.ctypeslib.as_array((ctypes.c_float * int(size)).from_address(int(address)))


@_array(types.Array(types.int32, 1, "C"))
def ints(address: int, size: int) -> NDArray:
    """Likewise int32 numbers."""
    return np.ctypeslib.as_array((ctypes.c_int32 * int(size)).from_address(int(address)))


@_array(types.Array(types.int64, 1, "C"))
def longs(address: int, size: int) -> NDArray:
    """Likewise int64 numbers."""
    return np.ctypeslib.as_array((ctypes.c_int64 * int(size)).from_address(int(address)))


def _seen_as(kind: Any) -> Any:
    def emit(e: Emitter) -> Any:
        address = e.builder.ptrtoint(e.data(0), ir.IntType(64))
        return numba_door.array_at(e.context, e.builder, kind, address, ir.IntType(64)(1 << 48))

    return operation(emit, lambda array: kind(array))


@_seen_as(types.Array(types.uint8, 1, "C"))
def octets(array: NDArray) -> NDArray:
    """The bytes of an array, of a length that nobody asks."""
    return array.view(np.uint8)


@_seen_as(types.Array(types.int32, 1, "C"))
def words_of(array: NDArray) -> NDArray:
    """The same as int32 numbers."""
    return array.view(np.int32)
