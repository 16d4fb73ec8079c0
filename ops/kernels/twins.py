"""What the vector operations of `simd` do, in numpy: kernels run on them with NUMBA_DISABLE_JIT=1, and tests compare the compiled ones."""

import numpy as np
from numpy.typing import NDArray

from ..simd_twins import LANES, lines, row_factors, tile_load


def tile_store_first(tile: NDArray, array: NDArray, start: int, count: int) -> None:
    array[start : start + count] = tile[0, 0, :count]


def tile_add_outer(
    tile: NDArray, scales: NDArray, scale: int, columns: int, scale_stride: int, scale_column: int, array: NDArray, start: int
) -> NDArray:
    factors = [scales[scale + row // columns * scale_stride + row % columns * scale_column] for row in range(len(tile))]
    return tile + np.array(factors)[:, None, None] * lines(array, start, LANES, tile.shape[1])


def tile_add_scaled_tile(tile: NDArray, scales: NDArray, scale: int, scale_stride: int, other: NDArray) -> NDArray:
    return tile + row_factors(scales, scale, scale_stride, tile) * other


def tile_add(tile: NDArray, array: NDArray, start: int, row_stride: int) -> NDArray:
    return tile + tile_load(array, start, row_stride, *tile.shape[:2])


def tile_count(tile: NDArray, array: NDArray, start: int, row_stride: int, limits: NDArray) -> NDArray:
    return tile + _reached(tile, array, start, row_stride, limits)


def tile_where(tile: NDArray, array: NDArray, start: int, row_stride: int, limits: NDArray, other: NDArray) -> NDArray:
    return np.where(_reached(tile, array, start, row_stride, limits), tile, other)


def _reached(tile: NDArray, array: NDArray, start: int, row_stride: int, limits: NDArray) -> NDArray:
    return tile_load(array, start, row_stride, *tile.shape[:2]) >= lines(limits, 0, LANES, tile.shape[1])


def tile_load_bytes(array: NDArray, start: int) -> NDArray:
    return array[None, None, start : start + LANES].astype(np.float32)


def tile_store_bytes(tile: NDArray, array: NDArray, start: int) -> None:
    array[start : start + tile.size] = tile.reshape(-1)


def tile_add_gathered(tile: NDArray, a: NDArray, a_start: int, b: NDArray, b_start: int, offsets: NDArray, first: int) -> NDArray:
    left = lines(a, a_start, LANES, len(tile))
    right = [lines(b, b_start + offset, LANES, len(tile)) for offset in offsets[first : first + tile.shape[1]]]
    return tile + left[:, None] * np.stack(right, 1)


def tile_row_sums(tile: NDArray, out: NDArray, start: int) -> None:
    out[start : start + tile[0].size] = tile.sum(0).reshape(-1)


def tile_column_sums(tile: NDArray, out: NDArray, start: int) -> None:
    out[start : start + tile.shape[1]] = tile.sum((0, 2))


def halve(low: NDArray, high: NDArray, middle: NDArray, counts: NDArray, wanted: NDArray) -> bool:
    reached, exact = counts >= wanted, counts == wanted
    low[:], high[:] = np.where(reached, middle, low), np.where(exact, middle + 1, np.where(reached, high, middle))
    middle[:] = low + (high - low) // 2
    return bool((high - low > 1).any())
