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

from fineprune.ops.simd import LANES, pointer, tile_zeros
from fineprune.ops.simd.vectors import added, load, maximum, multiplied, same, store

from ..ir.conv import Op, View
from ..ir.network import Pool
from ..ir.record import INT, PLACE, Record, group
from ..jit import jit
from .positions_simd import pack_line

_TOGETHER = 4 * LANES
_FEW_PLACES, _FEW_TAPS = 4, 4
"""Columns of y, and taps of a window, that are quicker number by number than as lines."""
_AXIS = group("places", "taps", "stride", "dilation", "before")
"""Of rows or columns: places of x, taps of the window and their distance, distance of windows, padding in front."""
_POOL = Record(x=PLACE, y=PLACE, channels=INT, height=INT, width=INT, average=INT, rows=_AXIS, columns=_AXIS, line=INT)
"""height, width: of y; line: floats of a line."""
_MEAN = Record(x=PLACE, y=PLACE, channels=INT, height=INT, width=INT)
_pool, _mean = _POOL.fields, _MEAN.fields


def plan(layer: Pool, x: View, y: View) -> Op:
    """A maximum or average under a window. constants: 1 / (rows that count) of each row of y, 1 / (columns that count) of each column."""
    axes, factors = [], []
    for axis, (size, places) in enumerate(((x.height, y.height), (x.width, y.width))):
        axes.append((size, layer.kernel[axis], layer.strides[axis], layer.dilations[axis], layer.pads[axis]))
        factors.append(1 / _counted(layer, axis, size, places))
    constants = np.concatenate([*factors, np.zeros(LANES)]).astype(np.float32)
    work = 2e-10 * x.channels * y.width * layer.kernel[0] * layer.kernel[1]
    line = layer.pads[1] + x.width + (y.width + LANES) * layer.strides[1] + layer.kernel[1] * layer.dilations[1] + 2 * LANES
    meta = _POOL.pack(
        x=x.place,
        y=y.place,
        channels=x.channels,
        height=y.height,
        width=y.width,
        average=int(layer.kind == "average"),
        rows=axes[0],
        columns=axes[1],
        line=line,
    )
    return Op(kernel="pool", meta=meta, constants=constants, costs=np.full(y.height, work), scratch=LANES + 2 * line)


def _counted(layer: Pool, axis: int, size: int, places: int) -> NDArray[np.int64]:
    """The taps along an axis by which an average divides, at each place of y."""
    before, after = (layer.pads[axis], layer.pads[axis + 2]) if layer.counts_padding else (0, 0)
    starts = np.arange(places) * layer.strides[axis] - layer.pads[axis]
    taps = starts[:, None] + np.arange(layer.kernel[axis]) * layer.dilations[axis]
    return np.maximum(1, ((taps >= -before) & (taps < size + after)).sum(1))


