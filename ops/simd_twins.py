"""What the operations of `simd` do, in numpy: kernels run on them with NUMBA_DISABLE_JIT=1, and tests compare the compiled ones."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

LANES = 16
"""Numbers of a vector."""


def lines(array: NDArray, start: int, stride: int, count: int) -> NDArray:
    """[count, LANES]: vectors of numbers, `stride` apart."""
    return np.stack([array[start + k * stride : start + k * stride + LANES] for k in range(count)])


def at(array: NDArray, position: int) -> Any:
    return array[position]


def tile_zeros(rows: int, vectors: int) -> NDArray:
    return np.zeros((rows, vectors, LANES), np.float32)


def tile_load(array: NDArray, start: int, row_stride: int, rows: int, vectors: int) -> NDArray:
    return np.stack([lines(array, start + row * row_stride, LANES, vectors) for row in range(rows)])


def tile_store(tile: NDArray, array: NDArray, start: int, row_stride: int) -> None:
    for row, values in enumerate(tile):
        array[start + row * row_stride : start + row * row_stride + values.size] = values.reshape(-1)


def row_factors(scales: NDArray, scale: int, stride: int, tile: NDArray) -> NDArray:
    """[rows,1,1]: a number for each row of the tile."""
    return np.array([scales[scale + row * stride] for row in range(len(tile))])[:, None, None]


def tile_add_scaled(tile: NDArray, scales: NDArray, scale: int, scale_stride: int, array: NDArray, start: int) -> NDArray:
    return tile + row_factors(scales, scale, scale_stride, tile) * lines(array, start, LANES, tile.shape[1])


def transpose(source: NDArray, start: int, stride: int, out: NDArray, out_start: int, out_stride: int) -> None:
    for row, values in enumerate(lines(source, start, stride, LANES).T):
        out[out_start + row * out_stride : out_start + row * out_stride + LANES] = values
