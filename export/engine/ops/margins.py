"""Kernel "margins": what lies around a tensor of quads whose zero point is not 0, and in the gaps between its rows.

A convolution reads its padding there: the zero point, which stands for zero. A work item is a channel of quads.
"""

import numpy as np
from numpy.typing import NDArray

from fineprune.ops.simd.vectors import words_of

from ..ir.conv import Op, View
from ..ir.network import kernel
from ..ir.record import INT, PLACE, Record, group
from ..jit import jit

_META = Record(y=PLACE, height=INT, width=INT, margins=group("top", "left", "bottom"), word=INT)
_fields = _META.fields


def word_of(zero: int) -> int:
    """Four times the zero point, as an int32 number."""
    return int(np.array([zero] * 4, np.uint8).view("<i4")[0])


def margins(y: View, zero: int) -> list[Op]:
    """What has to be written there; nothing for a zero point of 0."""
    if zero == 0:
        return []
    top, left, bottom, _ = y.margins
    meta = _META.pack(y=y.place, height=y.height, width=y.width, margins=(top, left, bottom), word=word_of(zero))
    return [Op(kernel="margins", meta=meta, costs=np.ones(y.channels))]


@kernel("margins")
def run(first: int, last: int, scratch: int, arena: NDArray, constants: NDArray, index: NDArray, meta: NDArray, op: int) -> None:
    """Kernel "margins"."""
    m = _fields(meta, op)
    words, row, word = words_of(arena), m.y.row, np.int32(m.word)
    for c in range(first, last):
        start = m.y.start + c * m.y.channel
        _fill(words, start - m.margins.top * row - m.margins.left, start, word)
        for i in range(m.height):
            _fill(words, start + i * row + m.width, start + (i + 1) * row, word)
        _fill(words, start + m.height * row, start + (m.height + m.margins.bottom) * row, word)


@jit
def _fill(words: NDArray, first: int, last: int, word: int) -> None:
    for k in range(first, last):
        words[k] = word
