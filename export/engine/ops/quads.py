"""Kernel "quads": a convolution of integers, positions in the SIMD lanes, four channels of a position in each.

    s[f,p] = bias[f] + sum over kept quads of w[f,c,u,v,0:4] . x[c, p + offset(u,v), 0:4]           int32, exact
    q[f,p] = clip(round(s[f,p] * factor[f]) + zero, low, high)                                       factor = scale_x scale_w[f] / scale_q
    y[f,p] = clip(round(a * q[f,p] + (b * r[f,p] + shift)), low', high')                             where a residual r is added

Round is half to even; the last line has two fused multiply-adds, a = scale_q / scale_y, b = scale_r / scale_y,
shift = zero_y - (a zero_q + b zero_r), as in ONNX Runtime's QLinearAdd. A weight that is dropped is 0; a quad of zeros is not in a
filter's list, so that any mask saves time as far as it drops four channels of a tap together.

The rows of x and y are at the same distance and lie one after another as one line, so that an offset is a constant for all positions;
strides have been made away with (`Phases`, ops/quad_maps.py). What stands in the margins of x is its zero point: bias holds
-zero_x * (sum of the kept weights). A work item is a tile of positions, so many vectors as the registers hold sums of, for four
filters, one after another; their sums wait in scratch and become quads together.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fineprune.ops.simd import LANES, at, pointer
from fineprune.ops.simd.quads import UNIT, as_ints, chosen, fits, quads, real, real_bytes, split, tile_add_quads, tile_same_word, whole, words
from fineprune.ops.simd.registers import HOST, Registers
from fineprune.ops.simd.vectors import load, multiplied, multiply_added, same, store

from ..ir.conv import Margins, Op, View
from ..ir.dtypes import FLOAT32, QUAD, DType
from ..ir.grids import Grid
from ..ir.network import NCHW, Layer, kernel
from ..ir.record import INT, NOWHERE, PLACE, Record, group
from ..jit import jit
from .margins import margins, word_of

FILTERS = 4
_MOST_UNITS = 12
"""Of a tile: enough to hide what a list entry takes besides; each size is compiled."""


def most_units(registers: Registers) -> int:
    """Of sums in registers, beside a weight, a factor of ones and what is on its way."""
    return min(_MOST_UNITS, (registers.count - 4) * registers.floats // UNIT)


_MOST = most_units(HOST)
_META = Record(
    x=INT,
    y=PLACE,
    residual=PLACE,
    sets=INT,
    entries=INT,
    bias=INT,
    bits=INT,
    word=INT,
    filters=INT,
    after=INT,
    first=group("zero", "low", "high"),
    last=group("low", "high"),
)
"""sets: of FILTERS filters; entries, bias, bits, word: positions in index of the lists' bounds, of biases, of the lanes that are positions,
and of what stands between rows; filters: where y is of float32, else 0."""
_fields = _META.fields
_RATIO_Q, _RATIO_R, _SHIFT, _FACTORS = range(4)
"""Positions in the constants."""


@dataclass(frozen=True, kw_only=True)
class Residual:
    """What is added: y = clip(round(a q + (b r + shift)), low, high); `after`: round(b r + (a q + shift)), r being the first operand."""

    a: np.float32
    b: np.float32
    shift: np.float32
    grid: Grid
    low: int = 0
    high: int = 255
    after: bool = False

    @classmethod
    def of(cls, q: Grid, r: Grid, y: Grid, low: int, high: int) -> "Residual":
        """The sum q + r on grid y of tensors on grids q and r."""
        a, b = np.float32(q.scale / y.scale), np.float32(r.scale / y.scale)
        shift = np.float32(np.float32(y.zero) - np.float32(a * np.float32(q.zero) + b * np.float32(r.zero)))
        return cls(a=a, b=b, shift=shift, grid=y, low=low, high=high)

    @property
    def swapped(self) -> "Residual":
        """The same sum, of which the second operand is the convolution's."""
        return replace(self, a=self.b, b=self.a, after=True)


