"""Operations on register tiles that several kernels share: memory to tile, tile to memory, multiply-adds."""

from typing import Any

import numpy as np
from numba import types
from numpy.typing import NDArray

from ..numba_door import ir
from .declare import LANES, Emitter, Size, Tile, operation


def lines(array: NDArray, start: int, stride: int, count: int) -> NDArray:
    """[count, LANES]: vectors of numbers, `stride` apart. For twins."""
    return np.stack([array[start + k * stride : start + k * stride + LANES] for k in range(count)])


def row_numbers(array: NDArray, start: int, stride: int, rows: int) -> NDArray[np.float32]:
    """[rows,1,1]: a number for each row of a tile. For twins."""
    return np.array([array[start + row * stride] for row in range(rows)], np.float32)[:, None, None]


@operation(lambda e: e.builder.load(e.element(e.data(0), e.args[1])), lambda array, position: array.dtype(array, types.intp))
def at(array: NDArray, position: int) -> Any:
    """array[position] of any type; a negative position does not count from the end, which costs three instructions."""
    return array[position]


@operation(lambda e: e.data(0), lambda array: types.CPointer(array.dtype)(array))
def pointer(array: NDArray) -> NDArray:
    """To the first element of an array of any type: operations take it for the array."""
    return array


@operation(lambda e: ir.Constant(e.context.get_value_type(e.result), None))
def tile_zeros(rows: Size, vectors: Size) -> Tile:
    """A tile of zeros."""
    return np.zeros((rows, vectors, LANES), np.float32)


@operation(lambda e: e.tile(lambda row, vector: e.load(e.place(0, row, vector))))
def tile_load(array: NDArray, start: int, row_stride: int, rows: Size, vectors: Size) -> Tile:
    """tile[r,v] = array[start + r*row_stride + v*LANES : + LANES]: the vectors of a row follow each other."""
    return np.stack([lines(array, start + row * row_stride, LANES, vectors) for row in range(rows)])


@operation(lambda e: e.store_tile(lambda row, vector: e.place(1, row, vector)))
def tile_store(tile: Tile, array: NDArray, start: int, row_stride: int) -> None:
    """array[start + r*row_stride + v*LANES : + LANES] = tile[r,v]."""
    for row, values in enumerate(tile):
        array[start + row * row_stride : start + row * row_stride + values.size] = values.reshape(-1)


def _add_scaled(e: Emitter) -> Any:
    tile, data = e.types[0], e.data(4)
    factors = e.row_factors(1, tile.rows)
    shared = [e.load(e.element(data, e.args[5], (vector, e.lanes(5)))) for vector in range(tile.vectors)]
    return e.update(lambda row, vector, old: e.multiply_add(factors[row], shared[vector], old))


@operation(_add_scaled)
def tile_add_scaled(tile: Tile, scales: NDArray, scale: int, scale_stride: int, array: NDArray, start: int) -> Tile:
    """tile[r,v] += scales[scale + r*scale_stride] * array[start + v*LANES : + LANES]."""
    return tile + row_numbers(scales, scale, scale_stride, len(tile)) * lines(array, start, LANES, tile.shape[1])


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


def _transpose(e: Emitter) -> None:
    source, out = e.data(0), e.data(3)
    rows = [e.load(e.element(source, e.args[1], (row, e.args[2]))) for row in range(LANES)]
    for row, vector in enumerate(transposed(e, rows)):
        e.store(vector, e.element(out, e.args[4], (row, e.args[5])))


@operation(_transpose)
def transpose(source: NDArray, start: int, stride: int, out: NDArray, out_start: int, out_stride: int) -> None:
    """LANES rows of LANES numbers, transposed."""
    for row, values in enumerate(lines(source, start, stride, LANES).T):
        out[out_start + row * out_stride : out_start + row * out_stride + LANES] = values
