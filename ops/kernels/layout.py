"""Bands: some rows of a feature map with the samples of a batch side by side, so that one SIMD vector holds one pixel of 16 samples.

A band is [rows, columns, channels + 1, lanes], lanes being a multiple of LANES; samples that the batch lacks are zeros. The spare channel
keeps pixels from lying a power of two apart, where they would compete for the same few lines of the first-level cache.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..simd import LANES, transpose
from .jit import jit


class Band(NamedTuple):
    """Sizes of a band; `column` and `row` are strides, `left` is the map's column of the band's column 0."""

    rows: int
    columns: int
    channels: int
    lanes: int
    column: int
    row: int
    left: int

    @property
    def size(self) -> int:
        return self.rows * self.row


def band(rows: int, columns: int, channels: int, lanes: int, left: int = 0) -> Band:
    column = (channels + 1) * lanes
    return Band(rows, columns, channels, lanes, column, columns * column, left)


class Map(NamedTuple):
    """Sizes of a feature map in memory, [N, height, width, channels]."""

    height: int
    width: int
    channels: int


@jit
def pack(source: NDArray, shape: Map, sample: int, samples: int, top: int, rows: int, out: NDArray, to: Band) -> None:
    """Rows top, top+1, ... of `samples` samples from `sample` on; what lies outside the map is zero."""
    for r in range(rows):
        line = top + r
        first, last = max(0, -to.left), min(to.columns, shape.width - to.left)
        if line < 0 or line >= shape.height or last <= first:
            out[r * to.row : (r + 1) * to.row] = 0
            continue
        out[r * to.row : r * to.row + first * to.column] = 0
        out[r * to.row + last * to.column : (r + 1) * to.row] = 0
        if samples < to.lanes or shape.channels < to.channels:
            out[r * to.row + first * to.column : r * to.row + last * to.column] = 0
        for n in range(0, samples, LANES):
            for k in range(first, last):
                pixel = (((sample + n) * shape.height + line) * shape.width + to.left + k) * shape.channels
                _pack_pixel(source, pixel, shape, min(LANES, samples - n), out, r * to.row + k * to.column + n, to.lanes)


@jit
def _pack_pixel(source: NDArray, pixel: int, shape: Map, samples: int, out: NDArray, start: int, lanes: int) -> None:
    stride = shape.height * shape.width * shape.channels
    if samples == LANES and shape.channels >= LANES:
        for block in range(0, shape.channels, LANES):
            c = min(block, shape.channels - LANES)
            transpose(source, pixel + c, stride, out, start + c * lanes, lanes)
    else:
        for n in range(samples):
            for c in range(shape.channels):
                out[start + c * lanes + n] = source[pixel + n * stride + c]


@jit
def unpack(source: NDArray, of: Band, out: NDArray, shape: Map, sample: int, samples: int, top: int, rows: int) -> None:
    """Write rows of a band to rows top, top+1, ... of the map."""
    for r in range(rows):
        for n in range(0, samples, LANES):
            for k in range(shape.width):
                pixel = (((sample + n) * shape.height + top + r) * shape.width + k) * shape.channels
                _unpack_pixel(source, r * of.row + (k - of.left) * of.column + n, of.lanes, min(LANES, samples - n), out, pixel, shape)


@jit
def _unpack_pixel(source: NDArray, start: int, lanes: int, samples: int, out: NDArray, pixel: int, shape: Map) -> None:
    stride = shape.height * shape.width * shape.channels
    if samples == LANES and shape.channels >= LANES:
        for block in range(0, shape.channels, LANES):
            c = min(block, shape.channels - LANES)
            transpose(source, start + c * lanes, lanes, out, pixel + c, stride)
    else:
        for n in range(samples):
            for c in range(shape.channels):
                out[pixel + n * stride + c] = source[start + c * lanes + n]


@jit
def gather(values: NDArray, index: NDArray, out: NDArray) -> None:
    """out[k] = values[index[k]], or 0 where the index is negative."""
    for k in range(len(index)):
        out[k] = values[index[k]] if index[k] >= 0 else np.float32(0)
