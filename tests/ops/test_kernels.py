"""The CPU kernels against the torch formulation and the naive loop, over geometries, masks, batch sizes and threads; uncompiled too."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fineprune.ops import kernels, mask_facts, masked_conv_torch
from fineprune.ops.geometry import Conv
from fineprune.ops.masked_conv import masked_conv2d
from support import reference
from support.geometries import Geometry, problem
from support.tolerances import FLOAT32, FLOAT32_SUMS

PLAIN = Geometry(samples=25, channels=3, filters=5, padding=(1, 1))
WEIGHT_DENSITIES = [None, 0.0, 0.3, 0.5, 0.9, 1.0]


def conv_of(geometry: Geometry) -> Conv:
    return Conv(*geometry.where)


def case(geometry: Geometry, density: float, weight_density: float | None, seed: int = 0) -> tuple[torch.Tensor, ...]:
    """x, w, mask, grad in float32 and the weight mask, which has been applied to w."""
    p = problem(geometry, density=density, seed=seed)
    x, w, mask, grad = (torch.from_numpy(v) for v in (p.x, p.w, p.mask, p.grad))
    kept = torch.ones_like(w, dtype=torch.bool)
    if weight_density is not None:
        kept = torch.rand(w.shape, generator=torch.Generator().manual_seed(seed)) < weight_density
    return x.float(), (w * kept).float(), mask, grad.float(), kept


def check(geometry: Geometry, density: float, weight_density: float | None, seed: int = 0) -> None:
    """All three kernels against torch in float64."""
    x, w, mask, grad, kept = case(geometry, density, weight_density, seed)
    conv, weight_mask = conv_of(geometry), None if weight_density is None else kept
    x64, w64, grad64 = x.double(), w.double(), grad.double()
    close = {"rtol": FLOAT32_SUMS[0], "atol": FLOAT32_SUMS[1], "check_dtype": False}
    y = kernels.forward(x, w, mask, weight_mask, conv)
    torch.testing.assert_close(y, masked_conv_torch.forward(x64, w64, mask, conv), **close)
    grad_x, grad_w = kernels.backward(grad, x, w, mask, weight_mask, conv, (True, True))
    torch.testing.assert_close(grad_x, masked_conv_torch.input_grad(grad64, w64, mask, conv, geometry.size), **close)
    torch.testing.assert_close(grad_w, masked_conv_torch.weight_grad(grad64, x64, mask, conv, geometry.kernel) * kept, **close)


@st.composite
def covered_geometries(draw: st.DrawFn) -> Geometry:
    kernel = draw(st.sampled_from([(3, 3), (3, 3), (2, 3), (5, 1), (1, 4), (5, 5), (3, 2)]))
    stride, dilation, padding = (draw(st.tuples(st.integers(low, high), st.integers(low, high))) for low, high in ((1, 3), (1, 2), (0, 2)))
    least = [max(1, dilation[a] * (kernel[a] - 1) + 1 - 2 * padding[a]) for a in (0, 1)]
    return Geometry(
        samples=draw(st.sampled_from([24, 31, 64, 97, 130])),
        channels=draw(st.sampled_from([2, 3, 5, 16, 19])),
        filters=draw(st.sampled_from([1, 2, 7, 16, 35, 66])),
        size=(least[0] + draw(st.sampled_from([0, 1, 2, 5])), least[1] + draw(st.sampled_from([0, 1, 3, 7]))),
        kernel=kernel,
        stride=stride,
        padding=padding,
        dilation=dilation,
    )


@settings(max_examples=60, deadline=None)
@given(covered_geometries(), st.sampled_from([0.0, 0.3, 0.7, 1.0]), st.sampled_from(WEIGHT_DENSITIES), st.integers(0, 99))
def test_equal_the_torch_formulation(geometry: Geometry, density: float, weight_density: float | None, seed: int) -> None:
    check(geometry, density, weight_density, seed)


@pytest.mark.parametrize("weight_density", [None, 0.3])
@pytest.mark.parametrize(
    "geometry",
    [PLAIN, Geometry(samples=24, kernel=(2, 3), stride=(2, 1), padding=(0, 2), dilation=(2, 1), filters=2)],
    ids=["plain", "strided-dilated"],
)
def test_forward_equals_the_naive_loop(geometry: Geometry, weight_density: float | None) -> None:
    x, w, mask, _, kept = case(geometry, 0.6, weight_density)
    y = kernels.forward(x, w, mask, None if weight_density is None else kept, conv_of(geometry))
    expected = reference.masked_conv2d(x.numpy(), w.numpy(), None, mask.numpy(), **geometry.options)
    np.testing.assert_allclose(y.numpy(), expected, rtol=FLOAT32[0], atol=FLOAT32[1])


@pytest.mark.parametrize("weight_density", [None, 0.3])
def test_bands_and_threads_change_no_output(weight_density: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    from fineprune.ops.kernels import backend

    geometry = Geometry(samples=150, channels=3, filters=6, size=(11, 5), stride=(2, 1), padding=(1, 1))
    x, w, mask, grad, kept = case(geometry, 0.6, weight_density)
    conv, weight_mask = conv_of(geometry), None if weight_density is None else kept

    def results() -> list[torch.Tensor]:
        again = mask.clone()  # because plans are kept with their mask
        return [
            kernels.forward(x, w, again, weight_mask, conv),
            *(g for g in kernels.backward(grad, x, w, again, weight_mask, conv, (True, True)) if g is not None),
        ]

    expected = results()
    for size in ("BAND_BYTES", "STRIP_PIXELS", "CHANNEL_BYTES"):
        monkeypatch.setattr(backend, size, 1)
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        try:
            got, again = results(), results()
        finally:
            torch.set_num_threads(1)
        assert torch.equal(got[0], expected[0])
        for one, two, other in zip(got, again, expected, strict=True):
            assert torch.equal(one, two)
            torch.testing.assert_close(one, other, rtol=FLOAT32_SUMS[0], atol=FLOAT32_SUMS[1])


def test_a_changed_mask_is_seen() -> None:
    x, w, mask, _, kept = case(PLAIN, 0.5, 0.3)
    conv = conv_of(PLAIN)
    kernels.forward(x, w, mask, kept, conv)
    mask[:, 0] = True
    mask[1, 1:] = False
    torch.testing.assert_close(kernels.forward(x, w, mask, kept, conv), masked_conv_torch.forward(x, w, mask, conv), rtol=1e-4, atol=1e-5)
    kept[0] = True
    for weight_mask in (kept, torch.empty_like(kept).copy_(~kept)):  # the one that was changed, then another, changed as often
        v = torch.randn(w.shape, generator=torch.Generator().manual_seed(1)) * weight_mask
        y = kernels.forward(x, v, mask, weight_mask, conv)
        torch.testing.assert_close(y, masked_conv_torch.forward(x, v, mask, conv), rtol=1e-4, atol=1e-5)


def test_what_is_known_of_a_mask_dies_with_it() -> None:
    x, w, mask, _, _ = case(PLAIN, 0.5, None)
    before = len(mask_facts._FACTS)
    kernels.forward(x, w, mask, None, conv_of(PLAIN))
    assert len(mask_facts._FACTS) == before + 1
    del mask
    assert len(mask_facts._FACTS) == before


@pytest.mark.parametrize("weight_density", [None, 0.3])
def test_autograd_through_the_operator(weight_density: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    x, w, mask, grad, kept = case(PLAIN, 0.6, weight_density)
    weight_mask = None if weight_density is None else kept
    calls = []
    for name in ("forward", "backward"):
        original = getattr(kernels, name)
        monkeypatch.setattr(kernels, name, lambda *args, name=name, original=original: calls.append(name) or original(*args))
    gradients = []
    for dtype in (torch.float32, torch.float64):
        leaves = [t.to(dtype).requires_grad_() for t in (x, w)]
        y = masked_conv2d(*leaves, None, mask, padding=(1, 1), weight_mask=weight_mask)
        gradients.append(torch.autograd.grad(y, leaves, grad.to(dtype)))
    assert sorted(calls) == ["backward", "forward"]
    for got, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(got, expected, rtol=FLOAT32_SUMS[0], atol=FLOAT32_SUMS[1], check_dtype=False)


def test_no_gradient_is_computed_that_nobody_wants(monkeypatch: pytest.MonkeyPatch) -> None:
    from fineprune.ops.kernels import backend

    x, w, mask, _, _ = case(PLAIN, 0.6, None)

    def refuse(*_: object) -> None:
        raise AssertionError("nobody asked")

    monkeypatch.setattr(backend, "_input_grad", refuse)
    masked_conv2d(x, w.requires_grad_(), None, mask, padding=(1, 1)).sum().backward()
    assert w.grad is not None


@pytest.mark.parametrize("weight_density", [None, 0.3])
def test_is_a_sound_operator(weight_density: float | None) -> None:
    x, w, mask, grad, kept = case(PLAIN, 0.6, weight_density)
    weight_mask, where = None if weight_density is None else kept, [[1, 1], [1, 1], [1, 1], 1]
    for memory_format in (torch.contiguous_format, torch.channels_last):
        arranged = x.contiguous(memory_format=memory_format)
        leaves = arranged.detach().requires_grad_(), w.detach().requires_grad_()
        torch.library.opcheck(torch.ops.fineprune.masked_conv2d, (*leaves, mask, *where, weight_mask))
        for wanted in ([True, True], [True, False], [False, True]):
            torch.library.opcheck(torch.ops.fineprune.masked_conv2d_backward, (grad, arranged, w, mask, *where, weight_mask, wanted))


def test_what_the_kernels_leave_to_torch() -> None:
    x, w, mask, _, _ = case(PLAIN, 0.6, None)
    conv = conv_of(PLAIN)
    assert kernels.cover(x, w.shape, mask, conv)
    assert not kernels.cover(x.double(), w.shape, mask, conv)
    assert not kernels.cover(x.bfloat16(), w.shape, mask, conv)
    assert not kernels.cover(x[:2], w.shape, mask, conv)
    assert not kernels.cover(x, w.shape, mask.expand(25, -1, -1, -1), conv)
    assert not kernels.cover(x, w.shape, mask, Conv(groups=3))
    assert not kernels.cover(x, (5, 3, 1, 1), mask, conv)
    assert not kernels.cover(x, (5, 1, 3, 3), mask, conv)
    assert not kernels.cover(x.to("meta"), w.shape, mask, conv)


UNCOMPILED = """
import numba, torch
assert numba.config.DISABLE_JIT
from support.geometries import Geometry
from test_kernels import check
torch.set_num_threads(2)
for weight_density in (None, 0.4):
    check(Geometry(samples=24, channels=3, filters=2, size=(4, 3), padding=(1, 1)), 0.6, weight_density)
    check(Geometry(samples=65, channels=16, filters=5, size=(3, 2), kernel=(2, 2), stride=(2, 1)), 0.6, weight_density)
"""


def test_uncompiled() -> None:
    """The kernels are plain Python over numpy twins of the vector operations."""
    here = Path(__file__).parent
    environment = {**os.environ, "NUMBA_DISABLE_JIT": "1", "PYTHONPATH": os.pathsep.join([str(here), str(here.parent), *sys.path])}
    done = subprocess.run([sys.executable, "-c", UNCOMPILED], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
