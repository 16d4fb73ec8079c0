"""Kernels of tensors of quads beside convolutions: sums, the largest number under a window, means, and phases of strided convolutions.

    sum      y = clip(round(a x + (b z + shift)), low, high)                     as ONNX Runtime's QLinearAdd, see quad_results.py
    max      y[c,i,j] = max_uv x[c, i*sh + u*dh - top, j*sw + v*dw - left]       the zero point, which lies around x, being the least number
    mean     y[c] = clip(round(factor (sum_ij x[c,i,j] - H W zero_x)) + zero_y, 0, 255)        factor = scale_x / (scale_y H W)
    permute  y[c] = x[order[c]]                                                  bytes of words change places
    phase    y[(a,b),c,i,j] = x[c, i*sh + a, j*sw + b], the zero point beyond the image

A convolution with strides is one without over the phases: x[i*s + u*d - top] = x[(i + o)*s + a] with a = (u*d - top) mod s and
o = (u*d - top) div s.
A work item is a channel of quads of the output, of means all of one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from fineprune.ops.simd import LANES, tile_zeros
from fineprune.ops.simd.quads import chosen, larger_bytes, packed, quads, real_bytes, shifted_byte
from fineprune.ops.simd.vectors import added, load, multiply_added, same, store, words_of

from ..ir.conv import Margins, Op, View
from ..ir.costs import Counts
from ..ir.dtypes import QUAD, DType
from ..ir.grids import Grid
from ..ir.network import NCHW, Box, Layer, Order, kernel
from ..ir.record import INT, PLACE, Record, group
from ..jit import jit
from .assemble import Assemble
from .maps import put
from .margins import margins, word_of
from .positions_simd import pack_line
from .quad_results import Residual


@dataclass(frozen=True, kw_only=True)
class _Quads(Layer):
    """Of quads, to quads on `grid`."""

    grid: Grid

    layouts: ClassVar[tuple[str, ...]] = (NCHW,)

    @property
    def alone(self) -> bool:
        return self.grid.zero != 0

    def dtype(self, inputs: Sequence[DType]) -> DType | None:
        """Quads."""
        return QUAD if all(dtype == QUAD for dtype in inputs) else None


@dataclass(frozen=True, kw_only=True)
class QuadAssemble(Assemble):
    """Pieces of quads whose zero point is 0."""

    layouts: ClassVar[tuple[str, ...]] = (NCHW,)


_ADD = Record(x=PLACE, z=PLACE, y=PLACE, height=INT, width=INT, range=group("low", "high"))
_add = _ADD.fields


@dataclass(frozen=True, kw_only=True)
class QuadAdd(_Quads):
    """The sum of two tensors."""

    sum: Residual

    kernel_name: ClassVar[str] = "quad_add"

    @property
    def alike(self) -> bool:
        return (self.sum.low, self.sum.high) == (0, 255)

    def plan(self, kernel: str, *views: View) -> list[Op]:
        x, z, y = views
        meta = _ADD.pack(x=x.place, z=z.place, y=y.place, height=y.height, width=y.width, range=(self.sum.low, self.sum.high))
        constants = np.array([self.sum.a, self.sum.b, self.sum.shift], np.float32)
        op = Op(kernel="quad_add", meta=meta, constants=constants, costs=np.ones(y.channels), scratch=LANES)
        return [*margins(y, self.grid.zero), op]


@kernel("quad_add")
def run_add(first: int, last: int, scratch: int, arena: NDArray, constants: NDArray, index: NDArray, meta: NDArray, op: int) -> None:
    """Kernel "quad_add"."""
    m = _add(meta, op)
    a, b, shift = same(constants[m.constants], 1), same(constants[m.constants + 1], 1), same(constants[m.constants + 2], 1)
    low, high = m.range.low, m.range.high
    for c in range(first, last):
        for i in range(m.height):
            x, z = m.x.start + c * m.x.channel + i * m.x.row, m.z.start + c * m.z.channel + i * m.z.row
            y = m.y.start + c * m.y.channel + i * m.y.row
            for j in range(0, m.width, LANES):
                s, t = load(arena, x + j, 1), load(arena, z + j, 1)
                q0 = multiply_added(real_bytes(s, 0), a, multiply_added(real_bytes(t, 0), b, shift))
                q1 = multiply_added(real_bytes(s, 1), a, multiply_added(real_bytes(t, 1), b, shift))
                q2 = multiply_added(real_bytes(s, 2), a, multiply_added(real_bytes(t, 2), b, shift))
                q3 = multiply_added(real_bytes(s, 3), a, multiply_added(real_bytes(t, 3), b, shift))
                put(packed(q0, q1, q2, q3, 0, low, high), arena, y + j, m.width - j, scratch)


_POOL = Record(
    x=PLACE, y=PLACE, height=INT, width=INT, taps=group("rows", "columns"), jumps=group("down", "right"), steps=group("down", "right")
)
_pool = _POOL.fields


@dataclass(frozen=True, kw_only=True)
class QuadPool(_Quads):
    """The largest number under a window; where there is padding, the grid's zero is 0."""

    kernel: tuple[int, int]
    strides: tuple[int, int]
    pads: Margins
    dilations: tuple[int, int] = (1, 1)

    kernel_name: ClassVar[str] = "quad_pool"

    @property
    def margins(self) -> Margins:
        top, left, bottom, right = self.pads
        return top, left, bottom + self.strides[0] - 1, right + self.strides[1] - 1  # windows that begin inside may end there

    def plan(self, kernel: str, *views: View) -> list[Op]:
        x, y = views
        place = (x.at(0, -self.pads[0], -self.pads[1]), *x.place[1:])
        meta = _POOL.pack(
            x=place,
            y=y.place,
            height=y.height,
            width=y.width,
            taps=self.kernel,
            jumps=self.strides,
            steps=self.dilations,
        )
        return [*margins(y, self.grid.zero), Op(kernel="quad_pool", meta=meta, costs=np.ones(y.channels), scratch=LANES)]


