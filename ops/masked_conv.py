"""The masked convolution: every filter skips the blocks that the mask drops (methods.md section 1, thesis eq. 5.4-5.7).

    y[n,f,i,j] = sum_c M[c,i,j] * sum_{u,v} w[f,c,u,v] * b[n,c,i,j,u,v]   (+ bias[f])

b[n,c,i,j] is the kh x kw patch of the zero-padded input of channel c under output position (i,j); M is shared by all
filters, and by all samples unless it has a leading batch axis (calibration convolves each sample under its own mask).

`fineprune::masked_conv2d` is the only masked convolution of the code base: torch.compile, torch.export and the ONNX
exporter see one operator. Batches of float32 on the CPU run in `kernels`, which skip what a shared mask drops, forward and backward;
CUDA tensors run in `masked_conv_triton`; everything else runs in `masked_conv_torch`.
"""

from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fineprune.common.errors import UsageError

from . import kernels, masked_conv_torch
from .geometry import Conv, output_size


def masked_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mask: Tensor,
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    groups: int = 1,
    *,
    weight_mask: Tensor | None = None,
) -> Tensor:
    """Convolve x[N,C,H,W] with weight[F,C/groups,kh,kw] and bias[F] under mask (bool, [C,oh,ow] or [N,C,oh,ow]) -> [N,F,oh,ow].

    weight_mask (bool, the shape of weight) promises that weight is zero where it is False; such weights may cost nothing, and
    their gradient is zero. Differentiable in x, weight and bias; follows autocast. Raises UsageError when the mask does not
    fit the output size.
    """
    expected = output_size(x.shape[2:], weight.shape[2:], stride, padding, dilation)
    shapes = ((x.shape[1], *expected), (x.shape[0], x.shape[1], *expected))
    if tuple(mask.shape) not in shapes:
        raise UsageError(
            f"mask of shape {tuple(mask.shape)} does not fit a {x.shape[1]}-channel convolution with output {expected[0]}x{expected[1]}; "
            "masks are fixed to the input size they were calibrated on, so use that size or calibrate again"
        )
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        x, weight, bias = x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    y = torch.ops.fineprune.masked_conv2d(x, weight, mask, list(stride), list(padding), list(dilation), groups, weight_mask)
    return y if bias is None else y + bias[:, None, None]


def explicit_padding(conv: nn.Conv2d, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
    """x and the zero padding left to the convolution: symmetric zeros stay there, every other kind is applied to x."""
    if conv.padding_mode == "zeros" and not isinstance(conv.padding, str):
        return x, (conv.padding[0], conv.padding[1])
    mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
    return F.pad(x, conv._reversed_padding_repeated_twice, mode=mode), (0, 0)


def _library(x: Tensor, weight: Sequence[int]) -> ModuleType:
    """The module that convolves where `kernels` do not: Triton on CUDA; torch elsewhere and where its dense convolution serves."""
    dense_serves = weight[1] == 1 or tuple(weight[2:]) == (1, 1)
    if x.is_cuda and not dense_serves and x.dtype in _TRITON_DTYPES and find_spec("triton") is not None:
        return import_module(".masked_conv_triton", __package__)
    return masked_conv_torch


_TRITON_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


_LIBRARY = torch.library.Library("fineprune", "FRAGMENT")
_GEOMETRY = "SymInt[] stride, SymInt[] padding, SymInt[] dilation, SymInt groups"
_LIBRARY.define(
    f"masked_conv2d(Tensor x, Tensor weight, Tensor mask, {_GEOMETRY}, Tensor? weight_mask=None) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)
_LIBRARY.define(
    f"masked_conv2d_backward(Tensor grad, Tensor x, Tensor weight, Tensor mask, {_GEOMETRY}, Tensor? weight_mask, bool[] wanted)"
    " -> (Tensor, Tensor)",
    tags=(torch.Tag.pt2_compliant_tag,),
)


@torch.library.impl(_LIBRARY, "masked_conv2d", "CompositeExplicitAutograd")
def _forward(
    x: Tensor,
    weight: Tensor,
    mask: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    weight_mask: Tensor | None = None,
) -> Tensor:
    conv = Conv.of(stride, padding, dilation, groups)
    if kernels.cover_forward(x, weight.shape, mask, conv):
        return kernels.forward(x, weight, mask, weight_mask, conv)
    return _library(x, weight.shape).forward(x, weight, mask, conv)


@torch.library.register_fake("fineprune::masked_conv2d", lib=_LIBRARY)
def _forward_fake(
    x: Tensor,
    weight: Tensor,
    mask: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    weight_mask: Tensor | None = None,
) -> Tensor:
    oh, ow = output_size(x.shape[2:], weight.shape[2:], stride, padding, dilation)
    return x.new_empty(x.shape[0], oh, ow, weight.shape[0]).permute(0, 3, 1, 2)


@torch.library.impl(_LIBRARY, "masked_conv2d_backward", "CompositeExplicitAutograd")
def _backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    mask: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    weight_mask: Tensor | None,
    wanted: Sequence[bool],
) -> tuple[Tensor, Tensor]:
    """Gradients in x and in weight; one that is not wanted is empty."""
    conv = Conv.of(stride, padding, dilation, groups)
    if kernels.cover(x, weight.shape, mask, conv):
        grads = kernels.backward(grad, x, weight, mask, weight_mask, conv, wanted)
    else:
        library = _library(grad, weight.shape)
        grad_weight = library.weight_grad(grad, x, mask, conv, weight.shape[2:]) if wanted[1] else None
        if weight_mask is not None and grad_weight is not None:
            grad_weight = grad_weight * weight_mask
        grads = library.input_grad(grad, weight, mask, conv, x.shape[2:]) if wanted[0] else None, grad_weight
    grad_x, grad_weight = (x.new_empty(0) if g is None else g for g in grads)
    return grad_x, grad_weight


@torch.library.register_fake("fineprune::masked_conv2d_backward", lib=_LIBRARY)
def _backward_fake(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    mask: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    weight_mask: Tensor | None,
    wanted: Sequence[bool],
) -> tuple[Tensor, Tensor]:
    grad_x = grad.new_empty(x.shape[0], *x.shape[2:], x.shape[1]).permute(0, 3, 1, 2) if wanted[0] else x.new_empty(0)
    return grad_x, x.new_empty(weight.shape if wanted[1] else 0)


def _save_for_backward(ctx: torch.autograd.function.FunctionCtx, inputs: tuple, output: Tensor) -> None:
    x, weight, mask, *ctx.geometry, weight_mask = inputs  # type: ignore[attr-defined]
    ctx.save_for_backward(x, weight, mask, weight_mask)


def _differentiate(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, mask, weight_mask = ctx.saved_tensors  # type: ignore[attr-defined]
    wanted = list(ctx.needs_input_grad[:2])  # type: ignore[attr-defined]
    grads = torch.ops.fineprune.masked_conv2d_backward(grad, x, weight, mask, *ctx.geometry, weight_mask, wanted)  # type: ignore[attr-defined]
    return *(g if asked else None for g, asked in zip(grads, wanted, strict=True)), *(None,) * 6


torch.library.register_autograd("fineprune::masked_conv2d", _differentiate, setup_context=_save_for_backward, lib=_LIBRARY)
