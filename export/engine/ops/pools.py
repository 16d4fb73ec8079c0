"""Kernels "pool" and "mean": the largest or the mean number under a window, the mean of a channel.

    max      y[c,i,j] = max_uv x[c, i*sh + u*dh - top, j*sw + v*dw - left]                 over the taps inside the image
    average  y[c,i,j] = sum_uv x[...] / count      count: taps inside the image, or where padding counts, inside image and padding
    mean     y[c] = sum_ij x[c,i,j] / (H*W)

A work item of a pool is a row of y; of a mean, four vectors of channels. Where channels lie together, vectors hold channels; where both
sides are NCHW, they hold places: the rows of a window become one line, with what lies outside of the image, then its columns one number.
"""

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..ir.conv import CONSTANTS, HEADER, Op, View
from ..ir.network import Pool
from ..jit import jit
from ..run.vectors import LANES, added, load, maximum, multiplied, same, store, zeros
from .positions_simd import pack_line, pointer

_TOGETHER = 4 * LANES
_FEW_PLACES, _FEW_TAPS = 4, 4
"""Columns of y, and taps of a window, that are quicker number by number than as lines."""
_X, _Y, _CHANNELS, _HEIGHT, _WIDTH, _AVERAGE, _ROWS, _COLUMNS, _LINE = (HEADER + k for k in (0, 4, 8, 9, 10, 11, 12, 17, 22))
"""Positions in meta: start and strides of each side, channels, rows and columns of y, whether an average; five integers
of each axis, floats of a line."""


def plan(layer: Pool, x: View, y: View) -> Op:
    """A maximum or average under a window. constants: 1 / (rows that count) of each row of y, 1 / (columns that count) of each column."""
    meta = [v for side in (x, y) for v in (side.start, side.channel_stride, side.row_stride, side.pixel_stride)]
    meta += [x.channels, y.height, y.width, int(layer.kind == "average")]
    factors = []
    for axis, (size, places) in enumerate(((x.height, y.height), (x.width, y.width))):
        meta += [size, layer.kernel[axis], layer.strides[axis], layer.dilations[axis], layer.pads[axis]]
        factors.append(1 / _counted(layer, axis, size, places))
    constants = np.concatenate([*factors, np.zeros(LANES)]).astype(np.float32)
    work = 2e-10 * x.channels * y.width * layer.kernel[0] * layer.kernel[1]
    line = layer.pads[1] + x.width + (y.width + LANES) * layer.strides[1] + layer.kernel[1] * layer.dilations[1] + 2 * LANES
    own = np.array([0] * HEADER + meta + [line], np.int64)
    return Op(kernel="pool", meta=own, constants=constants, costs=np.full(y.height, work), scratch=LANES + 2 * line)


def _counted(layer: Pool, axis: int, size: int, places: int) -> NDArray[np.int64]:
    """The taps along an axis by which an average divides, at each place of y."""
    before, after = (layer.pads[axis], layer.pads[axis + 2]) if layer.counts_padding else (0, 0)
    starts = np.arange(places) * layer.strides[axis] - layer.pads[axis]
    taps = starts[:, None] + np.arange(layer.kernel[axis]) * layer.dilations[axis]
    return np.maximum(1, ((taps >= -before) & (taps < size + after)).sum(1))


