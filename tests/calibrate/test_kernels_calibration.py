"""The kernels of calibration: ranking blocks against a sort, convolving under masks per sample against the naive loop; uncompiled too."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fineprune.calibrate import kernels as ranking
from fineprune.calibrate.frequency import NORMS, TieBreaker, block_norms, choose_blocks, top_k_mask
from fineprune.ops import kernels, masked_conv_torch
from fineprune.ops.geometry import Conv
from fineprune.ops.masked_conv import masked_conv2d
from support import reference
from support.geometries import Geometry, problem
from support.tolerances import FLOAT32, FLOAT32_SUMS


def conv_of(geometry: Geometry) -> Conv:
    return Conv(*geometry.where)


def small_numbers(geometry: Geometry, seed: int, zeros: float = 0.6) -> torch.Tensor:
    """Whole numbers, of which sums are exact whatever their order, and many equal ones."""
    random = np.random.default_rng(seed)
    shape = (geometry.samples, geometry.channels, *geometry.size)
    return torch.from_numpy((random.integers(-2, 3, shape) * (random.random(shape) >= zeros)).astype(np.float32))


def sorted_choice(scores: np.ndarray, keep: int, ties: TieBreaker, indices: torch.Tensor) -> np.ndarray:
    """One row after another: the positions sorted by score, then by field."""
    samples, channels, positions = scores.shape
    mask = np.zeros(scores.shape, bool)
    for n, c in np.ndindex(samples, channels):
        first = int(ties.offsets(indices)[n]) + c * positions
        field = ties.field[first : first + positions].tolist()
        order = sorted(range(positions), key=lambda p, n=n, c=c, field=field: (scores[n, c, p], field[p]))
        mask[n, c, order[positions - keep :]] = True
    return mask


def check_rank(geometry: Geometry, norm: str, share: float, seed: int, zeros: float = 0.6) -> None:
    x, indices = small_numbers(geometry, seed, zeros), torch.arange(geometry.samples) * 3 + seed
    oh, ow = conv_of(geometry).output(geometry.size, geometry.kernel)
    keep, ties = round(share * oh * ow), TieBreaker(geometry.channels * oh * ow, seed=seed)
    scores = reference.block_scores(x.numpy(), geometry.kernel, *geometry.where, norm).astype(np.float32)
    expected = sorted_choice(scores.reshape(*scores.shape[:2], -1), keep, ties, indices).reshape(scores.shape)
    for memory_format in (torch.contiguous_format, torch.channels_last):
        source = x.contiguous(memory_format=memory_format)
        mask, frequency, total = ranking.rank(source, geometry.kernel, conv_of(geometry), norm, keep, ties.field, ties.offsets(indices))
        np.testing.assert_array_equal(mask.numpy(), expected)
        np.testing.assert_array_equal(frequency.numpy(), expected.sum(0))
        np.testing.assert_allclose(total.numpy(), scores.sum(0, dtype=np.float64), rtol=FLOAT32_SUMS[0], atol=FLOAT32_SUMS[1])


def check_forward(geometry: Geometry, density: float, seed: int = 0) -> None:
    p = problem(geometry, density=density, seed=seed)
    x, w, mask = (torch.from_numpy(v) for v in (p.x, p.w, p.masks))
    y = kernels.forward(x.float(), w.float(), mask, None, conv_of(geometry))
    expected = masked_conv_torch.forward(x, w, mask, conv_of(geometry))
    torch.testing.assert_close(y, expected, rtol=FLOAT32_SUMS[0], atol=FLOAT32_SUMS[1], check_dtype=False)
    assert y.is_contiguous(memory_format=torch.channels_last)


WALKS = [
    {"kernel": (3, 3), "padding": (1, 1)},
    {"kernel": (3, 3), "stride": (2, 2), "padding": (1, 0)},
    {"kernel": (2, 3), "stride": (3, 1), "padding": (0, 2), "dilation": (1, 2)},
]
"""Few, because each is compiled for itself."""


@st.composite
def covered_geometries(draw: st.DrawFn) -> Geometry:
    walk = draw(st.sampled_from(WALKS))
    return Geometry(
        samples=draw(st.integers(1, 4)),
        channels=draw(st.sampled_from([2, 3, 16, 19, 33])),
        filters=draw(st.sampled_from([1, 7, 16, 35])),
        size=(3 + draw(st.integers(0, 5)), 5 + draw(st.sampled_from([0, 1, 3, 7, 16]))),
        **walk,
    )


@settings(max_examples=25, deadline=None)
@given(
    covered_geometries(),
    st.sampled_from(NORMS),
    st.sampled_from([0.0, 0.3, 0.63, 1.0]),
    st.integers(0, 99),
    st.sampled_from([0.1, 0.6, 0.95]),
)
def test_ranks_as_a_sort_by_score_and_field(geometry: Geometry, norm: str, share: float, seed: int, zeros: float) -> None:
    check_rank(geometry, norm, share, seed, zeros)


@pytest.mark.parametrize("norm", NORMS)
def test_ranks_real_numbers_as_torch_does(norm: str) -> None:
    x = torch.randn(5, 32, 12, 9, generator=torch.Generator().manual_seed(0)).relu()
    ties, indices = TieBreaker(32 * 12 * 9, seed=0), torch.arange(5)
    chosen = choose_blocks(x, (3, 3), Conv(padding=(1, 1)), norm, 70, ties, indices)  # type: ignore[arg-type]
    scores = block_norms(x, (3, 3), (1, 1), (1, 1), (1, 1), norm)  # type: ignore[arg-type]
    expected = top_k_mask(ties.apply(scores.flatten(2), indices), 70).view_as(scores)
    # Another order of summation may exchange neighbours in rank.
    assert (chosen.mask != expected).sum() <= 4
    torch.testing.assert_close(chosen.norm, scores.sum(0), rtol=FLOAT32_SUMS[0], atol=FLOAT32_SUMS[1])
    assert (chosen.mask.flatten(2).sum(2) == 70).all()


def test_only_exact_fields_are_ranked_by_the_kernels() -> None:
    x = torch.zeros(1, 2, 4, 4)
    assert ranking.cover_rank(x, torch.empty(5))
    assert not ranking.cover_rank(x.double(), torch.empty(5))
    assert not ranking.cover_rank(x, torch.empty(ranking.LARGEST_FIELD + 1, device="meta"))


@settings(max_examples=30, deadline=None)
@given(covered_geometries(), st.sampled_from([0.0, 0.3, 0.7, 1.0]), st.integers(0, 99))
def test_convolves_each_sample_under_its_own_mask(geometry: Geometry, density: float, seed: int) -> None:
    check_forward(geometry, density, seed)


@pytest.mark.parametrize("padding", [(1, 1), (0, 0), (1, 0), (0, 1)])
def test_what_no_tile_reads_spoils_nothing(padding: tuple[int, int]) -> None:
    """The last rows and columns are beyond the stride, and the buffer is as wide as the input."""
    for channels in (3, 16):
        check_forward(Geometry(channels=channels, size=(8, 24), stride=(3, 3), padding=padding), 0.6)


def test_forward_equals_the_naive_loop() -> None:
    geometry = Geometry(samples=2, channels=3, filters=5, size=(6, 5), kernel=(3, 2), stride=(2, 1), padding=(0, 1), dilation=(1, 2))
    p = problem(geometry, density=0.6)
    y = kernels.forward(*(torch.from_numpy(v).float() for v in (p.x, p.w)), torch.from_numpy(p.masks), None, conv_of(geometry))
    expected = reference.masked_conv2d(p.x, p.w, None, p.masks, **geometry.options)
    np.testing.assert_allclose(y.numpy(), expected, rtol=FLOAT32[0], atol=FLOAT32[1])


def test_neither_the_batch_nor_threads_nor_blocks_change_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    from fineprune.ops.kernels import per_sample_backend

    geometry = Geometry(samples=7, channels=40, filters=20, size=(9, 6), padding=(1, 1))
    p = problem(geometry, density=0.6)
    x, w, mask = torch.from_numpy(p.x).float(), torch.from_numpy(p.w).float(), torch.from_numpy(p.masks)
    ties, conv = TieBreaker(40 * 54, seed=0), conv_of(geometry)

    def results(some: slice) -> list[torch.Tensor]:
        ranked = ranking.rank(x[some], (3, 3), conv, "l2", 30, ties.field, ties.offsets(torch.arange(7)[some]))
        return [kernels.forward(x[some], w, mask[some], None, conv), ranked[0]]

    expected = results(slice(None))
    torch.set_num_threads(3)
    monkeypatch.setattr(per_sample_backend, "CHUNK_BYTES", 1)
    for got in (results(slice(None)), [torch.cat(parts) for parts in zip(results(slice(0, 2)), results(slice(2, 7)), strict=True)]):
        assert all(torch.equal(mine, its) for mine, its in zip(got, expected, strict=True))
    torch.set_num_threads(1)
    monkeypatch.setattr(per_sample_backend, "WEIGHT_BYTES", 1)
    torch.testing.assert_close(results(slice(None))[0], expected[0], rtol=FLOAT32[0], atol=FLOAT32[1])


def test_one_operator_serves_both_kinds_of_masks() -> None:
    geometry = Geometry(samples=3, channels=2, filters=5, padding=(1, 1))
    p = problem(geometry, density=0.6)
    x, w, mask = torch.from_numpy(p.x).float(), torch.from_numpy(p.w).float(), torch.from_numpy(p.masks)
    leaves = x.requires_grad_(), w.requires_grad_()
    torch.library.opcheck(torch.ops.fineprune.masked_conv2d, (*leaves, mask, [1, 1], [1, 1], [1, 1], 1, None))
    double = [t.detach().double().requires_grad_() for t in leaves]
    for got, expected in zip(
        torch.autograd.grad(masked_conv2d(*leaves, None, mask, padding=(1, 1)).square().sum(), leaves),
        torch.autograd.grad(masked_conv2d(*double, None, mask, padding=(1, 1)).square().sum(), double),
        strict=True,
    ):
        torch.testing.assert_close(got, expected, rtol=FLOAT32_SUMS[0], atol=FLOAT32_SUMS[1], check_dtype=False)


def test_numbers_that_are_not_finite_end_somewhere() -> None:
    x = torch.randn(3, 16, 8, 8, generator=torch.Generator().manual_seed(0))
    x[0, 0], x[1, 1, 3], x[2, 2, 2, 2] = torch.nan, torch.inf, -torch.inf
    ties = TieBreaker(16 * 64, seed=0)
    mask = ranking.rank(x, (3, 3), Conv(padding=(1, 1)), "l2", 20, ties.field, ties.offsets(torch.arange(3)))[0]
    assert (mask[0, 1:].flatten(1).sum(1) == 20).all()


UNCOMPILED = """
import numba
assert numba.config.DISABLE_JIT
from support.geometries import Geometry
from test_kernels_calibration import check_forward, check_rank
for channels, width in ((3, 5), (16, 8)):
    geometry = Geometry(samples=2, channels=channels, filters=5, size=(2, width), padding=(1, 1))
    check_forward(geometry, 0.6)
    check_rank(geometry, "l2", 0.6, 0)
"""


def test_uncompiled() -> None:
    """The kernels are plain Python over numpy twins of the vector operations."""
    here = Path(__file__).parent
    environment = {**os.environ, "NUMBA_DISABLE_JIT": "1", "PYTHONPATH": os.pathsep.join([str(here), str(here.parent), *sys.path])}
    done = subprocess.run([sys.executable, "-c", UNCOMPILED], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
