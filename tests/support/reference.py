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


def block_scores(
    x: NDArray, kernel: Pair, stride: Pair = 1, padding: Padding = 0, dilation: Pair = 1, norm: str = "l2"
) -> NDArray[np.float64]:
    """Norm of every block of x [N,C,H,W] -> [N,C,oh,ow]: "l2", "l1", or "apoz", the number of non-zeros."""
    b = blocks(x, kernel, stride, padding, dilation)
    scores = np.zeros(b.shape[:4])
    for n, c, i, j in np.ndindex(*scores.shape):
        block = b[n, c, i, j].reshape(-1)
        scores[n, c, i, j] = np.count_nonzero(block) if norm == "apoz" else np.linalg.norm(block, {"l2": 2, "l1": 1}[norm])
    return scores


def tap_sums(
    x: NDArray, mask: NDArray | None, kernel: Pair, stride: Pair = 1, padding: Padding = 0, dilation: Pair = 1
) -> NDArray[np.float64]:
    """S[c,u,v] = sum over samples and positions of M[c,i,j] * b[n,c,i,j,u,v]."""
    b = blocks(x, kernel, stride, padding, dilation)
    sums = np.zeros((b.shape[1], *b.shape[4:]))
    for n, c, i, j, u, v in np.ndindex(*b.shape):
        if mask is None or mask[c, i, j]:
            sums[c, u, v] += b[n, c, i, j, u, v]
    return sums


def block_taylor(
    x: NDArray, grad: NDArray, w: NDArray, stride: Pair = 1, padding: Padding = 0, dilation: Pair = 1, groups: int = 1
) -> NDArray[np.float64]:
    """T[c,i,j] = sum_n ( sum_{u,v} b[n,c,i,j,u,v] * sum_f w[f,c,u,v] * g[n,f,i,j] )^2 with g[N,F,oh,ow], f over the filters that read c."""
    b = blocks(x, w.shape[2:], stride, padding, dilation)
    scores = np.zeros(b.shape[1:4])
    filters, channels = w.shape[0] // groups, w.shape[1]
    for n, c, i, j in np.ndindex(*b.shape[:4]):
        first_order = 0.0
        for f in range(c // channels * filters, (c // channels + 1) * filters):
            first_order += grad[n, f, i, j] * np.sum(w[f, c % channels] * b[n, c, i, j])
        scores[c, i, j] += first_order**2
    return scores


def tap_taylor(
    x: NDArray,
    grad: NDArray,
    w: NDArray,
    mask: NDArray | None,
    sets: NDArray,
    stride: Pair = 1,
    padding: Padding = 0,
    dilation: Pair = 1,
    groups: int = 1,
) -> NDArray[np.float64]:
    """T[q,k,u,v] = sum_n ( sum_{f in set q} w[f,k,u,v] * sum_{i,j} g[n,f,i,j] * M[c,i,j] * b[n,c,i,j,u,v] )^2; c: input k of f's group.

    sets[F] numbers the set of filters that each filter belongs to.
    """
    b = blocks(x, w.shape[2:], stride, padding, dilation)
    filters, channels = w.shape[0] // groups, w.shape[1]
    scores = np.zeros((sets.max() + 1, *w.shape[1:]))
    for n in range(x.shape[0]):
        first_order = np.zeros_like(scores)
        for f, k, u, v in np.ndindex(*w.shape):
            c = f // filters * channels + k
            for i, j in np.ndindex(*grad.shape[2:]):
                if mask is None or mask[c, i, j]:
                    first_order[sets[f], k, u, v] += w[f, k, u, v] * grad[n, f, i, j] * b[n, c, i, j, u, v]
        scores += first_order**2
    return scores
