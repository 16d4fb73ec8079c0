"""The operations of ops/simd/ and of the training kernels: compiled, against their numpy twins."""

from collections.abc import Callable
from types import FunctionType
from typing import Any

import numpy as np
import pytest
from numba import njit
from numpy.typing import NDArray

from fineprune.ops.kernels.simd import (
    halve,
    tile_add,
    tile_add_gathered,
    tile_add_outer,
    tile_add_scaled_tile,
    tile_column_sums,
    tile_count,
    tile_load_bytes,
    tile_row_sums,
    tile_store_bytes,
    tile_store_first,
    tile_where,
)
from fineprune.ops.simd import LANES, at, pointer, quads, tile_add_scaled, tile_load, tile_store, tile_zeros, transpose
from fineprune.ops.simd.atomics import add, compare_exchange, exchange, raise_to
from fineprune.ops.simd.declare import Float, Tile, operation, twin_of
from fineprune.ops.simd.quads import packed, packed_positions
from fineprune.ops.simd.vectors import (
    added,
    clipped,
    floats,
    load,
    maximum,
    multiplied,
    multiply_added,
    same,
    sigmoid,
    store,
    transpose_lines,
)
from support.tolerances import FLOAT32_SUMS


def numbers(count: int, seed: int = 0) -> NDArray:
    return np.random.default_rng(seed).normal(size=count).astype(np.float32)


def in_numpy(compiled: Any) -> Callable[..., Any]:
    """The function with the twins of the operations that it calls."""
    function = compiled.py_func
    names = {name: twin_of(value) if callable(value) else value for name, value in function.__globals__.items()}
    return FunctionType(function.__code__, names)


@njit
def sums(a: NDArray, b: NDArray, offsets: NDArray, out: NDArray) -> None:
    tile = tile_load(a, 3, 40, 2, 2)
    tile = tile_add_scaled(tile, b, 5, 1, a, 7)
    tile = tile_add_outer(tile, a, 1, 1, 17, 0, b, 2)
    tile = tile_add_gathered(tile, a, 9, b, 4, offsets, at(offsets, 0))
    tile_store(tile, out, 1, 50)
    tile_column_sums(tile, out, 104)
    tile_store(tile_zeros(1, 1), out, 106, 0)
    grid = tile_add_outer(tile_zeros(4, 1), a, 1, 2, 17, 3, b, 2)
    tile_store(grid, out, 130, LANES)


def test_compiled_operations_equal_their_twins() -> None:
    a, b, offsets = numbers(200), numbers(200, 1), np.array([1, 30, 2], np.int32)
    got, expected = np.full(200, np.nan, np.float32), np.full(200, np.nan, np.float32)
    sums(a, b, offsets, got)
    in_numpy(sums)(a, b, offsets, expected)
    np.testing.assert_allclose(got, expected, rtol=FLOAT32_SUMS[0], atol=FLOAT32_SUMS[1])
    assert np.isfinite(expected).sum() == 4 * LANES + 2 + LANES + 4 * LANES


def test_transpose() -> None:
    @njit
    def run(source: NDArray, out: NDArray) -> None:
        transpose(source, 2, 19, out, 5, 23)

    source, out, expected = numbers(400), np.zeros(400, np.float32), np.zeros(400, np.float32)
    run(source, out)
    twin_of(transpose)(source, 2, 19, expected, 5, 23)
    np.testing.assert_array_equal(out, expected)
    assert out[5 + 3 * 23 + 1] == source[2 + 19 + 3]


@njit
def ranking(a: NDArray, b: NDArray, limits: NDArray, out: NDArray, marks: NDArray) -> None:
    tile = tile_add(tile_load(a, 3, 40, 2, 2), b, 5, 33)
    tile = tile_add_scaled_tile(tile, b, 2, 7, tile_load(a, 1, 50, 2, 2))
    tile = tile_where(tile, a, 0, 20, limits, tile_load(b, 0, 32, 2, 2))
    tile_store(tile, out, 0, 32)
    tile_row_sums(tile, out, 64)
    tile_store_first(tile_load(a, 11, 0, 1, 1), out, 112, 5)
    counts = tile_count(tile_count(tile_zeros(2, 2), a, 9, 32, limits), b, 9, 32, limits)
    tile_store_bytes(counts, marks, 3)
    tile_store(tile_load_bytes(marks, 5), out, 96, 0)


def test_operations_of_the_ranking_equal_their_twins() -> None:
    a, b, limits = numbers(200), numbers(200, 1), numbers(32, 2)
    got, expected = (np.full(120, np.nan, np.float32) for _ in range(2))
    marks, expected_marks = (np.full(80, 7, np.uint8) for _ in range(2))
    ranking(a, b, limits, got, marks)
    in_numpy(ranking)(a, b, limits, expected, expected_marks)
    np.testing.assert_allclose(got, expected, rtol=FLOAT32_SUMS[0], atol=FLOAT32_SUMS[1])
    np.testing.assert_array_equal(marks, expected_marks)
    assert set(marks) == {0, 1, 2, 7}


