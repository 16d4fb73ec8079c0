"""First-order scores against the naive loops of their equations."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fineprune.calibrate.importance import group_filters
from fineprune.calibrate.taylor import block_taylor, tap_taylor
from fineprune.ops import masked_conv_torch
from support import reference
from support.geometries import KINDS, Geometry, geometries, problem

TOLERANCE = {"rtol": 1e-9, "atol": 1e-9}


@settings(max_examples=40, deadline=None)
@given(geometries(), st.integers(0, 99))
def test_block_scores_equal_the_naive_loop(geometry: Geometry, seed: int) -> None:
    p = problem(geometry, seed=seed)
    got = block_taylor(*p.tensors("x", "grad", "w"), geometry.where, geometry.groups)
    assert got.dtype == torch.float64
    np.testing.assert_allclose(got, reference.block_taylor(p.x, p.grad, p.w, *geometry.where, geometry.groups), **TOLERANCE)


@settings(max_examples=40, deadline=None)
@given(geometries(), st.booleans(), st.integers(1, 4), st.integers(0, 99))
def test_tap_scores_equal_the_naive_loop(geometry: Geometry, masked: bool, lanes: int, seed: int) -> None:
    p = problem(geometry, seed=seed)
    mask = p.mask if masked else None
    x, grad, w = p.tensors("x", "grad", "w")
    assignment = group_filters(w, lanes, geometry.groups)
    got = tap_taylor(x, grad, w, None if mask is None else torch.from_numpy(mask), geometry.where, geometry.groups, assignment)
    filters = np.arange(geometry.filters)
    of_a_convolution_group = filters // (geometry.filters // geometry.groups)
    for scores, sets in ((got.kernel, filters), (got.group, assignment.numpy()), (got.channel, of_a_convolution_group)):
        expected = reference.tap_taylor(p.x, p.grad, p.w, mask, sets, *geometry.where, geometry.groups)
        np.testing.assert_allclose(scores.reshape(expected.shape), expected, **TOLERANCE)
    assert got.channel.shape == (geometry.channels, *geometry.kernel)


@pytest.mark.parametrize("geometry", KINDS.values(), ids=KINDS)
def test_many_small_chunks_equal_one(geometry: Geometry, monkeypatch: pytest.MonkeyPatch) -> None:
    x, grad, w, mask = problem(geometry).tensors("x", "grad", "w", "mask")
    assignment = group_filters(w, 2, geometry.groups)

    def scores() -> list[torch.Tensor]:
        blocks = block_taylor(x, grad, w, geometry.where, geometry.groups)
        return [blocks, *tap_taylor(x, grad, w, mask, geometry.where, geometry.groups, assignment)]

    whole = scores()
    monkeypatch.setattr(masked_conv_torch, "_CHUNK_BYTES", {"cpu": 1})
    for piecewise, expected in zip(scores(), whole, strict=True):
        torch.testing.assert_close(piecewise, expected)
