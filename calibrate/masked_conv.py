"""The masked convolution: every filter skips the blocks that the mask drops (methods.md section 1, thesis eq. 5.4-5.7).

    y[n,f,i,j] = sum_c M[c,i,j] * sum_{u,v} w[f,c,u,v] * b[n,c,i,j,u,v]   (+ bias[f])

b[n,c,i,j] is the kh x kw patch of the zero-padded input of channel c under output position (i,j); M is shared by all
filters, and by all samples unless it has a leading batch axis (calibration convolves each sample under its own mask).

`fineprune::masked_conv2d` is the only masked convolution of the code base: torch.compile, torch.export and the ONNX
exporter see one operator. Three formulations, chosen by geometry, none with a buffer of kh*kw activations:

- 1x1 kernels: a block is one pixel, so the mask multiplies the input of a dense convolution;
- one input channel a group (depthwise): M factors out of the sum over c, so the mask multiplies a dense output;
- otherwise: masked im2col, a few samples at a time, so that the patch matrix stays in cache, times one matrix product.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..common.errors import UsageError

_CHUNK_BYTES = {"cpu": 3 << 20, "cuda": 256 << 20, "mps": 64 << 20}
"""Size of the patch matrix. CPU: measured best on 16x32x32 to 128x8x8 layers, where 2-5 MB are equally fast."""


def masked_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mask: Tensor,
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    groups: int = 1,
) -> Tensor:
    """Convolve x[N,C,H,W] with weight[F,C/groups,kh,kw] and bias[F] under mask (bool, [C,oh,ow] or [N,C,oh,ow]) -> [N,F,oh,ow].

    Differentiable in x, weight and bias; follows autocast. Raises UsageError when the mask does not fit the output size.
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
    y = torch.ops.fineprune.masked_conv2d(x, weight, mask, list(stride), list(padding), list(dilation), groups)
    return y if bias is None else y + bias[:, None, None]