@jit
def _window(meta: NDArray, axis: int, position: int) -> tuple[int, int, int]:
    """(first tap inside the image, taps inside, place of the first) of the window at a row or column of y."""
    size, taps, stride, dilation, before = meta[axis], meta[axis + 1], meta[axis + 2], meta[axis + 3], meta[axis + 4]
    origin = position * stride - before
    first = 0 if origin >= 0 else (-origin + dilation - 1) // dilation
    last = min(taps, (size - origin + dilation - 1) // dilation)
    return first, last - first, origin + first * dilation


@jit
def run(first: int, last: int, scratch: int, arena: NDArray, constants: NDArray, index: NDArray, meta: NDArray, op: int) -> None:
    """Kernel "pool"."""
    C, stride = meta[op + _CHANNELS], meta[op + _COLUMNS + 2]
    channels_last = meta[op + _X + 1] == 1 and meta[op + _Y + 1] == 1
    columns_last = meta[op + _X + 3] == 1 and meta[op + _Y + 3] == 1
    if meta[op + _WIDTH] <= _FEW_PLACES and meta[op + _ROWS + 1] * meta[op + _COLUMNS + 1] <= _FEW_TAPS and not channels_last:
        for i in range(first, last):
            _numbers(i, arena, constants, meta, op)
    elif columns_last and not channels_last and stride == 1:
        _lines_1(first, last, scratch, arena, constants, meta, op)
    elif columns_last and not channels_last and stride == 2:
        _lines_2(first, last, scratch, arena, constants, meta, op)
    else:
        for i in range(first, last):
            if channels_last:
                c = 0
                while c + _TOGETHER <= C:
                    _places_4(i, c, arena, constants, meta, op)
                    c += _TOGETHER
                while c < C:
                    _places_1(i, c, arena, constants, meta, op)
                    c += LANES
            else:
                _numbers(i, arena, constants, meta, op)


@jit
def _numbers(i: int, arena: NDArray, constants: NDArray, meta: NDArray, op: int) -> None:
    """Row i, number by number."""
    x, xc, xi, xj = meta[op + _X], meta[op + _X + 1], meta[op + _X + 2], meta[op + _X + 3]
    y, yc, yi, yj = meta[op + _Y], meta[op + _Y + 1], meta[op + _Y + 2], meta[op + _Y + 3]
    average, dh, dw = meta[op + _AVERAGE] == 1, meta[op + _ROWS + 3], meta[op + _COLUMNS + 3]
    _, rows, top = _window(meta, op + _ROWS, i)
    factor, factors = constants[meta[op + CONSTANTS] + i], meta[op + CONSTANTS] + meta[op + _HEIGHT]
    for j in range(meta[op + _WIDTH]):
        _, columns, left = _window(meta, op + _COLUMNS, j)
        for c in range(meta[op + _CHANNELS]):
            total = np.float32(0) if average else np.float32(-np.inf)
            for u in range(rows):
                for v in range(columns):
                    new = arena[x + c * xc + (top + u * dh) * xi + (left + v * dw) * xj]
                    total = total + new if average else (new if new > total or new != new else total)
            arena[y + c * yc + i * yi + j * yj] = total * factor * constants[factors + j] if average else total


def _places(vectors: int) -> Any:
    """Row i of so many vectors of channels from c on."""

    @jit
    def places(i: int, c: int, arena: NDArray, constants: NDArray, meta: NDArray, op: int) -> None:
        x, xi, xj, y, yj = meta[op + _X] + c, meta[op + _X + 2], meta[op + _X + 3], meta[op + _Y] + c, meta[op + _Y + 3]
        average, dh, dw = meta[op + _AVERAGE] == 1, meta[op + _ROWS + 3], meta[op + _COLUMNS + 3]
        _, rows, top = _window(meta, op + _ROWS, i)
        factor, factors = constants[meta[op + CONSTANTS] + i], meta[op + CONSTANTS] + meta[op + _HEIGHT]
        for j in range(meta[op + _WIDTH]):
            _, columns, left = _window(meta, op + _COLUMNS, j)
            total = same(np.float32(0) if average else np.float32(-np.inf), vectors)
            for u in range(rows):
                for v in range(columns):
                    value = load(arena, x + (top + u * dh) * xi + (left + v * dw) * xj, vectors)
                    total = added(total, value) if average else maximum(total, value)
            if average:
                total = multiplied(total, same(factor * constants[factors + j], vectors))
            store(total, arena, y + i * meta[op + _Y + 2] + j * yj)

    return places


_places_1, _places_4 = _places(1), _places(4)


@cache
def _lines(step: int) -> Any:
    """Rows first <= i < last, channel by channel; windows are `step` columns apart. Lines lie in scratch, behind a vector's surplus: two,
    so that one is written a row before it is read: what is read at once, at other places, has to wait for the cache."""

    @jit
    def lines(first: int, last: int, scratch: int, arena: NDArray, constants: NDArray, meta: NDArray, op: int) -> None:
        x, xc, xi = meta[op + _X], meta[op + _X + 1], meta[op + _X + 2]
        y, yc, yi, ow = meta[op + _Y], meta[op + _Y + 1], meta[op + _Y + 2], meta[op + _WIDTH]
        average, dh = meta[op + _AVERAGE] == 1, meta[op + _ROWS + 3]
        W, kw, dw, left = meta[op + _COLUMNS], meta[op + _COLUMNS + 1], meta[op + _COLUMNS + 3], meta[op + _COLUMNS + 4]
        nothing, factors = np.float32(0) if average else np.float32(-np.inf), meta[op + CONSTANTS] + meta[op + _HEIGHT]
        size, seen = meta[op + _LINE], (ow - 1) * step + (kw - 1) * dw + 1
        begin, end = scratch + LANES, scratch + LANES + 2 * size
        for start in range(begin, end, size):
            for k in range(left):
                arena[start + k] = nothing
        for c in range(meta[op + _CHANNELS]):
            for i in range(first, last + 1):
                line = begin + i % 2 * size
                if i < last:
                    _, rows, top = _window(meta, op + _ROWS, i)
                    tap = x + c * xc + top * xi
                    for e in range(0, W, LANES):
                        total = load(arena, tap + e, 1)
                        for u in range(1, rows):
                            value = load(arena, tap + e + u * dh * xi, 1)
                            total = added(total, value) if average else maximum(total, value)
                        store(total, arena, line + left + e)
                    for k in range(left + W, seen):
                        arena[line + k] = nothing
                if i == first:
                    continue
                line, at = begin + (i - 1) % 2 * size, y + c * yc + (i - 1) * yi
                for j in range(0, ow, LANES):
                    total = pack_line(pointer(arena), line + j * step, 0, 0, LANES, step)
                    for v in range(1, kw):
                        value = pack_line(pointer(arena), line + j * step + v * dw, 0, 0, LANES, step)
                        total = added(total, value) if average else maximum(total, value)
                    if average:
                        total = multiplied(
                            multiplied(total, same(constants[meta[op + CONSTANTS] + i - 1], 1)), load(constants, factors + j, 1)
                        )
                    if j + LANES <= ow:
                        store(total, arena, at + j)
                    else:
                        store(total, arena, scratch)
                        for k in range(ow - j):
                            arena[at + j + k] = arena[scratch + k]

    return lines


_lines_1, _lines_2 = _lines(1), _lines(2)


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
