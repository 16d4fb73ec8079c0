"""The masked convolution on a CUDA device: implicit GEMM in Triton, the mask applied as tiles are loaded or summed.

    forward   y[r,f]     = sum_{tap,c} (M[c,r] * x[r@tap,c]) * w[tap,c,f]          rows r = (n,i,j)
    input     gx[q,c]    = sum_tap M[c,r] * sum_f gy[r,f] * w[tap,c,f]             rows q = (n,h,w), r the position whose tap reads q
    weight    gw[tap,c,f] = sum_r (M[c,r] * x[r@tap,c]) * gy[r,f]

Nothing of the size of an im2col matrix is ever stored. Activations are channels-last, so that channels are contiguous in a tile.
Products follow torch's setting for convolutions (`torch.backends.cudnn.conv.fp32_precision`): TF32 or IEEE float32.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from .geometry import Conv

ROWS, COLUMNS, DEPTH = 64, 64, 32
"""Tile of the product: rows x columns, summed DEPTH at a time. The smallest side that tl.dot takes is 16."""

_SUM_ROWS = 1 << 14
"""Rows that one program of the weight gradient sums: more programs than that would cost more memory for partial sums."""


@triton.jit
def _forward_kernel(
    x,
    w,
    mask,
    y,
    rows,
    height,
    width,
    oh,
    ow,
    channels,
    filters,
    sx_n,
    sx_h,
    sx_w,
    sm_n,
    sm_c,
    sy_r,
    stride_h,
    stride_w,
    pad_h,
    pad_w,
    dil_h,
    dil_w,
    KH: tl.constexpr,
    KW: tl.constexpr,
    BR: tl.constexpr,
    BF: tl.constexpr,
    BC: tl.constexpr,
    PRECISION: tl.constexpr,
):
    group = tl.program_id(2)
    r = tl.program_id(0) * BR + tl.arange(0, BR)
    f = tl.program_id(1) * BF + tl.arange(0, BF)
    position = r % (oh * ow)
    n, i, j = r // (oh * ow), position // ow, position % ow
    acc = tl.zeros((BR, BF), dtype=tl.float32)
    for tap in range(KH * KW):
        h = i * stride_h + (tap // KW) * dil_h - pad_h
        v = j * stride_w + (tap % KW) * dil_w - pad_w
        inside = (r < rows) & (h >= 0) & (h < height) & (v >= 0) & (v < width)
        base = n.to(tl.int64) * sx_n + h * sx_h + v * sx_w + group * channels
        for start in range(0, channels, BC):
            c = start + tl.arange(0, BC)
            valid = inside[:, None] & (c < channels)[None, :]
            kept = tl.load(
                mask + n[:, None].to(tl.int64) * sm_n + (group * channels + c)[None, :] * sm_c + position[:, None], mask=valid, other=0
            )
            a = tl.load(x + base[:, None] + c[None, :], mask=valid & (kept != 0), other=0.0)
            weights = w + ((group * KH * KW + tap) * channels + c)[:, None] * filters + f[None, :]
            b = tl.load(weights, mask=(c < channels)[:, None] & (f < filters)[None, :], other=0.0)
            acc = tl.dot(a, b, acc, input_precision=PRECISION)
    out = y + r[:, None].to(tl.int64) * sy_r + group * filters + f[None, :]
    tl.store(out, acc.to(y.dtype.element_ty), mask=(r < rows)[:, None] & (f < filters)[None, :])


@triton.jit
def _input_kernel(
    gy,
    w,
    mask,
    gx,
    rows,
    height,
    width,
    oh,
    ow,
    channels,
    filters,
    sg_r,
    sm_n,
    sm_c,
    sx_r,
    stride_h,
    stride_w,
    pad_h,
    pad_w,
    dil_h,
    dil_w,
    KH: tl.constexpr,
    KW: tl.constexpr,
    BR: tl.constexpr,
    BF: tl.constexpr,
    BC: tl.constexpr,
    PRECISION: tl.constexpr,
):
    group = tl.program_id(2)
    q = tl.program_id(0) * BR + tl.arange(0, BR)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    pixel = q % (height * width)
    n, h, v = q // (height * width), pixel // width, pixel % width
    acc = tl.zeros((BR, BC), dtype=tl.float32)
    for tap in range(KH * KW):
        top, left = h + pad_h - (tap // KW) * dil_h, v + pad_w - (tap % KW) * dil_w
        i, j = top // stride_h, left // stride_w
        hit = (q < rows) & (top >= 0) & (left >= 0) & (top % stride_h == 0) & (left % stride_w == 0) & (i < oh) & (j < ow)
        position = i * ow + j
        part = tl.zeros((BR, BC), dtype=tl.float32)
        for start in range(0, filters, BF):
            f = start + tl.arange(0, BF)
            r = n.to(tl.int64) * (oh * ow) + position
            a = tl.load(gy + r[:, None] * sg_r + group * filters + f[None, :], mask=hit[:, None] & (f < filters)[None, :], other=0.0)
            weights = w + ((group * KH * KW + tap) * channels + c)[None, :] * filters + f[:, None]
            b = tl.load(weights, mask=(c < channels)[None, :] & (f < filters)[:, None], other=0.0)
            part = tl.dot(a, b, part, input_precision=PRECISION)
        valid = hit[:, None] & (c < channels)[None, :]
        kept = tl.load(
            mask + n[:, None].to(tl.int64) * sm_n + (group * channels + c)[None, :] * sm_c + position[:, None], mask=valid, other=0
        )
        acc += tl.where(kept != 0, part, 0.0)
    out = gx + q[:, None].to(tl.int64) * sx_r + group * channels + c[None, :]
    tl.store(out, acc.to(gx.dtype.element_ty), mask=(q < rows)[:, None] & (c < channels)[None, :])


@triton.jit
def _weight_kernel(
    x,
    gy,
    mask,
    gw,
    rows,
    height,
    width,
    oh,
    ow,
    channels,
    filters,
    blocks_c,
    per_split,
    sx_n,
    sx_h,
    sx_w,
    sm_n,
    sm_c,
    sg_r,
    sw_split,
    stride_h,
    stride_w,
    pad_h,
    pad_w,
    dil_h,
    dil_w,
    groups,
    KH: tl.constexpr,
    KW: tl.constexpr,
    BR: tl.constexpr,
    BF: tl.constexpr,
    BC: tl.constexpr,
    PRECISION: tl.constexpr,
):
    group, split = tl.program_id(2) % groups, tl.program_id(2) // groups
    tap, block = tl.program_id(0) // blocks_c, tl.program_id(0) % blocks_c
    c = block * BC + tl.arange(0, BC)
    f = tl.program_id(1) * BF + tl.arange(0, BF)
    acc = tl.zeros((BC, BF), dtype=tl.float32)
    for start in range(split * per_split, min((split + 1) * per_split, rows), BR):
        r = start + tl.arange(0, BR)
        position = r % (oh * ow)
        n, i, j = r // (oh * ow), position // ow, position % ow
        h = i * stride_h + (tap // KW) * dil_h - pad_h
        v = j * stride_w + (tap % KW) * dil_w - pad_w
        inside = (r < rows) & (h >= 0) & (h < height) & (v >= 0) & (v < width)
        valid = inside[None, :] & (c < channels)[:, None]
        kept = tl.load(
            mask + n[None, :].to(tl.int64) * sm_n + (group * channels + c)[:, None] * sm_c + position[None, :], mask=valid, other=0
        )
        pixels = n.to(tl.int64) * sx_n + h * sx_h + v * sx_w + group * channels
        a = tl.load(x + pixels[None, :] + c[:, None], mask=valid & (kept != 0), other=0.0)
        gradient = gy + r[:, None].to(tl.int64) * sg_r + group * filters + f[None, :]
        b = tl.load(gradient, mask=(r < rows)[:, None] & (f < filters)[None, :], other=0.0)
        acc = tl.dot(a, b, acc, input_precision=PRECISION)
    out = gw + split.to(tl.int64) * sw_split + ((group * KH * KW + tap) * channels + c)[:, None] * filters + f[None, :]
    tl.store(out, acc, mask=(c < channels)[:, None] & (f < filters)[None, :])


def forward(x: Tensor, weight: Tensor, mask: Tensor, conv: Conv) -> Tensor:
    """y[N,F,oh,ow], channels last, of x[N,C,H,W] and weight[F,C/g,kh,kw] under mask[(N,)C,oh,ow]."""
    x, mask = _nhwc(x), mask.contiguous()
    filters, channels, kh, kw = weight.shape[0] // conv.groups, *weight.shape[1:]
    oh, ow = mask.shape[-2:]
    y = x.new_empty(x.shape[0], oh, ow, weight.shape[0])
    rows = x.shape[0] * oh * ow
    br, bf, bc = _tile(rows, filters, channels)
    _forward_kernel[(triton.cdiv(rows, br), triton.cdiv(filters, bf), conv.groups)](
        x,
        _taps_first(weight, conv.groups),
        mask.view(torch.uint8),
        y,
        *(rows, x.shape[1], x.shape[2], oh, ow, channels, filters),
        *(x.stride(0), x.stride(1), x.stride(2), _sample_stride(mask), oh * ow, y.shape[3]),
        *(*conv.stride, *conv.padding, *conv.dilation),
        **{"KH": kh, "KW": kw, "BR": br, "BF": bf, "BC": bc, "PRECISION": _precision()},
    )
    return y.permute(0, 3, 1, 2)


def input_grad(grad: Tensor, weight: Tensor, mask: Tensor, conv: Conv, size: Sequence[int]) -> Tensor:
    """Gradient in x[N,C,*size], channels last, from that in y."""
    grad, mask = _nhwc(grad), mask.contiguous()
    filters, channels, kh, kw = weight.shape[0] // conv.groups, *weight.shape[1:]
    n, oh, ow, _ = grad.shape
    grad_x = grad.new_empty(n, *size, channels * conv.groups)
    rows = n * size[0] * size[1]
    br, bf, bc = _tile(rows, filters, channels)
    _input_kernel[(triton.cdiv(rows, br), triton.cdiv(channels, bc), conv.groups)](
        grad,
        _taps_first(weight, conv.groups),
        mask.view(torch.uint8),
        grad_x,
        *(rows, size[0], size[1], oh, ow, channels, filters),
        *(grad.shape[3], _sample_stride(mask), oh * ow, grad_x.shape[3]),
        *(*conv.stride, *conv.padding, *conv.dilation),
        **{"KH": kh, "KW": kw, "BR": br, "BF": bf, "BC": bc, "PRECISION": _precision()},
    )
    return grad_x.permute(0, 3, 1, 2)


def weight_grad(grad: Tensor, x: Tensor, mask: Tensor, conv: Conv, kernel: Sequence[int]) -> Tensor:
    """Gradient in weight[F,C/g,*kernel] from that in y[N,F,oh,ow]."""
    x, grad, mask = _nhwc(x), _nhwc(grad), mask.contiguous()
    filters, channels = grad.shape[3] // conv.groups, x.shape[3] // conv.groups
    n, oh, ow, _ = grad.shape
    rows, taps = n * oh * ow, kernel[0] * kernel[1]
    splits = max(1, min(64, rows // _SUM_ROWS))
    per_split = triton.cdiv(triton.cdiv(rows, splits), DEPTH) * DEPTH
    partial = torch.empty(splits, conv.groups, taps, channels, filters, dtype=torch.float32, device=x.device)
    _, bf, bc = _tile(rows, filters, channels)
    blocks_c = triton.cdiv(channels, bc)
    _weight_kernel[(taps * blocks_c, triton.cdiv(filters, bf), conv.groups * splits)](
        x,
        grad,
        mask.view(torch.uint8),
        partial,
        *(rows, x.shape[1], x.shape[2], oh, ow, channels, filters, blocks_c, per_split),
        *(x.stride(0), x.stride(1), x.stride(2), _sample_stride(mask), oh * ow, grad.shape[3], partial.stride(0)),
        *(*conv.stride, *conv.padding, *conv.dilation, conv.groups),
        **{"KH": kernel[0], "KW": kernel[1], "BR": DEPTH, "BF": bf, "BC": bc, "PRECISION": _precision()},
    )
    # Partial sums in a fixed order, not atomics: the same gradient every time.
    return partial.sum(0).unflatten(1, tuple(kernel)).permute(0, 4, 3, 1, 2).flatten(0, 1).to(x.dtype).contiguous()


def _nhwc(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1).contiguous()


def _taps_first(weight: Tensor, groups: int) -> Tensor:
    """weight[F,C/g,kh,kw] -> [g, kh*kw, C/g, F/g]."""
    return weight.unflatten(0, (groups, -1)).permute(0, 3, 4, 2, 1).flatten(1, 2).contiguous()


def _sample_stride(mask: Tensor) -> int:
    return mask.stride(0) if mask.dim() == 4 else 0


def _tile(rows: int, filters: int, channels: int) -> tuple[int, int, int]:
    """(rows, filters, channels) of a tile: powers of two, at least 16, no wider than the layer."""

    def fit(size: int, most: int) -> int:
        return min(most, max(16, triton.next_power_of_2(size)))

    return fit(rows, ROWS), fit(filters, COLUMNS), fit(channels, DEPTH)


def _precision() -> str:
    return "tf32" if torch.backends.cudnn.conv.fp32_precision == "tf32" else "ieee"  # type: ignore[attr-defined]
