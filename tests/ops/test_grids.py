"""Eight-bit grids against the formulas written out number by number."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fineprune.ops.grids import Grid, integer_bias, integer_weights, weight_scales


@given(st.floats(-1000, 1000), st.floats(-1000, 1000))
def test_values_of_the_range_are_within_half_a_step(a: float, b: float) -> None:
    low, high = min(a, b, 0.0), max(a, b, 0.0)
    grid = Grid.of(low, high)
    x = np.linspace(low, high, 300, dtype=np.float32)
    # The zero point is rounded, so that the ends may be half a step outside.
    assert np.abs(grid.reals(grid.integers(x)) - x).max() <= 1.001 * grid.scale + 1e-30
    assert grid.reals(grid.integers(np.zeros(1, np.float32)))[0] == 0


def test_integers_are_those_of_the_formula() -> None:
    grid = Grid.of(-1.0, 3.0)
    for x in (-9.0, -1.0, -0.4, 0.0, 0.1, 2.3, 9.0):
        expected = min(max(round(x / float(grid.scale)) + int(grid.zero_point), 0), 255)  # Python rounds half to even, too
        assert grid.integers(np.float32([x]))[0] == expected
    assert grid.zero_point == 64
    assert list(Grid(scale=np.float32(1), zero_point=np.uint8(0)).integers(np.float32([0.5, 1.5, 2.5]))) == [0, 2, 2]


@pytest.mark.parametrize("ends", [(0.0, 0.0), (2.0, 5.0), (0.0, 1e-44)])
def test_no_range_has_a_scale_of_zero_or_negative_integers(ends: tuple[float, float]) -> None:
    grid = Grid.of(*ends)
    assert grid.scale > 0 and grid.zero_point == 0


def test_weights_reach_64_in_each_filter_and_zeros_stay() -> None:
    random = np.random.default_rng(0)
    w = random.normal(size=(5, 3, 2, 2)).astype(np.float32) * np.float32([1, 10, 0.01, 0, 1]).reshape(-1, 1, 1, 1)
    w[random.random(w.shape) < 0.4] = 0
    scales = weight_scales(w, None, np.float32(0.1))
    q = integer_weights(w, scales)
    assert q.dtype == np.int8 and (q[w == 0] == 0).all()
    assert list(np.abs(q).reshape(5, -1).max(1)) == [64, 64, 64, 0, 64]
    for f in range(5):
        assert np.abs(q[f] * scales[f] - w[f]).max() <= 0.5001 * scales[f]


def test_a_filter_of_zeros_keeps_its_bias() -> None:
    w, bias, scale = np.zeros((2, 3, 1, 1), np.float32), np.float32([1.25, 0]), np.float32(0.02)
    scales = scale * weight_scales(w, bias, scale)
    assert np.abs(integer_bias(bias, scales) * scales - bias).max() < 1e-6
    assert np.isfinite(scales).all() and (scales > 0).all()
