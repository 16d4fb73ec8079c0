"""Kernel "quad_blend": the blocks that a mask drops of a depthwise convolution of integers, once its results are there.

    y[c,p] = M[c,p] ? y[c,p] : q[c]          q[c]: what is made of the bias alone

A filter reads its own channel, so that M takes away all that a result is made of. A work item is four channels.
"""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fineprune.ops.simd.quads import words
from fineprune.ops.simd.vectors import words_of

from ..ir.conv import Op, View
from ..ir.network import kernel
from ..ir.record import INT, PLACE, Record

if TYPE_CHECKING:
    from .quads import QuadConv

_META = Record(y=PLACE, height=INT, width=INT, masks=INT)
"""masks: position in index of those of each channel of quads, behind the words of q."""
_fields = _META.fields


def _biased(conv: "QuadConv") -> NDArray[np.uint8]:
    """[C/4,4]: q, 0 where there is no channel."""
    assert conv.grid is not None
    sums = conv.bias + conv.source.zero * conv.weights.astype(np.int64).reshape(len(conv.weights), -1).sum(1)
    real = np.rint(sums.astype(np.float32) * conv.factors) + np.float32(conv.grid.zero)
    return np.pad(np.clip(real, conv.low, conv.high).astype(np.uint8), (0, -len(sums) % 4)).reshape(-1, 4)


def plan(conv: "QuadConv", y: View) -> Op:
    """index: words of q, masks."""
    assert conv.mask is not None
    masks = words(np.where(conv.mask, np.uint8(255), np.uint8(0)))
    meta = _META.pack(y=y.place, height=y.height, width=y.width, masks=len(masks))
    index = np.concatenate([words(_biased(conv)), masks.reshape(-1)]).astype(np.int32)
    return Op(kernel="quad_blend", meta=meta, index=index, costs=np.ones(y.channels))


@kernel("quad_blend")
def run(first: int, last: int, scratch: int, arena: NDArray, constants: NDArray, index: NDArray, meta: NDArray, op: int) -> None:
    """Kernel "quad_blend"."""
    m = _fields(meta, op)
    numbers = words_of(arena)
    for c in range(first, last):
        q = index[m.index + c]
        for i in range(m.height):
            y, mask = m.y.start + c * m.y.channel + i * m.y.row, m.index + m.masks + (c * m.height + i) * m.width
            for j in range(m.width):
                kept = index[mask + j]
                numbers[y + j] = (numbers[y + j] & kept) | (q & ~kept)
