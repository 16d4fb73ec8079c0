"""Kernel "permute": the channels of a tensor in another order, x and y in the same layout.

    y[c,i,j] = x[order[c],i,j]

NCHW: whole channels are copied, a work item is one of them. NHWC: number by number it would take seven times as long as a copy, so that
squares of LANES pixels and LANES channels are transposed in registers: to lines of a channel each, which are taken in the new order
and transposed back. A work item is LANES pixels; in the last one the last pixel stands for those that are missing.
"""

import numpy as np
from numpy.typing import NDArray

from ..ir.conv import HEADER, INDEX, Op, View
from ..jit import jit
from ..run.vectors import LANES, transpose_lines


def estimate(channels: int, height: int, width: int) -> float:
    """Seconds, of either layout."""
    return 3e-7 + 1e-10 * channels * height * width


def plan(order: NDArray, x: View, y: View) -> Op:
    """order: int [C], a permutation. index: for NHWC offsets of the pixels of x and of y, of the lines that each vector of y consists of,
    and of the lines in a row; for NCHW of the channels of x."""
    channels_last, pixels, width = x.layout == "NHWC", 0, -(-x.channels // LANES) * LANES
    if channels_last:
        padded = np.concatenate([order, np.arange(x.channels, width)])
        grids = [(v.row_stride * np.arange(v.height)[:, None] + v.pixel_stride * np.arange(v.width)).reshape(-1) for v in (x, y)]
        grids = [np.pad(grid, (0, -len(grid) % LANES), "edge") for grid in grids]
        pixels, scratch = len(grids[0]), width * LANES
        index, items = np.concatenate([*grids, padded * LANES, np.arange(LANES) * LANES]), pixels // LANES
    else:
        index, items, scratch = order * x.channel_stride, x.channels, 0
    own = [int(channels_last), pixels, width, x.height, x.width, x.start, y.start, x.row_stride, y.channel_stride, y.row_stride]
    seconds = estimate(x.channels, x.height, x.width)
    return Op(
        kernel="permute",
        meta=np.array([0] * HEADER + own, np.int64),
        index=index.astype(np.int32),
        costs=np.full(items, seconds / items),
        scratch=scratch,
    )


@jit
def run(first: int, last: int, scratch: int, arena: NDArray, constants: NDArray, index: NDArray, meta: NDArray, op: int) -> None:
    """Kernel "permute"."""
    m, k = op + HEADER, meta[op + INDEX]
    channels_last, pixels, width, H, W = meta[m] == 1, meta[m + 1], meta[m + 2], meta[m + 3], meta[m + 4]
    x, y, xi, yc, yi = meta[m + 5], meta[m + 6], meta[m + 7], meta[m + 8], meta[m + 9]
    if channels_last:
        lines = k + 2 * pixels
        for item in range(first * LANES, last * LANES, LANES):
            for c in range(0, width, LANES):
                transpose_lines(arena, x + c, index, k + item, arena, scratch + c * LANES, lines + width)
            for c in range(0, width, LANES):
                transpose_lines(arena, scratch, index, lines + c, arena, y + c, k + pixels + item)
    else:
        for c in range(first, last):
            for i in range(H):
                source, target = x + index[k + c] + i * xi, y + c * yc + i * yi
                for j in range(W):
                    arena[target + j] = arena[source + j]
