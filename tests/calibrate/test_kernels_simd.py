"""The vector operations, compiled, against their numpy twins."""

import numpy as np
from numba import njit
from numpy.typing import NDArray

from fineprune.calibrate.kernels import simd
from support.tolerances import FLOAT32_SUMS


def numbers(count: int, seed: int = 0) -> NDArray:
    return np.random.default_rng(seed).normal(size=count).astype(np.float32)


@njit
def compiled(a: NDArray, b: NDArray, offsets: NDArray, out: NDArray) -> None:
    tile = simd.tile_load(a, 3, 40, 2, 2)
    tile = simd.tile_add_scaled(tile, b, 5, a, 7)
    tile = simd.tile_add_products(tile, a, 1, 17, b, 2, 1, 33, 0)
    tile = simd.tile_add_gathered(tile, a, 9, b, 4, offsets, simd.at(offsets, 0))
    simd.tile_store(tile, out, 1, 50)
    simd.tile_lane_sums(tile, out, 100)
    simd.tile_column_sums(tile, out, 104)
    simd.tile_store(simd.tile_zeros(1, 1), out, 106, 0)


def twins(a: NDArray, b: NDArray, offsets: NDArray, out: NDArray) -> None:
    tile = simd._numpy_tile_load(a, 3, 40, 2, 2)
    tile = simd._numpy_tile_add_scaled(tile, b, 5, a, 7)
    tile = simd._numpy_tile_add_products(tile, a, 1, 17, b, 2, 1, 33, 0)
    tile = simd._numpy_tile_add_gathered(tile, a, 9, b, 4, offsets, simd._numpy_at(offsets, 0))
    simd._numpy_tile_store(tile, out, 1, 50)
    simd._numpy_tile_lane_sums(tile, out, 100)
    simd._numpy_tile_column_sums(tile, out, 104)
    simd._numpy_tile_store(simd._numpy_tile_zeros(1, 1), out, 106, 0)


def test_compiled_operations_equal_their_twins() -> None:
    a, b, offsets = numbers(200), numbers(200, 1), np.array([1, 30, 2], np.int32)
    got, expected = np.full(130, np.nan, np.float32), np.full(130, np.nan, np.float32)
    compiled(a, b, offsets, got)
    twins(a, b, offsets, expected)
    np.testing.assert_allclose(got, expected, rtol=FLOAT32_SUMS[0], atol=FLOAT32_SUMS[1])
    assert np.isfinite(expected).sum() == 4 * simd.LANES + 4 + 2 + simd.LANES


def test_transpose() -> None:
    @njit
    def run(source: NDArray, out: NDArray) -> None:
        simd.transpose(source, 2, 19, out, 5, 23)

    source, out, expected = numbers(400), np.zeros(400, np.float32), np.zeros(400, np.float32)
    run(source, out)
    simd._numpy_transpose(source, 2, 19, expected, 5, 23)
    np.testing.assert_array_equal(out, expected)
    assert out[5 + 3 * 23 + 1] == source[2 + 19 + 3]
