"""Kernels "quantize" and "dequantize": float32 numbers to eight-bit grids, and back.

    q = clip(round(x / scale) + zero, 0, 255)       x = scale * (q - zero)                       round: half to even

They are read from QuantizeLinear and DequantizeLinear as they are, with tensors of uint8 or int8. passes/integers.py makes one layer of
those and of what they surround, and has quads (ir/dtypes.py) for the tensors that stay within a program. A work item is a row.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from fineprune.ops.simd import LANES
from fineprune.ops.simd.quads import divided, packed, real_bytes
from fineprune.ops.simd.vectors import added, load, multiplied, same

from ..ir.conv import Op, View
from ..ir.dtypes import FLOAT32, INT8, QUAD, UINT8, DType
from ..ir.grids import SIGNED, Grid
from ..ir.network import NCHW, Layer, kernel, onnx
from ..ir.record import INT, PLACE, Record, group
from .maps import put
from .margins import margins

if TYPE_CHECKING:
    from ..reader.attributes import Node
    from ..reader.graph import Reader

_META = Record(x=PLACE, y=PLACE, channels=INT, columns=INT, zero=INT, range=group("low", "high"))
_fields = _META.fields


@dataclass(frozen=True, kw_only=True)
class Quantize(Layer):
    """float32 to a grid; `low`, `high`: bounds in numbers of the grid; `signed`: the file's tensor is of int8; `quads`: the output is."""

    grid: Grid
    signed: bool = False
    low: int = 0
    high: int = 255
    quads: bool = False

    kernel_name: ClassVar[str] = "quantize"
    easy: ClassVar[bool] = True
    layouts: ClassVar[tuple[str, ...]] = (NCHW,)

    @property
    def alone(self) -> bool:
        return self.grid.zero != 0

    @property
    def alike(self) -> bool:
        """Sums of int8 tensors are rounded otherwise."""
        return not self.signed

    def dtype(self, inputs: Sequence[DType]) -> DType | None:
        """Eight bits, of float32."""
        if list(inputs) != [FLOAT32]:
            return None
        return QUAD if self.quads else INT8 if self.signed else UINT8

    def plan(self, kernel: str, *views: View) -> list[Op]:
        x, y = views
        return [*margins(y, self.grid.zero), _op("quantize", x, y, x.channels, self.grid, (self.low, self.high))]


@dataclass(frozen=True, kw_only=True)
class Dequantize(Layer):
    """A grid to float32; `quads`: the input is."""

    grid: Grid
    signed: bool = False
    quads: bool = False

    kernel_name: ClassVar[str] = "dequantize"
    easy: ClassVar[bool] = True
    layouts: ClassVar[tuple[str, ...]] = (NCHW,)

    def dtype(self, inputs: Sequence[DType]) -> DType | None:
        """float32, of eight bits."""
        return FLOAT32 if list(inputs) == [QUAD if self.quads else INT8 if self.signed else UINT8] else None

    def plan(self, kernel: str, *views: View) -> list[Op]:
        x, y = views
        return [_op("dequantize", x, y, y.channels, self.grid, (0, 255))]


def _op(kernel: str, x: View, y: View, channels: int, grid: Grid, limits: tuple[int, int]) -> Op:
    meta = _META.pack(x=x.place, y=y.place, channels=channels, columns=x.width, zero=grid.zero, range=limits)
    return Op(kernel=kernel, meta=meta, constants=np.array([grid.scale], np.float32), costs=np.ones(x.height), scratch=LANES)


@onnx("QuantizeLinear")
def quantize(node: "Node", reader: "Reader") -> list[Layer]:
    """QuantizeLinear to uint8 or int8 with one scale."""
    node.arity(2, 3)
    value = reader.value(node, 0)
    grid, signed = _grid(node, reader)
    node.support(node.integer("output_dtype", 0) in (0, 3 if signed else 2), "another type")
    output = reader.define(node, reader.boxes[value.tensor], value.dims)
    return [Quantize(name=node.name, inputs=(value.tensor,), output=output, grid=grid, signed=signed)]


