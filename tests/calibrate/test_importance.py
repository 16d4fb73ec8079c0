"""The sums of Algorithm 9 against the naive loop, and groups of filters that share taps."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fineprune.calibrate.importance import group_filters, tap_sums
from support import reference, vectors
from support.geometries import Geometry, geometries, problem
from support.tolerances import FLOAT64


def test_sums_and_importance_worked_by_hand() -> None:
    sums = tap_sums(vectors.X.sum(0), vectors.M, (3, 3), (1, 1), (1, 1), (1, 1))
    assert sums[0].tolist() == vectors.S
    assert (vectors.K[0, 0] * sums[0]).tolist() == vectors.SIGNED_WIS


@settings(max_examples=40, deadline=None)
@given(geometries(), st.booleans(), st.integers(0, 99))
def test_sums_equal_the_naive_loop(geometry: Geometry, masked: bool, seed: int) -> None:
    p = problem(geometry, seed=seed)
    mask = torch.from_numpy(p.mask) if masked else None
    rtol, atol = FLOAT64
    for x in (p.x, np.abs(p.x)):
        got = tap_sums(torch.from_numpy(x).sum(0), mask, geometry.kernel, *geometry.where)
        expected = reference.tap_sums(x, p.mask if masked else None, geometry.kernel, *geometry.where)
        np.testing.assert_allclose(got, expected, rtol=rtol, atol=max(atol, 1e-10))


@pytest.mark.parametrize(
    ("filters", "lanes", "groups", "sizes"),
    [(32, 16, 1, [16, 16]), (20, 16, 1, [16, 4]), (10, 16, 1, [10]), (12, 4, 2, [4, 2, 4, 2]), (6, 16, 6, [1] * 6), (5, 1, 1, [1] * 5)],
)
def test_groups_have_at_most_lanes_filters_of_one_convolution_group(filters: int, lanes: int, groups: int, sizes: list[int]) -> None:
    weight = torch.randn(filters, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    assignment = group_filters(weight, lanes, groups)
    assert assignment.bincount().tolist() == sizes
    conv_group = torch.arange(filters) // (filters // groups)
    for number in range(len(sizes)):
        assert len(conv_group[assignment == number].unique()) == 1


def test_filters_of_one_pattern_meet() -> None:
    generator = torch.Generator().manual_seed(0)
    patterns = torch.rand(3, 4, 3, 3, generator=generator) > 0.6
    kind = torch.tensor([0, 1, 2] * 4)
    signs_and_sizes = torch.randn(12, generator=generator)[:, None, None, None]
    assignment = group_filters(patterns[kind] * signs_and_sizes, 4)
    for number in range(3):
        assert len(kind[assignment == number].unique()) == 1


def test_a_filter_of_zeros_gets_a_group_too() -> None:
    weight = torch.zeros(5, 2, 3, 3)
    weight[3] = 1
    assert group_filters(weight, 2).bincount().tolist() == [2, 2, 1]
