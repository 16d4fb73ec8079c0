"""Kernel "quad_depthwise": a convolution of integers in which each filter reads its own channel, four taps in each product.

    s[c,p] = bias[c] + sum over fours of taps t of  w[c,t:t+4] . x[c, p + offset(t..t+3)]           int32, exact

Four vectors of words, one for each tap, hold four channels each: their bytes are transposed, so that a word has four taps of one channel,
and its lanes are those of four vectors of sums. Sum k has positions 4L + k in lanes 4L to 4L + 3, one for each channel; so packing their
bytes makes words of y. Taps that no filter keeps cost nothing. A work item is four channels.
"""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fineprune.ops.simd import LANES, pointer, tile_store
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
from fineprune.ops.simd.vectors import load, store

from ..ir.conv import Op, View
from ..ir.costs import Counts
from ..ir.network import kernel
from ..ir.record import INT, PLACE, Record, laid_out
from ..jit import jit
from .margins import word_of
from .quad_positions import lanes_of
from .quad_results import FACTORS, FIELDS, biases, constants, facts, ratios, scaled, total

if TYPE_CHECKING:
    from .quads import QuadConv

_FOUR = 4
_META = Record(x=PLACE, taps=INT, vectors=INT, offsets=INT, bias=INT, bits=INT, word=INT, weights=INT, **FIELDS)
"""x: the first tap of the first position; taps, vectors: how many; offsets, bias, bits, word, weights: positions in index."""
_fields = _META.fields


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
    vectors, sets = -(-((height - 1) * (width + 1) + width) // LANES), -(-len(conv.weights) // _FOUR)
    return {
        "quad_depthwise.operation": 1,
        "quad_depthwise.taps": sets * vectors * len(_taps(conv)[0]) / _FOUR,
        "quad_depthwise.result": sets * vectors,
    }


def plan(conv: "QuadConv", x: View, residual: View | None, y: View) -> Op:
    """Its index has the parts that `_META` names."""
    places, weights = _taps(conv)
    sets = len(weights)
    phase = sets * x.channel_stride
    offsets = places @ np.array([phase, conv.dilations[0] * x.row_stride, conv.dilations[1]])
    bits = lanes_of((y.height - 1) * y.row_stride + y.width, y)
    index, starts = laid_out(
        offsets=offsets,
        bias=biases(conv, sets * _FOUR),
        bits=bits,
        word=np.array([word_of(conv.zero)]),
        weights=words(weights).reshape(-1),
    )
    meta = _META.pack(
        x=(x.at(0, -conv.pads[0], -conv.pads[1]), *x.place[1:]),
        taps=len(places),
        vectors=len(bits),
        **starts,
        **facts(conv, y, residual),
    )
    return Op(
        kernel="quad_depthwise",
        meta=meta,
        index=index,
        constants=constants(conv, sets * _FOUR),
        costs=np.ones(sets),
        scratch=_FOUR * LANES,
    )


@kernel("quad_depthwise")
def run(first: int, last: int, scratch: int, arena: NDArray, constants: NDArray, index: NDArray, meta: NDArray, op: int) -> None:
    """Kernel "quad_depthwise"."""
    m = _fields(meta, op)
    memory, numbers, offsets = pointer(arena), pointer(index), m.index + m.offsets
    for k in range(first, last):
        x, bias = m.x.start + k * m.x.channel, m.index + m.bias + k * _FOUR
        weights = m.index + m.weights + k * m.taps
        for v in range(m.vectors):
            sums = tile_same_words_of_four(numbers, bias, 4)
            for t in range(0, m.taps, _FOUR):
                sums = tile_add_taps(sums, memory, x + v * LANES, numbers, offsets + t, weights + t)
            tile_store(sums, memory, scratch, LANES)
            _finish(m, k, v, scratch, arena, constants, index)


@jit
def _finish(m: Any, k: int, v: int, scratch: int, arena: NDArray, constants: NDArray, index: NDArray) -> None:
    """Sums of four channels at LANES positions become words."""
    factors = same_four(constants, m.constants + FACTORS + k * _FOUR)
    s, zero, low, high = scratch, m.first.zero, m.first.low, m.first.high
    x0, x1 = scaled(load(arena, s, 1), factors), scaled(load(arena, s + LANES, 1), factors)
    x2, x3 = scaled(load(arena, s + 2 * LANES, 1), factors), scaled(load(arena, s + 3 * LANES, 1), factors)
    if m.residual.start >= 0:
        r, ratio, after = load(arena, m.residual.start + k * m.residual.channel + v * LANES, 1), ratios(m, constants), m.after
        least, most = np.float32(low - zero), np.float32(high - zero)
        x0 = total(whole(x0, least, most, zero), real_positions(r, 0), ratio, after)
        x1 = total(whole(x1, least, most, zero), real_positions(r, 1), ratio, after)
        x2 = total(whole(x2, least, most, zero), real_positions(r, 2), ratio, after)
        x3 = total(whole(x3, least, most, zero), real_positions(r, 3), ratio, after)
        zero, low, high = 0, m.last.low, m.last.high
    between, bits = tile_same_word(index, m.index + m.word, 1), int(index[m.index + m.bits + v])
    store(chosen(packed_positions(x0, x1, x2, x3, zero, low, high), bits, between), arena, m.y.start + k * m.y.channel + v * LANES)
