"""Block scores against the naive loop, exact top-K, and ties that favour no position."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fineprune.calibrate.frequency import NORMS, TieBreaker, block_norms, top_k_mask
from support import reference, vectors
from support.geometries import KINDS, Geometry, geometries, problem
from support.tolerances import FLOAT64


def test_norms_worked_by_hand() -> None:
    scores = block_norms(vectors.X, (3, 3), (1, 1), (1, 1), (1, 1))
    torch.testing.assert_close(scores.square(), torch.tensor(vectors.SQUARED_NORMS).float()[None, None])


@settings(max_examples=40, deadline=None)
@given(geometries(), st.integers(0, 99))
def test_scores_equal_the_naive_loop(geometry: Geometry, seed: int) -> None:
    x = problem(geometry, seed=seed).x
    x[np.abs(x) < 0.5] = 0
    rtol, atol = FLOAT64
    for norm in NORMS:
        got = block_norms(torch.from_numpy(x), geometry.kernel, *geometry.where, norm)  # type: ignore[arg-type]
        np.testing.assert_allclose(got, reference.block_scores(x, geometry.kernel, *geometry.where, norm), rtol=rtol, atol=atol)


@pytest.mark.parametrize("geometry", KINDS.values(), ids=KINDS)
def test_scores_leave_the_input_alone(geometry: Geometry) -> None:
    (x,) = problem(geometry).tensors("x")
    before = x.clone()
    for norm in NORMS:
        block_norms(x, geometry.kernel, *geometry.where, norm)  # type: ignore[arg-type]
    assert torch.equal(x, before)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 50), st.data())
def test_top_k_keeps_exactly_the_k_largest(size: int, data: st.DataObject) -> None:
    keep = data.draw(st.integers(0, size + 2))
    scores = torch.stack([torch.randperm(size, generator=torch.Generator().manual_seed(seed)) for seed in range(6)]).view(2, 3, size)
    assert torch.equal(top_k_mask(scores, keep), scores >= size - keep)


def test_top_k_keeps_exactly_k_among_equal_scores() -> None:
    for keep in range(11):
        assert (top_k_mask(torch.zeros(4, 10), keep).sum(1) == keep).all()


def test_keys_keep_the_order_of_scores_and_are_all_different() -> None:
    scores = torch.tensor([0.0, 1e-30, 0.5, 0.5000001, 0.5, 3.0, 0.0, 1e30]).view(1, 2, 4).repeat(7, 1, 1)
    keys = TieBreaker(8, seed=3).apply(scores, torch.arange(7)).flatten(1)
    for row, score in zip(keys, scores.flatten(1), strict=True):
        assert len(row.unique()) == 8
        assert torch.equal(score[row.argsort()], score.sort().values)
    assert len({tuple(row.argsort().tolist()) for row in keys}) > 1, "each sample has an order of its own"


def test_order_depends_on_seed_and_sample_only() -> None:
    scores = torch.zeros(6, 3, 35)
    together = TieBreaker(105, seed=1).apply(scores, torch.arange(6))
    apart = [TieBreaker(105, seed=1).apply(scores[:1], torch.tensor([i])) for i in (5, 4, 3, 2, 1, 0)]
    assert torch.equal(together, torch.cat(apart[::-1]))
    assert not torch.equal(together, TieBreaker(105, seed=2).apply(scores, torch.arange(6)))


@pytest.mark.parametrize("score", [0.0, 2.5], ids=["zeros", "flat background"])
def test_ties_favour_no_position(score: float) -> None:
    count, channels, positions, keep = 4000, 2, 16, 4
    ties = TieBreaker(channels * positions, seed=0)
    kept = top_k_mask(ties.apply(torch.full((count, channels, positions), score), torch.arange(count)), keep).sum(0)
    expected, deviation = count * keep / positions, (count * keep / positions * (1 - keep / positions)) ** 0.5
    assert (kept - expected).abs().max() < 5 * deviation
