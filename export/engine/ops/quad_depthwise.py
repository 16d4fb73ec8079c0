"""Kernel "quad_depthwise": a convolution of integers in which each filter reads its own channel, four taps in each product.

    s[c,p] = bias[c] + sum over fours of taps t of  w[c,t:t+4] . x[c, p + offset(t..t+3)]           int32, exact

Four vectors of words, one for each tap, hold four channels each: their bytes are transposed, so that a word has four taps of one channel,
and its lanes are those of four vectors of sums. Sum k has positions 4L + k in lanes 4L to 4L + 3, one for each channel; so packing their
bytes makes words of y. Taps that no filter keeps cost nothing. A work item is four channels.

Positions are those of one line, or, where columns are read with stride 2, vectors of each row: every second word of two vectors is a tap of
one. Other strides have been made away with (`reads`).
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fineprune.ops.simd import LANES, at, pointer, tile_store
from fineprune.ops.simd.quads import (
    chosen,
    packed_positions,
    real_positions,
    same_four,
    split,
    tile_add_taps,
    tile_same_word,
    tile_same_words_of_four,
    whole,
    words,
)
from fineprune.ops.simd.vectors import load

from ..ir.conv import Op, View
from ..ir.costs import Counts
from ..ir.network import kernel
from ..ir.record import INT, PLACE, Record, laid_out
from ..jit import jit
from .maps import put
from .margins import word_of
from .quad_positions import lanes_of
from .quad_results import FACTORS, FIELDS, biases, constants, facts, ratios, scaled, total

if TYPE_CHECKING:
    from .quads import QuadConv

_FOUR = 4
_STEP = 2
_META = Record(x=PLACE, step=INT, taps=INT, vectors=INT, offsets=INT, bias=INT, places=INT, word=INT, weights=INT, **FIELDS)
"""x: the first tap of the first position; step: between columns; taps, vectors: how many; offsets, bias, places, word, weights: positions
in index, places being, for each vector, where its taps begin and where it lies in y, which lanes are positions, and how many are stored."""
_fields = _META.fields


def reads(conv: "QuadConv") -> bool:
    """Whether it reads with its strides."""
    return conv.strides[1] in (1, _STEP) and (conv.strides[1] == _STEP or conv.strides[0] == 1)


def _places(conv: "QuadConv", x_row: int, y_row: int) -> NDArray[np.int64]:
    """[vectors,4], as `_META` has it, for rows at such distances."""
    height, width = conv.size
    line = (height - 1) * y_row + width
    if conv.strides[1] == 1:
        starts = np.arange(0, line, LANES)
        return np.stack([starts, starts, lanes_of(line, y_row, width), np.full(len(starts), LANES)], 1)
    columns = np.minimum(np.arange(0, width, LANES), max(0, width - LANES))  # some once more, and nothing behind a row
    i, j = (axis.reshape(-1) for axis in np.meshgrid(np.arange(height), columns, indexing="ij"))
    starts, lanes = (
        i * y_row + j,
        np.full(len(i), (1 << min(LANES, width)) - 1),
    )  # short rows begin where those before go on, but come later
    return np.stack([i * conv.strides[0] * x_row + j * _STEP, starts, lanes, np.minimum(LANES, line - starts)], 1)


def _taps(conv: "QuadConv") -> tuple[NDArray[np.int64], NDArray[np.int8]]:
    """(places (phase,u,v) of the taps [4n,3], their weights [C/4,n,4 channels,4 taps]); what does not fit comes in parts."""
    F, channels, kh, kw, _ = conv.weights.shape
    sets = -(-F // _FOUR)
    f = np.arange(F)
    own = conv.weights.reshape(F, channels // sets, sets, kh, kw, _FOUR)[f, :, f // _FOUR, :, :, f % _FOUR]  # [F,phase,kh,kw]
    places = np.argwhere(own.any(0))
    if not len(places):
        places = np.zeros((1, 3), np.int64)
    count = -(-len(places) // _FOUR) * _FOUR
    weights = np.zeros((sets * _FOUR, count), np.int16)
    weights[:F, : len(places)] = own[:, places[:, 0], places[:, 1], places[:, 2]]
    places = np.concatenate([places, np.repeat(places[:1], count - len(places), 0)])
    rows, fours = split(weights.reshape(sets, _FOUR, -1, _FOUR).transpose(2, 0, 1, 3))
    return places.reshape(-1, _FOUR, 3)[rows].reshape(-1, 3), fours.transpose(1, 0, 2, 3)


def counts(conv: "QuadConv", height: int, width: int) -> Counts:
    """What it comes to, on rows that are a column apart."""
    vectors, sets = len(_places(conv, width + 1, width + 1)), -(-len(conv.weights) // _FOUR)
    return {
        "quad_depthwise.operation": 1,
        f"quad_depthwise.taps.{conv.strides[1]}": sets * vectors * len(_taps(conv)[0]) / _FOUR,
        "quad_depthwise.result": sets * vectors,
    }


def plan(conv: "QuadConv", x: View, residual: View | None, y: View) -> Op:
    """Its index has the parts that `_META` names."""
    places, weights = _taps(conv)
    sets = len(weights)
    phase = sets * x.channel_stride
    offsets = places @ np.array([phase, conv.dilations[0] * x.row_stride, conv.dilations[1]])
    lines = _places(conv, x.row_stride, y.row_stride)
    index, starts = laid_out(
        offsets=offsets,
        bias=biases(conv, sets * _FOUR),
        places=lines.reshape(-1),
        word=np.array([word_of(conv.zero)]),
        weights=words(weights).reshape(-1),
    )
    meta = _META.pack(
        x=(x.at(0, -conv.pads[0], -conv.pads[1]), *x.place[1:]),
        taps=len(places),
        step=conv.strides[1],
        vectors=len(lines),
        **starts,
        **facts(conv, y, residual),
    )
    return Op(
        kernel="quad_depthwise",
        meta=meta,
        index=index,
        constants=constants(conv, sets * _FOUR),
        costs=np.ones(sets),
        scratch=(_FOUR + 1) * LANES,
    )


def _summed(step: int) -> Callable[..., None]:
    """Sums of four channels at LANES positions, `step` columns apart."""

    @jit
    def sums(taps: int, arena: Any, x: int, index: Any, offsets: int, weights: int, bias: int, scratch: int) -> None:
        total = tile_same_words_of_four(index, bias, 4)
        for t in range(0, taps, _FOUR):
            total = tile_add_taps(total, arena, x, index, offsets + t, weights + t, step)
        tile_store(total, arena, scratch, LANES)

    return sums


_near, _apart = _summed(1), _summed(_STEP)


@kernel("quad_depthwise")
def run(first: int, last: int, scratch: int, arena: NDArray, constants: NDArray, index: NDArray, meta: NDArray, op: int) -> None:
    """Kernel "quad_depthwise"."""
    m = _fields(meta, op)
    memory, numbers, offsets, taps, step, vectors = pointer(arena), pointer(index), m.index + m.offsets, m.taps, m.step, m.vectors
    for k in range(first, last):
        x, bias = m.x.start + k * m.x.channel, m.index + m.bias + k * _FOUR
        weights = m.index + m.weights + k * taps
        for v in range(vectors):
            place = m.index + m.places + 4 * v
            start = x + int(at(numbers, place))
            if step == 1:
                _near(taps, memory, start, numbers, offsets, weights, bias, scratch)
            else:
                _apart(taps, memory, start, numbers, offsets, weights, bias, scratch)
            _finish(m, k, place + 1, scratch, arena, constants, index)


@jit
def _finish(m: Any, k: int, place: int, scratch: int, arena: NDArray, constants: NDArray, index: NDArray) -> None:
    """Sums of four channels at LANES positions become words; index[place:]: where in y, which are positions, how many are stored."""
    p, bits, left = np.int64(index[place]), int(index[place + 1]), np.int64(index[place + 2])
    factors = same_four(constants, m.constants + FACTORS + k * _FOUR)
    s, zero, low, high = scratch, m.first.zero, m.first.low, m.first.high
    x0, x1 = scaled(load(arena, s, 1), factors), scaled(load(arena, s + LANES, 1), factors)
    x2, x3 = scaled(load(arena, s + 2 * LANES, 1), factors), scaled(load(arena, s + 3 * LANES, 1), factors)
    if m.residual.start >= 0:
        r, ratio, after = load(arena, m.residual.start + k * m.residual.channel + p, 1), ratios(m, constants), m.after
        least, most = np.float32(low - zero), np.float32(high - zero)
        x0 = total(whole(x0, least, most, zero), real_positions(r, 0), ratio, after)
        x1 = total(whole(x1, least, most, zero), real_positions(r, 1), ratio, after)
        x2 = total(whole(x2, least, most, zero), real_positions(r, 2), ratio, after)
        x3 = total(whole(x3, least, most, zero), real_positions(r, 3), ratio, after)
        zero, low, high = 0, m.last.low, m.last.high
    between = tile_same_word(index, m.index + m.word, 1)
    word = chosen(packed_positions(x0, x1, x2, x3, zero, low, high), bits, between)
    put(word, arena, m.y.start + k * m.y.channel + p, left, scratch + _FOUR * LANES)