@kernel("quad_pool")
def run_pool(first: int, last: int, scratch: int, arena: NDArray, constants: NDArray, index: NDArray, meta: NDArray, op: int) -> None:
    """Kernel "quad_pool"."""
    m = _pool(meta, op)
    sw = m.jumps.right
    for c in range(first, last):
        for i in range(m.height):
            x, y = m.x.start + c * m.x.channel + i * m.jumps.down * m.x.row, m.y.start + c * m.y.channel + i * m.y.row
            for j in range(0, m.width, LANES):
                most = tile_zeros(1, 1)
                for u in range(m.taps.rows):
                    for v in range(m.taps.columns):
                        s = x + u * m.steps.down * m.x.row + v * m.steps.right + j * sw
                        if sw == 1:
                            most = larger_bytes(most, load(arena, s, 1))
                        elif sw == 2:
                            most = larger_bytes(most, pack_line(arena, s, 0, 0, LANES, 2))
                        else:
                            for e in range(min(LANES, m.width - j)):
                                arena[scratch + e] = arena[s + e * sw]
                            most = larger_bytes(most, load(arena, scratch, 1))
                put(most, arena, y + j, m.width - j, scratch)


_MEAN = Record(x=PLACE, y=PLACE, height=INT, width=INT, zeros=group("x", "y"))
_mean = _MEAN.fields


@dataclass(frozen=True, kw_only=True)
class QuadMean(_Quads):
    """The mean of each channel; source: the grid of the input."""

    source: Grid

    kernel_name: ClassVar[str] = "quad_mean"

    def plan(self, kernel: str, *views: View) -> list[Op]:
        x, y = views
        count = np.float32(x.height * x.width)
        factor = np.float32(self.source.scale / np.float32(self.grid.scale * count))
        meta = _MEAN.pack(x=x.place, y=y.place, height=x.height, width=x.width, zeros=(self.source.zero, self.grid.zero))
        op = Op(kernel="quad_mean", meta=meta, constants=np.array([factor], np.float32), costs=np.ones(x.channels), scratch=4 * LANES)
        return [*margins(y, self.grid.zero), op]


@kernel("quad_mean")
def run_mean(first: int, last: int, scratch: int, arena: NDArray, constants: NDArray, index: NDArray, meta: NDArray, op: int) -> None:
    """Kernel "quad_mean"."""
    m = _mean(meta, op)
    words, factor = words_of(arena), constants[m.constants]
    low, high = np.float32(-m.zeros.y), np.float32(255 - m.zeros.y)
    none = tile_zeros(1, 1)
    for c in range(first, last):
        s0, s1, s2, s3 = tile_zeros(1, 1), tile_zeros(1, 1), tile_zeros(1, 1), tile_zeros(1, 1)
        for i in range(m.height):
            x = m.x.start + c * m.x.channel + i * m.x.row
            for j in range(0, m.width, LANES):
                q = chosen(load(arena, x + j, 1), (1 << min(LANES, m.width - j)) - 1, none)
                s0, s1 = added(s0, real_bytes(q, 0)), added(s1, real_bytes(q, 1))
                s2, s3 = added(s2, real_bytes(q, 2)), added(s3, real_bytes(q, 3))
        word = np.int64(0)
        for k in range(4):
            store(s0 if k == 0 else s1 if k == 1 else s2 if k == 2 else s3, arena, scratch)
            total = np.float64(0)
            for e in range(LANES):
                total += arena[scratch + e]
            value = np.float32(total - m.height * m.width * m.zeros.x) * factor
            value = min(max(np.rint(value), low), high) + np.float32(m.zeros.y)
            word |= np.int64(value) << (8 * k)
        words[m.y.start + c * m.y.channel] = np.int32(np.uint32(word))


_PERMUTE = Record(x=PLACE, y=PLACE, vectors=INT)
_permute = _PERMUTE.fields


