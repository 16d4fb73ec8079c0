"""What becomes of the sums of a convolution of integers, which its kernels have in common.

    q = clip(round(s * factor[f]) + zero, low, high)         y = clip(round(a q + (b r + shift)), low', high')  where r is added

With `after`, y = clip(round(b r + (a q + shift)), low', high'): which product is added last decides the last bit. Both are fused
multiply-adds, as in ONNX Runtime's QLinearAdd.
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fineprune.ops.simd.quads import LOWERED, real
from fineprune.ops.simd.vectors import multiplied, multiply_added, same

from ..ir.conv import View
from ..ir.grids import Grid
from ..ir.record import INT, NOWHERE, PLACE, group
from ..jit import jit, jit_merged

if TYPE_CHECKING:
    from .quads import QuadConv

FIELDS = {
    "y": PLACE,
    "residual": PLACE,
    "reals": INT,
    "after": INT,
    "first": group("zero", "low", "high"),
    "last": group("low", "high"),
}
"""Of the records of all kernels; reals: y is of float32."""
RATIO_Q, RATIO_R, SHIFT, FACTORS = range(4)
"""Positions in the constants."""


@jit
def part(m: Any, index: NDArray, item: int) -> tuple[Any, Any, Any]:
    """Of an item of a kernel whose record has tiles and sets: its set of filters, where its tile begins, and how long that is."""
    tile = m.index + m.tiles + item // m.sets
    begin = np.int64(index[tile])
    return item % m.sets, begin, index[tile + 1] - begin


@dataclass(frozen=True, kw_only=True)
class Residual:
    """What is added: a, b, shift, `after`; low, high: bounds of the sum."""

    a: np.float32
    b: np.float32
    shift: np.float32
    grid: Grid
    low: int = 0
    high: int = 255
    after: bool = False

    @classmethod
    def of(cls, q: Grid, r: Grid, y: Grid, low: int, high: int) -> "Residual | None":
        """The sum q + r on grid y of tensors on grids q and r; None where scales are so far apart that there are no such numbers."""
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            a, b = np.float32(q.scale / y.scale), np.float32(r.scale / y.scale)
            away = np.float32(float(a) * q.zero + float(np.float32(b * np.float32(r.zero))))  # rounded once, as ONNX Runtime has it
            shift = np.float32(np.float32(y.zero) - away)
        return cls(a=a, b=b, shift=shift, grid=y, low=low, high=high) if np.isfinite([a, b, shift]).all() else None

    @property
    def swapped(self) -> "Residual":
        """The same sum, of which the second operand is the convolution's."""
        return replace(self, a=self.b, b=self.a, after=True)


def facts(conv: "QuadConv", y: View, residual: View | None) -> dict[str, Any]:
    """Values of FIELDS."""
    total = conv.residual
    return {
        "y": y.place,
        "residual": residual.place if residual else NOWHERE,
        "reals": int(conv.grid is None),
        "after": int(total is not None and total.after),
        "first": (conv.grid.zero if conv.grid else 0, conv.low, conv.high),
        "last": (total.low, total.high) if total else (0, 255),
    }


def constants(conv: "QuadConv", filters: int) -> NDArray[np.float32]:
    """Ratios, shift, and the factors of so many filters: 0 of those that are not there."""
    total = conv.residual
    ratios = (total.a, total.b, total.shift) if total else (0, 0, 0)
    return np.concatenate([ratios, conv.factors, np.zeros(filters - len(conv.factors))]).astype(np.float32)


def biases(conv: "QuadConv", filters: int) -> NDArray[np.int64]:
    """What the sums of so many filters begin with: 0 of those that are not there."""
    own = conv.bias + LOWERED * conv.weights.astype(np.int64).reshape(len(conv.weights), -1).sum(1)
    return np.pad(own, (0, filters - len(own)))


@jit_merged
def ratios(m: Any, numbers: NDArray) -> tuple[NDArray, NDArray, NDArray]:
    """a, b and shift in all lanes; numbers: the constants."""
    c = m.constants
    return same(numbers[c + RATIO_Q], 1), same(numbers[c + RATIO_R], 1), same(numbers[c + SHIFT], 1)


@jit_merged
def scaled(sums: NDArray, factors: NDArray) -> NDArray:
    """s * factor of int32 sums."""
    return multiplied(real(sums), factors)


@jit_merged
def total(q: NDArray, r: NDArray, ratio: tuple[NDArray, NDArray, NDArray], after: int) -> NDArray:
    """y, before it is rounded and clipped, of q (int32) and r (float32)."""
    a, b, shift = ratio
    x = real(q)
    return multiply_added(x, a, multiply_added(r, b, shift)) if after == 0 else multiply_added(r, b, multiply_added(x, a, shift))