def test_a_step_of_bisection_equals_its_twin() -> None:
    @njit
    def run(low: NDArray, high: NDArray, middle: NDArray, counts: NDArray, wanted: NDArray) -> bool:
        return halve(low, high, middle, counts, wanted)

    random = np.random.default_rng(3)
    low = random.integers(0, 1 << 30, LANES).astype(np.int32)
    for width in (1, 2, 3, 1 << 20):
        high = low + np.int32(width)
        arrays = [
            low,
            high,
            low + np.int32(width // 2),
            random.integers(3, 6, LANES).astype(np.float32),
            np.full(LANES, 4, np.float32),
        ]
        got, expected = [array.copy() for array in arrays], [array.copy() for array in arrays]
        assert run(*got) == twin_of(halve)(*expected) == (width > 2)
        for mine, its in zip(got, expected, strict=True):
            np.testing.assert_array_equal(mine, its)


@njit
def functions(a: NDArray, index: NDArray, address: int, out: NDArray) -> None:
    x, y = load(a, 1, 2), load(a, 40, 2)
    store(maximum(x, added(y, same(np.float32(0.5), 2))), out, 0)
    store(clipped(multiply_added(x, y, multiplied(y, y)), np.float32(-0.25), np.float32(1)), pointer(out), 32)
    store(sigmoid(x), out, 64)
    transpose_lines(a, 0, index, 0, out, 100, LANES)
    out[96] = at(floats(address, 50), 7) + at(index, 3) + at(pointer(index), 4)


def test_functions_of_vectors_equal_their_twins() -> None:
    a, index = numbers(400), np.concatenate([np.arange(LANES) * 19, np.arange(LANES) * 17]).astype(np.int32)
    a[5] = np.nan
    got, expected = np.zeros(400, np.float32), np.zeros(400, np.float32)
    functions(a, index, a.ctypes.data, got)
    in_numpy(functions)(a, index, a.ctypes.data, expected)
    np.testing.assert_allclose(got, expected, rtol=FLOAT32_SUMS[0], atol=FLOAT32_SUMS[1])
    assert np.isnan(expected).sum() == 4, "the maximum, the clipped sum, sigmoid and the transposed line keep it"
    assert got[96] == np.float32(a[7] + 19 * 7)


@njit
def counting(a: NDArray) -> tuple[int, int, int, bool, bool]:
    return add(a, 0, 5), exchange(a, 1, 7), raise_to(a, 2, -3), compare_exchange(a, 3, 4, 9), compare_exchange(a, 3, 4, 8)


def test_atomics_equal_their_twins() -> None:
    got, expected = np.arange(1, 5), np.arange(1, 5)
    assert counting(got) == in_numpy(counting)(expected) == (6, 2, 3, True, False)
    assert got.tolist() == expected.tolist() == [6, 7, 3, 9]


@operation(lambda e: e.update(lambda row, vector, old: e.builder.fadd(old, e.splat(e.args[1]))))
def raised(tile: Tile, by: Float) -> Tile:
    """tile + by"""
    return tile + by


@njit
def declared(a: NDArray, out: NDArray) -> None:
    store(raised(load(a, 0, 1), 2), out, 0)


def test_an_operation_is_one_declaration() -> None:
    """Its annotations give the types (2 becomes a float32), its body the twin."""
    a, out, expected = numbers(LANES), np.zeros(LANES, np.float32), np.zeros(LANES, np.float32)
    declared(a, out)
    in_numpy(declared)(a, expected)
    np.testing.assert_array_equal(out, expected)
    np.testing.assert_array_equal(out, a + np.float32(2))
    assert raised.__doc__ == "tile + by"


def packing(a: NDArray, out: NDArray, up: int, low: int, high: int) -> None:
    x, y, z, w = load(a, 0, 1), load(a, LANES, 1), load(a, 2 * LANES, 1), load(a, 3 * LANES, 1)
    store(packed(x, y, z, w, up, low, high), out, 0)
    store(packed_positions(x, y, z, w, up, low, high), out, LANES)


@pytest.mark.parametrize("host", [quads.HOST, quads.PLAIN])
@pytest.mark.parametrize("limits", [(0, 0, 255), (7, 7, 255), (128, 3, 200), (255, 0, 255)])
def test_packed_bytes_equal_their_twins(host: str, limits: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever becomes of numbers that are far away, or none; on CPUs that pack with saturation, and on others."""
    monkeypatch.setattr(quads, "HOST", host)
    a = numbers(4 * LANES) * 200
    a[::5] = np.rint(a[::5]) + np.float32(0.5)
    a[:11] = [np.nan, np.inf, -np.inf, 3e9, -3e9, 2147483648, -2147483648, 32767.5, 40000, -32768.5, -40000]
    got, expected = np.zeros(2 * LANES, np.float32), np.zeros(2 * LANES, np.float32)
    njit(packing)(a, got, *limits)
    up, low, high = limits
    bytes_ = [min(max(round(float(x)) + up, low), high) if abs(x) < 1e9 else high if x > 0 else low for x in a]
    expected.view(np.uint8)[:] = [*np.reshape(bytes_, (4, LANES)).T.ravel(), *np.reshape(bytes_, (4, -1, 4)).transpose(1, 0, 2).ravel()]
    np.testing.assert_array_equal(got.view(np.uint8), expected.view(np.uint8))
    twins = np.zeros(2 * LANES, np.float32)
    in_numpy(njit(packing))(a, twins, *limits)
    np.testing.assert_array_equal(twins.view(np.uint8), expected.view(np.uint8))
