"""The refit against numpy's least squares: the ridge is a row of sqrt(a) more for each weight, whose target is sqrt(a) w0."""

import numpy as np
import pytest
import torch
from torch import Tensor

from fineprune.compressor.reconstruct.refit import RIDGE, refit, ridge_of


def naive(x: Tensor, y: Tensor, before: Tensor, kept: Tensor, ridge: Tensor) -> Tensor:
    """x[d,n], y[F,n]: one filter after the other, on the kept rows alone."""
    found = torch.zeros_like(before)
    for f in range(len(before)):
        rows = kept[f].nonzero().flatten()
        roots = ridge[rows].sqrt()
        system = torch.cat([x[rows].T, torch.diag(roots)])
        wanted = torch.cat([y[f], roots * before[f, rows]])
        found[f, rows] = torch.from_numpy(np.linalg.lstsq(system.numpy(), wanted.numpy(), rcond=None)[0])
    return found


def problem(kept_fraction: float, *, filters: int = 7, inputs: int = 11, samples: int = 40, seed: int = 0) -> tuple[Tensor, ...]:
    """x[d,n] with related rows, y[F,n], w0[F,d], kept[F,d], of which the last two filters keep the same."""
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(inputs, inputs, generator=random).double() @ torch.randn(inputs, samples, generator=random).double()
    before = torch.randn(filters, inputs, generator=random).double()
    kept = torch.rand(filters, inputs, generator=random) < kept_fraction
    kept[-1] = kept[-2]
    y = before @ (x + 0.3 * torch.randn(x.shape, generator=random))
    return x, y, before, kept


@pytest.mark.parametrize("kept_fraction", [0.0, 0.3, 0.7, 0.95, 1.0])
@pytest.mark.parametrize("bias", [False, True])
def test_refit_is_the_least_squares_solution(kept_fraction: float, bias: bool) -> None:
    x, y, before, kept = problem(kept_fraction)
    if bias:
        x[-1], kept[:, -1] = 1.0, True
    ridge = ridge_of(x @ x.T, bias=bias)
    found = refit(x @ x.T, x @ y.T, before, kept, ridge)
    assert torch.allclose(found, naive(x, y, before, kept, ridge), rtol=1e-8, atol=1e-10)
    assert not found[~kept].any()


def test_the_ridge_is_a_share_of_the_mean_square_and_spares_the_bias() -> None:
    gram = torch.diag(torch.tensor([2.0, 4.0, 7.0], dtype=torch.float64))
    assert torch.allclose(ridge_of(gram, bias=False), torch.full((3,), RIDGE * 13 / 3, dtype=torch.float64))
    assert ridge_of(gram, bias=True).tolist() == pytest.approx([RIDGE * 3, RIDGE * 3, 0])


@pytest.mark.parametrize("size", [0.0, 1e-43])  # the second: of a deep network without training, in which activations fade away
def test_inputs_that_are_all_but_zero_leave_the_weights_as_they_are(size: float) -> None:
    _, _, before, kept = problem(0.5)
    nothing = size * torch.randn(11, 11, generator=torch.Generator().manual_seed(0)).double()
    nothing.diagonal().abs_()
    found = refit(nothing, torch.zeros(11, 7, dtype=torch.float64), before, kept, ridge_of(nothing, bias=False))
    assert torch.allclose(found, before * kept)


def test_few_weights_dropped_go_by_the_inverse_and_many_by_the_kept_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways give the same weights; that the cheaper one is taken shows in the sizes of the systems solved."""
    sizes: list[int] = []
    solve = torch.linalg.cholesky
    monkeypatch.setattr(torch.linalg, "cholesky", lambda system: sizes.append(len(system)) or solve(system))
    x, y, before, kept = problem(0.95, filters=60)
    refit(x @ x.T, x @ y.T, before, kept, ridge_of(x @ x.T, bias=False))
    assert sizes[0] == 11 and max(sizes[1:]) < 6
    sizes.clear()
    refit(x @ x.T, x @ y.T, before, ~kept, ridge_of(x @ x.T, bias=False))
    assert max(sizes) < 6


def test_filters_that_keep_the_same_share_the_factor(monkeypatch: pytest.MonkeyPatch) -> None:
    solved: list[Tensor] = []
    solve = torch.linalg.cholesky
    monkeypatch.setattr(torch.linalg, "cholesky", lambda system: solved.append(system) or solve(system))
    x, y, before, kept = problem(0.4)
    kept[:] = kept[0]
    refit(x @ x.T, x @ y.T, before, kept, ridge_of(x @ x.T, bias=False))
    assert len(solved) == 1