@jit
def _window(axis: Any, position: int) -> tuple[int, int, int]:
    """(first tap inside the image, taps inside, place of the first) of the window at a row or column of y."""
    origin = position * axis.stride - axis.before
    first = 0 if origin >= 0 else (-origin + axis.dilation - 1) // axis.dilation
    last = min(axis.taps, (axis.places - origin + axis.dilation - 1) // axis.dilation)
    return first, last - first, origin + first * axis.dilation


@jit
def run(first: int, last: int, scratch: int, arena: NDArray, constants: NDArray, index: NDArray, meta: NDArray, op: int) -> None:
    """Kernel "pool"."""
    m = _pool(meta, op)
    channels_last = m.x.channel == 1 and m.y.channel == 1
    columns_last = m.x.pixel == 1 and m.y.pixel == 1
    if m.width <= _FEW_PLACES and m.rows.taps * m.columns.taps <= _FEW_TAPS and not channels_last:
        for i in range(first, last):
            _numbers(i, arena, constants, m)
    elif columns_last and not channels_last and m.columns.stride == 1:
        _lines_1(first, last, scratch, arena, constants, m)
    elif columns_last and not channels_last and m.columns.stride == 2:
        _lines_2(first, last, scratch, arena, constants, m)
    else:
        for i in range(first, last):
            if channels_last:
                c = 0
                while c + _TOGETHER <= m.channels:
                    _places_4(i, c, arena, constants, m)
                    c += _TOGETHER
                while c < m.channels:
                    _places_1(i, c, arena, constants, m)
                    c += LANES
            else:
                _numbers(i, arena, constants, m)


@jit
def _numbers(i: int, arena: NDArray, constants: NDArray, m: Any) -> None:
    """Row i, number by number."""
    x, xc, xi, xj = m.x.start, m.x.channel, m.x.row, m.x.pixel
    y, yc, yi, yj = m.y.start, m.y.channel, m.y.row, m.y.pixel
    average, dh, dw, channels = m.average == 1, m.rows.dilation, m.columns.dilation, m.channels
    _, rows, top = _window(m.rows, i)
    factor, factors = constants[m.constants + i], m.constants + m.height
    for j in range(m.width):
        _, columns, left = _window(m.columns, j)
        for c in range(channels):
            total = np.float32(0) if average else np.float32(-np.inf)
            for u in range(rows):
                for v in range(columns):
                    new = arena[x + c * xc + (top + u * dh) * xi + (left + v * dw) * xj]
                    total = total + new if average else (new if new > total or new != new else total)
            arena[y + c * yc + i * yi + j * yj] = total * factor * constants[factors + j] if average else total


def _places(vectors: int) -> Any:
    """Row i of so many vectors of channels from c on."""

    @jit
    def places(i: int, c: int, arena: NDArray, constants: NDArray, m: Any) -> None:
        x, xi, xj, y, yj = m.x.start + c, m.x.row, m.x.pixel, m.y.start + i * m.y.row + c, m.y.pixel
        average, dh, dw = m.average == 1, m.rows.dilation, m.columns.dilation
        _, rows, top = _window(m.rows, i)
        factor, factors = constants[m.constants + i], m.constants + m.height
        for j in range(m.width):
            _, columns, left = _window(m.columns, j)
            total = same(np.float32(0) if average else np.float32(-np.inf), vectors)
            for u in range(rows):
                for v in range(columns):
                    value = load(arena, x + (top + u * dh) * xi + (left + v * dw) * xj, vectors)
                    total = added(total, value) if average else maximum(total, value)
            if average:
                total = multiplied(total, same(factor * constants[factors + j], vectors))
            store(total, arena, y + j * yj)

    return places


_places_1, _places_4 = _places(1), _places(4)


@cache
def _lines(step: int) -> Any:
    """Rows first <= i < last, channel by channel; windows are `step` columns apart. Lines lie in scratch, behind a vector's surplus: two,
    so that one is written a row before it is read: what is read at once, at other places, has to wait for the cache."""

    @jit
    def lines(first: int, last: int, scratch: int, arena: NDArray, constants: NDArray, m: Any) -> None:
        x, xc, xi = m.x.start, m.x.channel, m.x.row
        y, yc, yi, ow = m.y.start, m.y.channel, m.y.row, m.width
        average, dh = m.average == 1, m.rows.dilation
        W, kw, dw, left = m.columns.places, m.columns.taps, m.columns.dilation, m.columns.before
        nothing, factors = np.float32(0) if average else np.float32(-np.inf), m.constants + m.height
        size, seen = m.line, (ow - 1) * step + (kw - 1) * dw + 1
        begin, end = scratch + LANES, scratch + LANES + 2 * size
        for start in range(begin, end, size):
            for k in range(left):
                arena[start + k] = nothing
        for c in range(m.channels):
            for i in range(first, last + 1):
                line = begin + i % 2 * size
                if i < last:
                    _, rows, top = _window(m.rows, i)
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
                        total = multiplied(multiplied(total, same(constants[m.constants + i - 1], 1)), load(constants, factors + j, 1))
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
    meta = _MEAN.pack(x=x.place, y=y.place, channels=x.channels, height=x.height, width=x.width)
    items = -(-x.channels // _TOGETHER)
    costs = np.full(items, 1e-10 * _TOGETHER * x.height * x.width)
    return Op(kernel="mean", meta=meta, costs=costs, scratch=_TOGETHER)


def _summed(vectors: int) -> Any:
    """Sums of so many vectors of channels that lie together, to `to`: sums of rows, then their sum, which rounds less than one long sum."""

    @jit
    def summed(arena: NDArray, x: int, row: int, pixel: int, height: int, width: int, to: int) -> None:
        total = tile_zeros(1, vectors)
        for i in range(height):
            line = tile_zeros(1, vectors)
            for j in range(width):
                line = added(line, load(arena, x + i * row + j * pixel, vectors))
            total = added(total, line)
        store(total, arena, to)

    return summed


_summed_1, _summed_4 = _summed(1), _summed(4)


@jit
def run_mean(first: int, last: int, scratch: int, arena: NDArray, constants: NDArray, index: NDArray, meta: NDArray, op: int) -> None:
    """Kernel "mean"."""
    m = _mean(meta, op)
    x, xc, xi, xj, y, yc = m.x.start, m.x.channel, m.x.row, m.x.pixel, m.y.start, m.y.channel
    C, H, W = m.channels, m.height, m.width
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
