"""The masked convolution against the naive loop, over every geometry, and its gradients against finite differences."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fineprune.common.errors import UsageError
from fineprune.ops import masked_conv_torch
from fineprune.ops.masked_conv import masked_conv2d
from support import reference, vectors
from support.geometries import KINDS, Geometry, geometries, problem
from support.tolerances import FLOAT32, FLOAT64

every_kind = pytest.mark.parametrize("geometry", KINDS.values(), ids=KINDS)


def test_vectors_worked_by_hand() -> None:
    everything = torch.ones_like(vectors.M)
    for mask, w, expected in (
        (everything, vectors.K, vectors.DENSE),
        (vectors.M, vectors.K, vectors.MASKED),
        (vectors.M, torch.tensor(vectors.K_PRUNED)[None, None].float(), vectors.MASKED_PRUNED),
    ):
        assert masked_conv2d(vectors.X, w, None, mask, padding=(1, 1))[0, 0].tolist() == expected


@settings(max_examples=60, deadline=None)
@given(geometries(), st.sampled_from([0.0, 0.3, 0.7, 1.0]), st.booleans(), st.booleans(), st.integers(0, 99))
def test_equals_the_naive_loop(geometry: Geometry, density: float, per_sample: bool, with_bias: bool, seed: int) -> None:
    p = problem(geometry, density=density, seed=seed)
    mask, bias = p.masks if per_sample else p.mask, p.bias if with_bias else None
    expected = reference.masked_conv2d(p.x, p.w, bias, mask, **geometry.options)
    for dtype, (rtol, atol) in ((torch.float64, FLOAT64), (torch.float32, FLOAT32)):
        x, w = (torch.from_numpy(v).to(dtype) for v in (p.x, p.w))
        b = None if bias is None else torch.from_numpy(bias).to(dtype)
        y = masked_conv2d(x, w, b, torch.from_numpy(mask), **geometry.options)
        assert y.dtype == dtype
        np.testing.assert_allclose(y.numpy(), expected, rtol=rtol, atol=atol)


@every_kind
def test_many_small_chunks_equal_one(geometry: Geometry, monkeypatch: pytest.MonkeyPatch) -> None:
    x, w, mask, masks = problem(geometry).tensors("x", "w", "mask", "masks")
    x, masks = x.repeat(3, 1, 1, 1), masks.repeat(3, 1, 1, 1)
    for each in (mask, masks):
        inputs = [t.clone().requires_grad_() for t in (x, w)]
        whole = masked_conv2d(*inputs, None, each, **geometry.options)
        grads = torch.autograd.grad(whole.square().sum(), inputs)
        with monkeypatch.context() as patch:
            patch.setattr(masked_conv_torch, "_CHUNK_BYTES", {"cpu": 1})
            pieces = masked_conv2d(*inputs, None, each, **geometry.options)
            torch.testing.assert_close(pieces, whole)
            for got, expected in zip(torch.autograd.grad(pieces.square().sum(), inputs), grads, strict=True):
                torch.testing.assert_close(got, expected)


@every_kind
@pytest.mark.parametrize("per_sample", [False, True], ids=["shared", "per-sample"])
def test_gradients_equal_finite_differences(geometry: Geometry, per_sample: bool) -> None:
    x, w, bias, mask = problem(geometry).tensors("x", "w", "bias", "masks" if per_sample else "mask")
    inputs = [t.requires_grad_() for t in (x, w, bias)]

    def run(x: torch.Tensor, w: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return masked_conv2d(x, w, bias, mask, **geometry.options)

    assert torch.autograd.gradcheck(run, inputs)


@every_kind
def test_is_a_sound_operator(geometry: Geometry) -> None:
    x, w, mask, grad = problem(geometry).tensors("x", "w", "mask", "grad")
    where = [list(pair) for pair in geometry.where]
    for memory_format in (torch.contiguous_format, torch.channels_last):
        arranged = x.contiguous(memory_format=memory_format)
        leaf = arranged.detach().requires_grad_()
        torch.library.opcheck(torch.ops.fineprune.masked_conv2d, (leaf, w.requires_grad_(), mask, *where, geometry.groups))
        arranged_grad = grad.contiguous(memory_format=memory_format)
        args = arranged_grad, arranged, w.detach(), mask, *where, geometry.groups, None
        for wanted in ([True, True], [True, False], [False, True]):
            torch.library.opcheck(torch.ops.fineprune.masked_conv2d_backward, (*args, wanted))


@every_kind
def test_does_not_care_how_its_input_lies_in_memory(geometry: Geometry) -> None:
    x, w, mask = problem(geometry).tensors("x", "w", "mask")
    expected = masked_conv2d(x, w, None, mask, **geometry.options)
    sliced = torch.stack([x, x + 1])[::2][0].repeat_interleave(2, dim=3)[..., ::2]
    for other in (x.contiguous(memory_format=torch.channels_last), sliced):
        torch.testing.assert_close(masked_conv2d(other, w, None, mask, **geometry.options), expected)


@every_kind
def test_follows_autocast(geometry: Geometry) -> None:
    x, w, bias, mask = problem(geometry).tensors("x", "w", "bias", "mask")
    x, w, bias = (t.float().requires_grad_() for t in (x, w, bias))
    with torch.autocast("cpu", torch.bfloat16):
        y = masked_conv2d(x, w, bias, mask, **geometry.options)
    assert y.dtype == torch.bfloat16
    y.float().square().sum().backward()
    assert {t.grad.dtype for t in (x, w, bias) if t.grad is not None} == {torch.float32}
    torch.testing.assert_close(y.float(), masked_conv2d(x, w, bias, mask, **geometry.options), rtol=0.05, atol=0.1)


def test_an_empty_batch_has_an_empty_output() -> None:
    for geometry in KINDS.values():
        _, w, mask = problem(geometry).tensors("x", "w", "mask")
        x = torch.zeros(0, geometry.channels, *geometry.size, dtype=torch.float64)
        assert masked_conv2d(x, w, None, mask, **geometry.options).shape == (0, geometry.filters, *geometry.output)


WRONG: list[Callable[[torch.Tensor], torch.Tensor]] = [
    lambda mask: mask[:1],
    lambda mask: mask[:, :-1],
    lambda mask: mask.mT,
    lambda mask: mask[None].expand(5, -1, -1, -1),
    lambda mask: mask[0],
]


@pytest.mark.parametrize("change", WRONG, ids=["channels", "height", "transposed", "batch", "axes"])
def test_a_mask_of_another_size_is_refused(change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    x, w, mask = problem(Geometry(samples=3)).tensors("x", "w", "mask")
    message = r"mask of shape \(.*\) does not fit a 2-channel convolution with output 5x3; masks are fixed to the input size"
    with pytest.raises(UsageError, match=message):
        masked_conv2d(x, w, None, change(mask))
