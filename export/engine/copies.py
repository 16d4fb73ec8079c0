"""Kernel "copy": elements of one tensor to another, each lying as it likes: layouts, slices, concatenations, shuffles.

    target[t + c*tc + i*ti + j*tj] = source[s + c*sc + i*si + j*sj]      for c < C, i < H, j < W; a work item is a row i

Where one side has the channels together and the other the columns, squares of LANES x LANES numbers are transposed in registers.
"""

import numpy as np
from numpy.typing import NDArray

from .conv import HEADER, Op, View
from .jit import jit
from .network import Box
from .vectors import LANES, load, store, transpose

_START, _CHANNEL, _ROW, _PIXEL = range(4)
SOURCE, TARGET, SIZE, TENSOR = HEADER, HEADER + 4, HEADER + 8, HEADER + 11
"""Positions in meta: start and strides of each side, then C, H, W, then for transfers the number of the caller's tensor."""


def plan(source: View, target: View, size: Box, *, kernel: str = "copy", tensor: int = 0) -> Op:
    """Copies size = (C, H, W) elements from (0, 0, 0) of `source` to (0, 0, 0) of `target`.

    `kernel` "load": from the caller's tensor number `tensor`; "save": to it.
    """
    sides = [(v.start, v.channel_stride, v.row_stride, v.pixel_stride) for v in (source, target)]
    meta = np.array([0] * HEADER + [*sides[0], *sides[1], *size, tensor], np.int64)
    return Op(kernel=kernel, meta=meta, costs=np.full(size[1], 1e-9 * size[0] * size[2]))


@jit
def copy(first: int, last: int, source: NDArray, source_start: int, target: NDArray, target_start: int, meta: NDArray, op: int) -> None:
    """Work items first <= k < last, the two starts added to those in meta."""
    s, t = meta[op + SOURCE] + source_start, meta[op + TARGET] + target_start
    sc, si, sj = meta[op + SOURCE + _CHANNEL], meta[op + SOURCE + _ROW], meta[op + SOURCE + _PIXEL]
    tc, ti, tj = meta[op + TARGET + _CHANNEL], meta[op + TARGET + _ROW], meta[op + TARGET + _PIXEL]
    C, W = meta[op + SIZE], meta[op + SIZE + 2]
    if sj == 1 and tj == 1:
        for c in range(C):
            _vectors(source, s + c * sc + first * si, si, target, t + c * tc + first * ti, ti, W, last - first)
    else:
        for i in range(first, last):
            _row(source, s + i * si, sc, sj, target, t + i * ti, tc, tj, C, W)


@jit
def _row(source: NDArray, s: int, sc: int, sj: int, target: NDArray, t: int, tc: int, tj: int, C: int, W: int) -> None:
    """target[t + c*tc + j*tj] = source[s + c*sc + j*sj]."""
    if (sj == 1 and tc == 1) or (sc == 1 and tj == 1):
        channels, columns = C // LANES * LANES, W // LANES * LANES
        for c in range(0, channels, LANES):
            for j in range(0, columns, LANES):
                if sj == 1:
                    transpose(source, s + c * sc + j, sc, target, t + c + j * tj, tj)
                else:
                    transpose(source, s + c + j * sj, sj, target, t + c * tc + j, tc)
        _lines(source, s + channels * sc, sc, sj, target, t + channels * tc, tc, tj, C - channels, W)
        _lines(source, s + columns * sj, sc, sj, target, t + columns * tj, tc, tj, channels, W - columns)
    else:
        _lines(source, s, sc, sj, target, t, tc, tj, C, W)


@jit
def _lines(source: NDArray, s: int, sc: int, sj: int, target: NDArray, t: int, tc: int, tj: int, C: int, W: int) -> None:
    if sc == 1 and tc == 1:
        _vectors(source, s, sj, target, t, tj, C, W)
    else:
        for j in range(W):
            for c in range(C):
                target[t + c * tc + j * tj] = source[s + c * sc + j * sj]


@jit
def _vectors(source: NDArray, s: int, ss: int, target: NDArray, t: int, ts: int, n: int, lines: int) -> None:
    """Lines of n numbers that follow each other on both sides."""
    whole = n // LANES * LANES
    for e in range(0, whole, LANES):
        for k in range(lines):
            store(load(source, s + k * ss + e, 1), target, t + k * ts + e)
    for e in range(whole, n):
        for k in range(lines):
            target[t + k * ts + e] = source[s + k * ss + e]


@jit
def run(first: int, last: int, scratch: int, arena: NDArray, constants: NDArray, index: NDArray, meta: NDArray, op: int) -> None:
    """Within the arena."""
    copy(first, last, arena, 0, arena, 0, meta, op)