@dataclass(frozen=True, kw_only=True, eq=False)
class QuadConv(Layer):
    """weights int8 [F,C/4,kh,kw,4]; bias int64 [F]; factors float32 [F]; `source`: grid of x; `grid`: of its own result,
    before a residual (the second input).

    Without a grid y = s * factor is of float32, of one position. `kept`, `dense`: multiply-adds a sample.
    """

    weights: NDArray[np.int8]
    bias: NDArray[np.int64]
    factors: NDArray[np.float32]
    source: Grid
    grid: Grid | None
    low: int = 0
    high: int = 255
    pads: Margins = (0, 0, 0, 0)
    strides: tuple[int, int] = (1, 1)
    dilations: tuple[int, int] = (1, 1)
    residual: Residual | None = None
    kept: int = 0
    dense: int = 0

    kernel_name: ClassVar[str] = "quads"
    layouts: ClassVar[tuple[str, ...]] = (NCHW,)
    tied: ClassVar[bool] = True

    @property
    def macs(self) -> int:
        return self.kept

    @property
    def macs_dense(self) -> int:
        return self.dense

    @property
    def margins(self) -> Margins:
        return self.pads

    @property
    def zero(self) -> int:
        """The zero point of what it makes."""
        grid = self.residual.grid if self.residual else self.grid
        return grid.zero if grid else 0

    @property
    def alone(self) -> bool:
        return self.zero != 0

    def dtype(self, inputs: Sequence[DType]) -> DType | None:
        """Quads or float32, of quads."""
        return (QUAD if self.grid else FLOAT32) if all(dtype == QUAD for dtype in inputs) else None

    @cached_property
    def lists(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int32]]:
        """(first entry of each filter and the end [F + 1], places (c,u,v) of the entries [n,3], their weights as words [n])."""
        f, *place = np.nonzero(self.weights.any(-1))
        found = self.weights[f, place[0], place[1], place[2]]
        good = fits(found)
        if not good.all():  # the sum of two products that are exact
            halves, others = split(found[~good])
            order = np.argsort(np.concatenate([np.arange(len(f)), np.flatnonzero(~good)]), kind="stable")
            found = np.concatenate([np.where(good[:, None], found, 0), others])
            found[np.flatnonzero(~good)] = halves
            f, place = np.concatenate([f, f[~good]])[order], [np.concatenate([p, p[~good]])[order] for p in place]
            found = found[order]
        bounds = np.searchsorted(f, np.arange(len(self.weights) + 1))
        return bounds, np.stack(place, 1), words(found)

    def plan(self, kernel: str, *views: View) -> list[Op]:
        x, *added_view, y = views
        F = len(self.weights)
        sets = -(-F // FILTERS)
        bounds, places, entries = self.lists
        offsets = self._offsets(places, x)
        line = (y.height - 1) * y.row_stride + y.width
        tiles, bits = _tiles(line), _bits(line, y)
        starts = bounds[np.minimum(np.arange(sets * FILTERS + 1), F)]
        bias = np.zeros(sets * FILTERS, np.int64)
        bias[:F] = self.bias
        factors = np.zeros(sets * FILTERS, np.float32)
        factors[:F] = self.factors
        pairs = np.stack([offsets, entries], 1).reshape(-1)
        index = [tiles, starts, bias, bits, np.array([word_of(self.zero)]), pairs]
        position = np.cumsum([0, *map(len, index)])
        index[1] = 2 * starts + position[5]
        residual = self.residual
        ratios = (residual.a, residual.b, residual.shift) if residual else (0, 0, 0)
        limits = (residual.low, residual.high) if residual else (0, 255)
        meta = _META.pack(
            x=x.at(0, -self.pads[0], -self.pads[1]),
            y=y.place,
            residual=added_view[0].place if residual else NOWHERE,
            sets=sets,
            entries=int(position[1]),
            bias=int(position[2]),
            bits=int(position[3]),
            word=int(position[4]),
            filters=0 if self.grid else F,
            after=int(residual is not None and residual.after),
            first=(self.grid.zero if self.grid else 0, self.low, self.high),
            last=limits,
        )
        work = 16.0 + np.diff(starts[::FILTERS]).astype(np.float64)
        op = Op(
            kernel="quads",
            meta=meta,
            index=np.concatenate(index).astype(np.int32),
            constants=np.concatenate([ratios, factors]).astype(np.float32),
            costs=(np.diff(tiles)[:, None] * work).reshape(-1),
            scratch=FILTERS * (_MOST * UNIT + LANES),
        )
        return [*margins(y, self.zero), op]

    def _offsets(self, places: NDArray[np.int64], x: View) -> NDArray[np.int64]:
        down, right = self.dilations
        return places @ np.array([x.channel_stride, down * x.row_stride, right])


def _tiles(line: int) -> NDArray[np.int64]:
    """Bounds of tiles of whole vectors, but for the last, in units: as few as possible, of about one size."""
    vectors = -(-line // LANES)
    count = -(-vectors // (_MOST // _TOGETHER))
    bounds = np.arange(count + 1) * vectors // count * _TOGETHER
    bounds[-1] = -(-line // UNIT)
    return bounds


_TOGETHER = LANES // UNIT


def _bits(line: int, y: View) -> NDArray[np.int64]:
    """[vectors]: lanes that are positions of y, not of a gap between rows or behind the last one."""
    places = np.arange(-(-line // LANES) * LANES)
    there = (places % y.row_stride < y.width) & (places < line)
    return there.reshape(-1, LANES) @ (1 << np.arange(LANES))


def _summed(units: int) -> Callable[..., None]:
    """Sums of a filter for so many units of positions, or for fewer."""
    smaller, vectors = _summed(units - 1) if units > 1 else None, -(-units // _TOGETHER)

    @jit
    def filter_sums(n: int, arena: Any, x: int, index: Any, entry: int, end: int, bias: int, scratch: int) -> None:
        if smaller is not None and n < units:
            smaller(n, arena, x, index, entry, end, bias, scratch)
        else:
            total = tile_same_word(index, bias, vectors)
            for e in range(entry, end, 2):
                total = tile_add_quads(total, arena, x + at(index, e), index, e + 1, units)
            store(total, arena, scratch)

    return filter_sums


_sums = _summed(_MOST)


@kernel("quads")
def run(first: int, last: int, scratch: int, arena: NDArray, constants: NDArray, index: NDArray, meta: NDArray, op: int) -> None:
    """Kernel "quads"."""
    m = _fields(meta, op)
    memory, numbers = pointer(arena), pointer(index)
    for item in range(first, last):
        tile, k = m.index + item // m.sets, item % m.sets
        begin = np.int64(index[tile])
        n, f, start = index[tile + 1] - begin, k * FILTERS, begin * UNIT
        step = (n + _TOGETHER - 1) // _TOGETHER * LANES
        for r in range(FILTERS):
            bound = m.index + m.entries + f + r
            entry, end = m.index + np.int64(index[bound]), m.index + np.int64(index[bound + 1])
            _sums(n, memory, m.x + start, numbers, entry, end, m.index + m.bias + f + r, scratch + r * step)
        if m.filters == 0:
            _finish(m, step, start, k, scratch, arena, constants, index)
        else:
            sums = as_ints(arena)
            for r in range(min(FILTERS, m.filters - f)):
                factor = constants[m.constants + _FACTORS + f + r]
                arena[m.y.start + (f + r) * m.y.channel] = np.float32(sums[scratch + r * step]) * factor


@jit
def _finish(m: Any, step: int, start: int, k: int, scratch: int, arena: NDArray, constants: NDArray, index: NDArray) -> None:
    """Sums of four filters, `step` positions from `start` on, become quads."""
    c, zero = m.constants, m.first.zero
    low, high = np.float32(m.first.low - zero), np.float32(m.first.high - zero)
    least, most = np.float32(m.last.low), np.float32(m.last.high)
    f = c + _FACTORS + k * FILTERS
    f0, f1, f2, f3 = same(constants[f], 1), same(constants[f + 1], 1), same(constants[f + 2], 1), same(constants[f + 3], 1)
    a, b, shift = same(constants[c + _RATIO_Q], 1), same(constants[c + _RATIO_R], 1), same(constants[c + _SHIFT], 1)
    between, bits = tile_same_word(index, m.index + m.word, 1), m.index + m.bits + start // LANES
    y = m.y.start + k * m.y.channel + start
    residual = m.residual.start + k * m.residual.channel + start
    for p in range(0, step, LANES):
        s = scratch + p
        q0 = whole(multiplied(real(load(arena, s, 1)), f0), low, high, zero)
        q1 = whole(multiplied(real(load(arena, s + step, 1)), f1), low, high, zero)
        q2 = whole(multiplied(real(load(arena, s + 2 * step, 1)), f2), low, high, zero)
        q3 = whole(multiplied(real(load(arena, s + 3 * step, 1)), f3), low, high, zero)
        if m.residual.start >= 0:
            r = load(arena, residual + p, 1)
            r0, r1, r2, r3 = real_bytes(r, 0), real_bytes(r, 1), real_bytes(r, 2), real_bytes(r, 3)
            q0, q1, q2, q3 = real(q0), real(q1), real(q2), real(q3)
            if m.after == 0:
                q0, q1 = multiply_added(q0, a, multiply_added(r0, b, shift)), multiply_added(q1, a, multiply_added(r1, b, shift))
                q2, q3 = multiply_added(q2, a, multiply_added(r2, b, shift)), multiply_added(q3, a, multiply_added(r3, b, shift))
            else:
                q0, q1 = multiply_added(r0, b, multiply_added(q0, a, shift)), multiply_added(r1, b, multiply_added(q1, a, shift))
                q2, q3 = multiply_added(r2, b, multiply_added(q2, a, shift)), multiply_added(r3, b, multiply_added(q3, a, shift))
            q0, q1, q2, q3 = whole(q0, least, most, 0), whole(q1, least, most, 0), whole(q2, least, most, 0), whole(q3, least, most, 0)
        store(chosen(quads(q0, q1, q2, q3), int(index[bits + p // LANES]), between), arena, y + p)
