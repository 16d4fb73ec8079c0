"""Kernel "plain": a masked convolution in the obvious loops, for what no faster kernel supports; either layout.

    y[f,i,j] = clip(sum over the kept taps (c,u,v) of f with M[c,i,j]: w * x[c, i*sh + u*dh - top, j*sw + v*dw - left] + bias[f] (+ r), ...)

A work item is LANES filters. The mask lies bit by bit in `index`: bit b of word k is element 32*k + b.
"""

import numpy as np
from numpy.typing import NDArray

from fineprune.ops import mask_bits
from fineprune.ops.simd import LANES

from ..ir import costs
from ..ir.conv import ConvShape, Epilogue, Op, View
from ..ir.costs import Counts
from ..ir.network import kernel
from ..ir.record import INT, NOWHERE, PLACE, Record, group

_META = Record(filters=INT, height=INT, width=INT, masked=INT, taps=INT, x=group("start", "row", "pixel"), y=PLACE, residual=PLACE)
"""height, width: of y; x: the first tap of the first place, distance of places; taps: of all filters."""
_fields = _META.fields


def supports(shape: ConvShape, weights: NDArray, mask: NDArray | None) -> str | None:
    """Everything."""
    return None


def forms(shape: ConvShape, weights: NDArray, mask: NDArray | None) -> list[None]:
    """There is one, without a name."""
    return [None]


def counts(shape: ConvShape, weights: NDArray, mask: NDArray | None, form: None = None) -> Counts:
    """What it comes to."""
    oh, ow = shape.output
    return {"plain.operation": 1, "plain.add": oh * ow * int(np.count_nonzero(weights))}


def estimate(shape: ConvShape, weights: NDArray, mask: NDArray | None) -> float:
    """Expected seconds."""
    return costs.seconds(counts(shape, weights, mask))


def plan(
    shape: ConvShape, weights: NDArray, mask: NDArray | None, bias: NDArray, x: View, y: View, epilogue: Epilogue, form: None = None
) -> Op:
    """index: first tap of each filter, end [F + 1]; (offset, channel) of each tap [2K]; mask. constants: low, high, bias, weights."""
    filters, channels, rows, columns = np.nonzero(weights)
    per_group = weights.shape[1]
    channels = channels + filters // (shape.filters // shape.groups) * per_group
    offsets = channels * x.channel_stride + rows * shape.dilations[0] * x.row_stride + columns * shape.dilations[1] * x.pixel_stride
    starts = np.searchsorted(filters, np.arange(shape.filters + 1))
    index = np.concatenate([starts, np.stack([offsets, channels], 1).reshape(-1), _words(mask)]).astype(np.int32)
    constants = np.concatenate([[epilogue.low, epilogue.high], bias, weights[weights != 0]]).astype(np.float32)
    oh, ow = shape.output
    residual = epilogue.residual
    items = -(-shape.filters // LANES)
    meta = _META.pack(
        filters=shape.filters,
        height=oh,
        width=ow,
        masked=int(mask is not None),
        taps=len(filters),
        x=(x.at(0, -shape.pads[0], -shape.pads[1]), x.row_stride * shape.strides[0], x.pixel_stride * shape.strides[1]),
        y=y.place,
        residual=residual.place if residual else NOWHERE,
    )
    return Op(kernel="plain", meta=meta, index=index, constants=constants, costs=np.ones(items))


def _words(mask: NDArray | None) -> NDArray[np.int32]:
    if mask is None:
        return np.zeros(0, np.int32)
    bits = mask_bits.pack(mask)
    return np.pad(bits, (0, -len(bits) % 4)).view("<i4")


@kernel("plain")
def run(first: int, last: int, scratch: int, arena: NDArray, constants: NDArray, index: NDArray, meta: NDArray, op: int) -> None:
    """Kernel "plain"."""
    m = _fields(meta, op)
    constant, start, F, oh, ow, masked, K = m.constants, m.index, m.filters, m.height, m.width, m.masked == 1, m.taps
    x, xi, xj = m.x.start, m.x.row, m.x.pixel
    y, yc, yi, yj = m.y.start, m.y.channel, m.y.row, m.y.pixel
    r, rc, ri, rj = m.residual.start, m.residual.channel, m.residual.row, m.residual.pixel
    low, high, bias, weights = constants[constant], constants[constant + 1], constant + 2, constant + 2 + F
    taps = start + F + 1
    words = taps + 2 * K
    for f in range(first * LANES, min(last * LANES, F)):
        for i in range(oh):
            for j in range(ow):
                total = np.float32(0)
                for k in range(index[start + f], index[start + f + 1]):
                    if masked:
                        bit = np.int64(index[taps + 2 * k + 1]) * oh * ow + i * ow + j
                        if not (index[words + (bit >> 5)] >> (bit & 31)) & 1:
                            continue
                    total += constants[weights + k] * arena[x + i * xi + j * xj + index[taps + 2 * k]]
                total += constants[bias + f]
                if r >= 0:
                    total += arena[r + f * rc + i * ri + j * rj]
                total = low if total < low else total
                arena[y + f * yc + i * yi + j * yj] = high if total > high else total
