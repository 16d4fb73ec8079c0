"""The gradient in the weights with the filters in the lanes:

    gw[:,c,t] += x[n,c,p+t] * gy[n,:,p]        for all samples n, all taps t, and the positions p at which channel c is kept

Maps stay as they are, channels last: a number of x is spread over a vector as it is loaded, and times a vector of gradients of 16 filters.
All taps of two vectors of filters stay in registers while the kept positions of a channel pass by. No weight is skipped.
"""

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..simd import LANES, tile_load, tile_store
from .jit import jit
from .job import Kernel, floats, ints, take
from .layout import Band, Map
from .problem import PARTS, Geometry, opened, part_of, task, tasks_of
from .simd import tile_add_outer

SIDE, AREA = 3, 9
"""Taps per side of a register tile: 3 x 3 taps x one or two vectors."""


def tiles_of(kernel: tuple[int, int]) -> tuple[int, int]:
    """Register tiles that cover a kernel."""
    return -(-kernel[0] // SIDE), -(-kernel[1] // SIDE)


def places_of(mask: NDArray, rows: int, g: Geometry, xb: Band, yb: Band) -> tuple[NDArray, NDArray]:
    """(starts, places): where the kept positions of channel c in strip s, of `rows` rows, lie in the bands of x and of y: pairs
    places[2*k], places[2*k+1] for starts[s*C+c] <= k < starts[s*C+c+1]."""
    channels, height, width = mask.shape
    strips = -(-height // rows)
    padded = np.zeros((channels, strips * rows, width), bool)
    padded[:, :height] = mask
    by_strip = padded.reshape(channels, strips, rows, width).swapaxes(0, 1)
    _, _, i, j = np.nonzero(by_strip)
    places = np.stack([i * g.stride[0] * xb.row + j * g.stride[1] * xb.column, i * yb.row + j * yb.column], 1)
    starts = np.concatenate([[0], by_strip.sum((2, 3)).reshape(-1).cumsum()])
    return starts.astype(np.int32), places.astype(np.int32).reshape(-1)


@cache
def weight_grad_kernel(vectors: int) -> Kernel:
    lanes = vectors * LANES

    @Kernel
    def weight_grad(job: Any) -> None:
        """Sums over the samples of each part, [parts, blocks of filters, C, tiles, taps of a tile, filters of a block]."""
        x, grad, parts = floats(job, 0), floats(job, 1), floats(job, 2)
        numbers, xb, yb, g, x_copy, y_copy, _ = opened(job)
        starts, places = ints(job, 5), ints(job, 6)
        rows, columns = (g.kernel[0] + SIDE - 1) // SIDE, (g.kernel[1] + SIDE - 1) // SIDE
        down, right = g.dilation[0] * xb.row, g.dilation[1] * xb.column
        x_size, y_size = xb.rows * xb.row, yb.rows * yb.row
        while True:
            part = take(job)
            if part >= numbers[PARTS]:
                break
            sums = part_of(parts, part, numbers)
            for k in range(*tasks_of(part, numbers)):
                sample, samples, top, _ = task(numbers, k)
                strip = top // yb.rows * g.x.channels
                for block in range(0, g.y.channels, lanes):
                    for first in range(sample, sample + samples, xb.lanes):
                        count = min(xb.lanes, sample + samples - first)
                        for n in range(count):
                            line = top * g.stride[0] - g.padding[0]
                            _copy(x, g.x, first + n, 0, g.x.channels, line, x_copy, n * x_size, xb)
                            _copy(grad, g.y, first + n, block, min(lanes, g.y.channels - block), top, y_copy, n * y_size, yb)
                        for c in range(g.x.channels):
                            begin, end = starts[strip + c], starts[strip + c + 1]
                            for t in range(rows * columns):
                                patch = c + t // columns * SIDE * down + t % columns * SIDE * right
                                out = ((block // lanes * g.x.channels + c) * rows * columns + t) * AREA * lanes
                                tile = tile_load(sums, out, lanes, AREA, vectors)
                                for n in range(count):
                                    x_start, y_start = n * x_size + patch, n * y_size
                                    for p in range(begin, end):
                                        tile = tile_add_outer(
                                            tile,
                                            x_copy,
                                            x_start + places[2 * p],
                                            SIDE,
                                            down,
                                            right,
                                            y_copy,
                                            y_start + places[2 * p + 1],
                                        )
                                tile_store(tile, sums, out, lanes)

    return weight_grad


@jit
def _copy(source: NDArray, shape: Map, sample: int, channel: int, channels: int, top: int, out: NDArray, start: int, to: Band) -> None:
    """Some channels of rows top, top+1, ... of a sample; what lies outside the map is zero."""
    first, last = max(0, -to.left), min(to.columns, shape.width - to.left)
    for r in range(to.rows):
        line, row = top + r, start + r * to.row
        if line < 0 or line >= shape.height or last <= first:
            out[row : row + to.row] = 0
            continue
        out[row : row + first * to.column] = 0
        out[row + last * to.column : row + to.row] = 0
        pixel = ((sample * shape.height + line) * shape.width + to.left + first) * shape.channels + channel
        if channels == shape.channels and channels == to.column:
            _copy_numbers(source, pixel, out, row + first * to.column, (last - first) * channels)
        else:
            for k in range(first, last):
                _copy_numbers(source, pixel, out, row + k * to.column, channels)
                pixel += shape.channels


@jit
def _copy_numbers(source: NDArray, start: int, out: NDArray, to: int, count: int) -> None:
    whole = count // LANES * LANES
    for k in range(0, whole, LANES):
        tile_store(tile_load(source, start + k, 0, 1, 1), out, to + k, 0)
    for k in range(whole, count):
        out[to + k] = source[start + k]