@onnx("DequantizeLinear")
def dequantize(node: "Node", reader: "Reader") -> list[Layer]:
    """DequantizeLinear of uint8 or int8 with one scale."""
    node.arity(2, 3)
    value = reader.value(node, 0)
    grid, signed = _grid(node, reader, reader.dtypes[value.tensor])
    output = reader.define(node, reader.boxes[value.tensor], value.dims)
    return [Dequantize(name=node.name, inputs=(value.tensor,), output=output, grid=grid, signed=signed)]


def _grid(node: "Node", reader: "Reader", dtype: DType = UINT8) -> tuple[Grid, bool]:
    """Of inputs 1 and 2, and whether the tensor is of int8; dtype: its type where there is no zero point."""
    node.support(node.integer("block_size", 0) == 0, "blocks")
    return grid_of(node, reader, 1, 2, dtype)


def grid_of(node: "Node", reader: "Reader", scale: int, zero: int, dtype: DType = UINT8) -> tuple[Grid, bool]:
    """The grid that two inputs of these numbers describe, and whether it is one of int8."""
    scales = reader.weights(node, scale)
    node.support(scales.size == 1 and bool(scales.reshape(()) > 0), "several scales, or none above 0")
    zeros = reader.constant(node, zero) if node.input(zero) else np.zeros((), dtype)
    node.require(zeros.size == 1, f"has zero points of shape {zeros.shape} for one scale")
    node.support(zeros.dtype in (np.uint8, np.int8), f"zero points of {zeros.dtype}")
    signed = zeros.dtype == np.int8
    return Grid(scale=np.float32(scales.reshape(())), zero=int(zeros.reshape(())) + SIGNED * signed), signed


@kernel("quantize")
def run_quantize(first: int, last: int, scratch: int, arena: NDArray, constants: NDArray, index: NDArray, meta: NDArray, op: int) -> None:
    """Kernel "quantize"."""
    m = _fields(meta, op)
    scale, zero, C, W = same(constants[m.constants], 1), m.zero, m.channels, m.columns
    low, high = m.range.low, m.range.high
    for i in range(first, last):
        for q in range((C + 3) // 4):
            x = m.x.start + i * m.x.row + 4 * q * m.x.channel
            step = m.x.channel
            b, c, d = min(1, C - 1 - 4 * q) * step, min(2, C - 1 - 4 * q) * step, min(3, C - 1 - 4 * q) * step
            y = m.y.start + q * m.y.channel + i * m.y.row
            for j in range(0, W, LANES):
                s = x + j
                byte0, byte1 = divided(load(arena, s, 1), scale), divided(load(arena, s + b, 1), scale)
                byte2, byte3 = divided(load(arena, s + c, 1), scale), divided(load(arena, s + d, 1), scale)
                put(packed(byte0, byte1, byte2, byte3, zero, low, high), arena, y + j, W - j, scratch)


@kernel("dequantize")
def run_dequantize(first: int, last: int, scratch: int, arena: NDArray, constants: NDArray, index: NDArray, meta: NDArray, op: int) -> None:
    """Kernel "dequantize"."""
    m = _fields(meta, op)
    scale, down, C, W = same(constants[m.constants], 1), same(-np.float32(m.zero), 1), m.channels, m.columns
    for i in range(first, last):
        for q in range((C + 3) // 4):
            x, left = m.x.start + q * m.x.channel + i * m.x.row, C - 4 * q
            y, step = m.y.start + 4 * q * m.y.channel + i * m.y.row, m.y.channel
            for j in range(0, W, LANES):
                word, t, n = load(arena, x + j, 1), y + j, W - j
                put(multiplied(added(real_bytes(word, 0), down), scale), arena, t, n, scratch)
                if left > 1:
                    put(multiplied(added(real_bytes(word, 1), down), scale), arena, t + step, n, scratch)
                if left > 2:
                    put(multiplied(added(real_bytes(word, 2), down), scale), arena, t + 2 * step, n, scratch)
                if left > 3:
                    put(multiplied(added(real_bytes(word, 3), down), scale), arena, t + 3 * step, n, scratch)
