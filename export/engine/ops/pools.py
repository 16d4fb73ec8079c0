"""Kernels "pool" and "mean": the largest or the mean number under a window, the mean of a channel.

    max      y[c,i,j] = max_uv x[c, i*sh + u*dh - top, j*sw + v*dw - left]                 over the taps inside the image
    average  y[c,i,j] = sum_uv x[...] / count      count: taps inside the image, or where padding counts, inside image and padding
    mean     y[c] = sum_ij x[c,i,j] / (H*W)

A work item of a pool is a row of y; of a mean, four vectors of channels. Where channels lie together, vectors hold channels; where both
sides are NCHW, they hold places: the rows of a window become one line, with what lies outside of the image, then its columns one number.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fineprune.ops.geometry import windows
from fineprune.ops.simd import LANES, pointer, tile_zeros
from fineprune.ops.simd.vectors import added, load, maximum, multiplied, same, store

from ..ir.conv import Op, View
from ..ir.network import Box, Channels, Layer, kernel, onnx
from ..ir.record import INT, PLACE, Record, group
from ..jit import jit
from .positions_simd import pack_line

if TYPE_CHECKING:
    from ..reader.attributes import Node
    from ..reader.graph import Reader

_TOGETHER = 4 * LANES
_FEW_PLACES, _FEW_TAPS = 4, 4
"""Columns of y, and taps of a window, that are quicker number by number than as lines."""
_AXIS = group("places", "taps", "stride", "dilation", "before")
"""Of rows or columns: places of x, taps of the window and their distance, distance of windows, padding in front."""
_POOL = Record(x=PLACE, y=PLACE, channels=INT, height=INT, width=INT, average=INT, rows=_AXIS, columns=_AXIS, line=INT)
"""height, width: of y; line: floats of a line."""
_MEAN = Record(x=PLACE, y=PLACE, channels=INT, height=INT, width=INT)
_pool, _mean = _POOL.fields, _MEAN.fields


@dataclass(frozen=True, kw_only=True)
class Pool(Layer):
    """`kind` "max" or "average"; where `counts_padding`, an average divides by the whole window."""

    kind: str
    kernel: tuple[int, int]
    strides: tuple[int, int]
    pads: tuple[int, int, int, int]
    dilations: tuple[int, int] = (1, 1)
    counts_padding: bool = False

    kernel_name: ClassVar[str] = "pool"
    movable: ClassVar[bool] = True

    def channels(self, boxes: Mapping[str, Box]) -> Channels:
        return Channels.FIRST

    def plan(self, kernel: str, *views: View) -> list[Op]:
        """constants: 1 / (rows that count) of each row of y, 1 / (columns that count) of each column."""
        x, y = views
        axes, factors = [], []
        for axis, (size, places) in enumerate(((x.height, y.height), (x.width, y.width))):
            axes.append((size, self.kernel[axis], self.strides[axis], self.dilations[axis], self.pads[axis]))
            factors.append(1 / _counted(self, axis, size, places))
        constants = np.concatenate([*factors, np.zeros(LANES)]).astype(np.float32)
        line = self.pads[1] + x.width + (y.width + LANES) * self.strides[1] + self.kernel[1] * self.dilations[1] + 2 * LANES
        meta = _POOL.pack(
            x=x.place,
            y=y.place,
            channels=x.channels,
            height=y.height,
            width=y.width,
            average=int(self.kind == "average"),
            rows=axes[0],
            columns=axes[1],
            line=line,
        )
        return [Op(kernel="pool", meta=meta, constants=constants, costs=np.ones(y.height), scratch=LANES + 2 * line)]


@onnx("MaxPool", "AveragePool")
def pool(node: "Node", reader: "Reader") -> list[Layer]:
    """MaxPool and AveragePool."""
    node.arity(1, 1)
    x = reader.image(node, 0)
    height, width = node.sizes("kernel_shape", None, 1)
    strides, pads, dilations = node.pair("strides"), node.pads(), node.pair("dilations")
    ceil = node.integer("ceil_mode", 0)
    node.support(node.integer("storage_order", 0) == 0, "storage_order")
    kernel, average = (height, width), node.op_type == "AveragePool"
    node.support(dilations == (1, 1) or not any(pads), "dilation with padding")  # a window may miss the image
    sizes = []
    for axis in (0, 1):
        reach = (kernel[axis] - 1) * dilations[axis] + 1
        before, after = pads[axis], pads[axis + 2]
        node.require(before < reach and after < reach, f"has pads {pads} not below its window {kernel}")
        free = x[axis + 1] + before + after - reach
        node.require(free >= 0, f"has a window {kernel} larger than its input {x}")
        size = windows(x[axis + 1] + before + after, kernel[axis], strides[axis], dilations[axis])
        if ceil and free % strides[axis] and size * strides[axis] < x[axis + 1] + before:
            size += 1  # a last window that starts inside
            node.support(not average, "an average with ceil_mode")
        sizes.append(size)
    output = reader.define(node, (x[0], sizes[0], sizes[1]))
    layer = Pool(
        name=node.name,
        inputs=(reader.tensor(node.inputs[0]),),
        output=output,
        kind="average" if average else "max",
        kernel=kernel,
        strides=strides,
        pads=pads,
        dilations=dilations,
        counts_padding=bool(node.integer("count_include_pad", 0)),
    )
    return [layer]


def _counted(layer: Pool, axis: int, size: int, places: int) -> NDArray[np.int64]:
    """The taps along an axis by which an average divides, at each place of y."""
    before, after = (layer.pads[axis], layer.pads[axis + 2]) if layer.counts_padding else (0, 0)
    starts = np.arange(places) * layer.strides[axis] - layer.pads[axis]
    taps = starts[:, None] + np.arange(layer.kernel[axis]) * layer.dilations[axis]
    return np.maximum(1, ((taps >= -before) & (taps < size + after)).sum(1))


@jit
def _window(axis: Any, position: int) -> tuple[int, int, int]:
    """(first tap inside the image, taps inside, place of the first) of the window at a row or column of y."""
    origin = position * axis.stride - axis.before
    first = 0 if origin >= 0 else (-origin + axis.dilation - 1) // axis.dilation
    last = min(axis.taps, (axis.places - origin + axis.dilation - 1) // axis.dilation)
    return first, last - first, origin + first * axis.dilation


@kernel("pool")
def run(first: int, last: int, scratch: int, arena: NDArray, constants: NDArray, index: NDArray, meta: NDArray, op: int) -> None:
    """Kernel "pool"."""
    m = _pool(meta, op)
    channels_last = m.x.channel == 1 and m.y.channel == 1
    columns_last = m.x.pixel == 1 and m.y.pixel == 1
    if m.width <= _FEW_PLACES and m.rows.taps * m.columns.taps <= _FEW_TAPS and not channels_last:
        for i in range(first, last):
            _numbers(i, arena, constants, m)
    elif columns_last and not channels_last and m.columns.stride == 1:
        _lines_1(first, last, scratch, arena, constants, m)
    elif columns_last and not channels_last and m.columns.stride == 2:
        _lines_2(first, last, scratch, arena, constants, m)
    else:
        for i in range(first, last):
            if channels_last:
                c = 0
                while c + _TOGETHER <= m.channels:
                    _places_4(i, c, arena, constants, m)
                    c += _TOGETHER
                while c < m.channels:
                    _places_1(i, c, arena, constants, m)
                    c += LANES
            else:
                _numbers(i, arena, constants, m)


@jit
def _numbers(i: int, arena: NDArray, constants: NDArray, m: Any) -> None:
    """Row i, number by number."""
    x, xc, xi, xj = m.x.start, m.x.channel, m.x.row, m.x.pixel
    y, yc, yi, yj = m.y.start, m.y.channel, m.y.row, m.y.pixel
    average, dh, dw, channels = m.average == 1, m.rows.dilation, m.columns.dilation, m.channels
    _, rows, top = _window(m.rows, i)
    factor, factors = constants[m.constants + i], m.constants + m.height
    for j in range(m.width):
        _, columns, left = _window(m.columns, j)
        for c in range(channels):
            total = np.float32(0) if average else np.float32(-np.inf)
            for u in range(rows):
                for v in range(columns):
                    new = arena[x + c * xc + (top + u * dh) * xi + (left + v * dw) * xj]
                    total = total + new if average else (new if new > total or new != new else total)
            arena[y + c * yc + i * yi + j * yj] = total * factor * constants[factors + j] if average else total


def _places(vectors: int) -> Any:
    """Row i of so many vectors of channels from c on."""

    @jit
    def places(i: int, c: int, arena: NDArray, constants: NDArray, m: Any) -> None:
        x, xi, xj, y, yj = m.x.start + c, m.x.row, m.x.pixel, m.y.start + i * m.y.row + c, m.y.pixel
        average, dh, dw = m.average == 1, m.rows.dilation, m.columns.dilation
        _, rows, top = _window(m.rows, i)
        factor, factors = constants[m.constants + i], m.constants + m.height
        for j in range(m.width):
            _, columns, left = _window(m.columns, j)
            total = same(np.float32(0) if average else np.float32(-np.inf), vectors)
            for u in range(rows):
                for v in range(columns):
                    value = load(arena, x + (top + u * dh) * xi + (left + v * dw) * xj, vectors)
                    total = added(total, value) if average else maximum(total, value)
            if average:
                total = multiplied(total, same(factor * constants[factors + j], vectors))
            store(total, arena, y + j * yj)

    return places


_places_1, _places_4 = _places(1), _places(4)


@cache
def _lines(step: int) -> Any:
    """Rows first <= i < last, channel by channel; windows are `step` columns apart. Lines lie in scratch, behind a vector's surplus: two,
    so that one is written a row before it is read: what is read at once, at other places, has to wait for the cache."""

    @jit
    def lines(first: int, last: int, scratch: int, arena: NDArray, constants: NDArray, m: Any) -> None:
        x, xc, xi = m.x.start, m.x.channel, m.x.row
        y, yc, yi, ow = m.y.start, m.y.channel, m.y.row, m.width
        average, dh = m.average == 1, m.rows.dilation
        W, kw, dw, left = m.columns.places, m.columns.taps, m.columns.dilation, m.columns.before
        nothing, factors = np.float32(0) if average else np.float32(-np.inf), m.constants + m.height
        size, seen = m.line, (ow - 1) * step + (kw - 1) * dw + 1
        begin = scratch + LANES
        for k in range(left):
            arena[begin + k] = arena[begin + size + k] = nothing
        for c in range(m.channels):
            for i in range(first, last + 1):
                line = begin + i % 2 * size
                if i < last:
                    _, rows, top = _window(m.rows, i)
                    tap = x + c * xc + top * xi
                    for e in range(0, W, LANES):
                        total = load(arena, tap + e, 1)
                        for u in range(1, rows):
                            value = load(arena, tap + e + u * dh * xi, 1)
                            total = added(total, value) if average else maximum(total, value)
                        store(total, arena, line + left + e)
                    for k in range(left + W, seen):
                        arena[line + k] = nothing
                if i == first:
                    continue
                line, at = begin + (i - 1) % 2 * size, y + c * yc + (i - 1) * yi
                for j in range(0, ow, LANES):
                    total = pack_line(pointer(arena), line + j * step, 0, 0, LANES, step)
                    for v in range(1, kw):
                        value = pack_line(pointer(arena), line + j * step + v * dw, 0, 0, LANES, step)
                        total = added(total, value) if average else maximum(total, value)
                    if average:
                        total = multiplied(multiplied(total, same(constants[m.constants + i - 1], 1)), load(constants, factors + j, 1))
                    if j + LANES <= ow:
                        store(total, arena, at + j)
                    else:
                        store(total, arena, scratch)
                        for k in range(ow - j):
                            arena[at + j + k] = arena[scratch + k]

    return lines


_lines_1, _lines_2 = _lines(1), _lines(2)


@dataclass(frozen=True, kw_only=True)
class Mean(Layer):
    """y[c] = mean over i,j of x[c,i,j]"""

    kernel_name: ClassVar[str] = "mean"
    any_input: ClassVar[bool] = True

    def channels(self, boxes: Mapping[str, Box]) -> Channels:
        return Channels.FIRST

    def plan(self, kernel: str, *views: View) -> list[Op]:
        x, y = views
        meta = _MEAN.pack(x=x.place, y=y.place, channels=x.channels, height=x.height, width=x.width)
        items = -(-x.channels // _TOGETHER)
        return [Op(kernel="mean", meta=meta, costs=np.ones(items), scratch=_TOGETHER)]


@onnx("GlobalAveragePool", "ReduceMean")
def mean(node: "Node", reader: "Reader") -> list[Layer]:
    """GlobalAveragePool, and ReduceMean over rows and columns."""
    keep = True
    if node.op_type == "ReduceMean":
        node.arity(1, 2)
        node.support(bool(node.input(1)), "no axes")
        axes = reader.integers(node, 1)
        node.support(sorted(axes) in ([2, 3], [-2, -1], [-2, 3], [-1, 2]), f"axes {axes}")
        keep = bool(node.integer("keepdims", 1))
    else:
        node.arity(1, 1)
    C = reader.image(node, 0)[0]
    output = reader.define(node, (C, 1, 1), (C, 1, 1) if keep else (C,))
    return [Mean(name=node.name, inputs=(reader.tensor(node.inputs[0]),), output=output)]


def _summed(vectors: int) -> Any:
    """Sums of so many vectors of channels that lie together, to `to`: sums of rows, then their sum, which rounds less than one long sum."""

    @jit
    def summed(arena: NDArray, x: int, row: int, pixel: int, height: int, width: int, to: int) -> None:
        total = tile_zeros(1, vectors)
        for i in range(height):
            line = tile_zeros(1, vectors)
            for j in range(width):
                line = added(line, load(arena, x + i * row + j * pixel, vectors))
            total = added(total, line)
        store(total, arena, to)

    return summed


_summed_1, _summed_4 = _summed(1), _summed(4)


@kernel("mean")
def run_mean(first: int, last: int, scratch: int, arena: NDArray, constants: NDArray, index: NDArray, meta: NDArray, op: int) -> None:
    """Kernel "mean"."""
    m = _mean(meta, op)
    x, xc, xi, xj, y, yc = m.x.start, m.x.channel, m.x.row, m.x.pixel, m.y.start, m.y.channel
    C, H, W = m.channels, m.height, m.width
    factor = np.float32(1 / (H * W))
    for begin in range(first * _TOGETHER, min(last * _TOGETHER, C), _TOGETHER):
        end = min(begin + _TOGETHER, C)
        if xc != 1:
            for c in range(begin, end):
                arena[scratch + c - begin] = _plane_sum(arena, x + c * xc, xi, xj, H, W)
        elif end == begin + _TOGETHER:
            _summed_4(arena, x + begin, xi, xj, H, W, scratch)
        else:
            for c in range(begin, end, LANES):
                _summed_1(arena, x + c, xi, xj, H, W, scratch + c - begin)
        for c in range(begin, end):
            arena[y + c * yc] = arena[scratch + c - begin] * factor


@jit
def _plane_sum(arena: NDArray, x: int, row: int, pixel: int, height: int, width: int) -> Any:
    total = np.float32(0)
    for i in range(height):
        line = np.float32(0)
        for j in range(width):
            line += arena[x + i * row + j * pixel]
        total += line
    return total
