"""Kernel "linear": a convolution with one output position and no mask: a matrix times a vector, filters in the lanes.

    y[f] = clip(sum_k w[f,k] * x[k] + bias[f] (+ r[f]), low, high)

Inputs that no filter of a block uses are left out. A work item is a block of BLOCK filters; four sums a filter, or three, so that one
multiply-add need not wait for the last. Layout: that of x is free, y has its channels together.
"""

import numpy as np
from numpy.typing import NDArray

from fineprune.ops.simd import LANES, tile_add_scaled, tile_zeros
from fineprune.ops.simd.registers import HOST, Registers
from fineprune.ops.simd.vectors import added, load, store

from ..ir import costs
from ..ir.conv import ConvShape, Epilogue, Op, View
from ..ir.costs import Counts
from ..ir.network import kernel
from ..ir.record import INT, NOWHERE, PLACE, Record

BLOCK = 2 * LANES


def sums(registers: Registers) -> int:
    """Of a filter: four hide the latency of multiply-adds; fewer where registers don't hold them beside a factor."""
    return min(4, registers.vectors(beside=1) // (BLOCK // LANES))


_SUMS = sums(HOST)
_LOW, _HIGH, _BIAS = 0, 1, 2
_META = Record(x=PLACE, y=PLACE, residual=PLACE, filters=INT)
_fields = _META.fields


def supports(shape: ConvShape, weights: NDArray, mask: NDArray | None) -> str | None:
    """None where the kernel can run it, else why not."""
    if shape.output != (1, 1):
        return "more than one output position"
    if mask is not None and not mask.all():
        return "masked blocks"
    return None if shape.groups == 1 else "groups"


def forms(shape: ConvShape, weights: NDArray, mask: NDArray | None) -> list[None]:
    """There is one, without a name."""
    return [None]


def counts(shape: ConvShape, weights: NDArray, mask: NDArray | None, form: None = None) -> Counts:
    """What it comes to: weights, which come from far away."""
    return {"linear.operation": 1, "linear.weight": weights.size}


def estimate(shape: ConvShape, weights: NDArray, mask: NDArray | None) -> float:
    """Expected seconds."""
    return costs.seconds(counts(shape, weights, mask))


def plan(
    shape: ConvShape, weights: NDArray, mask: NDArray | None, bias: NDArray, x: View, y: View, epilogue: Epilogue, form: None = None
) -> Op:
    """index: for each block its number of inputs, start of its offsets, start of its weights; constants: low, high, bias, weights."""
    F = shape.filters
    blocks = -(-F // BLOCK)
    _, C, kh, kw = weights.shape
    c, u, v = (grid.reshape(-1) for grid in np.meshgrid(np.arange(C), np.arange(kh), np.arange(kw), indexing="ij"))
    i, j = u * shape.dilations[0] - shape.pads[0], v * shape.dilations[1] - shape.pads[1]
    inside = (i >= 0) & (i < x.height) & (j >= 0) & (j < x.width)
    offsets = c * x.channel_stride + i * x.row_stride + j * x.pixel_stride
    matrix = weights.reshape(F, -1)
    heads, lists, values, at, weight = [], [], [], 3 * blocks, _BIAS + blocks * BLOCK
    for block in range(blocks):
        rows = matrix[block * BLOCK : (block + 1) * BLOCK]
        used = np.flatnonzero((rows != 0).any(0) & inside)
        part = np.zeros((len(used), BLOCK), np.float32)
        part[:, : len(rows)] = rows[:, used].T
        heads += [len(used), at, weight]
        lists.append(offsets[used])
        values.append(part.reshape(-1))
        at, weight = at + len(used), weight + part.size
    padded = np.zeros(blocks * BLOCK, np.float32)
    padded[:F] = bias
    residual = epilogue.residual
    return Op(
        kernel="linear",
        meta=_META.pack(x=x.place, y=y.place, residual=residual.place if residual else NOWHERE, filters=F),
        index=np.concatenate([heads, *lists]).astype(np.int32),
        constants=np.concatenate([np.array([epilogue.low, epilogue.high], np.float32), padded, *values]),
        costs=1.0 + np.array(heads[::3]),
        scratch=BLOCK,
    )


@kernel("linear")
def run(first: int, last: int, scratch: int, arena: NDArray, constants: NDArray, index: NDArray, meta: NDArray, op: int) -> None:
    """Kernel "linear"."""
    m = _fields(meta, op)
    constant, start, x, F = m.constants, m.index, m.x.start, m.filters
    y, yc, r, rc = m.y.start, m.y.channel, m.residual.start, m.residual.channel
    low, high = constants[constant + _LOW], constants[constant + _HIGH]
    for block in range(first, last):
        count, offsets, weights = index[start + 3 * block], start + index[start + 3 * block + 1], constant + index[start + 3 * block + 2]
        a, b, c, d = load(constants, constant + _BIAS + block * BLOCK, 2), tile_zeros(1, 2), tile_zeros(1, 2), tile_zeros(1, 2)
        whole = count // _SUMS * _SUMS
        for k in range(0, whole, _SUMS):
            a = tile_add_scaled(a, arena, x + index[offsets + k], 0, constants, weights + k * BLOCK)
            b = tile_add_scaled(b, arena, x + index[offsets + k + 1], 0, constants, weights + (k + 1) * BLOCK)
            c = tile_add_scaled(c, arena, x + index[offsets + k + 2], 0, constants, weights + (k + 2) * BLOCK)
            if _SUMS > 3:
                d = tile_add_scaled(d, arena, x + index[offsets + k + 3], 0, constants, weights + (k + 3) * BLOCK)
        for k in range(whole, count):
            a = tile_add_scaled(a, arena, x + index[offsets + k], 0, constants, weights + k * BLOCK)
        store(added(added(a, b), added(c, d)), arena, scratch)
        for f in range(block * BLOCK, min((block + 1) * BLOCK, F)):
            value = arena[scratch + f - block * BLOCK]
            if r >= 0:
                value += arena[r + f * rc]
            value = low if value < low else value
            arena[y + f * yc] = high if value > high else value
