"""Kernels "pool" and "mean": the largest or the mean number under a window, the mean of a channel.

    max      y[c,i,j] = max_uv x[c, i*sh + u*dh - top, j*sw + v*dw - left]                 over the taps inside the image
    average  y[c,i,j] = sum_uv x[...] / count      count: taps inside the image, or where padding counts, inside image and padding
    mean     y[c] = sum_ij x[c,i,j] / (H*W)

A work item of a pool is a row of y; of a mean, four vectors of channels. Where channels lie together, vectors hold channels; where both
sides are NCHW, they hold places of a row whose windows lie inside of the image.
"""

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .conv import HEADER, Op, View
from .jit import jit
from .network import Pool
from .positions_simd import pack_line, pointer
from .vectors import LANES, added, load, maximum, multiplied, same, store, zeros

_TOGETHER = 4 * LANES


def plan(layer: Pool, x: View, y: View) -> Op:
    """A maximum or average under a window."""
    sides = [(v.start, v.channel_stride, v.row_stride, v.pixel_stride) for v in (x, y)]
    pads = layer.pads if layer.counts_padding else (0, 0, 0, 0)
    own = [*sides[0], *sides[1], x.channels, x.height, x.width, y.width, *layer.kernel, *layer.strides, *layer.dilations]
    own += [layer.pads[0], layer.pads[1], *pads, int(layer.kind == "average")]
    work = 2e-10 * x.channels * y.width * layer.kernel[0] * layer.kernel[1]
    return Op(kernel="pool", meta=np.array([0] * HEADER + own, np.int64), costs=np.full(y.height, work), scratch=LANES)


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
    begin, end = ow, ow
    if xj == 1 and yj == 1 and xc != 1 and yc != 1 and sw <= 2:
        begin = min(ow, (left + sw - 1) // sw)
        end = max(begin, min(ow, (W - 1 + left - (kw - 1) * dw) // sw + 1))
        end = begin if end - begin < LANES // 2 else end  # a few places are made faster one by one
    for i in range(first, last):
        u_first, u_last = _window(i, sh, top, dh, kh, H)
        c_first, c_last = _window(i, sh, top - counted_top, dh, kh, H + counted_top + counted_bottom)
        if end > begin:
            factor = np.float32(1 / max(1, (c_last - c_first) * kw))
            at, tap = y + i * yi + begin, x + (i * sh - top + u_first * dh) * xi + begin * sw - left
            for c in range(C):
                if sw == 1:
                    _row_1(arena, tap + c * xc, at + c * yc, dh * xi, dw, u_last - u_first, kw, end - begin, average, factor, scratch)
                else:
                    _row_2(arena, tap + c * xc, at + c * yc, dh * xi, dw, u_last - u_first, kw, end - begin, average, factor, scratch)
        for j in range(ow):
            if begin <= j < end:
                continue
            v_first, v_last = _window(j, sw, left, dw, kw, W)
            d_first, d_last = _window(j, sw, left - counted_left, dw, kw, W + counted_left + counted_right)
            factor = np.float32(1 / max(1, (c_last - c_first) * (d_last - d_first)))
            at, tap = y + i * yi + j * yj, x + (i * sh - top + u_first * dh) * xi + (j * sw - left + v_first * dw) * xj
            rows, columns, c = u_last - u_first, v_last - v_first, 0
            if xc == 1 and yc == 1:
                while c + 4 * LANES <= C:
                    _merged_4(arena, tap + c, at + c, dh * xi, dw * xj, rows, columns, average, factor)
                    c += 4 * LANES
                while c < C:
                    _merged_1(arena, tap + c, at + c, dh * xi, dw * xj, rows, columns, average, factor)
                    c += LANES
            else:
                for c in range(C):
                    total = np.float32(0) if average else np.float32(-np.inf)
                    for u in range(rows):
                        for v in range(columns):
                            new = arena[tap + c * xc + u * dh * xi + v * dw * xj]
                            total = total + new if average else (new if new > total or new != new else total)
                    arena[at + c * yc] = total * factor if average else total


@cache
def _row(step: int) -> Any:
    """`count` places of a row, `step` apart in x, whose windows are `columns` wide; the surplus of the last vector ends in scratch."""

    @jit
    def row_of(
        arena: NDArray,
        tap: int,
        at: int,
        row: int,
        pixel: int,
        rows: int,
        columns: int,
        count: int,
        average: bool,
        factor: float,
        scratch: int,
    ) -> None:
        for j in range(0, count, LANES):
            total = same(np.float32(0) if average else np.float32(-np.inf), 1)
            for u in range(rows):
                for v in range(columns):
                    value = pack_line(pointer(arena), tap + j * step + u * row + v * pixel, 0, 0, LANES, step)
                    total = added(total, value) if average else maximum(total, value)
            total = multiplied(total, same(factor, 1)) if average else total
            if j + LANES <= count:
                store(total, arena, at + j)
            else:
                store(total, arena, scratch)
                for k in range(count - j):
                    arena[at + j + k] = arena[scratch + k]

    return row_of


_row_1, _row_2 = _row(1), _row(2)


def _merged(vectors: int) -> Any:
    """The result of so many vectors of channels at one place."""

    @jit
    def merged(
        arena: NDArray,
        tap: int,
        at: int,
        row: int,
        pixel: int,
        rows: int,
        columns: int,
        average: bool,
        factor: float,
    ) -> None:
        total = same(np.float32(0) if average else np.float32(-np.inf), vectors)
        for u in range(rows):
            for v in range(columns):
                value = load(arena, tap + u * row + v * pixel, vectors)
                total = added(total, value) if average else maximum(total, value)
        store(multiplied(total, same(factor, vectors)) if average else total, arena, at)

    return merged


_merged_1, _merged_4 = _merged(1), _merged(4)


def plan_mean(x: View, y: View) -> Op:
    """The mean over rows and columns."""
    own = [x.start, x.channel_stride, x.row_stride, x.pixel_stride, y.start, y.channel_stride, x.channels, x.height, x.width]
    items = -(-x.channels // _TOGETHER)
    costs = np.full(items, 1e-10 * _TOGETHER * x.height * x.width)
    return Op(kernel="mean", meta=np.array([0] * HEADER + own, np.int64), costs=costs, scratch=_TOGETHER)


def _summed(vectors: int) -> Any:
    """Sums of so many vectors of channels that lie together, to `to`: sums of rows, then their sum, which rounds less than one long sum."""

    @jit
    def summed(arena: NDArray, x: int, row: int, pixel: int, height: int, width: int, to: int) -> None:
        total = zeros(vectors)
        for i in range(height):
            line = zeros(vectors)
            for j in range(width):
                line = added(line, load(arena, x + i * row + j * pixel, vectors))
            total = added(total, line)
        store(total, arena, to)

    return summed


_summed_1, _summed_4 = _summed(1), _summed(4)


@jit
def run_mean(first: int, last: int, scratch: int, arena: NDArray, constants: NDArray, index: NDArray, meta: NDArray, op: int) -> None:
    """Kernel "mean"."""
    m = op + HEADER
    x, xc, xi, xj, y, yc = meta[m], meta[m + 1], meta[m + 2], meta[m + 3], meta[m + 4], meta[m + 5]
    C, H, W = meta[m + 6], meta[m + 7], meta[m + 8]
    factor = np.float32(1 / (H * W))
    for begin in range(first * _TOGETHER, min(last * _TOGETHER, C), _TOGETHER):
        end = min(begin + _TOGETHER, C)
        if xc != 1:
            for c in range(begin, end):
                arena[scratch + c - begin] = _plane_sum(arena, x + c * xc, xi, xj, H, W)
        elif end == begin + _TOGETHER:
            _summed_4(arena, x + begin, xi, xj, H, W, scratch)
        else:
            for c in range(begin, end, LANES):
                _summed_1(arena, x + c, xi, xj, H, W, scratch + c - begin)
        for c in range(begin, end):
            arena[y + c * yc] = arena[scratch + c - begin] * factor


@jit
def _plane_sum(arena: NDArray, x: int, row: int, pixel: int, height: int, width: int) -> Any:
    total = np.float32(0)
    for i in range(height):
        line = np.float32(0)
        for j in range(width):
            line += arena[x + i * row + j * pixel]
        total += line
    return total
