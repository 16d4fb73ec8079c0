"""Kernels "pack" and "unpack": tensors of uint8 or int8 from outside to quads, and back. No nodes of a file; a work item is a row."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from fineprune.ops.simd import LANES
from fineprune.ops.simd.quads import store_octets
from fineprune.ops.simd.vectors import load, octets

from ..ir.conv import Op, View
from ..ir.dtypes import INT8, QUAD, UINT8, DType
from ..ir.grids import SIGNED, Grid
from ..ir.network import NCHW, Layer, kernel
from ..ir.record import INT, PLACE, Record
from ..jit import jit, jit_merged
from .margins import margins

_META = Record(x=PLACE, y=PLACE, channels=INT, columns=INT, flip=INT)
_fields = _META.fields
_FEW = 4
"""Columns that are moved together where a row has less than LANES."""


@dataclass(frozen=True, kw_only=True)
class Pack(Layer):
    """Numbers of one byte to quads; `signed`: they are of int8."""

    grid: Grid
    signed: bool

    kernel_name: ClassVar[str] = "pack"
    layouts: ClassVar[tuple[str, ...]] = (NCHW,)

    @property
    def alone(self) -> bool:
        return self.grid.zero != 0

    def dtype(self, inputs: Sequence[DType]) -> DType | None:
        """Quads."""
        return QUAD if list(inputs) == [INT8 if self.signed else UINT8] else None

    def plan(self, kernel: str, *views: View) -> list[Op]:
        x, y = views
        return [*margins(y, self.grid.zero), _op("pack", x, y, x.channels, self.signed)]


@dataclass(frozen=True, kw_only=True)
class Unpack(Layer):
    """Quads to numbers of one byte; `signed`: to those of int8."""

    signed: bool

    kernel_name: ClassVar[str] = "unpack"
    layouts: ClassVar[tuple[str, ...]] = (NCHW,)

    def dtype(self, inputs: Sequence[DType]) -> DType | None:
        """int8 or uint8."""
        return (INT8 if self.signed else UINT8) if list(inputs) == [QUAD] else None

    def plan(self, kernel: str, *views: View) -> list[Op]:
        x, y = views
        return [_op("unpack", x, y, y.channels, self.signed)]


def _op(kernel: str, x: View, y: View, channels: int, signed: bool) -> Op:
    meta = _META.pack(x=x.place, y=y.place, channels=channels, columns=x.width, flip=SIGNED * signed)
    return Op(kernel=kernel, meta=meta, costs=np.ones(x.height))


@jit_merged
def _quad(place: tuple[int, int, int], c: int, i: int, j: int) -> int:
    """Position of a channel's byte in a tensor of quads."""
    start, channel, row = place
    return 4 * (start + (c // 4) * channel + i * row + j) + c % 4


@kernel("pack")
def run_pack(first: int, last: int, scratch: int, arena: NDArray, constants: NDArray, index: NDArray, meta: NDArray, op: int) -> None:
    """Kernel "pack"."""
    m = _fields(meta, op)
    numbers, flip, y = octets(arena), np.uint8(m.flip), (m.y.start, m.y.channel, m.y.row)
    for i in range(first, last):
        for c in range(m.channels):
            for j in range(m.columns):
                numbers[_quad(y, c, i, j)] = numbers[m.x.start + c * m.x.channel + i * m.x.row + j * m.x.pixel] ^ flip


@jit
def _planes(arena: NDArray, x: int, y: int, channel: int, columns: int) -> None:
    """A row of words as rows of the bytes of its four channels; some numbers once more: quicker than one by one."""
    if columns >= LANES:
        for j in range(0, columns, LANES):
            k = min(j, columns - LANES)
            store_octets(load(arena, x + k, 1), arena, y + k, channel, LANES)
    else:
        for j in range(0, columns, _FEW):
            k = min(j, columns - _FEW)
            store_octets(load(arena, x + k, 1), arena, y + k, channel, _FEW)


@kernel("unpack")
def run_unpack(first: int, last: int, scratch: int, arena: NDArray, constants: NDArray, index: NDArray, meta: NDArray, op: int) -> None:
    """Kernel "unpack"."""
    m = _fields(meta, op)
    numbers, flip, x = octets(arena), np.uint8(m.flip), (m.x.start, m.x.channel, m.x.row)
    together = m.channels // 4 if m.flip == 0 and m.y.pixel == 1 and m.columns >= _FEW else 0
    for i in range(first, last):
        for c in range(together):
            _planes(arena, m.x.start + c * m.x.channel + i * m.x.row, m.y.start + 4 * c * m.y.channel + i * m.y.row, m.y.channel, m.columns)
        for c in range(4 * together, m.channels):
            for j in range(m.columns):
                numbers[m.y.start + c * m.y.channel + i * m.y.row + j * m.y.pixel] = numbers[_quad(x, c, i, j)] ^ flip