def explicit_padding(conv: nn.Conv2d, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
    """x and the zero padding left to the convolution: symmetric zeros stay there, every other kind is applied to x."""
    if conv.padding_mode == "zeros" and not isinstance(conv.padding, str):
        return x, (conv.padding[0], conv.padding[1])
    mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
    return F.pad(x, conv._reversed_padding_repeated_twice, mode=mode), (0, 0)


def output_size(
    size: Sequence[int], kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> tuple[int, int]:
    """Output (oh, ow) of a convolution over an input of `size` (H, W)."""
    oh, ow = ((size[a] + 2 * padding[a] - dilation[a] * (kernel[a] - 1) - 1) // stride[a] + 1 for a in (0, 1))
    return oh, ow


@torch.library.custom_op("fineprune::masked_conv2d", mutates_args=())
def _forward(
    x: Tensor, weight: Tensor, mask: Tensor, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], groups: int
) -> Tensor:
    geometry = (stride, padding, dilation)
    kernel, channels_per_group = weight.shape[2:], weight.shape[1]
    if channels_per_group == 1:
        y = F.conv2d(x, weight, None, stride, padding, dilation, groups)
        return _channels_last(y * _per_filter(mask, weight.shape[0], y.dtype))
    if tuple(kernel) == (1, 1):
        return _channels_last(F.conv2d(_sample(x, stride, padding) * mask, weight, groups=groups))
    oh, ow = output_size(x.shape[2:], kernel, *geometry)
    y = x.new_empty(x.shape[0], oh, ow, groups, weight.shape[0] // groups)
    matrix = weight_matrix(weight, groups)
    for rows, patches in masked_patches(x, mask, kernel, geometry, groups):
        y[rows].flatten(0, 2).copy_(torch.bmm(patches, matrix).transpose(0, 1))
    return y.flatten(3).permute(0, 3, 1, 2)


@_forward.register_fake
def _forward_fake(
    x: Tensor, weight: Tensor, mask: Tensor, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], groups: int
) -> Tensor:
    oh, ow = output_size(x.shape[2:], weight.shape[2:], stride, padding, dilation)
    return x.new_empty(x.shape[0], oh, ow, weight.shape[0]).permute(0, 3, 1, 2)


@torch.library.custom_op("fineprune::masked_conv2d_backward", mutates_args=())
def _backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    mask: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> tuple[Tensor, Tensor]:
    geometry = (stride, padding, dilation)
    filters, channels_per_group, *kernel = weight.shape
    if channels_per_group == 1:
        masked = grad * _per_filter(mask, filters, grad.dtype)
        return _dense_backward(masked, x, weight, stride, padding, dilation, groups)
    if tuple(kernel) == (1, 1):
        grad_sampled, grad_weight = _dense_backward(grad, _sample(x, stride, padding) * mask, weight, (1, 1), (0, 0), (1, 1), groups)
        grad_x = torch.zeros_like(_pad(x, padding))
        _sample(grad_x, stride, (0, 0)).copy_(grad_sampled * mask)
        return _channels_last(_crop(grad_x, padding, x.shape)), grad_weight
    matrix = weight_matrix(weight, groups)
    grad_matrix = torch.zeros_like(matrix)
    transposed = matrix.transpose(1, 2).contiguous()
    grad_padded = _padded_nhwc(torch.zeros_like(x), padding)
    grad_nhwc = grad.permute(0, 2, 3, 1).contiguous().unflatten(3, (groups, filters // groups))
    mask_nhwc = _mask_nhwc(mask, x.dtype)
    for rows, patches in masked_patches(x, mask, kernel, geometry, groups):
        outer = grad_nhwc[rows].flatten(0, 2).transpose(0, 1)
        grad_matrix.baddbmm_(patches.transpose(1, 2), outer)
        grad_patches = torch.bmm(outer, transposed)
        _scatter_patches(grad_patches, grad_padded[rows], mask_nhwc[rows] if mask_nhwc.shape[0] > 1 else mask_nhwc, kernel, geometry)
    grad_x = _crop(grad_padded.permute(0, 3, 1, 2), padding, x.shape)
    grad_weight = grad_matrix.unflatten(1, (*kernel, channels_per_group)).permute(0, 4, 3, 1, 2).flatten(0, 1)
    return _channels_last(grad_x), grad_weight.contiguous()


@_backward.register_fake
def _backward_fake(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    mask: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x, memory_format=torch.channels_last), torch.empty_like(weight, memory_format=torch.contiguous_format)


def _save_for_backward(ctx: torch.autograd.function.FunctionCtx, inputs: tuple, output: Tensor) -> None:
    x, weight, mask, *ctx.geometry = inputs  # type: ignore[attr-defined]
    ctx.save_for_backward(x, weight, mask)


def _differentiate(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, mask = ctx.saved_tensors  # type: ignore[attr-defined]
    grad_x, grad_weight = torch.ops.fineprune.masked_conv2d_backward(grad, x, weight, mask, *ctx.geometry)  # type: ignore[attr-defined]
    return grad_x, grad_weight, None, None, None, None, None


_forward.register_autograd(_differentiate, setup_context=_save_for_backward)


def masked_patches(
    x: Tensor, mask: Tensor | None, kernel: Sequence[int], geometry: tuple[Sequence[int], Sequence[int], Sequence[int]], groups: int
) -> Iterator[tuple[slice, Tensor]]:
    """Masked im2col of x[N,C,H,W], a few samples at a time: (slice of samples, patches[groups, samples*oh*ow, kh*kw*C/groups]).

    The buffer is reused: a consumer must not keep it. Rows of the matrix run over (u, v, channel within the group).
    """
    stride, padding, dilation = geometry
    oh, ow = output_size(x.shape[2:], kernel, *geometry)
    source = _padded_nhwc(x, padding)
    mask_nhwc = None if mask is None else _mask_nhwc(mask, x.dtype)
    taps, per_group = kernel[0] * kernel[1], x.shape[1] // groups
    sample_bytes = oh * ow * taps * x.shape[1] * x.element_size()
    step = max(1, min(x.shape[0], _CHUNK_BYTES.get(x.device.type, 3 << 20) // max(sample_bytes, 1)))
    buffer = x.new_empty(step * groups * oh * ow * taps * per_group)
    for start in range(0, x.shape[0], step):
        rows = slice(start, min(start + step, x.shape[0]))
        count = rows.stop - start
        patches = buffer[: count * groups * oh * ow * taps * per_group].view(groups, count, oh, ow, taps, per_group)
        mask_rows = None if mask_nhwc is None else _split_groups(mask_nhwc[rows] if mask_nhwc.shape[0] > 1 else mask_nhwc, groups)
        for tap, window in enumerate(_windows(source[rows], kernel, stride, dilation, (oh, ow))):
            target = patches[..., tap, :]
            if mask_rows is None:
                target.copy_(_split_groups(window, groups))
            else:
                torch.mul(_split_groups(window, groups), mask_rows, out=target)
        yield rows, patches.view(groups, count * oh * ow, taps * per_group)


def _scatter_patches(
    grad_patches: Tensor,
    grad_padded: Tensor,
    mask_nhwc: Tensor,
    kernel: Sequence[int],
    geometry: tuple[Sequence[int], Sequence[int], Sequence[int]],
) -> None:
    """The transpose of `masked_patches`: add grad_patches[groups, rows, taps*C/groups] into grad_padded[n,Hp,Wp,C]."""
    stride, _, dilation = geometry
    oh, ow = mask_nhwc.shape[1:3]
    groups = grad_patches.shape[0]
    patches = grad_patches.view(groups, -1, oh, ow, kernel[0] * kernel[1], grad_padded.shape[3] // groups)
    mask_groups = _split_groups(mask_nhwc, groups)
    for tap, window in enumerate(_windows(grad_padded, kernel, stride, dilation, (oh, ow))):
        _split_groups(window, groups).addcmul_(patches[..., tap, :], mask_groups)


def _split_groups(x_nhwc: Tensor, groups: int) -> Tensor:
    """View [n,h,w,C] as [groups,n,h,w,C/groups]."""
    return x_nhwc.unflatten(3, (groups, -1)).permute(3, 0, 1, 2, 4)


def _windows(
    padded: Tensor, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int], size: tuple[int, int]
) -> Iterator[Tensor]:
    """For each tap (u, v) the view [n,oh,ow,C] of the pixels that it reads."""
    for u in range(kernel[0]):
        for v in range(kernel[1]):
            top, left = u * dilation[0], v * dilation[1]
            yield padded[:, top : top + (size[0] - 1) * stride[0] + 1 : stride[0], left : left + (size[1] - 1) * stride[1] + 1 : stride[1]]


def _dense_backward(
    grad: Tensor, x: Tensor, weight: Tensor, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], groups: int
) -> tuple[Tensor, Tensor]:
    grad_x, grad_weight, _ = torch.ops.aten.convolution_backward(
        grad, x, weight, None, stride, padding, dilation, False, [0, 0], groups, [True, True, False]
    )
    return _channels_last(grad_x), grad_weight.contiguous()


def weight_matrix(weight: Tensor, groups: int) -> Tensor:
    """weight[F,C/g,kh,kw] -> [g, kh*kw*C/g, F/g], rows in the order of `masked_patches`."""
    return weight.unflatten(0, (groups, -1)).permute(0, 3, 4, 2, 1).flatten(1, 3).contiguous()


def _mask_nhwc(mask: Tensor, dtype: torch.dtype) -> Tensor:
    mask = mask if mask.dim() == 4 else mask[None]
    return mask.permute(0, 2, 3, 1).to(dtype, memory_format=torch.contiguous_format).contiguous()


def _per_filter(mask: Tensor, filters: int, dtype: torch.dtype) -> Tensor:
    """[..., C, oh, ow] -> [..., F, oh, ow] for convolutions of one input channel a group."""
    return mask.repeat_interleave(filters // mask.shape[-3], dim=-3).to(dtype)


def _sample(x: Tensor, stride: Sequence[int], padding: Sequence[int]) -> Tensor:
    return _pad(x, padding)[:, :, :: stride[0], :: stride[1]]


def _pad(x: Tensor, padding: Sequence[int]) -> Tensor:
    return F.pad(x, (padding[1], padding[1], padding[0], padding[0])) if any(padding) else x


def _crop(padded: Tensor, padding: Sequence[int], shape: Sequence[int]) -> Tensor:
    return padded[:, :, padding[0] : padding[0] + shape[2], padding[1] : padding[1] + shape[3]]


def _padded_nhwc(x: Tensor, padding: Sequence[int]) -> Tensor:
    return F.pad(x.permute(0, 2, 3, 1), (0, 0, padding[1], padding[1], padding[0], padding[0])).contiguous()


def _channels_last(y: Tensor) -> Tensor:
    return y.contiguous(memory_format=torch.channels_last)
