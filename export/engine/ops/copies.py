"""Kernels "copy" and "copy_bytes": elements of one tensor to another, each lying as it likes: layouts, slices, concatenations, shuffles.

    target[t + c*tc + i*ti + j*tj] = source[s + c*sc + i*si + j*sj]      for c < C, i < H, j < W; a work item is a row i

Numbers of four bytes, whatever their type, are moved in vectors as float32: where one side has the channels together and the other the
columns, squares of LANES x LANES of them are transposed in registers. Of numbers of one byte those are moved
in vectors that follow each other on both sides.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fineprune.ops.simd import LANES, at, transpose
from fineprune.ops.simd.vectors import load, octets, store

from ..ir.conv import Op, View
from ..ir.network import Box, kernel
from ..ir.record import INT, PLACE, Record
from ..jit import jit, jit_merged

_META = Record(source=PLACE, target=PLACE, channels=INT, rows=INT, columns=INT, way=INT)
"""way: between what."""
_fields = _META.fields
WITHIN, IN, OUT = range(3)
"""Within the arena; into it, from the tensor of the caller that stands for the constants; out of it, to such a tensor."""


def plan(source: View, target: View, size: Box, way: int = WITHIN, tensor: int | None = None) -> Op:
    """Copies size = (C, H, W) elements from (0, 0, 0) of `source` to (0, 0, 0) of `target`; tensor: number of the caller's tensor that one
    of them is."""
    if source.dtype != target.dtype:
        raise TypeError(f"a copy of {source.dtype} to {target.dtype}")
    C, H, W = size
    meta = _META.pack(source=source.place, target=target.place, channels=C, rows=H, columns=W, way=way)
    return Op(kernel="copy_bytes" if source.dtype.itemsize == 1 else "copy", meta=meta, costs=np.ones(H), tensor=tensor)


@jit
def _byte_lines(
    source: NDArray, s: int, so: int, si: int, target: NDArray, t: int, to: int, ti: int, outer: int, inner: int, n: int
) -> None:  # fmt: skip
    """outer x inner lines of n bytes that follow each other on both sides.

    LLVM makes vectors of the loop because no position can count from the end: neither in `at` nor where it has no sign.
    """
    if si == n and ti == n:
        inner, n = 1, inner * n
    for a in range(outer):
        for b in range(inner):
            x, y = s + a * so + b * si, t + a * to + b * ti
            for e in range(n):
                target[np.uint64(y + e)] = at(source, x + e)


@jit
def _lines(
    source: NDArray, s: int, so: int, si: int, target: NDArray, t: int, to: int, ti: int, outer: int, inner: int, n: int
) -> None:  # fmt: skip
    """outer x inner lines of n numbers that follow each other on both sides."""
    if si == n and ti == n:
        inner, n = 1, inner * n
    whole = n // LANES * LANES
    for a in range(outer):
        for b in range(inner):
            x, y = s + a * so + b * si, t + a * to + b * ti
            for e in range(0, whole, LANES):
                store(load(source, x + e, 1), target, y + e)
            if 0 < whole < n:  # some numbers once more: quicker than one by one
                store(load(source, x + n - LANES, 1), target, y + n - LANES)
            elif whole == 0:
                for e in range(n):
                    target[y + e] = source[x + e]


@jit
def _row(source: NDArray, s: int, sc: int, sj: int, target: NDArray, t: int, tc: int, tj: int, C: int, W: int) -> None:
    """target[t + c*tc + j*tj] = source[s + c*sc + j*sj]."""
    channels, columns = 0, 0
    if (sj == 1 and tc == 1) or (sc == 1 and tj == 1):
        channels, columns = C // LANES * LANES, W // LANES * LANES
        for c in range(0, channels, LANES):
            for j in range(0, columns, LANES):
                if sj == 1:
                    transpose(source, s + c * sc + j, sc, target, t + c + j * tj, tj)
                else:
                    transpose(source, s + c + j * sj, sj, target, t + c * tc + j, tc)
    _rest(source, s + channels * sc, sc, sj, target, t + channels * tc, tc, tj, C - channels, W)
    _rest(source, s + columns * sj, sc, sj, target, t + columns * tj, tc, tj, channels, W - columns)


@jit
def _rest(source: NDArray, s: int, sc: int, sj: int, target: NDArray, t: int, tc: int, tj: int, C: int, W: int) -> None:
    for j in range(W):
        for c in range(C):
            target[t + c * tc + j * tj] = source[s + c * sc + j * sj]


def _rows(lines: Callable[..., None], row: Callable[..., None]) -> Any:
    """Work items first <= k < last; lines: moves numbers that follow each other on both sides, row: a row of others."""

    @jit_merged
    def rows(first: int, last: int, source: NDArray, target: NDArray, meta: NDArray, op: int) -> None:
        m = _fields(meta, op)
        sc, si, sj, tc, ti, tj = m.source.channel, m.source.row, m.source.pixel, m.target.channel, m.target.row, m.target.pixel
        C, W, count = m.channels, m.columns, last - first
        s, t = m.source.start + first * si, m.target.start + first * ti
        if sj == 1 and tj == 1:
            lines(source, s, sc, si, target, t, tc, ti, C, count, W)
        elif sc == 1 and tc == 1:
            lines(source, s, si, sj, target, t, ti, tj, count, W, C)
        else:
            for i in range(count):
                row(source, s + i * si, sc, sj, target, t + i * ti, tc, tj, C, W)

    return rows


_slots, _bytes = _rows(_lines, _row), _rows(_byte_lines, _rest)


@kernel("copy")
def run(first: int, last: int, scratch: int, arena: NDArray, constants: NDArray, index: NDArray, meta: NDArray, op: int) -> None:
    """See ir/conv.py. One call: it is translated with all that it calls."""
    way = _fields(meta, op).way
    source, target = constants if way == IN else arena, constants if way == OUT else arena
    _slots(first, last, source, target, meta, op)


@kernel("copy_bytes")
def run_bytes(first: int, last: int, scratch: int, arena: NDArray, constants: NDArray, index: NDArray, meta: NDArray, op: int) -> None:
    """Of numbers of one byte."""
    way = _fields(meta, op).way
    source, target = octets(constants if way == IN else arena), octets(constants if way == OUT else arena)
    _bytes(first, last, source, target, meta, op)
