"""Kernels "pool" and "mean": the largest or the mean number under a window, the mean of a channel.

    max      y[c,i,j] = max_uv x[c, i*sh + u*dh - top, j*sw + v*dw - left]                 over the taps inside the image
    average  y[c,i,j] = sum_uv x[...] / count      count: taps inside the image, or where padding counts, inside image and padding
    mean     y[c] = sum_ij x[c,i,j] / (H*W)

A work item of a pool is a row of y; of a mean, LANES channels.
"""

import numpy as np
from numpy.typing import NDArray

from .conv import HEADER, Op, View
from .jit import jit
from .network import Pool
from .vectors import LANES


def plan(layer: Pool, x: View, y: View) -> Op:
    """A maximum or average under a window."""
    sides = [(v.start, v.channel_stride, v.row_stride, v.pixel_stride) for v in (x, y)]
    pads = layer.pads if layer.counts_padding else (0, 0, 0, 0)
    own = [*sides[0], *sides[1], x.channels, x.height, x.width, y.width, *layer.kernel, *layer.strides, *layer.dilations]
    own += [layer.pads[0], layer.pads[1], *pads, int(layer.kind == "average")]
    work = 2e-10 * x.channels * y.width * layer.kernel[0] * layer.kernel[1]
    return Op(kernel="pool", meta=np.array([0] * HEADER + own, np.int64), costs=np.full(y.height, work))


@jit
def _window(position: int, stride: int, before: int, dilation: int, taps: int, size: int) -> tuple[int, int]:
    """(first, last) of the taps u with 0 <= position*stride - before + u*dilation < size."""
    origin = position * stride - before
    first = 0 if origin >= 0 else (-origin + dilation - 1) // dilation
    last = (size - origin + dilation - 1) // dilation if size > origin else 0
    return first, min(taps, last)


@jit
def run(first: int, last: int, scratch: int, arena: NDArray, constants: NDArray, index: NDArray, meta: NDArray, op: int) -> None:
    """Kernel "pool"."""
    m = op + HEADER
    x, xc, xi, xj, y, yc, yi, yj = meta[m], meta[m + 1], meta[m + 2], meta[m + 3], meta[m + 4], meta[m + 5], meta[m + 6], meta[m + 7]
    C, H, W, ow, kh, kw, sh, sw = (
        meta[m + 8],
        meta[m + 9],
        meta[m + 10],
        meta[m + 11],
        meta[m + 12],
        meta[m + 13],
        meta[m + 14],
        meta[m + 15],
    )
    dh, dw, top, left = meta[m + 16], meta[m + 17], meta[m + 18], meta[m + 19]
    counted_top, counted_left, counted_bottom, counted_right = meta[m + 20], meta[m + 21], meta[m + 22], meta[m + 23]
    average = meta[m + 24] == 1
    for i in range(first, last):
        u_first, u_last = _window(i, sh, top, dh, kh, H)
        c_first, c_last = _window(i, sh, top - counted_top, dh, kh, H + counted_top + counted_bottom)
        for j in range(ow):
            v_first, v_last = _window(j, sw, left, dw, kw, W)
            at = y + i * yi + j * yj
            begin = np.float32(0) if average else np.float32(-np.inf)
            for c in range(C):
                arena[at + c * yc] = begin
            for u in range(u_first, u_last):
                for v in range(v_first, v_last):
                    tap = x + (i * sh - top + u * dh) * xi + (j * sw - left + v * dw) * xj
                    if xc == 1 and yc == 1:
                        _merge(arena, at, tap, C, average)
                    else:
                        for c in range(C):
                            old, new = arena[at + c * yc], arena[tap + c * xc]
                            arena[at + c * yc] = old + new if average else (new if new > old or new != new else old)
            if average:
                d_first, d_last = _window(j, sw, left - counted_left, dw, kw, W + counted_left + counted_right)
                factor = np.float32(1 / ((c_last - c_first) * (d_last - d_first)))
                for c in range(C):
                    arena[at + c * yc] *= factor


@jit
def _merge(arena: NDArray, at: int, tap: int, C: int, average: bool) -> None:
    """The same with the channels together, which the compiler makes vectors of."""
    if average:
        for c in range(C):
            arena[at + c] += arena[tap + c]
    else:
        for c in range(C):
            old, new = arena[at + c], arena[tap + c]
            arena[at + c] = new if new > old or new != new else old


def plan_mean(x: View, y: View) -> Op:
    """The mean over rows and columns."""
    own = [x.start, x.channel_stride, x.row_stride, x.pixel_stride, y.start, y.channel_stride, x.channels, x.height, x.width]
    items = -(-x.channels // LANES)
    return Op(kernel="mean", meta=np.array([0] * HEADER + own, np.int64), costs=np.full(items, 1e-9 * x.height * x.width))


@jit
def run_mean(first: int, last: int, scratch: int, arena: NDArray, constants: NDArray, index: NDArray, meta: NDArray, op: int) -> None:
    """Kernel "mean": sums of rows, then their sum, which rounds less than one long sum."""
    m = op + HEADER
    x, xc, xi, xj, y, yc = meta[m], meta[m + 1], meta[m + 2], meta[m + 3], meta[m + 4], meta[m + 5]
    C, H, W = meta[m + 6], meta[m + 7], meta[m + 8]
    factor = np.float32(1 / (H * W))
    for c in range(first * LANES, min(last * LANES, C)):
        total = np.float32(0)
        for i in range(H):
            line = np.float32(0)
            for j in range(W):
                line += arena[x + c * xc + i * xi + j * xj]
            total += line
        arena[y + c * yc] = total * factor
