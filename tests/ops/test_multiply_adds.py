"""The one formula of multiply-adds, and the one of output sizes, against counting."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fineprune.ops.geometry import windows
from fineprune.ops.multiply_adds import multiply_adds, per_block

CHANNELS, FILTERS, GROUPS, KERNEL, OUTPUT = 6, 4, 2, (3, 2), (5, 7)


def counted(blocks: NDArray, weights: NDArray) -> int:
    """A multiply-add for each filter, channel of its group, kept tap and kept position."""
    total, per_group = 0, CHANNELS // GROUPS
    for f, c, u, v in np.ndindex(FILTERS, per_group, *KERNEL):
        channel = f // (FILTERS // GROUPS) * per_group + c
        total += int(weights[f, c, u, v] != 0) * sum(bool(kept) for kept in blocks[channel].reshape(-1))
    return total


@pytest.mark.parametrize("has_blocks", [False, True])
@pytest.mark.parametrize("has_weights", [False, True])
def test_the_formula_counts(has_blocks: bool, has_weights: bool) -> None:
    random = np.random.default_rng(0)
    blocks = random.random((CHANNELS, *OUTPUT)) < 0.6 if has_blocks else None
    shape = (FILTERS, CHANNELS // GROUPS, *KERNEL)
    weights = np.where(random.random(shape) < 0.5, -0.5, 0.0) if has_weights else None
    expected = counted(np.ones((CHANNELS, *OUTPUT)) if blocks is None else blocks, np.ones(shape) if weights is None else weights)
    assert multiply_adds(shape, 35, GROUPS, blocks=blocks, weights=weights) == expected


def test_a_block_and_counts_beyond_32_bits() -> None:
    assert per_block((FILTERS, CHANNELS // GROUPS, *KERNEL), GROUPS) == 12
    assert multiply_adds((1 << 12, 1 << 12, 3), 1 << 20, 1) == 3 << 44


@settings(deadline=None)
@given(st.integers(1, 30), st.integers(1, 5), st.integers(1, 4), st.integers(1, 3))
def test_windows_are_those_that_fit(size: int, kernel: int, stride: int, dilation: int) -> None:
    reach = dilation * (kernel - 1)
    assert max(windows(size, kernel, stride, dilation), 0) == sum(start + reach < size for start in range(0, size, stride))


def test_what_a_device_needs_is_free_of_torch() -> None:
    names = "geometry, jit, mask_bits, multiply_adds, numba_door, simd"
    code = f"from fineprune.ops import {names}; from fineprune.ops.simd import atomics, vectors\nimport sys; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "False"