def permute_counts(box: Box) -> Counts:
    """What a copy in another order comes to; box: channels, height, width."""
    channels, height, width = box
    vectors = -(-((height - 1) * (width + 1) + width) // LANES)
    return {"quad_permute.operation": 1, "quad_permute.result": -(-channels // 4) * vectors}


@dataclass(frozen=True, kw_only=True, eq=False)
class QuadPermute(_Quads):
    """y[c] = x[order[c]], channels of single bytes; no node of a file, see passes/align.py."""

    order: Order

    kernel_name: ClassVar[str] = "quad_permute"

    @property
    def tied(self) -> bool:
        return True

    def plan(self, kernel: str, *views: View) -> list[Op]:
        """index: for each byte of y the offset of its word in x, and the bits that it is shifted by there."""
        x, y = views
        order = np.pad(self.order, (0, -len(self.order) % 4), "edge")
        index = np.stack([order // 4 * x.channel_stride, order % 4 * 8], 1).reshape(-1)
        vectors = -(-((y.height - 1) * y.row_stride + y.width) // LANES)
        meta = _PERMUTE.pack(x=x.place, y=y.place, vectors=vectors)
        op = Op(kernel="quad_permute", meta=meta, index=index.astype(np.int32), costs=np.ones(y.channels))
        return [*margins(y, self.grid.zero), op]


@kernel("quad_permute")
def run_permute(first: int, last: int, scratch: int, arena: NDArray, constants: NDArray, index: NDArray, meta: NDArray, op: int) -> None:
    """Kernel "quad_permute"."""
    m = _permute(meta, op)
    for c in range(first, last):
        k, y = m.index + 8 * c, m.y.start + c * m.y.channel
        s0, s1, s2, s3 = (m.x.start + index[k], m.x.start + index[k + 2], m.x.start + index[k + 4], m.x.start + index[k + 6])
        b0, b1, b2, b3 = int(index[k + 1]), int(index[k + 3]), int(index[k + 5]), int(index[k + 7])
        for p in range(0, m.vectors * LANES, LANES):
            q0, q1 = shifted_byte(load(arena, s0 + p, 1), b0), shifted_byte(load(arena, s1 + p, 1), b1)
            q2, q3 = shifted_byte(load(arena, s2 + p, 1), b2), shifted_byte(load(arena, s3 + p, 1), b3)
            store(quads(q0, q1, q2, q3), arena, y + p)


_PHASES = Record(
    x=PLACE, y=PLACE, channels=INT, height=INT, width=INT, jumps=group("down", "right"), there=group("height", "width"), word=INT
)
_phases = _PHASES.fields


@dataclass(frozen=True, kw_only=True)
class Phases(_Quads):
    """The phases (a,b) of `places`, one after another, of which convolutions with `strides` are ones without."""

    places: tuple[tuple[int, int], ...]
    strides: tuple[int, int]

    kernel_name: ClassVar[str] = "phases"

    def plan(self, kernel: str, *views: View) -> list[Op]:
        """index: row and column of each phase."""
        x, y = views
        meta = _PHASES.pack(
            x=x.place,
            y=y.place,
            channels=x.channels,
            height=y.height,
            width=y.width,
            jumps=self.strides,
            there=(x.height, x.width),
            word=word_of(self.grid.zero),
        )
        places = np.array(self.places, np.int32).reshape(-1)
        op = Op(kernel="phases", meta=meta, index=places, costs=np.ones(y.channels))
        return [*margins(y, self.grid.zero), op]


@kernel("phases")
def run_phases(first: int, last: int, scratch: int, arena: NDArray, constants: NDArray, index: NDArray, meta: NDArray, op: int) -> None:
    """Kernel "phases"."""
    m = _phases(meta, op)
    words, sh, sw, word = words_of(arena), m.jumps.down, m.jumps.right, np.int32(m.word)
    for item in range(first, last):
        phase, c = item // m.channels, item % m.channels
        a, b = np.int64(index[m.index + 2 * phase]), np.int64(index[m.index + 2 * phase + 1])
        count = max(0, min(m.width, (m.there.width - b + sw - 1) // sw))
        for i in range(m.height):
            y, row = m.y.start + item * m.y.channel + i * m.y.row, i * sh + a
            there = count if row < m.there.height else 0
            x = m.x.start + c * m.x.channel + row * m.x.row + b
            _line(arena, words, x, sw, y, there)
            for j in range(there, m.width):
                words[y + j] = word


@jit
def _line(arena: NDArray, words: NDArray, x: int, step: int, y: int, count: int) -> None:
    """words[y + j] = words[x + j*step], j < count."""
    if step == 2 and count >= LANES:
        for j in range(0, count, LANES):
            k = min(j, count - LANES)  # some numbers once more: quicker than one by one
            store(pack_line(arena, x + 2 * k, 0, 0, LANES, 2), arena, y + k)
    else:
        for j in range(count):
            words[y + j] = words[x + j * step]
