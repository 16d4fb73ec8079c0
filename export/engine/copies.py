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
    for i in range(first, last):
        plane(source, s + i * si, sc, sj, target, t + i * ti, tc, tj, C, W)


@jit
def plane(source: NDArray, s: int, sc: int, sj: int, target: NDArray, t: int, tc: int, tj: int, C: int, W: int) -> None:
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
        for j in range(W):
            _line(source, s + j * sj, target, t + j * tj, C)
    elif sj == 1 and tj == 1:
        for c in range(C):
            _line(source, s + c * sc, target, t + c * tc, W)
    else:
        for j in range(W):
            for c in range(C):
                target[t + c * tc + j * tj] = source[s + c * sc + j * sj]


@jit
def _line(source: NDArray, s: int, target: NDArray, t: int, n: int) -> None:
    """Numbers that follow each other on both sides."""
    whole = n // LANES * LANES
    for e in range(0, whole, LANES):
        store(load(source, s + e, 1), target, t + e)
    for e in range(whole, n):
        target[t + e] = source[s + e]


@jit
def run(first: int, last: int, scratch: int, arena: NDArray, constants: NDArray, index: NDArray, meta: NDArray, op: int) -> None:
    """Within the arena."""
    copy(first, last, arena, 0, arena, 0, meta, op)


def plan_zero(target: View, size: Box) -> Op:
    """Makes size = (C, H, W) elements of `target` zero."""
    meta = np.array([0] * HEADER + [target.start, target.channel_stride, target.row_stride, target.pixel_stride, *size], np.int64)
    return Op(kernel="zero", meta=meta, costs=np.full(size[1], 1e-9 * size[0] * size[2]))


@jit
def run_zero(first: int, last: int, scratch: int, arena: NDArray, constants: NDArray, index: NDArray, meta: NDArray, op: int) -> None:
    """Kernel "zero"; a work item is a row."""
    m = op + HEADER
    t, tc, ti, tj, C, W = meta[m], meta[m + 1], meta[m + 2], meta[m + 3], meta[m + 4], meta[m + 6]
    outer, inner, step = (C, W, tc) if tj == 1 else (W, C, tj)  # the inner stride is 1 in either layout
    for i in range(first, last):
        for k in range(outer):
            line = t + i * ti + k * step
            arena[line : line + inner] = 0
