"""Kernel "plain": a masked convolution in the obvious loops, for what no faster kernel supports; either layout.

    y[f,i,j] = clip(sum over the kept taps (c,u,v) of f with M[c,i,j]: w * x[c, i*sh + u*dh - top, j*sw + v*dw - left] + bias[f] (+ r), ...)

A work item is LANES filters. The mask lies bit by bit in `index`: bit b of word k is element 32*k + b.
"""

import numpy as np
from numpy.typing import NDArray

from ..ir.conv import HEADER, ConvShape, Epilogue, Op, View
from ..jit import jit
from ..run.vectors import LANES


def supports(shape: ConvShape, weights: NDArray, mask: NDArray | None) -> str | None:
    """Everything."""
    return None


def estimate(shape: ConvShape, weights: NDArray, mask: NDArray | None) -> float:
    """Seconds: one multiply-add a nanosecond."""
    oh, ow = shape.output
    return 1e-6 + 1e-9 * oh * ow * float(np.count_nonzero(weights))


def plan(shape: ConvShape, weights: NDArray, mask: NDArray | None, bias: NDArray, x: View, y: View, epilogue: Epilogue) -> Op:
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
    own = [shape.filters, oh, ow, int(mask is not None), len(filters), int(residual is not None)]
    origin = x.at(0, -shape.pads[0], -shape.pads[1])
    own += [origin, x.row_stride * shape.strides[0], x.pixel_stride * shape.strides[1]]
    for view in (y, residual or y):
        own += [view.start, view.channel_stride, view.row_stride, view.pixel_stride]
    items = -(-shape.filters // LANES)
    meta = np.array([0] * HEADER + own, np.int64)
    return Op(kernel="plain", meta=meta, index=index, constants=constants, costs=np.full(items, estimate(shape, weights, mask) / items))


def _words(mask: NDArray | None) -> NDArray[np.int32]:
    if mask is None:
        return np.zeros(0, np.int32)
    bits = np.packbits(mask.reshape(-1), bitorder="little")
    return np.pad(bits, (0, -len(bits) % 4)).view("<i4")


@jit
def run(first: int, last: int, scratch: int, arena: NDArray, constants: NDArray, index: NDArray, meta: NDArray, op: int) -> None:
    """Kernel "plain"."""
    constant, start, m = meta[op], meta[op + 1], op + HEADER
    F, oh, ow, masked, K, residual = meta[m], meta[m + 1], meta[m + 2], meta[m + 3] == 1, meta[m + 4], meta[m + 5] == 1
    x, xi, xj = meta[m + 6], meta[m + 7], meta[m + 8]
    y, yc, yi, yj = meta[m + 9], meta[m + 10], meta[m + 11], meta[m + 12]
    r, rc, ri, rj = meta[m + 13], meta[m + 14], meta[m + 15], meta[m + 16]
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
                if residual:
                    total += arena[r + f * rc + i * ri + j * rj]
                total = low if total < low else total
                arena[y + f * yc + i * yi + j * yj] = high if total > high else total
