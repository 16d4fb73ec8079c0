"""The three convolutions over bands: forward, input gradient and weight gradient; only kept blocks cost time.

With the samples in the lanes, a weight is a scalar and every multiply-add of a vector is useful, whatever the masks look like:

    y[f,p,:]         += w[f,c,t] * x[c,p+t,:]          for the channels c kept at p and the taps t kept in (f,c)
    gx[c,p+t,:]      += w[f,c,t] * gy[f,p,:]           for the same
    gw[f,c,t]        += sum over lanes of x[c,p+t,:] * gy[f,p,:]      for the same

Weights come as lists of entries, in the order of use (plan.py). `rows` of the register tile is the number of weights of an entry: 1 where
each filter keeps taps of its own; several, sharing what a vector load brings, where they keep the same ones.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..simd import LANES, at, tile_add_scaled, tile_load, tile_store, tile_zeros
from .jit import jit
from .job import Kernel, floats, ints, take
from .layout import Band, gather, pack, unpack
from .problem import PARTS, Geometry, opened, part_of, task, tasks_of
from .simd import tile_add_gathered, tile_column_sums

FORWARD_BLOCK = 64
"""Filters at a time, so that their outputs and the patches of two channels fit the first-level cache."""
GRAD_BLOCK = 64
"""Filters at a time in the input gradient: their gradients at one position fit the first-level cache."""
WEIGHT_BLOCK = 32
"""Filters at a time in the weight gradient: their gradients in a band fit the second-level cache."""
FILTER_TILE = 4
"""Bands of y have a multiple of this many filters."""


@cache
def forward_kernel(rows: int, vectors: int) -> Kernel:
    block = FORWARD_BLOCK // rows

    @Kernel
    def forward(job: Any) -> None:
        """y[N,oh,ow,F] for tasks [sample, samples, first row, rows]."""
        x, weight, y = floats(job, 0), floats(job, 1), floats(job, 2)
        numbers, xb, yb, g, x_packed, y_packed, weights = opened(job)
        offsets, segments, starts, active = ints(job, 5), ints(job, 6), ints(job, 7), ints(job, 8)
        gather(weight, ints(job, 9), weights)
        groups = yb.channels // rows
        while True:
            sample, samples, top, height = task(numbers, take(job))
            if samples == 0:
                break
            needed = (height - 1) * g.stride[0] + (g.kernel[0] - 1) * g.dilation[0] + 1
            pack(x, g.x, sample, samples, top * g.stride[0] - g.padding[0], needed, x_packed, xb)
            for i in range(height):
                for j in range(g.y.width):
                    p = (top + i) * g.y.width + j
                    patch = i * g.stride[0] * xb.row + j * g.stride[1] * xb.column
                    for first in range(0, groups, block):
                        last = min(first + block, groups)
                        out = i * yb.row + j * yb.column
                        for q in range(first, last):
                            tile_store(tile_zeros(rows, vectors), y_packed, out + q * rows * yb.lanes, yb.lanes)
                        # Two channels at a time, because loading and storing the sums costs as much as a few multiply-adds.
                        for k in range(at(starts, p), at(starts, p + 1), 2):
                            c = at(active, k)
                            d = at(active, k + 1) if k + 1 < at(starts, p + 1) else xb.channels
                            c_patch, d_patch = patch + c * xb.lanes, patch + d * xb.lanes
                            ce, de = at(segments, c * groups + first), at(segments, d * groups + first)
                            for q in range(first, last):
                                c_stop, d_stop = at(segments, c * groups + q + 1), at(segments, d * groups + q + 1)
                                tile = tile_load(y_packed, out + q * rows * yb.lanes, yb.lanes, rows, vectors)
                                while ce < c_stop:
                                    tile = tile_add_scaled(tile, weights, ce * rows, 1, x_packed, c_patch + at(offsets, ce))
                                    ce += 1
                                while de < d_stop:
                                    tile = tile_add_scaled(tile, weights, de * rows, 1, x_packed, d_patch + at(offsets, de))
                                    de += 1
                                tile_store(tile, y_packed, out + q * rows * yb.lanes, yb.lanes)
            unpack(y_packed, yb, y, g.y, sample, samples, top, height)

    return forward


@cache
def input_grad_kernel(rows: int, vectors: int) -> Kernel:
    @Kernel
    def input_grad(job: Any) -> None:
        """grad_x[N,H,W,C] for tasks [sample, samples, first row of x, rows of x]."""
        grad, weight, grad_x = floats(job, 0), floats(job, 1), floats(job, 2)
        numbers, xb, yb, g, x_packed, y_packed, weights = opened(job)
        filters, segments, starts, active = ints(job, 5), ints(job, 6), ints(job, 7), ints(job, 8)
        gather(weight, ints(job, 9), weights)
        taps = g.kernel[1] // rows
        blocks = (yb.channels + GRAD_BLOCK - 1) // GRAD_BLOCK
        while True:
            sample, samples, top, height = task(numbers, take(job))
            if samples == 0:
                break
            begin = top + g.padding[0] - (g.kernel[0] - 1) * g.dilation[0]
            begin = max(0, (begin + g.stride[0] - 1) // g.stride[0])
            end = min(g.y.height, (top + height - 1 + g.padding[0]) // g.stride[0] + 1)
            pack(grad, g.y, sample, samples, begin, max(0, end - begin), y_packed, yb)
            x_packed[: height * xb.row] = 0
            for i in range(begin, end):
                for j in range(g.y.width):
                    p = i * g.y.width + j
                    for block in range(blocks):
                        source = (i - begin) * yb.row + j * yb.column + block * GRAD_BLOCK * yb.lanes
                        for k in range(at(starts, p), at(starts, p + 1)):
                            c = at(active, k)
                            for u in range(g.kernel[0]):
                                line = i * g.stride[0] + u * g.dilation[0] - g.padding[0] - top
                                if line < 0 or line >= height:
                                    continue
                                segment = ((block * xb.channels + c) * g.kernel[0] + u) * taps
                                for v in range(taps):
                                    column = j * g.stride[1] + v * rows * g.dilation[1]
                                    out = line * xb.row + column * xb.column + c * xb.lanes
                                    tile = tile_load(x_packed, out, g.dilation[1] * xb.column, rows, vectors)
                                    for e in range(at(segments, segment + v), at(segments, segment + v + 1)):
                                        tile = tile_add_scaled(tile, weights, e * rows, 1, y_packed, source + at(filters, e))
                                    tile_store(tile, x_packed, out, g.dilation[1] * xb.column)
            unpack(x_packed, xb, grad_x, g.x, sample, samples, top, height)

    return input_grad


@jit
def _pack_both(
    x: NDArray,
    grad: NDArray,
    sample: int,
    samples: int,
    top: int,
    height: int,
    x_packed: NDArray,
    y_packed: NDArray,
    xb: Band,
    yb: Band,
    g: Geometry,
) -> None:
    needed = (height - 1) * g.stride[0] + (g.kernel[0] - 1) * g.dilation[0] + 1
    pack(x, g.x, sample, samples, top * g.stride[0] - g.padding[0], needed, x_packed, xb)
    pack(grad, g.y, sample, samples, top, height, y_packed, yb)


@jit
def _places(places: NDArray, row_starts: NDArray, columns: NDArray, c: int, top: int, height: int, xb: Band, yb: Band, g: Geometry) -> int:
    """Where the kept positions of channel c lie in the bands of x and of y; how many there are."""
    count = 0
    for i in range(height):
        row = (top + i) * g.x.channels + c
        for k in range(row_starts[row], row_starts[row + 1]):
            places[0, count] = i * g.stride[0] * xb.row + columns[k] * g.stride[1] * xb.column
            places[1, count] = i * yb.row + columns[k] * yb.column
            count += 1
    return count


@cache
def _gathering(taps: int, rows: int) -> Callable[..., None]:
    """Sums over tiles of `taps` taps of one filter, all of one channel."""

    @jit
    def gathering(
        x_packed: NDArray,
        y_packed: NDArray,
        places: NDArray,
        count: int,
        grad_weight: NDArray,
        sums: NDArray,
        filters: NDArray,
        offsets: NDArray,
        index: NDArray,
        first: int,
        last: int,
        channel: int,
        lanes: int,
    ) -> None:
        for e in range(first, last):
            filter_start = at(filters, e) * lanes
            tile = tile_zeros(rows, taps)
            for k in range(count):
                for lane in range(0, lanes, rows * LANES):
                    tile = tile_add_gathered(
                        tile,
                        y_packed,
                        at(places[1], k) + filter_start + lane,
                        x_packed,
                        at(places[0], k) + channel + lane,
                        offsets,
                        e * taps,
                    )
            tile_column_sums(tile, sums, 0)
            for tap in range(taps):
                to = at(index, e * taps + tap)
                if to >= 0:
                    grad_weight[to] += sums[tap]

    return gathering


_gather_four, _gather_two = _gathering(4, 2), _gathering(2, 4)


@Kernel
def sparse_weight_grad(job: Any) -> None:
    """Sums over the tasks [sample, samples, first row of y, rows of y] of each part, [parts,F,C,kh,kw], by tiles of four and of two taps of
    one filter (plan.weight_grad_tiles)."""
    x, grad, parts = floats(job, 0), floats(job, 1), floats(job, 2)
    numbers, xb, yb, g, x_packed, y_packed, _ = opened(job)
    row_starts, columns = ints(job, 5), ints(job, 6)
    filters4, offsets4, index4, segments4 = ints(job, 7), ints(job, 8), ints(job, 9), ints(job, 10)
    filters2, offsets2, index2, segments2 = ints(job, 11), ints(job, 12), ints(job, 13), ints(job, 14)
    sums, places = np.empty(4, np.float32), np.empty((2, yb.rows * yb.columns), np.int64)
    while True:
        part = take(job)
        if part >= numbers[PARTS]:
            break
        out = part_of(parts, part, numbers)
        for k in range(*tasks_of(part, numbers)):
            sample, samples, top, height = task(numbers, k)
            _pack_both(x, grad, sample, samples, top, height, x_packed, y_packed, xb, yb, g)
            for block in range((g.y.channels + WEIGHT_BLOCK - 1) // WEIGHT_BLOCK):
                for c in range(g.x.channels):
                    count = _places(places, row_starts, columns, c, top, height, xb, yb, g)
                    s, start, lanes = block * g.x.channels + c, c * xb.lanes, xb.lanes
                    first, last = segments4[s], segments4[s + 1]
                    _gather_four(x_packed, y_packed, places, count, out, sums, filters4, offsets4, index4, first, last, start, lanes)
                    first, last = segments2[s], segments2[s + 1]
                    _gather_two(x_packed, y_packed, places, count, out, sums, filters2, offsets2, index2, first, last, start, lanes)
