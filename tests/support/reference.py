"""The obvious loops that every fast implementation is compared with; written to be read, in float64, never optimised."""

import itertools

import numpy as np
from numpy.typing import NDArray

Pair = int | tuple[int, int]
Padding = int | tuple[int, int] | tuple[int, int, int, int]


def masked_conv2d(
    x: NDArray,
    w: NDArray,
    bias: NDArray | None,
    mask: NDArray | None,
    stride: Pair = 1,
    padding: Padding = 0,
    dilation: Pair = 1,
    groups: int = 1,
) -> NDArray[np.float64]:
    """y[n,f,i,j] = sum_c M[c,i,j] * sum_uv w[f,c,u,v] * b[n,c,i,j,u,v] + bias[f], c running over the channels of f's group.

    x: [N,C,H,W]; w: [F,C/groups,kh,kw] (weights dropped by FWP are zeros); mask: [C,oh,ow], or [N,C,oh,ow] for a mask per
    sample, or None for all ones. padding: both sides alike, (vertical, horizontal), or (top, left, bottom, right).
    Returns [N,F,oh,ow].
    """
    x, w = np.asarray(x, np.float64), np.asarray(w, np.float64)
    N, C = x.shape[:2]
    F, per_group, kh, kw = w.shape
    sh, sw = _pair(stride)
    dh, dw = _pair(dilation)
    padded = _pad(x, padding)
    oh, ow = output_size(x.shape[2:], (kh, kw), stride, padding, dilation)
    if mask is None:
        mask = np.ones((C, oh, ow), bool)
    masks = np.broadcast_to(mask, (N, C, oh, ow))
    y = np.zeros((N, F, oh, ow))
    for n, f, i, j in np.ndindex(N, F, oh, ow):
        group = f // (F // groups)
        for k in range(per_group):
            c = group * per_group + k
            if not masks[n, c, i, j]:
                continue
            for u, v in np.ndindex(kh, kw):
                y[n, f, i, j] += w[f, k, u, v] * padded[n, c, i * sh + u * dh, j * sw + v * dw]
        if bias is not None:
            y[n, f, i, j] += bias[f]
    return y


def blocks(x: NDArray, kernel: Pair, stride: Pair = 1, padding: Padding = 0, dilation: Pair = 1) -> NDArray[np.float64]:
    """b[n,c,i,j,u,v]: the patch of the zero-padded input x [N,C,H,W] under each output position."""
    x = np.asarray(x, np.float64)
    kh, kw = _pair(kernel)
    sh, sw = _pair(stride)
    dh, dw = _pair(dilation)
    padded = _pad(x, padding)
    oh, ow = output_size(x.shape[2:], kernel, stride, padding, dilation)
    b = np.zeros((*x.shape[:2], oh, ow, kh, kw))
    for i, j, u, v in itertools.product(range(oh), range(ow), range(kh), range(kw)):
        b[:, :, i, j, u, v] = padded[:, :, i * sh + u * dh, j * sw + v * dw]
    return b


def output_size(size: tuple[int, ...], kernel: Pair, stride: Pair = 1, padding: Padding = 0, dilation: Pair = 1) -> tuple[int, int]:
    """(oh, ow) of a convolution over an input of size (H, W)."""
    kernel, stride, dilation = _pair(kernel), _pair(stride), _pair(dilation)
    top, left, bottom, right = _sides(padding)
    total = (top + bottom, left + right)
    oh, ow = ((size[a] + total[a] - dilation[a] * (kernel[a] - 1) - 1) // stride[a] + 1 for a in (0, 1))
    return oh, ow


def _pad(x: NDArray, padding: Padding) -> NDArray:
    top, left, bottom, right = _sides(padding)
    return np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)))


def _sides(padding: Padding) -> tuple[int, int, int, int]:
    if isinstance(padding, int):
        return (padding,) * 4
    return padding if len(padding) == 4 else (padding[0], padding[1], padding[0], padding[1])


def _pair(value: Pair) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else value
