"""Permute: the channels of a tensor in another order, x and y in the same layout.

    y[c,i,j] = x[order[c],i,j]

NCHW: whole channels are copied, a work item is one of them. NHWC: number by number it would take seven times as long as a copy, so that
squares of LANES pixels and LANES channels are transposed in registers: to lines of a channel each, which are taken in the new order
and transposed back. A work item is LANES pixels; in the last one the last pixel stands for those that are missing.
Numbers of four bytes are moved as float32, whatever their type; those of one byte number by number.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from fineprune.ops.simd import LANES
from fineprune.ops.simd.vectors import octets, transpose_lines

from ..ir import costs
from ..ir.conv import Op, View
from ..ir.dtypes import DType
from ..ir.network import Layer, Order, kernel, same
from ..ir.record import INT, PLACE, Record
from ..jit import jit

_META = Record(item_bytes=INT, channels_last=INT, pixels=INT, lanes=INT, height=INT, width=INT, x=PLACE, y=PLACE)
"""item_bytes: of a number; lanes: channels rounded up to whole vectors."""
_fields = _META.fields


def estimate(channels: int, height: int, width: int) -> float:
    """Seconds, of either layout."""
    return costs.seconds({"permute.operation": 1, "permute.number": channels * height * width})


@dataclass(frozen=True, kw_only=True, eq=False)
class Permute(Layer):
    """y[c] = x[order[c]]; no node of a file, see passes/reorder.py."""

    order: Order

    kernel_name: ClassVar[str] = "permute"

    def dtype(self, inputs: Sequence[DType]) -> DType | None:
        """The inputs'."""
        return same(inputs)

    def plan(self, kernel: str, *views: View) -> list[Op]:
        """index: for NHWC offsets of the pixels of x and of y, of the lines that each vector of y consists of,
        and of the lines in a row (of single bytes: their channels in x); for NCHW of the channels of x."""
        x, y = views
        channels_last, pixels, width = x.layout == "NHWC", 0, -(-x.channels // LANES) * LANES
        if channels_last:
            padded = np.concatenate([self.order, np.arange(x.channels, width)])
            grids = [(v.row_stride * np.arange(v.height)[:, None] + v.pixel_stride * np.arange(v.width)).reshape(-1) for v in (x, y)]
            grids = [np.pad(grid, (0, -len(grid) % LANES), "edge") for grid in grids]
            pixels, items = len(grids[0]), len(grids[0]) // LANES
            if x.dtype.itemsize == 1:
                index, scratch = np.concatenate([*grids, padded]), 0
            else:
                index, scratch = np.concatenate([*grids, padded * LANES, np.arange(LANES) * LANES]), width * LANES
        else:
            index, items, scratch = self.order * x.channel_stride, x.channels, 0
        meta = _META.pack(
            item_bytes=x.dtype.itemsize,
            channels_last=int(channels_last),
            pixels=pixels,
            lanes=width,
            height=x.height,
            width=x.width,
            x=x.place,
            y=y.place,
        )
        return [
            Op(
                kernel="permute",
                meta=meta,
                index=index.astype(np.int32),
                costs=np.ones(items),
                scratch=scratch,
            )
        ]


@kernel("permute")
def run(first: int, last: int, scratch: int, arena: NDArray, constants: NDArray, index: NDArray, meta: NDArray, op: int) -> None:
    """Kernel "permute"."""
    m = _fields(meta, op)
    k, channels_last, pixels, width, x, y = m.index, m.channels_last == 1, m.pixels, m.lanes, m.x.start, m.y.start
    if m.item_bytes == 1:
        _bytes(first, last, octets(arena), index, meta, op)
    elif channels_last:
        lines = k + 2 * pixels
        for item in range(first * LANES, last * LANES, LANES):
            for c in range(0, width, LANES):
                transpose_lines(arena, x + c, index, k + item, arena, scratch + c * LANES, lines + width)
            for c in range(0, width, LANES):
                transpose_lines(arena, scratch, index, lines + c, arena, y + c, k + pixels + item)
    else:
        _channels(first, last, arena, index, meta, op)


@jit
def _bytes(first: int, last: int, arena: NDArray, index: NDArray, meta: NDArray, op: int) -> None:
    m = _fields(meta, op)
    if m.channels_last == 1:
        order = m.index + 2 * m.pixels
        for pixel in range(m.index + first * LANES, m.index + last * LANES):
            source, target = m.x.start + index[pixel], m.y.start + index[m.pixels + pixel]
            for c in range(m.lanes):
                arena[target + c] = arena[source + index[order + c]]
    else:
        _channels(first, last, arena, index, meta, op)


@jit
def _channels(first: int, last: int, arena: NDArray, index: NDArray, meta: NDArray, op: int) -> None:
    """NCHW, numbers of any type."""
    m = _fields(meta, op)
    for c in range(first, last):
        for i in range(m.height):
            source, target = m.x.start + index[m.index + c] + i * m.x.row, m.y.start + c * m.y.channel + i * m.y.row
            for j in range(m.width):
                arena[target + j] = arena[source + j]
