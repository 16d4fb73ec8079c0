"""The vector operations, compiled, against their numpy twins."""

import numpy as np
from numba import njit
from numpy.typing import NDArray

from fineprune.ops import simd as tiles
from fineprune.ops import simd_twins as tile_twins
from fineprune.ops.kernels import simd, twins
from support.tolerances import FLOAT32_SUMS


def numbers(count: int, seed: int = 0) -> NDArray:
    return np.random.default_rng(seed).normal(size=count).astype(np.float32)


@njit
def compiled(a: NDArray, b: NDArray, offsets: NDArray, out: NDArray) -> None:
    tile = tiles.tile_load(a, 3, 40, 2, 2)
    tile = tiles.tile_add_scaled(tile, b, 5, 1, a, 7)
    tile = simd.tile_add_outer(tile, a, 1, 1, 17, 0, b, 2)
    tile = simd.tile_add_gathered(tile, a, 9, b, 4, offsets, tiles.at(offsets, 0))
    tiles.tile_store(tile, out, 1, 50)
    simd.tile_column_sums(tile, out, 104)
    tiles.tile_store(tiles.tile_zeros(1, 1), out, 106, 0)
    grid = simd.tile_add_outer(tiles.tile_zeros(4, 1), a, 1, 2, 17, 3, b, 2)
    tiles.tile_store(grid, out, 130, tiles.LANES)


def in_numpy(a: NDArray, b: NDArray, offsets: NDArray, out: NDArray) -> None:
    tile = tile_twins.tile_load(a, 3, 40, 2, 2)
    tile = tile_twins.tile_add_scaled(tile, b, 5, 1, a, 7)
    tile = twins.tile_add_outer(tile, a, 1, 1, 17, 0, b, 2)
    tile = twins.tile_add_gathered(tile, a, 9, b, 4, offsets, tile_twins.at(offsets, 0))
    tile_twins.tile_store(tile, out, 1, 50)
    twins.tile_column_sums(tile, out, 104)
    tile_twins.tile_store(tile_twins.tile_zeros(1, 1), out, 106, 0)
    grid = twins.tile_add_outer(tile_twins.tile_zeros(4, 1), a, 1, 2, 17, 3, b, 2)
    tile_twins.tile_store(grid, out, 130, tiles.LANES)


def test_compiled_operations_equal_their_twins() -> None:
    a, b, offsets = numbers(200), numbers(200, 1), np.array([1, 30, 2], np.int32)
    got, expected = np.full(200, np.nan, np.float32), np.full(200, np.nan, np.float32)
    compiled(a, b, offsets, got)
    in_numpy(a, b, offsets, expected)
    np.testing.assert_allclose(got, expected, rtol=FLOAT32_SUMS[0], atol=FLOAT32_SUMS[1])
    assert np.isfinite(expected).sum() == 4 * tiles.LANES + 2 + tiles.LANES + 4 * tiles.LANES


def test_transpose() -> None:
    @njit
    def run(source: NDArray, out: NDArray) -> None:
        tiles.transpose(source, 2, 19, out, 5, 23)

    source, out, expected = numbers(400), np.zeros(400, np.float32), np.zeros(400, np.float32)
    run(source, out)
    tile_twins.transpose(source, 2, 19, expected, 5, 23)
    np.testing.assert_array_equal(out, expected)
    assert out[5 + 3 * 23 + 1] == source[2 + 19 + 3]


@njit
def compiled_ranking(a: NDArray, b: NDArray, limits: NDArray, out: NDArray, marks: NDArray) -> None:
    tile = simd.tile_add(tiles.tile_load(a, 3, 40, 2, 2), b, 5, 33)
    tile = simd.tile_add_scaled_tile(tile, b, 2, 7, tiles.tile_load(a, 1, 50, 2, 2))
    tile = simd.tile_where(tile, a, 0, 20, limits, tiles.tile_load(b, 0, 32, 2, 2))
    tiles.tile_store(tile, out, 0, 32)
    simd.tile_row_sums(tile, out, 64)
    simd.tile_store_first(tiles.tile_load(a, 11, 0, 1, 1), out, 112, 5)
    counts = simd.tile_count(simd.tile_count(tiles.tile_zeros(2, 2), a, 9, 32, limits), b, 9, 32, limits)
    simd.tile_store_bytes(counts, marks, 3)
    tiles.tile_store(simd.tile_load_bytes(marks, 5), out, 96, 0)


def numpy_ranking(a: NDArray, b: NDArray, limits: NDArray, out: NDArray, marks: NDArray) -> None:
    tile = twins.tile_add(tile_twins.tile_load(a, 3, 40, 2, 2), b, 5, 33)
    tile = twins.tile_add_scaled_tile(tile, b, 2, 7, tile_twins.tile_load(a, 1, 50, 2, 2))
    tile = twins.tile_where(tile, a, 0, 20, limits, tile_twins.tile_load(b, 0, 32, 2, 2))
    tile_twins.tile_store(tile, out, 0, 32)
    twins.tile_row_sums(tile, out, 64)
    twins.tile_store_first(tile_twins.tile_load(a, 11, 0, 1, 1), out, 112, 5)
    counts = twins.tile_count(twins.tile_count(tile_twins.tile_zeros(2, 2), a, 9, 32, limits), b, 9, 32, limits)
    twins.tile_store_bytes(counts, marks, 3)
    tile_twins.tile_store(twins.tile_load_bytes(marks, 5), out, 96, 0)


def test_operations_of_the_ranking_equal_their_twins() -> None:
    a, b, limits = numbers(200), numbers(200, 1), numbers(32, 2)
    got, expected = (np.full(120, np.nan, np.float32) for _ in range(2))
    marks, expected_marks = (np.full(80, 7, np.uint8) for _ in range(2))
    compiled_ranking(a, b, limits, got, marks)
    numpy_ranking(a, b, limits, expected, expected_marks)
    np.testing.assert_allclose(got, expected, rtol=FLOAT32_SUMS[0], atol=FLOAT32_SUMS[1])
    np.testing.assert_array_equal(marks, expected_marks)
    assert set(marks) == {0, 1, 2, 7}


def test_a_step_of_bisection_equals_its_twin() -> None:
    @njit
    def run(low: NDArray, high: NDArray, middle: NDArray, counts: NDArray, wanted: NDArray) -> bool:
        return simd.halve(low, high, middle, counts, wanted)

    random = np.random.default_rng(3)
    low = random.integers(0, 1 << 30, tiles.LANES).astype(np.int32)
    for width in (1, 2, 3, 1 << 20):
        high = low + np.int32(width)
        arrays = [
            low,
            high,
            low + np.int32(width // 2),
            random.integers(3, 6, tiles.LANES).astype(np.float32),
            np.full(tiles.LANES, 4, np.float32),
        ]
        got, expected = [array.copy() for array in arrays], [array.copy() for array in arrays]
        assert run(*got) == twins.halve(*expected) == (width > 2)
        for mine, its in zip(got, expected, strict=True):
            np.testing.assert_array_equal(mine, its)
