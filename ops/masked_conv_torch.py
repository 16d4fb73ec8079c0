"""The masked convolution in torch operations: any device and dtype, every geometry, masks per sample too.

Three formulations, chosen by geometry, none with a buffer of kh*kw activations:

- 1x1 kernels: a block is one pixel, so the mask multiplies the input of a dense convolution;
- one input channel a group (depthwise): M factors out of the sum over c, so the mask multiplies a dense output;
- otherwise: masked im2col, a few samples at a time, so that the patch matrix stays in cache, times one matrix product.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from .geometry import Conv, output_size
from .mask_facts import keeps_everything, of_mask

_CHUNK_BYTES = {"cpu": 3 << 20, "cuda": 256 << 20, "mps": 64 << 20}
"""Size of the patch matrix. CPU: measured best on 16x32x32 to 128x8x8 layers, where 2-5 MB are equally fast."""


def forward(x: Tensor, weight: Tensor, mask: Tensor, conv: Conv) -> Tensor:
    """y[N,F,oh,ow], channels last, of x[N,C,H,W] and weight[F,C/g,kh,kw] under mask[(N,)C,oh,ow]."""
    if weight.shape[1] == 1:
        y = F.conv2d(x, weight, None, conv.stride, conv.padding, conv.dilation, conv.groups)
        return _channels_last(y * _per_filter(mask, weight.shape[0], y.dtype))
    if tuple(weight.shape[2:]) == (1, 1):
        if keeps_everything(mask):
            return _channels_last(F.conv2d(x, weight, None, conv.stride, conv.padding, conv.dilation, conv.groups))
        return _channels_last(F.conv2d(_sample(x, conv) * _factors(mask, x.dtype), weight, groups=conv.groups))
    y = x.new_empty(x.shape[0], *conv.output(x.shape[2:], weight.shape[2:]), conv.groups, weight.shape[0] // conv.groups)
    matrix = weight_matrix(weight, conv.groups)
    for rows, patches in masked_patches(x, mask, weight.shape[2:], conv[:3], conv.groups):
        y[rows].flatten(0, 2).copy_(torch.bmm(patches, matrix).transpose(0, 1))
    return y.flatten(3).permute(0, 3, 1, 2)


def input_grad(grad: Tensor, weight: Tensor, mask: Tensor, conv: Conv, size: Sequence[int]) -> Tensor:
    """Gradient in x[N,C,*size], channels last, from that in y."""
    filters, per_group, *kernel = weight.shape
    shape = (grad.shape[0], per_group * conv.groups, *size)
    if per_group == 1:
        masked = grad * _per_filter(mask, filters, grad.dtype)
        return dense_input_grad(masked, weight, conv, shape)
    if kernel == [1, 1] and keeps_everything(mask):
        return dense_input_grad(grad, weight, conv, shape)
    grad_padded = grad.new_zeros(shape[0], size[0] + 2 * conv.padding[0], size[1] + 2 * conv.padding[1], shape[1])
    cropped = _crop(grad_padded.permute(0, 3, 1, 2), conv.padding, shape)
    if kernel == [1, 1]:
        sampled = dense_input_grad(grad, weight, Conv(groups=conv.groups), (*shape[:2], *grad.shape[2:]))
        torch.mul(sampled, _factors(mask, grad.dtype), out=_strided(grad_padded.permute(0, 3, 1, 2), conv))
        return _channels_last(cropped)
    transposed = weight_matrix(weight, conv.groups).transpose(1, 2).contiguous()
    grad_nhwc, mask_nhwc = _by_group(grad, conv.groups), _mask_nhwc(mask, grad.dtype)
    patches_bytes = grad.shape[2] * grad.shape[3] * kernel[0] * kernel[1] * shape[1] * grad.element_size()
    for rows in _chunks(shape[0], patches_bytes, grad.device.type):
        grad_patches = torch.bmm(grad_nhwc[rows].flatten(0, 2).transpose(0, 1), transposed)
        _scatter_patches(grad_patches, grad_padded[rows], mask_nhwc[rows] if mask_nhwc.shape[0] > 1 else mask_nhwc, kernel, conv[:3])
    return _channels_last(cropped)


def weight_grad(grad: Tensor, x: Tensor, mask: Tensor, conv: Conv, kernel: Sequence[int]) -> Tensor:
    """Gradient in weight[F,C/g,*kernel] from that in y[N,F,oh,ow]."""
    filters, per_group = grad.shape[1], x.shape[1] // conv.groups
    shape = (filters, per_group, *kernel)
    if per_group == 1:
        return dense_weight_grad(grad * _per_filter(mask, filters, grad.dtype), x, conv, shape)
    if tuple(kernel) == (1, 1):
        if keeps_everything(mask):
            return dense_weight_grad(grad, x, conv, shape)
        return dense_weight_grad(grad, _sample(x, conv) * _factors(mask, x.dtype), Conv(groups=conv.groups), shape)
    grad_matrix = x.new_zeros(conv.groups, kernel[0] * kernel[1] * per_group, filters // conv.groups)
    grad_nhwc = _by_group(grad, conv.groups)
    for rows, patches in masked_patches(x, mask, kernel, conv[:3], conv.groups):
        grad_matrix.baddbmm_(patches.transpose(1, 2), grad_nhwc[rows].flatten(0, 2).transpose(0, 1))
    return grad_matrix.unflatten(1, (*kernel, per_group)).permute(0, 4, 3, 1, 2).flatten(0, 1).contiguous()


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
    buffer = x.new_empty(0)
    for rows in _chunks(x.shape[0], sample_bytes, x.device.type):
        count = rows.stop - rows.start
        if rows.start == 0:
            buffer = x.new_empty(count * groups * oh * ow * taps * per_group)
        patches = buffer[: count * groups * oh * ow * taps * per_group].view(groups, count, oh, ow, taps, per_group)
        mask_rows = None if mask_nhwc is None else _split_groups(mask_nhwc[rows] if mask_nhwc.shape[0] > 1 else mask_nhwc, groups)
        for tap, window in enumerate(_windows(source[rows], kernel, stride, dilation, (oh, ow))):
            target = patches[..., tap, :]
            if mask_rows is None:
                target.copy_(_split_groups(window, groups))
            else:
                torch.mul(_split_groups(window, groups), mask_rows, out=target)
        yield rows, patches.view(groups, count * oh * ow, taps * per_group)


def _chunks(samples: int, sample_bytes: int, device: str) -> Iterator[slice]:
    step = max(1, min(samples, _CHUNK_BYTES.get(device, 3 << 20) // max(sample_bytes, 1)))
    for start in range(0, samples, step):
        yield slice(start, min(start + step, samples))


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


def weight_matrix(weight: Tensor, groups: int) -> Tensor:
    """weight[F,C/g,kh,kw] -> [g, kh*kw*C/g, F/g], rows in the order of `masked_patches`."""
    return weight.unflatten(0, (groups, -1)).permute(0, 3, 4, 2, 1).flatten(1, 3).contiguous()


def _mask_nhwc(mask: Tensor, dtype: torch.dtype) -> Tensor:
    mask = mask if mask.dim() == 4 else mask[None]
    return mask.permute(0, 2, 3, 1).to(dtype, memory_format=torch.contiguous_format).contiguous()


def _factors(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """The mask as numbers, channels last; those of a shared mask are kept with it."""

    def make(mask: Tensor) -> Tensor:
        return mask.movedim(-3, -1).to(dtype).contiguous().movedim(-1, -3)

    return of_mask(mask, dtype, make) if mask.dim() == 3 else make(mask)


def _per_filter(mask: Tensor, filters: int, dtype: torch.dtype) -> Tensor:
    """[..., C, oh, ow] -> [..., F, oh, ow] for convolutions of one input channel a group."""
    return mask.repeat_interleave(filters // mask.shape[-3], dim=-3).to(dtype)


def _sample(x: Tensor, conv: Conv) -> Tensor:
    """The pixels that a 1x1 kernel reads."""
    top, left = conv.padding
    return _strided(F.pad(x, (left, left, top, top)) if any(conv.padding) else x, conv)


def _strided(padded: Tensor, conv: Conv) -> Tensor:
    return padded[:, :, :: conv.stride[0], :: conv.stride[1]]


def _crop(padded: Tensor, padding: Sequence[int], shape: Sequence[int]) -> Tensor:
    return padded[:, :, padding[0] : padding[0] + shape[2], padding[1] : padding[1] + shape[3]]


def _padded_nhwc(x: Tensor, padding: Sequence[int]) -> Tensor:
    return F.pad(x.permute(0, 2, 3, 1), (0, 0, padding[1], padding[1], padding[0], padding[0])).contiguous()


def _channels_last(y: Tensor) -> Tensor:
    return y.contiguous(memory_format=torch.channels_last)


def _by_group(grad: Tensor, groups: int) -> Tensor:
    """[N,F,oh,ow] -> [N,oh,ow,groups,F/groups]."""
    return grad.permute(0, 2, 3, 1).contiguous().unflatten(3, (groups, -1))


def dense_input_grad(grad: Tensor, weight: Tensor, conv: Conv, shape: Sequence[int]) -> Tensor:
    """Gradient in x of the given shape of a convolution without masks, channels last."""
    # Nothing reads x, but its memory format decides how torch computes.
    x = torch.empty(*shape, dtype=grad.dtype, device=grad.device, memory_format=torch.channels_last)
    return _channels_last(dense_backward(grad, x, weight, conv, [True, False, False])[0])


def dense_weight_grad(grad: Tensor, x: Tensor, conv: Conv, shape: Sequence[int]) -> Tensor:
    """Gradient in weight of the given shape of a convolution without masks."""
    return dense_backward(grad, x, x.new_empty(*shape), conv, [False, True, False])[1].contiguous()


def dense_backward(grad: Tensor, x: Tensor, weight: Tensor, conv: Conv, wanted: list[bool]) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients in x, weight and bias of a convolution without masks, those that are wanted."""
    stride, padding, dilation, groups = conv
    return torch.ops.aten.convolution_backward(grad, x, weight, None, stride, padding, dilation, False, [0, 0], groups, wanted)
